"""Metrics against values worked out by hand."""

import math

import numpy as np
import pytest

from idiolect.common.data import metrics
from idiolect.common.data.metrics import bounded_row, means_of_sum, released_metrics
from idiolect.common.data.types import Task

WRITING = Task("headline", "generation")
TAGGING = Task("tagging", "classification", ("a", "b", "c", "d"))
RATING = Task("rating", "rating", ("1", "2", "3", "4", "5"))


def test_rouge_counts_words_and_longest_common_subsequence():
    # Five output words, six target words, four in common and in order:
    # P = 4/5, R = 4/6, F = 2 * 4 / (5 + 6).
    values = metrics.score(WRITING, ["the cat lay on mat"], ["the cat sat on the mat"])
    assert values == pytest.approx({"rouge-1": 8 / 11, "rouge-l": 8 / 11})
    # All six words in common, but only three of them in the target's order.
    values = metrics.score(
        WRITING, ["on the mat the cat sat"], ["the cat sat on the mat"]
    )
    assert values == pytest.approx({"rouge-1": 1.0, "rouge-l": 0.5})


def test_rouge_stems_and_ignores_case_and_punctuation():
    values = metrics.score(WRITING, ["Horses, running!"], ["horse runs"])
    assert values == pytest.approx({"rouge-1": 1.0, "rouge-l": 1.0})


@pytest.mark.parametrize(
    ("written", "wanted", "value"),
    [
        ("Привет, мир", "привет мир!", 1.0),
        ("今日は天気", "今日は雨", 2 * 3 / (5 + 4)),
        ("ÜBER alles", "über uns", 0.5),
        ("one two", "one three", 0.5),
    ],
)
def test_rouge_of_every_script(written, wanted, value):
    found = metrics.score(WRITING, [written], [wanted], "unicode")
    assert found["rouge-1"] == pytest.approx(value)


def test_what_rouge_cannot_read_is_counted():
    assert metrics.unread(["Привет", "мир 2", "今日", "a", "!"]) == 3


def test_rouge_is_the_plain_mean_of_items_and_empty_output_is_zero():
    outputs = ["the cat lay on mat", "", "  \n ", "dog"]
    targets = ["the cat sat on the mat", "anything", "else", "dog"]
    values = metrics.score(WRITING, outputs, targets)
    assert values["rouge-1"] == pytest.approx((8 / 11 + 0 + 0 + 1) / 4)
    each = metrics.per_item(WRITING, outputs, targets)
    assert [item["rouge-l"] for item in each] == pytest.approx([8 / 11, 0, 0, 1])


def test_only_the_first_written_line_counts():
    assert metrics.first_line("\n  A title \nand chatter") == "A title"
    assert metrics.first_line(" \n") == ""
    values = metrics.score(TAGGING, [" a\nbecause it is"], ["a"])
    assert values == {"accuracy": 1.0, "f1": 1.0}


def test_accuracy_and_f1_of_one_user():
    outputs = ["a", "a", "b", "what?", "c"]
    targets = ["a", "b", "b", "b", "a"]
    values = metrics.score(TAGGING, outputs, targets)
    assert values["accuracy"] == pytest.approx(2 / 5)
    # a: one hit, 2 written + 2 wanted -> 2/4. b: one hit, 1 + 3 -> 2/4.
    # c: written once, never wanted -> 0. d: nowhere, so not in this user's mean.
    assert values["f1"] == pytest.approx((0.5 + 0.5 + 0) / 3)
    each = metrics.per_item(TAGGING, outputs, targets)
    assert [item["accuracy"] for item in each] == [1, 0, 1, 0, 0]


def test_pooled_f1_is_over_the_whole_label_list():
    outputs, targets = ["a", "a", "b", "what?", "c"], ["a", "b", "b", "b", "a"]
    assert metrics.pooled(TAGGING, outputs, targets)["f1"] == pytest.approx(1 / 4)
    # Everything right, yet two of four labels never asked for: they count as zero.
    assert metrics.pooled(TAGGING, ["a", "b"], ["a", "b"])["f1"] == pytest.approx(0.5)
    assert metrics.score(TAGGING, ["a", "b"], ["a", "b"])["f1"] == pytest.approx(1.0)


def test_f1_with_nothing_found_is_zero():
    values = metrics.score(TAGGING, ["?", "?"], ["a", "b"])
    assert values == {"accuracy": 0.0, "f1": 0.0}
    assert metrics.macro_f1(["?"], ["?"], ()) == 0.0


def test_rating_errors():
    values = metrics.score(RATING, ["5", "2", "4.0"], ["4", "4", "4"])
    assert values == pytest.approx({"mae": 1.0, "rmse": math.sqrt((1 + 4 + 0) / 3)})


