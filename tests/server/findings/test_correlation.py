"""Correlations of metrics over users, from made-up cells whose answers are known."""

import pytest

from idiolect.server.findings.correlation import correlated
from idiolect.server.findings.page import markdown
from idiolect.server.findings.summary import summary
from idiolect.server.study.declaration import Study

from .cells import cell

GAINS = (0.1, 0.2, 0.3, 0.4, 0.5)
RANKS = (0.2, 0.1, 0.3, 0.4, 0.5)  # two neighbours swapped: 1 - 6 * 2 / (5 * 24) = .9


def made(seed: int = 0, users: int = 5, offset: float = 0.0) -> dict:
    """A better NLL goes with a better MRR; levels of users and methods say the opposite."""
    one = cell(1.0, seed, 0.0, users=users)
    one["users"] = {
        f"u{k}": {
            "shared": {"nll": k, "mrr": -5.0 * k, "flat": 0.0},
            "sft": {"nll": k - GAINS[k % 5] - offset, "mrr": -5.0 * k + RANKS[k % 5]},
        }
        for k in range(users)
    }
    for methods in one["users"].values():
        methods["sft"]["flat"] = 0.5
    return one


def study(*metrics: str) -> Study:
    plot = {"x": "unlabeled.ratio", "metric": "nll", "correlate": list(metrics)}
    grid = {"unlabeled.ratio": [1.0], "seed": [0]}
    return Study("s", "t", "q", {}, grid, plot=plot)


def test_gains_over_shared_are_ranked_and_turned_where_less_is_better():
    (found,) = correlated(study("nll", "mrr", "flat"), [made()])
    assert (found["one"], found["other"], found["n"]) == ("nll", "mrr", 5)
    assert found["mean"] == pytest.approx(0.9)


def test_differences_between_methods_do_not_make_metrics_agree():
    one = made()
    for methods in one["users"].values():
        best = methods["sft"]
        methods["kto"] = {"nll": best["nll"] - 100, "mrr": best["mrr"] + 100}
        methods["bco"] = {
            "nll": best["nll"],
            "mrr": 2 * methods["shared"]["mrr"] - best["mrr"],
        }
    (found,) = correlated(study("nll", "mrr"), [one])
    assert found["lines"] == 3 and found["mean"] == pytest.approx(0.3)
    assert (found["least"], found["most"]) == pytest.approx((-0.9, 0.9))


def test_too_few_users_and_missing_values_are_left_out():
    assert correlated(study("nll", "mrr"), [made(users=4)]) == []
    one = made(users=10)
    for k in (0, 3, 7):
        one["users"][f"u{k}"]["sft"]["mrr"] = None
    del one["users"]["u1"]["shared"]
    (found,) = correlated(study("nll", "mrr"), [one])
    assert found["n"] == 6


def test_seeds_are_other_personas_and_the_same_real_users():
    grid = {"unlabeled.ratio": [1.0], "seed": [0, 1]}
    both = Study("s", "t", "q", {}, grid, plot=study("nll", "mrr").plot)
    done = [made(0), made(1)]
    for seed, one in enumerate(done):
        one["cell"]["seed"] = seed
    assert correlated(both, done)[0]["n"] == 10
    for one in done:
        one["run"]["task"] = "LaMP-4"
    assert correlated(both, done)[0]["n"] == 5


def test_the_page_has_a_small_table():
    text = markdown(summary(study("nll", "mrr"), [made()]))
    assert "| rank correlation | mrr |" in text and "| nll | +0.90 |" in text
    assert "With 5 users, chance alone gives a single one 0.50" in text
