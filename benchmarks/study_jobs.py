"""A study in one process, and with ``--jobs``.

    python benchmarks/study_jobs.py [--jobs 2] [--runs 3] [--page]

The same small study of the built-in backbone, each time into an empty folder and in turn,
by the command that people use. Wall seconds from start to end, the start-up and what each
process makes for itself included. Threads are the default's: one process has a thread per
core, several share the cores evenly. Writes benchmarks/results/study_jobs.json, and with
``--page`` a table of docs/scale.md.
"""

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from report import ROOT, between, origin, save

CELLS, USERS = 8, 24
STUDY = f"""
title = "Eight cells"
question = "How long do eight cells take?"

[config]
users = {USERS}
history = 16
methods = "shared,sft,c-bpo"
"unlabeled.kind" = "others"
"evaluate.generate" = false

[grid]
seed = [1, 2]
"personalise.learning-rates" = ["1e-3", "3e-3", "1e-2", "3e-2"]

[plot]
x = "personalise.learning-rates"
metric = "nll"
"""
LEAST = 1.7  # times as fast with two
PAGE = ROOT / "docs" / "scale.md"
MARKS = "<!-- jobs: written by a command -->\n", "<!-- jobs: end -->"


def measured(jobs: int) -> tuple[float, str]:
    """Run the study in an empty folder: seconds, and a hash of its cells' files."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "eight.toml"
        file.write_text(STUDY)
        command = [str(Path(sys.executable).parent / "idiolect-server"), "study"]
        command += [str(file), "--output-dir", place, "--jobs", str(jobs)]
        free = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=free)
        took = time.perf_counter() - began
        files = sorted(Path(place).rglob("cells/*.json"))
        if len(files) != CELLS:
            sys.exit(f"the study left {len(files)} cells instead of {CELLS}")
        text = b"".join(file.read_bytes() for file in files)
    return took, hashlib.sha256(text).hexdigest()


def table(found: dict[str, Any]) -> str:
    """The part of the page."""
    one, several = (statistics.median(found["seconds"][k]) for k in ("1", "jobs"))
    times = one / several
    met = "yes" if times >= LEAST else "**no**"
    runs = len(found["seconds"]["1"])
    often = "one run each" if runs == 1 else f"medians of {runs} runs in turn"
    same = "the same bytes" if len(set(found["files"])) == 1 else "not the same bytes"
    return (
        f"\n| one process, s | --jobs {found['jobs']}, s | times as fast | target | met |\n"
        "| --- | --- | --- | --- | --- |\n"
        f"| {one:.0f} | {several:.0f} | {times:.2f} | ≥ {LEAST} | {met} |\n\n"
        f"A study of {CELLS} cells, {USERS} users each, built-in backbone, {often}, on "
        f"{found['origin']['processor']}. "
        "One process has a thread for each core, several share the cores. Files of all "
        f"runs: {same}.\n"
    )


def main() -> None:
    """Measure in turn, and write the page if asked to."""
    parser = argparse.ArgumentParser(description="A study with --jobs.")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--page", action="store_true", help="write the table")
    given = parser.parse_args()
    seconds: dict[str, list[float]] = {"1": [], "jobs": []}
    files = []
    for _ in range(given.runs):
        for name, jobs in (("1", 1), ("jobs", given.jobs)):
            took, digest = measured(jobs)
            seconds[name].append(took)
            files.append(digest)
            print(f"--jobs {jobs}: {took:.1f} s, files {digest[:12]}", flush=True)
    found = {"jobs": given.jobs, "seconds": seconds, "files": files}
    save("study_jobs", found)
    if given.page:
        text = PAGE.read_text()
        part = table(found | {"origin": origin()})
        PAGE.write_text(between(text, *MARKS, part))


if __name__ == "__main__":
    main()
