"""The plots of a study: means and intervals as small SVGs, written without a library."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from .frontier import AXES, curve_name

WIDTH, HEIGHT = 620, 300  # of the plotting area, in pixels
LEFT, TOP, BELOW, ROW = 80, 46, 44, 17
MANY_LINES = 6  # with more, intervals are drawn side by side and points are not joined
MANY_TICKS = 8  # with more, their labels are turned
COLOURS = (
    *("1f77b4", "ff7f0e", "2ca02c", "d62728", "9467bd", "8c564b", "e377c2", "7f7f7f"),
    *("bcbd22", "17becf", "5a9bd4", "c98a2b", "6fbf6f", "e57373", "b39ddb", "b08968"),
    *("f3a6d3", "a6a6a6", "a3a847", "5fc9d6"),
)
STYLE = (
    "text{font:12px sans-serif;fill:#222}.b{fill:#fff}.g{stroke:#ddd}"
    ".l{fill:none;stroke-width:1.5}@media(prefers-color-scheme:dark)"
    "{text{fill:#ddd}.b{fill:#161b22}.g{stroke:#444}}"
)


def svg(found: Mapping[str, Any]) -> str:
    """Return the curve of a summary as the text of an SVG file.

    It has a background of its own, dark where the reader prefers that, so its text can be
    read on any page.
    """
    plot = found["plot"]
    points = [
        point
        for point in found["curve"]
        if point["line"].split(",")[0] not in plot.get("hide", [])
    ]
    ticks = list(dict.fromkeys(point["x"] for point in points))
    names = list(dict.fromkeys(point["line"] for point in points))
    turned = len(ticks) > MANY_TICKS
    under = TOP + HEIGHT + BELOW + 60 * turned
    minus = f" - {plot['minus']}" if "minus" in plot else ""
    label = f"{plot['metric']}{minus} (mean over users, 95 %)"
    step, marks = WIDTH / len(ticks), _marks(points)
    parts = [
        *_head(found["title"], label, len(names), under),
        *_axis(marks, step, ticks, turned),
        _text(LEFT + WIDTH / 2, under - 8, plot["x"], "middle"),
    ]
    crowded = len(names) > MANY_LINES
    for k, name in enumerate(names):
        # Side by side, so that intervals do not cover each other.
        aside = 0.6 * (k - (len(names) - 1) / 2) / len(names) * crowded
        mine = [point for point in points if point["line"] == name]
        at = [LEFT + step * (ticks.index(point["x"]) + 0.5 + aside) for point in mine]
        parts += [f'<g class="c{k % len(COLOURS)}">', *_line(mine, at, marks, crowded)]
        parts += _named(k, name, len(names), under)
    return "\n".join([*parts, "</svg>", ""])


def frontier_svg(found: Mapping[str, Any]) -> str:
    """Return the frontier of a summary: a metric across, another up, a line per curve.

    Points grow along a curve. Each has its interval in both directions. Only the first
    path is joined by whole lines.
    """
    given = found["frontier"]
    curves = given["curves"]
    names = [curve_name(curve["line"], curve["path"]) for curve in curves]
    across, up = (
        _marks([point[axis] for curve in curves for point in curve["points"]])
        for axis in AXES
    )
    under = TOP + HEIGHT + BELOW
    label = f"{given['y']} (means over users, 95 %); points grow along {given['along']}"
    parts = [
        *_head(found["title"], label, len(names), under),
        *_axis(up, 0.0, [], turned=False),
    ]
    for mark in across:
        x = _across(mark, across)
        parts.append(f'<path class="g" d="M{_n(x)} {TOP}v{HEIGHT}"/>')
        parts.append(_text(x, TOP + HEIGHT + 16, f"{mark:.6g}", "middle"))
    parts.append(_text(LEFT + WIDTH / 2, under - 8, given["x"], "middle"))
    first = next(iter(given.get("paths", {"": ()})))
    for k, (curve, name) in enumerate(zip(curves, names, strict=True)):
        dashed = curve["path"] not in ("", first)
        parts += [
            f'<g class="c{k % len(COLOURS)}">',
            *_crosses(curve, across, up, dashed),
        ]
        parts += _named(k, name, len(names), under)
    return "\n".join([*parts, "</svg>", ""])


def _crosses(
    curve: Mapping[str, Any], across: Sequence[float], up: Sequence[float], dashed: bool
) -> Iterator[str]:
    """Yield both intervals of every point of a curve, what joins the means, and them."""
    bars, places = "", list[tuple[str, str]]()
    for point in curve["points"]:
        x, y = _across(point["x"]["mean"], across), _height(point["y"]["mean"], up)
        left, right = (_across(end, across) for end in point["x"]["ci95"])
        low, high = (_height(end, up) for end in point["y"]["ci95"])
        bars += f"M{_n(left)} {_n(y)}H{_n(right)}M{_n(x)} {_n(low)}V{_n(high)}"
        places.append((_n(x), _n(y)))
    joined = "M" + "L".join(f"{x} {y}" for x, y in places)
    yield f'<path class="l" opacity=".35" d="{bars}"/>'
    dashes = ' stroke-dasharray="6 4"' if dashed else ""
    yield f'<path class="l"{dashes} d="{joined}"/>'
    for k, (x, y) in enumerate(places):
        yield f'<circle cx="{x}" cy="{y}" r="{3 + k}"/>'


def _head(title: str, label: str, lines: int, under: int) -> list[str]:
    """Return the start of a plot whose legend has so many lines and begins at `under`."""
    width, height = (
        LEFT + WIDTH + 20,
        under + ROW * math.ceil(lines / _columns(lines)) + 8,
    )
    colours = "".join(
        f".c{k}{{stroke:#{colour};fill:#{colour}}}"
        for k, colour in enumerate(COLOURS[:lines])
    )
    size = f'width="{width}" height="{height}"'
    start = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
    return [
        f"{start} {size}><style>{colours}{STYLE}</style>",
        f'<rect class="b" {size} rx="6"/>',
        _text(LEFT, 18, title),
        _text(LEFT, 36, label),
    ]


def _columns(lines: int) -> int:
    """How many columns the legend has."""
    return 2 if lines > 3 else 1


def _named(k: int, name: str, lines: int, under: int) -> list[str]:
    """Return the end of the group of line k, and its line of the legend."""
    columns = _columns(lines)
    x = LEFT + (k % columns) * WIDTH / columns
    y = under + ROW * (k // columns) + 8
    return [f'<circle cx="{_n(x)}" cy="{y}" r="4"/></g>', _text(x + 10, y + 4, name)]


def _n(value: float) -> str:
    """Return a coordinate with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")


