"""What a plan says before the work, against what the work takes.

    python benchmarks/plans.py [--jobs NAME,...] [--page]

``$IDIOLECT_DATA`` has the folders ``news_headlines``, ``gov_headlines`` and ``acl_titles``
of LaMP files, ``$IDIOLECT_MODELS`` a folder ``stories260K``; the other backbones are the
built-in one and SmolLM2 (extra `smollm2`). Each job runs once: its first line has the
plan, the clock and the run's results say the rest. What was measured is kept in
``benchmarks/results/plans.json``; the same command does what is missing, and ``--page``
writes a table of docs/simulations.md.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from report import RESULTS, ROOT, between, origin, save

FACTOR = 1.5  # how far the plan may be off, in either direction
PAGE = ROOT / "docs" / "simulations.md"
MARKS = "<!-- plans: written by a command -->\n", "<!-- plans: end -->"
FILE = RESULTS / "plans.json"
UNITS = {"s": 1, "min": 60, "h": 3600}
MIB = {"MB": 1, "GB": 1024}  # as the plan means them

REAL = (
    *("backbone=smollm2", "adapt.rounds=1", "methods=shared,c-bpo", "users=2"),
    *("development-users=0", "held-out=4", "skip-bad-users=true"),
)
NEWS, GOV = (f"data=$IDIOLECT_DATA/{kind}_headlines" for kind in ("news", "gov"))
ACL = ("task=LaMP-5", "data=$IDIOLECT_DATA/acl_titles")
JOBS = {
    "24 personas, built-in backbone, defaults of four methods": (
        *("users=24", "methods=shared,rag,sft,c-bpo"),
    ),
    "4 personas, SmolLM2, 8 texts": (
        *("backbone=smollm2", "users=4", "development-users=0", "history=8"),
        *("adapt.rounds=1", "methods=base,shared,sft,c-bpo", "held-out=4"),
    ),
    "8 authors of abstracts, 260K parameters, three rates": (
        *("backbone=$IDIOLECT_MODELS/stories260K", *ACL, "users=8"),
        *("development-users=4", "history=8", "held-out=4", "skip-bad-users=true"),
        *("methods=shared,sft,c-bpo", "adapt.rounds=1"),
    ),
    "2 authors of news, SmolLM2, up to 128 texts of 128 tokens": (
        *(*REAL, "task=LaMP-4", NEWS, "history=128", "engine.max-length=128"),
        "personalise.epochs=1",
    ),
    "2 authors of abstracts, SmolLM2, 8 texts of up to 512 tokens": (
        *(*REAL, *ACL, "history=8", "engine.max-length=512"),
    ),
    "2 authors of blog posts, SmolLM2, up to 128 texts of 1,024 tokens": (
        *(*REAL, "task=LaMP-4", GOV, "history=128", "engine.max-length=1024"),
        "personalise.epochs=1",
    ),
}


def planned(line: str) -> tuple[float, float]:
    """Seconds and MiB of ``about 1 h 5 min in all, 2.2 GB; ...``."""
    said = re.search(r"about (.+?) in all, ([\d.,]+) (MB|GB)", line)
    if said is None:
        raise SystemExit(f"no plan in {line!r}")
    parts = re.findall(r"(\d+) (s|min|h)", said[1])
    seconds = sum(int(number) * UNITS[unit] for number, unit in parts)
    return seconds, float(said[2].replace(",", "")) * MIB[said[3]]


def one_job(keys: tuple[str, ...]) -> dict[str, float]:
    """Run the job, and compare."""
    with tempfile.TemporaryDirectory() as place:
        words = [os.path.expandvars(key) for key in keys]
        words += [f"run.folder={place}", "run.name=bench"]
        command = [str(Path(sys.executable).parent / "idiolect-server"), "simulate"]
        command += [str(ROOT / "simulations" / "lamp")]
        command += [part for word in words for part in ("-c", word)]
        began = time.perf_counter()
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        seconds = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(done.stdout)
        cost = json.loads((Path(place) / "bench" / "results.json").read_text())["cost"]
    plan, memory = planned(done.stdout)
    measured = {"seconds": seconds, "memory": cost["peak_rss_mb"]}
    return {"planned_seconds": plan, "planned_memory": memory, **measured}


def table(found: dict[str, Any]) -> str:
    """The part of the page."""
    lines = [
        "| job | planned, min | took, min | ratio | planned, GiB | peak, GiB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    off = []
    for name in filter(found["rows"].__contains__, JOBS):
        row = found["rows"][name]
        ratio = row["seconds"] / row["planned_seconds"]
        off.append(max(ratio, 1 / ratio))
        cells = (
            *(f"{row['planned_seconds'] / 60:.1f}", f"{row['seconds'] / 60:.1f}"),
            f"{ratio:.2f}",
            *(f"{row['planned_memory'] / 1024:.1f}", f"{row['memory'] / 1024:.1f}"),
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    within = sum(value <= FACTOR for value in off)
    about = (
        f"{within} of {len(off)} plans are within a factor of {FACTOR:g} of what the job "
        f"took (target: all). One run each on {found['origin']['processor']} "
        "(`benchmarks/plans.py`); the data are LaMP files that are not part of the project."
    )
    return "\n".join([*lines, "", about, ""])


def main() -> None:
    """Measure what is missing, and write the page if asked to."""
    parser = argparse.ArgumentParser(description="Plans against what the work takes.")
    parser.add_argument("--jobs", default="", help="parts of names; empty: all")
    parser.add_argument("--page", action="store_true", help="write the table")
    given = parser.parse_args()
    found = json.loads(FILE.read_text()) if FILE.exists() else {"rows": {}}
    for name, keys in JOBS.items():
        wanted = any(part in name for part in given.jobs.split(","))
        if wanted and name not in found["rows"]:
            found["rows"][name] = one_job(keys)
            print(name, json.dumps(found["rows"][name]), flush=True)
            save("plans", found)
    if given.page:
        part = table(found | {"origin": origin()})
        PAGE.write_text(between(PAGE.read_text(), *MARKS, part))


if __name__ == "__main__":
    main()
