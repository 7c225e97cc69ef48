"""Kill -9 every kind of process in every phase of a run on devices; write what was lost.

    python benchmarks/chaos.py [--findings docs/reliability]

One server and two devices on this machine (`fleet.py`). Each trial starts a private run,
kills its victim a moment after a phase began, and repeats ``run --resume NAME`` where the
run failed, as an operator or a supervisor would. Then it looks at everything that must not
be lost. Trials that are done are kept in a file; the same command does what is missing.
"""

import argparse
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fleet import Fleet, write_part

from idiolect.client.node import state
from idiolect.client.node.device import VaultStore
from idiolect.client.owner import adapters, consent
from idiolect.client.owner.history import entries
from idiolect.client.owner.keys import Passphrase
from idiolect.client.owner.vault import Vault

DEVICES = 2
# Victim -> (words of its command line, whose it is).
VICTIMS = {
    "device": ("idiolect.client.node.worker", "device0"),
    "ServerApp": ("flwr-serverapp", "server"),
    "SuperLink": ("idiolect.server.deploy.superlink superlink", "server"),
    "SuperExec": ("idiolect.server.deploy.superlink superexec", "server"),
    "proxy": ("idiolect.server.deploy.proxy", "server"),
}
# A device that is killed while its answer is at the server in part, not after a delay.
UPLOADING, UPLOADS = "device, uploading", 2
PHASES = ("adapt", "pool", "personalise", "evaluate")
DELAYS = (0.3, 2.0)  # seconds after the phase began, in turn
METHODS = ("base", "shared", "c-bpo")
SETTINGS = (
    *("adapt.rounds=2", "personalise.epochs=1", "evaluate.generate=false"),
    *("privacy.mode=central", "privacy.metrics=noisy", "privacy.noise=0.5"),
    *("privacy.epsilon=10000", "privacy.delta=0.001", "quorum=1.0", "deadline=240"),
)
RESUMES = 5


HEAD = """
Written by `python benchmarks/chaos.py --findings docs/reliability`: `kill -9` of one
process at a time, during private runs on {devices} devices over TLS, all on one machine.

**{kills} kills; {kept} runs completed with nothing lost.** An unbroken run took
{usual:.0f} s (median of {count}, {low:.0f} to {high:.0f}).

*Resumed* counts how often `idiolect-server run … --resume NAME` was needed; 0: the run
completed by itself. *Time lost* is relative to the unbroken median; up to a minute of it is
the time until Flower notices that a device is gone. *Lost* checks that every record of both
vaults opens, that the histories are unchanged, that each device has exactly one new
adapter, that the ledger has every release in which a device took part, and that every
method was measured.

| killed | during | after s | completed | resumed | time lost, s | lost |
|---|---|---|---|---|---|---|"""


def trial(fleet: Fleet, name: str, victim: str, phase: str, delay: float) -> dict:
    """One run with one kill (none, if `victim` is empty)."""
    before = [holdings(fleet, number) for number in range(DEVICES)]
    began = time.monotonic()
    run = fleet.run(*SETTINGS, f"run.name={name}")
    killed = 0
    if victim:
        wait_for_phase(fleet, name, phase)
        if victim == UPLOADING:
            killed = kill_in_upload(fleet)
        else:
            time.sleep(delay)
            killed = fleet.kill(*VICTIMS[victim])
    run, said, resumes = completed(fleet, run, SETTINGS, name)
    seconds = time.monotonic() - began
    fleet.wait_for_devices()
    return {
        "victim": victim,
        "phase": phase,
        "delay": delay,
        "killed": killed,
        "completed": run.returncode == 0,
        "resumes": resumes,
        "seconds": seconds,
        "lost": losses(fleet, name, before) if run.returncode == 0 else [said[-500:]],
    }


def completed(
    fleet: Fleet, run: subprocess.Popen[str], settings: Sequence[str], name: str
) -> tuple[subprocess.Popen[str], str, int]:
    """Let a run end, and resume it where it failed, at most `RESUMES` times.

    Returns its last process, what that said, and how often it was resumed.
    """
    said, _ = run.communicate()
    resumes = 0
    while run.returncode and resumes < RESUMES:
        resumes += 1
        time.sleep(5)
        wait_until_served(fleet)
        run = fleet.run(*settings, f"run.resume={name}")
        said, _ = run.communicate()
    return run, said, resumes


def wait_for_phase(fleet: Fleet, name: str, phase: str) -> None:
    """Wait until a run says that a phase began."""
    metrics = fleet.folder / "server" / "runs" / name / "metrics.jsonl"
    while not (metrics.exists() and f'"phase": "{phase}"' in metrics.read_text()):
        time.sleep(0.05)


# The session in which a node uploads a reply, while objects of it are missing, and how
# many are: once the ServerApp has seen the announcement, only the session is left of it.
UPLOAD = """
SELECT p.session_id FROM object_push_session_pending AS p
JOIN object_push_session_roots AS r ON r.session_id = p.session_id
JOIN message_res AS m ON m.message_id = r.root_object_id
WHERE m.src_node_id = ?
"""
MISSING = "SELECT count(*) FROM object_push_session_pending WHERE session_id = ?"


