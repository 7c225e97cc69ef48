"""Training of users' own adapters.

Pure functions of (reference, users, configuration): no disk, no network. A device calls
them with one user, a simulated node with a stacking group of many; the results are the
same. Users' text does not leave: what is returned are adapters and numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from ..config import SETLESS, Config
from ..data.types import User
from ..engine.adapters import Lora, new_lora, stack
from ..engine.backbone import Encoded
from ..engine.fitting import encode_all
from ..engine.reference import Reference
from ..engine.scoring import score_users
from ..engine.training import Example, Lesson, Recipe, Trained, train
from ..errors import IdiolectError
from ..seeds import derive
from ..unlabeled.alpha import alpha_of
from ..unlabeled.draws import Draw, draw_for
from ..unlabeled.overlap import Overlap
from ..unlabeled.samples import sample_reference
from ..unlabeled.sets import UnlabeledSet


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
    log: dict[str, float] = field(default_factory=dict)
    error: str = ""


def _recipe(method: str, learning_rate: float, config: Config) -> Recipe:
    """How an own adapter is trained."""
    return Recipe(
        method=method,
        learning_rate=learning_rate,
        epochs=config.personalise.epochs,
        batch=config.personalise.batch,
        beta=config.personalise.beta,
        decay=config.personalise.ema,
        boundary="pooled" if config.personalise.boundary == "pooled" else "separate",
        reward="token" if config.personalise.reward == "token" else "sequence",
        unlabeled_weight=config.personalise.unlabeled_weight,
        anchor=config.personalise.anchor,
        microbatch=config.engine.microbatch,
        seed=config.seed,
    )


def personalise(
    reference: Reference,
    users: Sequence[User],
    unlabeled: UnlabeledSet,
    method: str,
    learning_rate: float,
    config: Config,
) -> list[Personal]:
    """Train the own adapter of each user on top of the shared one.

    Parameters
    ----------
    reference
        The frozen reference.
    users
        A stacking group.
    unlabeled
        What the server handed out; a user's own items and own vote are taken out of it
        here. Empty for the kind `self`, whose items are sampled here.
    method, learning_rate, config
        Objective and budget.

    Returns
    -------
    list of Personal
        In the order of `users`. A user whose training overflows has no adapter and an
        error; the others are not affected.
    """
    backbone, shared = reference.backbone, reference.shared
    draws = [draw_for(reference, user, unlabeled, config) for user in users]
    alphas = [
        alpha_of(reference, user, each, config)
        for user, each in zip(users, draws, strict=True)
    ]
    lessons = [
        _lesson(reference, user, each, method, alpha.alpha)
        for user, each, alpha in zip(users, draws, alphas, strict=True)
    ]
    recipe = _recipe("sft" if method == "cope" else method, learning_rate, config)
    start = [
        new_lora(backbone, config.lora, config.seed, "personal", user.id)
        for user in users
    ]
    trained = train(backbone, shared, start, lessons, recipe)
    if method == "cope":
        own = [each.own for each in draws]
        trained = _preferred(reference, users, own, trained, recipe, config)
    results: list[Personal] = []
    for user, each, alpha, lora, log in zip(
        users, draws, alphas, trained.loras, trained.logs, strict=True
    ):
        log = {**log, "truncated": _truncated(each.own), "ess": each.ess}
        results.append(_checked(user, lora, alpha, log))
    return results


def _preferred(
    reference: Reference,
    users: Sequence[User],
    own: Sequence[Sequence[Encoded]],
    tuned: Trained,
    recipe: Recipe,
    config: Config,
) -> Trained:
    """CoPe's second stage (Bu et al. 2025): DPO from SFT adapters, which are its reference.

    One epoch over pairs of a user's own text and one sample of pi_ref at its prompt, so
    that a user's tokens stay fewer than with an unlabeled set as large as the history.
    Published code takes, of several samples, the one with the lowest implicit reward, and
    has a smaller rate and beta in this stage; here they are the run's, as for all methods.
    """
    samples = [
        preference_samples(reference, user, mine, config)
        for user, mine in zip(users, own, strict=True)
    ]
    both = [[*mine, *theirs] for mine, theirs in zip(own, samples, strict=True)]
    adapters = [reference.shared, stack(tuned.loras)]
    scores = score_users(reference.backbone, adapters, both)
    lessons: list[Lesson] = []
    for user, items, logp in zip(users, both, scores, strict=True):
        examples = [Example(e, s) for e, s in zip(items, logp, strict=True)]
        half = len(items) // 2
        lessons.append(Lesson(user.id, examples[:half], rejected=examples[half:]))
    recipe = replace(recipe, method="dpo", epochs=1)
    backbone, shared = reference.backbone, reference.shared
    trained = train(backbone, shared, tuned.loras, lessons, recipe)
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


def _checked(user: User, lora: Lora, alpha: Overlap, log: dict[str, float]) -> Personal:
    tensors = (*lora.a.values(), *lora.b.values())
    # One question to the device, not one for each tensor.
    if torch.stack([tensor.isfinite().all() for tensor in tensors]).all():
        return Personal(user.id, lora, alpha.alpha, alpha.estimated, log)
    error = f"training of user '{user.id}' overflowed: lower the learning rate."
    return Personal(user.id, None, alpha.alpha, alpha.estimated, log, error)


def _truncated(items: Sequence[Encoded]) -> float:
    return float(sum(item.truncated for item in items))


def _lesson(
    reference: Reference, user: User, material: Draw, method: str, alpha: float
) -> Lesson:
    """Give a method what it uses: SFT the history alone, the others contrast and scores."""
    own, aux = material.own, material.aux
    if method in SETLESS:
        return Lesson(user.id, [Example(encoded) for encoded in own])
    if not aux:
        raise IdiolectError(
            f"user '{user.id}' has no unlabeled items to learn '{method}' against: choose "
            "another 'unlabeled.kind', or a method that needs none (sft)."
        )

    def scored(
        items: Sequence[Encoded], weights: Sequence[float] = ()
    ) -> list[Example]:
        scores = reference.scores(items)
        weights = weights or [1.0] * len(items)
        return [
            Example(encoded, logp, weight)
            for encoded, logp, weight in zip(items, scores, weights, strict=True)
        ]

    pairs = (
        mismatched([*own, *aux], reference.backbone.context) if method == "kto" else []
    )
    disliked = (
        encode_all(reference.backbone, user.disliked) if method == "c-bpo" else []
    )
    return Lesson(
        user.id,
        positive=scored(own),
        unlabeled=scored(aux, [entry.weight for entry in material.drawn]),
        negative=scored(disliked),
        mismatched=scored(pairs),
        alpha=alpha,
    )


def mismatched(items: Sequence[Encoded], context: int) -> list[Encoded]:
    """Each prompt with the completion of the next item, cyclically (KTO's KL term)."""
    following = [*items[1:], *items[:1]]
    return [
        Encoded(
            (*item.ids[: item.prompt_length], *after.ids[after.prompt_length :])[
                :context
            ],
            item.prompt_length,
        )
        for item, after in zip(items, following, strict=True)
    ]
