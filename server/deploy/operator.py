"""Serve real devices: keys, processes that stay up, enrolled nodes, and runs on them.

One folder (``$IDIOLECT_HOME/server``) holds everything: the keys, Flower's database, and
what the running server notes of itself. Three processes make a server, and `serve` starts
each again when it has ended:

    superlink   Flower's, on this machine alone, with TLS, node keys and a database
    superexec   Flower's; starts a ServerApp for each run
    entrance    `front`: the only port that devices reach

A ServerApp that is killed is not started again by Flower: `idiolect-server run` says so,
and the same command with ``--resume latest`` goes on from its checkpoint.
"""

import contextlib
import datetime
import fcntl
import ipaddress
import itertools
import json
import math
import os
import secrets
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from rich.console import Console

from ...common import config as configuration
from ...common.data.load import public_items
from ...common.errors import IdiolectError
from ...common.files import home, make_private, sync_folder, write_atomically
from ...common.protocol.manifest import public_key, read_or_make_key
from ...common.text import printable
from ..run import results
from ..run.exchange import SIGNING_KEY
from ..simulate import processes
from ..simulate.environment import flower_environment
from ..simulate.launch import (
    Plan,
    check_backbone,
    configured,
    fetch_backbone,
    finished,
    follow,
)
from ..simulate.progress import Display
from . import database, link
from .flower import CONNECTION, check_status, connection, flwr, free_port, submit
from .front import bound

DATABASE = Path("flower", "state.db")
YEARS = 10  # of the authority; devices carry its certificate
DAYS = 397  # of the server's own certificate
WARNED_DAYS = 30  # before its end `serve` says so
PAIR = "server.pem"  # the server's private key and certificate: one file, so one change
DAY = 86400.0  # seconds between two warnings
START_SECONDS = 60.0
STOP_SECONDS = 30.0  # for a run to end that was told to
FORGET_SECONDS = 10.0  # for Flower to notice that a run has ended
# The SuperLink notes at level INFO which node pushed a reply: who took part.
QUIET = {"superlink": {"FLWR_LOG_LEVEL": "WARNING"}}
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds before a process is started again


def default_folder() -> Path:
    """Return where a server's keys and database are, if nothing else is said."""
    return home() / "server"


# --- keys ------------------------------------------------------------------------------


def keys_init(folder: Path, names: Sequence[str], port: int) -> Path:
    """Make the authority, the server's certificate, the signing key and the invitation.

    Parameters
    ----------
    folder
        New; readable by this account alone.
    names
        Host names and addresses by which devices reach the server; the invitation names
        the first.
    port
        Of the entrance; `serve` listens there, since the invitation says it.

    Returns
    -------
    pathlib.Path
        The invitation: what a device needs to know, and nothing secret.

    Raises
    ------
    IdiolectError
        There are keys already, or a name or the port is none.
    """
    if (folder / "ca.key").exists():
        raise IdiolectError(
            f"there are keys in {folder} already, and devices that trust them: keep them, "
            "or move the folder away first."
        )
    for name in names:
        _general_name(name)
    _check_port(port)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    authority_key = ec.generate_private_key(ec.SECP384R1())
    authority = _certificate("idiolect authority", authority_key)
    key = ec.generate_private_key(ec.SECP384R1())
    own = _certificate(names[0], key, (authority, authority_key), names)
    write_atomically(folder / "ca.crt", authority.public_bytes(Encoding.PEM))
    _write_private(folder / PAIR, _pem(key) + own.public_bytes(Encoding.PEM))
    seed = read_or_make_key(folder / "signing.key")
    invitation = {
        "address": f"{names[0]}:{port}",
        "certificate": authority.public_bytes(Encoding.PEM).decode(),
        "signing_key": public_key(seed),
    }
    results.write_json(folder / "invitation.json", invitation)
    _write_private(folder / "ca.key", _pem(authority_key))  # last: now there are keys
    return folder / "invitation.json"


