"""The SuperLink and the SuperExec answer only to who knows this server's token."""

import json
import os
import socket
import ssl
import stat
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from flwr.proto.control_pb2 import ListRunsRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.error import FlowerError
from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor
from flwr.supercore.superexec.executor.types import ExecutionSpec

from idiolect.server.deploy import keys, serve, superlink
from idiolect.server.deploy.flower import CONNECTION
from idiolect.server.deploy.metrics import Watched
from idiolect.server.simulate.environment import BIN

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "t" * 43


@pytest.mark.parametrize(
    "given", [[], [("flwr-access-token", "")], [("access-token", TOKEN)], ["wrong"]]
)
def test_only_the_token_is_let_in(given):
    from flwr.common.constant import ACCESS_TOKEN_KEY

    plugin = superlink.TokenPlugin(TOKEN)
    if given == ["wrong"]:
        given = [(ACCESS_TOKEN_KEY, TOKEN[:-1] + "é")]
    assert plugin.validate_tokens_in_metadata(given) == (False, None)
    right = plugin.validate_tokens_in_metadata([(ACCESS_TOKEN_KEY, TOKEN)])
    assert right[0] and right[1] is not None


def test_no_token_is_ever_given_out():
    plugin = superlink.TokenPlugin(TOKEN)
    for ask in (
        lambda: plugin.get_auth_tokens("x"),
        lambda: plugin.refresh_tokens([("refresh-token", "x")]),
    ):
        with pytest.raises(FlowerError):
            ask()
    details = plugin.get_login_details()
    assert TOKEN not in repr(details)


def test_flower_reads_the_credentials(tmp_path, monkeypatch):
    from flwr.supercore.credential_store.file_credential_store import (
        FileCredentialStore,
    )

    file = tmp_path / "credentials.yaml"
    file.write_text(superlink.credentials("127.0.0.1:5", TOKEN))
    assert isinstance(yaml.safe_load(file.read_text()), dict)
    store = FileCredentialStore(file)
    prefix = "flower.account-auth.127.0.0.1:5."
    assert store.get(prefix + "authn-type") == b"oidc"
    assert store.get(prefix + "oidc-access-token") == TOKEN.encode()


@pytest.mark.process
def test_a_tasks_token_is_on_no_command_line(tmp_path, monkeypatch):
    """Every account of the machine can read a command line."""
    script = tmp_path / "flwr-serverapp"
    script.write_text(
        f"#!{sys.executable}\nimport sys\nfrom pathlib import Path\n"
        f"line = Path('/proc/self/cmdline').read_text()\n"
        f"token = Path(sys.argv[sys.argv.index('--token-file') + 1])\n"
        f"Path({str(tmp_path / 'said')!r}).write_text(\n"
        f"    line.replace(chr(0), ' ') + '|' + str(token.is_file()) + token.read_text())\n"
    )
    script.chmod(0o700)
    monkeypatch.setattr(superlink, "_program", lambda _name: [str(script)])
    monkeypatch.setattr(SubprocessExecutor, "launch", superlink.launch)
    before = set(os.listdir("/proc/self/fd"))
    spec = ExecutionSpec(
        task_type=TaskType.SERVER_APP,
        runtime_api_address="127.0.0.1:5",
        token=TOKEN,
        insecure=False,
        root_certificates_path="/ca.crt",
        runtime_dependency_install=False,
        parent_pid=7,
        suppress_output=True,
        task_id=1,
    )
    SubprocessExecutor().launch(spec)
    deadline = time.monotonic() + 20
    while not (tmp_path / "said").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.1)
    line, _, token = (tmp_path / "said").read_text().partition("|")
    assert token == "True" + TOKEN
    assert TOKEN not in line
    assert "127.0.0.1:5" in line and "--root-certificates /ca.crt" in line
    assert "--parent-pid 7" in line
    assert set(os.listdir("/proc/self/fd")) == before


def test_starlettes_path_is_not_taken_from_a_header():
    """Flower checks logins by that path; up to 1.0.0 a Host header changed it."""
    from starlette.requests import Request

    headers = [(b"host", b"x/v1/fleet/activate-node?")]
    scope = {"type": "http", "method": "POST", "path": "/v1/control/start-run"}
    scope |= {
        "scheme": "https",
        "server": ("l", 1),
        "query_string": b"",
        "headers": headers,
    }
    assert Request(scope).url.path == "/v1/control/start-run"
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    server = settings["project"]["optional-dependencies"]["server"]
    assert "starlette>=1.0.1" in server


