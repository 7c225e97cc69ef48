"""Find and end the processes of one run, and no others (Linux).

The SuperLink and Ray start processes in sessions of their own, so neither a process
group nor a parent says what belongs to a run. An environment variable does: it is
inherited by everything the SuperLink starts, and `/proc` shows it. A process id alone
is never trusted, because it may have been given to another program since.
"""

import os
import signal
import time
from pathlib import Path

VARIABLE = "IDIOLECT_SIMULATION"
# One look that finds nothing proves nothing: a process that is just being started shows
# an empty environment for a moment (between the kernel's new memory map and its end).
LOOKS = 3


def is_marked(pid: int, mark: str) -> bool:
    """Whether a live process was started with this mark in its environment."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # ended, or another user's
        return False
    return f"{VARIABLE}={mark}".encode() in environment.split(b"\0")


def marked(mark: str) -> list[int]:
    """Process ids of everything alive that carries this mark."""
    pids = (
        int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()
    )
    return [pid for pid in pids if is_marked(pid, mark)]


def end(mark: str, patience: float = 5.0) -> None:
    """End every process with this mark: politely, then by force; return when gone."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + patience
        sent: set[int] = set()
        unseen = 0
        while unseen < LOOKS and time.monotonic() < deadline:
            pids = set(marked(mark))
            for pid in pids - sent:
                _send(pid, mark, number)
            sent |= pids
            unseen = 0 if pids else unseen + 1
            time.sleep(0.1)


def _send(pid: int, mark: str, number: int) -> None:
    """Signal a process that can't be exchanged for another between check and signal."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if is_marked(pid, mark):
            signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)
