"""What a device computes: its part of the shared adapter, its vote, its own adapter.

Pure functions of (backbone, shared adapter, users, configuration): no disk, no network.
A device calls them with one user, a simulated node with a stacking group of many; the
results are the same. Users' text enters here and does not leave: what is returned are
adapters, numbers, and nothing else.
"""

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..config import SETLESS, Config
from ..data.load import task_of
from ..data.types import Item, Prompt, User
from ..engine.adapters import Lora, new_lora, stack
from ..engine.backbone import Backbone, Encoded
from ..engine.scoring import (
    ReferenceCache,
    embed,
    generate,
    reference_name,
    score_users,
)
from ..engine.training import Example, Lesson, Recipe, Trained, train
from ..errors import IdiolectError
from ..privacy.scrub import OFFERED, offered
from ..seeds import derive, numpy_generator
from ..unlabeled import overlap
from ..unlabeled.sets import (
    NEAREST,
    VOTES,
    WIDTH,
    Unlabeled,
    ballot,
    draw,
    effective_size,
    hashed,
    marks,
    nearest_candidate,
    population_share,
    subset,
    tempered,
    vote,
    whitened_similarity,
    without_own,
)

# Reference scores, and alphas and votes, of this process. Methods share them, and every
# rate that is tried: the reference is frozen, and what they follow from stays the same.
CACHE = ReferenceCache()
FOUND: dict[bytes, Any] = {}
Some = TypeVar("Some")
# Nucleus of the samples that stand for everyone else in the kind `self`: the tail of an
# untuned model is noise that is easy to tell from anybody's text.
SELF_TOP_P = 0.95
SAMPLED_AT_ONCE = 64
# How often one that came out empty is drawn: a policy that ends half of its texts at once
# leaves one in 256 missing.
SELF_ATTEMPTS = 8
# Characters of an offered text (kind `anonymised`): about 256 tokens of English.
LONGEST_OFFER = 1000


def forget() -> None:
    """Drop what is kept here of users' texts, and what follows from them.

    Words of it remain in the tokenizer's own cache until the process ends.
    """
    CACHE.scores.clear()
    FOUND.clear()
    _hashed.cache_clear()


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


def shared_update(
    backbone: Backbone,
    shared: Lora,
    users: Sequence[User],
    config: Config,
    round_number: int,
    clip: float | None = None,
) -> dict[str, Tensor]:
    """Local training of the shared adapter: each user's change of B.

    SFT on the own history with A frozen (FFA-LoRA, Sun et al. 2024): with one A for all,
    averaging B averages the adapters exactly. Each user's change is clipped to `clip`
    (``adapt.clip`` unless given) in L2 norm over all projections, so that one user's pull
    is bounded.

    Returns
    -------
    dict
        Projection -> float32 [len(users), out, r], one row per user.
    """
    recipe = replace(
        _recipe("sft", config.adapt.learning_rate, config),
        epochs=1,
        batch=config.adapt.batch,
        train_a=False,
        optimizer=config.adapt.optimizer,
    )
    lessons = [
        Lesson(
            f"{user.id}/round-{round_number}",
            [Example(encoded) for encoded in encode_all(backbone, user.history)],
        )
        for user in users
    ]
    trained = train(backbone, None, [shared] * len(users), lessons, recipe).loras
    rows = {
        name: torch.stack([lora.b[name] - start for lora in trained]).float().cpu()
        for name, start in shared.b.items()
    }
    return clip_rows(rows, config.adapt.clip if clip is None else clip)


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


def clip_rows(rows: dict[str, Tensor], clip: float) -> dict[str, Tensor]:
    """Scale every user's row so that its L2 norm over all projections is at most `clip`."""
    squares = [tensor.flatten(1).square().sum(1) for tensor in rows.values()]
    norm = torch.stack(squares).sum(0).sqrt()
    factor = (clip / norm.clamp(min=1e-12)).clamp(max=1)
    return {name: tensor * factor[:, None, None] for name, tensor in rows.items()}


