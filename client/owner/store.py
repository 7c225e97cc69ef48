"""An open vault's file: transactions that are checked against its root, and erasure.

The seal of a record shows that it was written under this name in this vault. It does not
show that it is the newest of that name, or that no other record was taken out. So every row
has a *leaf*, a keyed hash of all its columns except the ciphertext (which is bound to the
row's random version). The *root* keeps, per group of rows, their number and the sum of
their leaves modulo 2^256: a multiset hash, which a write updates by the rows that it adds
and removes (MSet-Add-Hash of Clarke et al., ASIACRYPT 2003). The key is secret and the sums
are sealed, so only the rows that a root was made of have its sums. The root is compared
with the file when the vault is opened and whenever another process has written: rows that
were taken out, added or put back from an older copy are refused.
"""

import contextlib
import hmac
import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from time import monotonic, sleep
from typing import Self

from cryptography.exceptions import InvalidTag

from ...common.errors import IdiolectError, refuse_if
from .database import (
    BUSY,
    LEAF,
    SOURCE_LEAF,
    TABLES,
    WAY_OUT,
    DamagedError,
    ErasureError,
    WrongKeyError,
    begun,
    header,
    named,
    unlocked,
    why,
)
from .records import bound, sealed, unsealed

ERASING = 10.0  # seconds that an erasure waits for another process to end its reading

MODULUS = 1 << 256
SOURCES = "sources"  # the group of the table of that name; a record's group is its kind
Sums = dict[str, tuple[int, int]]  # group -> rows, and the sum of their leaves


@dataclass(frozen=True)
class Root:
    """What was last written.

    Attributes
    ----------
    writes
        Transactions so far.
    pending
        Whether something was deleted whose ciphertext may still be in the file.
    sums
        Group -> how many rows it has, and the sum of their leaves.
    """

    writes: int = 0
    pending: bool = False
    sums: Sums = field(default_factory=dict)

    def text(self) -> bytes:
        """What is sealed."""
        sums = {
            name: [count, f"{total:x}"] for name, (count, total) in self.sums.items()
        }
        return json.dumps([self.writes, self.pending, sums]).encode()


def parsed(text: bytes) -> Root:
    """The root of a text that `Root.text` made."""
    writes, pending, sums = json.loads(text)
    found = {name: (count, int(total, 16)) for name, (count, total) in sums.items()}
    return Root(writes, pending, found)


def leaf(key: bytes, row: tuple) -> int:
    """The leaf of a row; columns of other types or in another order make another."""
    return int.from_bytes(hmac.digest(key, repr(row).encode(), "sha256"))


def plus(
    key: bytes, sums: Sums, rows: Iterable[tuple[str, tuple]], by: int = 1
) -> Sums:
    """Sums after rows, each with its group, came (`by` 1) or went (`by` -1)."""
    found = dict(sums)
    for group, row in rows:
        count, total = found.get(group, (0, 0))
        found[group] = count + by, (total + by * leaf(key, row)) % MODULUS
    return found


def difference(root: Sums, found: Sums) -> str:
    """In words, the first group that differs from the root; empty if none does."""
    for name in sorted({*root, *found}, key=str):
        meant, there = root.get(name, (0, 0)), found.get(name, (0, 0))
        kind = f"its records of kind '{name}'"
        what = "its list of sources" if name == SOURCES else kind
        if meant[0] != there[0]:
            return f"{what}: {there[0]} parts are there, {meant[0]} were written"
        if meant[1] != there[1]:
            return f"{what}: not all are the newest that were written"
    return ""


