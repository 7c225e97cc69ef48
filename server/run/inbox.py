"""The replies of a run's nodes, each pulled by itself and within bounds.

A reply lies at the SuperLink as objects: a message, its records, and tensors in pieces.
Flower's grid pulls whatever a node has put there: all of it, waiting for minutes for
objects that were announced and are not there, and lets any error end the run. So one
device could end or stall every run. Here

* a reply whose objects are not all there is left, and looked at again later;
* the number of its objects is checked before the first of them is pulled, their bytes
  while they come, and what they would unfold to before anything is made of them;
* whatever goes wrong with one reply is an error of that reply, one sentence;
* where the SuperLink fails, or is not reached, it is asked again until the deadline;
* the task that a reply answers is the one that the SuperLink has checked it for, not the
  one that is written in the reply;
* what was read, refused, or came too late is deleted at the SuperLink.

The memory that this takes is bounded: one reply is read at a time.
"""

import contextlib
import json
import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from flwr.app import Error, Message, Metadata
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
)
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.inflatable.inflatable_object import (
    get_object_head_values_from_object_content,
    get_object_id,
)
from flwr.supercore.inflatable.inflatable_utils import (
    inflate_object_from_contents,
    pull_objects,
)
from flwr.superlink.grid import HttpGrid

from ...common.errors import IdiolectError, refuse_if
from ...common.protocol.messages import Shapes
from ...common.protocol.packing import MAX_BODY
from ...common.text import printable

LOG = logging.getLogger("flwr")
# Replies that are asked for at once, and into how many questions a look is divided at
# most. The SuperLink forgets a reply when it has announced it; if it then fails, those
# announced together are lost together. So up to LOOKS nodes are asked for one by one.
AT_ONCE, LOOKS = 32, 64
SWEEP = 10.0  # seconds between two looks for replies that nobody waits for any more
BODY = 1 << 20  # bytes of a reply's text and numbers, and for each user
BODY_PER_USER = 64 << 10  # so many more
TEXT = 64 << 10  # bytes of a text that a reply may bring, on average
PIECE = 1 << 20  # bytes of a piece of a tensor, at least; Flower's are 5 MiB
OVERHEAD = 1 << 10  # bytes of an object or array beside its content, at most
PIECE_OF_TENSOR = b"ArrayChunk "  # how such an object begins
TYPES = {"Message", "RecordDict", "ConfigRecord", "ArrayRecord", "Array", "ArrayChunk"}


@dataclass(frozen=True)
class Limits:
    """How large a reply may be.

    Attributes
    ----------
    body
        Bytes of all objects that are not pieces of tensors.
    tensors
        Bytes of all tensors together.
    objects
        Number of objects.
    """

    body: int
    tensors: int
    objects: int


