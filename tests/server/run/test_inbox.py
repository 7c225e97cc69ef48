"""What one node can put at the SuperLink, and what the ServerApp makes of it."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
)
from flwr.supercore.task_identity import TaskIdentity

from idiolect.common.config import flatten, parse_run
from idiolect.common.errors import IdiolectError
from idiolect.common.protocol.messages import ShareRequest
from idiolect.server.run import exchange
from idiolect.server.run import inbox as module
from idiolect.server.run.inbox import Inbox, Limits, inflated, limits
from tests.server.superlink import Device, LocalGrid, SuperLink, store

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))

from malicious import forged  # noqa: E402  # pyright: ignore[reportMissingImports]

MOST = limits({"rows": (64, 8)}, 1)


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return store(tmp_path_factory.mktemp("superlink"))


@pytest.fixture
def link(state):
    link = SuperLink(state)
    yield link
    state.cleanup_run(link.run_id)


@pytest.fixture
def grid(link):
    return LocalGrid(link)


def ask(grid: LocalGrid, device: Device) -> str:
    """Send a device a task; returns its id."""
    task = Message(
        RecordDict({"message": ConfigRecord({"a": 1})}), device.id, "train.x"
    )
    (name,) = grid.push_messages([task])
    return name


def content(rows: np.ndarray | None = None, word: str = "") -> RecordDict:
    records: dict[str, Any] = {"message": ConfigRecord({"body": word})}
    if rows is not None:
        records["arrays"] = ArrayRecord({"rows": Array(rows)})
    return RecordDict(records)


def fetched(device: Device) -> Message:
    task = device.task()
    assert task is not None
    return task


def look(inbox: Inbox, *names: str, most: Limits = MOST) -> dict[str, Any]:
    """What one look brings: task -> reply, or a sentence."""
    found = inbox.arrived(names, most)
    return {n: str(a) if isinstance(a, Exception) else a for n, a in found}


def test_a_whole_reply_arrives_and_leaves_nothing_behind(link, grid):
    device, inbox = Device(link), Inbox(grid)
    name = ask(grid, device)
    assert look(inbox, name) == {}
    rows = np.arange(512, dtype=np.float32).reshape(64, 8)
    device.send(Message(content(rows, "hello"), reply_to=fetched(device)))
    (answer,) = look(inbox, name).values()
    assert answer.content["message"]["body"] == "hello"
    assert np.array_equal(answer.content["arrays"]["rows"].numpy(), rows)
    assert link.left == (0, 0, 0)


@pytest.mark.parametrize("missing", range(6))
def test_an_incomplete_reply_is_waited_for_by_nobody(link, grid, missing):
    """Whichever object is missing: the others' answers come, and this one when it can."""
    slow, quick = Device(link, 0), Device(link, 1)
    inbox, names = Inbox(grid), [ask(grid, slow), ask(grid, quick)]
    rows = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    reply = Message(content(rows, "slow"), reply_to=fetched(slow))
    objects = list(get_all_nested_objects(reply).items())
    assert len(objects) == 6
    session = slow.send(reply, leave_out=[missing])
    assert look(inbox, *names) == {}
    time.sleep(0.1)  # two objects are pulled at a time; the other may still come
    before = link.pulled
    assert look(inbox, *names) == {}
    assert link.pulled == before  # what is missing is asked for first
    quick.send(Message(content(rows + 1, "quick"), reply_to=fetched(quick)))
    assert list(look(inbox, *names)) == [names[1]]
    late, one = objects[missing]
    assert slow.push(session, late, one.deflate())
    (answer,) = look(inbox, names[0]).values()
    assert np.array_equal(answer.content["arrays"]["rows"].numpy(), rows)
    assert link.left == (0, 0, 0)


