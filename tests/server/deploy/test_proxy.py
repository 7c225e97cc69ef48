"""The proxy lets through what a device needs, and nothing else."""

import asyncio
import contextlib
import datetime
import socket
import sqlite3
import ssl
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
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
    Message,
    Metadata,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.date import now
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.utils import uint64_to_int64
from flwr.superlink.servicer.fleet import fleet_handlers

from idiolect.common.protocol.turned_away import CLOCK, REVOKED, STRANGER, UNREGISTERED
from idiolect.server.deploy import authorization as auth
from idiolect.server.deploy import database, proxy
from idiolect.server.deploy.database import opened
from idiolect.server.deploy.quota import Bucket, Shares, neighbourhood
from tests.server import running_proxy
from tests.server.running_proxy import Device, Place, database_of, state_of

CONTROL = ["start-run", "list-runs", "register-node", "stream-logs", "stop-run"]
PULL = "/v1/fleet/pull-messages"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with running_proxy.running(tmp_path_factory.mktemp("proxy") / "server") as place:
        yield place


@pytest.fixture
def place(running) -> Place:
    running.link.seen.clear()
    running.link.down = False
    running.proxy.quotas.clear()
    return running


@pytest.fixture
def device(place) -> Device:
    return place.registered()


def body(device: Device) -> bytes:
    return PullMessagesRequest(node=Node(node_id=device.node)).SerializeToString()


def call(place: Place, path: str, content: bytes, device: Device) -> httpx.Response:
    trust = str(place.folder / "ca.crt")
    address = f"https://localhost:{place.port}{path}"
    with httpx.Client(verify=trust, trust_env=False) as client:
        return client.post(address, content=content, headers=device.headers())


def raw(device: Device, content: bytes, first: str = "", **more: str) -> bytes:
    """A signed call as it goes over the wire, with one thing changed."""
    headers = device.headers() | {"host": "localhost"}
    headers |= {"content-length": str(len(content))}
    headers |= {name.replace("_", "-"): text for name, text in more.items()}
    lines = [first or f"POST {PULL} HTTP/1.1"]
    lines += [f"{name}: {text}" for name, text in headers.items() if text]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


# --- what is passed on -----------------------------------------------------------------


def test_a_fleet_call_passes_with_its_signature_and_nothing_else(place, device):
    text = raw(device, body(device), cookie="c", x_forwarded_for="1.2.3.4", te="gzip")
    answer = place.say(text)
    assert status(answer) == 200
    assert b"set-cookie" not in answer.lower()
    (request,) = place.link.seen
    assert str(request.url) == f"https://link{PULL}"
    assert request.content == body(device)
    assert set(request.headers) == {
        *("host", "content-type", "content-length", "accept", "accept-encoding"),
        *("flwr-public-key", "flwr-timestamp", "flwr-signature"),
        *("user-agent", "connection"),  # httpx's own
    }
    assert request.headers["host"] == "link"
    assert request.headers["content-length"] == str(len(body(device)))


def test_flowers_own_client_gets_its_answers(place, device):
    with device.client(place) as client:
        node = Node(node_id=device.node)
        for _ in range(3):  # over one connection
            beat = SendNodeHeartbeatRequest(node=node, heartbeat_interval=30)
            assert client.SendNodeHeartbeat(beat).success
            client.PullMessages(PullMessagesRequest(node=node))
    assert len(place.link.seen) == 6


@pytest.mark.parametrize("delivered", [None, "2026-01-01T00:00:00+00:00"])
def test_a_device_for_which_nothing_waits_is_answered_at_the_entrance(
    place, device, delivered
):
    """As the SuperLink would: Flower's client reads it. Work for others is not its own."""
    with contextlib.closing(sqlite3.connect(database_of(place.folder))) as base, base:
        base.execute("DELETE FROM message_ins")
    place.send_work(place.registered())
    if delivered:
        place.send_work(device, delivered)
    node = Node(node_id=device.node)
    with device.client(place) as client:
        answer = client.PullMessages(PullMessagesRequest(node=node))
        assert answer == PullMessagesResponse() and place.link.seen == []
        place.send_work(device)
        client.PullMessages(PullMessagesRequest(node=node))
    assert [request.url.path for request in place.link.seen] == [PULL]


