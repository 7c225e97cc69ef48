"""For whom does what help, at what cost: writes docs/for-whom.md.

    python benchmarks/for_whom.py

Every number and every word of judgement comes from result files: those of the studies in
``docs/findings`` and those of the benchmarks in ``benchmarks/results``. Which cells a claim
compares is read from its study file. A study without a result file makes a sentence "not
measured"; the page changes when results change.
"""

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from idiolect.common.config import PERSONAS, Config, Scalar, flatten
from idiolect.common.config.keys import keys_of
from idiolect.common.config.methods import current_name
from idiolect.server.findings.page import judged_comparisons, load, relation
from idiolect.server.findings.summary import writable
from idiolect.server.findings.verdicts import judged
from idiolect.server.study.declaration import (
    Study,
    cell_config,
    comparisons,
    read_study,
    side_of,
    spelt_out,
)

ROOT = Path(__file__).resolve().parents[1]
FINDINGS = ROOT / "docs" / "findings"
STUDIES = ROOT / "simulations" / "lamp" / "experiments"
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "for-whom.md"

# Studies whose gains over the shared model are the table, the most telling first: where two
# measured the same people, the first one counts.
REAL = "real_model", "real_texts"
TABLE = *REAL, "real_worlds", "worlds", "prompting"
PEOPLE = {"news_headlines": "news headlines", "gov_headlines": "blog headlines"}
PEOPLE |= {"acl_titles": "paper titles"}
# Studies that only compare.
BESIDE = "nearness", "unlabeled_set", "strength", "dislikes"

BACKBONES = {"tiny": "built-in (1M)", "stories260K": "stories (0.26M)"}
BACKBONES |= {"smollm2": "SmolLM2 (135M)"}
NAMES = {"sft": "SFT", "c-bpo": "C-BPO", "positives": "its positive term alone"}
NAMES |= {"rag": "RAG", "pag": "PAG", "steer": "steering", "kto": "KTO", "bco": "BCO"}
NAMES |= {"shared": "no change", "cope": "CoPe"}
SCORES = "nll", "mrr", "contrast"  # not of outputs
METRICS = {"nll": "likelihood", "mrr": "rank", "contrast": "rank"}
METRICS |= {"own-style": "own style", "shared-style": "shared style"}
METRICS |= {"recognised-mrr": "recognisability"}
HELPS = {"confirmed": "helps", "reversed": "harms", "not confirmed": "unclear"}
WORDS = {"beats": "better", "loses to": "worse", "equals": "as good"}
WORDS |= {"undecided": "undecided"}
OPPOSITE = {"better": "worse", "worse": "better"}
# Keys that say who is personalised and on which model, and not how.
WHO = "task", "data", "backbone", "history", "adapt.rounds"
# Keys that are no part of a method's recipe: they say what is measured, or are spelt out.
ASIDE = "seed", "methods", "preset", "users", "development-users", "held-out"
RECIPE = "personalise.unlabeled-weight", "personalise.anchor"
DEFAULTS = flatten(Config())


@dataclass(frozen=True)
class Who:
    """One situation: whose texts, how many, which model, and what else is unusual."""

    backbone: str
    people: str
    history: int
    aside: str = ""

    @property
    def words(self) -> str:
        """Return the situation in words."""
        aside = f", {self.aside}" if self.aside else ""
        return f"{self.people}, {self.history} texts{aside}"


@dataclass(frozen=True)
class How:
    """One method with its recipe: `recipe` of C-BPO or its positive term, and `extra`."""

    method: str
    recipe: str = ""
    extra: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """Return the method in words."""
        aside = ", ".join(filter(None, [self.recipe, *self.extra]))
        return NAMES.get(self.method, self.method) + (f" ({aside})" if aside else "")


@dataclass(frozen=True)
class Pair:
    """What a study said of two methods in one situation, by one metric."""

    study: str
    who: Who
    one: How
    other: How
    metric: str
    word: str


