"""What the owner of a device does with the vault, without any server.

Training starts from the shared adapter that the last federated run brought (from the bare
backbone before there was one), on everything the owner likes but the newest fifth, which
decides whether the new adapter is used at all. An adapter that a run trained is judged and
kept in the same way (`adopt`).
The unlabeled set is `self`: samples of the backbone at the owner's own prompts, so that
nobody else's text is needed. What was turned down are known negatives.
"""

import json
import math
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ...common.config import Config, parse
from ...common.data.types import Prompt, User
from ...common.engine.adapters import (
    Lora,
    dump_lora,
    export_peft,
    hash_lora,
    parse_lora,
    zero_shared,
)
from ...common.engine.backbone import Backbone, load_backbone
from ...common.engine.model_folder import unlike
from ...common.engine.scoring import generate
from ...common.errors import IdiolectError, words_of
from ...common.files import make_private, private_folder
from ...common.methods.evaluation import held_out_nll
from ...common.methods.personal import fits, fitting, personalise
from . import history, limits
from .alone import alone
from .consent import Refusal, settings
from .database import ErasureError
from .history import Entry
from .records import DEVICE, Record, Source
from .vault import Vault

FEWEST = 4  # liked pairs to train on and be judged by
AVOIDING = 0.05  # nats per token that learning to avoid something may cost elsewhere
HELD_OUT = 8  # at most; a fifth of the liked pairs otherwise


@dataclass(frozen=True)
class Version:
    """One trained adapter.

    Attributes
    ----------
    number
        Counts up; never used twice.
    method, backbone
        How it was trained, and on top of which weights (their hash).
    sources, generations
        Names of the imports whose text is in it, and the generation of each when it was
        read (`Vault.generation`); none: a version that did not note them trained it.
    pairs
        Ids of the pairs that it was trained on.
    trained, disliked, held_out
        Numbers of pairs.
    nll, nll_before
        Per token on the held-out pairs, with it, and with the shared adapter alone.
    nll_bare
        The same with the bare backbone: a shared adapter can be worse than none, where
        few users and much noise made it.
    nll_in_use, nll_against
        With the adapter that was in use, and with it, on those held-out pairs that the
        one in use was not trained on; None: there was none to compare with.
    allowed
        By how much it may lose to the one in use: not at all, unless there are newly
        disliked texts, which that one does not know how to avoid.
    too_long
        Number of pairs that were left out since they do not fit into the context.
    shared
        Hash of the shared adapter below it; empty: none.
    origin
        What a federated run trained it from (`state.identity`); empty: no run did.
    """

    number: int
    method: str
    backbone: str
    sources: tuple[str, ...]
    trained: int
    disliked: int
    held_out: int
    nll: float
    nll_before: float
    nll_bare: float = math.inf
    shared: str = ""
    origin: str = ""
    generations: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    nll_in_use: float | None = None
    nll_against: float | None = None
    allowed: float = 0.0
    too_long: int = 0

    @property
    def accepted(self) -> bool:
        """Whether it loses neither to the bare backbone, the shared, nor the one in use.

        What a run brings may be worth nothing; it must not take the place of better.
        """
        most = min(self.nll_before, self.nll_bare)
        if self.nll_in_use is None or self.nll_against is None:
            return self.nll <= most
        return self.nll <= most and self.nll_against <= self.nll_in_use + self.allowed


# --- settings --------------------------------------------------------------------------


def configured(vault: Vault, method: str = "c-bpo", rate: float = 3e-3) -> Config:
    """The configuration of this device, as training takes it."""
    return config_of(settings(vault), method, rate)


def config_of(
    chosen: Mapping[str, str], method: str = "c-bpo", rate: float = 3e-3
) -> Config:
    """The configuration that settings amount to."""
    return parse(
        {
            "task": "text",
            "methods": f"base,shared,{method}",
            "backbone": chosen["backbone"],
            "max-length": int(chosen["max-length"]),
            "unlabeled.kind": "self",
            "personalise.learning-rates": repr(rate),
        }
    )


def check_loads(chosen: Mapping[str, str]) -> Backbone:
    """Load the backbone that settings name, as every later use does; returns it.

    Raises
    ------
    IdiolectError
        It cannot be loaded, or not within the owner's limits.
    """
    with limits.held(chosen):
        return reference(config_of(chosen))[0]


