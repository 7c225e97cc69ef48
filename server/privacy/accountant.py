"""The accountant: the privacy that releases cost, from their noise and sampling rate.

Adjacency is adding or removing one user with everything that the user ever sends. There are
two epsilons, against two adversaries:

`release`
    Anybody who sees what is released. Each release is a Gaussian sum over a Poisson sample
    of the users. Nobody knows who is in the sample, and that hides a user further
    (amplification). Composed by privacy loss distributions (PLD), which give an upper
    bound.
`participants`
    A server that knows who took part in what. Nothing is amplified. A release in which the
    user took no part costs the user nothing, so a cap on participations bounds the number
    of Gaussians that compose. Here the user's contributions are set to zero, while who took
    part stays the same. With ``secagg.mode=sum`` it is a server that also sees each sum
    before its own noise is added, and knows the noise of some users (`Event.server_z`).

The tests reproduce numbers of dp_accounting and of closed forms.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, reduce
from statistics import NormalDist
from types import ModuleType
from typing import Any

import numpy as np

from ...common.config import MOST_NOISE as MOST
from ...common.errors import IdiolectError, pip_install, refuse_if
from ...common.privacy.protected import FAINT, NOISELESS, joint

INTERVAL = 1e-3  # of the discretised privacy loss; the error makes epsilon larger
COARSE = 1e-2  # a faster grid for the start of a search: ten times faster
CLOSE = 4e-4  # relative distance to the budget at which calibration stops
FALSE_ALARMS = 0.01  # false-alarm rate at which attacks are compared

Mechanism = tuple[float, float, int, int]  # z, q, cohort, population of an event


@dataclass(frozen=True)
class Event:
    """One noisy release.

    Attributes
    ----------
    stage
        The exchange that it belongs to: ``adapt``, ``votes``, ``metrics``, ``pool``.
    z
        Noise multiplier: standard deviation / largest L2 norm of one user's part. 0: no
        noise.
    q
        Poisson rate: each user takes part with this probability, independently.
    clip_bit_z
        Noise multiplier of the clip bit that is released together with it; 0: no bit.
    cohort
        Most users in one round (truncated Poisson); 0: no limit.
    population
        Number of users who can be drawn; needed with a cohort.
    server_z, server_clip_bit_z
        The noise multipliers of a sum as a server sees it that sees nothing else
        (`secure.accounting.server_z`): of the row, and of the clip bit if there is one.
        None: no user adds noise.

    Raises
    ------
    ValueError
        A number is out of its range.
    """

    stage: str
    z: float
    q: float = 1.0
    clip_bit_z: float = 0.0
    cohort: int = 0
    population: int = 0
    server_z: float | None = None
    server_clip_bit_z: float | None = None

    def __post_init__(self) -> None:
        """Refuse an event that cannot be accounted for."""
        seen = (self.server_z, self.server_clip_bit_z)
        for z, whole in zip(seen, (self.z, self.clip_bit_z), strict=True):
            if z is not None and not 0 <= z <= whole:
                raise ValueError(f"{self}: no server sees more noise than there is")
        if not (0 <= self.z < math.inf and 0 <= self.clip_bit_z < math.inf):
            raise ValueError(f"{self}: noise multipliers are finite and not negative")
        if not 0 < self.q <= 1:
            raise ValueError(f"{self}: the sampling rate lies in (0, 1]")
        if min(self.cohort, self.population) < 0 or self.cohort and not self.population:
            raise ValueError(f"{self}: a cohort needs the size of the population")


@dataclass(frozen=True)
class Epsilons:
    """Both epsilons at the ledger's delta; ``inf``: no guarantee.

    Attributes
    ----------
    release
        Against anybody who sees what is released.
    participants
        Against a server that also knows who took part, or that sees sums before its noise.
    """

    release: float
    participants: float


def epsilons(events: Mapping[Event, int], delta: float, cap: int = 0) -> Epsilons:
    r"""Compose events into both epsilons.

    The participation cap is used for `participants` only. The amplified bound holds in
    spite of it. Given past releases, the user takes part in the next one with a probability
    :math:`q' \le q` (0 once the cap is reached). By joint convexity the divergence of
    :math:`(1 - q') P + q' Q` from :math:`P` grows with :math:`q'`, so each step is
    dominated by the step with :math:`q`, and dominated steps compose (Zhu et al. 2022).

    Parameters
    ----------
    events
        Event -> how often. Equal mechanisms of all stages are composed with themselves
        at once: composing them one by one would be quadratic in the number of rounds.
    delta
        Of (epsilon, delta).
    cap
        Most releases of one stage that a user takes part in; the most expensive ones are
        counted. 0: no cap.

    Returns
    -------
    Epsilons
        Upper bounds; ``inf`` if anything was released without noise, 0 without a release.
    """
    release = amplified(events, delta, INTERVAL)
    if release == math.inf or not any(events.values()):
        return Epsilons(release, release)
    precision = _precision(events, cap)
    known = math.inf if precision == math.inf else _gaussian(precision, delta)
    return Epsilons(release, known)


def amplified(events: Mapping[Event, int], delta: float, interval: float) -> float:
    """Return `Epsilons.release`, computed on a grid with this interval."""
    if _noiseless(events):
        return math.inf
    composed = _mechanisms(events)
    return _release(composed, delta, interval) if composed else 0.0


def _noiseless(events: Mapping[Event, int]) -> bool:
    return any(
        count and joint(event.z, event.clip_bit_z) < NOISELESS
        for event, count in events.items()
    )


def _mechanisms(events: Mapping[Event, int]) -> tuple[tuple[Mechanism, int], ...]:
    """Return mechanism -> how often, over all stages."""
    found: Counter[Mechanism] = Counter()
    for event, count in events.items():
        found[_mechanism(event)] += count
    return tuple(sorted((+found).items()))


def _noise(event: Event) -> float:
    return min(joint(event.z, event.clip_bit_z), MOST)


def _noise_seen(event: Event) -> float:
    """Noise multiplier of a release before a server that knows who took part."""
    if event.server_z is None:
        return _noise(event)
    return min(joint(event.server_z, event.server_clip_bit_z or 0.0), MOST)


def _mechanism(event: Event) -> Mechanism:
    z = _noise(event)
    if z < FAINT:
        # In a truncated draw the user may replace somebody else: then two rows differ.
        return (z / 2 if event.cohort else z), 1.0, 0, 0
    if event.cohort >= event.population:  # nobody is ever turned away
        return z, event.q, 0, 0
    return z, event.q, event.cohort, event.population if event.cohort else 0


def is_sampled(event: Event) -> bool:
    """Whether it is hidden who took part in a release."""
    _, q, cohort, _ = _mechanism(event)
    return q < 1 or cohort > 0


def _precision(events: Mapping[Event, int], cap: int) -> float:
    """Sum of 1 / z^2 over the `cap` most expensive events of each stage; inf: no noise."""
    stages: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for event, count in (+Counter(events)).items():
        if _noise_seen(event) < NOISELESS:
            return math.inf
        stages[event.stage].append((_noise_seen(event), count))
    total = 0.0
    for entries in stages.values():
        left = cap or sum(count for _, count in entries)
        for z, count in sorted(entries):
            taken = min(count, left)
            total += taken / z**2
            left -= taken
    return total


def _gaussian(precision: float, delta: float) -> float:
    """Epsilon of Gaussians with this sum of 1 / z^2 (Balle and Wang 2018, exact)."""
    with np.errstate(divide="ignore"):  # log(0) far out is -inf, as it should be
        return float(_accounting().get_epsilon_gaussian(precision**-0.5, delta))


@lru_cache(maxsize=4096)
def _release(
    mechanisms: tuple[tuple[Mechanism, int], ...], delta: float, interval: float
) -> float:
    """Compose mechanisms by PLD; plain Gaussians alone have a closed form.

    An `Event` is a Gaussian with or without (truncated) Poisson sampling, all of which PLD
    supports. For a mechanism that PLD does not support (such as discrete noise in zCDP) the
    whole ledger would have to use RDP: epsilons of two accountants do not add up.
    """
    if _plain(mechanisms):
        return _gaussian(sum(n / z**2 for (z, *_), n in mechanisms), delta)
    return float(_composed(mechanisms, interval).get_epsilon_for_delta(delta))


def _plain(mechanisms: tuple[tuple[Mechanism, int], ...]) -> bool:
    """Whether nothing is sampled: then all releases together are one Gaussian."""
    return all(q == 1 and not cohort for (_, q, cohort, _), _ in mechanisms)


def _composed(mechanisms: tuple[tuple[Mechanism, int], ...], interval: float) -> Any:
    """Return the privacy loss distribution of all mechanisms together."""
    parts = [_privacy_loss(m, interval).self_compose(n) for m, n in mechanisms]
    return reduce(lambda one, other: one.compose(other), parts)


@lru_cache(maxsize=16)  # every new round composes them again
def _privacy_loss(mechanism: Mechanism, interval: float) -> Any:
    """Return the privacy loss distribution of one release (add or remove one user)."""
    losses = _accounting().pld.privacy_loss_distribution
    z, q, cohort, population = mechanism
    if cohort:
        return losses.from_truncated_subsampled_gaussian_mechanism(
            population, q, cohort, z, value_discretization_interval=interval
        )
    return losses.from_gaussian_mechanism(
        z, sampling_prob=q, value_discretization_interval=interval
    )


def _accounting() -> ModuleType:
    """Import dp_accounting, which loads slowly, and which devices do not have."""
    try:
        import dp_accounting
    except ImportError as error:
        raise IdiolectError(
            "the privacy ledger needs dp-accounting, which is not installed: "
            f"`{pip_install('idiolect[server]')}`."
        ) from error
    return dp_accounting


def calibrate(
    programme: Callable[[float], Mapping[Event, int]], epsilon: float, delta: float
) -> float:
    """Find the smallest noise with which the planned releases stay within the budget.

    Parameters
    ----------
    programme
        Noise multiplier z -> all planned events of the run. The noise of each event grows
        with z or is fixed.
    epsilon
        Budget for `Epsilons.release`.
    delta
        Of (epsilon, delta).

    Returns
    -------
    float
        z, within `CLOSE` of the smallest one and never below it: its epsilon was computed
        and is within the budget, so the last planned charge is not refused. 0 if the
        budget is infinite.

    Raises
    ------
    IdiolectError
        No noise is enough: the events with fixed noise exceed the budget.
    """
    if epsilon == math.inf:
        return 0.0

    def fine(z: float) -> float:
        return amplified(programme(z), delta, INTERVAL)

    refuse_if(
        fine(MOST) > epsilon,
        f"no noise keeps the planned releases within epsilon {epsilon:g} at delta "
        f"{delta:g}: raise privacy.epsilon or privacy.clip-bit, or plan fewer rounds.",
    )
    rough = _smallest(
        lambda z: amplified(programme(z), delta, COARSE), epsilon, 1.0, 2.0
    )
    return _smallest(fine, epsilon, rough, 1.005)


def _smallest(
    spent: Callable[[float], float], epsilon: float, high: float, step: float
) -> float:
    """Find the smallest z with spent(z) <= epsilon, where `spent` falls with z.

    Goes away from the first guess `high` in growing steps until z is bracketed, then
    interpolates between log z and log epsilon. `spent` was computed at the returned z.
    """
    below = spent(high)
    low, above = high, below
    while below > epsilon:  # with fixed noise a coarse grid may never get there
        if high >= MOST:
            return high
        low, above = high, below
        high, step = min(high * step, MOST), step**2
        below = spent(high)
    while above <= epsilon and low > NOISELESS:
        high, below = low, above
        low, step = low / step, step**2
        above = spent(low)
    halve = False
    while below < (1 - CLOSE) * epsilon and high / low > 1 + CLOSE:
        share = 0.5
        if below > 0 and above < math.inf and not halve:
            aim = (1 - CLOSE / 2) * epsilon
            share = math.log(above / aim) / math.log(above / below)
        middle = low * (high / low) ** share
        value = spent(middle)
        # Halve now and then: interpolation alone may never move one end.
        halve = not halve and value > epsilon
        if value <= epsilon:
            high, below = middle, value
        else:
            low, above = middle, value
    return high


def power_bound(
    epsilon: float, delta: float, false_alarms: float = FALSE_ALARMS
) -> float:
    r"""Bound by (epsilon, delta) on the power of any test of "did this user take part?".

    :math:`\min(1, e^\epsilon f + \delta, 1 - e^{-\epsilon} (1 - \delta - f))` at the
    false-alarm rate f (Kairouz, Oh and Viswanath 2015, theorem 2.1). It is far above the
    power of attacks on a Gaussian: `attack_power` is the bound for given events.
    """
    return min(
        1.0,
        math.exp(min(epsilon, 700.0)) * false_alarms + delta,
        1 - math.exp(-epsilon) * (1 - delta - false_alarms),
    )


def attack_power(events: Mapping[Event, int], cap: int = 0) -> tuple[float, float]:
    r"""Power of the best attack on these events (their trade-off function).

    Several Gaussians are one Gaussian with :math:`\mu = (\sum 1 / z^2)^{1/2}`, whose best
    test has the power :math:`\Phi(\Phi^{-1}(f) + \mu)` (Neyman and Pearson; Dong, Roth and
    Su 2022). With sampling it is the smallest `power_bound` over all pairs (epsilon, delta)
    of the composed privacy loss distribution, each of which is valid.

    Parameters
    ----------
    events, cap
        As in `epsilons`.

    Returns
    -------
    tuple
        Largest true-positive rates of the two adversaries of `Epsilons` at the false-alarm
        rate `FALSE_ALARMS`. Upper bounds; exact where nothing is sampled. 1 if anything
        was released without noise, `FALSE_ALARMS` without a release.
    """
    if _noiseless(events):
        return 1.0, 1.0
    mechanisms = _mechanisms(events)
    known = _best_test(_precision(events, cap))
    if _plain(mechanisms):
        return _best_test(sum(n / z**2 for (z, *_), n in mechanisms)), known
    losses = _composed(mechanisms, INTERVAL)
    # Beyond this epsilon delta is negligible.
    most = min(float(losses.get_epsilon_for_delta(1e-12)), 100.0)
    grid = np.linspace(0.0, most, 1000)
    deltas = losses.get_delta_for_epsilon(grid)
    bounds = (power_bound(e, float(d)) for e, d in zip(grid, deltas, strict=True))
    return min(bounds), known


def _best_test(precision: float) -> float:
    """Power of the best test of a Gaussian with this sum of 1 / z^2."""
    normal = NormalDist()
    return normal.cdf(normal.inv_cdf(FALSE_ALARMS) + math.sqrt(precision))
