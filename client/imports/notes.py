"""A folder of notes: each .txt or .md file is a text, its name the prompt."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ...common.errors import IdiolectError
from ..owner.history import LONGEST
from .files import encoding_of
from .rows import Bad, Left, Row

KINDS = (".txt", ".md", ".markdown")
_COLUMNS = (
    ("text", "the file"),
    ("prompt", "its name"),
    ("date", "when it was last changed"),
)


def read_notes(folder: Path) -> Iterator[Row | Left | Bad]:
    """Notes of a folder and of the folders in it; hidden ones are left out.

    Raises
    ------
    IdiolectError
        The folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise IdiolectError(f"{error.filename} cannot be read ({error.strerror}).")

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(place, name) for name in sorted(names)):
            if path.name.startswith("."):
                continue
            if path.suffix.lower() not in KINDS:
                yield Left("files other than .txt and .md")
            else:
                yield _note(path, str(path.relative_to(folder)))


def _note(path: Path, name: str) -> Row | Left | Bad:
    try:
        found = path.lstat()
        # A link may lead to a file that nobody meant to import; a pipe would never end.
        if not stat.S_ISREG(found.st_mode):
            return Left("links and special files")
        changed = found.st_mtime
        if found.st_size > 4 * LONGEST:
            return Bad(name, f"is longer than {LONGEST} characters", "too long")
        text = path.read_text(encoding=encoding_of(path))
    except UnicodeError:
        return Bad(name, "is not UTF-8 text", "not UTF-8", "save it as UTF-8")
    except OSError as error:
        return Bad(name, f"cannot be read ({error.strerror})", "not readable")
    if not text.strip():
        return Left("empty files")
    return Row(name, path.stem, text, None, changed, None, _COLUMNS)
