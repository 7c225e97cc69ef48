"""What the device demo says at its end, without starting it."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

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


class Demo:
    """Devices whose adapters are in use, or refused."""

    def __init__(self, *active: int) -> None:
        self.active, self.count = active, len(active)

    def command(self, device: str, *words: str) -> str:
        number = self.active[int(device.removeprefix("device"))]
        return json.dumps({"active": number}) if "--json" in words else f"of {device}"


@pytest.mark.parametrize(
    ("active", "found", "said"),
    [
        ((1, 2), 0, "of device0\n"),
        ((0, 2, 0), 1, "of device0\nof device1\n"),
        ((0, 0), None, "of device0\nof device1\n"),
    ],
)
def test_the_demo_compares_on_a_device_with_an_adapter_in_use(
    demo: dict, capsys: Any, active: tuple, found: int | None, said: str
) -> None:
    assert demo["chosen"](Demo(*active)) == found
    assert capsys.readouterr().out == said
