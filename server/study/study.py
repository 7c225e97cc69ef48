"""Studies: declared experiments, and the only way to run them.

A study is a TOML file: config keys that all cells share (``[config]``), a grid of keys
whose every combination is a cell (``[grid]``), and claims about differences between
cells (``[[claims]]``). A key of the grid may also be a name of the study's own whose
values stand for several config keys (``[named.world.short]``). Cells run in this process
on the stacked engine, without Flower: the same functions of `common.methods` that a
device calls, and the same average that the server takes. What cells share is computed
once. A finished cell is a file; running the study again does only what is missing.
Tables, plots and verdicts are made from those files alone (`findings`).
"""

import hashlib
import itertools
import json
import os
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...common.config import UNTRAINED, Config, Scalar, flatten, parse
from ...common.config.keys import POOL, SHARED, keys_of
from ...common.config.methods import ALPHA, BY_NAME
from ...common.config.old import as_0_2, renamed
from ...common.data.load import load_dataset
from ...common.data.types import TOO_LONG, Dataset, Item, User
from ...common.engine.adapters import Lora, zero_shared
from ...common.engine.backbone import Backbone, backbone_of
from ...common.engine.fitting import fitting, too_long
from ...common.engine.reference import Reference
from ...common.errors import IdiolectError
from ...common.files import make_private, private_folder
from ...common.methods import evaluation
from ...common.methods.personalise import Personal, personalise
from ...common.methods.shared import shared_update
from ...common.privacy.noise import gaussian
from ...common.protocol.messages import MAX_ITEMS, Rows, package_version
from ...common.protocol.quantization import as_received, decode, update_codes
from ...common.seeds import numpy_generator
from ...common.text import read_toml
from ...common.unlabeled.offers import offer_marks, supported_offers
from ...common.unlabeled.sets import VOTE_FLOOR, Unlabeled, UnlabeledSet
from ...common.unlabeled.votes import user_vote
from ..privacy.card import card
from ..privacy.ledger import Charge, Ledger
from ..run import results
from ..run.adapt import (
    charge_round,
    clipped_sum,
    moved,
    next_clip,
    participants,
    released,
    within_clip,
)
from ..run.budget import Crowd, crowd_of, new_ledger, noise_of
from ..run.personalise import rate_order
from ..run.pool import (
    charge_vote,
    public_text,
    shuffled_offers,
    sum_of_votes,
    supported_buckets,
    written_by_shared,
)

# What a grid may vary beside config keys, under the name ``control``: does the gain come
# from the user's own text? `swapped` measures each user with a neighbour's adapter,
# `shuffled` deals all histories out anew before training. Does it matter what the
# unlabeled set says? `random` fills its texts with words drawn from all of them.
CONTROLS = ("none", "swapped", "shuffled", "random")

# A recipe is chosen on development users and reported on the others.
MEASURED = ("confirmation", "development")

# In a claim, the value of a key that each user has where it suits them best: what could
# be had by looking at the held-out items, which nobody has in practice.
BEST = "best"

Memory = dict[str, Any]
"""Stage and the keys it depends on -> what it made."""


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
    """

    x: str
    one: dict[str, Scalar]
    others: list[dict[str, Scalar]]
    metrics: list[str]
    margin: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A declared experiment (see the module's text).

    `reading` is what a person made of the results, without numbers: those are in the
    tables beside it; `answer` is its sentence for the head of the page. With an `audit`
    table its cells are audits of the aggregation (`audit.Design`), over a grid of
    ``control`` and ``seed``.

    `named` holds, for a key of the grid that is no config key, what each of its values
    stands for. `measured` says which users the cells measure: ``confirmation``, the
    evaluated ones, or ``development``, those on whom a recipe may be chosen. `compare`
    makes a claim for every world, opponent and metric (`comparisons`).
    """

    name: str
    title: str
    question: str
    config: dict[str, Scalar]
    grid: dict[str, list[Scalar]]
    claims: tuple[Claim, ...] = ()
    plot: dict[str, str] = field(default_factory=dict)
    reading: str = ""
    answer: str = ""
    audit: dict[str, Any] | None = None
    named: dict[str, dict[str, dict[str, Scalar]]] = field(default_factory=dict)
    measured: str = "confirmation"
    compare: tuple[Comparison, ...] = ()


