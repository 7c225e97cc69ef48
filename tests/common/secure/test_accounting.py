"""What noise costs: the design's epsilons, and a sum whose noise is as large as charged."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from idiolect.common.errors import IdiolectError
from idiolect.common.secure import accounting as ac
from idiolect.common.secure.discrete import discrete_gaussian
from idiolect.common.secure.grid import Grid, fraction_bits
from idiolect.common.secure.masks import keystream
from idiolect.common.secure.neighbours import colluding, required
from idiolect.server.privacy.accountant import Event, epsilons

DELTA = 1e-6


@pytest.mark.parametrize(
    ("most", "z", "releases", "event", "release", "server"),
    [
        (10, 8, 3, Event("adapt", 8), 0.9084, {0: 1.1965, 0.1: 1.3206}),
        (
            1_000,
            8,
            10,
            Event("adapt", 8),
            1.7430,
            {0: 2.3052, 0.1: 2.5487, 0.3: 3.3838},
        ),
        (
            150,
            1,
            50,
            Event("adapt", 1, 0.01, cohort=150, population=10_000),
            0.8199,
            {0: 8.306, 0.1: 9.855},
        ),
    ],
)
def test_the_epsilons_of_the_design(
    most: int, z: float, releases: int, event: Event, release: float, server: dict
) -> None:
    assert epsilons({event: releases}, DELTA).release == pytest.approx(
        release, abs=6e-4
    )
    each = 1 if event.q < 1 else releases  # with sampling the cap is one release
    # Asked on average: 100 of 10,000 in the last case, where the cohort is 150.
    least = required(event.q * event.population or most, 0.6)
    for share, expected in server.items():
        seen = ac.server_z(z, least, colluding(share, most), most)
        epsilon = ac.server_epsilon(seen, each, DELTA)
        assert epsilon == pytest.approx(expected, abs=1e-3)
        # Control: shares of those who work with the server must not count.
        ignored = ac.server_epsilon(ac.server_z(z, least, 0, most), each, DELTA)
        assert (ignored < epsilon) == (share > 0)
    alone = ac.server_epsilon(ac.server_z(z, least, least - 1, most), each, DELTA)
    assert alone == pytest.approx({10: 3.2, 1_000: 137, 150: 132}[most], rel=0.01)


@given(st.integers(1, 10**4), st.floats(0.01, 50), st.floats(1, 2**28))
def test_shares_make_up_the_noise_that_is_charged(
    most: int, z: float, sensitivity: float
) -> None:
    v = ac.share_variance(z, sensitivity, most)
    whole = (Fraction(z) * Fraction(sensitivity)) ** 2
    assert most * (v - 16) >= whole > most * (v - 17)
    for users in {0, 1, most // 2, most}:
        assert users * v + ac.top_up(v, most, users) == most * v
        if users:  # what the server sees, less what the proof takes, is what is charged
            seen = Fraction(ac.server_z(z, users, 0, most)) * Fraction(sensitivity)
            assert users * v - 16 >= seen**2 * (1 - Fraction(1, 2**50))


def energy(total: np.ndarray, variance: int) -> float:
    """Standard deviations by which a sum's energy differs from that of its noise."""
    mean = float(np.mean(total.astype(float) ** 2)) / variance
    return (mean - 1) / math.sqrt(2 / total.size)


def test_the_noise_of_a_sum_is_what_is_charged_and_hides_who_is_missing() -> None:
    """Controls: a top-up forgotten, shares of all the noise, noise drawn again."""
    most, users, z, d = 10, 7, 2.0, 20_000
    grid = Grid(1.0, fraction_bits(most, z))
    v = ac.share_variance(z, grid.sensitivity, most)

    def drawn(variance: int, key: int) -> np.ndarray:
        return discrete_gaussian(d, variance, keystream(key.to_bytes(32, "big")))

    opened = sum((drawn(v, i) for i in range(users)), np.zeros(d, np.int64))
    added = drawn(ac.top_up(v, most, users), 99)
    charged = math.ceil((z * grid.sensitivity) ** 2)
    assert abs(energy(opened, users * v)) < 5
    assert abs(energy(opened + added, charged)) < 5
    assert energy(opened, charged) < -20  # without a top-up
    whole = ac.share_variance(z, grid.sensitivity, 1)  # v without / n
    unshared = sum((drawn(whole, i) for i in range(users)), np.zeros(d, np.int64))
    assert energy(unshared, charged) > 20
    again = sum((drawn(v, 0) for _ in range(users)), np.zeros(d, np.int64))
    assert energy(again, users * v) > 20  # all from one seed: no independent shares


def test_edges() -> None:
    assert ac.share_variance(0, 2.0**20, 10) == 0
    assert ac.share_variance(1, 10, 1) == 116
    assert ac.share_variance(1, 10, 3) == 34 + 16
    assert ac.server_z(2.0, 5, 5, 10) == ac.server_z(2.0, 5, 9, 10) == 0
    assert ac.server_epsilon(0, 1, DELTA) == math.inf
    assert ac.server_epsilon(0, 0, DELTA) == 0
    assert ac.server_z(2.0, 10, 0, 10) == 2.0


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda: ac.share_variance(-1, 1, 1), "noise of multiplier -1"),
        (lambda: ac.share_variance(math.inf, 1, 1), "noise of multiplier inf"),
        (lambda: ac.share_variance(math.nan, 1, 1), "noise of multiplier nan"),
        (lambda: ac.share_variance(1, 1, 0), "over 0 members"),
        (lambda: ac.top_up(5, 10, 11), "a sum of 11 rows is not one of at most 10"),
        (lambda: ac.top_up(5, 10, -1), "nothing can be published"),
        (lambda: ac.server_z(1, 0, 0, 10), "0 of 10 rows"),
        (lambda: ac.server_z(1, 11, 0, 10), "11 of 10 rows"),
        (lambda: ac.server_z(1, 5, -1, 10), "with -1 corrupt ones"),
    ],
)
def test_what_cannot_be_is_refused(wrong, sentence: str) -> None:
    with pytest.raises(IdiolectError, match=sentence):
        wrong()
