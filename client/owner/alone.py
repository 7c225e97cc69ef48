"""One training at a time: a second one is refused, with which one is running."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from time import localtime, strftime

from ...common.errors import IdiolectError
from ...common.files import private


def note_of(vault: Path) -> Path:
    """The file beside a vault that is locked while a training runs."""
    return vault.with_name(f".{vault.name}.training")


@contextlib.contextmanager
def alone(vault: Path) -> Iterator[None]:
    """Train alone on a vault until the end of the block.

    The lock is the system's: it ends with the process, however that ends.

    Raises
    ------
    IdiolectError
        Another process trains on this vault; says which, and since when.
    """
    file = note_of(vault)
    with contextlib.ExitStack() as held:
        try:
            note = held.enter_context(open(file, "a+", opener=private))
            fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise IdiolectError(_running(file.read_text()[:100])) from None
        except OSError as error:
            raise IdiolectError(
                f"{file} cannot be locked ({error.strerror}): make its folder writable."
            ) from error
        note.truncate(0)
        note.write(f"{os.getpid()} {strftime('%Y-%m-%d %H:%M:%S', localtime())}")
        note.flush()
        yield
        note.truncate(0)


def _running(noted: str) -> str:
    process, _, since = noted.partition(" ")
    if not since:  # it has only just begun
        return "a training is running on this vault already: wait until it has ended."
    return (
        f"a training is running on this vault since {since} (process {process}): wait "
        f"until it has ended, or end it by `kill {process}`."
    )
