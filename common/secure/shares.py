r"""Shamir's secret sharing over GF(2^8), with correction of wrong shares.

A secret of any length is shared byte by byte: :math:`f(0)` is the byte, the t-1 other
coefficients of f are uniform (zero allowed), and holder i has :math:`f(i)`, i = 1..k. Any
t shares give the secret; any t-1 are independent of it. Bytes are elements of the field
of 256 elements with the polynomial 0x11b, that of AES. Shares are codewords of a
Reed-Solomon code, so of `got` shares up to ``(got - t) // 2`` may be wrong (decoded by
Gao's method, which corrects as many as Berlekamp and Welch's and needs no linear system).
"""

from collections.abc import Mapping

import numpy as np

from ..errors import refuse_if
from ..privacy.noise import Source

MOST_HOLDERS = 255  # points other than 0
POLYNOMIAL = 0x11B  # x^8 + x^4 + x^3 + x + 1


def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Products of all pairs, uint8 [256, 256]; powers and logarithms to base 3."""
    numbers = np.arange(256)
    product = np.zeros((256, 256), np.int64)
    double = numbers.copy()
    for bit in range(8):
        product ^= (numbers[:, None] >> bit & 1) * double
        double = double << 1 ^ np.where(double & 0x80, POLYNOMIAL, 0)
    power = np.ones(255, np.int64)
    for i in range(1, 255):
        power[i] = product[power[i - 1], 3]
    logarithm = np.zeros(256, np.int64)
    logarithm[power] = np.arange(255)
    return product.astype(np.uint8), power.astype(np.uint8), logarithm


TIMES, POWER, LOG = _tables()
INVERSE = np.where(np.arange(256) == 0, 0, POWER[-LOG % 255]).astype(np.uint8)


def split(secret: bytes, threshold: int, holders: int, random: Source) -> np.ndarray:
    """Split a secret into shares.

    Parameters
    ----------
    secret
        Of any length.
    threshold
        t, how many shares give the secret.
    holders
        k, at most 255.
    random
        Where the coefficients come from: `t - 1` times the secret's length, highest degree
        first.

    Returns
    -------
    numpy.ndarray
        uint8 [k, length]; row i is the share of holder i + 1.

    Raises
    ------
    IdiolectError
        More holders than the field has points, or fewer than the threshold.
    """
    refuse_if(
        not 1 <= threshold <= holders <= MOST_HOLDERS,
        f"{holders} holders of whom {threshold} open cannot share a secret: "
        f"use at most {MOST_HOLDERS} holders, and a threshold from 1 to their number.",
    )
    drawn = np.frombuffer(random((threshold - 1) * len(secret)), np.uint8)
    rows = drawn.reshape(threshold - 1, len(secret))
    coefficients = np.vstack([rows, np.frombuffer(secret, np.uint8)])
    return np.stack([_value(coefficients, x) for x in range(1, holders + 1)])


def _value(coefficients: np.ndarray, x: int) -> np.ndarray:
    """Values of polynomials [degree + 1, count], highest degree first, at one point."""
    value = coefficients[0]
    for row in coefficients[1:]:
        value = TIMES[x].take(value) ^ row
    return value


def combine(
    shares: Mapping[int, bytes], threshold: int
) -> tuple[bytes, frozenset[int]]:
    """Put a secret together, and say which shares were wrong.

    Parameters
    ----------
    shares
        Holder, from 1 on -> its share; all of one length.
    threshold
        t.

    Returns
    -------
    tuple
        The secret, and the holders whose share was corrected. With more wrong shares than
        ``(got - t) // 2`` the secret may be another one: compare it with its check.

    Raises
    ------
    IdiolectError
        Fewer shares than the threshold, shares of several lengths, a holder that is none,
        or so many wrong shares that no secret fits.
    """
    refuse_if(
        len(shares) < threshold,
        f"{len(shares)} of {threshold} shares that a secret needs came: leave it out.",
    )
    refuse_if(
        not all(1 <= x <= MOST_HOLDERS for x in shares),
        f"a holder has a number from 1 to {MOST_HOLDERS}: drop the other shares.",
    )
    refuse_if(
        len({len(share) for share in shares.values()}) != 1,
        "the shares of a secret have several lengths: drop those of a wrong length.",
    )
    points = np.array(sorted(shares), np.uint8)
    table = np.stack([np.frombuffer(shares[int(x)], np.uint8) for x in points])
    wrong: frozenset[int] = frozenset()
    while True:  # once more for each column that shows holders who are wrong
        odd = _inconsistent(points, table, threshold)
        if odd is None:
            weights = _weights(points[:threshold], 0)
            return _mix(weights, table[:threshold]).tobytes(), wrong
        good = _decode(points, table[:, odd], threshold)
        most = (len(shares) - threshold) // 2 - len(wrong)
        refuse_if(
            good is None or (~good).sum() > most,
            f"of {len(shares)} shares more than {(len(shares) - threshold) // 2} are "
            "wrong, and the secret cannot be told: leave it out.",
        )
        assert good is not None
        wrong |= {int(x) for x in points[~good]}
        points, table = points[good], table[good]


def _inconsistent(points: np.ndarray, table: np.ndarray, threshold: int) -> int | None:
    """Return a column that no polynomial of degree below the threshold goes through."""
    for x, row in zip(points[threshold:], table[threshold:], strict=True):
        weights = _weights(points[:threshold], int(x))
        differs = _mix(weights, table[:threshold]) != row
        if differs.any():
            return int(differs.argmax())
    return None


def _weights(points: np.ndarray, x: int) -> np.ndarray:
    """Lagrange weights uint8 [t]: the value at x is the mix of the values at the points."""
    over = LOG[points[:, None] ^ points].sum(1)  # of a point and itself: 0
    to = LOG[points ^ np.uint8(x)]
    return POWER[(to.sum() - to - over) % 255]


def _mix(weights: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Sum of rows uint8 [t, length], each times its weight."""
    return np.bitwise_xor.reduce(TIMES[weights[:, None], table], axis=0)


