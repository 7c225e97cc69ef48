"""Who won, in one sentence: from paired differences and their intervals alone."""

from collections.abc import Mapping
from typing import Any

from ..run.results import LOWER_IS_BETTER, paired
from .parts import clear_of_zero, ends_of, has_mean, interval

NOT_RANKED = ("strength", "shift")  # measured, but neither more nor less is better
DRAWS = 2000  # of a difference that the results do not hold


def ranked(results: Mapping[str, Any], metric: str) -> list[str]:
    """Return the methods that have a metric, the best mean first, then by name."""
    sign = 1 if metric in LOWER_IS_BETTER else -1
    means = {
        name: row[metric]["mean"]
        for name, row in results["methods"].items()
        if has_mean(row.get(metric))
    }
    return sorted(means, key=lambda name: (sign * means[name], name))


def difference(
    results: Mapping[str, Any], one: str, other: str, metric: str
) -> Mapping[str, Any] | None:
    """Return the entry of ``one - other``: as the results hold it, turned round, or made.

    None where no user has both.
    """
    pairs = results["pairs"]
    if has_mean(found := pairs.get(f"{one} - {other}", {}).get(metric)):
        return found
    if has_mean(found := pairs.get(f"{other} - {one}", {}).get(metric)):
        ends = ends_of(found)
        turned = ends and [-ends[1], -ends[0]]
        return {"mean": -found["mean"], "ci95": turned, "n": found.get("n")}
    users = {
        user: {m: {metric: row[metric]} for m, row in methods.items() if metric in row}
        for user, methods in results["users"].items()
    }
    seed = results["run"].get("seed") or 0
    return paired(users, one, other, seed, DRAWS).get(metric)


def winner(results: Mapping[str, Any], metric: str = "nll") -> str:
    """Say who won by a metric, or that no difference is shown.

    The best mean is compared with the next best: it won where the 95 % interval of
    their paired difference does not contain zero. That the two were chosen by their means
    is not corrected for.
    """
    names = ranked(results, metric)
    if not names:
        return f"Nobody was measured by {metric}, so nobody won."
    if len(names) == 1:
        return f"Only {names[0]} was measured by {metric}: there is nothing to compare."
    best, second = names[:2]
    found = difference(results, best, second, metric)
    if found is None:
        return (
            f"No difference shown: {best} has the best mean of {metric} and {second} the "
            "next, but no user's values are known for both."
        )
    count = f"{found['n']} user{'s' * (found['n'] != 1)}"
    ends = ends_of(found)
    if ends is None:
        return (
            f"No difference shown between {best} and {second}, the two best by {metric}: "
            f"{count} {'have' if found['n'] != 1 else 'has'} no interval."
        )
    if clear_of_zero(found):
        low, high = sorted(map(abs, ends))
        side = "lower" if found["mean"] < 0 else "higher"
        return (
            f"{best} won: its {metric} is {abs(found['mean']):.3f} {side} than that of "
            f"{second}, the next best (95 % interval {low:.3f} to {high:.3f}, "
            f"{count})."
        )
    return (
        f"No difference shown between {best} and {second}, the two best by {metric}: "
        f"{best} - {second} is {found['mean']:+.3f} (95 % interval "
        f"{interval({'ci95': list(ends)}, signed=True)}, {count})."
    )


def metrics_of(results: Mapping[str, Any]) -> list[str]:
    """Metrics that some method has a mean of, ``nll`` first."""
    found = dict.fromkeys(
        metric
        for row in results["methods"].values()
        for metric, entry in row.items()
        if has_mean(entry)
    )
    return sorted(found, key=lambda metric: metric != "nll")
