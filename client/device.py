"""A device as a node: the tasks of a server, carried out for the owner of a vault.

What the server's configuration says about training holds; what it says about this machine
does not: the backbone is the one that the owner chose, and no path of the server's is
opened here. Whatever leaves is held against the owner's consent first, and noted.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from flwr.app import Message, RecordDict

from ..common.adapters import Lora
from ..common.config import Config, parse
from ..common.errors import IdiolectError
from ..common.personal import forget
from ..common.protocol import AdaptTask, HelloTask, Task, device_user, size
from ..common.text import read_json
from . import consent, history, limits, owner
from .consent import Refusal
from .node import server_of
from .tasks import Node, answer, backbone_of
from .vault import Record, Vault


@dataclass(frozen=True)
class VaultShelf:
    """What one run leaves on a device, in the vault.

    A trained adapter lies under a source of its run, so that forgetting reaches it; what
    the device agreed to outlives that.
    """

    vault: Vault
    run: str

    def read(self, name: str) -> bytes | None:
        """Return what was written under a name, or None."""
        return self.vault.get("run", f"{self.run}/{name}")

    def write(self, name: str, body: bytes) -> None:
        """Keep it; done or not done as a whole."""
        learnt = name.startswith("adapters/")
        source = f"{owner.RUN}{self.run}" if learnt else owner.DEVICE
        self.vault.put("run", [Record(f"{self.run}/{name}", body)], source)


class Device:
    """The home of one owner."""

    simulated = False

    def __init__(self, vault: Vault, node: int) -> None:
        self._vault = vault
        self.user = device_user(node)

    def config(self, given: Mapping[str, object]) -> Config:
        """Return the run's configuration, with what this device decides itself.

        Whether it works at all just now is decided first: what comes next may load the
        backbone.
        """
        chosen = consent.settings(self._vault)
        if consent.paused(self._vault):
            raise Refusal("the owner has paused this device.")
        limits.check_now(chosen)
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
        if task.users not in ((), (self.user,)):
            raise Refusal(f"the task is for {task.users[0]:.80}, this is {self.user}.")
        config = self.config(task.config)
        consent.agree(self._vault, task.run, task.run, config)
        shelf = VaultShelf(self._vault, task.run)
        if isinstance(task, HelloTask):
            self._check_server(task)
        if isinstance(task, AdaptTask):
            check_round(shelf, task.round)
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

    def _check_server(self, task: HelloTask) -> None:
        server = server_of(self._vault)
        if server is not None and server.signing_key != task.key:
            raise Refusal(
                "the run is signed by another key than that of the invitation: start it "
                "where the server's keys are (idiolect-server run)."
            )
        for source in self._vault.sources():  # what an earlier run trained has ended
            if source.startswith(owner.RUN) and source != f"{owner.RUN}{task.run}":
                self._vault.forget(source)

    def answer(self, message: Message) -> RecordDict:
        """Carry out a task, and note what the answer to it is before it leaves."""
        try:
            with limits.time_limit(consent.settings(self._vault)):
                record = answer(message, self)
        finally:
            forget()  # private text, which its owner may erase next
        head = record.config_records["message"]
        body = json.loads(cast(str, head["body"]))
        consent.note_sent(
            self._vault,
            body["run"],
            str(head["kind"]),
            size(record),
            consent.cover(str(head["kind"]), self._declared(message)),
        )
        return record

    def _declared(self, message: Message) -> Config | None:
        """Return the configuration that came with a task; None where it is none."""
        try:
            text = cast(str, message.content.config_records["message"]["body"])
            return self.config(read_json(text)["config"])
        except (KeyError, ValueError, TypeError, AttributeError, IdiolectError):
            return None


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
