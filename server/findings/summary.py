"""A study in numbers: its claims, comparisons and curves, made from its cells."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...common.config import Scalar
from ..run import results
from ..study.declaration import CHANGED, Study, cells, comparisons
from .correlation import correlated, rank_correlation
from .frontier import frontier
from .lines import line_of
from .published import beside
from .verdicts import PROMPTED, Cell, chosen, difference, idle, means_of, person_seed


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
        **changed_of(study),
        **missing_of(study, done),
        **({"published": beside(study, done)} if study.published else {}),
        "claims": [difference(claim, done) for claim in study.claims],
        "compare": compared(study, done),
        "curve": curve(study, done, study.plot["metric"]) if study.plot else [],
        "also": {
            metric: curve(study, done, metric) for metric in study.plot.get("also", [])
        },
        "frontier": frontier(study, done) if "frontier" in study.plot else {},
        "correlation": correlated(study, done) if "correlate" in study.plot else [],
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
        "idle": [
            {"cell": written(cell["cell"]), "method": method}
            for cell in done
            for method in PROMPTED
            if idle(cell, method)
        ],
        "shortened": [cell["run"].get("shortened") for cell in done],
        "commits": sorted({cell["run"].get("commit", "") for cell in done} - {""}),
        "learning_rates": [cell["run"]["learning_rates"] for cell in done],
        "clamp_rate": [cell["run"]["clamp_rate"] for cell in done],
    }


def missing_of(study: Study, done: Sequence[Cell]) -> dict[str, Any]:
    """Which cells are not measured yet, where a study is summarised before its end."""
    known = [cell["cell"] for cell in done]
    missing = [written(cell) for cell in cells(study) if cell not in known]
    return {"missing": missing} if missing else {}


def changed_of(study: Study) -> dict[str, Any]:
    """What a command line changed, and the name of the study that it changed."""
    declared = study.name.removesuffix(CHANGED)
    return {"changed": study.changed, "declared": declared} if study.changed else {}


def ends(cell: Cell) -> dict[str, Any]:
    """Rows `ceiling` and `floor` of a cell whose outputs were judged (`study.judge`)."""
    found = cell.get("recognition", {})
    return {name: found[name] for name in ("ceiling", "floor") if name in found}


def alpha_against_truth(cell: Cell) -> dict[str, Any] | None:
    """How well alpha ranks a cell's users (Spearman), and how far it is off on average.

    None where alpha was not estimated, is the same for all, or the truth is not known.
    """
    truth, alpha = cell["run"]["overlap"], cell["run"].get("alpha", {})
    users = [user for user in truth if user in alpha]
    alike = len({alpha[user] for user in users}) == 1
    if not cell["run"].get("alpha_estimated") or len(users) < 3 or alike:
        return None
    both = [[by[user] for user in users] for by in (truth, alpha)]
    off = [abs(alpha[user] - truth[user]) for user in users]
    return {
        "cell": written(cell["cell"]),
        "n": len(users),
        "rank_correlation": rank_correlation(*both),
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
        {**names, **found}
        for names, claim in comparisons(study)
        if "why" not in (found := difference(claim, done))
    ]


def curve(study: Study, done: Sequence[Cell], metric: str) -> list[dict[str, Any]]:
    """Points of a metric, as plot and tables show them: mean and interval over users.

    ``[plot]`` names ``x`` (a key of the grid), ``metric``, optionally ``also`` (metrics of
    further tables), ``minus`` (a method whose value for the same user is subtracted),
    ``hide`` (methods that the picture leaves out) and ``users`` (``split`` draws unique and
    non-unique users apart). Every other key of the grid but the seed, and every method,
    makes a line of its own. A method that is `idle` in a cell has no point there.
    """
    points: dict[tuple[str, Scalar], dict[tuple[int, str], list[float]]] = {}
    for cell in done:
        x = writable(cell["cell"][study.plot["x"]])
        for line, user, value in _plotted(study, cell, metric):
            person = (person_seed(cell), user)
            points.setdefault((line, x), {}).setdefault(person, []).append(value)
    return [
        {
            **{"line": line, "x": x},
            **results.bootstrap(means := means_of(found), seed=0),
            "median": float(np.median(means)),
        }
        for (line, x), found in points.items()
    ]


def _plotted(study: Study, cell: Cell, metric: str) -> Iterator[tuple[str, str, float]]:
    """Yield (line, user, value) for every user and method of a cell."""
    plot, minus = study.plot, study.plot.get("minus")
    halves = ("unique", "non-unique") if plot.get("users") == "split" else ("all",)
    for half in halves:
        for user in chosen(cell, half):
            metrics = cell["users"][user]
            start = metrics.get(minus, {}).get(metric) if minus else 0.0
            for method, found in metrics.items():
                value = found.get(metric)
                if idle(cell, method) or method == minus:
                    continue
                if start is not None and value is not None:
                    line = line_of(study, cell, method, plot["x"])
                    line += f", {half}" * (half != "all")
                    yield line, user, value - start
