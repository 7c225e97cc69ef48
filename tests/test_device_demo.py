"""Real processes: a server and devices over TLS, from keys to a personal model."""

import contextlib
import json
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from tests.listening import listening
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from fleet import Fleet  # noqa: E402  # pyright: ignore[reportMissingImports]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """A server and two devices that are up."""
    with Fleet(tmp_path_factory.mktemp("fleet"), 2) as made:
        made.open(update="clear", votes="clear", metrics="clear")
        yield made
    assert made.alive("") == []


SHORT = ("adapt.rounds=1", "personalise.epochs=1", "evaluate.generate=false")


def ended(run: subprocess.Popen) -> tuple[int, str]:
    said, _ = run.communicate(timeout=900)
    return run.returncode, said


def test_a_run_on_devices_over_tls(fleet):
    code, said = ended(fleet.run(*SHORT, "run.name=one"))
    assert code == 0, said
    assert "c-bpo" in said
    for number in range(2):
        status = json.loads(fleet.command(f"device{number}", "status", "--json"))
        (adapter,) = status["adapters"]
        assert adapter["method"] == "c-bpo" and adapter["origin"]
    folder = fleet.folder / "server" / "runs" / "one"
    written = b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())
    log = (fleet.folder / "server" / "server" / "server.log").read_bytes()
    text = json.loads((fleet.folder / "device0.jsonl").read_text().splitlines()[0])
    for place in (written, log):
        assert text["target"].encode() not in place
    # What devices sent is in the SuperLink's database no longer, nor in its free pages.
    state = fleet.folder / "server" / "server" / "flower" / "state.db"
    with contextlib.closing(sqlite3.connect(state, timeout=10)) as base:
        for table in ("objects", "run_objects", "message_ins", "message_res"):
            assert base.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
        assert base.execute("PRAGMA freelist_count").fetchone() == (0,)
    assert b"Push replies from" not in log  # who took part


def test_what_a_server_and_its_devices_write_is_private(fleet):
    for who in ("server", "device0"):
        for path in (fleet.folder / who).rglob("*"):
            if path.name != "passphrase":
                assert path.is_symlink() or path.lstat().st_mode & 0o077 == 0, path


def test_a_failed_run_has_a_true_exit_code(fleet):
    fleet.command("device0", "pause")
    try:
        code, said = ended(fleet.run(*SHORT, "run.name=two", "quorum=1.0"))
    finally:
        fleet.command("device0", "resume")
    assert code == 1
    assert "the owner has paused this device" in said


def test_a_killed_device_comes_back_and_the_run_completes(fleet):
    run = fleet.run(*SHORT, "run.name=three", "quorum=1.0")
    metrics = fleet.folder / "server" / "runs" / "three" / "metrics.jsonl"
    until(lambda: metrics.exists() and '"adapt"' in metrics.read_text(), patience=300)
    assert fleet.kill("idiolect.client.node.worker", "device0") == 1
    code, said = ended(run)
    assert code == 0, said