def _check_port(port: int) -> None:
    if not 0 < port < 65536:
        raise IdiolectError(f"there is no port {port}: give one from 1 to 65535.")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write_private(path: Path, body: bytes) -> None:
    """Write a file of this account alone; a crash leaves the old one or the new one."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with open(handle, "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def keys_renew(folder: Path, names: Sequence[str] = ()) -> datetime.datetime:
    """Make a new key and certificate of the server under the same authority.

    Devices trust the authority, so their invitations stay valid. What was there is kept
    beside it, as ``server.before-….pem``. A running `serve` uses the new one from its
    next start.

    Parameters
    ----------
    folder
        Where `keys_init` wrote.
    names
        Host names and addresses of the server; none: those of the old certificate.

    Returns
    -------
    datetime.datetime
        When the new certificate ends.

    Raises
    ------
    IdiolectError
        The authority's key is missing, damaged or past its time, the old certificate is
        damaged and no names are given, or a name is none or the invitation's is missing.
    """
    authority, authority_key = _authority(folder)
    for name in names:
        _general_name(name)
    before = _old_pair(folder)
    names = names or _names_of(folder, before)
    if (reached := invited_to(folder)[0]) not in names:
        raise IdiolectError(
            f"the invitation says {reached}, and devices connect there: name it as well."
        )
    key = ec.generate_private_key(ec.SECP384R1())
    own = _certificate(names[0], key, (authority, authority_key), names)
    if before:
        _write_private(_backup(folder), before)
    _write_private(folder / PAIR, _pem(key) + own.public_bytes(Encoding.PEM))
    for name in ("server.key", "server.crt"):  # of a folder from before there was PAIR
        (folder / name).unlink(missing_ok=True)
    return own.not_valid_after_utc


def _backup(folder: Path) -> Path:
    """Return a name that no backup has: two in one second are two."""
    stamp = _now().strftime("%Y%m%d-%H%M%S")
    names = (f"{stamp}-{n}" if n > 1 else stamp for n in itertools.count(1))
    files = (folder / f"server.before-{name}.pem" for name in names)
    return next(file for file in files if not file.exists())


def invited_to(folder: Path) -> tuple[str, int]:
    """Return the name or address, and the port, at which the invitation says the server is.

    Raises
    ------
    IdiolectError
        The invitation is missing or damaged.
    """
    file = folder / "invitation.json"
    try:
        name, _, port = str(json.loads(file.read_text())["address"]).rpartition(":")
        return name, int(port)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IdiolectError(
            f"{file} can't be read ({error}): put it back, every device has it too."
        ) from None


def _authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Read the authority, and check that it can still sign."""
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
    if end <= _now():
        raise IdiolectError(
            f"the authority in {folder} ended on {end:%Y-%m-%d}, and devices trust no "
            "other: make new keys by `idiolect-server keys init` in another folder and "
            "give every device the new invitation."
        )
    return certificate, key


def _old_pair(folder: Path) -> bytes:
    """Return the server's key and certificate as they are; empty where there are none."""
    files = (folder / PAIR,)
    if not files[0].exists():
        files = (folder / "server.key", folder / "server.crt")
    return b"".join(file.read_bytes() for file in files if file.exists())


def _names_of(folder: Path, pair: bytes) -> list[str]:
    """Return the names in a certificate, without those that every server has."""
    try:
        own = x509.load_pem_x509_certificate(pair)
        found = own.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = [str(name.value) for name in found.value]
    except (ValueError, x509.ExtensionNotFound):
        raise IdiolectError(
            f"the server's certificate in {folder} can't be read: say the names, as in "
            "`idiolect-server keys renew lab.example.org`."
        ) from None
    # The first is what the invitation says, which may be one of LOCAL itself.
    return [names[0], *(name for name in names[1:] if name not in LOCAL)]


