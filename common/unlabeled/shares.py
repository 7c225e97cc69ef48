"""Estimates of the mixture share pi: how much of u may be called p.

The unlabeled items are u = pi p + (1 - pi) n. What can be estimated is the largest such
pi, inf u/p (`data.functionals.share_bound`). Both functions take held-out probabilities
"the user's" (`heldout.probabilities`), or any score that is higher for own items.
"""

import numpy as np
from numpy.typing import NDArray

# The highest value itself is that of one lucky item; with some 16 own items the .9
# quantile is about the second highest.
QUANTILE = 0.9
# Chance that the bound of `best_bin` fails, and its slack: values of the source.
DELTA = 0.1
GAMMA = 0.01

Array = NDArray[np.float64]


def from_quantile(own: Array, level: float = QUANTILE) -> float:
    """(1 - q) / q with q the `level` quantile of p / (p + u) over own items, in [0, 1].

    If s = p / (p + u) then (1 - s) / s = u / p, so the highest s gives inf u/p. (Elkan and
    Noto 2008 take the maximum for the same purpose; a quantile is less noisy and errs
    high.) It needs calibrated probabilities of balanced classes: a classifier that is
    unsure gives a share that is too high.

    Parameters
    ----------
    own
        Held-out probabilities of the user's items, [n], in (0, 1).
    level
        In [0, 1].

    Raises
    ------
    ValueError
        No items, a probability outside (0, 1], or a level outside [0, 1].
    """
    if not len(own) or not ((own > 0) & (own <= 1)).all() or not 0 <= level <= 1:
        raise ValueError(
            "give probabilities in (0, 1], one at least, and a level in [0, 1]"
        )
    q = float(np.quantile(own, level))
    return min(1.0, (1 - q) / q)


def best_bin(
    own: Array,
    unlabeled: Array,
    weights: Array,
    delta: float = DELTA,
    gamma: float = GAMMA,
) -> float:
    """Best bin estimation of pi (BBE: Garg et al. 2021, arXiv 2111.00980, Algorithm 1).

    For a threshold c let P(c) and U(c) be the shares of own and of unlabeled scores that
    are at least c. U(c) / P(c) is never below pi in expectation and equals it where no
    negative scores as high. The threshold is the one with the least upper bound,

        c* = argmin_c  U(c)/P(c) + (1 + gamma)/P(c) (e(m) + e(n)),
        e(k) = sqrt(log(4 / delta) / (2 k)),

    and the estimate is U(c*) / P(c*). Only the order of the scores matters.

    Parameters
    ----------
    own
        Held-out scores of the user's items, [n].
    unlabeled, weights
        Scores of unlabeled items [m] and their weights [m], not negative. m in e(m) is
        the effective number (sum w)^2 / sum w^2.
    delta, gamma
        As in the source, whose values are the defaults.

    Returns
    -------
    float
        In [0, 1]. Near 1 with few own items: at n = 8 the bound forbids thresholds that
        most own items do not reach.

    Raises
    ------
    ValueError
        A side is empty, or no weight is positive.
    """
    if not len(own) or not len(unlabeled) or not weights.sum() > 0:
        raise ValueError("give own and unlabeled scores, some of positive weight")
    thresholds = np.unique(own)
    reached = (own >= thresholds[:, None]).mean(1)
    mixed = (unlabeled >= thresholds[:, None]) @ weights / weights.sum()
    sizes = np.array([len(own), weights.sum() ** 2 / (weights**2).sum()])
    error = np.sqrt(np.log(4 / delta) / (2 * sizes)).sum()
    best = np.argmin((mixed + (1 + gamma) * error) / reached)
    return float(min(1.0, mixed[best] / reached[best]))
