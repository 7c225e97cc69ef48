"""Run a Flower app in simulation: in private, with live progress and a true exit code.

`flwr run` returns before the run has ended, exits 0 when it fails, and joins whatever
SuperLink is already up, with that one's code and environment; and a SuperLink lets every
account of the machine submit code. So `simulate` starts Flower's simulation itself, in a
process that inherits nothing but what `environment` lists, follows the run's
``metrics.jsonl``, and ends everything it started.
"""

import contextlib
import itertools
import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console

from ...common import config as configuration
from ...common.command import one_line
from ...common.config import (
    Config,
    RunOptions,
    absolute_backbone,
    flat_toml,
    flatten,
    presets,
)
from ...common.config.old import current
from ...common.config.options import OPTIONS, split
from ...common.errors import DefectError, IdiolectError
from ...common.files import private, private_folder, write_atomically
from ...common.text import printable, read_toml
from ..run import results
from . import processes
from .environment import flower_environment, remove_folder, short_folder
from .progress import Display
from .simulator import ALONE

# Seconds until what is ended is killed. A run can be killed anywhere and goes on as if it
# had not been, so who presses Ctrl-C need not wait for Flower and Ray to tidy up.
PATIENCE, IMPATIENCE = 5.0, 1.0
LAST_BREATH = 10.0  # seconds in which what was ended must let go of the run
NETWORK = ALONE  # or SHARED, as on machines that don't allow the other
STOPPED = "stopped: every process of the run has ended."
SILENT_SECONDS = 10.0  # between two questions while no event comes


@dataclass(frozen=True)
class Plan:
    """A run that passed every check: what is run, how it is configured, and where."""

    app: Path
    config: Config
    folder: Path
    nodes: int
    server_log: Path | None = None  # of a server of devices, if it has the run
    resumed: bool = False

    @property
    def settings(self) -> dict[str, configuration.Scalar]:
        """What Flower is given: the configuration, and how and where the run is written."""
        name, folder = self.folder.name, str(self.folder.parent)
        options = RunOptions(name, name if self.resumed else "", folder)
        return options.flat() | flatten(self.config)

    @property
    def scratch(self) -> Path:
        """What `simulate` itself writes; the run's folder belongs to the ServerApp."""
        return self.folder.with_name(f".{self.folder.name}")

    @property
    def log(self) -> Path:
        """Where the output of Flower, Ray and the run is found when the run has ended."""
        if self.server_log is not None:
            return self.server_log
        place = self.folder if self.folder.is_dir() else self.scratch
        return place / "run.log"

    @property
    def metrics(self) -> Path:
        """The events of the run."""
        return self.folder / "metrics.jsonl"


def built_in_app() -> Path:
    """Folder of the Flower app that is installed with the package."""
    return Path(str(files("idiolect") / "simulations" / "lamp")).resolve()


def prepare(app: Path, words: Sequence[str], nodes: int | None, cwd: Path) -> Plan:
    """Check everything that can be checked before anything is started or written.

    Parameters
    ----------
    app
        Folder of the Flower app.
    words
        ``key=value``, as given with ``-c``.
    nodes
        Simulated SuperNodes; None: one per core, at most 8.
    cwd
        What relative paths are relative to.

    Raises
    ------
    IdiolectError
        An unknown key, a value out of range, missing data, a run that can't be resumed,
        and whatever else a run would stumble over later (`checks`).
    """
    config, options = configured(app, words, cwd)
    folder = Path(options.folder, options.name)
    if config.on_devices:
        raise IdiolectError(
            "task 'text' is what owners keep on their devices: run it there by "
            "`idiolect-server run`, or set task=headline to simulate."
        )
    check_backbone(config.backbone)
    check_data(config)
    check_folder(folder.parent)
    refuse_broken(app)
    cores = len(os.sched_getaffinity(0))
    most = config.users + config.development_users
    nodes = min(cores, 8, most) if nodes is None else nodes
    if not 1 <= nodes <= most:
        raise IdiolectError(
            f"--nodes is {nodes}, but there are {most} users to be hosted: "
            f"use 1 to {most}."
        )
    if not folder.exists():  # else the run has begun, and may be beyond what is checked
        from .checks import check_start

        fetch_backbone(config.backbone)
        check_start(config)
    return Plan(app.absolute(), config, folder, nodes, resumed=bool(options.resume))


