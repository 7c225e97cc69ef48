"""Noise and coins of the privacy mechanisms.

They come from the operating system's CSPRNG: an attacker who can predict them can subtract
the noise and see who took part. A seeded source makes a run repeatable; then it holds no
guarantee, and the ledger says so.
"""

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from ..seeds import numpy_generator

Source = Callable[[int], bytes]  # n -> n random bytes

Some = TypeVar("Some")


def source(seeded: bool, seed: int, *names: object) -> Source:
    """Return ``os.urandom``, or the seed's own bytes for one purpose."""
    if not seeded:
        return os.urandom
    return numpy_generator(seed, "privacy", *names).bytes


def uniform(count: int, random: Source) -> np.ndarray:
    """Uniform numbers in (0, 1], multiples of 2^-53, float64 [count]."""
    bits = np.frombuffer(random(8 * count), "<u8") >> np.uint64(11)
    return (bits + np.uint64(1)) * 2.0**-53


def gaussian(shape: tuple[int, ...], std: float, random: Source) -> np.ndarray:
    """Gaussian noise, float64 of the given shape.

    Box-Muller on 53-bit uniforms. The low bits of one floating-point draw can tell what
    it was added to (Mironov 2012); the mean of four draws, times two, has the same
    distribution and far more values than an attacker can enumerate (Holohan and Braghin
    2021). That mitigates the attack and does not exclude it, as an integer mechanism
    would: the privacy card lists it as assumed.

    Parameters
    ----------
    shape
        Of the result.
    std
        Standard deviation; 0 draws nothing.
    random
        Where the bits come from.
    """
    if std == 0:
        return np.zeros(shape)
    count = int(np.prod(shape))
    half = 2 * count  # Box-Muller gives two numbers for two; four are added up
    radius = np.sqrt(-2 * np.log(uniform(half, random)))
    angle = 2 * np.pi * uniform(half, random)
    draws = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return (std / 2 * draws.reshape(4, count).sum(0)).reshape(shape)


def coins(
    names: Sequence[Some], chance: float, cohort: int, random: Source
) -> tuple[Some, ...]:
    """Poisson sampling: each name by a coin of its own, in the order given.

    Parameters
    ----------
    names
        Everyone who can be reached now. That may change from round to round for any
        reason but what the users wrote.
    chance
        q. With 1 everyone is taken.
    cohort
        Where more than this many are drawn, this many of them, chosen uniformly
        (truncated Poisson); 0: no limit.
    random
        Where the bits come from.
    """
    tossed = uniform(len(names), random)
    taken = [i for i in range(len(names)) if tossed[i] <= chance]
    if cohort and len(taken) > cohort:
        order = np.argsort(uniform(len(taken), random), kind="stable")
        taken = sorted(taken[i] for i in order[:cohort])
    return tuple(names[i] for i in taken)
