"""Run a Flower app in simulation: a private SuperLink, live progress, a true exit code.

`flwr run` returns before the run has ended, exits 0 when it fails, and joins whatever
SuperLink is already up, with that one's code and environment. So `simulate` starts a
SuperLink of its own, submits the app to it, follows the run's ``metrics.jsonl``, and
ends everything it started.
"""

import contextlib
import itertools
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ..common import config as configuration
from ..common.config import Config
from ..common.errors import IdiolectError
from ..common.text import printable, read_toml
from . import processes, results
from .progress import Display

BIN = Path(sys.executable).parent
CONNECTION = "private"  # what Flower's own configuration calls the SuperLink
START_SECONDS = 60.0
LAST_BREATH = 10.0  # seconds in which what was ended must let go of the run
SILENT_SECONDS = 10.0  # between two questions to the SuperLink while no event comes

ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    # Else Flower builds a second environment that shadows the installed one.
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Else Ray hides the GPU from actors that reserve none.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "PYTHONUNBUFFERED": "1",
    # glibc then keeps what a training step frees for the next one, instead of asking the
    # kernel for zeroed pages again.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(1 << 27),
}


@dataclass(frozen=True)
class Plan:
    """A run that passed every check: what is run, how it is configured, and where."""

    app: Path
    config: Config
    folder: Path
    nodes: int

    @property
    def scratch(self) -> Path:
        """What `simulate` itself writes; the run's folder belongs to the ServerApp."""
        return self.folder.with_name(f".{self.folder.name}")

    @property
    def log(self) -> Path:
        """Where the output of Flower and Ray is found when the run has ended."""
        place = self.folder if self.folder.is_dir() else self.scratch
        return place / "superlink.log"

    @property
    def metrics(self) -> Path:
        """The events of the run."""
        return self.folder / "metrics.jsonl"


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
        An unknown key, a value out of range, missing data, a run that can't be resumed.
    """
    config, folder = configured(app, words, cwd)
    if config.on_devices:
        raise IdiolectError(
            "task 'text' is what owners keep on their devices: run it there by "
            "`idiolect-server run`, or set task=headline to simulate."
        )
    check_backbone(config.backbone)
    check_data(config)
    cores = len(os.sched_getaffinity(0))
    most = config.users + config.development_users
    nodes = min(cores, 8, most) if nodes is None else nodes
    if not 1 <= nodes <= most:
        raise IdiolectError(
            f"--nodes is {nodes}, but there are {most} users to be hosted: "
            f"use 1 to {most}."
        )
    return Plan(app.absolute(), config, folder, nodes)


def configured(app: Path, words: Sequence[str], cwd: Path) -> tuple[Config, Path]:
    """Read the app's settings and the given ones; name the run, or find the one to resume.

    Raises
    ------
    IdiolectError
        An unknown key, a value out of range, a run that can't be resumed.
    """
    base = read_app(app)
    given = dict(_split(word) for word in words)
    base |= {name: configuration.parse_word(name, text) for name, text in given.items()}
    config = resolve_paths(configuration.parse(base), cwd)
    latest = results.runs_folder(config.output_dir) / "latest"
    # `resume=latest` where there is no run starts one: a supervisor repeats one command.
    if config.resume and (config.resume != "latest" or latest.exists()):
        return resumed(config, given, cwd)
    return named(config)


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
        raise IdiolectError(f"{file} is no valid TOML: {error}.") from None
    if missing := [name for name in configuration.FIELDS if name not in settings]:
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
        raise IdiolectError(f"-c takes key=value, not '{word}'.")
    return name.strip(), text


def resolve_paths(config: Config, cwd: Path) -> Config:
    """Make paths absolute: Flower runs the app somewhere else."""
    flat = configuration.flatten(config)
    for name in ("data", "unlabeled.file", "output-dir"):
        if flat[name]:
            flat[name] = str((cwd / Path(str(flat[name])).expanduser()).resolve())
    flat["output-dir"] = str(results.runs_folder(str(flat["output-dir"])))
    backbone = (cwd / Path(config.backbone).expanduser()).resolve()
    if config.backbone != "tiny" and backbone.exists():
        flat["backbone"] = str(backbone)
    return configuration.parse(flat)


def named(config: Config) -> tuple[Config, Path]:
    """Choose the name of a new run, or check the one that was given."""
    output = Path(config.output_dir)
    if name := config.run_name:
        if name == "latest" or name.startswith(".") or "/" in name:
            raise IdiolectError(
                f"config key 'run-name' is '{name}': it names a folder; use letters, "
                "digits and dashes, and not 'latest'."
            )
        if (output / name).exists():
            raise IdiolectError(
                f"run '{name}' exists in {output}: choose another run-name, or "
                f"continue it with -c resume={name}."
            )
    else:
        stem = f"{config.task.lower()}-{time.strftime('%Y%m%d-%H%M%S')}"
        names = (f"{stem}-{n}" if n > 1 else stem for n in itertools.count(1))
        name = next(name for name in names if not (output / name).exists())
    flat = configuration.flatten(config) | {"run-name": name, "resume": ""}
    return configuration.parse(flat), output / name


def resumed(config: Config, given: Mapping[str, str], cwd: Path) -> tuple[Config, Path]:
    """Return a saved run's own config; refuse a key that was given another value."""
    folder = results.find(config.output_dir, config.resume)
    try:
        saved = configuration.from_toml((folder / "config.toml").read_text())
    except FileNotFoundError:
        raise IdiolectError(
            f"run '{folder.name}' ended before it had saved its config: start it again "
            "without resume."
        ) from None
    except (IdiolectError, tomllib.TOMLDecodeError) as error:
        raise IdiolectError(
            f"run '{folder.name}' was saved by another version of idiolect ({error}): "
            "install that version, or start a new run."
        ) from None
    words = {name: configuration.parse_word(name, text) for name, text in given.items()}
    wanted = resolve_paths(
        configuration.parse(configuration.flatten(saved) | words), cwd
    )
    if changed := configuration.differences(saved, wanted):
        raise IdiolectError(
            f"run '{folder.name}' was started with another {', '.join(changed)}: "
            "resume it without that key, or start a new run."
        )
    place = {
        "run-name": folder.name,
        "resume": folder.name,
        "output-dir": str(folder.parent),
    }
    return configuration.parse(configuration.flatten(saved) | place), folder


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
    if path.exists() or path.is_absolute() or name.startswith((".", "~")):
        raise IdiolectError(
            f"config key 'backbone' is '{name}', which is no folder: give `tiny`, a "
            "model id, or an existing folder."
        )
    if os.environ.get("HF_HUB_OFFLINE", "0") in ("", "0"):
        return
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(name, "config.json"), str):
        raise IdiolectError(
            f"the backbone '{name}' is not in the local cache and HF_HUB_OFFLINE is "
            "set: unset it, or give a folder."
        )


