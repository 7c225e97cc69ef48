"""The ledger: every release of a run is charged here before it happens.

A release is *charged*, or refused once the budget is spent. The charge is on disk before
`Ledger.charge` returns. The order of a round (`run.adapt`) is: charge, ask and add up, draw
the noise, save. After a crash the ledger may hold a charge without its release, never the
reverse.
"""

import json
import math
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...common.errors import IdiolectError, refuse_if, words_of
from ...common.files import write_atomically
from .accountant import COARSE, INTERVAL, Epsilons, Event, amplified, epsilons

SCHEMA = 1
TOLERANCE = 1e-9  # relative: another machine's FFT gives other last digits
RNGS = ("os", "seeded")


class BudgetSpent(IdiolectError):
    """A release would take the run beyond its privacy budget."""


def finite(value: float) -> float | None:
    """Return a number, or None if it is infinite: JSON has no infinity."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Charge:
    """One charged release.

    Attributes
    ----------
    id
        Such as ``adapt/0``: stage and number of the charge in this stage.
    event
        What was released.
    note
        What the accountant does not need, such as the clip norm or the hash of the bank.
    time
        Seconds since 1970.
    """

    id: str
    event: Event
    note: dict[str, str | int | float]
    time: float


@dataclass
class Ledger:
    """All releases of a run about its users.

    Attributes
    ----------
    path
        Its file; None: in memory only.
    epsilon
        Budget for `Epsilons.release`; may be ``inf``.
    delta
        Of (epsilon, delta).
    cap
        Most exchanges of one stage that a device takes part in; 0: no limit.
    population
        Number of enrolled users; 0: unknown.
    rng
        Where noise and coins come from: ``os`` or ``seeded``.
    charges
        In order.
    open_releases
        ``{"stage", "what", "why"}`` of each release without a guarantee, with the
        ``setting`` that asks for it.
    observed_participations
        Stage -> largest number of exchanges that one device reported to have taken part in.
    audits
        ``{"name", "eps_lb", "max_detectable", "conf", ...}`` each.
    unprotected
        Outflow -> why it is not protected (`protected.protected`), of those that are not.
    secagg
        Where users add shares of the noise: ``mode``, and the ``colluding`` share and
        ``quorum`` that `Event.server_z` rests on. Empty: the server adds all noise. With
        the mode ``on`` of a run on devices each of them holds its own ``keys``, and
        ``witness`` is the public key of who vouches for them, if somebody does.

    Raises
    ------
    IdiolectError
        The file exists already; its charges would be lost.
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
    secagg: dict[str, str | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse to overwrite the file of another ledger."""
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
        """Both epsilons of the charges; open releases have none (`card.card`)."""
        return epsilons(self.events(), self.delta, self.kept_cap())

    def kept_cap(self) -> int:
        """Return the cap, or the largest reported number if it is above the cap."""
        return self.cap and max(self.cap, *self.observed_participations.values(), 0)

    def check(self, event: Event) -> None:
        """Refuse a release that is beyond the budget; nothing is charged.

        Raises
        ------
        BudgetSpent
            The release would exceed the budget.
        """
        if self.epsilon == math.inf:
            return
        events = self.events() + Counter([event])
        # The coarse grid gives a higher bound, quickly: usually it is enough.
        if amplified(events, self.delta, COARSE) <= self.epsilon:
            return
        after = amplified(events, self.delta, INTERVAL)
        refuse_if(
            after > self.epsilon * (1 + TOLERANCE),
            f"releasing '{event.stage}' would raise epsilon to {after:.4g}, beyond the "
            f"budget of {self.epsilon:g}: nothing was released; end the run here, or "
            "start one with more noise, fewer rounds or a larger privacy.epsilon.",
            error=BudgetSpent,
        )

    def charge(self, event: Event, **note: str | int | float) -> str:
        """Charge a release before it happens, and write the charge to disk.

        Returns
        -------
        str
            The id of the charge.

        Raises
        ------
        BudgetSpent
            The release would exceed the budget; ledger and file are unchanged.
        """
        self.check(event)
        count = sum(charge.event.stage == event.stage for charge in self.charges)
        charge = Charge(f"{event.stage}/{count}", event, note, time.time())
        self.save(charges=[*self.charges, charge])
        self.charges.append(charge)
        return charge.id

    def open(self, stage: str, what: str, why: str, setting: str = "") -> None:
        """Record a release without any guarantee; the same one is recorded once.

        Parameters
        ----------
        stage, what
            The exchange, and what is released.
        why
            The reason. It begins with ``simulation`` if only a simulation may do it.
        setting
            The configuration key that asks for it, with its value.
        """
        release = {"stage": stage, "what": what, "why": why}
        release |= {"setting": setting} if setting else {}
        if release not in self.open_releases:
            self.save(open_releases=[*self.open_releases, release])
            self.open_releases.append(release)

    @property
    def masked(self) -> bool:
        """Whether sums with noise were of rows that only their own devices have seen."""
        return self.secagg.get("keys") == "devices"

    @property
    def witnessed(self) -> bool:
        """Whether a person other than the operator vouches for the members of sums."""
        return self.masked and bool(self.secagg.get("witness"))

    def simulation_reasons(self) -> list[str]:
        """Return why this run can only be a simulation; empty if it need not be one."""
        reasons = [
            f"{release['stage']}: {release['what']}"
            for release in self.open_releases
            if release["why"].startswith("simulation")
        ]
        if self.rng == "seeded":
            reasons.append(
                "noise and coins are drawn from a seed, which can be repeated"
            )
        if self.secagg.get("mode") == "sum":
            reasons.append(
                "secagg.mode=sum: rows are added up without masks, by a server that holds "
                "each of them"
            )
        elif self.secagg and not self.masked:
            reasons.append(
                "secagg.mode=on: all members' keys lie in the folder of the simulation"
            )
        return reasons

    def save(self, **changed: list[Any]) -> None:
        """Write the file, atomically, with some of its fields changed."""
        if self.path is None:
            return
        body = {"schema": SCHEMA, **asdict(self), "epsilon": finite(self.epsilon)}
        body |= {
            name: [asdict(e) if isinstance(e, Charge) else e for e in entries]
            for name, entries in changed.items()
        }
        del body["path"]
        write_atomically(
            self.path,
            json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False).encode(),
        )


def read_ledger(path: Path) -> Ledger:
    """Read a ledger; in its file an epsilon of ``null`` is an infinite budget.

    Raises
    ------
    IdiolectError
        The file is missing or damaged. What was spent is then unknown, and the run must
        not continue.
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
            ledger.secagg.items,
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
            f"the ledger {path} cannot be read ({words_of(error)}): what its run has spent "
            "is unknown; restore the file from a backup, or start a new run."
        ) from error
    ledger.path = path
    return ledger