def encode_all(backbone: Backbone, items: Sequence[Item]) -> list[Encoded]:
    """Tokens of many items."""
    return [backbone.encode(item) for item in items]


def fitting(backbone: Backbone, user: User) -> tuple[User, int]:
    """Leave out what does not fit into the context even with its input cut away.

    Returns
    -------
    tuple
        The user without such items and rivals, and how many items that were.
    """

    def fit(item: Item) -> bool:
        return fits(backbone, item)

    def kept(items: Sequence[Item]) -> tuple[Item, ...]:
        return tuple(
            replace(item, rivals=tuple(filter(fit, item.rivals)))
            for item in filter(fit, items)
        )

    found = replace(
        user,
        history=kept(user.history),
        held_out=kept(user.held_out),
        disliked=kept(user.disliked),
    )
    counts = [
        len(one.history) + len(one.held_out) + len(one.disliked)
        for one in (user, found)
    ]
    return found, counts[0] - counts[1]


def fits(backbone: Backbone, item: Item) -> bool:
    """Whether an item fits into the context, its input cut away if need be."""
    # A text has about as many bytes as tokens at most: short ones need no second look.
    text = f"{item.prompt.before}{item.prompt.after}{item.target}"
    return len(text.encode()) < backbone.context // 2 or backbone.fits(item)


def too_long(backbone: Backbone, user: User) -> str:
    """Say what a user of `fitting` has nothing left of; empty: there is enough."""
    for items, what in ((user.history, "history"), (user.held_out, "held-out")):
        if not items:
            return (
                f"user '{user.id}' has no {what} item that fits into the context of "
                f"{backbone.context} tokens: raise 'max-length', take a backbone with a "
                "longer context, or set skip-bad-users=true."
            )
    return ""


def personalise(
    backbone: Backbone,
    shared: Lora,
    users: Sequence[User],
    unlabeled: Sequence[Unlabeled],
    method: str,
    learning_rate: float,
    config: Config,
    floor: float = 0.0,
    voters: Collection[str] | None = None,
) -> list[Personal]:
    """Train the own adapter of each user on top of the shared one.

    Parameters
    ----------
    backbone, shared
        The frozen reference.
    users
        A stacking group.
    unlabeled
        What the server handed out; a user's own items and own vote are taken out of it
        here. Empty for the kind `self`, whose items are sampled here.
    method, learning_rate, config
        Objective and budget.
    floor
        Weights of `votes` below it are noise (see `unlabeled.without_own`).
    voters
        Users whose own vote is part of the weights, where these are a release with noise;
        None: the sum is exact and holds everybody's.

    Returns
    -------
    list of Personal
        In the order of `users`. A user whose training overflows has no adapter and an
        error; the others are not affected.
    """
    material = [
        _material(backbone, shared, user, unlabeled, config, floor, voters)
        for user in users
    ]
    alphas = [
        _alpha(backbone, shared, user, each, config)
        for user, each in zip(users, material, strict=True)
    ]
    lessons = [
        _lesson(backbone, shared, user, each, method, alpha.alpha)
        for user, each, alpha in zip(users, material, alphas, strict=True)
    ]
    recipe = _recipe("sft" if method == "cope" else method, learning_rate, config)
    start = [
        new_lora(backbone, config.lora, config.seed, "personal", user.id)
        for user in users
    ]
    trained = train(backbone, shared, start, lessons, recipe)
    if method == "cope":
        own = [each.own for each in material]
        trained = _preferred(backbone, shared, users, own, trained, recipe, config)
    results: list[Personal] = []
    for user, each, alpha, lora, log in zip(
        users, material, alphas, trained.loras, trained.logs, strict=True
    ):
        log = {**log, "truncated": _truncated(each.own), "ess": each.ess}
        results.append(_checked(user, lora, alpha, log))
    return results


