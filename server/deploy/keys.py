"""The keys of a server of devices: authority, certificate, signing key, invitation.

The authority signs the server's certificate, and devices trust the authority. So the
certificate can be renewed without new invitations.
"""

import contextlib
import ipaddress
import itertools
import json
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ...common.errors import IdiolectError, refuse_if
from ...common.files import write_atomically
from ...common.protocol.manifest import public_key, read_or_make_key
from ..run import results

Authority = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


YEARS = 10  # of the authority; devices carry its certificate
DAYS = 397  # of the server's own certificate
INVITATION = "invitation.json"
PAIR = "server.pem"  # the server's private key and certificate: one file, so one change
OLD_PAIR = ("server.key", "server.crt")  # the two of an earlier version
LOCAL = ("localhost", "127.0.0.1")


def keys_init(folder: Path, names: Sequence[str], port: int) -> Path:
    """Make the authority, the server's certificate, the signing key and the invitation.

    Parameters
    ----------
    folder
        A new folder; only this account can read it.
    names
        Host names and addresses of the server; the first one is in the invitation.
    port
        Of the proxy. It is in the invitation, and `serve` listens there.

    Returns
    -------
    pathlib.Path
        The invitation: all that a device needs, and nothing secret.

    Raises
    ------
    IdiolectError
        There are keys already, or a name or the port is invalid.
    """
    refuse_if(
        (folder / "ca.key").exists(),
        f"there are keys in {folder} already, and devices that trust them: keep them, "
        "or move the folder away first.",
    )
    for name in names:
        _general_name(name)
    check_port(port)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    key = ec.generate_private_key(ec.SECP384R1())
    authority = _certificate("idiolect authority", key)
    pem = authority.public_bytes(Encoding.PEM)
    write_atomically(folder / "ca.crt", pem)
    _write_pair(folder, names, (authority, key))
    invitation = {
        "address": f"{names[0]}:{port}",
        "certificate": pem.decode(),
        "signing_key": public_key(read_or_make_key(folder / "signing.key")),
    }
    results.write_json(folder / INVITATION, invitation)
    # Last: its presence means that all keys are there.
    write_atomically(folder / "ca.key", _pem(key))
    return folder / INVITATION


def keys_renew(folder: Path, names: Sequence[str] = ()) -> datetime:
    """Make a new key and certificate of the server under the same authority.

    Devices trust the authority, so their invitations stay valid. The old file is kept as
    ``server.before-….pem``. `serve` uses the new one from its next start.

    Parameters
    ----------
    folder
        Where `keys_init` wrote.
    names
        Host names and addresses of the server; empty: those of the old certificate.

    Returns
    -------
    datetime.datetime
        When the new certificate ends.

    Raises
    ------
    IdiolectError
        The authority's key is missing, damaged or expired; the old certificate is damaged
        and no names are given; a name is invalid; or the name in the invitation is missing.
    """
    issuer = _authority(folder)
    for name in names:
        _general_name(name)
    before = _old_pair(folder)
    names = names or _names_of(folder, before)
    reached, _ = invited_to(folder)
    refuse_if(
        reached not in names,
        f"devices connect to {reached}, as the invitation says: add this name.",
    )
    if before:
        write_atomically(_backup(folder), before)
    own = _write_pair(folder, names, issuer)
    for name in OLD_PAIR:
        (folder / name).unlink(missing_ok=True)
    return own.not_valid_after_utc


def invited_to(folder: Path) -> tuple[str, int]:
    """Return the server's name or address, and its port, as the invitation has them.

    Raises
    ------
    IdiolectError
        The invitation is missing or damaged.
    """
    try:
        name, _, port = invitation_of(folder / INVITATION)["address"].rpartition(":")
        return name, int(port)
    except (ValueError, KeyError) as error:
        raise _unreadable(folder / INVITATION, error) from None


def invitation_of(file: Path) -> dict[str, str]:
    """Return what an invitation says.

    Raises
    ------
    IdiolectError
        It is missing or damaged.
    """
    try:
        found = json.loads(file.read_text())
        texts = isinstance(found, dict) and {str} >= set(map(type, found.values()))
        if not texts:
            raise ValueError("it is not an object of texts")
        return found
    except (OSError, ValueError, TypeError) as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> IdiolectError:
    return IdiolectError(
        f"{file} can't be read ({error}): put it back, every device has it too."
    )


def name_witness(folder: Path, witness: str) -> Path:
    """Write into the invitation who vouches for the members of masked sums.

    Parameters
    ----------
    folder
        Where `keys_init` wrote.
    witness
        Public key that `idiolect-server witness key` shows; empty: nobody from now on.

    Returns
    -------
    pathlib.Path
        The invitation. Devices that have joined join again by it.

    Raises
    ------
    IdiolectError
        It is not such a key.
    """
    refuse_if(
        witness
        and not (len(witness) == 64 and set(witness) <= set("0123456789abcdef")),
        "that is not the key of a witness: give the 64 digits that `idiolect-server "
        "witness key` shows.",
    )
    said = invitation_of(folder / INVITATION)
    said.pop("witness", None)
    said |= {"witness": witness} if witness else {}
    results.write_json(folder / INVITATION, said)
    return folder / INVITATION


def fingerprint(folder: Path) -> str:
    """Return the SHA-256 of the authority's certificate, as `idiolect node join` does."""
    authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    return authority.fingerprint(hashes.SHA256()).hex()


