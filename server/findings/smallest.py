"""From which value of a key on one method is better: ``smallest`` of ``[[compare]]``."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .verdicts import standard_error


def corrected(entry: Mapping[str, Any], count: int) -> tuple[float, float]:
    """Interval of a mean difference that holds together with `count` - 1 others.

    mean +- t(1 - 0.05 / (2 count), n - 1) standard errors (Bonferroni): the chance that
    any of the `count` intervals misses its difference is at most 5 %.

    Parameters
    ----------
    entry
        ``mean``, ``ci95`` (bootstrap) and ``n`` users, at least two.
    count
        How many differences are looked at together.
    """
    from scipy.stats import t  # comes with the extra [server]

    half = float(t.isf(0.025 / count, entry["n"] - 1)) * standard_error(entry)
    return entry["mean"] - half, entry["mean"] + half


def helps_from(entries: Sequence[Mapping[str, Any]]) -> float | None:
    """Smallest value of x at which, and at all larger ones, a difference is an advantage.

    Parameters
    ----------
    entries
        One for each value: ``x``, ``mean``, ``ci95``, ``n``, and ``expect`` (``lower`` or
        ``higher``), which says what an advantage is.

    Returns
    -------
    float or None
        None: not even at the largest value does the corrected interval exclude zero.
    """
    found: float | None = None
    for entry in sorted(entries, key=lambda one: float(one["x"]), reverse=True):
        low, high = corrected(entry, len(entries))
        if not (high < 0 if entry["expect"] == "lower" else low > 0):
            break
        found = float(entry["x"])
    return found


def sentences(compared: Iterable[Mapping[str, Any]]) -> list[str]:
    """Say for each key and metric from which value on each method is better.

    Parameters
    ----------
    compared
        ``compare`` of a summary; entries without ``smallest`` are passed over.
    """
    asked: dict[tuple[str, str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for one in compared:
        if "smallest" in one:
            place = (one["smallest"], one["metric"], one["other"])
            asked.setdefault(place, {}).setdefault(one["one"], []).append(one)
    return [_sentence(*place, of) for place, of in asked.items()]


def _sentence(
    key: str, metric: str, other: str, of: Mapping[str, Sequence[Mapping[str, Any]]]
) -> str:
    values = list(dict.fromkeys(str(e["x"]) for one in of.values() for e in one))
    said: list[str] = []
    for name, entries in of.items():
        start = helps_from(entries)
        said.append(f"{name} {'at none' if start is None else f'from {start:g} on'}")
    return (
        f"**From which `{key}` on?** By {metric}, better than {other}: {', '.join(said)}. "
        f'Measured at {", ".join(values)}. "From N on": at N and at every larger value '
        "the 95 % interval of the difference (Student's t), corrected for the number of "
        "values (Bonferroni), excludes zero."
    )
