"""Training examples of one user, from the own text and the drawn items."""

from collections.abc import Sequence
from dataclasses import replace

from ..config import Config
from ..data.types import Item, User
from ..engine.backbone import Encoded
from ..engine.fitting import encode_all
from ..engine.reference import Reference
from ..engine.training import Example, TrainingSet
from ..unlabeled.draws import Draw


def newest(user: User, config: Config) -> tuple[Item, ...]:
    """The part of a history that own adapters learn from (``personalise.items``)."""
    return user.history[-config.personalise.items :]  # all, at 0


def scored(
    reference: Reference, items: Sequence[Encoded], weights: Sequence[float] = ()
) -> list[Example]:
    """Items with their reference scores, and weights (1 unless given)."""
    scores = reference.scores(items)
    return [
        Example(encoded, logp, weight)
        for encoded, logp, weight in zip(
            items, scores, weights or [1.0] * len(items), strict=True
        )
    ]


def against_unlabeled(
    reference: Reference, user: User, drawn: Draw, alpha: float
) -> TrainingSet:
    """The history as positives, and the items drawn from the unlabeled set, with alpha."""
    weights = [entry.weight for entry in drawn.entries]
    return TrainingSet(
        user.id,
        positive=scored(reference, drawn.own),
        unlabeled=scored(reference, drawn.aux, weights),
        alpha=alpha,
    )


def with_disliked(
    reference: Reference, user: User, drawn: Draw, alpha: float
) -> TrainingSet:
    """As `against_unlabeled`, and what the user turned down: known negatives."""
    found = against_unlabeled(reference, user, drawn, alpha)
    disliked = encode_all(reference.backbone, user.disliked)
    return replace(found, negative=scored(reference, disliked))
