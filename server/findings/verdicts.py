"""The difference that a claim is about, and the verdict on it."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...common.config import PERSONAS, Scalar
from ...common.errors import IdiolectError
from ..run import results
from ..study.declaration import BEST, Claim, matches, side_of

# What the judge of authorship measures (`study.judge`), unless it refuses to.
RECOGNISED = ("recognised", "recognised-mrr")

# Methods that are the shared model behind longer prompts.
PROMPTED = ("rag", "pag")
# Likelihoods of the same prompts differ by rounding: passes are put together otherwise.
ROUNDING = 1e-6

Cell = Mapping[str, Any]
"""One cell as `study.cells.run_study` returns it."""


def difference(claim: Claim, done: Sequence[Cell]) -> dict[str, Any]:
    """Paired difference that a claim is about, over all users and seeds.

    Personas of different seeds are different people. Users of real data are the same for
    every seed, so each counts once, with the mean over the seeds.

    Returns
    -------
    dict
        ``claim``, ``metric``, ``users``, ``expect``, ``mean``, ``ci95``, ``n``, and ``se``,
        the standard error of the mean. Where fewer than two users have the metric on both
        sides, ``why`` takes the place of ``mean``, ``ci95`` and ``se``.
    """
    one, other = (values(side, claim, done) for side in (claim.one, claim.other))
    people: dict[tuple[int, str], list[float]] = {}
    for key in one:
        if key in other:
            people.setdefault(key[1:], []).append(one[key] - other[key])
    found = {
        "claim": claim.text,
        "metric": claim.metric,
        "users": claim.users,
        "expect": claim.expect,
    }
    for method, keys in map(side_of, (claim.one, claim.other)):
        if any(idle(c, method) for c in done if matches(c["cell"], keys)):
            return {
                **found,
                "n": 0,
                "why": f"{method} puts no text into any prompt here",
            }
    if len(people) < 2:
        return {**found, "n": len(people), "why": _why(claim, done, len(people))}
    gaps = means_of(people)
    error = float(np.std(gaps, ddof=1) / math.sqrt(len(gaps)))
    return {**found, **results.bootstrap(gaps, seed=0), "se": error}


def idle(cell: Cell, method: str) -> bool:
    """Whether RAG or PAG put no text into any prompt, so that it is the shared model.

    Where no text of the history has room beside a prompt, every likelihood stays as it was.
    """
    if method not in PROMPTED:
        return False
    pairs = [
        [found.get(name, {}).get("nll") for name in (method, "shared")]
        for found in cell["users"].values()
    ]
    gaps = [abs(one - other) for one, other in pairs if None not in (one, other)]
    return bool(gaps) and max(gaps) < ROUNDING


def _why(claim: Claim, done: Sequence[Cell], count: int) -> str:
    """Say why a claim has too few users: no cells yet, the judge refused, or no values."""
    sides = [side_of(side)[1] for side in (claim.one, claim.other)]
    fixed = [{k: v for k, v in keys.items() if v != BEST} for keys in sides]
    here = [[c for c in done if matches(c["cell"], keys)] for keys in fixed]
    if not all(here):
        return "its cells are not measured yet"
    if claim.metric in RECOGNISED:
        for cell in itertools.chain(*here):
            if not cell.get("recognition"):
                return "outputs were not judged here"
            if not cell["recognition"]["apart"]:
                return "the judge cannot tell authors apart here"
    return f"{count} users have {claim.metric} on both sides, two are needed"


def person_seed(cell: Cell) -> int:
    """Return the seed of a persona; 0 for users of real data, who do not depend on it."""
    return cell["run"]["seed"] if cell["run"]["task"] in PERSONAS else 0


def means_of(people: Mapping[Any, Sequence[float]]) -> np.ndarray:
    """Return each person's mean."""
    return np.array([np.mean(values) for values in people.values()])


