"""Phase adapt: federated averaging of the shared adapter's B.

FFA-LoRA (Sun et al. 2024): all devices hold the same frozen A, so the average of B is the
average of the adapters. One row per user, unweighted; the denominator is the number of
users who may take part, reached or not, so that one user's influence on the result is
bounded by ``adapt.clip`` / users whatever the others do.

With ``privacy.mode`` `central` a round is a release (DP-FedAvg, McMahan et al. 2018):

    coins     each user takes part by a coin of its own, with fixed chance q
    sum       every row is clipped again here to L2 norm C; what is malformed counts 0
    noise     N(0, (z C)^2) on every coordinate, however many came
    average   divided by q N (or the cohort), a number fixed beforehand
    clip      C follows a quantile of the norms, by a noisy count (Andrew et al. 2021)

One user changes the sum by at most C. The order of a private round, here and for votes and
metrics: charge the ledger (on disk), draw the coins, ask and add up, check the quorum, draw
the noise, save. After a crash a charge may stand without its release, never the reverse;
the resumed run makes that release without paying again.

With ``secagg.mode=sum`` the users' rows are integers, and noise of the same variance is
added in two parts: each user's share, and those of who is missing, which the server adds.
"""

import math
from collections.abc import Sequence

import numpy as np

from ...common.config import Config
from ...common.privacy.noise import gaussian
from ...common.protocol.messages import Rows
from ...common.secure.rows import Integers, missing_bit_noise, missing_noise
from ...common.secure.secure import LeftOut
from ..privacy.ledger import BudgetSpent
from .budget import Release, charge, integers
from .cohort import Run
from .sums import Sum

# Step of the adaptive clip, the value of Andrew et al. (2021, section 4).
CLIP_RATE = 0.2


def adapt(run: Run) -> None:
    """Run the rounds that are left; a checkpoint after each.

    Where the budget does not allow another round, the phase ends with what it has.

    Raises
    ------
    IdiolectError
        Fewer valid rows than the quorum.
    """
    config, users = run.config, run.cohort.development
    if config.adapt.users != "development":
        users = run.cohort.users + users
    run.done += len(users) * run.state.rounds * run.weights["adapt"]
    while run.state.rounds < config.adapt.rounds:
        try:
            one_round(run, users)
        except BudgetSpent as error:
            run.warn(f"adapt ends after {run.state.rounds} rounds: {error}")
            return
        run.state.rounds += 1
        run.save()


def one_round(run: Run, users: Sequence[str]) -> None:
    """Send the shared adapter out, and move it by the average update.

    With privacy, a round in which too few of those drawn gave a valid row is left out:
    it is paid for, and the next one begins.

    Raises
    ------
    BudgetSpent
        The round would exceed the budget; nobody was asked.
    """
    config, state, number = run.config, run.state, run.state.rounds
    clip, counted = state.clip or config.adapt.clip, run.population.adapting
    if config.privacy.mode != "central":
        whole = integers(config, run.population, "adapt", clip)
        found = run.cohort.update(users, clip, "", whole)
        state.shared = moved(state.shared, found.total, counted)
        return
    note = {"round": number, "clip": clip}
    release = charge(
        run.ledger, config, run.population, "adapt", number, run.begun, **note
    )
    whole = integers(config, run.population, "adapt", clip, release)
    users = release.participants(users)
    label = f"adapt, round {number + 1}/{config.adapt.rounds}"
    try:
        found = run.cohort.update(users, clip, release.id, whole)
    except LeftOut as error:
        run.warn(f"{label}: {error}")
        return
    few = len(found.users) < config.quorum * len(users)  # coins may well name nobody
    if few and whole is None:
        run.warn(f"{label}: {len(found.users)} of {len(users)}: left out")
        return
    run.took_part("adapt", found.users)
    if whole is None:
        state.shared = released(
            state.shared, found.total, release, clip, config, counted
        )
    else:
        total = completed(found, release, whole)
        state.shared = moved(state.shared, total, expected(config, counted))
    state.clip = next_clip(clip, found, release, config, counted, whole)


def released(
    shared: Rows,
    total: Rows,
    release: Release,
    clip: float,
    config: Config,
    population: int,
) -> Rows:
    """Return B moved by the noisy sum of the users' rows, over `expected` many.

    Parameters
    ----------
    shared
        B before the round.
    total
        Sum of rows that were clipped to `clip` (`sums.clipped_sum`), float64.
    release
        The charged round: N(0, (z clip)^2) is added to every coordinate.
    clip, config, population
        C, and N, which with the chance q and the cohort is fixed before anybody is asked.
    """
    std = release.event.z * clip
    noisy = {
        name: total[name] + gaussian(shared[name].shape, std, release.random)
        for name in sorted(shared)
    }
    return moved(shared, noisy, expected(config, population))


def completed(found: Sum, release: Release, whole: Integers) -> Rows:
    """Add the noise of who is missing to a sum that has the shares of who came."""
    users, known = len(found.users), whole.terms
    return {
        name: total + missing_noise(total.shape, users, known, release.random)
        for name, total in sorted(found.total.items())
    }


def expected(config: Config, population: int) -> float:
    """How many users a private round is counted as: q N, at most `privacy.cohort`.

    It depends on no draw, so that one user changes the released sum and nothing else. Where
    the cohort is smaller than q N, it is what takes part, but for draws below it.
    """
    drawn = config.privacy.sampling * population
    return min(drawn, config.privacy.cohort or drawn)


def moved(shared: Rows, total: Rows, denominator: float) -> Rows:
    """B + total / denominator, projection -> float32 [out, r]."""
    return {
        name: (start + total[name] / denominator).astype(np.float32)
        for name, start in shared.items()
    }


def next_clip(
    clip: float,
    found: Sum,
    release: Release,
    config: Config,
    population: int,
    whole: Integers | None = None,
) -> float:
    """Let the clip follow the quantile gamma of the norms (Andrew et al. 2021).

        b = 1/2 + (sum_u (1[|row_u| < C] - 1/2) + N(0, (z/2)^2)) / n
        C <- C exp(-0.2 (b - gamma))        n: `expected`

    Centred, one user moves the sum by 1/2, so its noise is half as wide for the same z.
    The bit is part of the event of its round. As integers (`whole`) it has the users'
    shares of the noise already.
    """
    if not config.adapt.clip_quantile:
        return clip
    if whole is not None and found.bit is not None:
        noise = missing_bit_noise(len(found.users), whole.terms, release.random)
        centred = found.bit + noise
    else:
        noise = float(gaussian((1,), release.event.clip_bit_z / 2, release.random)[0])
        centred = found.within - len(found.users) / 2 + noise
    share = 0.5 + centred / expected(config, population)
    return clip * math.exp(-CLIP_RATE * (share - config.adapt.clip_quantile))