def _preferred(
    backbone: Backbone,
    shared: Lora,
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
        preference_samples(backbone, shared, user, mine, config)
        for user, mine in zip(users, own, strict=True)
    ]
    both = [[*mine, *theirs] for mine, theirs in zip(own, samples, strict=True)]
    scores = score_users(backbone, [shared, stack(tuned.loras)], both)
    lessons: list[Lesson] = []
    for user, items, logp in zip(users, both, scores, strict=True):
        examples = [Example(e, s) for e, s in zip(items, logp, strict=True)]
        half = len(items) // 2
        lessons.append(Lesson(user.id, examples[:half], rejected=examples[half:]))
    recipe = replace(recipe, method="dpo", epochs=1)
    trained = train(backbone, shared, tuned.loras, lessons, recipe)
    logs = [
        {**after, "steps": before["steps"] + after["steps"]}
        for before, after in zip(tuned.logs, trained.logs, strict=True)
    ]
    return Trained(trained.loras, logs)


def preference_samples(
    backbone: Backbone,
    shared: Lora,
    user: User,
    own: Sequence[Encoded],
    config: Config,
) -> list[Encoded]:
    """One sample of pi_ref behind the prompt of each item of the history, in its order.

    Drawn user by user, as `self_samples` are. A pair has one prompt, token by token, and
    differs in what follows; an empty sample is one too.
    """
    seed = derive(config.seed, "preference", user.id)
    texts = sample_reference(backbone, shared, user.history, config, seed)
    samples: list[Encoded] = []
    for mine, item, text in zip(own, user.history, texts, strict=True):
        written = backbone.completion(replace(item, target=text))
        ids = (*mine.ids[: mine.prompt_length], *written)
        # Text can have more tokens when it is read than when it was written.
        samples.append(Encoded(ids[: backbone.context], mine.prompt_length))
    return samples


def _checked(
    user: User, lora: Lora, alpha: overlap.Overlap, log: dict[str, float]
) -> Personal:
    tensors = (*lora.a.values(), *lora.b.values())
    # One question to the device, not one for each tensor.
    if torch.stack([tensor.isfinite().all() for tensor in tensors]).all():
        return Personal(user.id, lora, alpha.alpha, alpha.estimated, log)
    error = f"training of user '{user.id}' overflowed: lower the learning rate."
    return Personal(user.id, None, alpha.alpha, alpha.estimated, log, error)


def _truncated(items: Sequence[Encoded]) -> float:
    return float(sum(item.truncated for item in items))


@dataclass(frozen=True)
class Material:
    """What one user learns from.

    Attributes
    ----------
    own, aux
        The history, and the items drawn from the unlabeled set.
    drawn
        The items of `aux`.
    ess
        Effective size of the weights that `aux` was drawn by.
    others
        What it was drawn from; empty where the items were sampled (kind `self`).
    """

    own: list[Encoded]
    aux: list[Encoded]
    drawn: list[Unlabeled]
    ess: float
    others: list[Unlabeled]


def _material(
    backbone: Backbone,
    shared: Lora,
    user: User,
    unlabeled: Sequence[Unlabeled],
    config: Config,
    floor: float = 0.0,
    voters: Collection[str] | None = None,
) -> Material:
    """Encode a user's history and its draw from the unlabeled set.

    The draw depends on (seed, user) only: every method learns from the same items.
    """
    if not user.history:
        raise IdiolectError(
            f"user '{user.id}' has an empty history: nothing to learn from."
        )
    own = encode_all(backbone, user.history)
    count = round(config.unlabeled.ratio * len(own))
    others: list[Unlabeled] = []
    if config.unlabeled.kind == "self":
        drawn = self_samples(backbone, shared, user, own, count, config)
        ess = effective_size(np.ones(len(drawn)))
    else:
        generator = numpy_generator(config.seed, "unlabeled", user.id)
        others = not_own(backbone, user, unlabeled, config, floor, voters)
        drawn = draw(others, count, generator)
        ess = effective_size(np.array([max(entry.weight, 0.0) for entry in others]))
    aux = encode_all(backbone, [entry.item for entry in drawn])
    return Material(own, aux, drawn, ess, others)


