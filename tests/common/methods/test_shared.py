"""The part of one user in a round of the shared adapter."""

import pytest
import torch

from idiolect.common.engine.adapters import (
    zero_shared,
)
from idiolect.common.engine.reference import Reference
from idiolect.common.methods.shared import clip_rows, shared_update
from tests.common.conftest import CONFIG, config


def with_rate(clip: float):
    return config(adapt__clip=clip, adapt__learning_rate=1e-2)


def test_a_rate_that_is_not_a_number_yet_trains_nothing_silently(wide, users):
    reference = Reference(wide, zero_shared(wide, CONFIG.lora, 0))
    with pytest.raises(ValueError, match="with_rates"):
        shared_update(reference, users, config(), 1)


def test_shared_update_is_clipped_per_user_and_leaves_a_alone(wide, users):
    start = zero_shared(wide, CONFIG.lora, 0)
    reference = Reference(wide, start)
    free = shared_update(reference, users, with_rate(1e3), 1)
    tight = shared_update(reference, users, with_rate(0.01), 1)

    def norms(rows):
        return torch.stack([t.flatten(1).square().sum(1) for t in rows.values()]).sum(0)

    assert set(free) == set(start.b)
    assert all(free[n].shape == (3, *start.b[n].shape) for n in free)
    assert (norms(free).sqrt() > 0.01).all()
    torch.testing.assert_close(norms(tight).sqrt(), torch.full((3,), 0.01))
    alone = shared_update(reference, users[1:2], with_rate(1e3), 1)
    for name in free:
        torch.testing.assert_close(free[name][1:2], alone[name], atol=2e-5, rtol=1e-3)
    later = shared_update(reference, users, with_rate(1e3), 2)
    assert any(not torch.equal(later[n], free[n]) for n in free)


def test_clipping_leaves_short_rows_alone():
    rows = {
        "x": torch.tensor([[[3.0]], [[0.3]]]),
        "y": torch.tensor([[[4.0]], [[0.4]]]),
    }
    clipped = clip_rows(rows, 1.0)
    torch.testing.assert_close(clipped["x"].flatten(), torch.tensor([0.6, 0.3]))
    torch.testing.assert_close(clipped["y"].flatten(), torch.tensor([0.8, 0.4]))


def test_a_smaller_shared_adapter_has_the_scale_of_the_others():
    settings = config(adapt__rank=2, lora__rank=8, lora__alpha=16.0)
    assert settings.shared_shape.rank == 2
    assert settings.shared_shape.alpha / 2 == settings.lora.alpha / 8
    assert config().shared_shape == config().lora
