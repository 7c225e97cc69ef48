"""The keys: what is made, renewed, and what is refused."""

import contextlib
import datetime
import itertools
import json
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from idiolect.client.node.membership import read_invitation
from idiolect.common.errors import IdiolectError
from idiolect.common.protocol.manifest import public_key, read_or_make_key
from idiolect.server.cli import main
from idiolect.server.deploy import keys, serve

APP = Path(__file__).resolve().parents[3] / "simulations" / "lamp"


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
        keys.keys_init(folder, ["other"], 1)
    assert (folder / "ca.key").read_bytes() == before


@pytest.mark.parametrize("name", ["", "a b/", "http://x", "a:9"])
def test_a_name_that_is_none_is_refused(tmp_path, name):
    with pytest.raises(IdiolectError, match="not a host name or an address"):
        keys.keys_init(tmp_path / "s", [name], 9443)


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
    with pytest.raises(IdiolectError, match="is not an invitation"):
        read_invitation(file)


@pytest.mark.parametrize("port", [0, -1, 65536, 99999])
def test_a_port_that_is_none_is_refused(tmp_path, port):
    with pytest.raises(IdiolectError, match=f"{port} is not a port"):
        keys.keys_init(tmp_path / "s", ["lab.example.org"], port)
    assert not (tmp_path / "s").exists()


def test_two_renewals_in_one_second_are_two_backups(folder, monkeypatch):
    when = datetime.datetime.now(datetime.UTC)
    monkeypatch.setattr(keys, "now", lambda: when)
    pairs = {(folder / "server.pem").read_bytes()}
    for _ in range(3):
        keys.keys_renew(folder)
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
    left = keys.certificate_end(folder) - datetime.datetime.now(datetime.UTC)
    assert left.days in (keys.DAYS - 1, keys.DAYS)


def test_names_can_be_changed_but_the_invitations_stays(folder):
    keys.keys_renew(folder, ["new.example.org", "lab.example.org"])
    assert names_in(folder)[:2] == ["new.example.org", "lab.example.org"]
    before = (folder / "server.pem").read_bytes()
    with pytest.raises(IdiolectError, match="as the invitation says"):
        keys.keys_renew(folder, ["new.example.org"])
    with pytest.raises(IdiolectError, match="not a host name"):
        keys.keys_renew(folder, ["lab.example.org", "a b"])
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
                keys.keys_renew(folder)
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
        keys.keys_init(other, ["lab.example.org"], 9443)
        (folder / name).write_bytes((other / name).read_bytes())


@pytest.mark.parametrize(
    ("name", "how", "sentence"),
    [
        ("ca.key", "missing", "there is no ca.key"),
        ("ca.crt", "missing", "there is no ca.crt"),
        ("ca.key", "half", "can't be read"),
        ("ca.crt", "half", "can't be read"),
        ("ca.key", "other", "do not match"),
        ("server.pem", "half", "give the names"),
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
        serve.serve(folder, "127.0.0.1", 1, print)
    keys.keys_renew(folder, ["lab.example.org"])
    serves(folder)


def later(monkeypatch, days: float) -> None:
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    monkeypatch.setattr(keys, "now", lambda: moment)


def test_an_authority_past_its_time_signs_nothing(folder, monkeypatch):
    later(monkeypatch, 365 * keys.YEARS + 1)
    with pytest.raises(IdiolectError, match="the authority in .* ended on"):
        keys.keys_renew(folder)


def test_a_certificate_ends_no_later_than_its_authority(folder, monkeypatch):
    end = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    later(monkeypatch, 365 * keys.YEARS - 100)
    assert keys.keys_renew(folder) == end.not_valid_after_utc


def test_a_folder_of_an_earlier_version_is_served_and_renewed(folder):
    """Key and certificate were two files."""
    key, mark, own = (folder / "server.pem").read_bytes().partition(b"-----BEGIN CERT")
    (folder / "server.pem").unlink()
    (folder / "server.key").write_bytes(key)
    (folder / "server.crt").write_bytes(mark + own)
    keys.check_keys(folder)
    assert (folder / "server.pem").read_bytes() == key + mark + own
    (folder / "server.pem").unlink()
    keys.keys_renew(folder)
    (backup,) = folder.glob("server.before-*.pem")
    assert backup.read_bytes() == key + mark + own
    assert not (folder / "server.key").exists()
    serves(folder)
