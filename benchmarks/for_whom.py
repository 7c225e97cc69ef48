"""For whom does what help, at what cost: docs/for-whom.md and docs/for-whom-numbers.md.

    python benchmarks/for_whom.py

The first page is for somebody who decides what to build; the second has the intervals and
counts behind it (`who_numbers`). Every number and every word of judgement comes from result
files: those of the studies in ``docs/findings`` and those of the benchmarks in
``benchmarks/results``. A study without a result file makes a sentence "not measured"; the
pages change when results change.
"""

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from situations import (
    BACKBONES,
    NAMES,
    OPPOSITE,
    Gains,
    How,
    Pair,
    Who,
    declared,
    pairs_of,
)
from who_numbers import (
    COLUMNS,
    DEFAULT,
    METRICS,
    NEAR,
    ORDER,
    PAPER,
    RANKS,
    REAL,
    SFT,
    SMALL,
    TABLE,
    lines_of,
    numbers,
    people_of,
    percent,
    tabled,
    tally,
    told,
    users,
    verdicts_of,
)

from idiolect.server.findings.page import load

ROOT = Path(__file__).resolve().parents[1]
FINDINGS = ROOT / "docs" / "findings"
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "for-whom.md"
NUMBERS = ROOT / "docs" / "for-whom-numbers.md"

# Studies that only compare.
BESIDE = "nearness", "unlabeled_set", "strength", "dislikes", "recognised", "frontier"
BESIDE += "alpha_near_one", "alpha_choice", "disliked_weight", "token_correction"
BESIDE += ("cope",)


def answers(pairs: Sequence[Pair], gains: Gains) -> list[str]:
    """Return what to know first, as bullet points."""
    said = [against_sft(pairs), on_real(pairs, gains), choice(pairs, gains)]
    said += [pays(pairs), *longer(gains)]
    return [f"- {one}" for one in said if one]


def against_sft(pairs: Sequence[Pair]) -> str:
    """Say how the default recipe stands to SFT."""
    by = {m: tally(pairs, DEFAULT, SFT, m) for m in ("nll", "mrr")}
    if not any(by.values()):
        return "Whether C-BPO with its default recipe is better than SFT: not measured."
    parts = "; ".join(
        f"by {METRICS[metric]} {told(found, 'better')}" for metric, found in by.items()
    )
    if any("better" in found for found in by.values()):
        return (
            "C-BPO's default recipe is better than plain SFT somewhere: "
            f"{parts} kinds of users."
        )
    return (
        "**Nowhere is C-BPO with its default recipe shown to be better than plain SFT**: "
        f"{parts} kinds of users."
    )


def on_real(pairs: Sequence[Pair], gains: Gains) -> str:
    """Say what a real model on real texts has shown of C-BPO's recipes and SFT."""
    mine = [pair for pair in pairs if pair.study in REAL]
    if not mine:
        return "On a real instruct model with real texts nothing is measured yet."
    models = {p.who.backbone for p in mine}
    said: list[str] = []
    for how in (DEFAULT, PAPER, NEAR, SMALL):
        found = {m: tally(mine, how, SFT, m) for m in ("nll", "mrr", "recognised-mrr")}
        words = [f"{METRICS[m]} {told(f, 'better')}" for m, f in found.items() if f]
        said += [f"{how.words}: {', '.join(words)}"] if words else []
    helped = [who.words for who in people_of(gains) if who.backbone in models]
    return (
        f"On a real model ({', '.join(sorted(models))}; {'; '.join(helped)}), against SFT: "
        f"{'; '.join(said) or 'not measured'}."
    )


