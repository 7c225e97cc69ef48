"""Where results are kept, and what they were measured on."""

import json
import platform
import time
from pathlib import Path
from typing import Any

from idiolect.server.results import git_commit

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def save(name: str, report: dict[str, Any]) -> None:
    """Write ``results/<name>.json`` with the commit, the day and the processor."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(report | {"origin": origin()}, indent=1) + "\n")


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
