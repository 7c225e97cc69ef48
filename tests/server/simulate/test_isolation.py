"""A stranger gets into nothing that a simulation opens, from wherever it tries."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from idiolect.common.config import parse, to_toml
from idiolect.server.run import results
from idiolect.server.simulate import environment, launch, processes
from idiolect.server.simulate import plan as planning
from idiolect.server.simulate.simulator import ALONE, SHARED
from tests.listening import listening
from tests.server.run.test_results import make
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[3]
LAMP = ROOT / "simulations" / "lamp"
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")

# It waits, so that strangers have time; then its nodes must still answer.
APP = """
import fcntl, json, os, shutil, time
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

app = ServerApp()
client = ClientApp()

@client.query("hello")
def hello(message, context):
    return Message(RecordDict(), reply_to=message)

@app.main()
def main(grid, context):
    config = context.run_config
    data, folder = Path(config["data"]), Path(config["run.folder"], config["run.name"])
    folder.mkdir()
    lock = (folder / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def write(**event):
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(event) + chr(10))

    write(event="start", time=time.time(), pid=os.getpid())
    while not (data / "go").exists():
        time.sleep(0.1)
    asked = [Message(RecordDict(), n, "query.hello") for n in grid.get_node_ids()]
    replies = list(grid.send_and_receive(asked, timeout=60))
    if len(replies) != 2 or any(reply.has_error() for reply in replies):
        write(event="failed", message="a stranger got in the way")
        raise RuntimeError
    shutil.copy(data / "results.json", folder)
    write(event="finished", time=time.time())
