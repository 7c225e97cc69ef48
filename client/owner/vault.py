"""The vault: what a device keeps, encrypted, in one SQLite file.

Every record is sealed by AES-256-GCM under the data key of its *source* (an import, a
trained adapter), with a fresh 96-bit nonce. Its associated data bind it to its place and,
by a random version, to the write that put it there:

    AAD = schema | kind | key | source | version | chunk | chunks

A record that was changed, cut, pieced together from two versions, or put in the place of
another is named and refused. What was taken out, added or put back is found by `Store`.

A data key is random and lies in the file wrapped (AES key wrap, RFC 3394) by the *master
key* (module `keys`). To forget a source is to erase its data key.

The file shows how many records of which kind there are, their sizes and dates; names of
records and of sources are keyed hashes there. Not detected: that the whole file was
replaced by an older copy, except by a process that has seen the newer one. Not erased by
`forget`: what an SSD, swap or a backup still holds.
"""

import contextlib
import hmac
import json
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from time import time
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.keywrap import (
    InvalidUnwrap,
    aes_key_unwrap,
    aes_key_wrap,
)

from ...common.errors import IdiolectError, refuse_if
from ...common.files import make_folder, sync_folder
from . import schema1
from .database import (
    LEAF,
    SOURCE_LEAF,
    TABLES,
    WAY_OUT,
    DamagedError,
    begun,
    connect,
    header,
    is_there,
    named,
    unlocked,
    write_header,
)
from .keys import Key
from .records import DEVICE, Record, Source, bound, sealed, unsealed
from .store import SOURCES, Root, Store

# Types of a row of records, as `Vault._rows` returns it.
COLUMNS = [str, bytes, bytes, bytes, int, int, bytes, bytes]
ONE = "kind = ? AND key = ?"  # the rows of one record
CHUNK = 1 << 20  # plaintext bytes sealed at once: an adapter is not one huge ciphertext


