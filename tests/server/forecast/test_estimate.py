"""From counts and speeds to time, memory, and what to lower: numbers alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from idiolect.common.config import parse
from idiolect.common.errors import IdiolectError
from idiolect.server.forecast import ask, estimate
from idiolect.server.forecast.estimate import Forecast
from idiolect.server.forecast.parts import Count, Part, Speed, Work
from idiolect.server.run import work
from idiolect.server.run.budget import Population
from idiolect.server.simulate import ahead as run_ahead
from idiolect.server.simulate import plan as planning
from idiolect.server.simulate.progress import Display
from idiolect.server.study import ahead
from idiolect.server.study.declaration import read_study
from tests.server.study.conftest import TEXT

SPEED = Speed(0.01, 0.02, 0.001, 0.002, 0.1, 0.01)
LAMP = str(Path(__file__).resolve().parents[3] / "simulations" / "lamp")


def part(phase: str, label: str, node: int, users: int = 2, **done: int) -> Part:
    method, trial = ("sft", "development" in label) if phase != "adapt" else ("", False)
    return Part(phase, label, node, users, Work(**done), method, trial)


PARTS = (
    part("adapt", "round 1", 0, adapted=1000),  # 10 s
    part("adapt", "round 1", 1, adapted=3000),  # 30 s
    part("adapt", "round 2", 0, adapted=2000),  # 20 s
    part("training", "sft, development", 0, trained=100, scored=2000),  # 4 s
    part("training", "sft", 0, trained=500),  # 10 s
    part("training", "sft", 1, trained=250),  # 5 s
    part("scores", "evaluate", 0, scored=1000),  # 1 s
    part("generation", "evaluate", 0, prompted=500, steps=10, written=100),  # 3 s
)
COUNT = Count(PARTS, SPEED)


def test_an_exchange_takes_as_long_as_its_slowest_node() -> None:
    shares = estimate.shares_of(COUNT, PARTS, 0.0)
    assert shares["adapt", "", False] == pytest.approx(30 + 20)
    assert shares["training", "sft", True] == pytest.approx(4)
    assert shares["training", "sft", False] == pytest.approx(10)
    assert shares["scores", "sft", False] == pytest.approx(1)
    assert shares["generation", "sft", False] == pytest.approx(1 + 1 + 1)
    assert estimate.total(COUNT, PARTS, 0.0) == pytest.approx(68)
    assert estimate.total(COUNT, PARTS, 0.5) == pytest.approx(68 + 5 * 0.5)


def test_what_is_computed_again_takes_time() -> None:
    again = Count(PARTS, SPEED, again=1.0)
    more = again.seconds(Work(adapted=100, trained=200)) - COUNT.seconds(
        Work(adapted=100, trained=200)
    )
    assert more == pytest.approx(300 * SPEED.scored)


def test_savings_are_what_the_rest_then_takes() -> None:
    keys = {"methods": "shared,sft", "adapt.rounds": 2, "users": 4, "history": 8}
    config = parse({**keys, "personalise.learning-rates": "1e-3,3e-3"})
    saved = dict(estimate.savings(config, COUNT, PARTS, 0.0))
    assert saved["adapt.rounds=1"] == pytest.approx(25)
    assert saved["history=4"] == pytest.approx((50 + 10 + 4) / 2, abs=0.1)
    assert saved["personalise.epochs=1"] == pytest.approx((10 + 4) * 2 / 3, abs=0.1)
    assert len(saved) == estimate.MOST and [*saved.values()] == sorted(
        saved.values(), reverse=True
    )
    whole = estimate.total(COUNT, PARTS, 0.0)
    assert all(value >= estimate.LEAST * whole for value in saved.values())


def test_the_progress_is_in_seconds_of_the_forecast(monkeypatch) -> None:
    config = parse(
        {"methods": "shared,sft", "adapt.rounds": 2, "unlabeled.kind": "self"}
    )
    weights = estimate.weights_of(config, COUNT)
    assert weights["adapt"] == pytest.approx(60 / 6)
    assert weights["trial sft"] == pytest.approx(4 / 2)
    assert weights["train sft"] == pytest.approx(15 / 4)
    assert weights["score sft"] == pytest.approx(1 / 2)
    assert weights["write sft"] == pytest.approx(4 / 2)
    monkeypatch.setenv(work.WEIGHTS, '{"adapt": 1.0}')  # of another configuration
    assert work.weights_of(config) == work.usual(config)
    monkeypatch.setenv(work.WEIGHTS, json.dumps(weights))
    assert work.weights_of(config) == weights
    one_rate = parse(
        {"methods": "sft", "development-users": 0, "unlabeled.kind": "self"}
    )
    total = work.whole(one_rate, Population(2, 0, 2), weights)
    assert total == pytest.approx(4 * 2 * 10 + 2 * 15 / 4 + 2 * 2)


def test_the_time_left_begins_with_the_forecast_and_follows_the_run(
    monkeypatch,
) -> None:
    from rich.console import Console

    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    display = Display(Console(), 1000.0)
    assert display._left(0.0) == "about 17 min left"
    clock[0] += 200  # twice as slow as foreseen, so far
    assert display._left(0.1) == "about 21 min left"  # .9 (.4 x 2000 + .6 x 1000) s
    clock[0] += 800
    assert display._left(0.5) == "about 17 min left"
    without = Display(Console())
    assert without._left(0.0) == ""
    clock[0] += 60
    assert without._left(0.5) == "about 60 s left"


def test_a_plan_counts_from_the_command_to_its_end(tmp_path: Path, monkeypatch) -> None:
    """Its own seconds, the start of Flower, Ray and the nodes, and the end."""
    found = {"start": 4.0, "bare": 1.0, "loaded": 100.0, "peak": 150.0}
    monkeypatch.setattr(run_ahead, "look", lambda *_: ([COUNT], found))
    monkeypatch.setattr(run_ahead, "age", lambda: 17.0)
    words = ["methods=shared,sft", "users=2"]
    made = run_ahead.forecast(planning.prepare(Path(LAMP), words, 2, tmp_path))
    phases = estimate.total(COUNT, PARTS, estimate.EXCHANGE)
    around = (estimate.STARTS + estimate.ENDS) * 4
    assert made.seconds == pytest.approx(17 + around + phases)
    assert made.phases == pytest.approx(phases)
    told = estimate.table(made)
    assert "this forecast" in told and "start" in told


def test_too_little_memory_is_said() -> None:
    enough = Forecast(60.0, 3000.0, 3001.0, {})
    assert estimate.warning(enough) == ""
    short = Forecast(60.0, 3000.0, 512.0, {})
    assert "about 2.9 GB and 512 MB are free" in estimate.warning(short)
    assert estimate.short(short) == "about 60 s in all, 2.9 GB"


@pytest.mark.parametrize(
    "said", ["", "Killed\n", "[1", '{"error": "no such model."}\n']
)
def test_a_process_that_cannot_answer_is_a_sentence(said: str) -> None:
    with pytest.raises(IdiolectError, match=r"has ended|no such model"):
        ask._answer(said)


def test_cells_that_share_work_are_foreseen_once(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "small.toml"
    path.write_text(TEXT.replace("MODEL", "tiny"))
    study = read_study(path)
    asked: list = []

    def look(configs, *given):
        asked.extend(configs)
        parts = (
            *PARTS[:3],
            *(p for p in PARTS[3:] if not p.trial),
            Part("training", "c-bpo", 0, 2, Work(trained=1000), "c-bpo"),  # 20 s
        )
        found = {"start": 5.0, "bare": 1.0, "loaded": 100.0, "peak": 150.0}
        return [Count(parts, SPEED, memory=80.0) for _ in configs], found

    monkeypatch.setattr(ahead, "look", look)
    monkeypatch.setattr(ahead, "age", lambda: 12.0)
    found, cells = ahead.forecast(study, tmp_path, since=3.0)
    # Seeds are alike; the two ratios are not.
    assert [config.unlabeled.ratio for config in asked] == [1.0, 2.0]
    # Of one seed, the second ratio has the adapter and SFT of the first.
    assert cells == pytest.approx([50 + 14 + 20, 20, 50 + 14 + 20, 20])
    assert found.seconds == pytest.approx(9 + 5 + sum(cells))
    assert found.phases == pytest.approx(sum(cells))
    assert found.memory == pytest.approx(180)
    assert dict(found.savings)["seed: one of 2 less"] == pytest.approx(sum(cells) / 2)
    # Of two processes each keeps one seed, and makes its adapter once.
    two, both = ahead.forecast(study, tmp_path, since=3.0, processes=2)
    assert both == pytest.approx(cells)
    assert two.longest == pytest.approx(sum(cells) / 2)


@pytest.mark.process
@pytest.mark.parametrize("words", [["simulate", LAMP], ["study", "small.toml"]])
def test_ctrl_c_ends_a_forecast_at_once(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(TEXT.replace("MODEL", "tiny"))
    command = [sys.executable, "-u", "-m", "idiolect.server.cli", *words, "--plan"]
    asked = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in asked.stdout or ():
        if line.startswith(("measuring", "study")):
            break
    time.sleep(1.0)
    began = time.monotonic()
    os.kill(asked.pid, signal.SIGINT)
    said = asked.communicate(timeout=30)[1]
    assert time.monotonic() - began < 3.0  # at once, on a busy machine
    assert (asked.returncode, said[:9]) == (130, "stopped: "), said
