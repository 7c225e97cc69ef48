"""Sealing: AES-256-GCM, bound to the place where the ciphertext is stored."""

import json
import os

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SCHEMA = 2


def bound(*place: object, schema: int = SCHEMA) -> bytes:
    """The associated data of a place; bytes in it are written as hex."""
    parts = [part.hex() if isinstance(part, bytes) else part for part in place]
    return json.dumps([schema, *parts]).encode()


def sealed(key: bytes, body: bytes, where: bytes) -> bytes:
    """Nonce (96 random bits), ciphertext and tag; `where` is authenticated with it."""
    nonce = os.urandom(12)
    return nonce + AESGCM(key).encrypt(nonce, body, where)


def unsealed(key: bytes, body: bytes, where: bytes) -> bytes:
    """Open what `sealed` returned.

    Raises
    ------
    InvalidTag
        It was sealed for another place or with another key, or it was changed.
    """
    return AESGCM(key).decrypt(body[:12], body[12:], where)
