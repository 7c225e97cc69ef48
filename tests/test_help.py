"""Help, its examples, and completion, of both commands."""

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from idiolect.client import cli as device
from idiolect.common.command import COMPLETION, Command
from idiolect.common.completion import script
from idiolect.common.config import parse, parse_word
from idiolect.server import cli as server

SIDES = {"idiolect": device, "idiolect-server": server}
EVERY = [
    pytest.param(name, command, id=f"{name} {command.words}")
    for name, side in SIDES.items()
    for command in (*side.COMMANDS, COMPLETION)
]
MOST = 2  # arguments of its own that a command can have without an example


@pytest.mark.parametrize(("name", "command"), EVERY)
def test_a_command_with_several_options_has_an_example(name, command: Command) -> None:
    assert command.examples or len(command.arguments) <= MOST
    assert len(command.examples) <= 2


@pytest.mark.parametrize(("name", "command"), EVERY)
def test_every_example_is_a_command_line(name, command: Command) -> None:
    for example in command.examples:
        words = shlex.split(f"{command.words} {example}")
        options = SIDES[name]._parser().parse_args(words)
        if command.words == "simulate":
            given = (word.split("=", 1) for word in options.words)
            parse({key: parse_word(key, value) for key, value in given})


def test_an_example_that_is_wrong_would_be_found() -> None:
    with pytest.raises(Exception, match="unrecognized arguments: --serch"):
        device._parser().parse_args(shlex.split("history list --serch lunch"))


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from parsers(one)


@pytest.mark.parametrize("name", SIDES)
def test_help_fits_80_columns_and_shows_examples_as_they_are(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("IDIOLECT_HOME", "/home/ann/.idiolect")
    texts = {one.prog: one.format_help() for one in parsers(SIDES[name]._parser())}
    for prog, text in texts.items():
        assert max(map(len, text.splitlines())) <= 80, (prog, text)
    for command in SIDES[name].COMMANDS:
        lines = texts[f"{name} {command.words}"].splitlines()
        for example in command.examples:
            assert f"  {name} {command.words} {example}".rstrip() in lines


# --- completion ------------------------------------------------------------------------

ASK = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
COMP_LINE="$*"
COMP_POINT=${#COMP_LINE}
compopt() { :; }  # only inside of a completion
found=$(complete -p "$1" | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
"$found" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `completion bash` prints."""
    folder = tmp_path_factory.mktemp("completion")
    for name, side in SIDES.items():
        (folder / name).write_text(script(side._parser(), "bash"))
    return folder


@pytest.mark.process
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("idiolect per", {"personalize"}),
        ("idiolect h", {"history"}),
        ("idiolect history s", {"sources"}),
        ("idiolect personalize --met", {"--method"}),
        ("idiolect personalize --method ", {"c-bpo", "sft"}),
        ("idiolect feedback ", {"up", "down"}),
        ("idiolect import --vau", {"--vault"}),
        ("idiolect import pos", {"posts.csv"}),
        ("idiolect completion ", {"bash", "zsh"}),
        ("idiolect nonsense ", set()),
        ("idiolect-server sim", {"simulate"}),
        ("idiolect-server nodes ", {"add", "list", "revoke"}),
        ("idiolect-server report --te", {"--texts"}),
    ],
)
def test_bash_completes(written: Path, tmp_path: Path, typed: str, said: set) -> None:
    (tmp_path / "posts.csv").touch()
    words = typed.split(" ")
    done = subprocess.run(
        ["bash", "-c", ASK, "ask", str(written / words[0]), *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = set(done.stdout.split())
    assert said <= found, done.stderr
    last = words[-1]
    assert all(one.startswith(last) for one in found)
    assert last or found == said or not said


@pytest.mark.parametrize("main", [device.main, server.main])
def test_the_command_prints_the_script(main: Any, capsys: Any) -> None:
    for shell, mark in (("bash", "complete "), ("zsh", "#compdef idiolect")):
        assert main(["completion", shell]) == 0
        said = capsys.readouterr().out
        assert mark in said and "personalize" in said or "simulate" in said


def test_without_the_package_it_is_named(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert device.main(["completion", "bash"]) == 2
    assert "pip install shtab" in capsys.readouterr().err
