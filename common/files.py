"""Where files are kept, who may read them, and how a crash leaves them whole.

What a run, a study, a server or a device writes says who took part and what they sent, so
all of it is for this account alone, whatever the umask: files 0600, folders 0700.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO


def home() -> Path:
    """Return the folder where idiolect keeps its files (``$IDIOLECT_HOME``)."""
    return Path(os.environ.get("IDIOLECT_HOME") or "~/.idiolect").expanduser()


def file_hash(files: Sequence[Path]) -> str:
    """Return the SHA-256 over files, one after the other.

    Reading gigabytes at every start would cost more than training a user, so the result
    is kept by path, size and time of change in ``$IDIOLECT_HOME/cache``.
    """
    stamps = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    token = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()
    cached = home() / "cache" / "weights" / token
    if cached.exists():
        return cached.read_text()
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            hashlib.file_digest(stream, lambda: digest)
    write_atomically(cached, digest.hexdigest().encode())
    return digest.hexdigest()


_PLAIN = re.compile(r"[a-z0-9][a-z0-9_.@+-]{0,99}")


def file_name(name: str) -> str:
    """Return a file's name for anybody's name; two names never have the same one.

    Not even on a file system that takes upper case for lower, or one form of Unicode for
    another: what is not plain lower-case ASCII is told apart by a hash.
    """
    if _PLAIN.fullmatch(name):
        return name
    readable = re.sub("[^a-z0-9]+", "-", name.casefold()).strip("-")[:40]
    return f"{readable}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def private(path: str | Path, flags: int) -> int:
    """Open a file that this account alone can read; the ``opener`` of `open`.

    A file that is there already, from a version that left it to the umask, is made so.
    """
    handle = os.open(path, flags, 0o600)
    with contextlib.suppress(PermissionError):  # another account's: that one decides
        os.fchmod(handle, 0o600)
    return handle


def private_folder(path: Path) -> Path:
    """Make a folder, and what is missing above it, for this account alone; return it.

    The folder itself is made private even if it was there.
    """
    make_folder(path)
    with contextlib.suppress(PermissionError):
        path.chmod(0o700)
    return path


def make_folder(path: Path) -> None:
    """Make a folder and what is missing above it, private; leave what is there as it is.

    Only idiolect's own home is made private even if it was there.
    """
    missing = [one for one in (path, *path.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(mode=0o700, exist_ok=True)
        one.chmod(0o700)  # an odd umask may have taken even our own rights away
    own = home().absolute()
    if own in (path.absolute(), *path.absolute().parents):
        with contextlib.suppress(PermissionError):
            own.chmod(0o700)


def make_private(folder: Path) -> None:
    """Make a folder and all that is in it private: a version before may not have."""
    for place, _, names in os.walk(folder):
        for path in (Path(place), *(Path(place, name) for name in names)):
            if not path.is_symlink():
                with contextlib.suppress(PermissionError, FileNotFoundError):
                    path.chmod(0o700 if path == Path(place) else 0o600)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a private file so that a crash leaves the old one or the new one, never half.

    Folders that are missing are made, private as well.
    """
    make_folder(path.parent)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb", opener=private) as stream:
            _put(stream, data)
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
    with open(path, "xb", opener=private) as stream:
        try:
            _put(stream, data)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _put(stream: BinaryIO, data: bytes) -> None:
    """Write so that a crash afterwards loses nothing."""
    stream.write(data)
    stream.flush()
    os.fsync(stream.fileno())


def sync_folder(path: Path) -> None:
    """Make sure that a crash does not forget which files a folder holds."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