@pytest.mark.parametrize("node", [1, 2**63 - 1, 2**63, 2**64 - 1])
def test_what_waits_is_found_by_flowers_own_rule(tmp_path, node):
    """For numbers of devices of every size; signed in the database."""
    state_of(tmp_path)
    with contextlib.closing(sqlite3.connect(database_of(tmp_path))) as base, base:
        signed = uint64_to_int64(node)
        names = "message_id, dst_node_id, delivered_at"
        base.execute(
            f"INSERT INTO message_ins ({names}) VALUES ('a', ?, '')", (signed,)
        )
        assert database.waits(base, node)
        assert not database.waits(base, node ^ 2)


def test_an_empty_answer_is_the_superlinks(tmp_path):
    """What Flower's own handler answers where nothing waits."""
    state = state_of(tmp_path)
    store = ObjectStoreFactory(database_of(tmp_path)).store()
    device = running_proxy.registered(state)
    request = PullMessagesRequest(node=Node(node_id=device.node))
    theirs = fleet_handlers.pull_messages(request, state, store)
    assert theirs.SerializeToString() == proxy.NO_WORK[2]


@pytest.mark.parametrize(
    "target",
    [
        *(f"/v1/control/{name}" for name in CONTROL),
        "/v1/fleet/register-node",  # only the operator registers
        "/v1/fleet/unregister-node",
        "/v1/fleet/get-fab",  # no device needs a bundle
        "/v1/fleet/get-run",
        "/v1/runtime/pull-task-input",
        "/v1/runtime/acquire-task",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/pull-messages/../../control/start-run",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages?",
        "/v1/fleet/pull-messages?x=/v1/control/start-run",
        "/v1/fleet/pull-messages#/v1/control/start-run",
        "/v1/fleet/pull-messages;x",
        "/v1/fleet/pull-messages%00",
        "/v1/fleet/pull%2Dmessages",
        "/v1/fleet%2fpull-messages",
        "/v1/fleet/./pull-messages",
        "/v1//fleet/pull-messages",
        "/V1/FLEET/PULL-MESSAGES",
        "//v1/fleet/pull-messages",
        "//evil/v1/fleet/pull-messages",
        "http://127.0.0.1/v1/control/start-run",
        "https://localhost/v1/fleet/pull-messages",
        "\\v1\\fleet\\pull-messages",
        "localhost:443",
        "*",
        "/",
        "/docs",
        "/openapi.json",
        "/health",
        "/" + "a" * 8000,
    ],
)
def test_nothing_else_reaches_the_superlink(place, device, target):
    for method in ("POST", "GET", "CONNECT", "OPTIONS", "TRACE"):
        answer = place.say(raw(device, body(device), f"{method} {target} HTTP/1.1"))
        assert status(answer) in (400, 404, 405)
    assert place.link.seen == []


@pytest.mark.parametrize(
    "host",
    [
        "x/v1/control/start-run?",  # starlette up to 1.0.0 made a path of it
        "localhost/v1/control/start-run#",
        "localhost:1/../../v1/control/start-run?",
        "@evil",
        "evil.example.org",
        "[::1",
        "a" * 5000,
    ],
)
def test_the_host_changes_nothing_of_what_is_passed_on(place, device, host):
    status(place.say(raw(device, body(device), host=host)))
    for request in place.link.seen:
        assert str(request.url) == f"https://link{PULL}"
        assert request.headers["host"] == "link"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "PATCH", "post"])
