"""A device as a node: the requests of a server, carried out for the owner of a vault.

What the server's configuration says about training holds; what it says about this machine
does not: the backbone is the one that the owner chose, and no path of the server's is
opened here. Whatever leaves is held against the owner's consent first, and noted.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from flwr.app import Message, RecordDict

from ...common.config import Config, parse_run
from ...common.engine.adapters import Lora
from ...common.engine.backbone import backbone_of
from ...common.engine.reference import Reference
from ...common.errors import refuse_if
from ...common.protocol.messages import Failure, HelloRequest, Request, device_user
from ...common.protocol.packing import pack, size
from ...common.protocol.signed import Sealed, verify
from ..owner import consent, history, judging, learning, limits
from ..owner.consent import Refusal
from ..owner.records import DEVICE, Record, Source
from ..owner.vault import Vault
from .handlers import answer
from .host import Node, forget
from .membership import joined, node_key, pin_members
from .state import advance, bind

# What a run has left here is kept for a week after its last hello, of this many runs: a
# run that is resumed finds it, and two runs at once do not erase each other's.
KEPT, MOST_RUNS = 7 * 86_400.0, 8


@dataclass(frozen=True)
class VaultStore:
    """What one run leaves on a device, in the vault.

    A trained adapter lies under a source of its run, so that forgetting reaches it, and is
    only kept while the owner keeps what it `learnt` from (`learning.split`). So do a masked
    report and the run's keys, and the parts that the server sent; what the device agreed to
    outlives them.
    """

    vault: Vault
    run: str
    learnt: Mapping[str, str] = field(default_factory=dict)

    def read(self, name: str) -> bytes | None:
        """Return what was written under a name, or None."""
        return self.vault.get("run", f"{self.run}/{name}")

    def write(self, name: str, body: bytes) -> None:
        """Keep it; done or not done as a whole."""
        of_run = name.startswith(("adapters/", "parts/", "secagg/"))
        source = Source("run", self.run) if of_run else DEVICE
        with self.vault.transaction():
            if name.startswith(("adapters/", "secagg/")):
                learning.check_learnt(self.vault, self.learnt)
            self.vault.put("run", [Record(f"{self.run}/{name}", body)], source)


class Device:
    """The host of one owner."""

    simulated = False

    def __init__(self, vault: Vault, node: int) -> None:
        self._vault = vault
        self.number = node
        self.user = device_user(node)  # what runs call the owner
        # Configuration and name of the run that the request at hand belongs to.
        self._doing: tuple[Config, str] | None = None
        # Whether the request at hand is the joined server's, and new.
        self._taken = False
        # What the request at hand has read: source -> generation (`Vault.generation`).
        self._read: Mapping[str, str] = {}

    def _config(self, given: Mapping[str, object]) -> tuple[Config, str]:
        """Return the run's configuration, with what this device decides, and its name."""
        chosen = consent.settings(self._vault)
        wanted = cast(int, given.get("engine.max-length", 512))
        own = {
            "backbone": chosen["backbone"],
            "engine.max-length": min(wanted, int(chosen["max-length"])),
            "engine.device": chosen["device"],
            "data": "",
            "unlabeled.file": "",
        }
        config, options = parse_run({**given, **own})
        refuse_if(
            config.task != "text",
            f"the run's task is '{config.task}', which is for simulations: a run on "
            "devices has task=text.",
            Refusal,
        )
        return config, options.name

    def admit(self, sealed: Sealed) -> VaultStore:
        """Believe the key of the invitation, and each request of a run once."""
        # Before anything is said of the device: who cannot sign learns nothing of it.
        verify(sealed, joined(self._vault).signing_key)
        refuse_if(
            sealed.seal.node != str(self.number),
            "the request is sealed for another device.",
            Refusal,
        )
        refuse_if(
            consent.paused(self._vault), "the owner has paused this device.", Refusal
        )
        limits.check_now(consent.settings(self._vault))
        if sealed.users not in ((), (self.user,)):
            raise Refusal(
                f"the request is for {sealed.users[0]:.80}, this is {self.user}."
            )
        store = VaultStore(self._vault, sealed.run)
        with self._vault.transaction():
            bind(store, self.number)
            advance(store, sealed.seal.counter)
        self._taken = True
        return store

    def node(self, request: Request, started: float) -> Node:
        """Find out whether the owner takes part, and with what."""
        config, name = self._doing = self._config(request.config)
        everything = history.entries(self._vault)
        refuse_if(
            sum(entry.liked for entry in everything) < learning.FEWEST,
            "there is too little history on this device.",
            Refusal,
        )
        # A hello says nothing of the owner: the first request after it is charged.
        charge = not isinstance(request, HelloRequest)
        with self._vault.transaction():
            consent.agree(self._vault, request.run, name, config, charge)
        if isinstance(request, HelloRequest):
            self._drop_old_runs(request)
        self._read = {entry.source: entry.generation for entry in everything}
        fits = consent.settings(self._vault)["fit-strength"] == "yes"
        user, learnt = learning.split(everything, self.user, fits)
        store = VaultStore(self._vault, request.run, learnt)
        answers = consent.consents(self._vault)

        def keep(shared: Lora, lora: Lora, method: str, origin: str) -> None:
            reference = Reference(backbone_of(config), shared)
            judging.adopt(self._vault, reference, lora, method, (user, learnt), origin)

        return Node(
            config,
            users=(user,) if request.users else (),
            residents=(user,),
            development=frozenset(),
            store=store,
            started=started,
            permit=lambda outflow, config: consent.permit(answers, outflow, config),
            numbers={self.user: self.number},
            identity=node_key(self._vault),
            voucher=self._vault.noted("voucher", ""),
            pin=lambda known: pin_members(self._vault, request.run, name, known),
            trained=keep,
        )

    def _drop_old_runs(self, request: HelloRequest) -> None:
        """Erase what runs have trained here that were not heard of for a while."""
        now = time.time()
        known = self._vault.noted("runs", {}).items()
        runs = {run: heard for run, heard in known if heard > now - KEPT}
        runs[request.run] = now
        recent = sorted(runs, key=lambda run: runs[run])[-MOST_RUNS:]
        self._vault.note("runs", {run: runs[run] for run in recent})
        self._vault.forget_runs(but=recent)

    def answer(self, message: Message) -> RecordDict:
        """Carry out a request, and note what the answer to it is before it leaves."""
        self._doing, self._read, self._taken = None, {}, False
        try:
            with limits.time_limit(consent.settings(self._vault)):
                record = answer(message, self)
        finally:
            forget()  # private text, which its owner may erase next
        with self._vault.transaction():
            if not self._taken:  # by anybody, any number of times: one record for all
                consent.note_refused(self._vault, size(record))
                return record
            head = record.config_records["message"]
            kind, body = str(head["kind"]), json.loads(cast(str, head["body"]))
            # No answer leaves that was made of text which its owner has forgotten since.
            try:
                learning.check_learnt(self._vault, self._read)
            except Refusal as error:
                kind = "Failure"
                record = pack(Failure(body["run"], body["step"], str(error)))
            config, name = self._doing or (None, body["run"])
            covered = consent.cover(kind, config)
            consent.note_sent(self._vault, name, kind, size(record), covered)
        return record
