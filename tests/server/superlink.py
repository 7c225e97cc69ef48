"""Flower's SuperLink without its ports: its own database and handlers, in this process.

What `HttpGrid` asks for goes straight to the handlers of the Runtime API, what a device
asks for to those of the Fleet API. So a test sees what a device can store, and what of it
the ServerApp reads, without a process, a port, or a wait.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import NOOP_FLWR_AID
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import (
    PullMessagesRequest,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.message_pb2 import ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.linkstate import LinkState, LinkStateFactory
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import HttpGrid
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.superlink.servicer.runtime import runtime_handlers
from sqlalchemy import text


def store(folder: Path) -> LinkState:
    """Make the SuperLink's database, which takes two seconds."""
    path = str(folder / "superlink.db")
    manager = NoOpFederationManager()
    return LinkStateFactory(path, manager, ObjectStoreFactory(path)).state()


class SuperLink:
    """A run in a store; stands where `HttpGrid` has its HTTP client."""

    def __init__(self, state: LinkState) -> None:
        self.state = state
        self.run_id = state.create_run(
            None,
            None,
            None,
            {},
            NOOP_FEDERATION_ID,
            None,
            NOOP_FLWR_AID,
            TaskType.SERVER_APP,
        )
        self.task = state.get_tasks(run_ids=[self.run_id])[0]
        assert self.state.claim_task(self.task.task_id)
        assert self.state.activate_task(self.task.task_id)
        TaskIdentity.run_id, TaskIdentity.node_id = self.run_id, 1
        TaskIdentity.task_id = self.task.task_id
        self.pulled = 0  # bytes of objects that the ServerApp has pulled
        self.act: Callable[[], None] = lambda: None  # what devices do between two looks

    def __getattr__(self, name: str) -> Callable[[Any], Any]:
        """A call of the Runtime API, such as PullMessages."""
        words = "".join(f"_{c.lower()}" if c.isupper() else c for c in name)
        handler = getattr(runtime_handlers, words[1:])

        def call(request: Any) -> Any:
            if name == "PullMessages":
                self.act()
            answer = handler(request, self.state, cast(Task, self.task))
            self.pulled += len(getattr(answer, "object_content", b""))
            return answer

        return call

    def rows(self, table: str) -> int:
        """How many rows a table of the database has."""
        with cast(Any, self.state).session() as session:
            return session.scalar(text(f"SELECT count(*) FROM {table}"))

    @property
    def left(self) -> tuple[int, int, int]:
        """Objects, tasks and replies that are stored."""
        tables = ("objects", "message_ins", "message_res")
        objects, tasks, replies = (self.rows(name) for name in tables)
        return objects, tasks, replies


class LocalGrid(HttpGrid):
    """Flower's grid, connected to a `SuperLink` of this process."""

    def __init__(self, link: SuperLink) -> None:
        super().__init__(token="none")
        self.link = link
        self._run = Run.create_empty(link.run_id)

    @property
    def _runtime_client(self) -> Any:
        return self.link


class Device:
    """An enrolled node that can say anything the Fleet API lets through."""

    def __init__(self, link: SuperLink, place: int = 0) -> None:
        self.link = link
        self.id = link.state.create_node(
            "", "", f"key {link.run_id} {place}".encode(), 60
        )
        assert link.state.activate_node(self.id, 60)
        self.node = Node(node_id=self.id)

    def task(self) -> Message | None:
        """Fetch the next task."""
        request = PullMessagesRequest(node=self.node)
        store = self.link.state.object_store
        found = fleet_handlers.pull_messages(request, self.link.state, store)
        if not found.messages_list:
            return None
        head, tree = found.messages_list[0], found.message_object_trees[0]
        task = pull_and_inflate_object_from_tree(
            tree,
            lambda name: (
                fleet_handlers.pull_object(
                    PullObjectRequest(
                        node=self.node, run_id=self.link.run_id, object_id=name
                    ),
                    self.link.state,
                ).object_content
            ),
            store.delete,
            return_type=Message,
        )
        task.metadata.__dict__["_message_id"] = head.metadata.message_id
        return task

    def announce(self, reply: Message) -> PushMessagesResponse:
        """Say that a reply comes; returns what is to be uploaded, and in which session."""
        reply.metadata.__dict__["_message_id"] = reply.object_id
        head = message_to_proto(remove_content_from_message(reply))
        return self.announce_raw(head, get_object_tree(reply))

    def announce_raw(self, head: Any, tree: ObjectTree) -> PushMessagesResponse:
        """As `announce`, whatever head and tree are."""
        request = PushMessagesRequest(
            node=self.node, messages_list=[head], message_object_trees=[tree]
        )
        return fleet_handlers.push_messages(request, self.link.state)

    def push(self, session: str, name: str, content: bytes) -> bool:
        """Upload one object."""
        request = PushObjectRequest(
            node=self.node,
            run_id=self.link.run_id,
            object_id=name,
            object_content=content,
            session_id=session,
        )
        return fleet_handlers.push_object(request, self.link.state).stored

    def send(self, reply: Message, leave_out: Iterable[int] = ()) -> str:
        """Announce a reply and upload it, but for some of its objects."""
        wanted, without = self.announce(reply), set(leave_out)
        for place, (name, one) in enumerate(get_all_nested_objects(reply).items()):
            if place not in without and name in wanted.objects_to_push:
                assert self.push(wanted.session_id, name, one.deflate())
        return wanted.session_id
