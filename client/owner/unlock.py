"""Where a vault's key comes from: a passphrase, a file that holds one, or the keyring.

A passphrase that a person types protects the vault from anyone who copies the disk. A file
(systemd passes credentials as files) lets a device start without a person, and protects
only as well as the file is protected. A keyring protects as well as the system behind it.
"""

import contextlib
import getpass
import importlib
import os
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...common.errors import IdiolectError, explained, pip_install, refuse_if
from ...common.files import write_atomically
from .keys import Key, Passphrase, RandomKey

FILE = "IDIOLECT_PASSPHRASE_FILE"
CREDENTIAL = "idiolect-passphrase"  # name in systemd's LoadCredential=
SERVICE = "idiolect"
LEAST, DIFFERENT = 12, 6  # characters of a new passphrase, and how many of them differ
LONGEST = 1 << 16  # bytes of a passphrase file that are looked at
# Guessed first; each counts as one character, as do runs like 3456 or aaaa.
COMMONEST = (
    *("correct horse battery staple", "correcthorsebatterystaple", "idiolect"),
    *(
        "password",
        "passw0rd",
        "p@ssw0rd",
        "passphrase",
        "passwort",
        "kennwort",
        "geheim",
    ),
    *(
        "motdepasse",
        "contraseña",
        "wachtwoord",
        "secret",
        "default",
        "changeme",
        "admin",
    ),
    *(
        "qwertyuiop",
        "qwertzuiop",
        "azertyuiop",
        "qwerty",
        "qwertz",
        "azerty",
        "1q2w3e4r",
    ),
    *("asdfghjkl", "asdfgh", "zxcvbnm", "yxcvbnm", "iloveyou", "letmein", "welcome"),
    *("sunshine", "princess", "football", "baseball", "monkey", "dragon", "trustno1"),
)


def unlock(vault: Path, file: Path | None = None) -> Key:
    """Return the key of an existing vault, from the first place that has one.

    A file that is named (`file`, or $IDIOLECT_PASSPHRASE_FILE, or a systemd credential),
    the keyring if the vault was made with it, or the owner at the terminal.

    Raises
    ------
    IdiolectError
        There is no key; the error says where one could come from.
    """
    file = file or _named_file()
    if file:
        return Passphrase(_read(file))
    if not (note := _entry(vault)).exists():
        return Passphrase(_ask("passphrase of the vault: "))
    name = note.read_text()
    with _keyring() as keyring:
        secret = keyring.get_password(SERVICE, name)
    refuse_if(
        not secret,
        f"the keyring has no entry '{SERVICE}', '{name}': unlock the keyring of the "
        "user who made the vault. Without that entry the vault cannot be opened.",
    )
    return RandomKey(bytes.fromhex(secret))


def new_passphrase(
    file: Path | None = None, weak: bool = False, other: bool = False
) -> Key:
    """Return a new passphrase, asked twice at a terminal.

    Parameters
    ----------
    file
        Its first line is it; None: the file that the environment names, or asked for.
    weak
        Take one that is easy to guess.
    other
        It replaces one; the file that the environment names holds the old one.

    Raises
    ------
    IdiolectError
        It is too easy to guess, and not said to be `weak` on purpose.
    """
    file = file if file or other else _named_file()
    refuse_if(
        other and not file and not sys.stdin.isatty(),
        "a new passphrase is asked for at a terminal, and this is not one: name a file "
        "with it by --new-passphrase-file.",
    )
    rule = "" if weak else f" ({LEAST} characters or more)"
    first = _read(file) if file else _ask(f"new passphrase{rule}: ")
    if not weak:
        check_strength(first)
    refuse_if(
        not file and _composed(_ask("the same again: ")) != _composed(first),
        "the two passphrases differ: try again.",
    )
    return Passphrase(first)


