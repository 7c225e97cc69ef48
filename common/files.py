"""Where files are kept, and how a crash leaves them whole."""

import os
from pathlib import Path


def home() -> Path:
    """Return the folder where idiolect keeps its files (``$IDIOLECT_HOME``)."""
    return Path(os.environ.get("IDIOLECT_HOME") or "~/.idiolect").expanduser()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)  # a full disk is not made fuller
        raise
    sync_folder(path.parent)


def write_new(path: Path, data: bytes) -> None:
    """Write a file that is not there yet, readable by its owner alone, or nothing.

    Raises
    ------
    OSError
        It is there already, or cannot be written; nothing is left of it.
    """
    number = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with open(number, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def sync_folder(path: Path) -> None:
    """Make sure that a crash does not forget which files a folder holds."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
