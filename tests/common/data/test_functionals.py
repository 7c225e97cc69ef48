"""The four functionals that have been called alpha."""

import numpy as np
import pytest

from idiolect.common.config import parse
from idiolect.common.data import personas
from idiolect.common.data.functionals import (
    classifier_mean,
    classifier_odds,
    functionals,
    overlap,
    share_bound,
)
from idiolect.common.data.personas import authors

P, U = (0.9, 0.1), (0.5, 0.5)


def draws(count=50, size=6):
    generator = np.random.default_rng(0)
    for _ in range(count):
        yield generator.dirichlet(np.ones(size)), generator.dirichlet(np.ones(size))


def test_the_example_of_the_page():
    found = functionals(P, U)
    assert found.share_bound == pytest.approx(0.5 / 0.9)
    assert found.classifier_mean == pytest.approx(0.5 * 0.9 / 1.4 + 0.5 * 0.1 / 0.6)
    assert found.classifier_odds == pytest.approx(0.680, abs=5e-4)
    assert found.overlap == pytest.approx(0.6)


def test_the_bound_is_the_largest_share_that_leaves_a_distribution():
    for p, u in draws():
        bound = share_bound(p, u)
        assert (u - bound * p).min() == pytest.approx(0, abs=1e-12)
        assert (u - (bound + 1e-6) * p).min() < 0


def test_the_bound_is_the_least_but_for_the_mean():
    for p, u in draws():
        found = functionals(p, u)
        assert found.share_bound <= min(found.classifier_odds, found.overlap) + 1e-12
        assert 0 <= found.classifier_mean <= 0.5


def test_disjoint_parts_give_back_the_share():
    p, n, pi = np.array([0.2, 0.8, 0, 0]), np.array([0, 0, 0.5, 0.5]), 0.3
    found = functionals(p, pi * p + (1 - pi) * n)
    assert found.classifier_mean == pytest.approx(pi / (1 + pi))
    shares = found.share_bound, found.classifier_odds, found.overlap
    assert shares == pytest.approx((pi, pi, pi))


def test_means_over_both_sides_add_up_to_one():
    for p, u in draws():
        assert classifier_mean(p, u) + (p * p / (p + u)).sum() == pytest.approx(1)


def test_texts_that_only_one_side_writes():
    assert share_bound((1, 0), (0, 1)) == 0
    assert share_bound((1, 0), (0.5, 0.5)) == 0.5  # what p never writes is no bound
    assert overlap((1, 0), (0, 1)) == classifier_mean((1, 0), (0, 1)) == 0


@pytest.mark.parametrize(
    ("p", "u"), [((0.5, 0.6), U), (P, (1.0,)), ((1.5, -0.5), U), ((np.nan, 1), U)]
)
def test_what_is_no_distribution_is_refused(p, u):
    for function in (share_bound, classifier_mean, overlap):
        with pytest.raises(ValueError, match="shapes|no|not a distribution"):
            function(p, u)


def test_odds_of_a_certain_classifier_are_refused():
    with pytest.raises(ValueError, match="mean probability is 1"):
        classifier_odds(1)


@pytest.mark.parametrize("task", ["headline", "tagging", "rating"])
def test_a_persona_is_compared_with_the_mean_of_all_others(task):
    config = parse({"task": task, "users": 3, "development-users": 2, "history": 1})
    data = personas.make(config)
    people = data.everybody
    world = personas.WORLDS[task]
    known = [authors.draw_author(world, 0, u.id, config.persona) for u in people]
    pairs = list(map(authors.distributions(world, known), range(5)))
    for i, user in enumerate(people):
        p, others = pairs[i][0], [q for j, (q, _) in enumerate(pairs) if j != i]
        assert user.truth and user.truth.functionals
        expected = functionals(p, np.mean(others, axis=0))
        found = user.truth.functionals
        assert found.overlap == user.truth.overlap
        for name in ("share_bound", "classifier_mean", "classifier_odds", "overlap"):
            assert getattr(found, name) == pytest.approx(
                getattr(expected, name), rel=1e-6
            )
