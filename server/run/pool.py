"""Phase pool: build the unlabeled set that stands for everyone else."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ...common.config import Config
from ...common.data.load import public_items
from ...common.data.types import Dataset, Item
from ...common.errors import refuse_if
from ...common.protocol.messages import MAX_ITEMS
from ...common.protocol.quantization import as_received
from ...common.secure.secure import LeftOut
from ...common.seeds import derive, numpy_generator
from ...common.unlabeled.samples import sample_reference
from ...common.unlabeled.sets import VOTE_FLOOR, Unlabeled
from ..privacy.ledger import BudgetSpent
from .budget import charge, integers
from .cohort import Run

Built = tuple[tuple[Unlabeled, ...], str]
"""The unlabeled set, and the ledger's id of the vote that its weights are."""


def pool(run: Run) -> None:
    """Build the unlabeled set of the configured kind, unless that is done already.

    Where the budget does not allow the vote, or the vote is left out, so are the methods
    that need the set.
    """
    state, kind = run.state, run.config.unlabeled.kind
    if state.unlabeled is not None:
        return
    built: tuple[Unlabeled, ...] = ()
    if kind != "self":  # of which every device makes its own: nothing crosses users
        try:
            built, release = KINDS[kind](run)
            run.cohort.hand_out(built, release)
        except (BudgetSpent, LeftOut) as error:
            run.warn(f"pool: no unlabeled set, and no method that needs one: {error}")
            state.without_pool = True
    state.unlabeled = built
    run.save()


def public(run: Run) -> Built:
    """Kind `public`: public items, all of one weight."""
    return tuple(map(Unlabeled, public_text(run.config, run.dataset, MAX_ITEMS))), ""


def public_text(config: Config, dataset: Dataset, count: int) -> list[Item]:
    """Return at most `count` public items, chosen by the run's seed.

    Raises
    ------
    IdiolectError
        There is no public text.
    """
    file = config.unlabeled.file
    items = public_items(file) if file else dataset.public
    refuse_if(
        not items,
        (
            f"unlabeled.kind '{config.unlabeled.kind}' needs public text and these "
            "data bring none: set unlabeled.file to JSON lines of {prompt, target}, or "
            "use unlabeled.kind=self."
        ),
    )
    order = numpy_generator(config.seed, "bank").permutation(len(items))
    # A rival is for measuring; it is not part of the text.
    return [replace(items[i], rivals=()) for i in sorted(order[:count])]


def voted(run: Run) -> Built:
    """Kind `votes`: a bank of candidates, weighted by the sum of all votes.

    With ``privacy.mode`` `central` each user votes by a coin of its own and the sum is
    released with Gaussian noise: one user changes it by at most 1 in L2 norm. Otherwise
    the sum is exact and carries no guarantee.

    Raises
    ------
    BudgetSpent
        The vote would exceed the budget; nobody was asked.
    LeftOut
        With ``secagg.mode=sum``: too few voted, and the vote is paid for.
    """
    config, release = run.config, None
    users = run.cohort.users + run.cohort.development
    if config.privacy.mode == "central":
        note = {"bank": config.unlabeled.bank}
        release = charge(
            run.ledger, config, run.population, "votes", 0, run.begun, **note
        )
        users = release.participants(users)
    bank = candidates(run)
    whole = integers(config, run.population, "votes", 1.0, release)
    name = release.id if release else ""
    total, counted = run.cohort.vote(users, bank, name, whole)
    if release:
        run.took_part("votes", counted)
        total = total + release.unit_noise(total.shape, len(counted), whole)
        run.state.floor = VOTE_FLOOR * release.event.z
    voted = tuple(map(Unlabeled, bank, total.tolist()))
    return voted, release.id if release else ""


def candidates(run: Run) -> tuple[Item, ...]:
    """The bank: public text, or what the shared adapter writes at public prompts.

    The latter is post-processing of the shared adapter: it costs no privacy beyond it.
    pi_ref is sampled once at each prompt; what comes out empty is left out. The server
    needs the backbone's memory for this, and only for this.

    Raises
    ------
    IdiolectError
        Nothing is left.
    """
    config = run.config
    bank = tuple(public_text(config, run.dataset, config.unlabeled.bank))
    if config.unlabeled.bank_from == "public":
        return bank
    import torch

    from ...common.engine.fitting import fits
    from ...common.engine.reference import load_reference

    untrained = load_reference(config)
    device = untrained.backbone.device
    rows = as_received(run.state.shared, config.signed_bytes)
    b = {name: torch.tensor(a, device=device) for name, a in rows.items()}
    reference = untrained.with_shared(replace(untrained.adapter, b=b))
    bank = tuple(item for item in bank if fits(reference.backbone, item))
    texts = sample_reference(reference, bank, config, derive(config.seed, "bank"))
    made = tuple(
        replace(item, id=f"shared/{i}", target=text)
        for i, (item, text) in enumerate(zip(bank, texts, strict=True))
        if text
    )
    refuse_if(
        not made,
        (
            "the shared adapter wrote nothing at the public prompts: use "
            "unlabeled.bank-from=public."
        ),
    )
    return made


def anonymised(run: Run) -> Built:
    """Kind `anonymised`, **not DP**: scrubbed items whose like enough users have.

    First counts, then text: every user says which of a few public buckets its items fall
    into, and only items of buckets with ``unlabeled.support`` users are asked for. What
    comes is shuffled, so that neighbours in the list say nothing about who wrote them.
    But each item is still one person's text, and the server sees from whom it came.

    Raises
    ------
    IdiolectError
        No bucket has enough users.
    """
    config, users = run.config, run.cohort.users + run.cohort.development
    bank = tuple(public_text(config, run.dataset, config.unlabeled.buckets))
    support, least = run.cohort.mark(users, bank), config.unlabeled.support
    supported = tuple(np.flatnonzero(support >= least).tolist())
    refuse_if(
        not supported,
        (
            f"none of the {len(support)} buckets has items of {least} users, so nothing "
            "may be handed out: lower unlabeled.buckets, find more users, or use another "
            "unlabeled.kind."
        ),
    )
    items = run.cohort.offer(users, bank, supported)
    found = [item for user in users for item in items.get(user, ())]
    order = numpy_generator(config.seed, "offers").permutation(len(found))[:MAX_ITEMS]
    return tuple(
        # Under names that say nothing.
        Unlabeled(replace(found[k], id=f"offer/{i}", rivals=()))
        for i, k in enumerate(order)
    ), ""


def others(run: Run) -> Built:
    """Kind `others`: everybody's raw history; hello has refused all but a simulation."""
    users = run.cohort.users + run.cohort.development
    items = run.cohort.share(users)
    found = [
        Unlabeled(replace(item, rivals=()), 1.0, user)
        for user in users
        for item in items.get(user, ())
    ]
    if len(found) > MAX_ITEMS:
        chosen = numpy_generator(run.config.seed, "others").permutation(len(found))
        found = [found[i] for i in sorted(chosen[:MAX_ITEMS])]
    return tuple(found), ""


KINDS: dict[str, Callable[[Run], Built]] = {
    "votes": voted,
    "others": others,
    "public": public,
    "anonymised": anonymised,
}
