"""The sampler: the design's vector, the right distribution, and the slow path."""

import math
from collections import Counter
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import chi2

from idiolect.common.errors import IdiolectError
from idiolect.common.secure import discrete
from idiolect.common.secure.discrete import Bits, discrete_gaussian
from idiolect.common.secure.masks import keystream


def source(number: int):
    return keystream(number.to_bytes(32, "big"))


def test_the_vector_of_the_design() -> None:
    drawn = discrete_gaussian(8, 10**6, keystream(bytes(range(32))))
    assert drawn.tolist() == [-786, 446, 305, -748, -884, 882, -1406, -317]


def p_value(drawn: np.ndarray, variance: int) -> float:
    """Of a chi squared test against the mass function; the tails are one bin each."""
    ends = math.ceil(3 * variance**0.5)
    numbers = np.arange(-40 * ends, 40 * ends + 1)
    mass = np.exp(-(numbers**2) / (2 * variance))
    mass /= mass.sum()
    inner = np.abs(numbers) <= ends
    expected = np.array(
        [
            mass[numbers < -ends].sum(),
            *mass[inner],
            mass[numbers > ends].sum(),
        ]
    ) * len(drawn)
    counts = Counter(np.clip(drawn, -ends - 1, ends + 1).tolist())
    seen = np.array([counts[i] for i in range(-ends - 1, ends + 2)])
    keep = expected > 5
    statistic = ((seen - expected)[keep] ** 2 / expected[keep]).sum()
    return float(chi2.sf(statistic, keep.sum() - 1))


@pytest.mark.parametrize("variance", [1, 2, 5, 16, 333])
def test_draws_have_the_mass_of_the_discrete_gaussian(variance: int) -> None:
    drawn = discrete_gaussian(150_000, variance, source(variance))
    assert p_value(drawn, variance) > 1e-3
    # Controls: another variance, and rounded real noise, do not pass.
    assert p_value(drawn, variance + 1 + variance // 20) < 1e-6
    rng = np.random.default_rng(1)
    rounded = np.rint(rng.normal(0, variance**0.5, 150_000)).astype(int)
    assert p_value(rounded, variance) < 1e-6 or variance > 2


def test_large_noise_has_its_moments_and_no_repetition() -> None:
    drawn = discrete_gaussian(200_000, 2**50, source(3))
    scaled = drawn / 2.0**25
    assert abs(scaled.mean()) < 5 / 200_000**0.5
    assert abs(scaled.var() - 1) < 5 * (2 / 200_000) ** 0.5
    assert abs((scaled**4).mean() - 3) < 5 * (96 / 200_000) ** 0.5
    assert len(set(drawn.tolist())) > 199_000


def test_where_digits_are_short_more_are_taken_and_nothing_changes() -> None:
    """All coins by the slow path: the same draws, for the same bytes."""
    for variance in (1, 16, 10**6, 2**56):
        fast = discrete_gaussian(300, variance, source(1))
        slow = discrete_gaussian(300, variance, source(1), close=1e30)
        assert (fast == slow).all()


def test_a_coin_that_lies_on_its_chance_takes_more_bits() -> None:
    exponent = Fraction(7, 10)
    word = int(Decimal("-0.7").exp() * 2**64)  # the first 64 bits of e^-0.7
    asked = []

    def low(count: int) -> bytes:
        asked.append(count)
        return bytes(count)

    assert Bits(word, low).below(exponent)
    assert not Bits(word, lambda count: b"\xff" * count).below(exponent)
    assert Bits(word - 1, low).below(exponent) and not Bits(word + 1, low).below(
        exponent
    )
    assert asked == [8]


def test_the_geometric_numbers_and_their_borders() -> None:
    drawn = discrete._geometric(200_000, source(5))
    for k in range(6):
        assert abs((drawn >= k).mean() - math.exp(-k)) < 5 * math.exp(-k / 2) / 447
    for k in (1, 2, 40):
        step = int(discrete._UP[::-1][k - 1])
        for word, rest, expected in (
            (step - 1, 7, k),
            (step + 1, 0, k - 1),
            (step, 0, k),
            (step, 255, k - 1),
        ):
            answers = iter([word.to_bytes(8, "little")])
            more = bytes([rest]) * 8
            found = discrete._geometric(1, lambda _, a=answers, m=more: next(a, m))[0]
            assert found == expected


def test_remainders_are_uniform_also_above_the_last_whole_multiple() -> None:
    scale = 2**63 + 5  # nearly half of the words must be drawn again
    drawn = discrete._below(2**40 + 1, 10_000, source(1))
    assert drawn.min() >= 0 and drawn.max() <= 2**40
    words = iter([b"\xff" * 8, (7).to_bytes(8, "little")])
    assert discrete._below(scale, 1, lambda _: next(words)).tolist() == [7]
    counts = np.bincount(discrete._below(10, 100_000, source(2)))
    assert ((counts - 10_000) ** 2 / 10_000).sum() < chi2.isf(1e-4, 9)


def test_blocks_bound_memory_and_join(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    usual = discrete._candidates
    monkeypatch.setattr(
        discrete, "_candidates", lambda n, *rest: sizes.append(n) or usual(n, *rest)
    )
    assert len(discrete_gaussian(100_000, 9, source(1))) == 100_000
    assert max(sizes) == discrete.BLOCK and len(sizes) > 3


def test_no_noise_draws_nothing_and_noise_that_is_none_is_refused() -> None:
    def never(count: int) -> bytes:
        raise AssertionError(count)

    assert discrete_gaussian(3, 0, never).tolist() == [0, 0, 0]
    assert discrete_gaussian(0, 5, never).tolist() == []
    for variance in (-1, 2**60 + 1):
        with pytest.raises(IdiolectError, match="is none: use 0 to 2\\^60"):
            discrete_gaussian(3, variance, never)
