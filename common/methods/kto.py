"""KTO: Kahneman-Tversky optimisation (Ethayarajh et al. 2024)."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..config import Personalise
from ..data.types import User
from ..engine.backbone import Encoded
from ..engine.objectives import Loss, Means, ScoredBatch, average, pool, signs
from ..engine.reference import Reference
from ..engine.training import TrainingSet
from ..unlabeled.draws import Draw
from .examples import scored, with_disliked


def training_set(
    reference: Reference, user: User, drawn: Draw, alpha: float
) -> TrainingSet:
    """The history, the drawn items, dislikes, and mismatched pairs for the KL term."""
    pairs = mismatched([*drawn.own, *drawn.aux], reference.backbone.context)
    found = with_disliked(reference, user, drawn, alpha)
    return replace(found, mismatched=scored(reference, pairs))


def loss(batch: ScoredBatch, means: Means, settings: Personalise) -> Loss:
    """Kahneman-Tversky optimisation (equation 8).

        z = max(0, E[log pi_theta(y'|x) - log pi_ref(y'|x)])   no gradient
        L = E[1 - sigmoid(beta (u - z))]  over desirable,
            E[1 - sigmoid(beta (z - u))]  over undesirable items, pooled,
          + d E_neg[1 - sigmoid(beta (z - u))]

    The last term is over known negatives (explicit dislikes), our extension as in C-BPO:
    a mean of its own, of weight d (``disliked_weight``), and no part of z. u is the
    log-ratio, both weights lambda 1. z estimates the KL divergence on mismatched pairs
    (the prompt of one item with the completion of another).
    """
    pairs = batch.mismatched
    shift = average(pairs.logp - pairs.reference, pairs.weight)
    z = shift.clamp(min=0).detach().unsqueeze(-1)
    pooled = pool(batch.positive, batch.unlabeled)
    g = settings.beta * (pooled.logp - pooled.reference - z)
    sign = signs(batch.positive, batch.unlabeled)
    value = average(1 - torch.sigmoid(sign * g), pooled.weight)
    negative = batch.negative
    disliked = settings.beta * (z - (negative.logp - negative.reference))
    avoided = average(1 - torch.sigmoid(disliked), negative.weight)
    value = value + settings.disliked_weight * avoided
    return Loss(value, means, torch.zeros_like(value))


def mismatched(items: Sequence[Encoded], context: int) -> list[Encoded]:
    """Each prompt with the completion of the next item, cyclically (KTO's KL term)."""
    following = [*items[1:], *items[:1]]
    return [
        Encoded(
            (*item.ids[: item.prompt_length], *after.ids[after.prompt_length :])[
                :context
            ],
            item.prompt_length,
        )
        for item, after in zip(items, following, strict=True)
    ]
