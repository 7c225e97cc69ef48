"""The unlabeled set: what stands for "everyone else" (design and proofs: `docs`).

Four kinds, which all end as items with weights:

`votes`
    A bank of public items; each user votes for those that resemble the own text, and the
    sum of all votes is the weight. After Private Evolution (Lin et al. 2024; Xie et al.
    2024): one user's vote has L2 norm <= 1, so the sum can be released with noise.
`self`
    Made on the device: samples from the reference policy at the user's own prompts.
`public`
    A file of items, all of one weight.
`others`
    The other users' raw history, in a simulation only: the paper's setting.

A device never trains on the whole set: it draws as many items as it needs (`draw`).
"""

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache

import numpy as np

from .tasks.types import Item, User

BUCKETS = 1 << 16
GRAMS = (3, 4, 5)
LONGEST = 2000  # characters of a text that are looked at
VOTES = 32  # history items that vote


@dataclass(frozen=True)
class Unlabeled:
    """One item of the unlabeled set.

    Attributes
    ----------
    item
        Prompt and text.
    weight
        How often it should be drawn, relative to the others. For `votes` it is the sum
        H of all users' votes, from which a device takes its own (`without_own`).
    owner
        The user who wrote it (`others` only), so that nobody trains against own text.
    """

    item: Item
    weight: float = 1.0
    owner: str = ""


def population_share(kind: str) -> bool:
    """Whether alpha means a share of the population that can be estimated.

    `others` and `votes` over human-written text: yes. `self` and `public`: a classifier
    would separate machine from human text, or domain from domain; alpha is only a knob.
    """
    return kind in ("others", "votes")


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
    """One user's vote over the bank.

    Each of the latest 32 history items gives 1/s to each of its s nearest candidates;
    the sum v is then clipped, v * min(1, 1/||v||_2), which bounds what one user changes.

    Parameters
    ----------
    bank
        The m candidates.
    history
        The user's items.
    nearest
        s, at most m are used.

    Returns
    -------
    numpy.ndarray
        float32 [m], not negative, of L2 norm at most 1.
    """
    latest = tuple(item.target for item in history[-VOTES:])
    return _cached_vote(tuple(item.target for item in bank), latest, nearest)


@lru_cache(maxsize=256)  # a device needs its vote again for every method
def _cached_vote(
    bank: tuple[str, ...], texts: tuple[str, ...], nearest: int
) -> np.ndarray:
    features = _cached_bank(bank)
    s = min(nearest, features.size)
    votes = np.zeros(features.size)
    for text in texts:
        order = np.argsort(-features.similarity(text), kind="stable")
        votes[order[:s]] += 1 / s
    norm = float(np.sqrt((votes**2).sum()))
    votes = (votes / max(norm, 1.0)).astype(np.float32)
    votes.setflags(write=False)
    return votes


def without_own(
    unlabeled: Sequence[Unlabeled], user: User, kind: str, nearest: int
) -> list[Unlabeled]:
    """The unlabeled set as it would be if this user had not taken part.

    Own items are left out, and for `votes` the user's own vote is taken from the sum:
    w_(-u) = H - v_u, computed on the device, which alone knows v_u. Without it a user
    would train against what the user alone voted for.

    Parameters
    ----------
    unlabeled
        As the server handed it out.
    user
        The user on whose device this runs.
    kind, nearest
        ``unlabeled.kind`` and ``unlabeled.nearest`` of the run.
    """
    rest = [entry for entry in unlabeled if entry.owner != user.id]
    if kind != "votes" or not rest:
        return rest
    own = vote([entry.item for entry in rest], user.history, nearest)
    left = [entry.weight - float(v) for entry, v in zip(rest, own, strict=True)]
    return [
        # A difference of rounding size is no vote.
        Unlabeled(entry.item, weight if weight > 1e-5 else 0.0, entry.owner)
        for entry, weight in zip(rest, left, strict=True)
    ]


def draw(
    unlabeled: Sequence[Unlabeled],
    count: int,
    generator: np.random.Generator,
    exclude_owner: str = "",
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
    exclude_owner
        A user whose items are left out.
    """
    pool = [e for e in unlabeled if not exclude_owner or e.owner != exclude_owner]
    weights = np.array([max(entry.weight, 0.0) for entry in pool])
    if not weights.any():
        weights = np.ones(len(pool))
    able = np.flatnonzero(weights)
    if count <= 0 or not len(able):
        return []
    rounds, rest = divmod(count, len(able))
    chance = weights[able] / weights[able].sum()
    chosen = [*np.tile(able, rounds), *generator.choice(able, rest, False, chance)]
    return [Unlabeled(pool[i].item, 1.0, pool[i].owner) for i in chosen]
