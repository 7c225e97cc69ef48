"""A scan of all that a server keeps of a masked run: no row, no seed and no private key.

Real devices with vaults, and Flower's real store between them and the server. What is
searched for comes from the devices themselves.
"""

import base64
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from idiolect.client.node import secure as member
from idiolect.client.node.device import Device as Owned
from idiolect.client.node.membership import node_key
from idiolect.client.owner import consent
from idiolect.client.owner.vault import Vault
from idiolect.common.secure.masks import pair_seed
from idiolect.server.run import app
from idiolect.server.run.app import main

from .server.federation import server_context
from .server.superlink import Device, LocalGrid, SuperLink, store
from .test_devices import agree, allow, model, public, settings, vaults  # noqa: F401
from .test_masked_devices import ONCE, people  # noqa: F401

pytestmark = pytest.mark.slow

PIECE = 8  # numbers of a row that are searched for


class Federation:
    """Devices, and a server whose every file is below one folder."""

    def __init__(self, home: Path, owned: list[Vault]) -> None:
        (home / "flower").mkdir(parents=True)
        self.home = home
        self.link = SuperLink(store(home / "flower"))
        self.devices = [Device(self.link, place) for place in range(len(owned))]
        self.owners = [Owned(v, d.id) for v, d in zip(owned, self.devices, strict=True)]
        self.link.act = self.act
        self.answered = 0
        self.found: set[tuple[str, str]] = set()
        self.wanted: dict[str, bytes] = {}
        self.rows: list[RecordDict] = []

    def act(self) -> None:
        """Let devices answer; look when the rows of all of them lie in the store."""
        state = self.link.state  # a slow machine must not look like a dead one
        assert state.acknowledge_task_heartbeat(self.link.task.task_id)
        for device, owner in zip(self.devices, self.owners, strict=True):
            assert state.acknowledge_node_heartbeat(device.id, 600)
            task = device.task()
            if task is None:
                continue
            record = owner.answer(task)
            device.send(Message(record, reply_to=task))
            if task.metadata.message_type == "train.adapt":
                self.rows.append(record)
                if len(self.rows) == len(self.devices):
                    self.look()

    def look(self) -> None:
        """Scan what the server has now."""
        self.found |= set(scan(self.home, self.wanted))


def scan(home: Path, wanted: dict[str, bytes]) -> Iterator[tuple[str, str]]:
    """Which of the wanted bytes lie in which file, raw or written as text."""
    for path in sorted(home.rglob("*")):
        if not path.is_file():
            continue
        body = path.read_bytes()
        for name, secret in wanted.items():
            plain = base64.b64encode(secret).rstrip(b"=")[:-1]
            for text in (secret, secret.hex().encode(), plain):
                if text in body:
                    yield name, path.name


def of_devices(owned: list[Vault]) -> dict[str, bytes]:
    """Private keys: of devices, and of their members' sums."""
    found = {}
    for number, vault in enumerate(owned):
        key = node_key(vault)
        number_of = key.private_numbers().private_value.to_bytes(48, "big")
        der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        assert number_of in der
        found[f"node key {number}"] = number_of
        (keys,) = [
            one.body for one in vault.records("run") if one.name.endswith("/keys")
        ]
        found[f"agreement key {number}"] = keys[:32]
        found[f"signing key {number}"] = keys[32:]
    return found


def pieces(name: str, row: np.ndarray) -> dict[str, bytes]:
    """The first numbers of a row as the types that somebody would store."""
    types = ("<i4", "<i8") if row.dtype.kind == "i" else ("<f4", "<f8")
    begin = row.reshape(-1)[:PIECE]
    if np.count_nonzero(begin) <= PIECE // 2:  # of metrics: too few to be known again
        return {}
    return {f"{name} {kind}": begin.astype(kind).tobytes() for kind in types}


@pytest.fixture
def owned(vaults) -> list[Vault]:  # noqa: F811
    allow(vaults)
    agree(vaults, update="clear", votes="clear", metrics="clear")
    for vault in vaults:
        consent.choose(vault, most_epsilon="1000")
    return vaults


def carried_out(federation: Federation, wanted: dict, monkeypatch, caplog) -> None:
    """Make a run whose files are all below the federation's folder."""
    caplog.set_level(logging.DEBUG)
    folder = {"run.folder": str(federation.home / "runs"), "adapt.wire": "float32"}
    main(cast(Grid, LocalGrid(federation.link)), server_context(wanted | folder))
    (federation.home / "server.log").write_text(caplog.text)
    federation.look()


def test_a_server_keeps_no_row_seed_or_key(
    owned,
    settings,  # noqa: F811
    tmp_path,
    monkeypatch,
    caplog,
):
    federation, wanted = Federation(tmp_path / "home", owned), {}
    federation.wanted = wanted
    making, masking = member.noisy, member.secure.report

    def noted(row, norm, *more):
        integers = making(row, norm, *more)
        count = len(wanted)
        wanted.update(pieces(f"row {count}", row))
        wanted.update(pieces(f"integers {count}", integers))
        return integers

    def masked(party, row, own, *more):
        wanted[f"own seed {party.place}"] = own
        for place, secret in party.agreed.items():
            pair = f"{party.place} {place} {len(wanted)}"
            wanted[f"secret {pair}"] = secret
            seed = pair_seed(party.plan.hash, secret, party.place, place)
            wanted[f"pair seed {pair}"] = seed
        return masking(party, row, own, *more)

    monkeypatch.setattr(member, "noisy", noted)
    monkeypatch.setattr(member.secure, "report", masked)
    # Erased at the end of a run; here everything that it has written is looked at.
    monkeypatch.setattr(app, "forget_sums", lambda _run: None)
    carried_out(federation, settings | ONCE, monkeypatch, caplog)
    wanted |= of_devices(owned)
    federation.look()
    assert len(federation.rows) == len(owned) == 4
    assert sum(name.startswith("row") for name in wanted) >= 2 * len(owned)
    assert {name.split()[0] for name in wanted} == {
        *("row", "integers", "own", "secret", "pair", "node", "agreement", "signing")
    }
    assert not federation.found
    files = [path for path in federation.home.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"superlink.db", "metrics.jsonl", "bundles", "total", "server.log"} <= names
    # Control: the scan finds each of them where it is put, in each way of writing it.
    for name, secret in wanted.items():
        for text in (secret, secret.hex().encode(), base64.b64encode(secret)):
            (tmp_path / "planted").mkdir(exist_ok=True)
            (tmp_path / "planted" / "file").write_bytes(b"before" + text + b"behind")
            assert (name, "file") in set(scan(tmp_path / "planted", {name: secret}))


def test_without_masks_the_scan_finds_the_rows(
    owned,
    settings,  # noqa: F811
    tmp_path,
    monkeypatch,
    caplog,
):
    """Control: rows that were sent lie in the store until the server has read them."""
    federation = Federation(tmp_path / "home", owned)
    answer = Owned.answer

    def noted(self, message):
        record = answer(self, message)
        if message.metadata.message_type == "train.adapt":
            arrays = record.array_records["arrays"]
            row = next(iter(arrays.values())).numpy()
            federation.wanted |= pieces(f"row {len(federation.wanted)}", row)
        return record

    monkeypatch.setattr(Owned, "answer", noted)
    carried_out(
        federation, settings | ONCE | {"secagg.mode": "off"}, monkeypatch, caplog
    )
    found = {name for name, file in federation.found if file.startswith("superlink.db")}
    assert found == {name for name in federation.wanted if name.endswith("<f4")}
