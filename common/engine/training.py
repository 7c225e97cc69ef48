"""The one training loop: batches x objective x adapters.

K users train at once on the resident backbone, each with own adapter, optimiser state,
gradient clip, learning-rate schedule, number of steps and random order; the result is
that of K separate runs. One user is K = 1, the case of a device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..seeds import numpy_generator
from . import objectives
from .adapters import Lora, Stack, attached, stack, unstack
from .backbone import Backbone, Encoded
from .objectives import Loss, Means, Scored
from .scoring import collate, completion_logp, completion_tokens

# Decay of first and second moment, and the guard against division by zero (Kingma & Ba
# 2015; the defaults of torch.optim.AdamW). No weight decay: an adapter starts at zero
# change, and three epochs leave it small.
ADAM = (0.9, 0.999, 1e-8)


@dataclass(frozen=True)
class Example:
    """One sequence to learn from.

    Attributes
    ----------
    encoded
        Its tokens.
    reference
        log pi_ref(y | x); unused by SFT.
    weight
        Weight of an unlabeled item; 1 otherwise.
    """

    encoded: Encoded
    reference: float = 0.0
    weight: float = 1.0


@dataclass(frozen=True)
class Lesson:
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
class Recipe:
    """How to train; the same for all users of a stack.

    Attributes
    ----------
    method
        ``sft`` (SFT), ``dpo``, ``kto``, ``bco``, ``c-bpo`` or ``positives``.
    learning_rate, epochs, batch, warmup, clip
        Adam with linear warm-up, `batch` positives per step, `clip` on each user's
        gradient norm.
    beta, decay, boundary
        Scale of the reward, decay of its running means, and whether C-BPO runs one per
        class (``separate``) or one for both (``pooled``, a control).
    reward, unlabeled_weight, anchor
        Of C-BPO and its positive term alone: whether rewards are sums over completion
        tokens (``sequence``, the paper) or means (``token``), the weight of the
        unlabeled term, and that of a likelihood term (see `objectives.c_bpo`).
    microbatch
        Rows per forward pass and user; 0 takes a whole step at once. Changes memory and
        time, not the result.
    train_a
        False keeps A fixed (FFA-LoRA, Sun et al. 2024): the shared adapter.
    seed
        Seed of the order of the batches.
    optimizer
        ``adam``, or ``sgd``: plain steps along the clipped gradient.
    """

    method: str
    learning_rate: float
    epochs: int
    batch: int
    warmup: float = 0.1
    clip: float = 1.0
    beta: float = 1.0
    decay: float = 0.9
    boundary: Literal["separate", "pooled"] = "separate"
    reward: Literal["sequence", "token"] = "sequence"
    unlabeled_weight: float = 1.0
    anchor: float = 0.0
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


# One optimiser step of one user: the examples of each kind.
Step = dict[str, list[Example]]
TRAINED = ("positive", "unlabeled", "negative", "rejected")
KINDS = (*TRAINED, "mismatched")


def plan(lesson: Lesson, recipe: Recipe) -> list[Step]:
    """The steps of one user, in order.

    An epoch visits every positive once, in ceil(n / batch) steps of nearly equal size;
    the unlabeled and negative items are spread evenly over the same steps, what is
    rejected goes with its positive. The order is drawn from (seed, user, epoch) only, so
    it does not depend on who else is stacked.
    """
    count = ceil(len(lesson.positive) / recipe.batch)
    steps: list[Step] = []
    for epoch in range(recipe.epochs):
        draw = numpy_generator(recipe.seed, "batches", lesson.user, epoch)
        parts = {
            kind: np.array_split(draw.permutation(len(getattr(lesson, kind))), count)
            for kind in ("positive", "unlabeled", "negative")
        }
        for t in range(count):
            step = {k: [getattr(lesson, k)[i] for i in parts[k][t]] for k in parts}
            own, aux = parts["positive"][t], parts["unlabeled"][t]
            step["rejected"] = _paired(lesson.rejected, own)
            step["mismatched"] = _paired(lesson.mismatched, own)
            step["mismatched"] += _paired(lesson.mismatched, aux + len(lesson.positive))
            steps.append(step)
    return steps


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
        users = len(self.flat)
        gradients = [
            torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            for leaf in self.leaves
        ]
        for leaf in self.leaves:
            leaf.grad = None
        return torch.cat([gradient.reshape(users, -1) for gradient in gradients], dim=1)


def parameters(start: Sequence[Lora], train_a: bool) -> Parameters:
    """Copy the users' adapters into one trainable buffer."""
    whole = stack(start)
    trained = [*whole.a.values(), *whole.b.values()] if train_a else [*whole.b.values()]
    flat = torch.cat([tensor.flatten(1) for tensor in trained], dim=1).float()
    sizes = [tensor[0].numel() for tensor in trained]
    leaves = [
        part.view(tensor.shape).detach().requires_grad_()
        for part, tensor in zip(flat.split(sizes, dim=1), trained, strict=True)
    ]
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
    """Move every user's row of `flat` in place by one Adam step.

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
    active = (rates > 0).unsqueeze(1)
    gradient = clipped(gradient, clip)
    first = decay1 * state.first + (1 - decay1) * gradient
    second = decay2 * state.second + (1 - decay2) * gradient.square()
    steps = state.steps + active[:, 0]
    t = steps.clamp(min=1).unsqueeze(1)
    size = (second / (1 - decay2**t)).sqrt() + eps
    move = rates.unsqueeze(1) * (first / (1 - decay1**t)) / size
    flat -= torch.where(active, move, torch.zeros_like(move))
    first = torch.where(active, first, state.first)
    second = torch.where(active, second, state.second)
    return Adam(first, second, steps)


def sgd_step(flat: Tensor, gradient: Tensor, rates: Tensor, clip: float) -> None:
    """Move every user's row of `flat` in place along its clipped gradient, [K, P].

    A row at rate 0 has finished; its gradient may be anything.
    """
    move = rates.unsqueeze(1) * clipped(gradient, clip)
    flat -= torch.where((rates > 0).unsqueeze(1), move, torch.zeros_like(move))


def clipped(gradient: Tensor, clip: float) -> Tensor:
    """Each user's gradient, of L2 norm at most `clip`, [K, P]."""
    norm = gradient.norm(dim=1, keepdim=True)
    return gradient * (clip / norm.clamp(min=1e-12)).clamp(max=1)


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Linear warm-up over the first share of the steps, then constant; 0 at the end."""
    if step >= steps:
        return 0.0
    warm = max(1, round(recipe.warmup * steps))
    return recipe.learning_rate * min(1.0, (step + 1) / warm)


def train(
    backbone: Backbone,
    shared: Lora | None,
    start: Sequence[Lora],
    lessons: Sequence[Lesson],
    recipe: Recipe,
) -> Trained:
    """Train the adapters of K users on the resident backbone.

    Parameters
    ----------
    backbone, shared
        The frozen reference.
    start
        Each user's adapter to start from.
    lessons
        What each user trains on, at least one positive each.
    recipe
        Objective and budget.

    Returns
    -------
    Trained
        Adapters and logs in the order of `lessons`. A user whose numbers overflow ends
        with non-finite parameters and changes nobody else's.
    """
    plans = [plan(lesson, recipe) for lesson in lessons]
    weights = parameters(start, recipe.train_a)
    zeros = torch.zeros_like(weights.flat)
    state = Adam(zeros, zeros, zeros.new_zeros(len(lessons)))
    means = objectives.zero_means(len(lessons))
    alpha = torch.tensor([lesson.alpha for lesson in lessons])
    lengths = [len(steps) for steps in plans]
    losses, clamps = torch.zeros(len(lessons)), torch.zeros(len(lessons))
    with attached(backbone, shared, weights.stack) as refresh:
        for t in range(max(lengths)):
            steps = [steps[t] if t < len(steps) else {} for steps in plans]
            loss = _backward(backbone, steps, alpha, means, recipe)
            rates = [learning_rate(recipe, t, length) for length in lengths]
            rates = torch.tensor(rates, device=backbone.device)
            if recipe.optimizer == "sgd":
                sgd_step(weights.flat, weights.gradient(), rates, recipe.clip)
            else:
                state = adam_step(
                    weights.flat, weights.gradient(), state, rates, recipe.clip
                )
            refresh()
            means = loss.means
            active = rates.cpu() > 0
            losses = torch.where(active, loss.value.detach(), losses)
            clamps += torch.where(active, loss.clamped, 0)
    delta = objectives.boundary(means)
    logs = [
        {
            "steps": float(lengths[k]),
            "loss": float(losses[k]),
            "clamp_rate": float(clamps[k]) / lengths[k],
            "delta": float(delta[k]),
        }
        for k in range(len(lessons))
    ]
    return Trained(unstack(weights.stack), logs)


def _backward(
    backbone: Backbone,
    steps: Sequence[Step],
    alpha: Tensor,
    means: Means,
    recipe: Recipe,
) -> Loss:
    """Gradient of one optimiser batch into the leaves of the attached stack.

    The loss is a function of the whole batch's log-probabilities. Where the batch fits
    into one pass it is differentiated directly. Otherwise the log-probabilities are
    computed first without gradients, the loss gives the coefficient d loss / d logp of
    each row, and a second pass per microbatch sends that coefficient back. The gradient
    is the same sum, so accumulation changes nothing: not delta, not the clamp.
    """
    rows = {kind: _align([step.get(kind, []) for step in steps]) for kind in KINDS}
    trained = {kind: rows[kind] for kind in TRAINED}
    users = len(steps)
    width = {kind: len(examples[0]) for kind, examples in trained.items()}
    merged = [[e for k in trained for e in trained[k][u]] for u in range(users)]
    passes = _split(merged, recipe.microbatch)

    def logp(examples: list[list[Example | None]]) -> Tensor:
        flat = [e.encoded if e else None for user in examples for e in user]
        return completion_logp(backbone, collate(backbone, flat)).view(users, -1)

    with torch.no_grad():
        mismatched = logp(rows["mismatched"]).cpu() if rows["mismatched"][0] else None
    if len(passes) == 1:
        scores = logp(merged)
        loss = _loss(scores.cpu(), width, rows, mismatched, alpha, means, recipe)
        loss.value.sum().backward()
        return loss
    with torch.no_grad():
        scores = torch.cat([logp(part) for part in passes], dim=1)
    scores.requires_grad_()
    loss = _loss(scores.cpu(), width, rows, mismatched, alpha, means, recipe)
    (coefficients,) = torch.autograd.grad(loss.value.sum(), scores)
    sizes = [len(part[0]) for part in passes]
    for part, share in zip(passes, coefficients.split(sizes, dim=1), strict=True):
        logp(part).backward(share)
    return loss


def _align(kinds: list[list[Example]]) -> list[list[Example | None]]:
    """Fill users up to the same number of rows."""
    width = max(map(len, kinds))
    return [[*examples, *[None] * (width - len(examples))] for examples in kinds]


def _split(
    rows: list[list[Example | None]], size: int
) -> list[list[list[Example | None]]]:
    """Split the rows of every user into passes of at most `size` rows (0: one pass)."""
    width = len(rows[0])
    size = size or width
    return [[user[i : i + size] for user in rows] for i in range(0, width, size)]


def _loss(
    logp: Tensor,
    width: dict[str, int],
    rows: dict[str, list[list[Example | None]]],
    mismatched: Tensor | None,
    alpha: Tensor,
    means: Means,
    recipe: Recipe,
) -> Loss:
    """Apply the recipe's objective to the log-probabilities [K, rows] of a batch."""
    parts = dict(zip(width, logp.split(list(width.values()), dim=1), strict=True))
    scored = {kind: _scored(parts[kind], rows[kind]) for kind in parts}
    positive, unlabeled = scored["positive"], scored["unlabeled"]
    beta, decay = recipe.beta, recipe.decay
    match recipe.method:
        case "sft":
            return objectives.sft(positive, means)
        case "dpo":
            return objectives.dpo(positive, scored["rejected"], means, beta)
        case "kto":
            pairs = torch.zeros(len(logp), 0) if mismatched is None else mismatched
            other = _scored(pairs, rows["mismatched"])
            return objectives.kto(positive, unlabeled, other, means, beta)
        case "bco":
            return objectives.bco(positive, unlabeled, means, beta, decay)
        case "c-bpo" | "positives":
            alone = recipe.method == "positives"
            return objectives.c_bpo(
                positive,
                unlabeled,
                alpha,
                means,
                beta,
                decay,
                negative=scored["negative"] if width["negative"] else None,
                means_over=recipe.boundary,
                weight=0.0 if alone else recipe.unlabeled_weight,
                anchor=recipe.anchor,
                per_token=recipe.reward == "token",
            )
        case _:
            raise ValueError(f"no objective is called {recipe.method!r}")


def _scored(logp: Tensor, rows: list[list[Example | None]]) -> Scored:
    def table(value) -> Tensor:
        return torch.tensor([[value(e) if e else 0.0 for e in user] for user in rows])

    return Scored(
        logp,
        table(lambda e: e.reference).view(logp.shape),
        table(lambda e: float(completion_tokens(e.encoded))).view(logp.shape),
        table(lambda e: e.weight).view(logp.shape),
    )