@pytest.fixture(scope="module")
def inner(tmp_path_factory):
    """A real SuperLink, as `serve` starts it, on a machine with a proxy."""
    folder = tmp_path_factory.mktemp("link") / "server"
    keys.keys_init(folder, ["localhost"], 9443)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    now = serve.Serving("m" * 32, port)
    serve._configure_flower(folder, now)
    command = serve._commands(folder, "127.0.0.1", 1, now)["superlink"]
    process = subprocess.Popen(command, env=serve.environment_of(folder, now))
    old = {name: os.environ.get(name) for name in ("https_proxy", "HTTPS_PROXY")}
    os.environ |= dict.fromkeys(old, "http://127.0.0.1:9")
    try:
        watched = Watched(folder, "127.0.0.1", 1, port, now.mark)
        assert serve._answers(watched, process)
    finally:
        for name, text in old.items():
            os.environ.pop(name) if text is None else os.environ.update({name: text})
    yield folder, port, now
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
    process.kill()


def ask(folder: Path, port: int, path: str, body: bytes, **headers: str) -> int:
    trust = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    direct = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust)
    )
    request = urllib.request.Request(
        f"https://127.0.0.1:{port}{path}",
        body,
        {"content-type": "application/protobuf", **headers},
    )
    try:
        return direct.open(request, timeout=20).status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
def test_the_control_interface_asks_for_the_token(inner):
    folder, port, now = inner
    listing = ListRunsRequest().SerializeToString()
    from flwr.superlink.routers.control.router import router

    open_paths = {"get-login-details"}  # says that there is a login, and no more
    for route in router.routes:
        path = str(getattr(route, "path", ""))
        code = ask(folder, port, path, b"")
        expected = 200 if path.rpartition("/")[2] in open_paths else 401
        # Asking for a new token needs none by design; none is given.
        assert code == expected or "auth-tokens" in path and code >= 400, path
    path = "/v1/control/list-runs"
    assert ask(folder, port, path, listing, authorization=f"Bearer {TOKEN}") == 401
    token = (folder / "flower" / "token").read_text()
    assert ask(folder, port, path, listing, authorization=f"Bearer {token}") == 200
    # Starlette up to 1.0.0 took the path that Flower checks from the Host header.
    for host in (
        "x/v1/fleet/y?",
        "127.0.0.1/health#",
        "x/v1/control/get-login-details?",
    ):
        assert ask(folder, port, path, listing, host=host) in (400, 401)


@pytest.mark.slow
def test_a_task_is_taken_only_with_the_secret(inner):
    folder, port, _ = inner
    body = AcquireTaskRequest(supported_task_types=["flwr-serverapp"])
    path = "/v1/runtime/acquire-task"
    assert ask(folder, port, path, body.SerializeToString()) == 401


@pytest.mark.slow
def test_flowers_own_command_has_the_token(inner):
    folder, _, now = inner
    done = subprocess.run(
        [str(BIN / "flwr"), "list", CONNECTION, "--format", "json"],
        env=serve.environment_of(folder, now),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert json.loads(done.stdout)["success"], done.stdout
    stranger = dict(os.environ) | {"FLWR_HOME": str(folder.parent / "other")}
    Path(stranger["FLWR_HOME"]).mkdir()
    text = (folder / "flower" / "config.toml").read_text()
    (folder.parent / "other" / "config.toml").write_text(text)
    done = subprocess.run(
        [str(BIN / "flwr"), "list", CONNECTION, "--format", "json"],
        env=stranger,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert not json.loads(done.stdout)["success"]


@pytest.mark.slow
def test_what_serve_writes_is_for_this_account_alone(inner):
    folder, _, _ = inner
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    names = {entry.name for entry in (folder / "flower").iterdir()}
    assert {"token", "credentials.yaml", "state.db"} <= names
    database = folder / "flower" / "state.db"
    assert stat.S_IMODE(database.stat().st_mode) == 0o600
