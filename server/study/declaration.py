"""Declarations of studies: reading and checking them, their cells and claims.

A study is a TOML file: config keys that all cells share (``[config]``), a grid of keys
whose every combination is a cell (``[grid]``), and claims about differences between
cells (``[[claims]]``). A key of the grid may also be a name of the study's own whose
values stand for several config keys (``[named.world.short]``). Numbers of others may stand
beside its own (``[published]``, see `published`).
Tables, plots and verdicts are made from the files of finished cells (`cells`, `findings`).
"""

import itertools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...common.config import Config, Scalar, parse, parse_word
from ...common.config.old import RENAMED, renamed
from ...common.errors import IdiolectError, refuse_if
from ...common.text import read_toml
from ..run import results
from .published import Published, check_published, read_published

# What a grid may vary beside config keys, under the name ``control`` (`controls`).
CONTROLS = ("none", "swapped", "shuffled", "random")

# A recipe is chosen on development users and reported on the others.
MEASURED = ("confirmation", "development")

# What a study has that its file does not say, and the end of the name of one that a
# command line changed.
OWN = {"name", "changed"}
CHANGED = "-changed"

# In a claim, the value of a key that each user has where it suits them best: what could
# be had by looking at the held-out items, which nobody has in practice.
BEST = "best"


@dataclass(frozen=True)
class Claim:
    """A statement about a difference, and the sign it predicts.

    Attributes
    ----------
    text
        The statement, as the table prints it.
    metric
        What is compared.
    one, other
        Cells (config keys with values) and the method in them; the difference is
        one - other, paired by user and seed.
    expect
        ``lower`` or ``higher``: the sign of the difference if the statement is true.
    users
        ``all``, or the users below (``unique``) or above (``non-unique``) the median true
        overlap of their cell, as far as the truth is known, else the estimated one.
    """

    text: str
    metric: str
    one: dict[str, Scalar]
    other: dict[str, Scalar]
    expect: str
    users: str = "all"


@dataclass(frozen=True)
class Comparison:
    """One method against others in every world, by several metrics.

    Attributes
    ----------
    x
        The key of the grid that varies: the world.
    one, others
        Sides as a claim has them; ``as`` in a side is what the table calls it.
    metrics
        What is compared. Where a world does not have one, nothing is said.
    margin
        Metric -> difference that nobody would mind. Two that are not told apart are called
        equal where the whole interval lies within it.
    smallest
        Whether the page says from which value of `x`, a key with numbers, `one` is better.
    """

    x: str
    one: dict[str, Scalar]
    others: list[dict[str, Scalar]]
    metrics: list[str]
    margin: dict[str, float] = field(default_factory=dict)
    smallest: bool = False


@dataclass(frozen=True)
class Study:
    """A declared experiment (see the module's text).

    `reading` is what a person made of the results, without numbers: those are in the
    tables beside it; `answer` is its sentence for the head of the page. With an `audit`
    table its cells are audits of the aggregation (`attacks.Design`), over a grid of
    ``control`` and ``seed``.

    `named` holds, for a key of the grid that is not a config key, what each of its values
    stands for. `measured` says which users the cells measure: ``confirmation``, the
    evaluated ones, or ``development``, those on whom a recipe may be chosen. `compare`
    makes a claim for every world, opponent and metric (`comparisons`). `kept`: finished
    cells are stored with the findings, and taken from there (`study.kept`). `published`
    are numbers of others, and `changed` the keys that a command line set (`with_keys`).
    """

    name: str
    title: str
    question: str
    config: dict[str, Scalar]
    grid: dict[str, list[Scalar]]
    claims: tuple[Claim, ...] = ()
    plot: dict[str, Any] = field(default_factory=dict)
    reading: str = ""
    answer: str = ""
    audit: dict[str, Any] | None = None
    named: dict[str, dict[str, dict[str, Scalar]]] = field(default_factory=dict)
    measured: str = "confirmation"
    compare: tuple[Comparison, ...] = ()
    kept: bool = False
    published: Published | None = None
    changed: dict[str, Scalar] = field(default_factory=dict)


