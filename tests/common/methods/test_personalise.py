"""Training of own adapters."""

from dataclasses import replace

import pytest
import torch

from idiolect.common.engine.adapters import (
    Lora,
)
from idiolect.common.errors import IdiolectError
from idiolect.common.methods.personalise import (
    Personal,
    personalise,
)
from tests.common.conftest import CONFIG


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


def test_overflow_is_reported_by_name(reference, users, others):
    results = personalise(reference, users, others, "sft", 1e30, CONFIG)
    assert all(p.lora is None for p in results)
    assert users[1].id in results[1].error and "learning rate" in results[1].error


def test_an_empty_history_is_refused(reference, users, others):
    with pytest.raises(IdiolectError, match="empty history"):
        train(reference, [replace(users[0], history=())], others, "c-bpo")
