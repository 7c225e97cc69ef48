"""Strength of an own adapter: by how much its change of the logits is multiplied.

pi_s adds s * scaling * (x A^T) B^T to each projection: s = 0 is the reference, 1 the
adapter as it was trained. To first order in s the logits are those of pi_ref plus s times
what the own adapter adds, so a strength s stands for decoding by contrast with
lambda = s - 1, at the cost of one forward pass per token instead of two. It is fitted on
texts of the user that the adapter was not trained on: on those that it was, a larger s
looks better than it is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..config.keys import MOST_STRENGTH
from ..data.types import Item
from ..engine.adapters import Lora, scaled, stack
from ..engine.fitting import encode_all
from ..engine.reference import Reference
from ..engine.scoring import nll_per_token, score_users

FOLDS = 4  # of `fold`: each adapter learns from three quarters
GRID = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, MOST_STRENGTH)
PASSES = len(GRID) + 2  # over the texts that it is fitted on, the refinement included
SHARE = 5  # of this many texts one is kept back
FEWEST = 2  # texts to fit on, and to train on


Items = tuple[Item, ...]


def kept_back(history: Items) -> tuple[Items, Items]:
    """Split a history into what is trained on and what the strength is fitted on.

    The newest fifth is kept back, two items at least. A history of fewer than four is
    trained on as a whole, so the strength stays 1.
    """
    count = max(FEWEST, len(history) // SHARE)
    if len(history) - count < FEWEST:
        return history, ()
    return history[:-count], history[-count:]


def fold(history: Items, number: int) -> tuple[Items, Items]:
    """Split a history into what one of `FOLDS` trial adapters learns from, and the rest.

    The rests of all folds are the whole history. So the strength of an adapter of all of
    it is fitted on all of it, each text by an adapter that has not seen it (Stone 1974).
    Nothing is left of a history of fewer than four, so the strength stays 1.
    """
    if len(history) < 2 * FEWEST:
        return history, ()
    kept = history[number::FOLDS]
    rest = [item for i, item in enumerate(history) if i % FOLDS != number]
    return tuple(rest), kept


def halves(items: Sequence[Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Split held-out items into older ones to fit on and newer ones to judge by.

    Fewer than four are too few for both: all of them judge.
    """
    count = len(items) // 2 if len(items) >= 2 * FEWEST else 0
    return tuple(items[:count]), tuple(items[count:])


def fit(
    reference: Reference, trials: Sequence[Sequence[tuple[Lora, Sequence[Item]]]]
) -> list[float]:
    """Find the strength s of each user's adapter with the lowest NLL.

    A line search without gradients: all of `GRID`, then the middles between the best and
    its neighbours. The NLL is per token. Of equal values the nearest to 1 is taken.

    Parameters
    ----------
    reference
        The frozen reference.
    trials
        For each user pairs of an adapter and items that it was not trained on; the
        adapters have one shape. Without any item the strength is 1.

    Returns
    -------
    list of float
        In the order of `trials`, in [0, `MOST_STRENGTH`].
    """
    able = [
        (user, lora, encode_all(reference.backbone, items))
        for user, pairs in enumerate(trials)
        for lora, items in pairs
        if items
    ]
    # User -> strength -> NLL per token.
    found: dict[int, dict[float, float]] = {user: {} for user, _, _ in able}

    def measure(strengths: Mapping[int, float]) -> None:
        own = stack([scaled(lora, strengths[user]) for user, lora, _ in able])
        rows = [items for _, _, items in able]
        logp = score_users(reference.backbone, [reference.shared, own], rows)
        for user, s in strengths.items():
            mine = [k for k, (one, _, _) in enumerate(able) if one == user]
            scores = [score for k in mine for score in logp[k]]
            items = [item for k in mine for item in rows[k]]
            found[user][s] = nll_per_token(scores, items)

    if not found:
        return [1.0] * len(trials)
    for s in GRID:
        measure(dict.fromkeys(found, s))
    tops = {user: _lowest(one) for user, one in found.items()}
    for side in (-1, 1):
        measure({user: _middle(top, side) for user, top in tops.items()})
    best = {user: _lowest(one) for user, one in found.items()}
    return [best.get(user, 1.0) for user in range(len(trials))]


def _lowest(found: dict[float, float]) -> float:
    """The strength of the lowest NLL."""
    return min(found, key=lambda s: (found[s], abs(s - 1)))


def _middle(top: float, side: int) -> float:
    """The middle between a value of the grid and its neighbour; at an end, itself."""
    place = min(max(GRID.index(top) + side, 0), len(GRID) - 1)
    return (top + GRID[place]) / 2
