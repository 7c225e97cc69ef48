"""Hashed character n-grams: features of a text that need no model."""

import zlib
from collections.abc import Sequence

import numpy as np

BUCKETS = 1 << 16
LENGTHS = (3, 4, 5)
# Columns of `hashed`: with 1,024 users are ranked about as well, in twice the time.
WIDTH = 256
LONGEST = 2000  # characters of a text that are looked at


def grams(text: str) -> dict[int, int]:
    """Bucket -> count of the character 3-, 4- and 5-grams of a text.

    The hash is CRC-32, which is the same in every process (Python's own is not).
    """
    counts: dict[int, int] = {}
    padded = f" {text[:LONGEST].strip()} "
    for n in LENGTHS:
        for start in range(len(padded) - n + 1):
            bucket = zlib.crc32(padded[start : start + n].encode()) % BUCKETS
            counts[bucket] = counts.get(bucket, 0) + 1
    return counts


def hashed(texts: Sequence[str], width: int = WIDTH) -> np.ndarray:
    """Square roots of n-gram counts, hashed to a few columns, float64 [n, width].

    Rows have length 1. The square root keeps what a text repeats from drowning the rest.
    """
    counts = np.zeros((len(texts), width))
    for row, text in enumerate(texts):
        for bucket, count in grams(text).items():
            counts[row, bucket % width] += count
    roots = np.sqrt(counts)
    return roots / np.linalg.norm(roots, axis=1, keepdims=True).clip(1e-12)
