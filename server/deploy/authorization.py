"""Who makes a call at the proxy, and whether this caller may make it.

Flower 1.42 checks the signature of a call after it has read the whole body, and that the
node named in the call is the one of the key. It does not check which node a reply claims
to come from, whose message is confirmed (and then deleted), or whose object is pulled: it
gives an object to every node that names its hash, and the hash of one of few possible
contents can be guessed. These checks are made here, before the SuperLink sees the call,
with the SuperLink's own database, opened read-only.
"""

import base64
import datetime
import hashlib
import math
import sqlite3
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from flwr.common.constant import (
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_HEADER,
    TIMESTAMP_TOLERANCE,
)
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
)
from flwr.supercore.primitives.asymmetric import verify_signature
from google.protobuf.message import DecodeError, Message

from ...common.protocol.turned_away import (
    CLOCK,
    OTHER_DEVICE,
    REVOKED,
    STRANGER,
    UNREGISTERED,
)
from .database import find_node
from .quota import Bucket

SMALL = 64 << 10  # bytes of a call that has names and numbers only
OBJECT = 6 << 20  # of one object: Flower cuts tensors into pieces of 5 MiB
# Of a reply's tree. A reply has a message, its records, and each array with its pieces:
# 1,130 objects for a model with 80 layers and 7 projections in each. The SuperLink writes
# an announcement in one transaction, and everything else waits for it, also the run.
OBJECTS, DEPTH = 1_536, 16
STORED = 600  # bytes in the SuperLink's database that an announced object takes at once
LISTING = SMALL + 100 * OBJECTS  # of an announcement: 70 bytes for each object's name
# How the PEM of a P-384 key begins; any other text is not parsed.
DEVICE_KEY = b"-----BEGIN PUBLIC KEY-----\nMHYwEAYHKoZIzj0CAQYFK4EEACIDYgAE"
LONGEST_HEADER = 1024  # characters; a key of P-384 has 292
REMEMBERED = 50_000  # objects that are remembered: some 20 MB
LOOKS, LOOKS_PER_SECOND = 30, 0.5  # of one device's calls into the list of messages

KEY, SIGNATURE, TIME = (
    name.encode()
    for name in (
        FLEET_HTTP_PUBLIC_KEY_HEADER,
        FLEET_HTTP_SIGNATURE_HEADER,
        TIMESTAMP_HEADER,
    )
)


class Refusal(Exception):
    """A call that is not passed on.

    Attributes
    ----------
    status
        Of the HTTP answer. With 401 a device ends, with 403 it gives up the run, and with
        503 it tries again later.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def refuse_if(wrong: object, status: int, sentence: str) -> None:
    """Raise a `Refusal` where something is wrong."""
    if wrong:
        raise Refusal(status, sentence)


@dataclass(frozen=True)
class Call:
    """One kind of call that a device makes.

    Attributes
    ----------
    path
        This constant is passed on, never the received path.
    request
        Type of the body.
    most
        Largest size of the body in bytes.
    """

    path: str
    request: type[Message]
    most: int


# The calls of `idiolect node`. Bundles (get-fab) and registration by devices are not there.
CALLS = {
    call.path.encode(): call
    for call in (
        Call("/v1/fleet/activate-node", ActivateNodeRequest, SMALL),
        Call("/v1/fleet/deactivate-node", DeactivateNodeRequest, SMALL),
        Call("/v1/fleet/send-node-heartbeat", SendNodeHeartbeatRequest, SMALL),
        Call("/v1/fleet/pull-messages", PullMessagesRequest, SMALL),
        Call("/v1/fleet/push-messages", PushMessagesRequest, LISTING),
        Call("/v1/fleet/pull-object", PullObjectRequest, SMALL),
        Call("/v1/fleet/push-object", PushObjectRequest, OBJECT),
        Call(
            "/v1/fleet/confirm-message-received", ConfirmMessageReceivedRequest, SMALL
        ),
    )
}


@dataclass(frozen=True)
class Caller:
    """A registered device: its public key in PEM, and Flower's number of it."""

    key: bytes
    node: int


