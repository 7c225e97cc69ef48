"""The vault's SQLite file: its tables, its header, and what SQLite's errors mean."""

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from cryptography.hazmat.primitives.keywrap import (
    InvalidUnwrap,
    aes_key_unwrap,
    aes_key_wrap,
)

from ...common.errors import IdiolectError, explained, refuse_if
from .records import SCHEMA

# What SQLite raises on a damaged file, whose own messages may be damaged too.
UNREADABLE = (sqlite3.DatabaseError, UnicodeDecodeError)
BUSY = 30.0  # seconds that one process waits for another's write
PRAGMAS = (
    "journal_mode = WAL",
    "synchronous = FULL",  # a power cut loses nothing
    "secure_delete = ON",
    "foreign_keys = ON",
    "trusted_schema = OFF",
)

# Without an index by source: its rows are few, and every index has to be checked.
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
# The columns that the root covers.
LEAF = "number, kind, key, source, version, chunk, chunks, written"
SOURCE_LEAF = "source, wrapped, label, made"

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
    sqlite3.SQLITE_IOERR: "its disk fails or is full: check the disk",
}


class WrongKeyError(IdiolectError):
    """The master key does not open this vault."""


class DamagedError(IdiolectError):
    """Something in the vault is not what was written there."""


class ErasureError(IdiolectError):
    """What was deleted may still be in the file, as ciphertext."""


def why(error: BaseException | None) -> str:
    """Why the file cannot be used, in words; empty if it is damaged."""
    code = getattr(error, "sqlite_errorcode", 0)
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
            f"{path} is not a vault, or it is damaged ({error}): {WAY_OUT}."
        ) from error


def is_there(path: Path) -> bool:
    """Whether there is a file.

    Raises
    ------
    IdiolectError
        Its folder may not be read.
    """
    what = f"the vault {path} cannot be used now"
    with explained(what, "make its folder readable for you"):
        return path.is_file()


def note_of(vault: Path) -> Path:
    """The file beside a vault that is locked while a training runs."""
    return vault.with_name(f".{vault.name}.training")


def connect(path: Path) -> sqlite3.Connection:
    """Open a vault's file, without looking into it."""
    with named(path):
        database = sqlite3.connect(path, timeout=BUSY, isolation_level=None)
        try:
            for pragma in PRAGMAS:
                database.execute(f"PRAGMA {pragma}")
        except BaseException:
            database.close()
            raise
    return database


@contextlib.contextmanager
def begun(database: sqlite3.Connection, how: str) -> Iterator[None]:
    """Begin a transaction; commit it after the block, or roll back where that fails."""
    database.execute(how)
    try:
        yield
        if database.in_transaction:
            database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # SQLite itself rolls back on a full disk
            database.execute("ROLLBACK")
        raise


# --- the header ------------------------------------------------------------------------


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
        rows = database.execute("SELECT name, value FROM header")
        head = {name: bytes(value) for name, value in rows}
        schema = int(head["schema"])
        whole = head["check"] == checksum(head["salt"], head["index"])
    except (*UNREADABLE, KeyError, ValueError, TypeError) as error:
        if why(error):
            raise
        raise DamagedError(
            f"{path} is not a vault, or its header is damaged: restore it from a backup."
        ) from error
    refuse_if(
        schema > SCHEMA,
        f"the vault {path} was written by a newer version of idiolect (schema "
        f"{schema}, this one knows {SCHEMA}): update idiolect.",
    )
    refuse_if(
        not whole,
        f"the header of the vault {path} is damaged: restore it from a backup.",
        DamagedError,
    )
    return head


def write_header(
    database: sqlite3.Connection, salt: bytes, master: bytes, index: bytes
) -> None:
    """Write the header, with the index key wrapped by the master key."""
    wrapped = aes_key_wrap(master, index)
    rows = [
        ("schema", str(SCHEMA).encode()),
        ("salt", salt),
        ("index", wrapped),
        ("check", checksum(salt, wrapped)),
    ]
    database.executemany("INSERT OR REPLACE INTO header VALUES (?, ?)", rows)


def checksum(salt: bytes, wrapped: bytes) -> bytes:
    """Of the header; not keyed."""
    return hashlib.sha256(salt + wrapped).digest()


def unlocked(
    path: Path, wrapped: bytes, masters: Iterable[bytes]
) -> tuple[bytes, bytes]:
    """The first master key that unwraps the index key, and the index key.

    Raises
    ------
    WrongKeyError
        None of them does.
    """
    for master in masters:
        with contextlib.suppress(InvalidUnwrap):
            return master, aes_key_unwrap(master, wrapped)
    raise WrongKeyError(
        f"the passphrase or key does not open the vault {path}: try again."
    )
