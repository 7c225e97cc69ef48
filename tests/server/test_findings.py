"""Verdicts, curves and the page, from made-up cells whose answers are known."""

import json

import numpy as np
import pytest

from idiolect.common.errors import IdiolectError
from idiolect.server.findings import (
    alpha_against_truth,
    curve,
    draw,
    markdown,
    summary,
    verdict,
    write_page,
)
from idiolect.server.study import Claim, Study


def cell(ratio: float, seed: int, gain: float, users: int = 12) -> dict:
    """Users whose c-bpo is `gain` below oppu; overlap rises with the user's number."""
    rng = np.random.default_rng(seed)
    values = {}
    for k in range(users):
        start = 1 + rng.random()
        values[f"u{k:02}"] = {
            "oppu": {"nll": start},
            "c-bpo": {"nll": start - gain * (1 if k >= users // 2 else 2)},
        }
    return {
        "cell": {"unlabeled.ratio": ratio, "seed": seed},
        "run": {
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
    found = verdict(claim(), CELLS)
    # Half the users gain .2, half .4; unpaired, the spread of the users would hide it.
    assert found["mean"] == pytest.approx(-0.3)
    assert found["n"] == 24
    assert found["ci95"][0] > -0.36 and found["ci95"][1] < -0.24
    assert found["verdict"] == "confirmed"


def test_the_three_verdicts():
    assert verdict(claim("higher"), CELLS)["verdict"] == "reversed"
    same = claim(other={"method": "c-bpo", "unlabeled.ratio": 2.0})
    assert verdict(same, CELLS)["verdict"] == "not confirmed"


def test_halves_are_split_at_the_median_overlap():
    unique = verdict(claim(users="unique"), CELLS)
    common = verdict(claim(users="non-unique"), CELLS)
    assert (unique["n"], common["n"]) == (12, 12)
    assert unique["mean"] == pytest.approx(-0.4)
    assert common["mean"] == pytest.approx(-0.2)


def test_an_ambiguous_side_is_refused():
    with pytest.raises(IdiolectError, match="names several cells"):
        verdict(claim(one={"method": "c-bpo"}), CELLS)


def study(**plot) -> Study:
    grid = {"unlabeled.ratio": [1.0, 2.0], "seed": [0, 1]}
    return Study("small", "Small", "Why?", {}, grid, (claim(),), plot)


def test_the_curve_subtracts_the_baseline_of_the_same_user():
    points = curve(study(x="unlabeled.ratio", metric="nll", minus="oppu"), CELLS)
    assert [(p["line"], p["x"]) for p in points] == [("c-bpo", 1.0), ("c-bpo", 2.0)]
    assert [p["mean"] for p in points] == pytest.approx([-0.15, -0.45])
    split = curve(
        study(x="unlabeled.ratio", metric="nll", minus="oppu", users="split"), CELLS
    )
    named = {(p["line"], p["x"]): p["mean"] for p in split}
    assert named["c-bpo, unique", 2.0] == pytest.approx(-0.6)
    assert named["c-bpo, non-unique", 2.0] == pytest.approx(-0.3)


def test_the_page_is_made_from_files_alone(tmp_path):
    folder = tmp_path / "findings"
    folder.mkdir()
    found = summary(study(x="unlabeled.ratio", metric="nll", minus="oppu"), CELLS)
    (folder / "small.json").write_text(json.dumps(found))
    page = write_page(folder)
    text = page.read_text()
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
    made["run"]["alpha"] = dict(zip(names, [0.1, 0.2, 0.2, 0.8], strict=True))
    tied = alpha_against_truth(made)
    assert tied and tied["rank_correlation"] == pytest.approx(0.9486833)
