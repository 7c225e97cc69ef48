"""Sections of the page of a study: from its summary alone."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ..findings import published
from ..findings.page import counts, judged_comparisons, relation
from ..findings.verdicts import judged
from ..run.results import LOWER_IS_BETTER
from . import pictures
from .parts import (
    Figure,
    Page,
    Section,
    ends_of,
    has_mean,
    interval,
    number,
    short,
    table,
)

PICTURED = 14  # rows of a picture
CURVES = 4  # metrics with a curve


def page(found: Mapping[str, Any]) -> Page:
    """Return everything that the page of a study says."""
    sections = [
        _answer(found),
        *([_audits(found)] if found.get("kind") == "audit" else _measured(found)),
        _setting(found),
    ]
    kept = [one for one in sections if one is not None]
    return Page(str(found["title"]), f"Study {found.get('name', '?')}", kept)


def _answer(found: Mapping[str, Any]) -> Section:
    said = found.get("answer") or "No answer was written down."
    verdicts = f"{counts(found)}."
    asked = [found["question"]] if found.get("question") else []
    reading = [found["reading"]] if found.get("reading") else []
    if missing := len(found.get("missing", [])):
        reading.insert(0, f"So far: {missing} cells are not measured yet.")
    warned = [_plain(warning) for warning in published.warnings(found)]
    sentences = [*warned, *asked, verdicts, *reading]
    return Section("answer", "Answer", said, sentences=sentences)


def _measured(found: Mapping[str, Any]) -> list[Section | None]:
    return [
        _claims(found),
        _comparisons(found),
        _published(found.get("published")),
        _curves(found),
        _training(found),
    ]


def _audits(found: Mapping[str, Any]) -> Section:
    rows = [
        (
            row["control"],
            row["audits"],
            row["caught"],
            f"{row['share95'][0]:.2f} to {row['share95'][1]:.2f}",
            "; ".join(
                f"{name} {number(bound.get('median'))}, {number(bound.get('largest'))}"
                for name, bound in row["bounds"].items()
            ),
        )
        for row in found["rows"]
    ]
    heads = (
        "mechanism",
        "audits",
        "above the claim",
        "95 %",
        "bounds (median, largest)",
    )
    claimed = ", ".join(f"{k} {number(v, '.2f')}" for k, v in found["claims"].items())
    said = (
        f"Noise multiplier {number(found.get('noise'), '.2f')}; "
        f"claimed epsilon: {claimed}; "
        f"the largest that these audits could show: "
        f"{number(found.get('largest_detectable'), '.2f')}."
    )
    made = table("What audits found", heads, rows, numbers=False)
    return Section("audits", "Audits", sentences=[said], tables=[made])


def _claims(found: Mapping[str, Any]) -> Section | None:
    claims = judged(found["claims"]) if found["claims"] else []
    if not claims:
        return None
    numbered = [(f"claim {k}", claim) for k, claim in enumerate(claims, 1)]
    rows = [_claim_row(name, claim) for name, claim in numbered]
    heads = ("claim", "users", "metric", "difference", "95 % interval", "n")
    made = table(
        "Claims and verdicts", (*heads, "p (Holm)", "verdict"), rows, numbers=False
    )
    said = (
        "Confirmed: the sign that the claim predicts, and p < 0.05 after Holm's "
        "correction. Reversed: the other sign."
    )
    metrics = list(dict.fromkeys(claim["metric"] for claim in claims))[:CURVES]
    figures = [
        _points(f"claims{k}", metric, [o for o in numbered if o[1]["metric"] == metric])
        for k, metric in enumerate(metrics)
    ]
    return Section("claims", "Claims", sentences=[said], figures=figures, tables=[made])


def _claim_row(name: str, claim: Mapping[str, Any]) -> tuple[object, ...]:
    start = f"{name}: {claim['claim']}", claim["users"], claim["metric"]
    if "why" in claim:
        return *start, "", "", claim["n"], "", f"{claim['verdict']}: {claim['why']}"
    return (
        *start,
        number(claim["mean"], "+.3f"),
        interval(claim, signed=True),
        claim["n"],
        f"{claim['p']:.3f}" if claim["p"] >= 0.001 else "< 0.001",
        claim["verdict"],
    )


KINDS = {"confirmed": pictures.GOOD, "reversed": pictures.BAD}


def _points(
    name: str, metric: str, numbered: Sequence[tuple[str, Mapping[str, Any]]]
) -> Figure:
    """Make the picture of the claims by one metric."""
    known = [(label, c) for label, c in numbered if has_mean(c)][:PICTURED]
    points = [(label, claim["mean"], ends_of(claim)) for label, claim in known]
    colours = [KINDS.get(claim["verdict"], pictures.FAINT) for _, claim in known]
    title = f"Claims by {metric}: differences, paired by user"
    says = f"{title}. {len(points)} points with intervals; the table has the numbers."
    draw = pictures.intervals(points, True, colours)
    svg = pictures.drawn(name, title, says, pictures.height_of(len(points)), draw)
    rows = [
        (label, number(claim["mean"], "+.3f"), interval(claim, signed=True))
        for label, claim in known
    ]
    heads = ("claim", "difference", "95 % interval")
    return Figure(title, svg, table(title, heads, rows, folded=True))


def _comparisons(found: Mapping[str, Any]) -> Section | None:
    entries = judged_comparisons(found)
    if not entries:
        return None
    rows = [
        (
            f"{entry['one']}, {entry['x']}",
            relation(entry),
            entry["other"],
            f"{entry['metric']} {number(entry['mean'], '+.3f')}",
            interval(entry, signed=True),
            entry["n"],
        )
        for entry in entries
    ]
    heads = ("one, where", "verdict", "other", "difference", "95 % interval", "n")
    made = table("Comparisons", heads, rows, numbers=False)
    return Section("comparisons", "Who beats whom", tables=[made])


def _plain(text: str) -> str:
    """Text without the marks of Markdown."""
    return text.replace("`", "").replace("*", "")


def _published(found: Mapping[str, Any] | None) -> Section | None:
    """Make the tables of the study's numbers beside published ones."""
    if not found:
        return None
    tables = [
        table(
            ", ".join(f"{key} {value}" for key, value in one["cell"].items()) or "All",
            tuple(published.heads_of(one)),
            [tuple(map(_plain, row)) for row in published.rows_of(one)],
            numbers=False,
        )
        for one in found["tables"]
    ]
    heads = ("key", "published", "here")
    rows = [tuple(row) for row in published.setting_rows(found)]
    tables.append(table("Setting of the published numbers", heads, rows, numbers=False))
    said = [*map(_plain, published.sentences(found))]
    if found["silent"]:
        said.append(f"Not stated either: {', '.join(found['silent'])}.")
    name = "Our numbers beside the published ones"
    return Section("published", name, sentences=said, tables=tables)


