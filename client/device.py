"""A device as a node: the tasks of a server, carried out for the owner of a vault.

What the server's configuration says about training holds; what it says about this machine
does not: the backbone is the one that the owner chose, and no path of the server's is
opened here. Whatever leaves is held against the owner's consent first, and noted.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from flwr.app import Message, RecordDict

from ..common.adapters import Lora
from ..common.config import Config, parse
from ..common.personal import forget
from ..common.protocol import HelloTask, Task, device_user, size
from ..common.signed import Sealed, verify
from . import consent, history, limits, owner
from .consent import Refusal
from .node import joined
from .state import Shelf, advance
from .tasks import Node, answer, backbone_of
from .vault import Record, Vault

# What a run has left here is kept for a week after its last hello, of this many runs: a
# run that is resumed finds it, and two runs at once do not erase each other's.
KEPT, MOST_RUNS = 7 * 86_400.0, 8


@dataclass(frozen=True)
class VaultShelf:
    """What one run leaves on a device, in the vault.

    A trained adapter lies under a source of its run, so that forgetting reaches it, and so
    do the parts that the server sent; what the device agreed to outlives that.
    """

    vault: Vault
    run: str

    def read(self, name: str) -> bytes | None:
        """Return what was written under a name, or None."""
        return self.vault.get("run", f"{self.run}/{name}")

    def write(self, name: str, body: bytes) -> None:
        """Keep it; done or not done as a whole."""
        learnt = name.startswith(("adapters/", "parts/"))
        source = f"{owner.RUN}{self.run}" if learnt else owner.DEVICE
        self.vault.put("run", [Record(f"{self.run}/{name}", body)], source)


class Device:
    """The home of one owner."""

    simulated = False

    def __init__(self, vault: Vault, node: int) -> None:
        self._vault = vault
        self.number = node
        self.user = device_user(node)  # what runs call the owner
        self._doing: Config | None = None  # what the task that is being done belongs to

    def _config(self, given: Mapping[str, object]) -> Config:
        """Return the run's configuration, with what this device decides itself."""
        chosen = consent.settings(self._vault)
        wanted = cast(int, given.get("max-length", 512))
        own: dict[str, object] = {
            "backbone": chosen["backbone"],
            "max-length": min(wanted, int(chosen["max-length"])),
            "device": "auto",
            "data": "",
            "output-dir": "",
            "unlabeled.file": "",
        }
        config = parse({**given, **own})
        if config.task != "text":
            raise Refusal(
                f"the run's task is '{config.task}', which is for simulations: a run on "
                "devices has task=text."
            )
        return config

    def admit(self, sealed: Sealed) -> VaultShelf:
        """Believe the key of the invitation, and each task of a run once."""
        if consent.paused(self._vault):
            raise Refusal("the owner has paused this device.")
        limits.check_now(consent.settings(self._vault))
        verify(sealed, joined(self._vault).signing_key)
        if sealed.seal.node != self.number:
            raise Refusal("the task is sealed for another device.")
        if sealed.users not in ((), (self.user,)):
            raise Refusal(
                f"the task is for {sealed.users[0]:.80}, this is {self.user}."
            )
        shelf = VaultShelf(self._vault, sealed.run)
        advance(shelf, sealed.seal.counter)
        return shelf

    def node(self, task: Task, shelf: Shelf, started: float) -> Node:
        """Find out whether the owner takes part, and with what."""
        self._doing = config = self._config(task.config)
        if isinstance(task, HelloTask):
            self._drop_old_runs(task)
        everything = history.entries(self._vault)
        if sum(entry.liked for entry in everything) < owner.FEWEST:
            raise Refusal("there is too little history on this device.")
        user, sources = owner.split(everything, self.user)
        answers = consent.consents(self._vault)

        def keep(shared: Lora, lora: Lora, method: str, origin: str) -> None:
            owner.adopt(
                self._vault,
                backbone_of(config),
                shared,
                lora,
                user,
                sources,
                method,
                origin,
            )

        return Node(
            config,
            users=(user,) if task.users else (),
            residents=(user,),
            development=frozenset(),
            shelf=shelf,
            started=started,
            permit=lambda outflow, config: consent.permit(answers, outflow, config),
            trained=keep,
        )

    def _drop_old_runs(self, task: HelloTask) -> None:
        """Erase what runs have trained here that were not heard of for a while."""
        now = time.time()
        runs = json.loads(self._vault.get("state", "runs") or b"{}")
        runs = {run: heard for run, heard in runs.items() if heard > now - KEPT} | {
            task.run: now
        }
        recent = sorted(runs, key=lambda run: runs[run])[-MOST_RUNS:]
        body = json.dumps({run: runs[run] for run in recent}).encode()
        self._vault.put("state", [Record("runs", body)], owner.DEVICE)
        for source in self._vault.sources():
            if source.startswith(owner.RUN) and source[len(owner.RUN) :] not in recent:
                self._vault.forget(source)

    def answer(self, message: Message) -> RecordDict:
        """Carry out a task, and note what the answer to it is before it leaves."""
        self._doing = None
        try:
            with limits.time_limit(consent.settings(self._vault)):
                record = answer(message, self)
        finally:
            forget()  # private text, which its owner may erase next
        head = record.config_records["message"]
        config = self._doing
        consent.note_sent(
            self._vault,
            config.run_name if config else json.loads(cast(str, head["body"]))["run"],
            str(head["kind"]),
            size(record),
            _declared(config) if config else None,
        )
        return record


def _declared(config: Config) -> float | None:
    """Budget that a run declares; None where it gives no guarantee."""
    privacy = config.privacy
    bounded = privacy.mode == "central" and privacy.epsilon < float("inf")
    return privacy.epsilon if bounded else None
