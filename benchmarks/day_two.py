"""An operator's second day, with real processes on this machine; quote what they say.

    python benchmarks/day_two.py [--page]

One server and two devices (`fleet.py`) go through what happens to a service: an upgrade in
the middle of a run, a renewed certificate, a device that is revoked and comes back, a clock
that is an hour off, a full disk, a rotated log, a reboot. Each step must end well, and no
output may have a traceback. ``--page`` writes what was said, and the memory and disk that
it took, into docs/operations.md.

The server's folder is on a small file system in memory, which root or a user namespace may
mount; where neither is allowed, the step with the full disk is left out.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos import VICTIMS, wait_for_phase, wait_until_served
from fleet import BIN, Fleet
from report import RESULTS, ROOT, between, save

from idiolect.server.deploy.flower import free_port

PAGE = ROOT / "docs" / "operations.md"
NAME = "day_two"
BEGIN, END = "<!-- day two -->\n", "<!-- end of day two -->\n"
SIZES, NO_SIZES = "<!-- sizes -->\n", "<!-- end of sizes -->\n"
DEVICES = 2
SETTINGS = (
    *("adapt.rounds=2", "personalise.epochs=1", "evaluate.generate=false"),
    *("privacy.mode=central", "privacy.metrics=noisy", "privacy.noise=0.5"),
    *("privacy.epsilon=10000", "privacy.delta=0.001", "quorum=1.0", "deadline=240"),
)
ROUNDS = 2
DISK_MB = 2048  # of the server's file system; it takes memory only as it is filled
HOUR = 3600
PATIENCE = 300.0  # seconds for anything to happen
MOUNTED = "IDIOLECT_DRILL_MOUNTED"  # set where this process may mount

# Put before all else on the path of one device: its signatures are of another time. TLS
# reads the system's clock by itself, so it sees the right one.
CLOCK = """
import datetime, os, time
AHEAD, real = float(os.environ["DRILL_AHEAD"]), time.time
class Off(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(real() + AHEAD, tz)
datetime.datetime = Off
time.time = lambda: real() + AHEAD
"""


class Drilled(Fleet):
    """A fleet in which a device's clock can be off."""

    ahead: Mapping[str, float] = {}

    def environment(self, who: str) -> dict[str, str]:
        """As `Fleet.environment`, and with a wrong clock where there is one."""
        plain = super().environment(who)
        if who not in self.ahead:
            return plain
        (self.folder / "clock").mkdir(exist_ok=True)
        (self.folder / "clock" / "sitecustomize.py").write_text(CLOCK)
        path = {"PYTHONPATH": str(self.folder / "clock")}
        return {**plain, **path, "DRILL_AHEAD": str(self.ahead[who])}


@dataclass
class Drill:
    """What was done and said.

    Attributes
    ----------
    fleet, metrics
        The server with its devices, and the port of its monitoring.
    said
        Step -> what was typed or where it was read, and the lines.
    read
        Log -> how much of it was read.
    """

    fleet: Drilled
    metrics: int
    said: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    read: dict[str, int] = field(default_factory=dict)
    step: str = ""

    def note(self, where: str, text: str) -> str:
        """Keep what was said; nothing may have a traceback."""
        plain = neutral(text, self.fleet)
        assert "Traceback" not in plain, f"{where}:\n{plain}"
        self.said.setdefault(self.step, []).append((where, plain))
        print(f"$ {where}\n{plain}\n", flush=True)
        return plain

    def typed(self, who: str, *words: str, code: int = 0) -> str:
        """Run a command that must end with this code; note and return what it says."""
        name = "idiolect-server" if who == "server" else "idiolect"
        done = subprocess.run(
            [str(BIN / name), *words],
            env=self.fleet.environment(who),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        self.note(
            f"{name} {neutral(' '.join(words), self.fleet)}", done.stdout + done.stderr
        )
        assert done.returncode == code, f"it ended with {done.returncode}"
        return done.stdout

    def heard(self, who: str, *parts: str) -> None:
        """Wait until a log has a new line with each part; note these lines."""
        path, ends = self.fleet.folder / f"{who}.log", time.monotonic() + PATIENCE
        while True:
            text = path.read_bytes()[self.read.get(who, 0) :].decode(errors="replace")
            lines = text.splitlines()
            found = [[line for line in lines if part in line][-1:] for part in parts]
            if all(found):
                break
            assert time.monotonic() < ends, f"{who} did not say {parts}:\n{text}"
            time.sleep(0.2)
        command = "idiolect-server serve" if who == "server" else "idiolect node run"
        self.note(command, "\n".join(line for one in found for line in one))
        self.seen(who)

    def seen(self, *names: str) -> None:
        """Forget what logs have up to now; it may have no traceback either."""
        for who in names or ("server", *map("device{}".format, range(DEVICES))):
            path = self.fleet.folder / f"{who}.log"
            text = path.read_bytes() if path.exists() else b""
            assert b"Traceback" not in text, text[-3000:]
            self.read[who] = len(text)

    def health(self, code: int) -> None:
        """Wait until /health answers with a code; note what it says."""
        url, ends = (
            f"http://127.0.0.1:{self.metrics}/health",
            time.monotonic() + PATIENCE,
        )
        while True:
            found, text = 0, ""
            try:
                with urllib.request.urlopen(url, timeout=20) as answer:
                    found, text = answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                found, text = error.code, error.read().decode()
            except OSError:
                pass
            if found == code:
                break
            assert time.monotonic() < ends, f"/health says {found} {text}"
            time.sleep(0.5)
        self.note("curl http://127.0.0.1:9464/health", f"{found} {text}")

    def run(self, name: str, phase: str) -> "subprocess.Popen[str]":
        """Begin a run, and wait until one of its phases has begun."""
        process = self.fleet.run(*SETTINGS, f"run.name={name}")
        wait_for_phase(self.fleet, name, phase)
        return process

    def ends(self, process: "subprocess.Popen[str]", code: int, last: int = 2) -> None:
        """Wait for a run's command to end with this code; note its last lines."""
        said, _ = process.communicate(timeout=PATIENCE * 3)
        lines = [line for line in said.splitlines() if line.strip()]
        self.note("idiolect-server run …", "\n".join(lines[-last:]))
        assert process.returncode == code, said[-3000:]

    def resumed(self, name: str) -> None:
        """Continue a run to its end; each release must have been charged once."""
        wait_until_served(self.fleet)
        process = self.fleet.run(*SETTINGS, f"run.resume={name}")
        said, _ = process.communicate(timeout=PATIENCE * 3)
        assert process.returncode == 0, said[-3000:]
        begun = next(
            line for line in said.splitlines() if "resum" in line or name in line
        )
        self.note(f"idiolect-server run … --resume {name}", begun)
        self.charged(name)

    def charged(self, name: str) -> None:
        """Check that a finished run has paid for each round once."""
        folder = self.fleet.folder / "server" / "runs" / name
        charges = json.loads((folder / "ledger.json").read_text())["charges"]
        stages = [charge["event"]["stage"] for charge in charges]
        assert stages.count("adapt") == ROUNDS, stages

    def restart(self) -> None:
        """End the server as a service manager does, and start it again."""
        end(self.fleet.processes["server"])
        self.fleet.serve()


def end(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM, and wait."""
    process.terminate()
    process.wait(60)


NODE = re.compile(r"\b\d{15,20}\b")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def neutral(text: str, fleet: Fleet) -> str:
    """Return a text without what is only of this machine and this time."""
    text = COLOUR.sub("", text).strip()
    text = text.replace(str(fleet.folder / "server"), "/var/lib/idiolect")
    text = re.sub(rf"{re.escape(str(fleet.folder))}/device\d", "/home/owner", text)
    text = text.replace(str(fleet.port), "9443")
    text = re.sub(r"(kill|process) \d+", r"\1 PID", text)
    text = re.sub(r"ecdsa-sha2-nistp384 \S+", "ecdsa-sha2-nistp384 AAAA…", text)
    text = re.sub(r"\b[0-9a-f]{64}\b", "4f53cda18c2baa0c…", text)
    return NODE.sub("4711", text)


# --- the steps -------------------------------------------------------------------------


def doctors(drill: Drill) -> None:
    """Both sides are well: `doctor` on each."""
    drill.typed("server", "doctor", "--backbone", "tiny")
    drill.typed("device0", "doctor")
    drill.health(200)


def upgrade(drill: Drill) -> None:
    """The server is upgraded in the middle of a run."""
    run = drill.run("upgrade", "adapt")
    end(drill.fleet.processes["server"])
    drill.ends(run, 1, last=1)
    drill.typed("server", "nodes", "list", code=2)
    drill.heard("device0", "cannot be reached")
    drill.fleet.serve()
    drill.resumed("upgrade")
    drill.heard("device0", "answers again")


def renewal(drill: Drill) -> None:
    """The certificate is renewed."""
    drill.typed("server", "keys", "renew")
    drill.restart()
    drill.heard("server", "the proxy is up")
    drill.fleet.wait_for_devices()
    drill.health(200)


def revocation(drill: Drill) -> None:
    """A device is revoked, and comes back with a new key."""
    fleet = drill.fleet
    nodes = json.loads(fleet.command("server", "nodes", "list", "--json"))
    last = max(nodes, key=lambda node: node["created-at"])["node-id"]
    drill.typed("server", "nodes", "revoke", last)
    who = f"device{DEVICES - 1}"
    assert fleet.processes[who].wait(PATIENCE) == 2
    drill.heard(who, "revoked: ")
    drill.typed(who, "doctor", code=1)
    drill.typed(who, "leave", "--yes")
    invitation = str(fleet.folder / "server" / "server" / "invitation.json")
    joined = fleet.command(who, "node", "join", invitation, "--json")
    drill.typed("server", "nodes", "add", json.loads(joined)["key"])
    fleet.start(who, "node", "run")
    fleet.wait_for_devices()


def clock(drill: Drill) -> None:
    """A device's clock is an hour ahead."""
    fleet = drill.fleet
    end(fleet.processes["device0"])
    drill.seen("device0")
    fleet.ahead = {"device0": HOUR}
    fleet.start("device0", "node", "run")
    assert fleet.processes["device0"].wait(PATIENCE) == 2
    drill.heard("device0", "this clock is")
    drill.typed("device0", "doctor", code=1)
    fleet.ahead = {}
    fleet.start("device0", "node", "run")
    fleet.wait_for_devices()


def full_disk(drill: Drill) -> None:
    """The server's disk is full in the middle of a run."""
    place = drill.fleet.folder / "server"
    ballast = place / "ballast"
    run = drill.run("full", "adapt")
    used = shutil.disk_usage(place).used >> 20
    resize(place, used + 2)
    fill(ballast)
    with contextlib.suppress(subprocess.TimeoutExpired):
        run.wait(60)
    drill.typed("server", "doctor", code=1)
    ballast.unlink()
    resize(place, DISK_MB)
    said, _ = run.communicate(timeout=PATIENCE * 3)
    lines = [line for line in said.splitlines() if line.strip()]
    drill.note("idiolect-server run …", lines[-1])
    drill.health(200)
    if run.returncode:
        drill.resumed("full")
    drill.charged("full")
    drill.fleet.wait_for_devices()


def resize(place: Path, megabytes: int) -> None:
    """Give a file system in memory another size."""
    size = f"remount,size={megabytes}m"
    subprocess.run(["mount", "-o", size, str(place)], check=True)


def fill(ballast: Path) -> None:
    """Fill the file system of a file to its last byte."""
    size = 1 << 20
    with ballast.open("wb", buffering=0) as file:
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2


def rotation(drill: Drill) -> None:
    """Logs are rotated while the server runs."""
    home = drill.fleet.folder / "server"
    own, printed = home / "serve.jsonl", home / "server" / "server.log"
    own.rename(own.with_suffix(".moved"))  # as logrotate does
    printed.write_bytes(b"")  # as its copytruncate does
    drill.fleet.kill(*VICTIMS["proxy"])
    ends = time.monotonic() + PATIENCE
    while not (own.exists() and "the proxy is up" in own.read_text()):
        assert time.monotonic() < ends
        time.sleep(0.2)
    lines = own.read_text().splitlines()
    for line in (*own.with_suffix(".moved").read_text().splitlines(), *lines):
        assert {"time", "level", "from", "message"} == set(json.loads(line))
    ended = next(line for line in lines if "proxy ended with" in line)
    drill.note("tail serve.jsonl", ended)
    secret = (home / "server" / "flower" / "token").read_text()
    for file in (own, own.with_suffix(".moved"), printed):
        assert secret not in file.read_text() and "PRIVATE KEY" not in file.read_text()
    drill.fleet.wait_for_devices()
    drill.health(200)


def reboot(drill: Drill) -> None:
    """The machine is rebooted: all processes are killed in the middle of a run."""
    fleet = drill.fleet
    run = drill.run("reboot", "pool")
    while pids := fleet.alive(""):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in (run, *fleet.processes.values()):
            process.wait(30)
    fleet.serve()
    for number in range(DEVICES):
        fleet.start(f"device{number}", "node", "run")
    drill.heard("server", "the proxy is up")
    fleet.wait_for_devices()
    drill.typed("server", "runs")
    drill.resumed("reboot")
    for number in range(DEVICES):
        fleet.command(f"device{number}", "vault", "check")


# What a backup of the server must have (docs/operations.md); `serve` makes the rest anew.
COPIED = ("ca.crt", "ca.key", "server.pem", "signing.key", "invitation.json")
COPIED += ("labels.json", "handed", "flower/state.db")


def restore(drill: Drill) -> None:
    """The server's folder is lost, and comes back from a copy made while it ran."""
    fleet = drill.fleet
    folder, copy = fleet.folder / "server" / "server", fleet.folder / "copy"
    for name in COPIED:
        here, there = folder / name, copy / name
        there.parent.mkdir(parents=True, exist_ok=True)
        if here.suffix == ".db":
            with (
                contextlib.closing(sqlite3.connect(here)) as one,
                contextlib.closing(sqlite3.connect(there)) as other,
            ):
                one.backup(other)
        elif here.is_dir():
            shutil.copytree(here, there)
        elif here.exists():
            shutil.copy(here, there)
    end(fleet.processes["server"])
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)
    drill.seen("server")
    fleet.serve()
    drill.heard("server", "the proxy is up")
    fleet.wait_for_devices()
    drill.typed("server", "nodes", "list")
    drill.typed("server", "doctor")


STEPS: tuple[Callable[[Drill], None], ...] = (
    *(doctors, upgrade, renewal, revocation, clock, full_disk, rotation, reboot),
    restore,
)


# --- what it takes ---------------------------------------------------------------------


@contextlib.contextmanager
def measuring(fleet: Fleet) -> Iterator[dict[str, float]]:
    """Watch how much memory each process has had, and how large the database was, in MB."""
    most: dict[str, float] = {}
    stop = threading.Event()
    flower = fleet.folder / "server" / "server" / "flower"

    def look() -> None:
        while not stop.wait(0.5):
            for name, victim in (
                *VICTIMS.items(),
                ("serve", ("serve --host", "server")),
            ):
                for pid in fleet.alive(*victim):
                    with contextlib.suppress(OSError, StopIteration):
                        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                        peak = next(one for one in lines if one.startswith("VmHWM"))
                        held = int(peak.split()[1]) / 1024
                        most[name] = max(most.get(name, 0.0), held)
            with contextlib.suppress(OSError):
                size = sum(file.stat().st_size for file in flower.glob("state.db*"))
                most["database"] = max(most.get("database", 0.0), size / 2**20)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        stop.set()
        thread.join()


def sizes(fleet: Fleet, most: Mapping[str, float]) -> dict[str, float]:
    """Return what one run and one vault take on the disk, in MB, with `most`."""
    runs = [*(fleet.folder / "server" / "runs").glob("[!l]*")]
    server = fleet.folder / "server" / "server"
    weights = {
        "run": sum(map(weight, runs)) / max(len(runs), 1),
        "vault": weight(fleet.folder / "device0" / "device"),
        "database left": sum(map(weight, (server / "flower").glob("state.db*"))),
    }
    return {**most, **weights}


def weight(path: Path) -> float:
    """Megabytes of a file, or of all files below a folder."""
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return sum(file.stat().st_size for file in files) / 2**20


# --- the page --------------------------------------------------------------------------


def quoted(said: Mapping[str, Any]) -> str:
    """Return the part of the page with all that was said."""
    parts = []
    for title, lines in said.items():
        shown = "\n".join(f"$ {where}\n{text}" for where, text in lines)
        parts.append(f"\n### {title}\n\n```text\n{shown}\n```\n")
    return "".join(parts) + "\n"


NAMES = {
    "serve": "memory of `serve`",
    "SuperLink": "memory of the SuperLink",
    "SuperExec": "memory of the SuperExec",
    "proxy": "memory of the proxy",
    "ServerApp": "memory of a run (ServerApp)",
    "device": "memory of a device (`tiny`)",
    "database": "the SuperLink's database, during a run",
    "database left": "the same after it",
    "run": "folder of a run",
    "vault": "a device's vault",
}


def table(found: Mapping[str, float]) -> str:
    """Return the part of the page with the sizes."""
    rows = [
        f"| {text} | {found[name]:.1f} |"
        for name, text in NAMES.items()
        if name in found
    ]
    return "\n".join(["", "| what | MB |", "| --- | --- |", *rows, "", ""])


def write_page(page: Path, found: Mapping[str, Any]) -> None:
    """Write what was said and measured into the page."""
    text = between(page.read_text(), BEGIN, END, quoted(found["said"]))
    page.write_text(between(text, SIZES, NO_SIZES, table(found["sizes"])))


def title_of(step: Callable[[Drill], None]) -> str:
    """Return what a step is called: the first line of what it says of itself."""
    return str(step.__doc__).splitlines()[0].rstrip(".")


def drilled(folder: Path, steps: tuple[Callable[[Drill], None], ...]) -> dict[str, Any]:
    """Go through the steps; return what was said and measured."""
    metrics, home = free_port(), folder / "server"
    serving = ("--metrics", str(metrics), "--log", str(home / "serve.jsonl"))
    home.mkdir(mode=0o700)
    if os.environ.get(MOUNTED):
        where = ["-o", f"size={DISK_MB}m,mode=700", "tmpfs", str(home)]
        subprocess.run(["mount", "-t", "tmpfs", *where], check=True)
    fleet = Drilled(folder, DEVICES, serving=serving)
    with fleet, measuring(fleet) as most:
        fleet.open(update="clear", votes="clear", metrics="clear")
        drill = Drill(fleet, metrics)
        for step in steps:
            drill.step, began = title_of(step), time.monotonic()
            drill.seen()
            step(drill)
            drill.seen()
            print(f"{drill.step}: {time.monotonic() - began:.0f} s\n", flush=True)
        return {"said": drill.said, "sizes": sizes(fleet, most)}


def kept() -> dict[str, Any]:
    """What was said and measured before."""
    file = RESULTS / f"{NAME}.json"
    return json.loads(file.read_text()) if file.exists() else {"said": {}, "sizes": {}}


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return all steps in their order, those that were done again as they are now."""
    said = {**old["said"], **new["said"]}
    titles = [title for title in map(title_of, STEPS) if title in said]
    sizes = {**old["sizes"], **new["sizes"]}
    return {"said": {title: said[title] for title in titles}, "sizes": sizes}


def may_mount() -> bool:
    """Whether a process in a mount namespace of its own may mount a file system."""
    test = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    with contextlib.suppress(OSError):
        return subprocess.run(test, capture_output=True).returncode == 0
    return False


def main() -> int:
    """Go through all, and write the page if asked to."""
    parser = argparse.ArgumentParser(description="An operator's second day.")
    parser.add_argument("--page", action="store_true", help="write the page")
    parser.add_argument("--only", nargs="*", help="steps (default: all)")
    options = parser.parse_args()
    if MOUNTED not in os.environ and may_mount():
        words = ["unshare", "-rm", sys.executable, *sys.argv]
        os.execvpe("unshare", words, {**os.environ, MOUNTED: "1"})
    steps = tuple(s for s in STEPS if not options.only or s.__name__ in options.only)
    if not os.environ.get(MOUNTED):
        print("nothing can be mounted here: the step with the full disk is left out")
        steps = tuple(step for step in steps if step is not full_disk)
    with tempfile.TemporaryDirectory() as place:
        try:
            found = drilled(Path(place), steps)
        finally:
            if os.environ.get(MOUNTED):
                subprocess.run(
                    ["umount", "-l", str(Path(place) / "server")], check=False
                )
    save(NAME, merged(kept(), found))
    if options.page:
        write_page(PAGE, kept())
    return 0


if __name__ == "__main__":
    sys.exit(main())
