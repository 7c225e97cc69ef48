import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idiolect.client.owner import database
from idiolect.client.owner.database import (
    TABLES,
    DamagedError,
    ErasureError,
    WrongKeyError,
)
from idiolect.client.owner.keys import Passphrase, RandomKey
from idiolect.client.owner.records import DEVICE, Record, Source
from idiolect.client.owner.vault import CHUNK, Vault
from idiolect.common.errors import IdiolectError

KEY = RandomKey(bytes(range(32)))
OTHER = RandomKey(bytes(32))
MAIL, NOTES, TRAINED = (Source("import", n) for n in ("mail", "notes", "training"))
NEW = Source("import", "new source")
CANARY = "the-quick-brown-fox-jumps-over-0123456789"


def record(name: str, text: str = "") -> Record:
    return Record(name, (text or f"text of {name}").encode())


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "device" / "vault.db"


@pytest.fixture
def vault(path) -> Iterator[Vault]:
    with Vault.create(path, KEY) as made:
        made.put("item", [record("a"), record("b")], MAIL)
        made.put("item", [record("c")], NOTES)
        yield made


def names(vault: Vault, kind: str = "item") -> list[str]:
    return [entry.name for entry in vault.records(kind)]


def edit(path: Path, query: str, *values: object) -> None:
    database = sqlite3.connect(path)
    with database:
        assert database.execute(query, values).rowcount
    database.close()


def test_records_come_back_in_order_and_are_replaced(vault, path):
    vault.put("item", [record("b", "again"), record("d")], NOTES)
    vault.put("adapter", [record("a", "another kind")], TRAINED)
    with Vault.open(path, KEY) as again:
        assert names(again) == ["a", "c", "b", "d"]
        assert again.get("item", "b") == b"again"
        assert again.get("adapter", "a") == b"another kind"
        assert again.get("item", "nobody") is None
        assert (
            len(list(again.records("item"))) == 4
            and len(list(again.records("adapter"))) == 1
        )
        assert again.holds("item", "a") and not again.holds("adapter", "b")
        assert again.sources() == [MAIL, NOTES, TRAINED]
        assert again.check() == 5
        assert again.delete("item", ["a", "nobody", "d"]) == 2
        assert names(again) == ["c", "b"]


@pytest.mark.parametrize("size", [0, 1, CHUNK - 4, CHUNK, 2_700_001])
def test_large_records_are_sealed_in_chunks(vault, size):
    body = os.urandom(size)
    vault.put("adapter", [Record("x", body)], TRAINED)
    assert vault.get("adapter", "x") == body
    assert len(list(vault.records("adapter"))) == 1
    assert vault.delete("adapter", ["x"]) == 1


def test_a_passphrase_opens_what_it_closed(path):
    Vault.create(path, Passphrase("correct horse")).close()
    Vault.open(path, Passphrase("correct horse")).close()
    with pytest.raises(WrongKeyError, match="does not open"):
        Vault.open(path, Passphrase("correct  horse"))
    with pytest.raises(IdiolectError, match="protects nothing"):
        Vault.open(path, Passphrase(""))


def test_another_random_key_does_not_open_it(vault, path):
    with pytest.raises(WrongKeyError):
        Vault.open(path, OTHER)
    with pytest.raises(IdiolectError, match="32 bytes"):
        Vault.open(path, RandomKey(b"short"))


def test_nothing_is_on_disk_in_clear_and_only_the_owner_reads_it(path):
    with Vault.create(path, KEY) as vault:
        vault.put(
            "item",
            [record(f"name {CANARY}", f"body {CANARY}")],
            Source("import", f"from {CANARY}"),
        )
        files = list(path.parent.iterdir())
        assert len(files) >= 2  # the log of what is not yet in the file counts too
        for file in files:
            assert CANARY.encode() not in file.read_bytes()
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_folder_that_was_there_keeps_its_mode(tmp_path):
    tmp_path.chmod(0o755)
    Vault.create(tmp_path / "vault.db", KEY).close()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_an_existing_vault_is_never_overwritten(vault, path):
    with pytest.raises(IdiolectError, match="already"):
        Vault.create(path, OTHER)
    assert names(vault) == ["a", "b", "c"]
    assert not [f for f in path.parent.iterdir() if f.name.startswith(".")]


