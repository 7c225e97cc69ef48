"""Held-out probabilities "the user's", by classifiers fitted on classes of equal size.

`overlap.estimate` weighs the two classes alike but fits on all their items. A mean of few
items is noisier than a mean of many, so it lies farther from every held-out item, and the
classifier finds held-out items of both classes nearer to the larger one: alpha falls with
the length of the history. For identical classes of Gaussian features in d dimensions the
logit is off by an amount that grows with d (1/n - 1/m) (the same bias as that of
discriminant analysis: Huang, Tong and Zhao 2010, Biometrics 66). Weights do not remove
it, since they do not change the noise. Equal numbers do: see `probabilities`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .overlap import FEWEST, FOLDS, ridge_logistic

# Times that all items are judged, each time by other folds and other draws of the larger
# class. With 8 the draws add little to the noise that the items themselves bring.
REPEATS = 8
# Items of a class in one fit: bounds its cost, which grows with their cube.
MOST = 64

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
    """Cross-fitted estimates of p(x) / (p(x) + u(x)), unbiased by the classes' sizes.

    Both classes are cut into 5 folds. A fold is judged by a ridge-logistic classifier
    that was fitted on the rest: on k items of each class, where k is what the smaller one
    has (64 at most). All steps, the scaling of features included, treat the two classes
    alike. So where both have one distribution, exchanging them changes the sign of every
    logit and no chance, and the mean probability is 1/2 in expectation: for every
    history, number of unlabeled items, dimension and ridge. This is repeated 8 times and
    averaged. Where the classes differ, a classifier of few items is unsure, and the mean
    lies nearer to 1/2 than the exact one.

    Parameters
    ----------
    target
        Features of the history [n, d].
    unlabeled, weights
        Features of the unlabeled items [m, d] and their weights [m], not negative: the k
        items are drawn by weight.
    generator
        Draws folds and items.

    Returns
    -------
    Probabilities or None
        None with fewer than 4 items on either side, those of weight 0 not counted.
    """
    if min(len(target), np.count_nonzero(weights)) < FEWEST:
        return None
    features = target, unlabeled
    chances = np.ones(len(target)), weights
    sums = np.zeros(len(target)), np.zeros(len(unlabeled))
    for _ in range(REPEATS):
        folds = [_folds(c, generator) for c in chances]
        for fold in range(FOLDS):
            seen = [c * (f != fold) for c, f in zip(chances, folds, strict=True)]
            count = min(MOST, *(np.count_nonzero(c) for c in seen))
            train = [
                part[generator.choice(len(part), count, False, c / c.sum())]
                for part, c in zip(features, seen, strict=True)
            ]
            for total, part, f in zip(sums, features, folds, strict=True):
                total[f == fold] += judged(*train, part[f == fold])
    return Probabilities(sums[0] / REPEATS, sums[1] / REPEATS)


def _folds(chances: Array, generator: np.random.Generator) -> NDArray[np.int64]:
    """Fold of every item; those of positive chance are spread evenly over the folds."""
    order = generator.permutation(len(chances))
    order = order[np.argsort(chances[order] <= 0, kind="stable")]
    folds = np.empty(len(chances), np.int64)
    folds[order] = np.arange(len(chances)) % FOLDS
    return folds


def judged(own: Array, other: Array, held: Array) -> Array:
    """P("own") of held rows [h, d] by a classifier fitted on own and other [k, d] each.

    Features are centred and scaled by the 2 k items together, and rows have length about
    1. Only the span of those items matters to a linear classifier with a ridge, so it is
    fitted in coordinates of it.
    """
    rows = np.concatenate([own, other])
    centre, scale = rows.mean(0), rows.std(0)
    scale = np.where(scale > 1e-6, scale, 1.0) * np.sqrt(rows.shape[1])
    rows, held = (rows - centre) / scale, (held - centre) / scale
    axes = np.linalg.svd(rows, full_matrices=False)[2].T
    labels = np.r_[np.ones(len(own)), -np.ones(len(other))]
    weights = np.full(len(rows), 1 / len(rows))
    logit = held @ axes @ ridge_logistic(rows @ axes, labels, weights)
    return np.exp(-np.logaddexp(0.0, -logit))