class Store:
    """The database of an open vault.

    Attributes
    ----------
    path
        Its file.
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
        self._sums: Sums | None = None  # in the write in progress, so far
        self._erasing = False
        self._trusted: int | None = None  # SQLite's data version when all was checked

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def __enter__(self) -> Self:
        """Use it in a ``with`` block, which closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    # --- transactions ------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self, erasing: bool = False) -> Iterator[None]:
        """Do several writes as one; they may read what was written before them.

        Parameters
        ----------
        erasing
            What is deleted in it is to be erased from the file as well (`erase`), after
            it was committed.
        """
        if self._sums is not None:  # within another one, which will do it
            self._erasing = self._erasing or erasing
            yield
            return
        with self._begun("BEGIN IMMEDIATE"):
            self._same_key()
            self._sums, self._erasing = self._root.sums, erasing
            before, master = self._root, self._master
            try:
                yield
                sums = {group: one for group, one in self._sums.items() if any(one)}
                pending = self._root.pending or self._erasing
                self._write_root(Root(self._root.writes + 1, pending, sums))
                self._database.execute("COMMIT")
            except BaseException:
                self._root, self._master = before, master
                raise
            finally:
                self._sums = None
        if self._erasing:
            self.erase()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Read several things as of one moment, and only what was last written."""
        within = self._database.in_transaction
        with contextlib.nullcontext() if within else self._begun("BEGIN"):
            yield

    @contextlib.contextmanager
    def _begun(self, how: str) -> Iterator[None]:
        with named(self.path), begun(self._database, how):
            self._check_root()
            yield

    def _same_key(self) -> None:
        """Refuse to go on with a master key that another process has changed."""
        try:
            head = header(self.path, self._database)
            unlocked(self.path, head["index"], [self._master])
        except WrongKeyError:
            raise IdiolectError(
                f"the key of the vault {self.path} was changed meanwhile: open it again."
            ) from None

    # --- the root ----------------------------------------------------------------------

    def _count(self, rows: Iterable[tuple[str, tuple]], by: int = 1) -> None:
        """Note rows that came or went for the root of the write in progress."""
        self._sums = plus(self._leaf_key, self._sums or {}, rows, by)

    def _tally(self) -> Sums:
        """What the rows that are there add up to."""
        find = self._database.execute
        sources = find(f"SELECT {SOURCE_LEAF} FROM sources")
        records = find(f"SELECT {LEAF} FROM records NOT INDEXED ORDER BY number")
        rows = chain(
            ((SOURCES, row) for row in sources),
            ((row[1], row) for row in records),
        )
        return plus(self._leaf_key, {}, rows)

    def _check_root(self) -> None:
        """Compare all rows with the root, if another process wrote since.

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
            root = parsed(unsealed(self._index, head["root"], bound("root")))
        except (KeyError, ValueError, InvalidTag):
            changed = self._damage("its root", "it was changed, or is missing")
            raise DamagedError(changed) from None
        older = self._damage("the whole", "an older copy was put in its place")
        refuse_if(root.writes < self._root.writes, older, DamagedError)
        found = self._database.execute("SELECT sql FROM sqlite_schema").fetchall()
        shaped = sorted(str(one[0]) for one in found) == sorted(TABLES)
        wrong = "" if shaped else "its tables were changed"
        wrong = wrong or difference(root.sums, self._tally())
        refuse_if(
            wrong or self._index_is_wrong(),
            f"the vault {self.path} is not what was last written ("
            f"{wrong or 'its index leaves out records'}): {WAY_OUT}.",
            DamagedError,
        )
        self._root, self._trusted = root, now

    def _index_is_wrong(self) -> bool:
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

    def _write_root(self, root: Root) -> None:
        self._root = root
        self._database.execute(
            "INSERT OR REPLACE INTO header VALUES ('root', ?)",
            (sealed(self._index, root.text(), bound("root")),),
        )

    def _damage(self, name: str, why: str) -> str:
        return f"the vault {self.path}: {name} is damaged ({why}): {WAY_OUT}."

    # --- erasure -----------------------------------------------------------------------

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
            with named(self.path), self._waiting(patience):
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

    def _finish_erasure(self) -> None:
        """Complete, if that needs no waiting, what an earlier process could not erase."""
        with self.reading():
            pending = self._root.pending
        if pending:
            with contextlib.suppress(ErasureError):
                self.erase(patience=0.0)

    @contextlib.contextmanager
    def _waiting(self, seconds: float) -> Iterator[None]:
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
