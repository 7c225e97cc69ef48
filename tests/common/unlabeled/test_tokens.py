"""Weights of tokens by how much rarer they are in the own history."""

from dataclasses import replace

import numpy as np
import pytest

from idiolect.common.config import Config
from idiolect.common.unlabeled.draws import draw_for
from idiolect.common.unlabeled.sets import Unlabeled, UnlabeledSet
from idiolect.common.unlabeled.tokens import token_weights
from tests.common.conftest import config

DIFFERING: Config = config(personalise__unlabeled_tokens="differing")


def test_weights_by_hand():
    own, population = [[1, 1, 1, 2]], [[1, 2, 3], [3, 3, 2]]
    # Expected of 4 own tokens: 2/3, 4/3 and 2; seen: 3, 1 and 0.
    values = {1: 0.0, 2: (4 / 3 - 1) / (4 / 3 + 1), 3: 2 / 3}
    mean = sum(values.values()) / 3
    found = token_weights(own, population, [1.0, 1.0], [[1, 3], [2]])
    assert found[0] == pytest.approx((0.0, values[3] / mean))
    assert found[1] == pytest.approx((values[2] / mean,))


def test_who_writes_like_the_population_has_nothing_to_be_told_apart_by():
    texts = [[1, 2, 3], [3, 2]]
    assert token_weights(texts, texts, [1.0, 1.0], [[1, 2], [], [3]]) == [
        (0.0, 0.0),
        (),
        (0.0,),
    ]
    # Nor has one who uses everything that is in the texts more often.
    assert token_weights([[1]], [[1, 2]], [1.0], [[1]]) == [(0.0,)]


def test_a_share_is_how_often_a_text_counts():
    own, texts = [[1, 2, 4]], [[1, 2, 3, 4]]
    by_share = token_weights(own, [[1, 3], [2, 4], [1]], [2.0, 1.0, 0.0], texts)
    assert by_share == token_weights(own, [[1, 3], [1, 3], [2, 4]], [1.0] * 3, texts)


def test_a_rare_token_weighs_less_and_a_longer_history_tells_more():
    population = [[1] * 40 + [2] * 9 + [3]]
    for times in (1, 10):
        # The own texts have neither 2 nor 3.
        ((two, three),) = token_weights([[1] * 5 * times], population, [1.0], [[2, 3]])
        expected = 0.9 * times, 0.1 * times
        value = [e / (e + 1) for e in expected]
        assert two / three == pytest.approx(value[0] / value[1])
        assert two + three == pytest.approx(2)
    assert two / three < 2  # 9 with no history at all


def test_equal_is_the_draw_as_it_was_and_differing_has_a_mean_of_one(
    reference, users, others
):
    plain = draw_for(reference, users[0], others, config())
    assert plain.weights == []
    drawn = draw_for(reference, users[0], others, DIFFERING)
    assert replace(drawn, weights=[]) == plain
    lengths = [len(one.ids) - one.prompt_length for one in drawn.aux]
    assert list(map(len, drawn.weights)) == lengths
    weights = np.concatenate(drawn.weights)
    assert weights.mean() == pytest.approx(1)
    assert weights.min() >= 0 and weights.std() > 0.1


def test_tokens_are_counted_by_the_weights_of_the_set(reference, users, others):
    """Items of no weight say nothing of the population; samples stand for themselves."""
    kept = [e for e in others.items if e.owner == users[1].id]
    rest = [replace(e, weight=0.0) for e in others.items if e.owner != users[1].id]
    found, same = (
        draw_for(reference, users[0], UnlabeledSet(tuple(items)), DIFFERING)
        for items in (kept, [*kept, *rest])
    )
    assert found.weights == same.weights and len(kept) < len(others.items)
    settings = config(personalise__unlabeled_tokens="differing", unlabeled__kind="self")
    sampled = draw_for(reference, users[0], UnlabeledSet(), settings)
    own, aux = (
        [one.ids[one.prompt_length :] for one in part]
        for part in (sampled.own, sampled.aux)
    )
    assert sampled.weights == token_weights(own, aux, [1.0] * len(aux), aux)


def test_whoever_has_only_the_population_s_words_draws_weights_of_zero(
    reference, users
):
    own = UnlabeledSet(tuple(Unlabeled(item, 1.0, "v") for item in users[0].history))
    drawn = draw_for(reference, users[0], own, DIFFERING)
    assert not np.concatenate(drawn.weights).any()
