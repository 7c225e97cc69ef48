"""Do metrics agree about whom a method helps? Rank correlations over users."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..run import results
from ..study.declaration import Study
from .lines import line_of
from .verdicts import Cell, person_seed

# What every value is the difference to, for the same user.
START = "shared"
FEWEST = 5  # users

Person = tuple[int, str]


def correlated(study: Study, done: Sequence[Cell]) -> list[dict[str, Any]]:
    """Spearman's correlation of every two metrics of ``[plot]`` ``correlate``, over users.

    A user's value is the difference of a method to `shared`, turned where lower is better,
    so two metrics that agree correlate positively. There is one correlation for each line,
    that is each method in each setting, over the users of all seeds: differences between
    methods do not make metrics agree.

    Returns
    -------
    list of dict
        ``one``, ``other``, ``mean`` over the lines, ``least``, ``most``, ``lines``, and
        ``n`` (users of the smallest line). Two metrics that no line has both of are left
        out, and so are lines of fewer than five users, or where all have the same value.
    """
    lines = _gains(study, done)
    found: list[dict[str, Any]] = []
    for one, other in combinations(study.plot["correlate"], 2):
        rhos, counts = list[float](), list[int]()
        for people in lines.values():
            both = [(p[one], p[other]) for p in people if one in p and other in p]
            columns = np.array(both).T
            if len(both) >= FEWEST and all(len(set(column)) > 1 for column in columns):
                rhos.append(rank_correlation(*columns))
                counts.append(len(both))
        if rhos:
            ends = {"mean": float(np.mean(rhos)), "least": min(rhos), "most": max(rhos)}
            number = {"lines": len(rhos), "n": min(counts)}
            found.append({"one": one, "other": other, **ends, **number})
    return found


def rank_correlation(one: ArrayLike, other: ArrayLike) -> float:
    """Spearman's: of ranks from 0, equal numbers share the mean of theirs."""
    from scipy.stats import rankdata  # comes with the extra [server]

    return float(np.corrcoef([rankdata(one) - 1, rankdata(other) - 1])[0, 1])


def _gains(study: Study, done: Sequence[Cell]) -> dict[str, list[dict[str, float]]]:
    """Line -> the gains of each of its people, by metric."""
    lines: dict[str, dict[Person, dict[str, list[float]]]] = {}
    for cell in done:
        for user, methods in cell["users"].items():
            for method in methods.keys() - {START, *study.plot.get("hide", [])}:
                people = lines.setdefault(line_of(study, cell, method), {})
                known = people.setdefault((person_seed(cell), user), {})
                for metric in study.plot["correlate"]:
                    gain = _gain(metric, methods, method)
                    if gain is not None:
                        known.setdefault(metric, []).append(gain)
    return {
        line: [
            {metric: float(np.mean(values)) for metric, values in known.items()}
            for known in people.values()
        ]
        for line, people in lines.items()
    }


def _gain(
    metric: str, methods: Mapping[str, Mapping[str, float | None]], method: str
) -> float | None:
    """By how much a user is better off than with `shared`; None where it is not known."""
    value, start = (methods.get(name, {}).get(metric) for name in (method, START))
    if value is None or start is None:
        return None
    return start - value if metric in results.LOWER_IS_BETTER else value - start
