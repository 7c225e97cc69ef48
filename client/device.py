"""A device as a node: the tasks of a server, carried out for the owner of a vault.

What the server's configuration says about training holds; what it says about this machine
does not: the backbone is the one that the owner chose, and no path of the server's is
opened here. Whatever leaves is held against the owner's consent first, and noted.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

from flwr.app import Message, RecordDict

from ..common.adapters import Lora
from ..common.config import Config, parse
from ..common.personal import forget
from ..common.protocol import (
    AdaptTask,
    Failure,
    HelloTask,
    Task,
    device_user,
    pack,
    size,
)
from . import consent, history, limits, owner
from .consent import Refusal
from .node import server_of
from .tasks import Node, answer, backbone_of
from .vault import DEVICE, Record, Source, Vault


@dataclass(frozen=True)
class VaultShelf:
    """What one run leaves on a device, in the vault.

    A trained adapter lies under a source of its run, so that forgetting reaches it, and is
    only kept while the owner keeps what it `learnt` from (`owner.split`); what the device
    agreed to outlives that.
    """

    vault: Vault
    run: str
    learnt: Mapping[str, str] = field(default_factory=dict)

    def read(self, name: str) -> bytes | None:
        """Return what was written under a name, or None."""
        return self.vault.get("run", f"{self.run}/{name}")

    def write(self, name: str, body: bytes) -> None:
        """Keep it; done or not done as a whole."""
        learnt = name.startswith("adapters/")
        source = Source("run", self.run) if learnt else DEVICE
        with self.vault.transaction():
            if learnt:
                owner.check_learnt(self.vault, self.learnt)
            self.vault.put("run", [Record(f"{self.run}/{name}", body)], source)


class Device:
    """The home of one owner."""

    simulated = False

    def __init__(self, vault: Vault, node: int) -> None:
        self._vault = vault
        self.user = device_user(node)
        # What the task at hand has read: source -> generation (`Vault.generation`).
        self._read: Mapping[str, str] = {}

    def config(self, given: Mapping[str, object]) -> Config:
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

    def node(self, task: Task, started: float) -> Node:
        """Find out whether the owner takes part, and with what."""
        if consent.paused(self._vault):
            raise Refusal("the owner has paused this device.")
        limits.check_now(consent.settings(self._vault))
        if task.users not in ((), (self.user,)):
            raise Refusal(f"the task is for {task.users[0]:.80}, this is {self.user}.")
        config = self.config(task.config)
        shelf = VaultShelf(self._vault, task.run)
        if isinstance(task, HelloTask):
            self._check_server(task)
        if isinstance(task, AdaptTask):
            check_round(shelf, task.round)
        everything = history.entries(self._vault)
        if sum(entry.liked for entry in everything) < owner.FEWEST:
            raise Refusal("there is too little history on this device.")
        self._read = {entry.source: entry.generation for entry in everything}
        user, learnt = owner.split(everything, self.user)
        shelf = replace(shelf, learnt=learnt)
        answers = consent.consents(self._vault)

        def keep(shared: Lora, lora: Lora, method: str, origin: str) -> None:
            owner.adopt(
                self._vault,
                backbone_of(config),
                shared,
                lora,
                user,
                learnt,
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

    def _check_server(self, task: HelloTask) -> None:
        server = server_of(self._vault)
        if server is not None and server.signing_key != task.key:
            raise Refusal(
                "the run is signed by another key than that of the invitation: start it "
                "where the server's keys are (idiolect-server run)."
            )
        for source in self._vault.sources():  # what an earlier run trained has ended
            if source.kind == "run" and source.name != task.run:
                self._vault.forget(source)

    def answer(self, message: Message) -> RecordDict:
        """Carry out a task, and note what the answer to it is before it leaves."""
        self._read = {}
        try:
            with limits.time_limit(consent.settings(self._vault)):
                record = answer(message, self)
        finally:
            forget()  # private text, which its owner may erase next
        with self._vault.transaction():
            record = self._unless_forgotten(record)
            head = record.config_records["message"]
            body = json.loads(cast(str, head["body"]))
            consent.note_sent(
                self._vault,
                body["run"],
                str(head["kind"]),
                size(record),
                _declared(message),
            )
        return record

    def _unless_forgotten(self, record: RecordDict) -> RecordDict:
        """Send no answer that was made of text which its owner has forgotten since."""
        try:
            owner.check_learnt(self._vault, self._read)
        except Refusal as refusal:
            body = json.loads(cast(str, record.config_records["message"]["body"]))
            return pack(Failure(body["run"], body["step"], str(refusal)))
        return record


def _declared(message: Message) -> float | None:
    """Budget that the task's run declares; None where it gives no guarantee."""
    try:
        text = cast(str, message.content.config_records["message"]["body"])
        config = json.loads(text)["config"]
        epsilon = float(config["privacy.epsilon"])
        bounded = config["privacy.mode"] == "central" and epsilon < float("inf")
    except (KeyError, ValueError, TypeError):
        return None
    return epsilon if bounded else None


def check_round(shelf: VaultShelf, number: int) -> None:
    """Refuse a round that is over: a device that was away is still sent its tasks.

    Raises
    ------
    Refusal
        A later one was seen.
    """
    seen = int(shelf.read("round") or b"0")
    if number < seen:
        raise Refusal(f"round {number + 1} is over: round {seen + 1} has begun.")
    if number > seen:
        shelf.write("round", str(number).encode())
