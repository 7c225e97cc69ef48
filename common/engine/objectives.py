"""What losses are made of: log-probabilities, rewards, and their running means.

Notation (Ma et al., ACL 2026): policy pi_theta, frozen reference pi_ref, implicit reward

    r(x, y) = beta * (log pi_theta(y|x) - log pi_ref(y|x)),

log-probabilities summed over completion tokens; g = r - delta; the binary loss
l(g, +1) = -log sigmoid(g), l(g, -1) = -log sigmoid(-g).

Every function works on the last dimension and keeps the ones before it: 1-D for one
user, [K, n] for K users at once. Weights mask what is filled up (0) and weight unlabeled
items; a mean over no weight at all is 0. What a function is given is one *optimiser
batch*: delta moves once per optimiser step and the clamp is decided on the whole batch,
so that gradient accumulation changes nothing (see `training`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Scored:
    """Items of one kind, scored by policy and reference; every field is [..., n].

    Attributes
    ----------
    logp, reference
        log pi_theta(y|x) and log pi_ref(y|x), summed over completion tokens, by the tokens'
        weights where they have any.
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
class ScoredBatch:
    """One optimiser batch of K users; a kind without items has n = 0.

    Attributes
    ----------
    positive
        The users' own items, [K, n].
    unlabeled
        Items that stand for everyone else.
    negative
        Known negatives.
    rejected
        What is preferred less than each positive, in their order.
    mismatched
        A prompt with another item's completion, per positive and per unlabeled item;
        without gradient.
    alpha
        Preference overlap, [K].
    """

    positive: Scored
    unlabeled: Scored
    negative: Scored
    rejected: Scored
    mismatched: Scored
    alpha: Tensor


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


@torch.no_grad()
def moved(
    means: Means, positive: Scored, unlabeled: Scored, beta: float, decay: float
) -> Means:
    """The means after this batch. A user without items of a class keeps that mean."""
    return Means(
        *_ema(means.positive, means.positive_weight, positive, beta, decay),
        *_ema(means.unlabeled, means.unlabeled_weight, unlabeled, beta, decay),
    )


def _ema(mean: Tensor, weight: Tensor, items: Scored, beta: float, decay: float):
    seen = items.weight.sum(-1) > 0
    now = average(items.reward(beta), items.weight)
    new_mean = decay * mean + (1 - decay) * now
    new_weight = decay * weight + (1 - decay)
    return torch.where(seen, new_mean, mean), torch.where(seen, new_weight, weight)


def average(values: Tensor, weight: Tensor) -> Tensor:
    """sum(w v) / sum(w) over the last dimension; 0 where all weights are 0."""
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


LossFunction = Callable[[ScoredBatch, Means], Loss]
"""The value of a method's loss on one batch, and the means after it."""


def pool(one: Scored, two: Scored) -> Scored:
    """Items of both, [..., n + m]."""
    both = zip(vars(one).values(), vars(two).values(), strict=True)
    return Scored(*(torch.cat(pair, dim=-1) for pair in both))


def signs(positive: Scored, unlabeled: Scored) -> Tensor:
    """+1 for each positive and -1 for each unlabeled item, [..., n + m]."""
    own, others = torch.ones_like(positive.logp), torch.ones_like(unlabeled.logp)
    return torch.cat([own, -others], dim=-1)
