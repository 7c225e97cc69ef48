"""Pages of findings: one for each study, and one that lists all answers."""

import gzip
import itertools
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...common.config.old import renamed
from ...common.files import write_atomically
from ..run import results
from . import published
from .frontier import AXES, curve_name, dominated
from .plot import frontier_svg, svg
from .smallest import sentences
from .verdicts import judged

INTRODUCTION = """# Findings

Written by `idiolect-server study FILE.toml --findings docs/findings` from the result files
in that folder. Do not edit. Each question is a link to the study's page, which has its
setting, tables and plot. For whom which method helps, and at what cost: [one
page](for-whom.md).

- A difference is paired by user over all seeds. Its 95 % interval is a bootstrap
  over users.
- *Confirmed*: the difference has the sign that the claim predicts, and p < 0.05 (Student's
  t) after Holm's correction for the number of claims of the study, or of its comparisons by
  the same metric. *Reversed*: the other sign. *Not confirmed*: neither. *Not measured*: too
  few users have the metric; it does not count.
- In a comparison of methods these are *beats*, *loses to* and *undecided*. *Equals*: the
  whole interval lies within the margin that the study declares (*just ahead* or *just
  behind* if the two can still be told apart).
- Intervals are not corrected. They hold for the users that were drawn: users of one seed
  share a shared adapter, an unlabeled set and the learning rates chosen for them.
- Users are synthetic (personas) unless a study says otherwise. What holds for them need not
  hold for people.
- Keys have the names of the commit that was measured. Methods have the names of today.

"""


def store(summary: Path, folder: Path, name: str) -> None:
    """Put a study's ``summary.json`` into a folder of findings, without blanks, gzipped.

    The same summary gives the same bytes.
    """
    results.write_packed(folder / f"{name}.json.gz", json.loads(summary.read_text()))


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """Study -> its summary, of a folder of findings.

    Version 0.1 wrote ``NAME.json``; where both are there, ``NAME.json.gz`` counts.
    """
    texts = {path.stem: path.read_bytes() for path in folder.glob("*.json")}
    for path in folder.glob("*.json.gz"):
        texts[Path(path.stem).stem] = gzip.decompress(path.read_bytes())
    return {name: renamed(json.loads(texts[name])) for name in sorted(texts)}


def write_pages(folder: Path) -> Path:
    """Write a page and a plot for each study of a folder, and ``<folder>.md``.

    Returns
    -------
    Path
        The page that lists the studies' answers.
    """
    summaries = load(folder)
    for name, found in summaries.items():
        image = f"{name}.svg" if found["curve"] else ""
        if image:
            write_atomically(folder / image, svg(found).encode())
        frontier = f"{name}-frontier.svg" if found.get("frontier") else ""
        if frontier:
            write_atomically(folder / frontier, frontier_svg(found).encode())
        text = (
            markdown(found, image, frontier)
            + f"\n[All findings](../{folder.name}.md)\n"
        )
        write_atomically(folder / f"{name}.md", text.encode())
    # Comparisons of many methods first.
    order = sorted(summaries, key=lambda name: -len(summaries[name].get("compare", [])))
    rows = [_answer_row(folder, name, summaries[name]) for name in order]
    table = "\n".join(_lines(["Question", "Answer", "Verdicts"], rows))
    page = folder.with_suffix(".md")
    write_atomically(page, (INTRODUCTION + table).encode())
    return page


def _answer_row(folder: Path, name: str, found: Mapping[str, Any]) -> list[str]:
    """Return a study's first question, its answer and the counts of its verdicts."""
    asked, mark, _ = found["question"].partition("?")
    link = f"[{asked + mark if mark else found['title']}]({folder.name}/{name}.md)"
    return [link, found.get("answer", ""), counts(found)]


def counts(found: Mapping[str, Any]) -> str:
    """Return how often each verdict was given."""
    if found.get("kind") == "audit":
        return "; ".join(
            f"{row['control']}: {row['caught']} of {row['audits']} above the claim"
            for row in found["rows"]
        )
    tallies = {
        "Claims": Counter(claim["verdict"] for claim in judged(found["claims"])),
        "Comparisons": Counter(map(relation, judged_comparisons(found))),
    }
    order = (*OUTCOMES, "not measured", *OUTCOMES.values(), "equals")
    said = (
        f"{kind}: " + ", ".join(f"{of[word]} {word}" for word in order if of[word])
        for kind, of in tallies.items()
        if of
    )
    return ". ".join(said) or "no claims"


