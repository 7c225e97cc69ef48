"""Noise and coins: their distribution, and where their bits come from."""

import os

import numpy as np
import pytest
import scipy.stats

from idiolect.common.privacy.noise import coins, gaussian, source, uniform

NAMES = tuple(f"user-{i}" for i in range(200))


def test_noise_is_gaussian_of_the_given_size():
    """Kolmogorov-Smirnov on 200,000 seeded draws; alarms falsely in 1 of 1,000 seeds."""
    draws = gaussian((400, 500), 3.0, source(True, 7, "noise"))
    assert draws.shape == (400, 500)
    assert scipy.stats.kstest(draws.ravel() / 3.0, "norm").pvalue > 1e-3
    # The four draws that are added up must be independent, and so must neighbours be.
    assert abs(np.corrcoef(draws[:, :-1].ravel(), draws[:, 1:].ravel())[0, 1]) < 0.01
    first, second = np.split(draws.ravel(), 2)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.012
    assert abs(np.corrcoef(first**2, second**2)[0, 1]) < 0.012


def test_no_noise_draws_no_bits():
    def exhausted(_count: int) -> bytes:
        raise AssertionError("bits were drawn")

    assert not gaussian((3, 2), 0.0, exhausted).any()


def test_uniform_numbers_reach_one_and_never_zero():
    assert uniform(1, lambda n: bytes(n))[0] == 2.0**-53
    assert uniform(1, lambda n: b"\xff" * n)[0] == 1.0
    assert np.isfinite(gaussian((1,), 1.0, lambda n: bytes(n))).all()


def test_bits_come_from_the_operating_system_unless_seeded():
    assert source(False, 1, "x") is os.urandom
    one, again = (source(True, 1, "x")(64) for _ in range(2))
    assert one == again != source(True, 1, "y")(64)
    assert one != source(True, 2, "x")(64)


def test_a_seeded_source_goes_on_and_does_not_begin_anew():
    random = source(True, 1, "x")
    assert random(16) != random(16)


def test_everybody_takes_part_with_chance_one():
    assert coins(NAMES, 1.0, 0, os.urandom) == NAMES


def test_coins_are_independent_and_fair():
    """Binomial counts; 5 standard deviations alarm falsely once in 10^6."""
    random = source(True, 3, "coins")
    rounds = [set(coins(NAMES, 0.3, 0, random)) for _ in range(400)]
    sizes = np.array([len(taken) for taken in rounds])
    assert abs(sizes.mean() - 60) < 5 * np.sqrt(200 * 0.21 / 400)
    # Poisson sampling: the cohort's size varies as a binomial does, and is not fixed.
    assert sizes.var() == pytest.approx(200 * 0.21, rel=0.4)
    both = np.mean([NAMES[0] in taken and NAMES[1] in taken for taken in rounds])
    assert both == pytest.approx(0.09, abs=5 * np.sqrt(0.09 * 0.91 / 400))


def test_a_cohort_is_cut_to_a_uniform_part():
    random = source(True, 4, "cohort")
    counts = dict.fromkeys(NAMES, 0)
    for _ in range(300):
        taken = coins(NAMES, 0.5, 20, random)
        assert len(taken) == 20
        assert list(taken) == sorted(taken, key=NAMES.index)
        for name in taken:
            counts[name] += 1
    # 300 draws at 1/10: mean 30, deviation 5.2; the first are no likelier than the last.
    values = np.array(list(counts.values()))
    assert values.max() < 30 + 6 * 5.2
    assert abs(values[:100].mean() - values[100:].mean()) < 5 * 5.2 * np.sqrt(2 / 100)


def test_nobody_can_be_named():
    assert coins((), 0.5, 3, os.urandom) == ()
    assert coins(NAMES, 1e-6, 0, source(True, 5, "rare")) == ()
