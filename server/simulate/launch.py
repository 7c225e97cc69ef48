"""Run a Flower app in simulation: closed to others, with progress and a true exit code.

`flwr run` returns before the run has ended and exits with 0 even if it fails. It joins any
SuperLink that is up already, with that SuperLink's code and environment, and a SuperLink
lets every account of the machine submit code. So `simulate` starts Flower's simulation
itself, in a process that inherits only what `environment` lists. It follows the run's
``metrics.jsonl`` and ends all that it started.
"""

import contextlib
import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from ...common.config import flat_toml
from ...common.errors import IdiolectError, refuse_if
from ...common.files import private, private_folder, write_atomically
from ...common.text import printable
from ..forecast.estimate import Forecast
from ..run import results
from ..run.work import WEIGHTS
from . import processes
from .environment import flower_environment, joining, remove_folder, short_folder
from .follow import follow
from .plan import Plan, built_in_app, fetch_backbone, finished
from .progress import Display, say
from .simulator import ALONE, SHARED

# Seconds until a process that was asked to end is killed. A run can be killed at any moment
# and resumed, so after Ctrl-C nobody has to wait for Flower and Ray.
PATIENCE, IMPATIENCE = 5.0, 0.2
UNLOCK_SECONDS = 10.0  # for ended processes to release the run's lock
NETWORK = ALONE  # or SHARED, on machines that do not allow a network of its own
STOPPED = "stopped: every process of the run has ended."


def simulate(
    plan: Plan, console: Console, ahead: Forecast | None = None
) -> dict[str, Any]:
    """Run a plan to its end and return its results.

    `ahead`: the forecast that the progress follows.

    All processes that were started are ended before this returns or raises.

    Raises
    ------
    IdiolectError
        The run failed; the sentence is the run's own if it wrote one.
    """
    name, output = plan.folder.name, str(plan.folder.parent)
    if (done := finished(plan, console)) is not None:
        return done
    fetch_backbone(plan.config.backbone)
    claim(plan, console)
    mark, known = secrets.token_hex(16), dict[int, int]()
    # Read before the start: events of an earlier start are not shown.
    _, offset = results.read_events(plan.metrics)
    patience = PATIENCE
    try:
        place = private_place(plan, mark)
        say(console, f"run {name} in {output}")
        environment = private_environment(plan, place, mark)
        if ahead is not None:
            environment[WEIGHTS] = json.dumps(dict(ahead.weights))
        with Display(console, ahead.phases if ahead else 0.0) as display:
            process = start(plan, place, environment)
            for event in follow(plan, offset, lambda: process.poll() is None, mark):
                display.show(event)
                if event["event"] == "phase":
                    known |= processes.family(mark)
    except (KeyboardInterrupt, SystemExit) as ended:
        patience = IMPATIENCE
        say_stopping(plan, console)
        if isinstance(ended, KeyboardInterrupt):
            raise KeyboardInterrupt(STOPPED) from None
        raise
    finally:
        try:
            processes.end(mark, patience, known)
        except KeyboardInterrupt:  # a second Ctrl-C: kill at once
            processes.end(mark, 0.0, known)
            raise
        finally:
            if read_record(plan).get("mark") == mark:  # else another took over
                clear(plan)
    return results.load(output, name)


def say_stopping(plan: Plan, console: Console) -> None:
    """Say at once that a run is being ended, and how to continue it."""
    begun = (plan.folder / "config.toml").is_file()
    again = "stopping; nothing has begun yet, so give the same command again"
    say(console, f"stopping; go on with\n    {resuming(plan)}" if begun else again)


def resuming(plan: Plan) -> str:
    """Return the command that continues a run, quoted for a shell."""
    near = plan.app.is_relative_to(Path.cwd())
    app = plan.app.relative_to(Path.cwd()) if near else plan.app
    named = [] if plan.app == built_in_app() else [str(app)]
    words = ["idiolect-server", "simulate", *named, "--resume", plan.folder.name]
    if plan.folder.parent != results.runs_folder():
        words += ["--output-dir", str(plan.folder.parent)]
    if plan.gpus:
        words += ["--gpus-per-node", f"{plan.gpus:g}"]
    if plan.cluster:
        words += ["--ray", plan.cluster.address]
    return printable(shlex.join(words), 2000)


