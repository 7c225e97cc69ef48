"""Verdicts, curves and the page, from made-up cells whose answers are known."""

import json
from dataclasses import replace

import numpy as np
import pytest

from idiolect.common.config import Scalar
from idiolect.common.errors import IdiolectError
from idiolect.server.findings import (
    _alpha_table,
    alpha_against_truth,
    curve,
    difference,
    draw,
    judged,
    markdown,
    summary,
    write_page,
)
from idiolect.server.study.study import Claim, Comparison, Study


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


def study(**plot) -> Study:
    grid = {"unlabeled.ratio": [1.0, 2.0], "seed": [0, 1]}
    return Study("small", "Small", "Why?", {}, grid, (claim(),), plot)


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


def test_each_world_says_who_beats_whom():
    study, done = worlds()
    text = markdown(summary(study, done))
    assert "| c-bpo, by nll (lower is better) | SFT |" in text
    assert "| 1.0 (24 users) | **beats** -0.150 [" in text
    assert "| 2.0 (24 users) | **loses to** +0.300 [" in text
    assert "| 3.0 (24 users) | undecided " in text
    assert "accuracy" not in text  # no world has it


def test_a_comparison_of_fewer_users_than_the_others_of_its_row_says_so():
    study, done = worlds()
    both: list[dict[str, Scalar]] = [{"method": "sft"}, {"method": "kto"}]
    compare = replace(study.compare[0], others=both, metrics=["nll"])
    for level in done:
        for user, metrics in level["users"].items():
            metrics["kto"] = {"nll": None if user == "u00" else 3.0}
    text = markdown(summary(replace(study, compare=(compare,)), done))
    assert text.count("], 22 users |") == 3 and "], 24 users |" not in text


def test_what_was_measured_where_and_at_which_rate():
    _, done = worlds()
    in_order = [done[i] for i in (0, 2, 4, 1, 3, 5)]  # the first key varies slowest
    grid = {"seed": [0, 1], "unlabeled.ratio": [1.0, 2.0, 3.0]}
    plot = {"x": "unlabeled.ratio", "metric": "nll", "minus": "sft"}
    study = Study("s", "t", "q", {}, grid, plot=plot)
    assert "Learning rates: c-bpo 0.003." in markdown(summary(study, in_order))
    in_order[1]["run"] |= {"learning_rates": {"c-bpo": 0.01}, "commit": "c0ffee"}
    text = markdown(summary(study, in_order))
    assert "| learning rate, by unlabeled.ratio | 1.0 | 2.0 | 3.0 |" in text
    assert "| c-bpo | 0.003 | 0.003 or 0.01 | 0.003 |" in text
    assert "Measured at commit `c0ffee`." in text


def test_a_value_that_is_missing_is_left_out_of_the_curve():
    made = cell(1.0, 0, 0.1)
    made["users"]["u00"]["c-bpo"]["nll"] = None
    del made["users"]["u01"]["sft"]
    plotted = study(x="unlabeled.ratio", metric="nll", minus="sft")
    (point,) = curve(plotted, [made], "nll")
    assert point["n"] == 10


@pytest.mark.parametrize(
    ("margin", "word"), [(0.03, "undecided"), (0.05, "equals"), (0.2, "equals")]
)
def test_two_are_equal_only_where_the_whole_interval_lies_within_the_margin(
    margin, word
):
    study, done = worlds()  # in the third one the interval is [-0.04, 0.04]
    compare = replace(study.compare[0], margin={"nll": margin})
    text = markdown(summary(replace(study, compare=(compare,)), done))
    assert f"| c-bpo, by nll (lower is better; equal within {margin}) | SFT |" in text
    assert f"| 3.0 (24 users) | {word} " in text
    told_apart = "equals, just ahead" if margin > 0.15 else "**beats**"
    assert f"| 1.0 (24 users) | {told_apart} -0.150 [" in text


def test_the_curve_subtracts_the_baseline_of_the_same_user():
    points = curve(study(x="unlabeled.ratio", metric="nll", minus="sft"), CELLS, "nll")
    assert [(p["line"], p["x"]) for p in points] == [("c-bpo", 1.0), ("c-bpo", 2.0)]
    assert [p["mean"] for p in points] == pytest.approx([-0.15, -0.45])
    split = curve(
        study(x="unlabeled.ratio", metric="nll", minus="sft", users="split"),
        CELLS,
        "nll",
    )
    named = {(p["line"], p["x"]): p["mean"] for p in split}
    assert named["c-bpo, unique", 2.0] == pytest.approx(-0.6)
    assert named["c-bpo, non-unique", 2.0] == pytest.approx(-0.3)


