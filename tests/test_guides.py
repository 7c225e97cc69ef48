"""The guides are followed literally: library.md, extending.md and the examples."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("client", "common", "server")
BLOCK = re.compile(r"(?:<!-- ([^\n]+) -->\n)?```(?:python|text)\n(.*?)```", re.DOTALL)


def blocks(page: str) -> list[tuple[str, str]]:
    """Code of a page: what the comment above it says, and the code."""
    return BLOCK.findall((ROOT / "docs" / page).read_text())


def run(words: list[str], cwd: Path, path: Path = ROOT) -> str:
    environment = {**os.environ, "PYTHONPATH": str(path)}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_page_of_the_library(tmp_path: Path) -> None:
    code = "\n".join(code for _, code in blocks("library.md"))
    said = run(["-c", code], tmp_path)
    assert "'steps'" in said and "'personal'" in said
    assert (tmp_path / "anna" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_the_example_of_one_user(tmp_path: Path) -> None:
    script = ROOT / "examples" / "personalise_one_user.py"
    assert len(script.read_text().splitlines()) <= 40
    said = run([str(script), "tiny", str(tmp_path / "mine")], tmp_path)
    found = re.search(r"'shared': ([0-9.]+), 'personal': ([0-9.]+)", said)
    assert found is not None and float(found[2]) < float(found[1])
    assert (tmp_path / "mine" / "adapter_config.json").is_file()


@pytest.mark.slow
def test_the_example_of_a_study(tmp_path: Path) -> None:
    said = run([str(ROOT / "examples" / "study_of_my_own.py"), str(tmp_path)], tmp_path)
    assert said.count("nll: ") == 2 and "told apart" in said
    assert len(list((tmp_path / "cells").glob("*.json"))) == 2


def carried_out(place: Path) -> Path:
    """Copy the code, and do to it what extending.md says; returns the copy."""
    copy = place / "copy"
    skip = shutil.ignore_patterns("__pycache__", ".*")
    for name in (*SIDES, "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", copy)
    (copy / "idiolect").mkdir()
    for name in ("__init__.py", "api.py"):
        shutil.copy(ROOT / "idiolect" / name, copy / "idiolect")
    for name in SIDES:
        (copy / "idiolect" / name).symlink_to(copy / name)
    for what, code in blocks("extending.md"):
        if what == "row":
            edit(copy / "common/config/methods.py", ")\nBY_NAME", code + ")\nBY_NAME")
        elif found := re.fullmatch(r'insert in (\S+) before: "(.*)"', what):
            edit(copy / found[1], found[2] + "\n", code + found[2] + "\n")
        elif what.startswith("replace in common/config/keys.py"):
            file = copy / "common/config/keys.py"
            (old,) = re.findall(r"^TASKS = .*\n", file.read_text(), re.MULTILINE)
            edit(file, old, code)
        else:
            assert not (copy / what).exists()
            (copy / what).write_text(code)
    return copy


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1, f"{old!r} is not in {file} once"
    file.write_text(text.replace(old, new))


@pytest.mark.slow
def test_a_method_and_a_dataset_are_added_as_the_page_says(tmp_path: Path) -> None:
    copy = carried_out(tmp_path)
    tests = ["tests/common/methods/test_hinge.py", "tests/common/data/test_diary.py"]
    said = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", *tests], copy, copy)
    assert "3 passed" in said
    where = "import idiolect.common.methods.hinge as m; print(m.__file__)"
    assert str(copy) in run(["-c", where], copy, copy)
