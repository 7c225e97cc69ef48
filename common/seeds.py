"""Randomness: every draw comes from (seed, purpose, ...) and from nothing else.

Two processes, two machines, two groupings of the users: the same names give the same
numbers. Privacy noise must never come from here.
"""

import hashlib

import numpy as np


def derive(seed: int, *names: object) -> int:
    """A 63-bit seed for one purpose.

    Parameters
    ----------
    seed
        The run's seed.
    names
        What the draw is for, for example ``("batches", user.id, epoch)``. The names are
        joined unambiguously, so ``("a", "bc")`` and ``("ab", "c")`` differ.
    """
    text = "\x1f".join([str(seed), *map(str, names)])
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def numpy_generator(seed: int, *names: object) -> np.random.Generator:
    """A numpy generator for one purpose (see `derive`)."""
    return np.random.Generator(np.random.Philox(derive(seed, *names)))


def fixed_uniform(shape: tuple[int, ...], seed: int, *names: object) -> np.ndarray:
    """Uniform numbers in [-1, 1) that are the same on every machine, bit for bit.

    A library's distributions may change with its version; here each number is 24 bits of
    a SHAKE-256 stream, scaled by a power of two, so nothing is rounded. The shared
    adapter's frozen A is drawn this way, because all devices must hold the same A.

    Returns
    -------
    numpy.ndarray
        float32, of the given shape.
    """
    count = int(np.prod(shape))
    stream = hashlib.shake_256(str(derive(seed, *names)).encode()).digest(4 * count)
    bits = np.frombuffer(stream, dtype="<u4") >> 8
    return (bits.astype(np.float32) * np.float32(2.0**-23) - np.float32(1)).reshape(
        shape
    )