def read_study(path: Path) -> Study:
    """Read a study and check it before anything is computed.

    Raises
    ------
    IdiolectError
        The file is missing or no TOML, a key is unknown, or a claim names no cell.
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
            f"study file {path} is no TOML ({error}): repair it."
        ) from error
    known = {
        "title",
        "question",
        "answer",
        "config",
        "grid",
        "claims",
        "plot",
        "reading",
        "audit",
        "named",
        "measured",
        "compare",
    }
    unknown = sorted(raw.keys() - known)
    either = {"config", "audit"} & raw.keys()
    if unknown or not {"title", "grid"} <= raw.keys() or len(either) != 1:
        raise IdiolectError(
            f"study file {path}: needs title, [grid] and either [config] or [audit], may "
            "have question, answer, reading, measured, [named], [plot], [[compare]] and "
            "[[claims]]; found "
            f"{', '.join(unknown) or 'too little'}."
        )
    try:
        claims = tuple(Claim(**claim) for claim in raw.get("claims", []))
        compare = tuple(Comparison(**entry) for entry in raw.get("compare", []))
    except TypeError as error:
        raise IdiolectError(
            f"study file {path}: a [[claims]] or [[compare]] table is malformed: {error}."
        ) from None
    grid = {key: list(values) for key, values in raw["grid"].items()}
    study = Study(
        path.stem,
        raw["title"],
        raw.get("question", ""),
        raw.get("config", {}),
        grid,
        claims,
        raw.get("plot", {}),
        raw.get("reading", ""),
        raw.get("answer", ""),
        raw.get("audit"),
        raw.get("named", {}),
        raw.get("measured", MEASURED[0]),
        compare,
    )
    if study.measured not in MEASURED:
        raise IdiolectError(
            f"study file {path}: measured is {study.measured!r}: use 'confirmation' or "
            "'development'."
        )
    if study.audit is not None:
        return study
    for cell in cells(study):
        config = cell_config(study, cell)
        control_of(study, cell)
        if study.measured == "development" and len(config.learning_rate_list) > 1:
            raise IdiolectError(
                f"study file {path}: it measures development users, on whom several "
                "learning rates would be chosen: give one in personalise.learning-rates."
            )
    if study.plot and study.plot.get("x") not in study.grid:
        raise IdiolectError(
            f"study file {path}: [plot] has x = {study.plot.get('x')!r}, which is no key "
            f"of the grid: use one of {', '.join(study.grid)}."
        )
    for entry in compare:
        if entry.x not in study.grid:
            raise IdiolectError(
                f"study file {path}: [[compare]] has x = {entry.x!r}, which is no key of "
                f"the grid: use one of {', '.join(study.grid)}."
            )
        if unknown := sorted(entry.margin.keys() - set(entry.metrics)):
            raise IdiolectError(
                f"study file {path}: [[compare]] has a margin for {unknown[0]!r}, which is "
                f"not among its metrics: {', '.join(entry.metrics)}."
            )
    for claim in (*claims, *(claim for _, claim in comparisons(study))):
        _check_claim(path, study, claim)
    return study


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


def _check_claim(path: Path, study: Study, claim: Claim) -> None:
    place = f"study file {path}: claim {claim.text!r}"
    if claim.expect not in ("lower", "higher"):
        raise IdiolectError(f"{place}: expect is 'lower' or 'higher'.")
    if claim.users not in ("all", "unique", "non-unique"):
        raise IdiolectError(f"{place}: users is 'all', 'unique' or 'non-unique'.")
    for side in (claim.one, claim.other):
        method, keys = side_of(side)
        unknown = [key for key in keys if key not in study.grid]
        if unknown:
            raise IdiolectError(f"{place}: '{unknown[0]}' is no key of the grid.")
        keys = {key: value for key, value in keys.items() if value != BEST}
        fits = [cell for cell in cells(study) if matches(cell, keys)]
        named = [cell_config(study, cell).method_list for cell in fits]
        if not fits or any(method not in methods for methods in named):
            raise IdiolectError(f"{place}: no cell has {side}.")


def side_of(side: Mapping[str, Scalar]) -> tuple[str, dict[str, Scalar]]:
    """Split one side of a claim into its method (default ``c-bpo``) and its keys."""
    keys = {key: value for key, value in side.items() if key not in ("method", "as")}
    return str(side.get("method", "c-bpo")), keys


def matches(flat: Mapping[str, Scalar], keys: Mapping[str, Scalar]) -> bool:
    """Whether a cell has the values that a claim names."""
    return all(flat[key] == value for key, value in keys.items())


def cells(study: Study) -> list[dict[str, Scalar]]:
    """Every combination of the grid, the first key varying slowest."""
    combinations = itertools.product(*study.grid.values())
    return [dict(zip(study.grid, values, strict=True)) for values in combinations]


def cell_config(study: Study, cell: Mapping[str, Scalar]) -> Config:
    """Return the config of one cell."""
    keys = {**study.config, **spelt_out(study, cell)}
    return parse({key: value for key, value in keys.items() if key != "control"})


def spelt_out(study: Study, cell: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """A cell with what its names stand for in their place; later keys win."""
    keys: dict[str, Scalar] = {}
    for key, value in cell.items():
        named = key in study.named
        keys |= _meaning(study, key, str(value)) if named else {key: value}
    return keys


def _meaning(study: Study, key: str, value: str) -> dict[str, Scalar]:
    try:
        return study.named[key][value]
    except KeyError:
        raise IdiolectError(
            f"study {study.name}: the grid has {key}={value!r} but there is no table "
            f"[named.{key}.{value}]: write what it stands for."
        ) from None


def located(config: Config) -> Config:
    """Replace environment variables in the paths of a cell: data are not everywhere.

    Raises
    ------
    IdiolectError
        A variable is not set.
    """
    data, backbone = map(os.path.expandvars, (config.data, config.backbone))
    if "$" in data + backbone:
        raise IdiolectError(
            f"the study reads {config.data or config.backbone}: set the environment "
            "variable in it to the folder that holds them (docs/data.md)."
        )
    return replace(config, data=data, backbone=backbone)


def control_of(study: Study, cell: Mapping[str, Scalar]) -> str:
    """Return the control of one cell, ``none`` where it has none."""
    control = str(spelt_out(study, cell).get("control", "none"))
    if control not in CONTROLS:
        raise IdiolectError(
            f"control is {control!r}: use any of {', '.join(CONTROLS)} in the grid."
        )
    return control


def run_study(
    study: Study, folder: Path, say: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Run the cells that have no file yet; return all of them.

    Parameters
    ----------
    study
        What to run.
    folder
        Where ``cells/<hash of the config>.json`` are written.
    say
        Told about every cell.
    """
    make_private(private_folder(folder))
    done: list[dict[str, Any]] = []
    memory: Memory = {}
    todo = cells(study)
    for number, cell in enumerate(todo, start=1):
        config = cell_config(study, cell)
        control = control_of(study, cell)
        name = f"{cell_key(config)}-{control}-{study.measured}.json"
        path = folder / "cells" / name
        known = path.exists()
        named = ", ".join(f"{k}={v}" for k, v in cell.items())
        say(f"cell {number}/{len(todo)}: {named}{' (done)' if known else ''}")
        if not known:
            began = time.monotonic()
            found = run_cell(located(config), memory, control, study.measured)
            results.write_json(path, {"cell": cell, **found})
            say(f"  {time.monotonic() - began:.0f} s")
        # Not the file's own cell: JSON has no infinity.
        done.append({**renamed(json.loads(path.read_text())), "cell": cell})
    return done


