"""What tells processes apart, how old they are, and what memory each has and may take."""

import os
import platform
import resource
import sys
import time
from pathlib import Path

BEGAN = time.monotonic()


def process_name() -> str:
    """Host and process id."""
    return f"{platform.node()}/{os.getpid()}"


def peak_mb() -> float:
    """Largest resident set so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes on Linux, bytes on macOS.
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def age() -> float:
    """Seconds since this process was started (Linux), or since this module was read."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        up = float(Path("/proc/uptime").read_text().split()[0])
        return up - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return time.monotonic() - BEGAN


def free_mb() -> float:
    """Memory that Linux calls available, in MB; elsewhere no limit of ours."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    found = next(line for line in lines if line.startswith("MemAvailable"))
    return int(found.split()[1]) / 1024
