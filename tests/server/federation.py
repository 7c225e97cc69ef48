"""A whole federation in one process: Flower's Grid, played by the real ClientApp.

No Ray and no SuperLink, so a complete run with a random model of a few thousand
parameters takes seconds, and a test can stand anywhere between server and node.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from idiolect.client.node.app import app as client_app
from idiolect.server.run.app import main

Change = Callable[[Message, Message], Message | None]


class FakeGrid:
    """Runs the ClientApp when a reply is asked for.

    Parameters
    ----------
    nodes
        Number of simulated nodes.
    change
        Called with (task, reply); returns what the server is to get, None for nothing.
    """

    def __init__(self, nodes: int = 2, change: Change | None = None) -> None:
        self.nodes = nodes
        self.change = change or (lambda _task, reply: reply)
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
        self.waiting: dict[str, Message] = {}
        self.kinds: list[str] = []

    def get_node_ids(self) -> Iterable[int]:
        return [100 + partition for partition in range(self.nodes)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        names = []
        for message in messages:
            name = str(uuid4())
            message.metadata.__dict__["_message_id"] = name
            self.waiting[name] = message
            names.append(name)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for name in message_ids:
            task = self.waiting.pop(name, None)
            if task is None:
                continue
            self.kinds.append(task.metadata.message_type)
            reply = self.change(task, client_app(task, self.context(task)))
            if reply is not None:
                return [reply]
        return []

    def context(self, task: Message) -> Context:
        partition = task.metadata.dst_node_id - 100
        place: UserConfig = {"partition-id": partition, "num-partitions": self.nodes}
        return Context(1, task.metadata.dst_node_id, place, RecordDict(), {})


def node_error(task: Message, reason: str) -> Message:
    """What Flower answers where a node died."""
    return Message(Error(code=4, reason=reason), reply_to=task)


def server_context(settings: dict) -> Context:
    """The ServerApp's context with a run configuration."""
    return Context(1, 0, {}, RecordDict(), settings)


def run(settings: dict, grid: FakeGrid | None = None) -> Path:
    """Carry out a run; returns its folder."""
    main(cast(Grid, grid or FakeGrid()), server_context(settings))
    return (Path(settings["run.folder"]) / "latest").resolve()


def results(folder: Path) -> dict:
    """Read results.json."""
    return json.loads((folder / "results.json").read_text())


def events(folder: Path, kind: str = "") -> list[dict]:
    """Events of metrics.jsonl, of one kind or all."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [entry for entry in found if not kind or entry["event"] == kind]
