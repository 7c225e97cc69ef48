"""A run with Flower: its folder, its journal, and where its users are."""

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from ...common.config import Config, Scalar, defaults, flatten
from ...common.data.types import names_of
from ...common.files import file_name, private
from ...common.protocol.manifest import read_or_make_key
from ...common.protocol.messages import Rows, Shapes
from ...common.protocol.quantization import encode
from ...common.protocol.signed import SALT
from ...common.text import printable
from .checkpoint import save
from .cohort import Run
from .inbox import Inbox

SIGNING_KEY = "IDIOLECT_SIGNING_KEY"  # path of the one key of a server of devices
WITNESS = (
    "IDIOLECT_WITNESS"  # public key of who vouches for its devices, if somebody does
)


def witness_of(config: Config) -> str:
    """Public key of who vouches for members of masked sums of devices; empty: nobody."""
    return os.environ.get(WITNESS, "") if config.on_devices else ""


class Journal:
    """``metrics.jsonl``: what happened, one JSON object per line, only ever appended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            self._append("\n")  # the last life was killed in the middle of a line

    def write(self, event: Mapping[str, Any]) -> None:
        """Append one event."""
        self._append(json.dumps(event) + "\n")

    def _append(self, text: str) -> None:
        with open(self.path, "a", opener=private) as stream:
            stream.write(text)


@dataclass
class LiveRun(Run):
    """A run whose users live on Flower's nodes.

    Attributes
    ----------
    folder, grid, journal
        The run's folder, Flower's grid, and the event log.
    nodes
        User -> node, for everyone who can be reached.
    total
        Work of the whole run (see `work`).
    processes
        Process -> its peak memory, of all that answered; in a simulation.
    slow
        Devices that let a deadline pass in this life of the run.
    began
        When this life of the run began, less the seconds of its earlier lives.
    holds
        Node -> part -> hash of what the node has of it, as far as this life of the run
        knows (see `signed`).
    sent
        Messages that this life of the run has sent.
    salt
        Of this life's parts (see `signed`).
    keys
        Public keys of the members of masked sums; empty until one says hello.
    """

    folder: Path
    grid: Grid
    journal: Journal
    nodes: dict[str, int] = field(default_factory=dict)
    total: float = 1.0
    processes: dict[str, float] = field(default_factory=dict)
    slow: set[int] = field(default_factory=set)
    began: float = field(default_factory=time.monotonic)
    holds: dict[int, dict[str, str]] = field(default_factory=dict)
    sent: int = 0
    salt: bytes = field(default_factory=partial(os.urandom, SALT))
    keys: set[str] = field(default_factory=set)

    @property
    def shapes(self) -> Shapes:
        """Shapes of the shared adapter's B."""
        return {name: array.shape for name, array in self.state.shared.items()}

    @property
    def shared_to_send(self) -> Rows:
        """The shared adapter's B as messages carry it."""
        shared = self.state.shared
        return encode(shared) if self.config.signed_bytes else shared

    @cached_property
    def signing_key(self) -> bytes:
        """Key of the run's manifests, made at its first use; it never leaves here.

        A server of devices has one for all its runs, which their owners pinned.
        """
        own = self.folder / "checkpoint" / "signing.key"
        return read_or_make_key(Path(os.environ.get(SIGNING_KEY) or own))

    @cached_property
    def settings(self) -> dict[str, Scalar]:
        """The configuration as messages carry it: the same in every life of the run.

        With the run's name; for devices, paths of this machine are left at their defaults.
        """
        settings, usual = flatten(self.config), defaults()
        own = ("unlabeled.file", "backbone") if self.config.on_devices else ()
        hidden = {name: usual[name] for name in own}
        return {**settings, "run.name": self.folder.name, **hidden}

    @cached_property
    def inbox(self) -> Inbox:
        """Where the replies come in."""
        return Inbox(self.grid)

    def head(self, step: str, users: Sequence[str]) -> dict[str, Any]:
        """Return the fields that every message begins with."""
        return {
            "run": self.state.id,
            "step": step,
            "config": self.settings,
            "folder": "" if self.config.on_devices else str(self.folder),
            "users": tuple(users),
        }

    def count_up(self) -> int:
        """The next message's counter: larger than any that an earlier life has sent."""
        self.sent += 1
        return (self.state.life << 32) + self.sent

    def save(self) -> None:
        """Write the checkpoint."""
        save(self.folder, self.state)

    @property
    def sums(self) -> Path:
        """Where masked sums are kept while they are made."""
        return self.folder / "checkpoint" / "secagg"

    def sum_folder(self, name: str) -> Path:
        """Where a masked sum of this name is kept."""
        return self.sums / file_name(name)

    def begun(self, release: str) -> bool:
        """Whether a masked sum has a plan, so that its members can be asked again."""
        return (self.sum_folder(release) / "plan.json").exists()

    def took_part(self, stage: str, users: Sequence[str]) -> None:
        """Count who took part in a release, for the privacy card too."""
        super().took_part(stage, users)
        self.ledger.observed_participations[stage] = max(
            self.state.took_part[stage].values(), default=0
        )
        self.ledger.save()

    @property
    def secret(self) -> bool:
        """Whether who takes part is a secret: then only the checkpoint says it."""
        return self.config.privacy.mode != "off"

    def nameless(self, text: str) -> str:
        """Return a text as it may be logged: with no user's name where that is a secret."""
        if not self.secret:
            return text
        users = names_of(self.dataset.everybody)
        return without((*users, *self.state.devices), text)

    def warn(self, message: str) -> None:
        """Tell the reader of the log and of the journal."""
        message = self.nameless(printable(message, 2000))  # it may quote a device
        super().warn(message)
        self.journal.write({"event": "warning", "message": message})


def without(names: tuple[str, ...], text: str) -> str:
    """Return a text with "a user" in place of each of these names, and no node's number."""
    text = re.sub(r"\b(node|device)[ -]\d+", r"a \1", text)
    pattern = _pattern(names)
    return pattern.sub("a user", text) if pattern else text


@lru_cache(maxsize=4)
def _pattern(names: tuple[str, ...]) -> re.Pattern[str] | None:
    """Names as whole words; one that is a number only where it is said to be a user's."""
    longest = sorted({name for name in names if name}, key=len, reverse=True)
    words = "|".join(re.escape(name) for name in longest if not name.isdigit())
    numbers = "|".join(name for name in longest if name.isdigit())
    named = rf"(?:\busers? )?['\"]?(?<![\w-])(?:{words})(?![\w-])['\"]?"
    counted = rf"\busers? ['\"]?(?:{numbers})(?!\w)['\"]?|'(?:{numbers})'"
    parts = [named] * bool(words) + [counted] * bool(numbers)
    return re.compile("|".join(parts)) if parts else None