def test_an_upload_that_broke_off_is_an_error_of_flowers_kind(link, grid, monkeypatch):
    """So the device is asked again, as after a crash; Flower waits three minutes."""
    device, inbox = Device(link), Inbox(grid)
    name = ask(grid, device)
    monkeypatch.setattr(
        "flwr.supercore.corestate.sql_corestate.OBJECT_PUSH_SESSION_TTL_SECONDS", 0
    )
    device.announce(Message(content(), reply_to=fetched(device)))
    (answer,) = look(inbox, name).values()
    assert answer.has_error() and "broke off" in answer.error.reason
    assert link.left == (0, 0, 0)


# --- what does not arrive ----------------------------------------------------------------


def rubbish(device: Device, task: Message) -> None:
    """Objects with rubbish in the place of protobuf, under their true hash."""
    reply = Message(content(word="x"), reply_to=task)
    objects = get_all_nested_objects(reply)
    config = next(n for n, one in objects.items() if isinstance(one, ConfigRecord))
    bad = b"ConfigRecord  9\0\xff\xff\xff\xff\xff\xff\xff\xff\xff"
    swap(device, reply, config, bad)


def swap(device: Device, reply: Message, old: str, bad: bytes) -> None:
    """Send a reply with another object in the place of one, and parents that name it."""
    tree, objects = forged(reply, old, bad)
    head = message_to_proto(remove_content_from_message(reply))
    head.metadata.message_id = tree.object_id
    wanted = device.announce_raw(head, tree)
    for name in wanted.objects_to_push:
        assert device.push(wanted.session_id, name, objects[name])


def flood(size: int) -> Callable[[Device, Message], None]:
    def send(device: Device, task: Message) -> None:
        rows = np.random.default_rng(0).bytes(size)
        device.send(Message(content(np.frombuffer(rows, np.uint8)), reply_to=task))

    return send


def long_text(device: Device, task: Message) -> None:
    device.send(Message(content(word="x" * (3 << 20)), reply_to=task))


def many_arrays(device: Device, task: Message) -> None:
    arrays = {f"a{i}": Array(np.full(1, i, np.float32)) for i in range(40)}
    record = RecordDict({"arrays": ArrayRecord(arrays)})
    device.send(Message(record, reply_to=task))


def bomb(device: Device, task: Message) -> None:
    """An array of 300 KB that names its one piece 100,000 times: 200 MB."""
    reply = Message(content(np.zeros((64, 8), np.float32)), reply_to=task)
    objects = get_all_nested_objects(reply)
    (name,) = [n for n, one in objects.items() if isinstance(one, Array)]
    piece = next(iter(objects[name].children or {}))
    body = {"dtype": "float32", "shape": [64, 8], "stype": "numpy.ndarray"}
    text = json.dumps(body | {"arraychunk_ids": [0] * 100_000}).encode()
    swap(device, reply, name, f"Array {piece} {len(text)}".encode() + b"\0" + text)


def negative_places(device: Device, task: Message) -> None:
    """The same, with places counted from the end."""
    reply = Message(content(np.zeros((64, 8), np.float32)), reply_to=task)
    objects = get_all_nested_objects(reply)
    (name,) = [n for n, one in objects.items() if isinstance(one, Array)]
    piece = next(iter(objects[name].children or {}))
    text = json.dumps({"arraychunk_ids": [-1] * 1000}).encode()
    swap(device, reply, name, f"Array {piece} {len(text)}".encode() + b"\0" + text)


def deep(device: Device, task: Message) -> None:
    """Arrays whose description is nested without end."""
    reply = Message(content(np.zeros((64, 8), np.float32)), reply_to=task)
    objects = get_all_nested_objects(reply)
    (name,) = [n for n, one in objects.items() if isinstance(one, Array)]
    piece = next(iter(objects[name].children or {}))
    text = b'{"arraychunk_ids":' + b"[" * 100_000
    swap(device, reply, name, f"Array {piece} {len(text)}".encode() + b"\0" + text)


