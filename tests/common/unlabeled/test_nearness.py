"""Unlabeled items near what a user writes about, and far from it."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from idiolect.common.config import Config, parse
from idiolect.common.data.types import Item, Prompt, User
from idiolect.common.engine.reference import Reference
from idiolect.common.errors import IdiolectError
from idiolect.common.unlabeled.draws import draw_for
from idiolect.common.unlabeled.nearness import (
    input_nearness,
    near_draw,
    standardised,
)
from idiolect.common.unlabeled.sets import Unlabeled, UnlabeledSet
from idiolect.common.unlabeled.votes import user_vote
from tests.common.conftest import config

SEA = ("waves at the harbour wall", "a storm at the harbour", "boats leave the harbour")
CAKE = ("plums baked in a cake", "flour and plums for baking", "a baked plum tart")


def items(name: str, inputs: tuple[str, ...], target: str = "word") -> list[Item]:
    """Each with a text that says nothing of what it is about."""
    return [
        Item(f"{name}-{i}", Prompt("Title: ", text), f"{target} {i}")
        for i, text in enumerate(inputs)
    ]


# Own items about the sea; others wrote about it too, or about cakes. The targets would
# tell the opposite: the cakes' are the user's own words.
USER = User("u", tuple(items("u", SEA, "mine")), ())
OTHERS = UnlabeledSet(
    tuple(
        Unlabeled(item, 1.0, "v")
        for item in (
            *items("sea", ("harbour waves", "the storm at sea", "harbour boats")),
            *items("cake", ("plum cake", "baking a tart", "flour"), "mine"),
        )
    )
)


def near(value: str, **keys: object) -> Config:
    return config(unlabeled__nearness=value, **keys)


def drawn(
    reference: Reference, settings: Config, user=USER, others=OTHERS
) -> list[str]:
    return [e.item.id for e in draw_for(reference, user, others, settings).entries]


@pytest.mark.parametrize(("value", "topic"), [("near", "sea"), ("far", "cake")])
def test_near_is_about_the_same_and_far_is_not(reference, value, topic):
    found = drawn(reference, near(value))
    assert sorted(found) == [f"{topic}-{i}" for i in range(3)]


def test_none_is_the_draw_without_nearness(reference):
    chosen = {tuple(drawn(reference, near(v))) for v in ("none", "0")}
    assert chosen == {tuple(drawn(reference, config()))}


def test_a_strength_between_draws_more_of_what_is_near(reference):
    counts = []
    for value in ("-1", "none", "1"):
        several = [drawn(reference, near(value, seed=seed)) for seed in range(40)]
        counts.append(sum(name.startswith("sea") for one in several for name in one))
    assert counts[0] + 15 < counts[1] < counts[2] - 15


def test_every_own_item_chooses_for_itself():
    """One of three topics is nearest to most own items, and does not take the draw."""
    nearness = np.array([[2.0, 1.9, -1, -1, -1, -1]] * 3 + [[-1, -1, -1, -1, 2.0, 1.9]])
    entries = [Unlabeled(item) for item in items("x", tuple("abcdef"))]
    found = near_draw(entries, nearness, 1e4, 4, np.random.default_rng(0))
    assert {"x-0", "x-1", "x-4"} < {entry.item.id for entry in found}


def test_of_few_draws_other_own_items_choose_in_other_seeds():
    nearness = np.eye(4)
    entries = [Unlabeled(item) for item in items("x", tuple("abcd"))]
    generators = map(np.random.default_rng, range(40))
    found = [near_draw(entries, nearness, 1e4, 1, one) for one in generators]
    assert {one[0].item.id for one in found} == {f"x-{i}" for i in range(4)}


def test_weights_count_among_what_is_equally_near():
    entries = [
        Unlabeled(item, weight)
        for item, weight in zip(
            items("x", tuple("abcd")), (3.0, 1.0, 1.0, -2.0), strict=True
        )
    ]
    nearness = np.array([[1.0, 1.0, -2.0, 2.0]])
    generator = np.random.default_rng(0)
    counts: Counter[str] = Counter()
    for _ in range(2000):
        (entry,) = near_draw(entries, nearness, 10.0, 1, generator)
        assert entry.weight == 1.0
        counts[entry.item.id] += 1
    assert not counts["x-2"] and not counts["x-3"]  # far; nobody voted for it
    # Binomial with p = 3/4: five standard deviations.
    assert abs(counts["x-0"] - 1500) < 5 * np.sqrt(2000 * 0.75 * 0.25)


def test_votes_are_multiplied_by_nearness(reference):
    """With votes: the own vote is taken out first, and what is left decides with it."""
    bank = [entry.item for entry in OTHERS.items]
    settings = near("near", unlabeled__kind="votes", unlabeled__ratio=0.34)
    own = user_vote(reference, bank, USER, settings)
    assert own.any()
    alone = [Unlabeled(i, float(v)) for i, v in zip(bank, own, strict=True)]
    # Others voted for one item only, which is about cakes: nothing near is left.
    voted = [replace(e, weight=e.weight + 5.0 * (n == 3)) for n, e in enumerate(alone)]
    assert drawn(reference, settings, others=UnlabeledSet(tuple(voted))) == ["cake-0"]


def test_where_items_run_out_each_comes_as_often_as_the_others(reference):
    counts = Counter(drawn(reference, near("near", unlabeled__ratio=5.0)))
    assert counts.total() == 15
    assert {counts[f"sea-{i}"] for i in range(3)} == {3}
    assert {counts[f"cake-{i}"] for i in range(3)} == {2}
    assert near_draw([], np.zeros((1, 0)), 1.0, 2, np.random.default_rng(0)) == []


def test_own_items_are_never_drawn(reference):
    own = tuple(Unlabeled(item, 1.0, "u") for item in USER.history)
    with_own = UnlabeledSet((*own, *OTHERS.items))
    found = drawn(reference, near("near", unlabeled__ratio=4.0), others=with_own)
    assert len(found) == 12
    assert {name.split("-")[0] for name in found} == {"sea", "cake"}


def test_the_draw_depends_on_seed_and_user_only(reference, users, others):
    settings = near("2")
    first = drawn(reference, settings, users[0], others)
    drawn(reference, settings, users[1], others)  # another user in between
    bare = Reference(reference.backbone)
    assert drawn(bare, settings, users[0], others) == first
    assert drawn(reference, near("2", seed=1), users[0], others) != first
    renamed = replace(users[0], id="somebody")
    assert drawn(reference, settings, renamed, others) != first


@pytest.mark.parametrize("features", ["ngrams", "backbone"])
def test_items_without_an_input_are_neither_near_nor_far(reference, features):
    settings = near("near", unlabeled__nearness_features=features)
    empty = items("e", ("",), "x")
    user = replace(USER, history=(*USER.history, *empty))
    entries = [*OTHERS.items, Unlabeled(empty[0])]
    found = input_nearness(reference, user, entries, entries, settings)
    assert found.shape == (4, 7)
    assert not found[3].any() and not found[:, 6].any()
    np.testing.assert_allclose(found[:3, :6].mean(1), 0, atol=1e-9)
    np.testing.assert_allclose(found[:3, :6].std(1), 1)


@pytest.mark.parametrize("whose", ["own", "others"])
def test_without_any_input_the_draw_is_that_by_weight(reference, whose):
    """Targets are not compared instead: style would decide what is contrasted."""

    def bare(item: Item) -> Item:
        return replace(item, prompt=Prompt("Title: ", " "))

    user, others = USER, OTHERS
    if whose == "own":
        user = replace(USER, history=tuple(map(bare, USER.history)))
    else:
        entries = tuple(replace(e, item=bare(e.item)) for e in OTHERS.items)
        others = UnlabeledSet(entries)
    plain = drawn(reference, config(), user, others)
    assert drawn(reference, near("near"), user, others) == plain


def test_a_row_of_equal_values_says_nothing():
    rows = standardised(np.array([[1.0, 1.0, 1.0], [0.0, 1.0, 2.0]]))
    assert not rows[0].any()
    np.testing.assert_allclose(rows[1], [-np.sqrt(1.5), 0, np.sqrt(1.5)])


def test_hidden_states_see_inputs_only(reference, users, others):
    """Other targets, other instructions: the same draw. Long inputs are shortened."""
    settings = near("near", unlabeled__nearness_features="backbone")
    first = drawn(reference, settings, users[0], others)

    def other(item: Item) -> Item:
        prompt = replace(item.prompt, before="Say: ")
        return replace(item, prompt=prompt, target="5" if item.target == "1" else "1")

    user = replace(users[0], history=tuple(map(other, users[0].history)))
    changed = tuple(replace(e, item=other(e.item)) for e in others.items)
    assert drawn(reference, settings, user, UnlabeledSet(changed)) == first
    long = replace(users[0].history[0], prompt=Prompt("", "rain " * 900))
    user = replace(users[0], history=(long, *users[0].history[1:]))
    assert len(drawn(reference, settings, user, others)) == 6


def test_nothing_to_choose_from_is_refused():
    keys = {"unlabeled.kind": "self", "unlabeled.nearness": "near"}
    with pytest.raises(IdiolectError, match=r"nothing to choose from; set unlabeled\."):
        parse(keys)
    assert parse({"unlabeled.kind": "self"}).unlabeled.nearness_strength == 0


@pytest.mark.parametrize("value", ["close", "", "nan", "11", "-inf"])
def test_a_nearness_that_is_none_is_refused(value):
    with pytest.raises(IdiolectError, match="`far` or a number in"):
        parse({"unlabeled.nearness": value})
