"""The adapters that a vault keeps: which there are, which is used, and what is below them.

An adapter of the owner's was trained on top of a shared adapter, which the last federated
run brought, or on the bare backbone before there was one.
"""

import json
import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from ...common.config.keys import MOST_STRENGTH
from ...common.config.methods import current_name
from ...common.engine.adapters import Lora, dump_lora, hash_lora, parse_lora, scaled
from ...common.engine.backbone import Backbone
from ...common.engine.model_folder import unlike
from ...common.errors import IdiolectError, refuse_if, required
from .records import DEVICE, Record, Source
from .vault import Vault

IMPORTED = "imported/"  # in front of an origin


@dataclass(frozen=True)
class Change:
    """What an adapter changes at one held-out prompt.

    Attributes
    ----------
    asked
        The prompt.
    before, after
        What was written there before, and what the new adapter writes.
    own
        What the owner wrote.
    """

    asked: str
    before: str
    after: str
    own: str


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
        With the adapter that was in use, and with this one, on those held-out pairs that
        the one in use was not trained on; None: there was none to compare with.
    allowed
        By how much `nll_against` may exceed `nll_in_use`: 0, unless there are newly
        disliked texts, which the one in use has not learnt to avoid.
    too_long
        Number of pairs that were left out since they do not fit into the context.
    shared
        Hash of the shared adapter below it; empty: none.
    origin
        What a federated run trained it from (`state.identity`), or `IMPORTED` and the hash
        of an adapter that its owner imported; empty: neither.
    strength
        What its scaling is multiplied by where it is used; the owner may turn it.
    fitted, fitted_on
        The strength that suits it best, and ids of the held-out pairs that say so. These
        do not judge it. Without any the strength is 1. 0: it is better not used.
    fault
        What is wrong with what it writes (`acceptance.FAULTS`); empty: nothing.
    changes
        What it changes at some held-out prompts. Not kept with it: what the owner forgets
        must not stay in an adapter that was only judged by it.
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
    strength: float = 1.0
    fitted: float = 1.0
    fitted_on: tuple[str, ...] = ()
    fault: str = ""
    changes: tuple[Change, ...] = field(default=(), compare=False)

    @property
    def imported(self) -> bool:
        """Whether somebody else made it; its method is not known then."""
        return self.origin.startswith(IMPORTED)

    @property
    def accepted(self) -> bool:
        """Whether it is no worse than the bare backbone, the shared one, the one in use.

        And nothing is wrong with what it writes, and some strength of it is better than
        none.
        """
        if self.fitted == 0:
            return False
        if self.fault:
            return False
        better = (
            self.nll_in_use is None
            or self.nll_against is None
            or self.nll_against <= self.nll_in_use + self.allowed
        )
        return better and self.nll <= min(self.nll_before, self.nll_bare)


# --- which is used ---------------------------------------------------------------------


def versions(vault: Vault) -> list[Version]:
    """All adapters that are kept, oldest first."""
    return [_parsed(record.body)[1] for record in vault.records("adapter")]


def active(vault: Vault) -> int:
    """Number of the adapter in use; 0: none."""
    return vault.noted("active", 0)


def activate(vault: Vault, number: int) -> None:
    """Use an adapter from now on; 0: none."""
    vault.note("active", number)


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


def use(vault: Vault, number: int, strength: float | None = None) -> Version | None:
    """Use an adapter that is kept, accepted or not; 0: none. Returns it as it was.

    With a strength it is kept and used at that one from now on.

    Raises
    ------
    IdiolectError
        There is none of that number, the shared one below it is gone, or the strength is
        none.
    """
    refuse_if(
        strength is not None and not 0 <= strength <= MOST_STRENGTH,
        f"a strength of {strength} is not possible: give a number from 0 (as without the "
        f"adapter) to {MOST_STRENGTH:g}; 1 is the adapter as it was trained.",
    )
    refuse_if(
        strength is not None and not number,
        "none has no strength: give the number of an adapter, `idiolect use N --strength "
        "X`.",
    )
    with vault.transaction():
        kept = {version.number: version for version in versions(vault)}
        there = _listed(kept) or "none is kept; `idiolect personalize` trains one"
        unknown = number and number not in kept
        refuse_if(unknown, f"there is no adapter {number}: {there}.")
        chosen = kept.get(number)
        refuse_if(
            chosen and chosen.shared and not vault.holds("shared", chosen.shared),
            f"adapter {number} needs a shared adapter that was dropped, so it cannot "
            "be used: train again by `idiolect personalize`.",
        )
        activate(vault, number)
        if strength is not None:
            lora, version = _parsed(required(vault.get("adapter", str(number)), ""))
            _store(vault, replace(version, strength=strength), lora)
            # A process that keeps the adapter loaded sees by this that it has changed.
            vault.note("turned", turned(vault) + 1)
    return chosen


