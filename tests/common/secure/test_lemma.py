"""The lemma of docs/secure-noise.md, in numbers: real noise bounds noise on the integers.

Small variances make the error terms visible; 200 digits do it at those in use.
"""

import math
from collections.abc import Callable

import mpmath
import numpy as np
import pytest

from idiolect.common.privacy.protected import gaussian_epsilon
from idiolect.common.secure.grid import SMOOTHING


def error(variance: float) -> float:
    """eta(v) of the page: how far a sum over the integers may be from the integral."""
    return 2 * math.exp(-2 * math.pi**2 * variance) * (1 + math.exp(-4 * variance))


def discrete(x: np.ndarray, centre: float, variance: float) -> np.ndarray:
    """Mass of the discrete Gaussian on the integers around a centre."""
    numbers = np.arange(-200, 201)
    whole = np.exp(-((numbers - centre) ** 2) / (2 * variance)).sum()
    return np.exp(-((x - centre) ** 2) / (2 * variance)) / whole


def test_a_gaussian_on_the_integers_has_nearly_the_mass_of_the_line() -> None:
    """Claim 1, and its constant is the least."""
    mpmath.mp.dps = 200
    for variance in (0.3, 1.0, SMOOTHING):
        bound = 2 * mpmath.exp(-2 * mpmath.pi**2 * variance)
        bound *= 1 + mpmath.exp(-4 * variance)
        for centre in (0, mpmath.mpf(1) / 3, mpmath.mpf(1) / 2):
            terms = (
                mpmath.exp(-((x - centre) ** 2) / (2 * mpmath.mpf(variance)))
                for x in range(-190, 191)
            )
            whole = mpmath.fsum(terms) / mpmath.sqrt(2 * mpmath.pi * variance)
            assert abs(whole - 1) <= bound
            if centre == 0:  # attained, but for the second term
                assert abs(whole - 1) > bound * (1 - 2 * mpmath.exp(-4 * variance))
    assert bound < mpmath.mpf(10) ** -136  # at variance 16


@pytest.mark.parametrize("centre", [0.0, 0.3, 0.5])
@pytest.mark.parametrize(
    ("variance", "smoothing"), [(0.9, 0.3), (1.5, 0.4), (5.0, 0.5)]
)
def test_rounding_a_gaussian_by_a_gaussian_gives_a_discrete_one(
    variance: float, smoothing: float, centre: float
) -> None:
    """Claim 2: X around a real Y has nearly the mass of a discrete Gaussian."""
    y = np.linspace(centre - 30, centre + 30, 60_001)
    real = np.exp(-((y - centre) ** 2) / (2 * (variance - smoothing)))
    real /= real.sum()
    x = np.arange(-6, 7)
    numbers = np.arange(-60, 61)
    whole = np.exp(-((numbers[:, None] - y) ** 2) / (2 * smoothing)).sum(0)
    mass = np.array(
        [(real * np.exp(-((k - y) ** 2) / (2 * smoothing)) / whole).sum() for k in x]
    )
    ratio = mass / discrete(x, centre, variance)
    least = (1 - error(variance)) / (1 + error(smoothing))
    most = (1 + error(variance)) / (1 - error(smoothing))
    assert (ratio >= least - 1e-12).all() and (ratio <= most + 1e-12).all()
    assert np.abs(ratio - 1).max() > 1e-9  # a factor is needed: the claim is not exact
    # Control: a real Gaussian that is rounded is not within the bounds.
    borders = (np.append(x, x[-1] + 1) - 0.5 - centre) / (2 * variance) ** 0.5
    rounded = np.diff([math.erf(border) / 2 for border in borders])
    off = rounded / discrete(x, centre, variance)
    assert off.min() < least or off.max() > most


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (0.6, 1.1), (0.5, 4.0)])
def test_a_sum_of_discrete_gaussians_is_nearly_one(a: float, b: float) -> None:
    """Claim 3, with c = ab / (a + b)."""
    x = np.arange(-8, 9)
    numbers = np.arange(-80, 81)
    mass = np.array(
        [(discrete(numbers, 0, a) * discrete(k - numbers, 0, b)).sum() for k in x]
    )
    ratio = mass / discrete(x, 0, a + b)
    c = error(a * b / (a + b))
    assert (ratio >= (1 - c) / (1 + c) - 1e-12).all()
    assert (ratio <= (1 + c) / (1 - c) + 1e-12).all()
    assert ratio.max() / ratio.min() - 1 > c / 10


