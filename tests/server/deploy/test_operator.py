"""Keys, and what is checked before a server of devices is started or used."""

import contextlib
import datetime
import fcntl
import itertools
import json
import os
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID

from idiolect.client.node.membership import fingerprint, read_invitation
from idiolect.common.errors import IdiolectError
from idiolect.common.protocol.manifest import public_key, read_or_make_key
from idiolect.server.cli import main
from idiolect.server.deploy import operator as deploy
from idiolect.server.deploy.flower import free_port
from idiolect.server.run import results
from tests.server.entrance import state_of

APP = Path(__file__).resolve().parents[3] / "simulations" / "lamp"


@pytest.fixture
def folder(tmp_path) -> Path:
    deploy.keys_init(tmp_path / "server", ["lab.example.org", "192.0.2.7"], 9443)
    return tmp_path / "server"


def test_private_keys_are_for_this_account_alone(folder):
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in ("ca.key", "server.pem", "signing.key"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600


def test_the_certificate_is_for_the_given_names_and_this_machine(folder):
    own = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
    authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    own.verify_directly_issued_by(authority)
    names = own.extensions.get_extension_for_oid(
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME
    ).value
    assert isinstance(names, x509.SubjectAlternativeName)
    dns = names.get_values_for_type(x509.DNSName)
    assert dns == ["lab.example.org", "localhost"]
    addresses = map(str, names.get_values_for_type(x509.IPAddress))
    assert list(addresses) == ["192.0.2.7", "127.0.0.1"]
    # What OpenSSL takes, as strictly as it can.
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")


def test_the_invitation_is_what_a_device_reads_and_holds_no_secret(folder):
    server = read_invitation(folder / "invitation.json")
    assert server.address == "lab.example.org:9443"
    assert server.signing_key == public_key(read_or_make_key(folder / "signing.key"))
    text = (folder / "invitation.json").read_text()
    assert "PRIVATE" not in text
    assert read_or_make_key(folder / "signing.key").hex() not in text


def test_keys_are_never_made_over(folder):
    before = (folder / "ca.key").read_bytes()
    with pytest.raises(IdiolectError, match="keys in .* already"):
        deploy.keys_init(folder, ["other"], 1)
    assert (folder / "ca.key").read_bytes() == before


@pytest.mark.parametrize("name", ["", "a b/", "http://x", "a:9"])
def test_a_name_that_is_none_is_refused(tmp_path, name):
    with pytest.raises(IdiolectError, match="no host name and no address"):
        deploy.keys_init(tmp_path / "s", [name], 9443)


@pytest.mark.parametrize(
    "change",
    [
        {"address": "nowhere"},
        {"address": "host:0"},
        {"certificate": "no certificate"},
        {"signing_key": "00"},
        {"signing_key": 5},
        {"more": 1},
    ],
)
def test_a_damaged_invitation_is_refused(folder, change):
    file = folder / "invitation.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(IdiolectError, match="is no invitation"):
        read_invitation(file)


def test_serving_without_keys_says_how_to_make_them(tmp_path):
    with pytest.raises(IdiolectError, match="keys init"):
        deploy.serve(tmp_path, "127.0.0.1", 1, print)


@pytest.mark.parametrize(
    "act",
    [
        lambda folder: deploy.nodes(folder),
        lambda folder: deploy.add_node(folder, "ecdsa-sha2-nistp384 AAAA"),
        lambda folder: deploy.revoke_node(folder, "1"),
    ],
)
def test_without_a_server_the_next_step_is_named(folder, act):
    with pytest.raises(IdiolectError, match="no server is up"):
        act(folder)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["task=headline"], "for simulations"),
        (["task=text"], "one learning rate"),
        (["task=text", "personalise.learning-rates=1e-3"], "unlabeled.file"),
        (
            ["task=text", "personalise.learning-rates=1e-3", "unlabeled.kind=self"],
            "no server is up",
        ),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_it_starts(
    folder, tmp_path, monkeypatch, words, sentence
):
    monkeypatch.setenv("IDIOLECT_HOME", str(tmp_path / "home"))
    with pytest.raises(IdiolectError, match=sentence):
        deploy.prepare(folder, APP, words, tmp_path)
    assert not (tmp_path / "home").exists()


