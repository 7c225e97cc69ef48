"""The positive term of C-BPO alone: a control that shows what the unlabeled set adds."""

from dataclasses import replace

from ..config import Personalise
from ..engine.objectives import Loss, Means, ScoredBatch
from . import c_bpo
from .examples import against_unlabeled

training_set = against_unlabeled


def loss(batch: ScoredBatch, means: Means, settings: Personalise) -> Loss:
    """`c_bpo.loss` with w = 0: the unlabeled items move delta, and do nothing else."""
    return c_bpo.loss(batch, means, replace(settings, unlabeled_weight=0.0))