def reference(config: Config) -> tuple[Backbone, Lora]:
    """The resident backbone, and the shared adapter before its first round."""
    backbone = load_backbone(
        config.backbone, config.dtype, config.device, config.max_length
    )
    return backbone, zero_shared(backbone, config.shared_shape, config.seed)


# --- training --------------------------------------------------------------------------


def train(vault: Vault, method: str = "c-bpo", rate: float = 3e-3) -> Version:
    """Train a new adapter, keep it, and use it if it does not lose.

    Raises
    ------
    IdiolectError
        There is too little history, training overflowed, it is not within the owner's
        limits (`limits.held`), or another one is running; the adapter in use stays.
    """
    with alone(vault.path), limits.held(settings(vault), training=True):
        return _train(vault, method, rate)


def _train(vault: Vault, method: str, rate: float) -> Version:
    entries = history.entries(vault)
    split(entries)  # refuses too little before a backbone is loaded
    config = configured(vault, method, rate)
    backbone, zero = reference(config)
    short = [entry for entry in entries if fits(backbone, entry.item())]
    _check_enough(short, entries, backbone)
    user, learnt = split(short)
    shared = latest_shared(vault, backbone, zero)
    (found,) = personalise(backbone, shared, [user], (), method, rate, config)
    if found.lora is None:
        raise IdiolectError(found.error)
    too_long = len(entries) - len(short)
    return adopt(
        vault, backbone, shared, found.lora, user, learnt, method, too_long=too_long
    )


def _check_enough(
    short: Sequence[Entry], entries: Sequence[Entry], backbone: Backbone
) -> None:
    fit, liked = (sum(entry.liked for entry in some) for some in (short, entries))
    if fit < FEWEST:
        raise IdiolectError(
            f"{fit} of the {liked} liked pairs in the vault fit into the context of "
            f"{backbone.context} tokens, and training needs {FEWEST}: import shorter ones, "
            "or allow longer ones by `idiolect settings max-length N`."
        )


def adopt(
    vault: Vault,
    backbone: Backbone,
    shared: Lora,
    lora: Lora,
    user: User,
    learnt: Mapping[str, str],
    method: str,
    origin: str = "",
    too_long: int = 0,
) -> Version:
    """Judge a trained adapter on the held-out pairs, keep it, and use it if it holds.

    One of an `origin` that is kept already is not kept twice. Pairs that do not fit into
    the context were neither trained on nor judge.

    Parameters
    ----------
    user, learnt
        What it was trained on and is judged by, as `split` returned it.
    origin
        What a federated run trained it from (`state.identity`); empty: none did.
    too_long
        Pairs that were left out of `user` since they do not fit into the context.

    Raises
    ------
    Refusal
        Something that it was trained on has been forgotten meanwhile; it is not kept.
    """
    user, more = fitting(backbone, user)
    while True:
        if origin and (known := _of_origin(vault, origin)):
            return known
        now = active(vault)
        judged = _judged(
            backbone, shared, lora, user, method, _in_use(vault, backbone, now)
        )
        with vault.transaction():
            check_learnt(vault, learnt)
            if active(vault) != now or (origin and _of_origin(vault, origin)):
                continue  # another process was faster
            version = Version(
                number=vault.count_up("adapters", DEVICE),
                method=method,
                backbone=backbone.hash,
                sources=tuple(learnt),
                generations=tuple(learnt.values()),
                pairs=tuple(one.id for one in (*user.history, *user.disliked)),
                trained=len(user.history),
                disliked=len(user.disliked) if method == "c-bpo" else 0,
                held_out=len(user.held_out),
                too_long=too_long + more,
                # One that is worse than nothing here is no start for the next training.
                shared=_keep_shared(
                    vault, backbone, shared, judged["nll_before"] <= judged["nll_bare"]
                ),
                origin=origin,
                **judged,
            )
            body = dump_lora(lora, {"version": json.dumps(vars(version))})
            # A source of its own: it can be erased without the others.
            record = Record(str(version.number), body)
            vault.put("adapter", [record], _source(version.number))
            if version.accepted:
                activate(vault, version.number)
            return version


def _of_origin(vault: Vault, origin: str) -> Version | None:
    for version in versions(vault):
        if version.origin == origin:
            return version
    return None


