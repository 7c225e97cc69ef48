"""What the phases of a run work on: its users, behind one interface, and its state.

The phases (`adapt`, `pool`, `personalise`, `evaluate`) are written once. A `Cohort` says
how users are asked: by Flower messages (`remote`), or in this process (`local`), as
studies and audits do it. Noise, the ledger, the quorum of a private round, the choice of
learning rates and the checkpoint belong to the phases. Both cohorts clip what they add up
(`sums`); the remote one checks what a device answers, and has deadlines and the quorum of
everything else.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from ...common.config import Config
from ...common.data.types import Dataset, Item
from ...common.protocol.messages import Outcome
from ...common.secure.rows import Integers
from ...common.unlabeled.sets import Unlabeled
from ..privacy.ledger import Ledger
from . import work
from .budget import Population, population_of
from .checkpoint import State
from .sums import Sum

Items = Mapping[str, Sequence[Item]]
"""User -> items."""


class Cohort(Protocol):
    """The users of a run.

    What they compute depends on the run's configuration and its state (`State.shared`,
    `State.unlabeled`), which the cohort is made with. Each method asks the users
    named; who does not answer is missing in what is returned. `release` is the ledger's
    id of the release that the answers go into; empty without privacy. With `integers` rows
    are added up as such, with the users' shares of the noise, and the sum is what the
    server sees before it adds its own.

    Attributes
    ----------
    users, development
        Evaluated and development users that can be reached, in the order of the data.
    """

    @property
    def users(self) -> tuple[str, ...]:
        """See above."""
        ...

    @property
    def development(self) -> tuple[str, ...]:
        """See above."""
        ...

    def update(
        self,
        users: Sequence[str],
        clip: float,
        release: str,
        integers: Integers | None = None,
    ) -> Sum:
        """Train the shared adapter for the next round; the sum of the clipped rows."""
        ...

    def vote(
        self,
        users: Sequence[str],
        bank: Sequence[Item],
        release: str,
        integers: Integers | None = None,
    ) -> tuple[np.ndarray, list[str]]:
        """Sum of the votes over the bank, float64 [bank], and whose votes it holds."""
        ...

    def mark(self, users: Sequence[str], bank: Sequence[Item]) -> np.ndarray:
        """How many users have an item to offer in each bucket, float64 [bank]."""
        ...

    def offer(
        self, users: Sequence[str], bank: Sequence[Item], supported: tuple[int, ...]
    ) -> Items:
        """Scrubbed items of the supported buckets (places in the bank)."""
        ...

    def share(self, users: Sequence[str]) -> Items:
        """Raw histories; in a simulation only."""
        ...

    def hand_out(self, unlabeled: Sequence[Unlabeled], release: str) -> None:
        """Announce the unlabeled set; `release` is that of its votes."""
        ...

    def train(
        self, users: Sequence[str], method: str, rate: float, trial: bool
    ) -> dict[str, Outcome]:
        """Train each user's own adapter, which stays where the user is.

        With `trial` it is not kept but scored: the log has the held-out ``nll``. Users
        whose training failed are missing.
        """
        ...

    def measure(
        self, users: Sequence[str], method: str, rate: float, generate: bool
    ) -> dict[str, dict[str, float]]:
        """User -> metric -> value on the held-out items; texts are written or not."""
        ...

    def sum_metrics(
        self,
        users: Sequence[str],
        method: str,
        rate: float,
        release: str,
        integers: Integers | None = None,
    ) -> tuple[np.ndarray, list[str]]:
        """Sum of bounded rows of metrics (`metrics.bounded_row`), and whose they are."""
        ...


@dataclass
class Run:
    """What every phase needs.

    Attributes
    ----------
    config, state
        The configuration, and what a resumed run knows.
    ledger
        Of everything that is released; charged before anybody is asked for it.
    dataset
        Of which the phases use only the public text and the number of users.
    cohort
        The users. Set once the run is made.
    done
        Work that is done (see `work`).
    """

    config: Config
    state: State
    ledger: Ledger
    dataset: Dataset
    cohort: Cohort = field(init=False)
    done: float = field(init=False, default=0.0)

    @cached_property
    def population(self) -> Population:
        """How many users may take part, reached or not."""
        return population_of(self.config, self.dataset)

    @cached_property
    def weights(self) -> work.Weights:
        """Work per user of each part of the run."""
        return work.weights_of(self.config)

    def save(self) -> None:
        """Write the checkpoint, where there is one."""

    def begun(self, release: str) -> bool:
        """Whether the same members can be asked again for a release that was cut short."""
        return False

    def warn(self, message: str) -> None:
        """Tell the reader of the log."""
        logging.getLogger("flwr").warning("%s", message)

    def took_part(self, stage: str, users: Sequence[str]) -> None:
        """Count who took part in a release of a stage."""
        counts = self.state.took_part.setdefault(stage, {})
        for user in users:
            counts[user] = counts.get(user, 0) + 1
