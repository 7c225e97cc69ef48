"""Running a study: what cells share is made once, and what is done is not done again."""

import gzip
import json
import math
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from idiolect.common.config import parse, parse_run
from idiolect.common.errors import IdiolectError
from idiolect.server.cli import main
from idiolect.server.findings.summary import summary
from idiolect.server.study import cells
from idiolect.server.study.cache import Cache
from idiolect.server.study.cells import claimed, finished, located, run_cell, run_study
from idiolect.server.study.declaration import read_study
from tests.server.conftest import short_run

from .conftest import TEXT

pytestmark = pytest.mark.slow


@pytest.fixture
def made(monkeypatch) -> list[str]:
    """What was computed, in order."""
    found: list[str] = []
    for name in ("adapt", "pool", "of_method"):
        real = getattr(cells, name)

        def counted(run, *rest, real=real, name=name):
            found.append(" ".join([name, *rest]))
            return real(run, *rest)

        monkeypatch.setattr(cells, name, counted)
    return found


def test_what_cells_share_is_computed_once(declared, tmp_path, made):
    done = run_study(declared, tmp_path, lambda _: None)
    assert len(done) == 4
    assert made.count("adapt") == 2  # one per seed
    assert made.count("pool") == 2
    assert made.count("of_method sft") == 2  # does not use the unlabeled set
    assert made.count("of_method shared") == 2
    assert made.count("of_method c-bpo") == 4


