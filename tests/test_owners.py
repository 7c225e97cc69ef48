"""The twenty owners' histories, and the benchmark that personalises them."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import idiolect
from idiolect.client.imports.read import read

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "owners.py"
sys.path.insert(0, str(ROOT / "benchmarks"))
COMMAND = SimpleNamespace(**runpy.run_path(str(SCRIPT)))
NAMES = COMMAND.names()


# --- the histories ---------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_history_is_imported_as_it_is(name: str) -> None:
    rows = COMMAND.rows_of(name)
    found = read(COMMAND.OWNERS / f"{name}.jsonl")
    assert [(one.prompt.text, one.target) for one in found.entries] == [
        (row["prompt"], row["target"]) for row in rows
    ]
    assert all(one.liked for one in found.entries)
    assert (found.left_out, found.changed, found.ignored) == ({}, {}, {})
    assert 24 <= len(rows) <= 40
    lengths = {len(row["target"].split()) for row in rows}
    assert max(lengths) <= 60
    assert len(lengths) >= 5 or name.startswith("japanese")  # which has no blanks


def test_twenty_owners_share_no_text() -> None:
    assert len(NAMES) == 20
    texts = [
        COMMAND.plain(r["target"]) for name in NAMES for r in COMMAND.rows_of(name)
    ]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", NAMES)
def test_the_newest_texts_are_kept_out_of_the_import(name: str) -> None:
    rows = COMMAND.rows_of(name)
    known, unseen = COMMAND.parted(rows)
    assert [*known, *unseen] == rows
    assert len(unseen) == 6 and len(known) >= 18
    learnt = {COMMAND.plain(row["target"]) for row in known}
    assert not learnt & {COMMAND.plain(row["target"]) for row in unseen}


def test_no_text_of_an_owner_is_called_a_loop() -> None:
    for name in NAMES:
        for row in COMMAND.rows_of(name):
            assert not COMMAND.loops(row["target"]), row


# --- what is said of outputs -----------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "looping"),
    [
        ("I am not sure. " * 5, True),
        (
            "So we went to the sea, and the sea, and the sea, and the sea, and the sea",
            True,
        ),
        ("はい、そうです。" * 8, True),
        ("😂" * 60, True),
        ("ha ha ha ha ha ha", False),
        ("milk, eggs, milk, eggs, and again the milk that we forgot on Monday", False),
        ("", False),
    ],
)
def test_a_loop_is_told_from_a_text(text: str, looping: bool) -> None:
    assert COMMAND.loops(text) is looping


def test_a_summary_has_the_numbers_of_both_models() -> None:
    judged = {
        "rows": [
            {"prompt": "a", "target": "one two"},
            {"prompt": "b", "target": "six"},
        ],
        "tokens": [3, 2],
        "shared": {
            "logp": [-6.0, -4.0],
            "texts": ["one  TWO", "no end " * 20],
            "ended": [True, False],
        },
        "personal": {
            "logp": [-3.0, -4.5],
            "texts": ["one", " "],
            "ended": [True, True],
        },
    }
    found = COMMAND.summary(judged, {"One two", "else"})
    assert found["shared"] == {
        "nll": 2.0,
        "rouge-l": 0.5,
        "loops": 1,
        "empty": 0,
        "endless": 1,
        "copies": 1,
    }
    assert found["personal"] == {
        "nll": 1.5,
        "rouge-l": pytest.approx(1 / 3),
        "loops": 0,
        "empty": 1,
        "endless": 0,
        "copies": 0,
    }
    assert found["better"] == 1
    assert found["texts"][0] == {
        "prompt": "a",
        "target": "one two",
        "shared": "one  TWO",
        "personal": "one",
    }


def test_the_reason_does_not_depend_on_wording() -> None:
    better = {"nll": 1.0, "nll_before": 2.0, "nll_bare": 2.0}
    assert COMMAND.reason({"accepted": True, **better}) == ""
    assert COMMAND.reason({"accepted": False, "fault": "loops", **better}) == "loops"
    assert COMMAND.reason({"accepted": False, **better}) == "worse than before"
    worse = better | {"nll_bare": 0.9}
    assert COMMAND.reason({"accepted": False, **worse}) == "worse than without"


# --- the page --------------------------------------------------------------------------


def result(name: str, gain: float, reason: str = "", loops: int = 0) -> dict[str, Any]:
    """A result as `measured` returns it, with these findings."""
    count = {"rouge-l": 0.25, "loops": 0, "empty": 0, "endless": 0, "copies": 0}
    text = {"prompt": f"asked {name}", "target": "own", "shared": "", "personal": name}
    cost = {"seconds": 7.0, "cpu": 6.0, "bytes": 2e8, "first": None, "code": 0}
    return {
        "owner": name,
        "backbone": "some",
        "threads": "1",
        "imported": 20,
        "personalize": cost,
        "reason": reason,
        "shared": {"nll": 3.0, **count},
        "personal": {"nll": 3.0 - gain, **count, "loops": loops},
        "better": 4,
        "texts": [text],
        "command_agrees": True,
        "origin": {"commit": "c0ffee", "day": "2026-01-31", "processor": "1 x some"},
    }


def test_the_page_says_which_aims_are_missed() -> None:
    few = [result(f"n{k}", 0.1) for k in range(14)]
    lost = [result("lost", -1.0, "worse than without", loops=3)]  # not used: counts not
    text = COMMAND.page([*few, *lost])
    assert "| at least 15 adapters are used | 14 of 15 | **no** |" in text
    assert "| none of these ends in loops | none (0 of 84 outputs; " in text
    assert (
        "| none of these is below its shared model on unseen texts | none | yes |"
        in text
    )
    assert "| `lost` | 20 | no: worse than without | 7 | 6 | 200 | - | " in text
    bad = [result("looping", 0.2, loops=2), result("below", -0.01)]
    text = COMMAND.page([*few, *bad])
    assert "| at least 15 adapters are used | 16 of 16 | yes |" in text
    assert "| none of these ends in loops | `looping` (2 of 96 outputs; " in text
    assert "on unseen texts | `below` | **no** |" in text


def test_examples_are_the_best_the_median_and_the_worst() -> None:
    some = [result(f"n{k}", k / 10) for k in (2, 0, 4, 1, 3)]
    text = COMMAND.page([*some, result("lost", 9.0, "loops")])
    _, _, shown = text.partition("## Before and after")
    assert "Best: `n4`, +0.400 nats per token." in shown
    assert "Median: `n2`, +0.200 nats per token." in shown
    assert "Worst: `n0`, +0.000 nats per token." in shown
    assert "    before: (nothing)\n    after:  n4\n    owner:  own\n" in shown
    assert "lost" not in shown


def test_the_page_is_what_the_results_say() -> None:
    if not COMMAND.PAGE.exists():
        pytest.skip("the twenty owners have not been run on a real model yet")
    folder = COMMAND.RESULTS / "owners-smollm2"
    results = [json.loads((folder / f"{name}.json").read_text()) for name in NAMES]
    assert [one["history"] for one in results] == list(map(COMMAND.digest, NAMES))
    assert COMMAND.PAGE.read_text() == COMMAND.page(results)


# --- the command -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.process
def test_one_owner_from_a_vault_to_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--backbone", "tiny", "--owners", "1", "--into", str(tmp_path)]
    assert COMMAND.main(words) == 0
    (path,) = tmp_path.iterdir()
    found, rows = json.loads(path.read_text()), COMMAND.rows_of(NAMES[0])
    assert path.stem == found["owner"] == NAMES[0]
    assert found["imported"] == len(rows) - COMMAND.UNSEEN
    assert (
        found["version"]["trained"] + found["version"]["held_out"] == found["imported"]
    )
    assert [(t["prompt"], t["target"]) for t in found["texts"]] == [
        (row["prompt"], row["target"]) for row in rows[-COMMAND.UNSEEN :]
    ]
    unseen = [(row["prompt"], row["target"]) for row in rows[-COMMAND.UNSEEN :]]
    assert found["shared"]["nll"] == pytest.approx(idiolect.load("tiny").nll(unseen))
    assert found["personal"]["nll"] < found["shared"]["nll"]
    assert found["command_agrees"]
    cost = found["personalize"]
    assert cost["cpu"] > 0 and cost["bytes"] > 50e6
    assert 0 < cost["first"] < cost["seconds"]
    # What is there is not measured again; a history that changed is.
    main = COMMAND.main
    monkeypatch.setitem(main.__globals__, "measured", _refused)
    assert main([*words, "--resume"]) == 0
    path.write_text(json.dumps({**found, "history": "other"}))
    assert main([*words, "--resume"]) == 1


def _refused(*_: object) -> None:
    raise RuntimeError("measured again")