def test_a_devices_credentials_start_no_run(fleet):
    """Neither through the entrance nor with its key at the control interface."""
    trust = ssl.create_default_context(
        cafile=str(fleet.folder / "server" / "server" / "ca.crt")
    )
    for path in ("start-run", "list-runs", "register-node", "unregister-node"):
        url = f"https://localhost:{fleet.port}/v1/control/{path}"
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(url, b"x"), context=trust)
        assert caught.value.code == 404
    home = fleet.folder / "device0" / "flower"
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text(
        f'[superlink.e]\naddress = "localhost:{fleet.port}"\nroot-certificates = '
        f'"{fleet.folder / "server" / "server" / "ca.crt"}"\n'
    )
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "flwr"),
            *("run", str(ROOT / "simulations/lamp"), "e"),
        ],
        env={**fleet.environment("device0"), "FLWR_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "404" in done.stdout + done.stderr


EVIL = """
from pathlib import Path

Path({place!r}, "ran-" + {side!r}).touch()  # as soon as it is imported
"""
EVIL_CLIENT = """
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    raise RuntimeError("it runs")
"""
EVIL_SERVER = """
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    content = RecordDict({{"order": ConfigRecord({{"send": "everything"}})}})
    tasks = [Message(content, node, kind) for node in grid.get_node_ids()
             for kind in ("train", "query.share")]
    replies = grid.send_and_receive(tasks, timeout=60)
    said = [str(reply.content) for reply in replies]
    Path({place!r}, "said").write_text("\\n".join(said))
"""


def test_an_app_that_someone_else_submits_runs_on_no_device(fleet, tmp_path):
    """Whoever reached the control interface could submit this; devices carry out data."""
    app = tmp_path / "evil"
    (app / "evil").mkdir(parents=True)
    settings = (ROOT / "simulations/lamp/pyproject.toml").read_text()
    settings = settings.replace("idiolect.server.run.app:app", "evil.server:app")
    settings = settings.replace("idiolect.client.node.app:app", "evil.client:app")
    (app / "pyproject.toml").write_text(settings)
    (app / "LICENSE").write_text((ROOT / "LICENSE").read_text())
    for side, body in (("client", EVIL_CLIENT), ("server", EVIL_SERVER)):
        text = EVIL.format(place=str(tmp_path), side=side) + body.format(
            place=str(tmp_path)
        )
        (app / "evil" / f"{side}.py").write_text(text)
    flower = fleet.folder / "server" / "server" / "flower"
    subprocess.run(
        [str(Path(sys.executable).parent / "flwr"), "run", str(app), "private"],
        env={**fleet.environment("server"), "FLWR_HOME": str(flower)},
        check=True,
        capture_output=True,
        timeout=120,
    )
    until(lambda: (tmp_path / "said").exists(), patience=300)
    said = (tmp_path / "said").read_text()
    assert said.count("Failure") == 4  # two devices, two tasks, and nothing else
    assert (tmp_path / "ran-server").exists()
    assert not (tmp_path / "ran-client").exists()
    text = json.loads((fleet.folder / "device0.jsonl").read_text().splitlines()[0])
    assert text["target"] not in said


def test_the_superlink_itself_is_out_of_reach(fleet):
    """It listens on this machine's own address alone."""
    serving = json.loads(
        (fleet.folder / "server" / "server" / "serving.json").read_text()
    )
    own = _address()
    if own == "127.0.0.1":
        pytest.skip("this machine has no other address")
    with pytest.raises(OSError):
        socket.create_connection((own, serving["port"]), timeout=2)


def sockets(pids: list[int]) -> set:
    """Addresses and files at which processes listen; one may end meanwhile."""
    found: set = set()
    for pid in pids:
        with suppress(OSError):
            addresses, files = listening(pid)
            found |= addresses | files
    return found


def test_no_socket_listens_that_the_docs_do_not_list(fleet):
    """Before, during and after a run: see the table in docs/deploy.md."""
    fleet.wait_for_devices()
    serving = json.loads(
        (fleet.folder / "server" / "server" / "serving.json").read_text()
    )
    allowed = {("127.0.0.1", fleet.port), ("127.0.0.1", serving["port"])}
    server: set = set()
    devices: set = set()
    lines: set[str] = set()
    run = fleet.run(*SHORT, "run.name=sockets")
    while run.poll() is None:
        server |= sockets(fleet.alive("", "server"))
        for number in range(2):
            devices |= sockets(fleet.alive("", f"device{number}"))
        for pid in fleet.alive("flwr-serverapp", "server"):
            with suppress(OSError):
                lines.add(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
        time.sleep(0.2)
    code, said = ended(run)
    assert code == 0, said
    assert server == allowed
    assert devices == set()
    # Every account can read these lines: the task's token is not in them.
    assert lines and all("--token-file /proc/self/fd/" in line for line in lines)


def _address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return "127.0.0.1"
        return probe.getsockname()[0]


def test_a_device_that_nobody_registered_is_not_let_in(fleet):
    place = fleet.folder / "stranger"
    place.mkdir()
    (place / "passphrase").write_text("nobody has registered me\n")
    invitation = str(fleet.folder / "server" / "server" / "invitation.json")
    fleet.command("stranger", "vault", "init")
    fleet.command("stranger", "node", "join", invitation)
    fleet.start("stranger", "node", "run")
    log = fleet.folder / "stranger.log"
    # It ends and says what must be done first.
    assert fleet.processes["stranger"].wait(300) == 2
    said = log.read_text()
    assert "error: not registered: " in said and "nodes add" in said
    assert "is ready" not in said
    assert "Traceback" not in said and "Exit Code" not in said and "\x1b" not in said


def test_a_run_goes_on_without_its_command_until_it_is_stopped(fleet):
    """Ctrl-C, a closed terminal: `attach` shows it, `stop` ends it, `resume` goes on."""
    run = fleet.run(*SHORT[:1], "evaluate.generate=false", "run.name=left")
    metrics = fleet.folder / "server" / "runs" / "left" / "metrics.jsonl"
    until(lambda: metrics.exists() and '"adapt"' in metrics.read_text(), patience=300)
    run.send_signal(signal.SIGINT)
    code, said = ended(run)
    assert code == 130
    assert "run left goes on without this command" in said
    assert "idiolect-server attach left" in said
    assert "idiolect-server stop left" in said
    watching = fleet.server("attach", "latest")
    until(lambda: '"pool"' in metrics.read_text(), patience=300)
    watching.send_signal(signal.SIGHUP)
    assert ended(watching)[0] == -signal.SIGHUP
    assert "run left has ended" in fleet.command("server", "stop", "left")
    code, said = ended(fleet.server("attach", "left"))
    assert code == 1 and "the run was stopped: --resume left goes on" in said
    code, said = ended(fleet.server("stop", "left"))
    assert code == 2 and "has ended already: its state is stopped" in said
    run = fleet.run(*SHORT[:1], "evaluate.generate=false", "run.resume=left")
    code, said = ended(run)
    assert code == 0, said
    log = (fleet.folder / "server" / "server" / "server.log").read_text()
    assert "\x1b" not in log + said


def test_a_revoked_device_is_not_let_in_again(fleet):
    fleet.wait_for_devices()
    nodes = json.loads(fleet.command("server", "nodes", "list", "--json"))
    online = [node["node-id"] for node in nodes if node["status"] == "online"]
    assert len(online) == 2
    fleet.command("server", "nodes", "revoke", online[0])
    nodes = json.loads(fleet.command("server", "nodes", "list", "--json"))
    assert online[0] not in [
        node["node-id"] for node in nodes if node["status"] == "online"
    ]
    # Its own command says so, and ends.
    until(lambda: 2 in [p.poll() for p in fleet.processes.values()], patience=120)
    logs = [(fleet.folder / f"device{k}.log").read_text() for k in range(2)]
    (said,) = [log for log in logs if "error: " in log]
    assert "error: revoked: " in said and "idiolect leave" in said
    for log in logs:
        assert "Traceback" not in log and "Exit Code" not in log and "\x1b" not in log