def choice(pairs: Sequence[Pair], gains: Gains) -> str:
    """Say whether SFT is the choice, and which other methods beat it somewhere."""
    found = {
        how: [tally(pairs, how, SFT, metric) for metric in ("nll", "mrr")]
        for how in dict.fromkeys(h for pair in pairs for h in (pair.one, pair.other))
        if how != SFT
    }
    tried = [how for how, tallies in found.items() if any(tallies)]
    beaten = [
        f"{how.words} by {METRICS[metric]}, in {len(words['better'])} of "
        f"{sum(map(len, words.values()))} kinds of users"
        for how, tallies in found.items()
        for metric, words in zip(("nll", "mrr"), tallies, strict=True)
        if "better" in words
    ]
    words = verdicts_of(gains)
    helps = any(w == "helps" and key[1] == SFT for key, w in words.items())
    if not helps:
        return ""
    if beaten:
        others = [h.words for h in tried if not any("better" in t for t in found[h])]
        return (
            f"Shown to beat plain SFT somewhere: {'; '.join(beaten)}. Compared with it and "
            f"not shown to, by likelihood or rank: {', '.join(others)}."
        )
    return (
        "By likelihood and rank no method that was compared with plain SFT is shown to "
        f"beat it ({', '.join(how.words for how in tried)}): where a history helps, it is "
        "the choice."
    )


def pays(pairs: Sequence[Pair]) -> str:
    """Say by which measures C-BPO, in any of its forms, is shown to be better than SFT."""
    counts = {metric: against(pairs, "sft", metric) for metric in METRICS}
    said = [
        f"{METRICS[metric]} (better in {found['better']} of {found.total()} comparisons"
        + f", worse in {found['worse']}" * bool(found["worse"])
        + ")"
        for metric, found in counts.items()
        if found["better"]
    ]
    if not said:
        return ""
    cost = [
        f"{METRICS[metric]} (worse in {found['worse']} of {found.total()})"
        for metric, found in counts.items()
        if found["worse"] and not found["better"]
    ]
    return (
        f"What C-BPO in some form does better than SFT: {'; '.join(said)}. "
        f"What it pays: {'; '.join(cost) or 'nothing that was measured'}."
    )


def longer(gains: Gains) -> list[str]:
    """Say how gains grow with the history, where only its length differs."""
    said: list[str] = []
    for who in people_of(gains):
        more = [
            o for o in people_of(gains) if replace(o, history=who.history) == who != o
        ]
        for other in (o for o in more if o.history > who.history):
            parts = [
                f"{how.words} {gain(gains, who, how)} to {gain(gains, other, how)}"
                for how in (SFT, DEFAULT)
                if {(who, how, "nll"), (other, how, "nll")} <= gains.keys()
            ]
            aside = f", {who.aside}" if who.aside else ""
            said.append(
                f"From {who.history} to {other.history} texts ({who.people}{aside}) the "
                f"gain goes from {'; '.join(parts)}."
            )
    return said


def gain(gains: Gains, who: Who, how: How) -> str:
    """Return a gain in likelihood in percent."""
    return f"{percent(-gains[who, how, 'nll']['mean']):+.0f} %"


def middle(gains: Gains, who: Who, how: How) -> str:
    """Return the gain of the median user, where the study has it."""
    median = gains[who, how, "nll"].get("median")
    return "" if median is None else f" (median {percent(-median):+.0f} %)"


def table(gains: Gains) -> list[str]:
    """One row for each kind of users, one column for each method: word and percent."""
    words = verdicts_of(gains)
    columns = [how for how in COLUMNS if any(key[1] == how for key in gains)]
    rows = [
        [f"{who.words} ({users(gains, who)})", who.backbone]
        + [
            f"{words[who, how, 'nll']} {gain(gains, who, how)}{middle(gains, who, how)}"
            if (who, how, "nll") in gains
            else "-"
            for how in columns
        ]
        for who in people_of(gains)
    ]
    rows.append(["**helps likelihood in**", "", *summed(gains, columns, ("nll",))])
    rows.append(["**helps rank in**", "", *summed(gains, columns, RANKS)])
    return lines_of(["whose texts (users)", "model", *(h.words for h in columns)], rows)


