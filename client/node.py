"""A device's connection to a server: fetch tasks, carry them out, send the answers.

It speaks Flower's fleet protocol (`connection`), where otherwise a SuperNode would stand,
with one difference that matters on a device: a SuperNode runs the app bundle that comes
with a run, that is, whatever code the server sends. Here no bundle is fetched or run. A
task is data, and what it can ask for is what the installed `tasks` do.

Two processes: the keeper (`keep_running`) holds the vault's key and starts the worker
again, with back-off, when it ended; the worker (`serve`) holds the open vault, the loaded
backbone and the connection. A worker whose keeper is gone ends itself. Where the server
does not take the device as it is, or the owner must decide something, both end.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

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

from ..common.command import DEFECT, WRONG, complain, keep_traceback
from ..common.errors import IdiolectError
from ..common.text import guard, printable, read_json
from .consent import settings
from .vault import DEVICE, Key, Passphrase, RandomKey, Record, Vault

LOG = logging.getLogger("flwr")
LARGEST_INVITATION = 100_000  # characters
POLL = 1.0  # seconds between two questions for a task
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before a worker is started again
SETTLED = 120.0  # a worker that lived this long is not failing at its start
FINAL = 2  # exit code of a worker that has said what somebody must do first


@dataclass(frozen=True)
class Server:
    """The server that the owner joined: what an invitation says.

    Attributes
    ----------
    address
        ``host:port`` of the devices' entrance.
    certificate
        PEM of the authority that its certificate must come from.
    signing_key
        Public key of the manifests of all its runs, 64 hex digits.
    """

    address: str
    certificate: str
    signing_key: str


def read_invitation(file: Path) -> Server:
    """Read what `idiolect-server keys init` wrote.

    Raises
    ------
    IdiolectError
        It is no such file.
    """
    try:
        with file.open() as stream:
            text = stream.read(LARGEST_INVITATION + 1)
        if len(text) > LARGEST_INVITATION:
            raise ValueError("it is too long")
        server = Server(**read_json(text))
        _check_certificate(server.certificate)
        if len(bytes.fromhex(server.signing_key)) != 32:
            raise ValueError("the signing key has not 32 bytes")
        host, _, port = server.address.rpartition(":")
        if not host or not 0 < int(port) < 65536 or not _is_plain(server.address):
            raise ValueError("the address is not host:port")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise IdiolectError(
            f"{file} is no invitation ({error}): ask the server's operator for the file "
            "that `idiolect-server keys init` writes."
        ) from error
    return server


def _check_certificate(pem: str) -> None:
    try:
        load_pem_x509_certificate(pem.encode())
    except ValueError:  # whose words are for programmers
        raise ValueError("its certificate can't be read") from None


def fingerprint(server: Server) -> str:
    """SHA-256 of the authority that a device trusts; `serve` shows the same."""
    certificate = load_pem_x509_certificate(server.certificate.encode())
    return certificate.fingerprint(hashes.SHA256()).hex()


def _is_plain(address: str) -> bool:
    return address.isascii() and address.isprintable() and len(address) < 300


def server_of(vault: Vault) -> Server | None:
    """Return the server that was joined, or None."""
    body = vault.get("state", "server")
    return Server(**json.loads(body)) if body else None


def joined(vault: Vault) -> Server:
    """Return the server that was joined.

    Raises
    ------
    IdiolectError
        None was.
    """
    server = server_of(vault)
    if server is None:
        raise IdiolectError(
            "this device has joined no server: `idiolect node join INVITATION` first."
        )
    return server


def join(vault: Vault, server: Server) -> None:
    """Remember a server; its keys are pinned from now on.

    Raises
    ------
    IdiolectError
        Another one was joined before.
    """
    before = server_of(vault)
    if before is not None and before.signing_key != server.signing_key:
        raise IdiolectError(
            f"this device belongs to {before.address}: `idiolect leave` first."
        )
    with vault.transaction():
        vault.put(
            "state", [Record("server", json.dumps(asdict(server)).encode())], DEVICE
        )
        if before is None:
            _note_membership(vault, {"since": time.time()})


def membership(vault: Vault) -> dict[str, float | int]:
    """Return ``since`` when the server is joined, and the last ``number`` it gave.

    Without ``number`` it has not let this device in yet; without ``since`` an older
    version joined it.
    """
    return json.loads(vault.get("state", "joined") or b"{}")


def note_number(vault: Vault, number: int) -> None:
    """Note by which number the server knows this device."""
    known = membership(vault)
    if known.get("number") != number:
        _note_membership(vault, {**known, "number": number})


def _note_membership(vault: Vault, noted: dict[str, float | int]) -> None:
    vault.put("state", [Record("joined", json.dumps(noted).encode())], DEVICE)


def leave(vault: Vault) -> None:
    """Forget the server, the key by which it knows this device, and what its runs left.

    That is what they have begun to train, and their shared adapter: the next training
    starts from the bare backbone. Adapters that were adopted stay, with the shared one
    below them (`owner.reset` puts them out of use), and so does the count of what this
    device took part in.
    """
    from .owner import drop_shared

    with vault.transaction(erasing=True):
        vault.delete("state", ["server", "node-key", "joined"])
        for source in vault.sources():
            if source.kind == "run":
                vault.forget(source)
        drop_shared(vault)


# --- the node's key --------------------------------------------------------------------


def node_key(vault: Vault) -> ec.EllipticCurvePrivateKey:
    """Return the key by which the server knows this device, made at its first use."""
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


def public_line(vault: Vault) -> str:
    """Return the public half, one line in OpenSSH's format: what the server registers."""
    public = node_key(vault).public_key()
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


