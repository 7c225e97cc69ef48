"""alpha of one user: fixed by the configuration, or estimated from features.

Which functional of the user's and the others' texts each value of ``unlabeled.alpha``
aims at (their names are those of `data.functionals`):

    estimate, calibrated   classifier_mean (the paper's; at most 1/2)
    quantile, best-bin     share_bound
    true                   overlap, exact
    true-bound, true-mean  share_bound and classifier_mean, exact
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..config import ALPHA_EXACT, Config
from ..data.ngrams import WIDTH, hashed
from ..data.types import Item, Truth, User
from ..engine.fitting import encode_all
from ..engine.reference import Reference, content_hash
from ..seeds import numpy_generator
from . import heldout, overlap, shares
from .draws import Draw, subset
from .sets import Unlabeled, population_share


def alpha_of(
    reference: Reference, user: User, drawn: Draw, config: Config
) -> overlap.Overlap:
    """Estimate alpha where it is a population share; otherwise it is fixed by config."""
    rule = config.unlabeled.alpha
    if config.fixed_alpha is not None:
        return overlap.Overlap(config.fixed_alpha, False)
    if rule in ALPHA_EXACT and user.truth is not None:
        return overlap.Overlap(min(known(rule, user.truth), overlap.HIGHEST), False)
    if not population_share(config.unlabeled):
        return overlap.Overlap(overlap.DEFAULT, False)
    source = drawn.others if config.unlabeled.alpha_items else distinct(drawn.entries)
    count = config.unlabeled.alpha_items or len(source)
    generator = numpy_generator(config.seed, "overlap", user.id)
    looked = subset(source, count, generator)
    weights = np.array([entry.weight for entry in looked])
    # The generator draws the classifier's folds; its state tells seed and user.
    rest = (rule, weights.tolist(), repr(generator.bit_generator.state))
    if config.unlabeled.alpha_features == "ngrams":
        own = [item.target for item in user.history]
        aux = [entry.item.target for entry in looked]

        def features() -> tuple[np.ndarray, np.ndarray]:
            rows = [reference.ngrams(text) for text in aux]
            return hashed(own), np.array(rows).reshape(-1, WIDTH)

        key = ("alpha from n-grams", user.id, content_hash(own, aux, rest))
    else:
        aux = encode_all(reference.backbone, [entry.item for entry in looked])

        def features() -> tuple[np.ndarray, np.ndarray]:
            return reference.embed(drawn.own), reference.embed(aux)

        ids = [(e.prompt_length, e.ids) for e in (*drawn.own, *aux)]
        key = ("alpha", user.id, content_hash(len(drawn.own), ids, rest))
    return reference.once(key, lambda: estimated(rule, *features(), weights, generator))


def distinct(drawn: Sequence[Unlabeled]) -> list[Unlabeled]:
    """Each item once, with the sum of its weights.

    A small set is drawn several times over. The classifier is judged on items that it was
    not fitted on: a copy among those would be known to it.
    """
    weights: dict[Item, float] = {}
    for entry in drawn:
        weights[entry.item] = weights.get(entry.item, 0.0) + entry.weight
    return [Unlabeled(item, weight) for item, weight in weights.items()]


def known(rule: str, truth: Truth) -> float:
    """The exact value that a rule of `ALPHA_EXACT` stands for.

    Raises
    ------
    ValueError
        The truth was written by hand and has no functionals.
    """
    if rule == "true":
        return truth.overlap
    if truth.functionals is None:
        raise ValueError(f"'{rule}' needs a truth with functionals")
    exact = truth.functionals
    return exact.share_bound if rule == "true-bound" else exact.classifier_mean


def estimated(
    rule: str,
    target: NDArray[np.float64],
    unlabeled: NDArray[np.float64],
    weights: NDArray[np.float64],
    generator: np.random.Generator,
) -> overlap.Overlap:
    """Estimate alpha by a rule of `ALPHA_ESTIMATES`, from the features of both sides.

    Kept within [0, 0.9]. The default, marked as not estimated, with fewer than 4 items on
    either side.
    """
    if rule not in ("calibrated", "quantile", "best-bin"):
        return overlap.estimate(target, unlabeled, weights, generator)
    found = heldout.probabilities(target, unlabeled, weights, generator)
    if found is None:
        return overlap.Overlap(overlap.DEFAULT, False)
    if rule == "calibrated":
        value = float(np.average(found.unlabeled, weights=weights))
    elif rule == "quantile":
        value = shares.from_quantile(found.own)
    else:
        value = shares.best_bin(found.own, found.unlabeled, weights)
    return overlap.Overlap(min(value, overlap.HIGHEST), True)
