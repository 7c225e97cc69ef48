"""Forgetting texts, and with them every adapter that learnt from them."""

from collections.abc import Collection
from dataclasses import dataclass

from . import adapters, history, interrupted, resident
from .adapters import Version
from .database import ErasureError
from .history import Entry
from .records import Source
from .vault import Vault


@dataclass(frozen=True)
class Forgotten:
    """What is erased with sources and pairs that an owner names.

    Attributes
    ----------
    sources
        Names of sources that are forgotten as a whole.
    entries
        All pairs.
    stale
        The adapters that learnt from them.
    """

    sources: frozenset[str]
    entries: tuple[Entry, ...]
    stale: tuple[Version, ...]


def to_forget(
    vault: Vault, sources: Collection[str] = (), ids: Collection[str] = ()
) -> Forgotten:
    """What `forget` would erase.

    Raises
    ------
    IdiolectError
        There is no such source or pair.
    """
    with vault.reading():
        everything = history.entries(vault)
        known = {entry.source for entry in everything}
        named = {n for name in sources for n in history.known_sources(name, known)}
        chosen = {entry.id for entry in history.find(vault, ids)}
        gone = [e for e in everything if e.id in chosen or e.source in named]
        touched = {entry.source for entry in gone}
        stale = [one for one in adapters.versions(vault) if touched & set(one.sources)]
    return Forgotten(frozenset(named), tuple(gone), tuple(stale))


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
        # In one transaction: no adapter is kept in between that knows what is gone, and
        # no crash leaves one.
        with vault.transaction(erasing=True):
            found, disliked = to_forget(vault, sources, ids), history.disliked(vault)
            named, stale = found.sources, list(found.stale)
            if adapters.active(vault) in [version.number for version in stale]:
                adapters.activate(vault, 0)
            for version in stale:
                vault.forget(Source("adapter", str(version.number)))
            vault.forget_runs()
            vault.forget(interrupted.SOURCE)
            count = sum(vault.forget(Source("import", name)) for name in named)
            for name in {entry.source for entry in found.entries} - named:
                gone = {entry.id for entry in found.entries if entry.source == name}
                count += vault.forget_some(Source("import", name), history.KIND, gone)
            erased = sum(not entry.liked for entry in found.entries)
            history.note_disliked(vault, disliked, -erased)
        resident.end(vault.path)  # it has what is erased in its memory
        return count, stale
    except ErasureError as error:
        raise ErasureError(
            f"the pairs and what learnt them are deleted, but {error}"
        ) from error
