"""What a training that is interrupted leaves in the vault, so that the next one goes on.

Kept are the texts that the model wrote, the reference scores, and from time to time the
trained parameters with the optimiser's state. All of that was made of the owner's text. So
it lies under a source of its own, which is erased whenever anything is forgotten and
emptied when a training ends, and it is only kept while what it was made of is there.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from importlib.metadata import version
from time import monotonic

import torch
from safetensors.torch import load, save

from ...common.engine.objectives import Means
from ...common.engine.reference import Reference
from ...common.engine.training import Adam, Standing, Watch
from .records import Record, Source
from .vault import Vault

KIND = "training"
SOURCE = Source("training")
# What is kept every time costs disk writes of three adapters: not more often than this many
# seconds, and no more than this share of the time.
OFTEN, SHARE = 5.0, 0.03
STANDING = tuple(f"standing.{name}" for name in ("flat", "first", "second", "rest"))
MEANS = tuple(entry.name for entry in fields(Means))


def name_of(*parts: object) -> str:
    """What tells a training from all others: all that its result depends on, as JSON."""
    text = json.dumps([version("idiolect"), *parts])
    return hashlib.sha256(text.encode()).hexdigest()


def watched(
    vault: Vault,
    name: str,
    check: Callable[[], None],
    reference: Reference,
    watch: Watch,
) -> Watch:
    """The same watch, which also keeps where the training stands, and goes on from there.

    Parameters
    ----------
    vault, name
        Where it is kept, and as what (`name_of`). What a training of another name has left
        is dropped.
    check
        Refuses to keep what was made of text that is forgotten by now; called in the
        transaction that keeps it.
    reference
        Is told the samples and scores that are kept.
    watch
        Is told everything, too.
    """
    due = monotonic() + OFTEN

    def keep(records: Iterable[Record]) -> None:
        with vault.transaction():
            check()
            vault.put(KIND, [Record("name", name.encode())], SOURCE)
            vault.put(KIND, records, SOURCE)

    def phase(words: str) -> None:
        watch.phase(words)
        keep_results()

    def keep_results() -> None:
        if found := reference.costly():
            keep([Record("results", json.dumps(found).encode())])

    def start() -> Standing | None:
        keep_results()
        at = standing(vault)
        if at is not None:
            watch.phase(f"going on after step {at.step}, where the last one stood")
        return at

    def step(at: Standing, of: int) -> None:
        nonlocal due
        watch.step(at, of)
        if monotonic() >= due and at.step < of:
            began = monotonic()
            keep(records_of(at))
            due = monotonic() + max(OFTEN, (monotonic() - began) / SHARE)

    with vault.transaction():
        if vault.get(KIND, "name") != name.encode():
            drop(vault)
    reference.recall(json.loads(vault.get(KIND, "results") or b"[]"))
    return replace(watch, phase=phase, start=start, step=step)


def drop(vault: Vault) -> None:
    """Delete what a training has left; see `forget` for erasure."""
    vault.delete(KIND, ("name", "results", *STANDING))


def records_of(at: Standing) -> Iterator[Record]:
    """A standing as records, made one by one: together they are three adapters large."""
    large = {"flat": at.flat, "first": at.adam.first, "second": at.adam.second}
    small = {
        "step": torch.tensor(at.step),
        "steps": at.adam.steps,
        "losses": at.losses,
        "clamps": at.clamps,
        **{f"means.{name}": tensor for name, tensor in vars(at.means).items()},
    }
    for name, tensors in (*((n, {n: t}) for n, t in large.items()), ("rest", small)):
        parts = {n: t.detach().cpu().contiguous() for n, t in tensors.items()}
        yield Record(f"standing.{name}", save(parts))


def standing(vault: Vault) -> Standing | None:
    """The standing that is kept; None: none is."""
    found: dict[str, torch.Tensor] = {}
    for name in STANDING:
        body = vault.get(KIND, name)
        if body is None:
            return None
        found |= load(body)
    means = {name: found[f"means.{name}"] for name in MEANS}
    return Standing(
        int(found["step"]),
        found["flat"],
        Adam(found["first"], found["second"], found["steps"]),
        Means(**means),
        found["losses"],
        found["clamps"],
    )
