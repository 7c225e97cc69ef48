import math

import pytest
import torch

from idiolect.common.engine.objectives import (
    Means,
    Scored,
    average,
    bco,
    boundary,
    c_bpo,
    dpo,
    kto,
    moved,
    sft,
    zero_means,
)


def scored(logp, reference=None, tokens=None, weight=None):
    logp = torch.tensor(logp, dtype=torch.float64)

    def like(values, default):
        if values is None:
            return torch.full_like(logp, default)
        return torch.tensor(values, dtype=torch.float64)

    return Scored(logp, like(reference, 0.0), like(tokens, 1.0), like(weight, 1.0))


def means(positive=0.0, unlabeled=0.0):
    one = torch.ones((), dtype=torch.float64)
    return Means(positive * one, one, unlabeled * one, one)


def alpha(value):
    return torch.tensor(value, dtype=torch.float64)


def minus_log_sigmoid(z):
    return math.log1p(math.exp(-z))


def test_sft_is_nll_per_token():
    loss = sft(scored([-2.0, -4.0], tokens=[2.0, 3.0]), means())
    assert loss.value.item() == pytest.approx(6 / 5)


def test_c_bpo_closed_form():
    positive, unlabeled = scored([1.0, 2.0], [0.5, 0.0]), scored([-1.0], [1.0])
    beta, a, delta = 0.5, 0.25, 0.1  # delta: (0.4 - 0.2) / 2
    loss = c_bpo(positive, unlabeled, alpha(a), means(0.4, -0.2), beta, 0.9)
    g = [0.25 - delta, 1.0 - delta]
    wanted = sum(minus_log_sigmoid(x) for x in g) / 2
    overlap = sum(minus_log_sigmoid(-x) for x in g) / 2
    pure = minus_log_sigmoid(-(-1.0 - delta)) - a * overlap
    assert pure > 0
    assert loss.value.item() == pytest.approx(wanted + pure / (1 - a), rel=1e-12)
    assert loss.clamped.item() == 0


def test_c_bpo_clamp_leaves_the_positive_part():
    positive, unlabeled = scored([5.0]), scored([-20.0])
    loss = c_bpo(positive, unlabeled, alpha(0.5), means(), 1.0, 0.9)
    assert loss.clamped.item() == 1
    assert loss.value.item() == pytest.approx(minus_log_sigmoid(5.0))


def test_c_bpo_weights_unlabeled_items():
    positive = scored([0.3])
    weighted = scored([0.1, 0.7], weight=[3.0, 1.0])
    repeated = scored([0.1, 0.1, 0.1, 0.7])
    one = c_bpo(positive, weighted, alpha(0.2), means(), 1.0, 0.9)
    two = c_bpo(positive, repeated, alpha(0.2), means(), 1.0, 0.9)
    assert one.value.item() == pytest.approx(two.value.item(), rel=1e-12)
    assert boundary(one.means).item() == pytest.approx(boundary(two.means).item())


def test_known_negatives_stand_outside_the_clamp_and_delta():
    positive, unlabeled, negative = scored([5.0]), scored([-20.0]), scored([0.7])
    arguments = (positive, unlabeled, alpha(0.5), means(0.2, 0.4), 1.0, 0.9)
    without = c_bpo(*arguments)
    loss = c_bpo(*arguments, negative, 0.5)
    extra = 0.5 * minus_log_sigmoid(-(0.7 - 0.3))
    assert loss.value.item() == pytest.approx(without.value.item() + extra, rel=1e-12)
    assert torch.equal(loss.means.positive, without.means.positive)
    assert torch.equal(loss.means.unlabeled, without.means.unlabeled)


def test_alpha_zero_with_class_means_is_bco_at_equal_delta():
    positive, unlabeled = scored([0.4, -0.3]), scored([0.2, 1.0])
    state = means(0.6, 0.6)
    loss = c_bpo(positive, unlabeled, alpha(0.0), state, 1.0, 0.9)
    # With as many unlabeled as positives, the pooled mean is half the sum of the means.
    assert loss.value.item() == pytest.approx(
        2 * bco(positive, unlabeled, state, 1.0, 0.9).value.item(), rel=1e-12
    )


def test_bco_pools_losses_and_rewards():
    positive, unlabeled = scored([1.0]), scored([0.0, 0.0, 0.0])
    loss = bco(positive, unlabeled, zero_means(), 1.0, 0.5)
    value = (minus_log_sigmoid(1.0) + 3 * minus_log_sigmoid(0.0)) / 4
    assert loss.value.item() == pytest.approx(value)
    assert boundary(loss.means).item() == pytest.approx(0.25)


def test_separate_means_do_not_depend_on_the_ratio():
    positive = scored([1.0])
    for count in (1, 3):
        after = moved(zero_means(), positive, scored([0.0] * count), 1.0, 0.5)
        assert boundary(after).item() == pytest.approx(0.5)


