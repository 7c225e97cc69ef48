"""From Flower's message to the answer: who may ask, what is missing, what went wrong.

What goes wrong comes back as a sentence, never as a traceback.
"""

import time
from collections.abc import Collection
from dataclasses import replace

from flwr.app import Message as Envelope
from flwr.app import RecordDict

from ...common.data.types import TOO_LONG
from ...common.engine.fitting import fitting
from ...common.protocol.messages import (
    Failure,
    HelloRequest,
    Missing,
)
from ...common.protocol.packing import pack
from ...common.protocol.signed import (
    MissingParts,
    Sealed,
    brought,
    complete,
    read_sealed,
)
from ..owner.consent import Refusal
from . import state
from .handlers import HANDLERS
from .host import Host, Node, is_open, resident, sentence
from .state import RunStore


def answer(message: Envelope, host: Host) -> RecordDict:
    """Read a request, do it, and answer; a request that cannot be done is a `Failure`."""
    started = time.monotonic()
    run, step = "", ""
    try:
        kind = message.metadata.message_type
        if kind not in HANDLERS:
            raise Refusal(f"'{kind:.80}' is not a request of idiolect.")
        cls, work = HANDLERS[kind]
        sealed = read_sealed(cls, message.content)
        run, step = sealed.run, sealed.fields["step"]
        if cls is not HelloRequest and not sealed.users:
            raise Refusal("the request names nobody whom it is for.")
        store = host.admit(sealed)
        _check_agreed(sealed, store)
        came = brought(message.content, sealed.seal)
        request = complete(sealed, came | _kept(sealed, store, came))
        node = host.node(request, started)
        for name, data in came.items():  # in the place of what came before under it
            store.write(f"parts/{name}", data)
        node = _fitting(node)
        return pack(work(request, replace(node, agreement=sealed.seal.parts["config"])))
    except MissingParts as error:
        return pack(Missing(run, step, error.names))
    except Exception as error:
        return pack(Failure(run, step, sentence(error, host.simulated)))


def _fitting(node: Node) -> Node:
    """Leave out the items that do not fit into the context, and count them."""
    backbone = resident(node.config).backbone
    pairs = [fitting(backbone, user) for user in node.residents]
    residents = {user.id: user for user, _ in pairs}
    dropped, count = dict(node.dropped), sum(number for _, number in pairs)
    if count and is_open(node):  # where metrics have noise, no count leaves without it
        dropped[TOO_LONG] = dropped.get(TOO_LONG, 0) + count
    users = tuple(residents.get(user.id, user) for user in node.users)
    found = tuple(residents.values())
    return replace(node, users=users, residents=found, dropped=dropped)


def _check_agreed(sealed: Sealed, store: RunStore) -> None:
    """Refuse work for a run that the users did not agree to, in a hello, as it is now."""
    if sealed.cls is not HelloRequest:
        for user in sealed.users:
            state.check_agreed(store, user, sealed.seal.parts["config"])


def _kept(sealed: Sealed, store: RunStore, came: Collection[str]) -> dict[str, bytes]:
    """The parts of a request that came before."""
    names = set(sealed.seal.parts) - set(came)
    kept = {name: store.read(f"parts/{name}") for name in names}
    return {name: data for name, data in kept.items() if data is not None}
