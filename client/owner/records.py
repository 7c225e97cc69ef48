"""What a vault keeps: records, each of a source; and how their content is sealed.

By AES-256-GCM, bound to the place where the ciphertext is stored.
"""

import json
import os
from dataclasses import dataclass
from typing import Literal

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SCHEMA = 2


@dataclass(frozen=True)
class Source:
    """Where records come from. A source is forgotten as a whole.

    Attributes
    ----------
    kind
        ``import`` (the owner chose its name), ``device`` (settings, consents, counts: not
        made of the owner's text), ``run`` (what a federated run trained here),
        ``adapter`` (one of the owner's own) or ``training`` (what an interrupted one left).
    name
        Unique among its kind; empty for the device and the training.
    """

    kind: Literal["import", "device", "run", "adapter", "training"]
    name: str = ""


DEVICE = Source("device")


@dataclass(frozen=True)
class Record:
    """One thing that is kept: a name, unique among its kind, and a body."""

    name: str
    body: bytes


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