def configured(app: Path, words: Sequence[str], cwd: Path) -> tuple[Config, RunOptions]:
    """Read the app's settings and the given ones; name the run, or find the one to resume.

    What the app's table lists holds where nothing else is given: a preset wins over it.

    Raises
    ------
    IdiolectError
        An unknown key, a value out of range, a run that can't be resumed.
    """
    listed, words_given = read_app(app), dict(map(_split, words))
    options = split({**listed, **words_given})[0]
    folder = str(cwd / Path(options.folder).expanduser()) if options.folder else ""
    options = replace(options, folder=str(results.runs_folder(folder)))
    given = {
        name: configuration.parse_word(name, text)
        for name, text in split(words_given)[1].items()
    }
    given = current(given)
    base = current(split(listed)[1])
    preset = presets.read(str({**base, **given}.get("preset", "")))
    config = resolve_paths(configuration.parse({**base, **preset, **given}), cwd)
    latest = Path(options.folder, "latest")
    # To resume `latest` where there is no run starts one: a supervisor repeats one command.
    if options.resume and (options.resume != "latest" or latest.exists()):
        return resumed(options, given, cwd)
    return config, named(config, options)


def read_app(app: Path) -> dict[str, Any]:
    """Read the settings in a Flower app's ``pyproject.toml``, with flat keys."""
    file = app / "pyproject.toml"
    try:
        table = read_toml(file.read_text())
        settings = _flat(table["tool"]["flwr"]["app"]["config"])
    except FileNotFoundError:
        raise IdiolectError(
            f"{file} does not exist: give the folder of a Flower app, for example "
            "simulations/lamp."
        ) from None
    except (KeyError, TypeError):
        raise IdiolectError(
            f"{file} has no table [tool.flwr.app.config]: copy the one of "
            "simulations/lamp/pyproject.toml."
        ) from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise IdiolectError(f"{file} is no valid TOML ({error}): repair it.") from None
    known = (*configuration.FIELDS, *OPTIONS)
    if missing := [name for name in known if name not in settings]:
        raise IdiolectError(
            f"{file} lists no '{missing[0]}' in [tool.flwr.app.config], and Flower "
            "passes on only what is listed: copy the table of simulations/lamp."
        )
    return settings


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _split(word: str) -> tuple[str, str]:
    name, equals, text = word.partition("=")
    if not equals:
        raise IdiolectError(
            f"-c takes key=value, not '{word}': see docs/configuration.md."
        )
    return name.strip(), text


def resolve_paths(config: Config, cwd: Path) -> Config:
    """Make paths absolute: Flower runs the app somewhere else."""
    flat = flatten(config)
    for name in ("data", "unlabeled.file"):
        if flat[name]:
            flat[name] = str((cwd / Path(str(flat[name])).expanduser()).resolve())
    flat["backbone"] = absolute_backbone(config.backbone, cwd)
    return configuration.parse(flat)


def named(config: Config, options: RunOptions) -> RunOptions:
    """Choose the name of a new run, or check the one that was given."""
    output = Path(options.folder)
    if name := options.name:
        if name == "latest" or name.startswith(".") or "/" in name:
            raise IdiolectError(
                f"the name of a run is '{name}': it names a folder; use letters, digits "
                "and dashes, and not 'latest'."
            )
        if (output / name).exists():
            raise IdiolectError(
                f"run '{name}' exists in {output}: choose another --name, or continue it "
                f"with --resume {name}."
            )
    else:
        stem = f"{config.task.lower()}-{time.strftime('%Y%m%d-%H%M%S')}"
        names = (f"{stem}-{n}" if n > 1 else stem for n in itertools.count(1))
        name = next(name for name in names if not (output / name).exists())
    return RunOptions(name, "", options.folder)


def resumed(
    options: RunOptions, given: Mapping[str, Any], cwd: Path
) -> tuple[Config, RunOptions]:
    """Return a saved run's own config; refuse a key that was given another value."""
    folder = results.find(options.folder, options.resume)
    try:
        saved = configuration.from_toml((folder / "config.toml").read_text())
    except FileNotFoundError:
        raise IdiolectError(
            f"run '{folder.name}' ended before it had saved its config: start it again "
            "without --resume."
        ) from None
    except (IdiolectError, tomllib.TOMLDecodeError) as error:
        raise IdiolectError(
            f"run '{folder.name}' was saved by another version of idiolect ({error}): "
            "install that version, or start a new run."
        ) from None
    preset = presets.read(str(given.get("preset", "")))
    together = {**flatten(saved), **preset, **given}
    wanted = resolve_paths(configuration.parse(together), cwd)
    changed = configuration.differences(saved, wanted)
    # A preset changes other keys too, which nobody gave.
    if changed := [name for name in changed if name in given] or changed:
        raise IdiolectError(
            f"run '{folder.name}' was started with another {', '.join(changed)}: "
            "resume it without that key, or start a new run."
        )
    return saved, RunOptions(folder.name, folder.name, str(folder.parent))


