"""What the proxy counts, where `serve` can read it: whole numbers, and nobody's name.

The proxy is a process of its own. Its counts lie in a small file that both map, so the
proxy adds without waiting, and reading needs nothing of it. They begin at zero with each
start of the proxy.
"""

import mmap
import os
import struct
from pathlib import Path

from ...common.files import private
from ...common.protocol.turned_away import CLOCK, REVOKED, STRANGER, UNREGISTERED
from .authorization import Refusal

# Why a call is refused: by what the caller is told, else by the status of the answer.
TOLD = {
    STRANGER: "no signature",
    CLOCK: "clock",
    UNREGISTERED: "not registered",
    REVOKED: "revoked",
}
STATUS = {
    401: "another device's",
    403: "not sent to it",
    404: "no such call",
    413: "too large",
    502: "no SuperLink",
    503: "too much",
}
OTHER = "not understood"
NO_LINK = "the SuperLink"  # a refusal that begins so is none of the caller's doing
REASONS = (*TOLD.values(), *STATUS.values(), OTHER)
NAMES = ("calls", "bytes in", "bytes out", *REASONS)
NUMBER = "Q"  # 64 bits; an aligned one is written at once


def reason_of(refusal: Refusal) -> str:
    """Return which of `REASONS` a refusal is."""
    said = str(refusal)
    if refusal.status == 503 and said.startswith(NO_LINK):
        return STATUS[502]
    return TOLD.get(said) or STATUS.get(refusal.status, OTHER)


class Counts:
    """The counts of this proxy, by name, as in a `collections.Counter`.

    Parameters
    ----------
    path
        The file, which is made or set to zero.
    """

    def __init__(self, path: Path) -> None:
        size = struct.calcsize(NUMBER) * len(NAMES)
        with open(path, "wb+", opener=private) as file:
            os.ftruncate(file.fileno(), size)
            self._numbers = memoryview(mmap.mmap(file.fileno(), size)).cast(NUMBER)

    def __getitem__(self, name: str) -> int:
        return self._numbers[NAMES.index(name)]

    def __setitem__(self, name: str, number: int) -> None:
        self._numbers[NAMES.index(name)] = number


def read_counts(path: Path) -> dict[str, int]:
    """Return name -> count; all zero while no proxy has been started."""
    layout = struct.Struct(f"{len(NAMES)}{NUMBER}")
    try:
        return dict(zip(NAMES, layout.unpack(path.read_bytes()), strict=True))
    except (OSError, struct.error):
        return dict.fromkeys(NAMES, 0)