def cell_key(config: Config) -> str:
    """Short hash of a config, as versions up to 0.2 named their cells: those are found."""
    values = as_0_2(config)
    if values["evaluate.rouge-tokens"] == "english":  # there were cells before this key
        del values["evaluate.rouge-tokens"]
    return _hash(values)


def stage_key(config: Config, stage: str) -> str:
    """Short hash of the keys that a stage depends on (`keys_of`)."""
    flat = flatten(config)
    return _hash({name: flat[name] for name in keys_of(stage)})


def _hash(values: Mapping[str, Scalar]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def once(memory: Memory, stage: str, key: str, make: Callable[[], Any]) -> Any:
    """Return what a stage made for these keys, making it if it is not there."""
    place = f"{stage} {key}"
    if place not in memory:
        memory[place] = make()
    return memory[place]


# --- one cell -----------------------------------------------------------------------


def run_cell(
    config: Config,
    memory: Memory,
    control: str = "none",
    measured: str = "confirmation",
) -> dict[str, Any]:
    """Run one cell, in the shape of ``results.json``."""
    backbone = backbone_of(config)
    bare = once(memory, "reference", str(id(backbone)), lambda: Reference(backbone))
    dataset = _fitting(backbone, load_dataset(config))
    if control == "random":
        _check_random(config)
    if control == "swapped":
        _check_swapped(_people(dataset, measured), config)
    # What noise is calibrated from is spread over keys that these stages do not use.
    noise = str(noise_of(config, crowd_in(dataset, config)))
    shared, rounds = once(
        memory,
        "shared",
        stage_key(config, SHARED) + noise,
        lambda: shared_adapter(bare, dataset, config),
    )
    reference = bare.with_shared(shared)
    pool = once(
        memory,
        "pool",
        stage_key(config, POOL)
        + noise
        + (reference.hash if uses_shared(config) else ""),
        lambda: unlabeled_set(reference, dataset, config),
    )
    ledger = empty_ledger(dataset, config)
    ledger.charges += rounds + pool.charges
    if control == "shuffled":
        dataset = shuffled(dataset, config.seed)
    if control == "random":
        filled = of_random_words(pool.unlabeled.items, config.seed)
        pool = replace(pool, unlabeled=replace(pool.unlabeled, items=filled))
    people = _people(dataset, measured)
    methods: dict[str, dict[str, Any]] = {
        method: once(
            memory,
            f"{method} {control}",
            stage_key(config, method),
            lambda method=method: run_method(
                reference, dataset, people, pool, method, config, control
            ),
        )
        for method in config.method_list
    }
    users = {
        user.id: {
            name: result["metrics"][user.id]
            for name, result in methods.items()
            if user.id in result["metrics"]
        }
        for user in people
    }
    alpha, estimated = _alphas(methods)
    truth = {u.id: u.truth.overlap for u in people if u.truth is not None}
    return results.build(
        run={
            "task": config.task,
            "backbone": config.backbone,
            "seed": config.seed,
            "commit": results.git_commit(),
            "users": len(users),
            "learning_rates": {m: r["rate"] for m, r in methods.items() if r["rate"]},
            "clamp_rate": {m: r["clamp_rate"] for m, r in methods.items() if r["rate"]},
            "ess": {m: r["ess"] for m, r in methods.items() if r["rate"]},
            "overlap": truth,
            **({"dropped": dataset.dropped} if dataset.dropped else {}),
        },
        users=users,
        alpha=alpha,
        alpha_estimated=estimated,
        cost={},
        privacy=card(ledger, "", package_version(), ""),
        seed=config.seed,
        resamples=config.evaluate.bootstrap,
    )


def _fitting(backbone: Backbone, dataset: Dataset) -> Dataset:
    """The users without the items that do not fit into the context, which are counted."""
    groups, dropped = [], dict(dataset.dropped)
    for users in (dataset.users, dataset.development):
        pairs = [fitting(backbone, user) for user in users]
        if count := sum(number for _, number in pairs):
            dropped[TOO_LONG] = dropped.get(TOO_LONG, 0) + count
        groups.append(tuple(user for user, _ in pairs))
    for user in (*groups[0], *groups[1]):
        if problem := too_long(backbone, user):
            raise IdiolectError(problem)
    return replace(dataset, users=groups[0], development=groups[1], dropped=dropped)


def empty_ledger(dataset: Dataset, config: Config) -> Ledger:
    """Return a ledger in memory, as a run with this configuration begins it."""
    return new_ledger(None, config, crowd_in(dataset, config))


def crowd_in(dataset: Dataset, config: Config) -> Crowd:
    """How many users may take part."""
    return crowd_of(config, len(dataset.users), len(dataset.development))


def _alphas(methods: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, float], bool]:
    """Alpha of every user, from methods that use it.

    A result of SFT may be one that cells with another unlabeled set share.
    """
    use_it = {n: r for n, r in methods.items() if {*ALPHA} <= {*BY_NAME[n].reads}}
    trained = [p for r in (use_it or methods).values() for p in r["personals"]]
    alpha = {p.user: p.alpha for p in trained if p.alpha is not None}
    return alpha, any(p.estimated for p in trained)