def test_a_file_in_the_place_of_the_folder_is_no_vault(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(IdiolectError, match="no vault can be made at .*--vault"):
        Vault.create(tmp_path / "file" / "vault.db", KEY)


def test_a_missing_vault_is_named(path):
    with pytest.raises(IdiolectError, match="vault init"):
        Vault.open(path, KEY)


def one(change: str, which: str = "MIN") -> str:
    """SQL that changes the first (or last) record."""
    chosen = f"number = (SELECT {which}(number) FROM records)"
    return f"UPDATE records SET {change} WHERE {chosen}"


OF_LAST = "FROM records ORDER BY number DESC LIMIT 1"
# The first byte is one of a random nonce: writing one fixed value would leave
# one record in 256 as it was.
CHANGED = "CASE substr(sealed, 1, 1) WHEN X'00' THEN X'01' ELSE X'00' END"
A_BIT = f"sealed = CAST({CHANGED} || substr(sealed, 2) AS BLOB)"
SWAPPED = "(SELECT wrapped FROM sources s WHERE s.source != sources.source)"
DAMAGE = {
    "a byte of a record": one(A_BIT),
    "text for bytes": one("sealed = 'text'"),
    "a record cut": one("sealed = substr(sealed, 1, 20)"),
    "a record emptied": one("sealed = X''"),
    "a record in another's place": one(f"sealed = (SELECT sealed {OF_LAST})"),
    "a record in its neighbour's place": one(
        "sealed = (SELECT sealed FROM records WHERE number = 2)"
    ),
    "another kind": one("kind = 'sent'"),
    "another name": one("key = X'00'"),
    "another source": one(f"source = (SELECT source {OF_LAST})"),
    "more chunks": one("chunks = 2", "MAX"),
    "no chunks": one("chunks = 0"),
    "a data key": "UPDATE sources SET wrapped = zeroblob(40)",
    "a source's name": "UPDATE sources SET label = zeroblob(40)",
    "data keys swapped": f"UPDATE sources SET wrapped = {SWAPPED}",
    "no data key": "DELETE FROM sources",
}


def opened_and_checked(path: Path) -> list[str]:
    with Vault.open(path, KEY) as again:
        again.check()
        return names(again)


@pytest.mark.parametrize("query", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named_and_never_read_as_data(vault, path, query):
    vault.close()
    edit(path, query)
    with pytest.raises(DamagedError, match="damaged|not what was last written"):
        opened_and_checked(path)


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM records WHERE kind = 'adapter' AND chunk = 0",
        "DELETE FROM records WHERE kind = 'adapter' AND chunk = 1",
        "DELETE FROM records WHERE kind = 'adapter' AND chunk = 2",
        "UPDATE records SET chunks = 2 WHERE kind = 'adapter'",
        "UPDATE records SET chunk = chunk + 7 WHERE kind = 'adapter'",
    ],
)
def test_a_cut_adapter_is_damaged(vault, path, query):
    vault.put("adapter", [Record("x", os.urandom(2_500_000))], TRAINED)
    vault.close()
    edit(path, query)
    with pytest.raises(DamagedError, match="records of kind 'adapter'"):
        Vault.open(path, KEY)
    with Vault.open(path, KEY, trusting=True) as again:
        assert again.repair() == 1
    assert opened_and_checked(path) == ["a", "b", "c"]


def rows_of(path: Path, table: str = "records", where: str = "1") -> list[tuple]:
    database = sqlite3.connect(path)
    found = database.execute(f"SELECT * FROM {table} WHERE {where}").fetchall()
    database.close()
    return found


def put_rows(path: Path, table: str, rows: list[tuple]) -> None:
    database = sqlite3.connect(path)
    marks = ", ".join("?" * len(rows[0]))
    with database:
        database.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", rows)
    database.close()


