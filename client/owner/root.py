"""The vault's root: a hash of all its rows, so that a missing or older row is found.

The seal of a record shows that it was written under this name in this vault. It does not
show that it is the newest of that name, or that no other record was taken out. So every row
has a *leaf*, a keyed hash of all its columns except the ciphertext (which is bound to the
row's random version). The root keeps, per group of rows, their number and the sum of their
leaves modulo 2^256: a multiset hash, which a write updates by the rows that it adds and
removes (MSet-Add-Hash of Clarke et al., ASIACRYPT 2003). The key is secret and the sums
are sealed, so only the rows that a root was made of have its sums.
"""

import hmac
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

MODULUS = 1 << 256
SOURCES = "sources"  # the group of the table of that name; a record's group is its kind
Sums = dict[str, tuple[int, int]]


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
