"""For whom does what help, at what cost: writes docs/for-whom.md.

    python benchmarks/for_whom.py

Every number and every word of judgement comes from result files: those of the studies in
``docs/findings`` and those of the benchmarks in ``benchmarks/results``. Which cells a claim
compares is read from its study file (`situations`). A study without a result file makes a
sentence "not measured"; the page changes when results change.
"""

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from situations import (
    BACKBONES,
    NAMES,
    OPPOSITE,
    Gains,
    How,
    Pair,
    Who,
    declared,
    gains_of,
    pairs_of,
)

from idiolect.server.findings.page import load
from idiolect.server.findings.verdicts import judged
from idiolect.server.study.declaration import Study

ROOT = Path(__file__).resolve().parents[1]
FINDINGS = ROOT / "docs" / "findings"
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "for-whom.md"

# Studies whose gains over the shared model are the table, the most telling first: where two
# measured the same people, the first one counts.
REAL = "real_model", "real_texts"
TABLE = *REAL, "real_worlds", "worlds", "prompting"
# Studies that only compare.
BESIDE = "nearness", "unlabeled_set", "strength", "dislikes", "recognised"
RANKS = "mrr", "contrast"
METRICS = {"nll": "likelihood", "mrr": "rank", "own-style": "own style"}
METRICS |= {"shared-style": "shared style", "recognised-mrr": "recognisability"}
HELPS = {"confirmed": "helps", "reversed": "harms", "not confirmed": "unclear"}
ORDER = "better", "as good", "worse", "undecided"

DEFAULT, PAPER = How("c-bpo", "default"), How("c-bpo", "paper")
SFT, ALONE = How("sft"), How("positives", "default")
ALONE_PAPER = replace(ALONE, recipe="paper")
NEAR, SELF = (replace(PAPER, extra=(kind,)) for kind in ("near", "self"))
COLUMNS = DEFAULT, PAPER, NEAR, SFT, How("rag"), How("pag"), How("steer")


def verdicts_of(gains: Gains) -> dict[tuple[Who, How, str], str]:
    """Words for the gains of a table; Holm's correction is for all of one metric."""
    words: dict[tuple[Who, How, str], str] = {}
    for wanted in (("nll",), RANKS):
        keys = [key for key in gains if key[2] in wanted]
        found = judged([gains[key] for key in keys])
        words |= {k: HELPS[one["verdict"]] for k, one in zip(keys, found, strict=True)}
    return words


def tabled(studies: Mapping[str, tuple[Mapping[str, Any], Study]]) -> Gains:
    """Return the gains that the table shows: by likelihood, and by one measure of rank."""
    every: Gains = {}
    for name in (name for name in TABLE if name in studies):
        for key, entry in gains_of(*studies[name]).items():
            every.setdefault(key, entry)
    return {
        (who, how, metric): entry
        for (who, how, metric), entry in every.items()
        if how in COLUMNS
        and (
            metric in ("nll", "mrr")
            or (metric == "contrast" and (who, how, "mrr") not in every)
        )
    }


def percent(nats: float) -> float:
    """Return by how much a token's probability grows where NLL falls by `nats`."""
    return 100 * (math.exp(nats) - 1)


def shown(entry: Mapping[str, Any]) -> str:
    """Return a gain with its interval: likelihood in percent, ranks as they are."""
    low, high = entry["ci95"]
    if entry["metric"] != "nll":
        return f"{entry['mean']:+.2f} [{low:+.2f}, {high:+.2f}]"
    mean, low, high = (percent(-x) for x in (entry["mean"], high, low))
    return f"{mean:+.0f} % [{low:+.0f}, {high:+.0f}]"


def table(gains: Gains) -> list[str]:
    """One row for each situation, one column for each method."""
    words = verdicts_of(gains)
    columns = [how for how in COLUMNS if any(key[1] == how for key in gains)]
    rows: list[list[str]] = []
    for who in people_of(gains):
        row = [f"{who.words} ({users(gains, who)})", who.backbone]
        for how in columns:
            parts = [
                f"{words[key]} {shown(entry)}"
                if key[2] == "nll"
                else f"{key[2]} {words[key]} {shown(entry)}"
                for key, entry in gains.items()
                if key[:2] == (who, how)
            ]
            row.append("; ".join(parts) or "-")
        rows.append(row)
    heads = ["whose texts (users)", "model", *(how.words for how in columns)]
    return lines_of(heads, rows)


