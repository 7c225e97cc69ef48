"""Training of users' own adapters.

Pure functions of (reference, users, configuration): no disk, no network. A device calls
them with one user, a simulated node with a stacking group of many; the results are the
same. Users' text does not leave: what is returned are adapters and numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch

from ..config import PERSONAS, SETLESS, Config
from ..config.keys import CROSSED
from ..config.methods import BY_NAME
from ..data.types import Item, User
from ..engine.adapters import Lora, new_lora, scaled
from ..engine.objectives import Loss, Means, ScoredBatch
from ..engine.reference import Reference
from ..engine.training import (
    UNWATCHED,
    Trained,
    TrainingSet,
    TrainingSettings,
    Watch,
    train,
)
from ..errors import refuse_if
from ..unlabeled.alpha import alpha_of
from ..unlabeled.draws import draw_for
from ..unlabeled.samples import disliked_samples
from ..unlabeled.sets import UnlabeledSet
from . import strength
from .examples import newest
from .table import module_of


class Learner(NamedTuple):
    """One user, and what the own adapter is to learn from.

    Attributes
    ----------
    user
        The user, with the whole history.
    own
        Items of the history that are learnt from. The others still count as the user's own
        part in the unlabeled set: the user voted with them.
    start
        The adapter to go on from; None: a new one, which changes nothing yet. The optimiser
        and the warm-up begin anew in both cases.
    """

    user: User
    own: tuple[Item, ...]
    start: Lora | None = None


@dataclass(frozen=True, eq=False)
class Personal:
    """One user's trained adapter. It never leaves the device.

    Attributes
    ----------
    user
        The user's id.
    lora
        The adapter, or None where training failed.
    alpha, estimated
        Preference overlap used, and whether it was estimated or fixed.
    strength
        What the adapter's scaling was multiplied by (`strength`).
    log
        ``steps``, ``loss``, ``clamp_rate``, ``delta``, ``truncated`` (history items
        whose input did not fit), and ``ess`` (effective size of the unlabeled weights).
    error
        Why training failed, else empty.
    """

    user: str
    lora: Lora | None
    alpha: float | None = None
    estimated: bool = False
    strength: float = 1.0
    log: dict[str, float] = field(default_factory=dict)
    error: str = ""


def training_settings(config: Config, learning_rate: float) -> TrainingSettings:
    """How an own adapter is trained; the same for every method."""
    return TrainingSettings(
        learning_rate=learning_rate,
        epochs=config.personalise.epochs,
        batch=config.personalise.batch,
        memory=config.engine.memory << 20,
        microbatch=config.engine.microbatch,
        seed=config.seed,
    )


def with_samples_disliked(
    reference: Reference, user: User, method: str, config: Config
) -> User:
    """A user of files with ``disliked`` samples of pi_ref, where the method uses them.

    Personas come with what they dislike, and owners say it themselves.
    """
    if config.task in PERSONAS or not BY_NAME[method].disliked:
        return user
    found = disliked_samples(reference, user, config.disliked, config)
    return replace(user, disliked=(*user.disliked, *found))


def personalise(
    reference: Reference,
    users: Sequence[User],
    unlabeled: UnlabeledSet,
    method: str,
    learning_rate: float,
    config: Config,
    watch: Watch = UNWATCHED,
) -> list[Personal]:
    """Train the own adapter of each user on top of the shared one.

    Parameters
    ----------
    reference, users
        The frozen reference, and a stacking group.
    unlabeled
        As handed out; each user's own items and own vote are taken out of it here.
    method, learning_rate, config
        Objective and budget.
    watch
        Follows what is done, and can go on with an interrupted training (`train`).

    Returns
    -------
    list of Personal
        In the order of `users`; adapters have their strength (``personalise.strength``).
        A user whose training overflows has no adapter and an error; the others are not
        affected.
    """
    making = partial(learn, reference, unlabeled, method, learning_rate, config)
    learners = [Learner(user, newest(user, config)) for user in users]
    if (fixed := config.fixed_strength) is not None:
        return [_at(one, fixed) for one in making(learners, watch)]
    crossed = config.personalise.strength == CROSSED
    found, trials = (_crossed if crossed else _kept_back)(making, learners, watch)
    watch.phase("fitting the strength")
    strengths = strength.fit(reference, trials)
    return [_at(one, s) for one, s in zip(found, strengths, strict=True)]


Making = Callable[[Sequence[Learner], Watch], list[Personal]]
Trials = list[list[tuple[Lora, tuple[Item, ...]]]]


def _kept_back(
    making: Making, learners: Sequence[Learner], watch: Watch
) -> tuple[list[Personal], Trials]:
    """Adapters of most of each history, and the rest of it to try them on."""
    parts = [strength.kept_back(one.own) for one in learners]
    less = [
        one._replace(own=own) for one, (own, _) in zip(learners, parts, strict=True)
    ]
    found = making(less, watch)
    return found, [
        [(one.lora, kept)] if one.lora else []
        for one, (_, kept) in zip(found, parts, strict=True)
    ]


def _crossed(
    making: Making, learners: Sequence[Learner], watch: Watch
) -> tuple[list[Personal], Trials]:
    """Adapters of each whole history, and others of parts of it, with what they lack.

    Fold by fold, so that no more is in memory than for the adapters themselves.
    """
    trials: Trials = [[] for _ in learners]
    for number in range(strength.FOLDS):
        parts = [strength.fold(one.own, number) for one in learners]
        able = [k for k, (_, kept) in enumerate(parts) if kept]
        less = [learners[k]._replace(own=parts[k][0]) for k in able]
        made = making(less, Watch(phase=watch.phase)) if able else []
        for k, one in zip(able, made, strict=True):
            if one.lora:
                trials[k].append((one.lora, parts[k][1]))
    return making(learners, watch), trials


def _at(one: Personal, by: float) -> Personal:
    """The adapter at a strength."""
    if by == 1 or one.lora is None:
        return replace(one, strength=by)
    return replace(one, lora=scaled(one.lora, by), strength=by)


def learn(  # seven: as `personalise`
    reference: Reference,
    unlabeled: UnlabeledSet,
    method: str,
    learning_rate: float,
    config: Config,
    learners: Sequence[Learner],
    watch: Watch = UNWATCHED,
) -> list[Personal]:
    """Adapters of users, each learnt from some items, from a new adapter or a given one.

    Parameters
    ----------
    reference, unlabeled, method, learning_rate, config, watch
        As `personalise` takes them; the strength is not fitted.
    learners
        A stacking group. Methods without training (``steer``) have no start.
    """
    if config.unlabeled.kind == "self":
        watch.phase("writing texts of the model's own, to compare with")
    draws = [
        draw_for(reference, one.user, unlabeled, config, one.own) for one in learners
    ]
    users = [replace(one.user, history=one.own) for one in learners]
    alphas = [
        alpha_of(reference, user, drawn, config)
        for user, drawn in zip(users, draws, strict=True)
    ]
    for user, drawn in zip(users, draws, strict=True):
        refuse_if(
            method not in SETLESS and not drawn.aux,
            f"user '{user.id}' has no unlabeled items to learn '{method}' against: "
            "choose another 'unlabeled.kind', or a method that needs none (sft).",
        )
    users = [with_samples_disliked(reference, u, method, config) for u in users]
    module = module_of(method)
    watch.phase("reading the texts")
    if BY_NAME[method].rated:
        data = [
            module.training_set(reference, user, drawn, alpha.alpha)
            for user, drawn, alpha in zip(users, draws, alphas, strict=True)
        ]
        start = [
            one.start
            or new_lora(
                reference.backbone, config.lora, config.seed, "personal", one.user.id
            )
            for one in learners
        ]
        trained = _fitted(reference, start, data, method, learning_rate, config, watch)
    else:
        trained = module.made(reference, draws, config)
    if hasattr(module, "second_stage"):
        settings = training_settings(config, learning_rate)
        trained = module.second_stage(
            reference, users, draws, trained, settings, config
        )
    results: list[Personal] = []
    for user, drawn, alpha, lora, log in zip(
        users, draws, alphas, trained.loras, trained.logs, strict=True
    ):
        truncated = float(sum(item.truncated for item in drawn.own))
        log = {**log, "truncated": truncated, "ess": drawn.ess}
        found = Personal(user.id, lora, alpha.alpha, alpha.estimated, log=log)
        tensors = (*lora.a.values(), *lora.b.values(), *lora.bias.values())
        # One question to the device, not one for each tensor.
        if not torch.stack([tensor.isfinite().all() for tensor in tensors]).all():
            error = f"training of user '{user.id}' overflowed: lower the learning rate."
            found = replace(found, lora=None, error=error)
        results.append(found)
    return results


def _fitted(  # seven: what is trained, on what, how, and who watches
    reference: Reference,
    start: Sequence[Lora],
    data: Sequence[TrainingSet],
    method: str,
    learning_rate: float,
    config: Config,
    watch: Watch,
) -> Trained:
    """Adapters trained by a method's loss."""
    module = module_of(method)

    def loss(batch: ScoredBatch, means: Means) -> Loss:
        return module.loss(batch, means, config.personalise)

    settings = training_settings(config, learning_rate)
    return train(reference, start, data, loss, settings, watch)
