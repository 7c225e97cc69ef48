"""A process that keeps the model loaded, so that the next text is written at once.

It holds the open vault, the model and the adapter in use, and writes what any program of
this account asks for through a socket beside the vault, without the passphrase: as an SSH
agent does. A text comes line by line where that is asked for; if who asked is gone, it ends
with the next token. The process ends

- when nothing was asked for ``keep-loaded`` minutes, or longer if who started it said so,
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
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from time import monotonic
from typing import Any

from ...common.command import sentence_of
from ...common.engine.pieces import TooLong
from ...common.errors import IdiolectError
from ...common.text import read_json
from . import writing
from .keys import from_line
from .resident import (
    ASKED,
    ASKING,
    END,
    READY,
    NoRequest,
    asked_of,
    check_account,
    reachable,
    received,
    socket_of,
)
from .vault import Vault
from .writing import Writer

LOOK = 1.0  # seconds between two looks at the vault


def main() -> int:
    """Keep a model loaded: ``VAULT MINUTES``, with the vault's key on standard input."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return 1  # who started it was gone before
    try:
        with Vault.open(Path(sys.argv[1]), from_line(line)) as vault:
            _serve(vault, float(sys.argv[2]))
    except IdiolectError as error:
        _say(str(error).encode())
    return 0


def _say(text: bytes) -> bool:
    """Tell who started this process, and close the line to it; False: nobody is there."""
    try:
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()
    except OSError:
        return False
    finally:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)
    return True


def _serve(vault: Vault, minutes: float) -> None:
    """Load the model, and write until this process is to end."""
    known = writing.standing(vault)
    writer = writing.writer(vault)
    kept = 60 * max(minutes, float(writer.chosen["keep-loaded"]))

    def same() -> bool:
        return writing.standing(vault) == known

    with _listening(vault.path) as (door, own):
        if not _say(READY):
            return
        until = monotonic() + kept
        while monotonic() < until and own() and same():
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
                messages = _messages(writer, request)
                if not _answered(line, messages, same, vault.path.parent):
                    return
                until = monotonic() + kept


def _answered(
    line: socket.socket,
    messages: Generator[dict[str, Any], None, None],
    same: Callable[[], bool],
    folder: Path,
) -> bool:
    """Send messages as they come; False: what they come from has changed.

    An error is one of them: the next request may be answered. `folder`: where the traceback
    of a defect is kept.

    Raises
    ------
    OSError
        Nobody takes them any more: nothing more is written.
    NoRequest
        There is nothing to answer.
    """
    look = 0.0
    with contextlib.closing(messages):
        try:
            for message in messages:
                if (now := monotonic()) >= look:
                    look = now + LOOK
                    if not same():
                        return False
                line.sendall(json.dumps(message).encode() + b"\n")
        except (OSError, NoRequest):
            raise
        except Exception as error:
            said = sentence_of(error, folder)
            refused = {"error": said, "long": isinstance(error, TooLong)}
            line.sendall(json.dumps(refused).encode() + b"\n")
    return True


def _messages(writer: Writer, request: Any) -> Generator[dict[str, Any], None, None]:
    """What a request is answered, message by message.

    Raises
    ------
    IdiolectError
        It is refused.
    NoRequest
        It is none.
    """
    kinds = {n: type(o) for n, o in request.items()} if isinstance(request, dict) else 0
    if kinds == ASKED:
        yield {"found": writer.write(**request), "backbone": writer.chosen["backbone"]}
    elif kinds == {"asked": dict}:
        reply = writer.converse(asked_of(request["asked"]))
        begun = {field.name: getattr(reply, field.name) for field in fields(reply)}
        del begun["pieces"]
        yield begun
        with contextlib.closing(reply.pieces):
            for piece in reply.pieces:
                yield asdict(piece)
    else:
        raise NoRequest("not a request")


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
