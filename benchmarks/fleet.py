"""A server and devices on this machine: real processes, TLS, vaults; for demo and chaos.

Not a command: `device_demo.py`, `chaos.py` and `malicious.py` use it.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from idiolect.common.config import parse
from idiolect.common.data.load import load_dataset
from idiolect.common.engine.model_folder import locate

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
PATIENCE = 300.0  # seconds for something to come up


class Fleet:
    """One server and a few devices below a folder; use as a context manager.

    Parameters
    ----------
    folder
        Empty; everything is written below it.
    devices
        How many; each holds one persona's text in a vault of its own.
    backbone
        Of all devices and the server. With another than ``tiny`` devices hold few items.
    serving
        More options of `idiolect-server serve`.
    """

    def __init__(
        self,
        folder: Path,
        devices: int,
        backbone: str = "tiny",
        serving: Sequence[str] = (),
    ) -> None:
        self.folder, self.serving = folder, serving
        self.count = devices
        # One folder for all: each would convert a GGUF file for itself.
        self.backbone = "tiny" if backbone == "tiny" else str(locate(backbone))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.public = folder / "public.jsonl"
        self.prompts: list[list[str]] = []  # of each device, the newest first

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait(30)

    # --- what an operator and an owner type --------------------------------------------

    def environment(self, who: str) -> dict[str, str]:
        """Environment of the operator (``server``) or of a device (``device0``)."""
        place = self.folder / who
        return {
            **os.environ,
            "IDIOLECT_HOME": str(place),
            "IDIOLECT_PASSPHRASE_FILE": str(place / "passphrase"),
            "OMP_NUM_THREADS": "1",  # several devices share this machine
        }

    def command(self, who: str, *words: str, given: str | None = None) -> str:
        """Run a command to its end, `given` on its standard input; returns its output."""
        name = "idiolect-server" if who == "server" else "idiolect"
        done = subprocess.run(
            [str(BIN / name), *words],
            env=self.environment(who),
            input=given,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{name} {' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    def start(self, who: str, *words: str) -> None:
        """Start a command that stays up."""
        name = "idiolect-server" if who == "server" else "idiolect"
        with (self.folder / f"{who}.log").open("ab") as log:
            self.processes[who] = subprocess.Popen(
                [str(BIN / name), *words],
                env=self.environment(who),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def open(self, **consents: str) -> None:
        """Make keys and vaults, enrol every device, and start everything."""
        self._write_text()
        self.open_server()
        invitation = str(self.folder / "server" / "server" / "invitation.json")
        for number in range(self.count):
            who = f"device{number}"
            (self.folder / who).mkdir(mode=0o700)
            (self.folder / who / "passphrase").write_text(
                f"kept on loopback by device {number}\n"
            )
            self.command(who, "vault", "init", "--backbone", self.backbone)
            self.command(who, "import", str(self.folder / f"{who}.jsonl"))
            for outflow, given in consents.items():
                self.command(who, "consent", outflow, given)
            joined = self.command(who, "node", "join", invitation, "--json")
            self.wait_for_server()
            self.command("server", "nodes", "add", json.loads(joined)["key"])
            self.start(who, "node", "run")
        self.wait_for_devices()

    def open_server(self) -> None:
        """Make the server's keys and start it."""
        self.command("server", "keys", "init", "localhost", "--port", str(self.port))
        self.serve()

    def serve(self) -> None:
        """Start the server, which has its keys."""
        where = ("--host", "127.0.0.1", "--port", str(self.port))
        self.start("server", "serve", *where, *self.serving)

    def _write_text(self) -> None:
        short = {} if self.backbone == "tiny" else {"history": 12, "held-out": 4}
        dataset = load_dataset(parse({"users": self.count, **short}))
        lines = [_line(item.prompt.text, item.target) for item in dataset.public]
        self.public.write_text("".join(lines))
        for number, user in enumerate(dataset.users):
            items = (*user.history, *user.held_out)
            lines = [_line(item.prompt.text, item.target) for item in items]
            (self.folder / f"device{number}.jsonl").write_text("".join(lines))
            asked = reversed(user.held_out)
            self.prompts.append([item.prompt.text for item in asked])

    def wait_for_server(self) -> None:
        """Wait until the server answers."""
        self._wait("the server", lambda: self.command("server", "nodes", "list"))

    def wait_for_devices(self) -> None:
        """Wait until every device is online."""

        def all_online() -> None:
            nodes = json.loads(self.command("server", "nodes", "list", "--json"))
            online = sum(node["status"] == "online" for node in nodes)
            if online < self.count:
                raise RuntimeError(f"{online} of {self.count} devices are online")

        self._wait("the devices", all_online)

    def _wait(self, what: str, ready: Any) -> None:
        ends = time.monotonic() + PATIENCE
        while True:
            try:
                ready()
                return
            except RuntimeError as error:
                if time.monotonic() > ends:
                    raise RuntimeError(f"{what} did not come up: {error}") from error
                time.sleep(1)

    def run(self, *words: str) -> "subprocess.Popen[str]":
        """Start a run on the devices; its output is in ``run.log``."""
        settings = [
            *("task=text", f"users={self.count}", f"unlabeled.file={self.public}"),
            *(f"backbone={self.backbone}", "methods=base,shared,c-bpo"),
            *words,
        ]
        given = [part for word in settings for part in ("-c", word)]
        return self.server("run", str(ROOT / "simulations/lamp"), *given)

    def server(self, *words: str) -> "subprocess.Popen[str]":
        """Start a command of the operator's whose output is read."""
        return subprocess.Popen(
            [str(BIN / "idiolect-server"), *words],
            env=self.environment("server"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    # --- processes ---------------------------------------------------------------------

    def alive(self, words: str, who: str = "") -> list[int]:
        """Processes of this fleet whose command line has these words in it."""
        place = str(self.folder / who).encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                mine = place in (entry / "environ").read_bytes()
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if mine and words in line and int(entry.name) != os.getpid():
                found.append(int(entry.name))
        return found

    def kill(self, words: str, who: str = "") -> int:
        """Kill -9 such processes; returns how many there were."""
        pids = self.alive(words, who)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return len(pids)


def write_part(page: Path, heading: str, text: str) -> None:
    """Write one part of a page; other parts, each below a heading of level 1, stay."""
    old = page.read_text() if page.exists() else ""
    parts = [part for part in ("\n" + old).split("\n# ") if part.strip()]
    kept = [part for part in parts if not part.startswith(heading + "\n")]
    body = f"{heading}\n{text}"
    places = [i for i, part in enumerate(parts) if part.startswith(heading + "\n")]
    kept.insert(places[0] if places else len(kept), body)
    page.write_text("\n".join(f"# {part.strip()}\n" for part in kept))


def _line(prompt: str, target: str) -> str:
    return json.dumps({"prompt": prompt, "target": target}) + "\n"
