"""The server that a device joined, and the device's key: kept in the vault.

Nothing here opens a connection.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509 import load_pem_x509_certificate

from ...common.errors import IdiolectError, explained, refuse_if, required
from ...common.text import read_json
from ..owner.records import DEVICE, Record
from ..owner.vault import Vault

if TYPE_CHECKING:  # it loads numpy
    from ...common.secure.directory import Entry

LARGEST_INVITATION = 100_000  # characters


@dataclass(frozen=True)
class Server:
    """The server that the owner joined: what an invitation says.

    Attributes
    ----------
    address
        ``host:port`` of the devices' proxy.
    certificate
        PEM of the authority that its certificate must come from.
    signing_key
        Public key of the manifests of all its runs, 64 hex digits.
    witness
        Public key of who vouches for the members of masked sums, 64 hex digits
        (`common.secure.witness`); empty: nobody does.
    """

    address: str
    certificate: str
    signing_key: str
    witness: str = ""


def read_invitation(file: Path) -> Server:
    """Read what `idiolect-server keys init` wrote.

    Raises
    ------
    IdiolectError
        It is not such a file.
    """
    what, then = (
        f"{file} is not an invitation",
        "ask the server's operator for the file that `idiolect-server keys init` writes",
    )
    with explained(what, then, (OSError, ValueError, TypeError, AttributeError)):
        with file.open() as stream:
            text = stream.read(LARGEST_INVITATION + 1)
        if len(text) > LARGEST_INVITATION:
            raise ValueError("it is too long")
        server = Server(**read_json(text))
        try:
            load_pem_x509_certificate(server.certificate.encode())
        except ValueError:  # whose words are for programmers
            raise ValueError("its certificate can't be read") from None
        if len(bytes.fromhex(server.signing_key)) != 32:
            raise ValueError("the signing key has not 32 bytes")
        if server.witness and len(bytes.fromhex(server.witness)) != 32:
            raise ValueError("the key of the witness has not 32 bytes")
        address = server.address
        host, _, port = address.rpartition(":")
        plain = address.isascii() and address.isprintable() and len(address) < 300
        if not host or not 0 < int(port) < 65536 or not plain:
            raise ValueError("the address is not host:port")
    return server


def fingerprint(server: Server) -> str:
    """SHA-256 of the certificate of the server's authority, in hex."""
    certificate = load_pem_x509_certificate(server.certificate.encode())
    return certificate.fingerprint(hashes.SHA256()).hex()


def server_of(vault: Vault) -> Server | None:
    """The server that this device joined; None: none."""
    fields = vault.noted("server")
    return Server(**fields) if fields else None


def joined(vault: Vault) -> Server:
    """Return the server that was joined.

    Raises
    ------
    IdiolectError
        None was.
    """
    return required(
        server_of(vault),
        "this device has joined no server: `idiolect node join INVITATION` first.",
    )


def join(vault: Vault, server: Server) -> None:
    """Remember a server; its keys are pinned from now on.

    Raises
    ------
    IdiolectError
        Another one was joined before, or this one named another witness.
    """
    before = server_of(vault)
    if before is not None and before.signing_key != server.signing_key:
        raise IdiolectError(
            f"this device belongs to {before.address}: `idiolect leave` first."
        )
    refuse_if(
        before is not None and before.witness not in ("", server.witness),
        "the invitation does not name the witness that this device knows: ask the witness "
        "why; to join without it all the same, `idiolect leave` first.",
    )
    with vault.transaction():
        vault.note("server", asdict(server))
        if before is None:
            vault.note("joined", {"since": time.time()})


def membership(vault: Vault) -> dict[str, float | int]:
    """Return ``since`` when the server is joined, and the last ``number`` it gave.

    Without ``number`` it has not let this device in yet; without ``since`` an older
    version joined it.
    """
    return vault.noted("joined", {})


def note_number(vault: Vault, number: int) -> None:
    """Note the number that the server gave this device."""
    known = membership(vault)
    if known.get("number") != number:
        vault.note("joined", {**known, "number": number})


def keep_voucher(vault: Vault, voucher: str) -> None:
    """Keep what the witness signed, which takes this device into masked sums.

    Raises
    ------
    IdiolectError
        The invitation names no witness, or it did not sign this device's key.
    """
    from ...common.secure.witness import vouched

    server = joined(vault)
    refuse_if(
        not server.witness,
        "the invitation of this server names no witness, so none is needed: if you know "
        "of one, ask the operator for the present invitation and join by it.",
    )
    own = public_der(vault).hex()
    refuse_if(
        not vouched(voucher, server.witness, server.signing_key, own),
        "the witness of the invitation did not sign that for this device: send the witness "
        "the line that `idiolect node join INVITATION` prints; if it did sign it, the "
        "invitation names somebody else.",
    )
    vault.note("voucher", voucher)


