"""The vault: what a device keeps, encrypted, in one SQLite file.

Every record is sealed by AES-256-GCM under the data key of its *source* (an imported file,
a trained adapter), with a fresh 96-bit nonce, and bound to where it stands:

    AAD = schema | kind | key | source | chunk | chunks

so a record that was changed, cut, or put in the place of another is named and refused.
A data key is random and lies in the file wrapped (AES key wrap, RFC 3394) by the *master
key*, which is in no file: Argon2id makes it from a passphrase (RFC 9106, its second
recommended option), or the owner's keyring keeps 256 random bits. To forget a source is
to erase its data key.

The file shows how many records of which kind there are, their sizes and dates; names of
records and of sources stand in it as keyed hashes. It cannot show that whole records were
taken out, or the whole file put back to an older copy; and what an SSD, swap or a backup
still holds is not erased by erasing it here.
"""

import contextlib
import hashlib
import hmac
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.keywrap import (
    InvalidUnwrap,
    aes_key_unwrap,
    aes_key_wrap,
)

from ..common.errors import IdiolectError

SCHEMA = 2
# Types of a row of records, as `Vault._rows` returns it.
COLUMNS = [str, bytes, bytes, int, int, bytes, bytes]
# RFC 9106, section 4: 64 MiB, 3 passes; one lane, because a device may have one core.
MEMORY, PASSES, LANES = 64 * 1024, 3, 1
CHUNK = 1 << 20  # plaintext bytes sealed at once: an adapter is not one huge ciphertext
# What SQLite raises on a damaged file, whose own messages may be damaged too.
UNREADABLE = (sqlite3.DatabaseError, UnicodeDecodeError)
BUSY = 30.0  # seconds that one process waits for another's write

TABLES = """
CREATE TABLE header (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE sources (
    source BLOB PRIMARY KEY, wrapped BLOB NOT NULL, label BLOB NOT NULL, made REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE records (
    number INTEGER PRIMARY KEY, kind TEXT NOT NULL, key BLOB NOT NULL,
    source BLOB NOT NULL REFERENCES sources (source), chunk INTEGER NOT NULL,
    chunks INTEGER NOT NULL, sealed BLOB NOT NULL, written REAL NOT NULL,
    UNIQUE (kind, key, chunk)
);
CREATE INDEX by_source ON records (source);
"""


class WrongKeyError(IdiolectError):
    """The master key does not open this vault."""


class DamagedError(IdiolectError):
    """Something in the vault is not what was written there."""


