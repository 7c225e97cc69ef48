"""SFT on the own history (the adapters of OPPU, Tan et al. 2024)."""

import torch

from ..config import Personalise
from ..data.types import User
from ..engine.objectives import Loss, Means, ScoredBatch
from ..engine.reference import Reference
from ..engine.training import Example, TrainingSet
from ..unlabeled.draws import Draw


def training_set(
    _reference: Reference, user: User, drawn: Draw, _alpha: float = 0.0
) -> TrainingSet:
    """The history alone."""
    return TrainingSet(user.id, [Example(encoded) for encoded in drawn.own])


def loss(
    batch: ScoredBatch, means: Means, _settings: Personalise | None = None
) -> Loss:
    """Negative log-likelihood per completion token of the batch.

    L = - sum_i log pi_theta(y_i | x_i) / sum_i |y_i|
    """
    positive = batch.positive
    nll = -(positive.weight * positive.logp).sum(-1)
    tokens = (positive.weight * positive.tokens).sum(-1)
    value = nll / tokens.clamp(min=1)
    return Loss(value, means, torch.zeros_like(value))
