"""Shares: the design's vector, any t open, t - 1 say nothing, wrong ones are corrected."""

import os
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idiolect.common.errors import IdiolectError
from idiolect.common.secure.shares import INVERSE, TIMES, combine, split
from idiolect.common.seeds import numpy_generator

SECRET = bytes(range(16))


def shared(secret: bytes, t: int, k: int, seed: int) -> dict[int, bytes]:
    rows = split(secret, t, k, numpy_generator(seed, "shares").bytes)
    return {i + 1: row.tobytes() for i, row in enumerate(rows)}


def test_the_field_is_that_of_aes() -> None:
    assert TIMES[0x57, 0x83] == 0xC1
    assert (TIMES[0] == 0).all() and (TIMES[1] == np.arange(256)).all()
    assert (TIMES == TIMES.T).all()
    assert (TIMES[np.arange(1, 256), INVERSE[1:]] == 1).all()
    rng = np.random.default_rng(0)
    a, b, c = rng.integers(0, 256, (3, 1000))
    assert (TIMES[a, TIMES[b, c]] == TIMES[TIMES[a, b], c]).all()
    assert (TIMES[a, b ^ c] == TIMES[a, b] ^ TIMES[a, c]).all()


def test_the_vector_of_the_design() -> None:
    rows = split(SECRET, 3, 5, lambda count: bytes(range(1, count + 1)))
    assert rows[0].tobytes().hex() == "101112131415161718191a1b1c1d1e3f"
    assert rows[4].tobytes().hex() == "44796e03102d3af7ecd1c6abb88592a4"


@given(st.data())
def test_any_shares_as_many_as_the_threshold_give_the_secret(
    data: st.DataObject,
) -> None:
    k = data.draw(st.integers(1, 20) | st.just(255))
    t = data.draw(st.integers(1, min(k, 30)))
    secret = data.draw(st.binary(max_size=40))
    shares = shared(secret, t, k, data.draw(st.integers(0, 99)))
    some = data.draw(st.sets(st.sampled_from(sorted(shares)), min_size=t))
    assert combine({x: shares[x] for x in some}, t) == (secret, frozenset())
    if t > 1:
        few = dict(list(shares.items())[: t - 1])
        with pytest.raises(IdiolectError, match=f"{t - 1} of {t} shares"):
            combine(few, t)


@settings(deadline=None)
@given(st.data())
def test_wrong_shares_are_corrected_and_named(data: st.DataObject) -> None:
    k = data.draw(st.integers(3, 30))
    t = data.draw(st.integers(1, k - 2))
    shares = shared(SECRET, t, k, data.draw(st.integers(0, 99)))
    most = (k - t) // 2
    wrong = data.draw(st.sets(st.sampled_from(sorted(shares)), max_size=most))
    for x in wrong:  # each in bytes of its own
        changes = data.draw(
            st.dictionaries(st.integers(0, 15), st.integers(1, 255), min_size=1)
        )
        spoilt = bytearray(shares[x])
        for place, change in changes.items():
            spoilt[place] ^= change
        shares[x] = bytes(spoilt)
    assert combine(shares, t) == (SECRET, frozenset(wrong))


def test_a_hundred_wrong_shares_of_255() -> None:
    shares = shared(SECRET * 3, 55, 255, 1)
    for x in range(20, 120):
        shares[x] = os.urandom(48)
    assert combine(shares, 55) == (SECRET * 3, frozenset(range(20, 120)))


def test_too_many_wrong_shares_are_refused_or_give_another_secret() -> None:
    for seed in range(30):
        shares = shared(SECRET, 4, 11, seed)
        for x in range(1, 7):
            shares[x] = numpy_generator(seed, x).bytes(16)
        with pytest.raises(IdiolectError, match="more than 3 are wrong"):
            combine(shares, 4)
    # Wrong shares that agree with each other are a polynomial of their own.
    mine, other = shared(SECRET, 2, 9, 1), shared(bytes(16), 2, 9, 2)
    mixed = mine | {x: other[x] for x in range(1, 8)}
    assert combine(mixed, 2)[0] == bytes(16)


def test_shares_below_the_threshold_do_not_depend_on_the_secret() -> None:
    """t = 2, one byte: over all 256 coefficients each share takes each value once."""
    for secret in (0, 1, 77, 255):
        for holder in (1, 2, 5):
            seen = Counter(
                int(
                    split(bytes([secret]), 2, 5, lambda _, c=c: bytes([c]))[
                        holder - 1, 0
                    ]
                )
                for c in range(256)
            )
            assert seen == Counter(range(256))
    # Control: with a coefficient that is always zero every share is the secret.
    assert set(split(b"\x4d", 2, 5, bytes).ravel()) == {0x4D}
    # t = 3: two shares together, over a part of the plane that is uniform in each.
    pairs = {
        (int(rows[0, 0]), int(rows[1, 0]))
        for c in range(256)
        for d in range(0, 256, 16)
        for rows in [split(b"\x07", 3, 3, lambda _, c=c, d=d: bytes([c, d]))]
    }
    assert len(pairs) == 256 * 16


def test_coefficients_are_uniform_and_may_be_zero() -> None:
    """Control: a coefficient that is never zero, or always, would show here."""
    count = 256 * 400
    rows = split(bytes(count), 2, 2, numpy_generator(3, "uniform").bytes)
    seen = np.bincount(rows[0], minlength=256)  # secret 0, point 1: the coefficient
    chi2 = ((seen - 400) ** 2 / 400).sum()
    assert 170 < chi2 < 350  # 255 degrees of freedom
    never = np.bincount(np.where(rows[0] == 0, 1, rows[0]), minlength=256)
    assert ((never - 400) ** 2 / 400).sum() > 350


@pytest.mark.parametrize(
    ("t", "k"), [(0, 3), (4, 3), (2, 256), (1, 0)], ids=lambda v: str(v)
)
def test_sharing_that_cannot_be_is_refused(t: int, k: int) -> None:
    with pytest.raises(IdiolectError, match="cannot share a secret"):
        split(SECRET, t, k, os.urandom)


def test_shares_that_are_none_are_refused() -> None:
    with pytest.raises(IdiolectError, match="several lengths"):
        combine({1: b"ab", 2: b"a"}, 2)
    with pytest.raises(IdiolectError, match="from 1 to 255"):
        combine({0: b"a", 2: b"a"}, 2)
    with pytest.raises(IdiolectError, match="from 1 to 255"):
        combine({256: b"a", 2: b"a"}, 2)
