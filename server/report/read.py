"""What is asked for, read from its files; and where its page is written."""

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...common.config import flatten, from_toml
from ...common.config.old import renamed
from ...common.errors import IdiolectError, refuse_if
from ...common.files import write_atomically
from ...common.text import lines, shown
from ..run import results
from . import run as run_page
from . import study as study_page
from .page import html
from .parts import finite, is_number

NAME = "report.html"
SECTIONS = {
    "run": {}, "methods": {}, "pairs": {}, "split": {}, "users": {}, "cost": {},
    "privacy": {},
}  # fmt: skip
LONGEST = 1_000_000  # bytes of one file of a user
MOST_USERS = 1000  # whose files are read


def write_report(
    name: str, output_dir: str = "", to: Path | None = None, texts: bool = False
) -> Path:
    """Write the page of a run or a study, and return where it is.

    Parameters
    ----------
    name
        A run of `output_dir` (or ``latest``), a study of the folder beside the runs or of
        this clone's findings, or a path: a study's ``summary.json`` or ``NAME.json.gz``.
    output_dir
        Where runs are (`results.runs_folder`).
    to
        The file to write; by default ``report.html`` in the folder of the run or study.
    texts
        Whether texts of users are shown, where the run holds any.

    Raises
    ------
    IdiolectError
        There is no such run or study, it has no results yet, or a file cannot be written.
    """
    summary = study_file(name, output_dir)
    if summary is not None:
        page = study_page.page(clean(read_study(summary)))
        studies = results.runs_folder(output_dir).parent / "studies"
        own = summary.name == "summary.json"
        place = summary.parent if own else studies / summary.name.partition(".")[0]
    else:
        place = results.find(output_dir, name)
        page = run_page.page(material(results.load(output_dir, name), place, texts))
    path = to or place / NAME
    try:
        write_atomically(path, html(page).encode("utf-8", "replace"))
    except OSError as error:
        raise IdiolectError(
            f"{path} cannot be written ({error.strerror}): --to names another file."
        ) from None
    return path


def write_own(folder: Path) -> Path:
    """Write the page of a run or study that has just ended, into its folder."""
    if (folder / "summary.json").is_file():
        return write_report(str(folder))
    return write_report(folder.name, str(folder.parent))


def clean(value: Any) -> Any:
    """Return a value of JSON without control characters and numbers that are not finite."""
    return finite(shown(value))


# --- studies ----------------------------------------------------------------------------


def study_file(name: str, output_dir: str) -> Path | None:
    """Return the file of a study's summary, or None where `name` is a run or nothing."""
    given = Path(name).expanduser()
    if given.is_file():
        return given
    if given.is_dir() and (given / "summary.json").is_file():
        return given / "summary.json"
    runs = results.runs_folder(output_dir)
    if "/" in name or (runs / name).is_dir():
        return None
    own = runs.parent / "studies" / name / "summary.json"
    kept = results.PACKAGE / "docs" / "findings" / f"{name}.json.gz"
    return next((path for path in (own, kept) if path.is_file()), None)


def read_study(path: Path) -> dict[str, Any]:
    """Read the summary of a study.

    Raises
    ------
    IdiolectError
        The file is no summary.
    """
    try:
        data = path.read_bytes()
        found = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except (OSError, EOFError, ValueError, RecursionError):
        found = None
    refuse_if(
        not isinstance(found, dict) or not {"title", "claims", "curve"} <= found.keys(),
        f"{path} is not the summary of a study: give a run's or a study's name, or a file "
        "that `idiolect-server study --findings` wrote.",
    )
    return renamed(found)


# --- runs -------------------------------------------------------------------------------


def material(found: Mapping[str, Any], folder: Path, texts: bool) -> run_page.Material:
    """Read what lies beside the results of a run; what is missing is left out."""
    given: dict[str, Any] = {**SECTIONS, **clean(found)}
    given |= {key: given[key] or {} for key in SECTIONS}
    state = clean(_json(folder / "checkpoint" / "state.json"))
    known = given["users"]
    logs = {
        method: {u: one.get("log") for u, one in users.items() if u in known}
        for method, users in (state.get("outcomes") or {}).items()
    }
    return run_page.Material(
        results=given,
        config=_config(folder),
        trials=state.get("trials") or {},
        logs=logs,
        phases=phases(results.read_events(folder / "metrics.jsonl")[0], given["cost"]),
        curves=_curves(folder, known),
        texts=_texts(folder, known) if texts else {},
        judges=_judges(folder),
    )


def _judges(folder: Path) -> list[dict[str, Any]]:
    found = clean(_json(folder / "judge.json")).get("judges")
    every = found if isinstance(found, list) else []
    return [one for one in every if isinstance(one, dict)]


def _json(path: Path) -> dict[str, Any]:
    try:
        found = renamed(json.loads(path.read_text()))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _config(folder: Path) -> dict[str, Any]:
    try:
        return clean(flatten(from_toml((folder / "config.toml").read_text())))
    except (OSError, ValueError, IdiolectError):
        return {}


def phases(
    events: list[dict[str, Any]], cost: Mapping[str, Any]
) -> dict[str, tuple[float | None, ...]]:
    """Phase -> bytes up, bytes down, megabytes at its end, from the events of a run.

    Bytes are counted from the start of the run, so a phase has sent what was added. They
    are left out where the results withhold their sum.
    """
    totals: dict[str, tuple[Any, Any]] = {}
    memory: dict[str, Any] = {}
    current = ""
    for event in events:
        if event["event"] == "progress" and event.get("phase") == current:
            totals[current] = event.get("bytes_up"), event.get("bytes_down")
        elif event["event"] in ("phase", "memory"):
            if current:
                memory[current] = event.get("all_mb")
            current = str(event.get("phase", ""))
            totals.setdefault(current, (None, None))
    totals.pop("", None)
    found, before = {}, [0.0, 0.0]
    for phase, both in totals.items():
        sent: list[float | None] = [None, None]
        for k, total in enumerate(both):
            if isinstance(total, int | float) and cost.get("bytes_up") is not None:
                sent[k], before[k] = max(0.0, total - before[k]), total
        found[phase] = (*sent, memory.get(phase))
    return clean({str(k): list(v) for k, v in found.items()})


def _kept(
    folder: Path, name: str, users: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    """Yield the method and content of files that a simulation kept of its users.

    What keeps them is ``client/node/state.py``. Of many users the first ones are read.
    """
    for place in sorted((folder / name).glob("*")):
        for path in sorted(place.glob("*.json"))[:MOST_USERS]:
            one = _json(path) if path.stat().st_size <= LONGEST else {}
            if one.get("user") in users:
                yield place.name, one


def _curves(folder: Path, users: Mapping[str, Any]) -> dict[str, Any]:
    """Method -> user -> loss of each step."""
    found: dict[str, Any] = {}
    for method, one in _kept(folder, "curves", users):
        losses = one.get("loss")
        if isinstance(losses, list) and all(map(is_number, losses)):
            found.setdefault(shown(method), {})[one["user"]] = losses
    return found


def _texts(folder: Path, users: Mapping[str, Any]) -> dict[str, Any]:
    """Method -> user -> the first of the texts that were kept."""
    found: dict[str, Any] = {}
    for method, one in _kept(folder, "texts", users):
        items = one.get("items")
        if isinstance(items, list) and items and isinstance(items[0], dict):
            first = {str(key): lines(str(text)) for key, text in items[0].items()}
            found.setdefault(shown(method), {})[one["user"]] = [first]
    return found
