"""Phase adapt: federated averaging of the shared adapter's B.

FFA-LoRA (Sun et al. 2024): all devices hold the same frozen A, so the average of B is the
average of the adapters. One row per user, unweighted; the denominator is the number of
users asked, not of those who answered, so that one user's influence on the result is
bounded by ``adapt.clip`` / users whatever the others do.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from flwr.app import RecordDict

from ..common.protocol import (
    AdaptReply,
    AdaptTask,
    Reply,
    Rows,
    Shapes,
    finite_rows,
    row_norms,
    unpack,
)
from .exchange import Run, Step, ask, groups, require, rows_shapes


@dataclass(frozen=True)
class Contribution(Reply):
    """The sum of a reply's valid rows, float64; `users` are those it counts."""

    total: Rows


def adapt(run: Run) -> None:
    """Run the rounds that are left; a checkpoint after each.

    Raises
    ------
    IdiolectError
        Fewer valid rows than the quorum.
    """
    only_development = run.config.adapt.users == "development"
    users = run.development if only_development else run.users + run.development
    asked = len(run.dataset.development) + (
        0 if only_development else len(run.dataset.users)
    )
    run.done += run.config.adapt.epochs * len(users) * run.state.rounds
    while run.state.rounds < run.config.adapt.rounds:
        run.state.shared = one_round(run, run.state.rounds, users, asked)
        run.state.rounds += 1
        run.save()


def one_round(run: Run, number: int, users: tuple[str, ...], asked: int) -> Rows:
    """Send the shared adapter out, and return it moved by the average update."""
    label = f"round {number + 1}/{run.config.adapt.rounds}"
    step = Step("adapt", label, "train.adapt", run.config.adapt.epochs)
    tasks = [
        (
            node,
            AdaptTask(
                **run.head(f"adapt/{number}/{i}", names),
                round=number,
                shared=run.state.shared,
            ),
        )
        for i, (node, names) in enumerate(groups(run, users))
    ]
    answers = ask(run, step, tasks, contribution(run.shapes, run.config.adapt.clip))
    counted = sum(len(reply.users) for reply in answers.replies)
    require(run, step, counted, asked, answers.errors)
    totals = [reply.total for reply in answers.replies]
    return {
        name: (start + sum(total[name] for total in totals) / asked).astype(np.float32)
        for name, start in run.state.shared.items()
    }


def contribution(shapes: Shapes, clip: float) -> Callable[[RecordDict], Contribution]:
    """Return a reader of replies that keeps the sum of their valid rows."""

    def read(record: RecordDict) -> Contribution:
        reply = unpack(AdaptReply, record, rows_shapes(shapes))
        return sum_rows(reply, clip)

    return read


def sum_rows(reply: AdaptReply, clip: float) -> Contribution:
    """Add up the rows of a reply; one that is not finite costs only its user.

    A device clips its own row; the server does it again, because it cannot know that.
    """
    valid = finite_rows(reply.rows)
    kept = {name: array[valid] for name, array in reply.rows.items()}
    scale = np.minimum(1.0, clip / np.maximum(row_norms(kept), 1e-12))
    total = {
        name: np.tensordot(scale, array.astype(np.float64), axes=1)
        for name, array in kept.items()
    }
    users = tuple(user for user, good in zip(reply.users, valid, strict=True) if good)
    bad = {
        user: "the update is not finite." for user in reply.users if user not in users
    }
    return Contribution(
        reply.run,
        reply.step,
        users,
        reply.errors | bad,
        reply.seconds,
        reply.process,
        reply.peak_rss_mb,
        total,
    )
