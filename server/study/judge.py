"""Whose text is this? Author verification that no method was trained on.

A classifier answers "are these two sets of texts by one author?" from how they are written
(`common.data.stylometry`). It is fitted on other people's texts. Each user's outputs are
then compared with the histories of that user and of others: is the right one first?

No output is judged alone. The *ceiling* are held-out texts of the same user in place of
outputs, the *floor* are texts of authors who are not among the candidates, as in arXiv
2604.26460. Where the two do not differ clearly, authors cannot be told apart, and no
method gets a number. Outputs have the topics of the user's prompts too: what that alone
does is the row of `base` or `shared`.

Outputs are texts of users. They are at hand in a study, which is one process. From a device
or a simulated node they never leave, so a run with messages has no such metric.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np

from ...common.data.stylometry import content_similarity, features
from ...common.data.types import User
from ...common.seeds import numpy_generator
from ...common.unlabeled.overlap import ridge_logistic
from ..run.results import bootstrap, summarise

CANDIDATES = 8
# Authors to fit on: with fewer the coefficients are chance, with more nothing is gained.
FEWEST_AUTHORS, MOST_AUTHORS = 4, 64
# Random divisions of each author's texts into a known and a questioned part.
SPLITS = 20
# Of the mean reciprocal rank: the interval of ceiling - floor has to lie above it. It is
# about a quarter of the floor among eight, .34.
MARGIN = 0.1
# Strength of the ridge, weak: it is divided by the number of pairs (ten authors: 2,000),
# and there are eight coefficients.
RIDGE = 10.0

Texts = Sequence[str]
Rows = list[np.ndarray]
"""An array [n, d] for each family of features."""


@dataclass(frozen=True)
class Judge:
    """A fitted classifier of pairs.

    Attributes
    ----------
    centre, scale
        For each family, mean and standard deviation of a text's features [d].
    spread
        Standard deviation of the features of a pair [p].
    weights
        Coefficients [p]; a larger score means "by one author". There is no constant: it
        cancels where candidates are ranked.
    """

    centre: Rows
    scale: Rows
    spread: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Calibration:
    """What outputs are judged by.

    Attributes
    ----------
    judge
        Fitted on others.
    users
        The evaluated users, whose histories are the candidates.
    known
        `profiles` of those histories.
    section
        Of ``results.json``: ``candidates``, ``authors`` (fitted on), ``words`` (of the
        held-out texts, mean over users), ``margin``, ``apart``, ``difference`` (interval
        of ceiling - floor), and the rows ``ceiling`` and ``floor``. The floor's mean over
        users is chance, because strangers' texts have to look like somebody; for a single
        user it says how much everything resembles that history.
    """

    judge: Judge
    users: tuple[User, ...]
    known: Rows
    section: dict[str, Any]


def calibrate(
    users: Sequence[User],
    others: Sequence[User],
    seed: int,
    resamples: int = 2000,
    candidates: int = CANDIDATES,
) -> Calibration | None:
    """Fit a judge on others, and find whether it tells the users apart.

    Parameters
    ----------
    users
        Whose outputs are to be judged.
    others
        Other people (development users). Their histories fit the judge, and their held-out
        texts are the floor.
    seed, resamples
        Of the divisions and the bootstrap.
    candidates
        How many authors a text is ranked among.

    Returns
    -------
    Calibration or None
        None with fewer users than candidates, or with fewer than 4 others who have 2
        texts.
    """
    authors = [u for u in others if len(u.history) > 1][:MOST_AUTHORS]
    if len(users) < candidates or len(authors) < FEWEST_AUTHORS:
        return None
    asked = [_held_out(user) for user in users]
    size = round(float(np.mean([len(texts) for texts in asked])))
    judge = fit([_history(user) for user in authors], size, seed)
    known = profiles(judge, [_history(user) for user in users])
    ceiling = [
        rank(row, place, candidates)
        for place, row in enumerate(scores(judge, asked, known))
    ]
    strangers = scores(judge, [_held_out(user) for user in authors], known)
    floor = [
        _averaged([rank(row, place, candidates) for row in strangers])
        for place in range(len(users))
    ]
    gap = [
        high["recognised-mrr"] - low["recognised-mrr"]
        for high, low in zip(ceiling, floor, strict=True)
    ]
    difference = bootstrap(np.array(gap), seed, resamples)
    words = [sum(len(text.split()) for text in texts) for texts in asked]
    section = {
        "candidates": candidates,
        "authors": len(authors),
        "words": float(np.mean(words)),
        "margin": MARGIN,
        "apart": difference["ci95"][0] > MARGIN,
        "difference": difference,
        "ceiling": summarise(ceiling, seed, resamples),
        "floor": summarise(floor, seed, resamples),
    }
    return Calibration(judge, tuple(users), known, section)


def judged(
    calibration: Calibration, outputs: Mapping[str, Texts]
) -> dict[str, dict[str, float]]:
    """User -> metrics of that user's outputs (`answer_of`), all of them together.

    Returns
    -------
    dict
        ``content``: cosine of content words with what the user wrote, mean over items.
        Where the judge tells authors apart also ``recognised``, the probability that the
        user's own history is the likeliest among `CANDIDATES`, and ``recognised-mrr``.
    """
    users = calibration.users
    places = [i for i, user in enumerate(users) if user.id in outputs]
    texts = [outputs[users[i].id] for i in places]
    found: dict[str, dict[str, float]] = {}
    for place, written in zip(places, texts, strict=True):
        pairs = zip(written, _held_out(users[place]), strict=True)
        alike = [content_similarity(one, other) for one, other in pairs]
        found[users[place].id] = {"content": float(np.mean(alike))}
    if calibration.section["apart"] and places:
        rows = scores(calibration.judge, texts, calibration.known)
        for place, row in zip(places, rows, strict=True):
            count = calibration.section["candidates"]
            found[users[place].id] |= rank(row, place, count)
    return found


def _history(user: User) -> list[str]:
    return [item.target for item in user.history]


def _held_out(user: User) -> list[str]:
    return [item.target for item in user.held_out]


def _averaged(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


# --- the classifier -----------------------------------------------------------------------


def fit(authors: Sequence[Texts], questioned: int, seed: int) -> Judge:
    """Fit the classifier on authors who are not judged.

    Each author's texts are divided at random into questioned ones and the rest, as outputs
    and history will be. Pairs of one author are the positives, pairs of two the negatives;
    both classes weigh the same.

    Parameters
    ----------
    authors
        Two texts of each, or more.
    questioned
        Texts in the questioned part; at most half of an author's.
    seed
        Of the divisions.
    """
    raw = [features(texts) for texts in authors]
    families = [np.concatenate(family) for family in zip(*raw, strict=True)]
    centre = [family.mean(0) for family in families]
    scale = [_positive(family.std(0)) for family in families]
    rows = [_scaled(one, centre, scale) for one in raw]
    generator = numpy_generator(seed, "judge")
    found: list[np.ndarray] = []
    for _ in range(SPLITS):
        asked: list[Rows] = []
        known: list[Rows] = []
        for one in rows:
            order = generator.permutation(len(one[0]))
            cut = max(1, min(questioned, len(order) // 2))
            asked.append([family[order[:cut]].mean(0) for family in one])
            known.append([family[order[cut:]].mean(0) for family in one])
        found.append(_pairs(_transposed(asked), _transposed(known)))
    pairs = np.concatenate([block.reshape(-1, block.shape[-1]) for block in found])
    same = np.tile(np.eye(len(rows), dtype=bool).ravel(), SPLITS)
    balance = np.where(same, 0.5 / same.sum(), 0.5 / (~same).sum())
    spread = _positive(pairs.std(0))
    x = np.c_[(pairs - balance @ pairs) / spread, np.ones(len(pairs))]
    weights = ridge_logistic(x, np.where(same, 1.0, -1.0), balance, RIDGE)
    return Judge(centre, scale, spread, weights[:-1])


def profiles(judge: Judge, sets: Sequence[Texts]) -> Rows:
    """Mean standardised features of each set of texts, [sets, d] for each family."""
    scaled = [_scaled(features(t), judge.centre, judge.scale) for t in sets]
    return _transposed([[family.mean(0) for family in one] for one in scaled])


def scores(judge: Judge, questioned: Sequence[Texts], known: Rows) -> np.ndarray:
    """How much each set of texts looks like each author's (`profiles`), [sets, known]."""
    return (_pairs(profiles(judge, questioned), known) / judge.spread) @ judge.weights


