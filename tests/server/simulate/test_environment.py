"""What a private run is told: a list of names, and nothing else."""

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from idiolect.common.config import Config
from idiolect.common.errors import IdiolectError
from idiolect.server.simulate import environment, launch
from idiolect.server.simulate import plan as planning
from idiolect.server.simulate.environment import (
    flower_environment,
    inherited,
    short_folder,
)

PROXIES = (
    "http_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "NO_PROXY",
    "grpc_proxy",
)
REFUSED = (
    *PROXIES,
    *("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_TMPDIR", "RAY_JOB_CONFIG_JSON_ENV_VAR"),
    *(
        "FLWR_HOME",
        "FLWR_DATABASE",
        "FLWR_OIDC_ENABLED",
        "FLWR_INTERNAL_GRPC_FLEET_API",
    ),
    *(
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
        "GRPC_TRACE",
        "SSLKEYLOGFILE",
        "OPENSSL_CONF",
    ),
    *("LD_PRELOAD", "LD_AUDIT", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONHOME"),
    *(
        "TMPDIR",
        "AWS_SECRET_ACCESS_KEY",
        "IDIOLECT_PASSPHRASE_FILE",
        "IDIOLECT_SIGNING_KEY",
    ),
)


def test_only_what_is_listed_is_inherited() -> None:
    given = dict.fromkeys(
        (*REFUSED, "HOME", "CUDA_VISIBLE_DEVICES", "LC_ALL", "LCD"), "x"
    )
    assert inherited(given).keys() == {"HOME", "CUDA_VISIBLE_DEVICES", "LC_ALL"}


def test_what_flower_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*REFUSED, "IDIOLECT_SIMULATION"):
        monkeypatch.setenv(name, "from the caller")
    told = flower_environment(tmp_path, "mark")
    assert "from the caller" not in told.values()
    assert told["IDIOLECT_SIMULATION"] == "mark"
    assert told["FLWR_HOME"] == str(tmp_path)
    assert told["PATH"].startswith(str(environment.BIN) + os.pathsep)
    assert told.keys() <= {
        *environment.INHERITED,
        *environment.CHOSEN,
        *("PATH", "FLWR_HOME", "IDIOLECT_SIMULATION"),
        *(name for name in os.environ if name.startswith("LC_")),
    }


def test_every_run_has_a_token_of_its_own(tmp_path: Path) -> None:
    plan = planning.Plan(tmp_path, Config(), tmp_path / "one", 1)
    one, two = (launch.private_environment(plan, Path("/p"), "m") for _ in range(2))
    assert one["RAY_AUTH_MODE"] == "token"
    assert len(one["RAY_AUTH_TOKEN"]) == 64
    assert one["RAY_AUTH_TOKEN"] != two["RAY_AUTH_TOKEN"]
    assert one["TMPDIR"] == "/p"


@pytest.fixture
def base() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    yield made
    environment.shutil.rmtree(made)


def test_sockets_get_a_short_private_folder(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(base))
    before = os.umask(0)
    try:
        folder = short_folder()
    finally:
        os.umask(before)
    assert folder.parent == base
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    socket = (
        f"{folder}/r/session_2026-11-28_19-21-33_258025_4194304/sockets/plasma_store"
    )
    assert len(socket) <= 107
    environment.remove_folder(folder)
    assert list(base.iterdir()) == []


def test_a_tmpdir_that_is_too_long_is_not_used(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = base / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    folder = short_folder()
    try:
        assert folder.parent == Path("/tmp")
    finally:
        environment.remove_folder(folder)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(
        IdiolectError, match=r"set TMPDIR to a folder of at most \d+ letters"
    ):
        short_folder()


def test_only_its_own_folder_is_removed(base: Path) -> None:
    (base / "theirs").mkdir()
    (base / "idiolect-link").symlink_to(base / "theirs")
    for name in ("theirs", "idiolect-link", "idiolect-none"):
        environment.remove_folder(base / name)
    assert (base / "theirs").is_dir()


def test_libraries_come_from_folders_that_nobody_else_fills(tmp_path: Path) -> None:
    mine, everybodys = tmp_path / "mine", tmp_path / "everybodys"
    mine.mkdir(mode=0o755)
    everybodys.mkdir()
    everybodys.chmod(0o777)
    given = ["", ".", "lib", str(everybodys), str(mine), str(tmp_path / "none")]
    told = inherited({"LD_LIBRARY_PATH": os.pathsep.join(given)})
    assert told == {"LD_LIBRARY_PATH": str(mine)}
    assert inherited({"LD_LIBRARY_PATH": f".{os.pathsep}"}) == {}