def _certificate(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None,
    names: Sequence[str] = (),
) -> x509.Certificate:
    """Sign a certificate: an authority's own where there is no issuer."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject[:64])])
    now = _now()
    end = now + datetime.timedelta(days=DAYS if issuer else 365 * YEARS)
    if issuer:  # a certificate is worth nothing without its authority's
        end = min(end, issuer[0].not_valid_after_utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer[0].subject if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(issuer is None, None), critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
        )
    )
    if issuer is None:
        usage = x509.KeyUsage(
            key_cert_sign=True,
            crl_sign=True,
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        builder = builder.add_extension(usage, critical=True)
    else:
        # The SuperLink is reached on this machine, whatever the devices call it.
        alternatives = [_general_name(one) for one in dict.fromkeys((*names, *LOCAL))]
        builder = (
            builder.add_extension(
                x509.SubjectAlternativeName(alternatives), critical=False
            )
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(
                    issuer[1].public_key()
                ),
                critical=False,
            )
        )
    return builder.sign(issuer[1] if issuer else key, hashes.SHA384())


LOCAL = ("localhost", "127.0.0.1")


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        if not name or any(c.isspace() or c in "/:" for c in name):
            raise ValueError
        return x509.DNSName(name)
    except ValueError:
        raise IdiolectError(
            f"{name!r} is no host name and no address: give what devices connect to, "
            "such as lab.example.org or 192.0.2.7."
        ) from None


# --- serving ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Serving:
    """What a running server notes of itself.

    Attributes
    ----------
    mark
        In the environment of everything it started (see `processes`).
    port
        Of the SuperLink, on this machine.
    """

    mark: str
    port: int


def serving(folder: Path) -> Serving | None:
    """Return what the last server noted; None if there was none, or it ended in order."""
    try:
        return Serving(**json.loads((folder / "serving.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def serve(
    folder: Path, host: str, port: int | None, say: Callable[[str], None]
) -> None:
    """Keep a server up until SIGTERM or Ctrl-C; end all it started.

    Parameters
    ----------
    folder
        Where `keys_init` wrote.
    host, port
        Where to listen; a port of None is the invitation's.
    say
        Told what the operator should know.

    Raises
    ------
    IdiolectError
        There are no keys, another `serve` holds the folder, or the port is taken.
    """
    _check_keys(folder)
    certificate_end(folder)
    name, invited = invited_to(folder)
    port = invited if port is None else port
    os.umask(0o077)  # log, database and token are for this account alone
    folder.chmod(0o700)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    make_private(folder)
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise IdiolectError(
                f"{folder} is being served already: end that process first "
                "(Ctrl-C where it runs, or `systemctl stop`)."
            ) from None
        _check_listening(host, port)
        for line in _introduction(folder, f"{name}:{invited}", host, port):
            say(line)
        if (before := serving(folder)) is not None:  # killed: what it started may live
            processes.end(before.mark)
        now = Serving(secrets.token_hex(16), free_port())
        results.write_json(folder / "serving.json", vars(now))
        _configure_flower(folder, now)
        commands = _commands(folder, host, port, now)
        base = folder / DATABASE
        database.forget_ended(base, database.ALL_ENDED)  # the last server was killed
        keeper = threading.Thread(
            target=database.keep_forgetting, args=(base, stopping), daemon=True
        )
        keeper.start()
        try:
            _keep_up(commands, _environment(folder, now), folder, stopping, say)
        finally:
            processes.end(now.mark)
            database.forget_ended(base, database.ALL_ENDED)
            (folder / "serving.json").unlink(missing_ok=True)
            say("the server has ended")


def _check_listening(host: str, port: int) -> None:
    """Refuse an address that the entrance could not listen at."""
    _check_port(port)
    try:
        bound(host, port).close()
    except (OSError, UnicodeError) as error:
        raise IdiolectError(
            f"nobody can listen at {host} port {port} "
            f"({getattr(error, 'strerror', None) or error}): end what listens there, or "
            "give another --host or --port."
        ) from None


def fingerprint(folder: Path) -> str:
    """SHA-256 of the authority's certificate, which `idiolect node join` shows too."""
    authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    return authority.fingerprint(hashes.SHA256()).hex()