def _scaled(rows: Rows, centre: Rows, scale: Rows) -> Rows:
    return [(x - c) / s for x, c, s in zip(rows, centre, scale, strict=True)]


def _positive(spread: np.ndarray) -> np.ndarray:
    return np.where(spread > 1e-9, spread, 1.0)


def _transposed(sets: Sequence[Rows]) -> Rows:
    """From families of each set to all sets of each family."""
    return [np.array(family) for family in zip(*sets, strict=True)]


def _pairs(one: Rows, other: Rows) -> np.ndarray:
    """For each family cosine and minus mean distance of all pairs, [n, k, 2 families].

    The mean distance of standardised features is Burrows' Delta (2002).
    """
    found: list[np.ndarray] = []
    for a, b in zip(one, other, strict=True):
        lengths = np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
        found.append(a @ b.T / _positive(lengths))
        found.append(-np.array([np.abs(row - b).mean(1) for row in a]))
    return np.stack(found, axis=-1)


def rank(scores: np.ndarray, right: int, candidates: int) -> dict[str, float]:
    """Accuracy and mean reciprocal rank of the right author among drawn candidates.

    It is the mean over all draws of ``candidates - 1`` of the N others: if a of them have
    a higher score, k of those drawn have one with the hypergeometric probability
    C(a, k) C(N - a, candidates - 1 - k) / C(N, candidates - 1). Of equal scores every order
    is as likely.

    Parameters
    ----------
    scores
        Of all authors [N + 1].
    right
        Place of the right one.
    candidates
        At most N + 1.

    Returns
    -------
    dict
        ``recognised`` (chance: 1 / candidates) and ``recognised-mrr``.
    """
    others, drawn = np.delete(scores, right), candidates - 1
    above, tied = (
        int(np.sum(others > scores[right])),
        int(np.sum(others == scores[right])),
    )
    first = reciprocal = 0.0
    for a in range(above, above + tied + 1):
        for k in range(min(a, drawn) + 1):
            ways = comb(a, k) * comb(len(others) - a, drawn - k)
            chance = ways / comb(len(others), drawn) / (tied + 1)
            first += chance * (k == 0)
            reciprocal += chance / (k + 1)
    return {"recognised": first, "recognised-mrr": reciprocal}