def test_chunks_of_two_versions_make_no_record(vault, path):
    """Even where nobody looks at the whole: the seals alone refuse it."""
    vault.put("adapter", [Record("x", os.urandom(2_500_000))], TRAINED)
    before = rows_of(path, where="kind = 'adapter'")
    vault.put("adapter", [Record("x", os.urandom(2_500_000))], TRAINED)
    vault.close()
    after = rows_of(path, where="kind = 'adapter'")
    for columns in ("sealed = ?", "sealed = ?, version = ?"):
        values = [before[1][8], *([before[1][4]] * (columns.count("?") - 1))]
        edit(path, f"UPDATE records SET {columns} WHERE chunk = 1", *values)
        with Vault.open(path, KEY, trusting=True) as again:
            opened = again._opened
            rows = again._database.execute(
                "SELECT kind, key, source, version, chunk, chunks, sealed, wrapped FROM "
                "records JOIN sources USING (source) WHERE kind = 'adapter'"
            ).fetchall()
            with pytest.raises(DamagedError):
                list(opened(rows))
        with pytest.raises(DamagedError):
            opened_and_checked(path)
        put_rows(path, "records", after)
    assert opened_and_checked(path) == ["a", "b", "c"]


def older_and_newer(path: Path) -> tuple[list[tuple], list[tuple]]:
    """Make a state, and a newer one in which two records were replaced."""
    with Vault.open(path, KEY) as vault:
        vault.put("state", [record("consents", "no"), record("paused", "")], DEVICE)
        # Replaced rows keep their places, so that all of them can be put back.
        before = rows_of(path, where="kind = 'state'"), rows_of(path, "header")
        vault.put("state", [record("consents", "yes"), record("paused", "")], DEVICE)
        vault.erase()
    return before


def put_back(path: Path, rows: list[tuple], which: slice) -> None:
    for row in rows[which]:
        edit(path, "DELETE FROM records WHERE kind = ? AND key = ?", row[1], row[2])
        put_rows(path, "records", [row])


ROLLBACKS = {
    "one older record": lambda p, rows, head: put_back(p, rows, slice(0, 1)),
    "all older records": lambda p, rows, head: put_back(p, rows, slice(0, 2)),
    "an older root": lambda p, rows, head: put_rows(p, "header", head),
    "an older root and an older record": lambda p, rows, head: (
        put_back(p, rows, slice(1, 2)),
        put_rows(p, "header", head),
    ),
    "a record taken out": lambda p, rows, head: edit(
        p, "DELETE FROM records WHERE key = ?", rows[1][2]
    ),
    "a kind taken out": lambda p, rows, head: edit(
        p, "DELETE FROM records WHERE kind = 'state'"
    ),
    "a record added": lambda p, rows, head: put_rows(
        p, "records", [(99, *rows[0][1:5], 7, *rows[0][6:])]
    ),
    "an empty source added": lambda p, rows, head: put_rows(
        p, "sources", [(b"x" * 16, *rows_of(p, "sources")[0][1:])]
    ),
    "records swapped": lambda p, rows, head: [
        edit(p, f"UPDATE records SET number = {new} WHERE number = {old}")
        for old, new in ((1, 99), (2, 1), (99, 2))
    ],
    "a date": lambda p, rows, head: edit(
        p, "UPDATE records SET written = 1 WHERE number = 1"
    ),
    "a root taken out": lambda p, rows, head: edit(
        p, "DELETE FROM header WHERE name = 'root'"
    ),
    "a trigger": lambda p, rows, head: edit_schema(
        p, "CREATE TRIGGER t AFTER DELETE ON records BEGIN SELECT 1; END"
    ),
    "an index that leaves out a kind": lambda p, rows, head: lying_index(p),
}


def edit_schema(path: Path, *queries: str) -> None:
    database = sqlite3.connect(path)
    with database:
        for query in queries:
            database.execute(query)
    database.close()


def lying_index(path: Path) -> None:
    edit_schema(
        path,
        "DROP INDEX by_name",
        f"{TABLES[-1]} WHERE kind != 'state'",
        "PRAGMA writable_schema = ON",
        f"UPDATE sqlite_schema SET sql = '{TABLES[-1]}' WHERE name = 'by_name'",
    )


@pytest.mark.parametrize("change", ROLLBACKS.values(), ids=ROLLBACKS)
def test_what_was_taken_out_added_or_put_back_is_refused(vault, path, change):
    rows, head = older_and_newer(path)
    change(path, rows, head)
    with pytest.raises(DamagedError, match="not what was last written|its root is dam"):
        Vault.open(path, KEY)
    # Nor does a process believe it that was there before, to read or to write on it.
    for attempt in (
        lambda: vault.get("state", "paused"),
        lambda: vault.put("item", [record("d")], MAIL),
    ):
        with pytest.raises(DamagedError):
            attempt()


