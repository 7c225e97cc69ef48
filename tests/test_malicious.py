"""Runs with one hostile device, in every way that `benchmarks/malicious.py` knows.

Real devices with vaults, and Flower's real store between them and the server; no processes
and no network. The benchmark does the same over TLS, at full size.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import cast

import pytest
from flwr.app import Message
from flwr.common.serde import message_to_proto
from flwr.serverapp import Grid

from idiolect.client.node.device import Device as Owned
from idiolect.client.owner.vault import Vault
from idiolect.common.protocol.messages import device_user
from idiolect.server.run.app import main
from idiolect.server.run.exchange import SLOW_SECONDS, patience

from .server.federation import events, results, server_context
from .server.superlink import Device, LocalGrid, SuperLink, store
from .test_devices import (  # noqa: F401
    agree,
    model,
    people,
    public,
    settings,
    vaults,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import malicious  # noqa: E402  # pyright: ignore[reportMissingImports]

CLEAR = {"update": "clear", "votes": "clear", "metrics": "clear"}
DEADLINE = 6.0


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return store(tmp_path_factory.mktemp("superlink"))


class Federation:
    """Devices of which the last answers by a mode, and the server's grid."""

    def __init__(self, state, owned: list[Vault], mode: str) -> None:
        self.link = SuperLink(state)
        self.devices = [Device(self.link, place) for place in range(len(owned))]
        self.owners = [Owned(v, d.id) for v, d in zip(owned, self.devices, strict=True)]
        self.mode, self.earlier, self.refused = mode, [], []
        self.link.act = self.act
        self.grid = LocalGrid(self.link)

    def act(self) -> None:
        """Let every device that has a task answer it."""
        for device, owner in zip(self.devices, self.owners, strict=True):
            task = device.task()
            if task is None:
                continue
            record = owner.answer(task)
            line = malicious.Line(
                partial(self.announce, device), partial(self.push, device), wait=0.0
            )
            if device is not self.devices[-1]:
                malicious.honest(line, task, record)
                continue
            line.earlier = self.earlier
            try:
                malicious.answer(self.mode, line, task, record)
            except Exception as error:
                self.refused.append(error)

    def announce(self, device: Device, head: Message, tree) -> tuple[set[str], str]:
        wanted = device.announce_raw(message_to_proto(head), tree)
        return set(wanted.objects_to_push), wanted.session_id

    def push(self, device: Device, session: str, name: str, body: bytes) -> None:
        if not device.push(session, name, body):
            raise RuntimeError("refused")


def carried_out(federation: Federation, wanted: dict) -> tuple[Path, float]:
    """The run's folder, and how long it took."""
    began = time.monotonic()
    main(cast(Grid, federation.grid), server_context(wanted))
    return Path(wanted["run.folder"]) / "latest", time.monotonic() - began


BLAMED = {
    "rubbish": "cannot be read: DecodeError",
    "silent": "no answer within",
    "huge": "allowed",
    "slow": "no answer within",
    "escapes": "owned",
    "greeting": "it runs idiolect",
    "wrong-source": "no answer within",
    "duplicates": "",
    "old-round": "was expected",
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", BLAMED)
def test_the_run_of_the_honest_completes(
    state,
    vaults,  # noqa: F811
    settings,  # noqa: F811
    monkeypatch,
    mode,
):
    agree(vaults, **CLEAR)
    # What it shows needs no more than a tenth.
    less = partial(malicious.huge, size=malicious.HUGE // 10)
    monkeypatch.setitem(malicious.MODES, "huge", less)
    federation = Federation(state, vaults, mode)
    changed = settings | {"quorum": 0.6, "deadline": DEADLINE, "methods": "shared,sft"}
    folder, seconds = carried_out(federation, changed)
    try:
        found = results(folder)
        honest = [device_user(device.id) for device in federation.devices[:-1]]
        hostile = device_user(federation.devices[-1].id)
        # Whoever is honest is in the table with every method, whatever the other does.
        assert set(honest) <= set(found["users"])
        assert all(set(found["users"][one]) == {"shared", "sft"} for one in honest)
        assert not set(honest) & set(found["run"]["failed"])
        if mode == "duplicates":
            assert hostile in found["users"] and not found["run"]["failed"]
        else:
            assert BLAMED[mode] in json.dumps(events(folder, "warning"))
            assert hostile not in found["users"]
        # One deadline is waited for the hostile one, not one in each of six steps.
        said = [event["message"] for event in events(folder, "warning")]
        assert sum("no answer within" in one for one in said) <= 1
        assert seconds < 8 * DEADLINE
        for entry in events(folder):
            assert malicious.unclean(malicious.strings(entry)) == []
        assert malicious.unclean([folder.joinpath("results.json").read_text()]) == []
        # No more was read of it than a few times what all honest replies have together.
        assert federation.link.pulled < 8_000_000
        assert federation.link.left[2] == 0
    finally:
        state.cleanup_run(federation.link.run_id)
        for device in federation.devices:
            state.deactivate_node(device.id)


def test_nobody_is_waited_for_alone_in_every_step():
    starts, ends = 100.0, 160.0
    # Somebody prompt has not answered: until the deadline.
    assert patience(starts, 120.0, ends, {1, 2}, {2, 3}) == ends
    # Only one that let a deadline pass is left: a tenth of the others' 20 s more.
    assert patience(starts, 120.0, ends, {1, 2}, {3}) == 122.0
    assert patience(starts, 101.0, ends, {1, 2}, {3}) == 101.0 + SLOW_SECONDS
    assert patience(starts, 159.8, ends, {1, 2}, {3}) == ends
    # Nobody else was asked.
    assert patience(starts, starts, ends, set(), {3}) == ends