def _introduction(folder: Path, address: str, host: str, port: int) -> Iterator[str]:
    """Say where the server is, how a device knows it, and how it is looked at and ended."""
    place = folder.absolute()
    yield f"devices connect to  {address}"
    yield f"listening at        {host} port {port}"
    if not address.endswith(f":{port}"):
        yield (
            f"warning: the invitation says {address}, so something must pass its port on "
            f"to {port}; else start `serve` without --port"
        )
    yield f"invitation          {place / 'invitation.json'}"
    yield "authority, SHA-256 (`idiolect node join` shows the same):"
    yield f"  {fingerprint(folder)}"
    yield f"log                 {place / 'server.log'}"
    yield f"to end it           Ctrl-C, or kill {os.getpid()}; runs end with it"


def _configure_flower(folder: Path, now: Serving) -> None:
    """Write what Flower's own commands read: where the SuperLink is, and its token."""
    trust = f'root-certificates = "{folder.absolute() / "ca.crt"}"'
    token = secrets.token_urlsafe(32)
    login = link.credentials(f"127.0.0.1:{now.port}", token)
    for name, text in (
        ("config.toml", connection(now.port, trust)),
        ("credentials.yaml", login),
        ("token", token),
    ):
        write_atomically(folder / "flower" / name, text.encode())


def _check_keys(folder: Path) -> None:
    """Check what `serve` needs, and bring a folder of an earlier version up to date."""
    if not (folder / PAIR).exists() and (old := _old_pair(folder)):
        _write_private(folder / PAIR, old)
    for name in ("ca.crt", PAIR, "signing.key", "invitation.json"):
        if not (folder / name).is_file():
            raise IdiolectError(
                f"there is no {name} in {folder}: make the keys by `idiolect-server keys "
                "init NAME`."
            )


def certificate_end(folder: Path) -> datetime.datetime:
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


def _say_when_it_ends(folder: Path, say: Callable[[str], None]) -> None:
    try:
        end = certificate_end(folder)
    except IdiolectError as error:  # since the start: what runs still has the old one
        say(f"warning: {error}")
        return
    left = end - _now()
    if left < datetime.timedelta(days=WARNED_DAYS):
        verb = "ends" if left > datetime.timedelta(0) else "ended"
        say(
            f"warning: the server's certificate {verb} on {end:%Y-%m-%d}, and devices "
            "refuse it then: `idiolect-server keys renew`, and start `serve` again"
        )


def _environment(folder: Path, now: Serving) -> dict[str, str]:
    place = folder.absolute()
    key = {SIGNING_KEY: str(place / "signing.key")}
    return flower_environment(place / "flower", now.mark) | key


def _commands(folder: Path, host: str, port: int, now: Serving) -> dict[str, list[str]]:
    place = folder.absolute()
    inner = f"127.0.0.1:{now.port}"
    token = str(place / "flower" / "token")
    return {
        "superlink": [
            *(
                sys.executable,
                "-P",
                "-m",
                "idiolect.server.deploy.link",
                "superlink",
                token,
            ),
            *("--host", "127.0.0.1", "--port", str(now.port)),
            *("--ssl-ca-certfile", str(place / "ca.crt")),
            *("--ssl-certfile", str(place / PAIR)),
            *("--ssl-keyfile", str(place / PAIR)),
            "--enable-supernode-auth",
            *("--database", str(place / DATABASE)),
            *("--isolation", "process"),
            *("--superexec-auth-secret-file", token),
            "--disable-runtime-dependency-installation",
        ],
        "superexec": [
            *(sys.executable, "-P", "-m", "idiolect.server.deploy.link", "superexec"),
            *("--superexec-auth-secret-file", token),
            *("--root-certificates", str(place / "ca.crt")),
            *("--runtime-api-address", inner),
        ],
        "entrance": [
            *(sys.executable, "-P", "-m", "idiolect.server.deploy.front"),
            *(host, str(port), str(now.port), str(place), str(place / PAIR)),
        ],
    }


