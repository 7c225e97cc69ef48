"""Results of a run: intervals over users, ``results.json``, and the table.

The unit of every statistic is the user: a method's mean is the mean of its users' values,
and an interval says what other users of the same kind would have given.
"""

import contextlib
import fcntl
import gzip
import json
import statistics
import subprocess
import textwrap
from collections.abc import Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...common.config import UNTRAINED
from ...common.config.old import renamed
from ...common.data.types import OF_ITEMS
from ...common.errors import IdiolectError, refuse_if
from ...common.files import home, write_atomically
from ...common.text import shown
from ..privacy.card import describe

Users = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""User -> method -> metric -> value; None where it could not be measured."""

# What the other methods are compared with. `base` takes the place of `shared` where that
# was not run, and the first method with an own adapter that of `sft` and `bco`.
PROMPTED = ("rag", "pag")
REFERENCES = ("shared", *PROMPTED, "sft", "bco")

# Without rivals, as on devices, there is nothing that a text could be ranked among.
ABSENT = {"contrast": None}

FEW_USERS = 20  # below, percentile intervals cover visibly less than they say

LOWER_IS_BETTER = ("nll", "nll_raw", "mae", "rmse")

PACKAGE = Path(__file__).resolve().parents[2]


@lru_cache(maxsize=1)
def git_commit() -> str:
    """Commit of the checkout that this package is run from, or nothing.

    With a ``+`` where a file that git knows was changed since. Asked once a process: every
    cell of a study says it.
    """
    if not (PACKAGE / ".git").exists():
        return ""
    # Without tags: the commit alone.
    command = ["git", "-C", str(PACKAGE), "describe", "--always", "--exclude=*"]
    command += ["--abbrev=12", "--dirty=+"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def bootstrap(values: np.ndarray, seed: int, resamples: int = 2000) -> dict[str, Any]:
    r"""Mean over users and its 95 % percentile bootstrap interval.

    Users are drawn with replacement. Of a difference between two methods this is the
    paired interval :math:`[q_{.025}, q_{.975}]` of the resampled means (Efron, 1979).

    Parameters
    ----------
    values
        float ``[users]``, finite.
    seed
        Seed of the draws; they depend on nothing else but the number of users.
    resamples
        Resampled means. With 2000, the rank of each end is off by 7 (one standard
        error), that is 0.35 percentage points of the tail.

    Returns
    -------
    dict
        ``{"mean", "ci95": [low, high] or None, "n"}``; one user has no interval.
    """
    from ...common.seeds import numpy_generator  # imports torch: too slow for `runs`

    count = len(values)
    generator = numpy_generator(seed, "bootstrap", count)
    # How often each user is drawn, instead of who: one matrix product gives every mean.
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=resamples)
    low, high = np.quantile(drawn @ values / count, (0.025, 0.975))
    return {
        "mean": float(values.mean()),
        "ci95": [float(low), float(high)] if count > 1 else None,
        "n": count,
    }


def summarise(
    rows: Sequence[Mapping[str, float | None]], seed: int, resamples: int
) -> dict[str, Any]:
    """METRIC -> mean, interval and number of users, from one row per user.

    A value that is missing or not finite is left out; `n` says how many remain.
    """
    summary: dict[str, Any] = {}
    for metric in dict.fromkeys(name for row in rows for name in row):
        values = np.array([row.get(metric) for row in rows], np.float64)  # None is NaN
        values = values[np.isfinite(values)]
        if len(values):
            summary[metric] = bootstrap(values, seed, resamples)
    return summary


def by_method(
    users: Users, names: Sequence[str], seed: int, resamples: int
) -> dict[str, Any]:
    """METHOD -> METRIC -> interval, over the users named."""
    methods = dict.fromkeys(method for name in names for method in users[name])
    return {
        method: summarise(
            [users[name][method] for name in names if method in users[name]],
            seed,
            resamples,
        )
        for method in methods
    }


def pairs_of(methods: Sequence[str]) -> list[tuple[str, str]]:
    """Which methods are compared: ``(one, other)`` stands for ``one - other``.

    Every method with an own adapter is compared with every reference that was run, and so
    are prompts with `shared`; `shared` itself is compared with `base`.
    """
    references = [other for other in REFERENCES if other in methods]
    pairs = [("shared", "base")] if {"shared", "base"} <= set(methods) else []
    if "shared" not in references and "base" in methods:
        references.insert(0, "base")
    trained = [one for one in methods if one not in UNTRAINED]
    if not {"sft", "bco"} & set(methods):
        references += sorted(trained, key="c-bpo".__eq__)[:1]
    for other in references:
        ones = trained if other in PROMPTED else [*PROMPTED, *trained]
        # bco - sft also says what sft - bco would.
        pairs += [
            (one, other)
            for one in methods
            if one in ones and one != other and (other, one) not in pairs
        ]
    return pairs


def paired(
    users: Users, one: str, other: str, seed: int, resamples: int
) -> dict[str, Any]:
    """METRIC -> interval of ``one - other``, over users who have both."""
    rows: list[dict[str, float]] = []
    for methods in users.values():
        if one in methods and other in methods:
            a, b = methods[one], methods[other]
            rows.append(
                {
                    metric: a[metric] - b[metric]
                    for metric in a
                    if a[metric] is not None and b.get(metric) is not None
                }
            )
    return summarise(rows, seed, resamples)


def split_by_alpha(alpha: Mapping[str, float]) -> dict[str, list[str]]:
    """Unique and non-unique users: below the median overlap, and the others."""
    median = statistics.median(alpha.values())
    return {
        "unique": [user for user, value in alpha.items() if value < median],
        "non-unique": [user for user, value in alpha.items() if value >= median],
    }


def build(  # eight, by name only: most are sections of the file
    *,
    run: Mapping[str, Any],
    users: Users,
    alpha: Mapping[str, float],
    alpha_estimated: bool,
    cost: Mapping[str, Any],
    privacy: Mapping[str, Any],
    seed: int,
    resamples: int = 2000,
) -> dict[str, Any]:
    """Everything that ``results.json`` says.

    Parameters
    ----------
    run
        Name, task, backbone, versions, learning rates, failed users, ...: taken over.
    users
        User -> method -> metric -> value, of the evaluated users.
    alpha
        User -> preference overlap that was used.
    alpha_estimated
        Whether alpha was estimated from the users' text. A fixed alpha says nothing
        about who is unique, so there is no split then.
    cost
        ``bytes_up``, ``bytes_down`` (None: withheld), ``seconds`` by phase,
        ``peak_rss_mb``.
    privacy
        The privacy card (`privacy.card`).
    seed, resamples
        Of the bootstrap.
    """
    methods = by_method(users, list(users), seed, resamples)
    known = {user: value for user, value in alpha.items() if user in users}
    groups = split_by_alpha(known) if alpha_estimated and known else {}
    return {
        "run": {
            **run,
            "alpha": dict(alpha),
            "alpha_estimated": alpha_estimated,
        },
        "methods": methods,
        "pairs": {
            f"{one} - {other}": paired(users, one, other, seed, resamples)
            for one, other in pairs_of(list(methods))
        },
        "split": {
            group: by_method(users, names, seed, resamples)
            for group, names in groups.items()
        },
        "users": {
            user: {method: {**ABSENT, **row} for method, row in values.items()}
            for user, values in users.items()
        },
        "cost": dict(cost),
        "privacy": dict(privacy),
    }


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part.

    NaN and infinity become null: JSON has neither.
    """
    plain = json.loads(json.dumps(value, default=_plain), parse_constant=lambda _: None)
    write_atomically(path, (json.dumps(plain, indent=2) + "\n").encode())


