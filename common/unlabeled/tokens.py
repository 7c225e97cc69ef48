"""Which tokens of unlabeled texts tell the population from the user.

C-BPO makes unlabeled texts less likely, whole as they are. Most of their tokens say nothing
about who wrote: the user would have used them too. Here each token gets a weight by how
much rarer it is in the user's own history than in the unlabeled set.

The weights are computed on the device from what it holds already, and nothing of them
leaves.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Tokens = Sequence[int]


def token_weights(
    own: Sequence[Tokens],
    population: Sequence[Tokens],
    shares: Sequence[float],
    texts: Sequence[Tokens],
) -> list[tuple[float, ...]]:
    """Weights of the tokens of unlabeled texts, with a mean of 1 over all of them.

    A token s gets the share of the population's use of it that the own history does not
    account for, max(0, 1 - p_s / u_s), with p_s / u_s estimated from counts:

        e_s = N sum_j h_j c_j(s) / sum_j h_j c_j     expected in the own history
        v_s = max(0, 1 - (n_s + 1) / (e_s + 1)) = max(0, e_s - n_s) / (e_s + 1)
        w   = v / mean of v over all tokens of the texts

    n_s of the N own tokens are s; population text j has weight h_j and c_j tokens, of
    which c_j(s) are s. (n_s + 1) / (e_s + 1) is the mean of a rate's posterior, with one
    occurrence expected and seen beforehand (the gamma-Poisson shrinker: DuMouchel 1999).
    So a rare token, such as a name, weighs little, since its absence says little; and the
    longer the history, the more is told. Tokens are counted without what is around them:
    most pairs of tokens do not come twice in a short history.

    max(0, 1 - p / u) is what C-BPO's subtraction at alpha = 1 leaves of the population
    where it is made token by token. The mean is kept at 1 so that the unlabeled term weighs
    as much as without weights, and is only spent elsewhere.

    Parameters
    ----------
    own
        Completions of the history, as token ids; at least one.
    population
        Completions of unlabeled texts that the rates u are estimated from.
    shares
        Weights h of these, not negative.
    texts
        Completions to be weighted.

    Returns
    -------
    list of tuple of float
        One for each of `texts`, one weight >= 0 for each token. All are 0 where no token
        of the texts is rarer in the own history: nothing tells the two apart.
    """
    size = 1 + max(max(ids, default=0) for ids in (*own, *population, *texts))
    seen = _counts(own, np.ones(len(own)), size)
    usual = _counts(population, np.asarray(shares, float), size)
    expected = seen.sum() * usual / max(usual.sum(), 1e-12)
    value = np.maximum(expected - seen, 0.0) / (expected + 1)
    found = [value[np.asarray(ids, np.int64)] for ids in texts]
    total, count = sum(float(part.sum()) for part in found), sum(map(len, found))
    scale = count / total if total else 0.0
    return [tuple((scale * part).tolist()) for part in found]


def _counts(
    rows: Sequence[Tokens], weights: NDArray[np.float64], size: int
) -> NDArray[np.float64]:
    """How often each token comes, [size], a row's tokens by the row's weight."""
    ids = np.concatenate([np.zeros(0, np.int64), *map(np.asarray, rows)])
    each = np.repeat(weights, [len(row) for row in rows])
    return np.bincount(ids.astype(np.int64), each, size).astype(float)
