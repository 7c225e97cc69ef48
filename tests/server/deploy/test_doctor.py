"""`idiolect-server doctor`, on a server with one thing wrong at a time."""

import json
import socket
from datetime import UTC, datetime, timedelta

import pytest

from idiolect.common.doctor import Finding
from idiolect.server import cli
from idiolect.server.deploy import doctor, keys
from idiolect.server.deploy.flower import free_port
from idiolect.server.run import results
from tests.common.test_doctor import wrong
from tests.server.deploy.test_keys import later


@pytest.fixture
def folder(tmp_path):
    keys.keys_init(tmp_path / "server", ["lab.example.org"], free_port())
    return tmp_path / "server"


def only(findings: list[Finding], check: str) -> str:
    """What is wrong with one check; all others are well."""
    assert {one.check for one in findings if not one.ok} == {check}
    return wrong(next(one for one in findings if not one.ok))


def test_a_server_that_is_well(folder):
    found = doctor.examine(folder, "tiny")
    assert [one.check for one in found] == [
        *("versions", "memory", "keys", "certificate", "port", "disk", "model"),
    ]
    assert all(one.ok for one in found), found
    assert "nothing is served now" in found[4].text


@pytest.mark.parametrize(
    ("days", "check", "part"),
    [
        (keys.DAYS - 20, "certificate", "ends on"),
        (keys.DAYS + 1, "certificate", "ended on"),
        (-1, "clock", "set the clock"),
        (365 * keys.YEARS + 1, "certificate", "the authority ended on"),
    ],
)
def test_a_clock_or_certificate_that_is_not_right(
    folder, monkeypatch, days, check, part
):
    later(monkeypatch, days)
    assert part in only(doctor.examine(folder), check)


def test_a_certificate_without_the_name_of_the_invitation(folder):
    place = folder / "invitation.json"
    invitation = json.loads(place.read_text())
    invitation["address"] = invitation["address"].replace("lab.", "other.")
    results.write_json(place, invitation)
    said = only(doctor.examine(folder), "certificate")
    assert "keys renew other.example.org" in said and "lab.example.org" in said


def test_a_certificate_of_another_authority(folder, tmp_path):
    keys.keys_init(tmp_path / "other", ["lab.example.org"], 9443)
    (tmp_path / "other" / keys.PAIR).replace(folder / keys.PAIR)
    assert "not signed by" in only(doctor.examine(folder), "certificate")


def test_a_key_that_does_not_match_its_certificate(folder, tmp_path):
    keys.keys_init(tmp_path / "other", ["lab.example.org"], 9443)
    end = "-----END PRIVATE KEY-----\n"
    key, _ = (tmp_path / "other" / keys.PAIR).read_text().split(end)
    _, own = (folder / keys.PAIR).read_text().split(end)
    (folder / keys.PAIR).write_text(key + end + own)
    assert "is damaged" in only(doctor.examine(folder), "certificate")


def test_keys_that_others_can_read(folder):
    (folder / "signing.key").chmod(0o644)
    said = only(doctor.examine(folder), "keys")
    assert "signing.key" in said and f"chmod -R go= {folder}" in said


def test_a_folder_without_keys(tmp_path):
    assert "keys init" in only(doctor.examine(tmp_path), "keys")


def test_a_port_that_somebody_has(folder):
    _, port = keys.invited_to(folder)
    with socket.create_server(("0.0.0.0", port)):
        assert f"port {port} cannot be had" in only(doctor.examine(folder), "port")


def test_a_server_that_is_up_but_does_not_answer(folder, monkeypatch):
    port = free_port()
    results.write_json(
        folder / "serving.json",
        {"mark": "m", "port": port, "host": "127.0.0.1", "proxy": port},
    )
    monkeypatch.setattr(doctor.results, "is_locked", lambda _: True)
    assert "the SuperLink does not answer" in only(doctor.examine(folder), "port")


def test_a_disk_that_is_full(folder, monkeypatch):
    usage = type("Usage", (), {"free": 5 << 20})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    assert "5 MB free" in only(doctor.examine(folder), "disk")


def test_memory_that_is_too_little(folder, monkeypatch):
    monkeypatch.setattr(doctor, "free_mb", lambda: 100.0)
    assert "100 MB are free" in only(doctor.examine(folder), "memory")


def test_a_model_that_is_not_here(folder):
    said = only(doctor.examine(folder, str(folder / "none")), "model")
    assert "neither a folder nor a GGUF file" in said


def test_the_command_ends_with_1_if_something_is_wrong(folder, capsys):
    assert cli.main(["doctor", "--at", str(folder)]) == 0
    said = capsys.readouterr().out
    assert said.count("  ok  ") == len(said.splitlines()) == 6
    (folder / "signing.key").unlink()
    assert cli.main(["doctor", "--at", str(folder)]) == 1
    assert "PROBLEM" in capsys.readouterr().out
    assert cli.main(["doctor", "--at", str(folder), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [one["check"] for one in found if not one["ok"]] == ["keys"]


def test_it_changes_nothing(folder):
    before = {p: (p.stat().st_mtime_ns, p.stat().st_mode) for p in folder.rglob("*")}
    doctor.examine(folder, "tiny")
    after = {p: (p.stat().st_mtime_ns, p.stat().st_mode) for p in folder.rglob("*")}
    assert before == after


def test_the_validity_is_that_of_the_certificate(folder, monkeypatch):
    moment = datetime.now(UTC) + timedelta(days=100)
    monkeypatch.setattr(keys, "now", lambda: moment)
    found = doctor.certificate(folder)
    assert found.ok and f"for {keys.DAYS - 101} more days" in found.text
