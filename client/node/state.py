"""What must survive a restart of this device: personal adapters, and what it agreed to.

Flower's ``Context.state`` lives in memory and ends with its run, so what a run leaves on a
device lies on a `RunStore`: a folder in a simulation, the owner's vault on a device. The
metadata of a personal adapter names what the run trained it from (`identity`: settings,
shared adapter, unlabeled set); a request that is sent again finds the adapter and does not
train again, and one of another run is never used.

Beside it a device remembers the releases it took part in, which it counts itself, and the
manifest it last took (`Agreed`). The count binds a server that keeps to the protocol after
first contact; what a simulated node counts lies in the server's own folder.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol

from ...common.config import Config
from ...common.config.old import former, trained_from
from ...common.data.types import User
from ...common.engine.adapters import Lora, dump_lora, parse_lora
from ...common.errors import IdiolectError, refuse_if
from ...common.files import file_name, write_atomically
from ...common.methods.personalise import Personal
from ...common.protocol.manifest import Seen
from ...common.protocol.messages import Outcome
from ..owner.consent import Refusal


class RunStore(Protocol):
    """Where a device keeps what belongs to one run, by name."""

    def read(self, name: str) -> bytes | None:
        """Return what was written under a name, or None."""

    def write(self, name: str, body: bytes) -> None:
        """Keep it; a crash leaves what was there before, or all of it."""


@dataclass(frozen=True)
class FolderStore:
    """A store of files below the run's folder."""

    path: Path

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, or None."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, body: bytes) -> None:
        """Write a file, atomically."""
        write_atomically(self.path / name, body)


def adapter_name(method: str, user: str) -> str:
    """Return ``adapters/<method>/<user>.safetensors``, the user as a file's name."""
    return f"adapters/{method}/{file_name(user)}.safetensors"


def identity(
    run: str,
    method: str,
    learning_rate: float,
    shared_hash: str,
    unlabeled_hash: str,
    config: Config,
) -> str:
    """SHA-256 over everything that a user's training depends on, but the history."""
    rest = trained_from(config)
    parts = [run, former(method), learning_rate, shared_hash, unlabeled_hash, rest]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def save_adapter(
    store: RunStore, name: str, personal: Personal, trained_from: str
) -> Outcome:
    """Keep one user's adapter, with how its training went, which is returned."""
    outcome = Outcome(personal.alpha, personal.estimated, personal.log)
    if personal.lora is not None:
        metadata = {
            "user": personal.user,
            "trained-from": trained_from,
            "outcome": json.dumps(asdict(outcome)),
        }
        store.write(name, dump_lora(personal.lora, metadata))
    return outcome


def load_adapter(
    store: RunStore, name: str, user: str, trained_from: str
) -> tuple[Lora, Outcome] | None:
    """Return a stored adapter, or None if there is none of exactly this origin."""
    body = store.read(name) or store.read(former(name))
    if body is None:
        return None
    try:
        lora, metadata = parse_lora(body)
    except ValueError:  # damaged: train again, which overwrites it
        return None
    if (metadata.get("user"), metadata.get("trained-from")) != (user, trained_from):
        return None
    return lora, Outcome(**json.loads(metadata["outcome"]))


def save_curves(
    store: RunStore, method: str, curves: Mapping[str, list[float]]
) -> None:
    """Keep the loss of every step of a training; of simulated users alone, without privacy.

    For reports: ``curves/<method>/<user>.json`` in the run's folder.
    """
    for user, losses in curves.items():
        rounded = [float(f"{loss:.5g}") for loss in losses if math.isfinite(loss)]
        body = json.dumps({"user": user, "loss": rounded}).encode()
        store.write(f"curves/{method}/{file_name(user)}.json", body)


def save_texts(
    store: RunStore,
    method: str,
    users: Sequence[User],
    written: Mapping[str, list[str]],
) -> None:
    """Keep what a method wrote beside the own texts, as `save_curves` does.

    For reports: ``texts/<method>/<user>.json`` in the run's folder.
    """
    for user in users:
        if user.id not in written:
            continue
        both = zip(user.held_out, written[user.id], strict=True)
        items = [
            {"prompt": i.prompt.text, "reference": i.target, "output": o}
            for i, o in both
        ]
        body = json.dumps({"user": user.id, "items": items}).encode()
        store.write(f"texts/{method}/{file_name(user.id)}.json", body)


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
    config
        Hash of the run's configuration, which was agreed to as well; empty before.
    """

    took: dict[str, dict[str, str]] = field(default_factory=dict)
    most: int = 0
    seen: Seen | None = None
    config: str = ""


_OLD = re.compile(r"[A-Za-z0-9][\w.@+-]{0,99}", re.ASCII)


def _agreed_name(user: str) -> str:
    return f"devices/{file_name(user)}.json"


def agreed(store: RunStore, user: str) -> Agreed:
    """Read what was agreed to; nothing, where nothing was yet.

    Raises
    ------
    IdiolectError
        It is damaged. It is not made again: the count of participations in it is what the
        privacy guarantee rests on.
    """
    try:
        text = store.read(_agreed_name(user))
        if text is None and _OLD.fullmatch(user):  # a run of 0.2.0 and before
            text = store.read(f"devices/{user}.json")
        if text is None:
            return Agreed()
        body = json.loads(text)
        took = {str(stage): dict(ids) for stage, ids in body["took"].items()}
        known = None if body["seen"] is None else Seen(**body["seen"])
        # Runs of before schema 5 agreed to no configuration; their next hello does.
        return Agreed(took, int(body["most"]), known, str(body.get("config", "")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IdiolectError(
            f"{_agreed_name(user)} is damaged, and with it the count of what this user "
            "took part in: restore it from a backup, or leave this run."
        ) from error


def pinned_key(store: RunStore, user: str) -> str:
    """The key of the run's requests, pinned at first contact; empty before it."""
    seen = agreed(store, user).seen
    return seen.key if seen else ""


