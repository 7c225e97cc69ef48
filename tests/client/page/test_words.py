"""What the page says in place of a terminal's words: every sentence that it can show."""

import ast
import re
from pathlib import Path

import pytest

from idiolect.client.page import views
from idiolect.client.page.words import DAY, KEEP, MONTH, NEWEST, SKIP, WHOSE, on_page

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "client/page/page.html").read_text()
# Modules whose sentences reach the page; `models`, `unlock` and `elsewhere` end before it.
SHOWN = [
    *sorted((ROOT / "client/imports").glob("*.py")),
    *(
        ROOT / "client/owner" / f"{name}.py"
        for name in (
            *("training", "learning", "judging", "writing", "forgetting"),
            *("adapters", "history", "limits", "interrupted"),
            *("consent", "store", "database", "resident"),
        )
    ),
    *(ROOT / "client/commands" / f"{name}.py" for name in ("status", "personalize")),
    *(ROOT / "client/page" / f"{name}.py" for name in ("app", "work", "uploads")),
]
# Of these modules: said by commands alone, never by the page.
ELSEWHERE = re.compile(r"^(?:`idiolect \w+|next: |\(`|  neither|  in sums)")


def sentences(path: Path) -> list[str]:
    """Texts of a module that are no docstrings; X stands for what is put in."""

    def text(node: ast.expr) -> str:
        if isinstance(node, ast.JoinedStr):
            return "".join(
                str(one.value) if isinstance(one, ast.Constant) else "X"
                for one in node.values
            )
        value = node.value if isinstance(node, ast.Constant) else ""
        return value if isinstance(value, str) else ""

    tree = ast.parse(path.read_text())
    inner = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
    docs = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return [
        text(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant | ast.JoinedStr)
        and id(node) not in inner | docs
    ]


def for_a_terminal(said: str) -> bool:
    """Whether a sentence has options, or commands without saying where."""
    here = re.sub(r"`idiolect [^`]*`,? in a terminal", "", said)
    return bool(re.search(r"`idiolect|(?<![\w-])--[a-z]", here))


EVERY = [
    pytest.param(text, id=f"{path.stem}: {text[:40]}")
    for path in SHOWN
    for text in sentences(path)
    if for_a_terminal(text)
]


def test_there_are_such_sentences() -> None:
    assert len(EVERY) > 20


@pytest.mark.parametrize("text", EVERY)
def test_no_sentence_speaks_of_a_terminal_as_if_it_were_here(text: str) -> None:
    said = on_page(text)
    assert not for_a_terminal(said), said
    assert said.count("`") % 2 == 0 and on_page(said) == said


@pytest.mark.parametrize("field", [WHOSE, SKIP, DAY, MONTH, KEEP, NEWEST])
def test_the_fields_that_are_named_are_on_the_page(field: str) -> None:
    assert field.strip("“”") in PAGE


def test_the_parts_that_are_named_are_on_the_page() -> None:
    every = " ".join(on_page(text) for path in SHOWN for text in sentences(path))
    named = set(re.findall("“([^”]*)”", every))
    assert {"Texts", "Train", "Adapters"} <= named
    assert [name for name in named if name not in PAGE] == []


def test_other_sentences_stay_as_they_are() -> None:
    for said in ("this is so: do that.", "a -- b", "`x` and --", "--", "a--user b"):
        assert on_page(said) == said
    for text, *_ in views.NEXT.values():
        assert not for_a_terminal(text)
