"""Held-out probabilities "the user's", calibrated so that no class's size moves them.

`overlap.estimate` weighs the two classes alike but fits on all their items. A mean of few
items is noisier than a mean of many, so it lies farther from every held-out item, and the
classifier finds held-out items of both classes nearer to the larger one: alpha falls with
the length of the history. For identical classes of Gaussian features in d dimensions the
logit is off by an amount that grows with d (1/n - 1/m) (the same bias as that of
discriminant analysis: Huang, Tong and Zhao 2010, Biometrics 66). Weights do not remove
it, since they do not change the noise.

s = p / (p + u) has E_p[s] + E_u[s] = 1 for all p and u. Probabilities with this bias do
not keep to it, both means being too low. So the held-out logits are calibrated, which
restores it (`calibrated`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .overlap import FEWEST, FOLDS, in_span, ridge_logistic

# Times that all items are judged, each time by other folds: their draw then matters less
# than the items themselves.
REPEATS = 4

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Probabilities:
    """P("the user's") of items that the judging classifier did not see, each in (0, 1).

    Attributes
    ----------
    own, unlabeled
        Of the user's items [n] and of the unlabeled ones [m].
    """

    own: Array
    unlabeled: Array


def probabilities(
    target: Array, unlabeled: Array, weights: Array, generator: np.random.Generator
) -> Probabilities | None:
    """Cross-fitted and calibrated estimates of p(x) / (p(x) + u(x)).

    Features are centred and scaled by both classes together, which weigh half each. In 5
    folds every item is judged by a ridge-logistic classifier that was fitted on the
    others; this is repeated with other folds, and the logits are averaged and calibrated.
    Where both classes have one distribution, the mean over the unlabeled items is 1/2 (a
    hundredth less, from fitting the slope) for any sizes. Where they differ, a classifier
    of few items tells less, and the mean lies nearer to 1/2 than the exact one.

    Parameters
    ----------
    target
        Features of the history [n, d].
    unlabeled, weights
        Features of the unlabeled items [m, d] and their weights [m], not negative.
    generator
        Draws the folds.

    Returns
    -------
    Probabilities or None
        None with fewer than 4 items on either side, those of weight 0 not counted.
    """
    sizes = len(target), len(unlabeled)
    if min(sizes[0], np.count_nonzero(weights)) < FEWEST:
        return None
    balance = np.r_[np.full(sizes[0], 0.5 / sizes[0]), 0.5 * weights / weights.sum()]
    rows = in_span(_standardised(np.concatenate([target, unlabeled]), balance))
    labels = np.r_[np.ones(sizes[0]), -np.ones(sizes[1])]
    logits = np.zeros(len(rows))
    for _ in range(REPEATS):
        folds = np.hstack([generator.permutation(np.arange(n) % FOLDS) for n in sizes])
        for fold in range(FOLDS):
            seen, held = folds != fold, folds == fold
            if balance[seen & (labels < 0)].any():
                share = balance[seen] / balance[seen].sum()
                centre = share @ rows[seen]
                c = ridge_logistic(rows[seen] - centre, labels[seen], share)
                logits[held] += (rows[held] - centre) @ c / REPEATS
    found = calibrated(logits, labels, balance)
    return Probabilities(found[: sizes[0]], found[sizes[0] :])


def calibrated(logits: Array, labels: Array, balance: Array) -> Array:
    """P(label 1) as a logistic function of held-out logits (Platt 1999).

    sigmoid(a z + b) with a >= 0 that has the least log loss, each class weighing half.
    Targets are 1 - e and e with e = 1 / (k + 2), k the (effective) size of the smaller
    class, so that the fit stays finite where logits separate the classes. Because of b
    the weighted mean probabilities of the two classes add up to 1. Where the logits rank
    the classes the wrong way round, a is 0 and all are 1/2.

    Parameters
    ----------
    logits, labels
        [k], and 1 or -1 [k].
    balance
        Weights of the items [k], of each class 1/2 in all.

    Raises
    ------
    ValueError
        The weights of a class do not sum to 1/2.
    """
    masses = [balance[labels == side] for side in (1, -1)]
    if not all(abs(mass.sum() - 0.5) < 1e-9 for mass in masses):
        raise ValueError("the weights of a class do not sum to 1/2")
    e = 1 / (min(0.25 / (mass**2).sum() for mass in masses) + 2)
    centre = balance @ logits
    spread = np.sqrt(balance @ (logits - centre) ** 2)
    z = np.c_[(logits - centre) / max(float(spread), 1e-12), np.ones(len(logits))]
    # A target of 1 - e is the item with weight 1 - e, and its opposite with weight e.
    slope, shift = ridge_logistic(
        np.r_[z, z],
        np.r_[labels, -labels],
        np.r_[balance * (1 - e), balance * e],
        1e-9,
    )
    if slope < 0:
        return np.full(len(logits), 0.5)
    return np.exp(-np.logaddexp(0.0, -(slope * z[:, 0] + shift)))


def _standardised(rows: Array, balance: Array) -> Array:
    """Centre and scale by weighted moments, and by sqrt(d): rows of length about 1."""
    centre = balance @ rows
    scale = np.sqrt(balance @ (rows - centre) ** 2)
    return (rows - centre) / np.where(scale > 1e-6, scale, 1.0) / np.sqrt(rows.shape[1])
