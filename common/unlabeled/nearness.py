"""Nearness: unlabeled items that are about what the user writes about.

A text differs from a user's by what it is about and by how it is written. Drawn near the
user's own *inputs*, the unlabeled items are about the same, and what is left to learn is
the style. Targets are never compared: then style would decide which styles are contrasted.

The choice is made on the device, from what the server handed out and from the device's own
text, and nothing of it leaves: it is post-processing of a release, and costs no privacy.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..config import Config
from ..data.types import Item, Prompt, User
from ..engine.fitting import encode_all
from ..engine.reference import Reference, content_hash
from .sets import Unlabeled, chances
from .votes import Bank, build_bank, whitened_similarity


def inputs_of(items: Sequence[Item]) -> list[str]:
    """What the items are about: their prompts' inputs."""
    return [item.prompt.input.strip() for item in items]


def input_nearness(
    reference: Reference,
    user: User,
    handed: Sequence[Unlabeled],
    others: Sequence[Unlabeled],
    config: Config,
) -> NDArray[np.float64]:
    """How near each unlabeled input is to each own one, in standard deviations.

    Parameters
    ----------
    reference
        Its bare backbone is asked where ``unlabeled.nearness-features`` is `backbone`.
    user
        The n history items are compared.
    handed
        The unlabeled set as handed out; features are fitted on it once for all users.
    others
        The m items of it that this user may draw.
    config
        Which features: cosines of TF-IDF of hashed character n-grams, or of mean hidden
        states whitened on the m items.

    Returns
    -------
    numpy.ndarray
        z [n, m]: each row has mean 0 and variance 1 over the items with an input. Zero
        for an own or unlabeled item without one: it is neither near nor far.
    """
    own = inputs_of(user.history)
    inputs = inputs_of([entry.item for entry in others])
    have = [j for j, text in enumerate(inputs) if text]
    found = np.zeros((len(own), len(inputs)))
    asked = [i for i, text in enumerate(own) if text]
    if not have or not asked:
        return found
    likeness = _ngrams if config.unlabeled.nearness_features == "ngrams" else _states
    every = sorted({*inputs_of([entry.item for entry in handed])} - {""})
    place = {text: row for row, text in enumerate(every)}
    rows = np.array([place[inputs[j]] for j in have])
    near = likeness(reference, every, rows, [own[i] for i in asked])
    found[np.ix_(asked, have)] = standardised(near)
    return found


def standardised(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows with mean 0 and variance 1; a row whose values are all alike is 0."""
    centred = rows - rows.mean(1, keepdims=True)
    spread = rows.std(1, keepdims=True)
    return np.where(spread > 1e-9, centred / np.maximum(spread, 1e-9), 0.0)


def near_draw(
    unlabeled: Sequence[Unlabeled],
    nearness: NDArray[np.float64],
    strength: float,
    count: int,
    generator: np.random.Generator,
) -> list[Unlabeled]:
    """Draw items for the own ones, one after the other, by weight times nearness.

    The own item i draws j among those that are left with probability proportional to
    w_j exp(strength z_ij). Own items take turns in a seeded order. The result's weights
    are 1, and where there are too few items each comes as often as the others, give or
    take one (as in `draws.draw`).

    Parameters
    ----------
    unlabeled
        m items; those of no weight are not drawn, unless none has any.
    nearness
        z, [n, m] (`input_nearness`).
    strength
        0: by weight alone; a large one: the nearest; below 0: the farthest.
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
    left, logs = np.ones(len(able), bool), np.log(weights[able])
    chosen = list(np.tile(able, rounds))
    order = generator.permutation(len(nearness))
    # Each own item chooses for itself. One weight per unlabeled item, its nearness to the
    # own ones taken together, would spend the draw on what the user writes about most.
    for turn in range(rest):
        near = nearness[order[turn % len(order)], able]
        # The largest of log p + Gumbel noise is a draw from p: no overflow at any strength.
        keys = logs + strength * near + generator.gumbel(size=len(able))
        best = int(np.where(left, keys, -np.inf).argmax())
        left[best] = False
        chosen.append(able[best])
    return [replace(unlabeled[int(j)], weight=1.0) for j in chosen]


def _ngrams(
    reference: Reference, every: list[str], rows: np.ndarray, own: list[str]
) -> NDArray[np.float64]:
    """Cosines of TF-IDF of character n-grams: what many inputs have counts for little.

    The few hashed columns of `data.ngrams.hashed`, which weigh all n-grams alike, find
    headlines on other subjects: in inputs of some length common words decide there.
    """

    def fit() -> Bank:
        return build_bank(every)

    bank = reference.bare.once(("inputs by n-grams", content_hash(every)), fit)
    return np.array([bank.similarity(text)[rows] for text in own])


def _states(
    reference: Reference, every: list[str], rows: np.ndarray, own: list[str]
) -> NDArray[np.float64]:
    """Cosines of the bare backbone's mean hidden states, whitened on the candidates."""
    bare = reference.bare

    def embedded(texts: list[str]) -> np.ndarray:
        return bare.embed(encode_all(bare.backbone, readable(bare, texts)))

    handed = bare.once(("inputs", content_hash(every)), lambda: embedded(every))
    return whitened_similarity(handed[rows], embedded(own))


def readable(reference: Reference, inputs: Sequence[str]) -> list[Item]:
    """Inputs as texts of no prompt; of a long one its beginning, which fits."""
    longest, whole = reference.backbone.context // 4, reference.backbone.fits
    items = [Item("", Prompt("", ""), text) for text in inputs]
    return [
        item if whole(item) else replace(item, target=item.target[:longest])
        for item in items
    ]
