"""Rows as integers: exact, never longer, the same as the sums of a run without masks."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from idiolect.common.errors import IdiolectError
from idiolect.common.secure import grid as g
from idiolect.common.secure.grid import Grid
from idiolect.server.run.sums import clipped_sum

numbers = st.floats(-1e12, 1e12, allow_nan=False)
tables = arrays(
    np.float64,
    st.tuples(st.integers(1, 6), st.integers(1, 7)),
    elements=numbers | st.floats(-2, 2),
)
grids = st.builds(Grid, st.floats(1e-6, 1e6), st.integers(1, 28), st.just(32)) | (
    st.builds(Grid, st.floats(1e-6, 1e6), st.integers(1, 32), st.just(64))
)


def norms(rows: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(rows).sum(-1))


@given(tables, grids)
def test_a_row_is_cut_towards_zero_and_not_longer_than_its_clip(
    rows: np.ndarray, grid: Grid
) -> None:
    whole = g.cut(rows, norms(rows), grid)
    assert whole.dtype == np.int64
    for row, cut in zip(rows, whole, strict=True):
        assert sum(int(q) ** 2 for q in cut) == g.squares(cut) <= grid.most_squares
        assert all(int(q) * float(x) >= 0 for q, x in zip(cut, row, strict=True))
        assert (np.abs(g.values(cut, grid)) <= np.abs(row)).all()
        if norms(row) <= grid.clip * g.MARGIN:
            assert (np.abs(row - g.values(cut, grid)) < grid.unit).all()


@given(tables, st.floats(1e-6, 1e6))
def test_at_32_bits_the_sum_is_that_of_a_run_without_masks(
    rows: np.ndarray, clip: float
) -> None:
    grid = Grid(clip, 32, 64)
    total = g.words(g.cut(rows, norms(rows), grid), 64).sum(0, dtype="<u8")
    plain, _ = clipped_sum({"row": rows}, clip)
    assert g.values(g.lift(total), grid).tobytes() == (plain["row"] + 0.0).tobytes()


@given(
    st.sampled_from([32, 64]).flatmap(
        lambda w: st.tuples(
            st.just(w),
            st.lists(
                st.integers(-(2 ** (w - 4)), 2 ** (w - 4)), min_size=1, max_size=7
            ),
        )
    )
)
def test_a_sum_in_words_is_the_sum_of_the_integers(case: tuple[int, list[int]]) -> None:
    word, integers = case
    total = g.words(np.array(integers), word).sum(dtype=g.WORDS[word])
    assert int(g.lift(total.reshape(1))[0]) == sum(integers)


@pytest.mark.parametrize("word", [32, 64])
def test_the_extremes_of_a_word_and_what_wraps_around(word: int) -> None:
    top = 2 ** (word - 1)
    for value in (-top, -top + 1, -1, 0, 1, top - 1):
        assert g.lift(g.words(np.array([value]), word))[0] == value
    above = g.words(np.array([top - 1]), word) + g.words(np.array([1]), word)
    assert g.lift(above)[0] == -top
    assert g.words(np.array([-2]), 32).tobytes() == b"\xfe\xff\xff\xff"


@given(st.integers(1, 10**6), st.floats(0, 100))
def test_neither_data_nor_eight_deviations_of_noise_wrap_around(
    most: int, z: float
) -> None:
    bits = g.fraction_bits(most, z)

    def needed(f: int) -> float:
        share = math.ceil((Fraction(z) * 2**f) ** 2 / most) + g.SMOOTHING
        return most * 2**f + 8 * math.sqrt(most * share)

    assert needed(bits) < 2**31
    assert bits == 28 or needed(bits + 1) >= 2**31 * (1 - 1e-12)
    ends = np.array([most * (2**bits - 1), -most * (2**bits - 1)])
    assert (g.lift(g.words(ends, 32)) == ends).all()


def test_the_bits_of_the_design() -> None:
    assert [g.fraction_bits(n, 8) for n in (10, 100, 1_000, 10_000)] == [24, 23, 20, 17]


@pytest.mark.parametrize(
    ("clip", "unit", "sensitivity"),
    [(1.0, 2.0**-27, 2**27), (3.0, 2.0**-26, 3 * 2**26), (0.75, 2.0**-28, 3 * 2**26)],
)
def test_unit_and_sensitivity(clip: float, unit: float, sensitivity: float) -> None:
    grid = Grid(clip, 28)
    assert (grid.unit, grid.sensitivity) == (unit, sensitivity)
    assert grid.sensitivity * grid.unit == clip
    longest = np.array([clip])
    assert g.cut(longest, norms(longest), grid)[0] == math.floor(sensitivity * g.MARGIN)


def test_squares_of_the_longest_integers_are_exact() -> None:
    row = np.array([2**32, -(2**32), 2**32 - 1, 3])
    assert g.squares(row) == sum(int(q) ** 2 for q in row)


@pytest.mark.parametrize("users", [10, 1000])
def test_a_wrong_mask_is_not_plausible_and_a_right_sum_is(users: int) -> None:
    rng = np.random.default_rng(1)
    grid = Grid(1.0, g.fraction_bits(users, 8), 32)
    variance = math.ceil((8 * grid.sensitivity) ** 2)
    for _ in range(200):
        noise = np.rint(rng.normal(0, variance**0.5, 50)).astype(np.int64)
        row = rng.normal(size=50)
        rows = users * g.cut(row, np.array(norms(row)), grid)
        assert g.plausible(rows + noise, users, variance, grid)
        mask = np.frombuffer(rng.bytes(200), "<u4")
        wrong = g.lift(g.words(rows + noise, 32) + mask)
        assert not g.plausible(wrong, users, variance, grid)
    assert g.plausible(np.zeros(0, np.int64), users, variance, grid)
    one = np.zeros(50, np.int64)
    one[3] = users * 2**grid.bits + math.ceil(12 * variance**0.5) + 1
    assert not g.plausible(one, users, variance, grid)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda: Grid(0.0, 8), "a clip of 0.0 bounds nothing"),
        (lambda: Grid(-1.0, 8), "bounds nothing"),
        (lambda: Grid(math.inf, 8), "bounds nothing"),
        (lambda: Grid(math.nan, 8), "bounds nothing"),
        (lambda: Grid(1.0, 8, 16), "words of 16 bits are not known"),
        (lambda: Grid(1.0, 31), "use 1 to 30"),
        (lambda: Grid(1.0, 33, 64), "use 1 to 32"),
        (lambda: Grid(1.0, 0), "a grid of 0 bits"),
        (lambda: g.fraction_bits(0, 1), "a sum of 0 rows"),
        (lambda: g.fraction_bits(5, math.nan), "noise multiplier of nan"),
        (lambda: g.fraction_bits(5, -1), "noise multiplier of -1"),
        (lambda: g.fraction_bits(5, math.inf), "noise multiplier of inf"),
        (lambda: g.fraction_bits(2**31, 0), "do not fit into 32 bits"),
        (lambda: g.fraction_bits(5, 1e9), "use fewer users or less noise"),
        (
            lambda: g.cut(np.array([math.nan]), np.array(1.0), Grid(1.0, 8)),
            "not finite",
        ),
        (
            lambda: g.cut(np.array([math.inf]), np.array(1.0), Grid(1.0, 8)),
            "not finite",
        ),
        (
            lambda: g.cut(np.array([1.0]), np.array(math.nan), Grid(1.0, 8)),
            "not finite",
        ),
        (lambda: g.cut(np.array([5.0]), np.array(1.0), Grid(1.0, 8)), "longer than"),
        (
            lambda: g.cut(np.array([0.9] * 2), np.array(1.0), Grid(1.0, 8)),
            "longer than",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(wrong, sentence: str) -> None:
    with pytest.raises(IdiolectError, match=sentence) as refusal:
        wrong()
    assert str(refusal.value).endswith(".") and "\n" not in str(refusal.value)
