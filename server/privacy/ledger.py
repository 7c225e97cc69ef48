"""The ledger: every outflow of a run passes through it before it is released.

A release is *charged*, or refused once the budget is spent, and the charge is on disk
before `Ledger.charge` returns. So the order of a round is: charge, draw the noise, save
the bytes, send. A crash in between costs a charge and never a forgotten one.

Adjacency is adding or removing one user with everything the user ever sends. Two
epsilons go side by side, because they answer two adversaries:

`release`
    Whoever sees what is released. Each release is a Gaussian sum over a Poisson sample
    of the users, and that nobody knows who is in it hides the user too (amplification).
    Composed by privacy loss distributions (PLD), which give an upper bound.
`participants`
    A server that knows who took part in what. Nothing is amplified; a release in which
    the user took no part costs the user nothing, so a cap on the participations bounds
    the number of Gaussians that compose. Here the user's contributions are set to zero
    while who took part stays as it was.

Numbers and pitfalls: section 2.0 of the privacy notes, reproduced in the tests.
"""

import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, reduce
from importlib.metadata import version as version_of
from pathlib import Path
from statistics import NormalDist
from types import ModuleType
from typing import Any

import numpy as np

from ...common.config import MOST_NOISE
from ...common.errors import IdiolectError
from ...common.files import write_atomically
from ...common.privacy.protected import FAINT, NOISELESS, joint

SCHEMA = 1
INTERVAL = 1e-3  # of the discretised privacy loss; errs on the high side
COARSE = 1e-2  # to begin a search with: ten times faster
TOLERANCE = 1e-9  # relative; the same composition on another machine's FFT
CLOSE = 4e-4  # relative; how close calibration comes to the budget
MOST = MOST_NOISE  # more noise is counted as this much
RNGS = ("os", "seeded")

Mechanism = tuple[float, float, int, int]
"""z, q, cohort, population: what the accountant needs to know of an event."""


class BudgetSpent(IdiolectError):
    """A release would take the run beyond its privacy budget."""


@dataclass(frozen=True)
class Event:
    """One noisy release.

    Attributes
    ----------
    stage
        Which exchange it belongs to: ``adapt``, ``votes``, ``metrics``, ``pool``.
    z
        Noise multiplier: standard deviation / largest L2 norm of one user's part. 0:
        released without noise.
    q
        Poisson rate: each user takes part by an own coin of this chance.
    clip_bit_z
        Noise multiplier of the clip bit that is released together with it; 0: none.
    cohort
        Most users in one round (truncated Poisson); 0: no limit.
    population
        Users who could be drawn, needed with a cohort.

    Raises
    ------
    ValueError
        A number is outside its range.
    """

    stage: str
    z: float
    q: float = 1.0
    clip_bit_z: float = 0.0
    cohort: int = 0
    population: int = 0

    def __post_init__(self) -> None:
        """Refuse what no accountant could charge."""
        if not (0 <= self.z < math.inf and 0 <= self.clip_bit_z < math.inf):
            raise ValueError(f"{self}: noise multipliers are finite and not negative")
        if not 0 < self.q <= 1:
            raise ValueError(f"{self}: the sampling rate lies in (0, 1]")
        if min(self.cohort, self.population) < 0 or self.cohort and not self.population:
            raise ValueError(f"{self}: a cohort needs the size of the population")


@dataclass(frozen=True)
class Epsilons:
    """What has been spent at the ledger's delta; ``inf``: no guarantee.

    Attributes
    ----------
    release
        Against whoever sees what is released.
    participants
        Against a server that also knows who took part.
    """

    release: float
    participants: float


# --- accounting ----------------------------------------------------------------------


def epsilons(events: Mapping[Event, int], delta: float, cap: int = 0) -> Epsilons:
    r"""Compose events into both epsilons.

    The participation cap enters `participants` only. It does not break the amplified
    bound: given past releases, the user takes part in the next one with some chance
    :math:`q' \le q` (0 once the cap is reached), and by joint convexity the divergence
    of :math:`(1 - q') P + q' Q` from :math:`P` grows with :math:`q'`; so each step is
    dominated by the one with :math:`q`, and dominated steps compose (Zhu et al. 2022).

    Parameters
    ----------
    events
        Event -> how often. Equal mechanisms, whatever their stage, are composed with
        themselves in one go: one by one would be quadratic in the number of rounds.
    delta
        Of (epsilon, delta).
    cap
        Releases of one stage that a user takes part in at most; the most expensive ones
        are counted. 0: no cap.

    Returns
    -------
    Epsilons
        Upper bounds; ``inf`` if anything was released without noise, 0 if nothing was.
    """
    release = _amplified(events, delta, INTERVAL)
    if release == math.inf or not any(events.values()):
        return Epsilons(release, release)
    return Epsilons(release, _gaussian(_precision(events, cap), delta))


