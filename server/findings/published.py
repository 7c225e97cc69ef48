"""A study's numbers beside published ones, and whether both had the same setting."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...common.config import Scalar, flatten
from ..run import results
from ..study.declaration import Study, cell_config, matches
from ..study.published import MEASURED, NOT_STATED, Agreement, Published, agreement
from .verdicts import Cell, means_of, person_seed

INVENTED = (
    "**Stand-in data.** Texts were made up to try this study. Its numbers show that it "
    "runs. They say nothing about a method, and cannot be compared with published ones."
)
HEADS = "ours", "published"


def beside(study: Study, done: Sequence[Cell]) -> dict[str, Any]:
    """Rows of the table: one for each method in cells that differ in no key but the seed.

    Returns
    -------
    dict
        ``source``; ``tables`` with ``cell``, ``metrics`` and ``rows``; ``setting``: rows of
        what is stated (key, method or empty, published, here); ``silent``: the keys that
        nobody states; ``invented``. Empty if the study has no published numbers.
    """
    given = study.published
    if given is None:
        return {}
    tables = [_table(study, given, cell, done) for cell in _cells(given)]
    rows = [row for table in tables for row in table["rows"] if row["published"]]
    silent = dict.fromkeys(name for row in rows for name in row["silent"])
    return {
        "source": given.source,
        "tables": tables,
        "setting": _setting(study, given, done),
        "silent": list(silent),
        "invented": any(row["invented"] for row in rows),
    }


def _cells(given: Published) -> list[dict[str, Scalar]]:
    """What the numbers are for, each once."""
    return [
        dict(cell)
        for cell in dict.fromkeys(tuple(one.cell.items()) for one in given.numbers)
    ]


def _table(
    study: Study, given: Published, cell: Mapping[str, Scalar], done: Sequence[Cell]
) -> dict[str, Any]:
    """The table of what was published for some cells."""
    numbers = {one.metric: one.values for one in given.numbers if one.cell == cell}
    here = [one for one in done if matches(one["cell"], cell)]
    groups: dict[tuple[tuple[str, Scalar], ...], list[Cell]] = {}
    for one in here:
        rest = {k: v for k, v in one["cell"].items() if k not in (*cell, "seed")}
        groups.setdefault(tuple(rest.items()), []).append(one)
    rows: list[dict[str, Any]] = []
    for rest, alike in groups.items():
        methods = dict.fromkeys(m for one in alike for m in one["methods"])
        for method in dict.fromkeys((*methods, *itertools.chain(*numbers.values()))):
            stated = {m: v[method] for m, v in numbers.items() if method in v}
            rows.append(
                {
                    "where": dict(rest),
                    "method": method,
                    "ours": {m: mean(alike, method, m) for m in numbers},
                    "published": stated,
                    **_compared(study, given, method, alike),
                }
            )
    return {"cell": dict(cell), "metrics": list(numbers), "rows": rows}


def mean(cells: Sequence[Cell], method: str, metric: str) -> dict[str, Any] | None:
    """Mean of a method over users, each with their mean over seeds; None: not measured."""
    people: dict[tuple[int, str], list[float]] = {}
    for cell in cells:
        for user, found in cell["users"].items():
            value = found.get(method, {}).get(metric)
            if value is not None:
                people.setdefault((person_seed(cell), user), []).append(value)
    return results.bootstrap(means_of(people), seed=0) if people else None


def _compared(
    study: Study, given: Published, method: str, cells: Sequence[Cell]
) -> dict[str, Any]:
    """What of the setting differs in any of these cells, or is open."""
    found = [_agreement(study, given, method, cell) for cell in cells]

    def every(name: str) -> list[str]:
        return list(dict.fromkeys(n for one in found for n in getattr(one, name)))

    silent = every("silent")
    # What a command line changed is named, though the source does not mention it.
    changed = [name for name in silent if name in study.changed]
    return {
        "invented": any(one.invented for one in found),
        "differ": every("differ"),
        "open": [*every("open"), *changed],
        "silent": [name for name in silent if name not in changed],
    }


def _agreement(study: Study, given: Published, method: str, cell: Cell) -> Agreement:
    measured = {name: cell["run"].get(name) for name in MEASURED}
    config = cell_config(study, cell["cell"])
    return agreement(given, method, config, {**measured, "users": cell["users"]})


def _setting(
    study: Study, given: Published, done: Sequence[Cell]
) -> list[dict[str, Any]]:
    """What is stated, key by key, with the values of the cells."""
    flat = [
        flatten(cell_config(study, cell["cell"]))
        | {name: cell["run"].get(name, "not recorded") for name in MEASURED}
        for cell in done
    ]
    stated = [("", given.setting), *given.own.items()]
    return [
        {
            "key": name,
            "method": method,
            "published": value,
            "here": list(dict.fromkeys(str(one[name]) for one in flat)),
        }
        for method, keys in stated
        for name, value in keys.items()
    ]


def same(row: Mapping[str, Any]) -> str:
    """What the last column says: yes, or why not, or what nobody knows."""
    if not row["published"]:
        return ""
    reasons = ["stand-in data"] * row["invented"]
    reasons += [f"`{name}`" for name in row["differ"]]
    unknown = ", ".join(f"`{name}`" for name in row["open"])
    if count := len(row["silent"]):
        unknown += f" and {count} more" if unknown else f"{count} keys"
    said = [f"no: {', '.join(reasons)}"] if reasons else []
    said += [f"{NOT_STATED}: {unknown}"] if unknown else []
    return "; ".join(said) or "yes"


def sentences(found: Mapping[str, Any]) -> list[str]:
    """What stands above the tables."""
    return [
        f"Published: {found['source']}",
        (
            "*Same setting?* names the keys that differ, then what the source does not "
            "state, which is never taken to be equal. `parameters` are those of the "
            "backbone, `texts` the SHA-256 of all texts. Two numbers are measured alike "
            "only where it says *yes*."
        ),
    ]


def warnings(found: Mapping[str, Any]) -> list[str]:
    """What stands at the head of a page, of a study's whole summary."""
    return [INVENTED] if (found.get("published") or {}).get("invented") else []


def rows_of(table: Mapping[str, Any]) -> Iterator[list[str]]:
    """Rows of one table: where, method, ours and published by each metric, same setting."""
    for row in table["rows"]:
        pairs = (
            (_shown(row["ours"][metric]), _number(row["published"].get(metric)))
            for metric in table["metrics"]
        )
        yield [
            *map(str, row["where"].values()),
            row["method"],
            *itertools.chain(*pairs),
            same(row),
        ]


def heads_of(table: Mapping[str, Any]) -> list[str]:
    """Heads of `rows_of`."""
    where = table["rows"][0]["where"] if table["rows"] else {}
    both = (f"{metric}, {head}" for metric in table["metrics"] for head in HEADS)
    return [*where, "method", *both, "same setting?"]


def setting_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """What is stated beside what the cells have."""
    return [
        [
            row["key"] + f" ({row['method']})" * bool(row["method"]),
            str(row["published"]),
            "; ".join(row["here"]),
        ]
        for row in found["setting"]
    ]


def _shown(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "not measured"
    ends = found.get("ci95")
    interval = f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else ""
    return f"{found['mean']:.3f}{interval}, {found['n']} users"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
