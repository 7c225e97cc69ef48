"""The worker: fetch requests from the server, carry them out, send the replies.

It speaks Flower's fleet protocol (`connection`) in the place of a SuperNode. A SuperNode
runs the app bundle that comes with a run, which is code of the server's. Here no bundle is
fetched or run: a request is data, and it can ask only for what the installed `handlers` do.

The worker holds the open vault, the loaded backbone and the connection. Its *supervisor*
is the process that holds the vault's key and starts a worker again that has ended, after
a longer time with each failure. Where the server refuses the device as it is, or the owner
must decide something, the worker says so and both end; the worker also ends when its
supervisor is gone.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ...common.command import DEFECT, WRONG, complain, keep_traceback
from ...common.errors import IdiolectError
from ...common.text import guard, printable
from ..owner.consent import settings
from ..owner.keys import Key, from_line, to_line
from ..owner.vault import Vault
from .membership import joined, node_key, note_number

LOG = logging.getLogger("flwr")
# Seconds between two calls for a request: `SLOWER` is the time without one for which a
# device waits a second, so that after five minutes it asks every ten seconds.
POLL, LONGEST_POLL, SLOWER = 1.0, 10.0, 30.0
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before a worker is started again
SETTLED = 120.0  # a worker that lived this long is not failing at its start
FINAL = 2  # exit code of a worker that cannot go on before somebody has acted


def serve(vault: Vault) -> None:
    """Answer the server's requests until the process is ended.

    Raises
    ------
    IdiolectError
        No server was joined.
    """
    from flwr.app import Message
    from flwr.supercore.inflatable.inflatable_utils import (
        ObjectPullError,
        ObjectPushError,
    )
    from flwr.supercore.run import RunNotRunningException

    from ..owner.limits import hold_process
    from .connection import connected
    from .device import Device

    guard(LOG)  # with the handlers that Flower has given it by now
    server, key = joined(vault), node_key(vault)
    LOG.info("connecting to %s", printable(server.address))
    with connected(server.address, server.certificate, key) as line:
        hold_process(settings(vault))
        note_number(vault, line.node)
        device = Device(vault, line.node)
        LOG.info("%s is ready: it answers requests until it is ended", device.user)
        worked = time.monotonic()
        while True:
            try:
                request = line.receive()
                if request is None:
                    time.sleep(pause(time.monotonic() - worked))
                    continue
                LOG.info("request %s", printable(request.metadata.message_type, 40))
                line.send(Message(device.answer(request), reply_to=request))
                worked = time.monotonic()
            except RunNotRunningException:
                LOG.info("that run has ended")
            except (ObjectPullError, ObjectPushError):  # it has deleted the rest
                LOG.info("the server waits for that answer no longer")


def pause(idle: float) -> float:
    """Seconds until the next call of a device that has had nothing to do for so long."""
    return min(max(idle / SLOWER, POLL), LONGEST_POLL)


def _watch_supervisor() -> None:
    """End this process when the other end of its standard input is gone."""
    # Unbuffered: a thread that waits in a buffer would hold up the end of the process.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Be a worker: the vault's path as argument, its key on standard input."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the supervisor ends this
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return 1  # the supervisor was gone before it had given the key
    from .connection import TurnedAway

    LOG.propagate = False  # it has a handler of its own
    guard(LOG)
    threading.Thread(target=_watch_supervisor, daemon=True).start()
    try:
        with Vault.open(Path(sys.argv[1]), from_line(line)) as vault:
            serve(vault)
    except IdiolectError as error:
        complain(str(error), WRONG)
        return FINAL if isinstance(error, TurnedAway) else 1
    except Exception as error:  # its own words may quote the owner's text
        place = keep_traceback(error, Path(sys.argv[1]).parent, quote=False)
        name = type(error).__name__
        return complain(f"the node has a defect ({name}): {place}; report it.", DEFECT)
    return 0


# --- the supervisor ---------------------------------------------------------------------


def keep_running(vault: Path, key: Key, say: Callable[[str], None]) -> int:
    """Run a worker, and a new one whenever it has ended, until SIGTERM or Ctrl-C.

    Returns
    -------
    int
        0 when told to end, and `FINAL` where a worker ended with it: a new one would end
        in the same way.
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
            worker.terminate()
            with suppress(subprocess.TimeoutExpired):
                worker.wait(10)
            worker.kill()
            worker.wait()
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
    module = "idiolect.client.node.worker"
    worker = subprocess.Popen(
        [sys.executable, "-P", "-m", module, str(vault.absolute())],
        stdin=subprocess.PIPE,
        env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0"},
    )
    if worker.stdin:
        with suppress(BrokenPipeError):  # it is dead already: `keep_running` sees that
            worker.stdin.write(to_line(key))
            worker.stdin.flush()  # stays open: its end tells the worker that we are gone
    return worker


if __name__ == "__main__":
    sys.exit(main())