def test_a_name_that_means_nothing_to_a_method_is_left_out_of_its_line():
    light: dict[str, Scalar] = {"personalise.anchor": 1.0}
    means = {"light": light, "heavy": {**light, "personalise.anchor": 9.0}}
    done = [
        {**one, "cell": {"variant": v, "unlabeled.ratio": 1.0, "seed": 0}}
        for v in means
        for one in CELLS[:1]
    ]
    grid = {"seed": [0], "unlabeled.ratio": [1.0], "variant": list(means)}
    plot = {"x": "unlabeled.ratio", "metric": "nll"}
    named = Study("s", "t", "", {}, grid, plot=plot, named={"variant": means})
    lines = [point["line"] for point in curve(named, done, "nll")]
    assert lines == ["sft", "c-bpo, variant light", "c-bpo, variant heavy"]
    # A recipe is what it sets.
    for one, recipe in zip(done, ("default", "paper"), strict=True):
        one["cell"] = {"recipe": recipe, "unlabeled.ratio": 1.0, "seed": 0}
    grid = {"seed": [0], "unlabeled.ratio": [1.0], "recipe": ["default", "paper"]}
    named = Study("s", "t", "", {}, grid, plot=plot)
    lines = [point["line"] for point in curve(named, done, "nll")]
    assert lines[1] == "c-bpo, recipe default" and "c-bpo, recipe paper" in lines


def test_the_page_is_made_from_files_alone(tmp_path):
    folder = tmp_path / "findings"
    folder.mkdir()
    found = summary(study(x="unlabeled.ratio", metric="nll", minus="sft"), CELLS)
    (folder / "small.json").write_text(json.dumps(found))
    asked = found | {"title": "Who, and: why?", "answer": "All of them."}
    (folder / "asked.json").write_text(json.dumps(asked))
    page = write_page(folder)
    text = page.read_text()
    assert "| [Who, and: why?](#who-and-why) | All of them. |" in text
    assert "](#small)" not in text  # it has no answer
    assert page == tmp_path / "findings.md"
    assert "| text | all | nll -0.300 |" in text and "**confirmed**" in text
    assert "![Small](findings/small.svg)" in text
    assert "-0.150 [" in text and "`unlabeled.ratio` in [1.0, 2.0]" in text
    first = (folder / "small.svg").read_bytes()
    assert b"<svg" in first
    draw(json.loads((folder / "small.json").read_text()), folder / "small.svg")
    assert (folder / "small.svg").read_bytes() == first


def test_a_study_without_plot_is_a_table_of_claims():
    found = summary(study(), CELLS)
    assert found["curve"] == []
    assert "verdict" in markdown(found)


def test_alpha_is_compared_with_the_truth_by_ranks():
    made = cell(1.0, 0, 0.1, users=4)
    assert alpha_against_truth(made) is None  # not estimated
    names = list(made["users"])
    made["run"]["alpha"] = dict(zip(names, [0.1, 0.3, 0.2, 0.8], strict=True))
    made["run"]["alpha_estimated"] = True
    found = alpha_against_truth(made)
    assert found is not None
    # One pair of neighbours swapped among four: 1 - 6 * 2 / (4 * 15)
    assert found["rank_correlation"] == pytest.approx(0.8)
    assert found["n"] == 4
    # The overlaps are 0, .25, .5 and .75.
    assert found["error"] == pytest.approx((0.1 + 0.05 + 0.3 + 0.05) / 4)
    made["run"]["alpha"] = dict(zip(names, [0.1, 0.2, 0.2, 0.8], strict=True))
    tied = alpha_against_truth(made)
    assert tied and tied["rank_correlation"] == pytest.approx(0.9486833)


def test_the_alpha_table_has_a_row_for_what_differs_in_its_seed_alone():
    cells = [(1.0, 0), (1.0, 1), (2.0, 0)]
    entries = [
        {
            "cell": {"unlabeled.ratio": ratio, "seed": seed},
            "n": 24,
            "rank_correlation": 0.5 + seed / 4,
            "error": 0.1 + seed / 10,
        }
        for ratio, seed in cells
    ]
    text = "\n".join(_alpha_table(entries))
    assert "| ratio 1.0 | 24 | 0.50, 0.75 | 0.15 |" in text
    assert "| ratio 2.0 | 24 | 0.50 | 0.10 |" in text
    assert _alpha_table([]) == []