def test_the_command_says_so_with_exit_code_2(folder, capsys):
    assert main(["run", str(APP), "-c", "task=headline", "--at", str(folder)]) == 2
    assert "for simulations" in capsys.readouterr().err


# --- where a server is -----------------------------------------------------------------


@pytest.mark.parametrize("port", [0, -1, 65536, 99999])
def test_a_port_that_is_none_is_refused(tmp_path, port):
    with pytest.raises(IdiolectError, match=f"no port {port}"):
        deploy.keys_init(tmp_path / "s", ["lab.example.org"], port)
    assert not (tmp_path / "s").exists()


def kept_up(folder, monkeypatch, port=None) -> tuple[list[str], list[str]]:
    """What `serve` says, and the entrance's command line."""
    said: list[str] = []
    commands: list[list[str]] = []
    monkeypatch.setattr(
        deploy, "_keep_up", lambda given, *_: commands.append(given["entrance"])
    )
    monkeypatch.setattr(deploy.database, "keep_forgetting", lambda *_: None)
    monkeypatch.setattr(deploy.processes, "end", lambda _: None)
    monkeypatch.setattr(deploy.signal, "signal", lambda *_: None)
    deploy.serve(folder, "127.0.0.1", port, said.append)
    return said, commands[0]


def test_the_port_is_the_invitations(tmp_path, monkeypatch):
    port = free_port()
    folder = tmp_path / "server"
    deploy.keys_init(folder, ["lab.example.org"], port)
    said, command = kept_up(folder, monkeypatch)
    assert command[command.index("127.0.0.1") + 1] == str(port)
    text = "\n".join(said)
    assert f"devices connect to  lab.example.org:{port}" in text
    assert f"listening at        127.0.0.1 port {port}" in text
    assert str(folder / "server.log") in text and "Ctrl-C" in text
    server = read_invitation(folder / "invitation.json")
    assert fingerprint(server) == deploy.fingerprint(folder)
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
        with pytest.raises(IdiolectError, match=f"nobody can listen at .* {port}"):
            kept_up(folder, monkeypatch, port)
    assert not (folder / "serving.json").exists()


# --- devices ---------------------------------------------------------------------------


def line_of_a_device() -> str:
    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


@pytest.fixture
def flower(folder, monkeypatch):
    """Flower's commands, played: nodes in a list, and what is asked."""
    nodes: list[dict] = []
    asked: list[list[str]] = []

    def answer(command, _environment):
        asked.append([*command])
        if command[1] == "list":
            return {"success": True, "nodes": nodes}, ""
        if command[1] == "register":
            file = Path(command[2])
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            if file.read_text().startswith(tuple(node["key"] for node in nodes)):
                return {"success": False}, "[code: 23] Public key already in use."
            number = str(len(nodes) + 1)
            made = {"node-id": number, "status": "registered", "key": file.read_text()}
            nodes.append(made | {"online-at": "N/A", "offline-at": "N/A"})
            return {"success": True, "node-id": number}, ""
        if command[1] == "unregister":
            nodes[int(command[2]) - 1]["status"] = "unregistered"
        return {"success": True}, ""

    monkeypatch.setattr(deploy, "flwr", answer)
    monkeypatch.setattr(deploy, "_running", lambda _: {})
    return nodes, asked


