"""Files that the browser sends: bounded, read from a private temporary file, and removed.

A file's name is shown, and is the name of its source; it is no part of a path.
"""

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import time
from typing import TypeVar

from ...common.config import parse
from ...common.data.load import load_dataset
from ...common.data.types import Prompt
from ...common.errors import IdiolectError, refuse_if
from ..imports.read import Asked, Imported, read
from ..owner import history
from ..owner.history import Entry

Some = TypeVar("Some")

MOST = 100_000_000  # bytes of a file
PREFIX = ".idiolect-upload-"
STALE = 3600.0  # seconds after which a file is what a crash has left
INVENTED = "headlines of an invented person"
WAITING = 4  # files whose preview waits for the owner's yes
SUFFIX = re.compile(r"\.[a-z0-9]{1,10}")
TOO_LARGE = (
    f"the file has more than {MOST // 10**6} MB: import it by `idiolect import FILE` in a "
    "terminal, or a part of it here."
)


@dataclass
class Uploads:
    """What was read of files, until the owner says yes or no.

    Attributes
    ----------
    folder
        Where the temporary files are: the vault's.
    """

    folder: Path
    _read: dict[str, tuple[Imported, str]] = field(default_factory=dict)
    _count: int = 0

    def clear(self) -> None:
        """Remove what a crash has left."""
        for path in self.folder.glob(f"{PREFIX}*"):
            if path.stat().st_mtime < time() - STALE:
                path.unlink(missing_ok=True)

    async def take(
        self, body: AsyncIterator[bytes], name: str, asked: Asked
    ) -> tuple[str, Imported, str]:
        """Read a file; return what it waits by, what was read, and its source's name.

        Raises
        ------
        IdiolectError
            It is too large, or cannot be read.
        """
        source = history.source_name(Path(name).name)
        suffix = Path(name).suffix.lower()
        suffix = suffix if SUFFIX.fullmatch(suffix) else ""
        with tempfile.NamedTemporaryFile(  # of mode 600
            dir=self.folder, prefix=PREFIX, suffix=suffix
        ) as file:
            size = 0
            async for part in body:
                size += len(part)
                refuse_if(size > MOST, TOO_LARGE)
                file.write(part)
            file.flush()
            path = Path(file.name)
            found = await asyncio.to_thread(called, source, path, read, path, asked)
        return self.keep(found, source), found, source

    def keep(self, found: Imported, source: str) -> str:
        """Let what was read wait for its owner's yes; returns by which number."""
        self._count += 1
        self._read[str(self._count)] = found, source
        for old in list(self._read)[:-WAITING]:
            del self._read[old]
        return str(self._count)

    def taken(self, number: str) -> tuple[Imported, str]:
        """Return what waits by a number, and the source's name; it waits no longer.

        Raises
        ------
        IdiolectError
            Nothing does.
        """
        found = self._read.pop(number, None)
        if found is None:
            raise IdiolectError(
                "this preview is no longer there: choose the file again."
            )
        return found


def invented() -> Imported:
    """The headlines of somebody who does not exist (task ``headline``)."""
    asked = {"task": "headline", "users": 1, "history": 24, "held-out": 8, "seed": 0}
    user = load_dataset(parse(asked)).users[0]
    entries = tuple(
        Entry(Prompt("", item.prompt.text), item.target)
        for item in (*user.history, *user.held_out)
    )
    return Imported(entries, INVENTED, {}, {}, "as they were made up", {}, {})


def called(name: str, path: Path, act: Callable[..., Some], *arguments: object) -> Some:
    """Act on a temporary file; sentences about it have the owner's name of it.

    Raises
    ------
    IdiolectError
        As the action does.
    """
    try:
        return act(*arguments)
    except IdiolectError as error:
        said = str(error).replace(str(path), name).replace(path.name, name)
        raise type(error)(said) from error
