"""What TensorBoard's own reader finds of a run and of a study."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from idiolect.common.config import parse, to_toml
from idiolect.server import cli
from idiolect.server.report.tracker import track
from idiolect.server.run import results
from tests.server.report.material import many

accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator"
)
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]


def run_of(place: Path, found: Any, **state: Any) -> Path:
    """Write the folder of a run with curves of two users."""
    folder = place / "runs" / "one"
    (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
    results.write_json(folder / "results.json", found)
    (folder / "config.toml").write_text(to_toml(parse({"users": 7, "history": 9})))
    (folder / "checkpoint/state.json").write_text(json.dumps(state))
    for user, losses in (("u000", [3.0, 2.0, 1.0]), ("u001", [5.0, 4.0])):
        path = folder / "curves" / "sft" / f"{user}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"user": user, "loss": losses}))
    return folder


def read(folder: Path) -> Any:
    found = accumulator.EventAccumulator(str(folder))
    found.Reload()
    return found


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> step and value of each event."""
    found = read(folder)
    return {
        tag: [(one.step, one.value) for one in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def test_a_run_as_its_library_reads_it(tmp_path):
    found = many(6)
    trials = {"sft": {"0.01": [0, 2.5], "0.001": [0, 2.75], "0.1": [1, math.nan]}}
    folder = run_of(tmp_path, found, trials=trials)
    to = track("one", str(folder.parent), tmp_path / "tb")
    assert to == tmp_path / "tb" / "one"
    sft, entry = scalars(to / "sft"), found["methods"]["sft"]["nll"]
    assert sft["training/loss"] == [(1, 4.0), (2, 3.0), (3, 1.0)]
    assert sft["learning rates tried/nll"] == [(1, 2.75), (2, 2.5)]
    rates = [rate for _, rate in sft["learning rates tried/rate"]]
    assert rates == pytest.approx([0.001, 0.01])
    for part, value in zip(
        ("mean", "low", "high"), (entry["mean"], *entry["ci95"]), strict=True
    ):
        assert sft[f"nll/{part}"] == [(0, pytest.approx(value))]
    pair = found["pairs"]["c-bpo - sft"]["nll"]["mean"]
    between = scalars(to / "c-bpo-minus-sft")
    assert between["nll difference/mean"] == [(0, pytest.approx(pair))]
    own = read(to)
    (said,) = own.Tensors("who won/text_summary")
    assert b"c-bpo won" in said.tensor_proto.string_val[0]
    settings = str(own.SummaryMetadata("_hparams_/session_start_info"))
    assert "users" in settings and "history" in settings and "methods" not in settings
    assert scalars(to)["nll/sft"] == [(0, pytest.approx(entry["mean"]))]


def test_written_again_there_is_each_number_once(tmp_path):
    """So it is after an interruption, too: all comes from the files that are there then."""
    folder = run_of(tmp_path, many(6))
    to = track("one", str(folder.parent), tmp_path)
    first = {path.parent.name: scalars(path.parent) for path in to.rglob("*.idiolect")}
    own = to / "events.out.tfevents.1.somebody"
    own.write_bytes(b"")
    track("one", str(folder.parent), tmp_path)
    again = {path.parent.name: scalars(path.parent) for path in to.rglob("*.idiolect")}
    assert first == again and own.exists()


def test_nothing_of_one_user_is_in_it(tmp_path):
    found = many(6)
    found["users"] = {f"canary-{user}": row for user, row in found["users"].items()}
    folder = run_of(tmp_path, found)
    to = track("one", str(folder.parent), tmp_path)
    whole = b"".join(path.read_bytes() for path in to.rglob("*.idiolect"))
    assert b"canary" not in whole and b"sft" in whole
    values = {
        value
        for path in to.rglob("*.idiolect")
        for points in scalars(path.parent).values()
        for _, value in points
    }
    for row in found["users"].values():
        for method in ("sft", "c-bpo"):
            assert not any(math.isclose(row[method]["nll"], v) for v in values)


def test_of_devices_there_is_what_the_results_hold(tmp_path):
    found = many(6)
    found["privacy"]["mode"] = "none"
    folder = run_of(tmp_path, found, trials={"sft": {"0.01": [0, 2.5]}})
    to = track("one", str(folder.parent), tmp_path)
    tags = {tag for path in to.rglob("*.idiolect") for tag in scalars(path.parent)}
    assert "nll/mean" in tags
    kept = {"training/loss", "training/last loss"}
    assert not kept & tags and not any("tried" in tag for tag in tags)


def test_what_is_not_finite_is_left_out(tmp_path):
    found = many(3)
    found["methods"]["sft"]["nll"] |= {"mean": math.nan}
    found["methods"]["c-bpo"]["nll"] |= {"ci95": None}
    folder = run_of(tmp_path, found)
    to = track("one", str(folder.parent), tmp_path)
    assert "nll/mean" not in scalars(to / "sft")
    assert "nll/low" not in scalars(to / "c-bpo")
    assert "nll/mean" in scalars(to / "c-bpo")


def test_a_study_as_its_library_reads_it(tmp_path):
    kept = ROOT / "docs" / "findings" / "uniqueness.json.gz"
    to = track(str(kept), "", tmp_path)
    found = {path.parent.name: scalars(path.parent) for path in to.rglob("*.idiolect")}
    assert len(found) > 2
    means = [
        points for tags in found.values() for t, points in tags.items() if "/" in t
    ]
    assert means and all(steps == sorted(steps) for steps in means)
    said = read(to).Tags()["tensors"]
    assert {"answer/text_summary", "steps/text_summary"} <= set(said)


# --- the command -----------------------------------------------------------------------


def test_the_command_writes_it_and_says_where(tmp_path, capsys):
    folder = run_of(tmp_path, many(6))
    words = ["report", "one", "--output-dir", str(folder.parent)]
    assert cli.main(words) == 0
    assert "tensorboard" not in capsys.readouterr().out
    assert cli.main([*words, "--tensorboard", str(tmp_path / "tb")]) == 0
    assert f"tensorboard: {tmp_path / 'tb' / 'one'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["report", "one"], ["simulate"], ["study", "file.toml"]]
)
def test_without_the_extra_it_is_said_before_anything_begins(
    words, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert cli.main([*words, "--tensorboard", str(tmp_path / "tb")]) == 2
    assert "pip install 'idiolect[tensorboard]'" in capsys.readouterr().err
    assert not (tmp_path / "tb").exists()


def test_a_file_in_the_way_is_said(tmp_path, capsys):
    folder = run_of(tmp_path, many(6))
    (tmp_path / "tb").write_text("a file")
    words = ["report", "one", "--output-dir", str(folder.parent), "--tensorboard"]
    assert cli.main([*words, str(tmp_path / "tb")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_no_device_and_no_part_of_a_run_knows_of_it():
    for side in ("client", "common", "server/run", "server/deploy", "server/simulate"):
        for path in (ROOT / side).rglob("*.py"):
            assert not re.search("tensorboard|tracker", path.read_text(), re.I), path
