"""Running a study: each cell is a run in this process, without Flower.

Cells go through the phases of a run (`server.run`) with a local cohort. What they share is
made once (`cache`). A finished cell is a file; running the study again does only what is
missing. Several processes may run the same study: each takes the next cell that nobody
computes.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from ...common.config import UNTRAINED, Config, Scalar
from ...common.config.keys import POOL, SHARED
from ...common.config.methods import ALPHA, BY_NAME
from ...common.config.old import renamed
from ...common.data.load import load_dataset
from ...common.data.metrics import answer_of
from ...common.data.types import Dataset, User
from ...common.engine.backbone import Backbone, backbone_of
from ...common.engine.fitting import encode_all
from ...common.engine.model_folder import weights_of
from ...common.engine.rates import with_rates
from ...common.engine.reference import Reference
from ...common.errors import refuse_if
from ...common.files import make_private, private, private_folder
from ...common.protocol.messages import Outcome, package_version
from ...common.text import duration
from ..privacy.card import card
from ..run import results
from ..run.adapt import adapt
from ..run.budget import noise_of, population_of
from ..run.checkpoint import State
from ..run.cohort import Run
from ..run.entry import identity_of
from ..run.local import Local, fitted, local_run
from ..run.personalise import alphas, choose_rate, measure, possible, train
from ..run.pool import pool
from . import controls, judge
from .cache import Cache, cell_key, stage_key
from .declaration import Study, cell_config, cells, control_of
from .kept import store


def located(config: Config) -> Config:
    """Replace environment variables in the paths of a cell: data are not everywhere.

    Raises
    ------
    IdiolectError
        A variable is not set, or masks are asked for where there are no messages.
    """
    refuse_if(
        config.secagg.mode == "on",
        "a study computes all users in one process, where masks hide nothing: set "
        "secagg.mode=sum, which gives the same sums.",
    )
    data, backbone = map(os.path.expandvars, (config.data, config.backbone))
    refuse_if(
        "$" in data + backbone,
        (
            f"the study reads {config.data or config.backbone}: set the environment "
            "variable in it to the folder that holds them (docs/data.md)."
        ),
    )
    return replace(config, data=data, backbone=backbone)


def rated(config: Config) -> Config:
    """A cell with numbers for its learning rates; paths stay as they are written."""
    numbers = with_rates(located(replace(config, data="")))
    return replace(numbers, backbone=config.backbone, data=config.data)


def cell_path(folder: Path, study: Study, config: Config, control: str) -> Path:
    """The file of a cell, by its configuration with numbers for its rates."""
    return folder / "cells" / f"{cell_key(config)}-{control}-{study.measured}.json"


class Placed(NamedTuple):
    """A cell, its configuration with numbers for its rates, its control and its file."""

    cell: dict[str, Scalar]
    config: Config
    control: str
    path: Path


def placed(study: Study, folder: Path) -> list[Placed]:
    """Return the cells of a study, each with the file that holds it once it is done."""
    found: list[Placed] = []
    for cell in cells(study):
        config, control = rated(cell_config(study, cell)), control_of(study, cell)
        path = cell_path(folder, study, config, control)
        found.append(Placed(cell, config, control, path))
    return found


def run_study(
    study: Study,
    folder: Path,
    say: Callable[[str], None] = print,
    ahead: Sequence[float] = (),
    kept: Path | None = None,
) -> list[dict[str, Any]]:
    """Run the cells that have no file yet, and that no other process runs; return all.

    Parameters
    ----------
    study
        What to run.
    folder
        Where ``cells/<hash of the config>.json`` are written.
    say
        Told about every cell.
    ahead
        Seconds that each cell is expected to take (`ahead.forecast`); none: not known.
    kept
        Where finished cells are stored together, after each (`kept.store`); none: nowhere.
    """
    make_private(private_folder(folder))
    private_folder(folder / "cells")
    cache, spent, expected = Cache(), 0.0, 0.0
    todo = placed(study, folder)
    files = [one.path for one in todo]
    # First what nobody computes, then what others computed or left.
    for number, wait in [(k, w) for w in (False, True) for k in range(len(todo))]:
        if wait and files[number].exists():
            continue
        took = compute(
            todo[number], title(todo, number), study.measured, cache, wait, say
        )
        if took is None:
            continue
        spent, expected = spent + took, expected + sum(ahead[number : number + 1])
        pace = spent / expected if expected else 0.0
        say(f"  {took:.0f} s{until_end(ahead, files, pace)}")
        if kept:
            store(kept, files)
    return finished(study, folder, kept)


def until_end(ahead: Sequence[float], files: Sequence[Path], pace: float) -> str:
    """Say how long the cells without a file still take; nothing where that is not known.

    `pace`: seconds that pass for each second that was expected; 0: not known.
    """
    rest = sum(a for a, f in zip(ahead, files, strict=False) if not f.exists())
    return f"; about {duration(pace * rest)} left" if pace * rest else ""


def title(todo: Sequence[Placed], number: int) -> str:
    """Say which cell this is."""
    parts = ", ".join(f"{k}={v}" for k, v in todo[number].cell.items())
    return f"cell {number + 1}/{len(todo)}: {parts}"


def compute(
    one: Placed,
    name: str,
    measured: str,
    cache: Cache,
    wait: bool,
    say: Callable[[str], None],
) -> float | None:
    """Run one cell and write its file, unless it has one or another process computes it.

    Parameters
    ----------
    one, name
        The cell, and its `title`.
    measured
        Of the study.
    cache
        Of this process.
    wait
        Until whoever computes the cell has ended.
    say
        Told that it begins, or why not.

    Returns
    -------
    float or None
        Seconds; None: it was not computed here.
    """
    with claimed(one.path, wait) as free:
        if not free or one.path.exists():
            say(f"{name} ({'done' if free else 'another process computes it'})")
            return None
        say(name)
        began = time.monotonic()
        found = run_cell(located(one.config), cache, one.control, measured)
        results.write_json(one.path, {"cell": one.cell, **found})
        return time.monotonic() - began


def finished(
    study: Study, folder: Path, kept: Path | None = None
) -> list[dict[str, Any]]:
    """Return the cells that have a file, in the order of the study.

    `kept`: where these files are stored together (`kept.store`); none: nowhere.
    """
    found: list[dict[str, Any]] = []
    files: list[Path] = []
    for cell, _, _, path in placed(study, folder):
        if path.exists():
            # Not the file's own cell: JSON has no infinity.
            found.append({**renamed(json.loads(path.read_text())), "cell": cell})
            files.append(path)
    if kept:
        store(kept, files)
    return found


@contextmanager
def claimed(path: Path, wait: bool) -> Iterator[bool]:
    """Whether this process may compute a cell: no other one does.

    The kernel drops the lock when its process ends, however that is.

    Parameters
    ----------
    path
        The cell's file; the lock is beside it, and is gone when the cell is done.
    wait
        Until whoever computes the cell has ended, rather than go on without it.
    """
    lock = path.with_suffix(".lock")
    with open(lock, "ab", opener=private) as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            lock.unlink(missing_ok=True)


# --- one cell -----------------------------------------------------------------------


def run_cell(
    config: Config,
    cache: Cache,
    control: str = "none",
    measured: str = "confirmation",
) -> dict[str, Any]:
    """Run one cell, in the shape of ``results.json``."""
    config, backbone = with_rates(config), backbone_of(config)
    reference = cache.once("reference", str(id(backbone)), lambda: Reference(backbone))
    loaded = load_dataset(config)
    dataset = fitted(backbone, loaded)
    # What no key says: whose weights and which texts they are (`published.MEASURED`).
    texts = identity_of(config, loaded, "", {})["data"]
    measured_on = {"parameters": backbone.parameters, "texts": texts}
    pooled = with_pool(config, reference, dataset, cache)
    others = dataset.development
    if measured == "development":
        others, dataset = (
            dataset.users,
            replace(dataset, users=dataset.development, development=()),
        )
    controls.check(control, dataset.users, config)

    calibration = None
    if config.evaluate.generate and dataset.task.kind in ("generation", "long"):
        resamples = config.evaluate.bootstrap
        calibration = judge.calibrate(dataset.users, others, config.seed, resamples)

    def one(method: str) -> State:
        run = local_run(config, reference, dataset, pooled)
        controls.apply(control, run)
        state = of_method(run, method)
        written = cast(Local, run.cohort).written.get(method)
        if calibration and written:
            answers = {
                user: [answer_of(dataset.task, text) for text in texts]
                for user, texts in written.items()
            }
            for user, found in judge.judged(calibration, answers).items():
                state.metrics[method][user] |= found
        return state

    noise = calibrated(config, dataset)
    methods = {
        method: cache.once(
            f"{method} {control}",
            stage_key(config, method) + noise,
            partial(one, method),
        )
        for method in config.method_list
    }
    found = built(pooled, dataset, methods)
    found["run"]["shortened"] = shortened(backbone, dataset.users)
    found["run"] |= measured_on
    return {**found, "recognition": calibration.section} if calibration else found


def calibrated(config: Config, dataset: Dataset) -> str:
    """The noise of a cell, as a part of keys: it depends on keys that no stage uses.

    One is ``methods``: each has noisy metrics of its own to pay for.
    """
    return str(noise_of(config, population_of(config, dataset)))


def with_pool(
    config: Config, reference: Reference, dataset: Dataset, cache: Cache
) -> Run:
    """A run whose shared adapter is trained and whose unlabeled set is built."""
    noise = calibrated(config, dataset)

    def after(phase: Callable[[Run], None], before: Run | None) -> Run:
        run = local_run(config, reference, dataset, before)
        phase(run)
        return run

    key = stage_key(config, SHARED) + noise
    adapted = cache.once("shared", key, lambda: after(adapt, None))
    key = stage_key(config, POOL) + noise + str(adapted.ledger.events())
    if config.unlabeled.bank_from == "shared" and config.unlabeled.kind == "votes":
        key += Local(config, adapted.state, dataset, reference).reference.hash
    found = cache.once("pool", key, lambda: after(pool, adapted))
    run = local_run(config, reference, dataset, found)
    # The pool may have been built behind another adapter, of other cells.
    run.state.shared = adapted.state.shared
    run.ledger.charges[: len(adapted.ledger.charges)] = adapted.ledger.charges
    return run


def of_method(run: Run, method: str) -> State:
    """Train one method at its chosen rate, and measure it on the evaluated users."""
    if possible(run, method):
        if method not in UNTRAINED:
            choose_rate(run, method)
            train(run, method)
        measure(run, method)
    return run.state


def shortened(backbone: Backbone, users: Iterable[User]) -> list[int]:
    """How many of the users' prompts do not fit into the context, and of how many."""
    items = [item for user in users for item in (*user.history, *user.held_out)]
    return [sum(one.truncated for one in encode_all(backbone, items)), len(items)]