def _amplified(events: Mapping[Event, int], delta: float, interval: float) -> float:
    """Epsilon against whoever sees the releases, on a grid of this fineness."""
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
    """Mechanism -> how often, whatever the stage."""
    found: Counter[Mechanism] = Counter()
    for event, count in events.items():
        found[_mechanism(event)] += count
    return tuple(sorted((+found).items()))


def _noise(event: Event) -> float:
    return min(joint(event.z, event.clip_bit_z), MOST)


def _mechanism(event: Event) -> Mechanism:
    z = _noise(event)
    if z < FAINT:
        # Truncated, a user in the draw may turn somebody else away: two rows differ.
        return (z / 2 if event.cohort else z), 1.0, 0, 0
    if event.cohort >= event.population:  # nobody is ever turned away
        return z, event.q, 0, 0
    return z, event.q, event.cohort, event.population if event.cohort else 0


def _sampled(event: Event) -> bool:
    _, q, cohort, _ = _mechanism(event)
    return q < 1 or cohort > 0


def _precision(events: Mapping[Event, int], cap: int) -> float:
    """Sum of 1 / z^2 over the `cap` most expensive events of each stage."""
    stages: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for event, count in events.items():
        stages[event.stage].append((_noise(event), count))
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
    dpa = _accounting()
    with np.errstate(divide="ignore"):  # log(0) far out is -inf, as it should be
        return float(dpa.get_epsilon_gaussian(precision**-0.5, delta))


@lru_cache(maxsize=4096)
def _release(
    mechanisms: tuple[tuple[Mechanism, int], ...], delta: float, interval: float
) -> float:
    """Compose mechanisms by PLD; plain Gaussians alone have a closed form.

    An `Event` is always a Gaussian, with or without (truncated) Poisson sampling, all of
    which PLD supports. A mechanism that it does not support (zCDP of discrete noise,
    say) must move the whole ledger to RDP: epsilons of two accountants never add up.
    """
    if _plain(mechanisms):
        return _gaussian(sum(n / z**2 for (z, *_), n in mechanisms), delta)
    return float(_composed(mechanisms, interval).get_epsilon_for_delta(delta))


def _plain(mechanisms: tuple[tuple[Mechanism, int], ...]) -> bool:
    """Whether nothing is sampled, so that all of it is one Gaussian."""
    return all(q == 1 and not cohort for (_, q, cohort, _), _ in mechanisms)


def _composed(mechanisms: tuple[tuple[Mechanism, int], ...], interval: float) -> Any:
    """Distribution of the privacy loss of all of them together."""
    parts = [_privacy_loss(m, interval).self_compose(n) for m, n in mechanisms]
    return reduce(lambda one, other: one.compose(other), parts)


@lru_cache(maxsize=16)  # a new round needs them again, composed once more
def _privacy_loss(mechanism: Mechanism, interval: float) -> Any:
    """Distribution of the privacy loss of one release, adding or removing one user."""
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
    """Import dp_accounting, which only the operator needs and which loads slowly."""
    try:
        import dp_accounting
    except ImportError as error:
        raise IdiolectError(
            "the privacy ledger needs dp-accounting, which is not installed: "
            "pip install 'idiolect[server]'."
        ) from error
    return dp_accounting


def calibrate(
    programme: Callable[[float], Mapping[Event, int]], epsilon: float, delta: float
) -> float:
    """Find the smallest noise with which a programme stays within its budget.

    Parameters
    ----------
    programme
        Noise multiplier z -> all events of the run; every noise grows with z, except
        for those that are fixed.
    epsilon
        Budget for `Epsilons.release`.
    delta
        Of (epsilon, delta).

    Returns
    -------
    float
        z, at most a few hundredths of a percent above the smallest and never below it:
        its epsilon has been computed and lies within the budget, so that the last planned
        charge is not refused. 0 if the budget is infinite.

    Raises
    ------
    IdiolectError
        No noise is enough: what does not grow with z exceeds the budget by itself.
    """
    if epsilon == math.inf:
        return 0.0

    def fine(z: float) -> float:
        return _amplified(programme(z), delta, INTERVAL)

    if fine(MOST) > epsilon:
        raise IdiolectError(
            f"no noise keeps the planned releases within epsilon {epsilon:g} at delta "
            f"{delta:g}: raise privacy.epsilon, or plan fewer rounds."
        )
    rough = _smallest(
        lambda z: _amplified(programme(z), delta, COARSE), epsilon, 1.0, 2.0
    )
    return _smallest(fine, epsilon, rough, 1.005)


