"""The supervisor of a node: it starts its worker again, and the two end together."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.task_identity import TaskIdentity

from idiolect.client.node import membership, worker
from idiolect.client.node.membership import Server
from idiolect.client.owner import consent
from idiolect.client.owner.keys import Passphrase, RandomKey
from idiolect.client.owner.vault import Vault
from idiolect.common.errors import IdiolectError
from tests.waiting import until

SUPERVISOR = """
import sys
from pathlib import Path
from idiolect.client.node import worker
from idiolect.client.owner.keys import RandomKey
worker.FIRST_WAIT = 0.2
key, say = RandomKey(bytes(32)), lambda text: print(text, flush=True)
worker.keep_running(Path(sys.argv[1]), key, say)
"""


@pytest.fixture
def vault(tmp_path):
    with Vault.create(tmp_path / "vault.db", RandomKey(bytes(32))) as made:
        yield made


def test_the_nodes_key_is_made_once_and_stays_in_the_vault(vault):
    line = membership.public_line(vault)
    assert line.startswith("ecdsa-sha2-nistp384 AAAA")
    assert membership.public_line(vault) == line
    raw = vault.path.read_bytes()
    assert b"PRIVATE KEY" not in raw


def test_a_device_belongs_to_one_server(vault):
    one = Server("one.example:1", "pem", "00" * 32)
    membership.join(vault, one)
    membership.join(vault, Server("one.example:2", "pem", "00" * 32))  # it has moved
    with pytest.raises(IdiolectError, match=r"belongs to one.example:2.*leave"):
        membership.join(vault, Server("two.example:1", "pem", "11" * 32))
    before = membership.public_line(vault)
    membership.leave(vault)
    assert membership.server_of(vault) is None
    membership.join(vault, Server("two.example:1", "pem", "11" * 32))
    assert membership.public_line(vault) != before


def test_a_node_without_a_server_says_what_to_do(vault):
    with pytest.raises(IdiolectError, match="node join"):
        worker.serve(vault)


def test_a_device_without_work_asks_less_often_until_there_is_some(vault, monkeypatch):
    membership.join(vault, Server("one.example:1", "pem", "00" * 32))
    clock, slept = [0.0], list[float]()

    class Time:
        monotonic = staticmethod(lambda: clock[0])

        @staticmethod
        def sleep(seconds: float) -> None:
            slept.append(seconds)
            clock[0] += seconds

    class Line:
        node = 7
        given: list[Any] = [None] * 120 + [request()] + [None] * 2  # noqa: RUF012

        def receive(self) -> Message | None:
            return self.given.pop(0)

        def send(self, reply: Message) -> None:
            pass

    @contextmanager
    def connected(*_: object) -> Iterator[Line]:
        yield Line()

    monkeypatch.setattr(worker, "time", Time)
    monkeypatch.setattr("idiolect.client.node.connection.connected", connected)
    monkeypatch.setattr(
        "idiolect.client.node.device.Device.answer", lambda _self, _task: RecordDict()
    )
    with pytest.raises(IndexError):
        worker.serve(vault)
    assert slept[:30] == [1.0] * 30  # in a run as often as ever
    assert slept == [*sorted(slept[:120]), 1.0, 1.0]
    assert slept[119] == worker.LONGEST_POLL


def request() -> Message:
    """A request, as it comes from the server."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    content = RecordDict({"message": ConfigRecord({"a": 1})})
    task = Message(content, 7, "query.hello")
    task.metadata.__dict__["_message_id"] = task.object_id
    return task


def test_an_answer_that_the_server_no_longer_wants_does_not_end_the_worker(
    vault, monkeypatch
):
    """It deletes what came too late, also in the middle of its upload."""
    membership.join(vault, Server("one.example:1", "pem", "00" * 32))
    given: list[Any] = [request(), None]
    refused: list[str] = []

    class Line:
        node = 7
        receive = staticmethod(lambda: given.pop(0))

        def send(self, reply: Message) -> None:
            refused.append(reply.object_id)
            raise ObjectPushError(reply.object_id, 1, "session")

    @contextmanager
    def connected(*_: object) -> Iterator[Line]:
        yield Line()

    monkeypatch.setattr("idiolect.client.node.connection.connected", connected)
    monkeypatch.setattr(
        "idiolect.client.node.device.Device.answer", lambda _self, _task: RecordDict()
    )
    monkeypatch.setattr(worker, "pause", lambda _: 0.0)
    with pytest.raises(IndexError):  # of `given`: it has asked for the next task
        worker.serve(vault)
    assert len(refused) == 1 and given == []


def test_what_is_sent_is_listed_in_order(vault):
    for number in range(3):
        consent.note_sent(vault, "run", f"Kind{number}", number, (None, ""))
    assert [(s.kind, s.bytes) for s in consent.sent(vault)] == [
        ("Kind0", 0),
        ("Kind1", 1),
        ("Kind2", 2),
    ]


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("colour", "red", "no setting 'colour'"),
        ("threads", "-1", "whole number"),
        ("max-length", "3", "from 16 to"),
        ("max-seconds", "soon", "a number"),
        ("on-battery", "maybe", "yes or no"),
    ],
)
def test_a_setting_is_checked(vault, name, value, sentence):
    with pytest.raises(IdiolectError, match=sentence):
        consent.choose(vault, **{name: value})
    assert consent.settings(vault) == consent.SETTINGS


