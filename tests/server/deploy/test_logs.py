"""Logs: one JSON object a line, rotated, private, and without anything secret."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from idiolect.common.errors import IdiolectError
from idiolect.server.deploy import keys, logs, serve

from .test_serve import kept_up


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("line", "level", "message"),
    [
        ("the proxy is up", "info", "the proxy is up"),
        ("warning: it ends", "warning", "it ends"),
        ("ERROR :     not there", "error", "not there"),
        ("INFO:     Started", "info", "Started"),
        ("an error: here", "info", "an error: here"),
        ("red \x1b[31m\u202e", "info", "red \ufffd[31m\ufffd"),
    ],
)
def test_a_line_has_a_time_a_level_and_a_message(line, level, message):
    when = datetime(2026, 1, 31, 12, 0, 0, 7000, UTC)
    assert logs.structured(line, "serve", when) == {
        "time": "2026-01-31T12:00:00.007Z",
        "level": level,
        "from": "serve",
        "message": message,
    }


def test_lines_are_written_and_the_file_is_private(tmp_path):
    path = tmp_path / "new" / "serve.jsonl"
    record = logs.recorder(path)
    record("one\ntwo", "serve")
    assert path.read_text().count("\n") == 1
    assert read(path)[0]["message"] == "one\ufffdtwo"
    assert path.stat().st_mode & 0o077 == 0


def test_it_is_rotated_by_size_and_the_oldest_goes(tmp_path):
    path = tmp_path / "serve.jsonl"
    record = logs.recorder(path, largest=300)
    for number in range(60):
        record(f"line {number}", "serve")
    files = sorted(file.name for file in tmp_path.iterdir())
    older = [f"serve.jsonl.{n}" for n in range(1, logs.KEPT + 1)]
    assert files == ["serve.jsonl", *older]
    assert all(file.stat().st_size <= 300 for file in tmp_path.iterdir())
    assert all(file.stat().st_mode & 0o077 == 0 for file in tmp_path.iterdir())
    assert read(path)[-1]["message"] == "line 59"


def test_a_file_that_logrotate_moved_is_opened_again(tmp_path):
    path, moved = tmp_path / "serve.jsonl", tmp_path / "moved"
    record = logs.recorder(path)
    record("before", "serve")
    path.rename(moved)
    record("after", "serve")
    assert [line["message"] for line in read(moved)] == ["before"]
    assert [line["message"] for line in read(path)] == ["after"]
    path.rename(moved)
    path.touch()  # as logrotate's `create` does
    record("again", "serve")
    assert [line["message"] for line in read(path)] == ["again"]
    path.unlink()
    record("anew", "serve")
    assert [line["message"] for line in read(path)] == ["anew"]


def test_a_log_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(IdiolectError, match="give another --log"):
        logs.recorder(tmp_path / "file" / "serve.jsonl")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_ends_nothing_and_is_said_once(tmp_path, capsys):
    path = tmp_path / "serve.jsonl"
    path.symlink_to("/dev/full")
    record = logs.recorder(path)
    for _ in range(3):
        record("lost", "serve")
    path.unlink()
    record("written", "serve")
    said = capsys.readouterr()
    assert said.out == "" and "Traceback" not in said.err
    assert said.err.count("cannot be written (No space left on device)") == 1
    assert read(path)[-1]["message"] == "written"


# --- what the processes print ----------------------------------------------------------


def test_what_processes_print_is_logged_line_by_line(tmp_path):
    path, heard = tmp_path / "server.log", []
    path.write_text("of the last time\n")
    output = logs.Output(path, lambda text, source: heard.append((source, text)))
    with path.open("a") as file:
        file.write("one\n\ntw")
    output.look()
    with path.open("a") as file:
        file.write("o\n")
    output.look()
    output.look()
    assert heard == [("process", "one"), ("process", "two")]


def test_their_file_stays_small_while_they_hold_it_open(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "LARGEST", 1000)
    path, heard = tmp_path / "server.log", []
    with path.open("ab", buffering=0) as held:  # as `serve` opens it
        output = logs.Output(path, lambda text, _: heard.append(text))
        for number in range(100):
            held.write(f"line {number:04}\n".encode() * 10)
            output.look()
    assert len(heard) == 1000 and heard[-1] == "line 0099"
    assert path.stat().st_size <= 1100
    assert b"\0" not in path.read_bytes()
    assert (tmp_path / "server.log.1").exists()


def test_a_file_that_somebody_cut_is_read_from_its_start(tmp_path):
    path, heard = tmp_path / "server.log", []
    path.write_text("old\n" * 100)
    output = logs.Output(path, lambda text, _: heard.append(text))
    shutil.copy(path, tmp_path / "copy")
    path.write_text("new\n")  # logrotate's copytruncate
    output.look()
    assert heard == ["new"]


# --- nothing secret --------------------------------------------------------------------


def test_what_serve_logs_has_nothing_secret(folder, tmp_path, monkeypatch, capsys):
    path = tmp_path / "serve.jsonl"
    said, _ = kept_up(folder, monkeypatch, log=path)
    text = path.read_text()
    assert len(text.splitlines()) == len(said) > 5
    secrets = [(folder / "flower" / "token").read_text()]
    secrets += (folder / "signing.key").read_bytes().hex(), "PRIVATE KEY"
    for name in ("ca.key", keys.PAIR):
        secrets += (folder / name).read_text().splitlines()[1:3]
    secrets.append(serve.Serving("mark", 1).mark * 2)
    for secret in secrets:
        assert secret not in text