def _smallest(
    spent: Callable[[float], float], epsilon: float, high: float, step: float
) -> float:
    """Find the smallest z with spent(z) <= epsilon, which falls with z.

    Steps away from a first guess, wider each time, until z is bracketed, then
    interpolates between log z and log epsilon. What it returns has been computed.
    """
    below = spent(high)
    low, above = high, below
    while below > epsilon:  # fixed parts may make it unreachable on a coarse grid
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
        # Halving from time to time, since one end of a curve may never move.
        halve = not halve and value > epsilon
        if value <= epsilon:
            high, below = middle, value
        else:
            low, above = middle, value
    return high


def power(epsilon: float, delta: float, false_alarms: float = 0.01) -> float:
    r"""Bound that (epsilon, delta) alone puts on any test of "did this user take part?".

    :math:`\min(1, e^\epsilon f + \delta, 1 - e^{-\epsilon} (1 - \delta - f))` at the
    false-alarm rate f (Kairouz, Oh and Viswanath 2015, theorem 2.1). It is far above what
    a Gaussian allows: `strongest` is the bound for the events themselves.
    """
    grown = math.exp(min(epsilon, 700.0))
    return min(
        1.0,
        grown * false_alarms + delta,
        1 - math.exp(-epsilon) * (1 - delta - false_alarms),
    )


FALSE_ALARMS = 0.01


def strongest(events: Mapping[Event, int], cap: int = 0) -> tuple[float, float]:
    r"""Power of the best attack on exactly these events (their trade-off function).

    Gaussians are together one Gaussian with :math:`\mu = (\sum 1 / z^2)^{1/2}`, whose best
    test recognises :math:`\Phi(\Phi^{-1}(f) + \mu)` (Neyman and Pearson; Dong, Roth and Su
    2022). With sampling it is the least of `power` over all pairs (epsilon, delta) that
    the composed privacy loss distribution has, each of which holds.

    Parameters
    ----------
    events, cap
        As in `epsilons`.

    Returns
    -------
    tuple
        Largest true-positive rates at a false-alarm rate of `FALSE_ALARMS`, against the
        two adversaries of `Epsilons`. Upper bounds; exact where nothing is sampled. 1 if
        anything has no noise, `FALSE_ALARMS` if nothing was released.
    """
    if _noiseless(events):
        return 1.0, 1.0
    mechanisms = _mechanisms(events)
    known = _best_test(_precision(events, cap))
    if _plain(mechanisms):
        return _best_test(sum(n / z**2 for (z, *_), n in mechanisms)), known
    losses = _composed(mechanisms, INTERVAL)
    # A pair beyond this one has a delta that no longer matters.
    most = min(float(losses.get_epsilon_for_delta(1e-12)), 100.0)
    grid = np.linspace(0.0, most, 1000)
    deltas = losses.get_delta_for_epsilon(grid)
    bounds = (
        power(e, float(d), FALSE_ALARMS) for e, d in zip(grid, deltas, strict=True)
    )
    return min(bounds), known


def _best_test(precision: float) -> float:
    """Power of the best test of a Gaussian with this sum of 1 / z^2."""
    normal = NormalDist()
    return normal.cdf(normal.inv_cdf(FALSE_ALARMS) + math.sqrt(precision))


# --- the ledger ----------------------------------------------------------------------


@dataclass(frozen=True)
class Charge:
    """One release that was paid for.

    Attributes
    ----------
    id
        ``adapt/0``, counted per stage.
    event
        What was released.
    note
        What the accountant does not need: clip norm, hash of the bank.
    time
        Seconds since 1970.
    """

    id: str
    event: Event
    note: dict[str, str | int | float]
    time: float


