"""Finished cells travel with the findings: another machine does only the rest."""

import gzip
import json

import pytest

from idiolect.common.errors import IdiolectError
from idiolect.server.cli import main
from idiolect.server.study import cells
from idiolect.server.study.kept import archive, store, take

from .conftest import TEXT


def test_another_machine_does_only_the_rest(tmp_path, small_model, monkeypatch, capsys):
    study = tmp_path / "small.toml"
    study.write_text("kept = true\n" + TEXT.replace("MODEL", small_model).lstrip())
    findings, made = tmp_path / "out", []
    real = cells.run_cell
    monkeypatch.setattr(cells, "run_cell", lambda *a: made.append(1) or real(*a))

    def run(place, *more):
        given = ["--output-dir", str(tmp_path / place), "--findings", str(findings)]
        main(["study", str(study), *given, *more])
        return capsys.readouterr().out

    run("here")
    stored = findings / "cells" / "small.json.gz"
    page, first = (findings / "small.md").read_text(), stored.read_bytes()
    assert len(made) == 4
    # One cell less, as if the machine had stopped.
    known = json.loads(gzip.decompress(first))
    lost = sorted(known)[0]
    del known[lost]
    stored.write_bytes(gzip.compress(json.dumps(known).encode()))
    said = run("there", "--plan")
    assert "study small: 3 finished cells are taken from" in said
    run("there")
    assert len(made) == 5
    assert (findings / "small.md").read_text() == page
    assert json.loads(gzip.decompress(stored.read_bytes())).keys() == {lost, *known}
    # What was computed without a place for findings is stored by the next command.
    stored.unlink()
    run("there")
    assert len(made) == 5
    assert json.loads(gzip.decompress(stored.read_bytes())).keys() == {lost, *known}


def test_only_cells_of_the_study_are_stored_and_the_same_give_the_same_bytes(tmp_path):
    one, other = tmp_path / "a.json", tmp_path / "b.json"
    one.write_text('{"x": 1}')
    for name in ("first", "second"):
        store(tmp_path / name, [one, other])
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert take(tmp_path / "first", tmp_path / "folder") == 1
    assert json.loads((tmp_path / "folder/cells/a.json").read_text()) == {"x": 1}
    # What is there is not overwritten.
    (tmp_path / "folder/cells/a.json").write_text("{}")
    assert take(tmp_path / "first", tmp_path / "folder") == 0
    assert (tmp_path / "folder/cells/a.json").read_text() == "{}"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no gzip",
        gzip.compress(b"[1]"),
        gzip.compress(b'{"a.json": 3}'),
        gzip.compress(b'{"../a.json": {}}'),
        gzip.compress(b'{"a.toml": {}}'),
        gzip.compress(b'{"a.json": {}}')[:-9],
    ],
    ids=["empty", "no-gzip", "a-list", "no-cell", "a-path", "no-json", "cut"],
)
def test_a_broken_file_is_refused_in_one_sentence(tmp_path, data):
    (tmp_path / "cells.json.gz").write_bytes(data)
    with pytest.raises(IdiolectError, match=r"restore it, or delete it"):
        take(tmp_path / "cells.json.gz", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_nothing_is_stored_without_findings_or_the_wish(tmp_path):
    assert archive(None, "s", True) is None
    assert archive(tmp_path, "s", False) is None
    assert take(tmp_path / "absent", tmp_path) == 0
