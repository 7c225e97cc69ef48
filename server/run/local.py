"""The users of a run in this process: the cohort of studies and audits.

It calls the functions that a node calls, on stacking groups of consecutive users, and
sums as the remote cohort does. Nothing is sent, so nothing is checked.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from ...common.config import UNTRAINED, Config
from ...common.data.load import task_of
from ...common.data.metrics import bounded_row, released_metrics
from ...common.data.types import TOO_LONG, Dataset, Item, User, names_of
from ...common.engine.adapters import Lora, zero_shared
from ...common.engine.backbone import Backbone
from ...common.engine.fitting import fitting, too_long
from ...common.engine.rates import rates_for, with_rates
from ...common.engine.reference import Reference
from ...common.errors import refuse_if
from ...common.methods import evaluation
from ...common.methods.personalise import personalise
from ...common.methods.shared import shared_update
from ...common.protocol.messages import Outcome, Rows
from ...common.protocol.quantization import as_received, decode, update_codes
from ...common.secure.rows import Integers
from ...common.unlabeled.sets import Unlabeled, UnlabeledSet
from ...common.unlabeled.votes import marks, offers, supported_offers, user_vote
from .budget import new_ledger, population_of
from .checkpoint import State
from .cohort import Run
from .sums import (
    Sum,
    nothing,
    sum_of_marks,
    sum_of_unit,
    sum_rows,
    unit_unsealed,
    unsealed,
)


@dataclass
class Local:
    """The cohort of a run without messages.

    Attributes
    ----------
    config, state, dataset
        Of the run.
    bare
        What everybody uses, and what is kept of it; its adapter does not matter.
    adapters
        Method -> user -> the own adapter, in the memory of the CPU.
    written
        Method -> user -> generated texts; they do not leave this process.
    """

    config: Config
    state: State
    dataset: Dataset
    bare: Reference
    adapters: dict[str, dict[str, Lora]] = field(default_factory=dict)
    written: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    _known: tuple[Rows, Reference] | None = None

    @property
    def users(self) -> tuple[str, ...]:
        """The evaluated users."""
        return names_of(self.dataset.users)

    @property
    def development(self) -> tuple[str, ...]:
        """The development users."""
        return names_of(self.dataset.development)

    @cached_property
    def _zero(self) -> Lora:
        shape, seed = self.config.shared_shape, self.config.seed
        return zero_shared(self.bare.backbone, shape, seed)

    @property
    def reference(self) -> Reference:
        """The reference as devices have it; one object as long as the adapter stays."""
        exact = self.state.shared
        if self._known is None or self._known[0] is not exact:
            rows = as_received(exact, self.config.signed_bytes)
            b = {name: torch.tensor(array) for name, array in rows.items()}
            lora = _to(replace(self._zero, b=b), self.bare.backbone.device)
            self._known = exact, self.bare.with_shared(lora)
        return self._known[1]

    @property
    def unlabeled(self) -> UnlabeledSet:
        """The unlabeled set as devices have it."""
        voted = self.state.took_part.get("votes")  # None: the sum is exact
        voters = None if voted is None else frozenset(voted)
        return UnlabeledSet(self.state.unlabeled or (), self.state.floor, voters)

    def update(
        self,
        users: Sequence[str],
        clip: float,
        release: str,
        integers: Integers | None = None,
    ) -> Sum:
        """See `Cohort.update`."""
        config, number, reference = self.config, self.state.rounds, self.reference
        shapes = {name: array.shape for name, array in self.state.shared.items()}
        found = nothing(shapes, integers)
        for group in self._groups(users):
            names = [user.id for user in group]
            update = shared_update(reference, group, config, number, clip)
            rows = {name: tensor.numpy() for name, tensor in update.items()}
            if config.signed_bytes:
                rows = decode(update_codes(rows, config.seed, names, number), shapes)
            found.add(sum_rows(names, rows, clip, integers))
        return unsealed(found, shapes, integers)

    def vote(
        self,
        users: Sequence[str],
        bank: Sequence[Item],
        release: str,
        integers: Integers | None = None,
    ) -> tuple[np.ndarray, list[str]]:
        """See `Cohort.vote`."""
        total = sum_of_unit(np.zeros((0, len(bank))), (), integers)
        for user in self._named(users):
            vote = user_vote(self.bare, bank, user, self.config)
            total += sum_of_unit(vote[None], [user.id], integers)
        return unit_unsealed(total, users, integers), list(users)

    def mark(self, users: Sequence[str], bank: Sequence[Item]) -> np.ndarray:
        """See `Cohort.mark`."""
        marked = [marks(bank, offers(user)) for user in self._named(users)]
        return sum_of_marks(np.array(marked).reshape(-1, len(bank)))

    def offer(
        self, users: Sequence[str], bank: Sequence[Item], supported: tuple[int, ...]
    ) -> Mapping[str, Sequence[Item]]:
        """See `Cohort.offer`."""
        return {
            user.id: supported_offers(bank, frozenset(supported), user)
            for user in self._named(users)
        }

    def share(self, users: Sequence[str]) -> Mapping[str, Sequence[Item]]:
        """See `Cohort.share`."""
        return {user.id: user.history for user in self._named(users)}

    def hand_out(self, unlabeled: Sequence[Unlabeled], release: str) -> None:
        """Nothing to do: everybody reads the state."""

    def train(
        self, users: Sequence[str], method: str, rate: float, trial: bool
    ) -> dict[str, Outcome]:
        """See `Cohort.train`."""
        reference, handed, found = self.reference, self.unlabeled, dict[str, Outcome]()
        for group in self._groups(users):
            trained = personalise(reference, group, handed, method, rate, self.config)
            kept = {one.user: one for one in trained if one.lora is not None}
            for user, one in kept.items():
                found[user] = Outcome(one.alpha, one.estimated, finite(one.log))
            able = [user for user in group if user.id in kept]
            if trial and able:
                loras = [kept[user.id].lora for user in able]
                nlls = evaluation.held_out_nll(reference, loras, able, method)
                for user, nll in zip(able, nlls, strict=True):
                    found[user.id].log.update(finite({"nll": nll}))
            if not trial:
                own = {u: _to(one.lora, "cpu") for u, one in kept.items() if one.lora}
                self.adapters.setdefault(method, {}).update(own)
        return found

    def measure(
        self, users: Sequence[str], method: str, rate: float, generate: bool
    ) -> dict[str, dict[str, float]]:
        """See `Cohort.measure`."""
        found: dict[str, dict[str, float]] = {}
        for group in self._groups(users):
            loras, config = self.own(method, group), self.config
            written = self.written.setdefault(method, {})
            values = evaluation.evaluate(
                self.reference, loras, group, method, config, generate, written
            )
            found |= {u.id: metrics for u, metrics in zip(group, values, strict=True)}
        return found

    def own(self, method: str, group: Sequence[User]) -> list[Lora | None]:
        """The adapters that a stacking group is measured with; None without any."""
        if method in UNTRAINED:
            return [None] * len(group)
        device, known = self.bare.backbone.device, self.adapters[method]
        return [_to(known[user.id], device) for user in group]

    def sum_metrics(
        self,
        users: Sequence[str],
        method: str,
        rate: float,
        release: str,
        integers: Integers | None = None,
    ) -> tuple[np.ndarray, list[str]]:
        """See `Cohort.sum_metrics`."""
        generate = self.config.evaluate.generate
        names = released_metrics(task_of(self.config.task).kind, generate)
        found = self.measure(users, method, rate, generate)
        rows = [bounded_row(metrics, names) for metrics in found.values()]
        matrix = np.array(rows, np.float32).reshape(len(found), len(names) + 1)
        total = sum_of_unit(matrix, list(found), integers)
        return unit_unsealed(total, list(found), integers), list(found)

    def _named(self, names: Sequence[str]) -> list[User]:
        known = {u.id: u for u in self.dataset.everybody}
        return [known[name] for name in names]

    def _groups(self, names: Sequence[str]) -> Iterator[list[User]]:
        """Stacking groups of consecutive users."""
        users, size = self._named(names), self.config.engine.stack
        for start in range(0, len(users), size):
            yield users[start : start + size]


def local_run(
    config: Config, reference: Reference, dataset: Dataset, after: Run | None = None
) -> Run:
    """A run in this process; nothing of it is written to disk.

    It begins before the first phase, or goes on where another one stands, before any
    method was trained: with its adapter, its unlabeled set, and what it was charged.
    """
    config = with_rates(config, rates_for(reference.backbone.parameters))
    ledger = new_ledger(None, config, population_of(config, dataset))
    if after is None:
        zero = zero_shared(reference.backbone, config.shared_shape, config.seed)
        state = State({name: tensor.cpu().numpy() for name, tensor in zero.b.items()})
    else:
        state = replace(
            after.state,
            took_part=dict(after.state.took_part),
            trials={},
            learning_rates={},
            outcomes={},
            metrics={},
        )
        ledger.charges += after.ledger.charges
    run = Run(config, state, ledger, dataset)
    run.cohort = Local(config, state, dataset, reference)
    return run


def fitted(backbone: Backbone, dataset: Dataset) -> Dataset:
    """The users without the items that do not fit into the context, which are counted.

    Raises
    ------
    IdiolectError
        A user has no item left.
    """
    groups, dropped = [], dict(dataset.dropped)
    for users in (dataset.users, dataset.development):
        pairs = [fitting(backbone, user) for user in users]
        if count := sum(number for _, number in pairs):
            dropped[TOO_LONG] = dropped.get(TOO_LONG, 0) + count
        groups.append(tuple(user for user, _ in pairs))
    for user in (*groups[0], *groups[1]):
        problem = too_long(backbone, user)
        refuse_if(problem, problem)
    return replace(dataset, users=groups[0], development=groups[1], dropped=dropped)


def finite(numbers: Mapping[str, float]) -> dict[str, float]:
    """Leave out what is not finite."""
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _to(lora: Lora, device: torch.device | str) -> Lora:
    def moved(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(device) for name, tensor in tensors.items()}

    return Lora(moved(lora.a), moved(lora.b), lora.scaling, moved(lora.bias))
