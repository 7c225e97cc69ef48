"""Estimates of the mixture share."""

import numpy as np
import pytest

from idiolect.common.unlabeled.shares import best_bin, from_quantile

PI = 0.3


def scores(seed, own=400, other=2000):
    """A score whose upper half (above 0) only own items reach."""
    g = np.random.default_rng(seed)
    mixed = np.where(
        g.random(other) < PI, g.normal(size=other), -abs(g.normal(size=other))
    )
    return g.normal(size=own), mixed


def test_the_quantile_of_exact_probabilities_is_the_bound():
    own = np.array([0.2, 0.5, 1 / (1 + PI), 1 / (1 + PI)])
    assert from_quantile(own, 1.0) == pytest.approx(PI)
    assert from_quantile(own, 0.0) == 1.0  # 4, and a share is at most 1
    assert from_quantile(own) == pytest.approx(PI)


@pytest.mark.parametrize(
    ("own", "level"), [([], 0.9), ([0.0], 0.9), ([1.1], 0.9), ([0.5], 2), ([np.nan], 1)]
)
def test_no_quantile_of_what_is_no_probability(own, level):
    with pytest.raises(ValueError, match="probabilities in"):
        from_quantile(np.array(own), level)


def test_the_best_bin_is_that_of_a_direct_search():
    own, mixed = scores(1, 40, 90)
    w = np.random.default_rng(2).random(90)
    effective = w.sum() ** 2 / (w @ w)
    error = sum(np.sqrt(np.log(4 / 0.1) / (2 * k)) for k in (40, effective))
    best = (np.inf, 0.0)
    for c in np.linspace(own.min() - 1, own.max(), 40001):
        reached, share = (own >= c).mean(), w[mixed >= c].sum() / w.sum()
        best = min(best, (share / reached + 1.01 * error / reached, share / reached))
    assert best_bin(own, mixed, w) == pytest.approx(best[1])


def test_the_best_bin_finds_the_share():
    found = [best_bin(*scores(seed), np.ones(2000)) for seed in range(10)]
    assert np.mean(found) == pytest.approx(PI, abs=0.04)


def test_the_best_bin_reads_only_the_order():
    own, mixed = scores(3, 50, 100)
    ones = np.ones(100)
    assert best_bin(np.exp(own), np.exp(mixed), ones) == best_bin(own, mixed, ones)


def test_a_side_without_items_is_refused():
    some, none = np.ones(3), np.ones(0)
    for sides in ((none, some, some), (some, none, none), (some, some, 0 * some)):
        with pytest.raises(ValueError, match="own and unlabeled"):
            best_bin(*sides)


def test_the_best_bin_agrees_with_another_packages_estimator():
    """KM2 of pu-toolbox (no dependency: pip install pu-toolbox)."""
    prior = pytest.importorskip("pu_toolbox.prior")
    own, mixed = scores(4, 150, 300)
    labels = np.r_[np.ones(150, int), np.zeros(300, int)]
    oracle = prior.KernelMeanPriorEstimator(variant="km2")
    other = oracle.fit(np.r_[own, mixed][:, None], labels).estimate()
    assert best_bin(own, mixed, np.ones(300)) == pytest.approx(other, abs=0.15)