def test_c_bpo_keeps_one_mean_per_class_or_one_for_both():
    positive, unlabeled = scored([1.0]), scored([0.0, 0.0, 0.0])
    arguments = (positive, unlabeled, alpha(0.5), zero_means(), 1.0, 0.5)
    separate = c_bpo(*arguments).means
    assert separate.positive.item() == pytest.approx(0.5 * 1.0)
    assert separate.unlabeled.item() == 0.0
    pooled = c_bpo(*arguments, means_over="pooled").means
    assert pooled.positive.item() == pytest.approx(0.5 * 0.25)
    assert pooled.unlabeled.item() == pytest.approx(0.5 * 0.25)


def test_a_user_without_items_keeps_the_means():
    nothing = scored([0.0], weight=[0.0])
    before = means(0.4, -0.2)
    after = moved(before, nothing, nothing, 1.0, 0.9)
    for name, value in before.state_dict().items():
        assert after.state_dict()[name].item() == value.item(), name


def test_means_are_bias_corrected_averages():
    state = zero_means()
    for reward in (1.0, 3.0):
        state = moved(state, scored([reward]), scored([-reward]), 2.0, 0.9)
    positive = (state.positive / state.positive_weight).item()
    assert positive == pytest.approx(2 * (0.9 * 1.0 + 3.0) / 1.9)
    assert boundary(state).item() == pytest.approx(0.0, abs=1e-7)


def test_delta_lags_one_step_and_carries_no_gradient():
    logp = torch.tensor([0.7], requires_grad=True)
    items = Scored(logp, torch.zeros(1), torch.ones(1), torch.ones(1))
    loss = c_bpo(items, items, alpha(0.0), zero_means(), 1.0, 0.9, weight=0.0)
    assert loss.value.item() == pytest.approx(minus_log_sigmoid(0.7))
    again = c_bpo(items, items, alpha(0.0), loss.means, 1.0, 0.9, weight=0.0)
    assert again.value.item() == pytest.approx(minus_log_sigmoid(0.0))
    (gradient,) = torch.autograd.grad(again.value, logp)
    assert gradient.item() == pytest.approx(-0.5)


def test_weight_anchor_and_reward_per_token_do_what_they_say():
    def items(rewards, tokens):
        logp, count = torch.tensor(rewards).double(), torch.tensor(tokens).double()
        return Scored(logp, torch.zeros_like(logp), count, torch.ones_like(logp))

    positive, unlabeled = items([0.8, -0.6], [2, 3]), items([0.5], [5])
    arguments = (positive, unlabeled, alpha(0.25), zero_means(), 2.0, 0.9)
    alone = c_bpo(*arguments, weight=0.0).value.item()
    wanted = [minus_log_sigmoid(1.6), minus_log_sigmoid(-1.2)]
    assert alone == pytest.approx(sum(wanted) / 2)
    whole = c_bpo(*arguments).value.item()
    half = c_bpo(*arguments, weight=0.5).value.item()
    assert half == pytest.approx((alone + whole) / 2) and whole > alone
    anchored = c_bpo(*arguments, weight=0.0, anchor=3.0).value.item()
    assert anchored == pytest.approx(alone + 3 * -(0.8 - 0.6) / 5)
    each = c_bpo(*arguments, weight=0.0, per_token=True).value.item()
    wanted = [minus_log_sigmoid(2 * 0.4), minus_log_sigmoid(2 * -0.2)]
    assert each == pytest.approx(sum(wanted) / 2)
    # The anchor is per token of the batch, whatever the reward is.
    both = c_bpo(*arguments, weight=0.0, per_token=True, anchor=3.0).value.item()
    assert both == pytest.approx(each + 3 * -(0.8 - 0.6) / 5)


def test_means_survive_saving():
    state = moved(
        zero_means(2), scored([[1.0], [2.0]]), scored([[0.0], [1.0]]), 1.0, 0.9
    )
    restored = Means(**state.state_dict())
    assert torch.equal(boundary(restored), boundary(state))


def test_users_are_independent_in_a_batch():
    positive = scored([[0.4, 0.0], [-1.0, 2.0]], weight=[[1.0, 0.0], [1.0, 1.0]])
    unlabeled = scored([[0.1, 0.3], [0.5, 9.0]], weight=[[1.0, 1.0], [1.0, 0.0]])
    both = c_bpo(
        positive, unlabeled, torch.tensor([0.3, 0.6]).double(), zero_means(2), 1.0, 0.9
    )
    first = c_bpo(scored([0.4]), scored([0.1, 0.3]), alpha(0.3), zero_means(), 1.0, 0.9)
    second = c_bpo(
        scored([-1.0, 2.0]), scored([0.5]), alpha(0.6), zero_means(), 1.0, 0.9
    )
    assert both.value.tolist() == pytest.approx(
        [first.value.item(), second.value.item()]
    )


