"""Personal adapters on disk: what must survive a restart of this device.

Flower's ``Context.state`` lives in memory and ends with its run, so a personal adapter is
a file. Its metadata names everything it was trained from (`identity`); a task that is
sent again finds the file and does not train again, and a file that was trained from
anything else is never used.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..common.adapters import Lora, load_lora, save_lora
from ..common.config import Config, flatten
from ..common.errors import IdiolectError
from ..common.personal import Personal
from ..common.protocol import Outcome

# Keys that do not change what is trained.
_ELSEWHERE = ("run-name", "resume", "output-dir", "quorum", "deadline")


def adapter_path(
    folder: Path, method: str, learning_rate: float, trial: bool, user: str
) -> Path:
    """Return ``adapters/<method>/<user>.safetensors`` below the run folder.

    A rate that is only tried has a folder of its own, so that nothing overwrites the
    adapter of another rate before it is measured. User ids can be file names: the
    readers of the data see to that.
    """
    place = folder / "adapters" / method
    if trial:
        place = place / "trials" / repr(learning_rate)
    return place / f"{user}.safetensors"


def identity(
    run: str,
    method: str,
    learning_rate: float,
    shared_hash: str,
    unlabeled_hash: str,
    config: Config,
) -> str:
    """SHA-256 over everything that a user's training depends on, but the history."""
    rest = {k: v for k, v in flatten(config).items() if k not in _ELSEWHERE}
    parts = [run, method, learning_rate, shared_hash, unlabeled_hash, rest]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def store(path: Path, personal: Personal, trained_from: str) -> None:
    """Keep one user's adapter, atomically, with how its training went."""
    if personal.lora is None:
        return
    outcome = Outcome(personal.alpha, personal.estimated, personal.log)
    metadata = {
        "user": personal.user,
        "trained-from": trained_from,
        "outcome": json.dumps(asdict(outcome)),
    }
    save_lora(path, personal.lora, metadata)


def recall(path: Path, user: str, trained_from: str) -> tuple[Lora, Outcome] | None:
    """Return a stored adapter, or None if there is none of exactly this origin."""
    if not path.exists():
        return None
    try:
        lora, metadata = load_lora(path)
    except IdiolectError:  # damaged: train again, which overwrites it
        return None
    if (metadata.get("user"), metadata.get("trained-from")) != (user, trained_from):
        return None
    return lora, Outcome(**json.loads(metadata["outcome"]))


def recall_group(
    paths: Sequence[Path], users: Sequence[str], trained_from: str
) -> dict[str, Outcome] | None:
    """Return the outcomes of a stacking group that is complete on disk, else None.

    A group that a crash cut in two is trained again as a whole: a smaller stack rounds
    differently, and a resumed run must equal an unbroken one bit for bit.
    """
    outcomes: dict[str, Outcome] = {}
    for path, user in zip(paths, users, strict=True):
        found = recall(path, user, trained_from)
        if found is None:
            return None
        outcomes[user] = found[1]
    return outcomes
