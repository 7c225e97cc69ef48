"""Held-out probabilities, calibrated."""

import numpy as np
import pytest
from scipy.optimize import minimize

from idiolect.common.unlabeled import overlap
from idiolect.common.unlabeled.heldout import calibrated, probabilities

SIZES = [(8, 128), (16, 128), (32, 32), (32, 128)]


def means(own, other, share, draws=12, d=64, gap=4.0):
    """Mean probability of unlabeled items, a share of which are from the user's class."""
    found = []
    for seed in range(draws):
        generator = np.random.default_rng(seed)
        target = generator.normal(size=(own, d))
        unlabeled = generator.normal(size=(other, d))
        target[:, 0] += gap
        unlabeled[:, 0] += gap * (generator.random(other) < share)
        each = probabilities(target, unlabeled, np.ones(other), generator)
        assert each is not None
        found.append(each.unlabeled.mean())
    return float(np.mean(found))


@pytest.mark.parametrize(("own", "other"), SIZES)
def test_identical_classes_have_one_half_for_any_length(own, other):
    assert means(own, other, 1.0) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("own", "other"), SIZES)
def test_the_mean_rises_with_the_share(own, other):
    found = [means(own, other, share, 8) for share in (0, 0.25, 0.5, 1)]
    assert all(a < b for a, b in zip(found, found[1:], strict=False))


def test_the_papers_estimate_falls_with_a_short_history():
    """The bias that is removed here; the estimate itself stays as the paper has it."""
    found = []
    for seed in range(12):
        g = np.random.default_rng(seed)
        own, other = g.normal(size=(8, 64)), g.normal(size=(128, 64))
        found.append(overlap.estimate(own, other, np.ones(128), g).alpha)
    assert np.mean(found) < 0.25


def test_items_of_no_weight_change_nothing_but_the_folds():
    g = np.random.default_rng(0)
    own, other = g.normal(size=(16, 8)), g.normal(size=(30, 8))
    far = np.concatenate([other, np.full((30, 8), 50.0)])
    weights = np.r_[np.ones(30), np.zeros(30)]
    found = probabilities(own, far, weights, np.random.default_rng(1))
    plain = probabilities(own, other, np.ones(30), np.random.default_rng(1))
    assert found and plain
    assert found.unlabeled[:30].mean() == pytest.approx(
        plain.unlabeled.mean(), abs=0.05
    )


@pytest.mark.parametrize("present", [4, 5])
def test_the_fewest_items_of_any_weight_are_enough(present):
    g = np.random.default_rng(0)
    weights = np.r_[np.ones(present), np.zeros(40)]
    for seed in range(20):
        found = probabilities(
            g.normal(size=(4, 3)),
            g.normal(size=(len(weights), 3)),
            weights,
            np.random.default_rng(seed),
        )
        assert found and np.isfinite(found.unlabeled).all()


def test_too_little_data_gives_nothing():
    rows, g = np.ones((9, 2)), np.random.default_rng(0)
    assert probabilities(rows[:3], rows, np.ones(9), g) is None
    assert probabilities(rows, rows, np.r_[np.ones(3), np.zeros(6)], g) is None


def test_constant_features_tell_nothing():
    found = probabilities(
        np.ones((6, 3)), np.ones((9, 3)), np.ones(9), np.random.default_rng(0)
    )
    assert found and found.unlabeled == pytest.approx(np.full(9, 0.5))


def sides(own, other):
    labels = np.r_[np.ones(own), -np.ones(other)]
    return labels, np.r_[np.full(own, 0.5 / own), np.full(other, 0.5 / other)]


@pytest.mark.parametrize("gap", [1.0, 2.0, 40.0])
def test_calibration_has_the_least_log_loss(gap):
    labels, balance = sides(8, 20)
    logits = np.random.default_rng(3).normal(size=28) + gap * (labels > 0) - 5
    targets = np.where(labels > 0, 0.9, 0.1)  # e = 1 / (8 + 2)

    def loss(ab):
        z = ab[0] * (logits + 5) + ab[1]
        return balance @ (np.logaddexp(0, z) - targets * z)

    best = minimize(loss, [0.1, 0.0], tol=1e-13).x
    expected = 1 / (1 + np.exp(-(best[0] * (logits + 5) + best[1])))
    found = calibrated(logits, labels, balance)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert 2 * balance @ found == pytest.approx(1)  # the two means add up to 1


def test_calibration_never_turns_the_order_round():
    labels, balance = sides(5, 5)
    assert calibrated(-labels, labels, balance) == pytest.approx(np.full(10, 0.5))
    with pytest.raises(ValueError, match="do not sum to 1/2"):
        calibrated(labels, labels, 2 * balance)