def not_own(
    backbone: Backbone,
    user: User,
    unlabeled: Sequence[Unlabeled],
    config: Config,
    floor: float = 0.0,
    voters: Collection[str] | None = None,
) -> list[Unlabeled]:
    """The unlabeled set without this user's part in it, and without the noise's.

    See `personalise` for `floor` and `voters`, `unlabeled.without_own` and, where there
    was noise, `unlabeled.tempered`.
    """
    own_vote, own_texts = None, frozenset[str]()
    voted = voters is None or user.id in voters
    if config.unlabeled.kind == "votes" and voted and unlabeled:
        own_vote = user_vote(backbone, [e.item for e in unlabeled], user, config)
    if config.unlabeled.kind == "anonymised":
        own_texts = frozenset(item.target for item in offers(user, config))
    others = without_own(unlabeled, user, own_vote, own_texts, floor)
    others = [entry for entry in others if fits(backbone, entry.item)]
    return others if voters is None else tempered(others)


def user_vote(
    backbone: Backbone, bank: Sequence[Item], user: User, config: Config
) -> np.ndarray:
    """One user's vote over the bank by the configured features, float32 [m].

    With ``unlabeled.features`` `backbone` these are mean hidden states of the bare
    backbone, without the shared adapter: fixed before anybody's text is touched.
    """
    nearest, latest = NEAREST, user.history[-VOTES:]
    if config.unlabeled.features == "ngrams":
        texts = [[item.target for item in items] for items in (bank, latest)]
        votes = _once((texts, nearest), lambda: vote(bank, latest, nearest))
    else:
        encoded = encode_all(backbone, latest)

        def find() -> np.ndarray:
            candidates = _bank_embeddings(backbone, tuple(bank))
            near = whitened_similarity(candidates, embed(backbone, None, encoded))
            return ballot(near, len(bank), nearest)

        name = reference_name(backbone, None)
        votes = _once((name, encoded, list(bank), nearest), find)
    votes.setflags(write=False)  # whoever asks next gets the same
    return votes


@lru_cache(maxsize=2)
def _bank_embeddings(backbone: Backbone, bank: tuple[Item, ...]) -> np.ndarray:
    short = (_shortened(backbone, item) for item in bank)
    return embed(backbone, None, encode_all(backbone, list(short)))


