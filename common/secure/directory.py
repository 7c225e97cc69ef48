"""The directory of a run: its members, and the keys that they made for it.

Each member makes two keys per run and signs them with the key by which it is known: a
device's own, which it joined the server with. The server only collects them. All members
get the same directory: its hash is in every plan (`plan.Plan.directory`), and a server that
shows members different ones gets masks that do not cancel.
"""

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

from ..errors import refuse_if
from .masks import KEY

CONTEXT = b"idiolect secagg keys 1\n"
SIGNED = 256  # hex digits of a signature at most; one by P-384 has some 208
_CURVE = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True)
class Keys:
    """A member's private keys of one run.

    Attributes
    ----------
    agreement
        X25519, by which pairs of members agree on seeds.
    signing
        Ed25519, by which a member signs who is counted.
    """

    agreement: X25519PrivateKey
    signing: Ed25519PrivateKey

    @property
    def publics(self) -> tuple[bytes, bytes]:
        """The public keys, 32 bytes each: of agreement and signing."""
        agreement, signing = self.agreement.public_key(), self.signing.public_key()
        return agreement.public_bytes_raw(), signing.public_bytes_raw()

    def dump(self) -> bytes:
        """Return 64 bytes, from which `load_keys` makes the same keys."""
        return self.agreement.private_bytes_raw() + self.signing.private_bytes_raw()


def make_keys() -> Keys:
    """Make a member's keys of one run, of the operating system's random bytes."""
    return load_keys(secrets.token_bytes(2 * KEY))


def load_keys(body: bytes) -> Keys:
    """Return the keys that `Keys.dump` wrote."""
    return Keys(
        X25519PrivateKey.from_private_bytes(body[:KEY]),
        Ed25519PrivateKey.from_private_bytes(body[KEY:]),
    )


@dataclass(frozen=True)
class Entry:
    """A member in the directory; bytes as hex digits.

    Attributes
    ----------
    number
        Of its node, in decimal digits: it has more bits than a number in JSON.
    identity
        Public key by which the member is known, P-384, DER.
    agreement, signing
        Public keys of the run (`Keys`), 32 bytes each.
    signature
        By the identity, over the run, the server's key and the two public keys.
    voucher
        By a witness, over the identity (`witness.vouch`); empty: nobody vouches for it.
    """

    number: str
    identity: str
    agreement: str
    signing: str
    signature: str
    voucher: str = ""


def make_entry(
    number: int,
    identity: ec.EllipticCurvePrivateKey,
    keys: Keys,
    run: str,
    server: str,
    voucher: str = "",
) -> Entry:
    """Return a member's entry, signed.

    Parameters
    ----------
    number
        Of its node.
    identity
        Its private key.
    keys
        Of this run.
    run, server
        The run's id, and the public key of the run's requests, 64 hex digits.
    voucher
        The witness's signature, if there is one.
    """
    agreement, signing = keys.publics
    signature = identity.sign(_text(run, server, agreement + signing), _CURVE)
    public = identity.public_key()
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    known = der, agreement, signing, signature
    return Entry(str(number), *(part.hex() for part in known), voucher=voucher)


def _text(run: str, server: str, publics: bytes) -> bytes:
    return CONTEXT + f"{run}\n{server}\n".encode() + publics


def keys_of(entry: Entry) -> tuple[str, str, str]:
    """The public keys of a member: no other member has one of them."""
    return entry.identity, entry.agreement, entry.signing


@lru_cache(maxsize=20_000)  # a directory is the same in every request of a run
def signed(entry: Entry, run: str, server: str) -> bool:
    """Whether the identity of an entry has signed its keys for this run and server."""
    try:
        agreement, signing = map(bytes.fromhex, (entry.agreement, entry.signing))
        identity, publics = bytes.fromhex(entry.identity), agreement + signing
        voucher = bytes.fromhex(entry.voucher)
        key = load_der_public_key(identity)
        sizes = {len(agreement), len(signing)}
        if not isinstance(key, ec.EllipticCurvePublicKey) or sizes != {KEY}:
            return False
        # Written otherwise, the same key would be taken for another one.
        der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if (der + publics).hex() != "".join(keys_of(entry)):
            return False
        signature = bytes.fromhex(entry.signature)
        # `fromhex` reads blanks too, of which a directory could be made too large.
        texts = (entry.signature, signature), (entry.voucher, voucher)
        if any(text != data.hex() or len(text) > SIGNED for text, data in texts):
            return False
        key.verify(signature, _text(run, server, publics), _CURVE)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


def root(directory: Sequence[Entry]) -> bytes:
    """SHA-256 of a directory, over every field of every entry, each behind its length."""
    found = hashlib.sha256(str(len(directory)).encode())
    for entry in directory:
        for text in vars(entry).values():
            part = text.encode()
            found.update(len(part).to_bytes(8, "big") + part)
    return found.digest()


def numbers(directory: Sequence[Entry]) -> tuple[int, ...]:
    """Return the members' numbers.

    Raises
    ------
    IdiolectError
        They are not ascending numbers, or two members have a key in common: then one
        answers in two names.
    """
    digits = all(entry.number.isdecimal() for entry in directory)
    found = tuple(int(entry.number) for entry in directory) if digits else ()
    refuse_if(
        not digits or found != tuple(sorted(set(found))) or found[-1:] >= (2**64,),
        "the directory of members is not in the order of their numbers: ask the operator.",
    )
    for name in ("identity", "agreement", "signing"):
        keys = {getattr(entry, name) for entry in directory}
        refuse_if(
            len(keys) < len(directory),
            f"two members of the directory have the same {name} key: ask the operator who "
            "they are.",
        )
    return found


def publics(directory: Sequence[Entry], name: str) -> dict[int, bytes]:
    """Number -> public key of that name, ``agreement`` or ``signing``."""
    return {int(e.number): bytes.fromhex(getattr(e, name)) for e in directory}


def digits(root: str) -> str:
    """The hash of a directory as people read it to each other: 8 groups of 5 digits.

    That is the hash, as a number, modulo 10^40. Whoever makes two directories of the same
    digits has to try some 10^20.
    """
    number = f"{int(root, 16) % 10**40:040}"
    return " ".join(number[at : at + 5] for at in range(0, 40, 5))


def fingerprint(entry: Entry) -> str:
    """SHA-256 of a member's identity, in hex: what other members remember of it."""
    return fingerprint_of(entry.identity)


def fingerprint_of(identity: str) -> str:
    """SHA-256 of the hex digits of a public key (DER), in hex."""
    return hashlib.sha256(identity.encode()).hexdigest()


def changed(directory: Sequence[Entry], pinned: Mapping[str, str]) -> list[str]:
    """Return the numbers of members whose identity is not the one that was pinned."""
    return [
        entry.number
        for entry in directory
        if pinned.get(entry.number, fingerprint(entry)) != fingerprint(entry)
    ]
