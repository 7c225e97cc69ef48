"""What the device demo says at its end, without starting it."""

import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SAME = {"shared": "a text", "personal": "a text"}
NEWEST = {"number": 2, "nll_before": 3.0, "nll": 2.5}


@pytest.fixture(scope="module")
def demo() -> dict:
    sys.path.insert(0, str(BENCHMARKS))
    return runpy.run_path(str(BENCHMARKS / "device_demo.py"))


@pytest.mark.parametrize(
    ("texts", "status", "said"),
    [
        (
            {**SAME, "personal": "my text"},
            {"active": 2, "adapters": [NEWEST]},
            "differs",
        ),
        (SAME, {"active": 0, "adapters": [NEWEST]}, "the adapter is not in use"),
        (SAME, {"active": 0, "adapters": []}, "the adapter is not in use"),
        (SAME, {"active": 2, "adapters": [NEWEST]}, "from 3.000 to 2.500, but at no"),
    ],
)
def test_the_demo_says_why_texts_are_the_same(
    demo: dict, texts: dict, status: dict, said: str
) -> None:
    assert said in demo["why_equal"](texts, status)
