"""Frontiers: two metrics against each other, a curve per method along a key of the grid.

A method with a strength is no point but a curve, so one number does not say which of two
methods is better. A point *dominates* another if it is at least as good by both metrics and
clearly better by one.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any

from ...common.config import Scalar
from ..run import results
from ..study.declaration import Claim, Study, side_of
from .lines import line_of, unused
from .verdicts import Cell, difference, judged, means_of, values

AXES = ("x", "y")


def frontier(study: Study, done: Sequence[Cell]) -> dict[str, Any]:
    """Numbers of the frontier that ``[plot.frontier]`` declares.

    Returns
    -------
    dict
        The declaration, and ``curves``: ``line``, ``path``, and ``points`` with the value
        ``at`` and mean and interval on both axes (``x``, ``y``). A method that does not use
        the key has one point. ``pairs`` has every two points of two methods on curves that
        differ in nothing else: ``one``, ``other`` (lines), ``path``, ``one_at``,
        ``other_at`` and the paired differences ``x`` and ``y`` (`verdicts.difference`).
    """
    given = study.plot["frontier"]
    along = given["along"]
    paths: Mapping[str, list[Scalar]] = given.get("paths", {"": study.grid[along]})
    curves: list[dict[str, Any]] = []
    sides: list[tuple[dict[str, Scalar], str]] = []
    for line, side in _sides(study, done).items():
        alone = unused(study, along, side_of(side)[0])
        for path, ticks in (
            {"": study.grid[along][:1]}.items() if alone else paths.items()
        ):
            every = [(at, _point(given, side | {along: at}, done)) for at in ticks]
            points = [{"at": at, **point} for at, point in every if point]
            if points:
                curves.append({"line": line, "path": path, "points": points})
                sides.append((side, "" if alone else path))
    pairs = [
        {"one": a["line"], "other": b["line"], "path": a["path"], **pair}
        for (a, (one, path)), (b, (other, its)) in combinations(
            zip(curves, sides, strict=True), 2
        )
        if path == its and _comparable(study, one, other)
        for pair in _pairs(given, (one, a["points"]), (other, b["points"]), done)
    ]
    return {**given, "curves": curves, "pairs": pairs}


def _sides(study: Study, done: Sequence[Cell]) -> dict[str, dict[str, Scalar]]:
    """Line -> its method and the keys that select its cells, but for what varies in it."""
    along, hidden = study.plot["frontier"]["along"], study.plot.get("hide", [])
    found: dict[str, dict[str, Scalar]] = {}
    for cell in done:
        keys = {k: v for k, v in cell["cell"].items() if k not in ("seed", along)}
        for method in dict.fromkeys(m for user in cell["users"].values() for m in user):
            if method not in hidden:
                line = line_of(study, cell, method, along)
                found.setdefault(line, {**keys, "method": method})
    return found


def _point(
    given: Mapping[str, Any], side: dict[str, Scalar], done: Sequence[Cell]
) -> dict[str, Any]:
    """Mean and interval over users on both axes; nothing where one was not measured."""
    point: dict[str, Any] = {}
    for axis in AXES:
        people: dict[tuple[int, str], list[float]] = {}
        found = values(side, _claim(given[axis], side, side), done)
        for (_, person, user), value in found.items():
            people.setdefault((person, user), []).append(value)
        if len(people) < 2:
            return {}
        point[axis] = results.bootstrap(means_of(people), seed=0)
    return point


def _claim(metric: str, one: dict[str, Scalar], other: dict[str, Scalar]) -> Claim:
    """The claim that one is better than the other."""
    better = "lower" if metric in results.LOWER_IS_BETTER else "higher"
    return Claim("", metric, one, other, better)


def _comparable(
    study: Study, one: Mapping[str, Scalar], other: Mapping[str, Scalar]
) -> bool:
    """Whether two lines are two methods that use the key, in one setting."""
    (method, keys), (its, others) = side_of(one), side_of(other)
    along = study.plot["frontier"]["along"]
    if method == its or any(unused(study, along, name) for name in (method, its)):
        return False
    apart = [key for key in keys if keys[key] != others[key]]
    # A line of a method that does not use a key stands for all of its values.
    return all(any(unused(study, key, m) for m in (method, its)) for key in apart)


def _pairs(
    given: Mapping[str, Any],
    one: tuple[dict[str, Scalar], Sequence[Mapping[str, Any]]],
    other: tuple[dict[str, Scalar], Sequence[Mapping[str, Any]]],
    done: Sequence[Cell],
) -> Iterator[dict[str, Any]]:
    """Yield the differences of every point of one curve to every point of another."""
    along = given["along"]
    for a, b in product(one[1], other[1]):
        sides = one[0] | {along: a["at"]}, other[0] | {along: b["at"]}
        found = {axis: difference(_claim(given[axis], *sides), done) for axis in AXES}
        if not any("why" in entry for entry in found.values()):
            yield {"one_at": a["at"], "other_at": b["at"], **found}


def curve_name(line: str, path: str) -> str:
    """What a plot and its tables call a curve."""
    return f"{line}, {path}" if path else line


# --- who dominates whom, from the file of a study alone -----------------------------------


def dominated(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every point of a curve that a point of another method's dominates.

    One metric must be clearly better: p < 0.05 after Holm's correction over all differences
    of the frontier (`verdicts.judged`). The other must be at least as good: the whole 95 %
    interval of its difference lies above minus its margin (``margin``, default 0).

    Returns
    -------
    list of dict
        ``winner``, ``loser`` (lines), ``path``, ``by`` and ``at`` (the values of the two
        points), and the differences winner - loser on both axes: ``x``, ``y`` with ``mean``
        and ``ci95``. Of several points that dominate one, it is the one with the largest
        gain, in half widths of its intervals, added up over both axes.
    """
    pairs = found["pairs"]
    flat = judged([pair[axis] for pair in pairs for axis in AXES])
    best: dict[tuple[str, str, str, Scalar], tuple[float, dict[str, Any]]] = {}
    for place, pair in enumerate(pairs):
        axes = dict(zip(AXES, flat[2 * place : 2 * place + 2], strict=True))
        for sign, (winner, loser) in ((1, ("one", "other")), (-1, ("other", "one"))):
            seen = {axis: _turned(entry, sign) for axis, entry in axes.items()}
            if not _dominates(found, seen):
                continue
            entry = {
                **{"winner": pair[winner], "loser": pair[loser], "path": pair["path"]},
                **{"by": pair[f"{winner}_at"], "at": pair[f"{loser}_at"], **seen},
            }
            key = (entry["winner"], entry["loser"], entry["path"], entry["at"])
            gain = sum(map(_errors, seen.values()))
            if key not in best or gain > best[key][0]:
                best[key] = gain, entry
    return [entry for _, entry in best.values()]


