"""Find and end the processes of one run, and no others (Linux).

The SuperLink and Ray start processes in sessions of their own, so neither a process
group nor a parent says what belongs to a run. An environment variable does: it is
inherited by everything the SuperLink starts, and `/proc` shows it. Ray's agents write
their title over it, so what a marked process has started belongs to the run as well. A
process id alone is never trusted, because it may have been given to another program
since: the time of the process's start goes with it.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

VARIABLE = "IDIOLECT_SIMULATION"
# One look that finds nothing proves nothing: a process that is just being started shows
# an empty environment for a moment (between the kernel's new memory map and its end).
LOOKS = 6
# Seconds that killed processes may take to be gone: on a busy machine, many.
KILLED = 30.0


def wait_until(done: Callable[[], bool], patience: float, pause: float = 0.1) -> bool:
    """Look until something is so, for so many seconds; return whether it is so."""
    deadline = time.monotonic() + patience
    while not (found := done()) and time.monotonic() < deadline:
        time.sleep(pause)
    return found


def is_marked(pid: int, mark: str) -> bool:
    """Whether a live process was started with this mark in its environment."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # ended, or another user's
        return False
    return f"{VARIABLE}={mark}".encode() in environment.split(b"\0")


def marked(mark: str) -> list[int]:
    """Process ids of everything alive that carries this mark."""
    return [pid for pid in _pids() if is_marked(pid, mark)]


def _pids() -> list[int]:
    return [int(e.name) for e in Path("/proc").iterdir() if e.name.isdigit()]


def family(mark: str) -> dict[int, int]:
    """Process id -> time of start, of what carries this mark and all that it started."""
    seen = {pid: found for pid in _pids() if (found := _status(pid))}
    members = seen.keys() & set(marked(mark))
    while more := {p for p, (parent, _) in seen.items() if parent in members} - members:
        members |= more
    return {pid: seen[pid][1] for pid in members}


def _status(pid: int) -> tuple[int, int] | None:
    """Parent and time of start of a process; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else (int(fields[1]), int(fields[19]))


def end(
    mark: str, patience: float = 5.0, known: Mapping[int, int] | None = None
) -> None:
    """End every process of this mark: politely, then by force; return when gone.

    Parameters
    ----------
    mark, patience
        Of what is to end, and seconds until it is killed.
    known
        What `family` said earlier: an agent of Ray whose raylet is gone has neither a mark
        nor a parent that has one.
    """
    known = dict(known or {})
    for number, most in ((signal.SIGTERM, patience), (signal.SIGKILL, KILLED)):
        deadline = time.monotonic() + most
        sent: set[int] = set()
        unseen = 0
        while unseen < LOOKS and time.monotonic() < deadline:
            known |= family(mark)
            known = {pid: born for pid, born in known.items() if _is(pid, born)}
            for pid in known.keys() - sent:
                _send(pid, known[pid], number)
            sent |= known.keys()
            unseen = 0 if known else unseen + 1
            time.sleep(0.1)


def end_one(pid: int, mark: str) -> None:
    """Ask one process to end, if it carries this mark."""
    if (found := _status(pid)) is not None and is_marked(pid, mark):
        _send(pid, found[1], signal.SIGTERM)


def _is(pid: int, born: int) -> bool:
    """Whether the process of this id is alive and the one that started then."""
    return (found := _status(pid)) is not None and found[1] == born


def _send(pid: int, born: int, number: int) -> None:
    """Signal a process that can't be exchanged for another between check and signal."""
    with contextlib.suppress(OSError):  # it has ended, or is another account's
        handle = os.pidfd_open(pid)
        try:
            if _is(pid, born):
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)
