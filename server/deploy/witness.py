"""The witness: who vouches for the devices of a server, and is not its operator."""

from pathlib import Path

from ...common.errors import refuse_if
from ...common.files import home
from ...common.protocol.manifest import public_key, read_or_make_key
from ...common.secure.witness import vouch
from .keys import invitation_of
from .nodes import device_key


def key_file(given: Path | None) -> Path:
    """Where a witness keeps its private key."""
    return given or home() / "witness.key"


def witness_key(file: Path) -> str:
    """Return a witness's public key, 64 hex digits; the key is made at its first use."""
    return public_key(read_or_make_key(file))


def vouch_for(file: Path, invitation: Path, line: str) -> str:
    """Sign a device's key for the server of an invitation; 128 hex digits.

    Parameters
    ----------
    file
        The witness's private key.
    invitation
        Of the server, as the device's owner has it.
    line
        That `idiolect node join` prints.

    Raises
    ------
    IdiolectError
        There is no such key, the invitation names no witness or another one, or it is no
        such line.
    """
    refuse_if(
        not file.exists(),
        f"there is no key of a witness at {file}: `idiolect-server witness key` makes one.",
    )
    seed = read_or_make_key(file)
    said = invitation_of(invitation)
    refuse_if(
        said.get("witness") != public_key(seed) or not said.get("signing_key"),
        f"{invitation} does not name this witness: its operator does so by "
        f"`idiolect-server keys witness {public_key(seed)}`.",
    )
    return vouch(seed, said["signing_key"], device_key(line).hex())
