"""From verdicts to win rates: pure functions of what was answered.

The unit is the user, as everywhere: a user's score is the mean over the own prompts, the
win rate the mean over users, and its interval says what other users would have given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..findings.correlation import FEWEST, rank_correlation
from ..run.results import LOWER_IS_BETTER, bootstrap
from .question import TIE, score

RESAMPLES = 2000  # as a run has by default


@dataclass(frozen=True)
class Judged:
    """What was answered about one pair of outputs.

    Attributes
    ----------
    user
        Whose it is.
    first, second
        Verdicts in both orders (`question.score`); None: no verdict.
    same
        Whether both outputs are equal, so that nothing was asked: a tie.
    """

    user: str
    first: str | None = None
    second: str | None = None
    same: bool = False


def tally(judged: Sequence[Judged], seed: int) -> dict[str, Any]:
    """Return win rate, counts and the bias by position.

    Returns
    -------
    dict
        ``win-rate``: mean over users, interval and number of users (None: nobody);
        ``users``: user -> mean of win 1, tie 1/2, loss 0; ``wins``, ``ties``, ``losses``
        (pairs; ties include ``same``, pairs of equal outputs); ``unjudged``: pairs without
        a verdict in one of the orders, which count nowhere; ``asked``: pairs with both
        verdicts; ``followed``: those of them where the same place was chosen both times,
        whoever stood there, and ``first``: those where it was the first place.
    """
    asked = [one for one in judged if one.first and one.second and not one.same]
    users: dict[str, list[float]] = {}
    scores: list[float] = []
    for one in judged:
        if one.same or (one.first and one.second):
            found = score(one.first or TIE, one.second or TIE)
            users.setdefault(one.user, []).append(found)
            scores.append(found)
    means = {user: float(np.mean(values)) for user, values in users.items()}
    followed = [one for one in asked if one.first == one.second != TIE]
    rate = bootstrap(np.array([*means.values()]), seed, RESAMPLES) if means else None
    return {
        "win-rate": rate,
        "users": means,
        "wins": scores.count(1.0),
        "ties": scores.count(0.5),
        "losses": scores.count(0.0),
        "same": sum(one.same for one in judged),
        "unjudged": len(judged) - len(scores),
        "asked": len(asked),
        "followed": len(followed),
        "first": sum(one.first == "A" for one in followed),
    }


def agreement(
    scores: Mapping[str, float],
    users: Mapping[str, Mapping[str, Mapping[str, Any]]],
    one: str,
    other: str,
) -> dict[str, dict[str, float]]:
    """Rank correlation over users of the judge's scores with each other metric.

    Parameters
    ----------
    scores
        User -> score (`tally`).
    users
        User -> method -> metric -> value, of the run.
    one, other
        The methods: a metric's value is the difference ``one - other``, turned where lower
        is better, so agreement is positive.

    Returns
    -------
    dict
        Metric -> ``rho`` (Spearman's) and ``n`` (users); without metrics that fewer than
        five users have, or where all have the same value.
    """
    found: dict[str, dict[str, float]] = {}
    rows = {user: users.get(user, {}) for user in scores}
    names = dict.fromkeys(m for row in rows.values() for m in row.get(one, {}))
    for metric in names:
        sign = -1 if metric in LOWER_IS_BETTER else 1
        both: list[tuple[float, float]] = []
        for user, row in rows.items():
            a, b = (row.get(method, {}).get(metric) for method in (one, other))
            if a is not None and b is not None:
                both.append((scores[user], sign * (a - b)))
        columns = np.array(both).T
        if len(both) >= FEWEST and all(len({*column}) > 1 for column in columns):
            found[metric] = {"rho": rank_correlation(*columns), "n": len(both)}
    return found