def test_other_methods_are_refused(place, device, method):
    answer = place.say(raw(device, body(device), f"{method} {PULL} HTTP/1.1"))
    assert status(answer) == 405
    assert place.link.seen == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"transfer_encoding": "chunked"}, 411),
        ({"transfer_encoding": "chunked", "content_length": ""}, 411),
        ({"transfer_encoding": "gzip, chunked"}, 501),
        ({"transfer_encoding": "identity"}, 501),
        ({"content_length": ""}, 411),
        ({"content_length": "-1"}, 400),
        ({"content_length": "+5"}, 400),
        ({"content_length": "5, 6"}, 400),
        ({"content_length": "0x5"}, 400),
        ({"content_length": "9" * 30}, 400),
        ({"content_length": str(auth.SMALL + 1)}, 413),
        ({"upgrade": "h2c", "connection": "Upgrade", "http2_settings": "AA"}, 400),
        ({"upgrade": "websocket", "connection": "upgrade"}, 400),
        ({"trailer": "flwr-signature"}, 400),
        ({"host": ""}, 400),
        ({"x": "y" * (proxy.HEADER + proxy.PIECE)}, 431),
        ({"flwr_public_key": "A" * 2000}, 401),
        ({"flwr_signature": "!"}, 401),
        ({"flwr_timestamp": "yesterday"}, 401),
        ({"flwr_timestamp": "2020-01-01T00:00:00+00:00"}, 401),
        ({"flwr_timestamp": "2020-01-01T00:00:00"}, 401),  # of no zone
        ({"flwr_signature": ""}, 401),
    ],
)
def test_an_odd_header_is_refused(place, device, change, expected):
    assert status(place.say(raw(device, body(device), **change))) == expected
    assert place.link.seen == []


@pytest.mark.parametrize(
    "name",
    ["flwr-public-key", "flwr-signature", "content-type", "content-length", "host"],
)
def test_a_header_given_twice_is_refused(place, device, name):
    other = {"content-length": "0"}.get(name, "x")
    text = raw(device, body(device)).replace(
        b"\r\n", f"\r\n{name}: {other}\r\n".encode(), 1
    )
    assert status(place.say(text)) == 400
    assert place.link.seen == []


@pytest.mark.parametrize(
    "first",
    [
        f"POST {PULL} HTTP/1.0",
        f"POST {PULL} HTTP/2.0",
        f"POST {PULL}",
        f"POST  {PULL} HTTP/1.1",
        f"POST {PULL} HTTP/1.1 ",
        "PRI * HTTP/2.0",
        "\x16\x03\x01",
    ],
)
def test_what_is_no_http_1_1_is_refused(place, device, first):
    assert status(place.say(raw(device, body(device), first))) in (400, 404, 405, 505)
    assert place.link.seen == []


def test_calls_sent_at_once_are_answered_one_by_one(place, device):
    with place.connect() as sock:
        sock.sendall(raw(device, body(device)) * 3)
        found = b""
        while found.count(b"HTTP/1.1 200") < 3:
            found += sock.recv(65536)
    assert [request.content for request in place.link.seen] == [body(device)] * 3


def test_what_follows_a_body_is_no_second_call_of_another_kind(place, device):
    hidden = (
        b"POST /v1/control/start-run HTTP/1.1\r\nhost: l\r\ncontent-length: 0\r\n\r\n"
    )
    answer = place.say(raw(device, body(device)) + hidden, answers=2)
    assert b"404" in answer
    assert [request.url.path for request in place.link.seen] == [PULL]


def test_a_superlink_that_is_down_is_no_crash(place, device):
    place.link.down = True
    # On which Flower's client tries again.
    assert call(place, PULL, body(device), device).status_code == 503
    place.link.down = False
    assert call(place, PULL, body(device), device).status_code == 200


def test_a_refusal_is_read_by_a_client_that_is_still_sending(place, device):
    """Closed with bytes unread, a connection is reset, and the answer with it."""
    trust = str(place.folder / "ca.crt")
    address = f"https://localhost:{place.port}/v1/control/start-run"
    for _ in range(5):
        with httpx.Client(verify=trust, trust_env=False) as client:
            answer = client.post(address, content=bytes(4 << 20))
            assert (answer.status_code, answer.text) == (404, "there is nothing here")


