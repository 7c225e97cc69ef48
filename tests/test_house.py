"""The house: which way imports point, what is packaged, what is generated."""

import ast
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from idiolect.common import config
from idiolect.common.config import page
from idiolect.server.simulate import plan

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


# A room is a folder of a side. It imports the rooms that its `__init__` names, and what
# lies beside the rooms of `common`, to which `common/config` belongs. What lies beside the
# rooms of a side imports them all.
BASE = ROOT / "common" / "config"
ROOMS = sorted(
    f"{side}.{path.name}"
    for side in PACKAGES
    for path in (ROOT / side).iterdir()
    if (path / "__init__.py").is_file() and path != BASE
)


def room_of(name: str) -> str | None:
    """Return the room of a module of the project, by its dotted name."""
    room = ".".join(name.split(".")[:2])
    return room if room in ROOMS else None


def declared(room: str) -> set[str]:
    """Rooms that a room says it imports."""
    text = (ROOT.joinpath(*room.split(".")) / "__init__.py").read_text()
    doc = ast.get_docstring(ast.parse(text)) or ""
    said = doc.rpartition("Imports: ")[2].replace("\n", " ").rstrip(".")
    return set() if said == "none of the rooms" else set(said.split(", "))


def violations(path: Path, text: str) -> list[str]:
    """Imports that an arrow forbids."""
    here = path.relative_to(ROOT).with_suffix("").parts
    side, room = here[0], room_of(".".join(here))
    found = []
    for name in imports(path, text):
        flower = name.partition(".")[0] == "flwr"
        if flower and side == "common" and path.name not in ("packing.py", "signed.py"):
            found.append(name)
        if not name.startswith("idiolect."):
            continue
        to = name.removeprefix("idiolect.")
        other = room_of(to)
        if to.split(".")[0] not in (side, "common"):
            found.append(name)
        elif other is None:
            if room is not None and to.split(".")[0] != "common":
                found.append(name)
        elif room is None:
            if side == "common":
                found.append(name)
        elif other not in (room, *declared(room)):
            found.append(name)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    assert violations(path, path.read_text()) == []


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("common/data/x.py", "from ...client.node import app"),
        ("common/x.py", "from ..server.run.app import app"),
        ("common/x.py", "from .data import lamp"),
        ("common/data/x.py", "from ..engine import training"),
        ("common/x.py", "from flwr.app import Message"),
        ("client/x.py", "from ..server import cli"),
        ("client/owner/x.py", "from ..node import device"),
        ("client/owner/x.py", "from .. import cli"),
        ("server/run/x.py", "from ..study.cells import run_cell"),
        ("server/x.py", "import idiolect.client.node.app"),
    ],
)
def test_the_arrow_test_sees_a_wrong_import(place: str, line: str) -> None:
    assert violations(ROOT / place, line)


def test_rooms_import_each_other_in_no_circle() -> None:
    arrows = {room: declared(room) for room in ROOMS}
    assert {other for others in arrows.values() for other in others} <= set(ROOMS)
    while arrows:  # those that import nothing more fall out
        ready = [room for room, others in arrows.items() if not others & arrows.keys()]
        assert ready, f"a circle among {sorted(arrows)}"
        for room in ready:
            del arrows[room]


def test_modules_import_each_other_in_no_circle() -> None:
    names = {
        ".".join(("idiolect", *p.relative_to(ROOT).with_suffix("").parts)): p
        for p in SOURCES
    }
    arrows = {}
    for name, path in names.items():
        found = imports(path, path.read_text())
        arrows[name] = {
            n
            for n in names
            if n != name
            and (n in found or any(f.rpartition(".")[0] == n for f in found))
        }
    while arrows:
        ready = [name for name, others in arrows.items() if not others & arrows.keys()]
        assert ready, f"a circle among {sorted(arrows)}"
        for name in ready:
            del arrows[name]


def test_no_arrow_of_a_room_is_unused() -> None:
    used: dict[str, set[str]] = {room: set() for room in ROOMS}
    for path in SOURCES:
        room = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        if room is not None:
            names = imports(path, path.read_text())
            rooms = {room_of(n.removeprefix("idiolect.")) for n in names}
            used[room] |= {other for other in rooms if other not in (None, room)}
    assert used == {room: declared(room) for room in ROOMS}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_unpickled_or_trusted(path: Path) -> None:
    names = imports(path, path.read_text())
    assert not names & {"pickle", "cloudpickle", "dill", "shelve"}
    assert "trust_remote_code=True" not in path.read_text()


def test_every_folder_with_code_is_packaged() -> None:
    folders = {path.parent.relative_to(ROOT) for path in SOURCES}
    expected = {".".join(("idiolect", *folder.parts)) for folder in folders}
    expected |= {"idiolect", "idiolect.simulations.lamp"}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == expected


def test_the_built_in_app_is_packaged() -> None:
    settings = PROJECT["tool"]["setuptools"]
    assert settings["package-dir"]["idiolect.simulations.lamp"] == "simulations/lamp"
    app = ROOT / "simulations/lamp"
    patterns = settings["package-data"]["idiolect.simulations.lamp"]
    packaged = {path for pattern in patterns for path in app.glob(pattern)}
    assert packaged == {path for path in app.rglob("*") if path.is_file()}
    assert plan.built_in_app() == app


def test_the_package_is_typed() -> None:
    assert (ROOT / "idiolect" / "py.typed").is_file()


def test_the_app_lists_every_key_with_its_default() -> None:
    text = (ROOT / "simulations/lamp/pyproject.toml").read_text()
    head, marker, _ = text.partition(page.TABLE_START)
    assert text == head + page.app_table(), "run `make generated`"
    listed = tomllib.loads(text)["tool"]["flwr"]["app"]["config"]
    assert config.parse_run(listed) == (config.Config(), config.RunOptions())


def test_the_table_of_keys_is_up_to_date() -> None:
    written = (ROOT / "docs/configuration.md").read_text()
    assert written == page.markdown(), "run `make generated`"


def test_generate_repairs_what_drifted(tmp_path: Path) -> None:
    for name in ("docs/configuration.md", "simulations/lamp/pyproject.toml"):
        (tmp_path / name).parent.mkdir(parents=True)
        text = (ROOT / name).read_text().replace("48", "47")
        (tmp_path / name).write_text(text)
    page.generate(tmp_path)
    for name in ("docs/configuration.md", "simulations/lamp/pyproject.toml"):
        assert (tmp_path / name).read_text() == (ROOT / name).read_text()


@pytest.mark.process
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