DEFAULT, PAPER = How("c-bpo", "default"), How("c-bpo", "paper")
SFT, ALONE = How("sft"), How("positives", "default")
NEAR = replace(PAPER, extra=("near",))
SELF = replace(PAPER, extra=("self",))
COLUMNS = DEFAULT, PAPER, SFT, How("rag"), How("pag"), How("steer")

Gains = dict[tuple[Who, How, str], dict[str, Any]]


# --- reading ---------------------------------------------------------------------------


def declared(found: Mapping[str, Any]) -> Study:
    """Return the study of a result file, with the cells that were measured."""
    study = read_study(STUDIES / f"{found['name']}.toml")
    measured = {key: found.get(key, {}) for key in ("config", "grid", "named")}
    return replace(study, **measured)


def placed(
    study: Study, cell: Mapping[str, Scalar], method: str, metric: str
) -> tuple[Who, How]:
    """Return the situation and the recipe of one method in one cell, as a metric sees it.

    How outputs are decoded is no part of what scores see.
    """
    keys = {**study.config, **spelt_out(study, cell)}
    config = cell_config(study, cell)
    flat = {**flatten(config), "control": keys.get("control", "none")}
    if method == "c-bpo" and not config.personalise.unlabeled_weight:
        method = "positives"
    scored = {"evaluate.contrasted"} if metric in SCORES else set[str]()
    varied = set[str]().union(*cells_keys(study)) - {*ASIDE, *RECIPE, *scored}
    read = {*keys_of(current_name(method)), "control"}
    # Texts of others are the unlabeled set of the paper, though not the default.
    usual = {**DEFAULTS, "control": "none", "unlabeled.kind": "others"}
    extra = [
        named(key, flat[key], method)
        for key in sorted(varied & read)
        if not key.startswith(("persona.", "personalise.learning-rates"))
        and key not in WHO
        and flat[key] != usual[key]
    ]
    return situation(config, study), How(
        method, recipe(config, method), tuple(filter(None, extra))
    )


def cells_keys(study: Study) -> list[set[str]]:
    """Return the config keys that a study varies, for each key of its grid."""
    return [
        {key for meaning in study.named[name].values() for key in meaning}
        if name in study.named
        else {name}
        for name in study.grid
    ]


def named(key: str, value: Scalar, method: str) -> str:
    """Return what a key that is not at its default means for a method; nothing if so."""
    if key == "evaluate.contrasted":
        return "by contrast" if method in str(value).split(",") else ""
    if key == "disliked":
        return f"{value} dislikes"
    if key == "personalise.strength":
        return f"{value} strength"
    if key == "control":
        return f"{value} words" if value == "random" else str(value)
    return str(value) if key.endswith(".nearness") else f"{key.split('.')[-1]} {value}"


def recipe(config: Config, method: str) -> str:
    """Return which recipe C-BPO or its positive term has; other methods have none."""
    if method not in ("c-bpo", "positives"):
        return ""
    own = config.personalise
    weight, anchor = own.unlabeled_weight, own.anchor
    usual = Config().personalise
    known = {"default": (usual.unlabeled_weight, usual.anchor), "paper": (1.0, 0.0)}
    for name, (its_weight, its_anchor) in known.items():
        if anchor == its_anchor and (method == "positives" or weight == its_weight):
            return name
    return f"weight {weight:g}, anchor {anchor:g}"


def situation(config: Config, study: Study) -> Who:
    """Return who is personalised in a cell."""
    backbone = Path(config.backbone).name
    aside: list[str] = []
    if config.task in PERSONAS:
        people = f"personas' {config.task}s".replace("tagging", "tag")
        aside += unusual(config)
    else:
        people = f"authors' {PEOPLE.get(Path(config.data).name, config.data)}"
    if config.adapt.rounds == 0:
        aside.append("no shared adapter")
    if len(study.grid.get("personalise.learning-rates", [])) > 1:
        aside.append(f"rate {config.personalise.learning_rates}")
    name = BACKBONES.get(backbone, backbone)
    return Who(name, people, config.history, ", ".join(aside))