def test_the_constants_of_the_page_at_the_variances_in_use() -> None:
    mpmath.mp.dps = 60
    claim2 = 2 * 2 * mpmath.exp(-2 * mpmath.pi**2 * SMOOTHING) * 1.01
    claim3 = 2 * 2 * mpmath.exp(-(mpmath.pi**2) * SMOOTHING) * 1.01
    assert claim2 < mpmath.mpf(10) ** -136
    assert claim3 < mpmath.mpf(10) ** -67
    shares, coordinates = 10**4, 10**7
    assert (claim3 * shares + claim2) * coordinates < mpmath.mpf(10) ** -56


# --- privacy: noise on the integers is not worse than the Gaussian that bounds it ---------


def spill(shift: tuple[int, ...], variance: float) -> Callable[[float], float]:
    """delta(epsilon) of discrete Gaussian noise in some dimensions, for one shift of it."""
    reach = math.ceil(11 * variance**0.5) + max(shift)
    axis = np.arange(-reach, reach + 1)
    here = there = np.ones(())
    for by in shift:
        here = here[..., None] * discrete(axis, 0, variance)
        there = there[..., None] * discrete(axis, by, variance)
    return lambda epsilon: float(np.maximum(here - math.exp(epsilon) * there, 0).sum())


def gaussian_spill(z: float, epsilon: float) -> float:
    """delta(epsilon) of a real Gaussian (Balle and Wang 2018)."""
    a, b = epsilon * z, 1 / (2 * z)
    phi = [math.erfc((a + sign * b) / math.sqrt(2)) / 2 for sign in (-1, 1)]
    return phi[0] - math.exp(epsilon) * phi[1]


def epsilon_at(delta: float, of: Callable[[float], float]) -> float:
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if of(middle) <= delta else (middle, high)
    return high


def test_the_epsilons_of_the_design_in_one_dimension() -> None:
    assert epsilon_at(1e-6, spill((20,), 400)) == pytest.approx(4.8868, abs=1e-4)
    assert gaussian_epsilon(1, 1e-6) == pytest.approx(4.8866, abs=1e-4)
    bound = gaussian_epsilon(400 / (400 - SMOOTHING), 1e-6)
    assert bound == pytest.approx(5.0015, abs=1e-4)


@pytest.mark.parametrize(
    ("shift", "variance"),
    [
        ((3,), 17.0),
        ((20,), 400.0),
        ((3, 4), 41.0),
        ((12, 16), 400.0),
        ((5, 0), 41.0),
        ((1, 1), 18.0),
        ((2, 2, 1), 25.0),
        ((1, 1, 1), 18.0),
    ],
)
def test_the_bound_holds_in_one_and_several_dimensions(
    shift: tuple[int, ...], variance: float
) -> None:
    exact = spill(shift, variance)
    norm = math.hypot(*shift)
    z = (variance - SMOOTHING) ** 0.5 / norm
    assert exact(0.0) > 0
    for epsilon in (0.0, 0.1, 0.5, 1.0, 2.0, 4.0):
        assert exact(epsilon) <= gaussian_spill(z, epsilon) + 1e-13


def test_without_the_16_the_bound_is_too_small() -> None:
    """Control: a discrete Gaussian may be worse than the real one of its own variance."""
    exact, real = spill((20,), 400), gaussian_spill(1.0, 4.8866)
    assert exact(4.8866) > real
    small = spill((1,), 0.5)
    worse = [
        e / 10 for e in range(60) if small(e / 10) > gaussian_spill(0.5**0.5, e / 10)
    ]
    assert worse


def test_the_noise_of_many_members_as_the_server_sees_it() -> None:
    """The whole path: m members' shares are added, one member's row moves the sum."""
    members, v, shift = 5, 21, 6
    axis = np.arange(-160, 161)
    one = discrete(axis, 0, v)
    mass = one
    for _ in range(members - 1):
        mass = np.convolve(mass, one)
    moved = np.concatenate([np.zeros(shift), mass])
    mass = np.concatenate([mass, np.zeros(shift)])
    z = math.sqrt(members * (v - SMOOTHING)) / shift  # as `server_z` has it
    for epsilon in (0.0, 0.5, 1.0, 3.0):
        delta = np.maximum(mass - math.exp(epsilon) * moved, 0).sum()
        assert delta <= gaussian_spill(z, epsilon) + 1e-13
