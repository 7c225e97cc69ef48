"""What a device says where its server does not take it, and where the network fails."""

import datetime
import logging
import socket
import ssl
import time
from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.proto.fleet_pb2 import ActivateNodeResponse
from flwr.supercore.date import now
from flwr.supercore.run import RunNotRunningException
from flwr.superlink.servicer.fleet import fleet_handlers

from idiolect.client.node import connection, worker
from idiolect.client.node.connection import TurnedAway, connected, passing
from idiolect.common.errors import IdiolectError
from idiolect.server.deploy import keys, proxy
from tests.server import running_proxy
from tests.server.running_proxy import Device, Place
from tests.server.superlink import Device as Enrolled
from tests.server.superlink import LocalGrid, SuperLink, store


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with running_proxy.running(tmp_path_factory.mktemp("proxy") / "server") as place:
        yield place


@pytest.fixture
def place(running, monkeypatch) -> Place:
    running.link.down = False
    running.proxy.quotas.clear()
    monkeypatch.setattr(connection, "FIRST_PAUSE", 0.01)
    return running


@pytest.fixture
def device(place) -> Device:
    made = place.registered()
    answer = ActivateNodeResponse(node_id=made.node).SerializeToString()
    place.link.answers["/v1/fleet/activate-node"] = answer
    return made


@contextmanager
def connecting(place: Place, key: ec.EllipticCurvePrivateKey):
    trust = (place.folder / "ca.crt").read_text()
    with connected(f"localhost:{place.port}", trust, key) as line:
        yield line


def test_a_registered_device_is_let_in(place, device):
    with connecting(place, device.key) as line:
        assert line.node == device.node
        assert line.receive() is None
        assert line.beat()


def test_a_device_that_waits_keeps_its_connection(place, device, monkeypatch):
    """A handshake costs more than a call; the server closes an idle one later."""
    late = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + late[0])
    monkeypatch.setattr("httpcore._sync.http11.time", clock)
    seen = set[int]()  # this side's ports
    real = socket.create_connection

    def counted(*given, **named):
        made = real(*given, **named)
        seen.add(made.getsockname()[1])
        return made

    monkeypatch.setattr("socket.create_connection", counted)
    silent = SimpleNamespace(start=lambda: None, is_running=False)
    monkeypatch.setattr(connection, "HeartbeatSender", lambda _: silent)
    with connecting(place, device.key) as line:
        for _ in range(3):
            line.receive()
            late[0] += worker.LONGEST_POLL
        assert len(seen) == 1
        late[0] += connection.KEPT
        line.receive()
        assert len(seen) == 2
    assert worker.LONGEST_POLL < connection.KEPT < proxy.IDLE_SECONDS


def test_one_that_is_not_registered_hears_so(place):
    key = ec.generate_private_key(ec.SECP384R1())
    with (
        pytest.raises(TurnedAway, match=r"^not registered: localhost.*nodes add"),
        connecting(place, key),
    ):
        pass


def test_a_revoked_one_hears_so_at_once_and_how_to_return(place, device):
    with connecting(place, device.key) as line:
        place.state.delete_node("<none>", device.node)
        with pytest.raises(TurnedAway, match=r"^revoked: .*idiolect leave.*node join"):
            line.receive()


def test_a_heartbeat_that_hears_it_ends_the_next_call(place, device):
    with connecting(place, device.key) as line:
        place.state.delete_node("<none>", device.node)
        assert line.beat()  # no second try of Flower's sender
        assert line.away is not None
        place.link.seen.clear()
        with pytest.raises(TurnedAway, match="^revoked: "):
            line.receive()
        assert place.link.seen == []