# --- who --------------------------------------------------------------------------------


def test_a_stranger_is_refused_before_the_body_is_read(place, device):
    stranger = Device(ec.generate_private_key(ec.SECP384R1()))
    path = "/v1/fleet/push-object"
    # Not a byte of the body is sent: whoever waits for it does not answer.
    text = raw(stranger, b"", f"POST {path} HTTP/1.1", content_length=str(auth.OBJECT))
    began = time.monotonic()
    assert status(place.say(text)) == 401
    assert time.monotonic() - began < 2
    assert place.link.seen == []


def test_a_signature_by_another_key_is_refused(place, device):
    other = Device(ec.generate_private_key(ec.SECP384R1()))
    key = device.headers()["flwr-public-key"]
    assert status(place.say(raw(other, body(device), flwr_public_key=key))) == 401
    assert place.link.seen == []


def test_a_revoked_device_is_refused_at_once(place, device):
    assert call(place, PULL, body(device), device).status_code == 200
    place.state.delete_node("<none>", device.node)
    assert call(place, PULL, body(device), device).status_code == 401
    assert len(place.link.seen) == 1


ACTIVATE = "/v1/fleet/activate-node"


def activating(place: Place, device: Device, **headers: str) -> httpx.Response:
    request = ActivateNodeRequest(public_key=device.public, heartbeat_interval=30)
    trust = ssl.create_default_context(cafile=str(place.folder / "ca.crt"))
    with httpx.Client(verify=trust, trust_env=False) as client:
        return client.post(
            f"https://localhost:{place.port}{ACTIVATE}",
            content=request.SerializeToString(),
            headers=device.headers() | headers,
        )


def stranger() -> Device:
    return Device(ec.generate_private_key(ec.SECP384R1()))


def test_who_signs_is_told_why_it_is_not_let_in(place, device):
    answer = activating(place, stranger())
    assert (answer.status_code, answer.text) == (401, UNREGISTERED)
    assert "date" not in answer.headers
    place.state.delete_node("<none>", device.node)
    answer = activating(place, device)
    assert (answer.status_code, answer.text) == (401, REVOKED)
    assert place.link.seen == []


@pytest.mark.parametrize("seconds", [-3600, -310, 10, 3600])
def test_who_signs_at_another_time_is_told_the_time_here(place, device, seconds):
    """Registered or not: the time is all that is said."""
    stamp = (now() + datetime.timedelta(seconds=seconds)).isoformat()
    for one in (device, stranger()):
        answer = activating(place, one, **one.headers(stamp))
        assert (answer.status_code, answer.text) == (401, CLOCK)
        here = parsedate_to_datetime(answer.headers["date"])
        assert abs((here - now()).total_seconds()) < 30
    assert place.link.seen == []


@pytest.mark.parametrize("stamp", ["", "2020-01-01T00:00:00+00:00"])
def test_who_cannot_sign_learns_nothing(place, device, stamp):
    """Neither which keys are registered nor what time it is."""
    revoked = place.registered()
    place.state.delete_node("<none>", revoked.node)
    for one in (device, revoked, stranger()):
        headers = one.headers(stamp) | {
            "flwr-signature": stranger().headers(stamp)["flwr-signature"]
        }
        answer = activating(place, one, **headers)
        assert (answer.status_code, answer.text) == (401, STRANGER)
        assert "date" not in answer.headers
    assert place.link.seen == []


def test_a_key_of_another_kind_is_not_even_parsed(place, monkeypatch):
    monkeypatch.setattr(auth, "load_pem_public_key", lambda _: pytest.fail("parsed"))
    curve = ec.generate_private_key(ec.SECP256R1())
    answer = activating(place, Device(curve))
    assert (answer.status_code, answer.text) == (401, STRANGER)


