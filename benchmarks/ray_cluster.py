"""Runs and a study on a Ray cluster of two nodes, against one machine; one is killed.

    python benchmarks/ray_cluster.py [--users 6] [--check]

Two Ray nodes of one core each run on this machine, with a token; where the account may do
that, each has a network of its own, joined by a cable that only they see (`unshare`, a
veth pair), and a host name of its own. The same small run is made four times: on this
machine alone, on both nodes, on both with `kill -9` of the command and all that it started
while own adapters are trained, which is resumed, and on both with `kill -9` of the second
raylet there. Results and all adapters must be equal, bit for bit. So is a study
of four cells: in one process, on both nodes, and on both with the second raylet killed
after the first cell; its files must be equal. Writes benchmarks/results/ray_cluster.json
and its tables in docs/scale.md; with ``--check`` it makes half of that, writes
nothing, and its exit code says whether all was equal.
"""

import argparse
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import ROOT, between, save
from safetensors.torch import load_file

from idiolect.server.simulate.pool import ANSWERED

PAGE = ROOT / "docs" / "scale.md"
BEGIN, END = "<!-- ray: written by a command -->\n", "<!-- ray: end -->"
KEYS = (
    *("development-users=1", "history=8", "held-out=2", "adapt.rounds=1"),
    *("methods=base,shared,sft,c-bpo", "personalise.learning-rates=3e-3"),
)
STUDY = """
title = "Four cells"
[config]
users = 2
"development-users" = 1
history = 8
"held-out" = 2
"adapt.rounds" = 1
methods = "shared,sft,c-bpo"
"personalise.learning-rates" = "3e-3"
"evaluate.generate" = false
[grid]
seed = [0, 1]
"unlabeled.ratio" = [1.0, 2.0]
"""
HEAD, SECOND = "10.77.0.1", "10.77.0.2"  # in networks that nobody else sees
ALONE, BOTH, RESUMED, KILLED = "alone", "both", "resumed", "killed"
INSIDE = "IDIOLECT_RAY_CLUSTER"  # set in the process that has a network of its own
PATIENCE = 900.0
SERVER = str(Path(sys.executable).parent / "idiolect-server")


# --- what is compared and written: pure ------------------------------------------------


def answered(log: str) -> dict[str, int]:
    """Ray's machine -> messages that it answered, by the log of a run."""
    found = re.findall(rf"{ANSWERED}(\w+): (\d+)", log)
    counts: dict[str, int] = {}
    for machine, count in found:
        counts[machine] = max(counts.get(machine, 0), int(count))
    return counts


def numbers(folder: Path) -> dict[str, Any]:
    """All that a run computed, exactly: its results without times, and every adapter."""
    results = json.loads((folder / "results.json").read_text())
    adapters = {
        str(path.relative_to(folder)): {
            name: tensor.tolist() for name, tensor in load_file(path).items()
        }
        for path in sorted((folder / "adapters").rglob("*.safetensors"))
    }
    parts = ("methods", "pairs", "users")
    return {"adapters": adapters, **{part: results[part] for part in parts}}


def table(report: dict[str, Any]) -> str:
    """The part of the page."""
    rows = [
        "| run | seconds | messages answered by each Ray node | equal to one machine |",
        "| --- | --- | --- | --- |",
    ]
    names = {
        ALONE: "this machine alone, 2 processes",
        BOTH: "two Ray nodes of one core",
        RESUMED: "the same, the command killed (`kill -9`) and resumed",
        KILLED: "the same, second raylet killed (`kill -9`)",
    }
    for name, words in names.items():
        one = report["runs"][name]
        parts = ", ".join(map(str, sorted(one["answered"].values(), reverse=True)))
        equal = "" if name == ALONE else "bit for bit" if one["equal"] else "**no**"
        rows.append(f"| {words} | {one['seconds']:.0f} | {parts} | {equal} |")
    network = (
        "Each Ray node had a network and a host name of its own on one machine"
        if report["namespaces"]
        else "Both Ray nodes were on one machine and one network"
    )
    cells = [
        "| study of four cells | seconds | files equal to one process |",
        "| --- | --- | --- |",
    ]
    for name, one in report["studies"].items():
        words = names[name]
        equal = "" if name == ALONE else "byte for byte" if one["equal"] else "**no**"
        words = "this machine alone, 1 process" if name == ALONE else words
        cells.append(f"| {words} | {one['seconds']:.0f} | {equal} |")
    about = (
        f"Runs: {report['users']} users, one round, `methods=base,shared,sft,c-bpo`, the "
        "built-in backbone; seconds are those of the phases. The study: 2 users; seconds "
        f"are those of the command. {network}; the cluster asked for a token."
    )
    return "\n".join([*rows, "", *cells, "", about, ""])


# --- networks and Ray ------------------------------------------------------------------