def unusual(config: Config) -> list[str]:
    """Return how personas differ from the usual ones."""
    strength, overlap = config.persona.strength, config.persona.overlap
    usual = Config().persona
    found: list[str] = []
    if strength != usual.strength:
        word = "weak" if strength < usual.strength else "strict"
        found.append(f"{word} preferences")
    if overlap != usual.overlap:
        found.append(
            "much in common" if overlap > usual.overlap else "little in common"
        )
    return found


def gains_of(found: Mapping[str, Any], study: Study) -> Gains:
    """(who, how, metric) -> gain over the shared model, of the curves of a study."""
    curves = {study.plot["metric"]: found["curve"], **found.get("also", {})}
    gains: Gains = {}
    for metric, points in curves.items():
        for point in points:
            method, cell = cell_of(study, point)
            who, how = placed(study, cell, method, metric)
            expect = "lower" if metric == "nll" else "higher"
            entry = {**point, "expect": expect, "metric": metric}
            if point["n"] > 1:
                gains.setdefault((who, how, metric), entry)
    return gains


def cell_of(study: Study, point: Mapping[str, Any]) -> tuple[str, dict[str, Scalar]]:
    """Return the method of a curve's point, and a cell that it was measured in.

    The name of a line leaves out keys that its method does not use: any value will do.
    """
    method, *parts = point["line"].split(", ")
    cell = {key: values[0] for key, values in study.grid.items()}
    for key, values in study.grid.items():
        for value in values:
            if f"{key.split('.')[-1]} {value}" in parts:
                cell[key] = value
    x = study.plot["x"]
    cell[x] = next(v for v in study.grid[x] if writable(v) == point["x"])
    return method, cell


def pairs_of(found: Mapping[str, Any], study: Study) -> list[Pair]:
    """Return the comparisons and claims of a study that are about two methods."""
    sides = {(c.text, c.metric): (c.one, c.other) for _, c in comparisons(study)}
    entries = [
        (sides[entry["claim"], entry["metric"]], entry)
        for entry in judged_comparisons(found)
    ]
    claims = zip(study.claims, judged(found["claims"]), strict=True)
    entries += [((claim.one, claim.other), entry) for claim, entry in claims]
    pairs: list[Pair] = []
    for (one, other), entry in entries:
        if entry["users"] != "all" or "best" in (*one.values(), *other.values()):
            continue
        metric = entry["metric"]
        who, first = at(study, one, metric)
        _, second = at(study, other, metric)
        word = better_or_worse(entry)
        pairs.append(Pair(study.name, who, first, second, metric, word))
    return list(dict.fromkeys(pairs))


def better_or_worse(entry: Mapping[str, Any]) -> str:
    """Say how `one` stands to `other`, whatever a claim had predicted."""
    lower = entry["metric"] in ("nll", "mae", "rmse")
    expected = entry["expect"] == ("lower" if lower else "higher")
    word = WORDS[relation(entry)]
    return word if expected else OPPOSITE.get(word, word)


def at(study: Study, side: Mapping[str, Scalar], metric: str) -> tuple[Who, How]:
    """Return the situation and recipe of one side of a claim."""
    method, keys = side_of(side)
    first = {key: values[0] for key, values in study.grid.items()}
    return placed(study, first | keys, method, metric)


# --- the page --------------------------------------------------------------------------


