"""What monitoring is told: the truth, and nobody's name."""

import contextlib
import http.client
import http.server
import json
import socket
import sqlite3
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from idiolect.common.errors import IdiolectError
from idiolect.server.deploy import keys, metrics, monitor
from idiolect.server.deploy.authorization import Refusal
from idiolect.server.deploy.counts import NAMES, REASONS, Counts, read_counts, reason_of
from idiolect.server.deploy.flower import free_port
from idiolect.server.deploy.places import COUNTS, DATABASE, HANDED
from idiolect.server.privacy.ledger import Ledger
from idiolect.server.run import results
from tests.server import running_proxy
from tests.server.deploy.test_proxy import PULL, body, call
from tests.server.privacy.test_ledger import full

NOW = 1_800_000_000.0


class Up(http.server.BaseHTTPRequestHandler):
    """A SuperLink that is up."""

    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, format, *args):
        pass


@contextlib.contextmanager
def superlink(folder: Path):
    """Its port."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(folder / keys.PAIR)
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Up)
    made.socket = tls.wrap_socket(made.socket, server_side=True)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    try:
        yield made.server_address[1]
    finally:
        made.shutdown()
        made.server_close()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with running_proxy.running(tmp_path_factory.mktemp("monitor") / "server") as made:
        yield made


@pytest.fixture
def watched(place):
    with superlink(place.folder) as inner:
        yield metrics.Watched(place.folder, "127.0.0.1", place.port, inner, "mark")


def get(port: int, path: str) -> tuple[int, str]:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
        f"http://127.0.0.1:{port}{path}", timeout=20
    ) as answer:
        return answer.status, answer.read().decode()


def refused(port: int, path: str) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(port, path)
    return caught.value.code, caught.value.read().decode()


# --- health ----------------------------------------------------------------------------


def test_health_is_200_only_while_both_answer(watched, monkeypatch):
    monkeypatch.setattr(monitor, "KEPT_SECONDS", 0.0)
    port = free_port()
    with monitor.monitored(port, watched):
        assert get(port, "/health") == (
            200,
            "ok: the SuperLink and the proxy answer.\n",
        )
        right, watched.inner = watched.inner, free_port()
        code, said = refused(port, "/health")
        assert code == 503 and said.startswith("the SuperLink does not answer: ")
        watched.inner, watched.port = right, free_port()
        code, said = refused(port, "/health")
        assert code == 503 and said.startswith("the proxy does not answer at 127.0.0.1")
        assert said.count("\n") == 1 and "refused" in said
    with pytest.raises(urllib.error.URLError):
        get(port, "/health")


def test_a_proxy_that_hangs_does_not_answer(watched, monkeypatch):
    """The kernel takes its connections, but nobody shakes hands."""
    monkeypatch.setattr(monitor, "PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        watched.port = hanging.getsockname()[1]
        assert "does not answer" in monitor.problems(watched)["proxy"]


def test_a_certificate_that_devices_refuse_is_no_health(tmp_path, monkeypatch):
    long_ago = datetime.now(UTC) - timedelta(days=keys.DAYS + 3)
    monkeypatch.setattr(keys, "now", lambda: long_ago)
    with running_proxy.running(tmp_path / "old") as old:
        said = monitor.proxy_problem(old.folder, "127.0.0.1", old.port)
    assert "certificate has expired" in said and "keys renew" in said


def test_asking_for_health_is_no_refused_call(place, watched):
    before = place.proxy.counts.copy()
    assert monitor.proxy_problem(place.folder, "127.0.0.1", place.port) == ""
    time.sleep(0.2)
    assert place.proxy.counts == before


# --- who may ask -----------------------------------------------------------------------


def test_only_this_machine_may_ask_and_by_its_own_name(watched):
    port = free_port()
    with monitor.monitored(port, watched):
        for host, code in (
            ("127.0.0.1", 200),
            (f"localhost:{port}", 200),
            ("evil.example.org", 403),
            (f"evil.example.org:{port}", 403),
            ("", 403),
        ):
            line = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            line.request("GET", "/health", headers={"Host": host})
            assert line.getresponse().status == code, host
            line.close()
        assert refused(port, "/")[0] == 404
        assert refused(port, "/metrics/../../state.db")[0] == 404
        addresses = {
            str(a[4][0]) for a in socket.getaddrinfo(socket.gethostname(), port)
        }
        for address in addresses - {"127.0.0.1", "127.0.1.1"}:
            with pytest.raises(OSError):
                socket.create_connection((address, port), 2).close()


@pytest.mark.parametrize("said", [b"", b"G"])
def test_callers_that_say_little_shut_nobody_out_for_long(watched, monkeypatch, said):
    """They say nothing, or one letter now and then."""
    monkeypatch.setattr(monitor._Asked, "timeout", 0.5)
    port = free_port()
    with monitor.monitored(port, watched), contextlib.ExitStack() as held:
        callers = [
            held.enter_context(socket.create_connection(("127.0.0.1", port)))
            for _ in range(monitor.MOST)
        ]
        ends = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                assert get(port, "/health")[0] == 200
                break
            assert time.monotonic() < ends
            for caller in callers:
                with contextlib.suppress(OSError):
                    caller.sendall(said)
            time.sleep(0.1)


def test_a_port_that_is_taken_is_named(watched):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(
                IdiolectError, match=f"cannot listen at 127.0.0.1 port {port}"
            ),
            monitor.monitored(port, watched),
        ):
            pass
    with (
        pytest.raises(IdiolectError, match="is that of the devices"),
        monitor.monitored(watched.port, watched),
    ):
        pass


# --- numbers ---------------------------------------------------------------------------


def stamp(ago: float) -> str:
    return datetime.fromtimestamp(NOW - ago, UTC).isoformat()


def test_devices_are_counted_by_when_they_were_last_seen():
    rows = [
        ("online", stamp(500), None, NOW + 10),
        ("online", stamp(500), None, NOW - 30),  # its heartbeats stopped
        ("offline", stamp(9000), stamp(3000), NOW - 3000),
        ("offline", stamp(9000), stamp(7200), None),
        ("offline", stamp(9e6), "", None),
        ("registered", None, None, None),
        ("unregistered", stamp(1), stamp(1), NOW + 10),
    ]
    found = metrics.device_numbers(rows, NOW)
    assert found["idiolect_devices"] == {"registered": 6, "revoked": 1}
    assert found["idiolect_devices_seen"] == {
        **{"connected": 1, "minute": 1, "hour": 1, "day": 1},
        **{"week": 0, "longer": 1, "never": 1},
    }


def test_messages_that_wait_are_counted(place):
    path = place.folder / DATABASE
    with contextlib.closing(sqlite3.connect(path)) as base, base:
        base.executemany(
            "INSERT INTO message_ins (message_id, delivered_at) VALUES (?, ?)",
            [("a", ""), ("b", ""), ("c", "2026-01-01")],
        )
        base.execute(
            "INSERT INTO message_res (message_id, delivered_at) VALUES ('d', '')"
        )
    found = metrics.database_numbers(path)["idiolect_messages_waiting"]
    assert found == {"devices": 2, "run": 1}


def test_runs_are_counted_by_state_and_the_newest_ones_ledger_is_read(tmp_path):
    folder, home = tmp_path / "server", tmp_path / "runs"
    ends = {
        "one": [{"event": "start", "pid": 1}, {"event": "finished"}],
        "two": [{"event": "start", "pid": 1}, {"event": "failed", "message": "m"}],
        "three": [{"event": "start", "pid": 1}, {"event": "failed", "stopped": True}],
        "four": [{"event": "start", "pid": 1}],  # its process has not our mark
        "five": [],
    }
    for name, events in ends.items():
        (home / name).mkdir(parents=True)
        lines = "".join(json.dumps(event) + "\n" for event in events)
        (home / name / "metrics.jsonl").write_text(lines)
        note = {"identity": "1", "folder": str(home / name)}
        results.write_json(folder / HANDED / f"{name}.json", note)
        time.sleep(0.02)
    results.write_json(folder / HANDED / "gone.json", {"folder": str(home / "gone")})
    found = metrics.run_numbers(folder, "mark")
    states = {"finished": 1, "failed": 1, "stopped": 1, "interrupted": 2, "running": 0}
    assert found == {"idiolect_runs": states}
    ledger = full(home / "gone" / "ledger.json")
    assert isinstance(ledger, Ledger)
    found = metrics.run_numbers(folder, "mark")
    assert found["idiolect_run_epsilon_spent"] == {"": ledger.spent().release}
    assert found["idiolect_run_epsilon_budget"] == {"": ledger.epsilon}
    assert found["idiolect_run_open_releases"] == {"": len(ledger.open_releases)}


def test_a_run_whose_process_has_our_mark_is_running(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text('{"event": "start", "pid": 77}\n')
    monkeypatch.setattr(
        metrics.processes, "is_marked", lambda pid, mark: (pid, mark) == (77, "ours")
    )
    assert metrics._state_of(tmp_path, "ours") == "running"
    assert metrics._state_of(tmp_path, "another's") == "interrupted"


def test_metrics_name_nobody(place, watched):
    device = place.registered()
    call(place, PULL, body(device), device)
    results.write_json(place.folder / "labels.json", {str(device.node): "my laptop"})
    port = free_port()
    with monitor.monitored(port, watched):
        code, text = get(port, "/metrics")
    assert code == 200
    named = {line.split()[2] for line in text.splitlines() if line.startswith("# HELP")}
    grows = {name for name, one in metrics.METRICS.items() if one.counter}
    known = {f"{n}_total" if n in grows else n for n in metrics.METRICS}
    assert named <= known and "idiolect_devices_seen" in named
    assert 'idiolect_answers{process="proxy"} 1.0' in text
    for secret in (str(device.node), "my laptop", str(device.node - 2**64), "BEGIN"):
        assert secret not in text
    # Every label's value is one of the words that the code has.
    words = {*REASONS, *metrics.BANDS, *metrics.STATES, *metrics.PROCESSES}
    words |= {"connected", "longer", "never", "registered", "revoked", "devices", "run"}
    words |= {"in", "out", *metrics.numbers(watched, {})["idiolect_info"]}
    values = {part.split('"')[1] for part in text.split("{")[1:]}
    assert values <= words


# --- what the proxy counts -------------------------------------------------------------


def test_calls_and_refusals_are_counted_by_reason(place):
    device, stranger = place.registered(), place.registered()
    place.state.delete_node("<none>", stranger.node)
    before = Counter(place.proxy.counts)
    assert call(place, PULL, body(device), device).status_code == 200
    call(place, PULL, body(stranger), stranger)
    call(place, "/v1/control/start-run", b"", device)
    other = running_proxy.Device(device.key, device.node + 1)
    call(place, PULL, body(other), other)
    place.link.down = True
    call(place, PULL, body(device), device)
    place.link.down = False
    more = Counter(place.proxy.counts)
    more.subtract(before)
    assert {name: n for name, n in more.items() if n} == {
        "calls": 2,
        "bytes in": 2 * len(body(device)),
        "revoked": 1,
        "no such call": 1,
        "another device's": 1,
        "no SuperLink": 1,
    }


def test_every_refusal_has_a_reason():
    assert reason_of(Refusal(503, "the SuperLink is not up yet")) == "no SuperLink"
    assert reason_of(Refusal(503, "too many calls of this device")) == "too much"
    assert reason_of(Refusal(418, "anything")) == "not understood"
    assert len(set(NAMES)) == len(NAMES)


def test_counts_are_read_by_another_process_and_begin_at_zero(tmp_path):
    path = tmp_path / COUNTS
    assert set(read_counts(path).values()) == {0}
    counts = Counts(path)
    counts["bytes in"] += 2**40
    counts["clock"] += 1
    assert path.stat().st_mode & 0o077 == 0
    found = read_counts(path)
    assert (found["bytes in"], found["clock"], found["calls"]) == (2**40, 1, 0)
    Counts(path)
    assert set(read_counts(path).values()) == {0}


# --- what a registered device is told --------------------------------------------------


def test_only_a_registered_device_learns_the_version(place):
    device, stranger = (
        place.registered(),
        running_proxy.Device(place.registered().key, 0),
    )
    place.state.delete_node("<none>", place.registered().node)
    nobody = b""
    known = call(place, PULL, nobody, device)
    assert known.status_code == 401 and known.headers["idiolect-version"]
    from cryptography.hazmat.primitives.asymmetric import ec

    stranger.key = ec.generate_private_key(ec.SECP384R1())
    unknown = call(place, PULL, nobody, stranger)
    assert unknown.status_code == 401 and "idiolect-version" not in unknown.headers
    old = device.headers("2000-01-01T00:00:00+00:00")
    with httpx.Client(verify=str(place.folder / "ca.crt"), trust_env=False) as client:
        answer = client.post(
            f"https://localhost:{place.port}{PULL}", content=b"", headers=old
        )
    assert "date" in answer.headers and "idiolect-version" not in answer.headers
