"""How large the numbers of a message may be.

A number that is of the right type can still be one with which arithmetic overflows, a loop
does not end, or a comparison is never true. So each has a range, which no honest message
leaves, and is held against it before anything else is done with the message. The numbers
of a configuration have theirs in `config`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ..config import MOST_BANK, MOST_INT, MOST_RATE, MOST_USERS
from ..unlabeled.sets import Unlabeled

# Field of any message -> least and largest value of the numbers in it.
BOUNDS: dict[str, tuple[float, float]] = {
    "round": (0, 10_000),
    "clip": (0, 1000),
    "learning_rate": (0, MOST_RATE),
    "supported": (0, MOST_BANK - 1),
    "unlabeled": (-1e12, 1e12),  # weights: a noisy sum can be negative
    "nodes": (0, MOST_USERS),
    "dropped": (0, MOST_INT),
    "truncated": (0, MOST_INT),
    "seconds": (0, 1e8),
    "peak_rss_mb": (0, 1e9),
    "opened": (0, MOST_USERS),
}


def beyond(values: Mapping[str, Any]) -> str:
    """Name the first field with a number out of its range, and the range; empty: none.

    A number that is not one (NaN) is in no range.
    """
    for name, (low, high) in BOUNDS.items():
        if not all(low <= number <= high for number in _numbers(values.get(name))):
            return f"{name} must lie in [{low:g}, {high:g}]"
    return ""


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, Unlabeled):
        yield value.weight
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _numbers(entry)
    elif isinstance(value, tuple):
        for entry in value:
            yield from _numbers(entry)
    elif isinstance(value, int | float):
        yield value