def markdown(found: Mapping[str, Any], image: str = "", frontier: str = "") -> str:
    """Return a summary as the page of its study; `image`, `frontier`: paths to plots."""
    is_audit = found.get("kind") == "audit"
    parts = [
        [f"# {found['title']}", ""],
        *([warning, ""] for warning in published.warnings(found)),
        [found["question"], ""] if found["question"] else [],
        _audits(found) if is_audit else _setting(found) + _verdicts(found),
        [f"**Reading.** {found['reading']}", ""] if found["reading"] else [],
        _published(found.get("published")),
        [f"![{found['title']}]({image})", ""] if image else [],
        [] if is_audit else _measurements(found),
        _frontier(found, frontier) if found.get("frontier") else [],
    ]
    return "\n".join(itertools.chain(*parts))


def _lines(heads: Sequence[object], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return the lines of a table."""
    cells = [heads, ["---"] * len(heads), *rows]
    return [*(f"| {' | '.join(map(str, row))} |" for row in cells), ""]


def _range(ends: Sequence[float], signed: str = "") -> str:
    return f"[{ends[0]:{signed}.3f}, {ends[1]:{signed}.3f}]"


def _audits(found: Mapping[str, Any]) -> list[str]:
    claimed = ", ".join(
        f"{name} {value:.2f}" for name, value in found["claims"].items()
    )
    rows = [
        [
            *(row["control"], row["audits"], row["caught"]),
            f"[{row['share95'][0]:.2f}, {row['share95'][1]:.2f}]",
            "; ".join(
                f"{attack} {bound['median']:.2f}, {bound['largest']:.2f}"
                for attack, bound in row["bounds"].items()
            ),
        ]
        for row in found["rows"]
    ]
    heads = "mechanism", "audits", "above the claim", "95 %", "bounds (median, largest)"
    setting = (
        f"Noise multiplier {found['noise']:.2f}; claimed epsilon: {claimed}; the largest "
        f"that these audits could show: {found['largest_detectable']:.2f}."
    )
    return [setting, "", *_lines(heads, rows)]


def _setting(found: Mapping[str, Any]) -> list[str]:
    """What was measured: keys, grid, what its names stand for, commit, users."""
    setting = ", ".join(f"`{k}={v}`" for k, v in found["config"].items())
    grid = "; ".join(f"`{k}` in {v}" for k, v in found["grid"].items())
    lines = [f"Setting: {setting or 'defaults'}. Grid: {grid}.", ""]
    if changed := found.get("changed"):
        keys = ", ".join(f"`{k}={v}`" for k, v in changed.items())
        lines += [f"Not as the file declares it: {keys}, by `-c`, in all cells.", ""]
    for key, meanings in found.get("named", {}).items():
        rows = [
            [value, ", ".join(f"`{k}={v}`" for k, v in keys.items()) or "the setting"]
            for value, keys in meanings.items()
        ]
        lines += _lines([key, "stands for"], rows)
    if missing := found.get("missing"):
        names = "; ".join(", ".join(f"{k} {v}" for k, v in c.items()) for c in missing)
        said = f"**So far.** {len(missing)} cells are not measured yet: {names}. "
        said += (
            "Verdicts are corrected for the claims that are; with the rest some may "
        )
        lines += [f"{said}change.", ""]
    lines += [line for said in _prompts(found) for line in (said, "")]
    if commits := ", ".join(f"`{commit}`" for commit in found.get("commits", [])):
        lines += [f"Measured at commit {commits}.", ""]
    if found.get("measured") == "development":
        lines += ["Measured on development users, whom no other table reports.", ""]
    return lines


def _prompts(found: Mapping[str, Any]) -> list[str]:
    """Say which prompts had no room for retrieved texts, and how many were shortened."""
    said: list[str] = []
    for method in dict.fromkeys(one["method"] for one in found.get("idle", [])):
        cells = [one["cell"] for one in found["idle"] if one["method"] == method]
        named = "; ".join(", ".join(f"{k} {v}" for k, v in c.items()) for c in cells)
        said.append(
            f"**`{method}` is not measured** in {len(cells)} cells ({named}): no text of "
            "the history has room beside a prompt (`engine.max-length`), so there it is "
            "the shared model."
        )
    counts = [one for one in found.get("shortened", []) if one]
    if any(cut for cut, _ in counts):
        shares = [cut / prompts for cut, prompts in counts]
        low, high = (f"{pick(shares):.0%}" for pick in (min, max))
        share = low if low == high else f"{low} to {high}"
        said.append(
            f"Prompts that are shortened, at their beginning, to fit the context: {share} "
            "of a cell's."
        )
    return said


def _published(found: Mapping[str, Any] | None) -> list[str]:
    """Numbers of the study beside published ones, and how the settings agree."""
    if not found:
        return []
    lines = ["## Our numbers beside the published ones", ""]
    for sentence in published.sentences(found):
        lines += [sentence, ""]
    for table in found["tables"]:
        named = ", ".join(f"{key} {value}" for key, value in table["cell"].items())
        lines += [f"**{named}**", ""] if named else []
        lines += _lines(published.heads_of(table), published.rows_of(table))
    heads = "setting of the published numbers", "published", "here"
    lines += _lines(heads, published.setting_rows(found))
    if found["silent"]:
        silent = ", ".join(f"`{name}`" for name in found["silent"])
        lines += [f"Not stated either: {silent}.", ""]
    return lines


def _verdicts(found: Mapping[str, Any]) -> list[str]:
    """Tables of comparisons (in which world one beats which other) and of claims."""
    tables: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in judged_comparisons(found):
        tables.setdefault((entry["one"], entry["metric"]), []).append(entry)
    lines: list[str] = []
    for (one, metric), entries in tables.items():
        others = list(dict.fromkeys(entry["other"] for entry in entries))
        rows: list[list[str]] = []
        for world in dict.fromkeys(entry["x"] for entry in entries):
            mine = {entry["other"]: entry for entry in entries if entry["x"] == world}
            n = max(entry["n"] for entry in mine.values())
            cells = [_outcome(mine[o], n) if o in mine else "" for o in others]
            rows.append([f"{world} ({n} users)", *cells])
        lines += _lines(
            [f"{one}, by {metric}{_terms(metric, entries[0])}", *others], rows
        )
    for sentence in sentences(found.get("compare", [])):
        lines += [sentence, ""]
    rows = [_claim_row(claim) for claim in judged(found["claims"])]
    heads = "claim", "users", "difference", "95 % interval", "n", "p (Holm)", "verdict"
    return lines + (_lines(heads, rows) if rows else [])


def _claim_row(claim: Mapping[str, Any]) -> list[str]:
    """Return a claim with its difference and verdict, or with why it has none."""
    start, metric, n = (
        [claim["claim"], claim["users"]],
        claim["metric"],
        str(claim["n"]),
    )
    if "why" in claim:
        return [*start, metric, "", n, "", f"**{claim['verdict']}**: {claim['why']}"]
    return [
        *(*start, f"{metric} {claim['mean']:+.3f}", _range(claim["ci95"], "+"), n),
        f"{claim['p']:.3f}" if claim["p"] >= 0.001 else "< 0.001",
        f"**{claim['verdict']}**",
    ]


# What the verdict on "one is better than the other" says of the two.
OUTCOMES = {"confirmed": "beats", "reversed": "loses to", "not confirmed": "undecided"}


def judged_comparisons(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Entries of ``[[compare]]`` with verdicts, by metric.

    Holm's correction is for all of a study's comparisons by one metric.
    """
    every = found.get("compare", [])
    return [
        entry
        for metric in dict.fromkeys(entry["metric"] for entry in every)
        for entry in judged([entry for entry in every if entry["metric"] == metric])
    ]


def _terms(metric: str, entry: Mapping[str, Any]) -> str:
    """What a reader of a table must know of its metric: direction and margin."""
    margin = entry.get("margin", 0.0)
    terms = ["lower is better"] * (metric in results.LOWER_IS_BETTER)
    terms += [f"equal within {margin:g}"] * bool(margin)
    return f" ({'; '.join(terms)})" if terms else ""


def relation(entry: Mapping[str, Any]) -> str:
    """Return the verdict on a comparison: the one of `OUTCOMES` that holds, or equals."""
    (low, high), margin = entry["ci95"], entry.get("margin", 0.0)
    within = -margin < low and high < margin
    return "equals" if within else OUTCOMES[entry["verdict"]]


def _outcome(entry: Mapping[str, Any], n: int) -> str:
    """Say who is better, by how much, and of how many users if they are fewer than n."""
    word, shown = relation(entry), f"{entry['mean']:+.3f} {_range(entry['ci95'], '+')}"
    shown += f", {entry['n']} users" * (entry["n"] < n)
    if word == "equals":
        aside = {"confirmed": ", just ahead", "reversed": ", just behind"}
        return f"equals{aside.get(entry['verdict'], '')} {shown}"
    return f"{word} {shown}" if word == "undecided" else f"**{word}** {shown}"


def _frontier(found: Mapping[str, Any], image: str) -> list[str]:
    """Where a method dominates another, in words and differences, and all points."""
    given = found["frontier"]
    x, y = given["x"], given["y"]
    margins = given.get("margin", {})
    slack = " and ".join(f"{margins.get(metric, 0):g} of {metric}" for metric in (x, y))
    beaten = dominated(given)
    pairs = dict.fromkeys((p["one"], p["other"], p["path"]) for p in given["pairs"])
    rows = [
        [
            f"{curve_name(one['loser'], one['path'])}: {one['at']}",
            f"{curve_name(one['winner'], one['path'])}: {one['by']}",
            *(f"{one[a]['mean']:+.3f} {_range(one[a]['ci95'], '+')}" for a in AXES),
        ]
        for one in beaten
    ]
    points = [
        [
            *(curve_name(curve["line"], curve["path"]), at["at"]),
            *(f"{at[axis]['mean']:.3f} {_range(at[axis]['ci95'])}" for axis in AXES),
        ]
        for curve in given["curves"]
        for at in curve["points"]
    ]
    return [
        *(f"## Frontier: {y} against {x}", ""),
        *([f"![{y} against {x}]({image})", ""] if image else []),
        (
            "A point dominates another if it is clearly better by one metric (p < 0.05 "
            "after Holm's correction over all differences of the frontier) and at least as "
            f"good by the other (the whole interval lies above minus the margin: {slack})."
        ),
        "",
        *(
            f"- {_dominance(beaten, one, other, path)}; "
            f"{_dominance(beaten, other, one, path)}."
            for one, other, path in pairs
        ),
        *([""] if pairs else []),
        *(_lines(["dominated", "by", f"by - dominated, {x}", y], rows) if rows else []),
        *_lines(["curve", given["along"], x, y], points),
    ]


def _dominance(
    beaten: Sequence[Mapping[str, Any]], winner: str, loser: str, path: str
) -> str:
    """Say which points of a curve those of another one dominate."""
    same = (winner, loser, path)
    found = (
        one for one in beaten if (one["winner"], one["loser"], one["path"]) == same
    )
    where = ", ".join(str(one["at"]) for one in found)
    names = curve_name(winner, path), curve_name(loser, path)
    if not where:
        return f"`{names[0]}` dominates no point of `{names[1]}`"
    return f"`{names[0]}` dominates `{names[1]}` at {where}"


def _measurements(found: Mapping[str, Any]) -> list[str]:
    """Tables of every line and x, learning rates, the clamp, alpha."""
    lines = _table(found, found["curve"], found["plot"].get("metric", ""))
    for metric, points in found.get("also", {}).items():
        lines += _table(found, points, metric)
    lines += _rates(found)
    lines += _clamp(found)
    lines += _correlations(found.get("correlation", [])) + _recognition(found)
    return lines + _alpha_table(found["alpha"])


def _clamp(found: Mapping[str, Any]) -> list[str]:
    """On how many steps the clamp of c-bpo was active: range, or by x (``clamp``)."""
    x, at = found["plot"].get("x"), dict[str, list[float]]()
    for tick, cell in zip(_ticks(found), found["clamp_rate"], strict=True):
        if "c-bpo" in cell:
            at.setdefault(tick, []).append(cell["c-bpo"])
    active = list(itertools.chain(*at.values()))
    if not active:
        return []
    if found["plot"].get("clamp"):
        shares = [f"{np.mean(rates):.0%}" for rates in at.values()]
        return _lines([f"clamp of c-bpo, by {x}", *at], [["steps it acts on", *shares]])
    share = f"{min(active):.0%} to {max(active):.0%}"
    return [f"The clamp of c-bpo was active on {share} of steps.", ""]


def _ticks(found: Mapping[str, Any]) -> list[str]:
    """For every measured cell its value of what the plot varies."""
    grid, x = found["grid"], found["plot"].get("x")
    every = [dict(zip(grid, v, strict=True)) for v in itertools.product(*grid.values())]
    missing = found.get("missing", [])
    return [str(cell.get(x)) for cell in every if cell not in missing]


def _correlations(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rank correlations of metrics over users: mean over lines, and their range."""
    if not entries:
        return []
    cells = {
        (e["one"], e["other"]): f"{e['mean']:+.2f}"
        + f" ({e['least']:+.2f} to {e['most']:+.2f})" * (e["lines"] > 1)
        for e in entries
    }
    rows, heads = (
        list(dict.fromkeys(e[end] for e in entries)) for end in ("one", "other")
    )
    users, lines = min(e["n"] for e in entries), max(e["lines"] for e in entries)
    return [
        (
            "Do the metrics agree about whom a method helps? Spearman's correlation over "
            "users of their gains over `shared`, turned so that more is better: the mean "
            f"over {lines} lines of the plots, and the least and the largest. With {users} "
            f"users, chance alone gives a single one {1 / (users - 1) ** 0.5:.2f} (one "
            "standard error)."
        ),
        "",
        *_lines(
            ["rank correlation", *heads],
            [[one, *(cells.get((one, other), "") for other in heads)] for one in rows],
        ),
    ]


def _recognition(found: Mapping[str, Any]) -> list[str]:
    """Mean MRR of each method in each cell, between ceiling and floor; or a refusal."""
    rows = []
    for one in found.get("recognition", []):
        here = [row for row in found["rows"] if row["cell"] == one["cell"]]
        means = {r["method"]: r["metrics"].get("recognised-mrr") for r in here}
        named = ", ".join(f"{k} {v}" for k, v in one["cell"].items())
        methods = ", ".join(
            f"{method} {value['mean']:.2f}"
            for method, value in means.items()
            if value and method not in ("ceiling", "floor")
        )
        gap = one["difference"]
        rows.append(
            [
                named,
                f"{one['words']:.0f}",
                f"{means['ceiling']['mean']:.2f}",
                f"{means['floor']['mean']:.2f}",
                f"{gap['mean']:+.2f} {_range(gap['ci95'], '+')}",
                methods if one["apart"] else "cannot tell authors apart here",
            ]
        )
    count = found["recognition"][0]["candidates"] if rows else 0
    heads = [f"recognised among {count} (MRR)", "words", "ceiling", "floor"]
    return _lines([*heads, "ceiling - floor", "methods"], rows) if rows else []


def _table(
    found: Mapping[str, Any], points: Sequence[Mapping[str, Any]], metric: str
) -> list[str]:
    """Mean of a metric for every line and x, as a table."""
    if not points:
        return []
    ticks = list(dict.fromkeys(point["x"] for point in points))
    at = {
        (point["line"], point["x"]): f"{point['mean']:.3f} {_range(point['ci95'])}"
        for point in points
    }
    rows: list[list[object]] = [
        [line, *(at.get((line, tick), "") for tick in ticks)]
        for line in dict.fromkeys(point["line"] for point in points)
    ]
    users = (max(p["n"] for p in points if p["x"] == tick) for tick in ticks)
    plot = found["plot"]
    minus = f" - {plot['minus']}" if "minus" in plot else ""
    heads = [f"{metric}{minus}, by {plot['x']}", *ticks]
    return _lines(heads, [*rows, ["users", *users]])


def _rates(found: Mapping[str, Any]) -> list[str]:
    """Learning rates that the methods used: one each, or by what the plot varies."""
    x, ticks = found["plot"].get("x"), _ticks(found)
    used: dict[str, dict[str, set[float]]] = {}
    for tick, rates in zip(ticks, found["learning_rates"], strict=True):
        for method, rate in rates.items():
            used.setdefault(method, {}).setdefault(tick, set()).add(rate)
    every = {method: set().union(*at.values()) for method, at in used.items()}
    if all(len(rates) == 1 for rates in every.values()):
        once = [f"{method} {_either(rates)}" for method, rates in every.items()]
        return [f"Learning rates: {', '.join(once)}.", ""] if once else []
    ticks = list(dict.fromkeys(ticks))
    rows = [
        [method, *(_either(at.get(tick, set())) for tick in ticks)]
        for method, at in used.items()
    ]
    return _lines([f"learning rate, by {x}", *ticks], rows)


def _either(rates: Collection[float]) -> str:
    return " or ".join(f"{rate:g}" for rate in sorted(rates))


def _alpha_table(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows of alpha against the true overlap: a row is what differs in its seed alone.

    One rank correlation for each seed; the error is averaged over them.
    """
    alike: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        keys = [
            f"{k.split('.')[-1]} {v}" for k, v in entry["cell"].items() if k != "seed"
        ]
        alike.setdefault(", ".join(keys), []).append(entry)
    rows = []
    for name, found in alike.items():
        rhos = ", ".join(f"{entry['rank_correlation']:.2f}" for entry in found)
        errors = [entry["error"] for entry in found if "error" in entry]
        mean = f"{np.mean(errors):.2f}" if errors else ""
        rows.append([name, found[0]["n"], rhos, mean])
    heads = "alpha against the true overlap", "users", "rank correlation", "mean error"
    return _lines(heads, rows) if rows else []