def test_a_connection_stays_one_devices(place, device):
    other = place.registered()
    answer = place.say(raw(device, body(device)) + raw(other, body(other)), 2)
    assert b" 200 " in answer and b" 401 " in answer


# --- whose ------------------------------------------------------------------------------


def reply(source: int, node: int, tree: ObjectTree | None = None, to: str = "m"):
    metadata = Metadata(
        src_node_id=source, dst_node_id=1, reply_to_message_id=to, message_id="r"
    )
    return PushMessagesRequest(
        node=Node(node_id=node),
        messages_list=[Message(metadata=metadata)],
        message_object_trees=[tree or ObjectTree(object_id="r")],
        clientapp_runtime_list=[1.0],
    )


@pytest.mark.parametrize(
    ("path", "make"),
    [
        ("activate-node", lambda o: ActivateNodeRequest(public_key=o.public)),
        ("deactivate-node", lambda o: DeactivateNodeRequest(node_id=o.node)),
        (
            "send-node-heartbeat",
            lambda o: SendNodeHeartbeatRequest(node=Node(node_id=o.node)),
        ),
        ("pull-messages", lambda o: PullMessagesRequest(node=Node(node_id=o.node))),
        ("pull-object", lambda o: PullObjectRequest(node=Node(node_id=o.node))),
        ("push-object", lambda o: PushObjectRequest(node=Node(node_id=o.node))),
        (
            "confirm-message-received",
            lambda o: ConfirmMessageReceivedRequest(node=Node(node_id=o.node)),
        ),
        ("push-messages", lambda o: reply(o.node, o.node)),
    ],
)
def test_a_call_for_another_device_is_refused(place, device, path, make):
    other = place.registered()
    text = make(other).SerializeToString()
    assert call(place, f"/v1/fleet/{path}", text, device).status_code == 401
    assert place.link.seen == []


def test_a_reply_in_another_devices_name_is_refused(place, device):
    """Flower 1.42 compares the key with the call's node, not with the message's source."""
    other = place.registered()
    path = "/v1/fleet/push-messages"
    wrong = reply(other.node, device.node).SerializeToString()
    assert call(place, path, wrong, device).status_code == 401
    # A message that answers nothing would be stored as a task, sent by the SuperLink.
    task = reply(device.node, device.node, to="").SerializeToString()
    assert call(place, path, task, device).status_code == 400
    assert place.link.seen == []
    right = reply(device.node, device.node).SerializeToString()
    assert call(place, path, right, device).status_code == 200


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.messages_list.append(r.messages_list[0]),
        lambda r: r.ClearField("messages_list"),
        lambda r: r.ClearField("message_object_trees"),
        lambda r: r.clientapp_runtime_list.append(1.0),
        lambda r: r.clientapp_runtime_list.__setitem__(0, float("nan")),
        lambda r: r.clientapp_runtime_list.__setitem__(0, -1e300),
    ],
)
def test_an_odd_announcement_is_refused(place, device, change):
    request = reply(device.node, device.node)
    change(request)
    path = "/v1/fleet/push-messages"
    assert call(place, path, request.SerializeToString(), device).status_code == 400
    assert place.link.seen == []


def test_a_tree_that_is_too_deep_or_too_large_is_refused(place, device):
    deep = ObjectTree(object_id="0")
    for number in range(auth.DEPTH):
        deep = ObjectTree(object_id=str(number), children=[deep])
    wide = ObjectTree(object_id="r", children=[ObjectTree()] * auth.OBJECTS)
    for tree in (deep, wide):
        text = reply(device.node, device.node, tree).SerializeToString()
        answer = call(place, "/v1/fleet/push-messages", text, device)
        assert answer.status_code == 400
    assert place.link.seen == []


def test_a_body_that_is_no_request_is_refused(place, device):
    assert call(place, PULL, b"\xff\xff\xff", device).status_code == 400
    assert place.link.seen == []


