"""Asking, starting and ending the process that keeps the model loaded (`keeper`).

`idiolect generate` starts it where the owner has set ``keep-loaded``; `idiolect chat` and
`idiolect serve-local` always do. Nothing here loads torch, so that a text that it writes
begins at once.
"""

import contextlib
import json
import math
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from ...common.engine.pieces import Piece, TooLong
from ...common.errors import IdiolectError, required
from .keys import Key, to_line

LONGEST = 1 << 22  # bytes of a request or an answer
ASKING = 5.0  # seconds within which a request must be here
ENDING = 20.0  # seconds that `end` waits for a process that is writing
PROCESS = f"{__package__}.keeper"
READY = b"ready\n"  # what it says when it is loaded; otherwise a sentence
END = {"end": True}  # a request
ASKED = {"prompt": str, "budget": int, "compare": bool}  # of a whole text
CHANGED = "what the text was written with has changed, or was unloaded: ask again."
PERSONAL, SHARED = "personal", "shared"


Some = TypeVar("Some")


@dataclass(frozen=True)
class Asked:
    """A conversation, and how it is gone on with.

    Attributes
    ----------
    texts
        Of the owner and the model in turn; the last is the owner's.
    system
        What the model is told first; empty: nothing.
    budget
        New tokens at most; 0: as many as there is room for.
    policy
        `PERSONAL`, or `SHARED`: without the own adapter.
    stops
        Texts that end the answer, and are not shown.
    temperature, top_p, seed
        As in `streaming.sampled`; temperature 0: the likeliest token each time.
    shorten
        Leave out the oldest turns that do not fit beside `budget` new tokens. False: refuse
        them, and write fewer tokens where there is no room for `budget`.
    """

    texts: tuple[str, ...]
    system: str = ""
    budget: int = 0
    policy: str = PERSONAL
    stops: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    shorten: bool = True


@dataclass(frozen=True)
class Reply:
    """An answer that is being written.

    Attributes
    ----------
    backbone
        Its name.
    chat
        It has a chat template.
    tokens
        Of all that was said.
    dropped
        How many of the oldest turns were left out.
    pieces
        Of the text; `close` ends it.
    """

    backbone: str
    chat: bool
    tokens: int
    dropped: int
    pieces: Generator[Piece, None, None]


# Field of a request -> what it may be.
_TAKES: dict[str, Callable[[Any], bool]] = {
    "texts": lambda v: _texts(v) and len(v) % 2 == 1,
    "system": lambda v: isinstance(v, str),
    "budget": lambda v: type(v) is int and v >= 0,
    "policy": lambda v: v in (PERSONAL, SHARED),
    "stops": lambda v: _texts(v) and all(v),
    "temperature": lambda v: type(v) in (int, float) and 0 <= v < math.inf,
    "top_p": lambda v: type(v) in (int, float) and 0 < v <= 1,
    "seed": lambda v: v is None or (type(v) is int and abs(v) < 1 << 63),
    "shorten": lambda v: type(v) is bool,
}


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


class NoRequest(ValueError):
    """What was sent to the process that keeps the model loaded is no request."""


def asked_of(found: dict[str, Any]) -> Asked:
    """Read what `converse` sent.

    Raises
    ------
    NoRequest
        It is something else.
    """
    if found.keys() != _TAKES.keys() or not all(_TAKES[n](v) for n, v in found.items()):
        raise NoRequest("not a request")
    lists: dict[str, Any] = {name: tuple(found[name]) for name in ("texts", "stops")}
    return Asked(**{**found, **lists})


class TooLate(IdiolectError):
    """The process that wrote has ended before the text did."""


def socket_of(vault: Path) -> Path:
    """The socket beside a vault."""
    return vault.absolute().with_name(f".{vault.name}.loaded")


def endpoint_key(vault: Path) -> Path:
    """The file beside a vault that has the key of `idiolect serve-local`."""
    return vault.absolute().with_name(f".{vault.name}.key")


