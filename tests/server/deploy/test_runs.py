"""Runs on devices: found by name, shown, and ended."""

import fcntl
import json
import os
import signal
from pathlib import Path

import pytest

from idiolect.common.errors import IdiolectError
from idiolect.server.cli import main
from idiolect.server.deploy import runs
from idiolect.server.run import results

APP = Path(__file__).resolve().parents[3] / "simulations" / "lamp"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["task=headline"], "for simulations"),
        (["task=text", "personalise.learning-rates=1e-3,3e-3"], "one learning rate"),
        (["task=text"], "unlabeled.file"),
        (["task=text", "personalise.learning-rates=1e-3"], "unlabeled.file"),
        (
            ["task=text", "personalise.learning-rates=1e-3", "unlabeled.kind=self"],
            "no server is up",
        ),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_it_starts(
    folder, tmp_path, monkeypatch, words, sentence
):
    monkeypatch.setenv("IDIOLECT_HOME", str(tmp_path / "home"))
    with pytest.raises(IdiolectError, match=sentence):
        runs.prepare(folder, APP, words, tmp_path)
    assert not (tmp_path / "home").exists()


def test_the_command_says_so_with_exit_code_2(folder, capsys):
    assert main(["run", str(APP), "-c", "task=headline", "--at", str(folder)]) == 2
    assert "for simulations" in capsys.readouterr().err


@pytest.fixture
def left(folder, tmp_path):
    """A run that was handed over, and is held by this process."""
    place = tmp_path / "runs" / "left"
    place.mkdir(parents=True)
    runs._note_submitted(folder, place, "4711")
    return place


def test_a_run_is_found_by_its_name_or_as_the_latest(folder, left):
    assert runs.submitted(folder, "left") == ("4711", left)
    assert runs.submitted(folder, "latest")[1] == left
    for name in ("right", "../left", "", "\x1b[2J"):
        with pytest.raises(
            IdiolectError, match="was submitted to the server"
        ) as refused:
            runs.submitted(folder, name)
        assert "\x1b" not in str(refused.value)


@pytest.mark.parametrize(
    ("signal_", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)]
)
def test_a_command_that_is_ended_says_that_its_run_goes_on(
    folder, left, capsys, monkeypatch, signal_, code
):
    def ended(*_: object) -> None:
        raise signal_

    monkeypatch.setattr(runs, "attach", ended)
    monkeypatch.setattr(
        "idiolect.server.commands.devices.signal.signal", lambda *_: None
    )
    at = ["--at", str(folder)]
    with (left / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["attach", "latest", *at]) == code
        said = capsys.readouterr().out
        assert "run left goes on without this command" in said
        for word in ("attach", "stop"):
            assert f"idiolect-server {word} left --at {folder}" in said
    assert main(["attach", "left", *at]) == code  # it has ended meanwhile
    assert "goes on" not in capsys.readouterr().out


def test_a_run_that_has_ended_says_how(folder, left):
    journal = left / "metrics.jsonl"
    with pytest.raises(IdiolectError, match="interrupted.*--resume left"):
        runs.attach(folder, "left", results.console())
    journal.write_text('{"event": "failed", "message": "the sky fell."}\n')
    with pytest.raises(IdiolectError, match="^the sky fell"):
        runs.attach(folder, "left", results.console())
    event = {"event": "failed", "message": "it was stopped.", "stopped": True}
    journal.write_text(json.dumps(event) + "\n")
    with pytest.raises(IdiolectError, match="^it was stopped"):
        runs.attach(folder, "left", results.console())


def test_what_is_shown_begins_with_the_last_start(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert runs._last_start(file) == 0
    file.write_text('{"event": "start", "pid": 1}\n{"event": "a"}\n')
    size = file.stat().st_size
    assert runs._last_start(file) == 0
    with file.open("a") as more:
        more.write('{"event": "start", "pid": 2}\n{"event": "b"}\n')
    assert runs._last_start(file) == size


def test_ctrl_c_waits_until_the_run_is_handed_over():
    done = False
    with pytest.raises(KeyboardInterrupt), runs._uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        done = True
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
