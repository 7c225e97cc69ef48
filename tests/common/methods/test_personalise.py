"""Training of own adapters."""

from dataclasses import replace

import pytest
import torch

from idiolect.common.config.methods import BY_NAME, TABLE
from idiolect.common.engine.adapters import Lora, hash_lora
from idiolect.common.engine.scoring import score_users
from idiolect.common.errors import IdiolectError
from idiolect.common.methods.personalise import (
    Learner,
    Personal,
    learn,
    personalise,
    with_samples_disliked,
)
from tests.common.conftest import CONFIG, config


def train(reference, users, others, method, settings=CONFIG):
    return personalise(reference, users, others, method, 3e-3, settings)


def lora_of(result: Personal) -> Lora:
    assert result.lora is not None, result.error
    return result.lora


@pytest.mark.parametrize("method", ["sft", "cope", "kto", "bco", "c-bpo", "positives"])
def test_a_group_equals_its_users_alone(reference, users, others, method):
    together = train(reference, users, others, method)
    for k, user in enumerate(users):
        (alone,) = train(reference, [user], others, method)
        assert together[k].user == user.id
        assert together[k].alpha == pytest.approx(alone.alpha)
        for name, tensor in lora_of(alone).b.items():
            torch.testing.assert_close(
                tensor, lora_of(together[k]).b[name], atol=2e-5, rtol=1e-3
            )


@pytest.mark.parametrize("method", [row.name for row in TABLE if row.adapter])
def test_what_was_disliked_gets_rarer_by_the_methods_that_use_it(
    reference, users, others, method
):
    turned_down = replace(users[0].history[0], id="no", target="1 2 3 4")
    user = replace(users[0], disliked=(turned_down,))
    both = [lora_of(train(reference, [u], others, method)[0]) for u in (users[0], user)]
    encoded = [reference.backbone.encode(turned_down)]
    without, with_it = (
        score_users(reference.backbone, [reference.shared, lora], [encoded])[0][0]
        for lora in both
    )
    if BY_NAME[method].disliked:
        assert with_it < without - 0.1
    else:
        assert with_it == without


@pytest.mark.parametrize("method", ["kto", "bco", "c-bpo"])
def test_dislikes_of_no_weight_are_none(reference, users, others, method):
    user = replace(users[0], disliked=(replace(users[0].history[0], target="1 2 3"),))
    nothing = config(personalise__disliked_weight=0.0)
    none, zero = (
        lora_of(train(reference, [one], others, method, settings)[0])
        for one, settings in ((users[0], CONFIG), (user, nothing))
    )
    for name, tensor in none.b.items():
        torch.testing.assert_close(tensor, zero.b[name], atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("method", ["kto", "bco", "c-bpo", "positives"])
def test_weights_of_tokens_are_those_of_c_bpo_alone(reference, users, others, method):
    settings = config(personalise__unlabeled_tokens="differing")
    plain, found = (
        lora_of(train(reference, users[:1], others, method, one)[0])
        for one in (CONFIG, settings)
    )
    assert (hash_lora(plain) != hash_lora(found)) == (method == "c-bpo")


def test_users_of_files_dislike_what_the_shared_model_writes(reference, users, others):
    settings = config(task="LaMP-4", data="some", disliked=3, unlabeled__kind="others")
    user = replace(users[0], truth=None)
    (found,) = (with_samples_disliked(reference, user, "kto", settings),)
    assert 0 < len(found.disliked) <= 3
    asked = [item.prompt for item in user.history]
    assert all(item.prompt in asked for item in found.disliked)
    assert not {i.target for i in found.disliked} & {i.target for i in user.history}
    assert with_samples_disliked(reference, user, "kto", settings) == found
    for method, chosen in (("sft", settings), ("positives", settings), ("kto", CONFIG)):
        assert with_samples_disliked(reference, user, method, chosen) == user
    with_them, without = (
        train(reference, [user], others, "bco", one)[0]
        for one in (settings, replace(settings, disliked=0))
    )
    assert hash_lora(lora_of(with_them)) != hash_lora(lora_of(without))


def test_overflow_is_reported_by_name(reference, users, others):
    results = personalise(reference, users, others, "sft", 1e30, CONFIG)
    assert all(p.lora is None for p in results)
    assert users[1].id in results[1].error and "learning rate" in results[1].error


def test_an_empty_history_is_refused(reference, users, others):
    with pytest.raises(IdiolectError, match="empty history"):
        train(reference, [replace(users[0], history=())], others, "c-bpo")


@pytest.mark.parametrize("strength", ["1", "fitted", "crossed"])
def test_of_a_history_only_the_newest_items_are_learnt(
    reference, users, others, strength
):
    some, plain = (
        config(personalise__items=n, personalise__strength=strength) for n in (4, 0)
    )
    older = replace(users[0].history[0], target="something else")
    changed = replace(users[0], history=(older, *users[0].history[1:]))
    short = replace(users[0], history=users[0].history[-4:])
    found, same, less, all_of_it = (
        hash_lora(lora_of(train(reference, [user], others, "sft", settings)[0]))
        for user, settings in (
            (users[0], some),
            (changed, some),
            (short, plain),
            (users[0], plain),
        )
    )
    assert found == same == less != all_of_it


def test_the_unlabeled_set_is_without_what_is_not_learnt(reference, users, others):
    settings = config(personalise__items=2)
    (one,) = train(reference, users[:1], others, "c-bpo", settings)
    own = users[0].history[-2:]
    cut = replace(users[0], history=own)
    (alone,) = train(reference, [cut], others, "c-bpo", config())
    # Kind `others`: own items are known by their owner, however few are learnt.
    assert hash_lora(lora_of(one)) == hash_lora(lora_of(alone))


@pytest.mark.parametrize("method", ["sft", "c-bpo", "kto"])
def test_a_training_goes_on_from_the_last_adapter(reference, users, others, method):
    def learnt(rate, *learners):
        return [
            lora_of(one)
            for one in learn(reference, others, method, rate, CONFIG, learners)
        ]

    user = users[0]
    old, new = user.history[:3], user.history[3:]
    (first,) = learnt(3e-3, Learner(user, old))
    (plain,) = train(reference, [replace(user, history=old)], others, method)
    assert hash_lora(first) == hash_lora(lora_of(plain))
    before = hash_lora(first)
    # At no rate nothing moves: the start is what is gone on from.
    (still,) = learnt(0.0, Learner(user, new, first))
    assert hash_lora(still) == before
    (further,) = learnt(3e-3, Learner(user, new, first))
    (anew,) = learnt(3e-3, Learner(user, new))
    assert len({before, hash_lora(further), hash_lora(anew)}) == 3
    assert hash_lora(first) == before  # and it is not written over
    # Beside another user, each goes on from the own one.
    both = learnt(3e-3, Learner(users[1], users[1].history), Learner(user, new, first))
    for name, b in further.b.items():
        torch.testing.assert_close(b, both[1].b[name], atol=2e-5, rtol=1e-3)
