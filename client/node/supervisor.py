"""The supervisor: the process that holds the vault's key and restarts the worker.

It waits longer after each failure. Where the server refuses the device as it is, or the
owner must decide something, the worker says so and the supervisor ends too.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..owner.keys import Key, to_line

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before a worker is started again
SETTLED = 120.0  # a worker that lived this long is not failing at its start
FINAL = 2  # exit code of a worker that cannot go on before somebody has acted


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
            _end(worker)
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


def _end(worker: "subprocess.Popen[bytes]") -> None:
    worker.terminate()
    try:
        worker.wait(10)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()
