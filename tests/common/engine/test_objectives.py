"""Rewards and their running means."""

import pytest
import torch

from idiolect.common.engine.objectives import Means, boundary, moved, zero_means
from tests.common.methods.losses import means, scored


def test_separate_means_do_not_depend_on_the_ratio():
    positive = scored([1.0])
    for count in (1, 3):
        after = moved(zero_means(), positive, scored([0.0] * count), 1.0, 0.5)
        assert boundary(after).item() == pytest.approx(0.5)


def test_a_user_without_items_keeps_the_means():
    nothing = scored([0.0], weight=[0.0])
    before = means(0.4, -0.2)
    after = moved(before, nothing, nothing, 1.0, 0.9)
    for name, value in vars(before).items():
        assert vars(after)[name].item() == value.item(), name


def test_means_are_bias_corrected_averages():
    state = zero_means()
    for reward in (1.0, 3.0):
        state = moved(state, scored([reward]), scored([-reward]), 2.0, 0.9)
    positive = (state.positive / state.positive_weight).item()
    assert positive == pytest.approx(2 * (0.9 * 1.0 + 3.0) / 1.9)
    assert boundary(state).item() == pytest.approx(0.0, abs=1e-7)


def test_means_survive_saving():
    state = moved(
        zero_means(2), scored([[1.0], [2.0]]), scored([[0.0], [1.0]]), 1.0, 0.9
    )
    restored = Means(**vars(state))
    assert torch.equal(boundary(restored), boundary(state))
