"""What integers and users' own noise cost a simulation: ``secagg.mode=sum`` beside ``off``.

    python benchmarks/summed.py [--runs N] [--users N] [--page]

The main job with one trained method, without privacy and with it; the two modes in turn.
CPU seconds of all processes of a run, with one thread each: threads that wait for each
other on a busy machine would count as work. Runs that are done are kept in
``benchmarks/results/summed.json``; the same command does what is missing, and ``--page``
writes the table of docs/masked-sums.md.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from cpu_time import cpu_of
from report import RESULTS, ROOT, between, save

MODES = ("off", "sum")
KEYS = (
    *("development-users=0", "methods=shared,c-bpo", "evaluate.generate=false"),
    *("personalise.learning-rates=3e-3", "run.name=bench"),
)
PRIVACY = {
    "off": (),
    "central": ("privacy.mode=central", "privacy.noise=1.0", "privacy.epsilon=100"),
}
MOST = 1.15  # sum may take so many times what off takes
PAGE = ROOT / "docs" / "masked-sums.md"
FILE = RESULTS / "summed.json"
BEGIN, END = "<!-- summed -->\n", "<!-- end of summed -->\n"


def cpu_seconds(users: int, privacy: str, mode: str) -> float:
    """Run the job; returns the CPU seconds of all its processes."""
    with tempfile.TemporaryDirectory() as place:
        words = [*KEYS, *PRIVACY[privacy], f"users={users}", f"secagg.mode={mode}"]
        command = [str(Path(sys.executable).parent / "idiolect-server"), "simulate"]
        command += [str(ROOT / "simulations" / "lamp"), "--nodes", "1"]
        for word in [*words, f"run.folder={place}"]:
            command += ["-c", word]
        return cpu_of(command, {**os.environ, "OMP_NUM_THREADS": "1"})


def table(found: dict[str, Any]) -> str:
    """The part of the page."""
    lines = [
        "",
        f"The main job for {found['users']} users, one method, medians of CPU seconds:",
        "",
        "| privacy.mode | off | sum | ratio | target | met |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for privacy in PRIVACY:
        took = {mode: found["seconds"].get(f"{privacy} {mode}") for mode in MODES}
        if not all(took.values()):
            continue
        off, summed = (statistics.median(took[mode]) for mode in MODES)
        met = "yes" if summed <= MOST * off else "**no**"
        lines.append(
            f"| {privacy} | {off:.1f} | {summed:.1f} | {summed / off:.2f} | ≤ {MOST} "
            f"| {met} |"
        )
    return "\n".join([*lines, "", ""])


def main() -> None:
    """Measure what is missing, and write the page if asked to."""
    parser = argparse.ArgumentParser(description="secagg.mode=sum beside off.")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--users", type=int, default=12)
    parser.add_argument("--page", action="store_true", help="write the table")
    given = parser.parse_args()
    done = json.loads(FILE.read_text()) if FILE.exists() else {}
    if done.get("users") != given.users:
        done = {"users": given.users, "seconds": {}}
    for run in range(given.runs):
        for privacy in reversed(PRIVACY):
            for mode in MODES:
                took = done["seconds"].setdefault(f"{privacy} {mode}", [])
                if len(took) <= run:
                    took.append(cpu_seconds(given.users, privacy, mode))
                    print(privacy, mode, f"{took[-1]:.1f}", flush=True)
                    save("summed", done)
    if given.page:
        text = PAGE.read_text()
        PAGE.write_text(between(text, BEGIN, END, table(done)))


if __name__ == "__main__":
    main()
