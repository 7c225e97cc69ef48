"""The vault: what a device keeps, encrypted, in one SQLite file.

Every record is sealed by AES-256-GCM under the data key of its *source* (an import, a
trained adapter), with a fresh 96-bit nonce, and bound to where it stands and to the write
that put it there, by a random version:

    AAD = schema | kind | key | source | version | chunk | chunks

so a record that was changed, cut, pieced together from two versions, or put in the place
of another is named and refused. A sealed *root* (module `root`) says what all rows add up
to; so are rows that were taken out, added, or put back from an older copy. It is held
against the file when the vault is opened and whenever another process has written.

A data key is random and lies in the file wrapped (AES key wrap, RFC 3394) by the *master
key*, which is in no file: Argon2id makes it from a passphrase (RFC 9106, its second
recommended option), or the owner's keyring keeps 256 random bits. To forget a source is
to erase its data key.

The file shows how many records of which kind there are, their sizes and dates; names of
records and of sources stand in it as keyed hashes. It cannot show that the whole file was
put back to an older copy, except to a process that has seen the newer one; and what an
SSD, swap or a backup still holds is not erased by erasing it here.
"""

import contextlib
import hashlib
import hmac
import json
import os
import sqlite3
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic, sleep, time
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.keywrap import (
    InvalidUnwrap,
    aes_key_unwrap,
    aes_key_wrap,
)

from ...common.errors import IdiolectError
from ...common.files import make_folder, sync_folder
from . import root as roots
from .root import Root

SCHEMA = 2
# Types of a row of records, as `Vault._rows` returns it.
COLUMNS = [str, bytes, bytes, bytes, int, int, bytes, bytes]
# RFC 9106, section 4: 64 MiB, 3 passes; one lane, because a device may have one core.
MEMORY, PASSES, LANES = 64 * 1024, 3, 1
CHUNK = 1 << 20  # plaintext bytes sealed at once: an adapter is not one huge ciphertext
# What SQLite raises on a damaged file, whose own messages may be damaged too.
UNREADABLE = (sqlite3.DatabaseError, UnicodeDecodeError)
BUSY = 30.0  # seconds that one process waits for another's write
ERASING = 10.0  # seconds that an erasure waits for another process to end its reading

