"""Runs on the devices of a running server: start, show and end them."""

import contextlib
import json
import signal
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from ...common import config as configuration
from ...common.data.load import public_items
from ...common.errors import IdiolectError, refuse_if
from ...common.text import printable
from ..run import results
from ..simulate import processes
from ..simulate.follow import follow
from ..simulate.plan import Plan, check_backbone, configured, fetch_backbone, finished
from ..simulate.progress import Display, say
from . import database
from .flower import CONNECTION, check_status, flwr, submit
from .places import DATABASE, HANDED, LOG
from .serve import running

STOP_SECONDS = 30.0  # for a run to end that was told to
FORGET_SECONDS = 10.0  # for Flower to notice that a run has ended


def prepare(folder: Path, app: Path, words: Sequence[str], cwd: Path) -> Plan:
    """Check a run on devices as far as possible before it is started.

    Raises
    ------
    IdiolectError
        A setting is wrong, no server is up, or the run is in progress already.
    """
    config, options = configured(app, words, cwd)
    place = Path(options.folder, options.name)
    refuse_if(
        not config.on_devices,
        f"task '{config.task}' is for simulations: a run on devices has -c task=text.",
    )
    check_backbone(config.backbone)
    if file := config.unlabeled.file:
        public_items(file)
    elif config.unlabeled.kind != "self":
        raise IdiolectError(
            f"unlabeled.kind '{config.unlabeled.kind}' needs public text: set "
            "unlabeled.file to JSON lines of {prompt, target}, or use kind self."
        )
    running(folder)
    refuse_if(
        results.is_locked(place),
        f"run '{place.name}' is in progress already: `idiolect-server attach "
        f"{place.name}` shows it, `idiolect-server stop {place.name}` ends it.",
    )
    log, resumed = folder / LOG, bool(options.resume)
    return Plan(app.absolute(), config, place, 0, log, resumed)


def run(folder: Path, plan: Plan, console: Console) -> dict[str, Any]:
    """Run a plan on the devices of a running server, and return its results.

    Raises
    ------
    IdiolectError
        The run failed; the sentence is the run's own where it gave one.
    """
    if (done := finished(plan, console)) is not None:
        return done
    environment = running(folder)
    fetch_backbone(plan.config.backbone)
    _, offset = results.read_events(plan.metrics)
    say(console, f"run {plan.folder.name} in {plan.folder.parent}")
    with tempfile.TemporaryDirectory() as scratch, _uninterrupted():
        settings = Path(scratch) / "run.toml"
        settings.write_text(configuration.flat_toml(plan.settings))
        identity = submit(plan.app, settings, environment)
        _note_submitted(folder, plan.folder, identity)
    return _watch(folder, plan, identity, console, offset)