def _curves(found: Mapping[str, Any]) -> Section | None:
    plot = found.get("plot") or {}
    if not found["curve"]:
        return None
    every = {plot["metric"]: found["curve"], **(found.get("also") or {})}
    figures = [
        _curve(f"curve{k}", metric, points, plot, k < CURVES)
        for k, (metric, points) in enumerate(every.items())
    ]
    minus = f" Values are less those of {plot['minus']}." if plot.get("minus") else ""
    said = f"Means over users, over {plot['x']}.{minus}"
    lines = {point["line"] for point in found["curve"]}
    if len(lines) > pictures.SERIES:
        said += (
            f" A picture shows the first {pictures.SERIES} of {len(lines)} lines; the "
            "tables have the others."
        )
    return Section("curves", "Curves", sentences=[said], figures=figures)


def _curve(
    name: str,
    metric: str,
    points: Sequence[Mapping[str, Any]],
    plot: Mapping[str, Any],
    pictured: bool,
) -> Figure:
    known = [point for point in points if has_mean(point)]
    ticks = list(dict.fromkeys(str(point["x"]) for point in known))
    hidden = plot.get("hide") or []
    series: dict[str, list[tuple[float, float]]] = {}
    for point in known:
        if str(point["line"]).split(",")[0] not in hidden:
            place = float(ticks.index(str(point["x"])))
            series.setdefault(short(str(point["line"])), []).append(
                (place, point["mean"])
            )
    side = "lower" if metric in LOWER_IS_BETTER else "higher"
    title = f"{metric} ({side} is better)"
    svg = ""
    if pictured and series:
        draw = pictures.lines(
            {line: sorted(at) for line, at in series.items()},
            (str(plot["x"]), metric),
            ticks=[short(tick, 14) for tick in ticks],
        )
        says = f"{title} over {plot['x']}; the table has the numbers."
        svg = pictures.drawn(name, title, says, 320, draw)
    rows = [
        (
            p["line"],
            p["x"],
            number(p.get("mean"), "+.3f"),
            interval(p, signed=True),
            p["n"],
        )
        for p in points
    ]
    heads = ("line", str(plot["x"]), "mean", "95 % interval", "users")
    return Figure(title, svg, table(title, heads, rows, folded=bool(svg)))