def write_packed(path: Path, value: object) -> None:
    """Write plain JSON without blanks, gzipped; the same value gives the same bytes."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, gzip.compress(text.encode(), mtime=0))


def _plain(value: Any) -> Any:
    """A mapping or a numpy number as JSON knows it."""
    return value.item() if isinstance(value, np.generic) else dict(value)


def runs_folder(output_dir: str = "") -> Path:
    """Where runs are written: `output_dir`, or ``$IDIOLECT_HOME/runs``, absolute."""
    return Path(output_dir or home() / "runs").expanduser().absolute()


def find(output_dir: str, name: str) -> Path:
    """Return the folder of a run; `name` may be ``latest``.

    Raises
    ------
    IdiolectError
        No such run.
    """
    folder = runs_folder(output_dir) / name
    refuse_if(
        "/" in name or name in ("", ".", "..") or not folder.is_dir(),
        (
            f"there is no run '{name}' in {runs_folder(output_dir)}: "
            "`idiolect-server runs` lists the runs, --output-dir looks elsewhere."
        ),
    )
    return folder.resolve()


def load(output_dir: str, name: str) -> dict[str, Any]:
    """Read the results of a run; `name` may be ``latest``.

    Raises
    ------
    IdiolectError
        No such run, no results yet, or a file that is not JSON.
    """
    folder = find(output_dir, name)
    try:
        return renamed(json.loads((folder / "results.json").read_text()))
    except FileNotFoundError:
        state = state_of(folder)
        resume = (
            f"the command that began it, with --resume {folder.name}, goes on with it."
        )
        raise IdiolectError(
            f"run '{folder.name}' has no results, its state is '{state}': "
            + ("wait until it has finished." if state == "running" else resume)
        ) from None
    except json.JSONDecodeError as error:
        raise IdiolectError(
            f"{folder / 'results.json'} is damaged at line {error.lineno}: "
            "remove it; the command that began the run, with --resume "
            f"{folder.name}, writes it again."
        ) from None


def read_events(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Events of a ``metrics.jsonl`` after `offset`, and the offset to go on from.

    A line that is still being written is left for the next call.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    complete = data[: data.rfind(b"\n") + 1]
    events: list[dict[str, Any]] = []
    for line in complete.splitlines():
        # A line may be torn by a crash; a resumed run goes on after it.
        with contextlib.suppress(ValueError, RecursionError):
            event = json.loads(line)
            if isinstance(event, dict) and "event" in event:
                events.append(event)
    return events, offset + len(complete)


def is_locked(folder: Path) -> bool:
    """Whether a live ServerApp holds the run."""
    try:
        with (folder / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (FileNotFoundError, BlockingIOError) as error:
        return isinstance(error, BlockingIOError)
    return False


def state_of(folder: Path) -> str:
    """``running``, ``finished``, ``failed``, ``stopped`` or ``interrupted``."""
    if is_locked(folder):
        return "running"
    events, _ = read_events(folder / "metrics.jsonl")
    ends = ("start", "failed", "finished")
    last = [event for event in events if event["event"] in ends][-1:]
    if not last or last[0]["event"] == "start":
        return "interrupted"
    return "stopped" if last[0].get("stopped") else last[0]["event"]


def runs(output_dir: str = "") -> list[dict[str, Any]]:
    """Every run in a folder, oldest first: its lines in `idiolect-server runs`.

    ``started`` is the Unix time of the first start; 0 where it never started.
    """
    from ...common.config import Config, from_toml

    folder = runs_folder(output_dir)
    found: list[dict[str, Any]] = []
    for run in folder.iterdir() if folder.is_dir() else ():
        if run.is_symlink() or not run.is_dir() or run.name.startswith("."):
            continue
        try:
            config = from_toml((run / "config.toml").read_text())
        except (OSError, ValueError, IdiolectError):  # of another version, or not a run
            config = Config(task="?", backbone="?", users=0)
        events, _ = read_events(run / "metrics.jsonl")
        starts = [e.get("time", 0.0) for e in events if e["event"] == "start"]
        found.append(
            {
                "name": run.name,
                "state": state_of(run),
                "task": config.task,
                "backbone": config.backbone,
                "users": config.users,
                "started": starts[0] if starts else 0.0,
            }
        )
    return sorted(found, key=itemgetter("started", "name"))


def listed(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Lay rows out in columns; no cell is ever cut, so that names can be copied.

    Parameters
    ----------
    rows
        The first one holds the headings.
    width
        Characters of a line. Where the columns need more, every row has a line of its own
        for its first cell, and the others below it.
    """
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    if sum(widths) + 2 * (len(widths) - 1) <= width:
        return ["  ".join(map(set_cell_size, row, widths)).rstrip() for row in rows]
    found: list[str] = []
    for row in rows[1:]:
        cells = [f"{h} {c}" for h, c in zip(rows[0][1:], row[1:], strict=True)]
        found += [row[0], *wrapped(" · ".join(cells), width, "    ", "    ")]
    return found


