"""The page of `continual.py`, docs/continual.md, from its results alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from idiolect.server.findings.smallest import helps_from
from idiolect.server.run.results import bootstrap

Users = Mapping[str, Mapping[str, Any]]
"""User -> ``shared`` and methods, as `continual.user_of` returns them."""

WAYS = "anew", "go on", "replay"
NLL, MRR, CPU, TOKENS = range(4)  # columns of a way's rows
NAMES = {"sft": "SFT", "c-bpo": "C-BPO (default)"}
MODELS = {"tiny": "the built-in backbone", "smollm2": "SmolLM2 (135M)"}
PEOPLE = {"tiny": "personas", "smollm2": "authors of news headlines"}


# --- numbers ---------------------------------------------------------------------------


def gains(users: Users, method: str, way: str, step: int, column: int) -> np.ndarray:
    """What an adapter gains over the shared model, one number per user; more is better."""
    sign = -1 if column == NLL else 1
    return np.array(
        [
            sign * (one[method]["ways"][way][step][column] - one["shared"][column])
            for one in users.values()
        ]
    )


def device_gains(users: Users, method: str, liked: str) -> np.ndarray:
    """Fall of the NLL by what a device uses: the adapter if accepted, else nothing."""
    rows = [(one["shared"], one[method]["device"][liked]) for one in users.values()]
    return np.array(
        [shared[0] - row[1] if row[0] >= 0 else 0.0 for shared, row in rows]
    )


def entries(
    values: Callable[[int], np.ndarray], setting: Mapping[str, Any]
) -> list[Any]:
    """Mean gains by the number of items, as `helps_from` takes them."""
    each = setting["each"]
    return [
        {"x": each * (k + 1), "expect": "higher", **bootstrap(values(k), seed=0)}
        for k in range(setting["steps"])
    ]


def smallest(found: Mapping[str, Any], method: str) -> float | None:
    """From how many liked pairs on a device's adapter is shown to help its user.

    Over users, the NLL of held-out texts falls by what the device uses: the adapter where
    its judgement accepts it, else nothing. None: at no length that was measured.
    """
    users = found["users"]
    return helps_from(
        [
            {
                "x": n,
                "expect": "higher",
                **bootstrap(device_gains(users, method, n), seed=0),
            }
            for n in lengths(users, method)
        ]
    )


def lengths(users: Users, method: str) -> list[str]:
    """Numbers of liked pairs at which a device was tried."""
    return list(next(iter(users.values()))[method]["device"])


def left(users: Users, method: str, when: str, name: str, part: int) -> np.ndarray:
    """By how much the forgotten text is likelier than by an adapter that never saw it."""
    found = [one[method]["forgotten"][when] for one in users.values()]
    return np.array([one[name][part] - one["never"][part] for one in found])


# --- words -----------------------------------------------------------------------------


def shown(found: Mapping[str, Any], digits: int = 3) -> str:
    """A mean with its interval."""
    low, high = found["ci95"]
    return f"{found['mean']:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def stands(values: np.ndarray, better: str, worse: str, neither: str) -> str:
    """What an interval says of a mean difference."""
    low, high = bootstrap(values, seed=0)["ci95"]
    return better if low > 0 else worse if high < 0 else neither


def lines_of(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table."""
    lines = (heads, ["---"] * len(heads), *rows)
    return ["", *(f"| {' | '.join(row)} |" for row in lines), ""]


def from_on(value: float | None, most: int | str) -> str:
    """A smallest history in words."""
    return f"at none up to {most}" if value is None else f"from {value:g} on"


# --- the page --------------------------------------------------------------------------

INTRODUCTION = """# A history that grows

Written by `python benchmarks/continual.py`, which says how it measures, from
benchmarks/results/continual.json. Do not edit.

- *Anew*: a new adapter is trained on the whole history. *Go on*: the last adapter is
  trained on the new items alone. *Replay*: the last adapter is trained on the new items and
  as many old ones, drawn by chance.
- A gain is the difference to the shared model on the same held-out texts, which are in no
  history: the fall of the NLL in nats per token, or the rise of the mean reciprocal rank of
  the own text among others'. Intervals are 95 %, by bootstrap over users, not corrected.
  "From N on" says: at N items and at every larger number that was measured the interval
  (Student's t), corrected for their number (Bonferroni), excludes zero.
- An epoch of a long history has more steps than one of a short history, but fewer than all
  the short ones of a history that grew: to go on takes more steps in all.
- CPU seconds are of one thread; tokens are those of all rows that pass through training,
  prompts included, times the passes.
"""


def page(done: Mapping[str, Mapping[str, Any]]) -> str:
    """Return docs/continual.md."""
    lines = [INTRODUCTION]
    for backbone, found in done.items():
        if len(found["users"]) > 1:
            lines += list(of_backbone(backbone, found))
    if missing := [MODELS[name] for name in MODELS if name not in done]:
        lines.append(f"Not measured yet: {', '.join(missing)}.")
    return "\n".join(lines).strip() + "\n"


def of_backbone(backbone: str, found: Mapping[str, Any]) -> Iterator[str]:
    """Everything about one backbone and its users."""
    users, setting = found["users"], found["setting"]
    yield f"## {PEOPLE[backbone].capitalize()}, {MODELS[backbone]}"
    yield ""
    yield (
        f"{len(users)} users; a history grows by {setting['each']} items, "
        f"{setting['steps']} times; learning rate {setting['rate']:g}. Measured at "
        f"{', '.join(found['commits'])}."
    )
    yield ""
    for method in NAMES:
        yield from ways(users, setting, method)
    yield from costs(users, setting)
    yield from device(found)
    if setting["steps"] > 5:
        yield from forgetting(users, setting)


