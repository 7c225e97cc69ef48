"""C-BPO: the preference-calibrated binary objective (Ma et al., ACL 2026)."""

from dataclasses import replace

import torch.nn.functional as F

from ..config import Personalise
from ..data.types import User
from ..engine.objectives import Loss, Means, ScoredBatch, average, boundary, moved, pool
from ..engine.reference import Reference
from ..engine.training import TrainingSet
from ..unlabeled.draws import Draw
from . import sft
from .examples import with_disliked


def training_set(
    reference: Reference, user: User, drawn: Draw, alpha: float
) -> TrainingSet:
    """As `with_disliked`; tokens of unlabeled texts have the weights of the draw, if any.

    The rewards of unlabeled texts are then sums over tokens by these weights
    (`unlabeled.tokens`), in the unlabeled term and in delta. Those of own texts are plain
    sums, in the subtracted term, too.
    """
    if drawn.weights:
        both = zip(drawn.aux, drawn.weights, strict=True)
        drawn = replace(drawn, aux=[replace(one, weights=w) for one, w in both])
    return with_disliked(reference, user, drawn, alpha)


def loss(batch: ScoredBatch, means: Means, settings: Personalise) -> Loss:
    """Preference-calibrated binary objective (Ma et al., ACL 2026, "Objective").

        L_pos      = E_tar[l(g, +1)]
        L_pure_neg = E_aux[l(g, -1)] - alpha E_tar[l(g, -1)]
        L          = L_pos + w max(0, L_pure_neg) / (1 - alpha) + a NLL_tar
                     + d E_neg[l(g, -1)]

    with w = 1 and a = 0 in the paper, and without the last term. That one is over known
    negatives (explicit dislikes), our extension: outside the clamp, and no part of delta.
    Its weight d is ``disliked_weight``.

    The unlabeled set is a mixture: a share alpha of it is what this user would also have
    written. Subtracting that share, estimated on the user's own items, leaves the
    negatives (non-negative positive-unlabeled learning, Kiryo et al. 2017).

    Parameters
    ----------
    batch
        Positives (target), unlabeled items (auxiliary, weighted), known negatives, and
        alpha in [0, 0.99].
    means
        Running means before this step. Step t uses the delta of the steps before it.
    settings
        ``beta``, the scale of the reward, and ``ema``, the decay of the means.
        ``boundary`` `pooled` runs one mean over both classes, as BCO does: the paper's
        ablation. ``unlabeled_weight`` is w, our extension: with 0 the unlabeled items
        move delta and do nothing else. ``anchor`` is a, our extension: the weight of the
        negative log-likelihood per token of the own items (`sft.loss`), which goes on
        where the bounded loss saturates. ``reward`` `token` takes rewards as means over
        tokens, not sums.
    """
    positive, unlabeled, negative = batch.positive, batch.unlabeled, batch.negative
    beta, alpha = settings.beta, batch.alpha
    nll = sft.loss(batch, means).value if settings.anchor else 0.0
    if settings.reward == "token":
        positive, unlabeled, negative = (
            kind.per_token() for kind in (positive, unlabeled, negative)
        )
    delta = boundary(means).unsqueeze(-1)
    g_positive = positive.reward(beta) - delta
    g_unlabeled = unlabeled.reward(beta) - delta
    wanted = average(-F.logsigmoid(g_positive), positive.weight)
    overlap = average(-F.logsigmoid(-g_positive), positive.weight)
    pure = average(-F.logsigmoid(-g_unlabeled), unlabeled.weight) - alpha * overlap
    weight = settings.unlabeled_weight
    value = wanted + weight * pure.clamp(min=0) / (1 - alpha) + settings.anchor * nll
    if negative.logp.shape[-1]:
        disliked = -F.logsigmoid(-(negative.reward(beta) - delta))
        value = value + settings.disliked_weight * average(disliked, negative.weight)
    clamped = (pure < 0).to(value.dtype)
    if settings.boundary == "pooled":
        positive = unlabeled = pool(positive, unlabeled)
    return Loss(value, moved(means, positive, unlabeled, beta, settings.ema), clamped)
