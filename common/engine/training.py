"""The one training loop: batches x loss x adapters. It knows no methods.

K users train at once on the resident backbone, each with own adapter, optimiser state,
gradient clip, learning-rate schedule, number of steps and random order; the result is
that of K separate runs. One user is K = 1, the case of a device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil

import numpy as np
import torch
from torch import Tensor

from ..seeds import numpy_generator
from . import objectives
from .adapters import Lora, Stack, attached, stack, unstack
from .backbone import Backbone, Encoded
from .layout import Layout
from .lower import SHARE, Lower, lower_bytes, lower_states, lowest_layer
from .memory import (
    Saving,
    TooLittleMemory,
    free_bytes,
    needed_bytes,
    recomputed,
    within,
)
from .objectives import Loss, LossFunction, Means, Scored, ScoredBatch
from .reference import Reference
from .scoring import collate, completion_logp, completion_tokens

# Decay of first and second moment, and the guard against division by zero (Kingma & Ba
# 2015; the defaults of torch.optim.AdamW). No weight decay: an adapter starts at zero
# change, and three epochs leave it small.
ADAM = (0.9, 0.999, 1e-8)
COLUMNS = 1 << 20  # numbers of an optimiser step at once: 4 MB


@dataclass(frozen=True)
class Example:
    """One sequence to learn from.

    Attributes
    ----------
    encoded
        Its tokens.
    reference
        log pi_ref(y | x); 0 where the loss does not use it.
    weight
        Weight of an unlabeled item; 1 otherwise.
    """

    encoded: Encoded
    reference: float = 0.0
    weight: float = 1.0


@dataclass(frozen=True)
class TrainingSet:
    """What one user trains on.

    Attributes
    ----------
    user
        Name from which the order of the batches is drawn.
    positive
        The user's history.
    unlabeled
        Items that stand for everyone else; empty for SFT.
    negative
        Known negatives.
    mismatched
        Pairs of a prompt with another item's completion (KTO only): one per positive,
        then one per unlabeled item, in their order.
    rejected
        What is preferred less than each positive, in their order (DPO only).
    alpha
        Preference overlap (C-BPO only).
    """

    user: str
    positive: Sequence[Example]
    unlabeled: Sequence[Example] = ()
    negative: Sequence[Example] = ()
    mismatched: Sequence[Example] = ()
    alpha: float = 0.0
    rejected: Sequence[Example] = ()


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; the same for all users of a stack.

    Attributes
    ----------
    learning_rate, epochs, batch, warmup, clip
        Adam with linear warm-up, `batch` positives per step, `clip` on each user's
        gradient norm.
    memory
        Bytes that training may use above the backbone; 0: what is free (`free_bytes`).
        Changes time and, where rows must be split, the last bits of the result.
    microbatch
        Rows per forward pass and user; 0: as many as the memory allows.
    train_a
        False keeps A fixed (FFA-LoRA, Sun et al. 2024): the shared adapter.
    seed
        Seed of the order of the batches.
    optimizer
        ``adam``, or ``sgd``: plain steps along the clipped gradient.
    """

    learning_rate: float
    epochs: int
    batch: int
    warmup: float = 0.1
    clip: float = 1.0
    memory: int = 0
    microbatch: int = 0
    train_a: bool = True
    seed: int = 0
    optimizer: str = "adam"


@dataclass(frozen=True, eq=False)
class Trained:
    """Result of `train`.

    Attributes
    ----------
    loras
        One adapter per user.
    logs
        One dictionary per user: ``steps``, ``loss`` (of the last step), ``clamp_rate``
        (share of steps on which max(0, .) switched the unlabeled set off), ``delta``.
    """

    loras: list[Lora]
    logs: list[dict[str, float]]


@dataclass(frozen=True, eq=False)
class Standing:
    """Where a training stands between two steps: all that the rest of it depends on.

    Attributes
    ----------
    step
        Steps done.
    flat
        Trained parameters, one row per user, [K, P].
    adam
        State of the optimiser; not moved by ``sgd``.
    means
        Running mean rewards.
    losses, clamps
        What `Trained.logs` is made of, [K].
    """

    step: int
    flat: Tensor
    adam: "Adam"
    means: Means
    losses: Tensor
    clamps: Tensor