def numbers(device: Device, task: Message) -> None:
    """A kind of record that no reply of ours has."""
    record = RecordDict({"metrics": MetricRecord({"x": 1.0})})
    device.send(Message(record, reply_to=task))


def no_message(device: Device, task: Message) -> None:
    """The object that should be the message is a record."""
    reply = Message(content(), reply_to=task)
    objects = get_all_nested_objects(reply)
    swap(device, reply, list(objects)[-1], objects[list(objects)[0]].deflate() + b"")


def stranger_inside(device: Device, task: Message) -> None:
    """A record names an object that was never announced."""
    reply = Message(content(), reply_to=task)
    objects = get_all_nested_objects(reply)
    name = list(objects)[-2]
    text = json.dumps({"message": "0" * 64}).encode()
    swap(
        device,
        reply,
        name,
        f"RecordDict {'0' * 64} {len(text)}".encode() + b"\0" + text,
    )


ATTACKS = [
    (rubbish, "cannot be read: DecodeError"),
    (flood(1 << 20), "more than the"),
    (long_text, "more than the"),
    (many_arrays, "parts, .* are allowed"),
    (bomb, "more than the"),
    (negative_places, "more than the"),
    (deep, "cannot be read"),
    (numbers, "unknown kind"),
    (stranger_inside, "cannot be read: KeyError"),
]


@pytest.mark.parametrize(
    ("attack", "sentence"),
    ATTACKS,
    ids=[getattr(a, "__name__", "x") for a, _ in ATTACKS],
)
def test_a_hostile_reply_is_its_senders_failure_and_is_deleted(
    link, grid, attack, sentence
):
    bad, good = Device(link, 0), Device(link, 1)
    inbox, names = Inbox(grid), [ask(grid, bad), ask(grid, good)]
    attack(bad, fetched(bad))
    good.send(Message(content(word="here"), reply_to=fetched(good)))
    found = look(inbox, *names)
    assert set(found) == set(names)
    with pytest.raises(AssertionError, match=sentence):
        raise AssertionError(found[names[0]])
    assert found[names[0]].isprintable() and len(found[names[0]]) < 300
    assert found[names[1]].content["message"]["body"] == "here"
    assert link.left == (0, 0, 0)
    # Whatever was sent: no more was read than is allowed, and one object.
    assert link.pulled < MOST.body + MOST.tensors + (5 << 20)


def test_no_object_is_pulled_of_a_reply_with_too_many(link, grid):
    device, inbox = Device(link), Inbox(grid)
    name = ask(grid, device)
    many_arrays(device, fetched(device))
    assert "are allowed" in look(inbox, name)[name]
    assert link.pulled == 0


def test_a_reply_is_counted_for_the_task_it_was_checked_for(link, grid):
    """What is written inside it may name another device's task."""
    liar, honest = Device(link, 0), Device(link, 1)
    inbox, names = Inbox(grid), [ask(grid, liar), ask(grid, honest)]
    reply = Message(content(word="forged"), reply_to=fetched(liar))
    proto = message_to_proto(remove_content_from_message(reply))
    reply.metadata.__dict__["_reply_to_message_id"] = names[1]
    reply.metadata.__dict__["_src_node_id"] = honest.id
    objects = get_all_nested_objects(reply)
    proto.metadata.message_id = list(objects)[-1]
    below: list[ObjectTree] = []
    for one in objects:
        below = [ObjectTree(object_id=one, children=below)]
    session = liar.announce_raw(proto, below[0]).session_id
    for one, body in objects.items():
        assert liar.push(session, one, body.deflate())
    found = look(inbox, *names)
    assert set(found) == {names[0]}
    honest.send(Message(content(word="true"), reply_to=fetched(honest)))
    assert look(inbox, names[1])[names[1]].content["message"]["body"] == "true"


