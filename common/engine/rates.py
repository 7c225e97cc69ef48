"""Learning rates where none are given: by the number of the backbone's parameters.

What moves a model of a million parameters well destroys a large one, so there is no default
for all. `Config` says `auto` (and 0 for the shared adapter); here that becomes numbers,
which the results record. The size is read from the heads of the weight files.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

from ..config import Config
from ..config.keys import AUTO
from .model_folder import locate


@dataclass(frozen=True)
class Rates:
    """Learning rates of Adam for backbones of one size.

    Attributes
    ----------
    below
        Number of parameters from which on the next row holds.
    usual
        Of an own adapter, where nobody can choose: on a device, or without development
        users.
    choice
        Those of an own adapter that development users choose from.
    shared
        Of the shared adapter: B alone is trained, and its average moves less than any one
        user.
    """

    below: float
    usual: float
    choice: tuple[float, ...]
    shared: float


# The first row: the built-in model, on personas of seed 5, which no table reports. The own
# rate of the second: SmolLM2 on unseen texts of invented owners (benchmarks/owners); 3e-4
# learns less, and 3e-3 ends in loops. The others are not measured.
TABLE = (
    Rates(2e7, 3e-3, (1e-3, 3e-3, 1e-2), 1e-2),
    Rates(1e9, 1e-3, (1e-3,), 1e-3),
    Rates(math.inf, 1e-4, (1e-4,), 3e-4),
)


def rates_for(parameters: int) -> Rates:
    """The row of the table for a backbone with so many parameters."""
    return next(row for row in TABLE if parameters < row.below)


def rates_of(backbone: str) -> Rates:
    """The row of the table for a backbone by its name, which is fetched if need be."""
    return rates_for(parameters_in(locate(backbone)))


def parameters_in(folder: Path) -> int:
    """Numbers in the weight files of a folder, by their heads alone."""
    return sum(map(_numbers, sorted(folder.glob("*.safetensors"))))


def _numbers(file: Path) -> int:
    """Numbers in one safetensors file: its head has the shape of every tensor."""
    with file.open("rb") as stream:
        head = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return sum(math.prod(t["shape"]) for n, t in head.items() if n != "__metadata__")


def with_rates(config: Config, row: Rates | None = None) -> Config:
    """The configuration with numbers for all learning rates.

    Parameters
    ----------
    config
        Of a run. What it gives stays as it is; then no file is read.
    row
        Of its backbone; None: by its name (`rates_of`).
    """
    own, shared = config.personalise.learning_rates, config.adapt.learning_rate
    if own != AUTO and shared:
        return config
    row = row or rates_of(config.backbone)
    if own == AUTO:
        found = row.choice if config.chooses_rates else (row.usual,)
        text = ",".join(map(_written, found))
        personalise = replace(config.personalise, learning_rates=text)
        config = replace(config, personalise=personalise)
    if not shared:
        config = replace(config, adapt=replace(config.adapt, learning_rate=row.shared))
    return config


def _written(rate: float) -> str:
    """A rate as people write it: 1e-3, not 0.001."""
    digits, _, exponent = f"{rate:e}".partition("e")
    return f"{float(digits):g}e{int(exponent)}"
