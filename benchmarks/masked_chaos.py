"""Kill -9 every kind of process in each exchange of a masked sum; the sum must not change.

    python benchmarks/masked_chaos.py [--only VICTIM:EXCHANGE ...] [--page]

One server and three devices on this machine (`fleet.py`). The same run is made unbroken,
and then once per case: its victim is killed when the server begins an exchange, and ``run
--resume NAME`` follows where the run failed. Without noise, so that the published adapter
must be that of the unbroken run bit for bit; and the ledger must have the same events.
Cases that are done are kept in ``benchmarks/results/masked_chaos.json``; ``--page`` writes
the table of docs/masked-sums.md.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from chaos import VICTIMS, completed
from fleet import Fleet
from masked_demo import same
from report import RESULTS, ROOT, between, save

DEVICES = 3
# Exchange -> the file of the checkpoint with which the server begins it.
EXCHANGES = {
    "report": "plan.json",
    "confirm": "counted.json",
    "open": "signatures.json",
}
DELAY = 0.5  # seconds: so long after its plan a report is asked for and not yet there
SETTINGS = (
    *("secagg.mode=on", "adapt.rounds=1", "adapt.wire=float32", "methods=shared"),
    *("privacy.mode=central", "privacy.epsilon=inf", "privacy.metrics=noisy"),
    *("unlabeled.kind=self", "evaluate.generate=false", "quorum=1.0", "deadline=300"),
)
FILE = RESULTS / "masked_chaos.json"
PAGE = ROOT / "docs" / "masked-sums.md"
BEGIN, END = "<!-- chaos -->\n", "<!-- end of chaos -->\n"


def made(
    fleet: Fleet, name: str, victim: str = "", exchange: str = ""
) -> dict[str, Any]:
    """Make a run, with one kill or none, and resume it until it has completed."""
    began = time.monotonic()
    run = fleet.run(*SETTINGS, f"run.name={name}")
    killed = 0
    if victim:
        sums = fleet.folder / "server" / "runs" / name / "checkpoint" / "secagg"
        while run.poll() is None and not any(sums.glob(f"*/{EXCHANGES[exchange]}")):
            time.sleep(0.002)
        time.sleep(DELAY * (exchange == "report"))
        killed = fleet.kill(*VICTIMS[victim])
    run, said, resumes = completed(fleet, run, SETTINGS, name)
    seconds = time.monotonic() - began
    fleet.wait_for_devices()
    ended = run.returncode == 0
    return {
        "victim": victim,
        "exchange": exchange,
        "killed": killed,
        "completed": ended,
        "resumes": resumes,
        "seconds": round(seconds, 1),
        "said": "" if ended else said[-500:],
    }


def compared(fleet: Fleet, name: str) -> dict[str, bool]:
    """Whether a run published and paid what the unbroken one did."""
    runs = fleet.folder / "server" / "runs"
    events = [
        json.loads((runs / one / "results.json").read_text())["privacy"]["events"]
        for one in ("unbroken", name)
    ]
    return {
        "sum": same(runs / "unbroken", runs / name),
        "ledger": events[0] == events[1] and bool(events[0]),
    }


def table(cases: dict[str, dict[str, Any]]) -> str:
    """The part of the page."""
    lines = [
        "",
        "| killed | exchange | completed | resumed | the same sum | the same ledger |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in cases.values():
        said = [
            "yes" if one.get(k) else "**no**" for k in ("completed", "sum", "ledger")
        ]
        lines.append(
            f"| {one['victim']} | {one['exchange']} | {said[0]} | {one['resumes']} "
            f"| {said[1]} | {said[2]} |"
        )
    return "\n".join([*lines, "", ""])


def kept() -> dict[str, dict[str, Any]]:
    """Cases that were done."""
    return json.loads(FILE.read_text())["cases"] if FILE.exists() else {}


def main() -> int:
    """Do what is missing, and write the page if asked to."""
    parser = argparse.ArgumentParser(
        description="Kill in each exchange of a masked sum."
    )
    parser.add_argument("--only", nargs="*", help="VICTIM:EXCHANGE (default: all)")
    parser.add_argument("--page", action="store_true", help="write the table")
    given = parser.parse_args()
    wanted = [
        (victim, exchange)
        for exchange in EXCHANGES
        for victim in VICTIMS
        if f"{victim}:{exchange}" not in kept()
        and (given.only is None or f"{victim}:{exchange}" in given.only)
    ]
    if wanted:
        with tempfile.TemporaryDirectory() as at, Fleet(Path(at), DEVICES) as fleet:
            fleet.open(update="clear", votes="clear", metrics="clear")
            print(json.dumps(made(fleet, "unbroken")), flush=True)
            for victim, exchange in wanted:
                name = f"{victim}-{exchange}".lower()
                one = made(fleet, name, victim, exchange)
                if one["completed"]:
                    one |= compared(fleet, name)
                print(json.dumps(one), flush=True)
                if one["killed"]:
                    save(
                        "masked_chaos",
                        {"cases": kept() | {f"{victim}:{exchange}": one}},
                    )
    if given.page:
        text = PAGE.read_text()
        PAGE.write_text(between(text, BEGIN, END, table(kept())))
    return (
        0 if all(one.get("sum") and one.get("ledger") for one in kept().values()) else 1
    )


if __name__ == "__main__":
    sys.exit(main())