def console(width: int | None = None) -> Console:
    """Return a console that takes nothing in a text for an instruction."""
    return Console(width=width, markup=False, emoji=False)


def render(results: Mapping[str, Any], console: Console, whole: bool = False) -> None:
    """Print the tables of one run, whatever its file holds.

    Parameters
    ----------
    results
        What ``results.json`` holds.
    console
        Where to.
    whole
        Whether everything that no guarantee covers is listed below the tables.
    """
    results = _without_rivals(shown(results))
    run, users = results["run"], results["users"]
    count = len(users) or run["users"]
    title = f"{run['task']} · {run['backbone']} · {count} users · seed {run['seed']}"
    interval = f"95 % interval {'over users' if users else 'of the noise'}"
    grid(console, f"{title}: mean [{interval}]", results["methods"])
    if results["pairs"]:
        heading = "paired differences; * interval clear of zero"
        grid(console, heading, results["pairs"], difference=True)
    for group, methods in results["split"].items():
        count = max([m["n"] for row in methods.values() for m in row.values()] or [0])
        side = "below" if group == "unique" else "at or above"
        grid(console, f"{group} users ({count}: alpha {side} the median)", methods)
    for line in _notes(results, whole):
        for part in wrapped(line, console.width):
            console.print(part, markup=False, highlight=False, soft_wrap=True)


