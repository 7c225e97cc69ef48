import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import rankdata

from idiolect.common.unlabeled.overlap import (
    DEFAULT,
    HIGHEST,
    estimate,
    in_span,
    ridge_logistic,
    standardise,
)


def draw(seed=0):
    return np.random.default_rng(seed)


def mixture(generator, count, share, d=12, gap=4.0):
    """`count` points, a `share` of them from the target's distribution."""
    centre = np.zeros(d)
    centre[0] = gap
    own = generator.random(count) < share
    return generator.normal(size=(count, d)) + own[:, None] * centre


def test_ridge_logistic_is_the_minimum():
    generator = draw()
    x, y = generator.normal(size=(12, 5)), np.sign(generator.normal(size=12))
    w = generator.random(12)

    def objective(c):
        fit = np.sum(w * np.log1p(np.exp(-y * (x @ c))))
        return fit + 0.7 / (2 * len(x)) * c @ c

    best = minimize(objective, np.zeros(5), tol=1e-12).x
    np.testing.assert_allclose(ridge_logistic(x, y, w, 0.7), best, atol=1e-5)


def test_coordinates_in_the_span_keep_all_products():
    wide = draw().normal(size=(6, 40))
    rows = np.concatenate([wide, wide[:2], np.zeros((1, 40))])
    found = in_span(rows)
    assert found.shape == (9, 6)
    np.testing.assert_allclose(found @ found.T, rows @ rows.T, atol=1e-9)


def test_alpha_rises_with_the_true_overlap():
    # 30 users; under independence |rho| > .8 has probability below 1e-6.
    generator = draw(1)
    shares = generator.random(30) * 0.9
    found = [
        estimate(
            mixture(generator, 32, 1.0),
            mixture(generator, 32, share),
            np.ones(32),
            draw(2),
        ).alpha
        for share in shares
    ]
    assert np.corrcoef(rankdata(shares), rankdata(found))[0, 1] > 0.8


def test_indistinguishable_users_have_one_half():
    generator = draw(3)
    found = [
        estimate(
            mixture(generator, 32, 0.0),
            mixture(generator, 32, 0.0),
            np.ones(32),
            draw(k),
        ).alpha
        for k in range(20)
    ]
    assert np.mean(found) == pytest.approx(0.5, abs=0.05)


def test_cross_fitting_keeps_alpha_up_with_more_dimensions_than_items():
    generator = draw(4)
    # 16 + 16 items in 400 dimensions are separable by heart; a classifier judged on its
    # own training items would call every unlabeled item foreign.
    found = estimate(
        generator.normal(size=(16, 400)),
        generator.normal(size=(16, 400)),
        np.ones(16),
        draw(5),
    )
    assert found.alpha > 0.3
    assert found.estimated


def test_class_sizes_do_not_matter():
    generator = draw(6)
    target = mixture(generator, 32, 1.0)
    few, many = mixture(generator, 32, 0.3), mixture(generator, 320, 0.3)
    one = estimate(target, few, np.ones(32), draw(7)).alpha
    two = estimate(target, many, np.ones(320), draw(7)).alpha
    assert one == pytest.approx(two, abs=0.12)


def test_weights_choose_the_population():
    generator = draw(8)
    target = mixture(generator, 32, 1.0)
    like, unlike = mixture(generator, 20, 1.0), mixture(generator, 20, 0.0)
    both = np.concatenate([like, unlike])
    alphas = [
        estimate(target, both, np.repeat(weights, 20), draw(9)).alpha
        for weights in ([1.0, 0.05], [0.05, 1.0])
    ]
    assert alphas[0] > alphas[1] + 0.1


def test_too_little_data_gives_the_default():
    few, many = np.zeros((3, 4)), np.ones((9, 4))
    for target, unlabeled in ((few, many), (many, few)):
        found = estimate(target, unlabeled, np.ones(len(unlabeled)), draw())
        assert (found.alpha, found.estimated) == (DEFAULT, False)


def test_alpha_stays_in_its_range_with_constant_features():
    found = estimate(np.ones((8, 3)), np.ones((8, 3)), np.ones(8), draw())
    assert 0 <= found.alpha <= HIGHEST
    assert found.alpha == pytest.approx(0.5)


def test_alpha_never_exceeds_its_highest_value():
    # A classifier that never saw the direction of the held-out unlabeled item takes it
    # for the user's: the mean probability is 0.98 here.
    unlabeled = np.eye(10)
    found = estimate(np.full((10, 10), 1 / 9), unlabeled, np.ones(10), draw())
    assert found.alpha == HIGHEST


def test_standardised_on_the_unlabeled_set():
    generator = draw(10)
    unlabeled = generator.normal(5.0, 3.0, size=(50, 4))
    rows = standardise(unlabeled, unlabeled)
    np.testing.assert_allclose(rows.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose((rows**2).sum(1).mean(), 1.0)