def test_an_interrupted_study_does_only_what_is_missing(
    declared, tmp_path, monkeypatch
):
    tmp_path.chmod(0o755)  # as a version before left it
    first = run_study(declared, tmp_path, lambda _: None)
    for path in (tmp_path, *tmp_path.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0
    files = sorted((tmp_path / "cells").iterdir())
    assert len(files) == 4
    lost = files[1].read_text()
    files[1].unlink()
    said: list[str] = []
    again = run_study(declared, tmp_path, said.append)
    assert sum("(done)" in line for line in said) == 3
    assert files[1].read_text() == lost
    assert again == first
    monkeypatch.setattr(cells, "run_cell", None)
    assert run_study(declared, tmp_path, lambda _: None) == first


def test_a_study_can_be_read_before_its_end(declared, tmp_path, small_model, capsys):
    folder = tmp_path / "out" / "small"
    run_study(declared, folder, lambda _: None)
    for path in (folder / "cells").iterdir():
        if json.loads(path.read_text())["cell"]["unlabeled.ratio"] == 2.0:
            path.unlink()
    kept = tmp_path / "kept.json.gz"
    done = finished(declared, folder, kept)
    assert [cell["cell"]["seed"] for cell in done] == [0, 1]
    assert len(json.loads(gzip.decompress(kept.read_bytes()))) == 2
    found = summary(declared, done)
    assert found["missing"] == [{"seed": s, "unlabeled.ratio": 2.0} for s in (0, 1)]
    assert found["claims"][0]["why"] == "its cells are not measured yet"
    asked = ["study", str(tmp_path / "small.toml"), "--output-dir", str(folder.parent)]
    assert main([*asked, "--so-far"]) == 0
    said, problems = capsys.readouterr()
    assert "no report" not in said + problems
    report = (folder / "report.html").read_text()
    assert "So far: 2 cells are not measured yet." in report
    assert "not measured: its cells are not measured yet" in report
    assert "So far. 2 cells are not measured yet: seed 0, unlabeled.ratio 2.0" in (
        said.replace("**", "")
    )
    assert len([*(folder / "cells").iterdir()]) == 2  # nothing was computed
    assert main([*asked[:2], "--output-dir", str(tmp_path / "no"), "--so-far"]) == 2
    assert "has no finished cell: run it first" in capsys.readouterr().err


def test_two_processes_share_a_study(declared, tmp_path, monkeypatch):
    made: list[int] = []
    others: list[threading.Thread] = []
    said: list[str] = []
    results: list[list] = []
    waits = threading.Event()

    def told(line: str) -> None:
        said.append(line)
        if line.startswith("cell 1/4") and "another" in line:
            waits.set()

    def slow(config, *_):
        made.append(config.seed)
        if not others:  # the first cell: meanwhile another process begins
            run = lambda: results.append(run_study(declared, tmp_path, told))  # noqa: E731
            others.append(threading.Thread(target=run))
            others[0].start()
            assert waits.wait(10)
            while len(made) < 4:
                time.sleep(0.01)
        return {"users": {}, "methods": {}, "run": {"seed": config.seed}}

    monkeypatch.setattr(cells, "run_cell", slow)
    results.append(run_study(declared, tmp_path, lambda _: None))
    others[0].join()
    assert sorted(made) == [0, 0, 1, 1]  # each once
    assert results[0] == results[1] and len(results[0]) == 4
    assert said[0].endswith("(another process computes it)")
    assert not [*(tmp_path / "cells").glob("*.lock")]


def test_who_is_killed_leaves_no_claim(tmp_path):
    path = tmp_path / "a-cell.json"
    code = (
        "import sys, time, pathlib; from idiolect.server.study.cells import claimed\n"
        "with claimed(pathlib.Path(sys.argv[1]), False):\n"
        "    print(1, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        with claimed(path, False) as free:
            assert not free
        process.kill()
    assert path.with_suffix(".lock").exists()
    with claimed(path, False) as free:
        assert free
    assert not path.with_suffix(".lock").exists()


def test_what_one_epsilon_shares_is_computed_once_for_all_kinds(
    tmp_path, small_model, made
):
    private = {"privacy.mode": "central", "privacy.seeded": True, "privacy.delta": 1e-3}
    given = short_run(tmp_path, small_model) | private
    given |= {"methods": "shared", "personalise.learning-rates": "1e-3"}
    cache = Cache()
    for epsilon in (8.0, 2.0):
        for kind in ("votes", "self", "public"):
            changed = {"privacy.epsilon": epsilon, "unlabeled.kind": kind}
            run_cell(parse_run(given | changed)[0], cache)
    assert made.count("adapt") == 2


def test_what_noise_is_calibrated_from_is_not_shared(tmp_path, small_model, made):
    """The adapter's noise depends on how many users vote, though its rounds do not."""
    private = {"privacy.mode": "central", "privacy.seeded": True, "privacy.delta": 1e-3}
    given = short_run(tmp_path, small_model) | private
    given |= {"methods": "base", "personalise.learning-rates": "1e-3"}
    cache = Cache()
    run_cell(parse_run(given)[0], cache)
    run_cell(parse_run(given | {"privacy.vote-sampling": 0.5})[0], cache)
    run_cell(parse_run(given | {"adapt.rounds": 3})[0], cache)
    assert [name for name in made if " " not in name] == ["adapt", "pool"] * 3


def test_methods_under_other_noise_are_not_shared(tmp_path, small_model):
    """More methods with noisy metrics leave less of the budget to the shared adapter."""
    private = {"privacy.mode": "central", "privacy.seeded": True, "privacy.delta": 1e-3}
    given = short_run(tmp_path, small_model) | private
    given |= {"methods": "shared", "privacy.metrics": "noisy"}
    given |= {"personalise.learning-rates": "1e-3"}
    more = parse_run(given | {"methods": "shared,base"})[0]
    cache = Cache()
    run_cell(parse_run(given)[0], cache)
    after, alone = (run_cell(more, known) for known in (cache, Cache()))
    assert after["users"] == alone["users"]


def test_a_pool_of_other_cells_keeps_the_cells_own_adapter_and_charges(
    tmp_path, small_model
):
    """Votes by n-grams know no adapter, so cells with several ranks share one vote."""
    given = short_run(tmp_path, small_model)
    given |= {"methods": "shared", "privacy.mode": "central", "privacy.seeded": True}
    given |= {"privacy.noise": 9.0, "privacy.delta": 1e-3}
    other = parse_run(given | {"adapt.rank": 1})[0]
    cache = Cache()
    run_cell(parse_run(given)[0], cache)
    shared, alone = (run_cell(other, known) for known in (cache, Cache()))
    assert shared["users"] == alone["users"]
    assert shared["privacy"] == alone["privacy"]


def test_a_vote_beyond_the_budget_leaves_out_the_methods_that_need_it(
    tmp_path, small_model
):
    """As in a run: the rounds of the shared adapter are paid for first."""
    given = short_run(tmp_path, small_model)
    given |= {"methods": "shared,sft,c-bpo", "personalise.learning-rates": "1e-3"}
    given |= {"privacy.mode": "central", "privacy.seeded": True}
    given |= {"privacy.delta": 1e-3, "privacy.noise": 3.0, "privacy.epsilon": 1.3}
    found = run_cell(parse_run(given)[0], Cache())
    assert set(found["methods"]) == {"shared", "sft"}


def test_an_infinite_budget_can_be_written_and_read(tmp_path, small_model):
    text = TEXT.replace("MODEL", small_model).partition("[grid]")[0]
    text += '"privacy.mode" = "central"\n[grid]\n"privacy.epsilon" = [inf, 8.0]\n'
    text += '[plot]\nx = "privacy.epsilon"\nmetric = "nll"\n'
    (tmp_path / "s.toml").write_text(text)
    declared = read_study(tmp_path / "s.toml")
    done = run_study(declared, tmp_path, lambda _: None)
    assert [cell["cell"]["privacy.epsilon"] for cell in done] == [math.inf, 8.0]
    found = summary(declared, run_study(declared, tmp_path, lambda _: None))
    assert {point["x"] for point in found["curve"]} == {"inf", 8.0}
    json.dumps(found, allow_nan=False)


def test_a_recipe_is_chosen_on_development_users(declared, tmp_path):
    chosen = replace(declared, measured="development", grid={"seed": [0]}, claims=())
    (cell,) = run_study(chosen, tmp_path, lambda _: None)
    assert sorted(cell["users"]) == ["dev-000", "dev-001"]
    assert sorted(cell["run"]["alpha"]) == ["dev-000", "dev-001"]
    (other,) = run_study(
        replace(chosen, measured="confirmation"), tmp_path, lambda _: None
    )
    assert sorted(other["users"]) == ["persona-000", "persona-001", "persona-002"]


def test_paths_of_a_study_may_name_a_variable(monkeypatch):
    config = parse({"task": "LaMP-4", "data": "$PLACE/set", "backbone": "$PLACE/lm"})
    with pytest.raises(IdiolectError, match="set the environment variable"):
        located(config)
    monkeypatch.setenv("PLACE", "here")
    found = located(config)
    assert (found.data, found.backbone) == ("here/set", "here/lm")