def check_strength(text: str) -> None:
    """Refuse a passphrase that anyone who copies the vault would soon guess.

    Argon2id makes every guess cost a tenth of a second and 64 MiB; that protects what is
    not among the first millions of guesses. A lower bound, not a proof of strength.

    Raises
    ------
    IdiolectError
        It is short, repeats itself, counts up or down, or is among the commonest.
    """
    counted = _counted(_composed(text).casefold())
    control = any(unicodedata.category(character) == "Cc" for character in text)
    few = _weight("".join(set(counted))) < DIFFERENT
    for wrong, said in (
        (control, "holds control characters, which nobody can type"),
        (_weight(counted) < LEAST, "is too short, or made of what is guessed first"),
        (few, "repeats a few characters"),
    ):
        refuse_if(
            wrong,
            f"the passphrase {said}: use {LEAST} characters or more, best four or "
            "five words that are unrelated, or --weak to use this one anyway.",
        )


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _counted(text: str) -> str:
    """The part of a text that is hard to guess: without repetitions, common words, runs."""
    for period in range(1, len(text) // 2 + 1):
        if all(text[at] == text[at % period] for at in range(len(text))):
            text = text[:period]
            break
    for common in COMMONEST:
        text = text.replace(common, common[0])
    kept = text[:2]
    for one, two, three in zip(text, text[1:], text[2:], strict=False):
        step = ord(three) - ord(two)
        if not (step == ord(two) - ord(one) and abs(step) <= 1):
            kept += three
    return kept


def _weight(text: str) -> int:
    """Characters; one of a script with thousands of them counts twice."""
    return sum(1 + (unicodedata.east_asian_width(one) in "WF") for one in text)


def new_keyring_entry(vault: Path) -> Key:
    """Put a random key into the keyring, and note beside the vault where it is."""
    secret, name = os.urandom(32), f"vault {os.urandom(8).hex()}"
    with _keyring() as keyring:
        keyring.set_password(SERVICE, name, secret.hex())
    write_atomically(vault.with_name(f"{vault.name}.keyring"), name.encode())
    return RandomKey(secret)


def forget_keyring_entry(vault: Path) -> None:
    """Take the vault's key out of the keyring, where it has one there."""
    note = _entry(vault)
    if note.exists():
        name = note.read_text()
        with _keyring() as keyring:
            if keyring.get_password(SERVICE, name) is not None:
                keyring.delete_password(SERVICE, name)
        note.unlink()


def _entry(vault: Path) -> Path:
    """The note beside a vault that says where in the keyring its key is.

    Version 1 named it by the vault's stem, which two vaults can share: it is taken for
    this one's only if it can be no other's.
    """
    own = vault.with_name(f"{vault.name}.keyring")
    older = vault.with_suffix(".keyring")
    if own.exists() or not older.exists():
        return own
    others = [
        one
        for one in vault.parent.glob("*")
        if one.stem == vault.stem
        and one not in (vault, older)
        and "-" not in one.suffix
    ]
    return own if others and vault.suffix != ".db" else older


def _named_file() -> Path | None:
    if named := os.environ.get(FILE):
        return Path(named)
    credential = Path(os.environ.get("CREDENTIALS_DIRECTORY", "")) / CREDENTIAL
    return credential if credential.is_absolute() and credential.exists() else None


def _read(file: Path) -> str:
    what = f"the passphrase file {file} cannot be read"
    with explained(what, "name another one", (OSError, UnicodeDecodeError)):
        with file.open("rb") as stream:
            raw = stream.read(LONGEST)
        refuse_if(
            raw.startswith((b"\xff\xfe", b"\xfe\xff")),
            f"the passphrase file {file} is UTF-16 text: save it as UTF-8.",
        )
        lines = raw.decode("utf-8-sig").splitlines()
    refuse_if(
        not lines or not lines[0],
        f"the passphrase file {file} is empty: its first line is the passphrase.",
    )
    return lines[0]


def _ask(question: str) -> str:
    """Ask at the terminal, which shows nothing of the answer.

    Before this, nothing may be loaded that takes long: until `getpass` has the terminal,
    it shows what is typed.
    """
    refuse_if(
        not sys.stdin.isatty(),
        "the vault is locked and there is no terminal to ask at: name a file with the "
        f"passphrase by --passphrase-file or ${FILE}.",
    )
    try:
        text = getpass.getpass(question)
    except EOFError:
        text = ""
    except UnicodeDecodeError:
        raise IdiolectError(
            "what was typed is not text in this terminal's encoding: set the terminal to "
            f"UTF-8, or name a file with the passphrase by --passphrase-file or ${FILE}."
        ) from None
    refuse_if(not text, "no passphrase was typed: start the command again.")
    return text


@contextlib.contextmanager
def _keyring() -> Iterator[Any]:
    """The system's keyring, if it is one that protects; what it raises gets a sentence.

    Raises
    ------
    IdiolectError
        The package is missing, what it found keeps secrets in clear or not at all, or it
        refuses.
    """
    try:
        keyring = importlib.import_module("keyring")
    except ImportError:
        raise IdiolectError(
            "the package `keyring` is missing: "
            f"`{pip_install('idiolect[keyring]')}`, or use a passphrase."
        ) from None
    found = keyring.get_keyring()
    name = f"{type(found).__module__}.{type(found).__qualname__}"
    weak = ("keyring.backends.fail", "keyring.backends.null", "keyrings.alt.file")
    refuse_if(
        name.startswith(weak),
        f"this system's keyring is {name}, which protects nothing: use a passphrase.",
    )
    try:
        yield keyring
    except Exception as error:  # each backend has its own
        raise IdiolectError(
            f"the system's keyring refuses ({type(error).__name__}: {error}): unlock it "
            "and try again."
        ) from error
