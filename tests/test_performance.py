"""docs/performance.md says what the result files say."""

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMAND = runpy.run_path(str(ROOT / "benchmarks" / "performance.py"))


def test_the_page_is_made_from_the_results(tmp_path) -> None:
    main = COMMAND["main"]
    main.__globals__["PAGE"] = tmp_path / "performance.md"
    main()
    made = (tmp_path / "performance.md").read_text()
    assert made == (ROOT / "docs" / "performance.md").read_text()


def test_a_target_that_is_missed_is_said_to_be() -> None:
    assert COMMAND["met"](0.5, "≤ 0.5") == "yes"
    assert COMMAND["met"](0.6, "≤ 0.5") == "**no**"
    assert COMMAND["met"](3.9, "≥ 4") == "**no**"
