"""Votes: how much each item of a public bank resembles a user's own text.

After Private Evolution (Lin et al. 2024; Xie et al. 2024). One user's vote has L2 norm at
most 1, so that the sum of all votes can be released with noise. For the kind `anonymised`
the same likeness sorts scrubbed items of users into buckets by public texts (offers).
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..config import Config
from ..data.ngrams import BUCKETS, grams
from ..data.types import Item, Prompt, User
from ..engine.backbone import Backbone
from ..engine.fitting import encode_all, fits
from ..engine.reference import Reference, content_hash
from ..privacy.scrub import OFFERED, offered

VOTES = 32  # history items that vote
NEAREST = 3  # candidates that one of them votes for
LONGEST_OFFER = 1000  # characters of one offered text: about 256 tokens of English


@dataclass(frozen=True, eq=False)
class Bank:
    """Features of the candidates, as a sparse matrix with rows of length 1.

    Attributes
    ----------
    size
        Number of candidates m.
    row, bucket, value
        The entries: candidate, n-gram bucket, TF-IDF weight, each [entries].
    idf
        Inverse document frequency fitted on the bank, which is public, [buckets].
    """

    size: int
    row: np.ndarray
    bucket: np.ndarray
    value: np.ndarray
    idf: np.ndarray

    def similarity(self, text: str) -> np.ndarray:
        """Cosine between a text and every candidate, float64 [m], in [0, 1]."""
        counts = grams(text)
        buckets = np.array(list(counts), np.int64)
        values = 1 + np.log(np.array(list(counts.values()), float))
        values *= self.idf[buckets]
        query = np.zeros(BUCKETS)
        query[buckets] = values
        products = np.bincount(
            self.row, self.value * query[self.bucket], minlength=self.size
        )
        return products / max(float(np.sqrt((values**2).sum())), 1e-12)


def build_bank(texts: Sequence[str]) -> Bank:
    """Fit the features on the candidates' texts.

    TF is 1 + log(count), IDF is log((1 + m) / (1 + df)) + 1.
    """
    found = [
        (np.fromiter(counts, np.int64), np.fromiter(counts.values(), float))
        for counts in map(grams, texts)
    ]
    sizes = np.array([len(buckets) for buckets, _ in found], np.int64)
    row = np.repeat(np.arange(len(texts)), sizes)
    bucket = np.hstack([np.empty(0, np.int64), *(buckets for buckets, _ in found)])
    counts = np.hstack([np.empty(0), *(counts for _, counts in found)])
    idf = np.log((1 + len(texts)) / (1 + np.bincount(bucket, minlength=BUCKETS))) + 1
    value = (1 + np.log(counts)) * idf[bucket]
    norms = np.sqrt(np.bincount(row, value**2, minlength=len(texts)))
    return Bank(len(texts), row, bucket, value / norms[row], idf)


@lru_cache(maxsize=2)  # public text only
def _cached_bank(texts: tuple[str, ...]) -> Bank:
    return build_bank(texts)


def vote(bank: Sequence[Item], history: Sequence[Item], nearest: int) -> np.ndarray:
    """One user's vote over the bank, by hashed character n-grams (see `ballot`).

    Parameters
    ----------
    bank
        The m candidates.
    history
        The user's items; the latest 32 vote.
    nearest
        s, at most m are used.

    Returns
    -------
    numpy.ndarray
        float32 [m], not negative, of L2 norm at most 1.
    """
    features = _cached_bank(tuple(item.target for item in bank))
    near = (features.similarity(item.target) for item in history[-VOTES:])
    return ballot(near, features.size, nearest)


def ballot(similarities: Iterable[np.ndarray], size: int, nearest: int) -> np.ndarray:
    """Turn similarities into a vote of bounded length.

    Each text gives 1/s to each of its s nearest candidates; the sum v is then clipped,
    v * min(1, 1/||v||_2), which bounds what one user changes (Private Evolution).

    Parameters
    ----------
    similarities
        Of one text to every candidate, [m] each.
    size
        m.
    nearest
        s.

    Returns
    -------
    numpy.ndarray
        float32 [m], not negative, of L2 norm at most 1.
    """
    s = min(nearest, size)
    votes = np.zeros(size)
    for similarity in similarities:
        order = np.argsort(-similarity, kind="stable")
        votes[order[:s]] += 1 / s
    norm = float(np.sqrt((votes**2).sum()))
    return (votes / max(norm, 1.0)).astype(np.float32)


def whitened_similarity(bank: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Cosines between hidden states, whitened on the bank.

    Mean hidden states all point the same way; centred and scaled to unit variance in
    every direction of the bank (Su et al. 2021), they tell texts apart. The bank is
    public, so what is fitted on it costs no privacy. Directions in which the bank varies
    little would amplify noise: a tenth of the mean variance is added to each.

    Parameters
    ----------
    bank, texts
        Embeddings of the candidates [m, d] and of a user's texts [n, d].

    Returns
    -------
    numpy.ndarray
        float64 [n, m].
    """
    centre = bank.mean(0)
    variances, directions = np.linalg.eigh(
        np.cov(bank - centre, rowvar=False, bias=True)
    )
    scale = 1 / np.sqrt(variances.clip(min=0) + 0.1 * max(variances.mean(), 1e-12))

    def white(rows: np.ndarray) -> np.ndarray:
        rows = (rows - centre) @ directions * scale
        return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-12)

    return white(texts) @ white(bank).T


