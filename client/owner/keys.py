"""The master key of a vault: made from a passphrase, or 32 random bytes.

The master key is in no file. Argon2id makes it from a passphrase (RFC 9106, its second
recommended option), or the owner's keyring keeps 256 random bits.
"""

import hmac
import json
import unicodedata
from dataclasses import dataclass

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from ...common.errors import IdiolectError, refuse_if

# RFC 9106, section 4: 64 MiB, 3 passes; one lane, because a device may have one core.
MEMORY, PASSES, LANES = 64 * 1024, 3, 1


@dataclass(frozen=True)
class Passphrase:
    """A master key that the owner remembers."""

    text: str

    def master(self, salt: bytes) -> bytes:
        """256 bits by Argon2id of the text in NFC: keyboards differ in how they type ö."""
        return derived(unicodedata.normalize("NFC", self.text), salt)


@dataclass(frozen=True)
class RandomKey:
    """A master key of 32 random bytes, which a keyring or a credential keeps."""

    secret: bytes

    def master(self, salt: bytes) -> bytes:
        """The secret bound to the salt, so that `Vault.rewrap` changes the master key."""
        refuse_if(len(self.secret) != 32, "a vault's key must have 32 bytes.")
        return hmac.digest(self.secret, b"idiolect vault" + salt, "sha256")


Key = Passphrase | RandomKey


def derived(text: str, salt: bytes) -> bytes:
    """256 bits by Argon2id.

    Raises
    ------
    IdiolectError
        The text is empty, or not UTF-8.
    """
    refuse_if(not text, "an empty passphrase protects nothing: give one.")
    try:
        secret = text.encode()
    except UnicodeEncodeError:
        raise IdiolectError(
            "the passphrase is not UTF-8 text: set the terminal to UTF-8."
        ) from None
    kdf = Argon2id(
        salt=salt, length=32, memory_cost=MEMORY, iterations=PASSES, lanes=LANES
    )
    return kdf.derive(secret)


def to_line(key: Key) -> bytes:
    """A key as one line of JSON, for the pipe to another process of this user."""
    typed = isinstance(key, Passphrase)
    given = {"passphrase": key.text} if typed else {"secret": key.secret.hex()}
    return json.dumps(given).encode() + b"\n"


def from_line(line: bytes) -> Key:
    """The key of a line that `to_line` made."""
    given = json.loads(line)
    if "passphrase" in given:
        return Passphrase(given["passphrase"])
    return RandomKey(bytes.fromhex(given["secret"]))