def summed(gains: Gains, columns: Sequence[How], metrics: Sequence[str]) -> list[str]:
    """Return for each method how often it helps, and its median gain in likelihood."""
    words = verdicts_of(gains)
    cells: list[str] = []
    for how in columns:
        keys = [key for key in gains if key[1] == how and key[2] in metrics]
        counts = Counter(words[key] for key in keys)
        text = f"{counts['helps']} of {len(keys)}"
        if metrics == ("nll",) and keys:
            middle = statistics.median(-gains[key]["mean"] for key in keys)
            text += f", median {percent(middle):+.0f} %"
        text += f"; harms in {counts['harms']}" * bool(counts["harms"])
        cells.append(text if keys else "-")
    return cells


def unlabeled(pairs: Sequence[Pair]) -> list[str]:
    """Table: C-BPO in all its forms against SFT and against its positive term alone."""
    rows: list[list[str]] = []
    lines: list[str] = []
    for method in ("sft", "positives"):
        counts = [against(pairs, method, metric) for metric in METRICS]
        parts = [[f"{w} {found[w]}" for w in ORDER if found[w]] for found in counts]
        rows.append(
            [f"C-BPO against {NAMES[method]}", *(", ".join(p) or "-" for p in parts)]
        )
        lines += where_better(pairs, method)
    return [
        *lines_of(["comparisons", *METRICS.values()], rows),
        "",
        *(lines or ["- Nothing is shown to be better."]),
    ]


def against(pairs: Sequence[Pair], method: str, metric: str) -> Counter[str]:
    """Return how often C-BPO, in any form, is better or worse than any form of a method."""
    of_metric = [pair for pair in pairs if pair.metric == metric]
    return Counter(word for pair in of_metric if (word := of_contrast(pair, method)))


def where_better(pairs: Sequence[Pair], method: str) -> list[str]:
    """Return for whom, and in which forms, C-BPO is better than a method."""
    forms: dict[str, list[str]] = {}
    for pair in pairs:
        if of_contrast(pair, method) == "better":
            how = pair.one if pair.one.method == "c-bpo" else pair.other
            name = f"{METRICS[pair.metric]} than {NAMES[method]}, {pair.who.words}"
            forms.setdefault(name, []).append(how.words)
    return [
        f"- Better {name}: {'; '.join(dict.fromkeys(f))}." for name, f in forms.items()
    ]


def of_contrast(pair: Pair, method: str) -> str:
    """Say how C-BPO stands to a method in a pair; nothing if it is another pair."""
    if pair.metric not in METRICS:
        return ""
    if (pair.one.method, pair.other.method) == ("c-bpo", method):
        return pair.word
    if (pair.other.method, pair.one.method) == ("c-bpo", method):
        return OPPOSITE.get(pair.word, pair.word)
    return ""


def costs() -> list[str]:
    """Table of seconds and bytes per user and method, and memory."""
    lines: list[str] = []
    for path in sorted(RESULTS.glob("method_cost-*.json")):
        found = json.loads(path.read_text())
        name = BACKBONES.get(found["backbone"], found["backbone"])
        rows = [
            [
                NAMES.get(method, method),
                f"{row['train']:.0f}",
                f"{row['bytes'] / 1e6:.3f}" if row["bytes"] < 1e5 else
                f"{row['bytes'] / 1e6:.1f}",
                f"{1000 * row['token']:.0f}",
            ]
            for method, row in found["methods"].items()
        ]  # fmt: skip
        heads = [
            f"{name}, {found['history']} texts, one thread",
            "CPU s before the first text",
            "MB stored per user",
            "CPU ms per written token, prompt included",
        ]
        rows_of = lines_of(heads, rows)
        lines += [*rows_of, "", f"Measured once, at {found['origin']['commit']}."]
    lines = lines or ["Seconds by method: not measured."]
    return lines + beside_the_model()


def beside_the_model() -> list[str]:
    """Sentence: seconds and memory of C-BPO with longer histories."""
    path = RESULTS / "one_user-smollm2-1.json"
    found = json.loads(path.read_text())["medians"] if path.exists() else {}
    if not {"cold", "bounded"} <= found.keys():
        return []
    free, tight = (
        f"{row['seconds']:.0f} s and {row['bytes'] / 2**20:.0f} MiB beside the model"
        for row in (found["cold"], found["bounded"])
    )
    return [
        (
            f"With 32 own and 32 unlabeled texts C-BPO takes {free}, or {tight} (SmolLM2, "
            "one thread; [performance](performance.md))."
        ),
    ]


