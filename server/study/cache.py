"""What cells of a study share, and the keys that each of its parts depends on."""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from ...common.config import Config, flatten

Made = TypeVar("Made")

# Keys that do not change what a stage makes. Everything not named here counts.
NOT_TRAINING = (
    "methods",
    "recipe",  # what it sets is in the other keys
    "evaluate.",
    "quorum",
    "deadline",
    "run-name",
    "resume",
)
NOT_SHARED = (
    *NOT_TRAINING,
    "unlabeled.",
    "privacy.vote-sampling",
    "personalise.epochs",
    "personalise.batch",
    "personalise.learning-rates",
    "personalise.beta",
    "personalise.ema",
    "personalise.boundary",
    "personalise.reward",
    "personalise.unlabeled-weight",
    "personalise.anchor",
)
ALPHA = ("unlabeled.alpha", "unlabeled.alpha-features", "unlabeled.alpha-items")
NOT_POOL = (
    *NOT_TRAINING,
    "adapt.",
    "personalise.",
    "lora.",
    "unlabeled.ratio",
    *ALPHA,
)
CBPO_ONLY = (
    "personalise.reward",
    "personalise.unlabeled-weight",
    "personalise.anchor",
)
CONTRAST_ONLY = (
    "personalise.beta",
    "personalise.ema",
    "personalise.boundary",
    *CBPO_ONLY,
)
TRAINING = (
    "unlabeled.",
    "personalise.epochs",
    "personalise.batch",
    "personalise.learning-rates",
    *CONTRAST_ONLY,
)
PROMPTS = "evaluate.retrieved"
DECODING = ("evaluate.contrast", "evaluate.contrasted")
MEANS = ("personalise.ema", "personalise.boundary")
UNUSED = {
    "base": (*TRAINING, PROMPTS, *DECODING),
    "shared": (*TRAINING, PROMPTS, *DECODING),
    "rag": (*TRAINING, *DECODING),
    "pag": (*TRAINING, *DECODING),
    "oppu": ("unlabeled.", *CONTRAST_ONLY, PROMPTS),
    "cope": ("unlabeled.", *MEANS, *CBPO_ONLY, PROMPTS),
    "kto": (*ALPHA, *MEANS, *CBPO_ONLY, PROMPTS),
    "bco": (*ALPHA, "personalise.boundary", *CBPO_ONLY, PROMPTS),
    "positives": (*ALPHA, "personalise.unlabeled-weight", PROMPTS),
    "c-bpo": (PROMPTS,),
}


class Cache:
    """Parts of cells that were made once: the shared adapter, the pool, each method.

    It lives as long as a study runs and can be dropped at any time.
    """

    def __init__(self) -> None:
        self._made: dict[str, object] = {}

    def once(self, part: str, key: str, make: Callable[[], Made]) -> Made:
        """Return what was made of a part for this key, making it if it is not there."""
        place = f"{part} {key}"
        if place not in self._made:
            self._made[place] = make()
        return cast(Made, self._made[place])


def key_of(config: Config, irrelevant: Sequence[str]) -> str:
    """Short hash of a config without the keys (or prefixes ending in ``.``) named.

    Keys of `LATER` count where they are not at their defaults: cells from before they
    existed are still found.
    """
    values = flatten(config).items()
    rest = {
        key: value
        for key, value in values
        if not named_by(key, irrelevant) and (key, value) not in LATER
    }
    return hashlib.sha256(json.dumps(rest).encode()).hexdigest()[:16]


# Keys that came after cells had been written, and what holds without them.
LATER = (("evaluate.rouge-tokens", "english"),)


def named_by(key: str, names: Sequence[str]) -> bool:
    """Whether a key is among names, of which one that ends in ``.`` stands for a table."""
    return any(key == n or (n.endswith(".") and key.startswith(n)) for n in names)