def deliver(place: Place, device: Device, message: str, *children: str) -> None:
    """Put a delivered message into Flower's database."""
    node = auth._signed(device.node)
    with sqlite3.connect(place.folder / "flower" / "state.db") as database:
        database.execute(
            "INSERT INTO message_ins (message_id, run_id, dst_node_id, delivered_at) "
            "VALUES (?, ?, ?, 'now')",
            (message, -5, node),
        )
        for child in children:
            database.execute(
                "INSERT INTO object_children VALUES (?, ?)", (message, child)
            )
            database.execute(
                "INSERT INTO object_children VALUES (?, ?)", (child, child + "-part")
            )


def test_objects_and_messages_are_those_of_the_device_they_were_sent_to(place, device):
    other = place.registered()
    mine, theirs = f"m{device.node}", f"m{other.node}"
    deliver(place, device, mine, f"{mine}-a")
    deliver(place, other, theirs, f"{theirs}-a")
    run = 2**64 - 5

    def pull(name: str, run: int = run) -> int:
        node = Node(node_id=device.node)
        request = PullObjectRequest(node=node, run_id=run, object_id=name)
        text = request.SerializeToString()
        return call(place, "/v1/fleet/pull-object", text, device).status_code

    def confirm(name: str, run: int = run) -> int:
        node = Node(node_id=device.node)
        request = ConfirmMessageReceivedRequest(
            node=node, run_id=run, message_object_id=name
        )
        path = "/v1/fleet/confirm-message-received"
        return call(place, path, request.SerializeToString(), device).status_code

    assert [pull(f"{mine}{x}") for x in ("", "-a", "-a-part")] == [200] * 3
    assert [pull(f"{theirs}{x}") for x in ("", "-a", "-a-part")] == [403] * 3
    assert pull("no such object") == 403
    assert pull(mine, run=4) == 403
    # Confirming deletes.
    assert (confirm(theirs), confirm(f"{mine}-a"), confirm(mine, 4)) == (403,) * 3
    assert confirm(mine) == 200
    assert len(place.link.seen) == 4


def test_a_shared_object_cannot_be_announced_with_other_parts(place, device):
    """The SuperLink would believe it, and refuse the object from the run itself."""
    part = ObjectTree(object_id="B-1")
    shared = ObjectTree(object_id="B", children=[part])
    sent = PullMessagesResponse(
        messages_list=[Message(metadata=Metadata(run_id=3))],
        message_object_trees=[ObjectTree(object_id="task", children=[shared])],
    )
    place.link.answers[PULL] = sent.SerializeToString()
    assert call(place, PULL, body(device), device).status_code == 200
    place.link.answers[PULL] = b""
    path = "/v1/fleet/push-messages"

    def announce(tree: ObjectTree) -> int:
        top = ObjectTree(object_id="r", children=[tree])
        text = reply(device.node, device.node, top).SerializeToString()
        return call(place, path, text, device).status_code

    bare = ObjectTree(object_id="B")
    other = ObjectTree(object_id="B", children=[ObjectTree(object_id="x")])
    assert (announce(bare), announce(other)) == (400, 400)
    assert announce(shared) == 200
    # A device that has not seen it yet can't know it; the memory is bounded.
    trees = auth.Trees(most=2)
    trees.note(1, sent.SerializeToString())
    assert len(trees._children) == len(trees._sent) == 2
    trees.note(1, b"\xff\xff")


def test_the_list_of_messages_is_searched_rarely_for_one_device(place, device):
    """The search takes as long as there are messages, and holds everybody up."""
    mine = f"m{device.node}"
    deliver(place, device, mine, *(f"{mine}-{n}" for n in range(100)))
    with opened(place.folder / "flower" / "state.db") as database:
        trees = auth.Trees()
        run = 2**64 - 5
        for n in range(100):  # one search, whose answer is remembered
            assert trees.belongs(device.node, run, f"{mine}-{n}-part", database)
        assert trees._looks[device.node].level > auth.LOOKS - 2
        with pytest.raises(auth.Refusal) as refused:
            for _ in range(auth.LOOKS + 1):
                assert not trees.belongs(device.node, run, "none", database)
        assert refused.value.status == 503
        assert trees.belongs(device.node, run, mine, database)


