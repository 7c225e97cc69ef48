"""Keys and masks: the design's vectors, both sides alike, and masks that are uniform."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from idiolect.common.errors import IdiolectError
from idiolect.common.secure import masks as m

SEED = bytes(range(16))
P, OTHER = bytes(32), bytes([1]) * 32


def test_the_vectors_of_the_design() -> None:
    assert m.expanded(SEED, b"stream", 32).hex() == (
        "fbfec9f9a2a93c4535f2513bdfe77604d730fd67b4290a4302a46ba75d887768"
    )
    first = ["ee002af9", "59334318", "3e93b759", "b8d574f7"]
    assert [f"{word:08x}" for word in m.mask(SEED, 4, 32)] == first
    assert m.check(SEED).hex() == "aa3dc1e77ebe1bd46ad3419b2a05f61c"
    long = m.mask(SEED, 2, 64)
    assert [f"{word:016x}" for word in long] == [
        first[1] + first[0],
        first[3] + first[2],
    ]


@pytest.mark.parametrize("count", [0, 1, 5, m.BLOCK // 4, m.BLOCK // 2 + 3])
@pytest.mark.parametrize("word", [32, 64])
def test_a_mask_in_blocks_is_one_keystream(count: int, word: int) -> None:
    stream = m.keystream(m.expanded(SEED, b"stream", 32))(count * word // 8)
    mask = m.mask(SEED, count, word)
    assert mask.tobytes() == stream
    row = np.arange(count).astype(mask.dtype)
    changed = row.copy()
    m.add_mask(changed, SEED, 1)
    assert (changed == row + mask).all()
    m.add_mask(changed, SEED, -1)
    m.add_mask(changed, SEED, -1)
    assert (changed == row - mask).all()


def test_both_of_a_pair_have_one_secret_and_one_seed() -> None:
    one, other = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    z = m.agree(one, other.public_key().public_bytes_raw())
    assert z == m.agree(other, one.public_key().public_bytes_raw())
    assert m.pair_seed(P, z, 3, 70000) == m.pair_seed(P, z, 70000, 3)
    seeds = {
        m.pair_seed(*case) for case in ((P, z, 1, 2), (OTHER, z, 1, 2), (P, z, 1, 3))
    }
    assert len(seeds) == 3  # a plan's seed is useless for another plan


@pytest.mark.parametrize("key", [bytes(32), bytes([1]) + bytes(31), bytes(31), b""])
def test_a_key_that_agrees_on_nothing_is_refused(key: bytes) -> None:
    with pytest.raises(IdiolectError, match="ask the operator who this member is"):
        m.agree(X25519PrivateKey.generate(), key)


@pytest.mark.parametrize("word", [32, 64])
def test_a_mask_is_uniform_in_each_coordinate_and_they_are_unlike(word: int) -> None:
    """Control: one number added to all coordinates, or few bits, would show here."""
    masks = [m.mask(bytes([i]) * 16, 64, word) for i in range(200)]
    assert all(len(set(mask.tolist())) == 64 for mask in masks)
    bits = np.unpackbits(np.stack(masks).view(np.uint8), axis=1)
    share = bits.mean(0)  # of each bit of each coordinate over seeds
    assert np.abs(share - 0.5).max() < 5 * 0.5 / 200**0.5
    between = np.corrcoef(bits[:, :256].T)
    assert np.abs(between - np.eye(256)).max() < 6 / 200**0.5


def test_a_bundle_is_read_by_its_member_under_its_plan_only() -> None:
    z = bytes(range(32))
    sealed = m.seal(P, z, 1, 2, b"shares")
    assert len(sealed) == len(b"shares") + 28
    assert m.unseal(P, z, 1, 2, sealed) == b"shares"
    assert m.seal(P, z, 1, 2, b"shares") != sealed  # a nonce of its own
    changed = bytes([sealed[0] ^ 1]) + sealed[1:]
    for plan, secret, source, to, text in (
        (OTHER, z, 1, 2, sealed),
        (P, z[::-1], 1, 2, sealed),
        (P, z, 2, 1, sealed),
        (P, z, 1, 3, sealed),
        (P, z, 1, 2, changed),
        (P, z, 1, 2, sealed[:-1]),
        (P, z, 1, 2, b"short"),
    ):
        with pytest.raises(IdiolectError, match="leave its row to the other holders"):
            m.unseal(plan, secret, source, to, text)


def test_fresh_keystreams_differ() -> None:
    assert m.fresh()(32) != m.fresh()(32)
    stream = m.keystream(bytes(32))
    assert stream(5) + stream(27) == m.keystream(bytes(32))(32)
