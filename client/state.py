"""What must survive a restart of this device: personal adapters, and what it agreed to.

Flower's ``Context.state`` lives in memory and ends with its run, so a personal adapter is
a file. Its metadata names everything it was trained from (`identity`); a task that is
sent again finds the file and does not train again, and a file that was trained from
anything else is never used.

Beside it a device remembers the releases it took part in, which it counts itself, and the
manifest it last took (`Agreed`). The count binds a server that keeps to the protocol after
first contact; what a simulated node counts lies in the server's own folder.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ..common.adapters import Lora, load_lora, save_lora
from ..common.config import Config, flatten
from ..common.errors import IdiolectError
from ..common.files import write_atomically
from ..common.manifest import Seen
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


# --- what a device agreed to -----------------------------------------------------------


@dataclass(frozen=True)
class Agreed:
    """What one user's device remembers of a run.

    Attributes
    ----------
    took
        Stage -> id of a release that this user's rows may be part of -> hash of what was
        asked for it.
    most
        Releases of one stage to take part in, at most, as agreed at first contact;
        0: no limit.
    seen
        The pinned key and the last manifest taken; None before the first contact.
    """

    took: dict[str, dict[str, str]] = field(default_factory=dict)
    most: int = 0
    seen: Seen | None = None


def agreed_path(folder: Path, user: str) -> Path:
    """Return ``devices/<user>.json`` below the run folder."""
    return folder / "devices" / f"{user}.json"


def agreed(path: Path) -> Agreed:
    """Read what was agreed to; nothing, where there is no file yet.

    Raises
    ------
    IdiolectError
        The file is damaged. It is not made anew: the count of participations in it is
        what the privacy guarantee rests on.
    """
    if not path.exists():
        return Agreed()
    try:
        body = json.loads(path.read_text())
        seen = body["seen"]
        took = {str(stage): dict(ids) for stage, ids in body["took"].items()}
        return Agreed(took, int(body["most"]), None if seen is None else Seen(**seen))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IdiolectError(
            f"{path} is damaged, and with it the count of what this user took part in: "
            "restore it from a backup, or leave this run."
        ) from error


def keep(path: Path, now: Agreed) -> None:
    """Write what was agreed to, atomically."""
    write_atomically(path, json.dumps(asdict(now)).encode())


def take_part(path: Path, stage: str, release: str, content: str) -> None:
    """Note, before anything is computed, that this user takes part in a release.

    Parameters
    ----------
    path
        The user's file (`agreed_path`).
    stage
        What kind of task it is: the device knows that without being told.
    release
        The ledger's id; empty without privacy: nothing to count.
    content
        Hash of what the rows depend on. A release that is asked for again, after a
        crash, counts once, but only if the same is asked.

    Raises
    ------
    IdiolectError
        The device took part in as many as it agreed to, or other rows are asked for
        under an id that it has seen.
    """
    if not release:
        return
    before = agreed(path)
    took = before.took.get(stage, {})
    if release in took:
        if took[release] != content:
            raise IdiolectError(
                f"user '{path.stem}': something else is asked for as '{release}' than "
                "before: it counts as one release, so only one is answered."
            )
        return
    if before.most and len(took) >= before.most:
        raise IdiolectError(
            f"user '{path.stem}' took part in {len(took)} releases of stage '{stage}' "
            "already, as many as privacy.participations allowed at first contact: it sits "
            "this one out."
        )
    took = {**took, release: content}
    keep(path, replace(before, took={**before.took, stage: took}))


def pin(path: Path, key: str, most: int) -> None:
    """Agree at first contact to a run's key and cap, and to no other key afterwards.

    Raises
    ------
    IdiolectError
        Another key was pinned before.
    """
    before = agreed(path)
    if before.seen is None:
        keep(path, replace(before, most=most, seen=Seen(key, 0, "")))
    elif before.seen.key != key:
        raise IdiolectError(
            f"user '{path.stem}': the server's signing key is not the one that was pinned "
            "at first contact: find out why it changed before you take part again."
        )