# --- how much ---------------------------------------------------------------------------


def test_a_body_is_at_most_what_its_call_needs(place, device):
    for path, most in (
        ("push-object", auth.OBJECT),
        ("pull-object", auth.SMALL),
    ):
        text = raw(device, b"", f"POST /v1/fleet/{path} HTTP/1.1")
        text = text.replace(
            b"content-length: 0", f"content-length: {most + 1}".encode()
        )
        assert status(place.say(text)) == 413
    assert place.link.seen == []


def test_an_object_of_flowers_size_passes_whole(place, device):
    content = bytes(range(256)) * (5 << 12)  # 5 MiB
    request = PushObjectRequest(
        node=Node(node_id=device.node), object_content=content, session_id="s"
    )
    path = "/v1/fleet/push-object"
    text = request.SerializeToString()
    assert call(place, path, text, device).status_code == 200
    assert place.link.seen[0].content == text


def test_a_device_that_sends_too_much_is_told_to_wait(place, device):
    place.proxy.quotas[device.node] = proxy.Quota(sent=Bucket(100.0, 0.0))
    size = len(body(device))
    answers = [
        call(place, PULL, body(device), device).status_code
        for _ in range(100 // size + 1)
    ]
    assert answers == [200] * (100 // size) + [503]


def test_an_announcement_has_no_more_objects_than_a_reply_needs(place, device):
    """The SuperLink writes them in one transaction, and everybody waits for it."""

    def tree(count: int) -> bytes:
        names = [ObjectTree(object_id=f"{n:064x}") for n in range(count - 1)]
        made = ObjectTree(object_id="r" * 64, children=names)
        return reply(device.node, device.node, made).SerializeToString()

    path = "/v1/fleet/push-messages"
    assert len(tree(1_536)) < auth.LISTING < 300_000
    assert call(place, path, tree(1_536), device).status_code == 200
    assert call(place, path, tree(1_537), device).status_code == 400
    assert len(place.link.seen) == 1
    # 80 layers of 7 projections, a quarter of them in two pieces of 5 MiB.
    assert auth.OBJECTS > 8 + 80 * 7 * 2 + 80 * 7 // 4


def test_announced_objects_count_as_sent_each_time(place, device):
    names = [ObjectTree(object_id=f"{n:064x}") for n in range(99)]
    text = reply(device.node, device.node, ObjectTree(object_id="r", children=names))
    text = text.SerializeToString()
    room = 2 * (len(text) + 100 * 600) + len(text)
    place.proxy.quotas[device.node] = proxy.Quota(sent=Bucket(room, 0.0))
    path = "/v1/fleet/push-messages"
    answers = [call(place, path, text, device).status_code for _ in range(3)]
    assert answers == [200, 200, 503]
    assert len(place.link.seen) == 2


def test_a_device_that_calls_too_often_is_told_to_wait(place, device):
    place.proxy.quotas[device.node] = proxy.Quota(calls=Bucket(2.0, 0.0))
    answers = [call(place, PULL, body(device), device).status_code for _ in range(3)]
    assert answers == [200, 200, 503]


def test_a_device_has_so_many_calls_at_a_time(place, device):
    quota = proxy.Quota(active=proxy.ACTIVE)
    place.proxy.quotas[device.node] = quota
    assert call(place, PULL, body(device), device).status_code == 503
    quota.active = 0
    assert call(place, PULL, body(device), device).status_code == 200
    deadline = time.monotonic() + 5  # the answer is sent before the call has ended
    while quota.active and time.monotonic() < deadline:
        time.sleep(0.01)
    assert quota.active == 0


def test_a_slow_header_and_a_slow_body_end(place, device, monkeypatch):
    monkeypatch.setattr(proxy, "HEADER_SECONDS", 0.5)
    monkeypatch.setattr(proxy, "BODY_SECONDS", 0.5)
    for text in (b"", b"POST /v1", raw(device, b"", content_length="10") + b"12345"):
        with place.connect() as sock:
            sock.sendall(text) if text else None
            sock.settimeout(5)
            began = time.monotonic()
            assert sock.recv(100) == b""
            assert 0.3 < time.monotonic() - began < 3
    assert place.proxy.held.sum() == 0


def test_an_answer_is_counted_while_it_comes():
    """Six calls of each of six devices for large pieces are more than is allowed."""
    held = []

    async def pieces():
        for _ in range(4):
            yield b"x" * proxy.PIECE
            held.append(door.held.sum(7))

    async def forward() -> None:
        answer = httpx.MockTransport(lambda _: httpx.Response(200, content=pieces()))
        async with httpx.AsyncClient(transport=answer, base_url="https://link") as link:
            door.upstream = link
            call = auth.CALLS[PULL.encode()]
            with socket.socket() as sock:
                connection = proxy.Connection("here", sock, node=7)
                await proxy.forward(door, connection, call, {}, b"")

    door = proxy.Proxy(httpx.AsyncClient(), Path("none"))
    asyncio.run(forward())
    assert held == [proxy.PIECE * k for k in (1, 2, 3, 4)]


def test_a_handshake_that_never_comes_ends(place, monkeypatch):
    monkeypatch.setattr(proxy, "HANDSHAKE_SECONDS", 0.5)
    with place.connect(wrap=False) as sock:
        sock.settimeout(5)
        began = time.monotonic()
        assert sock.recv(100) == b""
        assert 0.3 < time.monotonic() - began < 3


def test_strangers_lose_the_oldest_of_their_own_connections(place, device, monkeypatch):
    """Each address has its share; a device's connection is not counted in it."""
    monkeypatch.setattr(proxy, "HANDSHAKE_SECONDS", 60.0)
    with place.connect() as own:
        own.sendall(raw(device, body(device)))
        assert own.recv(65536).startswith(b"HTTP/1.1 200")
        crowd = [place.connect(wrap=False) for _ in range(proxy.PER_ADDRESS + 5)]
        other = place.connect("127.0.0.2", wrap=False)
        crowd[0].settimeout(5)
        assert crowd[0].recv(1) == b""  # closed
        for alive in (crowd[-1], other):
            alive.settimeout(0.2)
            with pytest.raises(TimeoutError):
                alive.recv(1)
        assert place.proxy.strangers.sum("127.0.0.1") <= proxy.PER_ADDRESS
        own.sendall(raw(device, body(device)))
        assert own.recv(65536).startswith(b"HTTP/1.1 200")
        for sock in (*crowd, other):
            sock.close()


def test_what_is_full_loses_the_oldest_of_the_largest_share():
    shares = Shares(each=3, total=5)
    assert [shares.hold("a", n) for n in range(3)] == [[], [], []]
    assert shares.hold("b", 10) == shares.hold("b", 11) == []
    assert shares.hold("c", 20) == [0]  # a has most
    assert (shares.sum("a"), shares.sum("c"), shares.sum()) == (2, 1, 5)
    assert shares.hold("c", 20, 3.0) == [20]  # too much for one
    shares.drop("a", 1)
    shares.drop("a", 1)
    assert (shares.sum("a"), shares.sum("c"), shares.sum()) == (1, 0, 3)
    for owner, thing in (("a", 2), ("b", 10), ("b", 11)):
        shares.drop(owner, thing)
    assert (shares.sum(), shares._held, shares._sums) == (0, {}, {})


def test_a_bucket_fills_again(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    bucket = Bucket(10, 2)
    assert bucket.take(10) and not bucket.take(1)
    now[0] = 3
    assert bucket.take(6) and not bucket.take(1)
    now[0] = 100
    assert bucket.take(10) and not bucket.take(1)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_an_address_is_a_neighbourhood(address, expected):
    assert neighbourhood(address) == expected