def _turned(entry: Mapping[str, Any], sign: int) -> dict[str, Any]:
    """A difference, or that of the same two the other way round."""
    low, high = entry["ci95"]
    ends = [low, high] if sign > 0 else [-high, -low]
    verdict = {"confirmed": "reversed", "reversed": "confirmed"}
    word = entry["verdict"]
    return {
        **{"metric": entry["metric"], "expect": entry["expect"], "n": entry["n"]},
        **{"mean": sign * entry["mean"], "ci95": ends},
        "verdict": word if sign > 0 else verdict.get(word, word),
    }


def _dominates(found: Mapping[str, Any], axes: Mapping[str, Mapping[str, Any]]) -> bool:
    clear = any(entry["verdict"] == "confirmed" for entry in axes.values())
    margins = found.get("margin", {})
    return clear and all(
        entry["verdict"] == "confirmed"
        or _worst(entry) > -margins.get(entry["metric"], 0.0)
        for entry in axes.values()
    )


def _worst(entry: Mapping[str, Any]) -> float:
    """The worse end of an interval; above 0 is better."""
    low, high = entry["ci95"]
    return -high if entry["expect"] == "lower" else low


def _errors(entry: Mapping[str, Any]) -> float:
    """A gain in half widths of its interval."""
    low, high = entry["ci95"]
    gain = -entry["mean"] if entry["expect"] == "lower" else entry["mean"]
    return gain / ((high - low) / 2 or 1.0)
