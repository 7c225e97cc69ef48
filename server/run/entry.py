"""What identifies a run: enough to repeat it, and to tell what it measured.

``results.json`` has it as `identity`. ``leaderboard.json`` has it with the means and
without what people are called, so that it can be handed on.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...common.config import Config
from ...common.config.keys import flatten
from ...common.data.lamp.longlamp import HUB
from ...common.data.types import TOO_LONG, Dataset, Item

SCHEMA = "idiolect.leaderboard/1"
PATHS = ("data", "backbone", "unlabeled.file")  # of which only the last part is told


def identity_of(
    config: Config, dataset: Dataset, backbone: str, dropped: Mapping[str, int]
) -> dict[str, Any]:
    """Say what a run was made of.

    Parameters
    ----------
    config
        Of the run.
    dataset
        As it was read; without users where it is on devices, or a secret.
    backbone
        Identity of the backbone's files (`model_folder.identity`).
    dropped
        Reason -> what was left out, with what does not fit into the context.

    Returns
    -------
    dict
        ``config`` (every key; paths are told by their last part), ``model`` (hash of all
        that decides its scores), ``data`` (SHA-256 of all texts of users and development
        users), ``measured`` (SHA-256 of the evaluated users and their held-out texts),
        ``public`` (SHA-256 of the public text, or of its file), ``too_long`` (items that
        do not fit into the context). What there is not is None.
    """
    return {
        "config": {k: _told(k, value) for k, value in flatten(config).items()},
        "model": backbone,
        **_texts(dataset),
        "public": _public(config, dataset),
        "too_long": dropped.get(TOO_LONG, 0),
    }


def entry(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``leaderboard.json`` holds, from what ``results.json`` does.

    Nobody's name, and no value of a single user.
    """
    run = results["run"]
    kept = (
        "task",
        "seed",
        "users",
        "simulation",
        "versions",
        "commit",
        "learning_rates",
    )
    return {
        "schema": SCHEMA,
        **{name: run.get(name) for name in kept},
        "identity": results["identity"],
        "methods": results["methods"],
        "pairs": results["pairs"],
    }


def _public(config: Config, dataset: Dataset) -> str | None:
    if config.unlabeled.file:
        file = Path(config.unlabeled.file).expanduser()
        return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
    return _hashed(_pairs(dataset.public)) if dataset.public else None


def _told(name: str, value: Any) -> Any:
    if name not in PATHS or not value or str(value).startswith(HUB):
        return value
    return Path(str(value)).name


def _texts(dataset: Dataset) -> dict[str, str | None]:
    """SHA-256 of everybody's texts, and of what the evaluated users are measured on.

    Each user is looked at once: of many personas memory does not hold all (`MadeUsers`).
    """
    found = [
        [user.id, *map(_pairs, (user.held_out, user.history, user.disliked))]
        for user in dataset.everybody
    ]
    if not found:
        return {"data": None, "measured": None}
    measured = [one[:2] for one in found[: len(dataset.users)]]
    return {"data": _hashed(found), "measured": _hashed(measured)}


def _hashed(found: Any) -> str:
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _pairs(items: Sequence[Item]) -> list[list[str]]:
    return [[item.prompt.text, item.target] for item in items]
