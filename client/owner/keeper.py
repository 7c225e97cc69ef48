"""A process that keeps the model loaded, so that the next text is written at once.

It holds the open vault, the model and the adapter in use, and writes what any program of
this account asks for through a socket beside the vault, without the passphrase: as an SSH
agent does. It ends

- when nothing was asked for ``keep-loaded`` minutes,
- within a second after the settings or the adapter in use have changed, or the vault is
  gone; what was being written then is dropped,
- where `resident.end` is called, which `forget` does when it has erased.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

from ...common.errors import IdiolectError
from ...common.text import read_json
from . import adapters, owner
from .consent import settings
from .keys import from_line
from .owner import Writer
from .resident import (
    ASKED,
    ASKING,
    END,
    READY,
    check_account,
    reachable,
    received,
    socket_of,
)
from .vault import Vault

LOOK = 1.0  # seconds between two looks at the vault


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
    known = standing(vault)
    writer = owner.writer(vault)
    kept = 60 * float(writer.chosen["keep-loaded"])
    with _listening(vault.path) as (door, own):
        _say(READY)
        until = monotonic() + kept
        while monotonic() < until and own() and standing(vault) == known:
            if not select.select([door], [], [], LOOK)[0]:
                continue
            # Who asked may be gone, or may have asked for something odd.
            with (
                contextlib.suppress(OSError, ValueError),
                door.accept()[0] as line,
            ):
                check_account(line)
                line.settimeout(ASKING)
                request = read_json(received(line))
                if request == END:
                    line.detach()  # closed when this process is gone, with all it holds
                    return
                answer = _answer(writer, request)
                if standing(vault) != known:
                    return
                line.sendall(json.dumps(answer).encode())
                until = monotonic() + kept


def _answer(writer: Writer, request: Any) -> dict[str, Any]:
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


def standing(vault: Vault) -> tuple[Any, ...]:
    """What an answer depends on besides the request; empty: the vault is gone."""
    try:
        file = vault.path.stat().st_ino  # another one may have been made in its place
        with vault.reading():
            used = adapters.active(vault), adapters.turned(vault)
            return file, settings(vault), used
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
            with reachable(vault) as place:
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
