"""How much work the parts of a run are, for its progress.

Seconds per user where a forecast was made (`server/forecast`), which `simulate` hands over
in the environment; else rough shares, whose unit is one epoch of one user on the own
history.
"""

import json
import os
from collections.abc import Mapping

from ...common.config import UNTRAINED, Config
from ...common.config.methods import BY_NAME
from .budget import Population

WEIGHTS = "IDIOLECT_WEIGHTS"  # in the environment: JSON of `usual`'s shape
VOTE = 0.1  # a vote is cheap beside an epoch of training
# Beside an epoch: the unlabeled items and two more passes for scores; scoring the
# held-out items; generating for them.
TRAINING, SCORING, GENERATING = 2.0, 0.5, 3.0

Weights = Mapping[str, float]
"""``adapt``, ``pool``, and, before a method, ``trial``, ``train``, ``write``, ``score``
-> work per user."""


def usual(config: Config) -> dict[str, float]:
    """Weights of a run, without a forecast."""
    training = TRAINING * config.personalise.epochs
    found = {"adapt": 1.0, "pool": VOTE}
    for method in config.method_list:
        found[f"trial {method}"] = training + SCORING
        found[f"train {method}"] = training
        found[f"write {method}"] = SCORING + GENERATING
        found[f"score {method}"] = SCORING
    return found


def weights_of(config: Config) -> Weights:
    """Weights by the forecast, as far as there is one with all of them."""
    rough = usual(config)
    forecast = json.loads(os.environ.get(WEIGHTS) or "{}")
    return forecast if forecast.keys() >= rough.keys() else rough


def measuring(method: str, generate: bool) -> str:
    """Name of the weight of measuring a method."""
    return f"{'write' if generate else 'score'} {method}"


def training(method: str, trial: bool) -> str:
    """Name of the weight of training a method; with `trial` it is scored too."""
    return f"{'trial' if trial else 'train'} {method}"


def whole(config: Config, people: Population, weights: Weights) -> float:
    """All phases of a run."""
    rates = len(config.learning_rate_list)
    total = config.adapt.rounds * people.adapting * weights["adapt"]
    if config.unlabeled.kind in ("votes", "others"):
        total += people.everybody * weights["pool"]
    for method in config.method_list:
        total += people.users * weights[measuring(method, config.evaluate.generate)]
        if method not in UNTRAINED:
            trials = people.development * rates * (rates > 1) * BY_NAME[method].rated
            total += people.users * weights[training(method, False)]
            total += trials * weights[training(method, True)]
    return total