def _shortened(backbone: Backbone, item: Item) -> Item:
    """An item of which at least the beginning can be read."""
    if fits(backbone, item):
        return item
    return Item(item.id, Prompt("", ""), item.target[: backbone.context // 4])


def offers(user: User, config: Config) -> list[Item]:
    """The user's items that may be offered (kind `anonymised`): scrubbed, few, short."""
    return offered(user.history, OFFERED, LONGEST_OFFER)


def offer_marks(bank: Sequence[Item], user: User, config: Config) -> np.ndarray:
    """Which buckets the user's offers fall into, 1 or 0, float32 [m]."""
    return marks(bank, offers(user, config))


def supported_offers(
    bank: Sequence[Item], supported: Collection[int], user: User, config: Config
) -> list[Item]:
    """The user's offers that fall into a supported bucket; they leave the device."""
    return [
        item
        for item in offers(user, config)
        if nearest_candidate(bank, item) in supported
    ]


def self_samples(
    backbone: Backbone,
    shared: Lora,
    user: User,
    own: Sequence[Encoded],
    count: int,
    config: Config,
) -> list[Unlabeled]:
    """Sample pi_ref at the user's own prompts: nothing crosses users (kind `self`).

    Temperature 1, nucleus 0.95. Drawn user by user, so that the samples do not depend on
    who else is stacked. A sample that is empty, or that has more tokens when it is read
    than when it was written and then does not fit, is drawn again a few times.
    """
    found: dict[int, Unlabeled] = {}
    for attempt in range(SELF_ATTEMPTS):
        missing = [i for i in range(count) if i not in found]
        if not missing:
            break
        asked = [own[i % len(own)] for i in missing]
        again = (attempt,) if attempt else ()
        seed = derive(config.seed, "self", user.id, *again)
        prompts = [entry.ids[: entry.prompt_length] for entry in asked]
        texts = _sampled(backbone, shared, prompts, config, seed)
        for i, text in zip(missing, texts, strict=True):
            item = Item(f"self-{i}", user.history[i % len(own)].prompt, text)
            if text and backbone.fits(item):
                found[i] = Unlabeled(item, 1.0)
    return [found[i] for i in sorted(found)]


def sample_reference(
    backbone: Backbone, shared: Lora, items: Sequence[Item], config: Config, seed: int
) -> list[str]:
    """One sample of pi_ref at the prompt of each item (temperature 1, nucleus 0.95)."""
    encoded = encode_all(backbone, items)
    prompts = [entry.ids[: entry.prompt_length] for entry in encoded]
    texts: list[str] = []
    for start in range(0, len(prompts), SAMPLED_AT_ONCE):
        part = prompts[start : start + SAMPLED_AT_ONCE]
        texts += _sampled(backbone, shared, part, config, derive(seed, start))
    return texts


def _sampled(
    backbone: Backbone,
    shared: Lora,
    prompts: Sequence[Sequence[int]],
    config: Config,
    seed: int,
) -> list[str]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        budget = task_of(config.task).max_new_tokens
        return generate(backbone, [shared], prompts, budget, SELF_TOP_P)


def _alpha(
    backbone: Backbone,
    shared: Lora,
    user: User,
    material: Material,
    config: Config,
) -> overlap.Overlap:
    """Estimate alpha where it is a population share; otherwise it is fixed by config."""
    if config.fixed_alpha is not None:
        return overlap.Overlap(config.fixed_alpha, False)
    if config.unlabeled.alpha == "true" and user.truth is not None:
        return overlap.Overlap(min(user.truth.overlap, overlap.HIGHEST), False)
    if not population_share(config.unlabeled):
        return overlap.Overlap(overlap.DEFAULT, False)
    source = material.others if config.unlabeled.alpha_items else material.drawn
    count = config.unlabeled.alpha_items or len(source)
    generator = numpy_generator(config.seed, "overlap", user.id)
    looked = subset(source, count, generator)
    weights = np.array([entry.weight for entry in looked])
    # The generator draws the classifier's folds; its state tells seed and user.
    rest = (weights.tolist(), generator.bit_generator.state)
    if config.unlabeled.alpha_features == "ngrams":
        own = [item.target for item in user.history]
        aux = [entry.item.target for entry in looked]

        def features() -> tuple[np.ndarray, np.ndarray]:
            rows = [_hashed(text) for text in aux]
            return hashed(own), np.array(rows).reshape(-1, WIDTH)

        name = ""
    else:
        own = material.own
        aux = encode_all(backbone, [entry.item for entry in looked])

        def features() -> tuple[np.ndarray, np.ndarray]:
            return embed(backbone, shared, own), embed(backbone, shared, aux)

        name = reference_name(backbone, shared)
    return _once(
        (name, own, aux, rest),
        lambda: overlap.estimate(*features(), weights, generator),
    )


def _once(parts: object, find: Callable[[], Some]) -> Some:
    """What `find` returns, kept by a hash of all that it follows from."""
    key = hashlib.sha256(repr(parts).encode()).digest()
    if key not in FOUND:
        FOUND[key] = find()
    return FOUND[key]


@lru_cache(maxsize=4096)  # users of one node look at the same set
def _hashed(text: str) -> np.ndarray:
    return hashed([text])[0]


def _lesson(
    backbone: Backbone,
    shared: Lora,
    user: User,
    material: Material,
    method: str,
    alpha: float,
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
        scores = CACHE.get(backbone, shared, items)
        weights = weights or [1.0] * len(items)
        return [
            Example(encoded, logp, weight)
            for encoded, logp, weight in zip(items, scores, weights, strict=True)
        ]

    pairs = mismatched([*own, *aux], backbone.context) if method == "kto" else []
    disliked = encode_all(backbone, user.disliked) if method == "c-bpo" else []
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
