"""How commands end: every kind of end, in this process and in ones of their own."""

import argparse
import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from idiolect.common.command import (
    carry_out,
    keep_traceback,
    new_parser,
    on_interrupt,
    refusal,
)
from idiolect.common.errors import DefectError, IdiolectError

from .test_text import HOSTILE

SECRET = "what the owner wrote"


def end(error: BaseException | None, folder: Path, quote: bool = True, *more: str):
    """Carry out a command that ends so."""

    def run(_options: argparse.Namespace) -> int:
        if error is not None:
            raise error
        return 0

    def make() -> argparse.ArgumentParser:
        parser = new_parser("some", "Something.")
        parser.add_argument("--json", action="store_true")
        parser.set_defaults(run=run)
        return parser

    return carry_out(make, list(more), lambda _options: folder, quote)


def nested() -> KeyError:
    try:
        raise KeyError(SECRET) from ValueError(f"{SECRET} {HOSTILE}")
    except KeyError as error:
        return error


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (None, 0, ""),
        (IdiolectError("this is so: do that."), 2, "error: this is so: do that.\n"),
        (DefectError("a run fell: see it."), 70, "error: a run fell: see it.\n"),
        (KeyboardInterrupt(), 130, "interrupted: start it again.\n"),
        (KeyboardInterrupt("it goes on: stop it."), 130, "it goes on: stop it.\n"),
        (IdiolectError("one\nerror: two"), 2, "error: one error: two\n"),
    ],
)
def test_every_end_has_a_code_and_one_line(tmp_path, capfd, error, code, sentence):
    assert end(error, tmp_path) == code
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", sentence)
    assert list(tmp_path.iterdir()) == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_at_a_terminal_a_sentence_is_broken_between_words(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    path = "/a-long/path-with-dashes/that-is/longer/than-a-line/of-it.db"
    end(
        IdiolectError(f"there is no vault at {path}: make one by `some init`."),
        tmp_path,
    )
    assert terminal.getvalue().splitlines() == [
        "error: there is no vault at",
        f"{path}:",
        "make one by `some init`.",
    ]


def test_ctrl_c_says_what_is_kept_and_how_to_go_on(tmp_path, capfd):
    with pytest.raises(KeyboardInterrupt) as ended, on_interrupt("kept: go on."):
        raise KeyboardInterrupt
    assert end(ended.value, tmp_path) == 130
    assert capfd.readouterr().err == "kept: go on.\n"
    with pytest.raises(IdiolectError, match="other"), on_interrupt("kept: go on."):
        raise IdiolectError("other")


def test_json_says_it_too(tmp_path, capfd):
    assert end(IdiolectError("no: do that."), tmp_path, True, "--json") == 2
    assert json.loads(capfd.readouterr().out) == {"error": "no: do that."}
    assert end(None, tmp_path, True, "--json", "--jsn") == 2
    wrong = json.loads(capfd.readouterr().out)
    assert wrong == {"error": "unrecognized arguments: --jsn: see `some --help`."}


@pytest.mark.parametrize("quote", [True, False])
def test_a_defect_is_one_line_and_a_private_file(tmp_path, capfd, quote):
    for _ in range(3):  # again and again: one file
        assert end(nested(), tmp_path, quote) == 70
    said = capfd.readouterr()
    (file,) = tmp_path.iterdir()
    first = said.err.splitlines()[0]
    assert said.err.count("\n") == 3 and said.out == ""
    assert first.startswith("error: idiolect has a defect (KeyError: ")
    assert str(file) in first and first.endswith("report it with that file.")
    assert "Traceback" not in said.err
    assert file.stat().st_mode & 0o777 == 0o600
    kept = file.read_text()
    assert "KeyError" in kept and "ValueError" in kept and "in nested" in kept
    assert all(c == "\n" or c.isprintable() for c in kept)
    assert (SECRET in kept) is quote


def test_a_traceback_finds_a_place(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said = keep_traceback(nested(), tmp_path / "none")
    (file,) = tmp_path.iterdir()
    assert said == f"its traceback is in {file}"
    assert file.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    said = keep_traceback(nested(), None)
    assert said == "its traceback could not be written (No such file or directory)"


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "make room"),
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), "(/a/b)"),
        (EOFError(), "the input ended"),
        (MemoryError(), "not enough memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "not enough memory",
        ),
    ],
)
def test_what_the_machine_refuses_is_no_defect(tmp_path, capfd, error, part):
    assert end(error, tmp_path) == 2
    said = capfd.readouterr().err
    assert part in said and said.endswith(".\n") and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert refusal(ValueError("x")) is None and refusal(OSError("x")) is None


