"""Frontiers: who dominates whom, from made-up cells whose answers are known."""

import json
import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from idiolect.common.config import Scalar
from idiolect.server.findings.frontier import dominated, frontier
from idiolect.server.findings.page import markdown, write_pages
from idiolect.server.findings.plot import frontier_svg
from idiolect.server.findings.summary import summary
from idiolect.server.study.declaration import Study

from .cells import cell

STRENGTHS: list[Scalar] = ["1", "2", "3"]
NAMED: dict[str, dict[str, dict[str, Scalar]]] = {
    "way": {str(s): {"personalise.strength": s} for s in STRENGTHS}
}


def made(own: float, common: float, noise: float, seed: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    shaken = noise * rng.standard_normal(2)
    return {"own": own + shaken[0], "common": common + shaken[1]}


def cells(gain: float = 0.2, cost: float = 0.0, noise: float = 0.01) -> list[dict]:
    """SFT gains .1 of own a step; C-BPO is `gain` ahead there and `cost` behind."""
    found = []
    for step, strength in enumerate(STRENGTHS):
        one = cell(1.0, 0, 0.0)
        one["cell"] = {"seed": 0, "way": strength}
        one["users"] = {
            f"u{k}": {
                "shared": made(0.1, 0.5, 0, 0),
                "sft": made(0.2 + 0.1 * step, 0.6, noise, 2 * k),
                "c-bpo": made(0.2 + 0.1 * step + gain, 0.6 - cost, noise, 2 * k + 1),
            }
            for k in range(12)
        }
        found.append(one)
    return found


def study(**more) -> Study:
    plot: dict[str, Any] = {"x": "way", "metric": "own"}
    plot["frontier"] = {"x": "common", "y": "own", "along": "way"} | more
    grid = {"seed": [0], "way": STRENGTHS}
    return Study("s", "Small", "Why?", {}, grid, plot=plot, named=NAMED)


def told(given: Study, done: list[dict]) -> set[tuple[str, str, str, str]]:
    """Who dominates whom, by which of its points, at which of the other's."""
    found = dominated(frontier(given, done))
    return {(one["winner"], one["by"], one["loser"], one["at"]) for one in found}


def test_a_point_needs_one_clear_gain_and_no_loss_beyond_the_margin():
    everywhere = {("c-bpo", "3", "sft", at) for at in STRENGTHS}
    assert told(study(), cells(cost=-0.1)) == everywhere
    # Behind by .02 on the other axis: only a margin that is larger lets it dominate.
    assert told(study(), cells(cost=0.02)) == set()
    within = study(margin={"common": 0.04})
    assert told(within, cells(cost=0.02)) == everywhere
    assert told(within, cells(cost=0.1)) == set()
    # A margin alone makes no gain: at its own strength neither dominates.
    wide = told(study(margin={"common": 9, "own": 9}), cells(gain=0.0, noise=0.05))
    assert {one[1::2] for one in wide} == {("3", "1"), ("3", "2")}


def test_equal_on_average_is_not_at_least_as_good():
    """An interval that reaches below the margin leaves it open, whatever the mean."""
    shaky = cells(gain=1.0, noise=0.15)
    assert told(study(margin={"common": 0.01}), shaky) == set()
    assert told(study(margin={"common": 0.3}), shaky) != set()


def test_the_gains_of_a_loser_are_those_of_the_winner_turned():
    found = dominated(frontier(study(), cells(gain=-0.3, cost=0.1)))
    assert {(one["winner"], one["loser"]) for one in found} == {("sft", "c-bpo")}
    for one in found:
        assert one["y"]["mean"] > 0.1 and one["x"]["mean"] == pytest.approx(
            0.1, abs=0.02
        )
        assert one["y"]["ci95"][0] < one["y"]["mean"] < one["y"]["ci95"][1]


def test_less_is_better_for_a_likelihood():
    def as_nll(gain: float, margin: float = 0.0) -> set[tuple[str, ...]]:
        done = cells(gain=gain, cost=-0.1)
        rows = (
            row
            for one in done
            for user in one["users"].values()
            for row in user.values()
        )
        for row in rows:
            row["nll"] = row["own"]
        return told(study(y="nll", margin={"nll": margin}), done)

    found = as_nll(-0.3)
    assert ("c-bpo", "1", "sft", "3") in found
    assert {winner for winner, *_ in found} == {"c-bpo"}
    # Better by the other metric, and a little worse by this one.
    assert ("c-bpo", "1", "sft", "1") not in as_nll(0.02)
    assert ("c-bpo", "1", "sft", "1") in as_nll(0.02, margin=0.05)


def test_a_path_is_a_curve_of_its_own_and_a_constant_is_one_point():
    paths = {"up": ["1", "2"], "far": ["1", "3"]}
    found = frontier(study(paths=paths), cells(cost=-0.1))
    places = [
        (curve["line"], curve["path"], [point["at"] for point in curve["points"]])
        for curve in found["curves"]
    ]
    assert places == [
        ("shared", "", ["1"]),
        ("sft", "up", ["1", "2"]),
        ("sft", "far", ["1", "3"]),
        ("c-bpo", "up", ["1", "2"]),
        ("c-bpo", "far", ["1", "3"]),
    ]
    assert len(found["pairs"]) == 2 * 4  # on the same path alone, without `shared`


def test_settings_are_compared_with_themselves_and_with_what_they_do_not_change():
    """SFT does not use the unlabeled set: its line is in the setting of every ratio."""
    done = [
        {**one, "cell": {**one["cell"], "unlabeled.ratio": ratio}}
        for ratio in (1.0, 2.0)
        for one in cells(cost=-0.1)
    ]
    grid = {**study().grid, "unlabeled.ratio": [1.0, 2.0]}
    given = Study("s", "t", "q", {}, grid, plot=study().plot, named=NAMED)
    for one in done:
        for methods in one["users"].values():
            methods["kto"] = methods["sft"]
    pairs = frontier(given, done)["pairs"]
    assert {(pair["one"], pair["other"]) for pair in pairs} == {
        *(
            ("sft", f"{method}, ratio {r}")
            for method in ("c-bpo", "kto")
            for r in (1.0, 2.0)
        ),
        *((f"c-bpo, ratio {ratio}", f"kto, ratio {ratio}") for ratio in (1.0, 2.0)),
    }


def test_the_page_says_in_words_who_dominates_whom():
    given = study(margin={"common": 0.04})
    text = markdown(summary(given, cells(cost=0.02)), "a.svg", "b.svg")
    assert "## Frontier: own against common\n\n![own against common](b.svg)" in text
    assert "minus the margin: 0.04 of common and 0 of own" in text
    assert (
        "- `sft` dominates no point of `c-bpo`; "
        "`c-bpo` dominates `sft` at 1, 2, 3." in text
    )
    assert "| dominated | by | by - dominated, common | own |" in text
    assert re.search(r"\| sft: 3 \| c-bpo: 3 \| -0\.02\d \[.+\] \| \+0\.\d+ \[", text)
    assert "| shared | 1 | 0.500 [0.500, 0.500] | 0.100 [0.100, 0.100] |" in text


def test_a_frontier_has_a_picture_of_its_own(tmp_path):
    folder = tmp_path / "findings"
    folder.mkdir()
    found = summary(study(), cells())
    (folder / "small.json").write_text(json.dumps(found))
    write_pages(folder)
    assert (folder / "small-frontier.svg").read_text() == frontier_svg(found)
    assert "](small-frontier.svg)" in (folder / "small.md").read_text()


def place(value: float, marks: dict[float, float]) -> float:
    """Pixel of a value, from the pixels of the marks."""
    low, *_, high = sorted(marks)
    return marks[low] + (marks[high] - marks[low]) / (high - low) * (value - low)


def test_points_of_the_picture_are_where_their_numbers_are():
    found = summary(study(), cells(cost=0.3))
    root = ElementTree.fromstring(frontier_svg(found))
    space = "{http://www.w3.org/2000/svg}"
    texts = [(t.text or "", t) for t in root.iter(f"{space}text")]
    up = {
        float(n): float(t.get("y", "")) - 4
        for n, t in texts
        if t.get("text-anchor") == "end"
    }
    across = {
        float(n): float(t.get("x", ""))
        for n, t in texts
        if t.get("text-anchor") == "middle" and n != "common"
    }
    groups = list(root.iter(f"{space}g"))
    curves = found["frontier"]["curves"]
    assert [curve["line"] for curve in curves] == ["shared", "sft", "c-bpo"]
    assert across[max(across)] > across[min(across)] and up[max(up)] < up[min(up)]
    for group, curve in zip(groups, curves, strict=True):
        drawn: list[list[float]] = []
        circles = list(group.iter(f"{space}circle"))[: len(curve["points"])]
        for circle, point in zip(circles, curve["points"], strict=True):
            for marks, axis, end in ((across, "x", "cx"), (up, "y", "cy")):
                expected = [
                    place(value, marks)
                    for value in (point[axis]["mean"], *point[axis]["ci95"])
                ]
                assert float(circle.get(end, "")) == pytest.approx(expected[0], abs=0.2)
                drawn.append(expected[1:])
        (bars, _) = (path.get("d", "") for path in group.iter(f"{space}path"))
        ends = re.findall(r"M([\d.]+) [\d.]+H([\d.]+)M[\d.]+ ([\d.]+)V([\d.]+)", bars)
        numbers = [float(end) for four in ends for end in four]
        assert numbers == pytest.approx([end for two in drawn for end in two], abs=0.2)
        radii = [float(circle.get("r", "")) for circle in circles]
        assert radii == sorted(set(radii))
