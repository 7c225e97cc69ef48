"""`idiolect ui`: serve the owner's page on 127.0.0.1 until the terminal is gone."""

import argparse
import contextlib
import signal
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ...common.errors import IdiolectError, explained, refuse_if
from ...common.text import tell, tell_json
from ..commands.answer import key_of

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from ..local.guard import Entry

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 5  # seconds for answers that are being sent when it ends


def ui(options: argparse.Namespace) -> int:
    """Serve the page; print its link."""
    refuse_if(
        not 0 <= options.port < 1 << 16,
        f"--port is {options.port}: give a number from 0, any that is free, to 65535.",
    )
    key = key_of(options)  # before anything loads: a terminal would show what is typed
    tell("loading the page; Ctrl-C here ends it", sys.stderr)
    try:
        import uvicorn  # noqa: F401

        from . import app as page
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise IdiolectError(
            f"the package `{error.name}` is missing: `pip install 'idiolect[serve]'`."
        ) from None
    from ..local.guard import ADDRESS, Entry

    where = f"port {options.port} of {ADDRESS} cannot be had"
    with socket.socket() as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with explained(where, "name another by --port, or 0"):
            door.bind((ADDRESS, options.port))
        entry = Entry(door.getsockname()[1])
        desk = page.opened(options.vault, key)
        with _shown(entry.link, options):
            _serve(page.app(desk), entry, door)
    return 0


@contextlib.contextmanager
def _shown(link: str, options: argparse.Namespace) -> Iterator[None]:
    """Print the link, and open it where that was asked for."""
    if options.json:
        tell_json({"link": link})
    else:
        tell(f"your page, until Ctrl-C; the link works once:\n{link}")
    if not options.open:
        yield
        return
    # Not as an argument of the browser, which every account of the machine could read.
    with tempfile.TemporaryDirectory(prefix="idiolect-") as folder:
        file = Path(folder, "open.html")
        file.write_text(f'<meta http-equiv="refresh" content="0;url={link}">')
        webbrowser.open(file.as_uri())
        yield


def _serve(app: "Starlette", entry: "Entry", door: socket.socket) -> None:
    """Serve until a signal; then end what is running, and close the vault."""
    import uvicorn

    from ..local.guard import guarded
    from .app import BYTES

    config = uvicorn.Config(
        guarded(app, port=entry.port, entry=entry, streamed=[BYTES]),
        interface="asgi3",
        proxy_headers=False,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=GRACE,
    )
    server = uvicorn.Server(config)

    def end(*_: object) -> None:
        server.should_exit = True

    for one in ENDINGS:
        signal.signal(one, end)
    server.run(sockets=[door])