def check_learnt(vault: Vault, learnt: Mapping[str, str]) -> None:
    """Refuse to keep or send what was made of text that its owner has forgotten since.

    In the transaction that keeps it: `forget` may run in another process at any time. A
    source of which anything was forgotten, or that was made again, is another generation.

    Raises
    ------
    Refusal
        A source is not there any more as it was when it was read.
    """
    for name, generation in learnt.items():
        if vault.generation(Source("import", name)) != generation:
            raise Refusal(
                "the owner has forgotten text that this was made of, while it was being "
                "made: it is not kept, and has to be made again from what remains."
            )


def _in_use(
    vault: Vault, backbone: Backbone, number: int
) -> tuple[Lora | None, Lora, Version] | None:
    """The adapter in use with the shared one below it, if it is one of this backbone."""
    with vault.reading():
        body = vault.get("adapter", str(number)) if number else None
        if body is None:
            return None
        lora, version = _parsed(Record(str(number), body))
        if unlike(version.backbone, backbone.hash):
            return None
        below = _read_shared(vault, version.shared) if version.shared else None
    return below, lora, version


def _judged(
    backbone: Backbone,
    shared: Lora,
    lora: Lora,
    user: User,
    method: str,
    rival: tuple[Lora | None, Lora, Version] | None,
) -> dict[str, Any]:
    """The numbers of a `Version` that say how good it is."""

    def nll(below: Lora, own: Lora | None, who: User, name: str) -> float:
        return held_out_nll(backbone, below, [own], [who], name)[0]

    found: dict[str, Any] = {
        "nll": nll(shared, lora, user, method),
        "nll_before": nll(shared, None, user, "shared"),
        "nll_bare": nll(shared, None, user, "base"),
    }
    if rival is None:
        return found
    below, own, version = rival
    # What the one in use has learnt by heart says nothing about either.
    unseen = tuple(item for item in user.held_out if item.id not in version.pairs)
    if unseen:
        who = replace(user, held_out=unseen)
        zero = replace(shared, b={name: 0 * b for name, b in shared.b.items()})
        found["nll_in_use"] = nll(below or zero, own, who, version.method)
        found["nll_against"] = nll(shared, lora, who, method)
        newly = {item.id for item in user.disliked} - set(version.pairs)
        found["allowed"] = AVOIDING if newly and method == "c-bpo" else 0.0
    return found