def ways(users: Users, setting: Mapping[str, Any], method: str) -> Iterator[str]:
    """Gains by step, and how the ways stand to each other after the last one."""
    steps, each = setting["steps"], setting["each"]
    rows = [
        [
            str(each * (k + 1)),
            *(
                shown(bootstrap(gains(users, method, way, k, column), seed=0))
                for column in (NLL, MRR)
                for way in WAYS
            ),
        ]
        for k in range(steps)
    ]
    yield f"### {NAMES[method]}: quality"
    heads = [f"{what}, {way}" for what in ("NLL", "MRR") for way in WAYS]
    yield from lines_of(["items", *heads], rows)
    for column, what in ((NLL, "likelihood"), (MRR, "rank")):
        start = helps_from(
            entries(lambda k, c=column: gains(users, method, "anew", k, c), setting)
        )
        yield f"- Trained anew, it helps {what} {from_on(start, each * steps)}."
        for way in WAYS[1:]:
            last = [gains(users, method, w, steps - 1, column) for w in (way, "anew")]
            apart = last[0] - last[1]
            word = stands(apart, "better", "worse", "not told apart")
            yield (
                f"- After {steps} steps, by {what}, *{way}* against *anew*: {word}, "
                f"{shown(bootstrap(apart, seed=0))}."
            )
    yield ""


def costs(users: Users, setting: Mapping[str, Any]) -> Iterator[str]:
    """CPU seconds and tokens: of the last step, and of all together."""
    rows: list[list[str]] = []
    for method, name in NAMES.items():
        for way in WAYS:
            spent = np.array(
                [
                    [row[CPU:] for row in one[method]["ways"][way]]
                    for one in users.values()
                ]
            ).mean(0)
            last, every = spent[-1], spent.sum(0)
            rows.append(
                [
                    f"{name}, {way}",
                    *(f"{last[0]:.2f}", f"{last[1]:,.0f}"),
                    *(f"{every[0]:.2f}", f"{every[1]:,.0f}"),
                ]
            )
    yield "### Cost per user"
    heads = ["", "CPU s, last step", "tokens, last step"]
    yield from lines_of([*heads, f"CPU s, {setting['steps']} steps", "tokens"], rows)


def device(found: Mapping[str, Any]) -> Iterator[str]:
    """What a device's judgement makes of a first adapter, by length of the history."""
    users = found["users"]
    yield "### As a device judges"
    yield ""
    yield (
        "The first adapter of a device with so many liked pairs. The newest fifth judges "
        "it (one text at least, eight at most), and it learns from the others. *Used*: "
        "share that is accepted. *Wrong*: share of users whose held-out texts say "
        "otherwise: accepted and worse, or refused and better. *Gain*: of what is used, "
        "which is the shared model where the adapter is refused."
    )
    for method, name in NAMES.items():
        rows: list[list[str]] = []
        for k in lengths(users, method):
            pairs = [
                (one["shared"], one[method]["device"][k]) for one in users.values()
            ]
            accepted = np.array([row[0] >= 0 for _, row in pairs])
            better = np.array([row[1] < shared[0] for shared, row in pairs])
            rows.append(
                [
                    k,
                    f"{accepted.mean():.0%}",
                    f"{(accepted & ~better).mean():.0%}",
                    f"{(~accepted & better).mean():.0%}",
                    shown(bootstrap(device_gains(users, method, k), seed=0)),
                ]
            )
        heads = ["used", "wrong: used", "wrong: refused", "gain in NLL"]
        yield from lines_of([f"{name}, liked pairs", *heads], rows)
        most = lengths(users, method)[-1]
        yield f"What is used helps {from_on(smallest(found, method), most)}."
        yield ""


MOMENTS = {"then": "after step 5", "end": "after the last step"}


def forgetting(users: Users, setting: Mapping[str, Any]) -> Iterator[str]:
    """What is left of a text that was forgotten."""
    yield "### A text that is forgotten"
    yield ""
    yield (
        "One text of the first five steps. *Likelier*: in nats per token, than by an "
        "adapter that never saw it, paired by user; *piece*: the same of the five tokens "
        "in a row that gain most. *Forgotten*: trained anew without the text, as `idiolect "
        "forget` does it. After the last step it has gone on, as has the one that never "
        "saw it. The others saw the text and were not erased."
    )
    rows: list[list[str]] = []
    said: list[str] = []
    for method, when in product(NAMES, MOMENTS):
        name = f"{NAMES[method]}, {MOMENTS[when]}"
        for who in ("forgotten", *WAYS):
            parts = [left(users, method, when, who, part) for part in (0, 1)]
            means = [shown(bootstrap(one, seed=0)) for one in parts]
            rows.append([f"{name}: {who}", *means, f"{np.mean(parts[0] > 0):.0%}"])
        parts = [left(users, method, when, "forgotten", part) for part in (0, 1)]
        more = any(stands(one, "likelier", "", "") for one in parts)
        said.append(
            f"- {name}: the forgotten text is {'' if more else 'not shown to be '}likelier "
            "than by an adapter that never saw it, as a whole or in its best piece."
        )
    yield from lines_of(["", "likelier", "piece", "users with likelier"], rows)
    yield from said
    yield ""
