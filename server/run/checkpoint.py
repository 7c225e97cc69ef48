"""The run folder: its lock, its configuration, and the checkpoint a run resumes from.

A run is known by its own name, never by Flower's run id, which changes when the run is
resumed. The ServerApp holds an exclusive lock on the folder for as long as it lives, so
a resumed run can never write beside a predecessor that is still alive. Every file
appears whole or not at all (`write_atomically`).
"""

import fcntl
import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from safetensors import numpy as tensors

from ...common.config import (
    Config,
    RunOptions,
    differences,
    flatten,
    from_toml,
    to_toml,
)
from ...common.config.methods import current_name
from ...common.data.types import Item, Prompt
from ...common.errors import IdiolectError, refuse_if, words_of
from ...common.files import (
    make_folder,
    make_private,
    private,
    private_folder,
    write_atomically,
)
from ...common.protocol.messages import Outcome, Rows
from ...common.secure.directory import Entry
from ...common.unlabeled.sets import Unlabeled
from .results import runs_folder

SCHEMA = 5


# --- the folder ----------------------------------------------------------------------


@dataclass(frozen=True)
class RunFolder:
    """An open run.

    Attributes
    ----------
    path
        The run's folder; its last part is the run's name.
    config
        As the run was started with.
    resumed
        Whether there was something to continue.
    lock
        The open lock file; closing it lets go of the run.
    """

    path: Path
    config: Config
    resumed: bool
    lock: TextIO


def open_run(config: Config, options: RunOptions) -> RunFolder:
    """Start a run, or continue one.

    To resume ``latest`` where no run exists starts one, so that a supervisor can repeat one
    and the same command.

    Raises
    ------
    IdiolectError
        The run is locked by a living process, there is no such run, a run of this name
        exists already, or a config key differs from what the run was started with.
    """
    root, resume = runs_folder(options.folder), options.resume
    if resume and (resume != "latest" or (root / "latest").exists()):
        return _continue(root, config, resume)
    path = _new_folder(root, config, options.name)
    lock = _lock(path)
    write_atomically(path / "config.toml", to_toml(config).encode())
    return RunFolder(path, config, False, lock)


def _new_folder(root: Path, config: Config, given: str) -> Path:
    """Make the folder; without a given name it is made of task, time and seed."""
    refuse_if(
        given in ("latest", ".", "..") or "/" in given or given.startswith("."),
        (
            f"the name of a run is {given!r}: it names a folder; use letters, digits and "
            "dashes, and not `latest`."
        ),
    )
    name = given or time.strftime(
        f"{config.task.lower()}-%Y%m%d-%H%M%S-seed{config.seed}"
    )
    others = [] if given else [root / f"{name}-{count}" for count in range(2, 100)]
    for path in (root / name, *others):
        try:
            make_folder(root)
            path.mkdir()
            return private_folder(path)
        except FileExistsError:
            continue
        except OSError as error:
            raise IdiolectError(
                f"runs cannot be written to {root} ({error.strerror}): set --output-dir "
                "to a folder that can."
            ) from error
    raise IdiolectError(
        f"the run '{name}' exists already: continue it with --resume {name}, or choose "
        "another --name."
    )


def _continue(root: Path, config: Config, resume: str) -> RunFolder:
    path = root / (os.readlink(root / resume) if resume == "latest" else resume)
    try:
        stored = read_config(path)
    except OSError as error:
        raise IdiolectError(
            f"there is no run '{path.name}' in {root} to resume: leave out --resume "
            "to start one; `idiolect-server runs` lists what is there."
        ) from error
    if changed := differences(stored, config):
        old, new = flatten(stored), flatten(config)
        listed = ", ".join(f"{k} (was {old[k]!r}, now {new[k]!r})" for k in changed)
        raise IdiolectError(
            f"the run '{path.name}' was started with another configuration: {listed}. "
            "Repeat the old values to resume it, or start a new run without --resume."
        )
    lock = _lock(path)
    make_private(path)
    return RunFolder(path, stored, True, lock)


def read_config(path: Path) -> Config:
    """Read the configuration that a run was started with."""
    return from_toml((path / "config.toml").read_text())


def _lock(path: Path) -> TextIO:
    """Hold the folder's lock for as long as the returned file is open."""
    stream = os.fdopen(private(path / "lock", os.O_RDWR | os.O_CREAT), "r+")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        stream.seek(0)
        holder = stream.read().strip() or "unknown"
        stream.close()
        raise IdiolectError(
            f"the run '{path.name}' is being written by process {holder}: wait until it "
            f"ends, or end it (kill {holder}), then give the same command again."
        ) from error
    stream.truncate(0)
    print(os.getpid(), file=stream, flush=True)
    return stream


def point_latest(path: Path) -> str:
    """Let ``latest`` be this run; return which one it was, or nothing."""
    latest = path.parent / "latest"
    before = os.readlink(latest) if latest.is_symlink() else ""
    partial = path.parent / f".latest.{os.getpid()}"
    partial.unlink(missing_ok=True)
    partial.symlink_to(path.name)
    partial.replace(latest)
    return before


def point_back(path: Path, before: str) -> None:
    """Undo `point_latest` for a run that has not begun after all."""
    if before and (path.parent / before).is_dir():
        point_latest(path.parent / before)
    else:
        (path.parent / "latest").unlink(missing_ok=True)


# --- the checkpoint ------------------------------------------------------------------


