"""Five devices whose rows are masked, of which one is killed and one never answers.

    make masked-demo

Real processes on loopback, as in `device_demo.py`. The same run is made without masks and
with them (``secagg.mode``), under the same two failures: when four devices have sent their
update of the shared adapter, one of them is killed for good; the fifth has been stopped
since it joined. Without noise (``privacy.epsilon=inf``), so that both must publish the same
shared adapter, bit for bit. Prints both times.
"""

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fleet import Fleet
from safetensors.numpy import load_file

DEVICES, KILLED, SILENT = 5, "device3", "device4"
SETTINGS = (
    *("adapt.rounds=1", "adapt.wire=float32", "methods=base,shared,c-bpo"),
    *("privacy.mode=central", "privacy.epsilon=inf", "privacy.metrics=noisy"),
    *("quorum=0.6", "deadline=60", "personalise.epochs=1", "evaluate.generate=false"),
)
MOST_LONGER = 60.0  # seconds


def events(fleet: Fleet, name: str) -> list[dict]:
    """What a run has written so far."""
    file = fleet.folder / "server" / "runs" / name / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def wait(fleet: Fleet, name: str, happened: Callable[[dict], bool], run) -> None:
    """Wait until an event of a run is so, or the run has ended."""
    while run.poll() is None and not any(map(happened, events(fleet, name))):
        time.sleep(0.05)


def stop_workers(fleet: Fleet, who: str, number: signal.Signals) -> None:
    """Send a signal to the processes of a device."""
    for pid in fleet.alive("", who):
        os.kill(pid, number)


def one_run(fleet: Fleet, mode: str) -> float:
    """Make the run in a mode, with its two failures; returns its seconds."""
    began = time.monotonic()
    run = fleet.run(*SETTINGS, f"secagg.mode={mode}", f"run.name={mode}")
    wait(fleet, mode, lambda e: e.get("joined") == DEVICES, run)
    stop_workers(fleet, SILENT, signal.SIGSTOP)
    alive = DEVICES - 1
    wait(
        fleet, mode, lambda e: e.get("phase") == "adapt" and e.get("done") == alive, run
    )
    stop_workers(fleet, KILLED, signal.SIGKILL)
    said, _ = run.communicate()
    seconds = time.monotonic() - began
    print(said)
    stop_workers(fleet, SILENT, signal.SIGCONT)
    fleet.start(KILLED, "node", "run")
    if run.returncode:
        raise SystemExit(f"the run with secagg.mode={mode} failed")
    return seconds


def same(one: Path, other: Path) -> bool:
    """Whether two runs published the same shared adapter, bit for bit."""
    files = [next((run / "checkpoint").glob("shared-*")) for run in (one, other)]
    left, right = map(load_file, files)
    moved = any(array.any() for array in left.values())
    return moved and all((array == right[name]).all() for name, array in left.items())


def main() -> int:
    """Run both, and compare."""
    with tempfile.TemporaryDirectory() as place, Fleet(Path(place), DEVICES) as fleet:
        fleet.open(update="clear", votes="clear", metrics="clear")
        seconds = {}
        for mode in ("off", "on"):
            fleet.wait_for_devices()
            seconds[mode] = one_run(fleet, mode)
        runs = fleet.folder / "server" / "runs"
        equal = same(runs / "off", runs / "on")
        longer = seconds["on"] - seconds["off"]
        print(
            f"without masks {seconds['off']:.1f} s, with masks {seconds['on']:.1f} s: "
            f"{longer:.1f} s longer; the same shared adapter: {equal}"
        )
        return 0 if equal and longer <= MOST_LONGER else 1


if __name__ == "__main__":
    sys.exit(main())
