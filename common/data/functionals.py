"""Four numbers that have all been called alpha: functionals of two distributions.

p is how one user writes and u is the population that the unlabeled set is drawn from.
Their names here are used everywhere: `share_bound`, `classifier_mean`, `classifier_odds`
and `overlap`. They differ. For p = (.9, .1) and u = (.5, .5) they are .556, .405, .680
and .600.

Of them only `share_bound` says how much of u may be called the user's: C-BPO subtracts
alpha p from u and divides by 1 - alpha, and (u - alpha p) / (1 - alpha) is a distribution
if and only if alpha <= inf u/p.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Functionals:
    """The four functionals of one user and one population.

    Attributes
    ----------
    share_bound, classifier_mean, classifier_odds, overlap
        See the functions of these names.
    """

    share_bound: float
    classifier_mean: float
    classifier_odds: float
    overlap: float


def functionals(p: ArrayLike, u: ArrayLike) -> Functionals:
    """All four functionals of p [k] and u [k]; see `share_bound` for what they must be."""
    mean = classifier_mean(p, u)
    return Functionals(share_bound(p, u), mean, classifier_odds(mean), overlap(p, u))


def share_bound(p: ArrayLike, u: ArrayLike) -> float:
    """Inf over p(y) > 0 of u(y) / p(y), in [0, 1]: the largest valid mixture share.

    It is the largest pi with u = pi p + (1 - pi) n for some distribution n (Blanchard,
    Lee and Scott 2010; Scott 2015). Every share in [0, share_bound] is valid, and none
    above it. It equals the pi that u was mixed with where n does not contain p
    (irreducibility), and is above it otherwise.

    Parameters
    ----------
    p, u
        Probabilities of the user and of the population, [k] each.

    Raises
    ------
    ValueError
        Shapes differ, or p or u is no distribution (negative, or a sum that is not 1
        within 1e-6).
    """
    p, u = _distributions(p, u)
    return min(1.0, float((u[p > 0] / p[p > 0]).min()))


def classifier_mean(p: ArrayLike, u: ArrayLike) -> float:
    """E_u[p / (p + u)], in [0, 1/2]: what the paper's estimate of alpha aims at.

    The mean, over the unlabeled items, of the best balanced classifier's probability
    "the user's" (Ma et al., ACL 2026, "Objective"). It is 1/2 where p = u. It is no share
    of a mixture: with u = pi p + (1 - pi) n and disjoint p and n it is pi / (1 + pi),
    below pi, and otherwise it can lie on either side. It is a valid share only where it
    happens to be at most `share_bound`.

    By Jensen's inequality it is at most 1/2: E_u[p / (p + u)] = E_u[r / (1 + r)] with
    E_u[r] <= 1 for r = p / u.
    """
    p, u = _distributions(p, u)
    there = u > 0
    return float((u[there] * p[there] / (p[there] + u[there])).sum())


def classifier_odds(mean: float) -> float:
    """M / (1 - m) of m = `classifier_mean`, in [0, 1].

    It is the share pi where p and n are disjoint, and above `share_bound` otherwise: then
    it is no valid share.

    Raises
    ------
    ValueError
        The mean is outside [0, 1).
    """
    if not 0 <= mean < 1:
        raise ValueError(f"the mean probability is {mean}, not in [0, 1)")
    return mean / (1 - mean)


def overlap(p: ArrayLike, u: ArrayLike) -> float:
    """sum_y min(p(y), u(y)), in [0, 1]: one minus the total variation distance.

    The most probability that p and u have in common. It is never below `share_bound`
    (min(p, u) >= p inf u/p), and a valid share only where the two are equal, as for p = u
    or disjoint p and n.
    """
    p, u = _distributions(p, u)
    return float(np.minimum(p, u).sum())


def _distributions(
    p: ArrayLike, u: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    p, u = np.asarray(p, np.float64), np.asarray(u, np.float64)
    if p.ndim != 1 or p.shape != u.shape:
        raise ValueError(
            f"shapes {p.shape} and {u.shape}: give two vectors of one length"
        )
    for values in (p, u):
        if not ((values >= 0).all() and abs(values.sum() - 1) < 1e-6):
            raise ValueError("not a distribution: negative, or its sum is not 1")
    return p, u
