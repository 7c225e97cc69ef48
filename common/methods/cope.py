"""CoPe: SFT, then DPO against samples of the reference (Bu et al. 2025)."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F

from ..config import Config, Personalise
from ..data.types import User
from ..engine.adapters import stack
from ..engine.backbone import Encoded
from ..engine.objectives import Loss, Means, ScoredBatch, average
from ..engine.reference import Reference
from ..engine.scoring import score_users
from ..engine.training import Example, Trained, TrainingSet, TrainingSettings, train
from ..seeds import derive
from ..unlabeled.draws import Draw
from ..unlabeled.samples import sample_reference
from .sft import loss, training_set

__all__ = ["loss", "second_stage", "training_set"]


def second_stage(
    reference: Reference,
    users: Sequence[User],
    draws: Sequence[Draw],
    tuned: Trained,
    settings: TrainingSettings,
    config: Config,
) -> Trained:
    """DPO from SFT adapters, which are its reference (Bu et al. 2025).

    One epoch over pairs of a user's own text and one sample of pi_ref at its prompt, so
    that a user's tokens stay fewer than with an unlabeled set as large as the history.
    Published code takes, of several samples, the one with the lowest implicit reward, and
    has a smaller rate and beta in this stage; here they are the run's, as for all methods.
    """
    both = [
        [*each.own, *preference_samples(reference, user, each.own, config)]
        for user, each in zip(users, draws, strict=True)
    ]
    adapters = [reference.shared, stack(tuned.loras)]
    scores = score_users(reference.backbone, adapters, both)
    data: list[TrainingSet] = []
    for user, items, logp in zip(users, both, scores, strict=True):
        examples = [Example(e, s) for e, s in zip(items, logp, strict=True)]
        half = len(items) // 2
        data.append(TrainingSet(user.id, examples[:half], rejected=examples[half:]))
    objective = partial(dpo, settings=config.personalise)
    settings = replace(settings, epochs=1)
    trained = train(reference, tuned.loras, data, objective, settings)
    logs = [
        {**after, "steps": before["steps"] + after["steps"]}
        for before, after in zip(tuned.logs, trained.logs, strict=True)
    ]
    return Trained(trained.loras, logs)


def preference_samples(
    reference: Reference,
    user: User,
    own: Sequence[Encoded],
    config: Config,
) -> list[Encoded]:
    """One sample of pi_ref behind the prompt of each item of the history, in its order.

    Drawn user by user, as `self_samples` are. A pair has one prompt, token by token, and
    differs in what follows; an empty sample is one too.
    """
    seed = derive(config.seed, "preference", user.id)
    texts = sample_reference(reference, user.history, config, seed)
    backbone = reference.backbone
    samples: list[Encoded] = []
    for mine, item, text in zip(own, user.history, texts, strict=True):
        written = backbone.completion(replace(item, target=text))
        ids = (*mine.ids[: mine.prompt_length], *written)
        # Text can have more tokens when it is read than when it was written.
        samples.append(Encoded(ids[: backbone.context], mine.prompt_length))
    return samples


def dpo(batch: ScoredBatch, means: Means, settings: Personalise) -> Loss:
    """Direct preference optimisation (Rafailov et al. 2023, equation 7).

        L = E[-log sigmoid(beta ((log pi_theta(y_w|x) - log pi_ref(y_w|x))
                                 - (log pi_theta(y_l|x) - log pi_ref(y_l|x))))]

    y_w are the positives and y_l the rejected, pair by pair. A pair's weight is the
    product of its two. There is no delta: `means` is returned as it is.
    """
    chosen, rejected, beta = batch.positive, batch.rejected, settings.beta
    margin = chosen.reward(beta) - rejected.reward(beta)
    value = average(-F.logsigmoid(margin), chosen.weight * rejected.weight)
    return Loss(value, means, torch.zeros_like(value))
