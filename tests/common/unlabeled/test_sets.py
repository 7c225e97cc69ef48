"""Votes, and drawing from the unlabeled set."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idiolect.common import config
from idiolect.common.data.ngrams import grams, hashed
from idiolect.common.data.types import Item, Prompt, User
from idiolect.common.unlabeled.draws import (
    draw,
    effective_size,
    subset,
    tempered,
    without_own,
)
from idiolect.common.unlabeled.offers import marks
from idiolect.common.unlabeled.sets import Unlabeled, fingerprint, population_share
from idiolect.common.unlabeled.votes import (
    ballot,
    build_bank,
    vote,
    whitened_similarity,
)


def items(*texts: str) -> list[Item]:
    return [Item(f"i{k}", Prompt("", "p"), text) for k, text in enumerate(texts)]


BANK = items(
    "the harbour opens at dawn",
    "a recipe for plum cake",
    "seven goals in the derby",
    "the plum harvest is early",
    "rain over the northern hills",
)


def test_grams_count_characters_three_to_five():
    counts = grams("abcd")  # padded: " abcd ", so 4 + 3 + 2 n-grams
    assert sum(counts.values()) == 9
    assert sum(grams("aaaa").values()) == 9
    assert max(grams("aaaa").values()) == 2  # "aaa" twice


def test_features_are_the_same_in_every_process():
    # Python's own hash differs between processes; votes over one bank must not.
    code = (
        "from idiolect.common.data.ngrams import *;print(sorted(grams('dawn').items()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == str(sorted(grams("dawn").items()))


def test_hashed_rows_are_square_roots_of_counts_of_length_one():
    texts = ["abcd", "seven goals in the derby", ""]
    rows = hashed(texts, 16)
    assert rows.shape == (3, 16)
    counts = np.zeros(16)
    for bucket, count in grams(texts[1]).items():
        counts[bucket % 16] += count
    np.testing.assert_allclose(rows[1], np.sqrt(counts / counts.sum()))
    assert np.linalg.norm(rows[0]) == pytest.approx(1)
    assert np.isfinite(rows).all()


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


def test_leave_one_out_is_the_sum_of_the_others_votes():
    histories = [
        items("plum cake", "plum jam"),
        items("harbour at dawn"),
        items("derby"),
    ]
    votes = [vote(BANK, history, 2).astype(np.float64) for history in histories]
    total = np.sum(votes, axis=0)
    unlabeled = [Unlabeled(i, float(w)) for i, w in zip(BANK, total, strict=True)]
    user = User("u", tuple(histories[0]), ())
    left = [entry.weight for entry in without_own(unlabeled, user, own_vote=votes[0])]
    np.testing.assert_allclose(left, votes[1] + votes[2], atol=2e-5)
    alone = [Unlabeled(i, float(w)) for i, w in zip(BANK, votes[0], strict=True)]
    assert not any(e.weight for e in without_own(alone, user, own_vote=votes[0]))


def test_a_floor_takes_away_what_is_noise_rather_than_votes():
    noisy = [
        Unlabeled(i, w) for i, w in zip(BANK, [3.0, 0.4, -2.0, 1.5, 0.6], strict=True)
    ]
    user = User("u", (), ())
    left = [entry.weight for entry in without_own(noisy, user, floor=0.5)]
    np.testing.assert_allclose(left, [2.5, 0.0, 0.0, 1.0, 0.1])
    voted = np.array([2.0, 0, 0, 1.5, 0], np.float32)
    left = [e.weight for e in without_own(noisy, user, voted, floor=0.5)]
    np.testing.assert_allclose(left, [0.5, 0.0, 0.0, 0.0, 0.1])


def test_what_a_user_offered_does_not_come_back():
    handed = [Unlabeled(item) for item in BANK]
    user = User("u", (), ())
    left = without_own(handed, user, own_texts={BANK[2].target})
    assert [entry.item for entry in left] == [*BANK[:2], *BANK[3:]]


# --- features of the backbone, buckets, tempering ----------------------------------------


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


def test_marks_count_a_bucket_once_per_user():
    found = marks(BANK, items(BANK[1].target, BANK[1].target, BANK[3].target))
    np.testing.assert_array_equal(found, [0, 1, 0, 1, 0])
    assert not marks(BANK, []).any()


def test_effective_size_closed_form():
    assert effective_size(np.ones(7)) == pytest.approx(7)
    assert effective_size(np.array([1.0, 0, 0])) == pytest.approx(1)
    assert effective_size(np.array([3.0, 1.0])) == pytest.approx(16 / 10)
    assert effective_size(np.zeros(3)) == 0


def test_tempering_flattens_no_more_than_it_must():
    even = [Unlabeled(item, 2.0) for item in BANK]
    assert [e.weight for e in tempered(even)] == [1.0] * 5  # scaled, and not flattened
    peaked = [Unlabeled(i, w) for i, w in zip(BANK, [1e6, 1, 1, 1, 0], strict=True)]
    weights = np.array([e.weight for e in tempered(peaked, share=0.5)])
    assert weights[4] == 0
    assert weights[0] > weights[1] == weights[2] > 0
    assert effective_size(weights) == pytest.approx(0.5 * 4, abs=0.01)
    assert tempered([]) == []


def test_own_items_are_left_out_and_weights_of_other_kinds_stay():
    unlabeled = [Unlabeled(BANK[0], 2.0, "u"), Unlabeled(BANK[1], 3.0, "v")]
    user = User("u", tuple(BANK), ())
    assert without_own(unlabeled, user) == [unlabeled[1]]


def test_drawing_follows_the_weights():
    unlabeled = [
        Unlabeled(item, w) for item, w in zip(BANK, [1, 2, 0, 1, 4], strict=True)
    ]
    generator = np.random.default_rng(0)
    counts = dict.fromkeys(range(5), 0)
    for _ in range(4000):
        (entry,) = draw(unlabeled, 1, generator)
        counts[BANK.index(entry.item)] += 1
    assert counts[2] == 0
    # Each count is binomial; 5 standard deviations alarm falsely once in 10^6.
    for index, weight in enumerate([1, 2, 0, 1, 4]):
        p = weight / 8
        assert abs(counts[index] - 4000 * p) <= 5 * np.sqrt(4000 * p * (1 - p)) + 1e-9


def test_drawing_is_without_replacement_while_it_can_be():
    unlabeled = [
        Unlabeled(item, w) for item, w in zip(BANK, [5, 1, 1, 0, 1], strict=True)
    ]
    generator = np.random.default_rng(1)
    drawn = draw(unlabeled, 4, generator)
    assert sorted(entry.item.id for entry in drawn) == ["i0", "i1", "i2", "i4"]
    assert {entry.weight for entry in drawn} == {1.0}
    many = [entry.item.id for entry in draw(unlabeled, 11, generator)]
    assert len(many) == 11
    assert {many.count(name) for name in ("i0", "i1", "i2", "i4")} == {2, 3}


def test_drawing_copes_with_nothing():
    unlabeled = [Unlabeled(BANK[0], 0.0, "u"), Unlabeled(BANK[1], 0.0, "v")]
    generator = np.random.default_rng(2)
    drawn = draw(unlabeled, 2, generator)
    assert sorted((e.owner, e.weight) for e in drawn) == [("u", 1.0), ("v", 1.0)]
    assert draw([], 3, generator) == []
    assert draw(unlabeled, 0, generator) == []


def test_a_small_subset_is_everything_of_positive_weight():
    entries = [
        Unlabeled(item, w) for item, w in zip(BANK, (2, 0, 1, -1, 3), strict=True)
    ]
    found = subset(entries, 3, np.random.default_rng(0))
    assert [(e.item.id, e.weight) for e in found] == [("i0", 2), ("i2", 1), ("i4", 3)]
    nothing = [replace(entry, weight=0.0) for entry in entries]
    assert len(subset(nothing, 9, np.random.default_rng(0))) == 5


def test_a_large_set_is_sampled_in_proportion_to_its_weights():
    entries = [
        Unlabeled(item, w) for item, w in zip(BANK, (6, 0, 1, -1, 3), strict=True)
    ]
    total = np.zeros(5)
    for seed in range(400):
        found = subset(entries, 2, np.random.default_rng(seed))
        assert sum(e.weight for e in found) == 2
        assert len({e.item.id for e in found}) == len(found)
        for entry in found:
            total[int(entry.item.id[1])] += entry.weight
    # 800 draws: one standard error is at most .018.
    np.testing.assert_allclose(total / 800, [0.6, 0, 0.1, 0, 0.3], atol=0.06)


def test_a_seed_gives_the_same_draw():
    unlabeled = [Unlabeled(item, 1.0) for item in BANK]
    first = draw(unlabeled, 3, np.random.default_rng(7))
    assert first == draw(unlabeled, 3, np.random.default_rng(7))
    assert first != draw(unlabeled, 3, np.random.default_rng(8))


def test_the_fingerprint_sees_every_part():
    entry = Unlabeled(BANK[0], 1.0, "")
    others = [
        Unlabeled(BANK[0], 1.5, ""),
        Unlabeled(BANK[0], 1.0, "u"),
        Unlabeled(BANK[1], 1.0, ""),
    ]
    assert (
        len({fingerprint([one]) for one in [entry, *others]} | {fingerprint([])}) == 5
    )
    assert fingerprint([entry]) == fingerprint([Unlabeled(BANK[0], 1.0, "")])


def test_alpha_is_a_share_only_where_people_wrote_the_text():
    kinds = ("votes", "others", "anonymised", "self", "public")
    shares = {kind: population_share(config.Unlabeled(kind=kind)) for kind in kinds}
    people = {"votes": True, "others": True, "anonymised": True}
    assert shares == {**people, "self": False, "public": False}
    assert not population_share(config.Unlabeled(kind="votes", bank_from="shared"))
