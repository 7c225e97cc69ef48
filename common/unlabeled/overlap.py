"""alpha as in the paper: how sure a classifier is that unlabeled items are the user's.

The estimate of the paper (Ma et al., ACL 2026, "Objective"): fit a classifier that tells
the user's items from the unlabeled ones, and average the probability "the user's" over
the unlabeled items. This aims at the functional `data.functionals.classifier_mean`, which
is no share of a mixture.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Fewer items than this on either side give a classifier nothing to go by.
FEWEST = 4
# Used where nothing can be estimated: half-way, so that neither clean negatives (0) nor
# pure noise (0.9) is assumed.
DEFAULT = 0.5
HIGHEST = 0.9
FOLDS = 5
# Strength of the ridge in units of the features' mean square: with fewer items than
# dimensions the classes are always separable, so the ridge alone decides how sure the
# classifier gets. The ranking of users depends little on it (0.03 to 30 on Gaussian
# mixtures); a weak one lets alpha use more of its range.
RIDGE = 0.1


@dataclass(frozen=True)
class Overlap:
    """An estimate of alpha.

    Attributes
    ----------
    alpha
        In [0, 0.9].
    estimated
        False where there was too little data and the default stands.
    """

    alpha: float
    estimated: bool


def estimate(
    target: NDArray[np.float64],
    unlabeled: NDArray[np.float64],
    weights: NDArray[np.float64],
    generator: np.random.Generator,
) -> Overlap:
    """Estimate the preference overlap from embeddings.

    A ridge-logistic classifier is cross-fitted: every item is judged by a classifier that
    did not see it, since one that did would tell the classes apart by heart and push
    alpha to zero. Both classes weigh half. A user who cannot be told from the unlabeled
    set has alpha 1/2 if the two have equally many items, and less if the history is
    shorter: `heldout` says why, and `heldout.probabilities` is without that bias.

    Parameters
    ----------
    target
        Embeddings of the history [n, d].
    unlabeled, weights
        Embeddings of the unlabeled items [m, d] and their weights [m].
    generator
        Draws the folds.

    Returns
    -------
    Overlap
        The default, marked as not estimated, with fewer than 4 items on either side.
    """
    if min(len(target), len(unlabeled)) < FEWEST:
        return Overlap(DEFAULT, False)
    features = in_span(standardise(np.concatenate([target, unlabeled]), unlabeled))
    labels = np.r_[np.ones(len(target)), -np.ones(len(unlabeled))]
    balance = np.r_[
        np.full(len(target), 0.5 / len(target)), 0.5 * weights / weights.sum()
    ]
    sizes = len(target), len(unlabeled)
    folds = np.hstack([generator.permutation(np.arange(n) % FOLDS) for n in sizes])
    probability = np.empty(len(labels))
    for fold in range(FOLDS):
        held = folds == fold
        if held.any():
            probability[held] = _predict(
                features[~held], labels[~held], balance[~held], features[held]
            )
    mean = np.average(probability[len(target) :], weights=weights)
    return Overlap(float(np.clip(mean, 0.0, HIGHEST)), True)


def standardise(
    features: NDArray[np.float64], unlabeled: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Centre and scale by the unlabeled items, and by sqrt(d): rows of length about 1."""
    centre, scale = unlabeled.mean(0), unlabeled.std(0)
    scale = np.where(scale > 1e-6, scale, 1.0)
    return (features - centre) / scale / np.sqrt(features.shape[1])


def in_span(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coordinates of rows [n, d] in an orthonormal basis of their span, [n, <= n].

    All products of rows stay, so a linear classifier with a ridge predicts the same from
    them, however long the embeddings are.
    """
    values, vectors = np.linalg.eigh(rows @ rows.T)
    kept = values > 1e-12 * max(values.max(initial=0.0), 1e-300)
    return vectors[:, kept] * np.sqrt(values[kept])


def _predict(
    features: NDArray[np.float64],
    labels: NDArray[np.float64],
    balance: NDArray[np.float64],
    held: NDArray[np.float64],
) -> NDArray[np.float64]:
    """P(target) of held-out rows by a ridge-logistic classifier fitted on the others."""
    weights = balance / balance.sum()
    centre = weights @ features
    coefficients = ridge_logistic(features - centre, labels, weights)
    return _sigmoid((held - centre) @ coefficients)


def ridge_logistic(
    features: NDArray[np.float64],
    labels: NDArray[np.float64],
    weights: NDArray[np.float64],
    ridge: float = RIDGE,
) -> NDArray[np.float64]:
    """Minimise sum_i w_i log(1 + exp(-y_i x_i c)) + ridge / (2 n) |c|^2.

    Newton's method; the objective is strictly convex.

    Returns
    -------
    ndarray
        Coefficients c [d].
    """
    penalty = ridge / len(features)
    c = np.zeros(features.shape[1])
    for _ in range(50):
        p = _sigmoid(-labels * (features @ c))
        gradient = penalty * c - features.T @ (weights * labels * p)
        curvature = (features.T * (weights * p * (1 - p))) @ features
        step = np.linalg.solve(curvature + penalty * np.eye(len(c)), gradient)
        c = c - step
        if np.abs(step).max(initial=0.0) < 1e-9:
            break
    return c


def _sigmoid(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(-np.logaddexp(0.0, -z))
