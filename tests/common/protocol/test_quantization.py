import numpy as np
import pytest

from idiolect.common.protocol.quantization import (
    CODES,
    SCALES,
    as_received,
    coded_shapes,
    decode,
    encode,
    update_codes,
)
from idiolect.common.seeds import numpy_generator

SHAPES = {"q": (5, 3), "down": (7, 2)}


def drawn(seed: int = 0, size: float = 1.0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        n: (size * generator.normal(size=s)).astype("f4") for n, s in SHAPES.items()
    }


def source(seed: int):
    return numpy_generator(seed, "bits").bytes


@pytest.mark.parametrize("random", [None, source(0)])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_what_comes_back_is_off_by_at_most_one_step(random, size):
    rows = drawn(1, size)
    coded = encode(rows, random)
    assert {n: a.shape for n, a in coded.items()} == coded_shapes(SHAPES)
    assert coded[CODES].dtype == np.int8 and coded[SCALES].dtype == np.float32
    back = decode(coded, SHAPES)
    for name, array in rows.items():
        step = np.abs(array).max() / 127
        most = (0.5 if random is None else 1.0) * step * (1 + 1e-4)
        assert back[name].dtype == np.float32
        assert np.abs(back[name] - array).max() <= most


def test_random_rounding_is_right_on_average():
    """Rounding to nearest would lose what is smaller than half a step, every time."""
    rows = {"q": np.array([[127.0, 0.1], [-0.3, -126.75]], np.float32)}
    mean = np.mean(
        [decode(encode(rows, source(k)), {"q": (2, 2)})["q"] for k in range(2000)],
        axis=0,
    )
    np.testing.assert_allclose(mean, rows["q"], atol=5 * 0.5 / 2000**0.5)
    assert decode(encode(rows), {"q": (2, 2)})["q"][0, 1] == 0


def test_each_user_has_a_scale_and_bits_of_its_own():
    rows = {n: np.stack([a, 1000 * a, a]) for n, a in drawn(2).items()}
    coded = update_codes(rows, 0, ["u", "v", "w"], 3)
    assert coded[CODES].shape == (3, 29) and coded[SCALES].shape == (3, 2)
    back = decode(coded, SHAPES)
    for name, array in rows.items():
        assert back[name].shape == array.shape
        for k in range(3):
            step = np.abs(array[k]).max() / 127
            assert np.abs(back[name][k] - array[k]).max() <= step * (1 + 1e-4)
    assert (coded[CODES][0] != coded[CODES][2]).any()
    one = {n: a[1:2] for n, a in rows.items()}
    alone = update_codes(one, 0, ["v"], 3)
    np.testing.assert_array_equal(alone[CODES][0], coded[CODES][1])
    later = update_codes(one, 0, ["v"], 4)
    assert (later[CODES] != alone[CODES]).any()


def test_nobody_is_an_empty_array_of_the_right_shape():
    rows = {n: np.zeros((0, *shape), np.float32) for n, shape in SHAPES.items()}
    coded = update_codes(rows, 0, [], 0)
    assert {n: a.shape for n, a in coded.items()} == {CODES: (0, 29), SCALES: (0, 2)}


def test_zero_stays_zero_and_what_is_not_finite_stays_visible():
    zero = {n: np.zeros(s, np.float32) for n, s in SHAPES.items()}
    for name, array in decode(encode(zero, source(0)), SHAPES).items():
        np.testing.assert_array_equal(array, zero[name])
    for bad in (np.nan, np.inf):
        rows = drawn(3)
        rows["q"][0, 0] = bad
        assert not np.isfinite(decode(encode(rows, source(0)), SHAPES)["q"]).all()


def test_without_signed_bytes_nothing_is_rounded():
    rows = drawn(4)
    assert as_received(rows, False) is rows
    received = as_received(rows, True)
    for name, array in decode(encode(rows), SHAPES).items():
        np.testing.assert_array_equal(received[name], array)