@dataclass
class Cost:
    """What the run has cost so far, over all its lives.

    Attributes
    ----------
    bytes_up, bytes_down
        Text and tensors in replies and in tasks.
    seconds
        Phase -> seconds of the server's clock.
    peak_rss_mb
        Largest memory use of the server and of the processes that answered, together.
    """

    bytes_up: int = 0
    bytes_down: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    peak_rss_mb: float = 0.0


@dataclass
class State:
    """Everything that a resumed run knows; it is saved after every step.

    Attributes
    ----------
    shared
        The shared adapter's B.
    id
        The run's id in messages: random, so that no other run has it.
    life
        How often the run was started or resumed; saved before anybody is asked.
    rounds
        Finished rounds of the adapt phase.
    clip
        The clip of the next round, where it adapts; 0 before the first.
    took_part
        Stage -> user -> releases that the user's rows were in (privacy only). Who took
        part is a secret of the server: it is in this checkpoint and nowhere else.
    version, manifest, signature
        The last manifest that was signed, and how many were.
    floor
        Votes below it are noise; 0 without.
    without_pool
        Whether the budget did not allow the vote, so that there is no unlabeled set.
    unlabeled
        The unlabeled set, None until the pool phase is over.
    trials
        Method -> learning rate (as text) -> [development users that failed, mean NLL].
    learning_rates
        Method -> the rate chosen.
    outcomes
        Method -> user -> how training went; a method is here once it is trained.
    metrics
        Method -> user -> metric -> value; a method is here once it is measured.
    noisy_metrics
        Method -> metric -> mean, interval and number (``privacy.metrics`` `noisy`).
    failed
        User -> what went wrong for this user, last.
    devices
        The users of the run where they are devices, as they were first met.
    members
        User -> its entry in the directory of masked sums (``secagg.mode=on``).
    cost
        So far.
    """

    shared: Rows
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    life: int = 0
    rounds: int = 0
    clip: float = 0.0
    took_part: dict[str, dict[str, int]] = field(default_factory=dict)
    version: int = 0
    manifest: str = ""
    signature: str = ""
    floor: float = 0.0
    without_pool: bool = False
    unlabeled: tuple[Unlabeled, ...] | None = None
    trials: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    learning_rates: dict[str, float] = field(default_factory=dict)
    outcomes: dict[str, dict[str, Outcome]] = field(default_factory=dict)
    metrics: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    noisy_metrics: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    devices: list[str] = field(default_factory=list)
    members: dict[str, Entry] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)


def save(folder: Path, state: State) -> None:
    """Write the checkpoint: the parts first, then the file that makes them count."""
    place = folder / "checkpoint"
    shared = f"shared-{state.rounds}.safetensors"
    write_atomically(place / shared, tensors.save(state.shared))
    if state.unlabeled is not None:
        rows = json.dumps(state.unlabeled, default=asdict)
        write_atomically(place / "unlabeled.json", rows.encode())
    body = {"schema": SCHEMA, "pooled": state.unlabeled is not None, **vars(state)}
    del body["shared"], body["unlabeled"]
    text = json.dumps(body, indent=1, default=asdict)
    write_atomically(place / "state.json", text.encode())
    for old in place.glob("shared-*.safetensors"):
        if old.name != shared:
            old.unlink()


def load(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> State:
    """Read the checkpoint, or return the state of a run that has not begun.

    Parameters
    ----------
    folder
        The run's.
    shapes
        Of the shared adapter's B, which is zero before the first round.

    Raises
    ------
    IdiolectError
        The checkpoint is there but cannot be read.
    """
    place = folder / "checkpoint"
    if not (place / "state.json").exists():
        return State(
            {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        )
    try:
        body = json.loads((place / "state.json").read_text())
        schema = body.pop("schema")
        if schema == 4:  # runs were told apart by name, which their manifests bear
            body |= {"id": folder.name, "life": 0}
        elif schema != SCHEMA:
            raise IdiolectError(
                f"run '{folder.name}' has a checkpoint of schema {schema!r:.20}, and this "
                f"version of idiolect reads {SCHEMA}: finish the run with the version of "
                "idiolect that its metrics.jsonl names, or start a new one by the same "
                "command without --resume and with another --name."
            )
        file = place / f"shared-{body['rounds']}.safetensors"
        state = State(shared=tensors.load(file.read_bytes()))
        if body.pop("pooled"):
            rows = json.loads((place / "unlabeled.json").read_text())
            state.unlabeled = tuple(map(_unlabeled, rows))
        state.cost = Cost(**body.pop("cost"))
        members = body.pop("members", {})
        state.members = {user: Entry(**one) for user, one in members.items()}
        state.outcomes = {
            current_name(method): {user: Outcome(**one) for user, one in users.items()}
            for method, users in body.pop("outcomes").items()
        }
        for name in ("trials", "learning_rates", "metrics"):
            body[name] = {current_name(key): one for key, one in body[name].items()}
        return replace(state, **body)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IdiolectError(
            f"the checkpoint in {place} cannot be read ({words_of(error)}): restore the "
            "folder from a backup, or start a new run by the same command without "
            "--resume and with another --name."
        ) from error


def _unlabeled(row: dict[str, Any]) -> Unlabeled:
    item = row["item"]
    known = Item(item["id"], Prompt(**item["prompt"]), item["target"])
    return Unlabeled(known, row["weight"], row["owner"])