def check_data(config: Config) -> None:
    """Read the users once, so that bad data is refused before anything starts."""
    from ..common.tasks.load import load_dataset

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
    claim(plan, console)
    mark = secrets.token_hex(16)
    # Read before the start, so that events of an earlier life are not taken for ours.
    _, offset = results.read_events(plan.metrics)
    try:
        environment = private_environment(plan, mark)
        said = printable(f"run {name} in {output}", 1000)
        console.print(said, markup=False, highlight=False, soft_wrap=True)
        with Display(console) as display:
            link = start_superlink(plan, environment)
            # One core per client and as many as there are nodes: every node is a process.
            federation = (
                f"num-supernodes={plan.nodes} client-resources-num-cpus=1 "
                f"init-args-num-cpus={plan.nodes}"
            )
            settings = Path(environment["FLWR_HOME"]) / "run.toml"
            more = ("--federation-config", federation)
            identity = submit(plan, settings, environment, more)
            try:
                for event in follow(
                    plan, offset, lambda: link.poll() is None, identity, environment
                ):
                    display.show(event)
            finally:
                keep_log(plan, identity, environment)
    finally:
        processes.end(mark)
        if read_mark(plan) == mark:  # else a later `simulate` took over
            clear(plan)
    return results.load(output, name)


def finished(plan: Plan, console: Console) -> dict[str, Any] | None:
    """Return the results of a run that is to be resumed and has ended already."""
    if not plan.config.resume or results.state_of(plan.folder) != "finished":
        return None
    said = printable(f"run {plan.folder.name} has finished already")
    console.print(said, markup=False, highlight=False)
    return results.load(str(plan.folder.parent), plan.folder.name)


