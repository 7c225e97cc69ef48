"""A process that is killed in the middle of forgetting: nothing is lost, nothing stays."""

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from idiolect.client.owner import history
from idiolect.client.owner.history import Entry
from idiolect.client.owner.keys import RandomKey
from idiolect.client.owner.vault import Vault
from idiolect.common.data.types import Prompt

KEY = RandomKey(bytes(32))
pytestmark = pytest.mark.process

# Forgets a source, and is killed when it comes to a method of the vault.
CHILD = """
import os, signal, sys
from pathlib import Path
from idiolect.client.owner import forgetting
from idiolect.client.owner.keys import RandomKey
from idiolect.client.owner.vault import Vault

def die(*_args, **_more):
    os.kill(os.getpid(), signal.SIGKILL)

with Vault.open(Path(sys.argv[1]), RandomKey(bytes(32))) as vault:
    setattr(Vault, sys.argv[2], die)
    forgetting.forget(vault, sources=["mails"])
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "vault.db"
    with Vault.create(path, KEY) as vault:
        for source in ("mails", "chat"):
            made = [
                Entry(Prompt("", f"{source} {n}?"), f"{source} {n}!") for n in range(9)
            ]
            history.add(vault, made, source)
    return path


def ciphertexts(path: Path) -> list[bytes]:
    """Of all pairs, in the order in which they were written: mails, chat."""
    with closing(sqlite3.connect(path)) as database:
        query = "SELECT sealed FROM records WHERE kind = 'item' ORDER BY number"
        return [bytes(row[0]) for row in database.execute(query)]


def on_disk(path: Path) -> bytes:
    """The vault and what lies beside it."""
    return b"".join(file.read_bytes() for file in path.parent.iterdir())


def killed(path: Path, where: str) -> None:
    """Let another process forget the mails, and kill it there."""
    words = [sys.executable, "-c", CHILD, str(path), where]
    done = subprocess.run(words, capture_output=True, cwd=os.getcwd())
    assert done.returncode == -signal.SIGKILL, done.stderr


def sources(path: Path) -> dict[str, int]:
    with Vault.open(path, KEY) as vault:
        assert vault.check()
        entries = history.entries(vault)
    names = [entry.source for entry in entries]
    assert all(entry.target.startswith(entry.source) for entry in entries)
    return {name: names.count(name) for name in names}


def test_killed_before_the_commit_nothing_was_forgotten(path):
    killed(path, "_write_root")
    assert sources(path) == {"mails": 9, "chat": 9}


def test_killed_between_commit_and_erasure_the_next_start_erases(path):
    found = ciphertexts(path)
    gone, kept = found[:9], found[9:]
    killed(path, "erase")
    assert any(one in on_disk(path) for one in gone)  # or this test would show nothing
    with Vault.open(path, KEY):
        assert not any(one in on_disk(path) for one in gone)
    whole = on_disk(path)
    assert not any(one in whole for one in gone) and all(one in whole for one in kept)
    for word in (b"mails", b"mails 1!", b"chat 1!"):
        assert word not in whole
    assert sources(path) == {"chat": 9}
    with Vault.open(path, KEY) as vault:
        assert not vault._root.pending