def certificate_end(folder: Path) -> datetime:
    """Return when the server's certificate ends.

    Raises
    ------
    IdiolectError
        The key and the certificate can't be read, or do not match.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(folder / PAIR)
        own = x509.load_pem_x509_certificate((folder / PAIR).read_bytes())
    except (OSError, ValueError) as error:
        raise IdiolectError(
            f"{folder / PAIR} is damaged ({error}): make it again by `idiolect-server keys "
            "renew NAME`."
        ) from None
    return own.not_valid_after_utc


def check_keys(folder: Path) -> None:
    """Check that the keys for `serve` are there; update a folder of an earlier version."""
    if not (folder / PAIR).exists() and (old := _old_pair(folder)):
        write_atomically(folder / PAIR, old)
    check_there(folder)


def check_there(folder: Path) -> None:
    """Refuse a folder without the keys for `serve`."""
    for name in ("ca.crt", PAIR, "signing.key", INVITATION):
        refuse_if(
            not (folder / name).is_file(),
            f"there is no {name} in {folder}: make the keys by `idiolect-server keys init "
            "NAME`.",
        )


def check_port(port: int) -> None:
    """Refuse a number that is not a port."""
    refuse_if(
        not 0 < port < 65536, f"{port} is not a port: give a number from 1 to 65535."
    )


def _authority(folder: Path) -> Authority:
    """Read the authority, and check that it is still valid."""
    again = (
        "put it back from where you keep a copy, or make new keys by `idiolect-server keys "
        "init` in another folder and give every device the new invitation."
    )
    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
    except FileNotFoundError as error:
        raise IdiolectError(
            f"there is no {Path(error.filename).name} in {folder}: {again}"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise IdiolectError(
            f"ca.key or ca.crt in {folder} can't be read ({error}): {again}"
        ) from None
    if (
        not isinstance(key, ec.EllipticCurvePrivateKey)
        or certificate.public_key() != key.public_key()
    ):
        raise IdiolectError(f"ca.key and ca.crt in {folder} do not match: {again}")
    end = certificate.not_valid_after_utc
    refuse_if(
        end <= now(),
        f"the authority in {folder} ended on {end:%Y-%m-%d}, and devices trust no "
        "other: make new keys by `idiolect-server keys init` in another folder and "
        "give every device the new invitation.",
    )
    return certificate, key


def _old_pair(folder: Path) -> bytes:
    """Return the server's key and certificate; empty if there are none."""
    new = (folder / PAIR).exists()
    files = [folder / name for name in ([PAIR] if new else OLD_PAIR)]
    return b"".join(file.read_bytes() for file in files if file.exists())


def _names_of(folder: Path, pair: bytes) -> list[str]:
    """Return the names in a certificate, without those that every certificate has."""
    try:
        names = names_in(x509.load_pem_x509_certificate(pair))
    except (ValueError, x509.ExtensionNotFound):
        raise IdiolectError(
            f"the server's certificate in {folder} can't be read: give the names, as in "
            "`idiolect-server keys renew lab.example.org`."
        ) from None
    # The first name is that of the invitation; it may be one of LOCAL.
    return [names[0], *(name for name in names[1:] if name not in LOCAL)]


def names_in(certificate: x509.Certificate) -> list[str]:
    """Return all host names and addresses that a certificate is for."""
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [str(name.value) for name in found.value]


def _backup(folder: Path) -> Path:
    """Return a free name for a backup; two in one second have two names."""
    stamp = now().strftime("%Y%m%d-%H%M%S")
    names = (f"{stamp}-{n}" if n > 1 else stamp for n in itertools.count(1))
    files = (folder / f"server.before-{name}.pem" for name in names)
    return next(file for file in files if not file.exists())


def _write_pair(
    folder: Path, names: Sequence[str], issuer: Authority
) -> x509.Certificate:
    """Make a key and a certificate of the server, and write both; return the latter."""
    key = ec.generate_private_key(ec.SECP384R1())
    own = _certificate(names[0], key, issuer, names)
    write_atomically(folder / PAIR, _pem(key) + own.public_bytes(Encoding.PEM))
    return own


# What the authority's key may not be used for.
UNUSED = (
    *("digital_signature", "content_commitment", "key_encipherment"),
    *("data_encipherment", "key_agreement", "encipher_only", "decipher_only"),
)


def _certificate(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: Authority | None = None,
    names: Sequence[str] = (),
) -> x509.Certificate:
    """Sign the certificate of a server, or of the authority itself (no issuer)."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject[:64])])
    end = now() + timedelta(days=DAYS if issuer else 365 * YEARS)
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    extensions: list[tuple[x509.ExtensionType, bool]] = [  # and whether it is critical
        (x509.BasicConstraints(issuer is None, None), True),
        (own, False),
    ]
    if issuer:
        # A certificate is of no use without a valid authority.
        end = min(end, issuer[0].not_valid_after_utc)
        # The SuperLink is reached on this machine, whatever name devices use.
        alternatives = [_general_name(one) for one in dict.fromkeys((*names, *LOCAL))]
        signer = issuer[1].public_key()
        extensions += [
            (x509.SubjectAlternativeName(alternatives), False),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), False),
        ]
    else:
        unused = dict.fromkeys(UNUSED, False)
        usage = x509.KeyUsage(key_cert_sign=True, crl_sign=True, **unused)
        extensions.append((usage, True))
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer[0].subject if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() - timedelta(hours=1))
        .not_valid_after(end)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer[1] if issuer else key, hashes.SHA384())


def _general_name(name: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    with contextlib.suppress(ValueError):
        if name and not any(char.isspace() or char in "/:" for char in name):
            return x509.DNSName(name)
    raise IdiolectError(
        f"{name!r} is not a host name or an address: give what devices connect to, "
        "such as lab.example.org or 192.0.2.7."
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def now() -> datetime:
    """Return the time, with its zone."""
    return datetime.now(UTC)