@dataclass(frozen=True)
class Passphrase:
    """A master key that the owner remembers."""

    text: str

    def master(self, salt: bytes) -> bytes:
        """256 bits by Argon2id."""
        if not self.text:
            raise IdiolectError("an empty passphrase protects nothing: give one.")
        kdf = Argon2id(
            salt=salt, length=32, memory_cost=MEMORY, iterations=PASSES, lanes=LANES
        )
        return kdf.derive(self.text.encode())


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

    Methods raise `DamagedError` where a record or a data key is not what was written, and
    `IdiolectError` where the file cannot be read or written. A write is done or undone as
    a whole; two processes wait for each other.
    """

    def __init__(self, path: Path, database: sqlite3.Connection, master: bytes) -> None:
        self.path = path
        self._database = database
        self._master = master
        self._wrapped_index = _header(path, database)["index"]
        try:
            self._index = aes_key_unwrap(master, self._wrapped_index)
        except InvalidUnwrap:
            raise WrongKeyError(
                f"the passphrase or key does not open the vault {path}: try again."
            ) from None

    # --- opening -----------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, key: Key) -> "Vault":
        """Make an empty vault, readable by the owner alone.

        Raises
        ------
        IdiolectError
            There is a vault already, or the folder cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Made under another name: a crash leaves no vault rather than half of one.
        new = path.with_name(f".{path.name}.{os.getpid()}")
        new.unlink(missing_ok=True)
        new.touch(mode=0o600)
        salt = os.urandom(16)
        master = key.master(salt)
        database = sqlite3.connect(new, isolation_level=None)
        try:
            database.executescript("PRAGMA secure_delete = ON;" + TABLES)
            _write_header(database, salt, master, os.urandom(32))
        finally:
            database.close()
        try:
            os.link(new, path)  # fails where there is one already, unlike a rename
        except FileExistsError:
            raise IdiolectError(
                f"there is a vault at {path} already: open it, or move it away first."
            ) from None
        finally:
            new.unlink()
        return cls(path, _connect(path), master)

    @classmethod
    def open(cls, path: Path, key: Key) -> "Vault":
        """Open a vault.

        Raises
        ------
        WrongKeyError
            The passphrase or key is not this vault's.
        DamagedError
            The file is no vault, or its header is damaged.
        IdiolectError
            There is no vault, or a newer version of idiolect wrote it.
        """
        if not path.is_file():
            raise IdiolectError(
                f"there is no vault at {path}: make one with `idiolect vault init`."
            )
        database = _connect(path)
        try:
            header = _header(path, database)
            return cls(path, database, key.master(header["salt"]))
        except BaseException:
            database.close()
            raise

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
        with self._writing():
            self._put(kind, records, source)

    def count_up(self, name: str, source: Source) -> int:
        """Add one to a counter; no two processes get the same number."""
        with self._writing():
            number = int(self.get("counter", name) or b"0") + 1
            self._put("counter", [Record(name, str(number).encode())], source)
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
        with self._named():
            query = "SELECT COUNT(*) FROM records WHERE kind = ? AND chunk = 0"
            return self._database.execute(query, (kind,)).fetchone()[0]

    def holds(self, kind: str, name: str) -> bool:
        """Whether there is such a record; its body is not opened."""
        with self._named():
            query = "SELECT 1 FROM records WHERE kind = ? AND key = ? LIMIT 1"
            row = self._database.execute(query, (kind, self._hashed(kind, name)))
            return row.fetchone() is not None

    def delete(self, kind: str, names: Iterable[str]) -> int:
        """Delete records; returns how many there were. See `forget` for erasure."""
        with self._writing():
            return sum(self._erase(kind, self._hashed(kind, name)) for name in names)

    def sources(self) -> list[Source]:
        """All sources, oldest first."""
        with self._named():
            rows = self._database.execute(
                "SELECT source, label FROM sources ORDER BY made, source"
            ).fetchall()
        return [
            Source(
                *json.loads(
                    self._unsealed(self._index, bytes(label), _label(bytes(place)))
                )
            )
            for place, label in rows
        ]

    def forget(self, source: Source) -> int:
        """Erase a source: its data key, its records, and their traces in the file.

        Returns
        -------
        int
            How many records there were.
        """
        place = self._place(source)
        with self._writing():
            count = self._database.execute(
                "SELECT COUNT(*) FROM records WHERE source = ? AND chunk = 0", (place,)
            ).fetchone()[0]
            self._database.execute("DELETE FROM records WHERE source = ?", (place,))
            self._database.execute("DELETE FROM sources WHERE source = ?", (place,))
        self.compact()
        return count

    def forget_some(self, source: Source, kind: str, names: Iterable[str]) -> int:
        """Erase some records of a source: what remains is sealed anew under a new key.

        Returns
        -------
        int
            How many there were.
        """
        place = self._place(source)
        with self._writing():
            count = sum(self._erase(kind, self._hashed(kind, name)) for name in names)
            rows = self._rows("WHERE records.source = ?", (place,))
            kept = list(zip(_kinds(rows), self._opened(rows), strict=True))
            self._database.execute("DELETE FROM records WHERE source = ?", (place,))
            self._database.execute("DELETE FROM sources WHERE source = ?", (place,))
            for one, record in kept:
                place, data_key = self._data_key(source)
                key = self._hashed(one, record.name)
                self._seal(one, key, place, data_key, record)
        self.compact()
        return count

    def compact(self) -> None:
        """Rewrite the file without what was deleted, and empty the log beside it."""
        with self._named():
            self._database.execute("VACUUM")
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def rewrap(self, key: Key) -> None:
        """Change the passphrase or key: every data key is wrapped anew, no record moves."""
        salt = os.urandom(16)
        master = key.master(salt)
        with self._writing():
            query = "SELECT source, wrapped FROM sources"
            for place, wrapped in self._database.execute(query).fetchall():
                data_key = self._unwrapped(bytes(place), bytes(wrapped))
                self._database.execute(
                    "UPDATE sources SET wrapped = ? WHERE source = ?",
                    (aes_key_wrap(master, data_key), place),
                )
            self._wrapped_index = _write_header(
                self._database, salt, master, self._index
            )
        self._master = master
        self.compact()

    def check(self) -> int:
        """Open every record; returns how many there are.

        Raises
        ------
        DamagedError
            Names the first that is not what was written.
        """
        with self._named():
            verdict = self._database.execute("PRAGMA integrity_check").fetchone()[0]
        if verdict != "ok":
            raise DamagedError(
                f"the vault {self.path} is damaged ({verdict}): restore it from a backup."
            )
        self.sources()
        return sum(1 for _ in self._opened(self._rows("", ())))

    # --- sealing -----------------------------------------------------------------------

    def _put(self, kind: str, records: Iterable[Record], source: Source) -> None:
        place, data_key = self._data_key(source)
        for record in records:
            key = self._hashed(kind, record.name)
            self._erase(kind, key)
            self._seal(kind, key, place, data_key, record)

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
            return place, self._unwrapped(place, bytes(row[0]))
        data_key = os.urandom(32)
        wrapped = aes_key_wrap(self._master, data_key)
        named = json.dumps([source.kind, source.name]).encode()
        label = _sealed(self._index, named, _label(place))
        self._database.execute(
            "INSERT INTO sources VALUES (?, ?, ?, ?)", (place, wrapped, label, time())
        )
        return place, data_key

    def _unwrapped(self, place: bytes, wrapped: bytes) -> bytes:
        try:
            return aes_key_unwrap(self._master, wrapped)
        except InvalidUnwrap:
            self._same_key()
            raise DamagedError(
                f"the vault {self.path}: the data key of source {place.hex()[:8]} is "
                "damaged, and what it sealed with it: restore a backup."
            ) from None

    def _seal(
        self, kind: str, key: bytes, place: bytes, data_key: bytes, record: Record
    ) -> None:
        body = json.dumps(record.name).encode() + b"\n" + record.body
        parts = [body[i : i + CHUNK] for i in range(0, len(body), CHUNK)]
        for chunk, part in enumerate(parts):
            where = _bound(kind, key, place, chunk, len(parts))
            self._database.execute(
                "INSERT INTO records (kind, key, source, chunk, chunks, sealed, written)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    kind,
                    key,
                    place,
                    chunk,
                    len(parts),
                    _sealed(data_key, part, where),
                    time(),
                ),
            )

    def _erase(self, kind: str, key: bytes) -> int:
        query = "DELETE FROM records WHERE kind = ? AND key = ?"
        return min(self._database.execute(query, (kind, key)).rowcount, 1)

    def _rows(self, where: str, values: tuple) -> list[tuple]:
        """Chunks of records, each with its wrapped data key, as of one moment."""
        query = (
            "SELECT kind, key, records.source, chunk, chunks, sealed, wrapped "
            f"FROM records LEFT JOIN sources USING (source) {where} ORDER BY number"
        )
        with self._named():
            return self._database.execute(query, values).fetchall()

    def _opened(self, rows: Sequence[tuple]) -> Iterator[Record]:
        """Open rows, and put the chunks of a record together again."""
        data_keys: dict[tuple[bytes, bytes], bytes] = {}
        at = 0
        while at < len(rows):
            kind, key, place, _, chunks, _, wrapped = rows[at]
            short = key.hex()[:8] if isinstance(key, bytes) else key
            name = f"record {short} of kind '{kind}'"
            if wrapped is None:
                raise self._damaged(name, "its data key is missing")
            if [type(value) for value in rows[at]] != COLUMNS:
                raise self._damaged(name, "its row was changed")
            parts = rows[at : at + max(chunks, 1)]
            if [row[:5] for row in parts] != [
                (kind, key, place, chunk, chunks) for chunk in range(chunks)
            ]:
                raise self._damaged(name, "a part of it is missing")
            if (place, wrapped) not in data_keys:
                data_keys[place, wrapped] = self._unwrapped(place, wrapped)
            data_key = data_keys[place, wrapped]
            body = b"".join(
                self._unsealed(data_key, row[5], _bound(*row[:5]), name)
                for row in parts
            )
            head, _, rest = body.partition(b"\n")
            yield Record(json.loads(head), rest)
            at += len(parts)

    def _unsealed(
        self, key: bytes, sealed: bytes, where: bytes, name: str = "a source's name"
    ) -> bytes:
        try:
            return AESGCM(key).decrypt(sealed[:12], sealed[12:], where)
        except (InvalidTag, ValueError, TypeError):
            raise self._damaged(
                name, "it was changed, or moved from another place"
            ) from None

    def _damaged(self, name: str, why: str) -> DamagedError:
        return DamagedError(
            f"the vault {self.path}: {name} is damaged ({why}): restore a backup, or "
            "delete it."
        )

    # --- SQLite ------------------------------------------------------------------------

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Turn SQLite's errors into sentences."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise IdiolectError(
                f"the vault {self.path} cannot be used now ({error}): look whether "
                "another process holds it, and whether its disk is full or read-only."
            ) from error
        except UNREADABLE as error:
            raise DamagedError(
                f"the vault {self.path} is damaged ({error}): restore it from a backup."
            ) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with self._named():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._same_key()
                yield
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def _same_key(self) -> None:
        """Refuse to go on with a master key that another process has changed."""
        if _header(self.path, self._database)["index"] != self._wrapped_index:
            raise IdiolectError(
                f"the key of the vault {self.path} was changed meanwhile: open it again."
            )


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=BUSY, isolation_level=None)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")  # a pulled plug loses nothing
        database.execute("PRAGMA secure_delete = ON")
        database.execute("PRAGMA foreign_keys = ON")
    except UNREADABLE as error:
        database.close()
        raise DamagedError(
            f"{path} is no vault, or its first page is damaged ({error}): restore it "
            "from a backup."
        ) from error
    return database


