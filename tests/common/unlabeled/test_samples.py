"""Samples of the reference."""

from idiolect.common.engine.adapters import (
    Lora,
)
from idiolect.common.methods.personalise import (
    Personal,
    personalise,
)
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