def read_record(plan: Plan) -> dict[str, str]:
    """Return the notes of the last `simulate` of this run: its mark and Ray's folder."""
    try:
        record = json.loads((plan.scratch / "process.json").read_text())
        # An earlier version had no such folder.
        return {"mark": str(record["mark"]), "place": str(record.get("place", ""))}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def claim(plan: Plan, console: Console) -> None:
    """End what an earlier `simulate` left; refuse a run that another process writes."""
    name, mark = plan.folder.name, read_record(plan).get("mark", "")
    if mark and processes.marked(mark):
        say(console, f"ending what is left of the last start of {name}")
        processes.end(mark)
        # A process that ends loses its environment, which has the mark, before it releases
        # its files.
        processes.wait_until(lambda: not results.is_locked(plan.folder), UNLOCK_SECONDS)
    refuse_if(
        results.is_locked(plan.folder),
        f"run '{name}' is being written by a process that `simulate` did not "
        "start: end that one, or wait until it has finished.",
    )
    clear(plan)


def clear(plan: Plan) -> None:
    """Remove the scratch folder; its log is moved to the run's folder, if there is one."""
    if place := read_record(plan).get("place"):
        remove_folder(Path(place))
    log = plan.scratch / "run.log"
    if plan.folder.is_dir():
        with (
            contextlib.suppress(FileNotFoundError),
            open(plan.log, "ab", opener=private) as kept,
        ):
            kept.write(log.read_bytes())
        shutil.rmtree(plan.scratch, ignore_errors=True)
    for entry in plan.scratch.glob("*"):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry != log:
            entry.unlink()


def private_place(plan: Plan, mark: str) -> Path:
    """Make and note the scratch folder and a short one for Ray; return the short one."""
    try:
        private_folder(plan.scratch)
    except OSError as error:
        raise IdiolectError(
            f"runs can't be written to {plan.folder.parent} ({error.strerror}): "
            "set --output-dir to a folder that can."
        ) from None
    place = short_folder()
    results.write_json(
        plan.scratch / "process.json",
        {"mark": mark, "pid": os.getpid(), "place": str(place)},
    )
    write_atomically(plan.scratch / "run.toml", flat_toml(plan.settings).encode())
    return place


def private_environment(plan: Plan, place: Path, mark: str) -> dict[str, str]:
    """Return the environment of all processes of a simulation.

    Ray's processes run any code that is sent to them, by default without authentication.
    The token is in the environment, which other accounts cannot read, and never on a
    command line. A cluster has its own, which the caller's environment names.
    """
    ours = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # On Linux this makes Ray listen on 127.0.0.1 only.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    return {
        **flower_environment(plan.scratch / "flower", mark),
        **(joining() if plan.cluster else ours),
        "TMPDIR": str(place),  # removed at the end with its content
        # `fetch_backbone` has fetched what the run needs from the model hub.
        "HF_HUB_OFFLINE": "1",
    }


def start(
    plan: Plan, place: Path, environment: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    """Start the simulation in a session of its own."""
    # -P and an own folder: otherwise Python and Ray would load modules from the caller's
    # folder, to which others may be able to write.
    command = [
        *(sys.executable, "-P", "-m", "idiolect.server.simulate.simulator"),
        *(str(plan.app), str(plan.scratch / "run.toml"), str(plan.nodes)),
        *(str(place), SHARED if plan.cluster else NETWORK, str(plan.gpus)),
        *([plan.cluster.address] if plan.cluster else []),
    ]
    with open(plan.scratch / "run.log", "ab", opener=private) as log:
        return subprocess.Popen(
            command,
            env=dict(environment),
            cwd=place,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # `simulate` gets Ctrl-C and ends the rest
            umask=0o077,
        )
