"""Users per minute against the number of users trained in one pass.

    python benchmarks/many_users.py [--backbone DIR] [--users N] [--runs N]

C-BPO with warm reference scores, as in `one_user.py`, in one process per K: `--users`
persona users in groups of K = 1, 2, 4, 8, 16. The memory is the largest resident set
above that of the process with the backbone loaded. Computes where `device=auto` does: on
a GPU if there is one. Writes benchmarks/results/many_users-BACKBONE.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from one_user import METHOD, RATE, forget_peak, memory, world
from report import save

SIZES = (1, 2, 4, 8, 16)


def measure(size: int, users: int, backbone_name: str) -> dict[str, float]:
    """Train all users in groups of `size`; return users per minute and bytes."""
    from idiolect.common import personal
    from idiolect.server.study import groups

    config, backbone, shared, everybody, unlabeled = world(backbone_name, users)
    for user in everybody:  # the reference scores
        material = personal._material(backbone, shared, user, unlabeled, config)
        personal.CACHE.get(backbone, shared, material.own)
        personal.CACHE.get(backbone, shared, material.aux)
    forget_peak()
    before, began, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    for group in groups(everybody, size):
        personal.personalise(backbone, shared, group, unlabeled, METHOD, RATE, config)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {
        "users_per_minute": 60 * users / seconds,
        "cpu_per_user": cpu / users,
        "bytes": memory("VmHWM") - before,
    }


def main() -> None:
    """Measure every K in turn, several times, and write the medians."""
    parser = argparse.ArgumentParser(description="Users per minute against K.")
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--size", type=int, default=0)
    given = parser.parse_args()
    if given.size:
        print(json.dumps(measure(given.size, given.users, given.backbone)))
        return
    runs: dict[int, list[dict[str, float]]] = {size: [] for size in SIZES}
    command = [sys.executable, __file__, "--backbone", given.backbone]
    for _ in range(given.runs):
        for size in SIZES:
            arguments = ["--users", str(given.users), "--size", str(size)]
            done = subprocess.run([*command, *arguments], stdout=-1, check=True)
            runs[size].append(json.loads(done.stdout.splitlines()[-1]))
    found = {
        str(size): {key: statistics.median(run[key] for run in rows) for key in rows[0]}
        for size, rows in runs.items()
    }
    for size, row in found.items():
        print(f"K={size:3}{row['users_per_minute']:8.0f} users/min", end="")
        print(f"{row['bytes'] / 2**20:8.0f} MiB")
    name = Path(given.backbone).name
    report = {"backbone": name, "users": given.users, "runs": given.runs}
    report |= {"medians": found, "all": runs}
    save(f"many_users-{name}", report)


if __name__ == "__main__":
    main()
