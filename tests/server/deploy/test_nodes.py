"""Devices are registered, listed and revoked."""

import os
import stat
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from idiolect.common.errors import IdiolectError
from idiolect.server.cli import main
from idiolect.server.deploy import nodes as module
from tests.server.running_proxy import state_of

APP = Path(__file__).resolve().parents[3] / "simulations" / "lamp"


@pytest.mark.parametrize(
    "act",
    [
        lambda folder: module.nodes(folder),
        lambda folder: module.add_node(folder, "ecdsa-sha2-nistp384 AAAA"),
        lambda folder: module.revoke_node(folder, "1"),
    ],
)
def test_without_a_server_the_next_step_is_named(folder, act):
    with pytest.raises(IdiolectError, match="no server is up"):
        act(folder)


def line_of_a_device() -> str:
    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


@pytest.fixture
def flower(folder, monkeypatch):
    """Flower's commands, played: nodes in a list, and what is asked."""
    nodes: list[dict] = []
    asked: list[list[str]] = []

    def answer(command, _environment):
        asked.append([*command])
        if command[1] == "list":
            return {"success": True, "nodes": nodes}, ""
        if command[1] == "register":
            file = Path(command[2])
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            if file.read_text().startswith(tuple(node["key"] for node in nodes)):
                return {"success": False}, "[code: 23] Public key already in use."
            number = str(len(nodes) + 1)
            made = {"node-id": number, "status": "registered", "key": file.read_text()}
            nodes.append(made | {"online-at": "N/A", "offline-at": "N/A"})
            return {"success": True, "node-id": number}, ""
        if command[1] == "unregister":
            nodes[int(command[2]) - 1]["status"] = "unregistered"
        return {"success": True}, ""

    monkeypatch.setattr("idiolect.server.deploy.nodes.flwr", answer)
    monkeypatch.setattr("idiolect.server.deploy.nodes.running", lambda _: {})
    return nodes, asked


def test_a_device_has_the_name_it_was_given_until_it_is_revoked(
    folder, flower, capsys, monkeypatch
):
    at = ["--at", str(folder)]
    before = os.umask(0o000)  # the note of the key is for this account all the same
    try:
        assert main(["nodes", "add", line_of_a_device(), "--label", "desk", *at]) == 0
    finally:
        os.umask(before)
    assert main(["nodes", "add", line_of_a_device(), *at]) == 0
    assert main(["nodes", "add", line_of_a_device(), "--label", "desk", *at]) == 2
    assert "another device is called 'desk'" in capsys.readouterr().err
    nodes, _ = flower
    nodes[1] |= {"status": "offline", "offline-at": "2026-11-28 23:10:00Z"}
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert main(["nodes", "list", *at]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        ["node", "label", "state", "last", "seen"],
        ["1", "desk", "not", "seen", "yet", "never"],
        ["2", "-", "offline", "2026-11-28", "23:10"],
    ]
    assert main(["nodes", "revoke", "desk", *at]) == 0
    assert "node 1 is revoked" in capsys.readouterr().out
    # The name is free now; what it names is the new device.
    assert main(["nodes", "add", line_of_a_device(), "--label", "desk", *at]) == 0
    capsys.readouterr()
    assert main(["nodes", "list", *at]) == 0
    said = capsys.readouterr().out
    assert said.count("desk") == 1 and "and 1 revoked, which `nodes list --all`" in said
    assert main(["nodes", "list", "--all", *at]) == 0
    said = capsys.readouterr().out
    assert said.count("desk") == 2 and "--all" not in said
    assert main(["nodes", "revoke", "desk", *at]) == 0
    assert [node["status"] for node in nodes] == [
        *("unregistered", "offline", "unregistered")
    ]
    for word in ("desk", "1", "77", "\x1b[2J"):
        assert main(["nodes", "revoke", word, *at]) == 2
        said = capsys.readouterr().err
        assert "nodes list" in said and "\x1b" not in said
    assert stat.S_IMODE((folder / module.LABELS).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("came", "went", "seen"),
    [("1", "2", "2"), ("3", "2", "4"), ("3", "N/A", "4"), ("N/A", "N/A", None)],
)
def test_a_revoked_device_was_seen_last_when_it_was_revoked(came, went, seen):
    ends = {"online-at": came, "offline-at": went, "deleted-at": "4"}
    node = {"status": "unregistered", **ends}
    assert module._last_seen(node) == seen


def test_a_device_that_is_let_in_can_be_given_a_label(folder, flower, capsys):
    nodes, _ = flower
    line = line_of_a_device()
    module.add_node(folder, line)
    public = serialization.load_ssh_public_key(line.encode())
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    number = state_of(folder).create_node("<none>", "<none>", pem, 0)
    nodes[0]["node-id"] = str(number)
    words = ["nodes", "add", line, "--at", str(folder)]
    assert main(words) == 2
    assert "--label gives it another label" in capsys.readouterr().err
    assert main([*words, "--label", "desk"]) == 0
    assert module.labels(folder) == {str(number): "desk"}


def test_an_empty_list_says_how_to_fill_it(folder, flower, capsys):
    assert main(["nodes", "list", "--at", str(folder)]) == 0
    assert "`nodes add` takes the line" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line", ["", "x", "ecdsa-sha2-nistp384 AAAA", "ecdsa-sha2-nistp384", "ssh-rsa AA"]
)
def test_a_line_that_is_no_key_is_refused_before_flower_is_asked(folder, flower, line):
    with pytest.raises(IdiolectError, match="not the key of a device"):
        module.add_node(folder, line)
    assert flower[1] == []


@pytest.mark.parametrize(
    ("revoked", "said"),
    [
        (True, "a revoked key cannot return.*idiolect leave.*node join"),
        (False, "as node"),
    ],
)
def test_a_key_that_was_there_before_is_explained(folder, flower, revoked, said):
    line = line_of_a_device()
    module.add_node(folder, line)
    state = state_of(folder)
    public = serialization.load_ssh_public_key(line.encode())
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    number = state.create_node("<none>", "<none>", pem, 0)
    if revoked:
        state.delete_node("<none>", number)
    with pytest.raises(IdiolectError, match=said) as refused:
        module.add_node(folder, line)
    assert str(number) in str(refused.value)
    assert list(folder.glob("node.*.pub")) == []