def test_an_older_copy_of_the_whole_is_refused_by_who_has_seen_the_newer(vault, path):
    vault.erase()
    before = {name: rows_of(path, name) for name in ("header", "sources", "records")}
    vault.put("item", [record("a", "newer")], MAIL)
    edit_schema(path, "DELETE FROM records")
    for name, rows in before.items():
        put_rows(path, name, rows)
    with pytest.raises(DamagedError, match="older copy"):
        vault.get("item", "a")
    assert opened_and_checked(path) == ["a", "b", "c"]  # nobody else can tell


def test_what_another_process_wrote_is_no_damage(vault, path):
    with Vault.open(path, KEY) as other:
        for number in range(3):
            other.put("item", [record(f"o{number}")], NOTES)
            vault.put("item", [record(f"v{number}")], NOTES)
            assert vault.get("item", f"o{number}") and other.get("item", f"v{number}")
        with pytest.raises(RuntimeError), other.transaction():
            other.delete("item", ["a"])
            raise RuntimeError("undone")
        assert names(other) == names(vault) and vault.holds("item", "a")


def test_a_repaired_vault_keeps_what_can_be_opened(vault, path):
    older_and_newer(path)
    vault.close()
    edit(path, one(A_BIT))
    edit(path, "DELETE FROM records WHERE kind = 'state'")
    edit_schema(
        path, "CREATE VIEW v AS SELECT 1", "CREATE INDEX i ON records (written)"
    )
    with Vault.open(path, KEY, trusting=True) as again:
        assert again.repair() == 1
    assert opened_and_checked(path) == ["b", "c"]
    with Vault.open(path, KEY) as again:
        again.put("item", [record("a")], MAIL)
    with Vault.open(path, KEY) as again:
        assert again.check() == 3


def test_a_generation_is_of_one_source_until_anything_of_it_is_forgotten(vault, path):
    assert vault.generation(Source("import", "nobody")) == ""
    first, other = vault.generation(MAIL), vault.generation(NOTES)
    assert first and other and first != other
    vault.put("item", [record("z")], MAIL)
    vault.rewrap(OTHER)
    with Vault.open(path, OTHER) as again:
        assert again.generation(MAIL) == first
    vault.forget_some(MAIL, "item", ["z"])
    second = vault.generation(MAIL)
    vault.forget(MAIL)
    assert vault.generation(MAIL) == ""
    vault.put("item", [record("a"), record("b")], MAIL)
    assert len({first, second, vault.generation(MAIL)}) == 3
    assert vault.generation(NOTES) == other


