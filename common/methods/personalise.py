"""Training of users' own adapters.

Pure functions of (reference, users, configuration): no disk, no network. A device calls
them with one user, a simulated node with a stacking group of many; the results are the
same. Users' text does not leave: what is returned are adapters and numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from ..config import PERSONAS, SETLESS, Config
from ..config.methods import BY_NAME
from ..data.types import User
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
from .table import module_of


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
    if config.unlabeled.kind == "self":
        watch.phase("writing texts of the model's own, to compare with")
    fitted = config.fixed_strength is None
    parts = [strength.kept_back(user) if fitted else (user, ()) for user in users]
    draws = [
        draw_for(reference, whole, unlabeled, config, len(user.history))
        for whole, (user, _) in zip(users, parts, strict=True)
    ]
    users = [user for user, _ in parts]
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
        trained = _fitted(reference, users, data, method, learning_rate, config, watch)
    else:
        trained = module.made(reference, draws, config)
    if hasattr(module, "second_stage"):
        settings = training_settings(config, learning_rate)
        trained = module.second_stage(
            reference, users, draws, trained, settings, config
        )
    strengths = [config.fixed_strength or 0.0] * len(users)
    if fitted:
        watch.phase("fitting the strength")
        texts = [kept for _, kept in parts]
        strengths = strength.fit(reference, trained.loras, texts)
    results: list[Personal] = []
    for user, drawn, alpha, lora, log, by in zip(
        users, draws, alphas, trained.loras, trained.logs, strengths, strict=True
    ):
        truncated = float(sum(item.truncated for item in drawn.own))
        log = {**log, "truncated": truncated, "ess": drawn.ess}
        own = lora if by == 1 else scaled(lora, by)
        found = Personal(user.id, own, alpha.alpha, alpha.estimated, by, log)
        tensors = (*lora.a.values(), *lora.b.values(), *lora.bias.values())
        # One question to the device, not one for each tensor.
        if not torch.stack([tensor.isfinite().all() for tensor in tensors]).all():
            error = f"training of user '{user.id}' overflowed: lower the learning rate."
            found = replace(found, lora=None, error=error)
        results.append(found)
    return results


def _fitted(  # seven: what is trained, on what, how, and who watches
    reference: Reference,
    users: Sequence[User],
    data: Sequence[TrainingSet],
    method: str,
    learning_rate: float,
    config: Config,
    watch: Watch,
) -> Trained:
    """Adapters trained by a method's loss."""
    module = module_of(method)
    start = [
        new_lora(reference.backbone, config.lora, config.seed, "personal", user.id)
        for user in users
    ]

    def loss(batch: ScoredBatch, means: Means) -> Loss:
        return module.loss(batch, means, config.personalise)

    settings = training_settings(config, learning_rate)
    return train(reference, start, data, loss, settings, watch)