def read_mark(plan: Plan) -> str:
    """Return the mark of the last `simulate` of this run; empty where there is none."""
    try:
        return str(json.loads((plan.scratch / "process.json").read_text())["mark"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def claim(plan: Plan, console: Console) -> None:
    """End what an earlier `simulate` left behind; refuse a run that another one holds."""
    name, mark = plan.folder.name, read_mark(plan)
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
    log = plan.scratch / "superlink.log"
    if plan.folder.is_dir():
        with contextlib.suppress(FileNotFoundError), plan.log.open("ab") as kept:
            kept.write(log.read_bytes())
        shutil.rmtree(plan.scratch, ignore_errors=True)
    for entry in plan.scratch.glob("*"):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry != log:
            entry.unlink()


def private_environment(plan: Plan, mark: str) -> dict[str, str]:
    """Write a FLWR_HOME for this run; return the environment of all it starts."""
    home = plan.scratch / mark[:8]
    try:
        home.mkdir(parents=True)
    except OSError as error:
        raise IdiolectError(
            f"runs can't be written to {plan.folder.parent} ({error.strerror}): "
            "set output-dir to a folder that can."
        ) from None
    record = {"mark": mark, "pid": os.getpid()}
    results.write_json(plan.scratch / "process.json", record)
    port = str(free_port())
    (home / "config.toml").write_text(connection(port, "insecure = true"))
    (home / "run.toml").write_text(configuration.to_toml(plan.config))
    return {
        **flower_environment(home, mark),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": port,
    }


def connection(port: int | str, trust: str) -> str:
    """Flower's own configuration: where the SuperLink is, and one line of whom to trust."""
    return (
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
        f'address = "127.0.0.1:{port}"\n{trust}\n'
    )


def flower_environment(home: Path, mark: str) -> dict[str, str]:
    """Environment of everything of Flower's that is started here, marked to be found."""
    return {
        **os.environ,
        **ENVIRONMENT,
        processes.VARIABLE: mark,
        "FLWR_HOME": str(home),
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def free_port() -> int:
    """Return a port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_superlink(
    plan: Plan, environment: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    """Start the private SuperLink in a session of its own and wait until it answers."""
    port = environment["FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"]
    command = [str(BIN / "flower-superlink"), "--insecure", "--simulation"]
    command += ["--isolation", "subprocess", "--host", "127.0.0.1", "--port", port]
    command += ["--database", str(Path(environment["FLWR_HOME"]) / "state.db")]
    # Appending: `keep_log` writes to the same file, and neither may overwrite the other.
    with (plan.scratch / "superlink.log").open("ab") as log:
        link = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is ours: we end the rest in order
        )
    deadline = time.monotonic() + START_SECONDS
    while link.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            address = f"http://127.0.0.1:{port}/health"
            with urllib.request.urlopen(address, timeout=1):
                return link
        time.sleep(0.2)
    raise IdiolectError(f"the SuperLink did not start: see the end of {plan.log}.")


def keep_log(plan: Plan, identity: str, environment: Mapping[str, str]) -> None:
    """Append the output of the run's own processes, which Flower keeps for itself."""
    command = [str(BIN / "flwr"), "log", identity, CONNECTION, "--show"]
    with (
        (plan.scratch / "superlink.log").open("ab") as log,
        contextlib.suppress(subprocess.TimeoutExpired),
    ):
        subprocess.run(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            timeout=60,
        )


def flwr(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> tuple[dict[str, Any], str]:
    """Run a `flwr` command that answers in JSON; return the answer, or why it failed."""
    done = subprocess.run(
        [str(BIN / "flwr"), *arguments, "--format", "json"],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = {}
    if not isinstance(answer, dict):
        answer = {}
    said = answer.get("error-message") or done.stdout + done.stderr
    return answer, " ".join(str(said).split())


def submit(
    plan: Plan, settings: Path, environment: Mapping[str, str], more: Sequence[str] = ()
) -> str:
    """Hand the app to the SuperLink; return Flower's id of the run."""
    command = ["run", str(plan.app), CONNECTION, "--run-config", str(settings)]
    answer, reason = flwr([*command, *more], environment)
    if not answer.get("run-id"):
        raise IdiolectError(f"Flower refused the app {plan.app}: {reason}")
    return str(answer["run-id"])


def follow(
    plan: Plan,
    offset: int,
    up: Callable[[], bool],
    identity: str,
    environment: Mapping[str, str],
) -> Iterator[dict[str, Any]]:
    """Yield the run's events as they are written, until it has finished.

    Parameters
    ----------
    plan, offset
        The run, and where in its events to begin.
    up
        Whether the SuperLink, or who starts it again, is alive.
    identity, environment
        Flower's id of the run, and the environment of what carries it out.

    Raises
    ------
    IdiolectError
        The run failed, or its process ended without saying so.
    """
    mark, pid, asked = environment[processes.VARIABLE], 0, time.monotonic()
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
                raise IdiolectError(event["message"])
        if not alive:
            raise IdiolectError(
                f"the run ended without a word: see the end of {plan.log}, and go on "
                f"with -c resume={plan.folder.name}."
            )
        if not pid and time.monotonic() - asked > SILENT_SECONDS:
            check_status(plan, identity, environment)
            asked = time.monotonic()
        time.sleep(0.3)


def wait_for_end(pid: int, mark: str, patience: float = 5.0) -> None:
    """Let a failing run write its traceback to the log, but not for ever."""
    deadline = time.monotonic() + patience
    while processes.is_marked(pid, mark) and time.monotonic() < deadline:
        time.sleep(0.1)


def check_status(plan: Plan, identity: str, environment: Mapping[str, str]) -> None:
    """Ask the SuperLink about a run that has not written anything yet."""
    answer, _ = flwr(["list", CONNECTION, "--run-id", identity], environment)
    for run in answer.get("runs", []):
        if str(run.get("status", "")).startswith("finished"):
            details = run.get("status-details") or run["status"]
            raise IdiolectError(
                f"the run ended before it began ({details}): see the end of {plan.log}."
            )