def caller(headers: Mapping[bytes, bytes], database: sqlite3.Connection) -> Caller:
    """Return who signed a call, from its headers alone.

    The signature is checked first: a caller who cannot sign with the named key learns
    neither whether that key is registered nor the server's time. The check costs less than
    the handshake before it, and a refusal ends the connection.

    Raises
    ------
    Refusal
        The signature is wrong, the time is not now, or the key is not registered.
    """
    try:
        raw, signed, stamp = headers[KEY], headers[SIGNATURE], headers[TIME]
        if max(len(raw), len(signed), len(stamp)) > LONGEST_HEADER:
            raise ValueError("a header is too long")
        key = base64.b64decode(raw, validate=True)
        signature = base64.b64decode(signed, validate=True)
        signed_at = datetime.datetime.fromisoformat(stamp.decode("ascii"))
        age = (datetime.datetime.now(datetime.UTC) - signed_at).total_seconds()
        if not key.startswith(DEVICE_KEY):
            raise ValueError("not the key of a device")
        public = load_pem_public_key(key)
    except (KeyError, ValueError, TypeError, OverflowError, UnsupportedAlgorithm):
        raise Refusal(401, STRANGER) from None
    if not isinstance(public, ec.EllipticCurvePublicKey) or not verify_signature(
        public, stamp, signature
    ):
        raise Refusal(401, STRANGER)
    refuse_if(
        not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE,
        401,
        CLOCK,
    )
    if (found := find_node(database, key)) is None:
        raise Refusal(401, UNREGISTERED)
    node, revoked = found
    refuse_if(revoked, 401, REVOKED)
    return Caller(key, node)


# All objects below the messages that were delivered to a node.
BELONGS = """
WITH RECURSIVE mine(id) AS (
    SELECT message_id FROM message_ins
     WHERE dst_node_id = ? AND run_id = ? AND delivered_at != ''
    UNION
    SELECT child_id FROM object_children JOIN mine ON parent_id = id
)
SELECT id FROM mine
"""


class Trees:
    """The objects that the SuperLink has sent: to which node, and with which children.

    An object's name is the hash of its content, and its content names its children. But
    Flower trusts the first announcement: if a device announces a shared object with wrong
    children, the SuperLink then refuses that object from the run itself.
    """

    def __init__(self, most: int = REMEMBERED) -> None:
        self._most = most
        self._children: OrderedDict[bytes, bytes] = OrderedDict()
        self._sent: OrderedDict[tuple[int, int, str], None] = OrderedDict()
        self._looks: dict[int, Bucket] = {}

    def note(self, node: int, answer: bytes) -> None:
        """Remember the objects that an answer to pull-messages sends to a device."""
        response = PullMessagesResponse()
        try:
            response.ParseFromString(answer)
        except DecodeError:
            return
        for message, tree in zip(
            response.messages_list, response.message_object_trees, strict=False
        ):
            for one in branches(tree):
                self._remember(self._children, *_mark(one))
                sent = (node, message.metadata.run_id, one.object_id)
                self._remember(self._sent, sent, None)

    def _remember(self, known: OrderedDict[Any, Any], key: Any, value: Any) -> None:
        """Note the newest entry; the oldest one goes where there are too many."""
        known[key] = value
        known.move_to_end(key)
        if len(known) > self._most:
            known.popitem(last=False)

    def agrees(self, tree: ObjectTree) -> bool:
        """Whether the children of all objects in a tree are the known ones."""
        marks = (_mark(one) for one in branches(tree))
        return all(self._children.get(name, mark) == mark for name, mark in marks)

    def belongs(
        self, node: int, run: int, name: str, database: sqlite3.Connection
    ) -> bool:
        """Whether an object is part of a message that was delivered to a device.

        After a start of the proxy nothing is remembered, and the database is asked. With
        many messages that is slow, so a device may cause it only now and then.

        Raises
        ------
        Refusal
            This device has caused it too often.
        """
        if (node, run, name) in self._sent:
            return True
        refuse_if(
            not self._looks.setdefault(node, Bucket(LOOKS, LOOKS_PER_SECOND)).take(),
            503,
            "too many calls of this device: try again later",
        )
        for (found,) in database.execute(BELONGS, (_signed(node), _signed(run))):
            self._remember(self._sent, (node, run, found), None)
        return (node, run, name) in self._sent


