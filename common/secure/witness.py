"""A witness: a person other than the operator who vouches for the members of masked sums.

The operator enrols devices, and could enrol some that nobody owns: it would know their
noise and masks. A witness signs the key of each device whose owner it knows. Devices whose
invitation names a witness take part only where every member of the directory has such a
signature, and has signed its keys of the run.
"""

from collections.abc import Sequence
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from .directory import Entry, signed

CONTEXT = b"idiolect witness 1\n"


def _text(server: str, identity: str) -> bytes:
    return CONTEXT + f"{server}\n{identity}".encode()


def vouch(seed: bytes, server: str, identity: str) -> str:
    """Sign a device's key for one server; 128 hex digits.

    Parameters
    ----------
    seed
        Private key of the witness, Ed25519, 32 bytes.
    server
        Public key of the server's requests, as its invitation has it.
    identity
        Public key of the device, DER, in hex (`directory.Entry.identity`).
    """
    key = Ed25519PrivateKey.from_private_bytes(seed)
    return key.sign(_text(server, identity)).hex()


@lru_cache(maxsize=20_000)  # a directory is the same in every request of a run
def vouched(voucher: str, witness: str, server: str, identity: str) -> bool:
    """Whether a voucher is the witness's signature of this device's key for this server."""
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(witness))
        key.verify(bytes.fromhex(voucher), _text(server, identity))
    except (InvalidSignature, ValueError):
        return False
    return True


def strangers(
    directory: Sequence[Entry], witness: str, run: str, server: str
) -> list[str]:
    """Return the numbers of members whom the witness does not vouch for.

    Also of those whose keys of the run are not signed by the device that it vouches for:
    whoever made these keys is somebody else.
    """
    return [
        entry.number
        for entry in directory
        if not vouched(entry.voucher, witness, server, entry.identity)
        or not signed(entry, run, server)
    ]
