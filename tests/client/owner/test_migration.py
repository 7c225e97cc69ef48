"""Vaults of every earlier schema open with this version: `tests/fixtures/vault-*`."""

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from unicodedata import normalize

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap, aes_key_wrap

from idiolect.client.node import membership
from idiolect.client.node.device import VaultStore
from idiolect.client.owner import adapters, consent, forgetting, history, loading
from idiolect.client.owner.database import DamagedError, WrongKeyError, checksum
from idiolect.client.owner.keys import Passphrase, RandomKey, derived
from idiolect.client.owner.records import DEVICE, Source
from idiolect.client.owner.vault import Vault
from idiolect.common.engine.reference import load_reference
from idiolect.common.errors import IdiolectError

pytestmark = pytest.mark.slow

FIXTURES = Path(__file__).parents[2] / "fixtures" / "vault-1"
RANDOM = RandomKey(bytes(range(32)))
SECRET = Passphrase("correct horse battery")
IMPORTS = [Source("import", name) for name in ("run notes.jsonl", "device")]


@pytest.fixture
def path(tmp_path) -> Path:
    return Path(shutil.copy(FIXTURES / "vault.db", tmp_path / "vault.db"))


def copied(tmp_path: Path, name: str) -> Path:
    return Path(shutil.copy(FIXTURES / name, tmp_path / name))


def test_everything_is_there_under_its_own_kind_of_source(path):
    with Vault.open(path, SECRET) as opened:
        trained = [Source("adapter", number) for number in ("1", "2")]
        kinds = {*IMPORTS, *trained, DEVICE, Source("run", "spring")}
        assert set(opened.sources()) == kinds
        entries = history.entries(opened)
        assert [(e.source, e.target) for e in entries] == [
            *(("run notes.jsonl", f"notes answer {i}") for i in range(6)),
            *(("device", f"device answer {i}") for i in range(3)),
        ]
        assert [e.liked for e in entries] == [False] + [True] * 8
        assert all(entry.generation for entry in entries)
        assert consent.settings(opened)["max-length"] == "128"
        assert consent.consents(opened)["update"] == "no"
        assert consent.consents(opened)["training"] == "yes"
        server = membership.server_of(opened)
        assert server is not None and server.signing_key == "07" * 32
        assert membership.public_line(opened).startswith("ecdsa-sha2-nistp384 ")
        (sent,) = consent.sent(opened)
        assert (sent.run, sent.kind, sent.bytes) == ("spring", "HelloReply", 321)
        store = VaultStore(opened, "spring")
        assert store.read("round") == b"2"
        assert store.read("adapters/c-bpo/device-1.safetensors")
        assert [v.accepted for v in adapters.versions(opened)] == [True, False]
        assert adapters.active(opened) == 1
        assert opened.count_up("adapters", DEVICE) == 3
        count = opened.check()
    with Vault.open(path, SECRET) as again:
        assert again.check() == count and history.entries(again) == entries


def test_its_adapters_can_be_used_and_forgotten(path):
    with Vault.open(path, SECRET) as opened:
        found = load_reference(loading.config_of(consent.settings(opened)))
        backbone, zero = found.backbone, found.adapter
        shared, own = adapters.adapter(opened, backbone, zero)
        assert shared.b.keys() == own.b.keys() and len(own.b) == 2
        count, stale = forgetting.forget(opened, ["device"])
        assert count == 3 and [one.number for one in stale] == [1, 2]
        assert adapters.active(opened) == 0
        assert opened.sources() == [DEVICE, IMPORTS[0]]
        assert consent.consents(opened)["update"] == "no"  # it shared their source
        assert VaultStore(opened, "spring").read("round") == b"2"


def test_nothing_that_the_older_version_sealed_is_left(path):
    database = sqlite3.connect(path)
    rows = database.execute("SELECT sealed FROM records").fetchall()
    rows += database.execute("SELECT wrapped FROM sources").fetchall()
    database.close()
    Vault.open(path, SECRET).close()
    whole = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert not any(row[0] in whole for row in rows)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_passphrase_in_either_form_opens_it_and_then_both_do(tmp_path, form):
    path = copied(tmp_path, "nfd.db")
    words = "schöne Wiese im Mai"
    with pytest.raises(WrongKeyError):
        Vault.open(path, Passphrase("schone Wiese im Mai"))
    for typed in (form, "NFD", "NFC"):
        with Vault.open(path, Passphrase(normalize(typed, words))) as opened:
            assert len(list(opened.records("item"))) == 1