def verdicts_of(gains: Gains) -> dict[tuple[Who, How, str], str]:
    """Words for the gains of a table; Holm's correction is for all of one metric."""
    words: dict[tuple[Who, How, str], str] = {}
    for wanted in (("nll",), ("mrr", "contrast")):
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
    order = {name: n for n, name in enumerate(("mrr", "contrast"))}
    kept: Gains = {}
    for (who, how, metric), entry in every.items():
        other = [m for m in order if (who, how, m) in every]
        if how in COLUMNS and (metric == "nll" or metric == (other or [""])[0]):
            kept[who, how, metric] = entry
    return kept


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
    rows: list[list[str]] = []
    for who in people_of(gains):
        row = [f"{who.words} ({users(gains, who)})", who.backbone]
        for how in COLUMNS:
            parts = [
                f"{words[key]} {shown(entry)}"
                if key[2] == "nll"
                else f"{key[2]} {words[key]} {shown(entry)}"
                for key, entry in gains.items()
                if key[:2] == (who, how)
            ]
            row.append("; ".join(parts) or "-")
        rows.append(row)
    heads = ["whose texts (users)", "model", *(how.words for how in COLUMNS)]
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
    order = "better", "as good", "worse", "undecided"
    parts = [f"{word} in {len(found[word])}" for word in order if word in found]
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
    return [f"{first} {on_real(pairs, gains)} {most_often(gains)}", ""]


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
    """Say which method helps in most situations, and how often the others do."""
    words = verdicts_of(gains)
    counts = {
        how: Counter(words[key] for key in gains if key[1:] == (how, "nll"))
        for how in COLUMNS
    }
    known = {how: found for how, found in counts.items() if found}
    if not known:
        return "What helps is not measured."
    said = [
        f"{how.words} in {found['helps']} of {found.total()} (median {middle(gains, how)}"
        + f"; harms in {found['harms']}" * bool(found["harms"])
        + ")"
        for how, found in known.items()
    ]
    missing = [how.words for how in COLUMNS if how not in known]
    return (
        f"Against the shared model likelihood is helped by {', '.join(said)} situations"
        + (f"; not measured: {', '.join(missing)}" if missing else "")
        + "."
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
        said = ". ".join(f"{name}: {'; '.join(who)}" for name, who in found.items())
        lines.append(f"- Shown to be {word} than SFT. {said or 'Nothing, nowhere'}.")
    words = verdicts_of(gains)
    for metrics in (("nll",), ("mrr", "contrast")):
        helped = {k[0] for k, w in words.items() if w == "helps" and k[2] in metrics}
        rest = [who.words for who in people_of(gains) if who not in helped]
        where = "; ".join(rest) or "nowhere"
        lines.append(f"- No method is shown to help {METRICS[metrics[0]]}: {where}.")
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
        (DEFAULT, ALONE), (PAPER, replace(ALONE, recipe="paper")), (DEFAULT, random),
        (NEAR, PAPER), (NEAR, replace(ALONE, recipe="paper")), (SELF, PAPER),
        (PAPER, SFT), (NEAR, SFT),
        *((how, How(m)) for how in (DEFAULT, PAPER) for m in ("bco", "kto")),
        (replace(PAPER, extra=("8 dislikes",)), PAPER),
        (replace(SFT, extra=("crossed strength",)), SFT),
    ]  # fmt: skip
    metrics = [m for m in METRICS if m != "contrast"]
    rows, better = [], []
    for one, other in asked:
        name = f"{one.words} against {other.words}"
        found = {metric: tally(pairs, one, other, metric) for metric in metrics}
        rows.append([name, *map(brief, found.values())])
        for metric in metrics if other.method in ("positives", "sft") else ():
            if where := found[metric].get("better"):
                better.append(f"{METRICS[metric]}, {name}: {'; '.join(where)}")
    lines = lines_of(["", *(METRICS[m] for m in metrics)], rows)
    said = ". ".join(better) or "Nothing, nowhere"
    return [
        *lines,
        "",
        f"Shown to be better than its positive term or than SFT. {said}.",
    ]


def brief(found: Mapping[str, Sequence[str]]) -> str:
    """Return a tally as a cell of a table."""
    order = "better", "as good", "worse", "undecided"
    parts = [f"{word} {len(found[word])}" for word in order if word in found]
    return ", ".join(parts) or "-"


def costs() -> list[str]:
    """Table of seconds and bytes per user and method, and what the shared adapter costs."""
    lines: list[str] = []
    for path in sorted(RESULTS.glob("method_cost-*.json")):
        found = json.loads(path.read_text())
        name = BACKBONES.get(found["backbone"], found["backbone"])
        rows = [
            [
                NAMES.get(method, method) + row.get("aside", ""),
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
        lines += [*lines_of(heads, rows), ""]
    lines = lines or ["Seconds by method: not measured.", ""]
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
        "",
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
            + ". Nothing is known here of larger ones."
        ),
        f"- Histories have {lengths[0]} to {lengths[-1]} texts.",
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
        SET.strip(),
        "",
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