# --- in processes of their own ---------------------------------------------------------

CODE = (
    "import sys, time\n"
    "from idiolect.common.command import carry_out, new_parser\n"
    "from idiolect.common.text import tell\n"
    "from pathlib import Path\n"
    "def run(_):\n"
    "    {body}\n"
    "    return 0\n"
    "def make():\n"
    "    parser = new_parser('some', 'Something.')\n"
    "    parser.set_defaults(run=run)\n"
    "    return parser\n"
    "sys.exit(carry_out(make, None, lambda _: Path({folder!r})))\n"
)


def program(tmp_path: Path, body: str) -> list[str]:
    code = CODE.format(body=body, folder=str(tmp_path))
    (tmp_path / "code.py").write_text(code)
    return [sys.executable, str(tmp_path / "code.py")]


@pytest.mark.process
@pytest.mark.parametrize(
    "body",
    [
        "tell('line\\n' * 100_000)",
        "[tell('line') for _ in range(100_000)]",
        "from rich.console import Console; Console().print('a\\n' * 100_000)",
    ],
)
def test_who_stops_reading_hears_nothing(tmp_path, body):
    process = subprocess.Popen(
        program(tmp_path, body),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Without buffers one write may be cut short, and nothing comes after it.
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    )
    assert process.stdout and process.stderr
    process.stdout.read(1)
    process.stdout.close()
    said = process.stderr.read()
    assert (process.wait(60), said) == (141, b"")


@pytest.mark.process
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_below_the_output_is_said(tmp_path):
    for body in ("tell('line')", "print('line')"):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                program(tmp_path, body), stdout=full, stderr=subprocess.PIPE, text=True
            )
        assert done.returncode == 2
        assert "No space left" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.process
@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict", "latin-1", "cp1252"])
def test_what_a_terminal_lacks_is_replaced(tmp_path, encoding):
    body = "tell('wo 😀'); tell('no 😀', sys.stderr); print(ascii(sys.stdin.read()))"
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C"}
    done = subprocess.run(
        program(tmp_path, body),
        env=environment,
        input="é".encode() if "ascii" in encoding else b"a",
        capture_output=True,
    )
    assert done.returncode == 0
    assert done.stderr == b"no ?\n"
    assert done.stdout.startswith(b"wo ?\n")
    if "ascii" in encoding:  # what is read is UTF-8, not what the terminal shows
        assert done.stdout == b"wo ?\n'\\xe9'\n"


@pytest.mark.process
def test_a_threads_error_is_one_line(tmp_path):
    body = (
        "import threading\n    t = threading.Thread(target=lambda: 1 / 0)\n"
        "    t.start()\n    t.join()"
    )
    done = subprocess.run(program(tmp_path, body), capture_output=True, text=True)
    assert done.stderr.startswith("error: idiolect has a defect (ZeroDivisionError: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.process
@pytest.mark.parametrize("error", ["MemoryError()", "IdiolectError('no: more.')"])
def test_what_lacks_memory_waits_for_no_thread(tmp_path, error):
    # A library's thread that was refused memory can wait for ever.
    body = (
        "import threading\n    from idiolect.common.errors import IdiolectError\n"
        "    threading.Thread(target=threading.Event().wait).start()\n"
        "    tell('up')\n"
        f"    raise {error} from RuntimeError('cannot allocate memory')"
    )
    done = subprocess.run(
        program(tmp_path, body), capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout) == (2, "up\n")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.process
def test_ctrl_c_is_one_line(tmp_path):
    body = "tell('up'); time.sleep(60)"
    process = subprocess.Popen(
        program(tmp_path, body), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout and process.stderr
    assert process.stdout.readline() == b"up\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.stderr.read() == b"interrupted: start it again.\n"
    assert process.wait(60) == 130


@pytest.mark.process
@pytest.mark.parametrize("module", ["client", "server"])
def test_the_modules_are_commands_too(module):
    command = [sys.executable, "-m", f"idiolect.{module}.cli"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "required: COMMAND" in done.stderr
