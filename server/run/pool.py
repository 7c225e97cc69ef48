"""Phase pool: build the unlabeled set that stands for everyone else."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...common.config import Config
from ...common.data.load import public_items
from ...common.data.types import Dataset, Item
from ...common.errors import IdiolectError
from ...common.privacy.noise import gaussian
from ...common.privacy.scrub import OFFERED, scrub
from ...common.protocol.manifest import Manifest, canonical, digest, parse
from ...common.protocol.manifest import sign as sign_manifest
from ...common.protocol.messages import (
    MAX_ITEMS,
    OfferReply,
    OfferRequest,
    Rows,
    ShareReply,
    ShareRequest,
    VoteReply,
    VoteRequest,
)
from ...common.protocol.packing import unpack
from ...common.protocol.quantization import as_received
from ...common.protocol.validation import valid_votes
from ...common.seeds import derive, numpy_generator
from ...common.unlabeled.samples import sample_reference
from ...common.unlabeled.sets import VOTE_FLOOR, Unlabeled, fingerprint
from ..privacy.ledger import BudgetSpent, Ledger
from .adapt import clipped_sum, crowd_of_run, participants
from .budget import Crowd, Release, charge, noise_of, vote_event
from .exchange import Run, Step, ask, groups, report, require

VALID_DAYS = 30.0  # for which a signed unlabeled set is valid; renewed on resume
WEIGHT = 0.1  # a vote is cheap beside an epoch of training


def pool(run: Run) -> None:
    """Build the unlabeled set of the configured kind, unless that is done already.

    Where the budget does not allow the vote, the methods that need the set are left out.
    """
    if run.state.unlabeled is None:
        build = {
            "votes": voted,
            "others": others,
            "public": public,
            "anonymised": anonymised,
            "self": made_on_the_device,
        }[run.config.unlabeled.kind]
        try:
            run.state.unlabeled = build(run)
        except BudgetSpent as error:
            run.warn(f"pool: no unlabeled set, and no method that needs one: {error}")
            run.state.without_pool = True
            run.state.unlabeled = ()
        run.save()
    elif run.state.unlabeled and expired(run.state.manifest):
        sign_set(run, run.state.unlabeled, vote=parse(run.state.manifest).vote)
        run.save()


# --- signatures ------------------------------------------------------------------------


def sign_set(run: Run, handed: Sequence[Unlabeled], vote: str = "") -> None:
    """Sign the unlabeled set; the checkpoint keeps the manifest beside it."""
    sign(run, run.config.unlabeled.kind, fingerprint(handed), len(handed), vote)


def sign(
    run: Run, kind: str, content: str, count: int, vote: str = ""
) -> tuple[str, str]:
    """Sign the next manifest of the run's chain; it is saved before it is sent.

    What was signed already, before a crash, is not signed again.
    """
    config, state, now = run.config, run.state, time.time()
    last = parse(state.manifest) if state.manifest else None
    same = last and (last.kind, last.content, last.vote) == (kind, content, vote)
    if last and same and last.expires > now:
        return state.manifest, state.signature
    guaranteed = config.privacy.mode == "central" and not run.ledger.open_releases
    spent = run.ledger.spent().release if guaranteed else math.inf
    manifest = Manifest(
        run=run.id,
        kind=kind,
        version=state.version + 1,
        previous=digest(last) if last else "",
        content=content,
        count=count,
        features=config.unlabeled.features,
        vote=vote,
        floor=state.floor if kind != "bank" else 0.0,
        epsilon=spent if math.isfinite(spent) else None,
        created=now,
        expires=now + 86_400 * VALID_DAYS,
    )
    state.version += 1
    state.manifest = canonical(manifest).decode()
    state.signature = sign_manifest(manifest, run.signing_key)
    return state.manifest, state.signature


def expired(manifest: str) -> bool:
    """Whether a manifest is no longer valid, as after a long pause of the run."""
    return not manifest or parse(manifest).expires <= time.time()


# --- kinds -----------------------------------------------------------------------------


def made_on_the_device(_run: Run) -> tuple[Unlabeled, ...]:
    """Kind `self`: nothing crosses users, so there is nothing to hand out."""
    return ()


def public(run: Run) -> tuple[Unlabeled, ...]:
    """Kind `public`: public items, all of one weight."""
    handed = tuple(
        Unlabeled(item) for item in public_text(run.config, run.dataset, MAX_ITEMS)
    )
    sign_set(run, handed)
    return handed


def public_text(config: Config, dataset: Dataset, count: int) -> list[Item]:
    """Return at most `count` public items, chosen by the run's seed.

    Raises
    ------
    IdiolectError
        There is no public text.
    """
    file = config.unlabeled.file
    items = public_items(file) if file else dataset.public
    if not items:
        raise IdiolectError(
            f"unlabeled.kind '{config.unlabeled.kind}' needs public text and these "
            "data bring none: set unlabeled.file to JSON lines of {prompt, target}, or "
            "use unlabeled.kind=self."
        )
    order = numpy_generator(config.seed, "bank").permutation(len(items))
    # A rival is for measuring; it is not part of the text.
    return [replace(items[i], rivals=()) for i in sorted(order[:count])]


def candidates(run: Run) -> tuple[Item, ...]:
    """The bank: public text, or what the shared adapter writes at public prompts.

    The latter is post-processing of the shared adapter: it costs no privacy beyond it.
    """
    config = run.config
    bank = tuple(public_text(config, run.dataset, config.unlabeled.bank))
    if config.unlabeled.bank_from == "public":
        return bank
    shared = as_received(run.state.shared, config.signed_bytes)
    return written_by_shared(config, shared, bank)


def written_by_shared(
    config: Config, rows: Rows, prompts: Sequence[Item]
) -> tuple[Item, ...]:
    """Sample pi_ref once at each prompt; what comes out empty is left out.

    The server needs the backbone's memory for this, and only for this.
    """
    import torch

    from ...common.engine.reference import load_reference

    untrained = load_reference(config)
    device = untrained.backbone.device
    b = {name: torch.from_numpy(a.copy()).to(device) for name, a in rows.items()}
    reference = untrained.with_shared(replace(untrained.adapter, b=b))
    seed = derive(config.seed, "bank")
    texts = sample_reference(reference, prompts, config, seed)
    made = tuple(
        replace(item, id=f"shared/{i}", target=text)
        for i, (item, text) in enumerate(zip(prompts, texts, strict=True))
        if text
    )
    if not made:
        raise IdiolectError(
            "the shared adapter wrote nothing at the public prompts: use "
            "unlabeled.bank-from=public."
        )
    return made


def voted(run: Run) -> tuple[Unlabeled, ...]:
    """Kind `votes`: a bank of candidates, weighted by the sum of all votes.

    With ``privacy.mode`` `central` each user votes by a coin of its own and the sum is
    released with Gaussian noise: one user changes it by at most 1 in L2 norm. Otherwise
    the sum is exact and carries no guarantee.

    Raises
    ------
    BudgetSpent
        The vote would exceed the budget; nobody was asked.
    """
    config = run.config
    users = run.users + run.development
    release = None
    if config.privacy.mode == "central":
        release = charge_vote(run.ledger, config, crowd_of_run(run))
        users = participants(users, release, config)
    bank = candidates(run)
    total, counted = ask_votes(run, bank, users, release)
    if release is not None:
        run.took_part("votes", counted)
        total = total + gaussian(total.shape, release.event.z, release.random)
        run.state.floor = VOTE_FLOOR * release.event.z
    handed = tuple(
        Unlabeled(item, float(weight)) for item, weight in zip(bank, total, strict=True)
    )
    sign_set(run, handed, vote=release.id if release else "")
    return handed


def charge_vote(ledger: Ledger, config: Config, crowd: Crowd) -> Release:
    """Charge the vote, unless that was done before a crash.

    Raises
    ------
    BudgetSpent
        The vote would exceed the budget.
    """
    event = vote_event(config, noise_of(config, crowd), crowd)
    return charge(ledger, event, config, 0, bank=config.unlabeled.bank)


def ask_votes(
    run: Run, bank: tuple[Item, ...], users: Sequence[str], release: Release | None
) -> tuple[np.ndarray, list[str]]:
    """Sign the bank, let the users vote over it, and add up what is valid.

    Returns
    -------
    tuple
        The exact sum, float64 [bank], and whose votes it holds.
    """
    before = run.state.version
    manifest, signature = sign(
        run, "bank", fingerprint([Unlabeled(item) for item in bank]), len(bank)
    )
    if run.state.version != before:
        run.save()
    step = Step("pool", "votes", "query.vote", WEIGHT)
    place = f"pool/{release.id}" if release else "pool"
    tasks = [
        (
            node,
            VoteRequest(
                **run.head(f"{place}/{i}", names),
                release=release.id if release else "",
                manifest=manifest,
                signature=signature,
                bank=bank,
            ),
        )
        for i, (node, names) in enumerate(groups(run, users))
    ]

    def shapes(fields: dict) -> dict[str, tuple[int, ...]]:
        return {"votes": (len(fields["users"]), len(bank))}

    answers = ask(
        run,
        step,
        tasks,
        lambda record: unpack(VoteReply, record, shapes),
        row={"votes": (len(bank),)},
    )
    anonymised = run.config.unlabeled.kind == "anonymised"
    valid, add = (
        (valid_marks, sum_of_marks) if anonymised else (valid_votes, sum_of_votes)
    )
    total = np.zeros(len(bank))
    counted: list[str] = []
    bad: dict[str, str] = {}
    for reply in answers.replies:
        votes = reply.votes["votes"]
        good = valid(votes)
        total += add(votes[good])
        for user, is_good in zip(reply.users, good, strict=True):
            if is_good:
                counted.append(user)
            else:
                bad[user] = "the vote is not finite, negative, or longer than 1."
    report(run, step, bad)
    if users or release is None:  # coins may name nobody: then only noise is released
        require(run, step, len(counted), len(users), answers.errors | bad)
    return total, counted


def sum_of_votes(votes: np.ndarray) -> np.ndarray:
    """Sum of votes [users, bank], each clipped to L2 norm 1 exactly: float64 [bank].

    A vote that its device rounded to float32 may be a little longer, and the noise is
    made for 1 (see `adapt.clipped_sum`).
    """
    return clipped_sum({"votes": votes}, 1.0)[0]["votes"]


def sum_of_marks(marks: np.ndarray) -> np.ndarray:
    """How many users marked each bucket, float64 [bank]: a count, and no release."""
    return marks.sum(axis=0, dtype=np.float64)


def valid_marks(votes: np.ndarray) -> np.ndarray:
    """Which rows [users, bank] are marks: nothing but 0 and 1. bool [users]."""
    return ((votes == 0) | (votes == 1)).all(axis=1)


def anonymised(run: Run) -> tuple[Unlabeled, ...]:
    """Kind `anonymised`, **not DP**: scrubbed items whose like enough users have.

    First counts, then text: every user says which of a few public buckets its items fall
    into, and only items of buckets with ``unlabeled.support`` users are asked for. What
    comes is shuffled, so that neighbours in the list say nothing about who wrote them.
    But each item is still one person's text, and the server sees from whom it came.
    """
    config = run.config
    users = run.users + run.development
    bank = tuple(public_text(config, run.dataset, config.unlabeled.buckets))
    support, _ = ask_votes(run, bank, users, None)
    supported = supported_buckets(support, config)
    step = Step("pool", "scrubbed items", "query.offer", WEIGHT)
    tasks = [
        (
            node,
            OfferRequest(
                **run.head(f"pool/offer/{i}", names),
                manifest=run.state.manifest,
                signature=run.state.signature,
                bank=bank,
                supported=supported,
            ),
        )
        for i, (node, names) in enumerate(groups(run, users))
    ]
    answers = ask(
        run,
        step,
        tasks,
        lambda record: unpack(OfferReply, record),
        texts=OFFERED,
    )
    items = {
        user: [item for item in offered if is_scrubbed(item)]
        for reply in answers.replies
        for user, offered in reply.items.items()
        if user in reply.users
    }
    require(run, step, len(items), len(users), answers.errors)
    handed = shuffled_offers(
        [items.get(user, [])[:OFFERED] for user in users], config.seed
    )
    sign_set(run, handed)
    return handed


def supported_buckets(support: np.ndarray, config: Config) -> tuple[int, ...]:
    """Places in the bank of the buckets that have enough users.

    Raises
    ------
    IdiolectError
        There are none.
    """
    least = config.unlabeled.support
    supported = tuple(int(i) for i in np.flatnonzero(support >= least))
    if not supported:
        raise IdiolectError(
            f"none of the {len(support)} buckets has items of {least} users, so nothing "
            "may be handed out: lower unlabeled.buckets, find more users, or use another "
            "unlabeled.kind."
        )
    return supported


def is_scrubbed(item: Item) -> bool:
    """Whether a device did scrub what it sent: scrubbing again changes nothing."""
    return all(scrub(text) == text for text in (item.prompt.input, item.target))


def shuffled_offers(
    offers: Sequence[Sequence[Item]], seed: int
) -> tuple[Unlabeled, ...]:
    """All users' offers in a random order, under names that say nothing."""
    found = [item for items in offers for item in items]
    order = numpy_generator(seed, "offers").permutation(len(found))[:MAX_ITEMS]
    return tuple(
        Unlabeled(replace(found[k], id=f"offer/{i}", rivals=()))
        for i, k in enumerate(order)
    )


def others(run: Run) -> tuple[Unlabeled, ...]:
    """Kind `others`: everybody's raw history; hello has refused all but a simulation."""
    step = Step("pool", "raw text of others", "query.share", WEIGHT)
    users = run.users + run.development
    tasks = [
        (node, ShareRequest(**run.head(f"pool/{i}", names)))
        for i, (node, names) in enumerate(groups(run, users))
    ]
    answers = ask(
        run,
        step,
        tasks,
        lambda record: unpack(ShareReply, record),
        texts=MAX_ITEMS,
    )
    items = {
        user: texts
        for reply in answers.replies
        for user, texts in reply.items.items()
        if user in reply.users
    }
    require(run, step, len(items), len(users), answers.errors)
    found = [
        Unlabeled(replace(item, rivals=()), 1.0, user)
        for user in users
        for item in items.get(user, ())
    ]
    if len(found) > MAX_ITEMS:
        chosen = numpy_generator(run.config.seed, "others").permutation(len(found))
        found = [found[i] for i in sorted(chosen[:MAX_ITEMS])]
    sign_set(run, tuple(found))
    return tuple(found)
