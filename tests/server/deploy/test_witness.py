"""The key of a witness, whom it signs for, and what the operator writes of it."""

import json
import stat

import pytest

from idiolect.client.node import membership
from idiolect.client.owner.keys import RandomKey
from idiolect.client.owner.vault import Vault
from idiolect.common.errors import IdiolectError
from idiolect.server.cli import main
from idiolect.server.deploy import keys
from idiolect.server.deploy.serve import Serving, environment_of
from idiolect.server.deploy.witness import vouch_for, witness_key
from idiolect.server.run.live import WITNESS


@pytest.fixture
def device(tmp_path):
    with Vault.create(tmp_path / "vault.db", RandomKey(bytes(32))) as made:
        yield made


@pytest.fixture
def file(tmp_path):
    """The private key of a witness."""
    made = tmp_path / "witness" / "witness.key"
    witness_key(made)
    return made


def test_a_device_takes_what_the_witness_of_its_invitation_signs(folder, file, device):
    invitation = keys.name_witness(folder, witness_key(file))
    membership.join(device, membership.read_invitation(invitation))
    said = vouch_for(file, invitation, membership.public_line(device))
    membership.keep_voucher(device, said)
    assert device.noted("voucher") == said


def test_the_key_of_a_witness_is_for_its_account_alone(file):
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text().splitlines()[1] == witness_key(file)


def test_a_witness_signs_for_no_invitation_that_does_not_name_it(folder, file, device):
    line = membership.public_line(device)
    for named in ("", "ab" * 32):
        invitation = keys.name_witness(folder, named)
        with pytest.raises(IdiolectError, match="does not name this witness"):
            vouch_for(file, invitation, line)


def test_a_witness_without_a_key_makes_none_by_signing(folder, tmp_path, device):
    line = membership.public_line(device)
    with pytest.raises(IdiolectError, match="witness key` makes one"):
        vouch_for(tmp_path / "none.key", folder / keys.INVITATION, line)
    assert not (tmp_path / "none.key").exists()


@pytest.mark.parametrize(
    "line", ["", "x", "ssh-ed25519 AAAA", "ecdsa-sha2-nistp384 AAAA"]
)
def test_what_is_no_key_of_a_device_is_not_signed(folder, file, line):
    invitation = keys.name_witness(folder, witness_key(file))
    with pytest.raises(IdiolectError, match="not the key of a device"):
        vouch_for(file, invitation, line)


@pytest.mark.parametrize("witness", ["ab", "G" * 64, "AB" * 32, "ab" * 33, " " * 64])
def test_what_is_no_key_of_a_witness_is_not_named(folder, witness):
    before = (folder / keys.INVITATION).read_text()
    with pytest.raises(IdiolectError, match="not the key of a witness"):
        keys.name_witness(folder, witness)
    assert (folder / keys.INVITATION).read_text() == before


@pytest.mark.parametrize("text", ["", "[]", "5", '{"witness": 5}', "{"])
def test_a_damaged_invitation_is_one_sentence(folder, text):
    (folder / keys.INVITATION).write_text(text)
    with pytest.raises(IdiolectError, match="put it back"):
        keys.name_witness(folder, "ab" * 32)


def test_a_server_tells_its_runs_who_the_witness_is(folder):
    now = Serving(mark="mark", port=1)
    assert environment_of(folder, now)[WITNESS] == ""
    keys.name_witness(folder, "ab" * 32)
    assert environment_of(folder, now)[WITNESS] == "ab" * 32
    keys.name_witness(folder, "")
    assert "witness" not in json.loads((folder / keys.INVITATION).read_text())


def test_the_commands(folder, tmp_path, capsys):
    mine = str(tmp_path / "mine.key")
    assert main(["witness", "key", "--key-file", mine]) == 0
    digits = capsys.readouterr().out.splitlines()[0]
    assert main(["keys", "witness", digits, "--at", str(folder)]) == 0
    assert "give it to every device" in capsys.readouterr().out
    line = "ecdsa-sha2-nistp384 AAAA"
    where = str(folder / keys.INVITATION)
    assert main(["witness", "vouch", where, line, "--key-file", mine]) == 2
    assert "not the key of a device" in capsys.readouterr().err