def _text(x: float, y: float, text: object, anchor: str = "", more: str = "") -> str:
    anchor = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{_n(x)}" y="{_n(y)}"{anchor}{more}>{escape(str(text))}</text>'


def _marks(points: Sequence[Mapping[str, Any]]) -> list[float]:
    """Round numbers that span all intervals, four to nine of them, for the y axis."""
    ends = [end for point in points for end in point["ci95"]]
    low, high = min(ends), max(ends)
    rough = (high - low or 1.0) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = max(unit * power for unit in (1, 2, 5) if unit * power <= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [k * step for k in range(first, max(last, first + 1) + 1)]


def _height(value: float, marks: Sequence[float]) -> float:
    """Where a value stands on the y axis, which reaches from the first to the last mark."""
    return TOP + HEIGHT * (marks[-1] - value) / (marks[-1] - marks[0])


def _across(value: float, marks: Sequence[float]) -> float:
    """Where a value stands on an x axis of numbers."""
    return LEFT + WIDTH * (value - marks[0]) / (marks[-1] - marks[0])


def _axis(
    marks: Sequence[float], step: float, ticks: Sequence[object], turned: bool
) -> Iterator[str]:
    for mark in marks:
        y = _n(_height(mark, marks))
        yield f'<path class="g" d="M{LEFT} {y}h{WIDTH}"/>'
        yield _text(LEFT - 6, float(y) + 4, f"{mark:.6g}", "end")
    for k, tick in enumerate(ticks):
        x, y = LEFT + step * (k + 0.5), TOP + HEIGHT + 16
        turn = f' transform="rotate(-40 {_n(x)} {y})"' if turned else ""
        yield _text(x, y, tick, "end" if turned else "middle", turn)


def _line(
    points: Sequence[Mapping[str, Any]],
    at: Sequence[float],
    marks: Sequence[float],
    crowded: bool,
) -> Iterator[str]:
    """Yield a line's intervals, means, and what joins them."""
    bars = "".join(
        f"M{_n(x)} {_n(_height(point['ci95'][0], marks))}"
        f"V{_n(_height(point['ci95'][1], marks))}"
        for x, point in zip(at, points, strict=True)
    )
    heights = [_height(point["mean"], marks) for point in points]
    means = [(_n(x), _n(y)) for x, y in zip(at, heights, strict=True)]
    joined = "" if crowded else "M" + "L".join(f"{x} {y}" for x, y in means)
    yield f'<path class="l" d="{bars}{joined}"/>'
    for x, y in means:
        yield f'<circle cx="{x}" cy="{y}" r="3"/>'
