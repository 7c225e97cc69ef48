"""What the cells of a study say: verdicts on claims, tables, plots; from files alone."""

import itertools
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..common.config import FIELDS, PERSONAS, Scalar
from ..common.config.keys import keys_of
from ..common.config.methods import current_name
from ..common.config.old import RENAMED, renamed
from ..common.config.presets import PRESETS
from ..common.config.presets import read as read_preset
from ..common.errors import IdiolectError
from .audit import audit
from .run import results
from .study.study import (
    BEST,
    Claim,
    Study,
    comparisons,
    matches,
    side_of,
)

# Kinds of unlabeled set whose text no noise protects, and what a line of theirs says.
NOT_PRIVATE = ("others", "anonymised")
TOTAL_INFINITE = " (adapter epsilon only, total infinite)"

Cell = Mapping[str, Any]
"""One cell as `study.run_study` returns it."""


def difference(claim: Claim, done: Sequence[Cell]) -> dict[str, Any]:
    """Paired difference that a claim is about, over all users and seeds.

    Personas of different seeds are different people. Users of real data are the same under
    every seed, so each counts once, by the mean over the seeds.

    Returns
    -------
    dict
        ``claim``, ``metric``, ``users``, ``expect``, ``mean``, ``ci95``, ``n``.
    """
    one, other = (values(side, claim, done) for side in (claim.one, claim.other))
    people: dict[tuple[int, str], list[float]] = {}
    for key in (key for key in one if key in other):
        people.setdefault(key[1:], []).append(one[key] - other[key])
    if len(people) < 2:
        raise IdiolectError(f"claim {claim.text!r}: fewer than two users to compare.")
    means = _means(people)
    return {
        "claim": claim.text,
        "metric": claim.metric,
        "users": claim.users,
        "expect": claim.expect,
        **results.bootstrap(means, seed=0),
    }


def _person_seed(cell: Cell) -> int:
    """Tell personas of several seeds apart; users of real data are always the same."""
    return cell["run"]["seed"] if cell["run"]["task"] in PERSONAS else 0


def _means(people: Mapping[Any, Sequence[float]]) -> np.ndarray:
    """Return one value for each person, the mean of theirs."""
    return np.array([np.mean(values) for values in people.values()])