class Vault(Store):
    """An open vault (see the module's text). Use `Vault.create` or `Vault.open`.

    Methods raise `DamagedError` where a record, a data key or the whole is not what was
    written, and `IdiolectError` where the file cannot be read or written. A write is done
    or undone as a whole; two processes wait for each other.
    """

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
        salt, index = os.urandom(16), os.urandom(32)
        master = key.master(salt)
        try:
            make_folder(path.parent)
            _remove(new)
            new.touch(mode=0o600)
            database = sqlite3.connect(new, isolation_level=None)
            with contextlib.closing(database), named(path), begun(database, "BEGIN"):
                for table in TABLES:
                    database.execute(table)
                write_header(database, salt, master, index)
                Vault(new, database, master, index)._write_root(Root())
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
        """Open a vault; one of schema 1 is brought to this schema first.

        Parameters
        ----------
        path, key
            The file, and what opens it.
        trusting
            Leave out the check against the root, for `repair`.

        Raises
        ------
        WrongKeyError
            The passphrase or key is not this vault's.
        DamagedError
            The file is not a vault, or not as it was last written.
        IdiolectError
            There is no vault, it cannot be read or written, or a newer version of
            idiolect wrote it.
        """
        refuse_if(
            not is_there(path),
            f"there is no vault at {path}: make one with `idiolect vault init`.",
        )
        database = connect(path)
        try:
            with named(path):
                if header(path, database)["schema"] == b"1":
                    _bring_up(path, database, key)
                head = header(path, database)
            keys = unlocked(path, head["index"], [key.master(head["salt"])])
            vault = cls(path, database, *keys)
            if not trusting:
                vault._finish_erasure()
        except BaseException:
            database.close()
            raise
        return vault

    # --- records -----------------------------------------------------------------------

    def put(self, kind: str, records: Iterable[Record], source: Source) -> None:
        """Keep records; one of the same kind and name is replaced. All or none.

        Parameters
        ----------
        kind
            For example ``item`` or ``adapter``; is in the file in clear.
        records
            What to keep.
        source
            Where they come from: what can be forgotten at once.
        """
        with self.transaction():
            place, data_key = self._data_key(source)
            for record in records:
                key = self._hashed(kind, record.name)
                self._erase(ONE, (kind, key))
                self._seal(kind, key, place, data_key, record)

    def note(self, name: str, value: Any) -> None:
        """Keep something of the device's own, as JSON."""
        self.put("state", [Record(name, json.dumps(value).encode())], DEVICE)

    def noted(self, name: str, otherwise: Any = None) -> Any:
        """Return what `note` kept under a name."""
        body = self.get("state", name)
        return json.loads(body) if body else otherwise

    def count_up(self, name: str, source: Source) -> int:
        """Add one to a counter; no two processes get the same number."""
        with self.transaction():
            number = int(self.get("counter", name) or b"0") + 1
            self.put("counter", [Record(name, str(number).encode())], source)
        return number

    def get(self, kind: str, name: str) -> bytes | None:
        """Return a record's body, or None if there is none."""
        found = list(self._opened(self._rows(ONE, (kind, self._hashed(kind, name)))))
        return found[0].body if found else None

    def records(self, kind: str) -> Iterator[Record]:
        """All records of a kind, in the order in which they were written."""
        return self._opened(self._rows("kind = ?", (kind,)))

    def holds(self, kind: str, name: str) -> bool:
        """Whether there is such a record; its body is not opened."""
        query = f"SELECT 1 FROM records WHERE {ONE} AND chunk = 0"
        with self.reading():
            found = self._database.execute(query, (kind, self._hashed(kind, name)))
            return found.fetchone() is not None

    def counted(self, kind: str) -> dict[Source, int]:
        """How many records of a kind each source has, in the order of their first ones.

        None is opened.
        """
        with self.reading():
            labels = dict(self._database.execute("SELECT source, label FROM sources"))
            rows = self._database.execute(
                "SELECT source, COUNT(*) FROM records NOT INDEXED "
                "WHERE kind = ? AND chunk = 0 GROUP BY source ORDER BY MIN(number)",
                (kind,),
            ).fetchall()
        return {self._source(at, labels[at]): number for at, number in rows}

    def mark(self, kind: str) -> str:
        """What is another one after every change of the records of a kind."""
        with self.reading():
            sums = self._root.sums if self._sums is None else self._sums
        count, total = sums.get(kind, (0, 0))
        return f"{count} {total:x}"

    def delete(self, kind: str, names: Iterable[str]) -> int:
        """Delete records; returns how many there were. See `forget` for erasure."""
        with self.transaction():
            return sum(self._erase(ONE, (kind, self._hashed(kind, n))) for n in names)

    # --- sources -----------------------------------------------------------------------

    def sources(self) -> list[Source]:
        """All sources, oldest first."""
        with self.reading():
            rows = self._database.execute(
                "SELECT source, label FROM sources ORDER BY made, source"
            ).fetchall()
        return [self._source(at, label) for at, label in rows]

    def generation(self, source: Source) -> str:
        """What changes whenever anything of a source is forgotten; empty: it is not there.

        A source that was forgotten and made again, with the same name and the same
        records, is of another generation.
        """
        with self.reading():
            data_key = self._known_key(self._place(source))
        if data_key is None:
            return ""
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
        with self.transaction(erasing=True):
            return self._drop(self._place(source))

    def forget_runs(self, but: Collection[str] = ()) -> None:
        """Erase what runs have trained or left here, but of the runs of these names."""
        for source in self.sources():
            if source.kind == "run" and source.name not in but:
                self.forget(source)

    def forget_some(self, source: Source, kind: str, names: Iterable[str]) -> int:
        """Erase some records of a source: what remains is sealed again under a new key.

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
            rows = self._rows("records.source = ?", (place,))
            kinds = [row[0] for row in rows if row[4] == 0]
            kept = list(zip(kinds, self._opened(rows), strict=True))
            self._drop(place)
            for one, record in kept:
                self.put(one, [record], source)
        return count

    def rewrap(self, key: Key) -> None:
        """Change the passphrase or key: data keys are wrapped again, no record moves."""
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
                self._count([(SOURCES, row)], -1)
                self._count([(SOURCES, (place, new, label, made))])
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
        refuse_if(
            verdict != "ok",
            f"the vault {self.path} is damaged ({verdict}): {WAY_OUT}.",
            DamagedError,
        )
        self._trusted = None
        self.sources()
        count = sum(1 for _ in self._opened(self._rows("TRUE", ())))
        if self._root.pending:
            self.erase()
        return count

    def repair(self) -> int:
        """Delete what cannot be opened and trust the rest; returns how many went.

        For a damaged vault without a backup (`open` it `trusting`). Records
        that were put back from an older copy cannot be told from others any more.
        """
        with named(self.path), begun(self._database, "BEGIN IMMEDIATE"):
            self._reshape()
            gone = self._delete_unreadable()
            self._write_root(Root(pending=True, sums=self._tally()))
        self._trusted = None
        self.erase()
        return gone

    # --- sealing -----------------------------------------------------------------------

    def _hashed(self, *name: str) -> bytes:
        return hmac.digest(self._index, json.dumps(name).encode(), "sha256")[:16]

    def _place(self, source: Source) -> bytes:
        return self._hashed("source", source.kind, source.name)

    def _source(self, place: bytes, label: bytes) -> Source:
        name = self._unsealed(self._index, label, bound("source", place))
        return Source(*json.loads(name))

    def _known_key(self, place: bytes) -> bytes | None:
        """The data key of a source that exists.

        Read each time: another process may have forgotten the source since, and made
        it again under another key.
        """
        query = "SELECT wrapped FROM sources WHERE source = ?"
        row = self._database.execute(query, (place,)).fetchone()
        return self._unwrapped(place, row[0]) if row else None

    def _data_key(self, source: Source) -> tuple[bytes, bytes]:
        """The source's place and data key, made if it does not exist yet."""
        place = self._place(source)
        data_key = self._known_key(place)
        if data_key is None:
            data_key = os.urandom(32)
            name = json.dumps([source.kind, source.name]).encode()
            label = sealed(self._index, name, bound("source", place))
            row = (place, aes_key_wrap(self._master, data_key), label, time())
            self._database.execute("INSERT INTO sources VALUES (?, ?, ?, ?)", row)
            self._count([(SOURCES, row)])
        return place, data_key

    def _drop(self, place: bytes) -> int:
        """Delete a source and its records; returns how many records there were."""
        count = self._erase("source = ?", (place,))
        where = "FROM sources WHERE source = ?"
        rows = self._database.execute(f"SELECT {SOURCE_LEAF} {where}", (place,))
        self._count([(SOURCES, row) for row in rows], -1)
        self._database.execute(f"DELETE {where}", (place,))
        return count

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
            ciphertext, now = sealed(data_key, part, bound(*row)), time()
            number = self._database.execute(
                "INSERT INTO records (kind, key, source, version, chunk, chunks, "
                "written, sealed) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (*row, now, ciphertext),
            ).lastrowid
            rows.append((kind, (number, *row, now)))
        self._count(rows)

    def _erase(self, where: str, values: tuple) -> int:
        """Delete rows; returns how many records they were."""
        query = f"SELECT {LEAF} FROM records WHERE {where}"
        rows = self._database.execute(query, values).fetchall()
        self._count([(row[1], row) for row in rows], -1)
        self._database.execute(f"DELETE FROM records WHERE {where}", values)
        return sum(row[5] == 0 for row in rows)

    def _rows(self, where: str, values: tuple) -> list[tuple]:
        """Chunks of records, each with its wrapped data key, as of one moment."""
        query = (
            "SELECT kind, key, records.source, version, chunk, chunks, sealed, wrapped "
            f"FROM records LEFT JOIN sources USING (source) WHERE {where} ORDER BY number"
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
            missing = self._damage(name, "its data key is missing")
            refuse_if(wrapped is None, missing, DamagedError)
            changed = self._damage(name, "its row was changed")
            refuse_if([type(v) for v in rows[at]] != COLUMNS, changed, DamagedError)
            parts = rows[at : at + max(chunks, 1)]
            refuse_if(
                [row[:6] for row in parts]
                != [(kind, key, place, version, n, chunks) for n in range(chunks)],
                self._damage(name, "a part of it is missing, or of another version"),
                DamagedError,
            )
            if (place, wrapped) not in data_keys:
                data_keys[place, wrapped] = self._unwrapped(place, wrapped)
            body = b"".join(
                self._unsealed(data_keys[place, wrapped], row[6], bound(*row[:6]), name)
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
            moved = self._damage(name, "it was changed, or moved from another place")
            raise DamagedError(moved) from None

    # --- repair ------------------------------------------------------------------------

    def _reshape(self) -> None:
        """Drop what is not part of a vault, and make the index from the table."""
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
                list(self._opened(self._rows(ONE, (kind, key))))
            except (DamagedError, ValueError, TypeError):
                query = f"DELETE FROM records WHERE {ONE}"
                self._database.execute(query, (kind, key))
                gone += 1
        for place, label, wrapped in self._database.execute(
            "SELECT source, label, wrapped FROM sources"
        ).fetchall():
            try:
                self._unsealed(self._index, label, bound("source", place))
                self._unwrapped(place, wrapped)
            except (DamagedError, ValueError, TypeError):
                for table in ("records", "sources"):
                    where = f"DELETE FROM {table} WHERE source = ?"
                    self._database.execute(where, (place,))
        return gone


# --- files -----------------------------------------------------------------------------


def _bring_up(path: Path, database: sqlite3.Connection, key: Key) -> None:
    """Bring a vault of schema 1 to this one: in place, as a whole or not at all.

    Every record is opened as version 1 wrote it and sealed again, under new data keys and
    the passphrase's NFC form; names that version 1 mixed up get the source they belong to.
    """
    master, index = schema1.unlock(path, header(path, database), key)
    with begun(database, "BEGIN IMMEDIATE"):
        # Unless another process has done it meanwhile.
        if header(path, database)["schema"] == b"1":
            salt = os.urandom(16)
            vault = Vault(path, database, key.master(salt), index)
            schema1.set_aside(database)
            for table in TABLES[1:]:
                database.execute(table)
            write_header(database, salt, vault._master, index)
            vault._sums = {}
            for kind, record, source in schema1.records(path, database, master, index):
                vault.put(kind, [record], source)
            schema1.drop(database)
            # What version 1 had sealed is still in the file, under its own keys.
            vault._write_root(Root(writes=1, pending=True, sums=vault._sums))


def _remove(new: Path) -> None:
    for beside in ("", "-journal"):
        Path(f"{new}{beside}").unlink(missing_ok=True)