# --- one column with errors: polynomials with the lowest degree first -------------------


def _decode(
    points: np.ndarray, column: np.ndarray, threshold: int
) -> np.ndarray | None:
    """Return which values lie on the polynomial that most do; None: on none (Gao 2003).

    The Euclidean algorithm on the polynomial that is zero at all points and the one through
    all values, stopped at degree ``(got + t) / 2``, gives the wanted polynomial times the
    locator of the errors, and the locator.
    """
    got = len(points)
    zeros = np.array([1], np.uint8)
    through = np.zeros(1, np.uint8)
    for x, y in zip(points, column, strict=True):  # Newton's interpolation
        gap = y ^ _at(through, int(x))
        factor = TIMES[gap, INVERSE[_at(zeros, int(x))]]
        through = _plus(through, TIMES[factor][zeros])
        zeros = _plus(np.append(np.uint8(0), zeros), TIMES[x][zeros])
    before, after = zeros, through
    locator_before, locator = np.zeros(1, np.uint8), np.ones(1, np.uint8)
    while 2 * _degree(after) >= got + threshold:
        quotient, rest = _divided(before, after)
        before, after = after, rest
        following = _plus(locator_before, _product(quotient, locator))
        locator_before, locator = locator, following
    found, rest = _divided(after, locator)
    if rest.any() or _degree(found) >= threshold:
        return None
    return np.array([_at(found, int(x)) for x in points], np.uint8) == column


def _at(polynomial: np.ndarray, x: int) -> np.uint8:
    return _value(polynomial[::-1, None], x)[0]


def _degree(polynomial: np.ndarray) -> int:
    """Return the degree; -1 for zero."""
    used = np.flatnonzero(polynomial)
    return int(used[-1]) if used.size else -1


def _plus(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    total = np.zeros(max(len(a), len(b)), np.uint8)
    total[: len(a)] ^= a
    total[: len(b)] ^= b
    return total


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    total = np.zeros(len(a) + len(b) - 1, np.uint8)
    for i, factor in enumerate(a):
        total[i : i + len(b)] ^= TIMES[factor][b]
    return total


def _divided(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quotient and rest of two polynomials, the second not zero."""
    rest, degree = a.copy(), _degree(b)
    quotient = np.zeros(max(len(a) - degree, 1), np.uint8)
    lead = INVERSE[b[degree]]
    for i in range(_degree(a) - degree, -1, -1):
        quotient[i] = TIMES[rest[i + degree], lead]
        rest[i : i + degree + 1] ^= TIMES[quotient[i]][b[: degree + 1]]
    return quotient, rest
