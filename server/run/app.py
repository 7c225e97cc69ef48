"""The ServerApp: the phases of a run, in order.

    hello -> adapt -> pool -> personalise -> evaluate -> results

Everything a phase produces is in the checkpoint before the next one begins, so a run
that is killed anywhere continues with ``--resume latest`` and ends with the same results.
"""

import contextlib
import logging
import os
import platform
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ...common.command import AGAIN, SCARCE, refusal, summary
from ...common.config import Config, parse_run
from ...common.config.methods import BY_NAME
from ...common.data.lamp.longlamp import HUB
from ...common.data.load import TEXT, load_dataset, task_of
from ...common.data.metrics import UNICODE, unread
from ...common.data.types import Dataset, names_of
from ...common.engine.model_folder import weights_of
from ...common.engine.rates import with_rates
from ...common.errors import IdiolectError, refuse_if
from ...common.process import peak_mb, process_name
from ...common.protocol.messages import package_version
from ...common.text import guard
from ..privacy.card import card
from ..privacy.ledger import Ledger, read_ledger
from . import results, work
from .adapt import adapt
from .budget import new_ledger, population_of
from .checkpoint import RunFolder, load, open_run, point_back, point_latest
from .entry import entry, identity_of
from .hello import Identity, hello, identity
from .live import Journal, LiveRun, witness_of
from .masked import forget_sums
from .personalise import alphas, evaluate, mean_log, personalise
from .pool import pool
from .remote import Remote
from .signing import renew

LOG = logging.getLogger("flwr")
DEPENDENCIES = ("flwr", "torch", "transformers", "numpy")  # on which the numbers depend
app = ServerApp()