@dataclass
class Ledger:
    """What a run has released about its users.

    Attributes
    ----------
    path
        Its file; None: in memory only.
    epsilon
        Budget for `Epsilons.release`; may be ``inf``.
    delta
        Of (epsilon, delta).
    cap
        Exchanges of one stage that a device takes part in at most; 0: no limit.
    population
        Users who are enrolled; 0: unknown.
    rng
        Where noise and coins come from: ``os`` or ``seeded``.
    charges
        In order.
    open_releases
        ``{"stage", "what", "why"}`` of everything that left without a guarantee, with
        the ``setting`` that asks for it.
    observed_participations
        Stage -> largest number of exchanges that any device took part in, as reported.
    audits
        ``{"name", "eps_lb", "max_detectable", "conf", ...}`` each.
    unprotected
        Outflow -> why it is not protected (`protected.protected`), of those that are not.

    Raises
    ------
    IdiolectError
        There is a file already, whose charges a new ledger would forget.
    """

    path: Path | None
    epsilon: float
    delta: float
    cap: int = 0
    population: int = 0
    rng: str = "os"
    charges: list[Charge] = field(default_factory=list)
    open_releases: list[dict[str, str]] = field(default_factory=list)
    observed_participations: dict[str, int] = field(default_factory=dict)
    audits: list[dict[str, Any]] = field(default_factory=list)
    unprotected: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse to begin anew where charges may have been written."""
        if not (self.epsilon > 0 and 0 < self.delta < 1 and self.rng in RNGS):
            raise ValueError(f"no budget: {self.epsilon}, {self.delta}, {self.rng}")
        if self.path is not None and self.path.exists():
            raise IdiolectError(
                f"the ledger {self.path} exists already: resume its run, or start another "
                "one in a new folder."
            )

    def events(self) -> Counter[Event]:
        """Event -> how often it was charged."""
        return Counter(charge.event for charge in self.charges)

    def spent(self) -> Epsilons:
        """Both epsilons of the charges; what is open has none (see `card`)."""
        return epsilons(self.events(), self.delta, self.kept_cap())

    def kept_cap(self) -> int:
        """The cap, or what was observed where devices report more than it allows."""
        observed = self.observed_participations.values()
        return self.cap and max(self.cap, *observed, 0)

    def check(self, event: Event) -> None:
        """See whether a release is within the budget; nothing changes.

        Raises
        ------
        BudgetSpent
            It is not.
        """
        if self.epsilon == math.inf:
            return
        events = self.events() + Counter([event])
        # The coarse grid's bound is the higher one, and cheap: mostly it is enough.
        if _amplified(events, self.delta, COARSE) <= self.epsilon:
            return
        after = _amplified(events, self.delta, INTERVAL)
        if after > self.epsilon * (1 + TOLERANCE):
            raise BudgetSpent(
                f"releasing '{event.stage}' would raise epsilon to {after:.4g}, beyond the "
                f"budget of {self.epsilon:g}: nothing was released; end the run here, or "
                "start one with more noise, fewer rounds or a larger privacy.epsilon."
            )

    def charge(self, event: Event, **note: str | int | float) -> str:
        """Pay for a release, on disk, before it happens.

        Returns
        -------
        str
            The id of the charge.

        Raises
        ------
        BudgetSpent
            It is beyond the budget; ledger and file are as before.
        """
        self.check(event)
        count = sum(charge.event.stage == event.stage for charge in self.charges)
        charge = Charge(f"{event.stage}/{count}", event, note, time.time())
        self._write(charges=[*self.charges, charge])
        self.charges.append(charge)
        return charge.id

    def open(self, stage: str, what: str, why: str, setting: str = "") -> None:
        """Record, once, what is released without any guarantee.

        Parameters
        ----------
        stage, what
            Which exchange it belongs to, and what it is.
        why
            ``simulation``, alone or followed by more, if only a simulation may do it;
            otherwise a reason.
        setting
            Which key of the configuration asks for it, with its value.
        """
        release = {"stage": stage, "what": what, "why": why}
        release |= {"setting": setting} if setting else {}
        if release not in self.open_releases:
            self._write(open_releases=[*self.open_releases, release])
            self.open_releases.append(release)

    def simulation_reasons(self) -> list[str]:
        """Why this run can only be a simulation; empty if it need not be one."""
        reasons = [
            f"{release['stage']}: {release['what']}"
            for release in self.open_releases
            if release["why"].startswith("simulation")
        ]
        if self.rng == "seeded":
            reasons.append(
                "noise and coins are drawn from a seed, which can be repeated"
            )
        return reasons

    def save(self) -> None:
        """Write the file, atomically."""
        self._write()

    def _write(self, **changed: list[Any]) -> None:
        """Write the ledger as it is about to be."""
        if self.path is None:
            return
        body = {"schema": SCHEMA, **asdict(self), "epsilon": _finite(self.epsilon)}
        body |= {
            name: [asdict(e) if isinstance(e, Charge) else e for e in entries]
            for name, entries in changed.items()
        }
        del body["path"]
        text = json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(self.path, text.encode())


def read_ledger(path: Path) -> Ledger:
    """Read a ledger; in its file an epsilon of ``null`` is an infinite budget.

    Raises
    ------
    IdiolectError
        The file is missing or damaged. What was spent is then unknown, and a run must
        not go on as if it were nothing.
    """
    try:
        body = json.loads(path.read_bytes())
        if body.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        if body["epsilon"] is None:
            body["epsilon"] = math.inf
        charges = [
            Charge(**{**row, "event": Event(**row["event"])})
            for row in body.pop("charges")
        ]
        seen: Counter[str] = Counter()
        for charge in charges:
            stage = charge.event.stage
            if charge.id != f"{stage}/{seen[stage]}":
                raise ValueError(f"{charge.id} is out of order")
            seen[stage] += 1
        ledger = Ledger(path=None, charges=charges, **body)
        for use in (
            ledger.simulation_reasons,
            ledger.kept_cap,
            ledger.unprotected.items,
        ):
            use()  # raises where something has the wrong type
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise IdiolectError(
            f"the ledger {path} cannot be read ({error}): what its run has spent is "
            "unknown; restore the file from a backup, or start a new run."
        ) from error
    ledger.path = path
    return ledger


# --- the privacy card ----------------------------------------------------------------

RELEASED = {
    "adapt": "the shared adapter",
    "votes": "the unlabeled set",
    "pool": "the unlabeled set",
    "metrics": "the metrics",
}


def card(ledger: Ledger, run: str, version: str, commit: str) -> dict[str, Any]:
    """Build the privacy card from the ledger alone.

    An epsilon of None (null in JSON) is infinite: no guarantee.

    Parameters
    ----------
    ledger
        Of the run.
    run, version, commit
        What is reported, and the code that ran.

    Returns
    -------
    dict
        Ready for JSON; `describe` makes it readable.
    """
    events = ledger.events()
    noisy = {e: n for e, n in events.items() if e.z}
    spent = _both(ledger.spent()) if events and not ledger.open_releases else None
    alone = _both(epsilons(noisy, ledger.delta, ledger.kept_cap())) if noisy else None
    total = spent or {"release_observer": None, "server_knows_participants": None}
    unbounded = None in total.values()
    reasons = ledger.simulation_reasons()
    empty = not events and not ledger.open_releases
    if empty:
        mode, epsilon = "off", None
    else:
        mode = "simulation" if reasons else "central" if noisy else "off"
        epsilon = total | {
            "individual_updates_visible_to_server": True,
            "dp_events_only": alone if unbounded else None,
        }
    observed = max(ledger.observed_participations.values(), default=None)
    return {
        "schema": "idiolect.privacy-card/1",
        "run": run,
        "mode": mode,
        "simulation_because": [] if empty else reasons,
        "unit": "user (all devices of one user together)",
        "adjacency": "add or remove one user",
        "delta": ledger.delta,
        "population": {
            "N": ledger.population or None,
            "source": "declared",
            "verified": False,
        },
        "epsilon": epsilon,
        "budget": _finite(ledger.epsilon),
        "attacker": _attacker(ledger, noisy) if noisy else None,
        "accountant": _accountant() if noisy else None,
        "events": [_event(ledger, event, count) for event, count in events.items()],
        "amplification": _amplification(ledger, noisy),
        "participation": {
            "cap": ledger.cap or None,
            "enforced": "device" if ledger.cap else None,
            "observed_max": observed,
        },
        "secagg": {"protocol": "none"},
        "open_releases": [dict(release) for release in ledger.open_releases],
        "unprotected": dict(ledger.unprotected),
        "not_covered": _not_covered(ledger),
        "audit": [dict(audit) for audit in ledger.audits],
        "rng": "operating system" if ledger.rng == "os" else "seed",
        "claims": _claims(ledger, alone, unbounded),
        "code": {"version": version, "commit": commit},
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _both(spent: Epsilons) -> dict[str, float | None]:
    return {
        "release_observer": _finite(spent.release),
        "server_knows_participants": _finite(spent.participants),
    }


def _attacker(ledger: Ledger, noisy: Mapping[Event, int]) -> dict[str, float]:
    """What the best attack on the noisy events recognises."""
    release, participants = strongest(noisy, ledger.kept_cap())
    return {
        "false_alarms": FALSE_ALARMS,
        "release_observer": release,
        "server_knows_participants": participants,
    }


def _accountant() -> dict[str, Any]:
    return {
        "lib": f"dp_accounting {version_of('dp-accounting')}",
        "type": "PLD",
        "interval": INTERVAL,
        "upper_bound": True,
    }


def _event(ledger: Ledger, event: Event, count: int) -> dict[str, Any]:
    """One line of the card: an event, how often, and what its charges noted."""
    sampled = "Poisson-sampled " if event.q < 1 else ""
    sampled = f"truncated {sampled}" if event.cohort else sampled
    noted: dict[str, list[Any]] = defaultdict(list)
    for charge in ledger.charges:
        if charge.event == event:
            for name, value in charge.note.items():
                noted[name].append(value)
    return {
        "stage": event.stage,
        "mechanism": f"{sampled}Gaussian" if event.z else f"{sampled}sum without noise",
        "q": event.q,
        "z": event.z,
        "clip_bit_z": event.clip_bit_z or None,
        "cohort": event.cohort or None,
        "rounds": count,
        "notes": {name: _summary(values) for name, values in noted.items()},
    }


def _summary(values: list[Any]) -> Any:
    """The one value, the range of numbers, or the different texts."""
    different = list(dict.fromkeys(values))
    if len(different) == 1:
        return different[0]
    if any(isinstance(value, str) for value in different):
        return different
    return {"min": min(different), "max": max(different)}


def _amplification(ledger: Ledger, noisy: Mapping[Event, int]) -> dict[str, Any]:
    claimed = any(_sampled(event) for event in noisy)
    source = "the operating system" if ledger.rng == "os" else "a seed"
    assumes = [
        "nobody but the server learns who took part in which release",
        "whether a device can be reached does not depend on its user's data",
    ]
    return {
        "claimed": claimed,
        "sampler": f"one coin per user and release, from {source}" if claimed else None,
        "assumes": assumes if claimed else [],
    }


def _not_covered(ledger: Ledger) -> list[str]:
    found = [f"{r['stage']}: {r['what']} ({r['why']})" for r in ledger.open_releases]
    found += [
        f"{event.stage}: released without noise"
        for event in ledger.events()
        if not event.z
    ]
    found += [
        "single updates and votes, which the server sees before it adds them up",
        "a server that does not keep to the protocol",
        "when devices answer and how much they send",
        "other runs on the same users: their epsilons add to these",
        "settings chosen by looking at results of the same users in other runs",
        "that an exchange failed, and for whom",
        "what a device keeps or shows to whoever holds it",
    ]
    found += [
        f"{outflow}, not protected: {why}"
        for outflow, why in ledger.unprotected.items()
    ]
    if ledger.charges and 10 * ledger.population * ledger.delta > 1:
        found.append(
            f"delta {ledger.delta:g} is above 1 / (10 users): it would allow that some "
            "user is exposed altogether"
        )
    return found


def _claims(
    ledger: Ledger, alone: dict[str, float | None] | None, unbounded: bool
) -> dict[str, list[str]]:
    """Sentences that are true of what this ledger holds."""
    found: dict[str, list[str]] = {
        "proven": [],
        "measured": [_audit(audit, alone) for audit in ledger.audits],
        "assumed": [],
    }
    found["measured"] += [
        f"Releases of '{stage}' that hold rows of any one user: at most {most}."
        for stage, most in ledger.observed_participations.items()
    ]
    if alone is None:
        return found
    subject = "the noisy releases by themselves" if unbounded else "all releases"
    release, known = alone["release_observer"], alone["server_knows_participants"]
    if ledger.rng == "os":
        at = f"{ledger.delta:g})-differentially private for each user"
        if release is not None:
            found["proven"].append(
                f"If what is assumed holds, {subject} are ({_up(release)}, {at} "
                "against whoever sees them."
            )
        if known is not None:
            found["proven"].append(
                f"If what is assumed holds, {subject} are ({_up(known)}, {at} "
                "against somebody who also knows who took "
                "part, but sees no single update."
            )
    found["assumed"] = _assumptions(ledger)
    return found


def _assumptions(ledger: Ledger) -> list[str]:
    """What has to hold for the epsilons of the noisy events to mean something."""
    noisy = [event for event in ledger.events() if event.z]
    found = [
        "The server clips, adds the noise and keeps single updates to itself.",
        "One user is one participant, all devices together.",
        "Noise in floating point is as good as the exact Gaussian of the proof.",
    ]
    if ledger.rng == "seeded":
        found.append(
            "The noise came from a seed, and whoever knows it can take it off: the "
            "epsilons are those of the same run with noise that nobody can repeat."
        )
    else:
        found.append("Nobody can predict the operating system's random numbers.")
    if any(_sampled(event) for event in noisy):
        found += [
            "Nobody but the server learns who took part in which release.",
            "Whether a device can be reached does not depend on its user's data.",
        ]
    if any(event.cohort for event in noisy):
        found.append("There are no more users than were counted as the population.")
    if ledger.cap:
        found.append(
            f"Each device takes part in at most {ledger.kept_cap()} exchanges of a stage, "
            "which it counts itself."
        )
    if ledger.cap and any(event.cohort for event in noisy):
        # With the user in the draw somebody else may be turned away, who then takes part
        # in a later round instead: worlds that differ in more than this one user.
        found.append(
            "The limit of a cohort is hardly ever reached: whom it turns away keeps a "
            "participation for later, which the proof does not follow."
        )
    return found


def _up(value: float) -> str:
    """A bound in three significant digits, never rounded down."""
    if value <= 0:
        return "0"
    scale = 10.0 ** (2 - math.floor(math.log10(value)))
    return f"{math.ceil(value * scale - 1e-9) / scale:.6g}"


def _audit(audit: Mapping[str, Any], alone: Mapping[str, float | None] | None) -> str:
    """What an audit found, and what it could have found at most."""
    name = f"Audit '{audit.get('name')}'"
    if "tpr" in audit:
        low, high = audit["tpr95"]
        return (
            f"{name}: finds {audit['tpr']:.0%} of {audit['members']} members "
            f"[{low:.0%}, {high:.0%}] at {audit['fpr']:.1%} false alarms; AUC "
            f"{audit['auc']:.2f}."
        )
    if "exposure" in audit:
        return (
            f"{name}: exposure {audit['exposure']:.1f} of {audit['highest']:.1f} bits, in "
            f"{audit['sampled']} of {audit['samples']} samples."
        )
    if "top1" in audit:
        return (
            f"{name}: names the writer of {audit['top1']:.0%} of {audit['users']} users "
            f"(by chance {audit['chance']:.0%})."
        )
    claimed = audit.get("claimed", alone["release_observer"] if alone else None)
    found, most = audit.get("eps_lb"), audit.get("max_detectable")
    text = f"{name}: epsilon is at least {found or 0:.3g}"
    text += f" with {100 * audit.get('conf', 0.95):g} % confidence"
    if most is not None:
        text += f"; it could have shown {most:.3g} at most"
    if claimed is None:
        return f"{text}."
    beyond = found is not None and found > claimed
    if audit.get("broken"):  # broken on purpose: not to be caught would be the defect
        word = "caught" if beyond else "not caught by this attack"
        return f"{text}, where {_up(claimed)} is claimed: {word}; broken on purpose."
    if beyond:
        return f"{text}. That is more than the {_up(claimed)} claimed: a defect."
    if most is not None and most < claimed:
        return f"{text}, so it does not support the {_up(claimed)} claimed."
    return f"{text}, where {_up(claimed)} is claimed."


def describe(card: Mapping[str, Any], whole: bool = True) -> list[str]:
    """Say a privacy card in plain words, a line each, for the terminal.

    Parameters
    ----------
    card
        As `card` builds it, in this version or an earlier one.
    whole
        Whether everything that is not covered is listed; else it is counted.
    """
    modes = {
        "off": "off: no differential privacy",
        "central": "central differential privacy: the server adds the noise",
        "simulation": "a simulation, not fit for real users",
    }
    lines = [f"mode: {modes[card['mode']]}"]
    lines += [f"simulation: {reason}" for reason in card["simulation_because"]]
    lines += [
        f"not protected: {outflow}: {why}"
        for outflow, why in card.get("unprotected", {}).items()
    ]
    lines += _spent_lines(card)
    for event in card["events"][:6]:
        lines.append(_event_line(event))
    if len(card["events"]) > 6:
        lines.append(f"and {len(card['events']) - 6} more kinds of events on the card")
    if card["amplification"]["claimed"]:
        assumes = "; ".join(card["amplification"]["assumes"])
        lines.append(
            f"sampling: {card['amplification']['sampler']}; assumed: {assumes}"
        )
    taken = card["participation"]
    if taken["cap"]:
        seen = taken["observed_max"]
        text = f"participation: at most {taken['cap']} per stage, counted by the device"
        if seen is not None:
            text += f"; most reported: {seen}"
            text += " (the cap was not kept)" if seen > taken["cap"] else ""
        lines.append(text)
    missing = card["not_covered"]
    if whole:
        lines += [f"not covered: {what}" for what in missing]
    else:
        lines.append(
            f"not covered by any of this: {len(missing)} things, which `idiolect-server "
            f"show {card['run']}` lists"
        )
    alone = card["epsilon"] and (card["epsilon"]["dp_events_only"] or card["epsilon"])
    if card["audit"]:
        lines += explained(card["audit"])
    lines += [_audit(audit, alone) for audit in card["audit"]]
    return lines


def explained(audits: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say why the epsilon of an audit is far below the one that is claimed."""
    bounds = [audit for audit in audits if "eps_lb" in audit]
    if not bounds:
        return []
    one = bounds[0]
    trials = f" from {one['guesses']} guesses" if "guesses" in one else ""
    text = (
        "how to read the audits: the epsilon of an audit is a lower bound, measured"
        f"{trials} with {100 * one.get('conf', 0.95):g} % confidence: what one attack "
        "has shown. A claimed epsilon is an upper bound, proven for every attack. They are "
        "far apart because so few guesses show little, and no attack is the best one; the "
        "truth lies between"
    )
    if "claimed" in one:
        text += (
            ". The audited aggregation is the code of the run at a noise of its own, for "
            "which a small epsilon is claimed: none as large as most budgets could be seen"
        )
    return [f"{text}."]


