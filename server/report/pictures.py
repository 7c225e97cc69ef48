"""Pictures of a page as inline SVG, drawn by matplotlib.

Its SVG is parsed and written again: without metadata, addresses and style attributes, so
that the page's policy can forbid them; text stays text; colours become the page's own
(``var(--ink)``), which differ in light and dark.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.util import find_spec
from typing import Any
from xml.etree import ElementTree

WIDTH = 340  # pixels: it fits a phone without being made much smaller
ROW = 26  # of a method
SERIES = 8  # colours of lines
INK, FAINT, GRID, GOOD, BAD = "#000001", "#000002", "#000003", "#000004", "#000005"
COLOURS = tuple(f"#0001{k:02d}" for k in range(SERIES))
VARIABLES: dict[str, str] = dict(
    zip(
        (INK, FAINT, GRID, GOOD, BAD),
        ("ink", "faint", "grid", "good", "bad"),
        strict=True,
    )
)
VARIABLES |= {colour: f"c{k}" for k, colour in enumerate(COLOURS)}
DASHES = ("-", "--", ":", "-.")  # lines are told apart without colour too
MARKS = "os^Dv<>P"
SETTINGS: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 12.0,
    "axes.edgecolor": GRID,
    "axes.labelcolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 1.0,
    "text.color": INK,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": INK,
    "ytick.major.size": 0.0,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "axes.unicode_minus": False,
}

NO_PICTURES = (
    "the report has no pictures, since matplotlib is not installed: `pip install "
    "matplotlib`; its tables have the same numbers."
)
Draw = Callable[[Any], None]


def able() -> bool:
    """Whether pictures can be drawn."""
    return find_spec("matplotlib") is not None


def drawn(name: str, title: str, says: str, height: float, draw: Draw) -> str:
    """Return a picture as SVG markup; empty without matplotlib.

    Parameters
    ----------
    name
        Unique on the page: the identifiers inside begin with it.
    title, says
        For readers who do not see it.
    height
        Pixels; the width is `WIDTH`.
    draw
        Draws on matplotlib's axes.
    """
    if not able():
        return ""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    stream = io.StringIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # a glyph that its font lacks: the browser's has it
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS | {"svg.hashsalt": name})
        figure = Figure((WIDTH / 72, height / 72), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return _inline(stream.getvalue(), name, title, says)


def _inline(text: str, name: str, title: str, says: str) -> str:
    root = ElementTree.fromstring(text)
    used = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", text))
    body = "".join(_written(child, name, used) for child in root)
    labels = (
        f'<title id="{name}-t">{escape(title)}</title>'
        f'<desc id="{name}-d">{escape(says)}</desc>'
    )
    return (
        f'<svg role="img" aria-labelledby="{name}-t {name}-d" '
        f'viewBox="{escape(root.attrib["viewBox"])}">{labels}{body}</svg>'
    )


DROPPED = {"metadata", "style", "title"}
KEPT = {"fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-dashoffset"}
KEPT |= {"opacity", "fill-opacity", "stroke-opacity", "text-anchor", "font-size"}
KEPT |= {"stroke-linecap", "stroke-linejoin"}


def _written(element: ElementTree.Element, name: str, used: set[str]) -> str:
    tag = element.tag.rpartition("}")[2]
    if tag in DROPPED:
        return ""
    attributes: dict[str, str] = {}
    for key, value in element.attrib.items():
        plain = key.rpartition("}")[2]
        if plain == "style":
            attributes |= _of_style(value)
        elif plain == "href":
            attributes["href"] = f"#{name}-{value[1:]}"
        elif plain == "clip-path":
            attributes["clip-path"] = value.replace("url(#", f"url(#{name}-")
        elif plain == "id":
            attributes |= {"id": f"{name}-{value}"} if value in used else {}
        else:
            attributes[plain] = value
    head = "".join(
        f' {key}="{escape(_coloured(value))}"' for key, value in attributes.items()
    )
    inner = escape(element.text or "") if tag == "text" else ""
    inner += "".join(_written(child, name, used) for child in element)
    return f"<{tag}{head}>{inner}</{tag}>"


def _of_style(style: str) -> dict[str, str]:
    pairs = (part.partition(":")[::2] for part in style.split(";"))
    found = {key.strip(): value.strip() for key, value in pairs}
    if size := re.search(r"([\d.]+)px", found.get("font", "")):
        found["font-size"] = size[1]
    return {key: value for key, value in found.items() if key in KEPT}


def _coloured(value: str) -> str:
    return f"var(--{VARIABLES[value]})" if value in VARIABLES else value


# --- what the pages draw ----------------------------------------------------------------


Row = tuple[str, float, tuple[float, float] | None]  # name, mean, interval


def intervals(
    rows: Sequence[Row], zero: bool = False, colours: Sequence[str] = ()
) -> Draw:
    """Means as points with their intervals, the first row on top; `zero` draws 0."""

    def draw(axes: Any) -> None:
        for place, (_, mean, ends) in enumerate(rows):
            colour = colours[place] if colours else COLOURS[0]
            if ends is not None:
                axes.plot(ends, [place, place], color=colour, linewidth=2)
            axes.plot([mean], [place], "o", color=colour, markersize=6)
        if zero:
            axes.axvline(0, color=FAINT, linewidth=1)
        axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.locator_params(axis="x", nbins=5)

    return draw


def height_of(rows: int) -> int:
    """Return the pixels that `intervals` and `bars` need."""
    return 48 + ROW * max(rows, 1)


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    labels: tuple[str, str],
    *,
    rates: bool = False,
    zero: bool = False,
    marked: bool = True,
    ticks: Sequence[str] = (),
) -> Draw:
    """Lines over x, at most `SERIES` of them; `ticks` names x = 0, 1, ...

    `rates`: x is on a logarithmic scale.
    """

    def draw(axes: Any) -> None:
        for k, (name, points) in enumerate(list(series.items())[:SERIES]):
            axes.plot(
                *zip(*points, strict=True),
                color=COLOURS[k],
                linestyle=DASHES[k % len(DASHES)],
                marker=MARKS[k] if marked else None,
                markersize=4.5,
                linewidth=1.8,
                label=name.lstrip("_") or "?",
            )
        _frame(axes, labels)
        if zero:
            axes.axhline(0, color=FAINT, linewidth=1)
        if rates:
            tried = sorted({x for points in series.values() for x, _ in points})
            axes.set_xscale("log")
            axes.set_xticks(tried, [f"{rate:g}" for rate in tried])
            axes.minorticks_off()
        if ticks:
            turned = {"rotation": 30, "ha": "right"} if max(map(len, ticks)) > 6 else {}
            axes.set_xticks(range(len(ticks)), ticks, **turned)
        if len(series) > 1:
            columns = 2 if max(map(len, series)) < 16 else 1
            axes.figure.legend(
                loc="outside lower left", ncols=columns, fontsize=11, handlelength=2.6
            )

    return draw


def scatter(points: Sequence[tuple[float, float]], labels: tuple[str, str]) -> Draw:
    """Points, and the diagonal on which both are equal."""

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=FAINT, linestyle="--", linewidth=1)
        axes.plot(
            *zip(*points, strict=True), "o", color=COLOURS[0], markersize=5, alpha=0.7
        )
        _frame(axes, labels)
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)

    return draw


def _frame(axes: Any, labels: tuple[str, str]) -> None:
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.tick_params(axis="y", labelcolor=FAINT)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.locator_params(axis="y", nbins=5)


def bars(
    rows: Sequence[tuple[str, float]], write: Callable[[float], str] = "{:.3g}".format
) -> Draw:
    """Horizontal bars with their numbers, as `write` writes them, at the end."""

    def draw(axes: Any) -> None:
        values = [value for _, value in rows]
        axes.barh(range(len(rows)), values, color=COLOURS[0], height=0.6)
        axes.set_xlim(0, 1.25 * (max(values, default=0) or 1))
        for place, value in enumerate(values):
            axes.annotate(
                write(value), (value, place), (4, 0), textcoords="offset points",
                va="center", fontsize=11,
            )  # fmt: skip
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks([])
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)

    return draw


def flows(rows: Sequence[tuple[str, str, str]]) -> Draw:
    """What leaves a device: ``(name, how, kind)``; a kind is stays, noisy or open."""
    colours = {"stays": FAINT, "noisy": GOOD, "open": BAD}

    def draw(axes: Any) -> None:
        last = len(rows) - 0.5
        for x, title in ((0.0, "device"), (0.62, "server and after")):
            axes.text(x, -0.9, title, weight="bold", va="center")
        axes.plot([0.53, 0.53], [-0.6, last], color=GRID, linestyle="--")
        for place, (name, how, kind) in enumerate(rows):
            colour, stays = colours[kind], kind == "stays"
            end, mark = (0.5, "|") if stays else (0.57, ">")
            axes.text(0, place, name, va="center")
            axes.plot([0.41, end], [place, place], color=colour, linewidth=2)
            axes.plot(
                [end], [place], mark, color=colour, markersize=9, markeredgewidth=2
            )
            axes.text(0.62, place, how, va="center", fontsize=11)
        axes.set_xlim(0, 1.1)
        axes.set_ylim(last, -1.4)
        axes.axis("off")

    return draw


def quantiles(values: Sequence[float], most: int = 101) -> list[tuple[float, float]]:
    """Return sorted values over their share in percent, at most so many points."""
    ordered = sorted(value for value in values if math.isfinite(value))
    if not ordered:
        return []
    last = max(len(ordered) - 1, 1)
    count = min(len(ordered), most)
    places = sorted(
        {round(k * (len(ordered) - 1) / max(count - 1, 1)) for k in range(count)}
    )
    return [(100 * place / last, ordered[place]) for place in places]
