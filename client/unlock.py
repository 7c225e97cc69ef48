"""Where a vault's key comes from: a passphrase, a file that holds one, or the keyring.

A passphrase that a person types protects the vault from whoever copies the disk. A file
(systemd hands out credentials as files) lets a device start by itself, and protects no
better than the file is protected. A keyring does as well as the system that keeps it.
"""

import getpass
import importlib
import os
import sys
from pathlib import Path
from typing import Any

from ..common.errors import IdiolectError
from .vault import Key, Passphrase, RandomKey

FILE = "IDIOLECT_PASSPHRASE_FILE"
CREDENTIAL = "idiolect-passphrase"  # name in systemd's LoadCredential=
SERVICE = "idiolect"


def unlock(vault: Path, file: Path | None = None) -> Key:
    """Return the key of an existing vault, from the first place that has one.

    A file that is named (`file`, or $IDIOLECT_PASSPHRASE_FILE, or a systemd credential),
    the keyring if the vault was made with it, or the owner at the terminal.

    Raises
    ------
    IdiolectError
        There is no key to be had; says where one could come from.
    """
    file = file or _named_file()
    if file:
        return Passphrase(_read(file))
    if _entry(vault).exists():
        return _from_keyring(_entry(vault).read_text())
    return Passphrase(_ask("passphrase of the vault: "))


def new_passphrase(file: Path | None = None) -> Key:
    """Return the passphrase for a new vault, asked twice at a terminal."""
    file = file or _named_file()
    if file:
        return Passphrase(_read(file))
    first = _ask("new passphrase: ")
    if _ask("the same again: ") != first:
        raise IdiolectError("the two passphrases differ: try again.")
    return Passphrase(first)


def new_keyring_entry(vault: Path) -> Key:
    """Put a random key into the keyring, and note beside the vault where it is."""
    secret, name = os.urandom(32), f"vault {os.urandom(8).hex()}"
    _keyring().set_password(SERVICE, name, secret.hex())
    _entry(vault).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _entry(vault).write_text(name)
    return RandomKey(secret)


def forget_keyring_entry(vault: Path) -> None:
    """Take the vault's key out of the keyring, where it has one there."""
    if _entry(vault).exists():
        _keyring().delete_password(SERVICE, _entry(vault).read_text())
        _entry(vault).unlink()


def _entry(vault: Path) -> Path:
    return vault.with_suffix(".keyring")


def _named_file() -> Path | None:
    if named := os.environ.get(FILE):
        return Path(named)
    credential = Path(os.environ.get("CREDENTIALS_DIRECTORY", "")) / CREDENTIAL
    return credential if credential.is_absolute() and credential.exists() else None


def _read(file: Path) -> str:
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise IdiolectError(
            f"the passphrase file {file} cannot be read ({error}): name another one."
        ) from error
    if not lines or not lines[0]:
        raise IdiolectError(
            f"the passphrase file {file} is empty: its first line is the passphrase."
        )
    return lines[0]


def _ask(question: str) -> str:
    if not sys.stdin.isatty():
        raise IdiolectError(
            "the vault is locked and nobody is at a terminal: name a file with the "
            f"passphrase by --passphrase-file or ${FILE}."
        )
    return getpass.getpass(question)


def _from_keyring(name: str) -> Key:
    secret = _keyring().get_password(SERVICE, name)
    if not secret:
        raise IdiolectError(
            f"the keyring has no entry '{SERVICE}', '{name}': unlock the keyring of the "
            "user who made the vault. Without that entry the vault cannot be opened."
        )
    return RandomKey(bytes.fromhex(secret))


def _keyring() -> Any:
    """The system's keyring, if it is one that protects.

    Raises
    ------
    IdiolectError
        The package is missing, or what it found keeps secrets in clear or not at all.
    """
    try:
        keyring = importlib.import_module("keyring")
    except ImportError:
        raise IdiolectError(
            "the package `keyring` is missing: `pip install 'idiolect[keyring]'`, or "
            "use a passphrase."
        ) from None
    found = keyring.get_keyring()
    name = f"{type(found).__module__}.{type(found).__qualname__}"
    weak = ("keyring.backends.fail", "keyring.backends.null", "keyrings.alt.file")
    if name.startswith(weak):
        raise IdiolectError(
            f"this system's keyring is {name}, which protects nothing: use a passphrase."
        )
    return keyring
