"""The process that keeps the model loaded: whom it answers, and when it ends."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from idiolect.client.owner import (
    adapters,
    consent,
    forgetting,
    history,
    loading,
    resident,
    writing,
)
from idiolect.client.owner.adapters import Version
from idiolect.client.owner.history import Entry
from idiolect.client.owner.keys import Passphrase
from idiolect.client.owner.records import DEVICE
from idiolect.client.owner.resident import Asked
from idiolect.client.owner.vault import Vault
from idiolect.common.data.types import Prompt
from idiolect.common.engine.reference import load_reference
from idiolect.common.errors import IdiolectError, required
from tests.common.conftest import write_model
from tests.waiting import until

KEY = Passphrase("twelve quiet herons")
ASKED = {"prompt": "Tea?", "budget": 4, "compare": True}
pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(write_model(tmp_path_factory.mktemp("model"), "llama"))


@pytest.fixture
def vault(tmp_path, model):
    """A vault with two adapters, the second in use, of which the model stays loaded."""
    folder = tmp_path / ("long" * 40)  # more than the kernel takes of a socket's path
    folder.mkdir()
    with Vault.create(folder / "vault.db", KEY) as made:
        consent.choose(made, backbone=model, keep_loaded="1")
        history.add(made, [Entry(Prompt("", "Tea?"), "Yes.")], "mail")
        loaded = load_reference(loading.config_of(consent.settings(made)))
        for _ in range(2):
            number = made.count_up("adapters", DEVICE)
            version = Version(
                *(number, "sft", loaded.backbone.hash, ("mail",), 1, 0, 1, 1.0, 2.0),
                generations=("",),
            )
            zero = loaded.adapter
            b = {name: tensor + number for name, tensor in zero.b.items()}
            adapters.keep(made, version, replace(zero, b=b))
        yield made
        resident.end(made.path)


def processes_of(vault: Vault) -> list[int]:
    """Those that have the vault's path as their last word."""
    words = ["pgrep", "-f", f"client.owner.keeper {vault.path}"]
    found = subprocess.run(words, capture_output=True, text=True)
    return [int(number) for number in found.stdout.split()]


def test_the_second_text_needs_neither_torch_nor_the_passphrase(vault, tmp_path):
    (tmp_path / "pass").write_text(KEY.text)
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "torch.py").write_text("raise SystemExit('torch')")

    def generate(**more):
        words = ["generate", "-", "--json", "--compare", "--max-new-tokens", "4"]
        return subprocess.run(
            [
                *(sys.executable, "-m", "idiolect.client.cli", *words),
                *("--vault", vault.path, "--passphrase-file", tmp_path / "pass"),
            ],
            input="Tea?",
            text=True,
            capture_output=True,
            env={**os.environ, **more},
        )

    assert resident.ask(vault.path, ASKED) is None
    first = generate()
    assert json.loads(first.stdout) == writing.writer(vault).write(**ASKED), (
        first.stderr
    )
    assert resident.socket_of(vault.path).stat().st_mode & 0o777 == 0o600
    (tmp_path / "pass").unlink()
    paths = os.pathsep.join([str(tmp_path / "stub"), os.environ.get("PYTHONPATH", "")])
    second = generate(PYTHONPATH=paths)
    assert (second.stdout, second.stderr) == (first.stdout, first.stderr)
    # What it refuses, it refuses in words; what is odd, it leaves unanswered, and lives on.
    process = processes_of(vault)
    for budget in (0, -1, 5000):
        with pytest.raises(IdiolectError, match=f"{budget} new tokens do not fit"):
            resident.ask(vault.path, {**ASKED, "budget": budget})
    odds: list[Any] = [{}, [], 3, None, {**ASKED, "budget": "4"}, {"run": "ls"}]
    for odd in odds:
        assert resident.ask(vault.path, odd) is None
    for raw in (b"", b"\xff", b"{" * 9999, b"[" * 99999):
        with resident.connected(vault.path) as line:
            line.sendall(raw)
    assert resident.ask(vault.path, ASKED) and processes_of(vault) == process != []