def lines_of(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table."""
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]


def people_of(gains: Gains) -> list[Who]:
    """Situations of a table, in their order."""
    return list(dict.fromkeys(who for who, _, _ in gains))


def users(gains: Gains, who: Who) -> int:
    """Return how many users were measured in a situation."""
    return max(entry["n"] for key, entry in gains.items() if key[0] == who)


def tally(
    pairs: Sequence[Pair], one: How, other: How, metric: str
) -> dict[str, list[str]]:
    """Word -> situations in which `one` stands so to `other`."""
    found: dict[str, list[str]] = {}
    for pair in pairs:
        if pair.metric != metric or {pair.one, pair.other} != {one, other}:
            continue
        turned = pair.one != one
        word = OPPOSITE.get(pair.word, pair.word) if turned else pair.word
        found.setdefault(word, []).append(pair.who.words)
    return found


def told(found: Mapping[str, Sequence[str]], name: str) -> str:
    """Say what a tally says, and name the situations of `name`."""
    total = sum(map(len, found.values()))
    if not total:
        return "not measured"
    parts = [f"{word} in {len(found[word])}" for word in ORDER if word in found]
    where = f" ({'; '.join(found[name])})" if found.get(name) else ""
    return f"{', '.join(parts)} of {total}{where}"


def answer(pairs: Sequence[Pair], gains: Gains) -> list[str]:
    """Three sentences: the default against SFT, on a real model, and what helps."""
    by = {m: tally(pairs, DEFAULT, SFT, m) for m in ("nll", "mrr")}
    likelihood, rank = (told(found, "better") for found in by.values())
    parts = f"by likelihood {likelihood}; by rank {rank} situations"
    better = any("better" in found for found in by.values())
    if not any(by.values()):
        first = (
            "Whether C-BPO with its default recipe is better than SFT: not measured."
        )
    elif better:
        first = f"C-BPO's default recipe is better than plain SFT somewhere: {parts}."
    else:
        first = (
            "**Nowhere is C-BPO with its default recipe shown to be better than plain "
            f"SFT**: {parts}."
        )
    last = f"{most_often(gains)}{choice(pairs, gains)}."
    return [f"{first} {on_real(pairs, gains)} {last}", ""]


def choice(pairs: Sequence[Pair], gains: Gains) -> str:
    """Say that SFT is the choice, where it helps somewhere and nothing beats it."""
    beaten = any(
        "better" in tally(pairs, how, SFT, metric)
        for how in COLUMNS
        for metric in ("nll", "mrr")
        if how != SFT
    )
    words = verdicts_of(gains)
    helps = any(w == "helps" and key[1] == SFT for key, w in words.items())
    if beaten or not helps:
        return ""
    return "; nothing is shown to beat SFT, so it is the choice where a history helps"


def on_real(pairs: Sequence[Pair], gains: Gains) -> str:
    """Say what a real model on real texts has shown of C-BPO's recipes and SFT."""
    mine = [pair for pair in pairs if pair.study in REAL]
    if not mine:
        return "On a real instruct model with real texts this is not measured yet."
    models = {p.who.backbone for p in mine}
    said: list[str] = []
    for how in (DEFAULT, PAPER, NEAR):
        found = {m: tally(mine, how, SFT, m) for m in ("nll", "mrr", "recognised-mrr")}
        words = [f"{METRICS[m]} {told(f, 'better')}" for m, f in found.items() if f]
        said += [f"{how.words}: {', '.join(words)}"] if words else []
    helped = [who.words for who in people_of(gains) if who.backbone in models]
    return (
        f"On a real model ({', '.join(sorted(models))}; {'; '.join(helped)}), against SFT: "
        f"{'; '.join(said) or 'not measured'}."
    )


def most_often(gains: Gains) -> str:
    """Say in how many situations each method helps."""
    words = verdicts_of(gains)
    counts = {
        how: Counter(words[key] for key in gains if key[1:] == (how, "nll"))
        for how in COLUMNS
    }
    known = {how: found for how, found in counts.items() if found}
    if not known:
        return "What helps is not measured"
    said = [
        f"{how.words} in {found['helps']} of {found.total()} (median {middle(gains, how)}"
        + f"; harms in {found['harms']}" * bool(found["harms"])
        + ")"
        for how, found in known.items()
    ]
    missing = [how.words for how in COLUMNS if how not in known]
    return (
        f"Against the shared model likelihood is helped by {', '.join(said)} situations"
        + (f" (not measured: {', '.join(missing)})" if missing else "")
    )


def middle(gains: Gains, how: How) -> str:
    """Return a method's median gain in likelihood over the situations of the table."""
    nats = [-entry["mean"] for key, entry in gains.items() if key[1:] == (how, "nll")]
    return f"{percent(statistics.median(nats)):+.0f} %"


def by_situation(pairs: Sequence[Pair], gains: Gains) -> list[str]:
    """Sentences: what beats SFT and what is behind it, and where nothing helps."""
    lines: list[str] = []
    for word in ("better", "worse"):
        found: dict[str, list[str]] = {}
        for how in COLUMNS:
            for metric in ("nll", "mrr") if how != SFT else ():
                for who in tally(pairs, how, SFT, metric).get(word, []):
                    name = f"{how.words} by {METRICS[metric]}"
                    found.setdefault(name, []).append(who)
        lines += [
            f"- {name}, {word} than SFT: {'; '.join(who)}."
            for name, who in found.items()
        ] or [f"- Nothing is shown to be {word} than SFT."]
    words = verdicts_of(gains)
    for metrics in (("nll",), RANKS):
        helped = {k[0] for k, w in words.items() if w == "helps" and k[2] in metrics}
        rest = [who.words for who in people_of(gains) if who not in helped]
        said = f"No method is shown to help {METRICS[metrics[0]]}: {'; '.join(rest)}"
        every = f"In each situation some method helps {METRICS[metrics[0]]}"
        lines.append(f"- {said if rest else every}.")
    return lines + longer(gains)


def longer(gains: Gains) -> list[str]:
    """Say how gains grow with the history, where only its length differs."""
    said: list[str] = []
    for who in people_of(gains):
        more = [
            o for o in people_of(gains) if replace(o, history=who.history) == who != o
        ]
        for other in (o for o in more if o.history > who.history):
            parts = [
                f"{how.words} {shown(gains[who, how, 'nll'])} to "
                f"{shown(gains[other, how, 'nll'])}"
                for how in (SFT, DEFAULT)
                if {(who, how, "nll"), (other, how, "nll")} <= gains.keys()
            ]
            aside = f", {who.aside}" if who.aside else ""
            said.append(
                f"- From {who.history} to {other.history} texts ({who.people}{aside}) the "
                f"gain goes from {'; '.join(parts)}."
            )
    return said


def unlabeled(pairs: Sequence[Pair]) -> list[str]:
    """Table: what the unlabeled set adds, and what its kind and known negatives do."""
    random = replace(DEFAULT, extra=("random words",))
    asked = [
        (DEFAULT, ALONE), (PAPER, ALONE_PAPER), (DEFAULT, random),
        (NEAR, PAPER), (NEAR, ALONE_PAPER), (SELF, PAPER),
        (PAPER, SFT), (NEAR, SFT),
        *((how, How(m)) for how in (DEFAULT, PAPER) for m in ("bco", "kto")),
        (replace(PAPER, extra=("8 dislikes",)), PAPER),
        (replace(SFT, extra=("crossed strength",)), SFT),
    ]  # fmt: skip
    rows, better, missing = [], [], []
    for one, other in asked:
        name = f"{one.words} against {other.words}"
        found = {metric: tally(pairs, one, other, metric) for metric in METRICS}
        if any(found.values()):
            rows.append([name, *map(brief, found.values())])
        else:
            missing.append(name)
        for metric in METRICS if other.method in ("positives", "sft") else ():
            if where := found[metric].get("better"):
                better.append(f"{name}, {METRICS[metric]}: {'; '.join(where)}")
    lines = lines_of(["", *METRICS.values()], rows)
    if not better:
        better = ["nothing, nowhere"]
    if missing:
        lines += ["", f"Not measured: {'; '.join(missing)}."]
    head = "Shown to be better than the positive term alone, or than SFT:"
    return [*lines, "", head, "", *(f"- {one}" for one in better)]


def brief(found: Mapping[str, Sequence[str]]) -> str:
    """Return a tally as a cell of a table."""
    parts = [f"{word} {len(found[word])}" for word in ORDER if word in found]
    return ", ".join(parts) or "-"


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
            f"- {len(invented)} of {len(people)} situations have invented users "
            "(personas). What holds for them need not hold for people."
        ),
        (
            "- Models: "
            + ", ".join(f"{name} in {n} situations" for name, n in models.items())
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
[findings](findings.md) and of [performance](performance.md). Do not edit.

"""

READING = """
*Helps* and *harms*: shown for new texts of the same people, against the shared model that
everybody has (p < 0.05 after Holm's correction for the table); *unclear*: not shown. A
percentage says how much more probable each word piece of the person's new texts becomes,
with its 95 % interval. *mrr* is the mean reciprocal rank of the person's own text among
those of others, *contrast* the share of others' texts that it beats. -: not measured.
C-BPO has an unlabeled term of little weight and an anchor (*default*) or is that of the
*paper* ([recipes](recipes.md)); *near*: with texts of others near the own inputs. RAG puts
similar past texts into the prompt, PAG a profile too, steering adds a vector.
"""

SET = """
## What the unlabeled set is good for

In how many situations one is better, as good (within the margin that the study declared),
worse, or undecided. Own and shared style: how well outputs keep what only this person
prefers, and what everybody prefers. Recognisability: whose text a judge takes them for.
"""


def page(folder: Path = FINDINGS) -> str:
    """Return the page from the result files of a folder."""
    found = load(folder)
    names = [name for name in (*TABLE, *BESIDE) if name in found]
    missing = [name for name in (*TABLE, *BESIDE) if name not in found]
    studies = {name: (found[name], declared(found[name])) for name in names}
    pairs = [pair for one in studies.values() for pair in pairs_of(*one)]
    gains = tabled(studies)
    lines = [
        *answer(pairs, gains),
        "## Who, and what helps",
        "",
        *table(gains),
        READING,
        *by_situation(pairs, gains),
        "",
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


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