def test_a_device_has_the_name_it_was_given_until_it_is_revoked(
    folder, flower, capsys, monkeypatch
):
    at = ["--at", str(folder)]
    before = os.umask(0o000)  # the note of the key is for this account all the same
    try:
        assert main(["nodes", "add", line_of_a_device(), "--label", "desk", *at]) == 0
    finally:
        os.umask(before)
    assert main(["nodes", "add", line_of_a_device(), *at]) == 0
    assert main(["nodes", "add", line_of_a_device(), "--label", "desk", *at]) == 2
    assert "another device is called 'desk'" in capsys.readouterr().err
    nodes, _ = flower
    nodes[1] |= {"status": "offline", "offline-at": "2026-11-28 23:10:00Z"}
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert main(["nodes", "list", *at]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        ["node", "label", "state", "last", "seen"],
        ["1", "desk", "not", "seen", "yet", "never"],
        ["2", "-", "offline", "2026-11-28", "23:10"],
    ]
    assert main(["nodes", "revoke", "desk", *at]) == 0
    assert "node 1 is revoked" in capsys.readouterr().out
    # The name is free now; what it names is the new device.
    assert main(["nodes", "add", line_of_a_device(), "--label", "desk", *at]) == 0
    capsys.readouterr()
    assert main(["nodes", "list", *at]) == 0
    said = capsys.readouterr().out
    assert said.count("desk") == 1 and "and 1 revoked, which `nodes list --all`" in said
    assert main(["nodes", "list", "--all", *at]) == 0
    said = capsys.readouterr().out
    assert said.count("desk") == 2 and "--all" not in said
    assert main(["nodes", "revoke", "desk", *at]) == 0
    assert [node["status"] for node in nodes] == [
        *("unregistered", "offline", "unregistered")
    ]
    for word in ("desk", "1", "77", "\x1b[2J"):
        assert main(["nodes", "revoke", word, *at]) == 2
        said = capsys.readouterr().err
        assert "nodes list" in said and "\x1b" not in said
    assert stat.S_IMODE((folder / deploy.LABELS).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("came", "went", "seen"),
    [("1", "2", "2"), ("3", "2", "4"), ("3", "N/A", "4"), ("N/A", "N/A", None)],
)
def test_a_revoked_device_was_seen_last_when_it_was_revoked(came, went, seen):
    ends = {"online-at": came, "offline-at": went, "deleted-at": "4"}
    node = {"status": "unregistered", **ends}
    assert deploy._last_seen(node) == seen


def test_a_device_that_is_let_in_can_be_given_a_label(folder, flower, capsys):
    nodes, _ = flower
    line = line_of_a_device()
    deploy.add_node(folder, line)
    public = serialization.load_ssh_public_key(line.encode())
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    number = state_of(folder).create_node("<none>", "<none>", pem, 0)
    nodes[0]["node-id"] = str(number)
    words = ["nodes", "add", line, "--at", str(folder)]
    assert main(words) == 2
    assert "--label gives it another label" in capsys.readouterr().err
    assert main([*words, "--label", "desk"]) == 0
    assert deploy.labels(folder) == {str(number): "desk"}


def test_an_empty_list_says_how_to_fill_it(folder, flower, capsys):
    assert main(["nodes", "list", "--at", str(folder)]) == 0
    assert "`nodes add` takes the line" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line", ["", "x", "ecdsa-sha2-nistp384 AAAA", "ecdsa-sha2-nistp384", "ssh-rsa AA"]
)
def test_a_line_that_is_no_key_is_refused_before_flower_is_asked(folder, flower, line):
    with pytest.raises(IdiolectError, match="no device's key"):
        deploy.add_node(folder, line)
    assert flower[1] == []


@pytest.mark.parametrize(
    ("revoked", "said"),
    [
        (True, "a revoked key cannot return.*idiolect leave.*node join"),
        (False, "as node"),
    ],
)
def test_a_key_that_was_there_before_is_explained(folder, flower, revoked, said):
    line = line_of_a_device()
    deploy.add_node(folder, line)
    state = state_of(folder)
    public = serialization.load_ssh_public_key(line.encode())
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    number = state.create_node("<none>", "<none>", pem, 0)
    if revoked:
        state.delete_node("<none>", number)
    with pytest.raises(IdiolectError, match=said) as refused:
        deploy.add_node(folder, line)
    assert str(number) in str(refused.value)
    assert list(folder.glob("node.*.pub")) == []


# --- runs that go on -------------------------------------------------------------------


@pytest.fixture
def left(folder, tmp_path):
    """A run that was handed over, and is held by this process."""
    place = tmp_path / "runs" / "left"
    place.mkdir(parents=True)
    deploy._note_handed(folder, place, "4711")
    return place


def test_a_run_is_found_by_its_name_or_as_the_latest(folder, left):
    assert deploy.handed(folder, "left") == deploy.Handed("4711", left)
    assert deploy.handed(folder, "latest").folder == left
    for name in ("right", "../left", "", "\x1b[2J"):
        with pytest.raises(IdiolectError, match="was handed to the server") as refused:
            deploy.handed(folder, name)
        assert "\x1b" not in str(refused.value)