# --- the keeper ------------------------------------------------------------------------


def keep_running(vault: Path, key: Key, say: Callable[[str], None]) -> int:
    """Run a worker, and a new one whenever it has ended, until SIGTERM or Ctrl-C.

    Returns
    -------
    int
        0 when told to end, and `FINAL` where a worker has said what must be done first: a
        new one would end in the same way.
    """
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    wait = FIRST_WAIT
    while not stopping.is_set():
        began = time.monotonic()
        worker = _start(vault, key)
        while worker.poll() is None and not stopping.wait(0.2):
            pass
        if stopping.is_set():
            _end(worker)
            break
        if worker.returncode == FINAL:
            return FINAL
        if time.monotonic() - began > SETTLED:
            wait = FIRST_WAIT
        say(f"the node ended with {worker.returncode}; it starts again in {wait:g} s")
        stopping.wait(wait)
        wait = min(2 * wait, LONGEST_WAIT)
    return 0


def _start(vault: Path, key: Key) -> "subprocess.Popen[bytes]":
    """Start a worker; the key goes through its standard input and into no file."""
    worker = subprocess.Popen(
        [sys.executable, "-P", "-m", "idiolect.client.node", str(vault.absolute())],
        stdin=subprocess.PIPE,
        env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0"},
    )
    secret = (
        {"passphrase": key.text}
        if isinstance(key, Passphrase)
        else {"secret": key.secret.hex()}
    )
    if worker.stdin:
        with suppress(BrokenPipeError):  # it is dead already: the keeper sees that
            worker.stdin.write(json.dumps(secret).encode() + b"\n")
            worker.stdin.flush()  # stays open: its end tells the worker that we are gone
    return worker


def _end(worker: "subprocess.Popen[bytes]") -> None:
    worker.terminate()
    try:
        worker.wait(10)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


# --- the worker ------------------------------------------------------------------------


def serve(vault: Vault) -> None:
    """Answer the server's tasks until the process is ended.

    Raises
    ------
    IdiolectError
        No server was joined.
    """
    from flwr.app import Message
    from flwr.supercore.inflatable.inflatable_object import (
        get_all_nested_objects,
        get_object_tree,
    )
    from flwr.supercore.inflatable.inflatable_utils import (
        ObjectPullError,
        ObjectPushError,
        pull_and_inflate_object_from_tree,
        push_objects,
    )
    from flwr.supercore.run import RunNotRunningException

    from .connection import connected
    from .device import Device
    from .limits import hold_process

    guard(LOG)  # with the handlers that Flower has given it by now
    server, key = joined(vault), node_key(vault)
    LOG.info("connecting to %s", printable(server.address))
    with connected(server.address, server.certificate, key) as line:
        hold_process(settings(vault))
        note_number(vault, line.node)
        device = Device(vault, line.node)
        LOG.info("%s is ready: it answers tasks until it is ended", device.user)
        while True:
            try:
                found = line.receive()
                if found is None:
                    time.sleep(POLL)
                    continue
                head, tree = found
                run = head.metadata.run_id
                task = pull_and_inflate_object_from_tree(
                    tree,
                    partial(line.pull, run),
                    partial(line.confirm, run),
                    return_type=Message,
                )
                task.metadata.__dict__["_message_id"] = tree.object_id
                LOG.info("task %s", printable(task.metadata.message_type, 40))
                began = time.monotonic()
                reply = Message(device.answer(task), reply_to=task)
                reply.metadata.__dict__["_message_id"] = reply.object_id
                wanted, session = line.announce(
                    reply, get_object_tree(reply), time.monotonic() - began
                )
                push_objects(
                    get_all_nested_objects(reply),
                    partial(line.push, run, session),
                    object_ids_to_push=wanted,
                )
            except RunNotRunningException:
                LOG.info("that run has ended")
            except (ObjectPullError, ObjectPushError):  # it has deleted the rest
                LOG.info("the server waits for that answer no longer")


def _watch_keeper() -> None:
    """End this process when the other end of its standard input is gone."""
    # Unbuffered: a thread that waits in a buffer would hold up the end of the process.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Be a worker: the vault's path as argument, its key on standard input."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the keeper ends us in order
    line = b""
    while not line.endswith(b"\n"):
        if not (byte := os.read(0, 1)):
            return 1  # the keeper was gone before it had given the key
        line += byte
    from .connection import TurnedAway

    given = json.loads(line)
    LOG.propagate = False  # it has a handler of its own
    guard(LOG)
    threading.Thread(target=_watch_keeper, daemon=True).start()
    key = (
        Passphrase(given["passphrase"])
        if "passphrase" in given
        else RandomKey(bytes.fromhex(given["secret"]))
    )
    try:
        with Vault.open(Path(sys.argv[1]), key) as vault:
            serve(vault)
    except IdiolectError as error:
        complain(str(error), WRONG)
        return FINAL if isinstance(error, TurnedAway) else 1
    except Exception as error:  # its own words may quote the owner's text
        place = keep_traceback(error, Path(sys.argv[1]).parent, quote=False)
        name = type(error).__name__
        return complain(f"the node has a defect ({name}): {place}; report it.", DEFECT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
