"""The frozen reference policy pi_ref, and what is computed from it.

A process keeps one store of results, in the `Reference` that it holds: scores, votes and
alphas of users follow from their texts, and are dropped with it or by `Reference.forget`.
"""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import numpy as np

from ..config import Config
from ..data.ngrams import hashed
from .adapters import Lora, hash_lora, zero_shared
from .backbone import Backbone, Encoded, backbone_of
from .scoring import embed, score_users

Some = TypeVar("Some")
# What takes long to compute and is plain data: a training that goes on can be given it.
COSTLY = ("samples", "scores")
NGRAM_ROWS = 4096  # hashed texts that are kept: 8 MB


def content_hash(*parts: object) -> str:
    """SHA-256 of texts and numbers, nested in lists or not."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class _Store:
    """Results by key. Words of the texts stay in the tokenizer's own cache besides."""

    def __init__(self) -> None:
        self.results: dict[tuple[str, ...], Any] = {}
        self.ngrams = lru_cache(NGRAM_ROWS)(lambda text: hashed([text])[0])


@dataclass(frozen=True, eq=False)
class Reference:
    """The backbone with the shared adapter, both frozen.

    Attributes
    ----------
    backbone
        The resident model.
    shared
        The shared adapter; None: the bare backbone.
    """

    backbone: Backbone
    shared: Lora | None = None
    _store: _Store = field(default_factory=_Store, repr=False)

    def with_shared(self, shared: Lora | None) -> "Reference":
        """The same backbone with another shared adapter, and the same store."""
        return Reference(self.backbone, shared, self._store)

    @property
    def adapter(self) -> Lora:
        """The shared adapter where there must be one."""
        if self.shared is None:
            raise ValueError("this reference is the bare backbone")
        return self.shared

    @property
    def bare(self) -> "Reference":
        """The backbone alone."""
        return self.with_shared(None)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the shared adapter (`hash_lora`)."""
        return hash_lora(self.shared)

    @cached_property
    def name(self) -> str:
        """What a result depends on beside the texts: weights, dtype and adapter."""
        return f"{self.backbone.hash} {self.backbone.dtype} {self.hash}"

    def once(self, key: tuple[str, ...], make: Callable[[], Some]) -> Some:
        """Return what `make` returns, computed once for this reference and key.

        Parameters
        ----------
        key
            What the result is, the user's id if it is about one, and a hash of everything
            else that it follows from (`content_hash`).
        make
            Computes it.
        """
        place = (self.name, *key)
        if place not in self._store.results:
            self._store.results[place] = make()
        return self._store.results[place]

    def costly(self) -> list[list[Any]]:
        """Samples and scores that were computed so far, as JSON takes them."""
        found = self._store.results.items()
        return [[*place, result] for place, result in found if place[1] in COSTLY]

    def recall(self, costly: Iterable[Sequence[Any]]) -> None:
        """Know what another process computed, as `costly` returned it there."""
        for *place, result in costly:
            self._store.results[tuple(place)] = result

    def scores(self, items: Sequence[Encoded]) -> list[float]:
        """Log pi_ref(y | x) of the items, computed once for each list of them.

        A list is scored as a whole, though some of its items may be known from another
        one: the last bits of a score depend on the batch, and a resumed run, whose store
        is empty, must get the bits of an unbroken one.
        """
        digest = hashlib.sha256()
        for item in items:
            digest.update(f" {item.prompt_length} {len(item.ids)} ".encode())
            digest.update(array("q", item.ids).tobytes())
            digest.update(array("d", item.weights).tobytes())
        return self.once(
            ("scores", digest.hexdigest()),
            lambda: score_users(self.backbone, [self.shared], [items])[0],
        )

    def embed(self, items: Sequence[Encoded]) -> np.ndarray:
        """Mean hidden state of each item over its completion tokens, float64 [n, d]."""
        return embed(self.backbone, self.shared, items)

    def ngrams(self, text: str) -> np.ndarray:
        """Hashed n-grams of a text, float64 [WIDTH]: users of a node look at the same."""
        return self._store.ngrams(text)

    def forget(self) -> None:
        """Drop everything that was computed, for every adapter on this backbone."""
        self._store.results.clear()
        self._store.ngrams.cache_clear()


def load_reference(config: Config) -> Reference:
    """The resident backbone, with the shared adapter before its first round."""
    backbone = backbone_of(config)
    return Reference(backbone, zero_shared(backbone, config.shared_shape, config.seed))
