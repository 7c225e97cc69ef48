"""The loss of C-BPO, in closed form."""

import pytest
import torch

from idiolect.common.engine.objectives import Scored, average, boundary, zero_means
from tests.common.methods.losses import (
    alpha,
    bco_loss,
    c_bpo_loss,
    means,
    minus_log_sigmoid,
    scored,
)


def test_c_bpo_closed_form():
    positive, unlabeled = scored([1.0, 2.0], [0.5, 0.0]), scored([-1.0], [1.0])
    beta, a, delta = 0.5, 0.25, 0.1  # delta: (0.4 - 0.2) / 2
    loss = c_bpo_loss(positive, unlabeled, alpha(a), means(0.4, -0.2), beta, 0.9)
    g = [0.25 - delta, 1.0 - delta]
    wanted = sum(minus_log_sigmoid(x) for x in g) / 2
    overlap = sum(minus_log_sigmoid(-x) for x in g) / 2
    pure = minus_log_sigmoid(-(-1.0 - delta)) - a * overlap
    assert pure > 0
    assert loss.value.item() == pytest.approx(wanted + pure / (1 - a), rel=1e-12)
    assert loss.clamped.item() == 0


def test_c_bpo_clamp_leaves_the_positive_part():
    positive, unlabeled = scored([5.0]), scored([-20.0])
    loss = c_bpo_loss(positive, unlabeled, alpha(0.5), means(), 1.0, 0.9)
    assert loss.clamped.item() == 1
    assert loss.value.item() == pytest.approx(minus_log_sigmoid(5.0))


def test_c_bpo_weights_unlabeled_items():
    positive = scored([0.3])
    weighted = scored([0.1, 0.7], weight=[3.0, 1.0])
    repeated = scored([0.1, 0.1, 0.1, 0.7])
    one = c_bpo_loss(positive, weighted, alpha(0.2), means(), 1.0, 0.9)
    two = c_bpo_loss(positive, repeated, alpha(0.2), means(), 1.0, 0.9)
    assert one.value.item() == pytest.approx(two.value.item(), rel=1e-12)
    assert boundary(one.means).item() == pytest.approx(boundary(two.means).item())


def test_c_bpo_keeps_one_mean_per_class_or_one_for_both():
    positive, unlabeled = scored([1.0]), scored([0.0, 0.0, 0.0])
    arguments = (positive, unlabeled, alpha(0.5), zero_means(), 1.0, 0.5)
    separate = c_bpo_loss(*arguments).means
    assert separate.positive.item() == pytest.approx(0.5 * 1.0)
    assert separate.unlabeled.item() == 0.0
    pooled = c_bpo_loss(*arguments, boundary="pooled").means
    assert pooled.positive.item() == pytest.approx(0.5 * 0.25)
    assert pooled.unlabeled.item() == pytest.approx(0.5 * 0.25)


def test_known_negatives_stand_outside_the_clamp_and_delta():
    positive, unlabeled, negative = scored([5.0]), scored([-20.0]), scored([0.7])
    arguments = (positive, unlabeled, alpha(0.5), means(0.2, 0.4), 1.0, 0.9)
    without = c_bpo_loss(*arguments)
    loss = c_bpo_loss(*arguments, negative)
    extra = minus_log_sigmoid(-(0.7 - 0.3))
    assert loss.value.item() == pytest.approx(without.value.item() + extra, rel=1e-12)
    for weight in (0.0, 0.3):
        some = c_bpo_loss(*arguments, negative, disliked_weight=weight).value
        added = (some - without.value).item()
        assert added == pytest.approx(weight * extra, abs=1e-12)
    assert torch.equal(loss.means.positive, without.means.positive)
    assert torch.equal(loss.means.unlabeled, without.means.unlabeled)


def test_alpha_zero_with_class_means_is_bco_at_equal_delta():
    positive, unlabeled = scored([0.4, -0.3]), scored([0.2, 1.0])
    state = means(0.6, 0.6)
    loss = c_bpo_loss(positive, unlabeled, alpha(0.0), state, 1.0, 0.9)
    # With as many unlabeled as positives, the pooled mean is half the sum of the means.
    assert loss.value.item() == pytest.approx(
        2 * bco_loss(positive, unlabeled, state, 1.0, 0.9).value.item(), rel=1e-12
    )


