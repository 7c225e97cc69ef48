"""Serving: what must be there, and what is said before devices connect."""

import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from idiolect.client.node.membership import fingerprint, read_invitation
from idiolect.common.errors import IdiolectError
from idiolect.server.deploy import keys, serve
from idiolect.server.deploy.flower import free_port
from tests.server.deploy.test_keys import later

APP = Path(__file__).resolve().parents[3] / "simulations" / "lamp"


def test_serving_without_keys_says_how_to_make_them(tmp_path):
    with pytest.raises(IdiolectError, match="keys init"):
        serve.serve(tmp_path, "127.0.0.1", 1, print)


def kept_up(folder, monkeypatch, port=None, **more) -> tuple[list[str], list[str]]:
    """What `serve` says, and the proxy's command line."""
    said: list[str] = []
    commands: list[list[str]] = []
    monkeypatch.setattr(
        serve, "_keep_up", lambda given, *_: commands.append(given["proxy"])
    )
    monkeypatch.setattr(serve.database, "keep_forgetting", lambda *_: None)
    monkeypatch.setattr(serve.processes, "end", lambda _: None)
    monkeypatch.setattr(serve.signal, "signal", lambda *_: None)
    serve.serve(folder, "127.0.0.1", port, said.append, **more)
    return said, commands[0]


def test_the_port_is_the_invitations(tmp_path, monkeypatch):
    port = free_port()
    folder = tmp_path / "server"
    keys.keys_init(folder, ["lab.example.org"], port)
    said, command = kept_up(folder, monkeypatch)
    assert command[command.index("127.0.0.1") + 1] == str(port)
    text = "\n".join(said)
    assert f"devices connect to  lab.example.org:{port}" in text
    assert f"listening at        127.0.0.1 port {port}" in text
    assert str(folder / "server.log") in text and "Ctrl-C" in text
    server = read_invitation(folder / "invitation.json")
    assert fingerprint(server) == keys.fingerprint(folder)
    assert f"  {fingerprint(server)}" in said
    assert "warning" not in text


def test_another_port_than_the_invitations_is_warned_of(folder, monkeypatch):
    other = free_port()
    said, command = kept_up(folder, monkeypatch, other)
    assert command[command.index("127.0.0.1") + 1] == str(other)
    (line,) = [one for one in said if one.startswith("warning")]
    assert "lab.example.org:9443" in line and str(other) in line


def test_a_port_that_is_taken_is_named_before_anything_is_started(folder, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(IdiolectError, match=f"cannot listen at .* {port}"):
            kept_up(folder, monkeypatch, port)
    assert not (folder / "serving.json").exists()


def test_what_a_killed_server_left_is_ended_before_its_port_is_asked_for(
    folder, monkeypatch
):
    """Its proxy still holds the port: it must not be taken for somebody else's."""
    left = socket.create_server(("127.0.0.1", 0))
    serve.results.write_json(folder / "serving.json", {"mark": "left", "port": 1})
    ended: list[str] = []

    def end(mark: str) -> None:
        ended.append(mark)
        left.close()

    port = left.getsockname()[1]
    monkeypatch.setattr(serve.processes, "end", end)
    with monkeypatch.context() as others:
        others.setattr(serve, "_keep_up", lambda *_: None)
        others.setattr(serve.database, "keep_forgetting", lambda *_: None)
        others.setattr(serve.signal, "signal", lambda *_: None)
        serve.serve(folder, "127.0.0.1", port, lambda _: None)
    assert ended[0] == "left"


@pytest.mark.parametrize(
    ("days", "said"),
    [(0, ""), (keys.DAYS - 31, ""), (keys.DAYS - 29, "ends on"), (400, "ended on")],
)
def test_serve_warns_before_the_certificate_ends(folder, monkeypatch, days, said):
    later(monkeypatch, days)
    heard: list[str] = []
    serve._warn_of_end(folder, heard.append)
    assert (said in heard[0] and "keys renew" in heard[0]) if said else heard == []


@pytest.mark.process
@pytest.mark.parametrize("unit", ["idiolect-server", "idiolect-node"])
def test_the_units_leave_little_open(unit):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze")
    file = APP.parents[1] / "docs" / "systemd" / f"{unit}.service"
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(file)],
        capture_output=True,
        text=True,
    )
    if "Overall exposure" not in done.stdout:
        pytest.skip("this systemd-analyze does not read files")
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found and float(found[1]) <= 3.0
    text = file.read_text()
    # What has been seen to be needed.
    for needed in ("sched_setaffinity", "prlimit64", "AF_UNIX", "LimitCORE=0"):
        assert needed in text