def _keep_up(
    commands: Mapping[str, Sequence[str]],
    environment: Mapping[str, str],
    folder: Path,
    stopping: threading.Event,
    say: Callable[[str], None],
) -> None:
    """Start every process, and again when one has ended; later and later."""
    running: dict[str, subprocess.Popen[bytes]] = {}
    wait = dict.fromkeys(commands, FIRST_WAIT)
    due = dict.fromkeys(commands, 0.0)
    said = -math.inf
    with (folder / "server.log").open("ab") as log:
        while not stopping.is_set():
            if time.monotonic() - said > DAY:
                _say_when_it_ends(folder, say)
                said = time.monotonic()
            for name, command in commands.items():
                process = running.get(name)
                if process is not None and process.poll() is not None:
                    say(
                        f"{name} ended with {process.returncode}; it starts again (see the "
                        "end of server.log)"
                    )
                    del running[name]
                    due[name] = time.monotonic() + wait[name]
                    wait[name] = min(2 * wait[name], LONGEST_WAIT)
                elif process is None and time.monotonic() >= due[name]:
                    running[name] = subprocess.Popen(
                        command,
                        env={**environment, **QUIET.get(name, {})},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,  # Ctrl-C is ours: we end them in order
                    )
                    if name == "superlink" and _answers(folder, command, running[name]):
                        say("the SuperLink is up")
                    if name == "entrance":
                        say("the entrance is up: devices and runs can come")
            stopping.wait(0.5)


def _answers(
    folder: Path, command: Sequence[str], link: "subprocess.Popen[bytes]"
) -> bool:
    """Wait until a SuperLink answers: the others end when they find none."""
    port = command[command.index("--port") + 1]
    trust = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    direct = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),  # this machine is reached without a proxy
        urllib.request.HTTPSHandler(context=trust),
    )
    deadline = time.monotonic() + START_SECONDS
    while link.poll() is None and time.monotonic() < deadline:
        with (
            contextlib.suppress(OSError),
            direct.open(f"https://127.0.0.1:{port}/health", timeout=1),
        ):
            return True
        time.sleep(0.2)
    return False


# --- what is done beside a running server ----------------------------------------------


def _running(folder: Path) -> dict[str, str]:
    """Environment of commands that talk to the running server."""
    now = serving(folder)
    if now is None or not results.is_locked(folder):
        raise IdiolectError(
            f"no server is up for {folder}: start one by `idiolect-server serve`."
        )
    return _environment(folder, now)


def add_node(folder: Path, key: str, label: str = "") -> str:
    """Register a device by its public key; returns its number.

    Parameters
    ----------
    folder
        Of the running server.
    key
        The line that `idiolect node join` prints.
    label
        What the operator calls the device; it is in `LABELS` alone. None need be given: the
        server need not know whose it is.

    Raises
    ------
    IdiolectError
        The line is no such key, it is registered already and no label is given, it was
        revoked, or another device has the label.
    """
    environment = _running(folder)
    if label != printable(label, LONGEST_LABEL):
        raise IdiolectError(
            f"a label has at most {LONGEST_LABEL} printable characters: give a shorter one."
        )
    if label and _numbers(folder, label):
        raise IdiolectError(f"another device is called '{label}': give another name.")
    try:
        serialization.load_ssh_public_key(key.encode())
        if not key.startswith("ecdsa-sha2-nistp384 "):
            raise ValueError
    except (ValueError, UnsupportedAlgorithm):
        raise IdiolectError(
            "that is no device's key: take the whole line that `idiolect node join` "
            "prints, ecdsa-sha2-nistp384 AAAA…"
        ) from None
    file = folder / f"node.{os.getpid()}.pub"
    _write_private(file, key.encode() + b"\n")
    try:
        command = ["supernode", "register", str(file), CONNECTION]
        answer, reason = flwr(command, environment)
    finally:
        file.unlink()
    if not answer.get("success"):
        if "already in use" not in reason:
            raise IdiolectError(f"Flower could not register the device: {reason}")
        answer = {"node-id": _known(folder, key, label)}
    number = str(answer["node-id"])
    if label:
        results.write_json(folder / LABELS, labels(folder) | {number: label})
    return number