def kill_in_upload(fleet: Fleet) -> int:
    """Kill -9 the first device when a part of its next answer is at the server.

    Returns
    -------
    int
        How many processes were killed; 0 if the upload was over before.
    """
    nodes = json.loads(fleet.command("server", "nodes", "list", "--json"))
    first = int(min(nodes, key=lambda node: node["created-at"])["node-id"])
    signed = first - 2**64 if first >= 2**63 else first
    state = fleet.folder / "server" / "server" / "flower" / "state.db"
    link = sqlite3.connect(f"{state.as_uri()}?mode=ro", uri=True, timeout=5)
    pids, ends = fleet.alive(*VICTIMS["device"]), time.monotonic() + 120
    while time.monotonic() < ends:
        if session := link.execute(UPLOAD, (signed,)).fetchone():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.5)  # what was under way has arrived
            left = link.execute(MISSING, session).fetchone()[0]
            print(f"killed with {left} objects to go", flush=True)
            return len(pids) if left else 0
        time.sleep(0.002)
    return 0


def wait_until_served(fleet: Fleet) -> None:
    """Wait until the server answers the operator again."""
    for _ in range(60):
        try:
            fleet.command("server", "nodes", "list")
            return
        except RuntimeError:
            time.sleep(1)


def vault_of(fleet: Fleet, number: int) -> Vault:
    """Open a device's vault, as its owner would, beside the running node."""
    path = fleet.folder / f"device{number}" / "device" / "vault.db"
    return Vault.open(path, Passphrase(f"kept on loopback by device {number}"))


def holdings(fleet: Fleet, number: int) -> dict[str, Any]:
    """What a device holds: its history, and how many adapters."""
    with vault_of(fleet, number) as vault:
        vault.check()
        return {
            "history": [entry.id for entry in entries(vault)],
            "adapters": len(adapters.versions(vault)),
        }


def losses(fleet: Fleet, name: str, before: list[dict[str, Any]]) -> list[str]:
    """Everything that is not as it must be after a run that was resumed or not."""
    lost: list[str] = []
    folder = fleet.folder / "server" / "runs" / name
    ledger = json.loads((folder / "ledger.json").read_text())
    spent = json.dumps(ledger)
    results = json.loads((folder / "results.json").read_text())
    if set(results["methods"]) != set(METHODS):
        lost.append(f"methods measured: {', '.join(results['methods'])}")
    for number in range(DEVICES):
        try:
            now = holdings(fleet, number)
        except Exception as error:  # damage is what is looked for
            lost.append(f"vault of device {number}: {error}")
            continue
        if now["history"] != before[number]["history"]:
            lost.append(f"history of device {number}")
        if now["adapters"] != before[number]["adapters"] + 1:
            more = now["adapters"] - before[number]["adapters"]
            lost.append(f"device {number} has {more} new adapters")
        with vault_of(fleet, number) as vault:
            store = VaultStore(vault, name)
            users = {
                one.name.split("/")[-1].removesuffix(".json")
                for one in vault.records("run")
                if one.name.startswith(f"{name}/devices/")
            }
            for user in users:
                for stage, took in state.agreed(store, user).took.items():
                    for release in took:
                        if json.dumps(release) not in spent:
                            lost.append(f"{stage} {release} is not in the ledger")
            if not any(one.run == name for one in consent.sent(vault)):
                lost.append(f"device {number} notes nothing sent")
    return lost


def summary(done: list[dict]) -> str:
    """The page."""
    unbroken = [one["seconds"] for one in done if not one["victim"]]
    usual = statistics.median(unbroken)
    trials = [one for one in done if one["killed"]]
    kept = sum(one["completed"] and not one["lost"] for one in trials)
    lines = [
        HEAD.format(
            devices=DEVICES,
            kills=len(trials),
            kept=kept,
            usual=usual,
            count=len(unbroken),
            low=min(unbroken),
            high=max(unbroken),
        )
    ]
    for one in trials:
        lines.append(
            f"| {one['victim']} | {one['phase']} | "
            f"{one['delay'] or 'in the upload'} | "
            f"{'yes' if one['completed'] else 'NO'} | {one['resumes']} | "
            f"{one['seconds'] - usual:+.0f} | {'; '.join(one['lost']) or 'nothing'} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run what is missing, and write the page if asked to."""
    parser = argparse.ArgumentParser(description="Kill every process in every phase.")
    parser.add_argument("--findings", type=Path, help="write FINDINGS.json and .md")
    options = parser.parse_args()
    file = options.findings.with_suffix(".json") if options.findings else None
    done = json.loads(file.read_text()) if file and file.exists() else []
    known = {(one["victim"], one["phase"], one["name"]) for one in done}
    wanted = [("", "", 0.0, f"unbroken-{k}") for k in range(3)] + [
        (victim, phase, DELAYS[(i + k) % len(DELAYS)], f"{victim}-{phase}".lower())
        for i, phase in enumerate(PHASES)
        for k, victim in enumerate(VICTIMS)
    ]
    wanted += [
        (UPLOADING, phase, 0.0, f"uploading-{phase}-{k}")
        for k in range(UPLOADS)
        for phase in PHASES
    ]
    missing = [one for one in wanted if (one[0], one[1], one[3]) not in known]
    with tempfile.TemporaryDirectory() as place, Fleet(Path(place), DEVICES) as fleet:
        fleet.open(update="clear", votes="clear", metrics="clear")
        for victim, phase, delay, name in missing:
            one = trial(fleet, name, victim, phase, delay) | {"name": name}
            print(json.dumps(one), flush=True)
            done.append(one)
            if file:
                file.write_text(json.dumps(done, indent=1) + "\n")
    if options.findings:
        write_part(options.findings.with_suffix(".md"), "Reliability", summary(done))
    return 0 if all(one["completed"] and not one["lost"] for one in done) else 1


if __name__ == "__main__":
    sys.exit(main())
