"""The positive term of C-BPO alone: a control that shows what the unlabeled set adds."""

from dataclasses import replace

from ..config import Personalise
from ..data.types import User
from ..engine.objectives import Loss, Means, ScoredBatch
from ..engine.reference import Reference
from ..engine.training import TrainingSet
from ..unlabeled.draws import Draw
from . import c_bpo
from .examples import against_unlabeled


def training_set(
    reference: Reference, user: User, drawn: Draw, alpha: float
) -> TrainingSet:
    """The history and the drawn items, with alpha."""
    return replace(against_unlabeled(reference, user.id, drawn), alpha=alpha)


def loss(batch: ScoredBatch, means: Means, settings: Personalise) -> Loss:
    """`c_bpo.loss` with w = 0: the unlabeled items move delta, and do nothing else."""
    return c_bpo.loss(batch, means, replace(settings, unlabeled_weight=0.0))
