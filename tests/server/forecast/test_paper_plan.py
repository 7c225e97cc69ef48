"""The plan of study `paper` without weights and data: what is counted, and what is said."""

import importlib
import json
import statistics
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from idiolect.common.config import parse
from idiolect.common.data.lamp.forms import FORMS
from idiolect.common.data.load import load_dataset
from idiolect.server.forecast import bare, gpus
from idiolect.server.forecast.counts import Counting, all_parts
from idiolect.server.forecast.estimate import Forecast, shares_of
from idiolect.server.forecast.parts import Count, Work
from idiolect.server.run.local import fitted
from idiolect.server.study.declaration import cell_config, cells, read_study

ROOT = Path(__file__).resolve().parents[3]
USERS = 12
A100 = gpus.GPUS["a100-80gb"]


@pytest.fixture(scope="module")
def command() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        return importlib.import_module("paper_plan")


@pytest.fixture(scope="module")
def lengths(command) -> dict:
    return tomllib.loads(command.LENGTHS.read_text())


@pytest.fixture(scope="module")
def places(command, lengths, tmp_path_factory) -> Path:
    """Model without weights, and data of a few users."""
    folder = tmp_path_factory.mktemp("paper")
    words = command.write_model(folder / "models" / command.MODEL)
    command.write_data(folder / "data", lengths, words, USERS)
    return folder


def config_of(command, places: Path, task: str, **changes):
    """The configuration of a cell, of fewer users."""
    study = read_study(command.STUDY)
    found = next(c for c in cells(study) if cell_config(study, c).task == task)
    data = cell_config(study, found).data.replace(
        "$IDIOLECT_DATA", str(places / "data")
    )
    backbone = str(places / "models" / command.MODEL)
    keys = {"task": task, "data": data, "backbone": backbone, "held-out": 1}
    keys |= {"users": USERS, "development-users": 0, "history": 100}
    keys |= {"engine.dtype": "bfloat16", "engine.max-length": 2048}
    keys |= {"unlabeled.kind": "others", "personalise.learning-rates": "1e-6"}
    return parse(keys | changes)


def test_the_model_has_the_published_shape_and_no_weights(command, places):
    folder = places / "models" / command.MODEL
    assert not [*folder.glob("*.safetensors")]
    found = json.loads((folder / "config.json").read_text())
    shape = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
    shape |= {"num_key_value_heads": 8, "intermediate_size": 14336}
    shape |= {"vocab_size": 32768, "max_position_embeddings": 32768}
    assert {name: found[name] for name in shape} == shape
    assert (
        found["sliding_window"] is None
        and found["rope_parameters"]["rope_theta"] == 1e6
    )
    backbone = bare.backbone_of(config_of(command, places, "LaMP-4"))
    assert backbone.parameters == 7248023552  # as paper.toml states it
    # Two sides, 32 layers, 8 heads of 128 numbers, two bytes each.
    assert bare.cache_bytes(backbone, 1) == 2 * 32 * 8 * 128 * 2


@pytest.mark.parametrize("task", ["LaMP-4", "LaMP-5", "LongLaMP-review"])
def test_texts_have_the_tokens_that_lengths_ask_for(command, places, lengths, task):
    config = config_of(command, places, task)
    backbone, dataset = bare.backbone_of(config), load_dataset(config)
    items = [item for user in dataset.users for item in user.history]
    assert len(dataset.users) == USERS and len(items) > 100
    inputs = [len(backbone.wording.ids(item.prompt.input)) for item in items]
    outputs = [len(backbone.wording.ids(item.target)) for item in items]
    rates = {"input": 1.4, "output": 1.9 if task.startswith("LaMP") else 1.4}
    for name, found in (("input", inputs), ("output", outputs)):
        wanted = lengths[task][name][0] * rates[name]
        assert statistics.fmean(found) == pytest.approx(wanted, rel=0.12), name
    # An instruction has hardly more tokens than words.
    before = items[0].prompt.before
    assert len(backbone.wording.ids(before)) < 1.7 * len(before.split()) + 6