@pytest.mark.parametrize("output", ["good", "", "nan", "inf", "9" * 400])
@pytest.mark.parametrize(
    ("target", "error"), [("1", 4), ("2", 3), ("3", 2), ("4", 3), ("5", 4)]
)
def test_unreadable_rating_is_the_farther_extreme(output, target, error):
    assert metrics.score(RATING, [output], [target]) == {"mae": error, "rmse": error}


def test_unreadable_rating_at_equal_distance_takes_the_upper_end():
    # |3 - 5| = |3 - 1| tells nothing; on a lopsided scale the rule shows.
    scale = Task("rating", "rating", ("0", "1", "2"))
    assert metrics.per_item(scale, ["?"], ["1"]) == [{"mae": 1.0}]
    assert metrics._rating("?", "1", scale) == 2.0


def test_pooled_rmse_takes_the_root_once():
    one, two = (["1"], ["5"]), (["5"], ["5"])
    apart = [metrics.score(RATING, *user)["rmse"] for user in (one, two)]
    assert sum(apart) / 2 == pytest.approx(2.0)
    together = metrics.pooled(RATING, one[0] + two[0], one[1] + two[1])
    assert together["rmse"] == pytest.approx(math.sqrt(8))


def test_nothing_to_score_and_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="no outputs"):
        metrics.score(WRITING, [], [])
    with pytest.raises(ValueError):
        metrics.score(TAGGING, ["a"], ["a", "b"])


# --- metrics as a release ----------------------------------------------------------------


def test_a_row_of_metrics_has_norm_at_most_one_whatever_is_in_it():
    names = released_metrics("generation", True)
    assert names == ("nll", "rouge-1", "rouge-l")
    for values in (
        {"nll": 1e9, "rouge-1": 1.0, "rouge-l": 5.0},
        {"nll": math.nan, "rouge-1": math.inf},
        {},
    ):
        row = bounded_row(values, names)
        assert np.linalg.norm(row.astype(float)) <= 1
        np.testing.assert_allclose(row, 1 / math.sqrt(4), rtol=1e-5)
    low = bounded_row(dict.fromkeys(names, -3.0), names)
    np.testing.assert_allclose(low, [4**-0.5, 0, 0, 0], rtol=1e-5)


def test_means_of_an_exact_sum_are_the_means():
    names = ("nll", "accuracy")
    values = [{"nll": 2.0, "accuracy": 0.5}, {"nll": 3.0, "accuracy": 1.0}]
    total = np.sum([bounded_row(v, names) for v in values], axis=0, dtype=float)
    found = means_of_sum(total, names, 0.0)
    assert found["nll"]["mean"] == pytest.approx(2.5, rel=1e-5)
    assert found["accuracy"]["mean"] == pytest.approx(0.75, rel=1e-5)
    assert found["nll"]["n"] == 2
    low, high = found["nll"]["ci95"]
    assert low == pytest.approx(high)


def test_the_interval_covers_the_exact_mean():
    """95 % nominal; 400 repeats give 91 to 98.5 % but for 1 in 1,000 seeds."""
    generator = np.random.default_rng(0)
    names = ("nll",)
    total = np.sum([bounded_row({"nll": 2.4}, names)] * 60, axis=0, dtype=float)
    hits = 0
    for _ in range(400):
        noisy = total + generator.normal(scale=1.5, size=2)
        low, high = means_of_sum(noisy, names, 1.5)["nll"]["ci95"]
        hits += low <= 2.4 <= high
    assert 0.91 * 400 <= hits <= 0.985 * 400


def test_where_the_noise_leaves_nobody_nothing_is_said():
    assert means_of_sum(np.array([0.2, 3.0]), ("nll",), 2.0) == {}


@pytest.mark.parametrize(
    ("values", "can_be"),
    [
        (
            {"nll": 3.2, "rouge-l": 1.0, "mrr": 0.5, "shift": -2.0, "strength": 4.0},
            True,
        ),
        ({"nll": -1e100}, False),
        ({"nll": 1e100}, False),
        ({"nll": math.nan}, False),
        ({"nll": 3.2, "mrr": 1.5}, False),
        ({"nll": 3.2, "own-style": -0.1}, False),
        ({"nll": 3.2, "shift": 1e9}, False),
        ({"nll": 3.2, "mae": 5.0}, False),
    ],
)
def test_no_device_says_a_value_that_its_metric_cannot_have(values, can_be):
    """Of ten devices one with -1e100 would make the table's mean."""
    assert metrics.possible(values) is can_be
