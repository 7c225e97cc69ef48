"""Which recipe of study `recipe_choice` its rule chooses: prints them in order.

    python benchmarks/recipe_rule.py

In each world and seed all recipes of C-BPO are ranked by their means over users: by NLL
(lowest first), by MRR and by the MRR of the judge of authorship (highest first), as far as
they were measured. The lowest mean of all these ranks wins. Prints the recipes in order.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from idiolect.server.findings.page import load

FINDINGS = Path(__file__).resolve().parents[1] / "docs" / "findings"
STUDY = "recipe_choice"
METRICS = {"nll": 1, "mrr": -1, "recognised-mrr": -1}  # sign: lowest first
PLACE = ("seed", "world")

Recipe = tuple[tuple[str, Any], ...]


def ranks(rows: Sequence[Mapping[str, Any]]) -> dict[Recipe, dict[str, float]]:
    """Recipe -> metric -> mean rank over worlds and seeds, 1 is best; equals share ranks.

    Ordered by ``all``, the mean over everything that was ranked.
    """
    found: dict[Recipe, dict[str, list[float]]] = {}
    mine = [row for row in rows if row["method"] == "c-bpo"]
    for place in dict.fromkeys(_place(row) for row in mine):
        here = [row for row in mine if _place(row) == place]
        for metric, sign in METRICS.items():
            if all(metric in row["metrics"] for row in here):
                means = [sign * row["metrics"][metric]["mean"] for row in here]
                for row, rank in zip(here, rankdata(means), strict=True):
                    of_recipe = found.setdefault(_recipe(row), {})
                    of_recipe.setdefault(metric, []).append(float(rank))
    means = {
        recipe: {metric: float(np.mean(each)) for metric, each in by.items()}
        | {"all": float(np.mean([rank for each in by.values() for rank in each]))}
        for recipe, by in found.items()
    }
    return dict(sorted(means.items(), key=lambda pair: pair[1]["all"]))


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row["cell"][key] for key in PLACE)


def _recipe(row: Mapping[str, Any]) -> Recipe:
    return tuple((key, v) for key, v in row["cell"].items() if key not in PLACE)


def main() -> None:
    """Print the recipes in the order of the rule."""
    for recipe, by in ranks(load(FINDINGS)[STUDY]["rows"]).items():
        named = ", ".join(f"{key.split('.')[-1]} {value}" for key, value in recipe)
        print(f"{named:45}", ", ".join(f"{m} {mean:.2f}" for m, mean in by.items()))


if __name__ == "__main__":
    main()