def check_backbone(name: str) -> None:
    """Refuse a backbone that certainly can't be loaded; loading it comes later."""
    if name == "tiny":
        return
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise IdiolectError(
                f"the backbone folder {path} has no config.json: give a folder as "
                "save_pretrained of transformers writes it."
            )
        return
    absolute_backbone(name)  # refuses what is written as a path
    if os.environ.get("HF_HUB_OFFLINE", "0") in ("", "0"):
        return
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(name, "config.json"), str):
        raise IdiolectError(
            f"the backbone '{name}' is not in the local cache and HF_HUB_OFFLINE is "
            "set: unset it, or give a folder."
        )


def check_folder(folder: Path) -> None:
    """Refuse a place where no run can be written."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise IdiolectError(
            f"runs can't be written to {folder}: set --output-dir to a folder that can."
        )


def fetch_backbone(name: str) -> None:
    """Fetch a backbone that is named by its id, while the caller's proxies are known.

    The processes of a run inherit none of them, and ask nobody outside.
    """
    if name == "tiny" or Path(name).is_dir():
        return
    from ...common.engine.backbone import locate

    locate(name)


def check_data(config: Config) -> None:
    """Read the users once, so that bad data is refused before anything starts."""
    from ...common.data.load import load_dataset

    load_dataset(config)


def simulate(plan: Plan, console: Console) -> dict[str, Any]:
    """Run a plan to its end and return its results.

    Every process that was started is ended before this returns or raises.

    Raises
    ------
    IdiolectError
        The run failed; the sentence is the run's own where it gave one.
    """
    name, output = plan.folder.name, str(plan.folder.parent)
    if (done := finished(plan, console)) is not None:
        return done
    fetch_backbone(plan.config.backbone)
    claim(plan, console)
    mark, known = secrets.token_hex(16), dict[int, int]()
    # Read before the start, so that events of an earlier life are not taken for ours.
    _, offset = results.read_events(plan.metrics)
    patience = PATIENCE
    try:
        place = private_place(plan, mark)
        said = printable(f"run {name} in {output}", 1000)
        console.print(said, markup=False, highlight=False, soft_wrap=True)
        with Display(console) as display:
            process = start(plan, place, private_environment(plan, place, mark))
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
        except KeyboardInterrupt:  # a second one: at once
            processes.end(mark, 0.0, known)
            raise
        finally:
            if read_record(plan).get("mark") == mark:  # else a later one took over
                clear(plan)
    return results.load(output, name)


def say_stopping(plan: Plan, console: Console) -> None:
    """Say at once that a run is being ended, and how it goes on."""
    if (plan.folder / "config.toml").is_file():
        said = f"stopping; go on with\n    {resuming(plan)}"
    else:
        said = "stopping; nothing has begun yet, so give the same command again"
    console.print(said, markup=False, highlight=False, soft_wrap=True)


def resuming(plan: Plan) -> str:
    """Return the command with which a run goes on, as a shell takes it."""
    near = plan.app.is_relative_to(Path.cwd())
    app = plan.app.relative_to(Path.cwd()) if near else plan.app
    named = [] if plan.app == built_in_app() else [str(app)]
    words = ["idiolect-server", "simulate", *named, "--resume", plan.folder.name]
    if plan.folder.parent != results.runs_folder():
        words += ["--output-dir", str(plan.folder.parent)]
    return printable(shlex.join(words), 2000)


def finished(plan: Plan, console: Console) -> dict[str, Any] | None:
    """Return the results of a run that is to be resumed and has ended already."""
    if not plan.resumed or results.state_of(plan.folder) != "finished":
        return None
    said = printable(f"run {plan.folder.name} has finished already")
    console.print(said, markup=False, highlight=False)
    return results.load(str(plan.folder.parent), plan.folder.name)


def read_record(plan: Plan) -> dict[str, str]:
    """Return what the last `simulate` of this run noted: its mark and Ray's folder."""
    try:
        record = json.loads((plan.scratch / "process.json").read_text())
        # A version before had no such folder.
        return {"mark": str(record["mark"]), "place": str(record.get("place", ""))}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def claim(plan: Plan, console: Console) -> None:
    """End what an earlier `simulate` left behind; refuse a run that another one holds."""
    name, mark = plan.folder.name, read_record(plan).get("mark", "")
    if mark and processes.marked(mark):
        said = printable(f"ending what is left of the last start of {name}")
        console.print(said, markup=False)
        processes.end(mark)
        # A process that is going away loses its environment, by which it is known, before
        # it lets go of its files.
        deadline = time.monotonic() + LAST_BREATH
        while results.is_locked(plan.folder) and time.monotonic() < deadline:
            time.sleep(0.1)
    if results.is_locked(plan.folder):
        raise IdiolectError(
            f"run '{name}' is being written by a process that `simulate` did not "
            "start: end that one, or wait until it has finished."
        )
    clear(plan)


