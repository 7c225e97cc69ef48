"""The list of deliberate mistakes fits the code, the tests and the page about it.

Whether the tests notice them is for `python benchmarks/mutations.py` to say, which takes
minutes; that the command itself can tell is tested here on a code of two lines.
"""

import ast
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMAND = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "mutations.py")))
MUTATIONS = COMMAND.MUTATIONS


def title(mutation) -> str:
    return mutation.title


@pytest.mark.parametrize("mutation", MUTATIONS, ids=title)
def test_a_mutation_changes_one_place_and_leaves_python(mutation) -> None:
    text = (ROOT / mutation.file).read_text()
    assert text.count(mutation.old) == 1
    changed = text.replace(mutation.old, mutation.new)
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(text))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=title)
def test_the_test_that_must_fail_exists(mutation) -> None:
    file, name = mutation.node.split("::")
    tree = ast.parse((ROOT / file).read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert name.partition("[")[0] in functions


def test_titles_are_unique_and_fit_a_table() -> None:
    titles = [mutation.title for mutation in MUTATIONS]
    assert len(set(titles)) == len(titles) >= 24
    assert not any("|" in text for text in titles)


def test_the_page_lists_exactly_the_declared_mutations() -> None:
    page = (ROOT / "docs" / "mutations.md").read_text()
    found = re.findall(r"^\| (.+?) \| `(.+?)` \| `(.+)` \|$", page, re.MULTILINE)
    assert len(found) == len(MUTATIONS), "run `python benchmarks/mutations.py`"
    for mutation, (text, file, test) in zip(MUTATIONS, found, strict=True):
        assert (text, file) == (mutation.title, mutation.file)
        assert test == mutation.node or test.startswith(f"{mutation.node}[")
    rows = [(mutation, row[2]) for mutation, row in zip(MUTATIONS, found, strict=True)]
    assert page == COMMAND.page(rows)


@pytest.fixture
def little_code(tmp_path: Path) -> Path:
    """A copy of a repository with one function, and a test that passes."""
    root = tmp_path / "root"
    files = {
        "client/__init__.py": "",
        "common/__init__.py": "",
        "common/sums.py": "def add(a, b):\n    return a + b\n",
        "server/__init__.py": "",
        "tests/common/test_sums.py": "from idiolect.common.sums import add\n\n"
        "def test_add():\n    assert add(2, 3) == 5\n",
        "pyproject.toml": "",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return COMMAND.copy_of_the_code(tmp_path / "place", root)


@pytest.mark.parametrize(
    ("old", "new", "failed", "why"),
    [
        ("a + b", "a - b", "tests/common/test_sums.py::test_add", ""),
        ("a + b", "b + a", "", "the test passes"),
        ("a + b", "a +", "", "the test could not be run"),
        ("a * b", "a - b", "", "its text occurs 0 times"),
        ("a", "b", "", "its text occurs 3 times"),
    ],
)
def test_the_command_tells_a_noticed_mutation_from_others(
    little_code: Path, old: str, new: str, failed: str, why: str
) -> None:
    mutation = COMMAND.Mutation("t", "common/sums.py", old, new, "test_add")
    found = COMMAND.try_out(little_code, mutation)
    assert found[0] == failed
    assert found[1].startswith(why) and bool(found[1]) == bool(why)
    assert "a + b" in (little_code / "common/sums.py").read_text()


def test_only_the_copy_is_tested(little_code: Path) -> None:
    (little_code.parent / "packages/idiolect/common").unlink()
    (little_code.parent / "packages/idiolect/common").symlink_to(ROOT / "common")
    outcome = COMMAND.run_tests(little_code, ["tests"])
    assert outcome.code != 0 and not outcome.failed
    assert "not from the copy" in outcome.printed
