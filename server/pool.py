"""Phase pool: build the unlabeled set that stands for everyone else."""

from dataclasses import replace

import numpy as np

from ..common.config import Config
from ..common.errors import IdiolectError
from ..common.protocol import (
    MAX_ITEMS,
    ShareReply,
    ShareTask,
    VoteReply,
    VoteTask,
    unpack,
    valid_votes,
)
from ..common.seeds import numpy_generator
from ..common.tasks.load import public_items
from ..common.tasks.types import Dataset, Item
from ..common.unlabeled import Unlabeled
from .exchange import Run, Step, ask, groups, report, require

WEIGHT = 0.1  # a vote is cheap beside an epoch of training


def pool(run: Run) -> None:
    """Build the unlabeled set of the configured kind, unless that is done already."""
    if run.state.unlabeled is None:
        build = {
            "votes": voted,
            "others": others,
            "public": public,
            "self": made_on_the_device,
        }[run.config.unlabeled.kind]
        run.state.unlabeled = build(run)
        run.save()


def made_on_the_device(_run: Run) -> tuple[Unlabeled, ...]:
    """Kind `self`: nothing crosses users, so there is nothing to hand out."""
    return ()


def public(run: Run) -> tuple[Unlabeled, ...]:
    """Kind `public`: public items, all of one weight."""
    return tuple(
        Unlabeled(item) for item in public_text(run.config, run.dataset, MAX_ITEMS)
    )


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
    return [replace(items[i], rival=None) for i in sorted(order[:count])]


def voted(run: Run) -> tuple[Unlabeled, ...]:
    """Kind `votes`: a bank of public candidates, weighted by the sum of all votes.

    The sum is exact: without noise it carries no privacy guarantee, and the run says so.
    """
    bank = tuple(public_text(run.config, run.dataset, run.config.unlabeled.bank))
    step = Step("pool", "votes", "query.vote", WEIGHT)
    users = run.users + run.development
    tasks = [
        (node, VoteTask(**run.head(f"pool/{i}", names), bank=bank))
        for i, (node, names) in enumerate(groups(run, users))
    ]

    def shapes(fields: dict) -> dict[str, tuple[int, ...]]:
        return {"votes": (len(fields["users"]), len(bank))}

    answers = ask(run, step, tasks, lambda record: unpack(VoteReply, record, shapes))
    total = np.zeros(len(bank))
    counted, bad = 0, {}
    for reply in answers.replies:
        votes = reply.votes["votes"]
        good = valid_votes(votes)
        total += votes[good].sum(axis=0, dtype=np.float64)
        counted += int(good.sum())
        for user, valid in zip(reply.users, good, strict=True):
            if not valid:
                bad[user] = "the vote is not finite, negative, or longer than 1."
    report(run, step, bad)
    require(run, step, counted, len(users), answers.errors | bad)
    return tuple(
        Unlabeled(item, float(weight)) for item, weight in zip(bank, total, strict=True)
    )


def others(run: Run) -> tuple[Unlabeled, ...]:
    """Kind `others`: everybody's raw history; hello has refused all but a simulation."""
    step = Step("pool", "raw text of others", "query.share", WEIGHT)
    users = run.users + run.development
    tasks = [
        (node, ShareTask(**run.head(f"pool/{i}", names)))
        for i, (node, names) in enumerate(groups(run, users))
    ]
    answers = ask(run, step, tasks, lambda record: unpack(ShareReply, record))
    items = {
        user: texts
        for reply in answers.replies
        for user, texts in reply.items.items()
        if user in reply.users
    }
    require(run, step, len(items), len(users), answers.errors)
    found = [
        Unlabeled(replace(item, rival=None), 1.0, user)
        for user in users
        for item in items.get(user, ())
    ]
    if len(found) > MAX_ITEMS:
        chosen = numpy_generator(run.config.seed, "others").permutation(len(found))
        found = [found[i] for i in sorted(chosen[:MAX_ITEMS])]
    return tuple(found)
