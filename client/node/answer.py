"""From Flower's message to the answer: who may ask, what is missing, what went wrong.

What goes wrong comes back as a sentence, never as a traceback.
"""

import time
from dataclasses import replace

from flwr.app import Message as Envelope
from flwr.app import RecordDict

from ...common.data.types import TOO_LONG
from ...common.engine.fitting import fitting
from ...common.protocol.messages import Failure, HelloRequest, Missing
from ...common.protocol.packing import pack
from ...common.protocol.signed import MissingParts, brought, complete, read_sealed
from ..owner.consent import Refusal
from . import state
from .handlers import HANDLERS
from .host import Host, Node, is_open, resident, sentence


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
        agreement = sealed.seal.parts["config"]
        for user in () if cls is HelloRequest else sealed.users:
            state.check_agreed(store, user, agreement)
        came = brought(message.content, sealed.seal)
        kept = {
            name: data
            for name in set(sealed.seal.parts) - set(came)
            if (data := store.read(f"parts/{name}")) is not None
        }
        request = complete(sealed, came | kept)
        node = host.node(request, started)
        for name, data in came.items():  # in the place of what came before under it
            store.write(f"parts/{name}", data)
        return pack(work(request, replace(_fitting(node), agreement=agreement)))
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
    return replace(
        node,
        users=tuple(residents.get(user.id, user) for user in node.users),
        residents=tuple(residents.values()),
        dropped=dropped,
    )
