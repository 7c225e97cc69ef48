"""Sums over users of which no single one moves the result by more than its clip.

Every release with noise rests on `clipped_sum`: updates of the shared adapter, votes, and
rows of metrics. With ``secagg.mode=sum`` it rests on `sum_words` instead: integers, to
which each user has added a share of the noise. Without noise both give the same bits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...common.protocol.messages import Rows, Shapes
from ...common.protocol.validation import finite_rows, flat_row, row_norms
from ...common.secure.grid import WORDS
from ...common.secure.rows import SHORT, Integers, opened, report

# Bits of the clip, to the last of which a sum has its coordinates. Float64 has 53: it adds
# two million such numbers without rounding.
BITS = 32
# How much of the clip a row may fill. Float64 may take a norm over n coordinates for up to
# n/2 ulp less than it is; this is more than that for eight million coordinates.
MARGIN = 1 - 2.0**-30


# Name of the words in a sum of integers that is not opened yet.
SEALED = "words"


@dataclass
class Sum:
    """Sum of users' clipped rows.

    Attributes
    ----------
    total
        Name -> float64 [...]. Of integers that are not opened: `SEALED` -> words.
    users
        Whose rows it holds.
    within
        How many of the rows were shorter than the clip; 0 for integers.
    bit
        For integers with a clip bit, opened: the sum of 1/2 for each row shorter than the
        clip and -1/2 for each other one, with the users' shares of its noise.
    """

    total: Rows
    users: list[str]
    within: int = 0
    bit: float | None = None

    def add(self, other: "Sum") -> None:
        """Add the rows of other users."""
        for name, part in other.total.items():
            self.total[name] += part
        self.users += other.users
        self.within += other.within


def nothing(shapes: Shapes, integers: Integers | None = None) -> Sum:
    """The sum of nobody's rows."""
    rows = {name: np.zeros((0, *shape)) for name, shape in shapes.items()}
    if integers:
        return Sum({SEALED: sum_words((), rows, integers)}, [])
    return Sum({name: np.zeros(shape) for name, shape in shapes.items()}, [])


def sum_rows(
    users: Sequence[str], rows: Rows, clip: float, integers: Integers | None = None
) -> Sum:
    """Add up users' rows; one that is not finite is left out.

    A device clips its own row; it is clipped again here, because a server cannot know
    that.

    Parameters
    ----------
    users
        In the order of their rows.
    rows
        Name -> [users, ...].
    clip
        C.
    integers
        How, with ``secagg.mode=sum``: then the sum is to be `unsealed`. None: as floats.
    """
    valid = finite_rows(rows)
    finite = {name: rows[name][valid] for name in rows}
    counted = [user for user, good in zip(users, valid, strict=True) if good]
    if integers:
        return Sum({SEALED: sum_words(counted, finite, integers)}, counted)
    total, norms = clipped_sum(finite, clip)
    return Sum(total, counted, int((norms < clip * SHORT).sum()))


def sum_words(users: Sequence[str], rows: Rows, integers: Integers) -> np.ndarray:
    """Sum of what each user would send before masks (`rows.report`), modulo 2^w.

    Parameters
    ----------
    users
        In the order of their rows.
    rows
        Name -> [users, ...], finite.
    integers
        How.

    Returns
    -------
    numpy.ndarray
        Words: the coordinates, array after array in the order of their names, and the clip
        bit if there is one.
    """
    known = integers.terms
    length = sum(int(np.prod(array.shape[1:])) for array in rows.values())
    total = np.zeros(length + known.bits, WORDS[known.grid.word])
    norms = row_norms(rows)
    for k, user in enumerate(users):
        total += report(flat_row(rows, k), norms[k], known, integers.share(user))
    return total


def unsealed(found: Sum, shapes: Shapes, integers: Integers | None) -> Sum:
    """Return a sum of integers as floats, as the server sees it before its own noise.

    A sum of floats stays as it is.

    Raises
    ------
    LeftOut
        It has too few rows, or is none of rows and noise.
    """
    if integers is None:
        return found
    seen = opened(found.total[SEALED], len(found.users), integers.terms)
    names = sorted(shapes)
    ends = np.cumsum([int(np.prod(shapes[name])) for name in names])
    parts = np.split(seen.total, ends[:-1])
    total = {n: part.reshape(shapes[n]) for n, part in zip(names, parts, strict=True)}
    return Sum(total, found.users, bit=seen.bit)


def clipped_sum(rows: Rows, clip: float) -> tuple[Rows, np.ndarray]:
    """Sum of the users' rows, each clipped to L2 norm `clip`, and their norms before.

    The sensitivity of the sum to one user is `clip`, in floating point too (Casacuberta
    et al. 2022): a row is scaled to a little less than `clip`, by more than float64 errs
    in its norm; each coordinate is cut, towards zero, to a multiple of 2^-32 times the
    power of two above `clip`; and float64 adds such numbers exactly. So the sum has the
    same bits in whatever groups and order the rows come.

    Parameters
    ----------
    rows
        Name -> [users, ...], finite.
    clip
        C.

    Returns
    -------
    tuple
        Name -> float64 [...], and float64 [users].
    """
    norms = row_norms(rows)
    scale = np.minimum(1.0, clip * MARGIN / np.maximum(norms, 1e-12))
    unit = 2.0 ** (math.frexp(clip)[1] - BITS)
    total: Rows = {}
    for name, array in rows.items():
        clipped = array * scale.reshape(-1, *[1] * (array.ndim - 1))
        total[name] = (np.trunc(clipped / unit) * unit).sum(0)
    return total, norms


def sum_of_unit(
    rows: np.ndarray, users: Sequence[str] = (), integers: Integers | None = None
) -> np.ndarray:
    """Sum of rows [users, length], each clipped to L2 norm MARGIN: float64 [length].

    A vote or a row of metrics that its device rounded to float32 may be a little longer,
    and the noise is made for 1. With `integers` the sum is words, which `unit_unsealed`
    makes floats of.
    """
    if integers:
        return sum_words(users, {"rows": rows}, integers)
    return clipped_sum({"rows": rows}, 1.0)[0]["rows"]


def unit_unsealed(
    total: np.ndarray, users: Sequence[str], integers: Integers | None
) -> np.ndarray:
    """Return a sum of `sum_of_unit` as floats; as `unsealed`."""
    found = Sum({SEALED: total} if integers else {"rows": total}, list(users))
    return unsealed(found, {"rows": total.shape}, integers).total["rows"]


def sum_of_marks(marks: np.ndarray) -> np.ndarray:
    """How many users marked each bucket, float64 [bank]: a count, not a release."""
    return marks.sum(axis=0, dtype=np.float64)