def test_damage_to_one_record_leaves_the_others_readable(vault, path):
    edit(path, one(A_BIT))
    assert vault.get("item", "c") == b"text of c"
    with pytest.raises(DamagedError):
        vault.get("item", "a")
    vault.put("item", [record("a", "anew")], MAIL)
    assert vault.check() == 3


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("UPDATE header SET value = zeroblob(16) WHERE name = 'salt'", "header"),
        ("UPDATE header SET value = zeroblob(40) WHERE name = 'index'", "header"),
        ("DELETE FROM header WHERE name = 'check'", "header"),
        ("UPDATE header SET value = X'FF' WHERE name = 'schema'", "header"),
        ("UPDATE header SET value = X'3939' WHERE name = 'schema'", "newer"),
    ],
)
def test_a_damaged_header_is_not_called_a_wrong_key(vault, path, query, sentence):
    vault.close()
    edit(path, query)
    with pytest.raises(IdiolectError, match=sentence) as error:
        Vault.open(path, KEY)
    assert not isinstance(error.value, WrongKeyError)


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 100])
def test_a_file_that_is_no_vault_is_named(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(DamagedError, match="not a vault"):
        Vault.open(path, KEY)


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("image") / "vault.db"
    with Vault.create(path, KEY) as vault:
        vault.put("item", [record("a"), record("b")], MAIL)
        vault.erase()
    return path.replace(path.with_name("image"))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_flipped_byte_or_cut_is_an_error_or_changes_nothing(image, data):
    path, content = image.with_name("vault.db"), bytearray(image.read_bytes())
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(
            st.integers(1, 255)
        )
    else:
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    for old in path.parent.glob("vault.db*"):
        old.unlink()
    path.write_bytes(content)
    try:
        with Vault.open(path, KEY) as vault:
            found = {entry.name: entry.body for entry in vault.records("item")}
    except IdiolectError:
        return
    assert found == {"a": b"text of a", "b": b"text of b"}


def sealed_and_wrapped(path: Path) -> list[bytes]:
    """Of every item in order, what was sealed and the wrapped key of its source."""
    database = sqlite3.connect(path)
    rows = database.execute(
        "SELECT sealed, wrapped FROM records JOIN sources USING (source) "
        "WHERE kind = 'item' ORDER BY number"
    ).fetchall()
    database.close()
    return [trace for row in rows for trace in row]


def test_forgetting_a_source_erases_its_key_and_its_records(vault, path):
    traces = sealed_and_wrapped(path)
    assert vault.forget(MAIL) == 2
    assert vault.forget(MAIL) == 0
    assert names(vault) == ["c"] and vault.sources() == [NOTES]
    there = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert [trace in there for trace in traces] == [False] * 4 + [True] * 2
    vault.put("item", [record("a", "a new key for the same source")], MAIL)
    assert names(vault) == ["c", "a"]


def test_a_source_is_one_of_its_kind_whatever_its_name(vault):
    twins = [Source(k, "1") for k in ("import", "run", "adapter", "device")]
    for source in twins:
        vault.put(source.kind, [record("x", source.kind)], source)
    assert vault.sources() == [MAIL, NOTES, *twins]
    assert vault.forget(twins[0]) == 1
    assert vault.sources() == [MAIL, NOTES, *twins[1:]]
    assert vault.get("run", "x") == b"run" and vault.get("import", "x") is None


def test_forgetting_some_of_a_source_seals_the_rest_anew(vault, path):
    large = Record("large", os.urandom(1_500_000))
    vault.put("draft", [large, record("a", "of another kind")], MAIL)
    traces = sealed_and_wrapped(path)[:2]
    assert vault.forget_some(MAIL, "item", ["a", "nobody"]) == 1
    assert sorted(names(vault)) == ["b", "c"] and vault.check() == 4
    assert vault.get("draft", "large") == large.body
    assert vault.get("draft", "a") == b"of another kind"
    there = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert [trace in there for trace in traces] == [False, False]
    assert vault.forget_some(MAIL, "item", ["b"]) == 1
    assert vault.forget_some(NOTES, "item", ["c"]) == 1
    assert vault.sources() == [MAIL]


def test_a_new_key_opens_and_the_old_one_does_not(vault, path):
    elsewhere = Vault.open(path, KEY)
    vault.rewrap(OTHER)
    with pytest.raises(WrongKeyError):
        Vault.open(path, KEY)
    with Vault.open(path, OTHER) as again:
        assert again.check() == 3
    vault.put("item", [record("d")], NEW)
    # A process with the old key must not write what the new one can't read.
    for attempt in (
        lambda: elsewhere.put("item", [record("e")], Source("import", "newest")),
        lambda: elsewhere.check(),
    ):
        with pytest.raises(IdiolectError, match="changed meanwhile"):
            attempt()
    elsewhere.close()
    assert vault.check() == 4


def test_a_failed_write_leaves_nothing(vault):
    def broken():
        yield record("d")
        raise RuntimeError("the import failed")

    with pytest.raises(RuntimeError):
        vault.put("item", broken(), NEW)
    assert names(vault) == ["a", "b", "c"] and vault.sources() == [MAIL, NOTES]
    vault.put("item", [record("d")], NEW)
    assert vault.get("item", "d") == b"text of d"


WRITER = """
import sys
from pathlib import Path
from idiolect.client.owner.keys import RandomKey
from idiolect.client.owner.records import Record, Source
from idiolect.client.owner.vault import Vault
name, total, pause = sys.argv[2], int(sys.argv[3]), sys.argv[4:]
with Vault.open(Path(sys.argv[1]), RandomKey(bytes(range(32)))) as vault:
    for i in range(total):
        pair = [Record(f"{name}-{i}-{half}", b"x" * 50_000) for half in "ab"]
        vault.put("item", pair, Source("import", name))
        print(i, flush=True)
"""


def writer(path: Path, name: str, total: int) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(path), name, str(total)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.process
def test_two_processes_write_at_once(vault, path):
    both = [writer(path, name, 20) for name in ("one", "two")]
    assert [process.wait(60) for process in both] == [0, 0]
    assert len(list(vault.records("item"))) == 3 + 2 * 2 * 20
    assert vault.check() == len(list(vault.records("item")))


def test_a_source_that_another_process_forgot_and_made_again(vault, path):
    assert vault.check() == 3
    with Vault.open(path, KEY) as other:
        other.forget(MAIL)
        other.put("item", [record("new")], MAIL)
    vault.put("item", [record("newer")], MAIL)
    assert names(vault) == ["c", "new", "newer"]
    with Vault.open(path, KEY) as other:
        assert names(other) == ["c", "new", "newer"]


def test_a_counter_never_gives_a_number_twice(vault, path):
    with Vault.open(path, KEY) as other:
        numbers = [one.count_up("adapters", DEVICE) for one in (vault, other) * 3]
    assert numbers == [1, 2, 3, 4, 5, 6]


@pytest.mark.process
def test_kill_9_leaves_whole_writes(vault, path):
    for attempt in range(3):
        process = writer(path, f"killed-{attempt}", 100_000)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05 + 0.07 * attempt)
        process.send_signal(signal.SIGKILL)
        acknowledged = [line for line in process.stdout if line.endswith("\n")]
        process.wait()
        kept = [n for n in names(vault) if n.startswith(f"killed-{attempt}")]
        pairs = len(kept) // 2
        assert kept == [
            f"killed-{attempt}-{i}-{half}" for i in range(pairs) for half in "ab"
        ]
        assert pairs >= 1 + len(acknowledged)  # what was reported done is there
    assert vault.check() == len(list(vault.records("item")))


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(Vault.erase, "__defaults__", (0.05,))