def test_kto_closed_form_with_positive_and_negative_divergence():
    positive, unlabeled = scored([0.8]), scored([0.2, -0.4])
    for shift, z in ((0.5, 0.5), (-0.5, 0.0)):
        loss = kto(positive, unlabeled, scored([shift, shift]), means(), 2.0)

        def sigmoid(x):
            return 1 / (1 + math.exp(-x))

        terms = [1 - sigmoid(2 * (0.8 - z))]
        terms += [1 - sigmoid(2 * (z - u)) for u in (0.2, -0.4)]
        assert loss.value.item() == pytest.approx(sum(terms) / 3)


def test_kto_divergence_carries_no_gradient():
    other = torch.tensor([0.5], requires_grad=True)
    pairs = Scored(other, torch.zeros(1), torch.ones(1), torch.ones(1))
    items = Scored(torch.ones(1), torch.zeros(1), torch.ones(1), torch.ones(1))
    assert not kto(items, items, pairs, zero_means(), 1.0).value.requires_grad


def test_dpo_closed_form():
    chosen = scored([-2.0, -1.0], [-3.0, -1.5])
    rejected = scored([-4.0, -0.5], [-3.5, -2.0])
    margins = [(1.0 + 0.5) * 0.5, (0.5 - 1.5) * 0.5]
    loss = dpo(chosen, rejected, means(0.3, 0.1), 0.5)
    expected = sum(map(minus_log_sigmoid, margins)) / 2
    assert loss.value.item() == pytest.approx(expected, rel=1e-12)
    assert boundary(loss.means).item() == pytest.approx(0.2)
    assert loss.clamped.item() == 0


def test_dpo_is_log_two_at_its_reference_and_counts_real_pairs_only():
    same = scored([-2.0, -3.0], [-2.0, -3.0])
    assert dpo(same, same, means(), 3.0).value.item() == pytest.approx(math.log(2))
    for filler in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0]):
        chosen = scored([1.0, 9.0], weight=[1.0, filler[0]])
        rejected = scored([0.0, 2.0], weight=[1.0, filler[1]])
        loss = dpo(chosen, rejected, means(), 1.0)
        assert loss.value.item() == pytest.approx(minus_log_sigmoid(1.0))


def test_dpo_pairs_by_place():
    chosen, rejected = scored([2.0, 0.0]), scored([1.0, -3.0])
    crossed = dpo(chosen, scored([-3.0, 1.0]), means(), 1.0).value.item()
    expected = (minus_log_sigmoid(1.0) + minus_log_sigmoid(3.0)) / 2
    assert dpo(chosen, rejected, means(), 1.0).value.item() == pytest.approx(expected)
    assert crossed != pytest.approx(expected)


def test_empty_sets_count_as_nothing():
    nothing = scored([])
    loss = c_bpo(scored([0.3]), nothing, alpha(0.0), means(), 1.0, 0.9)
    assert loss.value.item() == pytest.approx(minus_log_sigmoid(0.3))
    assert loss.means.unlabeled.item() == 0.0
    assert average(nothing.logp, nothing.weight).item() == 0.0


@pytest.mark.parametrize("method", ["sft", "c_bpo", "bco", "kto", "extended", "dpo"])
def test_gradients_match_finite_differences(method):
    torch.manual_seed(1)
    reference = torch.randn(5, dtype=torch.float64)
    start = torch.randn(5, dtype=torch.float64)
    ones = torch.ones(5, dtype=torch.float64)

    # KTO's z carries no gradient, so it is held fixed in the differences too.
    fixed = Scored(start[2:].clone(), reference[2:], ones[2:], ones[2:])

    def value(logp):
        one = Scored(logp[:2], reference[:2], ones[:2], ones[:2])
        two = Scored(logp[2:], reference[2:], ones[2:], ones[2:])
        state = means(0.3, -0.2)
        return {
            "sft": lambda: sft(one, state),
            "c_bpo": lambda: c_bpo(one, two, alpha(0.4), state, 0.7, 0.9),
            "bco": lambda: bco(one, two, state, 0.7, 0.9),
            "kto": lambda: kto(one, two, fixed, state, 0.7),
            "extended": lambda: c_bpo(
                *(one, two, alpha(0.4), state, 0.7, 0.9),
                weight=0.3,
                anchor=0.5,
                per_token=True,
            ),
            "dpo": lambda: dpo(
                one, Scored(*(t[:2] for t in vars(two).values())), state, 0.7
            ),
        }[method]().value

    logp = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(logp), logp)
    step = 1e-6
    for i in range(5):
        up, down = start.clone(), start.clone()
        up[i] += step
        down[i] -= step
        slope = (value(up) - value(down)).item() / (2 * step)
        assert gradient[i].item() == pytest.approx(slope, abs=1e-7)
