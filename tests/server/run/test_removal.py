"""A run is deleted with all that is in it, or not at all."""

import fcntl

import pytest

from idiolect.common.config import parse, to_toml
from idiolect.common.errors import IdiolectError
from idiolect.server import cli
from idiolect.server.run import removal


@pytest.fixture
def runs(tmp_path):
    for k, name in enumerate(("old", "new")):
        (tmp_path / name / "adapters").mkdir(parents=True)
        (tmp_path / name / "adapters" / "a").write_bytes(b"x" * 1000)
        (tmp_path / name / "config.toml").write_text(to_toml(parse({})))
        start = f'{{"event": "start", "time": {k + 1}}}\n'
        (tmp_path / name / "metrics.jsonl").write_text(start)
    (tmp_path / "latest").symlink_to("new")
    return tmp_path


def test_a_run_is_deleted_and_latest_is_the_one_before(runs, capsys):
    assert cli.main(["delete", "latest", "--yes", "--output-dir", str(runs)]) == 0
    said = capsys.readouterr().out
    assert "run new (interrupted)" in said and "own adapters of users" in said
    assert {path.name for path in runs.iterdir()} == {"old", "latest"}
    assert (runs / "latest").resolve().name == "old"
    assert cli.main(["delete", "old", "--yes", "--output-dir", str(runs)]) == 0
    assert list(runs.iterdir()) == []


def test_a_run_in_progress_is_refused(runs, capsys):
    with (runs / "new" / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert cli.main(["delete", "new", "--yes", "--output-dir", str(runs)]) == 2
        assert "is in progress" in capsys.readouterr().err
        with pytest.raises(IdiolectError):
            removal.delete(runs / "new")
    assert (runs / "new" / "adapters" / "a").exists()


def test_nobody_is_asked_where_nobody_can_answer(runs, capsys):
    assert cli.main(["delete", "new", "--output-dir", str(runs)]) == 2
    assert "confirm with --yes" in capsys.readouterr().err
    assert (runs / "new").is_dir()


@pytest.mark.parametrize(("said", "left"), [("yes", False), ("no", True), ("", True)])
def test_a_person_is_asked(runs, monkeypatch, said, left):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: said)
    code = cli.main(["delete", "new", "--output-dir", str(runs)])
    assert ((runs / "new").is_dir(), code == 0) == (left, not left)


def test_a_link_out_of_the_run_is_not_followed(runs, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "kept"
    outside.write_text("x")
    (runs / "new" / "link").symlink_to(outside.parent)
    removal.delete(runs / "new")
    assert outside.exists()


@pytest.mark.parametrize("name", ["..", ".", "../x", "", "mine", "away"])
def test_only_a_run_is_deleted(runs, tmp_path_factory, name):
    away = tmp_path_factory.mktemp("away")
    (away / "config.toml").write_text("")
    (runs / "away").symlink_to(away)
    (runs / "mine").mkdir()
    (runs / "mine" / "thesis.txt").write_text("x")
    assert cli.main(["delete", name, "--yes", "--output-dir", str(runs)]) == 2
    assert (runs / "mine" / "thesis.txt").exists() and (runs / "new").is_dir()
    assert (away / "config.toml").exists()
