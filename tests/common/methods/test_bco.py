"""The loss of BCO, in closed form."""

import pytest

from idiolect.common.engine.objectives import boundary, zero_means
from tests.common.methods.losses import bco_loss, means, minus_log_sigmoid, scored


def test_bco_pools_losses_and_rewards():
    positive, unlabeled = scored([1.0]), scored([0.0, 0.0, 0.0])
    loss = bco_loss(positive, unlabeled, zero_means(), 1.0, 0.5)
    value = (minus_log_sigmoid(1.0) + 3 * minus_log_sigmoid(0.0)) / 4
    assert loss.value.item() == pytest.approx(value)
    assert boundary(loss.means).item() == pytest.approx(0.25)


def test_known_negatives_are_a_mean_of_their_own_and_no_part_of_delta():
    items = scored([1.0]), scored([0.0, 0.0, 0.0])
    state, negative = means(0.6, 0.2), scored([0.9, -0.3], weight=[1.0, 3.0])
    plain = bco_loss(*items, state, 2.0, 0.5)
    loss = bco_loss(*items, state, 2.0, 0.5, negative=negative)
    delta = (0.6 + 0.2) / 2
    terms = [minus_log_sigmoid(delta - 2.0 * r) for r in (0.9, -0.3)]
    added = (terms[0] + 3 * terms[1]) / 4
    assert (loss.value - plain.value).item() == pytest.approx(added)
    assert boundary(loss.means) == boundary(plain.means)
    for weight in (0.0, 0.3):
        some = bco_loss(*items, state, 2.0, 0.5, weight, negative=negative)
        assert (some.value - plain.value).item() == pytest.approx(weight * added)
