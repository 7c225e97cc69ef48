"""For whom does what help, with intervals and counts: docs/for-whom-numbers.md.

`for_whom.py` writes it, beside the short page. Every number and every word of judgement
comes from the result files of studies in ``docs/findings``. Which cells a claim compares is
read from its study file (`situations`).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from situations import OPPOSITE, Gains, How, Pair, Who, gains_of

from idiolect.server.findings.verdicts import judged
from idiolect.server.study.declaration import Study

# Studies whose gains over the shared model are the table, the most telling first: where two
# measured the same people, the first one counts.
REAL = "real_model", "real_texts"
TABLE = *REAL, "real_worlds", "worlds", "prompting"
RANKS = "mrr", "contrast"
METRICS = {"nll": "likelihood", "mrr": "rank", "own-style": "own style"}
METRICS |= {"shared-style": "shared style", "recognised-mrr": "recognisability"}
HELPS = {"confirmed": "helps", "reversed": "harms", "not confirmed": "unclear"}
ORDER = "better", "as good", "worse", "undecided"

DEFAULT, PAPER = How("c-bpo", "default"), How("c-bpo", "paper")
SFT, ALONE = How("sft"), How("positives", "default")
ALONE_PAPER = replace(ALONE, recipe="paper")
NEAR, SELF, SMALL = (replace(PAPER, extra=(e,)) for e in ("near", "self", "alpha 0.1"))
TWICE, THRICE = (replace(SFT, extra=(f"strength {s}",)) for s in (2, 3))
CROSSED = replace(SFT, extra=("crossed strength",))
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


def by_situation(pairs: Sequence[Pair], gains: Gains) -> list[str]:
    """Sentences: what beats SFT and what is behind it, and where nothing helps."""
    lines: list[str] = []
    for word in ("better", "worse"):
        found: dict[str, list[str]] = {}
        compared = dict.fromkeys(h for pair in pairs for h in (pair.one, pair.other))
        for how in (h for h in compared if h != SFT):
            for metric in ("nll", "mrr"):
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
    return lines


def unlabeled(pairs: Sequence[Pair]) -> list[str]:
    """Table: what the unlabeled set adds, and what its kind and known negatives do."""
    random = replace(DEFAULT, extra=("random words",))
    asked = [
        (DEFAULT, ALONE), (PAPER, ALONE_PAPER), (DEFAULT, random),
        (NEAR, PAPER), (NEAR, ALONE_PAPER), (SELF, PAPER),
        (PAPER, SFT), (NEAR, SFT), (SMALL, SFT), (SMALL, ALONE_PAPER),
        (replace(PAPER, extra=("strength 2", "alpha 0.1")), TWICE),
        (replace(PAPER, extra=("strength 3", "alpha 0.1")), THRICE),
        (replace(PAPER, extra=("crossed strength", "near")), CROSSED),
        *((how, How(m)) for how in (DEFAULT, PAPER) for m in ("bco", "kto")),
        (replace(PAPER, extra=("8 dislikes",)), PAPER),
        (CROSSED, SFT),
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


INTRODUCTION = """# For whom does it help: the numbers

Written by `python benchmarks/for_whom.py` from the result files of the
[findings](findings.md). Do not edit. In short, with costs: [for whom](for-whom.md).

## Gains over the shared model

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


def numbers(pairs: Sequence[Pair], gains: Gains) -> str:
    """Return the page of numbers."""
    lines = [
        *table(gains),
        READING,
        *by_situation(pairs, gains),
        SET,
        *unlabeled(pairs),
    ]
    return INTRODUCTION + "\n".join(lines) + "\n"
