"""Where the processes of a simulation spend their time.

    python benchmarks/profile_run.py [--users 100] [--page]

The main job of `simulation.py`, with py-spy beside each process that stands in for users:
fifty times a second it notes what each thread that computes is doing. What is noted counts
for the request that is answered, and within it for the innermost of `PARTS` on the stack.
Writes benchmarks/results/profile_run.json; ``--page`` measures only if there is none, and
writes a table of docs/scale.md.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from report import RESULTS, ROOT, between, save
from simulation import KEYS

RATE = 50  # looks a second
PAGE = ROOT / "docs" / "scale.md"
FILE = RESULTS / "profile_run.json"
MARKS = "<!-- profile: written by a command -->\n", "<!-- profile: end -->"
# Function of client/node/handlers.py -> what it answers.
REQUESTS = {
    "_hello": "hello",
    "_adapt": "shared adapter",
    "_votes": "votes",
    "_personalise": "own adapter",
    "_evaluate": "evaluation",
}
# Function -> what it does; the innermost counts.
PARTS = {
    "_engine_run_backward": "backward pass",
    "adam_step": "optimiser",
    "sgd_step": "optimiser",
    "gradient": "optimiser",
    "completion_logp": "forward pass",
    "laid_out": "batches",
    "collate": "batches",
    "alpha_of": "alpha",
    "draw_for": "drawing unlabeled items",
    "pack": "messages",
    "read_sealed": "messages",
}
REST, OUTSIDE = "the rest", "between requests"
FRAME = re.compile(r"^(\S+) \(([^:)]+)")


def place_of(stack: str) -> tuple[str, str]:
    """Request and part of one line of py-spy's, the outermost frame first."""
    frames = [found for part in stack.split(";") if (found := FRAME.match(part))]
    request = OUTSIDE
    for name, file in (frame.groups() for frame in frames):
        if name in REQUESTS and file.endswith("client/node/handlers.py"):
            request = REQUESTS[name]
    inner = [PARTS[f[1]] for f in reversed(frames) if f[1] in PARTS]
    return request, inner[0] if inner else REST


def actors() -> list[int]:
    """Processes of Ray's that stand in for users."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if line.startswith(b"ray::ClientAppActor"):
                found.append(int(entry.name))
    return found


def measure(users: int) -> dict[str, Any]:
    """Run the job and look at its processes."""
    looks: Counter[tuple[str, str]] = Counter()
    watching: dict[int, subprocess.Popen[bytes]] = {}
    with tempfile.TemporaryDirectory() as place:
        words = [*KEYS, f"users={users}", f"run.folder={place}"]
        command = [str(Path(sys.executable).parent / "idiolect-server"), "simulate"]
        command += [str(ROOT / "simulations" / "lamp")]
        command += [part for word in words for part in ("-c", word)]
        before = set(actors())
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while run.poll() is None:
            for pid in {*actors()} - before - watching.keys():
                watching[pid] = _watched(pid, Path(place) / f"{pid}.raw")
            time.sleep(1)
        if run.returncode:
            sys.exit("the run failed")
        for pid, process in watching.items():
            process.wait(60)
            for line in (Path(place) / f"{pid}.raw").read_text().splitlines():
                stack, _, count = line.rpartition(" ")
                looks[place_of(stack)] += int(count)
    rows = [[*where, count] for where, count in looks.most_common()]
    return {"users": users, "looks": rows}


def _watched(pid: int, file: Path) -> "subprocess.Popen[bytes]":
    program = shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if program is None:
        sys.exit("py-spy is missing: `pip install 'idiolect[bench]'`.")
    words = ["record", "--pid", str(pid), "--rate", str(RATE), "--format", "raw"]
    words += ["--duration", "86400", "--nonblocking", "--output", str(file)]
    quiet = subprocess.DEVNULL
    return subprocess.Popen([program, *words], stdout=quiet, stderr=quiet)


def table(found: dict[str, Any]) -> str:
    """The part of the page."""
    total = sum(count for *_, count in found["looks"])
    whole: Counter[str] = Counter()
    for request, _, count in found["looks"]:
        whole[request] += count
    lines = ["| request | share of the time | of which |", "| --- | --- | --- |"]
    for request, count in whole.most_common():
        parts = [(p, n) for r, p, n in found["looks"] if r == request]
        said = ", ".join(f"{p} {n / count:.0%}" for p, n in parts if n / count >= 0.01)
        lines.append(f"| {request} | {count / total:.0%} | {said} |")
    about = (
        f"{found['users']} users, built-in backbone, {found['origin']['processor']}; "
        f"{total:,} looks by py-spy at processes that compute."
    )
    return "\n".join([*lines, "", about, ""])


def main() -> None:
    """Measure, and write the page if asked to."""
    parser = argparse.ArgumentParser(description="Where a simulation's time goes.")
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--page", action="store_true", help="write the table")
    given = parser.parse_args()
    if not (given.page and FILE.exists()):
        save("profile_run", measure(given.users))
    part = table(json.loads(FILE.read_text()))
    print(part)
    if given.page:
        PAGE.write_text(between(PAGE.read_text(), *MARKS, part))


if __name__ == "__main__":
    main()
