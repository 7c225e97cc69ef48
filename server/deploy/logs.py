"""The logs of a server: what its processes print, and the same as structured lines.

What Flower's processes and ServerApps print goes to `server.log`, unchanged, since a
traceback is easier to read so. It is kept below `LARGEST`. With ``serve --log FILE`` each
line of it, and each line that `serve` says, is also one JSON object in FILE:

    {"time": "2026-01-31T12:00:00.000Z", "level": "warning", "from": "serve", "message": …}

FILE is rotated by size, and opened again where another program has moved it away, as
logrotate does.
"""

import contextlib
import json
import logging
import logging.handlers
import os
import re
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path

from ...common.errors import explained
from ...common.files import make_folder
from ...common.text import printable, tell

LARGEST, KEPT = 10 << 20, 5  # bytes of a log, and how many older ones there are
LONGEST = 4000  # characters of a message
# How Flower, uvicorn and `serve` begin a line.
LEVEL = re.compile(r"\s*(debug|info|warning|error|critical)\s*:\s*", re.IGNORECASE)


def structured(text: str, source: str, now: datetime) -> dict[str, str]:
    """Return one line as what is logged of it; its level is that which it begins with."""
    found = LEVEL.match(text)
    return {
        "time": f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond // 1000:03d}Z",
        "level": found[1].lower() if found else "info",
        "from": source,
        "message": printable(text[found.end() :] if found else text, LONGEST),
    }


class Rotating(logging.handlers.RotatingFileHandler):
    """A file that is rotated by size, and opened again where somebody has moved it.

    A log that cannot be written, as on a full disk, ends nothing; it is said once.
    """

    why = ""  # the last line could not be written; empty: it was

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        before, self.why = self.why, ""
        if self.stream is not None and self._moved(self.stream):
            with contextlib.suppress(OSError):
                self.stream.close()
            self.stream = None  # type: ignore[assignment]  # it is opened for the line
        super().emit(record)
        if self.why and not before:
            said = f"warning: {self.baseFilename} cannot be written ({self.why}): make room"
            tell(f"{said} there; `serve` goes on without it until then", sys.stderr)

    def _open(self) -> TextIOWrapper:
        """Open the file; a new one is for this account alone."""
        made = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.close(os.open(self.baseFilename, made, 0o600))
        return super()._open()

    def _moved(self, stream: TextIOWrapper) -> bool:
        try:
            there = os.stat(self.baseFilename)
            return not os.path.samestat(there, os.fstat(stream.fileno()))
        except OSError:
            return True

    def handleError(self, record: logging.LogRecord) -> None:
        """Remember why; the library would print a traceback."""
        error = sys.exc_info()[1]
        self.why = getattr(error, "strerror", None) or type(error).__name__


Record = Callable[[str, str], None]
"""Log a line: its text, and where it is from."""


def recorder(path: Path | None, largest: int = LARGEST) -> Record:
    """Return what writes structured lines to a file; None: what writes nothing.

    Raises
    ------
    IdiolectError
        The file cannot be written.
    """
    if path is None:
        return lambda text, source: None
    with explained(f"the log {path} cannot be written", "give another --log"):
        make_folder(path.absolute().parent)
        handler = Rotating(path, maxBytes=largest, backupCount=KEPT, encoding="ascii")

    def record(text: str, source: str) -> None:
        line = json.dumps(structured(text, source, datetime.now(UTC)))
        handler.handle(logging.makeLogRecord({"msg": line}))

    return record


class Output:
    """What the server's processes print: `server.log`.

    Parameters
    ----------
    path
        The file, to which they append; what it has already is not logged again.
    record
        Logs each new line.
    """

    def __init__(self, path: Path, record: Record) -> None:
        self.path, self.record = path, record
        self.read = path.stat().st_size if path.exists() else 0

    def look(self) -> None:
        """Log what is new, and move what is there aside where it is too much."""
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < self.read:  # somebody has cut it
                self.read = 0
            file.seek(self.read)
            whole, mark, _ = file.read(LARGEST).rpartition(b"\n")
            self.read += len(whole) + len(mark)
            for line in whole.decode(errors="replace").splitlines():
                if line.strip():
                    self.record(line, "process")
            if size > LARGEST:
                self._move_aside()

    def _move_aside(self) -> None:
        """Keep a copy, and cut the file: the processes go on appending to it."""
        with contextlib.suppress(OSError):
            shutil.copyfile(self.path, self.path.with_name(f"{self.path.name}.1"))
        os.truncate(self.path, 0)
        self.read = 0