def limits(
    pairs: Sequence[Pair], gains: Gains, missing: Sequence[str], seen: Sequence[str]
) -> list[str]:
    """What the page does not show, from what there is and is not."""
    people = people_of(gains)
    invented = [who for who in people if who.people.startswith("personas'")]
    models = Counter(who.backbone for who in people)
    lengths = sorted({who.history for who in people}) or [0]
    undecided = sum(pair.word == "undecided" for pair in pairs)
    return [
        (
            f"- {len(invented)} of {len(people)} kinds of users are invented (personas). "
            "What holds for them need not hold for people."
        ),
        (
            "- Models: "
            + ", ".join(f"{name} in {n} of the rows" for name, n in models.items())
            + f". Histories have {lengths[0]} to {lengths[-1]} texts. Nothing is known "
            "here of larger models or longer histories."
        ),
        (
            f"- {undecided} of {len(pairs)} comparisons are undecided: the users are too "
            "few to tell, which is not the same as no difference."
        ),
        "- All measures are computed. No person was asked which text they prefer.",
        f"- Not measured yet: {', '.join(missing) or 'nothing that the page knows of'}.",
        "- Measured: "
        + ", ".join(f"[{name}](findings/{name}.md)" for name in seen)
        + ".",
    ]


INTRODUCTION = """# For whom does it help?

Written by `python benchmarks/for_whom.py` from the result files of the
[findings](findings.md) and of [performance](performance.md). Do not edit. Intervals and all
comparisons: [the numbers](for-whom-numbers.md).

## In short

"""

READING = """
A percentage says how much more probable each word piece of a person's new texts becomes,
against the shared model that everybody has: the mean over users, and where the study keeps
it the *median* user's. *Helps* and *harms* are shown (p < 0.05, corrected for the size of
the table); *unclear* is not. *Rank*: whether the model prefers
the person's own text to those of others. -: not measured.

**SFT** trains a small adapter on the person's texts. **C-BPO** does that and also contrasts
them with texts of others (the unlabeled set), lightly (*default*) or as in the *paper*;
*near*: with texts of others that answer similar inputs. **RAG** puts similar past texts
into the prompt, **PAG** a profile too. **Steering** adds a vector and trains nothing.
"""

SET = """
## What the unlabeled set is good for

All comparisons of C-BPO, in any of its forms, with what uses no unlabeled set. *As good*:
within the margin that the study declared. Own and shared style: how well outputs keep what
only this person prefers, and what everybody prefers. Recognisability: whether a judge of
authorship takes an output for the person's own.
"""


def page(
    pairs: Sequence[Pair],
    gains: Gains,
    names: Sequence[str],
    begun: Mapping[str, int],
) -> str:
    """Return the short page; `begun`: how many cells are missing of a study."""
    missing = [name for name in (*TABLE, *BESIDE) if name not in names]
    missing += [f"cells of {name} ({count})" for name, count in begun.items()]
    lines = [
        *answers(pairs, gains),
        "",
        "## Who, and what helps",
        "",
        *table(gains),
        READING,
        "## What it costs",
        "",
        *costs(),
        SET,
        *unlabeled(pairs),
        "",
        "## What this does not show",
        "",
        *limits(pairs, gains, missing, names),
    ]
    return INTRODUCTION + "\n".join(lines) + "\n"


def pages(folder: Path = FINDINGS) -> Mapping[Path, str]:
    """Return both pages from the result files of a folder."""
    found = load(folder)
    names = [name for name in (*TABLE, *BESIDE) if name in found]
    studies = {name: (found[name], declared(found[name])) for name in names}
    pairs = [pair for one in studies.values() for pair in pairs_of(*one)]
    gains = tabled(studies)
    begun = {n: len(found[n]["missing"]) for n in names if found[n].get("missing")}
    return {PAGE: page(pairs, gains, names, begun), NUMBERS: numbers(pairs, gains)}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
        print(path)