def limits(row: Shapes, users: int, texts: int = 0) -> Limits:
    """Bounds of a reply that holds what was asked for, with some room.

    Parameters
    ----------
    row
        Shapes of the arrays per user, of at most four bytes a number.
    users
        Whom it is about.
    texts
        How many texts of each of them it brings.
    """
    sizes = [4 * users * math.prod(shape) + OVERHEAD for shape in row.values()]
    return Limits(
        body=min(BODY + users * (BODY_PER_USER + texts * TEXT), MAX_BODY)
        + OVERHEAD * len(sizes),
        tensors=sum(sizes),
        # The message, its records, and each array with its pieces.
        objects=8 + sum(2 + size // PIECE for size in sizes),
    )


@dataclass
class Announced:
    """A reply that a node has announced.

    Attributes
    ----------
    head
        Id of its message object; the SuperLink knows the reply by it.
    objects
        Ids of all its objects, the next to be looked for first.
    own
        Whether the node sent it; else the SuperLink did, as where a node is gone.
    """

    head: str
    objects: list[str]
    own: bool


class _NotYet(Exception):
    """An object was announced, and is not there yet."""


class _Gone(Exception):
    """An object was announced, and will not come any more."""


@dataclass
class Inbox:
    """Where the replies of a run come in.

    Attributes
    ----------
    grid
        Flower's `HttpGrid`. In a simulation, and in tests, it is another one, which hands
        over messages of this process, and is asked for them as it is.
    announced
        Id of the task's message -> the reply to it, while objects of it are missing.
    waited
        Ids that were asked for at the last look.
    late
        Ids that nobody waits for any more; what still comes is deleted.
    swept
        When that was last looked for.
    """

    grid: Any
    announced: dict[str, Announced] = field(default_factory=dict)
    waited: set[str] = field(default_factory=set)
    late: set[str] = field(default_factory=set)
    swept: float = field(default_factory=time.monotonic)

    def arrived(
        self, names: Sequence[str], most: Limits
    ) -> Iterator[tuple[str, Message | IdiolectError]]:
        """Look once at every reply that is waited for, without waiting for any.

        Parameters
        ----------
        names
            Ids of the tasks' messages. Those of earlier looks that are missing here are
            taken for given up.
        most
            How large each reply may be.

        Yields
        ------
        tuple
            Id of the task's message, and the reply to it or what is wrong with it.
        """
        self._give_up(self.waited - set(names))
        self.waited = set(names)
        if not isinstance(self.grid, HttpGrid):
            for some in _divided(names):
                for message in self.grid.pull_messages(some):
                    yield message.metadata.reply_to_message_id, message
            return
        fresh = [name for name in names if name not in self.announced]
        for name in [name for name in names if name in self.announced]:
            yield from self._look(name, most)
        for some in _divided(fresh):
            announced, errors = _announcements(self.grid, some)
            self.announced |= announced
            self.waited -= errors.keys()
            yield from errors.items()
            for name in announced:
                yield from self._look(name, most)
        if time.monotonic() >= self.swept + SWEEP:
            self._sweep()

    def close(self) -> None:
        """Delete at the SuperLink what nobody will read any more."""
        if isinstance(self.grid, HttpGrid):
            # It may be gone; the run's end must not depend on it.
            with contextlib.suppress(Exception):
                self._give_up(self.waited)
                self._sweep()

    def _look(
        self, name: str, most: Limits
    ) -> Iterator[tuple[str, Message | IdiolectError]]:
        """Yield a reply, or nothing if it is not complete."""
        reply = self.announced[name]
        try:
            found = _read(self.grid, reply, most)
            if reply.own and found.has_error():  # no device of ours says it in this way
                found = IdiolectError(f"its node failed: {error_of(found)}")
        except _NotYet:
            return
        except _Gone:
            found = _broken_off(self.grid, name)
        except Exception as error:
            if is_passing(error):  # no reply's fault: it is looked at again
                return
            found = _blame(error)
        self.waited.discard(name)
        self._delete(name)
        yield name, found

    def _give_up(self, names: set[str]) -> None:
        self.late |= names - self.announced.keys()
        for name in names & self.announced.keys():
            self._delete(name)

    def _delete(self, name: str) -> None:
        """Let the SuperLink delete a reply, complete or not, and its task.

        It was answered; a node that died never fetched its objects.
        """
        for head in (self.announced.pop(name).head, name):
            try:
                self.grid._runtime_client.ConfirmMessageReceived(
                    ConfirmMessageReceivedRequest(
                        node=self.grid.node,
                        run_id=self.grid.run.run_id,
                        message_object_id=head,
                    )
                )
            except httpx.HTTPError as error:
                LOG.debug("a reply was not deleted: %s", error)

    def _sweep(self) -> None:
        """Delete replies that came after their time.

        The SuperLink answers for each at last that its time is over; then it goes from
        the list.
        """
        self.swept = time.monotonic()
        for some in _divided(sorted(self.late)):
            announced, errors = _announcements(self.grid, some)
            self.announced |= announced
            for name in announced:
                self._delete(name)
            self.late -= announced.keys() | errors.keys()


def _divided(names: Sequence[str]) -> Iterator[Sequence[str]]:
    size = min(AT_ONCE, max(1, len(names) // LOOKS))
    for start in range(0, len(names), size):
        yield names[start : start + size]


# --- talking with the SuperLink ----------------------------------------------------------


def _announcements(
    grid: HttpGrid, names: Sequence[str]
) -> tuple[dict[str, Announced], dict[str, IdiolectError]]:
    """Ask which of these tasks were answered; the SuperLink says it once for each.

    What it does not answer is asked again at the next look.
    """
    try:
        response = grid._runtime_client.PullMessages(
            PullAppMessagesRequest(message_ids=names)
        )
    except httpx.TransportError:
        return {}, {}
    except (httpx.HTTPStatusError, ValueError) as error:
        if len(names) == 1:
            return {}, {} if is_passing(error) else {names[0]: _blame(error)}
        alone = [_announcements(grid, [name]) for name in names]  # whose fault is it?
        return (
            {name: reply for replies, _ in alone for name, reply in replies.items()},
            {name: error for _, errors in alone for name, error in errors.items()},
        )
    # Of these the SuperLink has checked that they come from whom was asked.
    said = (message.metadata for message in response.messages_list)
    return {
        one.reply_to_message_id: Announced(
            one.message_id,
            _flat(one.message_id, tree),
            one.src_node_id != SUPERLINK_NODE_ID,
        )
        for one, tree in zip(said, response.message_object_trees, strict=True)
        if one.reply_to_message_id in names
    }, {}


def _flat(head: str, tree: ObjectTree) -> list[str]:
    """Ids of a tree's objects, each once: the message first, as it is sent last."""
    found, waiting = {head: None}, [tree]
    while waiting:
        one = waiting.pop()
        found[one.object_id] = None
        waiting += one.children
    return list(found)


def _read(grid: HttpGrid, reply: Announced, most: Limits) -> Message:
    """Pull a reply and make a message of it.

    Raises
    ------
    IdiolectError
        It is too large.
    Exception
        It is not complete, or not what it should be; Flower raises what it likes.
    """
    refuse_if(
        len(reply.objects) > most.objects,
        f"its reply has {len(reply.objects)} parts, {most.objects} are allowed.",
    )
    pulled, lock = {"body": 0, "tensors": 0}, threading.Lock()

    def pull(name: str) -> bytes:
        answer = grid._runtime_client.PullObject(
            PullObjectRequest(node=grid.node, run_id=grid.run.run_id, object_id=name)
        )
        if not answer.object_found:
            raise _Gone
        if not answer.object_available:
            reply.objects.remove(name)
            reply.objects.insert(0, name)
            raise _NotYet
        content = answer.object_content
        kind = "tensors" if content.startswith(PIECE_OF_TENSOR) else "body"
        with lock:
            pulled[kind] += len(content)
            _bound(pulled[kind], getattr(most, kind))
        return content

    first, *others = reply.objects
    contents = {first: pull(first)} | pull_objects(others, pull)
    return inflated(reply.head, contents, most)


def is_passing(error: Exception) -> bool:
    """Whether the SuperLink itself failed or was not reached; its database may be busy."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500
    return isinstance(error, httpx.TransportError)


def _broken_off(grid: HttpGrid, name: str) -> Message:
    """Say in Flower's way that a node's upload ended before it was complete."""
    return make_message(
        Metadata(
            run_id=grid.run.run_id,
            message_id="",
            src_node_id=grid.node.node_id,
            dst_node_id=grid.node.node_id,
            reply_to_message_id=name,
            group_id="",
            created_at=time.time(),
            ttl=0.0,
            message_type=SYSTEM_MESSAGE_TYPE,
        ),
        error=Error(ErrorCode.MESSAGE_UNAVAILABLE, "its upload broke off."),
    )


# --- reading what was pulled -------------------------------------------------------------


def inflated(head: str, contents: Mapping[str, bytes], most: Limits) -> Message:
    """Make a message of its objects, after checking what they will unfold to.

    An array names its pieces, and may name one a million times; arrays may share pieces.

    Raises
    ------
    IdiolectError
        It would be too large, an object is not the one that was announced, or of a kind
        that has no place in a reply.
    Exception
        An object is not what it says; Flower raises what it likes.
    """
    unfolded = 0
    for name, content in contents.items():
        refuse_if(
            get_object_id(content) != name,
            "a part of its reply is not the one that it announced.",
        )
        kind, children, _ = get_object_head_values_from_object_content(content)
        refuse_if(kind not in TYPES, "its reply has parts of an unknown kind.")
        if kind == "Array":
            pieces = json.loads(content[content.index(b"\0") + 1 :])["arraychunk_ids"]
            unfolded += sum(len(contents[children[place]]) for place in pieces)
            _bound(unfolded, most.tensors)
    message = inflate_object_from_contents(head, dict(contents))
    if not isinstance(message, Message) or message.has_content() == message.has_error():
        raise IdiolectError("its reply is not a message.")
    return message


def _bound(size: int, most: int) -> None:
    refuse_if(
        size > most, f"its reply has more than the {most} bytes that are allowed."
    )


def error_of(message: Message) -> str:
    """What an error says, in one line that no terminal obeys; a node may have said it."""
    lines = (message.error.reason or "").splitlines() or [f"error {message.error.code}"]
    return printable(lines[0])[:300]


def _blame(error: Exception) -> IdiolectError:
    """One sentence for whatever a reply caused."""
    if isinstance(error, IdiolectError):
        return error
    what = printable(f"{type(error).__name__}: {error}")[:200]
    return IdiolectError(f"its reply cannot be read: {what}")
