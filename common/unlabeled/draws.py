"""One user's draw from the unlabeled set, without that user's own part in it."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..config import Config
from ..data.types import Item, User
from ..engine.backbone import Encoded
from ..engine.fitting import encode_all, fits
from ..engine.reference import Reference
from ..errors import refuse_if
from ..seeds import numpy_generator
from .nearness import input_nearness, near_draw
from .samples import self_samples
from .sets import Unlabeled, UnlabeledSet, chances
from .tokens import token_weights
from .votes import offers, user_vote

# Unlabeled texts that say how often the population uses a token: more of them take time,
# and the own history, which they are compared with, is shorter.
COUNTED = 512


@dataclass(frozen=True)
class Draw:
    """What one user learns from.

    Attributes
    ----------
    own, aux
        The history, and the items drawn from the unlabeled set.
    entries
        The items of `aux`.
    ess
        Effective size of the weights that `aux` was drawn by.
    others
        What it was drawn from; empty where the items were sampled (kind `self`).
    weights
        Of the tokens of `aux`, for C-BPO; empty: 1 (``personalise.unlabeled-tokens``).
    """

    own: list[Encoded]
    aux: list[Encoded]
    entries: list[Unlabeled]
    ess: float
    others: list[Unlabeled]
    weights: list[tuple[float, ...]] = field(default_factory=list)


def draw_for(
    reference: Reference,
    user: User,
    unlabeled: UnlabeledSet,
    config: Config,
    learnt: Sequence[Item] | None = None,
) -> Draw:
    """Encode a user's history and its draw from the unlabeled set.

    The draw depends on (seed, user) only: every method learns from the same items. With
    ``unlabeled.nearness`` items near the user's own inputs (or far from them) come more
    often (`nearness`). Where no own or no unlabeled item has an input there is nothing to
    compare, and the draw is that without nearness. With `learnt` only these items of
    the history are learnt from. The others still count as the user's own part in the set,
    because the user voted with them.
    """
    refuse_if(
        not user.history,
        f"user '{user.id}' has an empty history: nothing to learn from.",
    )
    learner = user if learnt is None else replace(user, history=tuple(learnt))
    own = encode_all(reference.backbone, learner.history)
    count = round(config.unlabeled.ratio * len(own))
    others: list[Unlabeled] = []
    if config.unlabeled.kind == "self":
        drawn = self_samples(reference, learner, own, count, config)
        ess = effective_size(np.ones(len(drawn)))
    else:
        generator = numpy_generator(config.seed, "unlabeled", user.id)
        others = not_own(reference, user, unlabeled, config)
        strength = config.unlabeled.nearness_strength
        near = (
            input_nearness(reference, learner, unlabeled.items, others, config)
            if strength
            else np.zeros((0, 0))
        )
        drawn = (
            near_draw(others, near, strength, count, generator)
            if near.any()
            else draw(others, count, generator)
        )
        ess = effective_size(np.array([max(entry.weight, 0.0) for entry in others]))
    aux = encode_all(reference.backbone, [entry.item for entry in drawn])
    found = Draw(own, aux, drawn, ess, others)
    if config.personalise.unlabeled_tokens == "equal":
        return found
    return replace(found, weights=_differing(reference, user, found, config))


def _differing(
    reference: Reference, user: User, drawn: Draw, config: Config
) -> list[tuple[float, ...]]:
    """Weights of the drawn items' tokens by the set that they were drawn from."""
    generator = numpy_generator(config.seed, "tokens", user.id)
    counted = subset(drawn.others or drawn.entries, COUNTED, generator)
    own, aux = (
        [one.ids[one.prompt_length :] for one in part]
        for part in (drawn.own, drawn.aux)
    )
    usual = [reference.backbone.completion(entry.item) for entry in counted]
    return token_weights(own, usual, [entry.weight for entry in counted], aux)


def not_own(
    reference: Reference, user: User, unlabeled: UnlabeledSet, config: Config
) -> list[Unlabeled]:
    """The unlabeled set without this user's part in it, and without the noise's.

    See `without_own` and, where there was noise, `tempered`. Of other users' texts from
    files those are left out, too, whose input is that of an own or held-out item.
    """
    items, voters = unlabeled.items, unlabeled.voters
    own_vote, own_texts = None, frozenset[str]()
    voted = voters is None or user.id in voters
    if config.unlabeled.kind == "votes" and voted and items:
        own_vote = user_vote(reference, [e.item for e in items], user, config)
    if config.unlabeled.kind == "anonymised":
        own_texts = frozenset(item.target for item in offers(user))
    if config.unlabeled.kind == "others" and config.data:
        # A text that two users have: one of them may be measured on it.
        known = {item.prompt.input for item in (*user.history, *user.held_out)}
        items = tuple(entry for entry in items if entry.item.prompt.input not in known)
    others = without_own(items, user, own_vote, own_texts, unlabeled.floor)
    others = [entry for entry in others if fits(reference.backbone, entry.item)]
    return others if voters is None else tempered(others)


