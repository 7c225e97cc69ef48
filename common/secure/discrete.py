r"""Noise on the integers: an exact sampler of the discrete Gaussian.

:math:`P(x) \propto e^{-x^2 / 2v}` for all integers x. A candidate comes from a discrete
Laplace distribution and is taken with the right chance (Canonne, Kamath and Steinke 2020,
algorithm 3, with both of its coins tossed as one). No decision is rounded: where float64
and 64 random bits do not tell on which side of a chance a coin lies, more digits and more
bits are taken.
"""

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np

from ..errors import refuse_if
from ..privacy.noise import Source

BLOCK = 1 << 16  # most candidates at once: bounds memory
MOST_VARIANCE = 1 << 60  # numbers stay below 2^36, and products of two below 2^63
CLOSE = 2.0**-40  # relative; float64 errs by less in a chance of at least 2^-64
_DIGITS = 60


def _power(exponent: Fraction, digits: int) -> Decimal:
    """Return e^-x for a fraction x that is not negative, right to so many digits."""
    with localcontext() as context:
        context.prec = digits + 10
        quotient = Decimal(exponent.numerator) / Decimal(exponent.denominator)
        return (-quotient).exp()


# Word r of 64 bits stands for the least k that has r below 2^64 e^-(k + 1) no more.
_STEPS = [int(_power(Fraction(k), _DIGITS) * 2**64) for k in range(1, 46)]
_UP = np.array(_STEPS[::-1], np.uint64)


def discrete_gaussian(
    count: int, variance: int, random: Source, close: float = CLOSE
) -> np.ndarray:
    """Draw from the discrete Gaussian around zero, int64 [count].

    Parameters
    ----------
    count
        How many.
    variance
        v; the true variance is less by nothing that counts from 1 on. 0 draws nothing.
    random
        Where the bytes come from: `masks.fresh` in use, a generator's in tests.
    close
        Relative distance below which a coin is looked at with more digits. Any number gives
        the same draws in distribution; tests take a large one.

    Raises
    ------
    IdiolectError
        A variance that is negative or above 2^60.
    """
    refuse_if(
        not 0 <= variance <= MOST_VARIANCE,
        f"noise of variance {variance} is none: use 0 to 2^60.",
    )
    if variance == 0:
        return np.zeros(count, np.int64)
    found, have = [np.zeros(0, np.int64)], 0
    while have < count:
        # Somewhat less than half of the candidates are taken.
        size = min(BLOCK, 11 * (count - have) // 5 + 64)
        found.append(_candidates(size, variance, random, close))
        have += len(found[-1])
    return np.concatenate(found)[:count]


def _candidates(size: int, variance: int, random: Source, close: float) -> np.ndarray:
    """Draw so many candidates, and return those that are taken."""
    scale = math.isqrt(variance) + 1  # t of the Laplace distribution
    rest = _below(scale, size, random)  # U
    times = _geometric(size, random)  # V
    coins = np.frombuffer(random(8 * size), "<u8")
    signs = np.unpackbits(np.frombuffer(random(-(-size // 8)), np.uint8), count=size)
    value = rest + scale * times
    taken = _taken(rest, value, scale, variance, coins, random, close)
    taken &= ~((value == 0) & (signs == 1))  # zero has one sign
    return np.where(signs == 1, -value, value)[taken]


def _below(scale: int, size: int, random: Source) -> np.ndarray:
    """Uniform integers from 0 to below `scale`, int64 [size]."""
    whole = np.uint64(
        2**64 // scale * scale - 1
    )  # the last word that is as likely as all
    drawn = np.frombuffer(random(8 * size), "<u8").copy()
    while (again := np.flatnonzero(drawn > whole)).size:
        drawn[again] = np.frombuffer(random(8 * again.size), "<u8")
    return (drawn % np.uint64(scale)).astype(np.int64)


def _geometric(size: int, random: Source) -> np.ndarray:
    """Integers V with P(V >= k) = e^-k, int64 [size]."""
    drawn = np.frombuffer(random(8 * size), "<u8")
    steps = len(_UP) - np.searchsorted(_UP, drawn, side="right")
    # A word that is the whole part of a step may lie on either side of it.
    for i in np.flatnonzero(np.isin(drawn, _UP)):
        steps[i] = _exact_geometric(int(drawn[i]), random)
    return steps.astype(np.int64)


def _exact_geometric(word: int, random: Source) -> int:
    """Return V for a uniform number whose first 64 bits are given."""
    bits, k = Bits(word, random), 0
    while bits.below(Fraction(k + 1)):
        k += 1
    return k


def _taken(
    rest: np.ndarray,
    value: np.ndarray,
    scale: int,
    variance: int,
    coins: np.ndarray,
    random: Source,
    close: float,
) -> np.ndarray:
    r"""Toss a coin of chance :math:`e^{-U/t - (X - v/t)^2 / 2v}` for each candidate."""
    offset = (value - variance / scale) ** 2 / (2 * variance)
    chance = np.exp(-rest / scale - offset) * 2.0**64
    coin = coins.astype(np.float64)
    taken = coin < chance
    unclear = np.abs(coin - chance) <= close * np.maximum(coin, chance) + 2
    for i in np.flatnonzero(unclear):
        x = Fraction(int(value[i]))
        exponent = Fraction(int(rest[i]), scale)
        exponent += (x - Fraction(variance, scale)) ** 2 / (2 * variance)
        taken[i] = Bits(int(coins[i]), random).below(exponent)
    return taken


class Bits:
    """A uniform number in [0, 1) of which as many bits are drawn as are asked for."""

    def __init__(self, word: int, random: Source) -> None:
        self.number, self.count, self._random = word, 64, random

    def below(self, exponent: Fraction) -> bool:
        """Whether the number is less than e^-exponent; exact, with chance one."""
        while True:
            digits = 20 + self.count  # far more than the bits have
            chance = Fraction(_power(exponent, digits))
            error = chance / 10**digits
            low = Fraction(self.number, 2**self.count)
            if low + Fraction(1, 2**self.count) <= chance - error:
                return True
            if low >= chance + error:
                return False
            self.number = self.number << 64 | int.from_bytes(self._random(8), "little")
            self.count += 64
