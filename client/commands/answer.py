"""What a command prints, and how it opens the vault and asks its owner."""

import argparse
import sys
from dataclasses import dataclass
from typing import Any

from ...common.errors import IdiolectError, refuse_if
from ...common.text import tell, tell_json, tell_sentence
from ..owner import unlock
from ..owner.database import is_there
from ..owner.history import LONGEST
from ..owner.keys import Key
from ..owner.vault import Vault

ASK = "-"  # as a value: read it from standard input, or ask at the terminal


@dataclass(frozen=True)
class Answer:
    """The result of a command.

    Attributes
    ----------
    found
        What ``--json`` prints.
    text
        What is printed otherwise.
    code
        Exit code.
    exact
        The text is to be copied, so no line end is put into it.
    """

    found: Any
    text: str
    code: int = 0
    exact: bool = False

    def show(self, options: argparse.Namespace) -> int:
        """Print it; returns the exit code."""
        if options.json:
            tell_json(self.found)
        else:
            (tell if self.exact else tell_sentence)(self.text)
        return self.code


def opened(options: argparse.Namespace, trusting: bool = False) -> Vault:
    """Open the vault that a command line names (`Vault.open`)."""
    return Vault.open(options.vault, key_of(options), trusting)


def key_of(options: argparse.Namespace) -> Key:
    """The key of the vault that a command line names (`unlock.unlock`)."""
    refuse_if(
        not is_there(options.vault),
        f"there is no vault at {options.vault}: make one by `idiolect vault init`.",
    )
    return unlock.unlock(options.vault, options.passphrase_file)


def private(given: str | None, what: str, rest: bool = True) -> str:
    """Return private text from where no other user of the machine can read it.

    Everyone on a machine can read the command lines of its processes while they run, and
    the shell keeps them. So text is read from standard input; at a terminal it is asked
    for, one line. Text that was given as an argument is taken, with a warning.

    Parameters
    ----------
    given
        The argument of the command line; None or `ASK`: read it.
    what
        What it is called.
    rest
        Take all that is left of standard input, or only its next line.
    """
    if given not in (None, ASK):
        if given:
            tell_sentence(
                f"warning: the {what} is on the command line, where other users of this "
                f"machine can read it and the shell keeps it: give '{ASK}' instead.",
                sys.stderr,
            )
        return given
    if sys.stdin.isatty():
        tell(f"{what} (one line):", sys.stderr)
        rest = False
    try:
        text = sys.stdin.read(LONGEST + 1) if rest else sys.stdin.readline(LONGEST + 1)
    except UnicodeDecodeError:
        raise IdiolectError(
            f"the {what} is not UTF-8 text: save it as UTF-8."
        ) from None
    refuse_if(
        len(text) > LONGEST,
        f"the {what} has more than {LONGEST} characters: give a shorter one.",
    )
    refuse_if(not text.strip(), f"there is no {what} on standard input: write one.")
    return text.strip("\r\n")


def sure(options: argparse.Namespace, what: str) -> None:
    """Ask whether to go on, unless ``--yes`` was given.

    Raises
    ------
    IdiolectError
        The answer was not 'yes', or nobody can be asked.
    """
    if options.yes:
        return
    refuse_if(not sys.stdin.isatty(), f"{what}: confirm with --yes.")
    try:
        said = input(f"{what}. Go on (yes/no)? ")
    except EOFError:
        said = ""
    refuse_if(
        said.strip() != "yes", "nothing was done, since the answer was not 'yes'."
    )
