"""SFT: its loss in closed form, and whose text it learns."""

from dataclasses import replace

import pytest
import torch

from idiolect.common.engine.adapters import (
    Lora,
    hash_lora,
)
from idiolect.common.methods.personalise import (
    Personal,
    personalise,
)
from tests.common.conftest import CONFIG
from tests.common.methods.losses import (
    means,
    scored,
    sft_loss,
)


def train(reference, users, others, method, settings=CONFIG):
    return personalise(reference, users, others, method, 3e-3, settings)


def lora_of(result: Personal) -> Lora:
    assert result.lora is not None, result.error
    return result.lora


def test_sft_is_nll_per_token():
    loss = sft_loss(scored([-2.0, -4.0], tokens=[2.0, 3.0]), means())
    assert loss.value.item() == pytest.approx(6 / 5)


def test_nobody_elses_history_reaches_an_sft_adapter(reference, users, others):
    """The public OPPU code trains user i on users 0..i; here user 0 changes nothing."""
    changed = replace(users[0], history=users[0].history[::-1][:3])
    before = train(reference, users, others, "sft")
    after = train(reference, [changed, *users[1:]], others, "sft")
    assert hash_lora(before[0].lora) != hash_lora(after[0].lora)
    for one, two in zip(before[1:], after[1:], strict=True):
        for name, tensor in lora_of(one).b.items():
            torch.testing.assert_close(
                tensor, lora_of(two).b[name], atol=2e-5, rtol=1e-3
            )
