"""Phase adapt: federated averaging of the shared adapter's B.

FFA-LoRA (Sun et al. 2024): all devices hold the same frozen A, so the average of B is the
average of the adapters. One row per user, unweighted; the denominator is the number of
users asked, not of those who answered, so that one user's influence on the result is
bounded by ``adapt.clip`` / users whatever the others do.

With ``privacy.mode`` `central` a round is a release (DP-FedAvg, McMahan et al. 2018):

    coins     each user takes part by a coin of its own, with fixed chance q
    sum       every row is clipped again here to L2 norm C; what is malformed counts 0
    noise     N(0, (z C)^2) on every coordinate, whoever came
    average   divided by q N, a number fixed beforehand
    clip      C follows a quantile of the norms, by a noisy count (Andrew et al. 2021)

One user changes the sum by at most C. The ledger is charged before anybody is asked.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from flwr.app import RecordDict

from ...common.config import Config
from ...common.privacy.noise import Source, coins, gaussian
from ...common.protocol.messages import AdaptReply, AdaptRequest, Reply, Rows, Shapes
from ...common.protocol.packing import unpack
from ...common.protocol.quantization import coded_shapes, decode
from ...common.protocol.validation import finite_rows, row_norms
from ..privacy.ledger import BudgetSpent, Ledger
from .budget import Crowd, Release, adapt_event, charge, crowd_of, noise_of
from .exchange import Run, Step, ask, groups, require, rows_shapes

# Step of the adaptive clip, and the value of Andrew et al. (2021, section 4).
CLIP_RATE = 0.2
# Bits of the clip, to the last of which a sum has its coordinates. Float64 has 53: it adds
# two million such numbers without rounding.
BITS = 32
# How much of the clip a row may fill. Float64 may take a norm over n coordinates for up to
# n/2 ulp less than it is; this is more than that for eight million coordinates.
MARGIN = 1 - 2.0**-30
Some = TypeVar("Some")


@dataclass(frozen=True)
class Contribution(Reply):
    """The sum of a reply's valid rows, float64; `users` are those it counts.

    `within` is how many of the rows were shorter than the clip.
    """

    total: Rows
    within: int


def adapt(run: Run) -> None:
    """Run the rounds that are left; a checkpoint after each.

    Where the budget does not allow another round, the phase ends with what it has.

    Raises
    ------
    IdiolectError
        Fewer valid rows than the quorum.
    """
    only_development = run.config.adapt.users == "development"
    users = run.development if only_development else run.users + run.development
    crowd = crowd_of_run(run)
    run.done += len(users) * run.state.rounds
    while run.state.rounds < run.config.adapt.rounds:
        try:
            one_round(run, run.state.rounds, users, crowd)
        except BudgetSpent as error:
            run.warn(f"adapt ends after {run.state.rounds} rounds: {error}")
            return
        run.state.rounds += 1
        run.save()


def crowd_of_run(run: Run) -> Crowd:
    """How many users may take part in a run, reached or not."""
    return crowd_of(run.config, *run.population)


def one_round(run: Run, number: int, users: tuple[str, ...], crowd: Crowd) -> None:
    """Send the shared adapter out, and move it by the average update.

    With privacy, a round in which too few of those drawn gave a valid row is left out:
    it is paid for, and the next one begins.

    Raises
    ------
    BudgetSpent
        The round would exceed the budget; nobody was asked.
    """
    config = run.config
    clip = run.state.clip or config.adapt.clip
    release = None
    if config.privacy.mode == "central":
        release = charge_round(run.ledger, config, crowd, number, clip)
        users = participants(users, release, config)
    place = f"adapt/{number}" + (f"/{release.id}" if release else "")
    label = f"round {number + 1}/{config.adapt.rounds}"
    step = Step("adapt", label, "train.adapt", 1)
    shared = run.shared_to_send
    total = {name: np.zeros(shape) for name, shape in run.shapes.items()}

    def add(reply: Contribution) -> Contribution:
        """Keep one sum, however many reply: they need not wait for each other."""
        for name, part in reply.total.items():
            total[name] += part
        return replace(reply, total={})

    tasks = [
        (
            node,
            AdaptRequest(
                **run.head(f"{place}/{i}", names),
                round=number,
                release=release.id if release else "",
                clip=clip,
                shared=shared,
            ),
        )
        for i, (node, names) in enumerate(groups(run, users))
    ]
    read = contribution(run.shapes, clip, config.signed_bytes)
    row = coded_shapes(run.shapes) if config.signed_bytes else run.shapes
    answers = ask(run, step, tasks, read, add, row)
    counted = [user for reply in answers.replies for user in reply.users]
    if release is None:
        require(run, step, len(counted), crowd.adapt, answers.errors)
        run.state.shared = moved(run.state.shared, [total], crowd.adapt)
        return
    if len(counted) < config.quorum * len(users):  # coins may well name nobody
        run.warn(f"adapt, {label}: {len(counted)} of {len(users)}: left out")
        return
    run.took_part("adapt", counted)
    run.state.shared = released(
        run.state.shared, [total], release, clip, config, crowd.adapt
    )
    within = sum(reply.within for reply in answers.replies)
    run.state.clip = next_clip(clip, within, len(counted), release, config, crowd.adapt)


# --- a round as a release ----------------------------------------------------------------


def charge_round(
    ledger: Ledger, config: Config, crowd: Crowd, number: int, clip: float
) -> Release:
    """Charge one round of the shared adapter.

    Raises
    ------
    BudgetSpent
        The round would exceed the budget.
    """
    event = adapt_event(config, noise_of(config, crowd), crowd)
    return charge(ledger, event, config, number, round=number, clip=clip)


def participants(
    names: Sequence[Some], release: Release, config: Config
) -> tuple[Some, ...]:
    """Toss the coins of a charged round or vote."""
    return coins(names, release.event.q, config.privacy.cohort, release.random)


def released(
    shared: Rows,
    parts: Sequence[Rows],
    release: Release,
    clip: float,
    config: Config,
    population: int,
) -> Rows:
    """Return B moved by the noisy sum of the users' rows, over q N.

    Parameters
    ----------
    shared
        B before the round.
    parts
        Sums of rows that were clipped to `clip` (`clipped_sum`), float64.
    release
        The charged round: N(0, (z clip)^2) is added to every coordinate.
    clip, config, population
        C, and N, which with the chance q is fixed before anybody is asked.
    """
    shapes = {name: array.shape for name, array in shared.items()}
    noise = noise_rows(shapes, release.event.z * clip, release.random)
    return moved(shared, [*parts, noise], config.privacy.sampling * population)


def moved(shared: Rows, parts: Sequence[Rows], denominator: float) -> Rows:
    """B + sum of the parts / denominator, projection -> float32 [out, r]."""
    return {
        name: (start + sum(part[name] for part in parts) / denominator).astype(
            np.float32
        )
        for name, start in shared.items()
    }


def noise_rows(shapes: Shapes, std: float, random: Source) -> Rows:
    """Gaussian noise in the shape of B, float64; in the order of the names."""
    return {name: gaussian(shapes[name], std, random) for name in sorted(shapes)}


def next_clip(
    clip: float,
    within: int,
    counted: int,
    release: Release,
    config: Config,
    population: int,
) -> float:
    """Let the clip follow the quantile gamma of the norms (Andrew et al. 2021).

        b = 1/2 + (sum_u (1[|row_u| < C] - 1/2) + N(0, (z/2)^2)) / (q N)
        C <- C exp(-0.2 (b - gamma))

    Centred, one user moves the sum by 1/2, so its noise is half as wide for the same z.
    The bit is part of the event of its round.
    """
    if not config.adapt.clip_quantile:
        return clip
    noise = float(gaussian((1,), release.event.clip_bit_z / 2, release.random)[0])
    centred = within - counted / 2 + noise
    share = 0.5 + centred / (config.privacy.sampling * population)
    return clip * math.exp(-CLIP_RATE * (share - config.adapt.clip_quantile))


def contribution(
    shapes: Shapes, clip: float, signed_bytes: bool
) -> Callable[[RecordDict], Contribution]:
    """Return a reader of replies that keeps the sum of their valid rows."""
    sent = coded_shapes(shapes) if signed_bytes else shapes

    def read(record: RecordDict) -> Contribution:
        reply = unpack(AdaptReply, record, rows_shapes(sent))
        if signed_bytes:
            reply = replace(reply, rows=decode(reply.rows, shapes))
        return sum_rows(reply, clip)

    return read


def sum_rows(reply: AdaptReply, clip: float) -> Contribution:
    """Add up the rows of a reply; one that is not finite costs only its user.

    A device clips its own row; the server does it again, because it cannot know that.
    """
    valid = finite_rows(reply.rows)
    total, norms = clipped_sum(
        {name: array[valid] for name, array in reply.rows.items()}, clip
    )
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
        within_clip(norms, clip),
    )


def within_clip(norms: np.ndarray, clip: float) -> int:
    """How many rows were shorter than the clip.

    A row that its device clipped has the clip's length but for rounding.
    """
    return int((norms < clip * (1 - 1e-5)).sum())


def clipped_sum(rows: Rows, clip: float) -> tuple[Rows, np.ndarray]:
    """Sum of the users' rows, each clipped to L2 norm `clip`, and their norms before.

    The sensitivity of the sum to one user is `clip`, in floating point too (Casacuberta
    et al. 2022): a row is scaled to a little less than `clip`, by more than float64 errs
    in its norm; each coordinate is cut, towards zero, to a multiple of 2^-32 times the
    power of two above `clip`; and float64 adds such numbers exactly. So the sum has the
    same bits in whatever groups and order the rows come.

    Parameters
    ----------
    rows
        Name -> [users, ...], finite.
    clip
        C.

    Returns
    -------
    tuple
        Name -> float64 [...], and float64 [users].
    """
    norms = row_norms(rows)
    scale = np.minimum(1.0, clip * MARGIN / np.maximum(norms, 1e-12))
    unit = 2.0 ** (math.frexp(clip)[1] - BITS)
    total: Rows = {}
    for name, array in rows.items():
        clipped = array * scale.reshape(-1, *[1] * (array.ndim - 1))
        total[name] = (np.trunc(clipped / unit) * unit).sum(0)
    return total, norms