def ask(vault: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """Ask the process that keeps a vault's model loaded.

    Parameters
    ----------
    request
        ``prompt``, ``budget`` and ``compare`` of `writing.Writer.write`.

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


def converse(vault: Path, asked: Asked) -> Reply | None:
    """Let the process that keeps a vault's model loaded answer a conversation.

    When its pieces are closed, no more than one token is computed.

    Returns
    -------
    Reply or None
        None: there is no such process.

    Raises
    ------
    IdiolectError
        It has refused the request; or, where the pieces are taken, it has ended.
    """
    line = sent(vault, asked)
    if line is None:
        return None
    with contextlib.ExitStack() as kept:
        kept.enter_context(line)
        first = first_line(line)
        if not first:
            return None
        begun = told(first)
        came = kept.enter_context(line.makefile("rb"))
        rest = kept.pop_all()
    return Reply(**begun, pieces=_pieces(came, rest))


def sent(vault: Path, asked: Asked) -> socket.socket | None:
    """Send a conversation; on this line come what `told` reads. None: nobody is there."""
    with contextlib.suppress(OSError), contextlib.ExitStack() as kept:
        line = kept.enter_context(connected(vault))
        line.sendall(json.dumps({"asked": asdict(asked)}).encode())
        line.shutdown(socket.SHUT_WR)
        return line.dup()
    return None


def first_line(line: socket.socket) -> bytes:
    """What comes first on a line, and no byte more; empty: the other end is gone."""
    with contextlib.suppress(OSError), line.makefile("rb", buffering=0) as came:
        return came.readline()
    return b""


def _next(came: IO[bytes]) -> bytes:
    """A line; empty: the other end is gone."""
    with contextlib.suppress(OSError):
        return came.readline()
    return b""


def _pieces(
    came: IO[bytes], rest: contextlib.ExitStack
) -> Generator[Piece, None, None]:
    with rest:
        while True:
            piece = Piece(**told(_next(came)))
            yield piece
            if piece.end:
                return


def told(line: bytes) -> dict[str, Any]:
    """One line of an answer that is being written.

    Raises
    ------
    TooLong, IdiolectError
        It is an error.
    TooLate
        There is none.
    """
    if not line.endswith(b"\n"):
        raise TooLate(CHANGED)
    found = json.loads(line)
    if "error" in found:
        raise (TooLong if found["long"] else IdiolectError)(found["error"])
    return found


def start(vault: Path, key: Key, minutes: float = 0.0) -> None:
    """Start the process that keeps a vault's model loaded, and wait until it is.

    It ends when nothing was asked for so many minutes, or ``keep-loaded`` if these are
    more.

    Raises
    ------
    IdiolectError
        The model cannot be loaded, or no adapter is in use.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", PROCESS, str(vault.absolute()), f"{minutes:g}"],
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


@dataclass
class Loaded:
    """The process that keeps the model loaded, for a command that needs it for long.

    It is started where it is not there, also when it has ended because something changed.

    Attributes
    ----------
    vault, key
        Of the model.
    minutes
        For how long it stays without a request.
    started
        By this command.
    """

    vault: Path
    key: Key
    minutes: float = 10.0
    started: bool = False
    _starting: threading.Lock = field(default_factory=threading.Lock)

    def answered(self, ask: Callable[[], Some | None]) -> Some:
        """What the process answers.

        Parameters
        ----------
        ask
            Returns None where there is no such process.

        Raises
        ------
        IdiolectError
            It cannot be started, or has refused the request.
        """
        if (answer := ask()) is not None:
            return answer
        with self._starting:
            if (answer := ask()) is None:
                start(self.vault, self.key, self.minutes)
                self.started = True
                answer = ask()
        if answer is None:
            raise TooLate(CHANGED)
        return answer

    def begin(self) -> None:
        """Start it if it is not there.

        Raises
        ------
        IdiolectError
            It cannot be started.
        """

        def there() -> bool | None:
            with contextlib.suppress(OSError), connected(self.vault):
                return True
            return None

        self.answered(there)

    def done(self, kept: bool) -> None:
        """End it, if it was started by this command and the owner does not keep it."""
        if self.started and not kept:
            end(self.vault)


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