def judged(claims: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Add to each difference of a study ``p``, corrected by Holm (1979), and ``verdict``.

    Of n claims the smallest p is multiplied by n, the next by n - 1, and so on; a corrected
    p is never below the one before it. Then the probability that any claim whose difference
    is zero is called confirmed or reversed is at most 5 %. Claims that were not measured do
    not count.

    Returns
    -------
    list of dict
        ``verdict`` is ``confirmed`` where p < 0.05 and the sign is the one that the claim
        predicts, ``reversed`` where it is the other, else ``not confirmed``; and
        ``not measured``, without p, where `difference` says why.
    """
    alone = {k: _p_value(claim) for k, claim in enumerate(claims) if "why" not in claim}
    corrected, last = dict[int, float](), 0.0
    for rank, k in enumerate(sorted(alone, key=alone.__getitem__)):
        last = corrected[k] = max(last, min(1.0, (len(alone) - rank) * alone[k]))
    return [
        {**claim, "p": corrected[k], "verdict": _word(claim, corrected[k])}
        if k in corrected
        else {**claim, "verdict": "not measured"}
        for k, claim in enumerate(claims)
    ]


def _p_value(claim: Mapping[str, Any]) -> float:
    """Return the two-sided p of Student's t that the mean difference of n users is zero."""
    from scipy.stats import t  # comes with the extra [server]

    error = standard_error(claim)
    if error <= 1e-9 * abs(claim["mean"]):  # all alike: the sign test
        return 2.0 ** (1 - claim["n"]) if claim["mean"] else 1.0
    return float(2 * t.sf(abs(claim["mean"]) / error, claim["n"] - 1))


def standard_error(found: Mapping[str, Any]) -> float:
    """Return the standard error of a mean over n users.

    A finding of an earlier version has none: there it is that of the bootstrap's interval.
    The bootstrap divides the variance by n and not by n - 1, so its interval is widened by
    sqrt(n / (n - 1)). Of a handful of users it is still too narrow.
    """
    if "se" in found:
        return found["se"]
    (low, high), n = found["ci95"], found["n"]
    return (high - low) / (2 * 1.959964) * math.sqrt(n / (n - 1))


def _word(claim: Mapping[str, Any], p: float) -> str:
    as_predicted = (
        claim["mean"] < 0 if claim["expect"] == "lower" else claim["mean"] > 0
    )
    word = "confirmed" if as_predicted else "reversed"
    return word if p < 0.05 else "not confirmed"


def values(
    side: Mapping[str, Scalar], claim: Claim, done: Sequence[Cell]
) -> dict[tuple[int, int, str], float]:
    """(seed, person's seed, user) -> the metric of one side of a claim.

    The person's seed is 0 for users of real data, who are the same for every seed. For a
    key whose value is `BEST`, each user's best value is taken.
    """
    method, keys = side_of(side)
    fixed = {key: value for key, value in keys.items() if value != BEST}
    better = min if claim.metric in results.LOWER_IS_BETTER else max
    found: dict[tuple[int, int, str], float] = {}
    group: dict[int, dict[str, Scalar]] = {}
    for cell in (cell for cell in done if matches(cell["cell"], fixed)):
        rest = {k: v for k, v in cell["cell"].items() if k not in keys}
        seed = cell["run"]["seed"]
        group.setdefault(seed, rest)
        for user in chosen(cell, claim.users):
            value = cell["users"][user].get(method, {}).get(claim.metric)
            place = (seed, person_seed(cell), user)
            known = found.get(place, value)
            if value is not None and (place not in found or rest == group[seed]):
                found[place] = better(known, value)
            elif value is not None and known != value:
                raise IdiolectError(
                    f"claim {claim.text!r}: {dict(side)} names several cells of one "
                    "seed: name all other keys of the grid too."
                )
    return found


def chosen(cell: Cell, users: str) -> list[str]:
    """Return the users of a cell, or the half of them that a claim is about."""
    if users == "all":
        return list(cell["users"])
    overlap = cell["run"]["overlap"] or cell["run"]["alpha"]
    # A user whose training overflowed has no alpha.
    known = {user: overlap[user] for user in cell["users"] if user in overlap}
    return results.split_by_alpha(known)[users] if known else []
