"""Curves and alpha against the truth, from made-up cells."""

import pytest

from idiolect.common.config import Scalar
from idiolect.server.findings.summary import alpha_against_truth, curve
from idiolect.server.study.declaration import Study

from .cells import CELLS, cell, study


def test_a_value_that_is_missing_is_left_out_of_the_curve():
    made = cell(1.0, 0, 0.1)
    made["users"]["u00"]["c-bpo"]["nll"] = None
    del made["users"]["u01"]["sft"]
    plotted = study(x="unlabeled.ratio", metric="nll", minus="sft")
    (point,) = curve(plotted, [made], "nll")
    assert point["n"] == 10


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