def test_a_device_cannot_answer_for_another_or_twice(link, grid):
    liar, honest = Device(link, 0), Device(link, 1)
    inbox, names = Inbox(grid), [ask(grid, liar), ask(grid, honest)]
    own, stolen = fetched(liar), fetched(honest)
    forged = Message(content(word="forged"), reply_to=stolen)
    forged.metadata.__dict__["_src_node_id"] = liar.id
    liar.announce(forged)
    liar.send(Message(content(word="first"), reply_to=own))
    liar.announce(Message(content(word="second"), reply_to=own))
    found = look(inbox, *names)
    assert {n: a.content["message"]["body"] for n, a in found.items()} == {
        names[0]: "first"
    }


def test_what_flower_says_of_a_node_that_is_gone_arrives(link, grid):
    device, inbox = Device(link), Inbox(grid)
    name = ask(grid, device)
    link.state.deactivate_node(device.id)
    (answer,) = look(inbox, name).values()
    assert answer.has_error() and link.left == (0, 0, 0)


def test_a_nodes_own_error_arrives(link, grid):
    device, inbox = Device(link), Inbox(grid)
    name = ask(grid, device)
    device.send(Message(Error(0, "\x1b[2J no"), reply_to=fetched(device)))
    # No error of Flower's kind: for such a one the device would be asked again and again.
    assert look(inbox, name)[name] == "its node failed: \ufffd[2J no"


def test_late_and_unfinished_replies_are_deleted(link, grid, monkeypatch):
    monkeypatch.setattr(module, "SWEEP", 0.0)
    devices = [Device(link, i) for i in range(3)]
    inbox, names = Inbox(grid), [ask(grid, device) for device in devices]
    tasks = [fetched(device) for device in devices]
    unfinished = Message(content(word="unfinished"), reply_to=tasks[0])
    session = devices[0].send(unfinished, leave_out=[0])
    assert look(inbox, *names) == {}
    # The deadline has passed, and the next step asks somebody else.
    other = ask(grid, devices[2])
    assert look(inbox, other) == {}
    devices[1].send(Message(content(word="late"), reply_to=tasks[1]))
    (first, one), *_ = get_all_nested_objects(unfinished).items()
    assert not devices[0].push(session, first, one.deflate())
    assert look(inbox, other) == {}
    assert link.left[0] > 0  # the tasks that wait
    devices[2].send(Message(content(word="late, too"), reply_to=tasks[2]))
    devices[2].send(Message(content(word="other"), reply_to=fetched(devices[2])))
    inbox.close()
    assert link.left == (0, 0, 0)


def failing(original: Callable, error: Callable[[], Exception], hits: Callable) -> Any:
    """A call that raises an error for some requests."""

    def call(request):
        if hits(request):
            raise error()
        return original(request)

    return call


def status(code: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "http://x")
    return httpx.HTTPStatusError(
        f"status {code}", request=request, response=httpx.Response(code)
    )


PASSING = [lambda: status(500), lambda: status(503), lambda: httpx.ReadTimeout("slow")]


def test_a_question_that_fails_costs_nobody_else(link, grid, monkeypatch):
    """Up to 64 nodes are asked for one by one; of more, a failing question is divided."""
    devices = [Device(link, i) for i in range(2)]
    names = [ask(grid, device) for device in devices]
    for device in devices:
        device.send(Message(content(word="here"), reply_to=fetched(device)))
    broken = failing(
        link.PullMessages, lambda: status(400), lambda r: names[0] in r.message_ids
    )
    monkeypatch.setattr(link, "PullMessages", broken, raising=False)
    monkeypatch.setattr(module, "LOOKS", 1)
    found = look(Inbox(grid), *names)
    assert "HTTPStatusError" in found[names[0]]
    assert found[names[1]].content["message"]["body"] == "here"


