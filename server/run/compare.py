"""Runs compared with each other, user by user."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console

from ...common.errors import refuse_if
from ...common.text import shown
from . import results

# Keys without which a metric is another one.
DECIDE = {
    "evaluate.rouge-tokens": ("rouge-1", "rouge-l"),
    "evaluate.meteor": ("meteor",),
    "evaluate.rivals": ("contrast", "mrr"),
    "seed": ("contrast", "mrr"),  # by which rivals are drawn
}
OF_TOKENS = ("nll", "nll_raw", "shift")  # per token of a model's own tokenizer


def compare(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Paired differences of every other run to the first one.

    Parameters
    ----------
    runs
        Name -> what its ``results.json`` holds, two or more.

    Returns
    -------
    dict
        ``runs`` (names), ``differ`` (key -> its values, in the order of the runs),
        ``left_out`` (metric -> why it is not compared), ``means`` (METHOD -> RUN ->
        METRIC -> interval) and ``differences`` (the same, of run - first; over users whom
        both have measured).

    Raises
    ------
    IdiolectError
        A run has no values per user, or does not say what it measured; or the runs
        measured other users or other texts, or have no method in common.
    """
    names, first = list(runs), next(iter(runs))
    for name in names:
        _check(name, runs[name])
    for name in names[1:]:
        _check_same(first, name, runs)
    differ = _differing([runs[name]["identity"] for name in names])
    left_out = {
        metric: f"{key} differs"
        for key, metrics in DECIDE.items()
        if key in differ
        for metric in metrics
    }
    if len({runs[name]["identity"]["model"] for name in names}) > 1:
        left_out |= dict.fromkeys(OF_TOKENS, "it is per token, and the models differ")
    methods = [
        method
        for method in runs[first]["methods"]
        if all(method in runs[name]["methods"] for name in names)
    ]
    refuse_if(
        not methods,
        f"runs {_listed(names)} have no method in common: compare runs of the same method, "
        "such as `shared`.",
    )
    means: dict[str, Any] = {}
    differences: dict[str, Any] = {}
    for method in methods:
        users = {
            user: {
                name: _without(runs[name]["users"][user][method], left_out)
                for name in names
                if method in runs[name]["users"].get(user, {})
            }
            for user in runs[first]["users"]
        }
        seed = runs[first]["run"]["seed"]
        means[method] = results.by_method(users, list(users), seed, RESAMPLES)
        differences[method] = {
            name: results.paired(users, name, first, seed, RESAMPLES)
            for name in names[1:]
        }
    return {"runs": names, "differ": differ, "left_out": left_out} | {
        "means": means,
        "differences": differences,
    }


RESAMPLES = 2000  # as a run has by default


def render(found: Mapping[str, Any], console: Console) -> None:
    """Print what `compare` found."""
    found = shown(found)
    for method, rows in found["means"].items():
        results.grid(console, f"{method}: mean [95 % interval over users]", rows)
        title = f"{method}: differences to {found['runs'][0]}; * interval clear of zero"
        results.grid(console, title, found["differences"][method], difference=True)
    lines = [
        f"{key}: {' | '.join(map(str, values))}"
        for key, values in found["differ"].items()
    ]
    left_out = found["left_out"].items()
    lines += [f"{metric} is not compared: {why}" for metric, why in left_out]
    count = max((m["n"] for m in _cells(found["differences"])), default=0)
    if count < results.FEW_USERS:
        few = f"fewer than {results.FEW_USERS} users: intervals are too narrow"
        console.print(few, markup=False, highlight=False, soft_wrap=True)
    head = [f"what differs, in the order {', '.join(found['runs'])}:"]
    for line in head + lines if lines else []:
        for part in results.wrapped(line, console.width):
            console.print(part, markup=False, highlight=False, soft_wrap=True)


def _cells(differences: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for rows in differences.values():
        for row in rows.values():
            yield from row.values()


def _check(name: str, run: Mapping[str, Any]) -> None:
    refuse_if(
        not run.get("users"),
        f"run '{name}' has no values per user, because its metrics have noise or nobody "
        "was measured: compare runs with privacy.metrics=clear.",
    )
    refuse_if(
        not (run.get("identity") or {}).get("measured"),
        f"run '{name}' does not say what its users were measured on, because it was on "
        "devices or an earlier version made it: compare runs that `idiolect-server "
        "simulate` of this version made.",
    )


def _check_same(first: str, other: str, runs: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse two runs that did not measure the same users on the same texts."""
    a, b = (runs[name]["identity"] for name in (first, other))
    same_users = set(runs[first]["users"]) == set(runs[other]["users"])
    what = ""
    if runs[first]["run"]["task"] != runs[other]["run"]["task"]:
        what = "another task"
    elif a["measured"] != b["measured"]:
        what = "other texts of the same users" if same_users else "other users"
    elif a["too_long"] != b["too_long"]:
        what = "other items, because not as many fit into its context"
    refuse_if(
        what,
        f"run '{other}' did not measure what run '{first}' did, but {what}: compare runs "
        "with the same task, data, users, held-out and engine.max-length, and for personas "
        "the same seed.",
    )


def _differing(identities: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """What is not the same everywhere: keys of the configuration, and hashes in short."""
    flat = [
        {**one["config"]}
        | {f"hash of {name}": str(one[name])[:12] for name in ("data", "public")}
        | {f"model's {part[0]}": part[2][:12] for part in _parts(one["model"])}
        for one in identities
    ]
    names = dict.fromkeys(name for one in flat for name in one)
    rows = {name: [one.get(name) for one in flat] for name in names}
    return {
        name: values
        for name, values in rows.items()
        if any(value != values[0] for value in values)
    }


def _parts(model: str) -> list[tuple[str, str, str]]:
    """Split ``weights:… config:…`` (`model_folder.identity`)."""
    return [part.partition(":") for part in model.split()]


def _without(row: Mapping[str, Any], left_out: Mapping[str, str]) -> dict[str, Any]:
    return {metric: value for metric, value in row.items() if metric not in left_out}


def _listed(names: Sequence[str]) -> str:
    return " and ".join(f"'{name}'" for name in names)
