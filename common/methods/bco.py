"""BCO: binary classifier optimisation (Jung et al. 2024)."""

import torch
import torch.nn.functional as F

from ..config import Personalise
from ..engine.objectives import (
    Loss,
    Means,
    ScoredBatch,
    average,
    boundary,
    moved,
    pool,
    signs,
)
from .examples import with_disliked

training_set = with_disliked


def loss(batch: ScoredBatch, means: Means, settings: Personalise) -> Loss:
    """Binary classifier optimisation: all unlabeled items are negatives.

        L = E[l(g, +1) over own, l(g, -1) over unlabeled items, pooled]
            + d E_neg[l(g, -1)]

    The last term is over known negatives (explicit dislikes), our extension as in C-BPO:
    a mean of its own, of weight d (``disliked_weight``), and no part of delta.

    As published and as TRL had it, items are pooled: one mean of the losses over both
    classes, and one running mean of the rewards as delta, so that a larger unlabeled set
    weighs more and moves the boundary. The pooled mean is an exponential one here, to
    differ from C-BPO in nothing else; both fields of `means` hold it.
    """
    positive, unlabeled = batch.positive, batch.unlabeled
    pooled = pool(positive, unlabeled)
    delta = boundary(means).unsqueeze(-1)
    g = signs(positive, unlabeled) * (pooled.reward(settings.beta) - delta)
    value = average(-F.logsigmoid(g), pooled.weight)
    disliked = -F.logsigmoid(delta - batch.negative.reward(settings.beta))
    value = value + settings.disliked_weight * average(disliked, batch.negative.weight)
    after = moved(means, pooled, pooled, settings.beta, settings.ema)
    return Loss(value, after, torch.zeros_like(value))
