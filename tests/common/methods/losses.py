"""Batches and settings for the closed forms of losses."""

import math

import torch

from idiolect.common.config import Personalise
from idiolect.common.engine.objectives import Loss, Means, Scored, ScoredBatch
from idiolect.common.methods import bco, c_bpo, cope, kto, sft


def scored(logp, reference=None, tokens=None, weight=None) -> Scored:
    logp = torch.tensor(logp, dtype=torch.float64)

    def like(values, default):
        if values is None:
            return torch.full_like(logp, default)
        return torch.tensor(values, dtype=torch.float64)

    return Scored(logp, like(reference, 0.0), like(tokens, 1.0), like(weight, 1.0))


def batch(positive: Scored, **kinds) -> ScoredBatch:
    """A batch of some kinds; the others have no items."""
    nothing = Scored(*(tensor[..., :0] for tensor in vars(positive).values()))
    every = {"unlabeled", "negative", "rejected", "mismatched"}
    empty = dict.fromkeys(every - kinds.keys(), nothing)
    return ScoredBatch(**{"positive": positive, "alpha": alpha(0.0), **empty, **kinds})


def means(positive=0.0, unlabeled=0.0) -> Means:
    one = torch.ones((), dtype=torch.float64)
    return Means(positive * one, one, unlabeled * one, one)


def alpha(value) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def minus_log_sigmoid(z) -> float:
    return math.log1p(math.exp(-z))


def sft_loss(positive, state) -> Loss:
    return sft.loss(batch(positive), state)


def c_bpo_loss(positive, unlabeled, share, state, beta, ema, negative=None, **keys):
    """The paper's values where a key is not given."""
    keys = {"unlabeled_weight": 1.0, "anchor": 0.0, **keys}
    kinds = {} if negative is None else {"negative": negative}
    return c_bpo.loss(
        batch(positive, unlabeled=unlabeled, alpha=share, **kinds),
        state,
        Personalise(beta=beta, ema=ema, **keys),
    )


def bco_loss(positive, unlabeled, state, beta, ema, weight=1.0, **kinds) -> Loss:
    settings = Personalise(beta=beta, ema=ema, disliked_weight=weight)
    return bco.loss(batch(positive, unlabeled=unlabeled, **kinds), state, settings)


def kto_loss(positive, unlabeled, mismatched, state, beta, weight=1.0, **kinds) -> Loss:
    kinds |= {"unlabeled": unlabeled, "mismatched": mismatched}
    settings = Personalise(beta=beta, disliked_weight=weight)
    return kto.loss(batch(positive, **kinds), state, settings)


def dpo_loss(chosen, rejected, state, beta) -> Loss:
    return cope.dpo(batch(chosen, rejected=rejected), state, Personalise(beta=beta))