def keep(store: RunStore, user: str, now: Agreed) -> None:
    """Write what was agreed to."""
    store.write(_agreed_name(user), json.dumps(asdict(now)).encode())


def take_part(
    store: RunStore, user: str, stage: str, release: str, content: str, planned: int = 0
) -> None:
    """Note, before anything is computed, that this user takes part in a release.

    Parameters
    ----------
    store, user
        Where, and whose count it is.
    stage
        What kind of request it is: the device knows that without being told.
    release
        The ledger's id; empty without privacy: nothing to count.
    content
        Hash of what the rows depend on. A release that is asked for again, after a
        crash, counts once, but only if the same is asked.
    planned
        How many releases of the stage the run's configuration has; 0: not known.

    Raises
    ------
    Refusal
        The device took part in as many as it agreed to, or other rows are asked for
        under an id that it has seen.
    """
    if not release:
        return
    before = agreed(store, user)
    took = before.took.get(stage, {})
    if release in took:
        refuse_if(
            took[release] != content,
            f"user '{user}': something else is asked for as '{release}' than "
            "before: it counts as one release, so only one is answered.",
            Refusal,
        )
        return
    most = min([n for n in (before.most, planned) if n], default=0)
    refuse_if(
        most and len(took) >= most,
        f"user '{user}' took part in {len(took)} releases of stage '{stage}' "
        "already, as many as privacy.participations allowed at first contact or as "
        "the run declared: it sits this one out.",
        Refusal,
    )
    took = {**before.took, stage: {**took, release: content}}
    keep(store, user, replace(before, took=took))


def pin(store: RunStore, user: str, key: str, most: int, config: str) -> None:
    """Agree at first contact to a run's key, configuration and cap, and to no others.

    Raises
    ------
    Refusal
        Another key or configuration was agreed to before.
    """
    before = agreed(store, user)
    if before.seen is None:
        return keep(store, user, Agreed(before.took, most, Seen(key, 0, ""), config))
    refuse_if(
        before.seen.key != key,
        f"user '{user}': the server's signing key is not the one that was pinned "
        "at first contact: find out why it changed before you take part again.",
        Refusal,
    )
    refuse_if(
        before.config not in ("", config),
        f"user '{user}': the run's configuration is not the one of the first "
        "contact: start a new run for a new configuration.",
        Refusal,
    )
    if not before.config:
        keep(store, user, replace(before, config=config))


def check_agreed(store: RunStore, user: str, config: str) -> None:
    """Refuse a request of a run that this user did not agree to.

    Raises
    ------
    Refusal
        There was no valid hello, or the request has another configuration.
    """
    before = agreed(store, user)
    refuse_if(
        before.seen is None or before.config != config,
        f"user '{user}' did not agree to this run in a hello, or not with this "
        "configuration: resume the run, which says hello again.",
        Refusal,
    )


def bind(store: RunStore, number: int) -> None:
    """Take part in a run under one number: counts and agreements are kept by it.

    A server that registers the device again, or says so, gives it another number.

    Raises
    ------
    Refusal
        The run knew this device by another one.
    """
    known = store.read("number")
    if known is None:
        store.write("number", str(number).encode())
    elif int(known) != number:
        raise Refusal(
            "this run knew the device by another number, and what it took part in counts "
            "under that: it takes part in new runs only."
        )


def advance(store: RunStore, counter: int) -> None:
    """Take a request's counter, which only grows; before anything of the request is done.

    Raises
    ------
    Refusal
        It does not: the request is replayed, or was overtaken by a later one.
    """
    refuse_if(
        counter <= int(store.read("counter") or b"0"),
        "this request was answered before, or a later one was: it is not done again.",
        Refusal,
    )
    store.write("counter", str(counter).encode())