def _header(path: Path, database: sqlite3.Connection) -> dict[str, bytes]:
    """Read the header, whose checksum tells damage from a wrong passphrase.

    Raises
    ------
    DamagedError
        The checksum is wrong or something is missing.
    IdiolectError
        The schema is newer than this version knows.
    """
    try:
        rows = database.execute("SELECT name, value FROM header").fetchall()
        header = {name: bytes(value) for name, value in rows}
        schema = int(header["schema"])
        whole = header["check"] == _checksum(header["salt"], header["index"])
    except (*UNREADABLE, KeyError, ValueError, TypeError) as error:
        raise DamagedError(
            f"{path} is no vault, or its header is damaged: restore it from a backup."
        ) from error
    if schema > SCHEMA:
        raise IdiolectError(
            f"the vault {path} was written by a newer version of idiolect (schema "
            f"{schema}, this one knows {SCHEMA}): update idiolect."
        )
    if schema < SCHEMA:
        raise IdiolectError(
            f"the vault {path} was written by an older version of idiolect (schema "
            f"{schema}, this one knows {SCHEMA}): open it with that version."
        )
    if not whole:
        raise DamagedError(
            f"the header of the vault {path} is damaged: restore it from a backup."
        )
    return header


def _write_header(
    database: sqlite3.Connection, salt: bytes, master: bytes, index: bytes
) -> bytes:
    """Write the header; returns the wrapped index key."""
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
    return wrapped


def _checksum(salt: bytes, wrapped: bytes) -> bytes:
    return hashlib.sha256(salt + wrapped).digest()


def _bound(kind: str, key: bytes, place: bytes, chunk: int, chunks: int) -> bytes:
    """Where a sealed chunk stands; authenticated with it."""
    return json.dumps([SCHEMA, kind, key.hex(), place.hex(), chunk, chunks]).encode()


def _kinds(rows: Sequence[tuple]) -> list[str]:
    """The kind of each record among rows of chunks."""
    return [row[0] for row in rows if row[3] == 0]


def _label(place: bytes) -> bytes:
    return json.dumps([SCHEMA, "source", place.hex()]).encode()


def _sealed(key: bytes, body: bytes, where: bytes) -> bytes:
    nonce = os.urandom(12)
    return nonce + AESGCM(key).encrypt(nonce, body, where)