# Without an index by source: its rows are few to find, and every index has to be trusted.
TABLES = (
    "CREATE TABLE header (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    """CREATE TABLE sources (
    source BLOB PRIMARY KEY, wrapped BLOB NOT NULL, label BLOB NOT NULL, made REAL NOT NULL
) WITHOUT ROWID""",
    """CREATE TABLE records (
    number INTEGER PRIMARY KEY, kind TEXT NOT NULL, key BLOB NOT NULL,
    source BLOB NOT NULL REFERENCES sources (source), version BLOB NOT NULL,
    chunk INTEGER NOT NULL, chunks INTEGER NOT NULL, written REAL NOT NULL,
    sealed BLOB NOT NULL
)""",
    "CREATE UNIQUE INDEX by_name ON records (kind, key, chunk)",
)
# What a leaf of the root is made of.
LEAF = "number, kind, key, source, version, chunk, chunks, written"
SOURCE_LEAF = "source, wrapped, label, made"


class WrongKeyError(IdiolectError):
    """The master key does not open this vault."""


class DamagedError(IdiolectError):
    """Something in the vault is not what was written there."""


class ErasureError(IdiolectError):
    """What was deleted may still be in the file, as ciphertext."""


@dataclass(frozen=True)
class Passphrase:
    """A master key that the owner remembers."""

    text: str

    def master(self, salt: bytes) -> bytes:
        """256 bits by Argon2id of the text in NFC: keyboards differ in how they type ö."""
        return derived(unicodedata.normalize("NFC", self.text), salt)


@dataclass(frozen=True)
class RandomKey:
    """A master key of 32 random bytes, which a keyring or a credential keeps."""

    secret: bytes

    def master(self, salt: bytes) -> bytes:
        """The secret bound to the salt, so that rewrapping changes the master key."""
        if len(self.secret) != 32:
            raise IdiolectError("a vault's key must have 32 bytes.")
        return hmac.digest(self.secret, b"idiolect vault" + salt, "sha256")


Key = Passphrase | RandomKey


@dataclass(frozen=True)
class Source:
    """Where records come from: what can be forgotten at once.

    Attributes
    ----------
    kind
        ``import`` (the owner chose its name), ``device`` (settings, consents, counts: not
        made of the owner's text), ``run`` (what a federated run trained here) or
        ``adapter`` (one of the owner's own).
    name
        Among its kind; empty for the device. Whatever the name, it never means a source
        of another kind.
    """

    kind: Literal["import", "device", "run", "adapter"]
    name: str = ""


DEVICE = Source("device")


@dataclass(frozen=True)
class Record:
    """One thing that is kept.

    Attributes
    ----------
    name
        Identifies it among its kind.
    body
        What is kept.
    """

    name: str
    body: bytes


class Vault:
    """An open vault (see the module's text). Use `Vault.create` or `Vault.open`.

    Methods raise `DamagedError` where a record, a data key or the whole is not what was
    written, and `IdiolectError` where the file cannot be read or written. A write is done
    or undone as a whole; two processes wait for each other.
    """

    def __init__(
        self, path: Path, database: sqlite3.Connection, master: bytes, index: bytes
    ) -> None:
        self.path = path
        self._database = database
        self._master = master
        self._index = index
        self._leaf_key = hmac.digest(index, b"leaf", "sha256")
        self._root = Root()
        self._change: roots.Sums | None = None  # of the write in progress
        self._erasing = False
        self._trusted: int | None = None  # SQLite's data version when all was checked

    # --- opening -----------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, key: Key) -> "Vault":
        """Make an empty vault, readable by the owner alone.

        Raises
        ------
        IdiolectError
            There is a vault already, or the folder cannot be written; nothing is left.
        """
        # Made under another name: a crash leaves no vault rather than half of one.
        new = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            make_folder(path.parent)
            _remove(new)
            new.touch(mode=0o600)
            with named(path):
                master, index = _fill(new, key)
            os.link(new, path)  # fails where there is one already, unlike a rename
            sync_folder(path.parent)
        except OSError as error:
            if isinstance(error, FileExistsError) and path.exists():
                raise IdiolectError(
                    f"there is a vault at {path} already: open it, or move it away first."
                ) from None
            raise IdiolectError(
                f"no vault can be made at {path} ({error.strerror}): free space on its "
                "disk, make its folder writable, or name another place by --vault."
            ) from error
        finally:
            with contextlib.suppress(OSError):
                _remove(new)
        return cls(path, connect(path), master, index)

    @classmethod
    def open(cls, path: Path, key: Key, trusting: bool = False) -> "Vault":
        """Open a vault; one of an older schema is brought to this one first.

        Parameters
        ----------
        path, key
            Which, and what opens it.
        trusting
            Leave out the check of the whole against its root, for `repair`.

        Raises
        ------
        WrongKeyError
            The passphrase or key is not this vault's.
        DamagedError
            The file is no vault, or not as it was written last.
        IdiolectError
            There is no vault, it cannot be read or written, or a newer version of
            idiolect wrote it.
        """
        if not is_there(path):
            raise IdiolectError(
                f"there is no vault at {path}: make one with `idiolect vault init`."
            )
        database = connect(path)
        try:
            with named(path):
                if header(path, database)["schema"] == b"1":
                    _bring_up(path, database, key)
                head = header(path, database)
            master = key.master(head["salt"])
            vault = cls(path, database, master, _index(path, master, head["index"]))
            if not trusting:
                vault._finish_erasure()
        except BaseException:
            database.close()
            raise
        return vault

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def __enter__(self) -> "Vault":
        """Use it in a ``with`` block, which closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    # --- records -----------------------------------------------------------------------

    def put(self, kind: str, records: Iterable[Record], source: Source) -> None:
        """Keep records; one of the same kind and name is replaced. All or none.

        Parameters
        ----------
        kind
            For example ``item`` or ``adapter``; stands in the file in clear.
        records
            What to keep.
        source
            Where they come from: what can be forgotten at once.
        """
        with self.transaction():
            place, data_key = self._data_key(source)
            for record in records:
                key = self._hashed(kind, record.name)
                self._erase("kind = ? AND key = ?", (kind, key))
                self._seal(kind, key, place, data_key, record)

    def count_up(self, name: str, source: Source) -> int:
        """Add one to a counter; no two processes get the same number."""
        with self.transaction():
            number = int(self.get("counter", name) or b"0") + 1
            self.put("counter", [Record(name, str(number).encode())], source)
        return number

    def get(self, kind: str, name: str) -> bytes | None:
        """Return a record's body, or None if there is none."""
        key = self._hashed(kind, name)
        rows = self._rows("WHERE kind = ? AND key = ?", (kind, key))
        found = list(self._opened(rows))
        return found[0].body if found else None

    def records(self, kind: str) -> Iterator[Record]:
        """All records of a kind, in the order in which they were written."""
        return self._opened(self._rows("WHERE kind = ?", (kind,)))

    def count(self, kind: str) -> int:
        """How many records of a kind there are."""
        return self._counted("kind = ?", (kind,))

    def holds(self, kind: str, name: str) -> bool:
        """Whether there is such a record; its body is not opened."""
        found = self._counted("kind = ? AND key = ?", (kind, self._hashed(kind, name)))
        return found > 0

    def delete(self, kind: str, names: Iterable[str]) -> int:
        """Delete records; returns how many there were. See `forget` for erasure."""
        with self.transaction():
            keys = [self._hashed(kind, name) for name in names]
            return sum(self._erase("kind = ? AND key = ?", (kind, k)) for k in keys)

    # --- sources -----------------------------------------------------------------------

    def sources(self) -> list[Source]:
        """All sources, oldest first."""
        with self.reading():
            rows = self._database.execute(
                "SELECT source, label FROM sources ORDER BY made, source"
            ).fetchall()
        labels = [self._unsealed(self._index, one, _label(at)) for at, one in rows]
        return [Source(*json.loads(label)) for label in labels]

    def generation(self, source: Source) -> str:
        """What changes whenever anything of a source is forgotten; empty: it is not there.

        A source that was forgotten and made again, with the same name and the same
        records, is of another generation.
        """
        with self.reading():
            row = self._database.execute(
                "SELECT wrapped FROM sources WHERE source = ?", (self._place(source),)
            ).fetchone()
            if row is None:
                return ""
            data_key = self._unwrapped(self._place(source), row[0])
        return hmac.digest(data_key, b"generation", "sha256")[:8].hex()

    def forget(self, source: Source) -> int:
        """Erase a source: its data key, its records, and their traces in the file.

        Returns
        -------
        int
            How many records there were.

        Raises
        ------
        ErasureError
            They are deleted, but their traces are still there: see `erase`.
        """
        place = self._place(source)
        with self.transaction(erasing=True):
            count = self._erase("source = ?", (place,))
            self._drop_source(place)
        return count

    def forget_some(self, source: Source, kind: str, names: Iterable[str]) -> int:
        """Erase some records of a source: what remains is sealed anew under a new key.

        Returns
        -------
        int
            How many there were.

        Raises
        ------
        ErasureError
            They are deleted, but their traces are still there: see `erase`.
        """
        place = self._place(source)
        with self.transaction(erasing=True):
            count = self.delete(kind, names)
            rows = self._rows("WHERE records.source = ?", (place,))
            kept = list(zip(_kinds(rows), self._opened(rows), strict=True))
            self._erase("source = ?", (place,))
            self._drop_source(place)
            for one, record in kept:
                self.put(one, [record], source)
        return count

    def erase(self, patience: float = ERASING) -> None:
        """Rewrite the file without what was deleted, and empty the log beside it.

        Done at the end of every transaction that says so (`erasing`); where it could not
        be completed, the vault knows, and `open` and `check` try again.

        Parameters
        ----------
        patience
            Seconds to wait for another process that reads what was there before.

        Raises
        ------
        ErasureError
            That process went on reading, or the disk is full.
        """
        with self.reading():
            before = self._root
        try:
            with named(self.path), self._patient(patience):
                # First the log: while somebody reads, rewriting would only make it grow.
                self._empty_log(patience)
                self._database.execute("VACUUM")
                self._empty_log(patience)
        except DamagedError:
            raise
        except IdiolectError as error:
            said = why(error.__cause__) or str(error)
            raise ErasureError(
                f"what was deleted can no longer be read in the vault {self.path}, but its "
                f"encrypted traces are still in the file ({said}): end what holds the "
                "vault, or free space, and run `idiolect vault check` to erase them."
            ) from error
        if before.pending:
            with self.transaction():
                # Another process may have deleted more, and still has to erase it.
                if self._root.writes == before.writes:
                    self._root = replace(self._root, pending=False)

    def rewrap(self, key: Key) -> None:
        """Change the passphrase or key: every data key is wrapped anew, no record moves."""
        salt = os.urandom(16)
        master = key.master(salt)
        with self.transaction(erasing=True):
            query = f"SELECT {SOURCE_LEAF} FROM sources"
            for row in self._database.execute(query).fetchall():
                place, wrapped, label, made = row
                new = aes_key_wrap(master, self._unwrapped(place, wrapped))
                self._database.execute(
                    "UPDATE sources SET wrapped = ? WHERE source = ?", (new, place)
                )
                self._count(roots.SOURCES, [row], -1)
                self._count(roots.SOURCES, [(place, new, label, made)], 1)
            write_header(self._database, salt, master, self._index)
            self._master = master

    def check(self) -> int:
        """Open every record, and complete an erasure; returns how many there are.

        Raises
        ------
        DamagedError
            Names the first that is not what was written.
        ErasureError
            An erasure still cannot be completed.
        """
        with named(self.path):
            verdict = self._database.execute("PRAGMA integrity_check").fetchone()[0]
        if verdict != "ok":
            raise DamagedError(
                f"the vault {self.path} is damaged ({verdict}): {WAY_OUT}."
            )
        self._trusted = None
        self.sources()
        count = sum(1 for _ in self._opened(self._rows("", ())))
        if self._root.pending:
            self.erase()
        return count

    def repair(self) -> int:
        """Delete what cannot be opened, and believe the rest; returns how much went.

        For a damaged vault of which there is no backup (`open` it `trusting`). Records
        that were put back from an older copy cannot be told from others any more.
        """
        with named(self.path):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._reshape()
                gone = self._delete_unreadable()
                self._root = Root(pending=True, sums=self._tally())
                self._write_root()
                self._database.execute("COMMIT")
            except BaseException:
                self._undo()
                raise
        self._trusted = None
        self.erase()
        return gone

    # --- sealing -----------------------------------------------------------------------

    def _hashed(self, kind: str, name: str) -> bytes:
        text = json.dumps([kind, name]).encode()
        return hmac.digest(self._index, text, "sha256")[:16]

    def _place(self, source: Source) -> bytes:
        text = json.dumps(["source", source.kind, source.name]).encode()
        return hmac.digest(self._index, text, "sha256")[:16]

    def _data_key(self, source: Source) -> tuple[bytes, bytes]:
        """The source's place and data key, made where there is none yet.

        Read anew each time: another process may have forgotten the source since, and made
        it again under another key.
        """
        place = self._place(source)
        row = self._database.execute(
            "SELECT wrapped FROM sources WHERE source = ?", (place,)
        ).fetchone()
        if row:
            return place, self._unwrapped(place, row[0])
        data_key = os.urandom(32)
        named = json.dumps([source.kind, source.name]).encode()
        wrapped = aes_key_wrap(self._master, data_key)
        row = (place, wrapped, sealed(self._index, named, _label(place)), time())
        self._database.execute("INSERT INTO sources VALUES (?, ?, ?, ?)", row)
        self._count(roots.SOURCES, [row], 1)
        return place, data_key

    def _drop_source(self, place: bytes) -> None:
        where = "FROM sources WHERE source = ?"
        rows = self._database.execute(f"SELECT {SOURCE_LEAF} {where}", (place,))
        self._count(roots.SOURCES, rows.fetchall(), -1)
        self._database.execute(f"DELETE {where}", (place,))

    def _unwrapped(self, place: bytes, wrapped: bytes) -> bytes:
        try:
            return aes_key_unwrap(self._master, wrapped)
        except (InvalidUnwrap, TypeError):
            self._same_key()
            raise DamagedError(
                f"the vault {self.path}: the data key of source {place.hex()[:8]} is "
                f"damaged, and what it sealed with it: {WAY_OUT}."
            ) from None

    def _seal(
        self, kind: str, key: bytes, place: bytes, data_key: bytes, record: Record
    ) -> None:
        body = json.dumps(record.name).encode() + b"\n" + record.body
        parts = [body[i : i + CHUNK] for i in range(0, len(body), CHUNK)]
        version = os.urandom(16)
        rows = []
        for chunk, part in enumerate(parts):
            row = (kind, key, place, version, chunk, len(parts))
            ciphertext, now = sealed(data_key, part, _bound(*row)), time()
            number = self._database.execute(
                "INSERT INTO records (kind, key, source, version, chunk, chunks, "
                "written, sealed) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (*row, now, ciphertext),
            ).lastrowid
            rows.append((number, *row, now))
        self._count(kind, rows, 1)

    def _erase(self, where: str, values: tuple) -> int:
        """Delete rows; returns how many records they were."""
        found = self._database.execute(
            f"SELECT {LEAF} FROM records WHERE {where}", values
        )
        rows = found.fetchall()
        for row in rows:
            self._count(row[1], [row], -1)
        self._database.execute(f"DELETE FROM records WHERE {where}", values)
        return sum(row[5] == 0 for row in rows)

    def _counted(self, where: str, values: tuple) -> int:
        query = f"SELECT COUNT(*) FROM records WHERE {where} AND chunk = 0"
        with self.reading():
            return self._database.execute(query, values).fetchone()[0]

    def _rows(self, where: str, values: tuple) -> list[tuple]:
        """Chunks of records, each with its wrapped data key, as of one moment."""
        query = (
            "SELECT kind, key, records.source, version, chunk, chunks, sealed, wrapped "
            f"FROM records LEFT JOIN sources USING (source) {where} ORDER BY number"
        )
        with self.reading():
            return self._database.execute(query, values).fetchall()

    def _opened(self, rows: Sequence[tuple]) -> Iterator[Record]:
        """Open rows, and put the chunks of a record together again."""
        data_keys: dict[tuple[bytes, bytes], bytes] = {}
        at = 0
        while at < len(rows):
            kind, key, place, version, _, chunks, _, wrapped = rows[at]
            short = key.hex()[:8] if isinstance(key, bytes) else key
            name = f"record {short} of kind '{kind}'"
            if wrapped is None:
                raise self._damaged(name, "its data key is missing")
            if [type(value) for value in rows[at]] != COLUMNS:
                raise self._damaged(name, "its row was changed")
            parts = rows[at : at + max(chunks, 1)]
            if [row[:6] for row in parts] != [
                (kind, key, place, version, chunk, chunks) for chunk in range(chunks)
            ]:
                raise self._damaged(
                    name, "a part of it is missing, or of another version"
                )
            if (place, wrapped) not in data_keys:
                data_keys[place, wrapped] = self._unwrapped(place, wrapped)
            data_key = data_keys[place, wrapped]
            body = b"".join(
                self._unsealed(data_key, row[6], _bound(*row[:6]), name)
                for row in parts
            )
            head, _, rest = body.partition(b"\n")
            yield Record(json.loads(head), rest)
            at += len(parts)

    def _unsealed(
        self, key: bytes, body: bytes, where: bytes, name: str = "a source's name"
    ) -> bytes:
        try:
            return unsealed(key, body, where)
        except (InvalidTag, ValueError, TypeError):
            raise self._damaged(
                name, "it was changed, or moved from another place"
            ) from None

    def _damaged(self, name: str, why: str) -> DamagedError:
        return DamagedError(
            f"the vault {self.path}: {name} is damaged ({why}): {WAY_OUT}."
        )

    # --- the root ----------------------------------------------------------------------

    def _count(self, group: str, rows: Sequence[tuple], by: int) -> None:
        """Note rows that came or went for the root of the write in progress."""
        change = roots.tally(self._leaf_key, ((group, row) for row in rows))
        if by < 0:
            change = {name: (-one[0], -one[1]) for name, one in change.items()}
        self._change = roots.plus(self._change or {}, change)

    def _tally(self) -> dict[str, tuple[int, int]]:
        """What the rows that are there add up to."""
        find = self._database.execute
        sources = find(f"SELECT {SOURCE_LEAF} FROM sources")
        records = find(f"SELECT {LEAF} FROM records NOT INDEXED ORDER BY number")
        there = roots.tally(self._leaf_key, ((roots.SOURCES, row) for row in sources))
        return there | roots.tally(self._leaf_key, ((row[1], row) for row in records))

    def _look(self) -> None:
        """Hold everything against the root, if another process wrote since.

        Raises
        ------
        DamagedError
            It is not what was last written.
        """
        now = self._database.execute("PRAGMA data_version").fetchone()[0]
        if now == self._trusted:
            return
        head = header(self.path, self._database)
        try:
            root = roots.parsed(unsealed(self._index, head["root"], _bound("root")))
        except (KeyError, ValueError, InvalidTag):
            raise self._damaged("its root", "it was changed, or is missing") from None
        if root.writes < self._root.writes:
            raise self._damaged("the whole", "an older copy was put in its place")
        wrong = self._misshapen() or roots.difference(root.sums, self._tally())
        if wrong or self._index_lies():
            raise DamagedError(
                f"the vault {self.path} is not what was last written ("
                f"{wrong or 'its index leaves out records'}): {WAY_OUT}."
            )
        self._root, self._trusted = root, now

    def _misshapen(self) -> str:
        found = self._database.execute("SELECT sql FROM sqlite_schema").fetchall()
        shaped = sorted(str(one[0]) for one in found) == sorted(TABLES)
        return "" if shaped else "its tables were changed"

    def _index_lies(self) -> bool:
        """Whether looking a record up could miss one that is there.

        A search in a tree whose entries are all there and in order finds every one.
        """
        columns = "kind, key, chunk, number"
        by_index = self._database.execute(
            f"SELECT {columns} FROM records INDEXED BY by_name ORDER BY kind, key, chunk"
        ).fetchall()
        in_table = self._database.execute(
            f"SELECT {columns} FROM records NOT INDEXED"
        ).fetchall()
        places = self._database.execute("SELECT source FROM sources").fetchall()
        return by_index != sorted(in_table) or places != sorted(places)

    def _write_root(self) -> None:
        body = sealed(self._index, self._root.text(), _bound("root"))
        self._database.execute(
            "INSERT OR REPLACE INTO header VALUES ('root', ?)", (body,)
        )

    def _reshape(self) -> None:
        """Drop what is no part of a vault, and make the index from the table."""
        extra = self._database.execute("SELECT type, name, sql FROM sqlite_schema")
        for kind, name, sql in extra.fetchall():
            if sql not in TABLES[:-1]:
                quoted = name.replace('"', '""')
                self._database.execute(f'DROP {kind} IF EXISTS "{quoted}"')
        self._database.execute(TABLES[-1])

    def _delete_unreadable(self) -> int:
        """Delete every record that cannot be opened, and every source without a name."""
        gone = 0
        for kind, key in self._database.execute(
            "SELECT DISTINCT kind, key FROM records"
        ).fetchall():
            try:
                list(
                    self._opened(self._rows("WHERE kind = ? AND key = ?", (kind, key)))
                )
            except (DamagedError, ValueError, TypeError):
                where = "DELETE FROM records WHERE kind = ? AND key = ?"
                self._database.execute(where, (kind, key))
                gone += 1
        for place, label, wrapped in self._database.execute(
            "SELECT source, label, wrapped FROM sources"
        ).fetchall():
            try:
                self._unsealed(self._index, label, _label(place))
                self._unwrapped(place, wrapped)
            except (DamagedError, ValueError, TypeError):
                for table in ("records", "sources"):
                    where = f"DELETE FROM {table} WHERE source = ?"
                    self._database.execute(where, (place,))
        return gone

    # --- SQLite ------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self, erasing: bool = False) -> Iterator[None]:
        """Do several writes as one; they may read what was written before them.

        Parameters
        ----------
        erasing
            What is deleted in it is to be erased from the file as well (`erase`), after
            it was committed.
        """
        if self._change is not None:  # within another one, which will do it
            self._erasing = self._erasing or erasing
            yield
            return
        with self._begun("BEGIN IMMEDIATE"):
            self._same_key()
            self._change, self._erasing = {}, erasing
            before, master = self._root, self._master
            try:
                yield
                pending = self._root.pending or self._erasing
                self._root = self._root.after(self._change, pending)
                self._write_root()
                self._database.execute("COMMIT")
            except BaseException:
                self._root, self._master = before, master
                raise
            finally:
                self._change = None
        if self._erasing:
            self.erase()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Read several things as of one moment, and only what was last written."""
        if self._database.in_transaction:
            yield
            return
        with self._begun("BEGIN"):
            yield
            self._database.execute("COMMIT")

    @contextlib.contextmanager
    def _begun(self, how: str) -> Iterator[None]:
        with named(self.path):
            self._database.execute(how)
            try:
                self._look()
                yield
            except BaseException:
                self._undo()
                raise

    def _undo(self) -> None:
        if self._database.in_transaction:  # SQLite itself undoes what met a full disk
            self._database.execute("ROLLBACK")

    def _same_key(self) -> None:
        """Refuse to go on with a master key that another process has changed."""
        try:
            _index(self.path, self._master, header(self.path, self._database)["index"])
        except WrongKeyError:
            raise IdiolectError(
                f"the key of the vault {self.path} was changed meanwhile: open it again."
            ) from None

    def _finish_erasure(self) -> None:
        """Complete, if that needs no waiting, what an earlier process could not erase."""
        with self.reading():
            pending = self._root.pending
        if pending:
            with contextlib.suppress(ErasureError):
                self.erase(patience=0.0)

    @contextlib.contextmanager
    def _patient(self, seconds: float) -> Iterator[None]:
        self._database.execute(f"PRAGMA busy_timeout = {int(1000 * seconds)}")
        try:
            yield
        finally:
            self._database.execute(f"PRAGMA busy_timeout = {int(1000 * BUSY)}")

    def _empty_log(self, patience: float) -> None:
        ends = monotonic() + patience
        # SQLite waits for readers, but not for another process that empties the log too.
        while self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            if monotonic() >= ends:
                raise ErasureError("another process is reading them")
            sleep(0.05)


# --- the file --------------------------------------------------------------------------

WAY_OUT = "restore a backup, or keep what is left of it by `idiolect vault repair`"
# Of SQLite's error codes, those that say nothing about what is in the file.
REASONS = {
    sqlite3.SQLITE_READONLY_DBMOVED: "it was moved or removed while it was open",
    sqlite3.SQLITE_BUSY: "another process has locked it: try again when that has ended",
    sqlite3.SQLITE_LOCKED: "another process has locked it: try again when that has ended",
    sqlite3.SQLITE_FULL: "its disk is full: nothing was changed, free some space",
    sqlite3.SQLITE_READONLY: "the file or its folder is read-only: make both writable",
    sqlite3.SQLITE_PERM: "the file or its folder is read-only: make both writable",
    sqlite3.SQLITE_CANTOPEN: "its folder cannot be read or written: make it writable",
    sqlite3.SQLITE_IOERR: "its disk does not read or write, or is full: look after it",
}


def why(error: BaseException | None) -> str:
    """Why the file cannot be used, in words; empty if it is damaged."""
    code = getattr(error, "sqlite_errorcode", None) or 0
    return REASONS.get(code, REASONS.get(code & 0xFF, ""))


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into sentences about a vault's file."""
    try:
        yield
    except UNREADABLE as error:
        if reason := why(error):
            raise IdiolectError(
                f"the vault {path} cannot be used now: {reason}."
            ) from error
        raise DamagedError(
            f"{path} is no vault, or it is damaged ({error}): {WAY_OUT}."
        ) from error


def is_there(path: Path) -> bool:
    """Whether there is a file.

    Raises
    ------
    IdiolectError
        Its folder may not be read.
    """
    try:
        return path.is_file()
    except OSError as error:
        raise IdiolectError(
            f"the vault {path} cannot be used now ({error.strerror}): make its folder "
            "readable for you."
        ) from error


def connect(path: Path) -> sqlite3.Connection:
    """Open a vault's file, without looking into it."""
    with named(path):
        database = sqlite3.connect(path, timeout=BUSY, isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")  # a pulled plug loses nothing
            database.execute("PRAGMA secure_delete = ON")
            database.execute("PRAGMA foreign_keys = ON")
            database.execute("PRAGMA trusted_schema = OFF")
        except BaseException:
            database.close()
            raise
    return database


def _fill(new: Path, key: Key) -> tuple[bytes, bytes]:
    """Make the tables and the header of an empty vault; returns its keys."""
    salt, index = os.urandom(16), os.urandom(32)
    master = key.master(salt)
    database = sqlite3.connect(new, isolation_level=None)
    try:
        database.execute("BEGIN")
        for table in TABLES:
            database.execute(table)
        write_header(database, salt, master, index)
        Vault(new, database, master, index)._write_root()
        database.execute("COMMIT")
    finally:
        database.close()
    return master, index


def _bring_up(path: Path, database: sqlite3.Connection, key: Key) -> None:
    """Bring a vault of schema 1 to this one: in place, as a whole or not at all.

    Every record is opened as version 1 wrote it and sealed anew, under new data keys and
    the passphrase's NFC form; names that version 1 mixed up get the source they belong to.
    """
    from . import schema1

    master, index = schema1.unlock(path, header(path, database), key)
    database.execute("BEGIN IMMEDIATE")
    try:
        if (
            header(path, database)["schema"] == b"1"
        ):  # nobody else has done it meanwhile
            salt = os.urandom(16)
            vault = Vault(path, database, key.master(salt), index)
            schema1.set_aside(database)
            for table in TABLES[1:]:
                database.execute(table)
            write_header(database, salt, vault._master, index)
            vault._change = {}
            for kind, record, source in schema1.records(path, database, master, index):
                vault.put(kind, [record], source)
            schema1.drop(database)
            # What version 1 had sealed is still in the file, under its own keys.
            vault._root = Root(writes=1, pending=True, sums=vault._change)
            vault._write_root()
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _remove(new: Path) -> None:
    for beside in ("", "-journal"):
        Path(f"{new}{beside}").unlink(missing_ok=True)


def header(path: Path, database: sqlite3.Connection) -> dict[str, bytes]:
    """Read the header, whose checksum tells damage from a wrong passphrase.

    Raises
    ------
    DamagedError
        The checksum is wrong or something is missing.
    IdiolectError
        The schema is newer than this version knows, or the file cannot be read.
    """
    try:
        rows = database.execute("SELECT name, value FROM header").fetchall()
        head = {name: bytes(value) for name, value in rows}
        schema = int(head["schema"])
        whole = head["check"] == _checksum(head["salt"], head["index"])
    except (*UNREADABLE, KeyError, ValueError, TypeError) as error:
        if why(error):
            raise
        raise DamagedError(
            f"{path} is no vault, or its header is damaged: restore it from a backup."
        ) from error
    if schema > SCHEMA:
        raise IdiolectError(
            f"the vault {path} was written by a newer version of idiolect (schema "
            f"{schema}, this one knows {SCHEMA}): update idiolect."
        )
    if not whole:
        raise DamagedError(
            f"the header of the vault {path} is damaged: restore it from a backup."
        )
    return head


def write_header(
    database: sqlite3.Connection, salt: bytes, master: bytes, index: bytes
) -> None:
    """Write the header, with the index key wrapped by the master key."""
    wrapped = aes_key_wrap(master, index)
    rows = {
        "schema": str(SCHEMA).encode(),
        "salt": salt,
        "index": wrapped,
        "check": _checksum(salt, wrapped),
    }
    database.executemany(
        "INSERT OR REPLACE INTO header VALUES (?, ?)", list(rows.items())
    )


def _index(path: Path, master: bytes, wrapped: bytes) -> bytes:
    """Unwrap the key of the names' hashes, which also tells whether the key is right."""
    try:
        return aes_key_unwrap(master, wrapped)
    except InvalidUnwrap:
        raise WrongKeyError(
            f"the passphrase or key does not open the vault {path}: try again."
        ) from None


def derived(text: str, salt: bytes) -> bytes:
    """256 bits by Argon2id.

    Raises
    ------
    IdiolectError
        The text is empty, or no text.
    """
    if not text:
        raise IdiolectError("an empty passphrase protects nothing: give one.")
    try:
        secret = text.encode()
    except UnicodeEncodeError:
        raise IdiolectError(
            "the passphrase is no UTF-8 text: set the terminal to UTF-8."
        ) from None
    kdf = Argon2id(
        salt=salt, length=32, memory_cost=MEMORY, iterations=PASSES, lanes=LANES
    )
    return kdf.derive(secret)


def _checksum(salt: bytes, wrapped: bytes) -> bytes:
    return hashlib.sha256(salt + wrapped).digest()


def _bound(*place: object) -> bytes:
    """Where something sealed stands; authenticated with it."""
    parts = [part.hex() if isinstance(part, bytes) else part for part in place]
    return json.dumps([SCHEMA, *parts]).encode()


def _kinds(rows: Sequence[tuple]) -> list[str]:
    """The kind of each record among rows of chunks."""
    return [row[0] for row in rows if row[4] == 0]


def _label(place: bytes) -> bytes:
    return _bound("source", place)


def sealed(key: bytes, body: bytes, where: bytes) -> bytes:
    """Seal what stands at a place, under a fresh nonce."""
    nonce = os.urandom(12)
    return nonce + AESGCM(key).encrypt(nonce, body, where)


def unsealed(key: bytes, body: bytes, where: bytes) -> bytes:
    """Open what was sealed at a place.

    Raises
    ------
    InvalidTag
        It was not, or with another key.
    """
    return AESGCM(key).decrypt(body[:12], body[12:], where)