@dataclass
class Node:
    """One Ray node: how a command is run where it is, and its process."""

    address: str
    within: tuple[str, ...] = ()
    process: "subprocess.Popen[bytes] | None" = None

    def raylet(self) -> int:
        """Process id of its raylet."""
        assert self.process is not None
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                status = (entry / "stat").read_text()
            except OSError:
                continue
            name, _, rest = status.partition("(")[2].rpartition(")")
            if name == "raylet" and int(rest.split()[1]) == self.process.pid:
                return int(entry.name)
        raise RuntimeError(f"the Ray node at {self.address} has no raylet")


def leave() -> None:
    """Start this program again in a network of its own, if that may be; then it ends."""
    rights = [] if os.geteuid() == 0 else ["--map-root-user"]
    command = ["unshare", "--net", "--uts", *rights]
    able = subprocess.run([*command, "ip", "link", "set", "lo", "up"]).returncode == 0
    again = [sys.executable, *sys.argv]
    words = [*command, *again] if able else again
    os.execvpe(words[0], words, {**os.environ, INSIDE: "1" if able else "0"})


@contextmanager
def cable() -> Iterator[list[Node]]:
    """Two places for Ray nodes; in networks of their own, if this process has one."""
    if os.environ[INSIDE] == "0":
        yield [Node("127.0.0.1"), Node("127.0.0.1")]
        return
    holder = subprocess.Popen(["unshare", "--net", "--uts", "sleep", "infinity"])
    into = ("nsenter", "--target", str(holder.pid), "--net", "--uts")
    try:
        own = os.readlink("/proc/self/ns/net")
        wait(lambda: os.readlink(f"/proc/{holder.pid}/ns/net") != own)
        peer = ("veth", "peer", "name", "head", "netns", str(holder.pid))
        for words in (
            ("ip", "link", "set", "lo", "up"),
            ("hostname", "first"),
            ("ip", "link", "add", "second", "type", *peer),
            ("ip", "address", "add", f"{HEAD}/24", "dev", "second"),
            ("ip", "link", "set", "second", "up"),
            # By its route to anywhere Ray finds out which address is its own.
            ("ip", "route", "add", "default", "via", SECOND),
            (*into, "hostname", "second"),
            (*into, "ip", "link", "set", "lo", "up"),
            (*into, "ip", "address", "add", f"{SECOND}/24", "dev", "head"),
            (*into, "ip", "link", "set", "head", "up"),
            (*into, "ip", "route", "add", "default", "via", HEAD),
        ):
            subprocess.run(words, check=True)
        yield [Node(HEAD), Node(SECOND, into)]
    finally:
        holder.kill()
        holder.wait()


def wait(done: Callable[[], bool], patience: float = 60.0) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + patience
    while not done():
        if time.monotonic() > deadline:
            raise RuntimeError("it took too long")
        time.sleep(0.1)


@contextmanager
def cluster(place: Path, nodes: Sequence[Node]) -> Iterator[str]:
    """A cluster of these nodes that asks for a token; yields its address."""
    port = 20000 + secrets.randbelow(10000)
    address = f"{nodes[0].address}:{port}"
    common = ("--num-cpus=1", "--object-store-memory=100000000", "--block")
    common += ("--disable-usage-stats",)
    head = ("--head", f"--port={port}", f"--temp-dir={place / 'r'}")
    head += ("--include-dashboard=false",)
    for number, node in enumerate(nodes):
        role = (f"--address={address}",) if number else head
        words = [*node.within, sys.executable, "-m", "ray.scripts.scripts", "start"]
        words += [*role, *common, f"--node-ip-address={node.address}"]
        with (place / f"ray{number}.log").open("ab") as log:
            node.process = subprocess.Popen(
                words, stdout=log, stderr=log, start_new_session=True
            )
        said = place / f"ray{number}.log"
        wait(lambda said=said: "--block" in said.read_text())
    try:
        yield address
    finally:
        for node in reversed(nodes):
            assert node.process is not None
            node.process.terminate()
        for node in nodes:
            assert node.process is not None
            try:
                node.process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(node.process.pid, signal.SIGKILL)


# --- the runs --------------------------------------------------------------------------


def begin(place: Path, name: str, users: int, *words: str) -> "subprocess.Popen[bytes]":
    """Start a run."""
    command = [SERVER, "simulate"]
    command += ["--output-dir", str(place / "runs"), "--name", name, "--nodes", "2"]
    for key in (f"users={users}", *KEYS):
        command += ["-c", key]
    return subprocess.Popen([*command, *words], stdout=sys.stderr)


def kill_all(pid: int) -> None:
    """Kill a process and what it has started, as if the machine had lost power."""
    family = [pid]
    for one in family:
        children = Path(f"/proc/{one}/task/{one}/children").read_text()
        family += map(int, children.split())
    for one in family:
        os.kill(one, signal.SIGKILL)


def resume(place: Path, name: str, address: str) -> "subprocess.Popen[bytes]":
    """Continue a run on the cluster."""
    command = [SERVER, "simulate"]
    command += ["--output-dir", str(place / "runs"), "--resume", name]
    return subprocess.Popen([*command, "--ray", address], stdout=sys.stderr)