def wrapped(line: str, width: int, indent: str = "  ", first: str = "") -> list[str]:
    """Break a line between words, never inside one: names and paths can be copied."""
    if line.startswith("results: "):  # a path with blanks stays whole too
        return [line]
    return textwrap.wrap(
        line,
        max(width, 20),
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _without_rivals(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """Results as they are shown: no contrast where nobody's items have rivals.

    A run on devices of an earlier version says .5 there, whatever the method.
    """
    rows = [row for methods in results["users"].values() for row in methods.values()]
    measured = any(row.get("contrast") is not None for row in rows)
    if not rows or (measured and results["run"]["task"] != "text"):
        return results

    def cleared(rows: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: {metric: v for metric, v in row.items() if metric != "contrast"}
            for name, row in rows.items()
        }

    methods = {m: row | ABSENT for m, row in cleared(results["methods"]).items()}
    split = {group: cleared(rows) for group, rows in results["split"].items()}
    shown = {"methods": methods, "pairs": cleared(results["pairs"]), "split": split}
    return {**results, **shown}


def grid(
    console: Console,
    title: str,
    rows: Mapping[str, Mapping[str, Any]],
    difference: bool = False,
) -> None:
    """One table, methods by metrics; cut into several where the console is narrow."""
    metrics = list(dict.fromkeys(name for row in rows.values() for name in row))
    room = console.width - max(map(len, rows), default=0)
    fit = max(1, room // (15 if difference else 14))
    console.print(title, markup=False, highlight=False, soft_wrap=True, style="bold")
    for start in range(0, len(metrics), fit):
        table = Table(box=None, padding=(0, 0, 0, 2), pad_edge=False)
        table.add_column("", no_wrap=True)
        part = metrics[start : start + fit]
        for metric in part:
            table.add_column(
                Text(metric + " ↓" * (metric in LOWER_IS_BETTER)),
                justify="right",
                no_wrap=True,
            )
        for name, row in rows.items():
            table.add_row(Text(name), *(_cell(row.get(m), difference) for m in part))
        console.print(table, "")


def _cell(value: Mapping[str, Any] | None, difference: bool) -> Text:
    if value is None:
        return Text("–")
    sign = "+" if difference else ""
    mean = f"{value['mean']:{sign}.3f}"
    if value["ci95"] is None:
        return Text(mean)
    low, high = value["ci95"]
    mark = "*" * (difference and (low > 0 or high < 0))
    if _swamped(value):
        mark = "?"
    interval = f"{low:{sign}.3f}…{high:{sign}.3f}"
    return Text.assemble(f"{mean}{mark}\n", (interval, "dim"))


def _swamped(value: Mapping[str, Any]) -> bool:
    """Whether the noise that was added to a mean hides it.

    Its standard deviation is larger than the mean, or the interval of 95 % is as wide as
    all that the metric can be.
    """
    noise = value.get("noise")
    return noise is not None and noise > min(value["mean"], value["bound"] / 4)


def _notes(results: Mapping[str, Any], whole: bool) -> list[str]:
    """What stands below the tables: who is missing, rates, cost, privacy, path."""
    run, cost, users = results["run"], results["cost"], results["users"]
    methods, dropped = results["methods"], run.get("dropped") or {}
    items = {why: n for why, n in dropped.items() if why.split()[0] in OF_ITEMS}
    people = {why: n for why, n in dropped.items() if why not in items}
    sent = ", ".join(
        f"{number / 1e6:.1f} MB {key[6:]}"
        for key in ("bytes_up", "bytes_down")
        if (number := cost.get(key))  # null where it is withheld
    )
    memory = cost.get("peak_rss_mb")
    used = [f"sent: {sent}"] * bool(sent)
    used += [f"peak memory {memory:.0f} MB"] if memory else []
    # What is said if what stands beside it is something, and that too if it is not True.
    lines: list[tuple[str, Any]] = [
        *_noise_notes(results),
        ("backbone: ", run.get("weights")),
        ("learning rates: ", _by_method(run.get("learning_rates"))),
        ("recipe of c-bpo: ", run.get("recipe")),
        (
            "outputs decoded by contrast with the shared policy, lambda: ",
            _by_method(run.get("contrast")),
        ),
        (
            f"fewer than {FEW_USERS} users: bootstrap intervals are too narrow",
            0 < len(users) < FEW_USERS,
        ),
        (
            "contrast is absent: no item has other users' texts to be ranked among",
            any(row.get("contrast", 0) is None for row in methods.values()),
        ),
        (
            "no split into unique and non-unique users: alpha was not estimated",
            bool(users and not results["split"]),
        ),
        ("users failed: ", _listed(run.get("failed"))),
        ("users left out: ", _listed(people)),
        ("left out, or not done, for users who stay: ", _listed(items)),
        ("warning: ", _unread(results)),
        ("prompts shortened to fit the context: ", run.get("truncated")),
        (
            "time: ",
            ", ".join(f"{p} {s:.0f} s" for p, s in cost.get("seconds", {}).items()),
        ),
        ("", "; ".join(used)),
        *((line, True) for line in describe(results["privacy"], whole)),
        ("results: ", run.get("path")),
    ]
    return [text if more is True else f"{text}{more}" for text, more in lines if more]


def _noise_notes(results: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """What noisy metrics do not show, and whether it is to be said."""
    methods = results["methods"]
    noisy = not results["users"] and bool(methods)
    values = [value for row in methods.values() for value in row.values()]
    empty = ", ".join(name for name, row in methods.items() if not row)
    return [
        (
            (
                "no values per user, so no differences between methods and no split of "
                "the users"
            ),
            noisy,
        ),
        (
            (
                "? noise swamps this value: the standard deviation of the noise is larger "
                "than the value, or than a quarter of what the metric can be; more users, "
                "fewer methods or a larger privacy.epsilon help"
            ),
            noisy and any(map(_swamped, values)),
        ),
        (
            f"nothing is left of {empty}: noise swamps the number of users",
            noisy and empty != "",
        ),
    ]


def _unread(results: Mapping[str, Any]) -> str:
    """Warn where rouge is 0 because it cannot read a text, not because that is unlike."""
    more = "`evaluate.rouge-tokens=unicode` reads every script"
    known = results["run"].get("unread")
    if known and known[0]:
        return (
            f"{known[0]} of {known[1]} held-out texts have no letter a-z and no digit, "
            f"and rouge reads nothing else: it is 0 for them; {more}"
        )
    rows = [
        [one["rouge-1"] for one in methods.values() if "rouge-1" in one]
        for methods in results["users"].values()
    ]
    zero = sum(bool(row) and not any(row) for row in rows)
    if known or not zero:
        return ""
    return (
        f"rouge is 0 by every method for {zero} users: by default it reads the letters a-z "
        f"and digits only; {more}"
    )


def _by_method(numbers: Mapping[str, float] | None) -> str:
    return ", ".join(f"{method} {value:g}" for method, value in (numbers or {}).items())


def _listed(named: Any) -> Any:
    if isinstance(named, Mapping):
        return "; ".join(f"{who}: {str(why).rstrip('.')}" for who, why in named.items())
    return ", ".join(map(str, named)) if isinstance(named, list | tuple) else named
