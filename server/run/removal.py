"""Delete a run: its whole folder, or nothing."""

import contextlib
import os
import shutil
from pathlib import Path

from ...common.errors import IdiolectError, refuse_if
from ...common.files import sync_folder
from .checkpoint import point_latest
from .results import find, is_locked, runs, runs_folder, state_of

PARTS = {
    "results.json": "results",
    "report.html": "report",
    "judge.json": "win rates by a judge",
    "adapters": "own adapters of users",
    "texts": "texts that were written",
    "curves": "losses by step",
    "checkpoint": "checkpoint",
    "devices": "what simulated devices agreed to",
    "ledger.json": "privacy ledger",
    "run.log": "log",
}


MARKS = "config.toml", "results.json", "metrics.jsonl"  # one of them is in every run


def described(output_dir: str, name: str) -> tuple[Path, str]:
    """Return the folder of a run that may be deleted, and what is in it, in words.

    Raises
    ------
    IdiolectError
        There is no such run, it is in progress, or the folder is not one of a run.
    """
    folder = find(output_dir, name)
    refuse_if(
        folder.parent != runs_folder(output_dir).resolve()
        or not any((folder / part).is_file() for part in MARKS),
        f"{folder} is no run's own folder: remove it by hand.",
    )
    _refuse_running(folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.lstat().st_size for path in files)
    parts = [text for part, text in PARTS.items() if (folder / part).exists()]
    return folder, (
        f"run {folder.name} ({state_of(folder)}) in {folder}: {len(files)} files, "
        f"{size / 1e6:.1f} MB"
        f"{': ' * bool(parts)}{', '.join(parts)}\n"
        "what it released for its users stays spent: keep its privacy card if their "
        "epsilon is to be added up"
    )


def delete(folder: Path) -> None:
    """Delete a run's folder; ``latest`` then is the run that was started last.

    The folder first gets a hidden name, in one step: a crash leaves the run, or no run.

    Raises
    ------
    IdiolectError
        It is in progress, or cannot be deleted.
    """
    _refuse_running(folder)
    hidden = folder.with_name(f".deleted-{folder.name}-{os.getpid()}")
    try:
        folder.rename(hidden)
        _point_elsewhere(folder)
        shutil.rmtree(hidden)
        sync_folder(folder.parent)
    except OSError as error:
        raise IdiolectError(
            f"not all of {hidden if hidden.exists() else folder} could be deleted "
            f"({error.strerror}): make it writable and remove the rest by hand."
        ) from None


def _refuse_running(folder: Path) -> None:
    refuse_if(
        is_locked(folder),
        f"run '{folder.name}' is in progress: end it first, by Ctrl-C where it runs or "
        f"by `idiolect-server stop {folder.name}`.",
    )


def _point_elsewhere(folder: Path) -> None:
    latest = folder.parent / "latest"
    if not latest.is_symlink() or os.readlink(latest) != folder.name:
        return
    with contextlib.suppress(FileNotFoundError):
        latest.unlink()
    left = [run["name"] for run in runs(str(folder.parent)) if run["started"]]
    if left:
        point_latest(folder.parent / left[-1])
