"""A process that keeps the model loaded, so that the next text is written at once.

`idiolect generate` starts it where the owner has set ``keep-loaded``. It holds the open
vault, the model and the adapter in use, and writes what any program of this account asks
for through a socket beside the vault, without the passphrase: as an SSH agent does. It
ends

- when nothing was asked for so many minutes,
- within a second after the settings or the adapter in use have changed, or the vault is
  gone; what was being written then is dropped,
- where `end` is called, which `forget` does when it has erased.
"""

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from ...common.errors import IdiolectError, required
from ...common.text import read_json
from .keys import Key, from_line, to_line
from .vault import Vault

if TYPE_CHECKING:
    from .owner import Writer

LONGEST = 1 << 22  # bytes of a request or an answer
ASKING = 5.0  # seconds within which a request must be here, or the answer to `end`
LOOK = 1.0  # seconds between two looks at the vault
READY = b"ready\n"
END = {"end": True}  # a request
ASKED = {"prompt": str, "budget": int, "compare": bool}  # of any other


def socket_of(vault: Path) -> Path:
    """The socket beside a vault."""
    return vault.absolute().with_name(f".{vault.name}.loaded")


# --- asking ------------------------------------------------------------------------------


def ask(vault: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """Ask the process that keeps a vault's model loaded.

    Parameters
    ----------
    request
        ``prompt``, ``budget`` and ``compare`` of `owner.Writer.write`.

    Returns
    -------
    dict or None
        ``found``, what that returned, and the name of the ``backbone``; None: there is no
        such process, or it has ended meanwhile.

    Raises
    ------
    IdiolectError
        It has refused the request.
    """
    with contextlib.suppress(OSError, ValueError), _connected(vault) as line:
        line.sendall(json.dumps(request).encode())
        line.shutdown(socket.SHUT_WR)
        answer = json.loads(_received(line))
        if "error" not in answer:
            return answer
        raise IdiolectError(answer["error"])
    return None


def start(vault: Path, key: Key) -> None:
    """Start the process that keeps a vault's model loaded, and wait until it is.

    Raises
    ------
    IdiolectError
        The model cannot be loaded, or no adapter is in use.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, str(vault.absolute())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,  # Ctrl-C at the terminal is not meant for it
    )
    said = b""
    given, told = required(process.stdin, ""), required(process.stdout, "")
    try:
        with contextlib.suppress(BrokenPipeError), given, told:
            given.write(to_line(key))
            given.close()
            said = told.read()  # it closes its end when it has said how it went
    except BaseException:
        process.terminate()
        raise
    if said and said != READY:
        raise IdiolectError(said.decode())


def end(vault: Path) -> None:
    """End the process that keeps a vault's model loaded, if there is one.

    One that is writing a text ends when it is written; if what it writes with was
    changed, nobody gets that text.
    """
    with contextlib.suppress(OSError), _connected(vault) as line:
        line.settimeout(ASKING)
        line.sendall(json.dumps(END).encode())
        line.shutdown(socket.SHUT_WR)
        _received(line)  # its end of the line closes with it


@contextlib.contextmanager
def _connected(vault: Path) -> Iterator[socket.socket]:
    """A line to the process.

    Raises
    ------
    OSError
        There is none, or it is of another account.
    """
    with _folder(vault) as place, socket.socket(socket.AF_UNIX) as line:
        line.connect(place)
        _check_account(line)
        yield line


@contextlib.contextmanager
def _folder(vault: Path) -> Iterator[str]:
    """The socket's name through its open folder: the kernel takes 107 bytes of a path."""
    path = socket_of(vault)
    if len(os.fsencode(path)) < 100 or not sys.platform.startswith("linux"):
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _check_account(line: socket.socket) -> None:
    """Refuse a line to a process of another account.

    Raises
    ------
    PermissionError
        It is one.
    """
    if sys.platform.startswith("linux"):
        peer = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        if struct.unpack("3i", peer)[1] != os.getuid():
            raise PermissionError("of another account")


def _received(line: socket.socket) -> bytes:
    """All that comes, until the other end closes.

    Raises
    ------
    ValueError
        It is too much.
    """
    found = b""
    while part := line.recv(1 << 16):
        found += part
        if len(found) > LONGEST:
            raise ValueError("too long")
    return found


# --- the process -------------------------------------------------------------------------


def main() -> int:
    """Keep a model loaded: the vault's path as argument, its key on standard input."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return 1  # who started it was gone before
    try:
        with Vault.open(Path(sys.argv[1]), from_line(line)) as vault:
            _serve(vault)
    except IdiolectError as error:
        _say(str(error).encode())
    return 0


def _say(text: bytes) -> None:
    """Tell who started this process, and close the line to it."""
    with contextlib.suppress(OSError):
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)


def _serve(vault: Vault) -> None:
    """Load the model, and write until this process is to end."""
    from . import owner

    known = _standing(vault)
    writer = owner.writer(vault)
    kept = 60 * float(writer.chosen["keep-loaded"])
    with _listening(vault.path) as (door, own):
        _say(READY)
        until = monotonic() + kept
        while monotonic() < until and own() and _standing(vault) == known:
            if not select.select([door], [], [], LOOK)[0]:
                continue
            # Who asked may be gone, or may have asked for something odd.
            with (
                contextlib.suppress(OSError, ValueError),
                door.accept()[0] as line,
            ):
                _check_account(line)
                line.settimeout(ASKING)
                request = read_json(_received(line))
                if request == END:
                    line.detach()  # closed when this process is gone, with all it holds
                    return
                answer = _answer(writer, request)
                if _standing(vault) != known:
                    return
                line.sendall(json.dumps(answer).encode())
                until = monotonic() + kept


def _answer(writer: "Writer", request: Any) -> dict[str, Any]:
    """What a request is answered.

    Raises
    ------
    ValueError
        It is none.
    """
    kinds = {n: type(o) for n, o in request.items()} if isinstance(request, dict) else 0
    if kinds != ASKED:
        raise ValueError("not a request")
    try:
        found = writer.write(**request)
    except IdiolectError as error:
        return {"error": str(error)}
    return {"found": found, "backbone": writer.chosen["backbone"]}


def _standing(vault: Vault) -> tuple[Any, ...]:
    """What an answer depends on besides the request; empty: the vault is gone."""
    from . import adapters
    from .consent import settings

    try:
        file = vault.path.stat().st_ino  # another one may have been made in its place
        with vault.reading():
            return file, settings(vault), adapters.active(vault)
    except (OSError, IdiolectError):
        return ()


@contextlib.contextmanager
def _listening(vault: Path) -> Iterator[tuple[socket.socket, Callable[[], bool]]]:
    """Listen beside the vault, in the place of any that did before.

    Yields
    ------
    tuple
        The listening socket, and a function that says whether it is still the one there.
    """
    path = socket_of(vault)
    with socket.socket(socket.AF_UNIX) as door:
        before = os.umask(0o177)
        try:
            path.unlink(missing_ok=True)
            with _folder(vault) as place:
                door.bind(place)
        finally:
            os.umask(before)
        door.listen(4)
        inode = path.stat().st_ino

        def own() -> bool:
            return path.exists() and path.stat().st_ino == inode

        try:
            yield door, own
        finally:
            if own():
                path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