def groups(users: Sequence[User], size: int) -> list[Sequence[User]]:
    """Stacking groups of consecutive users."""
    return [users[i : i + size] for i in range(0, len(users), size)]


def shared_adapter(
    reference: Reference, dataset: Dataset, config: Config
) -> tuple[Lora, list[Charge]]:
    """Federated averaging of B over the rounds, without messages (see `adapt`).

    Returns
    -------
    tuple
        The shared adapter, and what its rounds were charged (nothing without privacy).
    """
    development = config.adapt.users == "development"
    users = dataset.development if development else dataset.users + dataset.development
    backbone = reference.backbone
    zero = zero_shared(backbone, config.shared_shape, config.seed)
    exact = {name: tensor.cpu().numpy() for name, tensor in zero.b.items()}
    ledger, clip = empty_ledger(dataset, config), config.adapt.clip
    for number in range(config.adapt.rounds):
        now = reference.with_shared(_received(backbone, zero, exact, config))
        if config.privacy.mode == "central":
            crowd = crowd_in(dataset, config)
            release = charge_round(ledger, config, crowd, number, clip)
            taking = participants(users, release, config)
            rows = _updates(now, taking, config, number, clip)
            sums = [clipped_sum(part, clip) for part in rows]
            parts = [total for total, _ in sums]
            exact = released(exact, parts, release, clip, config, len(users))
            within = sum(within_clip(norms, clip) for _, norms in sums)
            clip = next_clip(clip, within, len(taking), release, config, len(users))
        else:
            rows = _updates(now, users, config, number, clip)
            parts = [clipped_sum(part, clip)[0] for part in rows]
            exact = moved(exact, parts, len(users))
    return _received(backbone, zero, exact, config), ledger.charges


