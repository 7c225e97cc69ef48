"""One user's draw from the unlabeled set."""

from dataclasses import replace

import numpy as np
import pytest

from idiolect.common.data.types import Item, Prompt, User
from idiolect.common.unlabeled.draws import (
    draw,
    draw_for,
    effective_size,
    not_own,
    subset,
    tempered,
    without_own,
)
from idiolect.common.unlabeled.sets import Unlabeled, UnlabeledSet
from idiolect.common.unlabeled.votes import (
    vote,
)
from tests.common.conftest import CONFIG


def items(*texts: str) -> list[Item]:
    return [Item(f"i{k}", Prompt("", "p"), text) for k, text in enumerate(texts)]


BANK = items(
    "the harbour opens at dawn",
    "a recipe for plum cake",
    "seven goals in the derby",
    "the plum harvest is early",
    "rain over the northern hills",
)


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


def test_a_text_that_two_users_have_is_in_neither_ones_set(reference, users):
    """Of files: one of them may be measured on it. Personas' texts are alike by chance."""
    user, theirs = users[0], users[1].history
    copies = [
        replace(user.held_out[0], id="copy/0"),
        replace(user.history[0], id="copy/1", target="another title"),
    ]
    entries = tuple(Unlabeled(item, 1.0, users[1].id) for item in (*theirs, *copies))
    others = replace(CONFIG.unlabeled, kind="others")
    seen = {}
    for data in ("", "folder"):
        config = replace(CONFIG, data=data, unlabeled=others)
        left = not_own(reference, user, UnlabeledSet(entries), config)
        seen[data] = {entry.item.id for entry in left}
    assert seen[""] - seen["folder"] == {"copy/0", "copy/1"}
    assert seen["folder"] == {item.id for item in theirs}


def test_a_seed_gives_the_same_draw():
    unlabeled = [Unlabeled(item, 1.0) for item in BANK]
    first = draw(unlabeled, 3, np.random.default_rng(7))
    assert first == draw(unlabeled, 3, np.random.default_rng(7))
    assert first != draw(unlabeled, 3, np.random.default_rng(8))


def test_own_items_are_left_out_of_the_unlabeled_set(reference, wide, users, others):
    seen = draw_for(reference, users[0], others, CONFIG).aux
    own = {wide.encode(item).ids for item in users[0].history}
    assert len(seen) == 6
    assert not own & {encoded.ids for encoded in seen}
