"""README and docs: short, with working links, and written by the commands they name."""

import gzip
import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from idiolect.server.findings.page import write_pages
from idiolect.server.study.declaration import cells, read_study

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
sys.path.insert(0, str(ROOT / "benchmarks"))  # its modules import each other
TABLE = runpy.run_path(str(ROOT / "benchmarks" / "readme.py"))


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"(?m)^#+ (.*)$", page.read_text())
    return {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        file, _, anchor = target.partition("#")
        place = page.parent / file if file else page
        assert place.exists(), target
        assert not anchor or anchor in headings(place), target


def test_the_readme_fits_on_a_screen() -> None:
    assert len(README.read_text().splitlines()) <= 100
    head, rest = README.read_text().split(TABLE["LAMP"].start)
    table, _ = rest.split(TABLE["END"])
    assert 3 <= len(table.splitlines()) <= 12
    for command in ("make lamp", "make real", "make device-demo"):
        assert command in head


@pytest.mark.parametrize("which", ["LAMP", "REAL"])
def test_a_table_is_that_of_its_result_file(which: str) -> None:
    one = TABLE[which]
    text = one.page.read_text()
    assert text.count(one.start) == 1 and TABLE["END"] in text.split(one.start)[1]
    if one.kept.exists():
        kept = json.loads(one.kept.read_text())
        assert TABLE["written"](text, kept, one) == text
    else:  # not made yet
        assert text.split(one.start)[1].startswith(TABLE["END"])


def test_the_table_of_the_readme_is_made_from_results() -> None:
    value = {"mean": 0.1234, "ci95": [0.05, 0.2], "n": 2}
    unclear = {"mean": -0.5, "ci95": [-0.7, 0.3], "n": 2}
    row = dict.fromkeys(TABLE["METRICS"], value)
    # Results of version 0.2 say oppu where the table says sft.
    names = [{"sft": "oppu"}.get(name, name) for name in TABLE["ROWS"]]
    results = {
        "run": {"seed": 3, "task": "headline", "commit": "c0ffee", "versions": {}},
        "users": {"a": {}, "b": {}},
        "methods": dict.fromkeys(names, row),
        "pairs": {
            "c-bpo - oppu": row | {"nll": unclear},
            "positives - oppu": row,
            "c-bpo - bco": row,
        },
    }
    text = f"before\n{TABLE['LAMP'].start}old\n{TABLE['END']}after\n"
    written = TABLE["written"](text, TABLE["taken"](results))
    assert written.startswith("before\n") and written.endswith("after\n")
    assert "old" not in written and "| 2 users, seed 3 | nll ↓ |" in written
    assert "| `sft`: own adapter: SFT | 0.123 |" in written
    assert "| c-bpo - sft | -0.500 (-0.700 to +0.300) | **+0.123** (" in written


def test_the_findings_are_what_their_result_files_say(tmp_path: Path) -> None:
    folder = ROOT / "docs" / "findings"
    for path in folder.glob("*.json.gz"):
        shutil.copy(path, tmp_path)
    page = write_pages(tmp_path)
    text = page.read_text().replace(f"({tmp_path.name}/", "(findings/")
    assert text == folder.with_suffix(".md").read_text()
    assert len(text.splitlines()) <= 150
    pages = [path for path in folder.iterdir() if path.name != "cells"]
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in pages}
    for path in pages:
        made = (tmp_path / path.name).read_bytes()
        made = made.replace(f"../{tmp_path.name}.md".encode(), b"../findings.md")
        assert made == path.read_bytes(), path.name


def test_the_findings_are_small() -> None:
    folder = ROOT / "docs" / "findings"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_000_000


def test_kept_cells_are_those_of_a_study_that_keeps_them() -> None:
    for path in (ROOT / "docs" / "findings" / "cells").iterdir():
        name = path.name.removesuffix(".json.gz")
        study = read_study(ROOT / "simulations/lamp/experiments" / f"{name}.toml")
        assert study.kept
        kept = json.loads(gzip.decompress(path.read_bytes()))
        known = {json.dumps(cell) for cell in cells(study)}
        assert {json.dumps(cell["cell"]) for cell in kept.values()} <= known


def test_the_sentences_of_the_findings_are_those_of_the_study_files() -> None:
    command = runpy.run_path(str(ROOT / "benchmarks" / "findings.py"))
    for name, found in command["load"](command["FOLDER"]).items():
        study = command["read_study"](command["STUDIES"] / f"{name}.toml")
        assert command["with_texts"](found, study) == found


def test_architecture_names_files_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"\b(?:client|common|server)/[\w/]+(?:\.py)?", text))
    assert len(named) > 30
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
