"""Pages of findings: one for each study, and one that lists all answers."""

import gzip
import itertools
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...common.config import Scalar
from ...common.files import write_atomically
from ..run import results
from .plot import svg
from .verdicts import judged

INTRODUCTION = """# Findings

Written by `idiolect-server study FILE.toml --findings docs/findings` from the result files
in that folder. Do not edit. Each question is a link to the study's page, which has its
setting, tables and plot.

- A difference is paired by user over all seeds. Its 95 % interval is a bootstrap
  over users.
- *Confirmed*: the difference has the sign that the claim predicts, and p < 0.05 (Student's
  t) after Holm's correction for the number of claims of the study, or of its comparisons by
  the same metric. *Reversed*: the other sign. *Not confirmed*: neither.
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
    found = json.loads(summary.read_text())
    text = json.dumps(found, separators=(",", ":"), ensure_ascii=False)
    folder.mkdir(parents=True, exist_ok=True)
    packed = gzip.compress(text.encode(), mtime=0)
    write_atomically(folder / f"{name}.json.gz", packed)


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """Study -> its summary, of a folder of findings.

    Version 0.1 wrote ``NAME.json``; where both are there, ``NAME.json.gz`` counts.
    """
    texts = {path.stem: path.read_text() for path in folder.glob("*.json")}
    for path in folder.glob("*.json.gz"):
        texts[path.name.removesuffix(".json.gz")] = gzip.decompress(
            path.read_bytes()
        ).decode()
    return {name: json.loads(texts[name]) for name in sorted(texts)}


def renamed(value: Any) -> Any:
    """Return a stored value with the names that methods have today: `sft` was `oppu`."""
    if isinstance(value, str):
        text = re.sub(r"\bOPPU\b|SFT \((oppu|sft)\)", "SFT", value)
        return re.sub(r"\boppu\b", "sft", text)
    if isinstance(value, Mapping):
        return {renamed(key): renamed(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [renamed(entry) for entry in value]
    return value


def write_pages(folder: Path) -> Path:
    """Write a page and a plot for each study of a folder, and ``<folder>.md``.

    Returns
    -------
    Path
        The page that lists the studies' answers.
    """
    rows = []
    for name, found in load(folder).items():
        image = f"{name}.svg" if found["curve"] else ""
        if image:
            write_atomically(folder / image, svg(renamed(found)).encode())
        text = markdown(found, image) + f"\n[All findings](../{folder.name}.md)\n"
        write_atomically(folder / f"{name}.md", text.encode())
        rows.append((-len(found.get("compare", [])), _answer_row(folder, name, found)))
    # Comparisons of many methods first.
    table = [row for _, row in sorted(rows, key=lambda row: row[0])]
    head = ["| Question | Answer | Verdicts |", "| --- | --- | --- |"]
    page = folder.with_suffix(".md")
    write_atomically(page, (INTRODUCTION + "\n".join([*head, *table, ""])).encode())
    return page


def _answer_row(folder: Path, name: str, found: Mapping[str, Any]) -> str:
    """Return a study's first question, its answer and the counts of its verdicts."""
    found = renamed(found)
    asked, mark, _ = found["question"].partition("?")
    asked = asked + mark if mark else found["title"]
    link = f"[{asked}]({folder.name}/{name}.md)"
    return f"| {link} | {found.get('answer', '')} | {_counts(found)} |"


def _counts(found: Mapping[str, Any]) -> str:
    """Return how often each verdict was given."""
    if found.get("kind") == "audit":
        return "; ".join(
            f"{row['control']}: {row['caught']} of {row['audits']} above the claim"
            for row in found["rows"]
        )
    claims = Counter(claim["verdict"] for claim in judged(found["claims"]))
    every = found.get("compare", [])
    words: Counter[str] = Counter()
    for metric in dict.fromkeys(entry["metric"] for entry in every):
        of_metric = judged([entry for entry in every if entry["metric"] == metric])
        words.update(_word(entry) for entry in of_metric)
    parts = []
    if claims:
        parts.append(
            f"Claims: {_said(claims, ('confirmed', 'reversed', 'not confirmed'))}"
        )
    if words:
        parts.append(f"Comparisons: {_said(words, (*OUTCOMES.values(), 'equals'))}")
    return ". ".join(parts) or "no claims"


def _said(counts: Mapping[str, int], order: Sequence[str]) -> str:
    return ", ".join(f"{counts[word]} {word}" for word in order if counts.get(word))


def markdown(found: Mapping[str, Any], image: str = "") -> str:
    """Return a summary as the page of its study; `image` is a path to its plot."""
    found = renamed(found)
    return _audit_page(found) if found.get("kind") == "audit" else _page(found, image)


def _audit_page(found: Mapping[str, Any]) -> str:
    claimed = ", ".join(
        f"{name} {value:.2f}" for name, value in found["claims"].items()
    )
    setting = (
        f"Noise multiplier {found['noise']:.2f}; claimed epsilon: {claimed}; the largest "
        f"that these audits could show: {found['largest_detectable']:.2f}."
    )
    lines = [
        f"# {found['title']}",
        "",
        found["question"],
        "",
        setting,
        "",
        "| mechanism | audits | above the claim | 95 % | bounds (median, largest) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in found["rows"]:
        low, high = row["share95"]
        bounds = "; ".join(
            f"{attack} {b['median']:.2f}, {b['largest']:.2f}"
            for attack, b in row["bounds"].items()
        )
        lines.append(
            f"| {row['control']} | {row['audits']} | {row['caught']} "
            f"| [{low:.2f}, {high:.2f}] | {bounds} |"
        )
    return "\n".join([*lines, "", f"**Reading.** {found['reading']}", ""])


def _page(found: Mapping[str, Any], image: str) -> str:
    lines = [f"# {found['title']}", ""]
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


def _word(entry: Mapping[str, Any]) -> str:
    """Return the verdict on a comparison: the one of `OUTCOMES` that holds, or equals."""
    (low, high), margin = entry["ci95"], entry.get("margin", 0.0)
    within = -margin < low and high < margin
    return "equals" if within else OUTCOMES[entry["verdict"]]


def _outcome(entry: Mapping[str, Any], n: int) -> str:
    """Say who is better, by how much, and of how many users if they are fewer than n."""
    low, high = entry["ci95"]
    word = _word(entry)
    shown = f"{entry['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"
    shown += f", {entry['n']} users" * (entry["n"] < n)
    if word == "equals":
        aside = {"confirmed": ", just ahead", "reversed": ", just behind"}
        return f"equals{aside.get(entry['verdict'], '')} {shown}"
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