def _received(backbone: Backbone, zero: Lora, exact: Rows, config: Config) -> Lora:
    """The shared adapter as the devices have it."""
    rows = as_received(exact, config.signed_bytes)
    b = {name: torch.from_numpy(array) for name, array in rows.items()}
    return replace(zero, b={n: t.to(backbone.device) for n, t in b.items()})


def _updates(
    reference: Reference,
    users: Sequence[User],
    config: Config,
    number: int,
    clip: float,
) -> list[Rows]:
    """Rows of one round as the server reads them, one array per stacking group."""
    found: list[Rows] = []
    shapes = {name: tuple(tensor.shape) for name, tensor in reference.adapter.b.items()}
    for group in groups(users, config.engine.stack):
        rows = shared_update(reference, group, config, number, clip)
        arrays = {name: tensor.numpy() for name, tensor in rows.items()}
        if config.signed_bytes:
            names = [user.id for user in group]
            arrays = decode(update_codes(arrays, config.seed, names, number), shapes)
        found.append(arrays)
    return found


def shuffled(dataset: Dataset, seed: int) -> Dataset:
    """Deal the evaluated users' histories out anew: as long as before, anybody's items."""
    items = [item for user in dataset.users for item in user.history]
    order = numpy_generator(seed, "shuffled").permutation(len(items))
    dealt = iter([items[i] for i in order])
    users = tuple(
        replace(user, history=tuple(next(dealt) for _ in user.history))
        for user in dataset.users
    )
    return replace(dataset, users=users)


