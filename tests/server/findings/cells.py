"""Made-up cells of a study whose answers are known."""

import numpy as np

from idiolect.common.config import Scalar
from idiolect.server.study.declaration import Claim, Comparison, Study


def cell(ratio: float, seed: int, gain: float, users=12, task="headline") -> dict:
    """Users whose c-bpo is `gain` below sft; overlap rises with the user's number."""
    rng = np.random.default_rng(seed)
    values = {}
    for k in range(users):
        start = 1 + rng.random()
        values[f"u{k:02}"] = {
            "sft": {"nll": start},
            "c-bpo": {"nll": start - gain * (1 if k >= users // 2 else 2)},
        }
    return {
        "cell": {"unlabeled.ratio": ratio, "seed": seed},
        "run": {
            "task": task,
            "seed": seed,
            "overlap": {f"u{k:02}": k / users for k in range(users)},
            "alpha": {},
            "learning_rates": {"c-bpo": 0.003},
            "clamp_rate": {"c-bpo": 0.25},
        },
        "methods": {},
        "users": values,
    }


CELLS = [cell(r, s, g) for r, g in ((1.0, 0.1), (2.0, 0.3)) for s in (0, 1)]


def claim(expect="lower", users="all", one=None, other=None) -> Claim:
    one = one or {"method": "c-bpo", "unlabeled.ratio": 2.0}
    other = other or {"method": "c-bpo", "unlabeled.ratio": 1.0}
    return Claim("text", "nll", one, other, expect, users)


def study(**plot) -> Study:
    grid = {"unlabeled.ratio": [1.0, 2.0], "seed": [0, 1]}
    return Study("small", "Small", "Why?", {}, grid, (claim(),), plot)


def worlds() -> tuple[Study, list[dict]]:
    one: dict[str, Scalar] = {"method": "c-bpo"}
    other: dict[str, Scalar] = {"method": "sft", "as": "SFT"}
    compare = Comparison("unlabeled.ratio", one, [other], ["nll", "accuracy"])
    grid = {"seed": [0, 1], "unlabeled.ratio": [1.0, 2.0, 3.0]}
    study = Study("s", "t", "q", {}, grid, compare=(compare,))
    even = [cell(3.0, seed, 0.0) for seed in (0, 1)]
    for k, level in enumerate(even):
        for i, user in enumerate(level["users"].values()):
            user["c-bpo"]["nll"] += 0.1 if (i + k) % 2 else -0.1
    worse = [cell(2.0, seed, -0.2) for seed in (0, 1)]
    return study, [cell(1.0, 0, 0.1), cell(1.0, 1, 0.1), *worse, *even]
