"""Who was personalised and how, in a study's result file: for `for_whom.py`.

A result file names cells by what its study calls them. Here a cell becomes a situation
(`Who`) and a method with its recipe (`How`), so that studies can be put side by side. A key
that a study does not name is taken at today's default.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from idiolect.common.config import PERSONAS, Config, Scalar, flatten, parse
from idiolect.common.config.keys import keys_of
from idiolect.common.config.methods import current_name
from idiolect.server.findings.page import judged_comparisons, relation
from idiolect.server.findings.summary import writable
from idiolect.server.findings.verdicts import PROMPTED, ROUNDING, judged
from idiolect.server.run.results import LOWER_IS_BETTER
from idiolect.server.study.declaration import (
    BEST,
    Study,
    comparisons,
    read_study,
    side_of,
    spelt_out,
)

STUDIES = Path(__file__).resolve().parents[1] / "simulations" / "lamp" / "experiments"

BACKBONES = {"tiny": "built-in (1M)", "stories260K": "stories (0.26M)"}
BACKBONES |= {"smollm2": "SmolLM2 (135M)"}
PEOPLE = {"news_headlines": "news headlines", "gov_headlines": "blog headlines"}
PEOPLE |= {"acl_titles": "paper titles"}
NAMES = {"sft": "SFT", "c-bpo": "C-BPO", "positives": "its positive term alone"}
NAMES |= {"rag": "RAG", "pag": "PAG", "steer": "steering", "kto": "KTO", "bco": "BCO"}
NAMES |= {"shared": "the shared model", "cope": "CoPe"}
SCORES = "nll", "mrr", "contrast"  # of given texts: decoding does not matter
WORDS = {"beats": "better", "loses to": "worse", "equals": "as good"}
WORDS |= {"undecided": "undecided"}
OPPOSITE = {"better": "worse", "worse": "better"}
# Keys that are no part of a recipe's name: they say who is personalised, what is measured,
# or are what `recipe` says.
ASIDE = {
    *(
        "task",
        "data",
        "backbone",
        "history",
        "adapt.rounds",
        "seed",
        "methods",
        "users",
    ),
    *("development-users", "held-out", "preset", "personalise.learning-rates"),
    *("persona.strength", "persona.overlap"),
    *("personalise.unlabeled-weight", "personalise.anchor"),
}
# A study of another question may fix alpha at one half, near what is mostly estimated. Any
# other alpha is named.
ALPHA, HALF = "unlabeled.alpha", "0.5"
# Texts of others are the unlabeled set of the paper, though not the default.
USUAL = {**flatten(Config()), "control": "none", "unlabeled.kind": "others"}


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


Gains = dict[tuple[Who, How, str], dict[str, Any]]
"""(who, how, metric) -> a point of a curve, with what a judgement needs."""


@cache
def of_file(name: str) -> Study:
    """Return a study as its file declares it now."""
    return read_study(STUDIES / f"{name}.toml")


@cache
def config_of(keys: frozenset[tuple[str, Scalar]]) -> Config:
    """Return the configuration of a cell, of which many claims may be."""
    return parse({key: value for key, value in keys if key != "control"})


def declared(found: Mapping[str, Any]) -> Study:
    """Return the study of a result file, with the cells that were measured."""
    study = of_file(found["name"])
    measured = {key: found.get(key, {}) for key in ("config", "grid", "named")}
    return replace(study, **measured)


def placed(
    study: Study, cell: Mapping[str, Scalar], method: str, metric: str
) -> tuple[Who, How]:
    """Return the situation and the recipe of one method in one cell, as a metric sees it.

    How outputs are decoded is no part of what scores see.
    """
    keys = {**study.config, **spelt_out(study, cell)}
    config = config_of(frozenset(keys.items()))
    flat = {**flatten(config), "control": keys.get("control", "none")}
    if method == "c-bpo" and not config.personalise.unlabeled_weight:
        method = "positives"
    scored = {"evaluate.contrasted"} if metric in SCORES else set[str]()
    read = {*keys_of(current_name(method)), "control"}
    usual = {**USUAL, **({ALPHA: HALF} if study.config.get(ALPHA) == HALF else {})}
    extra = [
        named(key, flat[key], method)
        for key in sorted(({*varied(study), ALPHA} & read) - ASIDE - scored)
        if flat[key] != usual[key]
    ]
    return situation(config, study), How(
        method, recipe(config, method), tuple(filter(None, extra))
    )


def varied(study: Study) -> set[str]:
    """Return the config keys that differ between a study's cells."""
    meanings = [
        study.named[name].values() if name in study.named else [{name: ""}]
        for name in study.grid
    ]
    return {key for each in meanings for meaning in each for key in meaning}


def named(key: str, value: Scalar, method: str) -> str:
    """Return what a key that is not at its default means for a method; nothing if so."""
    if key == "evaluate.contrasted":
        return "by contrast" if method in str(value).split(",") else ""
    if key == "evaluate.contrast":
        return f"contrast {value:g}" if float(value) else ""
    if key == "disliked":
        return f"{value} dislikes"
    if key == "personalise.strength":
        return f"strength {value}" if str(value)[0].isdigit() else f"{value} strength"
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
    """Gains over the shared model, of the curves of a study that subtracts it.

    Where retrieved texts had no room in any prompt, the method was not measured.
    """
    if study.plot.get("minus") != "shared":
        return {}
    curves = {study.plot["metric"]: found["curve"], **found.get("also", {})}
    idle = {
        (point["line"], point["x"])
        for point in found["curve"]
        if point["line"].startswith(PROMPTED)
        and study.plot["metric"] == "nll"
        and max(map(abs, point["ci95"])) < ROUNDING
    }
    gains: Gains = {}
    for metric, points in curves.items():
        for point in points:
            method, cell = cell_of(study, point)
            who, how = placed(study, cell, method, metric)
            expect = "lower" if metric in LOWER_IS_BETTER else "higher"
            entry = {**point, "expect": expect, "metric": metric}
            if point["n"] > 1 and (point["line"], point["x"]) not in idle:
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
        if (
            "why" in entry
            or entry["users"] != "all"
            or BEST in (*one.values(), *other.values())
        ):
            continue
        metric = entry["metric"]
        who, first = at(study, one, metric)
        _, second = at(study, other, metric)
        word = better_or_worse(entry)
        pairs.append(Pair(study.name, who, first, second, metric, word))
    return list(dict.fromkeys(pairs))


def better_or_worse(entry: Mapping[str, Any]) -> str:
    """Say how `one` stands to `other`, whatever a claim had predicted."""
    lower = entry["metric"] in LOWER_IS_BETTER
    expected = entry["expect"] == ("lower" if lower else "higher")
    word = WORDS[relation(entry)]
    return word if expected else OPPOSITE.get(word, word)


def at(study: Study, side: Mapping[str, Scalar], metric: str) -> tuple[Who, How]:
    """Return the situation and recipe of one side of a claim."""
    method, keys = side_of(side)
    first = {key: values[0] for key, values in study.grid.items()}
    return placed(study, first | keys, method, metric)
