"""One user's part in a round of the shared adapter."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import Config
from ..data.types import User
from ..engine.backbone import Backbone
from ..engine.fitting import encode_all
from ..engine.reference import Reference
from ..engine.training import Example, TrainingSet, TrainingSettings, train
from . import sft


def shared_update(
    reference: Reference,
    users: Sequence[User],
    config: Config,
    round_number: int,
    clip: float | None = None,
) -> dict[str, Tensor]:
    """Local training of the shared adapter: each user's change of B.

    SFT on the own history with A frozen (FFA-LoRA, Sun et al. 2024): with one A for all,
    averaging B averages the adapters exactly. Each user's change is clipped to `clip`
    (``adapt.clip`` unless given) in L2 norm over all projections, which bounds the
    influence of one user.

    Returns
    -------
    dict
        Projection -> float32 [len(users), out, r], one row per user.
    """
    settings = update_settings(config)
    data = [training_set(reference.backbone, user, round_number) for user in users]
    start = [reference.adapter] * len(users)
    trained = train(reference.bare, start, data, sft.loss, settings).loras
    rows = {
        name: torch.stack([lora.b[name] - before for lora in trained]).float().cpu()
        for name, before in reference.adapter.b.items()
    }
    return clip_rows(rows, config.adapt.clip if clip is None else clip)


def update_settings(config: Config) -> TrainingSettings:
    """How a user trains the shared adapter in a round.

    Raises
    ------
    ValueError
        The rate is not a number yet (`rates.with_rates`): nothing would be trained.
    """
    if not config.adapt.learning_rate:
        raise ValueError("adapt.learning-rate is 0: ask rates.with_rates first")
    return TrainingSettings(
        learning_rate=config.adapt.learning_rate,
        epochs=1,
        batch=config.adapt.batch,
        memory=config.engine.memory << 20,
        microbatch=config.engine.microbatch,
        train_a=False,
        seed=config.seed,
        optimizer=config.adapt.optimizer,
    )


def training_set(backbone: Backbone, user: User, round_number: int) -> TrainingSet:
    """What a user trains the shared adapter on in a round: the history."""
    items = [Example(one) for one in encode_all(backbone, user.history)]
    return TrainingSet(f"{user.id}/round-{round_number}", items)


def clip_rows(rows: dict[str, Tensor], clip: float) -> dict[str, Tensor]:
    """Scale every user's row so that its L2 norm over all projections is at most `clip`."""
    squares = [tensor.flatten(1).square().sum(1) for tensor in rows.values()]
    norm = torch.stack(squares).sum(0).sqrt()
    factor = (clip / norm.clamp(min=1e-12)).clamp(max=1)
    return {name: tensor * factor[:, None, None] for name, tensor in rows.items()}