def _mark(tree: ObjectTree) -> tuple[bytes, bytes]:
    """Return an object's name and a short hash of its children, sorted."""
    children = sorted(child.object_id for child in tree.children)
    mark = hashlib.blake2b("\n".join(children).encode(), digest_size=16).digest()
    return tree.object_id.encode(), mark


def branches(tree: ObjectTree) -> Iterator[ObjectTree]:
    """Yield a tree and all its descendants.

    Raises
    ------
    Refusal
        The tree is deeper or larger than that of any reply.
    """
    waiting, seen = [(tree, 1)], 0
    while waiting:
        one, depth = waiting.pop()
        seen += 1
        refuse_if(depth > DEPTH or seen > OBJECTS, 400, "the message is too large")
        yield one
        waiting += [(child, depth + 1) for child in one.children]


def check(
    call: Call,
    body: bytes,
    who: Caller,
    database: sqlite3.Connection,
    trees: Trees,
) -> int:
    """Refuse a call that its caller may not make.

    Returns
    -------
    int
        Number of objects that it announces, including known ones.

    Raises
    ------
    Refusal
        The body is not such a request, names another device, or asks for what was not
        sent to this one.
    """
    request: Any = call.request()
    try:
        request.ParseFromString(body)
    except DecodeError:
        raise Refusal(400, "the body is not what the call needs") from None
    if isinstance(request, ActivateNodeRequest):
        refuse_if(request.public_key != who.key, 401, OTHER_DEVICE)
        return 0
    nodes = {
        request.node_id
        if isinstance(request, DeactivateNodeRequest)
        else request.node.node_id
    }
    if isinstance(request, PushMessagesRequest):
        nodes |= _sources(request, trees)
    refuse_if(nodes != {who.node}, 401, OTHER_DEVICE)
    refuse_if(
        isinstance(request, ConfirmMessageReceivedRequest)
        and not _is_for(who.node, request.run_id, request.message_object_id, database),
        403,
        "that message was not sent to this device",
    )
    refuse_if(
        isinstance(request, PullObjectRequest)
        and not trees.belongs(who.node, request.run_id, request.object_id, database),
        403,
        "that object was not sent to this device",
    )
    if isinstance(request, PushMessagesRequest):
        return sum(1 for _ in branches(request.message_object_trees[0]))
    return 0


def _sources(request: PushMessagesRequest, trees: Trees) -> set[int]:
    """Return the nodes that an announced reply claims to come from; check the reply."""
    messages, announced = request.messages_list, request.message_object_trees
    times = request.clientapp_runtime_list
    refuse_if(
        not len(messages) == len(announced) == 1 or len(times) > 1,
        400,
        "one reply at a time",
    )
    # Only replies: a message that answers nothing would be stored as a request.
    refuse_if(
        not messages[0].metadata.reply_to_message_id,
        400,
        "the message answers no request",
    )
    refuse_if(
        not all(math.isfinite(time) and time >= 0 for time in times),
        400,
        "the message is not one of a device",
    )
    refuse_if(
        not trees.agrees(announced[0]), 400, "the parts of an object are not its own"
    )
    return {messages[0].metadata.src_node_id}


def _signed(number: int) -> int:
    """Return an unsigned number as the database has it."""
    return number - 2**64 if number >= 2**63 else number


def _is_for(node: int, run: int, message: str, database: sqlite3.Connection) -> bool:
    found = database.execute(
        "SELECT 1 FROM message_ins "
        "WHERE message_id = ? AND dst_node_id = ? AND run_id = ?",
        (message, _signed(node), _signed(run)),
    )
    return found.fetchone() is not None