@pytest.mark.parametrize(
    ("signal_", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)]
)
def test_a_command_that_is_ended_says_that_its_run_goes_on(
    folder, left, capsys, monkeypatch, signal_, code
):
    def ended(*_: object) -> None:
        raise signal_

    monkeypatch.setattr(deploy, "attach", ended)
    monkeypatch.setattr("idiolect.server.cli.signal.signal", lambda *_: None)
    at = ["--at", str(folder)]
    with (left / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["attach", "latest", *at]) == code
        said = capsys.readouterr().out
        assert "run left goes on without this command" in said
        for word in ("attach", "stop"):
            assert f"idiolect-server {word} left --at {folder}" in said
    assert main(["attach", "left", *at]) == code  # it has ended meanwhile
    assert "goes on" not in capsys.readouterr().out


def test_a_run_that_has_ended_says_how(folder, left, flower):
    journal = left / "metrics.jsonl"
    with pytest.raises(IdiolectError, match="interrupted.*--resume left"):
        deploy.attach(folder, "left", results.console())
    journal.write_text('{"event": "failed", "message": "the sky fell."}\n')
    with pytest.raises(IdiolectError, match="^the sky fell"):
        deploy.attach(folder, "left", results.console())
    event = {"event": "failed", "message": "it was stopped.", "stopped": True}
    journal.write_text(json.dumps(event) + "\n")
    with pytest.raises(IdiolectError, match="^it was stopped"):
        deploy.attach(folder, "left", results.console())