@dataclass(frozen=True)
class Watch:
    """How a training is followed, interrupted and gone on with.

    Attributes
    ----------
    phase
        Is told what begins: a few words.
    start
        Returns where an earlier, interrupted training of the same stood; None: nowhere.
    step
        Is told after each step where the training stands, and the number of all steps.
        The tensors change with the next step: who keeps them copies them.
    """

    phase: Callable[[str], None] = lambda _words: None
    start: Callable[[], Standing | None] = lambda: None
    step: Callable[[Standing, int], None] = lambda _at, _of: None


UNWATCHED = Watch()


# One optimiser batch of one user: the examples of each kind.
Batch = dict[str, list[Example]]
TRAINED = ("positive", "unlabeled", "negative", "rejected")
KINDS = (*TRAINED, "mismatched")


def batches(data: TrainingSet, settings: TrainingSettings) -> list[Batch]:
    """The batches of one user, in order.

    An epoch visits every positive once, in ceil(n / batch) batches of nearly equal size;
    the unlabeled and negative items are spread evenly over the same batches, what is
    rejected goes with its positive. The order is drawn from (seed, user, epoch) only, so
    it does not depend on who else is stacked.
    """
    count = ceil(len(data.positive) / settings.batch)
    found: list[Batch] = []
    for epoch in range(settings.epochs):
        draw = numpy_generator(settings.seed, "batches", data.user, epoch)
        parts = {
            kind: np.array_split(draw.permutation(len(getattr(data, kind))), count)
            for kind in ("positive", "unlabeled", "negative")
        }
        for t in range(count):
            batch = {k: [getattr(data, k)[i] for i in parts[k][t]] for k in parts}
            own, aux = parts["positive"][t], parts["unlabeled"][t]
            batch["rejected"] = _paired(data.rejected, own)
            batch["mismatched"] = _paired(data.mismatched, own)
            batch["mismatched"] += _paired(data.mismatched, aux + len(data.positive))
            found.append(batch)
    return found


def _paired(partners: Sequence[Example], chosen: np.ndarray) -> list[Example]:
    return [partners[i] for i in chosen] if partners else []


@dataclass(frozen=True, eq=False)
class Parameters:
    """The trained tensors of a stack, all in one buffer.

    `flat` [K, P] holds every user's parameters in one row; the tensors of `stack` are
    views into it, so that one vectorised optimiser step moves all users.
    """

    flat: Tensor
    leaves: list[Tensor]
    stack: Stack

    def gradient(self) -> Tensor:
        """Gradients of all leaves, [K, P]; clears them."""
        sums = [leaf.grad for leaf in self.leaves if leaf.grad is not None]
        found = torch.cat([grad.flatten(1) for grad in sums], dim=1)
        for grad in sums:
            grad.zero_()
        return found


def parameters(start: Sequence[Lora], train_a: bool) -> Parameters:
    """Copy the users' adapters into one trainable buffer.

    Raises
    ------
    ValueError
        Their scalings differ: in one stack B would be multiplied by them, and the same step
        of the optimiser would move each user's adapter differently.
    """
    if len({lora.scaling for lora in start}) > 1:
        raise ValueError("adapters that are trained together have one scaling")
    whole = stack(start)
    trained = [*whole.a.values(), *whole.b.values()] if train_a else [*whole.b.values()]
    flat = torch.cat([tensor.flatten(1) for tensor in trained], dim=1).float()
    sizes = [tensor[0].numel() for tensor in trained]
    leaves = [
        part.view(tensor.shape).detach().requires_grad_()
        for part, tensor in zip(flat.split(sizes, dim=1), trained, strict=True)
    ]
    # What comes is added to these: nothing small stays between what a layer frees.
    for leaf in leaves:
        leaf.grad = torch.zeros(leaf.shape, device=leaf.device)
    if not train_a:
        frozen = {name: tensor[:1] for name, tensor in whole.a.items()}
        b = dict(zip(whole.b, leaves, strict=True))
        return Parameters(flat, leaves, Stack(frozen, b, whole.scaling))
    a = dict(zip(whole.a, leaves, strict=False))
    b = dict(zip(whole.b, leaves[len(whole.a) :], strict=True))
    return Parameters(flat, leaves, Stack(a, b, whole.scaling))


@dataclass(frozen=True, eq=False)
class Adam:
    """Optimiser state, one row per user."""

    first: Tensor
    second: Tensor
    steps: Tensor