def _training(found: Mapping[str, Any]) -> Section | None:
    rows = []
    every = zip(
        found.get("learning_rates") or [], found.get("clamp_rate") or [], strict=False
    )
    for k, (rates, clamps) in enumerate(every, 1):
        rows += [
            (f"{k}: {method}", number(rate, "g"), number(clamps.get(method), ".1%"))
            for method, rate in rates.items()
        ]
    tables = []
    if entries := found.get("alpha"):
        heads = ("cell", "users", "rank correlation", "mean error")
        cells = [
            (
                _cell(entry["cell"]),
                entry["n"],
                number(entry.get("rank_correlation"), ".2f"),
                number(entry.get("error")),
            )
            for entry in entries
        ]
        caption = "Alpha against the true overlap"
        tables.append(table(caption, heads, cells, folded=len(cells) > 10))
    if rows:
        heads = ("cell: method", "learning rate", "clamp rate")
        tables.append(table("Training, by cell", heads, rows, folded=len(rows) > 10))
    return Section("training", "Training and alpha", tables=tables) if tables else None


def _cell(cell: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in cell.items())


def _setting(found: Mapping[str, Any]) -> Section:
    config = [(key, value) for key, value in (found.get("config") or {}).items()]
    grid = [
        (key, ", ".join(map(str, values)))
        for key, values in (found.get("grid") or {}).items()
    ]
    named = [
        (
            f"{key} {value}",
            ", ".join(f"{k}={v}" for k, v in keys.items()) or "the setting",
        )
        for key, meanings in (found.get("named") or {}).items()
        for value, keys in meanings.items()
    ]
    changed = [(key, value) for key, value in (found.get("changed") or {}).items()]
    parts = {
        "Not as the file declares it, by -c": changed,
        "Differs from the default": config,
        "Grid": grid,
        "Names of the grid": named,
    }
    tables = [
        table(caption, ("key", "value"), rows, numbers=False)
        for caption, rows in parts.items()
        if rows
    ]
    name = found.get("declared", found.get("name", "NAME"))
    given = "".join(f" -c {shlex.quote(f'{key}={value}')}" for key, value in changed)
    commits = ", ".join(found.get("commits") or []) or "not recorded"
    sentences = [
        (
            f"Measured at commit {commits}. The same command with the same file and "
            "versions gives the same cells."
        ),
    ]
    if found.get("measured") == "development":
        sentences.append("Measured on development users, whom no other table reports.")
    return Section(
        "reproduce",
        "Setting, and how to reproduce",
        sentences=sentences,
        command=f"idiolect-server study simulations/lamp/experiments/{name}.toml{given}",
        tables=tables,
    )
