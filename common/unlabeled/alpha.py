"""alpha of one user: from the configuration, from features, and a second opinion."""

import numpy as np

from ..config import Config
from ..data.ngrams import WIDTH, hashed
from ..data.types import User
from ..engine.adapters import Lora, stack
from ..engine.fitting import encode_all
from ..engine.reference import Reference, content_hash
from ..engine.scoring import completion_tokens, score_users
from ..seeds import numpy_generator
from . import overlap, prior
from .draws import Draw, draw, subset
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


# Unlabeled items that a second opinion on alpha looks at, at most.
OPINIONS = 200


def second_opinion(
    reference: Reference, lora: Lora, user: User, drawn: Draw, config: Config
) -> dict[str, float]:
    """Estimate alpha from the implicit rewards of items that training did not see.

    Positives are the user's held-out items, unlabeled are items that were not drawn for
    training: rewards of what was trained on are inflated. Rewards are per token, or their
    length would tell them apart. The estimate is logged beside the one from embeddings;
    it comes after training, so it cannot be what training used.

    Returns
    -------
    dict
        ``prior_alpha``, ``prior_auc``, ``prior_upper``, ``prior_em``, ``prior_reliable``
        (see `prior.estimate`); empty where there is nothing to look at.
    """
    generator = numpy_generator(config.seed, "second opinion", user.id)
    count = min(OPINIONS + len(drawn.aux), len(drawn.others))
    looked = draw(drawn.others, count, generator)
    known = {entry.ids for entry in drawn.aux}
    encoded = encode_all(reference.backbone, [entry.item for entry in looked])
    fresh = [entry for entry in encoded if entry.ids not in known][:OPINIONS]
    own = encode_all(reference.backbone, user.held_out)
    if not fresh or not own:
        return {}
    items = own + fresh
    adapters = [reference.shared, stack([lora])]
    policy = np.array(score_users(reference.backbone, adapters, [items])[0])
    frozen = np.array(reference.scores(items))
    rewards = (policy - frozen) / [completion_tokens(entry) for entry in items]
    if not np.isfinite(rewards).all():
        return {}
    weights = np.ones(len(fresh))
    found = prior.estimate(rewards[: len(own)], rewards[len(own) :], weights)
    return {f"prior_{name}": float(value) for name, value in vars(found).items()}