def adam_step(
    flat: Tensor, gradient: Tensor, state: Adam, rates: Tensor, clip: float
) -> Adam:
    """Move every user's row of `flat`, and the moments, in place by one Adam step.

    Some columns at a time: what lives long stays where it is, and what does not is small,
    so that neither leaves gaps in the memory that the activations use.

    Parameters
    ----------
    flat, gradient
        Parameters and gradients, [K, P].
    state
        Moments [K, P] and steps [K] so far.
    rates
        Learning rate of each user [K]; a user at rate 0 has finished: neither its
        parameters nor its state move.
    clip
        Largest L2 norm of one user's gradient.
    """
    decay1, decay2, eps = ADAM
    active, share = (rates > 0).unsqueeze(1), clipping(gradient, clip)
    steps = state.steps + active[:, 0]
    t, columns = steps.clamp(min=1).unsqueeze(1), max(1, COLUMNS // len(flat))
    parts = (x.split(columns, 1) for x in (flat, gradient, state.first, state.second))
    for values, slope, before, squares in zip(*parts, strict=True):
        slope = slope * share
        first = decay1 * before + (1 - decay1) * slope
        second = decay2 * squares + (1 - decay2) * slope.square()
        size = (second / (1 - decay2**t)).sqrt() + eps
        move = rates.unsqueeze(1) * (first / (1 - decay1**t)) / size
        values -= torch.where(active, move, torch.zeros_like(move))
        before.copy_(torch.where(active, first, before))
        squares.copy_(torch.where(active, second, squares))
    return Adam(state.first, state.second, steps)


def sgd_step(flat: Tensor, gradient: Tensor, rates: Tensor, clip: float) -> None:
    """Move every user's row of `flat` in place along its clipped gradient, [K, P].

    A row at rate 0 has finished; its gradient may be anything.
    """
    move = rates.unsqueeze(1) * clipped(gradient, clip)
    flat -= torch.where((rates > 0).unsqueeze(1), move, torch.zeros_like(move))


def clipped(gradient: Tensor, clip: float) -> Tensor:
    """Each user's gradient, of L2 norm at most `clip`, [K, P]."""
    return gradient * clipping(gradient, clip)


def clipping(gradient: Tensor, clip: float) -> Tensor:
    """What each user's gradient is multiplied by, so that its norm is at most `clip`."""
    norm = gradient.norm(dim=1, keepdim=True)
    return (clip / norm.clamp(min=1e-12)).clamp(max=1)


def learning_rate(settings: TrainingSettings, step: int, steps: int) -> float:
    """Linear warm-up over the first share of the steps, then constant; 0 at the end."""
    if step >= steps:
        return 0.0
    warm = max(1, round(settings.warmup * steps))
    return settings.learning_rate * min(1.0, (step + 1) / warm)


def train(
    reference: Reference,
    start: Sequence[Lora],
    data: Sequence[TrainingSet],
    loss: LossFunction,
    settings: TrainingSettings,
    watch: Watch = UNWATCHED,
) -> Trained:
    """Train the adapters of K users on the resident backbone.

    Parameters
    ----------
    reference
        What the adapters are added to; frozen.
    start
        Each user's adapter to start from.
    data
        What each user trains on, at least one positive each.
    loss, settings
        The gradient of `loss` moves the adapters; budget and optimiser.
    watch
        Follows the steps. A training that goes on from where another one of the same
        arguments stood ends with the same bits, unless less memory made it split rows.

    Returns
    -------
    Trained
        In the order of `data`. A user whose numbers overflow ends with non-finite
        parameters; the others are not affected.
    """
    backbone, users = reference.backbone, len(data)
    steps, lengths = steps_of(data, settings)
    weights = parameters(start, settings.train_a)
    zeros = torch.zeros_like(weights.flat)
    state = Adam(zeros, torch.zeros_like(zeros), zeros.new_zeros(users))
    means = objectives.zero_means(users)
    alpha = torch.tensor([one.alpha for one in data])
    losses, clamps = torch.zeros(users), torch.zeros(users)
    done = 0
    if at := watch.start():
        done, state, means, losses, clamps = _resumed(at, weights, backbone.device)
    depth = lowest_layer(weights.stack)
    lower = _lower(reference, depth, data, settings)
    if lower and settings.memory:  # what is free has become less by itself
        settings = replace(settings, memory=max(1, settings.memory - lower.bytes))
    saving = saving_of(
        backbone, largest(backbone, steps), weights.flat.numel(), settings, depth
    )
    with (
        attached(backbone, reference.shared, weights.stack) as refresh,
        recomputed(backbone, weights.stack, saving),
    ):
        for t, now in enumerate(steps[done:], done):
            objective = partial(_value, loss, alpha, means)
            found = _backward(backbone, now, objective, saving, lower)
            rates = [learning_rate(settings, t, length) for length in lengths]
            rates = torch.tensor(rates, device=backbone.device)
            gradient = weights.gradient()  # not kept during the next backward pass
            if settings.optimizer == "sgd":
                sgd_step(weights.flat, gradient, rates, settings.clip)
            else:
                state = adam_step(weights.flat, gradient, state, rates, settings.clip)
            del gradient
            refresh()
            means = found.means
            active = rates.cpu() > 0
            losses = torch.where(active, found.value.detach(), losses)
            clamps = clamps + torch.where(active, found.clamped, 0)
            at = Standing(t + 1, weights.flat, state, means, losses, clamps)
            watch.step(at, len(steps))
    logs = [
        {"steps": float(n), "loss": float(last), "clamp_rate": float(c) / n, "delta": d}
        for n, last, c, d in zip(
            lengths, losses, clamps, objectives.boundary(means).tolist(), strict=True
        )
    ]
    return Trained(unstack(weights.stack), logs)


def _budget(settings: TrainingSettings, device: torch.device) -> float:
    """Bytes that training may use above the backbone."""
    return settings.memory or free_bytes(device)


def _lower(
    reference: Reference,
    depth: int,
    data: Sequence[TrainingSet],
    settings: TrainingSettings,
) -> Lower | None:
    """What the layers below the adapters compute; None: nothing, or too much to keep."""
    backbone = reference.backbone
    rows = [[e.encoded for kind in KINDS for e in getattr(one, kind)] for one in data]
    most = SHARE * _budget(settings, backbone.device)
    if not depth or lower_bytes(backbone, rows) > most:
        return None
    return lower_states(backbone, reference.shared, depth, rows)


def _resumed(
    at: Standing, weights: Parameters, device: torch.device
) -> tuple[int, Adam, Means, Tensor, Tensor]:
    """Put the parameters where a training stood; returns what else it goes on with."""
    weights.flat.copy_(at.flat)
    first, second, steps = (
        tensor.to(device, copy=True)
        for tensor in (at.adam.first, at.adam.second, at.adam.steps)
    )
    return at.step, Adam(first, second, steps), at.means, at.losses, at.clamps


def steps_of(
    data: Sequence[TrainingSet], settings: TrainingSettings
) -> tuple[list[list[Batch]], list[int]]:
    """Batches of all users, step by step, and each user's number of steps.

    One who has finished has an empty batch.
    """
    plans = [batches(one, settings) for one in data]
    lengths = [len(plan) for plan in plans]
    count = range(max(lengths))
    return [[p[t] if t < len(p) else {} for p in plans] for t in count], lengths


def largest(backbone: Backbone, steps: Sequence[Sequence[Batch]]) -> Layout:
    """The layout of the step with most tokens, all its rows at once.

    As they are laid out: what rows share counts once, and users fill up to the longest.
    """

    def rows(step: Sequence[Batch]) -> list[list[Example]]:
        return [[e for kind in TRAINED for e in one.get(kind, [])] for one in step]

    layouts = (laid_out(backbone, _align(rows(step))) for step in steps)
    return max(layouts, key=lambda layout: layout.ids.numel())


def saving_of(
    backbone: Backbone,
    layout: Layout,
    numbers: int,
    settings: TrainingSettings,
    depth: int = 0,
) -> Saving:
    """How the largest step stays within the memory that it may use.

    `numbers`: how many are trained, of all users together; `depth`: the lowest layer that
    they are in.

    Raises
    ------
    TooLittleMemory
        `settings.memory` does not do for one row of each user. What is free always does:
        it may be more than it seems.
    """
    budget = _budget(settings, backbone.device)
    saving = within(backbone, layout, numbers, budget, depth)
    rows = layout.rows // len(layout.ids)
    if settings.microbatch:
        return replace(saving, passes=ceil(rows / settings.microbatch))
    saving = replace(saving, passes=min(saving.passes, rows))
    needed = needed_bytes(backbone, layout, numbers, saving)
    if settings.memory and needed > budget:
        raise TooLittleMemory(budget, needed)
    return saving


def _value(
    loss: LossFunction, alpha: Tensor, means: Means, scored: dict[str, Scored]
) -> Loss:
    return loss(ScoredBatch(**scored, alpha=alpha), means)


Rows = list[list[Example | None]]
"""Examples of one kind of K users, each filled up to the same number."""


def _backward(
    backbone: Backbone,
    batch: Sequence[Batch],
    loss: Callable[[dict[str, Scored]], Loss],
    saving: Saving,
    lower: Lower | None,
) -> Loss:
    """Gradient of one optimiser batch into the leaves of the attached stack.

    The loss is a function of the whole batch's log-probabilities. Where the batch fits
    into one pass it is differentiated directly. Otherwise the log-probabilities are
    computed first without gradients, the loss gives the coefficient d loss / d logp of
    each row, and a second pass for each part sends that coefficient back. The gradient
    is the same sum, so accumulation changes nothing: not delta, not the clamp.
    """
    rows, passes, unmoved = divided(batch, saving)
    merged, users = passes[0], len(batch)

    def logp(examples: Rows) -> Tensor:
        layout = laid_out(backbone, examples, lower)
        return completion_logp(backbone, layout, saving.logits).view(users, -1)

    frozen = torch.zeros(users, 0)
    if unmoved:
        with torch.no_grad():
            frozen = torch.cat([logp(part).cpu() for part in unmoved], dim=1)

    def value(scores: Tensor) -> Loss:
        widths = [len(rows[kind][0]) for kind in TRAINED]
        parts = [*scores.cpu().split(widths, dim=1), frozen]
        return loss({k: _scored(p, rows[k]) for k, p in zip(KINDS, parts, strict=True)})

    if len(passes) == 1:
        found = value(logp(merged))
        found.value.sum().backward()
        return found
    with torch.no_grad():
        scores = torch.cat([logp(part) for part in passes], dim=1)
    scores.requires_grad_()
    found = value(scores)
    (coefficients,) = torch.autograd.grad(found.value.sum(), scores)
    sizes = [len(part[0]) for part in passes]
    for part, share in zip(passes, coefficients.split(sizes, dim=1), strict=True):
        logp(part).backward(share)
    return found


def divided(
    batch: Sequence[Batch], saving: Saving
) -> tuple[dict[str, Rows], list[Rows], list[Rows]]:
    """Rows of each kind; the passes of those that are trained on, and of those that aren't.

    `mismatched` rows have no gradient. They are taken in passes of the same size.
    """
    rows = {kind: _align([one.get(kind, []) for one in batch]) for kind in KINDS}
    merged = [[e for k in TRAINED for e in rows[k][u]] for u in range(len(batch))]
    size = ceil(len(merged[0]) / saving.passes)
    return rows, _split(merged, size), _split(rows["mismatched"], size)


def laid_out(backbone: Backbone, rows: Rows, lower: Lower | None = None) -> Layout:
    """Rows of all users, side by side."""
    flat = [e.encoded if e else None for user in rows for e in user]
    layout = collate(backbone, flat, len(rows))
    return lower.of(backbone, layout, flat) if lower else layout


def _align(kinds: list[list[Example]]) -> Rows:
    """Fill users up to the same number of rows."""
    width = max(map(len, kinds))
    return [[*examples, *[None] * (width - len(examples))] for examples in kinds]


def _split(rows: Rows, size: int) -> list[Rows]:
    """Split the rows of every user into passes of at most `size` rows."""
    starts = range(0, len(rows[0]), size)
    return [[user[i : i + size] for user in rows] for i in starts]


def _scored(logp: Tensor, rows: Rows) -> Scored:
    def table(value) -> Tensor:
        return torch.tensor([[value(e) if e else 0.0 for e in user] for user in rows])

    return Scored(
        logp,
        table(lambda e: e.reference).view(logp.shape),
        table(lambda e: float(completion_tokens(e.encoded))).view(logp.shape),
        table(lambda e: e.weight).view(logp.shape),
    )
