"""Training on a device, without any server.

Training starts from the shared adapter that the last federated run brought (from the bare
backbone before there was one). The unlabeled set is `self`: samples of the backbone at the
owner's own prompts, so no other text is needed.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from ...common.config import Config, flatten
from ...common.engine.backbone import Backbone
from ...common.engine.fitting import fits
from ...common.engine.mapped import a_layer_at_a_time
from ...common.engine.memory import TooLittleMemory, free_bytes
from ...common.engine.rates import rates_of
from ...common.engine.reference import load_reference
from ...common.engine.training import UNWATCHED, Watch
from ...common.errors import refuse_if, required
from ...common.methods.personalise import Personal, personalise
from ...common.unlabeled.sets import UnlabeledSet
from . import adapters, history, interrupted, limits
from .adapters import Version
from .consent import settings
from .history import Entry
from .judging import adopt
from .learning import FEWEST, check_learnt, split
from .loading import config_of
from .vault import Vault

# Megabytes that a training plans to take above the model where no memory-mb is set: other
# programs run beside it, and more makes it little faster (docs/performance.md).
USUAL = 300
# Of what memory-mb leaves: the plan is made from shapes, and the limit counts what the heap
# keeps between tensors and the copies of a state that is being kept, too.
PLANNED = 0.5


def train(
    vault: Vault,
    method: str = "c-bpo",
    given: float | None = None,
    watch: Watch = UNWATCHED,
) -> Version:
    """Train a new adapter, keep it, and use it if it is accepted (`Version.accepted`).

    A training that was interrupted goes on where it stood, if history, settings, method and
    rate are the same. `given`: the learning rate; None: the usual one for a backbone of
    this size.

    Raises
    ------
    IdiolectError
        There is too little history, training overflowed, it is not within the owner's
        limits (`limits.held`), or another one is running; the adapter in use stays.
    """
    chosen = settings(vault)
    with (
        limits.alone(vault.path),
        limits.held(chosen, training=True),
        contextlib.ExitStack() as thrift,
    ):
        entries = history.entries(vault)
        fits_strength = chosen["fit-strength"] == "yes"
        split(entries)  # refuses too little before a backbone is loaded
        watch.phase(f"loading the model {Path(chosen['backbone']).name:.40}")
        rate = rates_of(chosen["backbone"]).usual if given is None else given
        config = config_of(chosen, method, rate)
        loaded = load_reference(config)
        # Samples and trial need no more memory than the training.
        thrift.enter_context(
            a_layer_at_a_time(loaded.backbone.model, loaded.backbone.regions)
        )
        short = _fitting(loaded.backbone, entries)
        user, learnt = split(short, fits_strength=fits_strength)
        shared = adapters.latest_shared(vault, loaded.backbone, loaded.adapter)
        reference = loaded.with_shared(shared)
        texts = [asdict(item) for item in (*user.history, *user.disliked)]
        name = interrupted.name_of(
            reference.name, flatten(config), chosen, method, learnt, texts
        )
        check = partial(check_learnt, vault, learnt)
        followed = interrupted.watched(vault, name, check, reference, watch)
        make = partial(personalise, reference, [user], UnlabeledSet(), method, rate)
        # No part of the name: it changes no result.
        planned = _planned(config, chosen, loaded.backbone.device)
        (found,) = _within(planned, lambda config: make(config, followed))
        if found.lora is None:
            interrupted.drop(vault)
        lora = required(found.lora, found.error)
        watch.phase("trying it on your newest texts, which it has not seen")
        too_long = len(entries) - len(short)
        new = adopt(vault, reference, lora, method, (user, learnt), too_long=too_long)
        interrupted.drop(vault)
        return new


def _planned(config: Config, chosen: Mapping[str, str], device: torch.device) -> Config:
    """The configuration with a budget of memory: `USUAL`, or what ``memory-mb`` leaves.

    So a training takes longer before it is refused memory on its way. On a GPU it takes
    what is free there: ``memory-mb`` is about the machine's own.
    """
    if device.type == "cuda":
        return config
    allowed, own = int(chosen["memory-mb"]), limits.memory()
    if allowed and own is not None:
        left = PLANNED * (allowed - own)
    else:
        left = min(USUAL, free_bytes(device) / 2**20)
    return _with_memory(config, max(1, int(left)))


def _within(
    planned: Config, make: Callable[[Config], list[Personal]]
) -> list[Personal]:
    """What is made within the plan, or in more memory: it was a wish, the limit is not."""
    try:
        return make(planned)
    except TooLittleMemory as error:
        least = error.least
    # Not in the clause above: the error holds all that the first try has in memory.
    return make(_with_memory(planned, least))


def _with_memory(config: Config, megabytes: int) -> Config:
    return replace(config, engine=replace(config.engine, memory=megabytes))


def _fitting(backbone: Backbone, entries: Sequence[Entry]) -> list[Entry]:
    """The pairs that fit into the context.

    Raises
    ------
    IdiolectError
        They are too few to train on.
    """
    short = [entry for entry in entries if fits(backbone, entry.item())]
    fit, liked = (sum(entry.liked for entry in some) for some in (short, entries))
    refuse_if(
        fit < FEWEST,
        f"{fit} of the {liked} liked pairs in the vault fit into the context of "
        f"{backbone.context} tokens, and training needs {FEWEST}: import shorter "
        "ones, or allow longer ones by `idiolect settings max-length N`.",
    )
    return short
