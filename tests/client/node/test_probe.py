"""`idiolect doctor`: what it asks a server, and what it says of a vault."""

import contextlib
import json
from datetime import UTC, datetime, timedelta
from importlib.metadata import version

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from idiolect.client.cli import main
from idiolect.client.commands import doctor as command
from idiolect.client.node import membership, probe
from idiolect.client.node.membership import Server
from idiolect.client.owner import adapters
from idiolect.client.owner.keys import RandomKey
from idiolect.client.owner.records import DEVICE, Record
from idiolect.client.owner.vault import Vault
from idiolect.common.errors import IdiolectError
from idiolect.server.deploy import keys, proxy
from tests.server import running_proxy
from tests.server.running_proxy import Place

KEY = RandomKey(bytes(32))


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with running_proxy.running(tmp_path_factory.mktemp("proxy") / "server") as place:
        yield place


@pytest.fixture
def place(running) -> Place:
    running.link.seen.clear()
    running.link.down = False
    return running


def joined(place: Place, host: str = "localhost") -> Server:
    trust = (place.folder / "ca.crt").read_text()
    return Server(f"{host}:{place.port}", trust, "00" * 32)


def off(monkeypatch, seconds: float) -> None:
    """Set this side's clock."""

    class Off(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(seconds=seconds)

    monkeypatch.setattr(probe, "datetime", Off)
    monkeypatch.setattr(command, "datetime", Off)


# --- what is asked ---------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0, -200, 3600, -3600, 86400 * 30])
def test_a_device_that_is_let_in_learns_the_time_and_the_version(
    place, monkeypatch, seconds
):
    device = place.registered()
    off(monkeypatch, seconds)
    seen = probe.probe(joined(place), device.key)
    assert abs(seen.ahead - seconds) < 3
    assert seen.version == (version("idiolect") if -300 < seconds < 5 else "")
    assert (seen.end - datetime.now(UTC)).days in (keys.DAYS - 1, keys.DAYS)
    assert seen.begin < datetime.now(UTC)
    assert place.link.seen == []  # nothing has reached the SuperLink


def test_one_that_is_not_let_in_hears_why(place):
    with pytest.raises(IdiolectError, match=r"^not registered: .*nodes add"):
        probe.probe(joined(place), ec.generate_private_key(ec.SECP384R1()))
    device = place.registered()
    place.state.delete_node("<none>", device.node)
    with pytest.raises(IdiolectError, match=r"^revoked: .*idiolect leave"):
        probe.probe(joined(place), device.key)


def test_a_server_that_is_another_or_not_there(place, tmp_path):
    device = place.registered()
    other = keys.keys_init(tmp_path / "other", ["localhost"], 9443).parent / "ca.crt"
    stranger = Server(f"localhost:{place.port}", other.read_text(), "00" * 32)
    with pytest.raises(
        IdiolectError, match="is not the server that this device joined"
    ):
        probe.probe(stranger, device.key)
    trust = (place.folder / "ca.crt").read_text()
    nobody = Server("localhost:9", trust, "00" * 32)
    with pytest.raises(
        IdiolectError, match="cannot be reached .*: look whether it is up"
    ):
        probe.probe(nobody, device.key)


def test_a_server_that_is_starting_says_so(place, monkeypatch):
    device = place.registered()

    def starting(_self):
        raise proxy.sqlite3.OperationalError

    monkeypatch.setattr(proxy.Proxy, "read", starting)
    with pytest.raises(IdiolectError, match="answers 503 .*idiolect-server doctor"):
        probe.probe(joined(place), device.key)


def test_no_time_that_a_server_tells_is_signed(place, monkeypatch):
    """It would be a signature of the future, for whoever is the server only today."""
    device, signed = place.registered(), []
    future = "Sat, 01 Jan 2050 00:00:00 GMT"
    monkeypatch.setattr(proxy, "formatdate", lambda **_: future)
    sign = probe.sign_message
    monkeypatch.setattr(
        probe, "sign_message", lambda key, text: signed.append(text) or sign(key, text)
    )
    seen = probe.probe(joined(place), device.key)
    assert seen.ahead < -(10**8)
    today = f"{datetime.now(UTC):%Y-%m-%d}".encode()
    assert [text[:10] for text in signed] == [b"2000-01-01", today]


# --- the command -----------------------------------------------------------------------


@pytest.fixture
def vault(tmp_path, monkeypatch):
    monkeypatch.setenv("IDIOLECT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("idiolect.client.owner.unlock.unlock", lambda *_: KEY)
    with Vault.create(tmp_path / "vault.db", KEY) as made:
        yield made


def enrol(place: Place, vault: Vault) -> None:
    membership.join(vault, joined(place))
    running_proxy.registered(place.state, membership.node_key(vault))


def wrong(vault: Vault) -> dict[str, str]:
    return {one.check: one.text for one in command.of_vault(vault) if not one.ok}


def test_a_device_that_is_well(place, vault, capsys):
    enrol(place, vault)
    assert main(["doctor", "--vault", str(vault.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["check"] for one in found] == [
        *("versions", "vault", "disk", "model", "memory", "certificate"),
        *("server", "clock", "certificate", "versions"),
    ]


def test_one_that_has_joined_none_is_well_too(vault, capsys):
    assert main(["doctor", "--vault", str(vault.path)]) == 0
    assert "joined none" in capsys.readouterr().out


def test_without_a_vault_it_says_so_and_ends_with_1(tmp_path, capsys):
    assert main(["doctor", "--vault", str(tmp_path / "none.db")]) == 1
    said = capsys.readouterr().out
    assert "versions  ok " in said and "idiolect vault init" in said


@pytest.mark.parametrize(
    ("name", "value", "check", "part"),
    [
        ("backbone", "/nowhere/model", "model", "neither a folder nor a GGUF file"),
        ("memory-mb", "100", "memory", "memory-mb allows 100"),
    ],
)
def test_a_setting_that_cannot_be(vault, name, value, check, part):
    chosen = {**command.consent.settings(vault), name: value}
    body = json.dumps({k: v for k, v in chosen.items() if k == name}).encode()
    vault.put("state", [Record("settings", body)], DEVICE)
    found = wrong(vault)
    assert set(found) == {check} and part in found[check]


def test_a_full_disk_and_little_memory(vault, monkeypatch):
    usage = type("Usage", (), {"free": 1 << 20})
    monkeypatch.setattr(command.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(command, "free_mb", lambda: 50.0)
    assert set(wrong(vault)) == {"disk", "memory"}


def test_an_adapter_of_other_weights(vault, monkeypatch):
    used = type("Version", (), {"number": 3, "backbone": "weights:0 config:0"})
    monkeypatch.setattr(adapters, "active", lambda _: 3)
    monkeypatch.setattr(adapters, "versions", lambda _: [used])
    assert "adapter 3 was trained on other weights" in wrong(vault)["model"]


def test_what_was_measured_here_counts(vault, monkeypatch):
    tried = type("Model", (), {"name": "tiny", "tried": {"peak_mb": 10**7}})
    monkeypatch.setattr("idiolect.client.owner.models.models", lambda: [tried])
    assert "10,000,000 MB" in wrong(vault)["memory"]


@pytest.mark.parametrize("seconds", [3600, -3600])
def test_a_clock_that_is_off(place, vault, monkeypatch, seconds):
    enrol(place, vault)
    off(monkeypatch, seconds)
    found = wrong(vault)
    assert set(found) == {"clock"} and "set it" in found["clock"]


def test_a_clock_before_the_servers_keys(place, vault, monkeypatch):
    enrol(place, vault)
    off(monkeypatch, -3 * 86400)
    assert "set the clock" in wrong(vault)["clock"]


def test_another_version_of_the_server(place, vault, monkeypatch):
    enrol(place, vault)
    monkeypatch.setattr(proxy, "OWN", "9.9")
    assert "idiolect 9.9, this device" in wrong(vault)["versions"]


def test_a_server_that_does_not_know_it(place, vault):
    membership.join(vault, joined(place))
    assert set(wrong(vault)) == {"server"}


def test_every_problem_has_a_next_step(place, vault, monkeypatch):
    enrol(place, vault)
    off(monkeypatch, 10**9)
    for text in wrong(vault).values():
        what, _, step = text.partition(": ")
        assert what and len(step) > 8


def test_a_passphrase_that_is_wrong_is_a_finding(vault, monkeypatch, capsys):
    other = RandomKey(bytes(31) + b"x")
    monkeypatch.setattr("idiolect.client.owner.unlock.unlock", lambda *_: other)
    with contextlib.suppress(SystemExit):
        assert main(["doctor", "--vault", str(vault.path)]) == 1
    assert "vault     PROBLEM" in capsys.readouterr().out
