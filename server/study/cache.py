"""What cells of a study share, by the keys that each part depends on."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ...common.config import Config, Scalar, flatten
from ...common.config.keys import keys_of
from ...common.config.old import as_0_2

Made = TypeVar("Made")


class Cache(dict[tuple[str, str], Any]):
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


def _hash(values: Mapping[str, Scalar]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]