def of_random_words(unlabeled: Sequence[Unlabeled], seed: int) -> tuple[Unlabeled, ...]:
    """The same prompts and lengths, with words drawn from the whole set's vocabulary."""
    words = sorted({word for e in unlabeled for word in e.item.target.split()})
    generator = numpy_generator(seed, "random words")

    def filled(item: Item) -> Item:
        picks = generator.integers(len(words), size=len(item.target.split()))
        return replace(item, target=" ".join(words[pick] for pick in picks))

    return tuple(replace(entry, item=filled(entry.item)) for entry in unlabeled)


def _check_random(config: Config) -> None:
    """Own votes and offers are taken out by their text, and `self` hands out none."""
    if config.unlabeled.kind not in ("others", "public"):
        raise IdiolectError(
            "control 'random' replaces texts that the server hands out as they are: set "
            f"unlabeled.kind to others or public, not {config.unlabeled.kind}."
        )


def _people(dataset: Dataset, measured: str) -> Sequence[User]:
    return dataset.development if measured == "development" else dataset.users


def _check_swapped(people: Sequence[User], config: Config) -> None:
    """Everybody needs a neighbour in the stacking group, whose adapter to have."""
    if any(len(group) < 2 for group, _ in measured_groups(people, config)):
        raise IdiolectError(
            "control 'swapped' leaves one user of a stacking group alone, who has no "
            "neighbour: choose users and engine.stack so that none is left over."
        )


@dataclass(frozen=True)
class Pool:
    """The unlabeled set of a cell, as a run's manifest hands it out.

    Attributes
    ----------
    unlabeled
        The set.
    charges
        What the set was charged.
    """

    unlabeled: UnlabeledSet
    charges: list[Charge] = field(default_factory=list)


def uses_shared(config: Config) -> bool:
    """Whether the unlabeled set depends on the shared adapter."""
    return config.unlabeled.bank_from == "shared" and config.unlabeled.kind == "votes"


def unlabeled_set(reference: Reference, dataset: Dataset, config: Config) -> Pool:
    """Return the unlabeled set of the configured kind, without messages (see `pool`)."""
    everybody = dataset.users + dataset.development
    kind = config.unlabeled.kind
    if kind == "self":
        return Pool(UnlabeledSet())
    if kind == "others":
        entries = tuple(
            Unlabeled(replace(item, rivals=()), 1.0, user.id)
            for user in everybody
            for item in user.history
        )
        return Pool(UnlabeledSet(entries))
    if kind == "anonymised":
        return Pool(UnlabeledSet(_anonymised(everybody, dataset, config)))
    if kind == "public":
        # As many as a run's node gets: all public text.
        public = public_text(config, dataset, MAX_ITEMS)
        return Pool(UnlabeledSet(tuple(map(Unlabeled, public))))
    bank = tuple(public_text(config, dataset, config.unlabeled.bank))
    if uses_shared(config):
        b = {n: tensor.cpu().numpy() for n, tensor in reference.adapter.b.items()}
        bank = written_by_shared(config, b, bank)
    return _voted(reference, bank, everybody, dataset, config)


