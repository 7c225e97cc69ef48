"""The house: which way imports point, what is packaged, what is generated."""

import ast
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from idiolect.common import config

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("common", "client", "server")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]


def imports(path: Path, text: str) -> set[str]:
    """Absolute names of what a module of the project imports."""
    package = ["idiolect", *path.relative_to(ROOT).parent.parts]
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*up, *(node.module or "").split(".")]).strip(".")
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def violations(path: Path, text: str) -> list[str]:
    """Imports that an arrow forbids."""
    side = path.relative_to(ROOT).parts[0]
    forbidden = {
        "common": ("idiolect.client", "idiolect.server"),
        "client": ("idiolect.server",),
        "server": ("idiolect.client",),
    }[side]
    if side == "common" and path.name not in ("protocol.py", "signed.py"):
        forbidden = (*forbidden, "flwr")
    names = imports(path, text)
    return [n for n in names if any(f"{n}.".startswith(f"{bad}.") for bad in forbidden)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    assert violations(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("common/tasks/x.py", "from ...client import app"),
        ("common/x.py", "from ..server.app import app"),
        ("common/x.py", "from flwr.app import Message"),
        ("client/x.py", "from ..server import cli"),
        ("server/x.py", "import idiolect.client.app"),
    ],
)
def test_the_arrow_test_sees_a_wrong_import(place: str, line: str) -> None:
    assert violations(ROOT / place, line)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_unpickled_or_trusted(path: Path) -> None:
    names = imports(path, path.read_text())
    assert not names & {"pickle", "cloudpickle", "dill", "shelve"}
    assert "trust_remote_code=True" not in path.read_text()


def test_every_folder_with_code_is_packaged() -> None:
    folders = {path.parent.relative_to(ROOT) for path in SOURCES}
    expected = {".".join(("idiolect", *folder.parts)) for folder in folders}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == expected


def test_every_package_is_typed() -> None:
    assert all((ROOT / name / "py.typed").is_file() for name in PACKAGES)


def test_the_app_lists_every_key_with_its_default() -> None:
    text = (ROOT / "simulations/lamp/pyproject.toml").read_text()
    head, marker, _ = text.partition(config.TABLE_START)
    assert text == head + config.app_table(), "run `make generated`"
    listed = tomllib.loads(text)["tool"]["flwr"]["app"]["config"]
    assert config.parse(listed) == config.Config()


def test_the_table_of_keys_is_up_to_date() -> None:
    written = (ROOT / "docs/configuration.md").read_text()
    assert written == config.markdown(), "run `make generated`"


def test_generate_repairs_what_drifted(tmp_path: Path) -> None:
    for name in ("docs/configuration.md", "simulations/lamp/pyproject.toml"):
        (tmp_path / name).parent.mkdir(parents=True)
        text = (ROOT / name).read_text().replace("48", "47")
        (tmp_path / name).write_text(text)
    config.generate(tmp_path)
    for name in ("docs/configuration.md", "simulations/lamp/pyproject.toml"):
        assert (tmp_path / name).read_text() == (ROOT / name).read_text()


def test_flower_accepts_the_app(tmp_path: Path) -> None:
    """`flwr build` checks the folder as `flwr run` does; it must hold no code."""
    app = tmp_path / "lamp"
    shutil.copytree(ROOT / "simulations/lamp", app)
    built = subprocess.run(
        [str(Path(sys.executable).parent / "flwr"), "build", "--app", str(app)],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "FLWR_HOME": str(tmp_path / "flwr")}
        | {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert list(tmp_path.glob("*.fab"))
    assert not list((ROOT / "simulations").rglob("*.py"))


def test_the_app_and_the_package_have_one_licence() -> None:
    own = (ROOT / "LICENSE").read_text()
    assert "Apache License" in own
    assert (ROOT / "simulations/lamp/LICENSE").read_text() == own
