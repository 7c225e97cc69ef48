"""The aggregation that runs, honest or broken on purpose, under canary users.

Two mechanisms, each with the code that a run uses (`Design.secagg`):

Noise by the server
    `sums.clipped_sum` and `adapt.released`: what is published.
Noise by the users
    `rows.report` and `rows.opened`: the sum that a server sees with ``secagg.mode=on``,
    before it adds the noise of who is missing, and without the shares of the members who
    work with it.

The noise is one for which epsilon is known and small: an audit of m canaries cannot see a
large epsilon (`Audit.largest_detectable`), so at the epsilon of most runs it would prove
nothing. What protects at epsilon 1 is the same code with another number. Beside the
honest mechanism go three that are broken on purpose, each of which must be caught:

`no-clip`
    Rows are added up as they come; where users add noise: with a clip that is as long as
    the longest row, and the noise of the right one.
`noise-tenth`
    The noise has a tenth of its charged size.
`noise-reused`
    Every round draws the same noise, which differences of rounds take off.
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from ...common.config import parse
from ...common.privacy.noise import Source, source
from ...common.secure.accounting import server_z
from ...common.secure.grid import words
from ...common.secure.rows import Terms, opened, report, terms
from ...common.seeds import numpy_generator
from ..privacy.accountant import Event, calibrate, epsilons
from ..run.adapt import released
from ..run.budget import Release
from ..run.sums import clipped_sum
from . import attacks
from .attacks import Aggregate, Design

CONTROLS = ("honest", "no-clip", "noise-tenth", "noise-reused")

# Of a sum with the users' noise: members asked for each canary, which shares of them must
# have reported, and work with the server. A round has a quarter of the canaries, so there
# are members enough who are none.
MEMBERS, QUORUM, COLLUDING = 0.6, 0.6, 0.1


@cache
def noise_for(design: Design) -> float:
    """Noise multiplier at which `rounds` participations cost `claimed`.

    Of what the adversary sees: with the users' noise, of the sum before the server's.
    """
    return calibrate(
        lambda z: {Event("adapt", z): design.rounds}, design.claimed, design.delta
    )


def claims(design: Design) -> dict[str, float]:
    """Attack -> the epsilon that its bound must not exceed.

    A server that sees sums knows who took part, so there nothing is amplified.
    """
    z = noise_for(design)
    if design.secagg:
        spent = epsilons({Event("adapt", z, server_z=z): design.rounds}, design.delta)
        return dict.fromkeys((attacks.SUMMED, attacks.DIFFERENCED), spent.participants)
    spent = epsilons({Event("adapt", z, design.sampling): design.rounds}, design.delta)
    return {attacks.SUMMED: spent.release, attacks.DIFFERENCED: spent.participants}


def audit_mechanism(
    design: Design, control: str, seed: int
) -> tuple[attacks.Audit, ...]:
    """Audit the aggregation of `adapt`, or a copy of it with one thing broken.

    Parameters
    ----------
    design
        Of the audit.
    control
        One of `CONTROLS`.
    seed
        Of the canaries and their coins. The noise comes from the operating system.
    """
    mechanism = _users_noise if design.secagg else _servers_noise
    generator = numpy_generator(seed, "audit", control)
    return attacks.audit_mechanism(mechanism(design, control, seed), design, generator)


def _drawn(control: str, seed: int, common: Source) -> Source:
    """Where a round's noise comes from."""
    # A seeded source starts again each time it is made: the same noise every round.
    return source(True, seed) if control == "noise-reused" else common


def _servers_noise(design: Design, control: str, seed: int) -> Aggregate:
    """What is published where the server adds the noise."""
    random = source(False, seed)
    z = noise_for(design) / (10 if control == "noise-tenth" else 1)
    # Without a bound a sum's grid is that of clips from 0.5 to 1, as the canaries are.
    clip = math.inf if control == "no-clip" else 1.0
    config = parse({"privacy.mode": "central", "privacy.sampling": design.sampling})

    def aggregate(rows: np.ndarray) -> np.ndarray:
        event = Event("adapt", z, design.sampling)
        release = Release("", event, _drawn(control, seed, random))
        total, _ = clipped_sum({"b": rows}, clip)
        zero = {"b": np.zeros(design.dimension, np.float32)}
        return released(zero, total, release, 1.0, config, design.canaries)["b"]

    return aggregate


def _users_noise(design: Design, control: str, seed: int) -> Aggregate:
    """What the server sees where each user adds a share of the noise."""
    random = source(False, seed)
    known, honest = _terms(design, control)

    def aggregate(rows: np.ndarray) -> np.ndarray:
        drawn = _drawn(control, seed, random)
        total = words(np.zeros(design.dimension, np.int64), known.grid.word)
        for row in rows:
            total += report(row, float(np.linalg.norm(row)), known, drawn)
        silent = np.zeros(design.dimension, np.float32)
        for _ in range(honest - len(rows)):  # members whose row happens to be zero
            total += report(silent, 0.0, known, drawn)
        return opened(total, known.required, known).total

    return aggregate


def _terms(design: Design, control: str) -> tuple[Terms, int]:
    """Return the terms of the sums, and how many members' noise the server sees in them."""
    most = math.ceil(MEMBERS * design.canaries)
    required, corrupt = math.ceil(QUORUM * most), math.floor(COLLUDING * most)
    z = noise_for(design) / server_z(1.0, required, corrupt, most)
    if control == "noise-tenth":
        z /= 10
    clip = design.boost if control == "no-clip" else 1.0
    return terms(clip, z / clip, None, most, required), required - corrupt


def caught(found: Sequence[attacks.Audit], design: Design) -> bool:
    """Whether a bound exceeds what is claimed against its adversary."""
    allowed = claims(design)
    return any(audit.epsilon_lower_bound > allowed[audit.name] for audit in found)
