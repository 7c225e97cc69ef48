"""Samples of the reference."""

import pytest

from idiolect.common.data.types import Item, Prompt, User
from idiolect.common.engine.adapters import (
    Lora,
)
from idiolect.common.engine.backbone import Encoded
from idiolect.common.engine.reference import Reference
from idiolect.common.methods.personalise import (
    Personal,
    personalise,
)
from idiolect.common.unlabeled import samples
from idiolect.common.unlabeled.draws import draw_for
from idiolect.common.unlabeled.sets import UnlabeledSet
from tests.common.conftest import CONFIG, config


def train(reference, users, others, method, settings=CONFIG):
    return personalise(reference, users, others, method, 3e-3, settings)


def lora_of(result: Personal) -> Lora:
    assert result.lora is not None, result.error
    return result.lora


def test_self_samples_stay_on_the_own_prompts(reference, wide, users):
    settings = config(unlabeled__kind="self")
    first = draw_for(reference, users[0], UnlabeledSet(), settings).aux
    again = draw_for(reference, users[0], UnlabeledSet(), settings).aux
    prompts = {e.ids[: e.prompt_length] for e in map(wide.encode, users[0].history)}
    assert first == again and len(first) > 0
    assert {e.ids[: e.prompt_length] for e in first} <= prompts
    (trained,) = train(reference, users[:1], UnlabeledSet(), "c-bpo", settings)
    assert (trained.alpha, trained.estimated) == (0.5, False)


@pytest.mark.parametrize(("own", "expected"), [(5, 5), (400, 64)])
def test_samples_have_at_most_as_many_tokens_as_the_longest_own_text(
    reference, wide, monkeypatch, own, expected
):
    """Else their length alone tells them from what the user writes."""
    short, long = (Encoded(tuple(range(3, 5 + n)), 2) for n in (1, own))
    asked = Prompt("", "ask")
    user = User("u", (Item("a", asked, "x"), Item("b", asked, "y")), ())
    budgets = []

    def written(_backbone, _policy, prompts, budget, _top_p):
        budgets.append(budget)
        return ["word"] * len(prompts)

    monkeypatch.setattr(samples, "generate", written)
    settings = config(task="text", unlabeled__kind="self")
    assert len(samples.self_samples(reference, user, [short, long], 2, settings)) == 2
    assert budgets == [expected]


def test_a_sample_that_the_user_wrote_is_not_disliked(reference, users, monkeypatch):
    user, kept = users[0], users[0].history[2].target + " no"

    def written(_backbone, _policy, prompts, *rest):
        return [kept if i % 2 else user.history[0].target for i in range(len(prompts))]

    monkeypatch.setattr(samples, "generate", written)
    fresh = Reference(reference.backbone, reference.shared)
    found = samples.disliked_samples(fresh, user, 4, CONFIG)
    assert [(i.target, i.prompt) for i in found] == [
        (kept, user.history[i].prompt) for i in (1, 3)
    ]
    assert samples.disliked_samples(fresh, user, 0, CONFIG) == ()


def test_dislikes_are_other_samples_than_the_unlabeled_ones(reference, users):
    settings = config(unlabeled__kind="self")
    drawn = draw_for(reference, users[0], UnlabeledSet(), settings).entries
    found = samples.disliked_samples(reference, users[0], len(drawn), settings)
    assert found and {i.target for i in found} != {e.item.target for e in drawn}
