"""The losses, as pure functions of log-probabilities.

Notation (Ma et al., ACL 2026): policy pi_theta, frozen reference pi_ref, implicit reward

    r(x, y) = beta * (log pi_theta(y|x) - log pi_ref(y|x)),

log-probabilities summed over completion tokens; g = r - delta; the binary loss
l(g, +1) = -log sigmoid(g), l(g, -1) = -log sigmoid(-g).

Every function works on the last dimension and keeps the ones before it: 1-D for one
user, [K, n] for K users at once. Weights mask what is filled up (0) and weight unlabeled
items; a mean over no weight at all is 0. What a function is given is one *optimiser
batch*: delta moves once per optimiser step and the clamp is decided on the whole batch,
so that gradient accumulation changes nothing (`training` sees to it).
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Scored:
    """Items of one kind, scored by policy and reference; every field is [..., n].

    Attributes
    ----------
    logp, reference
        log pi_theta(y|x) and log pi_ref(y|x), summed over completion tokens.
    tokens
        Completion tokens of each item.
    weight
        0 for filler, else the item's weight (1 for the user's own items).
    """

    logp: Tensor
    reference: Tensor
    tokens: Tensor
    weight: Tensor

    def reward(self, beta: float) -> Tensor:
        """Implicit reward r, [..., n]."""
        return beta * (self.logp - self.reference)

    def per_token(self) -> "Scored":
        """Means over completion tokens: a long text then weighs no more than a short."""
        tokens = self.tokens.clamp(min=1)
        return replace(self, logp=self.logp / tokens, reference=self.reference / tokens)


@dataclass(frozen=True, eq=False)
class Means:
    """Running means of the rewards, one state per user; every field is [...].

    Exponential moving averages that start at 0, with the weight they have gathered, so
    that ``sum / weight`` is unbiased from the first step on (as Adam's moments are).
    """

    positive: Tensor
    positive_weight: Tensor
    unlabeled: Tensor
    unlabeled_weight: Tensor

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state as tensors that can be saved; `Means(**state)` restores it."""
        return dict(vars(self))


def zero_means(*shape: int) -> Means:
    """Return the state before the first step."""
    return Means(*(torch.zeros(shape) for _ in range(4)))


def boundary(means: Means) -> Tensor:
    """delta: half-way between the two running means, [...]; carries no gradient.

    Two separate means, so that the number of unlabeled items does not move the boundary
    (C-BPO, "Objective"). A class not seen yet counts as reward 0, the reward of the
    reference itself; before the first step delta is therefore 0.
    """
    positive = means.positive / means.positive_weight.clamp(min=1e-12)
    unlabeled = means.unlabeled / means.unlabeled_weight.clamp(min=1e-12)
    return ((positive + unlabeled) / 2).detach()


def moved(means: Means, positive: Scored, unlabeled: Scored, beta: float, decay: float):
    """The means after this batch. A user without items of a class keeps that mean."""
    with torch.no_grad():
        p, p_weight = _ema(means.positive, means.positive_weight, positive, beta, decay)
        u, u_weight = _ema(
            means.unlabeled, means.unlabeled_weight, unlabeled, beta, decay
        )
    return Means(p, p_weight, u, u_weight)


def _ema(mean: Tensor, weight: Tensor, items: Scored, beta: float, decay: float):
    seen = items.weight.sum(-1) > 0
    now = average(items.reward(beta), items.weight)
    new_mean = decay * mean + (1 - decay) * now
    new_weight = decay * weight + (1 - decay)
    return torch.where(seen, new_mean, mean), torch.where(seen, new_weight, weight)


def average(values: Tensor, weight: Tensor) -> Tensor:
    """sum(w v) / sum(w) over the last dimension; 0 where there is no weight."""
    total = weight.sum(-1)
    mean = (weight * values).sum(-1) / total.clamp(min=1e-12)
    return torch.where(total > 0, mean, torch.zeros_like(mean))


@dataclass(frozen=True, eq=False)
class Loss:
    """Value of an objective on one optimiser batch; every field is [...].

    Attributes
    ----------
    value
        The loss; its gradient is the update.
    means
        Running means after this batch.
    clamped
        1 where max(0, .) switched the unlabeled set off, else 0.
    """

    value: Tensor
    means: Means
    clamped: Tensor


def sft(positive: Scored, means: Means) -> Loss:
    """Negative log-likelihood per completion token of the batch (OPPU)."""
    nll = -(positive.weight * positive.logp).sum(-1)
    tokens = (positive.weight * positive.tokens).sum(-1)
    value = nll / tokens.clamp(min=1)
    return Loss(value, means, torch.zeros_like(value))


def c_bpo(
    positive: Scored,
    unlabeled: Scored,
    alpha: Tensor,
    means: Means,
    beta: float,
    decay: float,
    negative: Scored | None = None,
    negative_weight: float = 1.0,
    means_over: Literal["separate", "pooled"] = "separate",
    weight: float = 1.0,
    anchor: float = 0.0,
    per_token: bool = False,
) -> Loss:
    """Preference-calibrated binary objective (Ma et al., ACL 2026, "Objective").

        L_pos      = E_tar[l(g, +1)]
        L_pure_neg = E_aux[l(g, -1)] - alpha E_tar[l(g, -1)]
        L          = L_pos + w max(0, L_pure_neg) / (1 - alpha) + a NLL_tar

    with w = 1 and a = 0 in the paper.

    The unlabeled set is a mixture: a share alpha of it is what this user would also have
    written. Subtracting that share, estimated on the user's own items, leaves the
    negatives (non-negative positive-unlabeled learning, Kiryo et al. 2017).

    Parameters
    ----------
    positive
        The user's own items (target).
    unlabeled
        Items that stand for everyone else (auxiliary), weighted.
    alpha
        Preference overlap, [...], in [0, 0.9].
    means, decay
        Running means before this step and their decay. Step t uses the delta of the
        steps before it.
    beta
        Scale of the reward.
    negative, negative_weight
        Known negatives (explicit dislikes), our extension: added as
        ``negative_weight * E_neg[l(g, -1)]`` outside the clamp, and no part of delta.
    means_over
        ``pooled`` runs one mean over both classes, as BCO does: the paper's ablation.
    weight
        w, our extension. 0 leaves the positive term alone, the control that shows what
        the unlabeled set adds: its items then move delta and do nothing else.
    anchor
        a, our extension: weight of the negative log-likelihood per token of the own
        items (`sft`), which goes on where the bounded loss saturates.
    per_token
        Rewards as means over tokens, not sums.
    """
    nll = sft(positive, means).value if anchor else 0.0
    if per_token:
        positive, unlabeled = positive.per_token(), unlabeled.per_token()
        negative = negative and negative.per_token()
    delta = boundary(means).unsqueeze(-1)
    g_positive = positive.reward(beta) - delta
    g_unlabeled = unlabeled.reward(beta) - delta
    wanted = average(-F.logsigmoid(g_positive), positive.weight)
    overlap = average(-F.logsigmoid(-g_positive), positive.weight)
    pure = average(-F.logsigmoid(-g_unlabeled), unlabeled.weight) - alpha * overlap
    value = wanted + weight * pure.clamp(min=0) / (1 - alpha) + anchor * nll
    if negative is not None:
        disliked = -F.logsigmoid(-(negative.reward(beta) - delta))
        value = value + negative_weight * average(disliked, negative.weight)
    clamped = (pure < 0).to(value.dtype)
    if means_over == "pooled":
        positive = unlabeled = _pool(positive, unlabeled)
    return Loss(value, moved(means, positive, unlabeled, beta, decay), clamped)


def bco(
    positive: Scored, unlabeled: Scored, means: Means, beta: float, decay: float
) -> Loss:
    """Binary classifier optimisation (Jung et al. 2024): all unlabeled are negatives.

    As published and as TRL had it, items are pooled: one mean of the losses over both
    classes, and one running mean of the rewards as delta, so that a larger unlabeled set
    weighs more and drags the boundary. The pooled mean is an exponential one here, to
    differ from C-BPO in nothing else; both fields of `means` hold it.
    """
    pooled = _pool(positive, unlabeled)
    delta = boundary(means).unsqueeze(-1)
    sign = _signs(positive, unlabeled)
    value = average(-F.logsigmoid(sign * (pooled.reward(beta) - delta)), pooled.weight)
    after = moved(means, pooled, pooled, beta, decay)
    return Loss(value, after, torch.zeros_like(value))


def kto(
    positive: Scored, unlabeled: Scored, mismatched: Scored, means: Means, beta: float
) -> Loss:
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, equation 8).

        z = max(0, E[log pi_theta(y'|x) - log pi_ref(y'|x)])   no gradient
        L = E[1 - sigmoid(beta (u - z))]  over desirable,
            E[1 - sigmoid(beta (z - u))]  over undesirable items, pooled,

    u the log-ratio, both weights lambda 1. z estimates the KL divergence on mismatched
    pairs (the prompt of one item with the completion of another).
    """
    shift = average(mismatched.logp - mismatched.reference, mismatched.weight)
    z = shift.clamp(min=0).detach().unsqueeze(-1)
    pooled = _pool(positive, unlabeled)
    g = beta * (pooled.logp - pooled.reference - z)
    value = average(1 - torch.sigmoid(_signs(positive, unlabeled) * g), pooled.weight)
    return Loss(value, means, torch.zeros_like(value))


def dpo(chosen: Scored, rejected: Scored, means: Means, beta: float) -> Loss:
    """Direct preference optimisation (Rafailov et al. 2023, equation 7).

        L = E[-log sigmoid(beta ((log pi_theta(y_w|x) - log pi_ref(y_w|x))
                                 - (log pi_theta(y_l|x) - log pi_ref(y_l|x))))]

    Parameters
    ----------
    chosen, rejected
        y_w and y_l, pair by pair. A pair's weight is the product of its two.
    means, beta
        Returned as they are (there is no delta); scale of the reward.
    """
    margin = chosen.reward(beta) - rejected.reward(beta)
    value = average(-F.logsigmoid(margin), chosen.weight * rejected.weight)
    return Loss(value, means, torch.zeros_like(value))


def _pool(one: Scored, two: Scored) -> Scored:
    fields = zip(vars(one).values(), vars(two).values(), strict=True)
    return Scored(*(torch.cat(pair, dim=-1) for pair in fields))


def _signs(positive: Scored, unlabeled: Scored) -> Tensor:
    ones = torch.ones_like
    return torch.cat([ones(positive.logp), -ones(unlabeled.logp)], dim=-1)
