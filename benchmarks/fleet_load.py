"""How many devices one server bears.

    python benchmarks/fleet_load.py [--sizes 50,100,200,400] [--idle 500,1000] [--page]

A real `idiolect-server serve` on loopback, with TLS, the proxy and Flower's SuperLink. The
devices are real connections (`client.node.connection`) with keys of their own: each signs
its calls, asks for work and sends heartbeats; once a second as in a run, or every ten
seconds as one that has been idle for long. They are threads, a hundred in a process,
without vault and model, so that hundreds fit on one machine. Both sides share its cores.
Therefore the page has the CPU seconds of the server's own processes for one call beside
the times: from these follows what one core answers if it has nothing else to do.

Writes benchmarks/results/fleet_load.json and with ``--page`` a table of docs/scale.md.
"""

import argparse
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from fleet import Fleet
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from report import ROOT, between, origin, save

from idiolect.client.node.connection import connected
from idiolect.client.node.worker import LONGEST_POLL, POLL
from idiolect.server.deploy.serve import running

PAGE = ROOT / "docs" / "scale.md"
MARKS = "<!-- load: written by a command -->\n", "<!-- load: end -->"
EACH = 100  # devices of one process
LATE = 1.0  # seconds; a server is full when one call in twenty waits longer
SERVER = ("superlink", "superexec", "proxy", "idiolect-server serve")


