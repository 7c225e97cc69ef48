"""The plot: where its points are, and what it leaves out."""

import re
from xml.etree import ElementTree

import pytest

from idiolect.server.findings.page import markdown
from idiolect.server.findings.plot import svg
from idiolect.server.findings.summary import summary
from idiolect.server.study.declaration import Study

from .cells import CELLS, study


def test_a_plot_puts_means_and_intervals_where_their_numbers_are():
    """One pixel is known from the axis: its marks and their heights are in the file."""
    found = summary(study(x="unlabeled.ratio", metric="nll"), CELLS)
    root = ElementTree.fromstring(svg(found | {"title": "A < B"}))
    space = "{http://www.w3.org/2000/svg}"
    texts = {text.text or "": text for text in root.iter(f"{space}text")}
    assert {"A < B", "sft", "c-bpo", "1.0", "2.0", "unlabeled.ratio"} <= texts.keys()
    marks = {
        float(name): float(text.get("y", "")) - 4
        for name, text in texts.items()
        if text.get("text-anchor") == "end"
    }
    low, *_, high = sorted(marks)
    at = (marks[low] - marks[high]) / (high - low)
    groups = list(root.iter(f"{space}g"))
    assert [group.get("class") for group in groups] == ["c0", "c1"]
    for group, line in zip(groups, ("sft", "c-bpo"), strict=True):
        points = [point for point in found["curve"] if point["line"] == line]
        circles = list(group.iter(f"{space}circle"))[: len(points)]
        heights = [float(circle.get("cy", "")) for circle in circles]
        expected = [marks[high] + at * (high - point["mean"]) for point in points]
        assert heights == pytest.approx(expected, abs=0.2)
        (bars,) = (path.get("d", "") for path in group.iter(f"{space}path"))
        ends = [float(end) for end in re.findall(r"M[\d.]+ ([\d.]+)V", bars)]
        expected = [marks[high] + at * (high - point["ci95"][0]) for point in points]
        assert ends == pytest.approx(expected, abs=0.2)


def test_hidden_methods_are_left_out_of_the_plot_alone():
    plot = {"x": "unlabeled.ratio", "metric": "nll", "hide": ["sft"]}
    found = summary(Study("s", "t", "", {}, study().grid, plot=plot), CELLS)
    assert ">c-bpo<" in svg(found) and ">sft<" not in svg(found)
    assert "| sft |" in markdown(found)  # the name that `oppu` has today