def read_study(path: Path) -> Study:
    """Read a study and check it before anything is computed.

    Raises
    ------
    IdiolectError
        The file is missing or not TOML, a key is unknown, or a claim names no cell.
    """
    try:
        raw = renamed(read_toml(path.read_text()))
    except OSError as error:
        raise IdiolectError(
            f"study file {path} cannot be read ({error.strerror}): give the path of a "
            "TOML file, for example simulations/lamp/experiments/uniqueness.toml."
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise IdiolectError(
            f"study file {path} is not TOML ({error}): repair it."
        ) from error
    try:
        study = _declared(path.stem, raw)
        if study.audit is None:
            _check(study)
    except IdiolectError as error:
        raise IdiolectError(f"study file {path}: {error}") from error
    return study


def with_keys(study: Study, words: Sequence[str]) -> Study:
    """The study with keys that a command line set, in all of its cells.

    They win over what the file says, names of the grid included. The study then has
    another name, so that its results are not taken for those of the file.

    Parameters
    ----------
    study
        As its file declares it.
    words
        ``key=value``, as given with ``-c``; none: the study stays as it is.

    Raises
    ------
    IdiolectError
        A key is in the grid or unknown, its value is not allowed, two cells would become
        the same, or the study audits and has no keys.
    """
    if not words:
        return study
    place = f"study {study.name}"
    refuse_if(
        study.audit is not None,
        f"{place}: it is an audit, which has no config keys: leave out -c.",
    )
    given: dict[str, Scalar] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = RENAMED.get(name.strip(), name.strip())
        refuse_if(
            not equals,
            f"-c takes key=value, not '{word}': see docs/configuration.md.",
        )
        refuse_if(
            name in study.grid,
            (
                f"{place}: -c {name} is a key of its grid, which gives every cell its own "
                "value: change [grid] in a copy of the file."
            ),
        )
        given[name] = parse_word(name, text)

    def rest(keys: Mapping[str, Scalar]) -> dict[str, Scalar]:
        return {k: v for k, v in keys.items() if RENAMED.get(k, k) not in given}

    named = {
        key: {value: rest(keys) for value, keys in meanings.items()}
        for key, meanings in study.named.items()
    }
    changed = replace(
        study,
        name=f"{study.name}{CHANGED}",
        config={**rest(study.config), **given},
        named=named,
        changed=given,
    )
    _check(changed)
    _check_distinct(study, changed)
    return changed


def _check_distinct(study: Study, changed: Study) -> None:
    """Refuse keys with which cells that differ become the same."""
    before, after = (
        [(cell_config(one, cell), control_of(one, cell)) for cell in cells(one)]
        for one in (study, changed)
    )
    for k, j in itertools.combinations(range(len(after)), 2):
        refuse_if(
            after[k] == after[j] and before[k] != before[j],
            (
                f"study {study.name}: with {_listed(changed.changed)} the cells "
                f"{_listed(cells(study)[k])} and {_listed(cells(study)[j])} are the same: "
                "leave the key out, or change [grid] in a copy of the file."
            ),
        )


def _listed(keys: Mapping[str, Scalar]) -> str:
    return ", ".join(f"{key}={value}" for key, value in keys.items())


def _declared(name: str, raw: dict[str, Any]) -> Study:
    """A study from its TOML, with no other keys than it has."""
    unknown = sorted(raw.keys() - (Study.__dataclass_fields__.keys() - OWN))
    unclear = ("config" in raw) == ("audit" in raw)
    refuse_if(
        unknown or unclear or not {"title", "grid"} <= raw.keys(),
        (
            "needs title, [grid] and either [config] or [audit], may have question, "
            "answer, reading, measured, kept, [named], [plot], [published], [[compare]] "
            f"and [[claims]]; found {', '.join(unknown) or 'too little'}."
        ),
    )
    measured = raw.get("measured", MEASURED[0])
    refuse_if(
        measured not in MEASURED,
        f"measured is {measured!r}: use 'confirmation' or 'development'.",
    )
    refuse_if(
        not isinstance(raw.get("kept", False), bool),
        f"kept is {raw.get('kept')!r}: use true or false.",
    )
    try:
        claims = tuple(Claim(**claim) for claim in raw.get("claims", []))
        compare = tuple(Comparison(**entry) for entry in raw.get("compare", []))
    except TypeError as error:
        raise IdiolectError(
            f"a [[claims]] or [[compare]] table is malformed: {error}."
        ) from None
    grid = {key: list(values) for key, values in raw["grid"].items()}
    given = {"question": "", "config": {}, **raw}
    if "published" in raw:
        given["published"] = read_published(raw["published"])
    return Study(name, **given | {"grid": grid, "claims": claims, "compare": compare})


def _check(study: Study) -> None:
    """Refuse what would fail, or mean nothing, when all cells are done."""
    keys = ", ".join(study.grid)
    for cell in cells(study):
        rates = cell_config(study, cell).learning_rate_list
        control_of(study, cell)
        refuse_if(
            study.measured == "development" and len(rates) != 1,
            (
                "it measures development users, on whom several learning rates would "
                "be chosen: give one in personalise.learning-rates."
            ),
        )
    _check_plot(study)
    for entry in study.compare:
        refuse_if(
            entry.x not in study.grid,
            (
                f"[[compare]] has x = {entry.x!r}, which is not a key of the grid: use "
                f"one of {keys}."
            ),
        )
        if unknown := sorted(entry.margin.keys() - set(entry.metrics)):
            raise IdiolectError(
                f"[[compare]] has a margin for {unknown[0]!r}, which is not among its "
                f"metrics: {', '.join(entry.metrics)}."
            )
        numbers = all(type(value) in (int, float) for value in study.grid[entry.x])
        refuse_if(
            entry.smallest and not numbers,
            (
                f"[[compare]] asks for the smallest {entry.x}, which has values that are "
                "no numbers: leave out smallest, or take another x."
            ),
        )
    for claim in (*study.claims, *(claim for _, claim in comparisons(study))):
        _check_claim(study, claim)
    if study.published:
        check_published(study.published, study.grid)


def _check_plot(study: Study) -> None:
    """Refuse a plot, a frontier or correlations that could not be drawn."""
    plot, keys = study.plot, ", ".join(study.grid)
    refuse_if(
        plot and plot.get("x") not in study.grid,
        (
            f"[plot] has x = {plot.get('x')!r}, which is not a key of the grid: use one "
            f"of {keys}."
        ),
    )
    methods = {m for cell in cells(study) for m in cell_config(study, cell).method_list}
    refuse_if(
        "correlate" in plot and (len(plot["correlate"]) < 2 or "shared" not in methods),
        (
            "[plot] correlate needs two metrics or more, and the method shared, to which "
            "differences are taken."
        ),
    )
    if "frontier" not in plot:
        return
    given, place = plot["frontier"], "[plot] frontier"
    unknown = sorted(given.keys() - {"x", "y", "along", "paths", "margin"})
    refuse_if(
        unknown or not {"x", "y", "along"} <= given.keys(),
        (
            f"{place} needs x and y (metrics) and along (a key of the grid), may have "
            f"paths and margin; found {', '.join(unknown) or 'too little'}."
        ),
    )
    refuse_if(
        given["along"] not in study.grid,
        f"{place} has along = {given['along']!r}: use one of {keys}.",
    )
    values = [value for path in given.get("paths", {}).values() for value in path]
    if strange := [v for v in values if v not in study.grid[given["along"]]]:
        raise IdiolectError(
            f"{place} has a path over {strange[0]!r}, which is no value of "
            f"{given['along']} in the grid."
        )
    if strange := sorted(given.get("margin", {}).keys() - {given["x"], given["y"]}):
        raise IdiolectError(
            f"{place} has a margin for {strange[0]!r}, which is on neither axis."
        )


def comparisons(study: Study) -> list[tuple[dict[str, Any], Claim]]:
    """Claims of ``[[compare]]``: in each world, each opponent, by each metric.

    The claim is that `one` is better; beside it stands what a table calls the world and
    the two, and the margin.
    """
    return [
        (
            {
                "x": str(value),
                "one": name_of(entry.one),
                "other": name_of(other),
                "margin": entry.margin.get(metric, 0.0),
                **({"smallest": entry.x} if entry.smallest else {}),
            },
            Claim(
                text=f"{value}: {name_of(entry.one)} is better than {name_of(other)}",
                metric=metric,
                one={**entry.one, entry.x: value},
                other={**other, entry.x: value},
                expect="lower" if metric in results.LOWER_IS_BETTER else "higher",
            ),
        )
        for entry in study.compare
        for metric in entry.metrics
        for value in study.grid[entry.x]
        for other in entry.others
    ]


def name_of(side: Mapping[str, Scalar]) -> str:
    """How a table names one side: as it says, or by its method and the values it fixes."""
    method, keys = side_of(side)
    fixed = f"{method} ({', '.join(map(str, keys.values()))})" if keys else method
    return str(side.get("as", fixed))


def _check_claim(study: Study, claim: Claim) -> None:
    place = f"claim {claim.text!r}"
    refuse_if(
        claim.expect not in ("lower", "higher"),
        f"{place}: expect is 'lower' or 'higher'.",
    )
    refuse_if(
        claim.users not in ("all", "unique", "non-unique"),
        f"{place}: users is 'all', 'unique' or 'non-unique'.",
    )
    for side in (claim.one, claim.other):
        method, keys = side_of(side)
        if unknown := [key for key in keys if key not in study.grid]:
            raise IdiolectError(f"{place}: '{unknown[0]}' is not a key of the grid.")
        keys = {key: value for key, value in keys.items() if value != BEST}
        fits = [cell for cell in cells(study) if matches(cell, keys)]
        methods = [cell_config(study, cell).method_list for cell in fits]
        refuse_if(
            not fits or any(method not in known for known in methods),
            f"{place}: no cell has {side}.",
        )


def side_of(side: Mapping[str, Scalar]) -> tuple[str, dict[str, Scalar]]:
    """Split one side of a claim into its method (default ``c-bpo``) and its keys."""
    keys = {key: value for key, value in side.items() if key not in ("method", "as")}
    return str(side.get("method", "c-bpo")), keys


def matches(flat: Mapping[str, Scalar], keys: Mapping[str, Scalar]) -> bool:
    """Whether a cell has the values that a claim names."""
    return all(flat[key] == value for key, value in keys.items())


def cells(study: Study) -> list[dict[str, Scalar]]:
    """Every combination of the grid, the first key varying slowest."""
    return [
        dict(zip(study.grid, values, strict=True))
        for values in itertools.product(*study.grid.values())
    ]


def cell_config(study: Study, cell: Mapping[str, Scalar]) -> Config:
    """Return the config of one cell."""
    keys = {**study.config, **spelt_out(study, cell)}
    return parse({key: value for key, value in keys.items() if key != "control"})


def spelt_out(study: Study, cell: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """A cell with what its names stand for in their place; later keys win."""
    keys: dict[str, Scalar] = {}
    for key, value in cell.items():
        if key not in study.named:
            keys[key] = value
        elif str(value) in study.named[key]:
            keys |= study.named[key][str(value)]
        else:
            raise IdiolectError(
                f"study {study.name}: the grid has {key}={str(value)!r} but there is no "
                f"table [named.{key}.{value}]: write what it stands for."
            )
    return keys


def control_of(study: Study, cell: Mapping[str, Scalar]) -> str:
    """Return the control of one cell, ``none`` where it has none."""
    control = str(spelt_out(study, cell).get("control", "none"))
    refuse_if(
        control not in CONTROLS,
        f"control is {control!r}: use any of {', '.join(CONTROLS)} in the grid.",
    )
    return control
