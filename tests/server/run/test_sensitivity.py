"""How far one user can move a release: never farther than the noise was made for."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from idiolect.common.data.metrics import bounded_row
from idiolect.common.errors import IdiolectError
from idiolect.common.protocol.messages import AdaptReply, ProtocolError
from idiolect.common.protocol.packing import pack
from idiolect.common.protocol.validation import row_norms, valid_votes
from idiolect.common.unlabeled.votes import ballot
from idiolect.server.run.remote import contribution, valid_marks
from idiolect.server.run.sums import Sum, clipped_sum, sum_of_unit
from idiolect.server.run.sums import sum_rows as sum_of

# Anything that float32 holds: zeros, subnormals, 3e38, infinities, NaN.
ANYTHING = st.floats(width=32, allow_nan=True, allow_infinity=True)
SHAPES = {"q": (3, 2), "v": (2, 2)}


def rows(users: int):
    return st.fixed_dictionaries(
        {
            name: hnp.arrays(np.float32, (users, *shape), elements=ANYTHING)
            for name, shape in SHAPES.items()
        }
    )


def reply(given_rows: dict[str, np.ndarray]) -> AdaptReply:
    users = tuple(f"u{i}" for i in range(len(given_rows["q"])))
    return AdaptReply("r", "s", users, {}, 0.0, "p", 0.0, given_rows)


def sum_rows(given: AdaptReply, clip: float) -> Sum:
    return sum_of(given.users, given.rows, clip)


def flat(total: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([total[name].ravel() for name in sorted(total)])


@settings(max_examples=200, deadline=None)
@given(rows(4), st.floats(1e-3, 1e3))
def test_adding_a_user_moves_the_sum_by_no_more_than_the_clip(everybody, clip):
    without = {name: array[:-1] for name, array in everybody.items()}
    one, other = (sum_rows(reply(part), clip) for part in (everybody, without))
    assert all(np.isfinite(array).all() for array in one.total.values())
    moved = np.linalg.norm(flat(one.total) - flat(other.total))
    assert moved <= clip * (1 + 1e-6)
    # The clip bit: of those who count, at most one more is within.
    assert abs(one.within - other.within) <= 1
    assert abs(len(one.users) - len(other.users)) <= 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_counts_for_nobody(value):
    bad = {name: np.ones((2, *shape), np.float32) for name, shape in SHAPES.items()}
    bad["q"][1, 0, 0] = value
    found = sum_rows(reply(bad), 1.0)
    assert found.users == ["u0"]
    read = contribution(SHAPES, 1.0, False)(pack(reply(bad)))
    assert read.users == ("u0",) and "not finite" in read.errors["u1"]
    assert np.linalg.norm(flat(found.total)) == pytest.approx(1.0)


def test_a_zero_row_is_zero_and_a_huge_one_has_the_clips_length():
    zero = {name: np.zeros((1, *shape), np.float32) for name, shape in SHAPES.items()}
    total, norms = clipped_sum(zero, 0.5)
    assert not flat(total).any() and norms.tolist() == [0.0]
    huge = {n: np.full((1, *s), 3e38, np.float32) for n, s in SHAPES.items()}
    total, _ = clipped_sum(huge, 0.5)
    assert np.linalg.norm(flat(total)) == pytest.approx(0.5)


@settings(max_examples=100, deadline=None)
@given(rows(6), st.floats(1e-3, 1e3), st.permutations(range(6)), st.integers(1, 6))
def test_the_bits_of_the_sum_do_not_depend_on_groups_and_order(
    everybody, clip, order, size
):
    whole = sum_rows(reply(everybody), clip).total
    found = np.zeros_like(flat(whole))
    for start in range(0, 6, size):
        chosen = order[start : start + size]
        part = {name: array[chosen] for name, array in everybody.items()}
        found += flat(sum_rows(reply(part), clip).total)
    assert np.array_equal(found, flat(whole))


def test_cut_rows_do_not_exceed_the_clip():
    """To the last bit: noise is made for the clip, not for a little more."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        one = {n: 99 * generator.normal(size=(1, *s)) for n, s in SHAPES.items()}
        total, _ = clipped_sum(one, 0.5)
        assert exact_square(flat(total)) <= Fraction(0.5) ** 2
    # Equal coordinates are all cut in one direction: rounding them up would add up.
    for clip in np.linspace(0.3, 0.9, 25):
        total, _ = clipped_sum({"b": np.ones((1, 10**5))}, float(clip))
        (value,) = set(total["b"].tolist())
        assert 10**5 * Fraction(value) ** 2 <= Fraction(float(clip)) ** 2


def exact_square(row: np.ndarray) -> Fraction:
    """The square of a row's L2 norm, without any rounding."""
    return sum((Fraction(float(x)) ** 2 for x in row), Fraction(0))


def test_a_row_that_float64_takes_for_the_clips_length_is_not_longer():
    """All its coordinates lie on the grid, so cutting takes nothing off them."""
    unit = 2.0**-31  # of a clip of 1
    long = {"b": np.array([[2.0**31, 1.0, 1.0, 1.0]]) * unit}
    assert exact_square(long["b"][0]) > 1 and row_norms(long)[0] == 1.0
    total, _ = clipped_sum(long, 1.0)
    assert exact_square(total["b"]) <= 1


def test_the_sum_is_exact_to_the_clips_billionth():
    generator = np.random.default_rng(0)
    some = {n: generator.normal(size=(50, *s)) for n, s in SHAPES.items()}
    total, _ = clipped_sum(some, 100.0)
    expected = flat({name: array.sum(0) for name, array in some.items()})
    assert np.abs(flat(total) - expected).max() <= 50 * 128 * 2.0**-32