def devices(folder: Path, first: int, last: int, seconds: float, every: float) -> None:
    """Be some devices: connect, say so, wait for a line, ask for work for so long."""
    given = json.loads((folder / "load.json").read_text())
    waits: list[float] = []
    ready, go = threading.Semaphore(0), threading.Event()
    ends = [0.0]

    def device(number: int) -> None:
        pem = (folder / "keys" / f"{number}.pem").read_bytes()
        key = load_pem_private_key(pem, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        with connected(given["address"], given["certificate"], key) as line:
            line.receive()
            ready.release()
            go.wait()
            time.sleep(secrets.randbelow(1000) / 1000 * every)  # not all at once
            while time.monotonic() < ends[0]:
                began = time.monotonic()
                line.receive()
                waits.append(time.monotonic() - began)
                time.sleep(every)

    threads = []
    for number in range(first, last):  # one after the other: handshakes take CPU time
        threads.append(threading.Thread(target=device, args=(number,)))
        threads[-1].start()
        ready.acquire()
    print("ready", flush=True)
    sys.stdin.readline()
    ends[0] = time.monotonic() + seconds
    go.set()
    for thread in threads:
        thread.join()
    print(json.dumps(waits), flush=True)


def register(folder: Path, count: int) -> None:
    """Make keys and let them in, by Flower's own client, which is in this environment."""
    from flwr.cli.flower_config import read_superlink_connection
    from flwr.cli.utils import init_http_client_from_connection
    from flwr.proto.control_pb2 import RegisterNodeRequest
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    from idiolect.server.deploy.flower import CONNECTION

    client = init_http_client_from_connection(read_superlink_connection(CONNECTION))
    for number in range(count):
        key = ec.generate_private_key(ec.SECP384R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / "keys" / f"{number}.pem").write_bytes(pem)
        public = public_key_to_bytes(key.public_key())
        client.RegisterNode(request=RegisterNodeRequest(public_key=public))
    client.close()


def spent(fleet: Fleet) -> tuple[float, float]:
    """CPU seconds and MiB (proportional set size) of the server's processes so far."""
    ticks = pages = 0.0
    for pid in {pid for words in SERVER for pid in fleet.alive(words, "server")}:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        pages += sum(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
    return ticks / os.sysconf("SC_CLK_TCK"), pages / 1024


def one_size(
    fleet: Fleet, count: int, every: float, seconds: float
) -> dict[str, float]:
    """Connect so many devices and let them wait for work."""
    processes = []
    for first in range(0, count, EACH):
        last = min(first + EACH, count)
        words = ["--devices", str(fleet.folder), str(first), str(last), str(seconds)]
        words.append(str(every))
        process = subprocess.Popen(
            [sys.executable, __file__, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        processes.append(process)
    for process in processes:
        assert process.stdout
        if process.stdout.readline() != "ready\n":
            sys.exit("the devices did not connect")
    before, _ = spent(fleet)
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    time.sleep(seconds)
    cpu, memory = spent(fleet)
    waits = [
        wait for process in processes for wait in json.loads(process.communicate()[0])
    ]
    cuts = statistics.quantiles(waits, n=20)
    beats = count * seconds / HEARTBEAT_DEFAULT_INTERVAL
    return {
        "devices": count,
        "every": every,
        "calls_per_second": len(waits) / seconds,
        "median": statistics.median(waits),
        "p95": cuts[-1],
        "longest": max(waits),
        "cpu_per_call": (cpu - before) / (len(waits) + beats),
        "server_mib": memory,
    }


def table(rows: Sequence[dict[str, float]], processor: str) -> str:
    """The part of the page."""
    heads = (
        *("devices", "ask every, s", "calls answered a second", "median, ms"),
        *("one in twenty longer than, ms", "longest, s"),
        *("server's CPU, ms a call", "server's memory, MiB"),
    )
    lines = [f"| {' | '.join(heads)} |", "| --- |" + " --- |" * (len(heads) - 1)]
    for row in rows:
        cells = (
            *(f"{row['devices']:,}", f"{row['every']:g}"),
            f"{row['calls_per_second']:.0f}",
            *(f"{1000 * row['median']:.0f}", f"{1000 * row['p95']:.0f}"),
            *(f"{row['longest']:.1f}", f"{1000 * row['cpu_per_call']:.1f}"),
            f"{row['server_mib']:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    said = "".join(_borne(rows, every) for every in (POLL, LONGEST_POLL))
    about = (
        f"{said}Devices for which no work waits, on the server's own machine "
        f"({processor}), which computed their TLS and signatures too."
    )
    return "\n".join([*lines, "", about, ""])


def _borne(rows: Sequence[dict[str, float]], every: float) -> str:
    """Say up to how many devices calls were answered in time."""
    tried = [row for row in rows if row["every"] == every]
    good = [row["devices"] for row in tried if row["p95"] <= LATE]
    late = [row["devices"] for row in tried if row["p95"] > LATE]
    if not good:
        return ""
    said = f"Up to {max(good):,.0f} devices that ask every {every:g} s, one call in twenty "
    said += f"took at most {LATE:g} s"
    return said + (f"; with {min(late):,.0f} it took longer. " if late else ". ")


def main() -> None:
    """Measure each size in turn, on one server."""
    parser = argparse.ArgumentParser(description="Devices on one server.")
    parser.add_argument("--sizes", default="50,100,200,400")
    parser.add_argument("--idle", default="500,1000", help="devices idle for long")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--page", action="store_true", help="write the table")
    parser.add_argument("--devices", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--register", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.register:
        register(Path(given.register[0]), int(given.register[1]))
        return
    if given.devices:
        folder, first, last, *times = given.devices
        devices(Path(folder), int(first), int(last), *map(float, times))
        return
    busy, idle = (
        [int(size) for size in text.split(",") if size]
        for text in (given.sizes, given.idle)
    )
    todo = [*((n, POLL) for n in busy), *((n, LONGEST_POLL) for n in idle)]
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as place, Fleet(Path(place), 0) as fleet:
        fleet.open_server()
        fleet.wait_for_server()
        server = fleet.folder / "server" / "server"
        invitation: dict[str, Any] = json.loads(
            (server / "invitation.json").read_text()
        )
        (fleet.folder / "keys").mkdir()
        said = {key: invitation[key] for key in ("address", "certificate")}
        (fleet.folder / "load.json").write_text(json.dumps(said))
        most = max(count for count, _ in todo)
        words = [sys.executable, __file__, "--register", place, str(most)]
        subprocess.run(words, check=True, env={**os.environ, **running(server)})
        for count, every in todo:
            rows.append(one_size(fleet, count, every, given.seconds))
            print(json.dumps(rows[-1]), flush=True)
    save("fleet_load", {"rows": rows})
    if given.page:
        part = table(rows, origin()["processor"])
        PAGE.write_text(between(PAGE.read_text(), *MARKS, part))


if __name__ == "__main__":
    main()
