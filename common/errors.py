"""The exceptions whose sentence a user of idiolect reads."""

import contextlib
import shlex
import sys
from collections.abc import Iterator
from typing import TypeVar

Some = TypeVar("Some")


class IdiolectError(Exception):
    """Something the user can put right: one clear sentence, and the next step.

    Commands print the sentence without a traceback and exit non-zero. Every other
    exception is a defect of idiolect and keeps its traceback.
    """


class Impossible(IdiolectError):
    """A job that would fail as it is configured: a forecast ends it before it begins."""


def pip_install(*words: str) -> str:
    """Return the command that installs into the environment which computes here.

    A plain ``pip`` may be that of another one, which lacks idiolect and would look for a
    package of this name elsewhere.
    """
    return shlex.join([sys.executable, "-m", "pip", "install", *words])


def words_of(error: Exception) -> str:
    """An exception's own words, without a file's name: the sentence has it already."""
    return getattr(error, "strerror", None) or str(error)


class DefectError(IdiolectError):
    """A defect of idiolect in another process, which has kept the traceback itself."""


def refuse_if(
    wrong: object, sentence: str, error: type[IdiolectError] = IdiolectError
) -> None:
    """Raise an error with this sentence where something is wrong."""
    if wrong:
        raise error(sentence)


def required(
    value: Some | None, sentence: str, error: type[IdiolectError] = IdiolectError
) -> Some:
    """Return a value; where there is none, raise an error with this sentence."""
    if value is None:
        raise error(sentence)
    return value


@contextlib.contextmanager
def explained(
    what: str,
    then: str,
    errors: type[Exception] | tuple[type[Exception], ...] = OSError,
) -> Iterator[None]:
    """Turn an error in the block into the sentence `WHAT (the error's words): THEN`.

    Parameters
    ----------
    what, then
        What went wrong, and the next step.
    errors
        Which errors.
    """
    try:
        yield
    except errors as error:
        raise IdiolectError(f"{what} ({words_of(error)}): {then}.") from error
