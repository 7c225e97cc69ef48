"""CPU seconds of a program and of everything that it starts.

Not a command. Read from /proc while they run: Ray does not wait for its workers, so Linux
adds their time to nobody's when they end, and `getrusage` lacks it or not by chance.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

Process = tuple[int, int]  # its id, and when it was started
PAUSE = 0.2  # seconds; what a process computes after the last look is lost


def cpu_of(
    command: Sequence[str], environment: Mapping[str, str] = os.environ
) -> float:
    """Run a command to its end; returns CPU seconds, or leaves if it fails."""
    seen: dict[Process, float] = {}
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    own = known(run.pid)
    while run.poll() is None:
        seen |= spent(own)
        time.sleep(PAUSE)
    if run.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return sum(seen.values())


def known(pid: int) -> set[Process]:
    """A process that runs, as `spent` takes it."""
    return {one for one in _now() if one[0] == pid}


def spent(own: set[Process]) -> dict[Process, float]:
    """CPU seconds so far of some processes and of all that they have started.

    The latter are added to `own`: a process stays one of them when its parent ends.
    """
    now = _now()
    ids = {pid for pid, _ in own}
    while more := {one for one, (parent, _) in now.items() if parent in ids} - own:
        own |= more
        ids |= {pid for pid, _ in more}
    return {one: now[one][1] for one in own & now.keys()}


def _now() -> dict[Process, tuple[int, float]]:
    """Parent and CPU seconds of every process."""
    found: dict[Process, tuple[int, float]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if entry.name.isdigit():
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                found[int(entry.name), int(fields[19])] = int(fields[1]), seconds
    return found