def _watch(
    folder: Path,
    plan: Plan,
    identity: str,
    console: Console,
    offset: int,
    known: int = 0,
) -> dict[str, Any]:
    """Show a submitted run to its end; return its results.

    Parameters
    ----------
    folder, plan, identity, console
        The server's folder, the run, Flower's id of it, and where to show it.
    offset
        Position in the run's events to begin at.
    known
        Number of events from there that are not shown.
    """
    environment = running(folder)
    # A ServerApp that was refused gives the reason in the server's log.
    ask = partial(check_status, plan.log, identity, environment)
    up = partial(results.is_locked, folder)
    events = follow(plan, offset, up, environment[processes.VARIABLE], ask)
    try:
        with Display(console) as display:
            for number, event in enumerate(events):
                if number >= known or event["event"] == "warning":
                    display.show(event)
    except IdiolectError:
        database.forget_soon(folder / DATABASE, FORGET_SECONDS)
        raise
    # What devices sent. If this is too early, `serve` does it later.
    database.forget_soon(folder / DATABASE, FORGET_SECONDS)
    return results.load(str(plan.folder.parent), plan.folder.name)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C to the end of the block: a run is submitted completely or not at all."""
    caught: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        raise KeyboardInterrupt


def _note_submitted(folder: Path, place: Path, identity: str) -> None:
    results.write_json(
        folder / HANDED / f"{place.name}.json",
        {"identity": identity, "folder": str(place)},
    )


def submitted(folder: Path, name: str) -> tuple[str, Path]:
    """Return Flower's id of the last start of a submitted run, and the run's folder.

    `name` may be ``latest``.

    Raises
    ------
    IdiolectError
        There is none of that name.
    """
    notes = {file.stem: file for file in (folder / HANDED).glob("*.json")}
    if name == "latest" and notes:
        name = max(notes, key=lambda one: notes[one].stat().st_mtime)
    refuse_if(
        not notes,
        f"no run was submitted to the server in {folder} yet: `idiolect-server run "
        "APP` starts one.",
    )
    refuse_if(
        name not in notes,
        f"no run '{printable(name, 100)}' was submitted to the server in {folder}: "
        "`idiolect-server runs` lists the runs.",
    )
    note = json.loads(notes[name].read_text())
    return str(note["identity"]), Path(note["folder"])


def in_progress(folder: Path, name: str) -> bool:
    """Whether a run was submitted and has not ended."""
    with contextlib.suppress(IdiolectError):
        _, place = submitted(folder, name)
        # Without a folder, its ServerApp is being started.
        return not place.exists() or results.is_locked(place)
    return False


def attach(folder: Path, name: str, console: Console) -> dict[str, Any]:
    """Show a run to its end, and return its results; also of a run that has ended.

    Raises
    ------
    IdiolectError
        There is no such run, or it failed.
    """
    identity, place = submitted(folder, name)
    name = place.name
    if not in_progress(folder, name):
        return _ended(place)
    say(console, f"run {name} is in progress; Ctrl-C does not end it")
    plan = Plan(Path(), configuration.Config(), place, 0, folder / LOG)
    offset = _last_start(plan.metrics)
    seen, _ = results.read_events(plan.metrics, offset)
    return _watch(folder, plan, identity, console, offset, len(seen) - 1)


def _ended(place: Path) -> dict[str, Any]:
    """Return the results of a run that has ended, or raise its error."""
    if (state := results.state_of(place)) == "finished":
        return results.load(str(place.parent), place.name)
    events, _ = results.read_events(place / "metrics.jsonl")
    said = [e["message"] for e in events if e["event"] == "failed"]
    if state in ("failed", "stopped") and said:
        raise IdiolectError(said[-1])
    raise IdiolectError(
        f"run '{place.name}' was interrupted: continue it by the command that began it, "
        f"with --resume {place.name}."
    )


def _last_start(path: Path) -> int:
    """Return the position in a run's events where its last start begins."""
    with contextlib.suppress(FileNotFoundError):
        before, mark, _ = path.read_bytes().rpartition(b'{"event": "start"')
        return len(before) if mark else 0
    return 0


def stop(folder: Path, name: str) -> str:
    """End a run that is in progress; `resume` continues it from its checkpoint.

    Returns
    -------
    str
        The run's name.

    Raises
    ------
    IdiolectError
        There is no such run, it has ended already, or it does not end.
    """

    def ended() -> bool:
        return not results.is_locked(place)

    (identity, place), environment = submitted(folder, name), running(folder)
    name = place.name
    events, _ = results.read_events(place / "metrics.jsonl")
    starts = [event for event in events if event["event"] == "start"]
    alive = not ended()
    if alive and starts:
        # Before Flower is told: otherwise it ends before it has written that it does.
        processes.end_one(int(starts[-1]["pid"]), environment[processes.VARIABLE])
        processes.wait_until(ended, STOP_SECONDS, 0.2)
    # For a run that had not begun, or whose ServerApp missed the signal.
    answer, reason = flwr(["stop", identity, CONNECTION], environment)
    if not alive and not answer.get("success"):
        raise IdiolectError(
            f"run '{name}' has ended already: its state is {results.state_of(place)}."
        )
    refuse_if(
        not processes.wait_until(ended, STOP_SECONDS, 0.2),
        f"run '{name}' has not ended yet ({reason}): give the command again, or end "
        "`serve`, which ends its runs.",
    )
    return name
