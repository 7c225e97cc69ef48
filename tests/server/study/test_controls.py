"""Controls of single studies: what each breaks, and nothing else."""

from dataclasses import replace

import pytest

from idiolect.common.config import parse_run
from idiolect.common.data.load import load_dataset
from idiolect.common.errors import IdiolectError
from idiolect.common.unlabeled.sets import Unlabeled
from idiolect.server.study.cache import Cache
from idiolect.server.study.cells import run_cell
from idiolect.server.study.controls import of_random_words, shuffled

pytestmark = pytest.mark.slow  # `make quick` leaves these files out


def test_shuffling_deals_every_item_once(settings):
    dataset = load_dataset(parse_run(settings)[0])
    dealt = shuffled(dataset, 0)

    def ids(users):
        return [[item.id for item in user.history] for user in users]

    before, after = ids(dataset.users), ids(dealt.users)
    assert sorted(sum(before, [])) == sorted(sum(after, []))
    assert list(map(len, before)) == list(map(len, after))
    assert all(one != two for one, two in zip(before, after, strict=True))
    assert [u.held_out for u in dealt.users] == [u.held_out for u in dataset.users]


def test_controls_change_what_they_should(settings):
    config = parse_run({**settings, "methods": "shared,sft"})[0]
    cache = Cache()
    plain, swapped, dealt = (
        run_cell(config, cache, control)["users"]
        for control in ("none", "swapped", "shuffled")
    )
    for user, methods in plain.items():
        assert swapped[user]["shared"] == dealt[user]["shared"] == methods["shared"]
        assert swapped[user]["sft"] != methods["sft"]
        assert dealt[user]["sft"] != methods["sft"]


def test_a_user_without_neighbour_cannot_be_swapped(settings):
    config = parse_run({**settings, "methods": "shared", "engine.stack": 2})[0]
    with pytest.raises(IdiolectError, match="so that none is left over"):
        run_cell(config, Cache(), "swapped")  # three users


def test_words_of_the_unlabeled_set_are_dealt_out_again(settings):
    config = parse_run({**settings, "methods": "c-bpo", "unlabeled.kind": "public"})[0]
    dataset = load_dataset(config)
    plain = tuple(Unlabeled(item) for item in dataset.public)
    random = of_random_words(plain, 0)
    known = {word for entry in plain for word in entry.item.target.split()}
    for one, two in zip(plain, random, strict=True):
        before, after = one.item.target.split(), two.item.target.split()
        assert len(before) == len(after) and set(after) <= known
        assert one.item.prompt == two.item.prompt
    assert random != plain and random == of_random_words(plain, 0)
    other = run_cell(config, Cache(), "random")["users"]
    assert all(
        run_cell(config, Cache())["users"][user] != other[user] for user in other
    )
    with pytest.raises(IdiolectError, match="not votes"):
        run_cell(
            replace(config, unlabeled=replace(config.unlabeled, kind="votes")),
            Cache(),
            "random",
        )
