"""Learning rates by the backbone's size: the table, and where it is read."""

import json
from pathlib import Path

import pytest

from idiolect.common.config import Config, parse
from idiolect.common.engine import rates
from idiolect.common.engine.backbone import load_backbone
from idiolect.common.engine.rates import TABLE, rates_for, rates_of, with_rates

ROOT = Path(__file__).resolve().parents[3]


def sparse_weights(folder: Path, shapes: list[list[int]]) -> str:
    """A folder with the heads of weights of these shapes, and no numbers."""
    tensors, at = {}, 0
    for number, shape in enumerate(shapes):
        size = 4
        for side in shape:
            size *= side
        entry = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        tensors[f"t{number}"], at = entry, at + size
    head = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        stream.truncate(8 + len(head) + at)  # a hole: no disk is used
    return str(folder)


def test_the_built_in_model_has_the_rates_that_it_always_had() -> None:
    found = with_rates(Config())
    assert found.personalise.learning_rates == "1e-3,3e-3,1e-2"
    assert found.learning_rate_list == (1e-3, 3e-3, 1e-2)
    assert found.adapt.learning_rate == 1e-2
    assert rates_of("tiny").usual == 3e-3


@pytest.mark.parametrize(("numbers", "row"), [(10**7, 0), (135 * 10**6, 1), (10**9, 2)])
def test_a_larger_model_has_smaller_rates(
    tmp_path: Path, numbers: int, row: int
) -> None:
    folder = sparse_weights(tmp_path, [[numbers // 1000, 999], [numbers // 1000]])
    assert rates.parameters_in(tmp_path) == numbers
    found = with_rates(parse({"backbone": folder}))
    assert found.adapt.learning_rate == TABLE[row].shared
    assert found.learning_rate_list == TABLE[row].choice


def test_rates_fall_with_the_size() -> None:
    for smaller, larger in zip(TABLE, TABLE[1:], strict=False):
        assert smaller.below < larger.below
        assert smaller.usual > larger.usual and smaller.shared > larger.shared
    assert all(row.usual in row.choice for row in TABLE)
    assert rates_for(10**15) == TABLE[-1]


def test_what_is_given_stays_and_no_file_is_read() -> None:
    given = {"personalise.learning-rates": "5e-5", "adapt.learning-rate": 0.25}
    config = parse(given | {"backbone": "no/such-model"})
    assert with_rates(config) == config
    half = with_rates(parse({"personalise.learning-rates": "5e-5"}))
    assert half.learning_rate_list == (5e-5,) and half.adapt.learning_rate == 1e-2


@pytest.mark.parametrize(
    "alone",
    [
        {"development-users": 0},
        {"task": "text"},
        {"privacy.mode": "central", "privacy.metrics": "noisy"},
    ],
)
def test_one_rate_is_taken_where_nobody_can_choose(alone: dict) -> None:
    assert with_rates(parse(alone)).learning_rate_list == (3e-3,)


def test_a_loaded_backbone_and_its_files_have_one_size(model_folder) -> None:
    folder = model_folder("llama")
    backbone = load_backbone(str(folder), "float32", "cpu", 96)
    assert backbone.parameters == rates.parameters_in(folder)


def test_the_documentation_has_the_table() -> None:
    text = (ROOT / "docs/simulations.md").read_text()
    for row in TABLE:
        choice = ", ".join(f"{rate:g}" for rate in row.choice)
        assert f"| {choice} | {row.usual:g} | {row.shared:g} |" in text
