"""alpha of one user: fixed by the configuration, or estimated from features."""

import numpy as np

from ..config import Config
from ..data.ngrams import WIDTH, hashed
from ..data.types import User
from ..engine.fitting import encode_all
from ..engine.reference import Reference, content_hash
from ..seeds import numpy_generator
from . import overlap
from .draws import Draw, subset
from .sets import population_share


def alpha_of(
    reference: Reference, user: User, drawn: Draw, config: Config
) -> overlap.Overlap:
    """Estimate alpha where it is a population share; otherwise it is fixed by config."""
    if config.fixed_alpha is not None:
        return overlap.Overlap(config.fixed_alpha, False)
    if config.unlabeled.alpha == "true" and user.truth is not None:
        return overlap.Overlap(min(user.truth.overlap, overlap.HIGHEST), False)
    if not population_share(config.unlabeled):
        return overlap.Overlap(overlap.DEFAULT, False)
    source = drawn.others if config.unlabeled.alpha_items else drawn.entries
    count = config.unlabeled.alpha_items or len(source)
    generator = numpy_generator(config.seed, "overlap", user.id)
    looked = subset(source, count, generator)
    weights = np.array([entry.weight for entry in looked])
    # The generator draws the classifier's folds; its state tells seed and user.
    rest = (weights.tolist(), repr(generator.bit_generator.state))
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
    return reference.once(
        key, lambda: overlap.estimate(*features(), weights, generator)
    )