def split(entries: Sequence[Entry], name: str = "owner") -> tuple[User, dict[str, str]]:
    """Split the history into what is trained on and what judges.

    Returns
    -------
    tuple
        The owner as a user, and the sources that are trained on: name -> generation.

    Raises
    ------
    IdiolectError
        There is too little.
    """
    liked = [entry for entry in entries if entry.liked]
    disliked = [entry for entry in entries if not entry.liked]
    if len(liked) < FEWEST:
        raise IdiolectError(
            f"there are {len(liked)} liked pairs in the vault, and training needs "
            f"{FEWEST}: import more with `idiolect import FILE`."
        )
    held_out = max(1, min(HELD_OUT, len(liked) // 5))
    learnt = liked[:-held_out]
    user = User(
        name,
        tuple(entry.item() for entry in learnt),
        tuple(entry.item() for entry in liked[-held_out:]),
        disliked=tuple(entry.item() for entry in disliked),
    )
    sources = {entry.source: entry.generation for entry in (*learnt, *disliked)}
    return user, sources


def _source(number: int) -> Source:
    return Source("adapter", str(number))


# --- versions --------------------------------------------------------------------------


def versions(vault: Vault) -> list[Version]:
    """All adapters that are kept, oldest first."""
    return [_parsed(record)[1] for record in vault.records("adapter")]


def active(vault: Vault) -> int:
    """Number of the adapter in use; 0: none."""
    return int(vault.get("state", "active") or b"0")


def activate(vault: Vault, number: int) -> None:
    """Use an adapter from now on; 0: none."""
    vault.put("state", [Record("active", str(number).encode())], DEVICE)


def rollback(vault: Vault) -> int:
    """Use the accepted adapter before the one in use, or none; returns its number.

    Raises
    ------
    IdiolectError
        None is in use.
    """
    with vault.transaction():
        now = active(vault)
        if not now:
            raise _none_in_use(vault)
        before = [v.number for v in versions(vault) if v.accepted and v.number < now]
        activate(vault, max(before, default=0))
    return max(before, default=0)


def use(vault: Vault, number: int) -> Version | None:
    """Use an adapter that is kept, whichever it is; 0: none. Returns it.

    Raises
    ------
    IdiolectError
        There is none of that number, or the shared one below it is gone.
    """
    with vault.transaction():
        kept = {version.number: version for version in versions(vault)}
        if number and number not in kept:
            there = _listed(kept) or "none is kept; `idiolect personalize` trains one"
            raise IdiolectError(f"there is no adapter {number}: {there}.")
        chosen = kept.get(number)
        if chosen and chosen.shared and not vault.holds("shared", chosen.shared):
            raise IdiolectError(
                f"adapter {number} lies on a shared adapter that was dropped, so it cannot "
                "be used: train again by `idiolect personalize`."
            )
        activate(vault, number)
    return chosen


def _listed(numbers: Collection[int]) -> str:
    """Say which adapters there are to use; empty: none."""
    some = ", ".join(map(str, sorted(numbers)))
    if len(numbers) == 1:
        return f"`idiolect use {some}` puts the one that there is into use"
    return some and f"`idiolect use N` puts one of {some} into use"


def _none_in_use(vault: Vault) -> IdiolectError:
    kept = _listed([version.number for version in versions(vault)])
    return IdiolectError(
        f"no adapter is in use: {kept or 'train one by `idiolect personalize`'}."
    )


def reset(vault: Vault) -> int:
    """Go back to the bare backbone: no adapter is used, and none is trained on.

    The trained adapters are kept; the shared adapter of the last run is not the start of
    the next training any more. Returns the number of the one that was in use; 0: none.
    """
    with vault.transaction():
        before = active(vault)
        activate(vault, 0)
        drop_shared(vault)
    return before


def _parsed(record: Record) -> tuple[Lora, Version]:
    lora, metadata = parse_lora(record.body)
    fields = json.loads(metadata["version"])
    lists = {k: tuple(v) for k, v in fields.items() if isinstance(v, list)}
    return lora, Version(**fields | lists)


def adapter(vault: Vault, backbone: Backbone, zero: Lora) -> tuple[Lora, Lora]:
    """The shared adapter below the one in use (`zero` if there is none), and that one.

    Raises
    ------
    IdiolectError
        None is, or it was trained on another backbone.
    """
    number = active(vault)
    body = vault.get("adapter", str(number)) if number else None
    if body is None:
        raise _none_in_use(vault)
    lora, version = _parsed(Record(str(number), body))
    if odd := unlike(version.backbone, backbone.hash):
        raise IdiolectError(
            f"adapter {number} was trained on another backbone than '{backbone.name}' is "
            f"now (other {', '.join(odd)}): train again by `idiolect personalize`, or go "
            "back to the backbone of before by `idiolect settings backbone NAME`."
        )
    return (_read_shared(vault, version.shared) if version.shared else zero), lora


# --- the shared adapter ----------------------------------------------------------------


def latest_shared(vault: Vault, backbone: Backbone, zero: Lora) -> Lora:
    """The shared adapter of the last run, if it is of this backbone; else `zero`."""
    name = (vault.get("state", "shared") or b"").decode()
    if not name:
        return zero
    of, _, digest = name.partition("/")
    return zero if unlike(of, backbone.hash) else _read_shared(vault, digest)


def _read_shared(vault: Vault, digest: str) -> Lora:
    body = vault.get("shared", digest)
    if body is None:
        raise IdiolectError(
            f"the shared adapter {digest[:12]} is missing from the vault, and what was "
            "trained on it cannot be used: train a new one by `idiolect personalize`."
        )
    return parse_lora(body)[0]


def _keep_shared(vault: Vault, backbone: Backbone, shared: Lora, start: bool) -> str:
    """Keep a shared adapter for what is trained on it; returns its hash, empty if zero.

    With `start` the next training starts from it as well.

    It is what the server sent to everyone, and knows nothing of the owner in particular.
    """
    if not any(tensor.any() for tensor in shared.b.values()):
        return ""
    digest = hash_lora(shared)
    below = {version.shared for version in versions(vault)}
    pointed = (vault.get("state", "shared") or b"").decode().partition("/")[2]
    _delete_shared(vault, {digest, pointed, *below})
    if not vault.holds("shared", digest):
        vault.put("shared", [Record(digest, dump_lora(shared, {}))], DEVICE)
    if start:
        pointer = f"{backbone.hash}/{digest}".encode()
        vault.put("state", [Record("shared", pointer)], DEVICE)
    return digest


def drop_shared(vault: Vault) -> None:
    """Drop the shared adapter that the last run brought.

    One below an adapter that may still be used stays for it alone.
    """
    vault.delete("state", ["shared"])
    used = active(vault)
    kept = [one for one in versions(vault) if one.accepted or one.number == used]
    _delete_shared(vault, {one.shared for one in kept})


def _delete_shared(vault: Vault, used: Collection[str]) -> None:
    names = [one.name for one in vault.records("shared") if one.name not in used]
    vault.delete("shared", names)


# --- use -------------------------------------------------------------------------------


def write(
    vault: Vault, prompt: str, budget: int, compare: bool = False
) -> dict[str, str]:
    """Continue a prompt with the adapter in use; with `compare` also without it.

    ``shared`` is then what everyone has: the backbone, with the shared adapter if a run
    brought one.
    """
    with limits.held(settings(vault)):
        return _written(vault, prompt, budget, compare)


def _written(vault: Vault, prompt: str, budget: int, compare: bool) -> dict[str, str]:
    config = configured(vault)
    backbone, zero = reference(config)
    if not 0 < budget < backbone.context:
        raise IdiolectError(
            f"{budget} new tokens do not fit into a context of {backbone.context}: ask "
            f"for 1 to {backbone.context - 1}."
        )
    asked = Prompt("", history.clean(prompt))
    ids, _ = backbone.encode_prompt(asked, backbone.context - budget, "the prompt")
    shared, own = adapter(vault, backbone, zero)
    policies = {"personal": [shared, own]}
    if compare:
        policies["shared"] = [shared]
    return {
        name: history.clean(generate(backbone, policy, [ids], budget)[0])
        for name, policy in policies.items()
    }


def export(vault: Vault, folder: Path) -> None:
    """Write the adapter in use as a PEFT folder, in clear, for its owner alone.

    Raises
    ------
    IdiolectError
        No adapter is in use, or the folder cannot be written; nothing is left of it.
    """
    if folder.exists() and any(folder.iterdir()):
        raise IdiolectError(f"{folder} is not empty: name a new folder.")
    config = configured(vault)
    with limits.held(settings(vault)):
        backbone, zero = reference(config)
        both = adapter(vault, backbone, zero)
    try:
        private_folder(folder)
        export_peft(folder, backbone, *both)
        make_private(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise IdiolectError(
            f"{folder} cannot be written ({words_of(error)}): name another one, or free "
            "space."
        ) from error


# --- forgetting ------------------------------------------------------------------------


def forget(
    vault: Vault, sources: Collection[str] = (), ids: Collection[str] = ()
) -> tuple[int, list[Version]]:
    """Erase sources or single pairs, and every adapter that learnt from them.

    Returns
    -------
    tuple
        How many pairs there were, and the adapters.

    Raises
    ------
    IdiolectError
        There is no such source or pair; nothing was erased.
    ErasureError
        They are deleted, but their encrypted traces are still in the file.
    """
    try:
        with vault.transaction(erasing=True):
            count, stale = _deleted(vault, sources, ids)
    except ErasureError as error:
        raise ErasureError(
            f"the pairs and what learnt them are deleted, but {error}"
        ) from error
    return count, stale


def _deleted(
    vault: Vault, sources: Collection[str], ids: Collection[str]
) -> tuple[int, list[Version]]:
    """Delete what `forget` erases; all of it in one transaction of the caller's.

    So no adapter is kept in between that knows what is gone, and no crash leaves one.
    """
    known = {entry.source for entry in history.entries(vault)}
    named = {n for name in sources for n in history.known_sources(name, known)}
    chosen = history.find(vault, ids)
    touched = {*named, *(entry.source for entry in chosen)}
    stale = [version for version in versions(vault) if touched & set(version.sources)]
    if active(vault) in [version.number for version in stale]:
        activate(vault, 0)
    for version in stale:
        vault.forget(_source(version.number))
    for source in vault.sources():
        if source.kind == "run":  # what a run trained, until it has ended
            vault.forget(source)
    count = sum(vault.forget(Source("import", name)) for name in named)
    for name in {entry.source for entry in chosen} - named:
        gone = {entry.id for entry in chosen if entry.source == name}
        count += vault.forget_some(Source("import", name), history.KIND, gone)
    return count, stale
