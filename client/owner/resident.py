"""Asking, starting and ending the process that keeps the model loaded (`keeper`).

`idiolect generate` starts it where the owner has set ``keep-loaded``. Nothing here loads
torch, so that a text that it writes begins at once.
"""

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...common.errors import IdiolectError, required
from .keys import Key, to_line

LONGEST = 1 << 22  # bytes of a request or an answer
ASKING = 5.0  # seconds within which a request must be here
ENDING = 20.0  # seconds that `end` waits for a process that is writing
PROCESS = f"{__package__}.keeper"
READY = b"ready\n"  # what it says when it is loaded; otherwise a sentence
END = {"end": True}  # a request
ASKED = {"prompt": str, "budget": int, "compare": bool}  # of any other


def socket_of(vault: Path) -> Path:
    """The socket beside a vault."""
    return vault.absolute().with_name(f".{vault.name}.loaded")


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
    with contextlib.suppress(OSError, ValueError), connected(vault) as line:
        line.sendall(json.dumps(request).encode())
        line.shutdown(socket.SHUT_WR)
        answer = json.loads(received(line))
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
        [sys.executable, "-P", "-m", PROCESS, str(vault.absolute())],
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
    with contextlib.suppress(OSError), connected(vault) as line:
        line.settimeout(ENDING)
        line.sendall(json.dumps(END).encode())
        line.shutdown(socket.SHUT_WR)
        received(line)  # its end of the line closes with it


@contextlib.contextmanager
def connected(vault: Path) -> Iterator[socket.socket]:
    """A line to the process.

    Raises
    ------
    OSError
        There is none, or it is of another account.
    """
    with reachable(vault) as place, socket.socket(socket.AF_UNIX) as line:
        line.connect(place)
        check_account(line)
        yield line


@contextlib.contextmanager
def reachable(vault: Path) -> Iterator[str]:
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


def check_account(line: socket.socket) -> None:
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


def received(line: socket.socket) -> bytes:
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
