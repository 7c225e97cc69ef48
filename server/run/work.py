"""How much work the parts of a run are, roughly, for its progress.

The unit is one epoch of one user on the own history.
"""

from ...common.config import UNTRAINED, Config
from .budget import Population

VOTE = 0.1  # a vote is cheap beside an epoch of training
# Beside an epoch: the unlabeled items and two more passes for scores; scoring the
# held-out items; generating for them.
TRAINING, SCORING, GENERATING = 2.0, 0.5, 3.0


def training(config: Config, trial: bool = False) -> float:
    """Training one user with one method; with `trial` it is scored too."""
    return TRAINING * config.personalise.epochs + SCORING * trial


def measuring(generate: bool) -> float:
    """Measuring one method on one user."""
    return SCORING + GENERATING * generate


def whole(config: Config, people: Population) -> float:
    """All phases of a run."""
    trained = sum(method not in UNTRAINED for method in config.method_list)
    rates = len(config.learning_rate_list)
    trials = training(config, True) * people.development * rates * (rates > 1)
    return (
        config.adapt.rounds * people.adapting
        + VOTE * people.everybody * (config.unlabeled.kind in ("votes", "others"))
        + trained * (training(config) * people.users + trials)
        + measuring(config.evaluate.generate) * len(config.method_list) * people.users
    )
