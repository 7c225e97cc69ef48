import io
import sys
from types import ModuleType

import pytest

from idiolect.client.owner import unlock as module
from idiolect.client.owner.keys import Passphrase
from idiolect.client.owner.unlock import (
    forget_keyring_entry,
    new_keyring_entry,
    new_passphrase,
    unlock,
)
from idiolect.client.owner.vault import Vault
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
    assert new_passphrase(file, weak=True) == Passphrase("open sesame")
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
    one, apart = "seven öld boots, one hat", "seven o\u0308ld boots, one hat"
    answers = iter([one, apart, one, "another", "one", "old"])
    monkeypatch.setattr(module.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(module.getpass, "getpass", lambda question: next(answers))
    assert new_passphrase() == Passphrase(one)
    with pytest.raises(IdiolectError, match="differ"):
        new_passphrase()
    with pytest.raises(IdiolectError, match="--weak"):
        new_passphrase()
    assert unlock(path) == Passphrase("old")  # what opens a vault is not judged


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
    note = path.with_name("vault.db.keyring")
    assert secret not in note.read_text() and note.stat().st_mode & 0o077 == 0
    Vault.open(path, unlock(path)).close()
    kept.clear()
    with pytest.raises(IdiolectError, match="has no entry"):
        unlock(path)


def test_forgetting_the_entry_leaves_nothing_to_open_with(path, monkeypatch):
    kept = fake_keyring(monkeypatch)
    new_keyring_entry(path)
    forget_keyring_entry(path)
    forget_keyring_entry(path)
    assert not kept and not path.with_name("vault.db.keyring").exists()


@pytest.mark.parametrize(
    "place", ["keyring.backends.fail", "keyring.backends.null", "keyrings.alt.file"]
)
def test_a_keyring_that_protects_nothing_is_refused(path, monkeypatch, place):
    weak = type("Keyring", (), {"__module__": place})
    kept = fake_keyring(monkeypatch, weak)
    with pytest.raises(IdiolectError, match="protects nothing"):
        new_keyring_entry(path)
    assert not kept and not path.with_name("vault.db.keyring").exists()


def test_a_missing_keyring_package_is_named(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(IdiolectError, match=r"idiolect\[keyring\]"):
        new_keyring_entry(path)


def test_two_vaults_of_one_stem_keep_their_own_entries(tmp_path, monkeypatch):
    kept = fake_keyring(monkeypatch)
    one, other, plain = (tmp_path / name for name in ("a.db", "a.bak", "a.old"))
    for vault in (one, other):
        Vault.create(vault, new_keyring_entry(vault)).close()
    for vault in (one, other):
        Vault.open(vault, unlock(vault)).close()
    forget_keyring_entry(plain)
    forget_keyring_entry(other)
    assert len(kept) == 1
    # Version 1 named the note by the stem, and only the vault itself is found by that.
    (tmp_path / "a.db.keyring").rename(tmp_path / "a.keyring")
    forget_keyring_entry(plain)
    forget_keyring_entry(other)
    Vault.open(one, unlock(one)).close()
    forget_keyring_entry(one)
    assert not kept and not list(tmp_path.glob("*.keyring"))


def test_a_keyring_that_refuses_is_named(path, monkeypatch):
    fake_keyring(monkeypatch)
    new_keyring_entry(path)

    def locked(*_):
        raise RuntimeError("it is locked")

    for name in ("get_password", "delete_password"):
        monkeypatch.setattr(sys.modules["keyring"], name, locked)
    for attempt in (unlock, forget_keyring_entry):
        with pytest.raises(
            IdiolectError, match=r"refuses \(RuntimeError: it is locked"
        ):
            attempt(path)
    assert path.with_name("vault.db.keyring").exists()


def test_a_key_that_is_gone_from_the_keyring_does_not_stop_forgetting(
    path, monkeypatch
):
    kept = fake_keyring(monkeypatch)
    new_keyring_entry(path)
    kept.clear()
    forget_keyring_entry(path)
    assert not path.with_name("vault.db.keyring").exists()


@pytest.mark.parametrize(
    "raw",
    [
        "größe zählt nicht".encode(),
        "\ufeffgröße zählt nicht\r\nand more\r\n".encode(),
        "gro\u0308ße za\u0308hlt nicht\n".encode(),
    ],
)
def test_one_passphrase_however_an_editor_saved_it(tmp_path, path, raw):
    Vault.create(path, Passphrase("größe zählt nicht")).close()
    (tmp_path / "secret").write_bytes(raw)
    Vault.open(path, unlock(path, tmp_path / "secret")).close()


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-be", "utf-32", "latin-1"])
def test_a_passphrase_file_that_is_not_utf_8_says_so(tmp_path, path, coding):
    mark = "\ufeff" if coding.endswith("be") else ""
    (tmp_path / "secret").write_bytes(f"{mark}größe zählt".encode(coding))
    with pytest.raises(IdiolectError, match="UTF-16 text|cannot be read"):
        unlock(path, tmp_path / "secret")
    (tmp_path / "secret").write_bytes("plain words here".encode("utf-16-le"))
    with pytest.raises(IdiolectError, match="control characters"):
        new_passphrase(tmp_path / "secret")


def test_a_file_that_is_not_there_is_named_once(path, tmp_path):
    with pytest.raises(IdiolectError) as found:
        unlock(path, tmp_path / "none")
    said = str(found.value)
    assert said.count("none") == 1 and "Errno" not in said
    assert "(No such file or directory)" in said


WEAK = (
    *(
        "a",
        "hunter2",
        "correcthors",
        "aaaaaaaaaaaaaaaa",
        "abcabcabcabcabc",
        "12345678901234",
    ),
    *(
        "password1234",
        "Passwort!2024",
        "PASSPHRASE 0",
        "passwordpassword!",
        "qwertyuiop12",
    ),
    *(
        "abcdefghijklmnop",
        "zyxwvutsrqponm",
        "correct horse battery staple",
        "ababababcdcd",
    ),
    *("idiolect idiolect", "密码密码", " " * 20, "1111111122222222"),
)
STRONG = (
    *("schöne Wiese", "four green old boots", "hV8#kq2!xLw9", "tubular-otter-seven"),
    *("蓝天白云绿草", "я люблю борщ с хлебом"),
)


@pytest.mark.parametrize("text", WEAK)
def test_what_is_guessed_first_is_no_new_passphrase(tmp_path, text):
    (tmp_path / "secret").write_text(text)
    with pytest.raises(IdiolectError, match=r"12 characters or more.*--weak"):
        new_passphrase(tmp_path / "secret")
    assert new_passphrase(tmp_path / "secret", weak=True) == Passphrase(text)


@pytest.mark.parametrize("text", STRONG)
def test_others_are_taken(tmp_path, text):
    (tmp_path / "secret").write_text(text)
    assert new_passphrase(tmp_path / "secret") == Passphrase(text)
