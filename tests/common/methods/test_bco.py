"""The loss of BCO, in closed form."""

import pytest

from idiolect.common.engine.objectives import boundary, zero_means
from tests.common.methods.losses import bco_loss, minus_log_sigmoid, scored


def test_bco_pools_losses_and_rewards():
    positive, unlabeled = scored([1.0]), scored([0.0, 0.0, 0.0])
    loss = bco_loss(positive, unlabeled, zero_means(), 1.0, 0.5)
    value = (minus_log_sigmoid(1.0) + 3 * minus_log_sigmoid(0.0)) / 4
    assert loss.value.item() == pytest.approx(value)
    assert boundary(loss.means).item() == pytest.approx(0.25)
