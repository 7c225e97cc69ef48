"""Rows of numbers as integers on a grid, and integers as words that are added modulo 2^w.

A sum of integers does not depend on order or grouping, and a sum of words can be masked. A
row is cut towards zero, so it never becomes longer: one user moves the sum by at most C, or
``C / unit`` in units of the grid, without any addition for rounding.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ..errors import refuse_if

WORDS = {32: "<u4", 64: "<u8"}  # bits of a word -> numpy's type of it
MOST_BITS = 32  # finer than 2^-32 of the clip is finer than what float64 adds exactly
FINEST_SHORT = 28  # finer than float32, and leaves room for eight users
TAIL = 8  # standard deviations of noise that fit into a word beside the data
# Float64 may take a norm over n coordinates for up to n/2 ulp less than it is; this is more
# than that for eight million coordinates. The same as in the sums of a run without masks.
MARGIN = 1 - 2.0**-30
# Variance of a share of the noise that no bound counts (docs/secure-noise.md).
SMOOTHING = 16
STRAY = 12  # standard deviations beyond which a sum is not a sum of rows and noise


@dataclass(frozen=True)
class Grid:
    """Which integers stand for a row.

    Attributes
    ----------
    clip
        C, the greatest L2 norm of a row; positive.
    bits
        f: the grid's unit is 2^-f times the least power of two above C.
    word
        w: sums are taken modulo 2^w, 32 or 64.
    """

    clip: float
    bits: int
    word: int = 32

    def __post_init__(self) -> None:
        """Refuse a grid on which a single row has no place."""
        refuse_if(
            not (0 < self.clip < math.inf),
            f"a clip of {self.clip} bounds nothing: use a positive number.",
        )
        refuse_if(
            self.word not in WORDS,
            f"words of {self.word} bits are not known: use 32 or 64.",
        )
        most = min(MOST_BITS, self.word - 2)
        refuse_if(
            not 1 <= self.bits <= most,
            f"a grid of {self.bits} bits does not fit into words of {self.word}: "
            f"use 1 to {most}.",
        )

    @property
    def unit(self) -> float:
        """The distance between neighbours on the grid, a power of two."""
        return 2.0 ** (math.frexp(self.clip)[1] - self.bits)

    @property
    def sensitivity(self) -> float:
        """How far one user moves a sum, in units: C / unit, at least 2^(f-1), below 2^f."""
        return math.ldexp(math.frexp(self.clip)[0], self.bits)

    @property
    def most_squares(self) -> int:
        """The greatest sum of squares of a row of integers: the floor of (C / unit)^2."""
        return math.floor(Fraction(self.sensitivity) ** 2)


def fraction_bits(most: int, z: float) -> int:
    r"""Return the finest grid on which sums with noise fit into words of 32 bits.

    The largest :math:`f \le 28` with :math:`n 2^f + 8 \sigma < 2^{31}`, where
    :math:`\sigma^2 = n (\lceil (z 2^f)^2 / n \rceil + 16)` is at least the variance of the
    sum's noise. Data never wraps around then; noise does with a chance below
    1.3e-15 per coordinate, which harms the sum and reveals nothing.

    Parameters
    ----------
    most
        n, the greatest number of rows in a sum.
    z
        Noise multiplier: standard deviation of the sum's noise over C. With several
        segments the largest.

    Raises
    ------
    IdiolectError
        Not even one bit fits, or a number is out of its range.
    """
    refuse_if(most < 1, f"a sum of {most} rows is none: use at least one.")
    refuse_if(
        not 0 <= z < math.inf,
        f"a noise multiplier of {z} is none: use zero or a positive number.",
    )
    for bits in range(FINEST_SHORT, 0, -1):
        share = math.ceil((Fraction(z) * 2**bits) ** 2 / most) + SMOOTHING
        room = 2**31 - most * 2**bits
        if room > 0 and TAIL**2 * most * share < room**2:
            return bits
    refuse_if(
        True,
        f"sums of {most} rows with noise multiplier {z:g} do not fit into 32 bits: "
        "use fewer users or less noise.",
    )
    raise AssertionError


def cut(rows: np.ndarray, norms: np.ndarray, grid: Grid) -> np.ndarray:
    r"""Clip rows and cut them towards zero to integers.

    :math:`q = \mathrm{trunc}(x \min(1, C (1 - 2^{-30}) / \|x\|) / u)`: the same integers
    that a run without masks adds up as floats.

    Parameters
    ----------
    rows
        Float [..., length].
    norms
        L2 norms of the rows, float64 [...]. An argument because a row may be several
        arrays, whose norm is taken in the order of their names.
    grid
        Clip and unit.

    Returns
    -------
    numpy.ndarray
        int64 [..., length].

    Raises
    ------
    IdiolectError
        A number is not finite, or a row is still too long, in exact integers: then the norm
        is not that of the row.
    """
    finite = np.isfinite(rows).all() and np.isfinite(norms).all()
    refuse_if(not finite, "a row has a number that is not finite: leave it out.")
    scale = np.minimum(1.0, grid.clip * MARGIN / np.maximum(norms, 1e-12))
    clipped = rows.astype(np.float64) * np.asarray(scale)[..., None]
    whole = np.trunc(clipped / grid.unit)
    refuse_if(
        whole.size and np.abs(whole).max() > grid.sensitivity,
        "a row is longer than its clip: give the norm that it has.",
    )
    integers = whole.astype(np.int64)
    for row in integers.reshape(-1, integers.shape[-1]):
        refuse_if(
            squares(row) > grid.most_squares,
            "a row is longer than its clip: give the norm that it has.",
        )
    return integers


def squares(integers: np.ndarray) -> int:
    """Sum of squares of int64 [length], each at most 2^32 in size, without rounding."""
    size = np.abs(integers).astype(np.uint64)
    high, low = size >> np.uint64(16), size & np.uint64(0xFFFF)
    return (
        (int((high * high).sum()) << 32)
        + (int((high * low).sum()) << 17)
        + int((low * low).sum())
    )


def words(integers: np.ndarray, word: int) -> np.ndarray:
    """Integers int64 as little-endian words modulo 2^w, w in 32 and 64."""
    return integers.astype(np.int64).view(np.uint64).astype(WORDS[word])


def lift(total: np.ndarray) -> np.ndarray:
    """Words as the integers next to zero that they stand for: int64, -2^(w-1) included."""
    return total.view(f"<i{total.itemsize}").astype(np.int64)


def values(integers: np.ndarray, grid: Grid) -> np.ndarray:
    """Integers in the row's own unit, float64; exact up to 2^53 units."""
    return integers.astype(np.float64) * grid.unit


def plausible(total: np.ndarray, users: int, variance: int, grid: Grid) -> bool:
    r"""Whether a lifted sum may be one of so many rows with so much noise.

    True where every :math:`|S_i| \le U 2^f + 12 \sigma` and :math:`\|S\| \le U C / u +
    1.1 \sigma \sqrt d + 12 \sigma`. That finds a wrong mask, which fills words uniformly.
    It does not find one row that is too long: the server sees no row.

    Parameters
    ----------
    total
        S, int64 [d].
    users
        U, how many rows it holds.
    variance
        Of the sum's noise, :math:`\sigma^2`, in units squared.
    grid
        Clip and unit.
    """
    sigma = math.sqrt(variance)
    numbers = total.astype(np.float64)
    longest = users * grid.sensitivity + (1.1 * math.sqrt(total.size) + STRAY) * sigma
    highest = users * 2.0**grid.bits + STRAY * sigma
    return bool(
        np.abs(numbers).max(initial=0.0) <= highest
        and np.linalg.norm(numbers) <= longest
    )