def test_what_is_shown_begins_with_the_last_start(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert deploy._last_start(file) == 0
    file.write_text('{"event": "start", "pid": 1}\n{"event": "a"}\n')
    size = file.stat().st_size
    assert deploy._last_start(file) == 0
    with file.open("a") as more:
        more.write('{"event": "start", "pid": 2}\n{"event": "b"}\n')
    assert deploy._last_start(file) == size


def test_ctrl_c_waits_until_the_run_is_handed_over():
    done = False
    with pytest.raises(KeyboardInterrupt), deploy._uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        done = True
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# --- renewing --------------------------------------------------------------------------


def test_two_renewals_in_one_second_are_two_backups(folder, monkeypatch):
    when = datetime.datetime.now(datetime.UTC)
    monkeypatch.setattr(deploy, "_now", lambda: when)
    pairs = {(folder / "server.pem").read_bytes()}
    for _ in range(3):
        deploy.keys_renew(folder)
        pairs.add((folder / "server.pem").read_bytes())
    kept = {file.read_bytes() for file in folder.glob("server.before-*.pem")}
    assert kept | {(folder / "server.pem").read_bytes()} == pairs
    assert len(pairs) == 4


def names_in(folder: Path) -> list[str]:
    own = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
    found = own.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [str(name.value) for name in found.value]


def serves(folder: Path) -> None:
    """A device of the first invitation takes the server's certificate."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.pem")
    invitation = json.loads((folder / "invitation.json").read_text())
    client = ssl.create_default_context(cadata=invitation["certificate"])
    pipes = [ssl.MemoryBIO() for _ in range(2)]
    one = client.wrap_bio(pipes[0], pipes[1], server_hostname="lab.example.org")
    two = server.wrap_bio(pipes[1], pipes[0], server_side=True)
    for _ in range(5):
        for side in (one, two):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    assert one.version() is not None and one.getpeercert()


def test_a_renewed_certificate_needs_no_new_invitation(folder):
    kept = ("ca.crt", "ca.key", "invitation.json", "signing.key")
    before = {name: (folder / name).read_bytes() for name in kept}
    old = (folder / "server.pem").read_bytes()
    assert main(["keys", "renew", "--at", str(folder)]) == 0
    assert {name: (folder / name).read_bytes() for name in kept} == before
    new = (folder / "server.pem").read_bytes()
    assert new != old
    assert (
        new.partition(b"-----BEGIN CERT")[0] != old.partition(b"-----BEGIN CERT")[0]
    )  # a new key, too
    assert names_in(folder) == [
        "lab.example.org",
        "192.0.2.7",
        "localhost",
        "127.0.0.1",
    ]
    serves(folder)
    (backup,) = folder.glob("server.before-*.pem")
    assert backup.read_bytes() == old
    for file in (backup, folder / "server.pem"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    left = deploy.certificate_end(folder) - datetime.datetime.now(datetime.UTC)
    assert left.days in (deploy.DAYS - 1, deploy.DAYS)


def test_names_can_be_changed_but_the_invitations_stays(folder):
    deploy.keys_renew(folder, ["new.example.org", "lab.example.org"])
    assert names_in(folder)[:2] == ["new.example.org", "lab.example.org"]
    before = (folder / "server.pem").read_bytes()
    with pytest.raises(IdiolectError, match="the invitation says lab.example.org"):
        deploy.keys_renew(folder, ["new.example.org"])
    with pytest.raises(IdiolectError, match="no host name"):
        deploy.keys_renew(folder, ["lab.example.org", "a b"])
    assert (folder / "server.pem").read_bytes() == before


def test_a_crash_while_renewing_leaves_a_pair_that_matches(folder, monkeypatch):
    """Before and after each change of the disk."""
    steps = itertools.count()
    for stop in range(20):
        done = 0
        real = Path.replace

        def replace(self, target, stop=stop, real=real):
            nonlocal done
            if done == stop:
                raise KeyboardInterrupt
            done += 1
            return real(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace)
            try:
                deploy.keys_renew(folder)
            except KeyboardInterrupt:
                serves(folder)
                next(steps)
                continue
        break
    assert next(steps) == 2  # the backup, then the pair
    serves(folder)


def damage(folder: Path, name: str, how: str) -> None:
    if how == "missing":
        (folder / name).unlink()
    elif how == "half":
        body = (folder / name).read_bytes()
        (folder / name).write_bytes(body[: len(body) // 2])
    else:
        other = folder.parent / "other"
        deploy.keys_init(other, ["lab.example.org"], 9443)
        (folder / name).write_bytes((other / name).read_bytes())


@pytest.mark.parametrize(
    ("name", "how", "sentence"),
    [
        ("ca.key", "missing", "there is no ca.key"),
        ("ca.crt", "missing", "there is no ca.crt"),
        ("ca.key", "half", "can't be read"),
        ("ca.crt", "half", "can't be read"),
        ("ca.key", "other", "do not match"),
        ("server.pem", "half", "say the names"),
        ("invitation.json", "half", "can't be read"),
        ("invitation.json", "missing", "can't be read"),
    ],
)
def test_damaged_keys_are_one_sentence(folder, capsys, name, how, sentence):
    damage(folder, name, how)
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    assert main(["keys", "renew", "--at", str(folder)]) == 2
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


def test_a_damaged_pair_is_mended_by_saying_the_names(folder):
    damage(folder, "server.pem", "half")
    with pytest.raises(IdiolectError, match="keys renew NAME"):
        deploy.serve(folder, "127.0.0.1", 1, print)
    deploy.keys_renew(folder, ["lab.example.org"])
    serves(folder)


def later(monkeypatch, days: float) -> None:
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    monkeypatch.setattr(deploy, "_now", lambda: moment)


def test_an_authority_past_its_time_signs_nothing(folder, monkeypatch):
    later(monkeypatch, 365 * deploy.YEARS + 1)
    with pytest.raises(IdiolectError, match="the authority in .* ended on"):
        deploy.keys_renew(folder)


def test_a_certificate_ends_no_later_than_its_authority(folder, monkeypatch):
    end = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    later(monkeypatch, 365 * deploy.YEARS - 100)
    assert deploy.keys_renew(folder) == end.not_valid_after_utc


@pytest.mark.parametrize(
    ("days", "said"),
    [(0, ""), (deploy.DAYS - 31, ""), (deploy.DAYS - 29, "ends on"), (400, "ended on")],
)
def test_serve_warns_before_the_certificate_ends(folder, monkeypatch, days, said):
    later(monkeypatch, days)
    heard: list[str] = []
    deploy._say_when_it_ends(folder, heard.append)
    assert (said in heard[0] and "keys renew" in heard[0]) if said else heard == []


def test_a_folder_of_an_earlier_version_is_served_and_renewed(folder):
    """Key and certificate were two files."""
    key, mark, own = (folder / "server.pem").read_bytes().partition(b"-----BEGIN CERT")
    (folder / "server.pem").unlink()
    (folder / "server.key").write_bytes(key)
    (folder / "server.crt").write_bytes(mark + own)
    deploy._check_keys(folder)
    assert (folder / "server.pem").read_bytes() == key + mark + own
    (folder / "server.pem").unlink()
    deploy.keys_renew(folder)
    (backup,) = folder.glob("server.before-*.pem")
    assert backup.read_bytes() == key + mark + own
    assert not (folder / "server.key").exists()
    serves(folder)


# --- systemd ---------------------------------------------------------------------------


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