def test_drawn_lengths_have_their_moments(command):
    import random

    rng = random.Random(0)
    found = [command.drawn(300, 200, rng) for _ in range(20000)]
    assert statistics.fmean(found) == pytest.approx(300, rel=0.02)
    assert statistics.stdev(found) == pytest.approx(200, rel=0.05)
    assert min(command.drawn(1, 5, rng) for _ in range(100)) == 1


def test_hours_are_the_tokens_of_all_texts_times_what_one_costs(command, places):
    """By hand: three passes over every history, 4 operations per weight and token."""
    keys = {"users": 3, "methods": "shared,sft", "adapt.rounds": 0}
    keys |= {"personalise.epochs": 3, "evaluate.generate": False}
    config = config_of(command, places, "LaMP-4", **keys)
    backbone = bare.backbone_of(config)
    dataset = fitted(backbone, load_dataset(config))
    counting = Counting(bare.within(config, A100, backbone), backbone, dataset, 1)
    parts = all_parts(counting)
    trained = sum(part.work.trained for part in parts)
    exact = 3 * sum(
        len(backbone.encode(item).ids)
        for user in dataset.users
        for item in user.history
    )
    assert exact <= trained < 2 * exact  # fillers: lengths differ much
    count = Count(tuple(parts), bare.speed_on(A100, backbone))
    shares = shares_of(count, parts, 0.0)
    weights = 7248023552 - (32768 + 65) * 4096
    seconds = trained * 4 * weights / (gpus.SHARE * 312e12)
    assert shares["training", "sft", False] == pytest.approx(seconds)


def test_a_plan_says_what_was_forecast(command, lengths):
    work = Work(
        adapted=1_000_000, trained=2_000_000, scored=4_000_000, written=7_000_000
    )
    shares = {("training", "sft", False): 7200.0, ("training", "c-bpo", True): 3600.0}
    shares |= {("generation", "sft", False): 1800.0}
    ahead = Forecast(
        12600.0,
        20 * 1024,
        24 * 1024,
        shares,
        tokens=work,
        longest=3600.0,
        backbone=13824.0,
    )
    entry = command.entry(ahead, {"LaMP-4": 3.5}, "l4-24gb", 4)
    assert entry["phases"] == {"training": 3.0, "outputs": 0.5}
    found = {"users": 200, "lengths": lengths, "plans": [entry]}
    said = "\n".join(command.lines(found))
    assert "| tokens trained (forward and backward) | 3 million |" in said
    assert "| memory of a GPU, GiB | 20.0 of 24 |" in said
    assert "| of that, weights | 13.5 |" in said and "| fits | yes |" in said
    assert "| until the last GPU is done | 60 min |" in said
    assert "| GPU hours of LaMP-4 | 3.5 |" in said
    assert "an assumption of ours: LongLaMP's own statistics were not at hand" in said
    entry["gib"] = 24.1
    assert "| fits | no |" in "\n".join(command.lines(found))


def test_more_users_need_more_time_and_tokens_and_no_more_memory(command):
    work = Work(trained=100, written=10)
    shares = {("training", "sft", False): 60.0}
    few = Forecast(60.0, 2048.0, 4096.0, shares, tokens=work, longest=30.0)
    many = command.scaled(few, 12.5)
    assert (many.seconds, many.longest, many.memory) == (750.0, 375.0, 2048.0)
    assert many.tokens == Work(trained=1250, written=125)
    assert many.shares == {("training", "sft", False): 750.0}


def test_the_page_is_what_was_kept(command):
    if not command.KEPT.exists():
        pytest.skip("no plan was kept yet")
    page, kept = command.PAGE.read_text(), json.loads(command.KEPT.read_text())
    assert command.written(page, kept) == page, "run `python benchmarks/paper_plan.py`"
    assert kept["lengths"] == tomllib.loads(command.LENGTHS.read_text())
    for one in kept["plans"]:
        assert one["weights"] == pytest.approx(2 * 7248023552 / 2**30, rel=0.001)
        assert sum(one["datasets"].values()) == pytest.approx(one["hours"])
    assert {one["gpu"] for one in kept["plans"]} == {"a100-80gb", "rtx3090-24gb"}


def test_every_task_of_the_study_has_lengths(command, lengths):
    assert {*command.TASKS} == {*lengths} - {"tokens"}
    assert {*command.TASKS} <= {*FORMS}