"""

START = """
import sys
from pathlib import Path
from rich.console import Console
from idiolect.common.config import from_toml
from idiolect.server.simulate import launch, plan
app, config, folder = map(Path, sys.argv[1:4])
launch.NETWORK = sys.argv[4]
launch.simulate(
    plan.Plan(app, from_toml(config.read_text()), folder, 2), Console()
)
"""

# What the caller's environment says, and a private run must not hear: each would send the
# run, or what it asks its own machine, to somebody else.
HOSTILE = {
    "RAY_ADDRESS": "192.0.2.1:6379",
    "RAY_AUTH_MODE": "disabled",
    "RAY_AUTH_TOKEN": "known to everybody",
    "RAY_TMPDIR": "/nowhere",
    "FLWR_HOME": "/nowhere",
    "http_proxy": "http://192.0.2.1:3128",
    "HTTPS_PROXY": "http://192.0.2.1:3128",
    "ALL_PROXY": "socks5://192.0.2.1:1080",
    "grpc_proxy": "http://192.0.2.1:3128",
    "no_proxy": "example.org",
    "PYTHONPATH": "/nowhere",
    "LD_PRELOAD": "",
    "SOME_SECRET": "of the caller's",
}


@dataclass(frozen=True)
class Started:
    """A simulation that waits for `go`."""

    process: "subprocess.Popen[str]"
    plan: planning.Plan
    base: Path
    place: Path
    mark: str

    def pids(self) -> list[int]:
        return sorted(processes.family(self.mark))

    def finish(self) -> int:
        (self.base / "go").touch()
        return self.process.wait(90)


def start(network: str) -> Iterator[Started]:
    base = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    base.chmod(0o755)  # others may come as far as the run's own folders
    app = base / "app"
    app.mkdir()
    settings = (LAMP / "pyproject.toml").read_text()
    settings = settings.replace("idiolect.server.run.app:app", "waiting:app")
    settings = settings.replace("idiolect.client.node.app:app", "waiting:client")
    (app / "pyproject.toml").write_text(settings)
    (app / "LICENSE").write_text((LAMP / "LICENSE").read_text())
    (app / "waiting.py").write_text(APP)
    config = parse({"users": 2, "data": str(base)})
    (base / "run.toml").write_text(to_toml(config))
    results.write_json(base / "results.json", make())
    plan = planning.Plan(app, config, base / "runs" / "one", 2)
    words = [str(app), str(base / "run.toml"), str(plan.folder), network]
    # A module that lies where the caller is must not become the run's.
    (base / "httpx.py").write_text("raise SystemExit('a stranger wrote this')\n")
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", START, *words],
        cwd=base,
        env={**os.environ, **HOSTILE, "TMPDIR": str(base)},
        text=True,
        umask=0,  # the worst that a caller can choose
    )
    try:
        until(lambda: process.poll() is not None or _ready(plan), 90)
        assert process.poll() is None
        record = launch.read_record(plan)
        yield Started(process, plan, base, Path(record["place"]), record["mark"])
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        environment.shutil.rmtree(base, ignore_errors=True)


def _ready(plan: planning.Plan) -> bool:
    mark = launch.read_record(plan).get("mark", "")
    if not mark or not results.read_events(plan.metrics)[0]:
        return False
    return sum("ClientAppActor" in _title(pid) for pid in processes.family(mark)) == 2


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@pytest.fixture(scope="module")
def alone() -> Iterator[Started]:
    """As it is where the machine gives a run a network of its own."""
    yield from start(ALONE)


@pytest.fixture(scope="module")
def shared() -> Iterator[Started]:
    """As it is where the machine does not."""
    yield from start(SHARED)


# --- what is open ----------------------------------------------------------------------


def sockets(run: Started) -> dict[str, set[tuple[str, int]]]:
    """What listens, by the name that docs/security.md gives it."""
    names = ("gcs_server", "raylet", "RuntimeEnvAgent", "ClientAppActor", "simulator")
    found: dict[str, set[tuple[str, int]]] = {}
    for pid in run.pids():
        addresses, _ = listening(pid)
        if addresses:
            title = _title(pid).replace("raylet/raylet", " raylet ").split(" --")[0]
            # Ray's agent has its name some moments after its socket.
            title = title.replace("runtime_env/agent/main.py", "RuntimeEnvAgent")
            name = next((name for name in names if name in title), title)
            found[name] = found.get(name, set()) | addresses
    return found


@pytest.mark.slow
@pytest.mark.parametrize("network", [ALONE, SHARED])
def test_what_a_simulation_opens(network: str, request: pytest.FixtureRequest) -> None:
    """Every listening socket: loopback, or a file in a private folder; docs list them."""
    run: Started = request.getfixturevalue(network)
    found = sockets(run)
    table = (ROOT / "docs" / "security.md").read_text()
    assert {name for name in found if f"`{name}`" not in table} == set()
    assert {"gcs_server", "raylet", "ClientAppActor"} <= found.keys()
    for addresses in found.values():
        for host, _ in addresses:
            assert host in ("127.0.0.1", "::ffff:127.0.0.1", "::1")
    files = set().union(*(listening(pid)[1] for pid in run.pids()))
    assert files
    assert all(Path(file).is_relative_to(run.place) for file in files)
    assert stat.S_IMODE(run.place.stat().st_mode) == 0o700
    ours, theirs = (
        os.readlink(f"/proc/{pid}/ns/net") for pid in ("self", run.pids()[-1])
    )
    assert (ours != theirs) == (network == ALONE)


@pytest.mark.slow
def test_a_private_run_inherits_nothing_that_it_did_not_choose(alone: Started) -> None:
    for pid in alone.pids():
        raw = Path(f"/proc/{pid}/environ").read_bytes().decode("latin-1").split("\0")
        told = {name: value for name, _, value in (one.partition("=") for one in raw)}
        for name, value in HOSTILE.items():
            if name in told:  # some of the names a run chooses itself
                assert told[name] != value or not value
        assert "SOME_SECRET" not in told
        assert not {name for name in told if name.lower().endswith("_proxy")}


@pytest.mark.slow
@pytest.mark.parametrize("network", [ALONE, SHARED])
def test_the_token_is_on_no_command_line_and_in_no_file(
    network: str, request: pytest.FixtureRequest
) -> None:
    run: Started = request.getfixturevalue(network)
    token = token_of(run)
    assert len(token) == 64
    assert not [pid for pid in run.pids() if token in _title(pid)]
    for folder in (run.plan.scratch, run.plan.folder, run.place):
        for file in folder.rglob("*"):
            if file.is_file():
                assert token.encode() not in file.read_bytes(), file


def token_of(run: Started) -> str:
    tokens: set[str] = set()
    for pid in run.pids():
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if entry.startswith(b"RAY_AUTH_TOKEN="):
                tokens.add(entry.decode().partition("=")[2])
    (token,) = tokens
    return token


@pytest.mark.slow
@pytest.mark.parametrize("network", [ALONE, SHARED])
def test_files_are_private_whatever_the_umask(
    network: str, request: pytest.FixtureRequest
) -> None:
    run: Started = request.getfixturevalue(network)
    assert stat.S_IMODE(run.plan.scratch.stat().st_mode) == 0o700
    assert stat.S_IMODE(run.plan.folder.parent.stat().st_mode) == 0o700
    for path in (*run.plan.scratch.rglob("*"), *run.plan.folder.rglob("*")):
        assert stat.S_IMODE(path.lstat().st_mode) & 0o077 == 0, path


# --- strangers -------------------------------------------------------------------------

# A stranger's process: it loads what it needs, becomes somebody else, and tries. The one
# call that it must not try where it can reach the GCS ends that (docs/security.md).
STRANGER = """
import importlib, json, os, pkgutil, socket, sys
import grpc, ray, ray.core.generated as generated
host, ports, places, pids, token = json.loads(sys.argv[1])
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
methods = ["/ray.rpc.ObjectManagerService/" + m for m in ("Push", "Pull", "FreeObjects")]
for module in pkgutil.iter_modules(generated.__path__):
    if module.name.endswith("_pb2"):
        try:
            names = importlib.import_module("ray.core.generated." + module.name).DESCRIPTOR
        except ImportError:
            continue
        for service in names.services_by_name.values():
            methods += [f"/{service.full_name}/{m.name}" for m in service.methods]
