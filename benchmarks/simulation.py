"""The main job for many users, against a Flower app as one would first write it.

    python benchmarks/simulation.py [--sizes 25,100,1000] [--naive 8,24]

The main job with one trained method (`methods=shared,c-bpo`, one learning rate, NLL and
contrast only): four rounds of the shared adapter, votes, each user's own adapter, its
evaluation. `naive_app.py` does four rounds, an own adapter by SFT, and its NLL. Both are
started again for each size; a line through (users, seconds) gives the start-up and the
cost of one more user. Writes benchmarks/results/simulation.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from report import printed, save

ROOT = Path(__file__).resolve().parent.parent
KEYS = (
    "development-users=0",
    "methods=shared,c-bpo",
    "personalise.learning-rates=3e-3",
    "evaluate.generate=false",
    "run.name=bench",
)


def ours(users: int) -> dict[str, float]:
    """Run the main job for this many users."""
    with tempfile.TemporaryDirectory() as place:
        words = [*KEYS, f"users={users}", f"run.folder={place}"]
        command = [str(Path(sys.executable).parent / "idiolect-server"), "simulate"]
        command += [str(ROOT / "simulations" / "lamp")]
        for word in words:
            command += ["-c", word]
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        folder = Path(place) / "bench"
        cost = json.loads((folder / "results.json").read_text())["cost"]
        events = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        (memory,) = [event for event in events if event["event"] == "memory"]
    return {
        "users": users,
        "seconds": seconds,
        "peak_mb": cost["peak_rss_mb"],
        "server_mb": memory["server_mb"],
        "start": seconds - sum(cost["seconds"].values()),
        **cost["seconds"],
    }


def naive(users: int) -> dict[str, float]:
    """Run the naive app for this many users."""
    return printed(str(ROOT / "benchmarks" / "naive_app.py"), "--users", str(users))


def line(rows: list[dict[str, float]]) -> dict[str, float]:
    """Least squares seconds = start + per_user * users, and its worst relative error."""
    users = np.array([row["users"] for row in rows])
    seconds = np.array([row["seconds"] for row in rows])
    slope, start = np.polyfit(users, seconds, 1, w=1 / seconds)
    worst = float(np.max(np.abs(start + slope * users - seconds) / seconds))
    return {"start": float(start), "per_user": float(slope), "worst_error": worst}


def main() -> None:
    """Run both at several sizes, print and write what was measured."""
    parser = argparse.ArgumentParser(description="Many users, against a naive app.")
    parser.add_argument("--sizes", default="25,100,1000")
    parser.add_argument("--naive", default="8,24")
    given = parser.parse_args()
    report: dict[str, Any] = {}
    for name, run, sizes in (
        ("naive", naive, given.naive),
        ("ours", ours, given.sizes),
    ):
        rows = []
        for size in map(int, sizes.split(",")):
            rows.append(run(size))
            print(name, json.dumps(rows[-1]), flush=True)
        report[name] = {"rows": rows, "line": line(rows)}
        print(name, json.dumps(report[name]["line"]), flush=True)
    save("simulation", report)


if __name__ == "__main__":
    main()
