"""What is written is for this account alone, whatever the umask."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from idiolect.common.files import (
    file_name,
    make_folder,
    make_private,
    private,
    private_folder,
    write_atomically,
)


@pytest.fixture(params=[0, 0o022, 0o777])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """The kindest, the usual and the oddest."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_written_file_and_the_folders_above(umask: int, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    file = tmp_path / "new" / "deep" / "file"
    write_atomically(file, b"secret")
    assert (mode(file), mode(file.parent), mode(file.parent.parent)) == (
        *(0o600, 0o700, 0o700),
    )
    assert mode(tmp_path) == 0o755  # was there: not ours to decide


def test_a_file_that_was_open_is_closed(umask: int, tmp_path: Path) -> None:
    file = tmp_path / "journal"
    file.touch()
    file.chmod(0o644)
    with open(file, "a", opener=private) as stream:
        stream.write("line")
    assert mode(file) == 0o600
    file.chmod(0o644)
    write_atomically(file, b"new")
    assert mode(file) == 0o600


def test_a_folder_that_was_open_is_closed(umask: int, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert mode(private_folder(tmp_path)) == 0o700
    old = tmp_path / "old"
    old.mkdir()
    for path in (old / "a", old / "b"):
        path.parent.chmod(0o755)
        path.touch()
        path.chmod(0o644)
    (old / "link").symlink_to("/etc/hostname")
    before = Path("/etc/hostname").stat().st_mode
    make_private(old)
    assert (mode(old), mode(old / "a"), mode(old / "b")) == (0o700, 0o600, 0o600)
    assert Path("/etc/hostname").stat().st_mode == before


def test_the_home_is_closed_by_whoever_writes_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IDIOLECT_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(0o755)
    make_folder(tmp_path / "elsewhere")
    assert mode(tmp_path / "home") == 0o755
    write_atomically(tmp_path / "home" / "cache" / "x", b"")
    assert mode(tmp_path / "home") == 0o700


def test_no_two_names_have_one_file():
    names = [
        "anna",
        "Anna",
        "ANNA",
        "a b",
        "a-b",
        "a  b",
        "jürgen",
        "ju\u0308rgen",
        "..",
        "-a",
    ]
    names += ["a/b", "", "李", "王", "x" * 100, "x" * 101, "anna~", "."]
    made = [file_name(name) for name in names]
    folded = {one.casefold() for one in made}
    assert len(folded) == len(names)
    assert all("/" not in one and one not in (".", "..") for one in made)
    assert all(one.isascii() and len(one) <= 100 and one[:1] != "-" for one in made)
    assert file_name("u-0001") == "u-0001"
