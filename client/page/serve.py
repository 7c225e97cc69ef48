"""`idiolect ui`: serve the owner's page on 127.0.0.1 until the terminal is gone."""

import argparse
import contextlib
import sys
import tempfile
import webbrowser
from collections.abc import Iterator
from pathlib import Path

from ...common.errors import IdiolectError, pip_install
from ...common.text import tell, tell_json
from ..commands.answer import key_of
from ..local.guard import Entry, guarded
from ..local.serving import bound, serve


def ui(options: argparse.Namespace) -> int:
    """Serve the page; print its link."""
    key = key_of(options)  # before anything loads: a terminal would show what is typed
    with bound(options.port) as door:
        tell("loading the page; Ctrl-C here ends it", sys.stderr)
        try:
            import uvicorn  # noqa: F401

            from . import app as page
        except ModuleNotFoundError as error:
            if error.name not in ("starlette", "uvicorn"):
                raise
            raise IdiolectError(
                f"this needs {error.name}: `{pip_install('idiolect[serve]')}`."
            ) from None
        entry = Entry(door.getsockname()[1])
        app = page.app(page.opened(options.vault, key))
        with _shown(entry.link, options):
            serve(
                guarded(app, port=entry.port, entry=entry, streamed=[page.BYTES]), door
            )
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
