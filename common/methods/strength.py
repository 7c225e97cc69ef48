"""Strength of an own adapter: by how much its change of the logits is multiplied.

pi_s adds s * scaling * (x A^T) B^T to each projection: s = 0 is the reference, 1 the
adapter as it was trained. To first order in s the logits are those of pi_ref plus s times
what the own adapter adds, so a strength s stands for decoding by contrast with
lambda = s - 1, at the cost of one forward pass per token instead of two. It is fitted on
texts of the user that the adapter was not trained on: on those that it was, a larger s
looks better than it is.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..config.keys import MOST_STRENGTH
from ..data.types import Item, User
from ..engine.adapters import Lora, scaled, stack
from ..engine.fitting import encode_all
from ..engine.reference import Reference
from ..engine.scoring import nll_per_token, score_users

GRID = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, MOST_STRENGTH)
PASSES = len(GRID) + 2  # over the texts that it is fitted on, the refinement included
SHARE = 5  # of this many texts one is kept back
FEWEST = 2  # texts to fit on, and to train on


def kept_back(user: User) -> tuple[User, tuple[Item, ...]]:
    """Split a history into what is trained on and what the strength is fitted on.

    The newest fifth is kept back, two items at least. A history of fewer than four is
    trained on as a whole, so the strength stays 1.
    """
    count = max(FEWEST, len(user.history) // SHARE)
    if len(user.history) - count < FEWEST:
        return user, ()
    return replace(user, history=user.history[:-count]), user.history[-count:]


def halves(items: Sequence[Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Split held-out items into older ones to fit on and newer ones to judge by.

    Fewer than four are too few for both: all of them judge.
    """
    count = len(items) // 2 if len(items) >= 2 * FEWEST else 0
    return tuple(items[:count]), tuple(items[count:])


def fit(
    reference: Reference, loras: Sequence[Lora], texts: Sequence[Sequence[Item]]
) -> list[float]:
    r"""Find the strength of each user's adapter: :math:`\arg\min_s \mathrm{NLL}(\pi_s)`.

    A line search without gradients: all of `GRID`, then the middles between the best and
    its neighbours. The NLL is per token. Of equal values the nearest to 1 is taken.

    Parameters
    ----------
    reference, loras
        The frozen reference, and the adapters of a stacking group, which have one shape.
    texts
        Items of each user that the adapter was not trained on; without any it is 1.

    Returns
    -------
    list of float
        In the order of `loras`, in [0, `MOST_STRENGTH`].
    """
    able = [k for k, items in enumerate(texts) if items]
    best = [1.0] * len(loras)
    if not able:
        return best
    encoded = [encode_all(reference.backbone, texts[k]) for k in able]
    found: list[dict[float, float]] = [{} for _ in able]

    def measure(strengths: Sequence[float]) -> None:
        own = [scaled(loras[k], s) for k, s in zip(able, strengths, strict=True)]
        policy = [reference.shared, stack(own)]
        scores = score_users(reference.backbone, policy, encoded)
        for one, s, logp, items in zip(found, strengths, scores, encoded, strict=True):
            one[s] = nll_per_token(logp, items)

    for s in GRID:
        measure([s] * len(able))
    tops = [_lowest(one) for one in found]
    for side in (-1, 1):
        measure([_middle(top, side) for top in tops])
    for k, one in zip(able, found, strict=True):
        best[k] = _lowest(one)
    return best


def _lowest(found: dict[float, float]) -> float:
    """The strength of the lowest NLL."""
    return min(found, key=lambda s: (found[s], abs(s - 1)))


def _middle(top: float, side: int) -> float:
    """The middle between a value of the grid and its neighbour; at an end, itself."""
    place = min(max(GRID.index(top) + side, 0), len(GRID) - 1)
    return (top + GRID[place]) / 2
