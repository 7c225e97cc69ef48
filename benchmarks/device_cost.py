"""What one device pays: start-up, first step, memory and CPU for a history of 64 items.

    python benchmarks/device_cost.py [--runs N]

A new process does what a device does for one task of personalisation (built-in backbone,
C-BPO, 64 history and 64 unlabeled items, 3 epochs) and reports when the first optimiser
step was taken, counted from the start of the process. The kernel says what it used.
Import times are those of a Python that imports one module, less those of one that imports
none. Writes benchmarks/results/device_cost.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from report import medians, printed, save

# What is asked for where no model is needed.
LIGHT = ("idiolect.client.cli", "idiolect.server.cli")


def device() -> None:
    """Personalise one user in this process and print when the first step was taken."""
    from one_user import METHOD, RATE, memory

    from idiolect.common.config import parse
    from idiolect.common.data.load import load_dataset
    from idiolect.common.data.types import Item
    from idiolect.common.engine import training
    from idiolect.common.engine.reference import load_reference
    from idiolect.common.methods.personalise import personalise
    from idiolect.common.unlabeled.sets import Unlabeled, UnlabeledSet

    keys: dict[str, Any] = {"users": 1, "development-users": 0, "history": 64}
    keys |= {"unlabeled.kind": "public", "personalise.learning-rates": str(RATE)}
    keys |= {"engine.device": "cpu"}
    config = parse(keys)
    dataset = load_dataset(config)
    entries = [Unlabeled(Item(i.id, i.prompt, i.target)) for i in dataset.public]
    reference, unlabeled = load_reference(config), UnlabeledSet(tuple(entries))
    step, first = training.adam_step, []

    def noted(*arguments: Any) -> Any:
        moved = step(*arguments)
        first.append(time.time())
        return moved

    training.adam_step = noted
    personalise(reference, dataset.users, unlabeled, METHOD, RATE, config)
    cpu = sum(os.times()[:2])
    print(json.dumps({"first": first[0], "rss": memory("VmHWM"), "cpu": cpu}))


def one_device() -> dict[str, float]:
    """Start such a process and wait for it."""
    began = time.time()
    found = printed(__file__, "--device")
    ended = time.time()
    return {
        "first_step": found["first"] - began,
        "seconds": ended - began,
        "cpu": found["cpu"],
        "bytes": found["rss"],
    }


def seconds_of(code: str) -> float:
    """How long a Python takes that runs this."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - began


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="What one device pays.")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", action="store_true")
    given = parser.parse_args()
    if given.device:
        device()
        return
    rows = [one_device() for _ in range(given.runs)]
    found: dict[str, Any] = {**medians(rows)}
    bare = statistics.median(seconds_of("pass") for _ in range(given.runs))
    found["import"] = {
        name: statistics.median(seconds_of(f"import {name}") for _ in rows) - bare
        for name in LIGHT
    }
    print(json.dumps(found, indent=1))
    save("device_cost", {"runs": given.runs, "medians": found, "all": rows})


if __name__ == "__main__":
    main()
