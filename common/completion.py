"""Completion of a command line by a shell: a script without any of our code in it."""

import argparse
from pathlib import Path
from typing import Any

from .errors import IdiolectError, pip_install


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """What a shell runs to complete a command.

    It knows the commands, their options and the words that these take; where a path is
    taken, it completes names of files. To complete, nothing of idiolect is started.

    Parameters
    ----------
    parser
        Of the command.
    shell
        ``bash`` or ``zsh``.

    Raises
    ------
    IdiolectError
        The package shtab is not there.
    """
    try:
        import shtab
    except ModuleNotFoundError:
        raise IdiolectError(f"this needs shtab: `{pip_install('shtab')}`.") from None
    _mark_paths(parser, shtab.FILE)
    return shtab.complete(parser, shell)


def _mark_paths(parser: argparse.ArgumentParser, how: Any) -> None:
    """Say of each argument that is a path how it is completed."""
    for action in parser._actions:
        if action.type is Path:
            action.complete = how  # type: ignore[attr-defined]  (shtab looks for it)
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                _mark_paths(one, how)