def turned(vault: Vault) -> int:
    """How often the strength of an adapter was turned."""
    return vault.noted("turned", 0)


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


def keep(vault: Vault, version: Version, lora: Lora) -> None:
    """Keep an adapter, at strength 1, and use it if it is accepted."""
    _store(vault, version, lora)
    if version.accepted:
        activate(vault, version.number)


def _store(vault: Vault, version: Version, lora: Lora) -> None:
    fields = {name: one for name, one in vars(version).items() if name != "changes"}
    body = dump_lora(lora, {"version": json.dumps(fields)})
    # A source of its own: it can be erased without the others.
    name = str(version.number)
    vault.put("adapter", [Record(name, body)], Source("adapter", name))


def _parsed(body: bytes) -> tuple[Lora, Version]:
    lora, metadata = parse_lora(body)
    fields = json.loads(metadata["version"])
    lists = {k: tuple(v) for k, v in fields.items() if isinstance(v, list)}
    return lora, Version(**fields | lists | {"method": current_name(fields["method"])})


def read(
    vault: Vault, number: int, strength: float | None = None
) -> tuple[Lora, Version] | None:
    """An adapter that is kept, at its strength or another; None if it is not kept."""
    body = vault.get("adapter", str(number)) if number else None
    if body is None:
        return None
    lora, version = _parsed(body)
    return scaled(lora, version.strength if strength is None else strength), version


def adapter(vault: Vault, backbone: Backbone, zero: Lora) -> tuple[Lora, Lora]:
    """The shared adapter below the one in use (`zero` if there is none), and that one.

    Raises
    ------
    IdiolectError
        None is, or it was trained on another backbone.
    """
    found = read(vault, active(vault))
    if found is None:
        raise _none_in_use(vault)
    lora, version = found
    refuse_if(
        odd := unlike(version.backbone, backbone.hash),
        f"adapter {version.number} was trained on another backbone than "
        f"'{backbone.name}' is now (other {', '.join(odd)}): train again by `idiolect "
        "personalize`, or go back to the former backbone by `idiolect settings "
        "backbone NAME`.",
    )
    return shared_below(vault, version.shared, zero), lora


def in_use(vault: Vault) -> Version:
    """What is known of the adapter in use.

    Raises
    ------
    IdiolectError
        None is.
    """
    now = active(vault)
    for version in versions(vault):
        if version.number == now:
            return version
    raise _none_in_use(vault)


# --- the shared adapter ----------------------------------------------------------------


def latest_shared(vault: Vault, backbone: Backbone, zero: Lora) -> Lora:
    """The shared adapter of the last run, if it is of this backbone; else `zero`."""
    of, digest = _pointer(vault)
    fits = digest and not unlike(of, backbone.hash)
    return shared_below(vault, digest if fits else "", zero)


def _pointer(vault: Vault) -> tuple[str, str]:
    """Backbone and hash of the shared adapter that the last run brought; empty: none."""
    of, _, digest = (vault.get("state", "shared") or b"").decode().partition("/")
    return of, digest


def shared_below(vault: Vault, digest: str, zero: Lora) -> Lora:
    """The shared adapter of this hash, on which another was trained; empty: `zero`."""
    if not digest:
        return zero
    body = required(
        vault.get("shared", digest),
        f"the shared adapter {digest[:12]} is missing from the vault, and what was "
        "trained on it cannot be used: train a new one by `idiolect personalize`.",
    )
    return parse_lora(body)[0]


def keep_shared(vault: Vault, backbone: Backbone, shared: Lora, start: bool) -> str:
    """Keep a shared adapter below others; returns its hash, empty if it is zero.

    With `start` the next training starts from it as well. Its source is the device: the
    server sent it to everyone, so it is not made of the owner's text alone.
    """
    if not any(tensor.any() for tensor in shared.b.values()):
        return ""
    digest = hash_lora(shared)
    below = {version.shared for version in versions(vault)}
    _delete_shared(vault, {digest, _pointer(vault)[1], *below})
    if not vault.holds("shared", digest):
        vault.put("shared", [Record(digest, dump_lora(shared, {}))], DEVICE)
    if start:
        pointer = f"{backbone.hash}/{digest}".encode()
        vault.put("state", [Record("shared", pointer)], DEVICE)
    return digest


def drop_shared(vault: Vault) -> None:
    """Drop the shared adapter that the last run brought.

    One below an adapter that may still be used is kept for that adapter.
    """
    vault.delete("state", ["shared"])
    used = active(vault)
    kept = (one for one in versions(vault) if one.accepted or one.number == used)
    _delete_shared(vault, {one.shared for one in kept})


def _delete_shared(vault: Vault, used: Collection[str]) -> None:
    names = {one.name for one in vault.records("shared")}
    vault.delete("shared", names - set(used))
