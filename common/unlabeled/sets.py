"""The unlabeled set: what stands for "everyone else" (guarantees: `docs/privacy.md`).

Five kinds, which all end as items with weights:

`votes`
    A bank of public items; each user votes for those that resemble the own text, and the
    sum of all votes is the weight. After Private Evolution (Lin et al. 2024; Xie et al.
    2024): one user's vote has L2 norm <= 1, so the sum can be released with noise.
`self`
    Made on the device: samples from the reference policy at the user's own prompts.
`public`
    A file of items, all of one weight.
`anonymised`
    The users' own items, scrubbed, and only those whose like enough users have. **Not
    differentially private**: each is still one person's text.
`others`
    The other users' raw history, in a simulation only: the paper's setting.

A device never trains on the whole set: it draws as many items as it needs (`draw`).
"""

import hashlib
import json
import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import lru_cache

import numpy as np

from .. import config
from ..data.types import Item, User

BUCKETS = 1 << 16
GRAMS = (3, 4, 5)
WIDTH = 256  # columns of `hashed`: 1,024 rank users hardly better, in twice the time
LONGEST = 2000  # characters of a text that are looked at
VOTES = 32  # history items that vote
NEAREST = 3  # candidates that one of them votes for
VOTE_FLOOR = 0.5  # noisy votes below this many standard deviations count as none


@dataclass(frozen=True)
class Unlabeled:
    """One item of the unlabeled set.

    Attributes
    ----------
    item
        Prompt and text.
    weight
        How often it should be drawn, relative to the others. For `votes` it is the sum
        H of all users' votes and of the noise, from which a device takes its own vote
        (`without_own`); it can be negative.
    owner
        The user who wrote it (`others` only), so that nobody trains against own text.
    """

    item: Item
    weight: float = 1.0
    owner: str = ""


def population_share(settings: config.Unlabeled) -> bool:
    """Whether alpha means a share of the population that can be estimated.

    `others`, `anonymised`, and `votes` over a bank that people wrote: yes. `self`,
    `public`, and a bank that the model wrote: a classifier would separate machine from
    human text, or domain from domain; alpha is only a knob.
    """
    if settings.kind == "votes":
        return settings.bank_from == "public"
    return settings.kind in ("others", "anonymised")


def fingerprint(unlabeled: Sequence[Unlabeled]) -> str:
    """SHA-256 of items, weights and owners; what an adapter was trained against."""
    digest = hashlib.sha256()
    for entry in unlabeled:
        line = json.dumps(astuple(entry))
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


# --- features ------------------------------------------------------------------------


def grams(text: str) -> dict[int, int]:
    """Bucket -> count of the character 3-, 4- and 5-grams of a text.

    The hash is CRC-32, which is the same in every process (Python's own is not).
    """
    counts: dict[int, int] = {}
    padded = f" {text[:LONGEST].strip()} "
    for n in GRAMS:
        for start in range(len(padded) - n + 1):
            bucket = zlib.crc32(padded[start : start + n].encode()) % BUCKETS
            counts[bucket] = counts.get(bucket, 0) + 1
    return counts


def hashed(texts: Sequence[str], width: int = WIDTH) -> np.ndarray:
    """Square roots of n-gram counts, hashed to a few columns, float64 [n, width].

    Rows have length 1. The square root keeps what a text repeats from drowning the rest.
    """
    counts = np.zeros((len(texts), width))
    for row, text in enumerate(texts):
        for bucket, count in grams(text).items():
            counts[row, bucket % width] += count
    roots = np.sqrt(counts)
    return roots / np.linalg.norm(roots, axis=1, keepdims=True).clip(1e-12)


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
        values = (1 + np.log(np.array(list(counts.values()), float))) * self.idf[
            buckets
        ]
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
    rows: list[int] = []
    buckets: list[int] = []
    counts: list[int] = []
    for row, text in enumerate(texts):
        found = grams(text)
        rows += [row] * len(found)
        buckets += found.keys()
        counts += found.values()
    row, bucket = np.array(rows, np.int64), np.array(buckets, np.int64)
    frequency = np.bincount(bucket, minlength=BUCKETS)
    idf = np.log((1 + len(texts)) / (1 + frequency)) + 1
    value = (1 + np.log(np.array(counts, float))) * idf[bucket]
    norms = np.sqrt(np.bincount(row, value**2, minlength=len(texts)))
    return Bank(len(texts), row, bucket, value / norms[row], idf)


@lru_cache(maxsize=2)
def _cached_bank(texts: tuple[str, ...]) -> Bank:
    return build_bank(texts)


# --- votes ---------------------------------------------------------------------------


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
    public, so what is fitted on it costs no privacy. Directions in which the bank hardly
    varies would be noise blown up: a tenth of the mean variance is added to each.

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


def marks(bank: Sequence[Item], items: Sequence[Item]) -> np.ndarray:
    """Which candidates are nearest to one of a user's items: 1 or 0, float32 [m].

    Summed over users: how many people's text resembles a candidate (`anonymised`).
    """
    found = np.zeros(len(bank), np.float32)
    found[[nearest_candidate(bank, item) for item in items]] = 1
    return found


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
        Votes below it are noise rather than votes (`VOTE_FLOOR` times the
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
    return [
        # A difference of rounding size is no vote.
        Unlabeled(entry.item, weight if weight > 1e-5 else 0.0, entry.owner)
        for entry, weight in zip(rest, left, strict=True)
    ]


# --- drawing -------------------------------------------------------------------------


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

    low, high = 0.0, 1.0
    if flat_enough(high):
        low = high
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if flat_enough(middle) else (low, middle)
    weights[positive] = np.exp(low * logs)
    return [
        Unlabeled(entry.item, float(weight), entry.owner)
        for entry, weight in zip(unlabeled, weights, strict=True)
    ]


def _weights(unlabeled: Sequence[Unlabeled]) -> np.ndarray:
    """Weights, none below zero; where none is positive, all items count alike."""
    weights = np.array([max(entry.weight, 0.0) for entry in unlabeled])
    return weights if weights.any() else np.ones(len(unlabeled))


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
    weights = _weights(unlabeled)
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

    Everything of positive weight where that is no more than `count`; else `count` draws
    with replacement, an item's weight being how often it came. Where no weight is
    positive, all items count alike.
    """
    weights = _weights(unlabeled)
    chosen = np.flatnonzero(weights)
    if len(chosen) > count:
        drawn = generator.choice(len(weights), count, p=weights / weights.sum())
        chosen, counts = np.unique(drawn, return_counts=True)
        weights[chosen] = counts
    return [replace(unlabeled[int(i)], weight=float(weights[i])) for i in chosen]
