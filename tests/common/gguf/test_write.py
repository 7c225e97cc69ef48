"""What is written as a GGUF file is what llama.cpp's converters would write."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from idiolect.common.errors import IdiolectError
from idiolect.common.gguf import write as writing_module
from idiolect.common.gguf.convert import converted
from idiolect.common.gguf.header import read_header
from idiolect.common.gguf.tokens import tokenizer as tokenizer_of
from idiolect.common.gguf.write import write_adapter, write_model

from .test_tokens import TEXTS
from .writing import CASES, gguf, made, tensors, write

PLAIN = [case for case in CASES if case.startswith(("llama", "mistral", "qwen"))]


def folder_of(place: Path, model: Any) -> Path:
    """An ordinary folder: nothing says that it was a GGUF file."""
    folder = converted(write(place / "model.gguf", model))
    return shutil.copytree(folder, place / "folder")


def read(file: Path) -> dict[str, np.ndarray]:
    """Tensors by name, rows first."""
    return {
        one.name: np.array(one.data).reshape(one.shape[::-1])
        for one in gguf.GGUFReader(file).tensors
    }


def check(file: Path, model: Any) -> None:
    wanted, found = tensors(model), read(file)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        dtype = np.float16 if values.ndim == 2 else np.float32
        assert found[name].dtype == dtype, name
        if name == "rope_freqs.weight":
            assert np.allclose(found[name], values, rtol=1e-6)
        else:
            assert np.array_equal(found[name], values.astype(dtype)), name


@pytest.mark.parametrize("case", PLAIN)
def test_a_folder_becomes_the_file_that_the_converter_writes(case, tmp_path):
    model = made(case)
    folder = folder_of(tmp_path, model)
    if case == "llama 3":  # as its own folder has it, not as factors
        config = json.loads((folder / "config.json").read_text())
        config["rope_parameters"] = model.config.rope_parameters
        (folder / "config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    write_model(tmp_path / "out.gguf", folder, tokenizer)
    check(tmp_path / "out.gguf", model)
    assert (tmp_path / "out.gguf").stat().st_mode & 0o777 == 0o600
    again, settings, special = tokenizer_of(read_header(tmp_path / "out.gguf"))
    for text in TEXTS:
        assert again.encode(text).ids == tokenizer(text)["input_ids"], text
    assert special["eos_token_id"] == [0, 1]
    assert settings["bos_token"] == "<|begin|>"


@pytest.mark.parametrize("case", CASES)
def test_a_model_that_came_in_a_file_goes_with_its_settings(case, tmp_path):
    model = made(case)
    file = write(tmp_path / "model.gguf", model, template="{{ messages[0].content }}")
    write_model(tmp_path / "out.gguf", converted(file), None)
    check(tmp_path / "out.gguf", model)
    old, new = read_header(file).settings, read_header(tmp_path / "out.gguf").settings
    beside = {"general.type": "model", "general.file_type": 1}
    assert new == old | beside
    file.unlink()  # then the tokenizer is asked, and this one has no BOS rule to lose
    (tmp_path / "out.gguf").unlink()
    if case not in PLAIN:
        with pytest.raises(IdiolectError, match="is not written as a GGUF file here"):
            write_model(tmp_path / "out.gguf", folder_again(old, tmp_path), None)
        assert not (tmp_path / "out.gguf").exists()


def folder_again(_settings: object, place: Path) -> Path:
    from idiolect.common.gguf.convert import models_folder

    (folder,) = (f for f in models_folder().iterdir() if f.is_dir())
    return shutil.copytree(folder, place / "copy")


def test_a_mistral_without_a_window_is_written(tmp_path):
    """Read again it is a Llama, which computes the same."""
    model = made("mistral")
    folder = folder_of(tmp_path, model)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sliding_window": None}))
    write_model(tmp_path / "out.gguf", folder, AutoTokenizer.from_pretrained(folder))
    check(tmp_path / "out.gguf", model)


def test_weights_are_changed_on_their_way(tmp_path):
    model = made("llama")
    folder = folder_of(tmp_path, model)
    name = "model.layers.1.self_attn.k_proj.weight"

    def changed(weight: str, values: torch.Tensor) -> torch.Tensor:
        assert values.dtype == torch.float32
        return values + 1 if weight == name else values

    tokenizer = AutoTokenizer.from_pretrained(folder)
    write_model(tmp_path / "out.gguf", folder, tokenizer, changed)
    with torch.no_grad():
        model.get_parameter(name).add_(1)
    check(tmp_path / "out.gguf", model)


# --- adapters ----------------------------------------------------------------------------


def pairs_of(model: Any, rank: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    draw = np.random.default_rng(rank)
    return {
        name.removesuffix(".weight"): (
            draw.normal(size=(rank, weight.shape[1])).astype(np.float32),
            draw.normal(size=(weight.shape[0], rank)).astype(np.float32),
        )
        for name, weight in model.state_dict().items()
        if weight.ndim == 2 and ".layers." in name
    }


@pytest.mark.parametrize("rank", [4, 16])
@pytest.mark.parametrize("case", ["llama", "mistral", "qwen2", "gemma3", "phi3"])
def test_by_llama_cpps_rule_an_adapter_changes_its_weights(case, rank, tmp_path):
    """The change of a weight is reordered like the weight; heads are 8, of keys 2."""
    model = made(case)
    pairs, file = pairs_of(model, rank), tmp_path / "adapter.gguf"
    write_adapter(file, model.config.to_dict(), pairs)
    assert file.stat().st_mode & 0o777 == 0o600
    with torch.no_grad():  # the test's own names and order of rows, of the deltas
        for weight in model.parameters():
            weight.zero_()
        for name, (a, b) in pairs.items():
            model.get_parameter(f"{name}.weight").copy_(torch.from_numpy(b @ a))
    wanted = {
        n: v for n, v in tensors(model).items() if n.startswith("blk.") and v.ndim == 2
    }
    found, fields = read(file), gguf.GGUFReader(file).fields
    alpha = fields["adapter.lora.alpha"].contents()
    assert alpha > 0  # 0 would mean a scale of 1
    for name, delta in wanted.items():
        a, b = found.pop(f"{name}.lora_a"), found.pop(f"{name}.lora_b")
        scale = alpha / b.shape[1]
        assert np.abs(scale * b @ a - delta).max() < 1e-6 * np.abs(delta).max()
    assert not found  # nothing but pairs
    said = {k: fields[f"general.{k}"].contents() for k in ("type", "architecture")}
    arch = {"mistral": "llama"}.get(case, case)
    assert said == {"type": "adapter", "architecture": arch}
    assert fields["adapter.type"].contents() == "lora"


def test_a_is_left_alone_and_keys_have_their_own_heads(tmp_path):
    model, name = made("llama"), "model.layers.0.self_attn.k_proj"
    pairs = {name: pairs_of(model, 4)[name]}
    write_adapter(tmp_path / "adapter.gguf", model.config.to_dict(), pairs)
    found, (a, b) = read(tmp_path / "adapter.gguf"), pairs[name]
    assert np.array_equal(found["blk.0.attn_k.weight.lora_a"], a)
    kept = found["blk.0.attn_k.weight.lora_b"]
    # Two heads of 16 rows: rows 0 and 8 of each turn together, and come first.
    order = [
        head + half + pair for head in (0, 16) for pair in range(8) for half in (0, 8)
    ]
    assert np.array_equal(kept, b[order])


@pytest.mark.parametrize(
    ("family", "weight", "words"),
    [
        ("phi", "self_attn.q_proj", "the family 'phi' has no names in GGUF files"),
        (
            "llama",
            "self_attn.rotary",
            "'model.layers.0.self_attn.rotary.weight' has no",
        ),
        ("llama", "mlp.gate_up_proj", "gate_up_proj.weight' has no name"),
    ],
)
def test_what_has_no_name_is_refused(family, weight, words, tmp_path):
    ones = np.ones((2, 8), np.float32)
    pairs = {f"model.layers.0.{weight}": (ones, ones.T)}
    config = made("llama").config.to_dict() | {"model_type": family}
    with pytest.raises(IdiolectError, match=words):
        write_adapter(tmp_path / "adapter.gguf", config, pairs)
    assert not (tmp_path / "adapter.gguf").exists()


# --- what a file cannot say ------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("rope_parameters", {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        ("layer_types", ["sliding_attention", "full_attention"]),
    ],
)
def test_a_setting_that_would_be_lost_is_named(key, value, tmp_path):
    case = "qwen2" if key == "layer_types" else "llama"
    folder = folder_of(tmp_path, made(case))
    config = json.loads((folder / "config.json").read_text()) | {key: value}
    if key == "layer_types":
        config |= {"use_sliding_window": True, "sliding_window": 8}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with pytest.raises(IdiolectError, match=f"{key}|sliding_window.*cannot be said"):
        write_model(tmp_path / "out.gguf", folder, tokenizer)
    assert not (tmp_path / "out.gguf").exists()


def test_a_number_that_float16_cannot_hold_is_refused(tmp_path):
    model = made("llama")
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[0, 0] = 1e5
    folder = folder_of(tmp_path, model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with pytest.raises(
        IdiolectError, match=r"up_proj.weight' has a number of size 1e\+05"
    ):
        write_model(tmp_path / "out.gguf", folder, tokenizer)
    assert not (tmp_path / "out.gguf").exists()


def test_a_tokenizer_of_another_rule_is_refused_and_not_replaced(tmp_path):
    folder = folder_of(tmp_path, made("llama"))
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["pre_tokenizer"] = {"type": "Whitespace"}
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with pytest.raises(IdiolectError, match="splits text by a rule"):
        write_model(tmp_path / "out.gguf", folder, tokenizer)


def test_the_package_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr(writing_module.importlib.util, "find_spec", lambda _: None)
    config, ones = made("llama").config.to_dict(), np.ones((2, 8), np.float32)
    pairs = {"model.layers.0.self_attn.v_proj": (ones, ones.T)}
    with pytest.raises(
        IdiolectError, match="needs the package gguf: `.* -m pip install gguf`"
    ):
        write_adapter(tmp_path / "adapter.gguf", config, pairs)
