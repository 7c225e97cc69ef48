"""What a line of a plot is called, and which keys tell a method's lines apart."""

from ...common.config import FIELDS, presets
from ...common.config.keys import keys_of
from ...common.config.methods import current_name
from ...common.config.old import RENAMED
from ..study.declaration import Study
from .verdicts import Cell

# Kinds of unlabeled set whose text no noise protects, and what a line of theirs says.
NOT_PRIVATE = ("others", "anonymised")
TOTAL_INFINITE = " (adapter epsilon only, total infinite)"


def line_of(study: Study, cell: Cell, method: str, along: str = "") -> str:
    """Name of a method in a cell, with the keys of the grid that tell its lines apart.

    The seed and the key `along`, which varies within a line, are left out. So is a key that
    the method does not use: cells that differ in nothing else hold the same values of the
    same users.
    """
    private = study.config.get("privacy.mode") == "central"
    fixed = [
        f"{key.split('.')[-1]} {value}"
        + TOTAL_INFINITE
        * (private and key == "unlabeled.kind" and value in NOT_PRIVATE)
        for key, value in cell["cell"].items()
        if key not in ("seed", along)
        and len(study.grid[key]) > 1
        and not unused(study, key, method)
    ]
    return ", ".join([method, *fixed])


def unused(study: Study, key: str, method: str) -> bool:
    """Whether a method does not depend on a key, or on anything that it stands for."""
    meanings = study.named.get(key, {"": {key: ""}}).values()
    names = {RENAMED.get(name, name) for meaning in meanings for name in meaning}
    for preset in presets.PRESETS if "preset" in names else ():
        names = names - {"preset"} | presets.read(preset).keys()
    return names <= FIELDS.keys() - keys_of(current_name(method))
