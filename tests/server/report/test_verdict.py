"""The sentence that says who won."""

import math

from idiolect.server.report.verdict import difference, metrics_of, ranked, winner
from tests.server.report.material import many, one_pair
from tests.server.run.test_results import make


def test_the_lower_nll_wins_where_the_interval_is_clear_of_zero():
    said = winner(one_pair(-0.2, -0.3, -0.1))
    assert said.startswith("a won: its nll is 0.200 lower than that of b")
    assert "0.100 to 0.300, 30 users" in said
    assert winner(one_pair(0.2, 0.1, 0.3)).startswith("b won: its nll is 0.200 lower")


def test_of_a_metric_of_which_more_is_better_the_higher_wins():
    said = winner(one_pair(0.2, 0.1, 0.3, "rouge-l"), "rouge-l")
    assert said.startswith("a won: its rouge-l is 0.200 higher than that of b")


def test_an_interval_that_contains_zero_shows_no_difference():
    for low, high in ((-0.3, 0.0), (-0.3, 0.1), (0.0, 0.0)):
        said = winner(one_pair(-0.1, low, high))
        assert said.startswith("No difference shown between a and b"), said
        assert " won" not in said


def test_a_pair_is_turned_round():
    found = difference(one_pair(-0.2, -0.3, -0.1), "b", "a", "nll")
    assert found == {"mean": 0.2, "ci95": [0.1, 0.3], "n": 30}


def test_a_pair_that_the_results_lack_is_made_from_the_users():
    results = many(30)
    held = difference(results, "c-bpo", "sft", "nll")
    results["pairs"] = {}
    made = difference(results, "c-bpo", "sft", "nll")
    assert held and made and abs(held["mean"] - made["mean"]) < 1e-12
    assert winner(results).startswith("c-bpo won")


def test_nobody_and_one_user_show_nothing():
    assert winner(make(users={})) == "Nobody was measured by nll, so nobody won."
    said = winner(many(1))
    assert said.startswith("No difference shown") and "1 user has no interval" in said


def test_noise_without_users_shows_no_difference():
    results = one_pair(-0.2, -0.3, -0.1) | {"pairs": {}}
    assert winner(results).startswith("No difference shown: a has the best mean")


def test_a_mean_that_is_not_finite_wins_nothing():
    results = one_pair(-0.2, -0.3, -0.1)
    results["methods"]["a"]["nll"]["mean"] = math.nan
    assert ranked(results, "nll") == ["b"]
    assert winner(results).startswith("Only b was measured")


def test_nll_comes_first():
    assert metrics_of(many(3)) == ["nll", "rouge-l"]