@pytest.mark.parametrize("error", PASSING)
@pytest.mark.parametrize("kind", ["PullMessages", "PullObject"])
def test_what_the_superlink_fails_at_is_asked_again(
    link, grid, monkeypatch, error, kind
):
    """Its database is busy, perhaps because of another device: no reply's fault."""
    device, inbox = Device(link), Inbox(grid)
    name = ask(grid, device)
    device.send(Message(content(word="here"), reply_to=fetched(device)))
    broken = failing(getattr(link, kind), error, lambda _: True)
    with monkeypatch.context() as patch:
        patch.setattr(link, kind, broken, raising=False)
        assert look(inbox, name) == {} and look(inbox, name) == {}
    assert look(inbox, name)[name].content["message"]["body"] == "here"


class Asked:
    """A run, as far as `Asking` needs one."""

    def __init__(self, grid: Any, settings: dict) -> None:
        self.config = parse_run(settings)[0]
        self.grid, self.slow = grid, set()
        self.state = SimpleNamespace(cost=SimpleNamespace(bytes_down=0))
        self.holds, self.signing_key, self.counters = {}, bytes(32), []
        self.salt = bytes(16)

    def count_up(self) -> int:
        self.counters.append(len(self.counters) + 1)
        return self.counters[-1]


class Faulty:
    """A grid that fails so many times at each node, and then works."""

    def __init__(self, failures: dict[int, int], error: Callable) -> None:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
        self.failures, self.error, self.sent = failures, error, []

    def push_messages(self, messages):
        (message,) = messages
        node = message.metadata.dst_node_id
        self.failures[node] = self.failures.get(node, 0) - 1
        if self.failures[node] >= 0:
            raise self.error()
        self.sent.append(node)
        return [f"id-{node}"]


@pytest.mark.parametrize("error", [*PASSING, lambda: status(400)])
@pytest.mark.parametrize("task", ["headline", "text"])
def test_a_task_that_cannot_be_sent_fails_alone(monkeypatch, error, task):
    monkeypatch.setattr(exchange, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(exchange, "_progress", lambda *_: None)
    settings = {"task": task, "personalise.learning-rates": "3e-3"}
    if task == "text":
        settings |= {"users": 2, "deadline": 30.0}
    grid = Faulty({1: 99, 2: 2}, error)
    run = cast(Any, Asked(grid, settings))
    tasks = [
        (n, ShareRequest("r", f"s/{n}", flatten(run.config), "", (f"u{n}",)))
        for n in (1, 2, 3)
    ]
    step = exchange.Exchange("p", "", "query.x", 0.0)
    asking = exchange.Asking(run, step, cast(Any, None), cast(Any, None), MOST)
    asking.add(tasks)
    again = (2, 3) if error in PASSING else (3,)
    assert grid.sent == list(again)
    assert sorted(asking.waiting) == [f"id-{n}" for n in again]
    assert run.counters == list(range(1, 8 if error in PASSING else 4))
    if task == "text":  # devices are asked again after a share of the deadline
        assert set(asking.again) == {0, 1, 2} and not asking.errors
    else:
        assert "node 1 cannot be reached" in asking.errors["u1"]
        assert ("u2" in asking.errors) == (error not in PASSING)


def test_an_object_under_another_name_is_refused():
    with pytest.raises(IdiolectError, match="not the one that it announced"):
        inflated("0" * 64, {"0" * 64: b"Message  0\0"}, MOST)


def test_limits_follow_what_was_asked_for():
    hello = limits({}, 0)
    assert hello.tensors == 0 and hello.body <= 1 << 20 and hello.objects < 10
    rows = {f"layer{i}": (4096, 16) for i in range(100)}
    one, ten = limits(rows, 1), limits(rows, 10)
    assert 100 * 4 * 4096 * 16 < one.tensors < 1.01 * 100 * 4 * 4096 * 16
    assert 9 < ten.tensors / one.tensors < 10
    # An honest reply: message, records, and per array itself and its pieces of 5 MiB.
    assert one.objects >= 4 + 100 * 2
    assert limits({}, 2, texts=8).body > 2 * 8 * 60_000
    assert limits({}, 10**6, texts=10**6).body <= 64 << 20