def test_delta_lags_one_step_and_carries_no_gradient():
    logp = torch.tensor([0.7], requires_grad=True)
    items = Scored(logp, torch.zeros(1), torch.ones(1), torch.ones(1))
    loss = c_bpo_loss(
        items, items, alpha(0.0), zero_means(), 1.0, 0.9, unlabeled_weight=0.0
    )
    assert loss.value.item() == pytest.approx(minus_log_sigmoid(0.7))
    again = c_bpo_loss(
        items, items, alpha(0.0), loss.means, 1.0, 0.9, unlabeled_weight=0.0
    )
    assert again.value.item() == pytest.approx(minus_log_sigmoid(0.0))
    (gradient,) = torch.autograd.grad(again.value, logp)
    assert gradient.item() == pytest.approx(-0.5)


def test_weight_anchor_and_reward_per_token_do_what_they_say():
    def items(rewards, tokens):
        logp, count = torch.tensor(rewards).double(), torch.tensor(tokens).double()
        return Scored(logp, torch.zeros_like(logp), count, torch.ones_like(logp))

    positive, unlabeled = items([0.8, -0.6], [2, 3]), items([0.5], [5])
    arguments = (positive, unlabeled, alpha(0.25), zero_means(), 2.0, 0.9)
    alone = c_bpo_loss(*arguments, unlabeled_weight=0.0).value.item()
    wanted = [minus_log_sigmoid(1.6), minus_log_sigmoid(-1.2)]
    assert alone == pytest.approx(sum(wanted) / 2)
    whole = c_bpo_loss(*arguments).value.item()
    half = c_bpo_loss(*arguments, unlabeled_weight=0.5).value.item()
    assert half == pytest.approx((alone + whole) / 2) and whole > alone
    anchored = c_bpo_loss(*arguments, unlabeled_weight=0.0, anchor=3.0).value.item()
    assert anchored == pytest.approx(alone + 3 * -(0.8 - 0.6) / 5)
    each = c_bpo_loss(*arguments, unlabeled_weight=0.0, reward="token").value.item()
    wanted = [minus_log_sigmoid(2 * 0.4), minus_log_sigmoid(2 * -0.2)]
    assert each == pytest.approx(sum(wanted) / 2)
    # The anchor is per token of the batch, whatever the reward is.
    both = c_bpo_loss(
        *arguments, unlabeled_weight=0.0, reward="token", anchor=3.0
    ).value.item()
    assert both == pytest.approx(each + 3 * -(0.8 - 0.6) / 5)


def test_users_are_independent_in_a_batch():
    positive = scored([[0.4, 0.0], [-1.0, 2.0]], weight=[[1.0, 0.0], [1.0, 1.0]])
    unlabeled = scored([[0.1, 0.3], [0.5, 9.0]], weight=[[1.0, 1.0], [1.0, 0.0]])
    both = c_bpo_loss(
        positive, unlabeled, torch.tensor([0.3, 0.6]).double(), zero_means(2), 1.0, 0.9
    )
    first = c_bpo_loss(
        scored([0.4]), scored([0.1, 0.3]), alpha(0.3), zero_means(), 1.0, 0.9
    )
    second = c_bpo_loss(
        scored([-1.0, 2.0]), scored([0.5]), alpha(0.6), zero_means(), 1.0, 0.9
    )
    assert both.value.tolist() == pytest.approx(
        [first.value.item(), second.value.item()]
    )


def test_empty_sets_count_as_nothing():
    nothing = scored([])
    loss = c_bpo_loss(scored([0.3]), nothing, alpha(0.0), means(), 1.0, 0.9)
    assert loss.value.item() == pytest.approx(minus_log_sigmoid(0.3))
    assert loss.means.unlabeled.item() == 0.0
    assert average(nothing.logp, nothing.weight).item() == 0.0
