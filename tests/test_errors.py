"""Every error exit of both commands that a command line provokes, and the page of them."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.slow  # `make quick` leaves these files out

ROOT = Path(__file__).resolve().parent.parent
COMMAND = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "errors.py")))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Case -> code and what was said."""
    folder = tmp_path_factory.mktemp("errors").resolve()
    return {case: (code, said) for case, code, said in COMMAND.rows(folder)}


def name(case) -> str:
    return f"{case.command} {case.words} {case.code}"


@pytest.mark.parametrize("case", COMMAND.CASES, ids=name)
def test_an_error_is_one_sentence_with_a_next_step(found, case):
    code, said = found[case]
    assert code == case.code
    assert case.part in said
    assert "Traceback" not in said and said.count("\n") == 1
    assert said.endswith((".\n", "?\n"))
    sentence = said.removeprefix("error: ")
    assert (sentence == said) is (code == 130)
    what, _, next_step = sentence.replace("must be", ": be").partition(": ")
    assert what and len(next_step) > 8, "it says what is wrong, and what to do"


def test_the_page_is_current(found):
    rows = [(case, *found[case]) for case in COMMAND.CASES]
    written = (ROOT / "docs" / "errors.md").read_text()
    assert written == COMMAND.page(rows), "run `python benchmarks/errors.py`"


def test_every_command_has_a_case():
    from idiolect.client import cli as device
    from idiolect.server import cli as server

    from .test_terminal import leaves

    never_wrong = {
        ("history", "sources"),
        ("sent",),
        ("doctor",),  # it reports problems, and ends with 1
        ("directory",),
        ("pause",),
        ("resume",),
        ("reset",),
    }
    never_wrong |= {("vault", "check"), ("vault", "rewrap"), ("runs",)}
    for command, parser in (("idiolect", device), ("idiolect-server", server)):
        typed = [c.words.split() for c in COMMAND.CASES if c.command == command]
        for leaf in leaves(parser._parser()):
            known = any(tuple(words[: len(leaf)]) == leaf for words in typed)
            assert known or leaf in never_wrong, leaf