def _spent_lines(card: Mapping[str, Any]) -> list[str]:
    """Both epsilons side by side, each with what it means."""
    spent = card["epsilon"]
    if spent is None:
        return ["no privacy guarantee: nothing was released through the ledger"]
    stages: list[str] = [e["stage"] for e in card["events"] if e["z"]]
    names = list(dict.fromkeys(RELEASED.get(stage, stage) for stage in stages))
    what = " and ".join(names) or "what was released"
    lines: list[str] = []
    unbounded = None in (spent["release_observer"], spent["server_knows_participants"])
    if unbounded:
        lines.append(f"epsilon: infinite, no privacy guarantee: {_because(card)}")
        spent = spent["dp_events_only"]
        if spent is None:
            return lines
    prefix = "the noisy part alone, " if unbounded else ""
    known = "the server, if it knows who took part but sees no single update"
    subjects = (
        ("release_observer", f"whoever sees {what}", "did this user take part?"),
        ("server_knows_participants", known, "did this user's data go in?"),
    )
    for key, subject, question in subjects:
        epsilon = spent[key]
        if epsilon is None:
            lines.append(f"{prefix}{subject}: epsilon infinite, no privacy guarantee")
            continue
        # A card of an earlier version knows the bound of (epsilon, delta) only.
        best = (card.get("attacker") or {}).get(key, power(epsilon, card["delta"]))
        found = math.ceil(1000 * best - 1e-9) / 10
        lines.append(
            f"{prefix}{subject}: epsilon {_up(epsilon)} at delta {card['delta']:g}: at 1 % "
            f"false alarms an attacker who asks '{question}' recognises at most {found:g} "
            "% of those of whom it is true"
        )
    if card["budget"] is not None:
        lines.append(
            f"budget: epsilon {card['budget']:g} against whoever sees releases"
        )
    return lines


def _because(card: Mapping[str, Any]) -> str:
    """Which settings released something without noise."""
    bare = any(not event["z"] for event in card["events"])
    settings = [r["setting"] for r in card["open_releases"] if r.get("setting")]
    settings += ["privacy.epsilon=inf"] * bare
    named = ", ".join(dict.fromkeys(settings))
    what = "something was released without noise"
    return f"with {named} {what}" if named else what


def _event_line(event: Mapping[str, Any]) -> str:
    text = f"{event['stage']}: {event['rounds']} x {event['mechanism']}"
    if event["z"]:
        text += f", noise multiplier {event['z']:.4g}"
    if event["clip_bit_z"]:
        text += f", clip bit {event['clip_bit_z']:.4g}"
    text += f", each user with chance {event['q']:g}"
    return text + (f", at most {event['cohort']} users" if event["cohort"] else "")