def test_it_streams_and_stops_for_who_leaves(vault):
    """The text is `write`'s, piece by piece; a second one comes when the first is left."""
    resident.start(vault.path, KEY)
    whole = resident.ask(vault.path, {**ASKED, "budget": 30})
    asked = Asked(("Tea?",), budget=30)
    reply = resident.converse(vault.path, asked)
    assert whole and reply
    pieces = list(reply.pieces)
    assert "".join(piece.text for piece in pieces) == whole["found"]["personal"]
    assert len(pieces) > 2 and pieces[-1].end
    assert (reply.chat, reply.dropped) == (False, 0)
    left = resident.converse(vault.path, asked)
    assert left and next(left.pieces)
    left.pieces.close()
    again = resident.converse(vault.path, asked)
    assert again and list(again.pieces) == pieces
    with pytest.raises(IdiolectError, match="5000 new tokens do not fit"):
        resident.converse(vault.path, replace(asked, budget=5000))
    # What it writes with is changed in between: nothing more comes, and no end.
    forgetting.forget(vault, ["mail"])
    assert resident.converse(vault.path, asked) is None


def _made_again(vault: Vault) -> None:
    vault.path.unlink()
    Vault.create(vault.path, KEY).__exit__(None, None, None)


@pytest.mark.parametrize(
    "change",
    [
        lambda vault: adapters.use(vault, 1),
        lambda vault: adapters.use(vault, adapters.active(vault), 2.0),
        lambda vault: vault.rewrap(Passphrase("another quiet heron")),
        _made_again,
        lambda vault: resident.socket_of(vault.path).unlink(),
    ],
    ids=["use", "strength", "rewrap", "made again", "unreachable"],
)
def test_it_ends_when_what_it_holds_has_changed(vault, change):
    resident.start(vault.path, KEY)
    assert processes_of(vault)
    change(vault)
    until(lambda: not processes_of(vault), 20)
    assert resident.ask(vault.path, ASKED) is None


def test_it_ends_when_nobody_asks(vault):
    consent.choose(vault, keep_loaded="0.05")
    resident.start(vault.path, KEY)
    assert resident.ask(vault.path, ASKED) and processes_of(vault)
    until(lambda: not processes_of(vault), 20)


def test_nothing_of_what_is_forgotten_is_in_a_process_when_forget_returns(vault):
    resident.start(vault.path, KEY)
    assert resident.ask(vault.path, ASKED) and processes_of(vault)
    forgetting.forget(vault, ["mail"])
    assert not processes_of(vault) and resident.ask(vault.path, ASKED) is None


def test_a_second_one_takes_the_place_of_the_first(vault):
    resident.start(vault.path, KEY)
    (first,) = processes_of(vault)
    resident.start(vault.path, KEY)
    until(lambda: first not in processes_of(vault), 20)
    assert resident.ask(vault.path, ASKED)


def test_what_cannot_be_loaded_is_said(vault):
    adapters.activate(vault, 0)
    with pytest.raises(IdiolectError, match="no adapter is in use"):
        resident.start(vault.path, KEY)
    with pytest.raises(IdiolectError, match="passphrase"):
        resident.start(vault.path, Passphrase("not the one at all"))
    assert not resident.socket_of(vault.path).exists()


def test_another_account_is_not_asked(vault, monkeypatch):
    resident.start(vault.path, KEY)
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    assert resident.ask(vault.path, ASKED) is None
    monkeypatch.undo()
    assert resident.ask(vault.path, ASKED)


def test_an_adapter_that_gives_no_numbers_is_said_and_the_process_stays(vault):
    """It has diverged: all its weights are finite, and what the model makes of them not."""
    lora, version = required(adapters.read(vault, 2), "")
    number = vault.count_up("adapters", DEVICE)
    huge = replace(lora, b={name: 0 * b + 1e38 for name, b in lora.b.items()})
    adapters.keep(vault, replace(version, number=number), huge)
    adapters.use(vault, number)
    resident.start(vault.path, KEY)
    process = processes_of(vault)
    said = "the adapter in use gives no numbers: choose another by `idiolect use N`"
    for temperature in (0.0, 1.0):
        asked = Asked(("Tea?",), budget=4, temperature=temperature)
        reply = resident.converse(vault.path, asked)
        with pytest.raises(IdiolectError, match=said):
            list(required(reply, "").pieces)
    with pytest.raises(IdiolectError, match=said):
        resident.ask(vault.path, ASKED)
    reply = resident.converse(vault.path, Asked(("Tea?",), budget=4, policy="shared"))
    assert list(required(reply, "").pieces)
    assert processes_of(vault) == process != []