def clear(plan: Plan) -> None:
    """Remove the scratch folder; its log is kept in the run's folder, if there is one."""
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
    """Make the scratch folder, and a short one for Ray; note both; return the short one."""
    try:
        private_folder(plan.scratch)
    except OSError as error:
        raise IdiolectError(
            f"runs can't be written to {plan.folder.parent} ({error.strerror}): "
            "set --output-dir to a folder that can."
        ) from None
    place = short_folder()
    record = {"mark": mark, "pid": os.getpid(), "place": str(place)}
    results.write_json(plan.scratch / "process.json", record)
    write_atomically(plan.scratch / "run.toml", flat_toml(plan.settings).encode())
    return place


def private_environment(plan: Plan, place: Path, mark: str) -> dict[str, str]:
    """Return the environment of all that a simulation starts.

    Ray's processes run whatever code they are sent, and by default they ask nobody who he
    is. The token is in the environment, which other accounts can't read, and on no command
    line.
    """
    return {
        **flower_environment(plan.scratch / "flower", mark),
        "TMPDIR": str(place),  # removed at the end, with all that was written there
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # On Linux this is what makes Ray listen on 127.0.0.1 alone.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # What was needed from the model hub is here (`fetch_backbone`).
        "HF_HUB_OFFLINE": "1",
    }


def refuse_broken(app: Path) -> None:
    """Refuse an app that Flower could not load, before anything is started.

    Raises
    ------
    IdiolectError
        Its ``pyproject.toml`` is invalid, or names what is not there.
    """
    from flwr.cli.config_utils import load_and_validate

    try:
        load_and_validate(app / "pyproject.toml")
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise IdiolectError(f"Flower refused the app {app}: {reason}") from None


def start(
    plan: Plan, place: Path, environment: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    """Start the simulation in a session of its own."""
    # -P, and a folder of our own: Python and Ray would load modules from where the caller
    # happens to be, and that may be a folder that others write to.
    command = [
        sys.executable,
        "-P",
        "-m",
        "idiolect.server.simulate.simulator",
        str(plan.app),
    ]
    command += [str(plan.scratch / "run.toml"), str(plan.nodes), str(place), NETWORK]
    with open(plan.scratch / "run.log", "ab", opener=private) as log:
        return subprocess.Popen(
            command,
            env=dict(environment),
            cwd=place,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is ours: we end the rest in order
            umask=0o077,
        )


def follow(
    plan: Plan,
    offset: int,
    up: Callable[[], bool],
    mark: str,
    ask: Callable[[], None] = lambda: None,
) -> Iterator[dict[str, Any]]:
    """Yield the run's events as they are written, until it has finished.

    Parameters
    ----------
    plan, offset
        The run, and where in its events to begin.
    up
        Whether what carries the run out, or who starts that again, is alive.
    mark
        In the environment of the run's processes.
    ask
        Called now and then while the run has not written anything; raises if it knows
        that nothing will come.

    Raises
    ------
    IdiolectError
        The run failed, or its process ended without saying so.
    """
    pid, asked = 0, time.monotonic()
    while True:
        # Asked before the events are read, so that no last word is missed.
        alive = up() and (not pid or processes.is_marked(pid, mark))
        events, offset = results.read_events(plan.metrics, offset)
        for event in events:
            yield event
            if event["event"] == "start":
                pid = int(event["pid"])
            elif event["event"] == "finished":
                return
            elif event["event"] == "failed":
                wait_for_end(pid, mark)
                raise _failure(event, plan)
        if not alive:
            begun = (plan.folder / "config.toml").is_file()
            again = f"go on with --resume {plan.folder.name}"
            raise IdiolectError(
                f"the run ended without a word: see the end of {plan.log}, and "
                f"{again if begun else 'give the same command again'}."
            )
        if not pid and time.monotonic() - asked > SILENT_SECONDS:
            ask()
            asked = time.monotonic()
        time.sleep(0.3)


def _failure(event: Mapping[str, Any], plan: Plan) -> IdiolectError:
    """Return what made a run fail: its own sentence, or where the traceback is."""
    if not event.get("defect"):
        return IdiolectError(event["message"])
    return DefectError(
        f"the run met a defect of idiolect ({one_line(event['message'])[:300]}): its "
        f"traceback is at the end of {plan.log}; report it, and go on with "
        f"--resume {plan.folder.name}."
    )


def wait_for_end(pid: int, mark: str, patience: float = 5.0) -> None:
    """Let a failing run write its traceback to the log, but not for ever."""
    deadline = time.monotonic() + patience
    while processes.is_marked(pid, mark) and time.monotonic() < deadline:
        time.sleep(0.1)
