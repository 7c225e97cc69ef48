"""What cells of a study share, by the keys that each part depends on."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ...common.config import Config, Scalar, flatten
from ...common.config.keys import POOL, SHARED, keys_of
from ...common.config.old import as_0_2

Made = TypeVar("Made")
Key = tuple[str, str]
"""A part of cells and the hash of what it depends on."""


class Cache(dict[Key, Any]):
    """Parts of cells that were made once: the shared adapter, the pool, each method.

    It lives as long as a study runs and can be dropped at any time.
    """

    def once(self, part: str, key: str, make: Callable[[], Made]) -> Made:
        """Return what was made of a part for this key, making it if it is not there."""
        if (part, key) not in self:
            self[part, key] = make()
        return self[part, key]


def cell_key(config: Config) -> str:
    """Short hash of a config, as versions up to 0.2 named their cells: those are found."""
    values = as_0_2(config)
    if values["evaluate.rouge-tokens"] == "english":  # there were cells before this key
        del values["evaluate.rouge-tokens"]
    return _hash(values)


def stage_key(config: Config, stage: str) -> str:
    """Short hash of the keys that a stage depends on (`keys_of`)."""
    flat = flatten(config)
    values = {name: flat[name] for name in keys_of(stage)}
    if (
        config.secagg.mode != "off"
    ):  # what a sum costs depends on how many rows it needs
        values["quorum"] = config.quorum
    return _hash(values)


def shared_keys(config: Config, control: str) -> dict[str, Key]:
    """What other cells may share of a cell: its phases and methods, each with its key.

    Cells with the same key share that part, unless their noise differs
    (`cells.calibrated`). What takes longest and is shared by most comes first.
    """
    keys = {"adapt": ("shared", stage_key(config, SHARED))}
    keys["pool"] = ("pool", stage_key(config, POOL))
    for method in config.method_list:
        keys[method] = (f"{method} {control}", stage_key(config, method))
    return keys


def next_cell(
    left: Sequence[int],
    keys: Mapping[int, Sequence[Key]],
    taken: Sequence[Sequence[int]],
    process: int,
) -> int:
    """Return the cell that a free process takes, so that few parts are made twice.

    Of the shared adapter first, then of the unlabeled set and of each method: one that
    this process has made, else one that no other makes, else one that most cells need.

    Parameters
    ----------
    left
        Cells that nobody has begun, at least one; of equals the first is taken.
    keys
        What each cell of the study may share (`shared_keys`).
    taken
        Cells that each process has begun.
    process
        Which of them is free.
    """
    own = {key for cell in taken[process] for key in keys[cell]}
    rest = [cells for number, cells in enumerate(taken) if number != process]
    others = {key for cells in rest for cell in cells for key in keys[cell]}
    needed = Counter(key for cell in left for key in keys[cell])
    return max(
        left,
        key=lambda cell: [
            (key in own, key not in others, needed[key]) for key in keys[cell]
        ],
    )


def _hash(values: Mapping[str, Scalar]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]