said = {"answers": {}, "opened": [], "environ": [], "http": {}}
metadata = (("authorization", "Bearer " + token),) if token else ()
for port in ports:
    with socket.socket() as probe:
        probe.settimeout(3)
        try:
            probe.connect((host, port))
        except OSError as error:
            said["answers"][port] = [type(error).__name__]
            continue
        probe.sendall(b"GET /log_event HTTP/1.0\\r\\n\\r\\n")
        try:
            said["http"][port] = probe.recv(64).decode("latin-1").split("\\r\\n")[0]
        except OSError:
            pass
    answers = set()
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        for method in methods:
            try:
                channel.unary_unary(method)(b"", timeout=5, metadata=metadata)
                answers.add("OK " + method)
            except grpc.RpcError as error:
                answers.add(error.code().name)
    said["answers"][port] = sorted(answers)
for place in places:
    try:
        said["opened"].append([place, str(os.listdir(place))])
    except NotADirectoryError:
        try:
            said["opened"].append([place, open(place).read(9)])
        except OSError:
            pass
    except OSError:
        pass
for pid in pids:
    try:
        said["environ"].append(open(f"/proc/{pid}/environ").read(9))
    except OSError:
        pass
print(json.dumps(said))
"""

CLIENT = """
import os, sys
import ray
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
os.environ["HOME"] = "/nonexistent"
ray.init(address=sys.argv[1])
@ray.remote
def run():
    return os.popen("id").read()
print("GOT IN", ray.get(run.remote()))
"""


def stranger(
    run: Started, host: str, before: tuple[str, ...] = (), token: str = ""
) -> dict[str, Any]:
    """What somebody else can reach of a run, from a place that `before` enters."""
    ports = sorted({port for found in sockets(run).values() for _, port in found})
    record = run.plan.scratch / "process.json"
    places = [run.plan.scratch, record, run.plan.scratch / "flower", run.place]
    places += [run.plan.folder, run.plan.metrics, run.plan.folder.parent]
    given = json.dumps([host, ports, [str(p) for p in places], run.pids(), token])
    done = subprocess.run(
        [*before, sys.executable, "-c", STRANGER, given],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=300,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert len(said["answers"]) == len(ports) >= 6
    return said


def ray_client(run: Started, host: str, before: tuple[str, ...] = ()) -> str:
    """What a stranger's Ray client says when it is told to join."""
    (port,) = {port for _, port in sockets(run)["gcs_server"]}
    environment = {
        "PATH": os.environ["PATH"],
        "RAY_gcs_rpc_server_connect_timeout_s": "2",
    }
    try:
        done = subprocess.run(
            [*before, sys.executable, "-c", CLIENT, f"{host}:{port}"],
            env={**environment, "RAY_gcs_server_rpc_server_reconnect_timeout_s": "2"},
            capture_output=True,
            text=True,
            timeout=45,
            cwd="/",
        )
    except subprocess.TimeoutExpired:
        return "never connected"
    assert done.returncode != 0
    return done.stdout + done.stderr