def _voted(
    reference: Reference,
    bank: tuple[Item, ...],
    everybody: tuple[User, ...],
    dataset: Dataset,
    config: Config,
) -> Pool:
    """Sum the votes over the bank; with privacy a charged sum of some, with noise."""
    voting, release, ledger = everybody, None, empty_ledger(dataset, config)
    if config.privacy.mode == "central":
        release = charge_vote(ledger, config, crowd_in(dataset, config))
        voting = participants(everybody, release, config)
    total = np.zeros(len(bank))
    for user in voting:
        total += sum_of_votes(user_vote(reference, bank, user, config)[None])
    floor = 0.0
    if release is not None:
        total = total + gaussian(total.shape, release.event.z, release.random)
        floor = VOTE_FLOOR * release.event.z
    handed = tuple(
        Unlabeled(item, float(weight)) for item, weight in zip(bank, total, strict=True)
    )
    voters = None if release is None else frozenset(user.id for user in voting)
    return Pool(UnlabeledSet(handed, floor, voters), ledger.charges)


def _anonymised(
    everybody: Sequence[User], dataset: Dataset, config: Config
) -> tuple[Unlabeled, ...]:
    """Scrubbed items of buckets with enough users, shuffled (see `pool.anonymised`)."""
    bank = tuple(public_text(config, dataset, config.unlabeled.buckets))
    support = sum(offer_marks(bank, user, config) for user in everybody)
    supported = supported_buckets(np.asarray(support), config)
    offers = [supported_offers(bank, supported, u, config) for u in everybody]
    return shuffled_offers(offers, config.seed)


def run_method(
    reference: Reference,
    dataset: Dataset,
    people: Sequence[User],
    pool: Pool,
    method: str,
    config: Config,
    control: str,
) -> dict[str, Any]:
    """Train one method at its chosen rate and measure it on these people.

    Returns
    -------
    dict
        ``rate`` (0 for methods that are not trained), ``metrics`` (user -> METRIC ->
        value), ``personals`` (without their adapters), and of trained ones means of
        ``clamp_rate`` and ``ess``.
    """

    def train(rate: float, group: Sequence[User]) -> list[Personal]:
        return personalise(reference, group, pool.unlabeled, method, rate, config)

    def tried(rate: float) -> tuple[float, float]:
        values: list[float] = []
        for group in groups(dataset.development, config.engine.stack):
            kept, loras = _with_adapter(group, train(rate, group))
            if kept:
                values += evaluation.held_out_nll(reference, loras, kept, method)
        return rate_order(values, len(dataset.development))

    untrained = method in UNTRAINED
    rate, *others = (0.0,) if untrained else config.learning_rate_list
    if others:
        rate = min((rate, *others), key=tried)
    trained: list[Personal] = []
    metrics: dict[str, dict[str, float]] = {}
    for group, generate in measured_groups(people, config):
        users, loras = group, [None] * len(group)
        if not untrained:
            own = train(rate, group)
            trained += [replace(one, lora=None) for one in own]
            if control == "swapped":
                own = [*own[1:], *own[:1]]
            users, loras = _with_adapter(group, own)
        if users:
            values = evaluation.evaluate(
                reference, loras, users, method, config, generate
            )
            metrics |= {u.id: found for u, found in zip(users, values, strict=True)}
    logs = ("clamp_rate", "ess") if trained else ()
    means = {name: float(np.mean([one.log[name] for one in trained])) for name in logs}
    return {"rate": rate, "metrics": metrics, "personals": trained, **means}


def _with_adapter(
    users: Sequence[User], personals: Sequence[Personal]
) -> tuple[list[User], list[Lora | None]]:
    """Those for whom training gave an adapter, and the adapters."""
    pairs = zip(users, personals, strict=True)
    kept = [(user, one.lora) for user, one in pairs if one.lora is not None]
    return [user for user, _ in kept], [lora for _, lora in kept]


def measured_groups(
    users: Sequence[User], config: Config
) -> list[tuple[Sequence[User], bool]]:
    """Stacking groups, and for which of them outputs are generated.

    For the first ``evaluate.users`` users only, as in a run; 0: for all.
    """
    first = (config.evaluate.users or len(users)) * config.evaluate.generate
    stack = config.engine.stack
    return [(group, True) for group in groups(users[:first], stack)] + [
        (group, False) for group in groups(users[first:], stack)
    ]