def _known(folder: Path, key: str, label: str) -> int:
    """Return which device has a key that Flower knows, if it is to be given a label."""
    public = serialization.load_ssh_public_key(key.encode())
    pem = public.public_bytes(
        Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    number, revoked = database.find_node(folder / DATABASE, pem)
    if revoked:
        raise IdiolectError(
            f"that key was node {number} and was revoked, and a revoked key cannot return: "
            "on the device `idiolect leave`, then `idiolect node join INVITATION` makes a "
            "new one; add that."
        )
    if not label:
        raise IdiolectError(
            f"that key is let in already, as node {number}: there is nothing to do, but "
            "--label gives it another label."
        )
    return number


LABELS = "labels.json"  # node -> what the operator calls it
LONGEST_LABEL = 20  # so that a line of `nodes list` has at most 80 characters


def labels(folder: Path) -> dict[str, str]:
    """Return what the operator calls devices, by their number."""
    try:
        return dict(json.loads((folder / LABELS).read_text()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise IdiolectError(
            f"{folder / LABELS} can't be read ({error}): move it away; devices stay "
            "registered and have no names then."
        ) from None


def nodes(folder: Path) -> list[dict[str, Any]]:
    """List the devices that are let in, and those that were revoked, oldest first.

    Returns
    -------
    list of dict
        As Flower says it, with ``label`` (what the operator calls it, or nothing) and
        ``last-seen``: ``now``, ISO 8601, or None where it never was.
    """
    environment = _running(folder)
    answer = _answer(["supernode", "list", CONNECTION], environment, "list devices")
    known = labels(folder)
    return [
        {
            **node,
            "label": known.get(node["node-id"], ""),
            "last-seen": _last_seen(node),
        }
        for node in answer["nodes"]
    ]


def _numbers(folder: Path, label: str) -> list[str]:
    """Return the devices that are let in under this label: one, or none."""
    return [
        node["node-id"]
        for node in nodes(folder)
        if node["label"] == label and node["status"] != "unregistered"
    ]


def _last_seen(node: Mapping[str, Any]) -> str | None:
    if node["status"] == "online":
        return "now"
    known = {name: time for name, time in node.items() if time != "N/A"}
    came, went = known.get("online-at", ""), known.get("offline-at", "")
    if came > went and node["status"] == "unregistered":  # it was online until then
        return known.get("deleted-at", came)
    return max(came, went) or None


def revoke_node(folder: Path, word: str) -> str:
    """Let a device, by its number or label, in no more; return its number.

    Raises
    ------
    IdiolectError
        There is no such device, or it was revoked before.
    """
    number = next(iter(_numbers(folder, word)), word)
    found = {node["node-id"]: node["status"] for node in nodes(folder)}
    if found.get(number) in (None, "unregistered"):
        why = "was revoked before" if number in found else "is not let in"
        raise IdiolectError(
            f"node {printable(word, 40)} {why}: `idiolect-server nodes list` lists them."
        )
    command = ["supernode", "unregister", number, CONNECTION]
    _answer(command, _running(folder), f"revoke device {number}")
    return number


def _answer(
    command: Sequence[str], environment: Mapping[str, str], what: str
) -> dict[str, Any]:
    answer, reason = flwr(command, environment)
    if not answer.get("success"):
        raise IdiolectError(f"Flower could not {what}: {reason}")
    return answer


def prepare(folder: Path, app: Path, words: Sequence[str], cwd: Path) -> Plan:
    """Check everything that can be checked before a run on devices is started.

    Raises
    ------
    IdiolectError
        Something in the settings is wrong, no server is up, or the run goes on already.
    """
    config, options = configured(app, words, cwd)
    place = Path(options.folder, options.name)
    if not config.on_devices:
        raise IdiolectError(
            f"task '{config.task}' is for simulations: a run on devices has -c task=text."
        )
    check_backbone(config.backbone)
    if file := config.unlabeled.file:
        public_items(file)
    elif config.unlabeled.kind != "self":
        raise IdiolectError(
            f"unlabeled.kind '{config.unlabeled.kind}' needs public text: set "
            "unlabeled.file to JSON lines of {prompt, target}, or use kind self."
        )
    _running(folder)
    log, resumed = folder / "server.log", bool(options.resume)
    plan = Plan(app.absolute(), config, place, 0, log, resumed)
    if results.is_locked(place):
        raise IdiolectError(
            f"run '{place.name}' goes on already: `idiolect-server attach {place.name}` "
            f"shows it, `idiolect-server stop {place.name}` ends it."
        )
    return plan


def run(folder: Path, plan: Plan, console: Console) -> dict[str, Any]:
    """Run a plan on the devices of a running server, to its end.

    Raises
    ------
    IdiolectError
        The run failed; the sentence is the run's own where it gave one.
    """
    if (done := finished(plan, console)) is not None:
        return done
    environment = _running(folder)
    fetch_backbone(plan.config.backbone)
    _, offset = results.read_events(plan.metrics)
    said = f"run {plan.folder.name} in {plan.folder.parent}"
    console.print(printable(said, 1000), markup=False, highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory() as scratch, _uninterrupted():
        settings = Path(scratch) / "run.toml"
        settings.write_text(configuration.flat_toml(plan.settings))
        identity = submit(plan.app, settings, environment)
        _note_handed(folder, plan.folder, identity)
    return _watch(folder, plan, identity, console, (offset, 0))


def _watch(
    folder: Path, plan: Plan, identity: str, console: Console, place: tuple[int, int]
) -> dict[str, Any]:
    """Show a run that was handed over, to its end; return its results.

    Parameters
    ----------
    folder, plan, identity, console
        The server's; the run, Flower's id of it, and where to show it.
    place
        Where in the run's events to begin, and how many of them are not news.
    """
    environment = _running(folder)
    # A ServerApp that was refused says why in the server's log.
    ask = partial(check_status, plan.log, identity, environment)
    up = partial(results.is_locked, folder)
    offset, known = place
    mark = environment[processes.VARIABLE]
    try:
        with Display(console) as display:
            events = follow(plan, offset, up, mark, ask)
            for number, event in enumerate(events):
                if number >= known or event["event"] == "warning":
                    display.show(event)
    except IdiolectError:
        database.forget_soon(folder / DATABASE, FORGET_SECONDS)
        raise
    # What devices sent; where this is too early, or the run goes on, `serve` does it.
    database.forget_soon(folder / DATABASE, FORGET_SECONDS)
    return results.load(str(plan.folder.parent), plan.folder.name)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Take Ctrl-C at the end of the block: the run is handed over whole, or not."""
    caught: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        raise KeyboardInterrupt


HANDED = "handed"  # folder of notes: which runs were handed to this server


@dataclass(frozen=True)
class Handed:
    """A run that was handed to this server.

    Attributes
    ----------
    identity
        Flower's id of it, of its last start.
    folder
        The run's.
    """

    identity: str
    folder: Path


def _note_handed(folder: Path, place: Path, identity: str) -> None:
    note = {"identity": identity, "folder": str(place)}
    results.write_json(folder / HANDED / f"{place.name}.json", note)


def handed(folder: Path, name: str) -> Handed:
    """Return a run that was handed to this server; `name` may be ``latest``.

    Raises
    ------
    IdiolectError
        There is none of that name.
    """
    notes = {file.stem: file for file in (folder / HANDED).glob("*.json")}
    if name == "latest" and notes:
        name = max(notes, key=lambda one: notes[one].stat().st_mtime)
    if not notes:
        raise IdiolectError(
            f"no run was handed to the server in {folder} yet: `idiolect-server run APP` "
            "starts one."
        )
    if name not in notes:
        raise IdiolectError(
            f"no run '{printable(name, 100)}' was handed to the server in {folder}: "
            "`idiolect-server runs` lists the runs."
        )
    note = json.loads(notes[name].read_text())
    return Handed(str(note["identity"]), Path(note["folder"]))


def goes_on(folder: Path, name: str) -> bool:
    """Whether a run was handed over and nothing has ended it."""
    with contextlib.suppress(IdiolectError):
        run = handed(folder, name)
        fresh = not run.folder.exists()  # its ServerApp is being started
        return fresh or results.is_locked(run.folder)
    return False


def attach(folder: Path, name: str, console: Console) -> dict[str, Any]:
    """Show a run that goes on, to its end; of one that has ended, return the results.

    Raises
    ------
    IdiolectError
        There is no such run, or it failed.
    """
    run = handed(folder, name)
    name = run.folder.name
    if run.folder.exists() and not results.is_locked(run.folder):
        return _ended(run.folder)
    console.print(f"run {name} goes on; Ctrl-C leaves it so", markup=False)
    plan = Plan(Path(), configuration.Config(), run.folder, 0, folder / "server.log")
    offset = _last_start(plan.metrics)
    seen, _ = results.read_events(plan.metrics, offset)
    return _watch(folder, plan, run.identity, console, (offset, len(seen) - 1))


def _ended(place: Path) -> dict[str, Any]:
    """Return the results of a run that has ended, or raise how it ended."""
    if (state := results.state_of(place)) == "finished":
        return results.load(str(place.parent), place.name)
    events, _ = results.read_events(place / "metrics.jsonl")
    said = [e["message"] for e in events if e["event"] == "failed"]
    if state in ("failed", "stopped") and said:
        raise IdiolectError(said[-1])
    raise IdiolectError(
        f"run '{place.name}' was interrupted: the command that began it, with "
        f"--resume {place.name}, goes on with it."
    )


def _last_start(path: Path) -> int:
    """Return where in a run's events its present life begins."""
    with contextlib.suppress(FileNotFoundError):
        before, mark, _ = path.read_bytes().rpartition(b'{"event": "start"')
        return len(before) if mark else 0
    return 0


def stop(folder: Path, name: str) -> str:
    """End a run that goes on; what it has done so far stays, and `resume` goes on there.

    Returns
    -------
    str
        The run's name.

    Raises
    ------
    IdiolectError
        There is no such run, it has ended already, or it does not end.
    """
    run, environment = handed(folder, name), _running(folder)
    name, place = run.folder.name, run.folder
    events, _ = results.read_events(place / "metrics.jsonl")
    starts = [event for event in events if event["event"] == "start"]
    going_on = results.is_locked(place)
    if going_on and starts:
        # Once, and before Flower knows: else it ends before it has written that it does.
        processes.end_one(int(starts[-1]["pid"]), environment[processes.VARIABLE])
        _wait_for_lock(place, STOP_SECONDS)
    # What had not begun yet; and a ServerApp that did not hear hears with its heartbeat.
    answer, reason = flwr(["stop", run.identity, CONNECTION], environment)
    if not going_on and not answer.get("success"):
        state = results.state_of(place)
        raise IdiolectError(f"run '{name}' has ended already: its state is {state}.")
    _wait_for_lock(place, STOP_SECONDS)
    if results.is_locked(place):
        raise IdiolectError(
            f"run '{name}' has not ended yet ({reason}): give the command again, or end "
            "`serve`, which ends its runs."
        )
    return name


def _wait_for_lock(place: Path, patience: float) -> None:
    deadline = time.monotonic() + patience
    while results.is_locked(place) and time.monotonic() < deadline:
        time.sleep(0.2)