@as_root
@pytest.mark.slow
def test_another_account_can_read_nothing(shared: Started) -> None:
    said = stranger(shared, "127.0.0.1")
    assert said["opened"] == []
    assert said["environ"] == []


@as_root
@pytest.mark.slow
def test_another_account_on_the_same_loopback_is_refused(shared: Started) -> None:
    """Of some 140 calls on every port, not one is carried out without the token."""
    refused = {"UNAUTHENTICATED", "UNIMPLEMENTED", "UNAVAILABLE"}
    said = stranger(shared, "127.0.0.1")
    found = sockets(shared)
    for name, addresses in found.items():
        for _, port in addresses:
            answers = set(said["answers"][str(port)])
            assert answers <= refused, (name, answers)
            if name == "RuntimeEnvAgent":
                assert "401" in said["http"][str(port)]
            else:
                assert "UNAUTHENTICATED" in answers, name
    assert "GOT IN" not in ray_client(shared, "127.0.0.1")
    known = stranger(shared, "127.0.0.1", token="not the one")
    assert all(set(one) <= refused for one in known["answers"].values())


@as_root
@pytest.mark.slow
def test_another_account_does_not_even_see_a_run_that_is_alone(alone: Started) -> None:
    said = stranger(alone, "127.0.0.1")
    assert said["opened"] == said["environ"] == []
    assert {tuple(one) for one in said["answers"].values()} == {
        ("ConnectionRefusedError",)
    }
    assert "GOT IN" not in ray_client(alone, "127.0.0.1")


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, tuple[str, ...]]]:
    """A second network, joined to this one by a cable: our address on it, how to enter."""
    name, ours, theirs = f"t{os.getpid()}", f"ta{os.getpid()}", f"tb{os.getpid()}"
    steps = (
        f"netns add {name}",
        f"link add {ours} type veth peer name {theirs} netns {name}",
        f"addr add 198.18.77.1/30 dev {ours}",
        f"link set {ours} up",
        f"-n {name} addr add 198.18.77.2/30 dev {theirs}",
        f"-n {name} link set {theirs} up",
        f"-n {name} link set lo up",
    )
    try:
        for step in steps:
            done = subprocess.run(
                ["ip", *step.split()], capture_output=True, text=True, check=False
            )
            if done.returncode:
                pytest.skip(f"no right to make a network: {done.stderr.strip()}")
        yield "198.18.77.1", ("ip", "netns", "exec", name)
    finally:
        for step in (f"link del {ours}", f"netns del {name}"):
            subprocess.run(["ip", *step.split()], capture_output=True, check=False)


@as_root
@pytest.mark.slow
@pytest.mark.parametrize("network", [ALONE, SHARED])
def test_a_stranger_from_another_network_is_refused(
    network: str,
    elsewhere: tuple[str, tuple[str, ...]],
    request: pytest.FixtureRequest,
) -> None:
    """And the run, which waited meanwhile, ends well."""
    run: Started = request.getfixturevalue(network)
    host, enter = elsewhere
    with socket.socket() as ear:  # the cable works: what listens to all is reached
        ear.bind(("0.0.0.0", 0))
        ear.listen()
        code = f"import socket; socket.create_connection({(host, ear.getsockname()[1])}, 5)"
        subprocess.run([*enter, sys.executable, "-c", code], check=True)
    said = stranger(run, host, enter)
    assert {tuple(one) for one in said["answers"].values()} == {
        ("ConnectionRefusedError",)
    }
    assert "GOT IN" not in ray_client(run, host, enter)
    assert run.finish() == 0
    assert not run.place.exists()
    assert not run.plan.scratch.exists()
