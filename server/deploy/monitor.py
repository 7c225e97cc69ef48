"""What an operator's monitoring asks a running server: ``/health`` and ``/metrics``.

Both are answered on 127.0.0.1 alone and without a login, so they have numbers only, of all
devices together (`metrics`).

``/health`` answers 200 only if the SuperLink and the proxy answer at this moment, the proxy
with a certificate that devices take; otherwise 503 and one sentence. ``/metrics`` is in
Prometheus' text format.
"""

import contextlib
import http.server
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...common.errors import IdiolectError, explained, pip_install, refuse_if
from . import keys
from .metrics import Watched, exposition, numbers

LOOPBACK = "127.0.0.1"
HOSTS = (LOOPBACK, "localhost")  # as a caller may name it: no web page can
PATIENCE = 3.0  # seconds until a process must have answered
READ_SECONDS = 5.0  # until a caller must have sent its request
KEPT_SECONDS = 1.0  # that what was found is told again: asking often costs little
MOST = 16  # callers at a time


# --- whether it answers ----------------------------------------------------------------


def superlink_answers(folder: Path, port: int) -> bool:
    """Whether the SuperLink on this machine says that it is up."""
    trust = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    direct = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),  # no HTTP proxy to this machine itself
        urllib.request.HTTPSHandler(context=trust),
    )
    with contextlib.suppress(OSError):
        direct.open(f"https://{LOOPBACK}:{port}/health", timeout=PATIENCE).close()
        return True
    return False


def proxy_problem(folder: Path, host: str, port: int) -> str:
    """Say why a device could not connect to the proxy; empty: it can.

    A handshake needs the proxy's event loop, so one that hangs does not answer. Nothing is
    asked, so nothing is counted as refused.
    """
    name, _ = keys.invited_to(folder)
    trust = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    near = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)
    try:
        with (
            socket.create_connection((near, port), PATIENCE) as plain,
            trust.wrap_socket(plain, server_hostname=name),
        ):
            return ""
    except ssl.SSLCertVerificationError as error:
        return (
            f"the proxy answers with a certificate that devices refuse "
            f"({error.verify_message}): `idiolect-server keys renew`, and start `serve` "
            "again"
        )
    except OSError as error:
        return (
            f"the proxy does not answer at {near} port {port} "
            f"({error.strerror or type(error).__name__}): look at the end of server.log"
        )


def problems(server: Watched) -> dict[str, str]:
    """Return what keeps each process from answering; empty where nothing does."""
    up = superlink_answers(server.folder, server.inner)
    link = "the SuperLink does not answer: look at the end of server.log"
    return {
        "superlink": "" if up else link,
        "proxy": proxy_problem(server.folder, server.host, server.port),
    }


# --- the port --------------------------------------------------------------------------


class _Listener(http.server.ThreadingHTTPServer):
    """Answers at most `MOST` callers at a time; what it found is kept for a moment."""

    daemon_threads = True

    def __init__(self, port: int, server: Watched) -> None:
        self.watched, self._lock = server, threading.Lock()
        self._places = threading.BoundedSemaphore(MOST)
        self._found: tuple[float, dict[str, str]] = (float("-inf"), {})
        super().__init__((LOOPBACK, port), _Asked)

    def problems(self) -> dict[str, str]:
        with self._lock:
            when, found = self._found
            if time.monotonic() - when > KEPT_SECONDS:
                found = problems(self.watched)
                self._found = time.monotonic(), found
            return found

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            return self.shutdown_request(request)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that is gone is nothing to report."""


class _Asked(http.server.BaseHTTPRequestHandler):
    """One request."""

    timeout = READ_SECONDS  # of each read or write
    server_version, sys_version = "idiolect", ""
    server: _Listener  # type: ignore[assignment]

    def setup(self) -> None:
        """Begin, with a time by which the whole request must be there."""
        super().setup()
        self._late = threading.Timer(self.timeout or READ_SECONDS, self._hang_up)
        self._late.daemon = True
        self._late.start()

    def finish(self) -> None:
        """End."""
        self._late.cancel()
        super().finish()

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def do_GET(self) -> None:
        """Answer ``/health`` and ``/metrics``."""
        self._late.cancel()
        host, _, _ = self.headers.get("Host", "").partition(":")
        if host not in HOSTS:  # a page whose name was pointed at this machine
            return self._answer(403, b"ask 127.0.0.1\n")
        if self.path == "/health":
            said = [text for text in self.server.problems().values() if text]
            text = said[0] if said else "ok: the SuperLink and the proxy answer"
            return self._answer(503 if said else 200, f"{text}.\n".encode())
        if self.path == "/metrics":
            found = numbers(self.server.watched, self.server.problems())
            kind = "text/plain; version=0.0.4; charset=utf-8"
            return self._answer(200, exposition(found), kind)
        return self._answer(404, b"there are /health and /metrics\n")

    def _answer(self, code: int, text: bytes, kind: str = "text/plain") -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        """Who asks is not logged."""


@contextlib.contextmanager
def monitored(port: int | None, server: Watched) -> Iterator[None]:
    """Answer at a port of 127.0.0.1 until the end of the block; None: nowhere.

    Raises
    ------
    IdiolectError
        The port cannot be had, or `prometheus_client` is missing.
    """
    if port is None:
        yield
        return
    keys.check_port(port)
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        raise IdiolectError(
            f"--metrics needs prometheus_client: `{pip_install('idiolect[server]')}`."
        ) from None
    refuse_if(
        port in (server.port, server.inner),
        f"port {port} is that of the devices: give another --metrics.",
    )
    then = "end what listens there, or give another --metrics"
    with explained(f"cannot listen at {LOOPBACK} port {port}", then):
        listener = _Listener(port, server)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        listener.shutdown()
        listener.server_close()
