"""The main job and a study on two Ray nodes of this machine, one of which is killed."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray")

ROOT = Path(__file__).resolve().parents[3]
PATH = ROOT / "benchmarks" / "ray_cluster.py"
sys.path.insert(0, str(ROOT / "benchmarks"))  # what the command imports
COMMAND = runpy.run_path(str(PATH))


def test_who_answered_is_read_from_the_log() -> None:
    said = "messages answered on Ray's machine "
    lines = [f"INFO : {said}0a1b: 12", "other: 3", f"{said}0a1b: 11"]
    log = "\n".join([*lines, f"\x1b[92mINFO\x1b[0m : {said}ff: 4\n"])
    assert COMMAND["answered"](log) == {"0a1b": 12, "ff": 4}


def test_the_table_says_where_numbers_differ() -> None:
    def one(equal: bool) -> dict:
        return {"seconds": 12.3, "answered": {"a": 1, "b": 5}, "equal": equal}

    runs = {"alone": one(True), "both": one(True)}
    runs |= {"resumed": one(True), "killed": one(False)}
    studies = {
        "alone": {"seconds": 9, "equal": True},
        "both": {"seconds": 8, "equal": True},
        "killed": {"seconds": 7, "equal": False},
    }
    report = {"users": 3, "namespaces": True, "runs": runs, "studies": studies}
    text = COMMAND["table"](report)
    assert "| two Ray nodes of one core | 12 | 5, 1 | bit for bit |" in text
    assert "killed (`kill -9`) | 12 | 5, 1 | **no** |" in text
    assert "| two Ray nodes of one core | 8 | byte for byte |" in text
    assert "killed (`kill -9`) | 7 | **no** |" in text
    assert "a network and a host name of its own" in text
    assert "one network" in COMMAND["table"](report | {"namespaces": False})


def test_the_page_has_the_table_of_its_result_file() -> None:
    kept = ROOT / "benchmarks" / "results" / "ray_cluster.json"
    table = COMMAND["table"](json.loads(kept.read_text()))
    text = COMMAND["PAGE"].read_text()
    assert f"{COMMAND['BEGIN']}{table}{COMMAND['END']}" in text


@pytest.mark.slow
def test_two_nodes_compute_what_one_machine_does_and_one_may_die() -> None:
    done = subprocess.run(
        [sys.executable, str(PATH), "--users", "3", "--check"],
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert len(report["runs"]["killed"]["answered"]) == 2
    assert report["adapters"] == 6  # three users, two methods
    assert report["cells"] == 4
    for one in (*report["runs"].values(), *report["studies"].values()):
        assert one["equal"]
