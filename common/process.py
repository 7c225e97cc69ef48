"""What a run tells processes apart by, and what each has held and may take of memory."""

import os
import platform
import resource
import sys
from pathlib import Path


def process_name() -> str:
    """Host and process id."""
    return f"{platform.node()}/{os.getpid()}"


def peak_mb() -> float:
    """Largest resident set so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes on Linux, bytes on macOS.
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def free_mb() -> float:
    """Memory that Linux calls available, in MB; elsewhere no limit of ours."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    found = next(line for line in lines if line.startswith("MemAvailable"))
    return int(found.split()[1]) / 1024
