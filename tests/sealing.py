"""Tasks as a server signs them, for tests that play the server."""

import itertools

from flwr.app import RecordDict

from idiolect.common.protocol.manifest import public_key
from idiolect.common.protocol.messages import Request
from idiolect.common.protocol.signed import SALT, make_part, part_names, seal_request

SEED = bytes(range(32))
KEY = public_key(SEED)
COUNTER = itertools.count(1)


def sealed(
    task: Request,
    node: int = 100,
    counter: int | None = None,
    seed: bytes = SEED,
    known: dict[str, str] | None = None,
) -> RecordDict:
    """A signed task, by default with all its parts and a counter of its own."""
    parts = {n: make_part(n, getattr(task, n)) for n in part_names(type(task))}
    number = next(COUNTER) if counter is None else counter
    return seal_request(task, node, number, parts, seed, known or {}, bytes(SALT))
