r"""One release in integers: what a member sends, and what a server makes of the sum.

A member clips its row, cuts it to integers and adds its own share of the noise. Rows are
added modulo :math:`2^w`. The server reads the sum as integers, adds the noise of those who
are missing, and publishes that. Masks come between, or not: a simulation adds rows without
them (``secagg.mode=sum``), and the integers are the same.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..config import Config
from ..errors import refuse_if
from ..privacy.noise import Source, source
from .accounting import share_variance, top_up
from .discrete import discrete_gaussian
from .grid import Grid, cut, fraction_bits, lift, plausible, values, words
from .masks import fresh
from .secure import LeftOut

# A row that its device clipped has the clip's length but for rounding.
SHORT = 1 - 1e-5
EXACT = 32, 64  # bits of the grid and of a word where there is no noise


@dataclass(frozen=True)
class Terms:
    """What all members of a release know of its sum.

    Attributes
    ----------
    grid
        Which integers stand for a row.
    variance
        v, of each member's share of the noise on a coordinate, in units squared.
    most
        n, the greatest number of rows.
    required
        r, the fewest rows of which a sum is published.
    z, bit_z
        Noise multipliers of what is published, of the row and of its clip bit; None: a row
        has no clip bit.
    bit_variance
        Of each member's share of the noise on the clip bit, in units of `bit_grid` squared;
        None: as `bit_z`.
    """

    grid: Grid
    variance: int
    most: int
    required: int
    z: float
    bit_z: float | None = None
    bit_variance: int | None = None

    @property
    def bit_grid(self) -> Grid:
        """The grid of the clip bit, which is 1/2 or -1/2."""
        return Grid(0.5, self.grid.bits, self.grid.word)

    @property
    def bits(self) -> int:
        """How many words follow those of the row: 1 where there is a clip bit."""
        return int(self.bit_variance is not None)


@dataclass(frozen=True)
class Integers:
    """How the rows of one release are added up with ``secagg.mode=sum``.

    Attributes
    ----------
    terms
        What every user knows of the sum.
    share
        User -> where the bytes of the user's own share of the noise come from.
    """

    terms: Terms
    share: Callable[[str], Source]


def terms(
    clip: float, z: float, bit_z: float | None, most: int, required: int
) -> Terms:
    r"""Return the terms of a release.

    Without noise: 64-bit words and units of :math:`2^{-32}` of the clip's power of two, so
    that the sum has the bits of a sum in float64. With noise: 32-bit words and the finest
    grid that fits (`grid.fraction_bits`).

    Parameters
    ----------
    clip
        C, the greatest L2 norm of a row.
    z, bit_z
        Noise multipliers of what is published, of the row and of the clip bit; None: there
        is no clip bit.
    most, required
        n and r.

    Raises
    ------
    IdiolectError
        Sums with this noise do not fit into a word.
    """
    noisy = max(z, bit_z or 0.0)
    bits, word = (fraction_bits(most, noisy), 32) if noisy else EXACT
    grid = Grid(clip, bits, word)
    bit_variance = None
    if bit_z is not None:
        bit_variance = share_variance(bit_z, Grid(0.5, bits, word).sensitivity, most)
    share = share_variance(z, grid.sensitivity, most)
    return Terms(grid, share, most, required, z, bit_z, bit_variance)


def share_of(config: Config, release: str, user: str) -> Source:
    """Where a user's share of the noise comes from; a user's own, wherever it lives."""
    if config.privacy.seeded:  # simulations only
        return source(True, config.seed, release, "share", user)
    return fresh()


def noisy(row: np.ndarray, norm: float, known: Terms, random: Source) -> np.ndarray:
    """Return a row on the grid with its share of the noise: int64 [length, and a clip bit].

    Parameters
    ----------
    row
        Float [length], finite.
    norm
        Its L2 norm, as `grid.cut` takes it.
    known
        Of the release.
    random
        Where the member's own share of the noise comes from; `masks.fresh` in use.
    """
    integers = cut(row, np.asarray(norm), known.grid)
    integers += discrete_gaussian(row.size, known.variance, random)
    if known.bit_variance is not None:
        half = 1 << (known.grid.bits - 1)
        bit = half if norm < known.grid.clip * SHORT else -half
        noise = discrete_gaussian(1, known.bit_variance, random)
        integers = np.append(integers, bit + noise)
    return integers


def report(row: np.ndarray, norm: float, known: Terms, random: Source) -> np.ndarray:
    """Return what a member sends before masks: words; as `noisy`."""
    return words(noisy(row, norm, known, random), known.grid.word)


@dataclass(frozen=True)
class Opened:
    """A sum as the server sees it, before its own noise.

    Attributes
    ----------
    total
        Float64 [length], exact.
    bit
        Of the clip bits, each 1/2 or -1/2; None: there are none.
    """

    total: np.ndarray
    bit: float | None


def opened(total: np.ndarray, users: int, known: Terms) -> Opened:
    """Read a sum of reports, and check that it may be one.

    Parameters
    ----------
    total
        Words [length, and one of a clip bit], added modulo 2^w.
    users
        How many rows it holds.
    known
        Of the release.

    Raises
    ------
    LeftOut
        Fewer rows than required, or a sum that rows and noise cannot have
        (`grid.plausible`). The release is paid for all the same.
    """
    refuse_if(
        users < known.required,
        f"{users} rows came, and a sum needs {known.required}: the release is left out.",
        LeftOut,
    )
    whole = lift(total)
    cutting = whole.size - known.bits
    row, bit = whole[:cutting], whole[cutting:]
    for part, variance, grid in (
        (row, known.variance, known.grid),
        (bit, known.bit_variance or 0, known.bit_grid),
    ):
        refuse_if(
            not plausible(part, users, users * variance, grid),
            f"a sum of {users} rows is longer than rows and noise can make it: the "
            "release is left out.",
            LeftOut,
        )
    centred = float(values(bit, known.bit_grid)[0]) if known.bits else None
    return Opened(values(row, known.grid), centred)


def missing_noise(
    shape: tuple[int, ...], users: int, known: Terms, random: Source
) -> np.ndarray:
    """Draw the noise of those who are missing in a sum of so many rows, float64.

    With it the noise of what is published has the variance n v, whoever came
    (`accounting.top_up`).
    """
    variance = top_up(known.variance, known.most, users)
    drawn = discrete_gaussian(int(np.prod(shape)), variance, random)
    return values(drawn, known.grid).reshape(shape)


def missing_bit_noise(users: int, known: Terms, random: Source) -> float:
    """Draw the noise of those whose clip bits are missing; as `missing_noise`."""
    variance = top_up(known.bit_variance or 0, known.most, users)
    return float(values(discrete_gaussian(1, variance, random), known.bit_grid)[0])
