"""Keys of a pair of members, and the masks that come from them.

All members agree on the plan, whose hash P is in every key: a key of one release is
useless for another. A mask is a stream of AES-256 in counter mode under a key of 128
random bits, so its words are uniform and independent for whoever has no seed.
"""

import os

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from ..errors import IdiolectError, refuse_if
from ..privacy.noise import Source
from .grid import WORDS

SEED = 16  # bytes of a seed, of its check and of a share of it
KEY = 32  # bytes of a key, of a public key and of an agreed secret
NONCE, TAG = 12, 16  # bytes that a sealed bundle has besides its text
BLOCK = 1 << 18  # bytes of a mask at once: they stay in a processor's cache
_ZEROS = bytes(BLOCK)


def agree(private: X25519PrivateKey, public: bytes) -> bytes:
    """Return the secret of two members, 32 bytes, the same for both (RFC 7748).

    Raises
    ------
    IdiolectError
        The other key is none, or has a secret that everybody knows: 32 zeros.
    """
    refuse_if(
        len(public) != KEY,
        f"a member's key has {KEY} bytes: ask the operator who this member is.",
    )
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:  # a point of small order: the secret is all zeros
        raise IdiolectError(
            "a member's key agrees on no secret: ask the operator who this member is."
        ) from error


def agrees(public: bytes) -> bool:
    """Whether a member's key agrees on a secret with those of others."""
    try:
        agree(X25519PrivateKey.generate(), public)
    except IdiolectError:
        return False
    return True


def _number(member: int) -> bytes:
    """A member's place in the cohort, as it stands in a key's name."""
    return member.to_bytes(4, "big")


def _derive(plan: bytes, secret: bytes, name: bytes, length: int) -> bytes:
    return HKDF(SHA256(), length, plan, name).derive(secret)


def pair_seed(plan: bytes, secret: bytes, one: int, other: int) -> bytes:
    """Return the seed of a pair's mask for one plan, 16 bytes, the same in either order."""
    low, high = sorted((one, other))
    return _derive(plan, secret, b"mask" + _number(low) + _number(high), SEED)


def expanded(seed: bytes, name: bytes, length: int) -> bytes:
    """Return bytes for one purpose of a seed (HKDF-Expand with SHA-256)."""
    return HKDFExpand(SHA256(), length, name).derive(seed)


def check(seed: bytes) -> bytes:
    """Return 16 bytes that tell whether a seed was put together rightly."""
    return expanded(seed, b"check", SEED)


def keystream(key: bytes) -> Source:
    """Return a source of the bytes of AES-256 in counter mode, from counter 0 on."""
    stream = _counting(key)
    return lambda count: stream.update(bytes(count))


def _counting(key: bytes) -> CipherContext:
    return Cipher(AES(key), CTR(bytes(16))).encryptor()


def fresh() -> Source:
    """Return a keystream under a new key of the operating system: for noise of a device."""
    return keystream(os.urandom(KEY))


def mask(seed: bytes, count: int, word: int) -> np.ndarray:
    """Expand a seed into a mask: words of w bits, little-endian [count]."""
    found = np.zeros(count, WORDS[word])
    add_mask(found, seed, 1)
    return found


def add_mask(row: np.ndarray, seed: bytes, sign: int) -> None:
    """Add the mask of a seed to a row in place, or take it off; block by block.

    Parameters
    ----------
    row
        Words, little-endian [count].
    seed
        16 bytes.
    sign
        1: the mask is added; -1: it is taken off.
    """
    stream = _counting(expanded(seed, b"stream", KEY))
    moved = np.add if sign > 0 else np.subtract
    # `update_into` asks for room for one more block of the cipher.
    place = bytearray(min(BLOCK, row.nbytes) + 16)
    step = BLOCK // row.itemsize
    for at in range(0, row.size, step):
        part = row[at : at + step]
        stream.update_into(memoryview(_ZEROS)[: part.nbytes], place)
        moved(part, np.frombuffer(place, row.dtype, part.size), out=part)


# --- bundles: what one member hands another through the server ---------------------------


def _bundle_key(plan: bytes, secret: bytes, source: int, to: int) -> AESGCM:
    name = b"bundle" + _number(source) + _number(to)
    return AESGCM(_derive(plan, secret, name, KEY))


def seal(plan: bytes, secret: bytes, source: int, to: int, text: bytes) -> bytes:
    """Encrypt a bundle for one member: nonce, text, tag; 28 bytes longer than the text.

    The nonce is random and from the operating system, also where noise is seeded.
    """
    nonce = os.urandom(NONCE)
    bound = plan + _number(source) + _number(to)
    return nonce + _bundle_key(plan, secret, source, to).encrypt(nonce, text, bound)


def unseal(plan: bytes, secret: bytes, source: int, to: int, sealed: bytes) -> bytes:
    """Decrypt a bundle.

    Raises
    ------
    IdiolectError
        It is not one of this member for this plan, or was changed.
    """
    refuse_if(
        len(sealed) < NONCE + TAG,
        "a bundle of shares is too short: leave its row to the other holders.",
    )
    nonce, rest = sealed[:NONCE], sealed[NONCE:]
    bound = plan + _number(source) + _number(to)
    try:
        return _bundle_key(plan, secret, source, to).decrypt(nonce, rest, bound)
    except InvalidTag as error:
        raise IdiolectError(
            "a bundle of shares is not of this member and plan: "
            "leave its row to the other holders."
        ) from error