def finished(process: "subprocess.Popen[bytes]", place: Path, name: str) -> dict:
    """Wait for the end of a run; return what it computed and who answered."""
    if process.wait(PATIENCE):
        raise SystemExit(f"the run '{name}' failed")
    folder = place / "runs" / name
    cost = json.loads((folder / "results.json").read_text())["cost"]
    return {
        "seconds": sum(cost["seconds"].values()),
        "answered": answered((folder / "run.log").read_text()),
        "numbers": numbers(folder),
    }


def training(place: Path, name: str) -> bool:
    """Whether a run has trained the first own adapters."""
    metrics = place / "runs" / name / "metrics.jsonl"
    if not metrics.exists():
        return False
    events = [json.loads(line) for line in metrics.read_text().splitlines()]
    return any(e["event"] == "user" and e.get("phase") == "personalise" for e in events)


def study(place: Path, name: str, *words: str) -> "subprocess.Popen[bytes]":
    """Start the study, with one thread in each process."""
    file = place / "four.toml"
    file.write_text(STUDY)
    command = [SERVER, "study", str(file)]
    command += ["--output-dir", str(place / name), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=sys.stderr)


def cells(place: Path, name: str) -> dict[str, bytes]:
    """The files of the study's finished cells."""
    folder = place / name / "four" / "cells"
    return {file.name: file.read_bytes() for file in folder.glob("*.json")}


def measure(place: Path, users: int, whole: bool) -> dict[str, Any]:
    """Make the four runs, and the study three times; unless all, two and two."""
    runs = {ALONE: finished(begin(place, ALONE, users), place, ALONE)}
    seconds = {}

    def ended(process: "subprocess.Popen[bytes]", name: str, began: float) -> None:
        if process.wait(PATIENCE):
            raise SystemExit(f"the study '{name}' failed")
        seconds[name] = time.perf_counter() - began

    def studied(name: str, *words: str) -> None:
        began = time.perf_counter()
        ended(study(place, f"study-{name}", *words), name, began)

    studied(ALONE)
    with cable() as nodes, cluster(place, nodes) as address:
        ray = ("--ray", address)
        if whole:
            runs[BOTH] = finished(begin(place, BOTH, users, *ray), place, BOTH)
            process = begin(place, RESUMED, users, *ray)
            wait(lambda: training(place, RESUMED), PATIENCE)
            kill_all(process.pid)
            process.wait()
            runs[RESUMED] = finished(resume(place, RESUMED, address), place, RESUMED)
        studied(BOTH, *ray)
        process = begin(place, KILLED, users, *ray)
        wait(lambda: training(place, KILLED), PATIENCE)
        os.kill(nodes[1].raylet(), signal.SIGKILL)
        runs[KILLED] = finished(process, place, KILLED)
    if whole:
        with cable() as nodes, cluster(place, nodes) as address:
            began = time.perf_counter()
            process = study(place, f"study-{KILLED}", "--ray", address)
            wait(lambda: len(cells(place, f"study-{KILLED}")) > 0, PATIENCE)
            os.kill(nodes[1].raylet(), signal.SIGKILL)
            ended(process, KILLED, began)
    expected = runs[ALONE]["numbers"]
    for one in runs.values():
        one["equal"] = one.pop("numbers") == expected
    alone = cells(place, f"study-{ALONE}")
    return {
        "users": users,
        "namespaces": os.environ[INSIDE] == "1",
        "adapters": len(expected["adapters"]),
        "cells": len(alone),
        "runs": runs,
        "studies": {
            name: {
                "seconds": seconds[name],
                "equal": cells(place, f"study-{name}") == alone,
            }
            for name in seconds
        },
    }


def main() -> int:
    """Measure, and write unless told not to."""
    parser = argparse.ArgumentParser(description="Runs and a study on two Ray nodes.")
    parser.add_argument("--users", type=int, default=6)
    parser.add_argument("--check", action="store_true", help="write nothing")
    given = parser.parse_args()
    if INSIDE not in os.environ:
        leave()
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        place = Path(folder)
        token = place / "token"
        token.write_text(secrets.token_hex(32))
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        os.environ["RAY_TMPDIR"] = folder  # where Ray notes the cluster of a machine
        if os.environ[INSIDE] == "0":  # then Ray listens on 127.0.0.1 alone
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        report = measure(place, given.users, not given.check)
    print(json.dumps(report), flush=True)
    done = [*report["runs"].values(), *report["studies"].values()]
    good = report["adapters"] and report["cells"] == 4
    good = good and all(one["equal"] for one in done)
    good = good and len(report["runs"][KILLED]["answered"]) == 2
    if good and not given.check:
        save("ray_cluster", report)
        PAGE.write_text(between(PAGE.read_text(), BEGIN, END, table(report)))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