def reader(path: Path) -> sqlite3.Connection:
    """Another process in the middle of reading."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT COUNT(*) FROM records").fetchone()
    return other


def there(path: Path, traces: list[bytes]) -> list[bool]:
    whole = b"".join(file.read_bytes() for file in path.parent.iterdir())
    return [trace in whole for trace in traces]


@pytest.mark.parametrize("how", ["whole", "some", "rewrapped"])
@pytest.mark.parametrize("later", ["check", "open", "forget"])
def test_an_erasure_that_did_not_complete_is_said_and_made_up_for(
    vault, path, hasty, how, later
):
    traces = sealed_and_wrapped(path)[:4]
    if how == "rewrapped":
        traces = traces[1::2]
    other, key = reader(path), OTHER if how == "rewrapped" else KEY
    with pytest.raises(ErasureError, match=r"can no longer be read.*vault check"):
        if how == "whole":
            vault.forget(MAIL)
        elif how == "some":
            vault.forget_some(MAIL, "item", ["a", "b"])
        else:
            vault.rewrap(OTHER)
    assert names(vault) == (["a", "b", "c"] if how == "rewrapped" else ["c"])
    assert any(there(path, traces))
    with pytest.raises(ErasureError):
        vault.check()
    Vault.open(
        path, key
    ).close()  # whoever only opens it is not kept waiting, or refused
    assert any(there(path, traces))
    vault.put("item", [record("e")], NEW)  # and it is not forgotten by writing
    other.close()
    if later == "check":
        vault.check()
    elif later == "forget":
        vault.forget(NEW)
    else:
        Vault.open(path, key).close()
    assert there(path, traces) == [False] * len(traces)


def test_a_kill_between_deleting_and_erasing_is_made_up_for(vault, path, monkeypatch):
    traces = sealed_and_wrapped(path)[:4]

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Vault, "erase", killed)
        with pytest.raises(KeyboardInterrupt):
            vault.forget(MAIL)
    assert any(there(path, traces))
    Vault.open(path, KEY).close()
    assert there(path, traces) == [False] * 4


AS_NOBODY = """
import os, sys
from pathlib import Path
from idiolect.client.owner.keys import RandomKey
from idiolect.client.owner.records import Record, Source
from idiolect.client.owner.vault import IdiolectError, Vault
if os.geteuid() == 0:  # whom no mode keeps out
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
try:
    with Vault.open(Path(sys.argv[1]), RandomKey(bytes(range(32)))) as vault:
        vault.put("item", [Record("d", b"")], Source("import", "mail"))
