"""Sums over users of which no single one moves the result by more than its clip.

Every release with noise rests on `clipped_sum`: updates of the shared adapter, votes, and
rows of metrics.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...common.protocol.messages import Rows, Shapes
from ...common.protocol.validation import finite_rows, row_norms

# Bits of the clip, to the last of which a sum has its coordinates. Float64 has 53: it adds
# two million such numbers without rounding.
BITS = 32
# How much of the clip a row may fill. Float64 may take a norm over n coordinates for up to
# n/2 ulp less than it is; this is more than that for eight million coordinates.
MARGIN = 1 - 2.0**-30


@dataclass
class Sum:
    """Sum of users' clipped rows.

    Attributes
    ----------
    total
        Name -> float64 [...].
    users
        Whose rows it holds.
    within
        How many of the rows were shorter than the clip.
    """

    total: Rows
    users: list[str]
    within: int = 0

    def add(self, other: "Sum") -> None:
        """Add the rows of other users."""
        for name, part in other.total.items():
            self.total[name] += part
        self.users += other.users
        self.within += other.within


def nothing(shapes: Shapes) -> Sum:
    """The sum of nobody's rows."""
    return Sum({name: np.zeros(shape) for name, shape in shapes.items()}, [])


def sum_rows(users: Sequence[str], rows: Rows, clip: float) -> Sum:
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
    """
    valid = finite_rows(rows)
    total, norms = clipped_sum({name: rows[name][valid] for name in rows}, clip)
    counted = [user for user, good in zip(users, valid, strict=True) if good]
    # A row that its device clipped has the clip's length but for rounding.
    return Sum(total, counted, int((norms < clip * (1 - 1e-5)).sum()))


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


def sum_of_unit(rows: np.ndarray) -> np.ndarray:
    """Sum of rows [users, length], each clipped to L2 norm MARGIN: float64 [length].

    A vote or a row of metrics that its device rounded to float32 may be a little longer,
    and the noise is made for 1.
    """
    return clipped_sum({"rows": rows}, 1.0)[0]["rows"]


def sum_of_marks(marks: np.ndarray) -> np.ndarray:
    """How many users marked each bucket, float64 [bank]: a count, not a release."""
    return marks.sum(axis=0, dtype=np.float64)
