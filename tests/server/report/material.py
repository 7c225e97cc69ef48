"""Made-up results for the tests of reports."""

from typing import Any

import numpy as np

from idiolect.server.run import results
from tests.server.run.test_results import make

METHODS = ("base", "shared", "sft", "c-bpo")


def users_of(count: int, seed: int = 0) -> dict[str, dict[str, dict[str, float]]]:
    """Users of whom each further method has an nll lower by about one half."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 0.1, (count, len(METHODS)))
    return {
        f"u{i:03d}": {
            m: {"nll": 3 - k / 2 + float(noise[i, k]), "rouge-l": k / 5}
            for k, m in enumerate(METHODS)
        }
        for i in range(count)
    }


def many(count: int, **changes: Any) -> dict[str, Any]:
    """Results of so many users."""
    users = users_of(count)
    return make(users=users, resamples=50, **changes)


def one_pair(mean: float, low: float, high: float, metric: str = "nll") -> dict:
    """Results of two methods, of which a is as much above b as the numbers say."""
    found = make(users={})
    ends = {"mean": mean, "ci95": [low, high], "n": 30}
    found["methods"] = {
        "a": {metric: {"mean": 2.0 + mean, "ci95": [1, 3], "n": 30}},
        "b": {metric: {"mean": 2.0, "ci95": [1, 3], "n": 30}},
    }
    found["pairs"] = {"a - b": {metric: ends}}
    return found


__all__ = ["many", "one_pair", "results", "users_of"]