class _Plain(logging.Filter):
    """What the log of a run may say.

    Flower logs every exception with a traceback; the user's own errors need none. Where
    who takes part is a secret, no line has a name: not one of ours, and none of Flower's.
    """

    run: LiveRun | None = None

    def nameless(self, text: str) -> str:
        """Return a text with nobody's name, if there is a run that keeps them secret."""
        return self.run.nameless(text) if self.run is not None else text

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], IdiolectError):
            record.exc_info = record.exc_text = None
        if self.run is not None and self.run.secret:
            text = record.getMessage()
            if record.exc_info:
                text += "\n" + "".join(traceback.format_exception(*record.exc_info))
            record.msg, record.args = self.nameless(text), ()
            record.exc_info = record.exc_text = None
        return True


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Carry out, or continue, the run that the configuration describes.

    Flower calls this. It must raise for the run to count as failed (``SystemExit`` in a
    simulation's ServerApp thread ends as `completed`).
    """
    plain = _Plain()
    LOG.filters[:] = [f for f in LOG.filters if not isinstance(f, _Plain)]
    LOG.addFilter(plain)  # it stays: Flower logs what is raised here after us
    guard(LOG)
    try:
        config, options = parse_run(context.run_config)
        folder = open_run(resolved(config), options)
    except IdiolectError as error:
        LOG.error("%s", error)
        raise
    journal = Journal(folder.path / "metrics.jsonl")
    try:
        with _ended_by_signals():
            plain.run, ours = prepare(grid, folder, journal)
            carry_out(plain.run, ours)
        journal.write({"event": "finished", "time": time.time()})
    except IdiolectError as error:
        message = plain.nameless(str(error))
        journal.write({"event": "failed", "message": message})
        LOG.error("%s", message)
        if message == str(error):
            raise
        raise IdiolectError(message) from None
    except _Stopped:
        message = f"the run was stopped: --resume {folder.path.name} goes on with it."
        journal.write({"event": "failed", "message": message, "stopped": True})
        raise IdiolectError(message) from None  # Flower then ends its own in order
    except BaseException as error:
        if lacking := _scarce(error, folder.path.name):
            LOG.error("%s", lacking)
            with contextlib.suppress(OSError):  # the disk may be full
                journal.write({"event": "failed", "message": lacking})
            raise IdiolectError(lacking) from None
        message = plain.nameless(summary(error))
        defect = isinstance(error, Exception)
        journal.write({"event": "failed", "message": message, "defect": defect})
        if not defect or plain.run is None or not plain.run.secret:
            raise
        LOG.error("the run failed", exc_info=error)
        raise RuntimeError(message) from None  # its own words could name somebody
    finally:
        folder.lock.close()


def _scarce(error: BaseException, name: str) -> str:
    """Return the sentence of an error of a machine that lacks something; else nothing."""
    if not isinstance(error, OSError) or error.errno not in SCARCE:
        return ""
    _, text = refusal(error) or (0, "")
    return text.replace(AGAIN, f", and go on with --resume {name}.")


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM, and SIGINT by which Flower ends a run that was stopped, unwind the run.

    Flower's own handler talks to the SuperLink first, and may end the process before the
    run has written that it was stopped. In a simulation the run is not in the main thread,
    and gets no signals.
    """
    ours = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGINT) if ours else ()
    before = {n: signal.signal(n, _interrupt) for n in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Stopped(KeyboardInterrupt):
    """Somebody ended the run; no `except Exception` on the way is meant."""


def _interrupt(*_: object) -> NoReturn:
    raise _Stopped


def resolved(config: Config) -> Config:
    """Make paths absolute, and learning rates numbers.

    The nodes' working directory need not be the server's.
    """
    unlabeled = replace(config.unlabeled, file=_absolute(config.unlabeled.file))
    data = config.data if config.data.startswith(HUB) else _absolute(config.data)
    config = replace(config, data=data, unlabeled=unlabeled)
    return with_rates(config)


def _absolute(path: str) -> str:
    return path and str(Path(path).expanduser().absolute())


def prepare(
    grid: Grid, folder: RunFolder, journal: Journal
) -> tuple[LiveRun, Identity]:
    """Read all that the phases need: data, checkpoint, ledger; what nodes must share."""
    config = folder.config
    announce(folder, journal)
    dataset = Dataset(TEXT, ()) if config.on_devices else load_dataset(config)
    ours = identity(config)
    state = load(folder.path, ours.shapes)
    ledger = open_ledger(folder.path, config, dataset)
    run = LiveRun(config, state, ledger, dataset, folder.path, grid, journal)
    run.cohort = Remote(run)
    run.began -= sum(state.cost.seconds.values())
    run.total = work.whole(config, run.population, run.weights)
    state.life += 1
    run.save()  # what this life sends counts up from here
    return run, ours


def carry_out(run: LiveRun, ours: Identity) -> None:
    """Run the phases that are left."""
    try:
        left_out = first_contact(run, ours)
        renew(run)
        phases = {"adapt": adapt, "pool": pool, "personalise": personalise}
        for name, phase in (phases | {"evaluate": evaluate}).items():
            begin(run, name)
            phase(run)
    finally:
        run.inbox.close()
    finish(run, ours, *left_out)


def first_contact(run: LiveRun, ours: Identity) -> tuple[dict[str, int], int]:
    """`hello`; a run for which that fails has not begun, and is not ``latest``."""
    before = point_latest(run.folder)
    begin(run, "hello")
    try:
        return hello(run, ours)
    except IdiolectError:
        point_back(run.folder, before)
        raise


def open_ledger(folder: Path, config: Config, dataset: Dataset) -> Ledger:
    """Continue the run's ledger, or begin it.

    Raises
    ------
    IdiolectError
        There is none, though the run has begun: what it spent must not be forgotten. Or
        another witness vouches for the devices than when the run began.
    """
    path, witness = folder / "ledger.json", witness_of(config)
    if path.exists():
        found = read_ledger(path)
        refuse_if(
            found.secagg.get("witness", "") != (witness if found.secagg else ""),
            "another witness vouches for the devices than when this run began: name that "
            "one by `idiolect-server keys witness`, or start a new run.",
        )
        return found
    refuse_if(
        (
            (folder / "checkpoint" / "state.json").exists()
            or (folder / "devices").exists()
        ),
        (
            f"the ledger {path} is gone, and with it what this run has spent: restore the "
            "file from a backup, or start a new run."
        ),
    )
    return new_ledger(path, config, population_of(config, dataset), witness)


def begin(run: LiveRun, phase: str) -> None:
    """Say that a phase begins."""
    LOG.info("phase %s", phase)
    # Memory so far, of all processes: what the phase before it has needed.
    memory = round(memory_of(run), 1)
    event = {"event": "phase", "phase": phase, "time": time.time(), "all_mb": memory}
    run.journal.write(event)


def memory_of(run: LiveRun) -> float:
    """Megabytes: the sum of the peaks of the server and of all processes that answered.

    An upper bound of what a run held at one time, without Flower's and Ray's own. In tests
    the server's process also answers.
    """
    return sum((run.processes | {process_name(): peak_mb()}).values())


# --- beginning and end -----------------------------------------------------------------


def announce(folder: RunFolder, journal: Journal) -> None:
    """Log which code runs, so that nobody takes another checkout for this one."""
    commit = results.git_commit()
    LOG.info(
        "idiolect %s from %s%s",
        package_version(),
        results.PACKAGE,
        commit and f" at {commit}",
    )
    LOG.info("run %s in %s", folder.path.name, folder.path)
    journal.write(
        {
            "event": "start",
            "time": time.time(),
            "run": folder.path.name,
            "version": package_version(),
            "package": str(results.PACKAGE),
            "commit": commit,
            "pid": os.getpid(),
            "resumed": folder.resumed,
        }
    )


def finish(
    run: LiveRun, ours: Identity, dropped: Mapping[str, int], truncated: int
) -> None:
    """Write ``results.json`` and show the table.

    Parameters
    ----------
    run
        Whose phases are over.
    ours
        Its backbone, as the nodes have it.
    dropped, truncated
        Reason -> users left out of the data, and number of prompts shortened (`hello`).
    """
    state, config = run.state, run.config
    server, together = peak_mb(), memory_of(run)
    run.journal.write({"event": "memory", "server_mb": server, "all_mb": together})
    state.cost.peak_rss_mb = max(state.cost.peak_rss_mb, together)
    run.save()
    forget_sums(run)
    users = {
        user: {m: one[user] for m, one in state.metrics.items() if user in one}
        for user in names_of(run.dataset.users)
    }
    alpha, estimated = alphas(state.outcomes.values())
    privacy = card(run.ledger, run.folder.name, package_version(), results.git_commit())
    built = results.build(
        run=description(run)
        | {"dropped": dropped, "truncated": truncated, "unread": unread_of(run)},
        users={user: methods for user, methods in users.items() if methods},
        alpha=alpha,
        alpha_estimated=estimated,
        cost=asdict(state.cost),
        seed=config.seed,
        resamples=config.evaluate.bootstrap,
        privacy=privacy,
    )
    # A hash of texts confirms a guess of them, which is for nobody where they are secret.
    told = Dataset(run.dataset.task, ()) if run.secret else run.dataset
    built["identity"] = identity_of(config, told, ours.backbone, dropped)
    if run.secret:
        built["run"]["failed"] = None
    if config.privacy.metrics == "noisy":
        built["methods"] = state.noisy_metrics
        # Who was left out, and how much was sent, would tell who took part. Withheld is
        # null: a zero would be a number.
        built["run"] |= {"dropped": None, "truncated": None, "unread": None}
        built["identity"]["too_long"] = None
        built["cost"] |= {"bytes_up": None, "bytes_down": None}
    results.write_json(run.folder / "privacy_card.json", privacy)
    results.write_json(run.folder / "results.json", built)
    results.write_json(run.folder / "leaderboard.json", entry(built))
    # 80 columns: `flwr run --stream` shows the log in any terminal.
    results.render(built, results.console(80), whole=True)


def description(run: LiveRun) -> dict[str, Any]:
    """Return what ``results.json`` says about the run itself."""
    state, config = run.state, run.config
    rates = {method: mean_log(o, "clamp_rate") for method, o in state.outcomes.items()}
    return {
        "name": run.folder.name,
        "simulation": bool(run.ledger.simulation_reasons()),
        "task": config.task,
        "backbone": config.backbone,
        **({"weights": made} if (made := weights_of(config.backbone)) else {}),
        "seed": config.seed,
        "versions": {
            "idiolect": package_version(),
            "python": platform.python_version(),
            **{name: version(name) for name in DEPENDENCIES},
        },
        "commit": results.git_commit(),
        "users": run.population.users,
        "failed": state.failed,
        "learning_rates": {
            m: rate for m, rate in state.learning_rates.items() if BY_NAME[m].rated
        },
        "recipe": recipe_of(config),
        "contrast": {
            method: config.contrast_of(method)
            for method in config.method_list
            if config.contrast_of(method) and config.evaluate.generate
        },
        "clamp_rate": {m: rate for m, rate in rates.items() if rate is not None},
        **({"overlap": known} if (known := overlaps(run)) else {}),
        "path": str(run.folder),
    }


def overlaps(run: LiveRun) -> dict[str, float]:
    """User -> the true overlap, which alpha estimates; of personas that are no secret."""
    if run.secret:
        return {}
    return {user.id: user.truth.overlap for user in run.dataset.users if user.truth}


def unread_of(run: LiveRun) -> list[int] | None:
    """Held-out texts that rouge cannot read, and how many there are; None: not known.

    Rouge reads a-z and 0-9 only unless ``evaluate.rouge-tokens`` says otherwise.
    """
    config, settings = run.config, run.config.evaluate
    judged = settings.generate and task_of(config.task).kind in ("generation", "long")
    if not judged or settings.rouge_tokens == UNICODE or config.on_devices:
        return None
    texts = [item.target for user in run.dataset.users for item in user.held_out]
    return [unread(texts), len(texts)] if texts else None


def recipe_of(config: Config) -> str:
    """In words, what C-BPO was run with; empty where it was not."""
    if "c-bpo" not in config.method_list:
        return ""
    own = config.personalise
    return (
        f"{config.preset or 'default'}, unlabeled weight {own.unlabeled_weight:g}, anchor "
        f"{own.anchor:g}, alpha from {config.unlabeled.alpha_features}"
    )