def built(run: Run, dataset: Dataset, states: Mapping[str, State]) -> dict[str, Any]:
    """What a cell found, as ``results.json`` says it; `states` has one for each method."""
    config = run.config
    metrics = {m: state.metrics[m] for m, state in states.items() if m in state.metrics}
    users = {
        user.id: {m: found[user.id] for m, found in metrics.items() if user.id in found}
        for user in dataset.users
    }
    trained = {m: found for m, one in states.items() if (found := one.outcomes.get(m))}
    # A result of SFT may be one that cells with another unlabeled set share.
    used = [found for m, found in trained.items() if {*ALPHA} <= {*BY_NAME[m].reads}]
    alpha, estimated = alphas(used or trained.values())
    return results.build(
        run={
            "task": config.task,
            "backbone": config.backbone,
            **({"weights": made} if (made := weights_of(config.backbone)) else {}),
            "seed": config.seed,
            "commit": results.git_commit(),
            "users": len(users),
            "learning_rates": {
                m: state.learning_rates[m]
                for m, state in states.items()
                if m in state.learning_rates and BY_NAME[m].rated
            },
            "clamp_rate": {
                m: mean(found, "clamp_rate") for m, found in trained.items()
            },
            "ess": {m: mean(found, "ess") for m, found in trained.items()},
            "overlap": {u.id: u.truth.overlap for u in dataset.users if u.truth},
            **({"dropped": dataset.dropped} if dataset.dropped else {}),
        },
        users=users,
        alpha=alpha,
        alpha_estimated=estimated,
        cost={},
        privacy=card(run.ledger, "", package_version(), ""),
        seed=config.seed,
        resamples=config.evaluate.bootstrap,
    )


def mean(outcomes: Mapping[str, Outcome], name: str) -> float:
    """Mean over users of one number in the training log."""
    return float(np.mean([one.log[name] for one in outcomes.values()]))
