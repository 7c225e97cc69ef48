"""Differences and verdicts, from made-up cells whose answers are known."""

from dataclasses import replace

import pytest

from idiolect.common.errors import IdiolectError
from idiolect.server.findings.verdicts import difference, judged

from .cells import CELLS, cell, claim


def test_differences_are_paired_by_user_and_seed():
    found = difference(claim(), CELLS)
    # Half the users gain .2, half .4; unpaired, the spread of the users would hide it.
    assert found["mean"] == pytest.approx(-0.3)
    assert found["n"] == 24
    assert found["ci95"][0] > -0.36 and found["ci95"][1] < -0.24


def test_a_real_user_counts_once_whatever_the_number_of_seeds():
    real = [
        cell(r, s, g, task="LaMP-4")
        for r, g in ((1.0, 0.1), (2.0, 0.3))
        for s in (0, 1)
    ]
    found, personas = difference(claim(), real), difference(claim(), CELLS)
    assert (found["n"], personas["n"]) == (12, 24)
    assert found["mean"] == pytest.approx(personas["mean"])


def test_the_three_verdicts():
    same = claim(other={"method": "c-bpo", "unlabeled.ratio": 2.0})
    three = [difference(c, CELLS) for c in (claim(), claim("higher"), same)]
    words = [found["verdict"] for found in judged(three)]
    assert words == ["confirmed", "reversed", "not confirmed"]


def test_few_users_who_are_alike_show_little():
    """Two users who gain the same are a sign test of two, not certainty."""
    alike = claim(other={"method": "sft", "unlabeled.ratio": 2.0})
    (found,) = judged([difference(alike, [cell(2.0, 0, 0.125, users=2)])])
    assert found["n"] == 2 and found["verdict"] == "not confirmed"


def test_two_users_have_the_t_of_two(monkeypatch):
    cells = [cell(2.0, 0, 0.0, users=2)]
    for user, by in zip(cells[0]["users"].values(), (0.10, 0.12), strict=True):
        user["c-bpo"]["nll"] = user["sft"]["nll"] - by
    (found,) = judged([difference(claim(other={"method": "sft"}), cells)])
    assert found["p"] == pytest.approx(0.0577, abs=1e-3)  # t = 11 with one degree


def test_a_user_without_alpha_is_in_neither_half():
    cells = [cell(r, 0, g) for r, g in ((1.0, 0.1), (2.0, 0.3))]
    for one in cells:
        one["run"]["overlap"] = {}
        one["run"]["alpha"] = {f"u{k:02}": k / 12 for k in range(11)}
    halves = [
        difference(claim(users=half), cells)["n"] for half in ("unique", "non-unique")
    ]
    assert halves == [5, 6]
    for one in cells:
        one["run"]["alpha"] = {}
    assert "why" in difference(claim(users="unique"), cells)


def told(mean: float, error: float = 1.0) -> dict:
    ends = [mean - 1.96 * error, mean + 1.96 * error]
    return {"mean": mean, "ci95": ends, "n": 99, "expect": "higher"}


def test_the_more_claims_the_more_each_must_show():
    # t of 3, 2.5 and 2.1 with 98 degrees of freedom: p of .0034, .0141 and .0383 alone.
    found = judged([told(2.1), told(3.0), told(-2.5)])
    assert [f["p"] for f in found] == pytest.approx([0.0383, 0.0103, 0.0281], abs=2e-3)
    assert [f["verdict"] for f in found] == ["confirmed", "confirmed", "reversed"]
    crowd = judged([told(2.1), told(3.0), *[told(0.1)] * 18])
    assert crowd[0]["verdict"] == "not confirmed"
    assert crowd[1]["p"] == pytest.approx(20 * 0.0034, abs=1e-2)


def refused(apart: bool | None) -> list[dict]:
    """Cells in which nobody is recognised, because the judge refused or had no texts."""
    section = {} if apart is None else {"recognition": {"apart": apart}}
    return [{**one, **section} for one in CELLS]


@pytest.mark.parametrize(
    ("apart", "why"),
    [
        (False, "cannot tell authors apart"),
        (None, "not judged"),
        (True, "0 users have recognised-mrr on both sides"),
    ],
)
def test_a_claim_without_values_is_not_measured_and_says_why(apart, why):
    asked = replace(claim(), metric="recognised-mrr")
    (found,) = judged([difference(asked, refused(apart))])
    assert found["verdict"] == "not measured" and why in found["why"]
    assert found["n"] == 0 and "p" not in found


def test_one_user_is_too_few_to_measure():
    found = difference(claim(), [cell(r, 0, 0.1, users=1) for r in (1.0, 2.0)])
    assert found["n"] == 1 and "two are needed" in found["why"]


def test_what_was_not_measured_makes_no_claim_harder():
    missing = {"n": 0, "why": "nobody", "expect": "higher"}
    found = judged([missing, told(2.1), missing, told(3.0), told(-2.5), missing])
    measured = judged([told(2.1), told(3.0), told(-2.5)])
    assert [one for one in found if "p" in one] == measured
    assert [one["verdict"] for one in found].count("not measured") == 3


def test_few_users_must_show_more():
    many, few = told(2.1), told(2.1) | {"n": 8}
    assert judged([few])[0]["p"] > 1.5 * judged([many])[0]["p"]


def test_a_corrected_p_is_never_below_that_of_a_stronger_claim():
    found = judged([told(2.0), told(2.01), told(2.02)])
    assert found[0]["p"] == found[1]["p"] == found[2]["p"]
    assert judged([told(0.0)])[0]["p"] == 1


def test_halves_are_split_at_the_median_overlap():
    unique = difference(claim(users="unique"), CELLS)
    common = difference(claim(users="non-unique"), CELLS)
    assert (unique["n"], common["n"]) == (12, 12)
    assert unique["mean"] == pytest.approx(-0.4)
    assert common["mean"] == pytest.approx(-0.2)


def test_an_ambiguous_side_is_refused():
    with pytest.raises(IdiolectError, match="names several cells"):
        difference(claim(one={"method": "c-bpo"}), CELLS)


def test_the_best_value_of_a_key_is_each_users_own():
    cells = [cell(r, 0, g) for r, g in ((1.0, 0.1), (2.0, 0.3))]
    cells[0]["users"]["u03"]["c-bpo"]["nll"] = -5.0
    best = claim(one={"unlabeled.ratio": "best"}, other={"unlabeled.ratio": 2.0})
    found = difference(best, cells)
    start = cells[1]["users"]["u03"]["c-bpo"]["nll"]
    # Ratio 2 suits everybody better but this one user.
    assert found["mean"] == pytest.approx((-5.0 - start) / 12)


def test_the_best_value_of_one_key_does_not_hide_another():
    more = [{**one, "cell": one["cell"] | {"world": w}} for w in "ab" for one in CELLS]
    for one in more[len(CELLS) :]:
        one["users"] = {u: {"c-bpo": {"nll": 9.0}} for u in one["users"]}
    best = claim(one={"unlabeled.ratio": "best"}, other={"unlabeled.ratio": 2.0})
    with pytest.raises(IdiolectError, match="names several cells"):
        difference(best, more)


def test_cells_with_the_same_value_are_one_side():
    # SFT does not use the unlabeled set, so both ratios hold the same values.
    same = claim(one={"method": "sft"}, other={"unlabeled.ratio": 1.0})
    assert difference(same, CELLS)["mean"] == pytest.approx(0.15)