@pytest.mark.parametrize(
    ("seconds", "way"), [(3600, "ahead of"), (30, "ahead of"), (-400, "behind")]
)
def test_a_clock_that_is_off_is_named_with_its_offset(
    place, device, monkeypatch, seconds, way
):
    off = datetime.timedelta(seconds=seconds)

    class Off(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.now(tz) + off

    monkeypatch.setattr(connection, "datetime", Off)
    monkeypatch.setattr(
        "flwr.supernode.node_auth_http_interceptor.now", lambda: now() + off
    )
    with pytest.raises(TurnedAway) as refused, connecting(place, device.key):
        pass
    words = str(refused.value).split()
    assert f" s {way} the server's: set it" in str(refused.value)
    assert abs(int(words[3]) - abs(seconds)) < 20  # this clock is N s …


def test_a_failure_that_passes_is_one_line_and_the_call_is_made(
    place, device, caplog, monkeypatch
):
    fails = [503, 503, 502, 503]
    real = type(place.link).__call__

    async def act(self, request):
        if fails:
            return httpx.Response(fails.pop(), stream=httpx.ByteStream(b""))
        return await real(self, request)

    with connecting(place, device.key) as line:
        monkeypatch.setattr(type(place.link), "__call__", act)
        with caplog.at_level(logging.INFO, "flwr"):
            assert line.receive() is None
    assert fails == []
    said = [record.getMessage() for record in caplog.records]
    assert [one.partition(", after")[0] for one in said] == [
        f"localhost:{place.port} is busy or is starting: trying again until it works",
        "the server answers again",
    ]


def test_a_server_that_is_not_there_is_waited_for(monkeypatch, caplog):
    class Stop(Exception):
        pass

    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 7:
            raise Stop

    monkeypatch.setattr("idiolect.client.node.connection.time.sleep", pause)
    key = ec.generate_private_key(ec.SECP384R1())
    trust = keys._certificate("idiolect authority", key).public_bytes(keys.Encoding.PEM)
    with pytest.raises(Stop), connected("127.0.0.1:9", trust.decode(), key):
        pass
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 20.0, 20.0]
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("127.0.0.1:9 cannot be reached (")


def failed(status: int, text: str = "") -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "https://x/")
    answer = httpx.Response(status, text=text, request=request)
    return httpx.HTTPStatusError("", request=request, response=answer)


def test_what_each_answer_means():
    present = '{"code": 2004, "detail": "x"}'
    assert "another start" in passing(failed(412, present), "a:1")
    for status in (502, 503, 504):
        assert "busy" in passing(failed(status), "a:1")
    with pytest.raises(RunNotRunningException):
        passing(failed(403), "a:1")
    with pytest.raises(
        IdiolectError, match=r"^a:1 answered 413 \(too large\): ask"
    ) as e:
        passing(failed(413, "too large"), "a:1")
    assert not isinstance(e.value, TurnedAway)  # another task may do
    # What a server says is cleaned and cut.
    with pytest.raises(TurnedAway) as refused:
        passing(failed(401, "\x1b[2J" + "x" * 5000), "a:1")
    assert "\x1b" not in str(refused.value) and len(str(refused.value)) < 500


@pytest.mark.parametrize(
    ("code", "said"),
    [(9, "set the clock"), (10, "set the clock"), (62, "not the server")],
)
def test_a_certificate_that_is_not_trusted_is_not_tried_again(code, said):
    cause = ssl.SSLCertVerificationError(1, "failed")
    cause.verify_code, cause.verify_message = code, "as OpenSSL says it"
    error = httpx.ConnectError("failed")
    error.__cause__ = cause
    with pytest.raises(TurnedAway, match=said) as refused:
        passing(error, "a:1")
    assert "as OpenSSL says it" in str(refused.value)


def test_a_server_of_another_authority_is_named(place, device, tmp_path):
    keys.keys_init(tmp_path / "other", ["localhost"], 1)
    trust = (tmp_path / "other" / "ca.crt").read_text()
    with (
        pytest.raises(TurnedAway, match="is not the server that this device joined"),
        connected(f"localhost:{place.port}", trust, device.key),
    ):
        pass


# --- requests and replies --------------------------------------------------------------


class FleetClient:
    """Calls of the Fleet API, answered by the store of a SuperLink in this process."""

    def __init__(self, link: SuperLink) -> None:
        self.link = link

    def __getattr__(self, name: str):
        words = "".join(f"_{c.lower()}" if c.isupper() else c for c in name)
        handler, state = getattr(fleet_handlers, words[1:]), self.link.state
        stored = name in ("PullMessages", "ConfirmMessageReceived")
        more = [state.object_store] if stored else []
        return lambda request: handler(request, state, *more)


def test_a_request_arrives_whole_and_its_reply_too(tmp_path):
    link = SuperLink(store(tmp_path))
    grid, device = LocalGrid(link), Enrolled(link)
    line = connection.Connection(FleetClient(link), "here:1")  # type: ignore
    line.node = device.id
    array = np.arange(6, dtype=np.float32)

    def content(word: str) -> RecordDict:
        parts = {"message": ConfigRecord({"word": word})}
        return RecordDict({**parts, "array": ArrayRecord({"a": Array(array)})})

    assert line.receive() is None
    (number,) = grid.push_messages([Message(content("ask"), device.id, "query.hello")])
    request = line.receive()
    assert request is not None and request.metadata.message_id == number
    assert request.content.config_records["message"]["word"] == "ask"
    assert line.receive() is None
    line.send(Message(content("answer"), reply_to=request))
    (reply,) = grid.pull_messages([number])
    assert reply.content.config_records["message"]["word"] == "answer"
    found = reply.content.array_records["array"]["a"].numpy()
    np.testing.assert_array_equal(found, array)
