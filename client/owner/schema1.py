"""Vaults of schema 1, which idiolect 0.1.0 wrote before its sources had a kind.

They are only read here, once, to be brought to the present schema (`vault.Vault.open`).
There, a source was a name: an import had the owner's, the device's own records `device`,
a run's leftovers `run NAME` and a trained adapter `adapter NUMBER`; an import of such a
name shared its source with them. The kinds of the records tell them apart.
"""

import contextlib
import json
import sqlite3
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

from .database import DamagedError, unlocked
from .keys import Key, Passphrase, derived
from .records import DEVICE, Record, Source, bound, unsealed

WAY_OUT = "restore a backup; the vault stays as it is"


def unlock(path: Path, head: dict[str, bytes], key: Key) -> tuple[bytes, bytes]:
    """Return the master key and the index key.

    Version 1 took a passphrase as it was typed or stood in its file, so other forms of
    the same text are tried as well.

    Raises
    ------
    WrongKeyError
        None opens it.
    """
    salt = head["salt"]
    if isinstance(key, Passphrase):
        masters = (derived(text, salt) for text in _forms(key.text))
    else:
        masters = (secret.master(salt) for secret in (key,))
    return unlocked(path, head["index"], masters)


def _forms(text: str) -> list[str]:
    composed, apart = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    once = dict.fromkeys(one for one in (composed, text, apart) if one)
    return [*once, *(f"\ufeff{one}" for one in once)] or [text]


def set_aside(database: sqlite3.Connection) -> None:
    """Free the names of the tables."""
    database.execute("DROP INDEX by_source")
    for table in ("records", "sources"):
        database.execute(f"ALTER TABLE {table} RENAME TO old_{table}")


def drop(database: sqlite3.Connection) -> None:
    """Remove what was set aside."""
    for table in ("records", "sources"):
        database.execute(f"DROP TABLE old_{table}")


def records(
    path: Path, database: sqlite3.Connection, master: bytes, index: bytes
) -> Iterator[tuple[str, Record, Source]]:
    """All records in the order in which they were written, with their kind and source.

    Raises
    ------
    DamagedError
        One of them is not what was written.
    """
    sources: dict[bytes, tuple[str, bytes]] = {}
    for place, label, wrapped in database.execute(
        "SELECT source, label, wrapped FROM old_sources"
    ):
        with _whole(path, "the name of a source"):
            name = unsealed(index, label, bound("source", place, schema=1)).decode()
        with _whole(path, f"the data key of source {place.hex()[:8]}"):
            sources[place] = name, aes_key_unwrap(master, wrapped)
    wanted = database.execute(
        "SELECT kind, key FROM old_records WHERE chunk = 0 ORDER BY number"
    )
    for kind, key in wanted.fetchall():
        rows = database.execute(
            "SELECT kind, key, source, chunk, chunks, sealed FROM old_records "
            "WHERE kind = ? AND key = ? ORDER BY chunk",
            (kind, key),
        ).fetchall()
        with _whole(path, f"record {key.hex()[:8]} of kind '{kind}'"):
            label, data_key = sources[rows[0][2]]
            body = b"".join(_opened(rows, data_key))
        head, _, rest = body.partition(b"\n")
        record = Record(json.loads(head), rest)
        yield kind, record, _source(kind, record.name, label)
    (loose,) = database.execute(
        "SELECT COUNT(*) FROM old_records AS one WHERE NOT EXISTS (SELECT 1 FROM "
        "old_records WHERE kind = one.kind AND key = one.key AND chunk = 0)"
    ).fetchone()
    with _whole(path, "a record without a beginning"):
        if loose:
            raise ValueError("its beginning is missing")


def _opened(rows: list[tuple], data_key: bytes) -> Iterator[bytes]:
    kind, key, place, _, chunks, _ = rows[0]
    if len(rows) != chunks:
        raise ValueError("a part is missing")
    for number, row in enumerate(rows):
        if row[:5] != (kind, key, place, number, chunks):
            raise ValueError("a part is of another record")
        where = bound(kind, key, place, number, chunks, schema=1)
        yield unsealed(data_key, row[5], where)


def _source(kind: str, name: str, label: str) -> Source:
    if kind == "run" and label == "device":  # the counts of a run are the device's
        return DEVICE
    sources = {
        "item": Source("import", label),
        "adapter": Source("adapter", name),
        "run": Source("run", label.removeprefix("run ")),
    }
    return sources.get(kind, DEVICE)


@contextlib.contextmanager
def _whole(path: Path, what: str) -> Iterator[None]:
    """Turn what damage raises into a sentence about the part that is damaged."""
    try:
        yield
    except (InvalidTag, InvalidUnwrap, LookupError, ValueError, TypeError) as error:
        raise DamagedError(
            f"the vault {path} is of an older version and cannot be brought to this one, "
            f"because {what} is damaged: {WAY_OUT}."
        ) from error
