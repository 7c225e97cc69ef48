"""What a run tells processes apart by, and what each has held: name and memory."""

import os
import platform
import resource
import sys


def process_name() -> str:
    """Host and process id."""
    return f"{platform.node()}/{os.getpid()}"


def peak_mb() -> float:
    """Largest resident set so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes on Linux, bytes on macOS.
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
