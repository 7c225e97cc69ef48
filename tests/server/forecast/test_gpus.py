"""Forecasts for a GPU that is not here: counts without weights, speeds of a data sheet."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, MistralConfig

from idiolect.common.config import Config, parse
from idiolect.common.data.load import load_dataset
from idiolect.common.engine import backbone as weighty
from idiolect.common.engine.model_folder import TINY
from idiolect.common.errors import IdiolectError, Impossible
from idiolect.server.cli import main
from idiolect.server.forecast import bare, gpus
from idiolect.server.forecast.counts import Counting, all_parts
from idiolect.server.forecast.estimate import Forecast, elsewhere
from idiolect.server.forecast.parts import Part
from idiolect.server.run.local import fitted
from idiolect.server.study import ahead
from idiolect.server.study.declaration import read_study
from tests.server.study.conftest import TEXT

ROOT = Path(__file__).resolve().parents[3]
BENCHMARKS = ROOT / "benchmarks"
KEYS = {"users": 4, "development-users": 2, "history": 6, "held-out": 2}
KEYS |= {"personalise.learning-rates": "3e-3", "adapt.learning-rate": 1e-2}
KEYS |= {"engine.memory": 400}
A100 = gpus.GPUS["a100-80gb"]


def without_weights(folder: Path, config: object) -> str:
    """Write a folder with a configuration and the built-in tokenizer alone."""
    config.save_pretrained(folder)  # type: ignore[attr-defined]
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def mistral(tmp_path: Path) -> str:
    """Mistral-7B v0.3 as its config.json has it, without a single weight."""
    shape = MistralConfig(
        vocab_size=32768,
        num_key_value_heads=8,
        head_dim=128,
        sliding_window=None,
        max_position_embeddings=32768,
    )
    return without_weights(tmp_path / "mistral", shape)


def counted(config: Config, backbone: weighty.Backbone) -> list[Part]:
    counting = Counting(config, backbone, fitted(backbone, load_dataset(config)), 1)
    return all_parts(counting)


def test_a_model_without_weights_is_counted_as_one_with() -> None:
    config = parse(KEYS)
    real = counted(config, weighty.backbone_of(config))
    assert counted(config, bare.backbone_of(config)) == real


def test_a_7b_model_needs_its_weights_and_reads_them_for_each_token(mistral) -> None:
    config = parse({**KEYS, "backbone": mistral, "engine.dtype": "bfloat16"})
    backbone = bare.backbone_of(config)
    assert backbone.parameters == 7_248_023_552  # of its model card: 7.25 B
    assert bare.weight_bytes(backbone) == 2 * backbone.parameters
    assert bare.multiplied(backbone) == backbone.parameters - (32768 + 65) * 4096
    speed = bare.speed_on(A100, backbone)
    assert speed.trained == 2 * speed.scored
    assert speed.scored == pytest.approx(2 * 7.11e9 / (gpus.SHARE * 312e12), rel=1e-3)
    assert speed.step == pytest.approx(2 * 7.11e9 / (gpus.READ * 2039e9), rel=1e-3)
    slow = replace(A100, flops=A100.flops / 2)
    assert bare.speed_on(slow, backbone).trained == 2 * speed.trained


def test_training_has_what_the_weights_leave(mistral) -> None:
    config = parse({**KEYS, "engine.memory": 0, "backbone": mistral})
    backbone = bare.backbone_of(replace(config, engine=Config().engine))
    backbone = replace(backbone, dtype=torch.bfloat16)
    left = bare.within(config, gpus.GPUS["rtx3090-24gb"], backbone).engine.memory
    assert left == int((0.8 * 24 * 2**30 - 2 * backbone.parameters) / 2**20)
    asked = replace(config, engine=replace(config.engine, memory=100))
    assert bare.within(asked, A100, backbone).engine.memory == 100
    with pytest.raises(Impossible, match="13.5 GiB of weights, and this GPU has 16"):
        bare.within(config, replace(A100, memory=16 * 2**30), backbone)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"backbone": "tiny"}, "set engine.dtype=bfloat16"),
        ({"backbone": "EMPTY"}, "no config.json with a model_type"),
        ({"backbone": "NO TOKENIZER"}, "a forecast needs both, and no weights"),
    ],
)
def test_what_cannot_be_forecast_is_a_sentence(tmp_path, keys, sentence) -> None:
    (tmp_path / "EMPTY").mkdir()
    MistralConfig().save_pretrained(tmp_path / "NO TOKENIZER")
    name = keys["backbone"]
    config = parse(
        {**KEYS, "backbone": name if name == "tiny" else str(tmp_path / name)}
    )
    with pytest.raises(IdiolectError, match=sentence):
        bare.speed_on(A100, bare.backbone_of(config))


def test_the_share_is_the_measured_one(tmp_path) -> None:
    found = json.loads(
        (BENCHMARKS / "results" / "many_users-0.5B-gpu.json").read_text()
    )
    assert (found["gpu"], found["dtype"]) == ("NVIDIA H200", "bfloat16")
    size = 16
    shape = runpy.run_path(str(BENCHMARKS / "shapes.py"))["shape"]("0.5B")
    keys = {"users": size, "development-users": 0, "engine.stack": size}
    keys |= {"backbone": without_weights(tmp_path, shape), "engine.dtype": "bfloat16"}
    keys |= {"unlabeled.kind": "others", "methods": "shared,c-bpo", "adapt.rounds": 0}
    config = parse({**keys, "personalise.learning-rates": "3e-3"})
    backbone = bare.backbone_of(config)
    h200 = gpus.GPUS["h200-141gb"]
    parts = counted(bare.within(config, h200, backbone), backbone)
    tokens = sum(part.work.trained for part in parts) / size
    users = found["medians"][str(size)]["users_per_minute"] / 60
    done = 4 * bare.multiplied(backbone) * tokens * users
    assert done / h200.flops == pytest.approx(gpus.SHARE, rel=0.05)


def test_several_processes_each_make_what_cells_share(tmp_path, mistral) -> None:
    text = TEXT.replace("MODEL", mistral).replace(
        "[grid]", '"engine.dtype" = "bfloat16"\n[grid]'
    )
    path = tmp_path / "a-study.toml"
    path.write_text(text)
    study = read_study(path)
    one, cells = ahead.forecast(study, tmp_path, gpu="a100-80gb")
    two, both = ahead.forecast(study, tmp_path, gpu="a100-80gb", processes=2)
    assert one.longest == pytest.approx(sum(cells)) == pytest.approx(one.seconds)
    assert two.longest < one.longest < sum(both)  # shared adapters are trained twice
    assert one.free == 80 * 1024 and 13 * 1024 < one.memory < one.free
    assert one.tokens.trained > 0 and one.tokens.adapted > 0


@pytest.mark.slow
def test_the_command_says_hours_memory_tokens_and_what_is_assumed(
    tmp_path, mistral, capsys
) -> None:
    text = TEXT.replace("MODEL", mistral).replace(
        "[grid]", '"engine.dtype" = "bfloat16"\n[grid]'
    )
    path = tmp_path / "a-study.toml"
    path.write_text(text)
    asked = ["study", str(path), "--output-dir", str(tmp_path), "--plan", "--gpu"]
    main([*asked, "rtx3090-24gb", "--gpus", "4"])
    said = capsys.readouterr().out
    assert "on rtx3090-24gb, which is not here: about" in said
    assert "on 4 of them" in said and "GPU hours" in said
    assert "which fits into 24.0 GiB; a fifth stays free" in said
    assert "(13.5 GiB are the weights)" in said
    assert "each of the 4 GPUs holds the whole model" in said
    assert "trained" in said and "assumed: 7% of the data sheet's" in said
    assert "made up" not in said
    assert not [*tmp_path.rglob("cells")]


def test_a_plan_from_made_up_texts_says_so_and_one_that_does_not_fit_too() -> None:
    small = Forecast(3600.0, 20480.0, 24576.0, {}, backbone=13824.0)
    said = elsewhere(small, "l4-24gb", 1)
    assert "20.0 GiB (13.5 GiB are the weights), which fits into 24.0 GiB" in said
    assert "made up" not in said and "each of the" not in said
    large = replace(small, memory=24577.0, stand_in=True)
    said = elsewhere(large, "l4-24gb", 2)
    assert "which does not fit into 24.0 GiB" in said
    assert "texts: made up, and so are the tokens and hours" in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--plan", "--gpu", "a100"],
            "no data sheet of a GPU 'a100': use one of a10g-24gb",
        ),
        (["--gpu", "l4-24gb"], "--gpu is for a forecast: add --plan"),
        (["--plan", "--gpus", "0"], "--gpus 0 is none"),
    ],
)
def test_a_wrong_word_is_refused_before_anything_is_read(
    words, sentence, capsys
) -> None:
    assert main(["study", "not-there.toml", *words]) == 2
    assert sentence in capsys.readouterr().err