except IdiolectError as error:
    print(type(error).__name__, error)
"""


def as_nobody(path: Path) -> str:
    command = [sys.executable, "-c", AS_NOBODY, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def open_to_all(path: Path, below: Path) -> None:
    for folder in path.parents:
        if folder == below:
            break
        folder.chmod(0o755)


@pytest.mark.process
@pytest.mark.parametrize("what", ["file", "folder", "hidden"])
def test_a_read_only_vault_is_not_called_damaged(vault, path, what):
    vault.close()
    open_to_all(path, Path("/tmp"))
    path.chmod(0o444 if what == "file" else 0o666)
    path.parent.chmod({"file": 0o777, "folder": 0o555, "hidden": 0o000}[what])
    said = as_nobody(path)
    path.parent.chmod(0o700)
    assert said.startswith("IdiolectError") and "damaged" not in said
    assert ("read-only" in said) or ("folder" in said and "for you" in said)


def test_a_locked_vault_is_not_called_damaged(vault, path, monkeypatch):
    vault.close()
    monkeypatch.setattr(database, "BUSY", 0.01)
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("PRAGMA locking_mode = EXCLUSIVE")
    blocker.execute("BEGIN EXCLUSIVE")
    blocker.execute("UPDATE header SET value = value")
    with pytest.raises(IdiolectError, match="another process has locked it") as error:
        Vault.open(path, KEY)
    assert not isinstance(error.value, DamagedError)
    blocker.close()
    assert opened_and_checked(path) == ["a", "b", "c"]


def test_a_full_disk_is_named_and_changes_nothing(vault, path):
    pages = vault._database.execute("PRAGMA page_count").fetchone()[0]
    vault._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(IdiolectError, match="disk is full: nothing was changed"):
        vault.put("adapter", [Record("x", os.urandom(500_000))], TRAINED)
    vault._database.execute("PRAGMA max_page_count = 100000")
    assert vault.sources() == [MAIL, NOTES] and vault.check() == 3


FULL = """
import sys
from pathlib import Path
from idiolect.client.owner.keys import RandomKey
from idiolect.client.owner.vault import IdiolectError, Vault
from idiolect.common.files import write_atomically, write_new
place = Path(sys.argv[1])
with (place / "filler").open("wb", buffering=0) as stream:
    try:
        while True:
            stream.write(bytes(4096))
    except OSError:
        pass
try:
    Vault.create(place / "vault.db", RandomKey(bytes(32)))
except IdiolectError as error:
    print(type(error).__name__, error)
for write in (write_atomically, write_new):
    try:
        write(place / "export", bytes(50_000))
    except OSError as error:
        print(error.strerror)
print(sorted(file.name for file in place.iterdir()))
"""


@pytest.mark.process
def test_a_full_disk_leaves_no_temporary_file(tmp_path):
    mount = f"mount -t tmpfs -o size=64k none {tmp_path}"
    if subprocess.run(
        ["unshare", "-m", "sh", "-c", mount], capture_output=True
    ).returncode:
        pytest.skip("a small disk cannot be mounted here")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh"]
        + [sys.executable, "-c", FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    vault, one, other, left = done.stdout.splitlines()
    assert vault.startswith("IdiolectError") and "free" in vault
    assert one == other == "No space left on device"
    assert left == "['filler']"


def test_a_vault_that_cannot_be_written_is_named(vault, monkeypatch):
    blocker = sqlite3.connect(vault.path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    vault._database.execute("PRAGMA busy_timeout = 10")
    with pytest.raises(IdiolectError, match="another process"):
        vault.put("item", [record("d")], MAIL)
    blocker.close()
    vault.put("item", [record("d")], MAIL)


# Of the file beside the log, the byte that a process locks while it empties the log.
EMPTYING = """
import fcntl, os, sys, time
file = os.open(sys.argv[1], os.O_RDWR)
fcntl.lockf(file, fcntl.LOCK_EX, 1, 121)
print("locked", flush=True)
time.sleep(1.0)
"""


@pytest.mark.process
def test_an_erasure_waits_for_another_process_that_empties_the_log_too(path, vault):
    command = [sys.executable, "-c", EMPTYING, f"{path}-shm"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        with pytest.raises(ErasureError, match="another process"):
            vault.erase(patience=0.0)
        vault.erase()
        assert other.wait() == 0
