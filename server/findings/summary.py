"""A study in numbers: its claims, comparisons and curves, made from its cells."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...common.config import FIELDS, Scalar, presets
from ...common.config.keys import keys_of
from ...common.config.methods import current_name
from ...common.config.old import RENAMED
from ..run import results
from ..study.declaration import Study, comparisons
from .verdicts import Cell, chosen, difference, means_of, person_seed, values

# Kinds of unlabeled set whose text no noise protects, and what a line of theirs says.
NOT_PRIVATE = ("others", "anonymised")
TOTAL_INFINITE = " (adapter epsilon only, total infinite)"


def summary(study: Study, done: Sequence[Cell]) -> dict[str, Any]:
    """Everything that the findings say about a study, from its cells alone."""
    return {
        "name": study.name,
        "title": study.title,
        "question": study.question,
        "reading": study.reading,
        "answer": study.answer,
        "config": study.config,
        "grid": {k: [writable(v) for v in values] for k, values in study.grid.items()},
        "plot": study.plot,
        "measured": study.measured,
        "named": study.named,
        "claims": [difference(claim, done) for claim in study.claims],
        "compare": compared(study, done),
        "curve": curve(study, done, study.plot["metric"]) if study.plot else [],
        "also": {
            metric: curve(study, done, metric) for metric in study.plot.get("also", [])
        },
        "alpha": [entry for cell in done if (entry := alpha_against_truth(cell))],
        "rows": [
            {"cell": written(cell["cell"]), "method": method, "metrics": metrics}
            for cell in done
            for method, metrics in {**cell["methods"], **ends(cell)}.items()
        ],
        "recognition": [
            {"cell": written(cell["cell"]), **found}
            for cell in done
            if (found := cell.get("recognition"))
        ],
        "commits": sorted({cell["run"].get("commit", "") for cell in done} - {""}),
        "learning_rates": [cell["run"]["learning_rates"] for cell in done],
        "clamp_rate": [cell["run"]["clamp_rate"] for cell in done],
    }


def ends(cell: Cell) -> dict[str, Any]:
    """Rows `ceiling` and `floor` of a cell whose outputs were judged (`study.judge`)."""
    found = cell.get("recognition", {})
    return {name: found[name] for name in ("ceiling", "floor") if name in found}


def alpha_against_truth(cell: Cell) -> dict[str, Any] | None:
    """How well alpha ranks a cell's users (Spearman), and how far it is off on average.

    None where alpha was not estimated, is the same for all, or the truth is not known.
    """
    from scipy.stats import rankdata  # comes with the extra [server]

    truth, alpha = cell["run"]["overlap"], cell["run"].get("alpha", {})
    users = [user for user in truth if user in alpha]
    alike = len({alpha[user] for user in users}) == 1
    if not cell["run"].get("alpha_estimated") or len(users) < 3 or alike:
        return None
    # From 0; equal numbers share the mean of their ranks.
    one, other = (rankdata([by[u] for u in users]) - 1 for by in (truth, alpha))
    off = [abs(alpha[user] - truth[user]) for user in users]
    return {
        "cell": written(cell["cell"]),
        "n": len(users),
        "rank_correlation": float(np.corrcoef(one, other)[0, 1]),
        "error": float(np.mean(off)),
    }


def written(cell: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return a cell as JSON can hold it."""
    return {key: writable(value) for key, value in cell.items()}


def writable(value: Scalar) -> Scalar:
    """JSON has no infinity."""
    return "inf" if value == math.inf else value


def compared(study: Study, done: Sequence[Cell]) -> list[dict[str, Any]]:
    """Differences of ``[[compare]]``; a metric that a world does not have is left out."""
    return [
        {**names, **difference(claim, done)}
        for names, claim in comparisons(study)
        if all(values(side, claim, done) for side in (claim.one, claim.other))
    ]


def curve(study: Study, done: Sequence[Cell], metric: str) -> list[dict[str, Any]]:
    """Points of a metric, as plot and tables show them: mean and interval over users.

    ``[plot]`` names ``x`` (a key of the grid), ``metric``, optionally ``also`` (metrics of
    further tables), ``minus`` (a method whose value for the same user is subtracted),
    ``hide`` (methods that the picture leaves out) and ``users`` (``split`` draws unique and
    non-unique users apart). Every other key of the grid but the seed, and every method,
    makes a line of its own.
    """
    points: dict[tuple[str, Scalar], dict[tuple[int, str], list[float]]] = {}
    for cell in done:
        x = writable(cell["cell"][study.plot["x"]])
        for line, user, value in _plotted(study, cell, metric):
            person = (person_seed(cell), user)
            points.setdefault((line, x), {}).setdefault(person, []).append(value)
    return [
        {"line": line, "x": x, **results.bootstrap(means_of(found), seed=0)}
        for (line, x), found in points.items()
    ]


def _plotted(study: Study, cell: Cell, metric: str) -> Iterator[tuple[str, str, float]]:
    """Yield (line, user, value) for every user and method of a cell.

    A key that a method does not use is left out of the name of its line: cells that
    differ in nothing else hold the same values of the same users.
    """
    plot, minus = study.plot, study.plot.get("minus")
    halves = ("unique", "non-unique") if plot.get("users") == "split" else ("all",)
    for half in halves:
        for user in chosen(cell, half):
            metrics = cell["users"][user]
            start = metrics.get(minus, {}).get(metric) if minus else 0.0
            for method, found in metrics.items():
                value = found.get(metric)
                if method != minus and start is not None and value is not None:
                    name = [method, *_fixed(study, cell, method)]
                    name += [half] * (half != "all")
                    yield ", ".join(name), user, value - start


def _fixed(study: Study, cell: Cell, method: str) -> list[str]:
    """Keys of the grid, with their values, that tell a method's lines apart."""
    private = study.config.get("privacy.mode") == "central"
    return [
        f"{key.split('.')[-1]} {value}"
        + TOTAL_INFINITE
        * (private and key == "unlabeled.kind" and value in NOT_PRIVATE)
        for key, value in cell["cell"].items()
        if key not in ("seed", study.plot["x"])
        and len(study.grid[key]) > 1
        and not _unused(study, key, method)
    ]


def _unused(study: Study, key: str, method: str) -> bool:
    """Whether a method does not depend on a key, or on anything that it stands for."""
    meanings = study.named.get(key, {"": {key: ""}}).values()
    names = {RENAMED.get(name, name) for meaning in meanings for name in meaning}
    for preset in presets.PRESETS if "preset" in names else ():
        names = names - {"preset"} | presets.read(preset).keys()
    return names <= FIELDS.keys() - keys_of(current_name(method))
