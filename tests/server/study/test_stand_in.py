"""Study `paper` on invented data and a small model: it runs, and claims nothing."""

import runpy
import sys
from pathlib import Path

import pytest

from idiolect.common.config import parse
from idiolect.common.data.load import load_dataset
from idiolect.common.data.types import STAND_IN
from idiolect.server.cli import main
from idiolect.server.findings.page import load
from idiolect.server.study.declaration import cell_config, cells, read_study

from .test_declaration import EXPERIMENTS

ROOT = Path(__file__).resolve().parents[3]
PAPER = EXPERIMENTS / "paper.toml"
KEYS = (
    "users=2",
    "development-users=2",
    "history=3",
    "engine.dtype=float32",
    "engine.max-length=160",
    "adapt.rounds=1",
    "personalise.epochs=1",
    "evaluate.bootstrap=100",
)


@pytest.fixture
def places(tmp_path, monkeypatch, capsys) -> Path:
    """The stand-ins, and the variables that lead to them."""
    monkeypatch.setattr(sys, "argv", ["stand_in.py", str(tmp_path / "made")])
    runpy.run_path(str(ROOT / "benchmarks" / "stand_in.py"), run_name="__main__")
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("export "):
            monkeypatch.setenv(*line.removeprefix("export ").split("="))
    return tmp_path


def test_the_stand_ins_are_read_as_the_published_files(places):
    study = read_study(PAPER)
    found = places / "made" / "data"
    for cell in cells(study)[::2]:
        config = cell_config(study, cell)
        folder = config.data.replace("$IDIOLECT_DATA", str(found))
        small = {"users": 2, "development-users": 2, "history": 3, "held-out": 1}
        dataset = load_dataset(parse({"task": config.task, "data": folder, **small}))
        assert not {k for k in dataset.dropped if "wording" in k or "date" in k}
        for user in (*dataset.users, *dataset.development):
            assert user.id.startswith(STAND_IN)
            assert len(user.history) == 3 and len(user.held_out) == 1
            # Read with their instruction, not as text of unknown wording.
            assert all(item.prompt.before for item in (*user.history, *user.held_out))


@pytest.mark.slow
def test_one_task_of_the_papers_study_runs_and_says_that_nothing_compares(
    places, capsys
):
    text = PAPER.read_text().replace("kept = true", "")
    head, _, rest = text.partition("\n[grid]")
    rest = rest[rest.index("\n[published]") :]
    grid = '\n[grid]\ndataset = ["LaMP-4"]\nrates = ["published"]\n'
    rest = rest.partition('[[published.numbers]]\ncell = { dataset = "LaMP-5" }')[0]
    (places / "one.toml").write_text(head + grid + rest)
    given = [word for key in KEYS for word in ("-c", key)]
    out = ["--output-dir", str(places / "out")]
    assert main(["study", str(places / "one.toml"), *out, *given]) == 0
    said = capsys.readouterr().out
    rows = [r for r in said.splitlines() if r.startswith("| ") and "stand-in data" in r]
    assert len(rows) == 5  # all that the paper has
    assert all("no: stand-in data, `parameters`" in row for row in rows)
    assert "| yes |" not in said and "**Stand-in data.**" in said
    assert "Not as the file declares it: `users=2`, " in said
    page = (places / "out" / "one-changed" / "report.html").read_text()
    assert "no: stand-in data, parameters" in page and "Stand-in data." in page


def test_a_changed_study_does_not_replace_the_page_of_the_real_one(tmp_path, capsys):
    folder = tmp_path / "findings"
    given = ["-c", "users=2", "--findings", str(folder)]
    assert main(["study", str(PAPER), *given]) == 2
    said = capsys.readouterr().err
    assert "leave out --findings" in said and said.count("\n") == 1
    assert not folder.exists() and not load(folder)