def workers(place: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"idiolect.client.node.worker" in line and str(place).encode() in line:
                found.append(int(entry.name))
    return found


@pytest.fixture
def supervisor(vault):
    """A supervisor whose worker finds no server at the address that was joined."""
    certificate = _certificate(vault.path.parent)
    membership.join(vault, Server("127.0.0.1:9", certificate, "00" * 32))
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(vault.path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    yield process, vault.path
    process.kill()
    process.wait()
    until(lambda: not workers(vault.path))


def _certificate(folder: Path) -> str:
    from idiolect.server.deploy.keys import keys_init

    keys_init(folder / "server", ["localhost"], 9)
    return (folder / "server" / "ca.crt").read_text()


@pytest.mark.process
def test_a_killed_worker_is_started_again(supervisor):
    process, path = supervisor
    (first,) = until(lambda: workers(path))
    os.kill(first, signal.SIGKILL)
    assert "ended with -9; it starts again" in process.stdout.readline()
    (second,) = until(lambda: workers(path))
    assert second != first


@pytest.mark.process
def test_a_worker_ends_whose_keeper_died_before_it_gave_the_key(vault):
    done = subprocess.run(
        [sys.executable, "-m", "idiolect.client.node.worker", str(vault.path)],
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    assert done.returncode == 1


@pytest.mark.process
def test_a_worker_does_not_outlive_its_keeper(supervisor):
    process, path = supervisor
    until(lambda: workers(path))
    process.kill()
    until(lambda: not workers(path))


@pytest.mark.process
def test_the_keeper_ends_its_worker_when_told(supervisor):
    process, path = supervisor
    until(lambda: workers(path))
    process.terminate()
    assert process.wait(30) == 0
    assert not workers(path)


@pytest.mark.process
def test_the_key_is_on_no_command_line_and_in_no_environment(vault):
    certificate = _certificate(vault.path.parent)
    membership.join(vault, Server("127.0.0.1:9", certificate, "00" * 32))
    started = worker._start(vault.path, Passphrase("correct horse battery"))
    try:
        place = Path(f"/proc/{started.pid}")
        assert b"horse" not in (place / "cmdline").read_bytes()
        assert b"horse" not in (place / "environ").read_bytes()
        assert started.wait(60) == 1  # it is not this vault's
    finally:
        started.kill()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "[" * 200_000,
        lambda text: '{"address":' * 200_000,
        lambda text: text.replace("localhost:1", "localhost:" + "9" * 5000),
        lambda text: text.replace("localhost:1", "local\\u001b[2Jhost:1"),
        lambda text: text.replace("localhost:1", "x" * 400 + ":1"),
        lambda text: text.replace('"localhost:1"', "9" * 5000),
        lambda text: text.replace(
            '"localhost:1"', '"localhost:1", "address": "evil:1"'
        ),
        lambda text: text + " " * 100_000 + "x",
    ],
)
def test_no_invitation_is_more_than_it_should_be(tmp_path, change):
    from idiolect.server.deploy.keys import keys_init

    good = keys_init(tmp_path / "server", ["localhost"], 1).read_text()
    (tmp_path / "bad.json").write_text(good)
    assert membership.read_invitation(tmp_path / "bad.json").address == "localhost:1"
    (tmp_path / "bad.json").write_text(change(good))
    with pytest.raises(IdiolectError, match="is not an invitation") as refused:
        membership.read_invitation(tmp_path / "bad.json")
    assert len(str(refused.value)) < 1000


def test_the_keeper_ends_where_somebody_must_act_first(vault, monkeypatch):
    """A new worker would end in the same way; one that crashed gets another."""
    codes = iter([1, -9, worker.FINAL])

    class Worker:
        def __init__(self) -> None:
            self.returncode = next(codes)

        def poll(self) -> int:
            return self.returncode

    monkeypatch.setattr(worker, "_start", lambda *_: Worker())
    monkeypatch.setattr(worker, "FIRST_WAIT", 0.01)
    said: list[str] = []
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    try:
        code = worker.keep_running(vault.path, RandomKey(bytes(32)), said.append)
    finally:
        for number, handler in zip(
            (signal.SIGTERM, signal.SIGINT), before, strict=True
        ):
            signal.signal(number, handler)
    assert code == worker.FINAL == 2
    assert [one.partition(";")[0] for one in said] == [
        "the node ended with 1",
        "the node ended with -9",
    ]


@pytest.mark.process
def test_a_worker_leaves_ctrl_c_to_its_keeper(supervisor):
    """A terminal sends it to both; the worker said a traceback."""
    process, path = supervisor
    (worker,) = until(lambda: workers(path))
    until(lambda: ignores(worker, signal.SIGINT))
    os.kill(worker, signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert not workers(path)


def ignores(pid: int, number: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    (mask,) = [x.split()[1] for x in status.splitlines() if x.startswith("SigIgn")]
    return bool(int(mask, 16) >> (number - 1) & 1)
