"""Randomness is the same everywhere, and different for every purpose."""

import numpy as np
import pytest

from idiolect.common.seeds import derive, fixed_uniform, numpy_generator


def test_a_seed_is_pinned() -> None:
    # A change here changes every run: resume and shared A would break.
    assert derive(0, "batches", "u1", 2) == 1976492902005056045
    assert derive(0) == 3456079177858693020


def test_names_are_not_run_together() -> None:
    assert derive(0, "a", "bc") != derive(0, "ab", "c")
    assert derive(1, "a") != derive(0, "a")
    assert 0 <= derive(0, "a") < 2**63


def test_generators_of_one_purpose_agree() -> None:
    one, two = numpy_generator(3, "vote"), numpy_generator(3, "vote")
    np.testing.assert_array_equal(one.random(5), two.random(5))
    assert numpy_generator(3, "draw").random() != numpy_generator(3, "vote").random()


def test_fixed_uniform_is_pinned_bit_for_bit() -> None:
    drawn = fixed_uniform((2, 2), 0, "A")
    assert drawn.dtype == np.float32
    scaled = (
        drawn.astype(np.float64) * 2**23
    ).tolist()  # whole numbers: nothing was rounded
    assert scaled == [[8376201, -7074844], [6069492, -5751266]]


def test_fixed_uniform_is_uniform() -> None:
    """20,000 draws: mean within 4 standard errors (false alarm 6e-5), range [-1, 1)."""
    drawn = fixed_uniform((20_000,), 1, "A").astype(np.float64)
    assert drawn.min() >= -1
    assert drawn.max() < 1
    assert abs(float(drawn.mean())) < 4 / np.sqrt(3 * 20_000)
    assert float(np.square(drawn).mean()) == pytest.approx(1 / 3, abs=0.01)


def test_fixed_uniform_depends_on_its_names() -> None:
    one, two = (fixed_uniform((8,), 0, name) for name in ("layer.0", "layer.1"))
    assert not np.array_equal(one, two)