@dataclass(frozen=True)
class Members:
    """The members of the last run with masked sums that this device took part in.

    Attributes
    ----------
    run, name
        The run's id and name.
    since
        When this device first saw them.
    root
        Hash of the directory (`directory.root`), in hex: the same for all members.
    numbers
        Of the members, ascending.
    new
        Those of them that the run before did not have; None: there was none before.
    """

    run: str
    name: str
    since: float
    root: str
    numbers: tuple[str, ...]
    new: tuple[str, ...] | None


def members_of(vault: Vault) -> Members | None:
    """The members that this device saw last; None: it has seen none."""
    fields = vault.noted("directory")
    if not fields:
        return None
    new = None if fields["new"] is None else tuple(fields["new"])
    return Members(**{**fields, "numbers": tuple(fields["numbers"]), "new": new})


def to_compare(vault: Vault, seen: Members) -> tuple[list[dict[str, Any]], str]:
    """What owners compare: each member, and the digits of the whole (`directory.digits`).

    Of a member: ``device``, ``fingerprint`` (64 hex digits), and whether it is ``new`` and
    the ``own``.
    """
    from ...common.protocol.messages import device_user
    from ...common.secure.directory import digits, fingerprint_of

    known = vault.noted("members", {})
    own = fingerprint_of(public_der(vault).hex())
    listed = [
        {
            "device": device_user(int(number)),
            "fingerprint": known[number],
            "new": number in (seen.new or ()),
            "own": known[number] == own,
        }
        for number in seen.numbers
    ]
    return listed, digits(seen.root)


def pin_members(
    vault: Vault, run: str, name: str, directory: "Sequence[Entry]"
) -> None:
    """Remember the members of a run's masked sums, and the keys that they are known by.

    Parameters
    ----------
    vault
        Of this device.
    run, name
        The run's id and name.
    directory
        The run's.

    Raises
    ------
    IdiolectError
        A member had another key in an earlier run, or the witness does not vouch for it.
    """
    from ...common.secure.directory import changed, root
    from ...common.secure.directory import fingerprint as member_fingerprint
    from ...common.secure.witness import strangers

    server = server_of(vault)
    if server and server.witness:
        unknown = strangers(directory, server.witness, run, server.signing_key)
        refuse_if(
            unknown,
            f"the witness does not vouch for member {', '.join(unknown[:3])} of the "
            "directory: ask the witness, or the operator, whose device it is.",
        )
    known = vault.noted("members", {})
    odd = changed(directory, known)
    refuse_if(
        odd,
        f"member {', '.join(odd[:3])} of the directory has another key than in an earlier "
        "run: ask the operator whether its device was set up again.",
    )
    new = {entry.number: member_fingerprint(entry) for entry in directory}
    if new.keys() - known.keys():
        vault.note("members", known | new)
    before, hashed = members_of(vault), root(directory).hex()
    if before and (before.run, before.root) == (run, hashed):
        return
    added = None
    if before:  # a resumed run may have more members than it began with
        same = before.run == run
        older = set(before.numbers) - set(before.new or ()) if same else before.numbers
        none = same and before.new is None
        added = None if none else tuple(n for n in new if n not in older)
    seen = Members(run, name, time.time(), hashed, tuple(new), added)
    vault.note("directory", asdict(seen))


def leave(vault: Vault) -> None:
    """Forget the server, the key by which it knows this device, and what its runs left.

    Its runs left adapters that are not adopted yet, and their shared adapter: the next
    training starts from the bare backbone. Adopted adapters stay, with the shared one
    below them (`adapters.reset` puts them out of use), and so does the privacy budget that
    runs were charged.
    """
    from ..owner.adapters import drop_shared  # loads torch

    with vault.transaction(erasing=True):
        known = ["server", "node-key", "joined", "voucher", "members", "directory"]
        vault.delete("state", known)
        vault.forget_runs()
        drop_shared(vault)


# --- the node's key --------------------------------------------------------------------


def node_key(vault: Vault) -> ec.EllipticCurvePrivateKey:
    """The device's private key, made at its first use.

    Raises
    ------
    IdiolectError
        The one in the vault is of another kind.
    """
    body = vault.get("state", "node-key")
    if body is None:
        made = ec.generate_private_key(ec.SECP384R1())
        body = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        vault.put("state", [Record("node-key", body)], DEVICE)
    key = load_pem_private_key(body, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdiolectError(
            "the vault's node key is of an unknown kind: `idiolect leave`, then "
            "`idiolect node join INVITATION`, makes a new one."
        )
    return key


def public_der(vault: Vault) -> bytes:
    """The device's public key, DER: other members of masked sums know it by that."""
    public = node_key(vault).public_key()
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def public_line(vault: Vault) -> str:
    """The device's public key as one line in OpenSSH's format."""
    public = node_key(vault).public_key()
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
