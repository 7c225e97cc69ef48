"""The page about exports in llama.cpp says what was measured."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
COMMAND = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "llama_cpp.py")))
RESULT = ROOT / "benchmarks" / "results" / "llama_cpp.json"


def test_the_page_is_what_the_results_say() -> None:
    if not RESULT.exists():
        pytest.skip("not measured")
    assert COMMAND.PAGE.read_text() == COMMAND.page(json.loads(RESULT.read_text()))


def cell(theirs: list[Any]) -> dict[str, Any]:
    texts = {"we write": ["a | b"], "they write": ["a <c>"]}
    return {
        "who": "own",
        "file": "F16",
        "ours": [[1, 2], [3, 4]],
        "theirs": theirs,
    } | texts


def test_a_missed_goal_is_said_and_texts_cannot_break_a_table() -> None:
    report = {
        "cells": [cell([[1, 2], [3, 4]]), cell([[1, None], [3, 5]])],
        "prompts": ["ask"],
        "peft": 1e-6,
        "merged": 1e-5,
        "build": "some build",
        "origin": {"commit": "abc", "day": "2026-01-01"},
    }
    page = COMMAND.page(report)
    assert "The goal is not reached; the lowest share is 50.0%." in page
    assert "| own | F16 | 4 | 100.0% | 100.0% |" in page
    assert "| ask | a \\| b | a &lt;c> |" in page
    assert "0 of 2 texts are equal" in page
    report["cells"] = report["cells"][:1]
    assert "The goal is reached; the lowest share is 100.0%." in COMMAND.page(report)


def test_the_rows_are_paired_and_none_is_left_out() -> None:
    assert COMMAND.share([[1, 2], [3]], [[1, 5], [3]]) == (2, 3)
    for odd in ([[1, 2]], [[1], [3]]):
        with pytest.raises(ValueError, match="zip"):
            COMMAND.share([[1, 2], [3]], odd)