def judged(claims: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Add to each difference of a study ``p``, corrected by Holm (1979), and ``verdict``.

    Of n claims the smallest p counts n times, the next n - 1 times, and none less than the
    one before it: the chance that any of them is called confirmed or reversed though its
    difference is zero is then 5 %.

    Returns
    -------
    list of dict
        ``verdict`` is ``confirmed`` where p < 0.05 and the sign is the one that the claim
        predicts, ``reversed`` where it is the other, else ``not confirmed``.
    """
    alone = [_p_value(claim) for claim in claims]
    order = sorted(range(len(claims)), key=lambda k: alone[k])
    corrected, last = dict[int, float](), 0.0
    for rank, k in enumerate(order):
        last = corrected[k] = max(last, min(1.0, (len(claims) - rank) * alone[k]))
    return [
        {**claim, "p": corrected[k], "verdict": _word(claim, corrected[k])}
        for k, claim in enumerate(claims)
    ]


def _p_value(claim: Mapping[str, Any]) -> float:
    """Two-sided, by Student's t: that the mean difference of n users is zero.

    The bootstrap's interval is that of a normal with the spread of the n themselves, which
    is too narrow by sqrt((n - 1) / n).
    """
    from scipy.stats import t  # comes with the extra [server]

    (low, high), n = claim["ci95"], claim["n"]
    error = (high - low) / (2 * 1.959964) * math.sqrt(n / (n - 1))
    if not error:
        return float(claim["mean"] == 0)
    return float(2 * t.sf(abs(claim["mean"]) / error, n - 1))


def _word(claim: Mapping[str, Any], p: float) -> str:
    if p >= 0.05:
        return "not confirmed"
    predicted = -1 if claim["expect"] == "lower" else 1
    return "confirmed" if predicted * claim["mean"] > 0 else "reversed"


def values(
    side: Mapping[str, Scalar], claim: Claim, done: Sequence[Cell]
) -> dict[tuple[int, int, str], float]:
    """(seed, person's seed, user) -> the metric of one side of a claim.

    The person's seed is 0 for users of real data, who are the same under every seed. Of a
    key whose value is `BEST` each user has the value that suits them best.
    """
    method, keys = side_of(side)
    fixed = {key: value for key, value in keys.items() if value != BEST}
    better = min if claim.metric in results.LOWER_IS_BETTER else max
    found: dict[tuple[int, int, str], float] = {}
    group: dict[int, dict[str, Scalar]] = {}
    for cell in done:
        if not matches(cell["cell"], fixed):
            continue
        rest = {k: v for k, v in cell["cell"].items() if k not in keys}
        seed = cell["run"]["seed"]
        group.setdefault(seed, rest)
        for user in chosen(cell, claim.users):
            value = cell["users"][user].get(method, {}).get(claim.metric)
            if value is None:
                continue
            place = (seed, _person_seed(cell), user)
            if place not in found or rest == group[seed]:
                found[place] = better(found.get(place, value), value)
            elif found[place] != value:
                raise IdiolectError(
                    f"claim {claim.text!r}: {dict(side)} names several cells of one "
                    "seed: name all other keys of the grid too."
                )
    return found


def chosen(cell: Cell, users: str) -> list[str]:
    """Users of a cell, or the half of them that a claim is about."""
    names = list(cell["users"])
    if users == "all":
        return names
    overlap = cell["run"]["overlap"] or cell["run"]["alpha"]
    return results.split_by_alpha({name: overlap[name] for name in names})[users]


def summary(study: Study, done: Sequence[Cell]) -> dict[str, Any]:
    """Everything that the findings say about a study, from its cells alone."""
    rows = []
    for cell in done:
        for method, metrics in cell["methods"].items():
            rows.append(
                {"cell": written(cell["cell"]), "method": method, "metrics": metrics}
            )
    return {
        "name": study.name,
        "title": study.title,
        "question": study.question,
        "reading": study.reading,
        "answer": study.answer,
        "config": study.config,
        "grid": {k: [writable(v) for v in values] for k, values in study.grid.items()},
        "plot": study.plot,
        "measured": study.measured,
        "named": study.named,
        "claims": [difference(claim, done) for claim in study.claims],
        "compare": compared(study, done),
        "curve": curve(study, done, study.plot["metric"]) if study.plot else [],
        "also": {
            metric: curve(study, done, metric) for metric in study.plot.get("also", [])
        },
        "alpha": [entry for cell in done if (entry := alpha_against_truth(cell))],
        "rows": rows,
        "commits": sorted({cell["run"].get("commit", "") for cell in done} - {""}),
        "learning_rates": [cell["run"]["learning_rates"] for cell in done],
        "clamp_rate": [cell["run"]["clamp_rate"] for cell in done],
    }


def alpha_against_truth(cell: Cell) -> dict[str, Any] | None:
    """How well alpha ranks a cell's users (Spearman), and how far it is off on average.

    None where alpha was not estimated, is the same for all, or the truth is not known.
    """
    truth, alpha = cell["run"]["overlap"], cell["run"].get("alpha", {})
    users = [user for user in truth if user in alpha]
    if not cell["run"].get("alpha_estimated") or len(users) < 3:
        return None
    if len({alpha[user] for user in users}) == 1:
        return None
    one, other = (_ranks([values[user] for user in users]) for values in (truth, alpha))
    off = [abs(alpha[user] - truth[user]) for user in users]
    return {
        "cell": written(cell["cell"]),
        "n": len(users),
        "rank_correlation": float(np.corrcoef(one, other)[0, 1]),
        "error": float(np.mean(off)),
    }


def written(cell: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return a cell as JSON can hold it."""
    return {key: writable(value) for key, value in cell.items()}


def writable(value: Scalar) -> Scalar:
    """JSON has no infinity."""
    return "inf" if value == math.inf else value


def _ranks(numbers: Sequence[float]) -> np.ndarray:
    """Ranks from 0; equal numbers share the mean of theirs."""
    values = np.array(numbers)
    below = (values[:, None] > values).sum(1)
    return below + ((values[:, None] == values).sum(1) - 1) / 2


def compared(study: Study, done: Sequence[Cell]) -> list[dict[str, Any]]:
    """Differences of ``[[compare]]``; a metric that a world does not have is left out."""
    found: list[dict[str, Any]] = []
    for names, claim in comparisons(study):
        if values(claim.one, claim, done) and values(claim.other, claim, done):
            found.append({**names, **difference(claim, done)})
    return found


def curve(study: Study, done: Sequence[Cell], metric: str) -> list[dict[str, Any]]:
    """Points of a metric, as plot and tables show them: mean and interval over users.

    ``[plot]`` names ``x`` (a key of the grid), ``metric``, optionally ``also`` (metrics of
    further tables), ``minus`` (a method whose value for the same user is subtracted),
    ``hide`` (methods that the picture leaves out) and ``users`` (``split`` draws unique and
    non-unique users apart). Every other key of the grid but the seed, and every method,
    makes a line of its own.
    """
    points: dict[tuple[str, Scalar], dict[tuple[int, str], list[float]]] = {}
    for cell in done:
        x = writable(cell["cell"][study.plot["x"]])
        for line, user, value in _plotted(study, cell, metric):
            person = (_person_seed(cell), user)
            points.setdefault((line, x), {}).setdefault(person, []).append(value)
    return [
        {"line": line, "x": x, **results.bootstrap(_means(found), seed=0)}
        for (line, x), found in points.items()
    ]


def _plotted(study: Study, cell: Cell, metric: str) -> Iterator[tuple[str, str, float]]:
    """Yield (line, user, value) for every user and method of a cell.

    A key that a method does not use is left out of the name of its line: cells that
    differ in nothing else hold the same values of the same users.
    """
    plot = study.plot
    halves = ("unique", "non-unique") if plot.get("users") == "split" else ("all",)
    for half in halves:
        for user in chosen(cell, half):
            metrics = cell["users"][user]
            start = 0.0
            if "minus" in plot:
                start = metrics.get(plot["minus"], {}).get(metric)
            for method, found in metrics.items():
                known = start is not None and found.get(metric) is not None
                if method != plot.get("minus") and known:
                    name = [method, *_fixed(study, cell, method)]
                    name += [half] * (half != "all")
                    yield ", ".join(name), user, found[metric] - start


def _fixed(study: Study, cell: Cell, method: str) -> list[str]:
    """Keys of the grid, with their values, that tell a method's lines apart."""
    private = study.config.get("privacy.mode") == "central"
    return [
        f"{key.split('.')[-1]} {value}"
        + TOTAL_INFINITE
        * (private and key == "unlabeled.kind" and value in NOT_PRIVATE)
        for key, value in cell["cell"].items()
        if key not in ("seed", study.plot["x"])
        and len(study.grid[key]) > 1
        and not _unused(study, key, method)
    ]


def _unused(study: Study, key: str, method: str) -> bool:
    """Whether a method does not depend on a key, or on anything that it stands for."""
    meanings = study.named.get(key, {"": {key: ""}}).values()
    names = {RENAMED.get(name, name) for meaning in meanings for name in meaning}
    for preset in PRESETS if "preset" in names else ():
        names = names - {"preset"} | read_preset(preset).keys()
    without = FIELDS.keys() - keys_of(current_name(method))
    return names <= without


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Draw the curve of a summary as an SVG.

    Raises
    ------
    IdiolectError
        matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise IdiolectError(
            "plots need matplotlib: pip install 'idiolect[server]'."
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "idiolect"  # the same file every time
    plot, hidden = found["plot"], found["plot"].get("hide", [])
    points = [p for p in found["curve"] if p["line"].split(",")[0] not in hidden]
    ticks = list(dict.fromkeys(point["x"] for point in points))
    lines = list(dict.fromkeys(point["line"] for point in points))
    crowded = len(lines) > 6
    figure, axes = pyplot.subplots(figsize=(10 if crowded else 7, 4))
    colours = matplotlib.color_sequences["tab20" if crowded else "tab10"]
    for k, line in enumerate(lines):
        mine = [point for point in points if point["line"] == line]
        # Side by side, so that intervals do not cover each other.
        aside = 0.6 * (k - (len(lines) - 1) / 2) / len(lines) * crowded
        places = [ticks.index(point["x"]) + aside for point in mine]
        means = np.array([point["mean"] for point in mine])
        ends = np.array([point["ci95"] for point in mine]).T
        style = "o" if crowded else "o-"
        axes.errorbar(
            *(places, means, abs(ends - means)),
            fmt=style,
            capsize=3,
            label=line,
            color=colours[k % len(colours)],
        )
    axes.set_xticks(range(len(ticks)), [str(tick) for tick in ticks])
    if len(ticks) > 8:
        axes.tick_params("x", rotation=60)
    axes.set_xlabel(plot["x"])
    minus = f" - {plot['minus']}" if "minus" in plot else ""
    axes.set_ylabel(f"{plot['metric']}{minus} (mean over users, 95 %)")
    axes.set_title(found["title"])
    outside = {"bbox_to_anchor": (1.01, 1), "loc": "upper left"} if crowded else {}
    axes.legend(fontsize="small", **outside)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def markdown(found: Mapping[str, Any], image: str = "") -> str:
    """Return a study's summary as a section of ``docs/findings.md``."""
    lines = [f"## {found['title']}", ""]
    if found["question"]:
        lines += [found["question"], ""]
    setting = ", ".join(f"`{k}={v}`" for k, v in found["config"].items())
    grid = "; ".join(f"`{k}` in {v}" for k, v in found["grid"].items())
    lines += [f"Setting: {setting or 'defaults'}. Grid: {grid}.", ""]
    lines += _named(found)
    if commits := ", ".join(f"`{commit}`" for commit in found.get("commits", [])):
        lines += [f"Measured at commit {commits}.", ""]
    if found.get("measured") == "development":
        lines += ["Measured on development users, whom no other table reports.", ""]
    lines += _compared(found)
    if found["claims"]:
        lines += [
            "| claim | users | difference | 95 % interval | n | p (Holm) | verdict |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        lines += [_claim_row(claim) for claim in judged(found["claims"])]
        lines.append("")
    if found["reading"]:
        lines += [f"**Reading.** {found['reading']}", ""]
    if image:
        lines += [f"![{found['title']}]({image})", ""]
    lines += _table(found, found["curve"], found["plot"].get("metric", ""))
    for metric, points in found.get("also", {}).items():
        lines += _table(found, points, metric)
    lines += _rates(found) + _clamped(found)
    lines += _alpha_table(found["alpha"])
    return "\n".join(lines)


def _alpha_table(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows of alpha against the true overlap: a row is what differs in its seed alone.

    One rank correlation for each seed; the error is averaged over them.
    """
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        keys = [
            f"{k.split('.')[-1]} {v}" for k, v in entry["cell"].items() if k != "seed"
        ]
        rows.setdefault(", ".join(keys), []).append(entry)
    lines = [
        "| alpha against the true overlap | users | rank correlation | mean error |",
        "| --- | --- | --- | --- |",
    ]
    for name, found in rows.items():
        rhos = ", ".join(f"{entry['rank_correlation']:.2f}" for entry in found)
        errors = [entry["error"] for entry in found if "error" in entry]
        error = f"{np.mean(errors):.2f}" if errors else ""
        lines.append(f"| {name} | {found[0]['n']} | {rhos} | {error} |")
    return [*lines, ""] if rows else []


def _rates(found: Mapping[str, Any]) -> list[str]:
    """Learning rates that the methods used: one each, or by what the plot varies."""
    x = found["plot"].get("x")
    cells = itertools.product(*found["grid"].values())
    named = [dict(zip(found["grid"], cell, strict=True)) for cell in cells]
    used: dict[str, dict[str, set[float]]] = {}
    for cell, rates in zip(named, found["learning_rates"], strict=True):
        for method, rate in rates.items():
            used.setdefault(method, {}).setdefault(str(cell.get(x)), set()).add(rate)
    every = {method: set().union(*at.values()) for method, at in used.items()}
    if all(len(rates) == 1 for rates in every.values()):
        once = ", ".join(
            f"{method} {_either(rates)}" for method, rates in every.items()
        )
        return [f"Learning rates: {once}.", ""] if once else []
    ticks = list(dict.fromkeys(str(cell.get(x)) for cell in named))
    rows = {
        method: [_either(at.get(tick, set())) for tick in ticks]
        for method, at in used.items()
    }
    return _cross(f"learning rate, by {x}", ticks, rows)


def _cross(
    corner: str, columns: Sequence[Scalar], rows: Mapping[str, Sequence[Scalar]]
) -> list[str]:
    """Return the lines of a table: its corner, the heads of its columns, named rows."""
    return [
        f"| {corner} | " + " | ".join(map(str, columns)) + " |",
        "| --- |" + " --- |" * len(columns),
        *(
            f"| {name} | " + " | ".join(map(str, row)) + " |"
            for name, row in rows.items()
        ),
        "",
    ]


def _either(rates: Collection[float]) -> str:
    return " or ".join(f"{rate:g}" for rate in sorted(rates))


def _clamped(found: Mapping[str, Any]) -> list[str]:
    """How often the clamp of C-BPO was active."""
    active = [cell["c-bpo"] for cell in found["clamp_rate"] if "c-bpo" in cell]
    if not active:
        return []
    low, high = min(active), max(active)
    return [f"The clamp of c-bpo was active on {low:.0%} to {high:.0%} of steps.", ""]


def _claim_row(claim: Mapping[str, Any]) -> str:
    low, high = claim["ci95"]
    p = f"{claim['p']:.3f}" if claim["p"] >= 0.001 else "< 0.001"
    return (
        f"| {claim['claim']} | {claim['users']} | {claim['metric']} {claim['mean']:+.3f} "
        f"| [{low:+.3f}, {high:+.3f}] | {claim['n']} | {p} | **{claim['verdict']}** |"
    )


def _named(found: Mapping[str, Any]) -> list[str]:
    """What the names in a study's grid stand for."""
    lines: list[str] = []
    for key, meanings in found.get("named", {}).items():
        lines += [f"| {key} | stands for |", "| --- | --- |"]
        for value, keys in meanings.items():
            shown = ", ".join(f"`{k}={v}`" for k, v in keys.items())
            lines.append(f"| {value} | {shown or 'the setting'} |")
        lines.append("")
    return lines


# What the verdict on "one is better than the other" says of the two.
OUTCOMES = {"confirmed": "beats", "reversed": "loses to", "not confirmed": "undecided"}


def _compared(found: Mapping[str, Any]) -> list[str]:
    """Tables of ``[[compare]]``: in which world the one beats whom, by how much.

    Holm's correction is for all of a study's comparisons by one metric.
    """
    every = found.get("compare", [])
    tables: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for metric in dict.fromkeys(entry["metric"] for entry in every):
        for entry in judged([e for e in every if e["metric"] == metric]):
            tables.setdefault((entry["one"], metric), []).append(entry)
    lines: list[str] = []
    for (one, metric), entries in tables.items():
        others = list(dict.fromkeys(entry["other"] for entry in entries))
        rows: dict[str, list[str]] = {}
        for world in dict.fromkeys(entry["x"] for entry in entries):
            mine = {entry["other"]: entry for entry in entries if entry["x"] == world}
            n = max(entry["n"] for entry in mine.values())
            cells = [_outcome(mine[o], n) if o in mine else "" for o in others]
            rows[f"{world} ({n} users)"] = cells
        lines += _cross(f"{one}, by {metric}{_terms(metric, entries[0])}", others, rows)
    return lines


def _terms(metric: str, entry: Mapping[str, Any]) -> str:
    """What a reader of a table must know of its metric: direction and margin."""
    terms = ["lower is better"] * (metric in results.LOWER_IS_BETTER)
    if margin := entry.get("margin", 0.0):
        terms.append(f"equal within {margin:g}")
    return f" ({'; '.join(terms)})" if terms else ""


def _outcome(entry: Mapping[str, Any], n: int) -> str:
    """Say who is better, by how much, and of how many users if they are fewer than n."""
    low, high = entry["ci95"]
    word, margin = OUTCOMES[entry["verdict"]], entry.get("margin", 0.0)
    shown = f"{entry['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"
    shown += f", {entry['n']} users" * (entry["n"] < n)
    if -margin < low and high < margin:
        aside = {"beats": ", just ahead", "loses to": ", just behind"}
        return f"equals{aside.get(word, '')} {shown}"
    return f"{word} {shown}" if word == "undecided" else f"**{word}** {shown}"


def _table(
    found: Mapping[str, Any], points: Sequence[Mapping[str, Any]], metric: str
) -> list[str]:
    """Mean of a metric for every line and x, as a table."""
    if not points:
        return []
    ticks = list(dict.fromkeys(point["x"] for point in points))
    lines = list(dict.fromkeys(point["line"] for point in points))
    at = {(point["line"], point["x"]): point for point in points}
    minus = f" - {found['plot']['minus']}" if "minus" in found["plot"] else ""
    rows: dict[str, Sequence[Scalar]] = {}
    for line in lines:
        values = [at.get((line, tick)) for tick in ticks]
        shown = [
            f"{v['mean']:.3f} [{v['ci95'][0]:.3f}, {v['ci95'][1]:.3f}]" if v else ""
            for v in values
        ]
        rows[line] = shown
    rows["users"] = [max(p["n"] for p in points if p["x"] == tick) for tick in ticks]
    return _cross(f"{metric}{minus}, by {found['plot']['x']}", ticks, rows)


INTRODUCTION = """# Findings

Written by `idiolect-server study … --findings docs/findings` from the result files beside
this page; do not edit. A difference is paired by user over all seeds, its interval a
bootstrap over users. *Confirmed*: the difference has the sign that the claim predicts, and
p < 0.05 (Student's t) after Holm's correction for the number of claims in its study, or of
its comparisons by the same metric; *reversed*: the other sign; *not confirmed*: neither. In
a comparison of methods these are *beats*, *loses to* and *undecided*: no difference shows,
and the interval says how large one could be; *equals* where it lies within the margin that
the study declares, *just ahead* or *just behind* if they are told apart all the same.
Intervals are not corrected, and hold for the populations that were drawn: users of one
seed share a shared adapter, an unlabeled set and the learning rates chosen for them. Users
are synthetic (personas) unless a study says otherwise: what holds for them need not hold
for people.
"""


def write_page(folder: Path) -> Path:
    """Write ``<folder>.md`` from the summaries in the folder; return its path."""
    pages = [
        (path, renamed(json.loads(path.read_text()))) for path in folder.glob("*.json")
    ]
    # What the page is about first: who beats whom.
    pages.sort(key=lambda p: (-len(p[1].get("compare", [])), p[0]))
    sections = [INTRODUCTION, _answers([found for _, found in pages])]
    for path, found in pages:
        image = path.with_suffix(".svg")
        if found["curve"]:
            draw(found, image)
        name = f"{folder.name}/{image.name}" if found["curve"] else ""
        is_audit = found.get("kind") == "audit"
        sections.append(audit.markdown(found) if is_audit else markdown(found, name))
    page = folder.with_suffix(".md")
    page.write_text("\n".join(sections))
    return page


def _answers(pages: Sequence[Mapping[str, Any]]) -> str:
    """Every study's answer in a sentence, with a link to its section."""
    rows = [
        f"| [{found['title']}](#{_anchor(found['title'])}) | {found['answer']} |"
        for found in pages
        if found.get("answer")
    ]
    return "\n".join(["| Study | Answer |", "| --- | --- |", *rows, ""] if rows else [])


def _anchor(title: str) -> str:
    """The name that a heading has in a link, as GitHub and most others make it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