def nearest_candidate(bank: Sequence[Item], item: Item) -> int:
    """Place in the bank of the candidate that resembles an item most."""
    features = _cached_bank(tuple(candidate.target for candidate in bank))
    return int(features.similarity(item.target).argmax())


def user_vote(
    reference: Reference, bank: Sequence[Item], user: User, config: Config
) -> np.ndarray:
    """One user's vote over the bank by the configured features, float32 [m].

    With ``unlabeled.features`` `backbone` these are mean hidden states of the bare
    backbone, without the shared adapter: fixed before anybody's text is touched.
    """
    features, latest = config.unlabeled.features, user.history[-VOTES:]
    bare = reference.bare

    def find() -> np.ndarray:
        if features == "ngrams":
            return vote(bank, latest, NEAREST)
        own = bare.embed(encode_all(bare.backbone, latest))
        near = whitened_similarity(_bank_embeddings(bare, bank), own)
        return ballot(near, len(bank), NEAREST)

    content = content_hash(features, _texts(bank), _texts(latest))
    votes = bare.once(("vote", user.id, content), find)
    votes.setflags(write=False)  # the next caller gets the same array
    return votes


def _texts(items: Sequence[Item]) -> list[list[str]]:
    """Prompts and targets: hidden states depend on both."""
    return [[i.prompt.before, i.prompt.input, i.prompt.after, i.target] for i in items]


def _bank_embeddings(bare: Reference, bank: Sequence[Item]) -> np.ndarray:
    """Mean hidden states of the candidates, [m, d]; computed once for all users."""

    def find() -> np.ndarray:
        short = [_shortened(bare.backbone, item) for item in bank]
        return bare.embed(encode_all(bare.backbone, short))

    return bare.once(("bank", content_hash(_texts(bank))), find)


def _shortened(backbone: Backbone, item: Item) -> Item:
    """An item of which at least the beginning can be read."""
    if fits(backbone, item):
        return item
    return Item(item.id, Prompt("", ""), item.target[: backbone.context // 4])


# --- offers -----------------------------------------------------------------------------


def offers(user: User) -> list[Item]:
    """The user's items that may be offered (kind `anonymised`): scrubbed, few, short."""
    return offered(user.history, OFFERED, LONGEST_OFFER)


def marks(bank: Sequence[Item], items: Sequence[Item]) -> np.ndarray:
    """Which candidates are nearest to one of a user's items: 1 or 0, float32 [m].

    Summed over users: how many people's text resembles a candidate (`anonymised`).
    """
    found = np.zeros(len(bank), np.float32)
    found[[nearest_candidate(bank, item) for item in items]] = 1
    return found


def supported_offers(
    bank: Sequence[Item], supported: Collection[int], user: User
) -> list[Item]:
    """The user's offers that fall into a supported bucket; they leave the device."""
    return [one for one in offers(user) if nearest_candidate(bank, one) in supported]
