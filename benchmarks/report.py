"""How results come about and where they are kept, and what they were measured on."""

import json
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from idiolect.server.run.results import git_commit

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def save(name: str, report: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write ``results/<name>.json`` with the commit, the day and the processor."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(report | {"origin": origin()}, indent=1) + "\n")


def between(text: str, begin: str, end: str, part: str) -> str:
    """A page's text with another part between its two markers."""
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    return f"{head}{begin}{part}{end}{tail}"


def printed(*command: str, environment: dict[str, str] | None = None) -> Any:
    """What a Python program prints last, as JSON; leaves with its errors if it fails."""
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        sys.exit(f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def medians(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Median of every key."""
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def origin() -> dict[str, str]:
    """Commit of the checkout (with a ``+`` if it was changed), day, and processor."""
    return {
        "commit": git_commit(),
        "day": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": _processor(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return f"{len(named)} x {named[0]}" if named else platform.processor()
