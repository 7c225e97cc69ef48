"""Votes over a bank."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idiolect.common.data import personas
from idiolect.common.data.ngrams import grams
from idiolect.common.data.types import Item, Prompt
from idiolect.common.engine.reference import Reference
from idiolect.common.unlabeled.votes import (
    ballot,
    build_bank,
    user_vote,
    vote,
    whitened_similarity,
)
from tests.common.conftest import config


def items(*texts: str) -> list[Item]:
    return [Item(f"i{k}", Prompt("", "p"), text) for k, text in enumerate(texts)]


BANK = items(
    "the harbour opens at dawn",
    "a recipe for plum cake",
    "seven goals in the derby",
    "the plum harvest is early",
    "rain over the northern hills",
)


def test_similarity_is_the_cosine_of_tf_idf():
    texts = ["abc", "abd", "abc abc"]
    bank = build_bank(texts)
    gram_sets = [grams(text) for text in texts]
    m = len(texts)

    def vector(counts: dict[int, int]) -> dict[int, float]:
        found = {}
        for bucket, count in counts.items():
            df = sum(bucket in other for other in gram_sets)
            found[bucket] = (1 + np.log(count)) * (np.log((1 + m) / (1 + df)) + 1)
        norm = np.sqrt(sum(v * v for v in found.values()))
        return {b: v / norm for b, v in found.items()}

    query = vector(gram_sets[2])
    wanted = [
        sum(query.get(b, 0.0) * v for b, v in vector(counts).items())
        for counts in gram_sets
    ]
    np.testing.assert_allclose(bank.similarity("abc abc"), wanted, atol=1e-12)
    assert bank.similarity("abc abc")[2] == pytest.approx(1.0)


def test_one_item_splits_its_vote_among_the_nearest():
    votes = vote(BANK, items("plum cake"), nearest=2)
    assert sorted(votes.tolist()) == pytest.approx([0, 0, 0, 0.5, 0.5])
    assert votes[1] == votes[3] == 0.5  # the two texts about plums


def test_a_vote_has_norm_at_most_one():
    history = items(*[item.target for item in BANK] * 3)
    votes = vote(BANK, history, nearest=1)
    assert np.linalg.norm(votes) == pytest.approx(1.0)
    np.testing.assert_allclose(
        votes, 1 / np.sqrt(5), rtol=1e-6
    )  # each 3 times, clipped
    short = vote(BANK, history[:1], nearest=3)
    assert short.sum() == pytest.approx(1.0)  # shorter than 1, so not scaled up


def test_only_the_latest_32_items_vote():
    history = items(*[BANK[0].target] * 40, *[BANK[2].target] * 32)
    votes = vote(BANK, history, nearest=1)
    assert votes[2] == pytest.approx(1.0)
    assert votes[0] == 0


def test_a_bank_smaller_than_the_neighbourhood_works():
    votes = vote(BANK[:2], items("plum"), nearest=3)
    np.testing.assert_allclose(votes, [0.5, 0.5])


def test_whitening_keeps_one_wide_direction_from_deciding_who_is_near():
    generator = np.random.default_rng(5)
    bank = generator.normal(size=(300, 12)) * [10.0, *[1.0] * 11] + 50.0
    texts = bank[:40] + generator.normal(size=(40, 12)) * [7.0, *[0.1] * 11]
    found = whitened_similarity(bank, texts)
    assert found.shape == (40, 300)
    assert np.abs(found).max() <= 1 + 1e-9
    centred, rows = bank - bank.mean(0), texts - bank.mean(0)
    norms = np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(centred, axis=1)
    plain = (rows @ centred.T / norms).argmax(1) == np.arange(40)
    whitened = found.argmax(1) == np.arange(40)
    assert plain.mean() < 0.8 < 0.95 < whitened.mean()


def test_a_bank_without_spread_does_not_break_whitening():
    assert np.isfinite(whitened_similarity(np.ones((4, 3)), np.ones((2, 3)))).all()


def test_ballot_closed_form():
    similarities = [np.array([0.1, 0.9, 0.5]), np.array([0.2, 0.8, 0.7])]
    np.testing.assert_allclose(ballot(similarities[:1], 3, 2), [0, 0.5, 0.5])
    both = ballot(similarities, 3, 2)  # (0, 1, 1), of norm sqrt 2
    np.testing.assert_allclose(both, [0, 0.5**0.5, 0.5**0.5], rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.floats(-1, 1), min_size=5, max_size=5), min_size=0, max_size=40
    ),
    st.integers(1, 9),
)
def test_a_vote_never_exceeds_its_sensitivity(similarities, nearest):
    votes = ballot([np.array(row) for row in similarities], 5, nearest)
    assert (votes >= 0).all()
    assert np.linalg.norm(votes.astype(float)) <= 1 + 1e-6


def test_votes_by_hidden_states_are_votes(wide, users):
    settings = config(unlabeled__kind="votes", unlabeled__features="backbone")
    bank = personas.make(settings).public
    vote = user_vote(Reference(wide), bank, users[0], settings)
    assert vote.shape == (8,) and (vote >= 0).all()
    assert 0 < (vote.astype(float) ** 2).sum() <= 1 + 1e-6
    other = user_vote(Reference(wide), bank, users[1], settings)
    assert (vote != other).any()
