"""Keys, and what is checked before a server of devices is started or used."""

import json
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from idiolect.client.node import read_invitation
from idiolect.common.errors import IdiolectError
from idiolect.common.manifest import public_key, read_or_make_key
from idiolect.server import deploy
from idiolect.server.cli import main

APP = Path(__file__).resolve().parents[2] / "simulations" / "lamp"


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
