"""What a run plans to release, and with how much noise.

Without a noise multiplier of its own (``privacy.noise=0``) a run takes the smallest with
which all planned releases together stay within ``privacy.epsilon``: the rounds of the
shared adapter, one vote, and noisy metrics if there are any. The vote is planned for
whatever the kind of unlabeled set, so that kinds can be compared over one and the same
shared adapter; what is not used is not charged.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from ...common.config import Config
from ...common.data.types import Dataset
from ...common.privacy.noise import Source, coins, gaussian, source
from ...common.privacy.protected import CLIP_BIT, charged, protected, used
from ...common.secure.accounting import server_z
from ...common.secure.expected import Expected, expected
from ...common.secure.neighbours import FEWEST, colluding
from ...common.secure.rows import (
    Integers,
    Terms,
    missing_noise,
    share_of,
    terms,
)
from ..privacy.accountant import Event, calibrate
from ..privacy.ledger import Ledger


@dataclass(frozen=True)
class Population:
    """How many users may take part, reached or not.

    By the data, so that it says nothing about who can be reached.

    Attributes
    ----------
    users, development
        Evaluated and development users. On devices all are evaluated.
    adapting
        Those who may train the shared adapter (``adapt.users``).
    """

    users: int
    development: int
    adapting: int

    @property
    def everybody(self) -> int:
        """Who may vote."""
        return self.users + self.development


def population_of(config: Config, dataset: Dataset) -> Population:
    """Population of a run, by what is known before anybody is reached."""
    if config.on_devices:
        return Population(config.users, 0, config.users)
    users, development = len(dataset.users), len(dataset.development)
    only = config.adapt.users == "development"
    return Population(users, development, development + users * (not only))


def noise_of(config: Config, people: Population) -> float:
    """Noise multiplier of the shared adapter that a configuration asks for, or amounts to.

    That is the standard deviation / largest norm of one user's part. It is 0 without
    privacy, and where ``privacy.epsilon`` is `inf`. The multipliers of votes and metrics
    are in proportion to it.
    """
    privacy = config.privacy
    if privacy.mode == "off" or privacy.epsilon == math.inf:
        return 0.0
    return privacy.noise or _calibrated(config, people)


@lru_cache(maxsize=32)
def _calibrated(config: Config, people: Population) -> float:
    return calibrate(
        lambda z: programme(config, z, people),
        config.privacy.epsilon,
        config.privacy.delta,
    )


def programme(config: Config, z: float, people: Population) -> Counter[Event]:
    """Everything that a run will release if nothing goes wrong, with how often."""
    methods = len(config.method_list) * (config.privacy.metrics == "noisy")
    counts = {"adapt": config.adapt.rounds, "votes": 1, "metrics": methods}
    planned = events(config, z, people)
    return Counter({planned[stage]: count for stage, count in counts.items() if count})


def events(config: Config, z: float, people: Population) -> dict[str, Event]:
    """What is released at a noise multiplier of the shared adapter, by stage.

    One round of the shared adapter, with its clip bit if the clip adapts; one vote over
    the bank; and one method's metrics, summed over everybody who can be reached.
    """
    privacy = config.privacy
    adapting, voting = (
        {"cohort": privacy.cohort, "population": count if privacy.cohort else 0}
        for count in (people.adapting, people.everybody)
    )
    bit = CLIP_BIT if config.adapt.clip_quantile and z > 0 else 0.0
    planned = (
        Event("adapt", z, privacy.sampling, clip_bit_z=bit, **adapting),
        Event("votes", privacy.votes * z, privacy.vote_sampling, **voting),
        Event("metrics", privacy.metrics_noise * z),
    )
    if not summed(config):
        return {event.stage: event for event in planned}
    return {event.stage: _as_seen(config, people, event) for event in planned}


def summed(config: Config) -> bool:
    """Whether noisy sums are made of integers, and each user adds a share of the noise."""
    return config.secagg.mode != "off" and config.privacy.mode == "central"


def _crowd(people: Population, stage: str) -> int:
    """How many users may take part in a release of a stage."""
    crowds = {"adapt": people.adapting, "votes": people.everybody}
    return crowds.get(stage, people.users)


def _expected(config: Config, people: Population, stage: str) -> Expected:
    """How many rows a sum of a stage has (`expected.expected`)."""
    return expected(config, _crowd(people, stage), stage)


def _as_seen(config: Config, people: Population, event: Event) -> Event:
    """Add to an event what a server that sees only the sum sees of its noise."""
    # Charging it is refused (`expected`).
    if _crowd(people, event.stage) < FEWEST:
        return replace(event, server_z=0.0)
    rows = _expected(config, people, event.stage)
    corrupt = colluding(config.secagg.colluding, rows.most)
    seen, bit = (
        server_z(z, rows.required, corrupt, rows.most)
        for z in (event.z, event.clip_bit_z)
    )
    return replace(event, server_z=seen, server_clip_bit_z=bit or None)


# --- the ledger of a run ---------------------------------------------------------------


def new_ledger(
    path: Path | None, config: Config, people: Population, witness: str = ""
) -> Ledger:
    """Begin the ledger of a run, on disk before anything happens.

    A run without privacy has one too: it says that what is released is exact. `witness` is
    the public key of who vouches for the members of masked sums, if somebody does.
    """
    privacy = config.privacy
    ledger = Ledger(
        path,
        privacy.epsilon if privacy.mode == "central" else math.inf,
        privacy.delta,
        cap=privacy.participations,
        population=people.everybody,
        rng="seeded" if privacy.seeded else "os",
        secagg=secagg_of(config, witness),
        unprotected={
            sent: why for sent in used(config) if (why := protected(config, sent))
        },
    )
    for release in unprotected(config):
        ledger.open(*release)
    ledger.save()
    return ledger


def secagg_of(config: Config, witness: str = "") -> dict[str, str | float]:
    """What the ledger says of secure aggregation; nothing where no sum rests on it."""
    if not summed(config):
        return {}
    chosen = config.secagg
    said = {"mode": chosen.mode, "colluding": chosen.colluding, "quorum": config.quorum}
    if config.on_devices:
        said |= {"keys": "devices", **({"witness": witness} if witness else {})}
    return said


def unprotected(config: Config) -> list[tuple[str, str, str, str]]:
    """(stage, what, why, setting) of what a configuration releases without noise."""
    kind = config.unlabeled.kind
    exact = {sent for sent in used(config) if not charged(config, sent)}
    off, central = (config.privacy.mode == mode for mode in ("off", "central"))
    banked = kind in ("votes", "public", "anonymised") and not config.unlabeled.file
    clear = "privacy.mode=off" if off else "privacy.metrics=clear"
    same = "a bank of histories of the same data set, chosen by who takes part"
    scrubbed = "scrubbed text whose like enough users have"
    rows = (  # whether it is, and then: stage, what, why, setting
        (
            *("update" in exact, "adapt", "exact average of the users' updates"),
            *(SIMULATION, "privacy.mode=off"),
        ),
        (
            *("votes" in exact, "votes", "exact sum of the users' votes"),
            *(SIMULATION, "privacy.mode=off"),
        ),
        (
            *(kind == "others", "pool", "raw text of the other users"),
            *(SIMULATION, "unlabeled.kind=others"),
        ),
        (
            *(central and config.data and banked, "pool", same),
            *(SIMULATION, "no unlabeled.file"),
        ),
        (
            *(kind == "anonymised", "pool", scrubbed),
            *(NOT_DP, "unlabeled.kind=anonymised"),
        ),
        (
            *("metrics" in exact, "metrics", "every user's metrics and alpha"),
            *(SIMULATION, clear),
        ),
    )
    return [row[1:] for row in rows if row[0]]


SIMULATION = "simulation"
NOT_DP = "k-support is not differential privacy: each item is one person's text"


@dataclass(frozen=True)
class Release:
    """A release that is charged and not yet made.

    Attributes
    ----------
    id
        What the ledger calls it.
    event
        What was charged.
    random
        Where its coins and noise come from.
    """

    id: str
    event: Event
    random: Source

    def participants(self, users: Sequence[str]) -> tuple[str, ...]:
        """Toss the coins: who of these users takes part."""
        return coins(users, self.event.q, self.event.cohort, self.random)

    def unit_noise(
        self, shape: tuple[int, ...], users: int, whole: Integers | None
    ) -> np.ndarray:
        """Draw the server's noise for a sum of rows of L2 norm at most 1, float64.

        Parameters
        ----------
        shape, users
            Of the sum, and how many rows it holds.
        whole
            None: a sum of floats, which gets all of its noise here. Else it has the shares
            of its users, and gets those of who is missing.
        """
        if whole is None:
            return gaussian(shape, self.event.z, self.random)
        return missing_noise(shape, users, whole.terms, self.random)


def charge(
    ledger: Ledger,
    config: Config,
    people: Population,
    stage: str,
    done: int,
    begun: Callable[[str], bool] = lambda _release: False,
    **note: str | int | float,
) -> Release:
    """Charge a release; its noise may be drawn only afterwards.

    Parameters
    ----------
    ledger
        Where.
    config, people, stage
        What (`events`), and where noise and coins come from.
    done
        How many releases of the stage were finished, as the checkpoint knows. A charge
        beyond them was cut short by a crash before anything of it was released: it is
        used, with new coins and noise, and not paid for again. Not where a server that
        sees only sums is accounted for: it may have seen the sum that was cut short, and
        one of other coins is a second sum.
    begun
        Whether the members of a release are still known (`Run.begun`): then it is the same
        sum, and is not paid for again either.
    note
        What the card is to say of it.

    Raises
    ------
    BudgetSpent
        It would exceed the budget.
    IdiolectError
        With ``secagg.mode=sum``: the sum would hide nobody, or not fit into its words.
    """
    event = events(config, noise_of(config, people), people)[stage]
    if summed(config):
        rows = _expected(config, people, stage)
        note |= {"expected": rows.most, "required": rows.required}
        terms_of(config, people, event, 1.0)  # refused before it is paid for
    paid = [entry for entry in ledger.charges if entry.event.stage == stage]
    unfinished = len(paid) > done and paid[-1].event == event
    cut_short = unfinished and (not summed(config) or begun(paid[-1].id))
    name = paid[-1].id if cut_short else ledger.charge(event, **note)
    return Release(name, event, source(config.privacy.seeded, config.seed, name))


def terms_of(config: Config, people: Population, event: Event, clip: float) -> Terms:
    """Return the terms of a sum of integers with the noise of an event."""
    exact = config.privacy.mode == "off"
    if exact and config.secagg.mode == "sum":
        return terms(clip, 0.0, None, _crowd(people, event.stage), 0)
    with_bit = event.stage == "adapt" and config.adapt.clip_quantile and not exact
    bit_z = event.clip_bit_z if with_bit else None
    rows = _expected(config, people, event.stage)
    return terms(clip, event.z, bit_z, rows.most, rows.required)


def integers(
    config: Config,
    people: Population,
    stage: str,
    clip: float,
    release: Release | None = None,
) -> Integers | None:
    """Return how the rows of a stage are added up as integers; None: as floats.

    Parameters
    ----------
    config, people, stage
        With ``secagg.mode=off`` the answer is None.
    clip
        C; 1 for votes and metrics.
    release
        As charged; None without privacy, where nobody adds noise.
    """
    if config.secagg.mode == "off":
        return None
    event = release.event if release else events(config, 0.0, people)[stage]
    share = partial(share_of, config, release.id if release else stage)
    return Integers(terms_of(config, people, event, clip), share)
