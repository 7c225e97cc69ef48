"""Who masks with whom, who holds whose shares, and how many must answer.

The graph is drawn from the plan's hash, so all parties draw the same and the server
chooses it only by choosing a plan. Every cycle orders the cohort at random, and a
member's neighbours are those before and after it. With few members everybody is
everybody's neighbour.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ..errors import refuse_if
from .masks import KEY, expanded, keystream

COMPLETE = 129  # up to this many members everybody masks with everybody
ALL_HOLD = (
    255  # up to this many members everybody else holds a share (less than 256 points)
)
MASK_CYCLES = 64
HOLDER_CYCLES = 127  # of which the first 64 are those of the masks: at most 254 holders
FEWEST = 3  # in a sum of two, each knows the other's row
_LEAST = Fraction(35, 100)  # of the mask neighbours must be counted, in a sparse graph


@dataclass(frozen=True)
class Graph:
    """Neighbours by place in the cohort, 0..n-1.

    Attributes
    ----------
    masks
        Member -> whom it shares a mask with, ascending. Symmetric.
    holders
        Member -> who holds shares of its secrets, ascending; its mask neighbours are among
        them. Holder number i of a member has the share at point i + 1. Symmetric.
    """

    masks: tuple[tuple[int, ...], ...]
    holders: tuple[tuple[int, ...], ...]


def cycle(seed: bytes, number: int, members: int) -> np.ndarray:
    """Order the members at random: int64 [n]; the last is a neighbour of the first."""
    key = expanded(seed, b"cycle" + number.to_bytes(4, "big"), KEY)
    return np.argsort(np.frombuffer(keystream(key)(8 * members), "<u8"), kind="stable")


def beside(seed: bytes, cycles: int, members: int) -> np.ndarray:
    """Neighbours of every member in the first cycles, int64 [n, 2 cycles].

    In each cycle first the member after, then the member before.
    """
    found = np.empty((2 * cycles, members), np.int64)
    for number in range(cycles):
        order = cycle(seed, number, members)
        found[2 * number, order] = np.roll(order, -1)
        found[2 * number + 1, order] = np.roll(order, 1)
    return found.T


def graph(plan: bytes, members: int) -> Graph:
    """Draw the graph of a plan.

    Parameters
    ----------
    plan
        P, the plan's hash.
    members
        n, at least 3.
    """
    _refuse_few(members)
    everybody = tuple(
        tuple(j for j in range(members) if j != i)
        for i in range(members if members <= ALL_HOLD else 0)
    )
    if members <= COMPLETE:
        return Graph(everybody, everybody)
    few = members <= ALL_HOLD
    found = beside(plan, MASK_CYCLES if few else HOLDER_CYCLES, members)
    masks = _united(found[:, : 2 * MASK_CYCLES])
    return Graph(masks, everybody if few else _united(found))


def _united(found: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """Each row of neighbours in ascending order, without repetition."""
    ordered = np.sort(found, axis=1)
    new = np.diff(ordered, axis=1, prepend=-1) != 0
    return tuple(
        tuple(row[first].tolist()) for row, first in zip(ordered, new, strict=True)
    )


def _refuse_few(members: int) -> None:
    refuse_if(
        members < FEWEST,
        f"a sum of {members} members hides nobody: ask at least {FEWEST}.",
    )


def threshold(holders: int) -> int:
    """t, how many of k holders open a row: more than two fifths of them."""
    return 2 * holders // 5 + 1


def colluding(share: float, members: int) -> int:
    """Return how many of n members may work with the server, rounded down."""
    refuse_if(
        not 0 <= share < 1,
        f"a colluding share of {share} is none: use a number from 0 to below 1.",
    )
    return math.floor(Fraction(str(share)) * members)


def signers(members: int, corrupt: int) -> int:
    """How many members must sign who is counted.

    More than half of all and half of the corrupt ones: for a second set an honest member
    would have to sign twice.
    """
    return (members + corrupt) // 2 + 1


def fewest_neighbours(members: int, degree: int) -> int:
    """m, how many mask neighbours of a row must be counted before the row is opened."""
    return 1 if members <= COMPLETE else math.ceil(_LEAST * degree)


def required(members: float | Fraction, quorum: float) -> int:
    """Return how many reports a sum needs, of the members that a plan expects.

    The share ``quorum`` of them, rounded up; never fewer than 3.
    """
    return max(FEWEST, math.ceil(Fraction(str(quorum)) * Fraction(str(members))))


# --- how often the graph fails: bounds over all members, as logarithms to base 2 ----------


def tail(members: int, marked: int, drawn: int, least: int) -> float:
    """Log2 of the chance that at least so many of the drawn are marked; -inf: never.

    Hypergeometric, in exact integers.
    """
    ways = sum(
        math.comb(marked, hits) * math.comb(members - marked, drawn - hits)
        for hits in range(max(least, 0), min(marked, drawn) + 1)
    )
    return math.log2(ways) - math.log2(math.comb(members, drawn)) if ways else -math.inf


@dataclass(frozen=True)
class Odds:
    """Log2 of bounds on the chance that anything of this kind happens to any member.

    Attributes
    ----------
    unopened
        Fewer than t holders of a row are alive.
    uncounted
        Fewer than m of its mask neighbours are alive.
    exposed
        t of its holders are corrupt.
    isolated
        All its mask neighbours are corrupt or missing.
    """

    unopened: float
    uncounted: float
    exposed: float
    isolated: float


def odds(members: int, degree: int, holders: int, missing: int, corrupt: int) -> Odds:
    """Bound how often a random graph fails, by a union over its members.

    Parameters
    ----------
    members, degree, holders
        n, and the fewest mask neighbours and holders of any member.
    missing, corrupt
        How many members do not answer, and how many work with the server.
    """
    others, every = members - 1, math.log2(members)
    opening, least = threshold(holders), fewest_neighbours(members, degree)
    gone = min(missing + corrupt, others)
    return Odds(
        unopened=every + tail(others, missing, holders, holders - opening + 1),
        uncounted=every + tail(others, missing, degree, degree - least + 1),
        exposed=every + tail(others, corrupt, holders, opening),
        isolated=every + tail(others, gone, degree, degree),
    )