# What a vote or a row of metrics may hold, and what is only just refused.
NEAR_ONE = st.one_of(
    st.sampled_from([np.float32(x) for x in (0, 1, 0.6, 0.8, 2**-0.5, 6**-0.5, 1e-45)]),
    st.floats(0, 1, width=32),
    ANYTHING,
)


@settings(max_examples=300, deadline=None)
@given(hnp.arrays(np.float32, (4, 6), elements=NEAR_ONE), st.integers(0, 3))
def test_one_vote_moves_the_histogram_by_no_more_than_one(votes, who):
    everybody = votes[valid_votes(votes)]
    without = np.delete(everybody, who, axis=0) if who < len(everybody) else everybody
    moved = sum_of_unit(everybody) - sum_of_unit(without)
    assert (moved >= 0).all() and exact_square(moved) <= 1


@pytest.mark.parametrize("length", [1, 2, 6, 100, 4096])
def test_a_vote_that_is_a_little_too_long_counts_as_one(length):
    """Valid by the tolerance that rounding to float32 needs; the noise is made for 1."""
    longest = np.full((1, length), np.float32((1 + 1e-5) / length**0.5), np.float32)
    longest *= np.float32(1 - 1e-7)
    assert exact_square(longest[0]) > 1 and valid_votes(longest)[0]
    total = sum_of_unit(longest)
    assert exact_square(total) <= 1
    np.testing.assert_allclose(total, longest[0], rtol=2e-5)


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(np.float32, (6, 5), elements=NEAR_ONE),
    st.permutations(range(6)),
    st.integers(1, 6),
)
def test_the_bits_of_a_histogram_do_not_depend_on_groups_and_order(votes, order, size):
    votes = np.where(valid_votes(votes)[:, None], votes, np.float32(0))
    found = np.zeros(5)
    for start in range(0, 6, size):
        found += sum_of_unit(votes[order[start : start + size]])
    assert np.array_equal(found, sum_of_unit(votes))


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float64, (5, 6), elements=st.floats(-1, 1)), st.integers(1, 6))
def test_every_honest_vote_is_valid(similarities, nearest):
    assert valid_votes(ballot(similarities, 6, nearest)[None])[0]


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["nll", "accuracy", "rouge-1"]), ANYTHING))
def test_every_honest_row_of_metrics_is_valid(metrics):
    row = bounded_row(metrics, ("nll", "accuracy", "rouge-1"))
    assert valid_votes(row[None])[0]
    assert np.linalg.norm(row.astype(float)) <= 1


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float32, (3, 6), elements=ANYTHING))
def test_marks_are_zeros_and_ones(votes):
    for row, good in zip(votes, valid_marks(votes), strict=True):
        assert good == set(row.tolist()).issubset({0.0, 1.0})


# --- malformed replies -----------------------------------------------------------------


def record_with(name: str, array: Array | None) -> RecordDict:
    """A valid reply of two users in which one array is replaced, added or left out."""
    good = {n: np.ones((2, *s), np.float32) for n, s in SHAPES.items()}
    record = pack(reply(good))
    arrays = dict(record.array_records["arrays"])
    arrays.pop(name, None)
    if array is not None:
        arrays[name] = array
    return RecordDict(
        {"message": record.config_records["message"], "arrays": ArrayRecord(arrays)}
    )


def header(shape: tuple[int, ...], dtype: str) -> Array:
    """An array that declares itself as expected, and whose own header says otherwise."""
    array = Array(np.ones((2, 3, 2), np.float32))
    stream = np.lib.format.magic(1, 0)
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (118 - len(text) - 1) + "\n"
    data = stream + len(text).to_bytes(2, "little") + text.encode() + array.data[-48:]
    return dataclasses.replace(array, data=data)


@pytest.mark.parametrize(
    ("name", "array", "match"),
    [
        ("rows/q", None, "missing"),
        ("rows/other", Array(np.ones((2, 3, 2), np.float32)), "not asked for"),
        ("rows/q", Array(np.ones((2, 3, 3), np.float32)), "shape"),
        ("rows/q", Array(np.ones((1,), np.float32)), "shape"),
        ("rows/q", Array(np.ones((2, 3, 2), np.float64)), "float64"),
        ("rows/q", Array(np.ones((2, 3, 2), np.float16)), "float16"),
        ("rows/q", header((10**6, 10**5), "<f8"), "contradicts"),
        ("rows/q", header((2, 3, 2), "<f8"), "contradicts"),
    ],
)
def test_a_malformed_reply_is_refused_before_anything_is_made_of_it(name, array, match):
    read = contribution(SHAPES, 1.0, False)
    with pytest.raises(ProtocolError, match=match):
        read(record_with(name, array))


def test_a_reply_with_weights_of_its_own_is_refused():
    """There is no weight in the protocol that a user could raise to 10^18."""
    record = record_with("x", None)
    record["metrics"] = type(record.config_records["message"])({"num-examples": 1e18})
    found = contribution(SHAPES, 1.0, False)(record)
    assert np.linalg.norm(flat(found.found.total)) <= 2.0 + 1e-9
    body = record.config_records["message"]
    body["body"] = str(body["body"]).replace('"users"', '"weight":1e18,"users"', 1)
    with pytest.raises(IdiolectError, match="fields differ"):
        contribution(SHAPES, 1.0, False)(record)


def test_metrics_of_nothing_count_as_the_worst():
    assert bounded_row({}, ("nll",))[1] == pytest.approx(1 / math.sqrt(2), rel=1e-5)
