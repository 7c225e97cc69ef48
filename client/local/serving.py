"""Serving an app on 127.0.0.1 until the terminal is gone: the key, the port, the server."""

import asyncio
import contextlib
import errno
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...common.errors import IdiolectError, explained, pip_install, refuse_if
from ...common.files import write_new
from ..owner.resident import endpoint_key
from .guard import ADDRESS, App, new_secret

ADDRESS_6 = "::1"
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ENDING = 1  # seconds that answers get to end by themselves
UNASKED = 64  # connections on which nothing is being answered
NEEDED = f"this needs uvicorn: `{pip_install('idiolect[serve]')}`."


@contextlib.contextmanager
def bound(port: int) -> Iterator[socket.socket]:
    """A socket that listens on 127.0.0.1 alone; port 0: a free one.

    Nobody else can listen at this port of ::1 meanwhile: a program that asks ``localhost``
    may go there first, and would give its key to another account.

    Raises
    ------
    IdiolectError
        It cannot be had.
    """
    refuse_if(not 0 <= port < 1 << 16, f"there is no port {port}: take 0 to 65535.")
    with contextlib.ExitStack() as kept:
        with explained(
            f"port {port} cannot be had", "end what uses it, or take another by --port"
        ):
            listener = kept.enter_context(socket.create_server((ADDRESS, port)))
            _hold(kept, listener.getsockname()[1])
        yield listener


def _hold(kept: contextlib.ExitStack, port: int) -> None:
    """Take a port of ::1, where there is one, and do not listen.

    Raises
    ------
    OSError
        Somebody has it.
    """
    try:
        held = kept.enter_context(socket.socket(socket.AF_INET6))
        held.bind((ADDRESS_6, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise


def key_of(vault: Path, new: bool = False) -> str:
    """The key of a vault's endpoint, made if there is none; `new`: another from now on.

    Raises
    ------
    IdiolectError
        Its file can be read by others, or has none.
    """
    file = endpoint_key(vault)
    if new:
        file.unlink(missing_ok=True)
    if not file.exists():
        write_new(file, f"{new_secret()}\n".encode())
    again = "make another by --new-key."
    refuse_if(
        file.stat().st_mode & 0o077,
        f"{file} can be read by other accounts: {again}",
    )
    key = file.read_text(errors="replace").strip()
    refuse_if(len(key) < 43 or not key.isascii(), f"{file} has no key: {again}")
    return key


def serve(app: App, listener: socket.socket) -> None:
    """Serve an app until Ctrl-C, SIGTERM or SIGHUP; then its lifespan ends, if it has one.

    Raises
    ------
    IdiolectError
        uvicorn is not installed.
    """
    try:
        import uvicorn
        from uvicorn.protocols.http.h11_impl import H11Protocol
    except ImportError:
        raise IdiolectError(NEEDED) from None

    opened: dict[H11Protocol, None] = {}

    class Connection(H11Protocol):
        """Makes room for a new one: other accounts can open many, and ask nothing."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            opened[self] = None
            idle = [o for o in opened if o.cycle is None or o.cycle.response_complete]
            for oldest in idle[:-UNASKED]:
                oldest.transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            opened.pop(self, None)
            super().connection_lost(exc)

    class Server(uvicorn.Server):
        """Ends by its signals without passing them on."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            loop = asyncio.get_running_loop()
            for number in ENDINGS:
                loop.add_signal_handler(number, self._end)
            try:
                yield
            finally:
                for number in ENDINGS:
                    loop.remove_signal_handler(number)

        def _end(self) -> None:
            self.should_exit = True

    how: dict[str, Any] = {
        **{
            "http": Connection,
            "backlog": 2 * UNASKED,
            "ws": "none",
            "lifespan": "auto",
            "interface": "asgi3",
        },
        **{"log_config": None, "log_level": "critical", "access_log": False},
        **{"server_header": False, "proxy_headers": False},
        "timeout_graceful_shutdown": ENDING,
    }
    server = Server(uvicorn.Config(app, **how))
    asyncio.run(server.serve(sockets=[listener]))
