"""Waiting for what another process does."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], patience: float = 60.0) -> T:
    """Ask again until the condition holds; return what it said."""
    ends = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < ends, "it did not come"
        time.sleep(0.05)
    return found
