"""A study in one process, and with ``--jobs``.

    python benchmarks/study_jobs.py [--jobs 2] [--runs 3] [--page]

The same small study of the built-in backbone, each time into an empty folder and in turn,
by the command that people use. Wall seconds from start to end, the start-up and what each
process makes for itself included. By default one process has a thread per core, and several
share the cores evenly. One process of one thread is measured too: it says how much of the
cores the default's threads use already. Writes benchmarks/results/study_jobs.json, and with
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
from collections.abc import Sequence
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
ONE, JOBS, THREAD = "one process", "jobs", "one thread"
PAGE = ROOT / "docs" / "scale.md"
MARKS = "<!-- jobs: written by a command -->\n", "<!-- jobs: end -->"


def measured(jobs: int, threads: int | None) -> tuple[float, str]:
    """Run the study in an empty folder: seconds, and a hash of its cells' files."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "eight.toml"
        file.write_text(STUDY)
        command = [str(Path(sys.executable).parent / "idiolect-server"), "study"]
        command += [str(file), "--output-dir", place, "--jobs", str(jobs)]
        env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        if threads:
            env["OMP_NUM_THREADS"] = str(threads)
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=env)
        took = time.perf_counter() - began
        files = sorted(Path(place).rglob("cells/*.json"))
        if len(files) != CELLS:
            sys.exit(f"the study left {len(files)} cells instead of {CELLS}")
        text = b"".join(file.read_bytes() for file in files)
    return took, hashlib.sha256(text).hexdigest()


def table(found: dict[str, Any]) -> str:
    """The part of the page."""
    one, several, thread = (statistics.median(s) for s in found["seconds"].values())
    runs, files = len(found["seconds"][ONE]), found["files"]
    jobs, processor = found["jobs"], found["origin"]["processor"]
    often = "one run each" if runs == 1 else f"medians of {runs} runs in turn"
    met = "met" if one / several >= LEAST else "**not met**"
    return (
        "\n| processes and threads | seconds | files |\n"
        "| --- | --- | --- |\n"
        f"| one process, a thread for each core | {one:.0f} | |\n"
        f"| `--jobs {jobs}`, which share the cores | {several:.0f} "
        f"| {_same(files[ONE], files[JOBS])} as of one process |\n"
        f"| one process of one thread | {thread:.0f} "
        f"| {_same(files[THREAD], files[JOBS])} as with `--jobs` |\n\n"
        f"`--jobs {jobs}` is {one / several:.2f} times as fast as one process (target "
        f"{LEAST}: {met}). A thread for each core is {thread / one:.2f} times as fast as "
        f"one thread. {CELLS} cells, {USERS} users each, built-in backbone, {often}, on "
        f"{processor}.\n"
    )


def _same(one: Sequence[str], other: Sequence[str]) -> str:
    return "the same bytes" if len({*one, *other}) == 1 else "not the same bytes"


def main() -> None:
    """Measure in turn, and write the page if asked to."""
    parser = argparse.ArgumentParser(description="A study with --jobs.")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--page", action="store_true", help="write the table")
    given = parser.parse_args()
    ways = {ONE: (1, None), JOBS: (given.jobs, None), THREAD: (1, 1)}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    files: dict[str, list[str]] = {way: [] for way in ways}
    for _ in range(given.runs):
        for way, (jobs, threads) in ways.items():
            took, digest = measured(jobs, threads)
            seconds[way].append(took)
            files[way].append(digest)
            print(f"{way}: {took:.1f} s, files {digest[:12]}", flush=True)
    found = {"jobs": given.jobs, "seconds": seconds, "files": files}
    save("study_jobs", found)
    if given.page:
        text = PAGE.read_text()
        part = table(found | {"origin": origin()})
        PAGE.write_text(between(text, *MARKS, part))


if __name__ == "__main__":
    main()
