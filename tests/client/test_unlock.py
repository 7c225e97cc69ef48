import io
import sys
from types import ModuleType

import pytest

from idiolect.client import unlock as module
from idiolect.client.unlock import (
    forget_keyring_entry,
    new_keyring_entry,
    new_passphrase,
    unlock,
)
from idiolect.client.vault import Passphrase, Vault
from idiolect.common.errors import IdiolectError


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    monkeypatch.delenv(module.FILE, raising=False)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "vault.db"


def test_a_file_gives_its_first_line(tmp_path, path, monkeypatch):
    file = tmp_path / "secret"
    file.write_text("open sesame\nand more\n")
    assert unlock(path, file) == Passphrase("open sesame")
    assert new_passphrase(file) == Passphrase("open sesame")
    monkeypatch.setenv(module.FILE, str(file))
    assert unlock(path) == Passphrase("open sesame")


def test_a_credential_of_systemd(tmp_path, path, monkeypatch):
    (tmp_path / module.CREDENTIAL).write_text("from systemd\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert unlock(path) == Passphrase("from systemd")


def test_a_bad_passphrase_file_is_named(tmp_path, path):
    (tmp_path / "empty").write_text("\n")
    for name in ("empty", "missing"):
        with pytest.raises(IdiolectError, match=f"{name} (is empty|cannot be read)"):
            unlock(path, tmp_path / name)


def test_without_a_terminal_nobody_is_asked(path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(IdiolectError, match="--passphrase-file"):
        unlock(path)


def test_at_a_terminal_the_owner_is_asked_twice_for_a_new_one(path, monkeypatch):
    answers = iter(["one", "one", "one", "another", "one"])
    monkeypatch.setattr(module.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(module.getpass, "getpass", lambda question: next(answers))
    assert new_passphrase() == Passphrase("one")
    with pytest.raises(IdiolectError, match="differ"):
        new_passphrase()
    assert unlock(path) == Passphrase("one")


class Backend:
    """A keyring that protects, as far as its name says."""


def fake_keyring(monkeypatch, backend: type = Backend) -> dict:
    kept: dict = {}
    fake = ModuleType("keyring")
    vars(fake).update(
        get_keyring=backend,
        set_password=lambda service, name, text: kept.update({(service, name): text}),
        get_password=lambda service, name: kept.get((service, name)),
        delete_password=lambda service, name: kept.pop((service, name)),
    )
    monkeypatch.setitem(sys.modules, "keyring", fake)
    return kept


def test_the_keyring_keeps_the_key_and_the_file_beside_does_not(path, monkeypatch):
    kept = fake_keyring(monkeypatch)
    Vault.create(path, new_keyring_entry(path)).close()
    (secret,) = kept.values()
    assert len(bytes.fromhex(secret)) == 32
    assert secret not in path.with_suffix(".keyring").read_text()
    Vault.open(path, unlock(path)).close()
    kept.clear()
    with pytest.raises(IdiolectError, match="has no entry"):
        unlock(path)


def test_forgetting_the_entry_leaves_nothing_to_open_with(path, monkeypatch):
    kept = fake_keyring(monkeypatch)
    new_keyring_entry(path)
    forget_keyring_entry(path)
    forget_keyring_entry(path)
    assert not kept and not path.with_suffix(".keyring").exists()


@pytest.mark.parametrize(
    "place", ["keyring.backends.fail", "keyring.backends.null", "keyrings.alt.file"]
)
def test_a_keyring_that_protects_nothing_is_refused(path, monkeypatch, place):
    weak = type("Keyring", (), {"__module__": place})
    kept = fake_keyring(monkeypatch, weak)
    with pytest.raises(IdiolectError, match="protects nothing"):
        new_keyring_entry(path)
    assert not kept and not path.with_suffix(".keyring").exists()


def test_a_missing_keyring_package_is_named(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(IdiolectError, match=r"idiolect\[keyring\]"):
        new_keyring_entry(path)