def test_a_passphrase_that_was_taken_with_its_byte_order_mark(tmp_path):
    path = copied(tmp_path, "random.db")
    database = sqlite3.connect(path)
    with database:
        head = dict(database.execute("SELECT name, value FROM header"))
        old, new = RANDOM.master(head["salt"]), derived("\ufeffmark", head["salt"])
        index = aes_key_wrap(new, aes_key_unwrap(old, head["index"]))
        for place, wrapped in database.execute("SELECT source, wrapped FROM sources"):
            again = aes_key_wrap(new, aes_key_unwrap(old, wrapped))
            query = "UPDATE sources SET wrapped = ? WHERE source = ?"
            database.execute(query, (again, place))
        rows = {"index": index, "check": checksum(head["salt"], index)}
        for item in rows.items():
            database.execute("INSERT OR REPLACE INTO header VALUES (?, ?)", item)
    database.close()
    for _ in range(2):
        with Vault.open(path, Passphrase("mark")) as opened:
            assert opened.check() == 1


CRASH = """
import os, sys
from pathlib import Path
from idiolect.client.owner import keys, schema1, vault
point, path = sys.argv[1:]
if point == "drop":
    schema1.drop = lambda database: os._exit(9)
elif point == "commit":
    vault.Vault._write_root = lambda *_: os._exit(9)
else:
    seal, left = vault.Vault._seal, [int(point)]
    def counted(*arguments):
        left[0] -= 1
        return seal(*arguments) if left[0] else os._exit(9)
    vault.Vault._seal = counted
vault.Vault.open(Path(path), keys.Passphrase("correct horse battery"))
"""


@pytest.mark.parametrize("point", ["1", "11", "drop", "commit"])
def test_a_crash_in_the_middle_leaves_the_old_vault(path, point):
    before = dump(path)
    command = [sys.executable, "-c", CRASH, point, str(path)]
    assert subprocess.run(command, timeout=120).returncode == 9
    assert dump(path) == before
    with Vault.open(path, SECRET) as opened:
        assert opened.check() == 24


def dump(path: Path) -> list[str]:
    database = sqlite3.connect(path)
    found = list(database.iterdump())
    database.close()
    return found


LAST = "WHERE number = (SELECT MAX(number) FROM records)"


@pytest.mark.parametrize(
    "query",
    [
        f"UPDATE records SET sealed = zeroblob(40) {LAST}",
        f"UPDATE records SET chunk = 1 {LAST}",
        f"UPDATE records SET chunks = 2 {LAST}",
        f"UPDATE records SET kind = 'sent' {LAST}",
        "UPDATE sources SET label = zeroblob(40)",
        "UPDATE sources SET wrapped = zeroblob(40)",
    ],
)
def test_a_damaged_one_is_named_and_left_as_it_is(path, query):
    database = sqlite3.connect(path)
    with database:
        assert database.execute(query).rowcount
    database.close()
    before = dump(path)
    with pytest.raises(DamagedError, match="older version.*damaged.*stays as it is"):
        Vault.open(path, SECRET)
    assert dump(path) == before


def test_a_vault_of_this_schema_is_not_taken_for_an_older_one(path):
    Vault.open(path, SECRET).close()
    database = sqlite3.connect(path)
    with database:
        database.execute("UPDATE header SET value = '1' WHERE name = 'schema'")
    database.close()
    with pytest.raises(IdiolectError):
        Vault.open(path, SECRET)


def test_two_processes_bring_it_up_once(path):
    code = CRASH.split("point, path")[0] + (
        "with vault.Vault.open(Path(sys.argv[1]), keys.Passphrase(sys.argv[2])) as one:\n"
        "    print(one.check())\n"
    )
    command = [sys.executable, "-c", code, str(path), SECRET.text]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in "ab"]
    assert [one.communicate(timeout=120)[0] for one in both] == ["24\n"] * 2