def without_own(
    unlabeled: Sequence[Unlabeled],
    user: User,
    own_vote: np.ndarray | None = None,
    own_texts: Collection[str] = (),
    floor: float = 0.0,
) -> list[Unlabeled]:
    """The unlabeled set as it would be if this user had not taken part.

    Own items are left out, and for `votes` the user's own vote is taken from the sum:
    w_(-u) = max(0, H - v_u - floor), computed on the device, which alone knows v_u.
    Without it a user would train against what the user alone voted for.

    Parameters
    ----------
    unlabeled
        As the server handed it out.
    user
        The user on whose device this runs.
    own_vote
        v_u, float32 [m], if it is part of the weights.
    own_texts
        Targets that this user offered (`anonymised`).
    floor
        Votes below it are noise rather than votes (`sets.VOTE_FLOOR` times the
        noise's standard deviation): 0 without noise.
    """
    rest = [
        entry
        for entry in unlabeled
        if entry.owner != user.id and entry.item.target not in own_texts
    ]
    if own_vote is None and not floor:
        return rest
    own = np.zeros(len(rest)) if own_vote is None else own_vote
    left = [entry.weight - float(v) - floor for entry, v in zip(rest, own, strict=True)]
    # A difference of rounding size is not a vote.
    return _weighted(rest, [weight if weight > 1e-5 else 0.0 for weight in left])


def _weighted(items: Sequence[Unlabeled], weights: Iterable[float]) -> list[Unlabeled]:
    return [
        replace(entry, weight=float(weight))
        for entry, weight in zip(items, weights, strict=True)
    ]


def effective_size(weights: np.ndarray) -> float:
    """(sum w)^2 / sum w^2: how many equal weights would vary as little (Kish 1965)."""
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares if squares else 0.0


def tempered(unlabeled: Sequence[Unlabeled], share: float = 0.2) -> list[Unlabeled]:
    """Weights w^l with the largest l <= 1 that keeps the effective size up.

    After noise a few candidates can hold most of the weight by chance. l is the largest
    with effective_size(w^l) >= share * (candidates of positive weight).
    """
    weights = np.array([max(entry.weight, 0.0) for entry in unlabeled])
    positive = weights > 0
    if not positive.any():
        return list(unlabeled)
    logs = np.log(weights[positive] / weights.max())

    def flat_enough(power: float) -> bool:
        return effective_size(np.exp(power * logs)) >= share * len(logs)

    low, high = (1.0 if flat_enough(1.0) else 0.0), 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if flat_enough(middle) else (low, middle)
    weights[positive] = np.exp(low * logs)
    return _weighted(unlabeled, weights)


def draw(
    unlabeled: Sequence[Unlabeled], count: int, generator: np.random.Generator
) -> list[Unlabeled]:
    """Draw items with probability proportional to their weight.

    Without replacement while there are enough items of positive weight; where there are
    not, each of them comes as often as the others, give or take one. Drawing, rather than
    weighting the loss, keeps its variance low; so all weights of the result are 1.

    Parameters
    ----------
    unlabeled
        The set. If no weight is positive, all items count alike.
    count
        How many to draw.
    generator
        The user's own, seeded.
    """
    weights = chances(unlabeled)
    able = np.flatnonzero(weights)
    if count <= 0 or not len(able):
        return []
    rounds, rest = divmod(count, len(able))
    chance = weights[able] / weights[able].sum()
    chosen = [*np.tile(able, rounds), *generator.choice(able, rest, False, chance)]
    return [replace(unlabeled[int(i)], weight=1.0) for i in chosen]


def subset(
    unlabeled: Sequence[Unlabeled], count: int, generator: np.random.Generator
) -> list[Unlabeled]:
    """At most `count` different items that stand for the set, with weights.

    Everything of positive weight where that is at most `count`; else `count` draws
    with replacement, an item's weight being how often it came. Where no weight is
    positive, all items count alike.
    """
    weights = chances(unlabeled)
    chosen = np.flatnonzero(weights)
    if len(chosen) > count:
        drawn = generator.choice(len(weights), count, p=weights / weights.sum())
        chosen, counts = np.unique(drawn, return_counts=True)
        weights[chosen] = counts
    return _weighted([unlabeled[int(i)] for i in chosen], weights[chosen])
