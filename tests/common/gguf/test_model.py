"""The model of a GGUF file is the one that the file was made of; nothing is passed over."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.numpy import load_file

from idiolect.common.engine.backbone import load_backbone
from idiolect.common.errors import IdiolectError
from idiolect.common.gguf.convert import converted, dequantised
from idiolect.common.gguf.header import EXACT, TYPES

from .writing import CASES, made, settings, tensors, vocabulary, write

LENGTH = 200  # longer than every window and every original context of the cases


def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(3, 260, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(ids).logits


def test_one_sentence_is_said_and_no_bar_is_shown(tmp_path, capsys):
    file = write(tmp_path / "model.gguf", made("llama"))
    capsys.readouterr()
    converted(file)
    converted(file)
    said = capsys.readouterr()
    assert not said.out
    assert said.err == "converting model.gguf for training: 0 MB, once\n"


@pytest.mark.parametrize("case", CASES)
def test_an_f32_file_has_the_logits_of_its_model(case, tmp_path):
    model = made(case)
    folder = converted(write(tmp_path / "model.gguf", model))
    again: Any = hf.AutoModelForCausalLM.from_pretrained(folder)
    wanted, found = logits(model), logits(again.eval())
    assert wanted.std() > 0.05
    assert (found - wanted).abs().max() < 1e-5
    # What the engine loads, and refuses where a weight is missing.
    backbone = load_backbone(str(tmp_path), "float32", "cpu", 64)
    assert sum(p.numel() for p in backbone.model.parameters()) == sum(
        p.numel() for p in model.parameters()
    )


def test_a_position_past_the_original_length_is_scaled(tmp_path):
    """The case above would pass without scaling if the scaling did nothing."""
    for case in ("llama 3", "llama, linear", "qwen2, yarn"):
        model = made(case)
        scaled = logits(model)
        model.config.rope_parameters = {"rope_type": "default", "rope_theta": 1e4}
        plain = type(model)(model.config).eval()
        plain.load_state_dict(model.state_dict())
        assert (logits(plain) - scaled).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_a_file_of_16_bits_keeps_the_bits(kind, tmp_path):
    model = made("llama")
    dtype = torch.float16 if kind == "F16" else torch.bfloat16
    model = model.to(dtype).float()  # weights that have 16 bits
    folder = converted(write(tmp_path / "model.gguf", model, kind))
    again: Any = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
    plain = [w for w in model.state_dict().values() if w.ndim == 2]
    size = sum(2 * w.numel() for w in plain)
    assert (folder / "model.safetensors").stat().st_size < size + 20_000  # not widened


HALF = 2.0**-11  # relative rounding of a float16


def bound(kind: str, block: np.ndarray) -> np.ndarray:
    """Largest difference of a weight, by llama.cpp's rule for its block [blocks, 32].

    Half a step, or a whole one on the side that a symmetric grid lacks; and the rounding
    of the block's scale and minimum to float16, as often as the largest level counts it.
    """
    high, low = block.max(1, keepdims=True), block.min(1, keepdims=True)
    most = np.abs(block).max(1, keepdims=True)
    if kind == "Q8_0":
        return most / 127 * 0.5 + most * HALF
    if kind in ("Q4_0", "Q5_0"):
        step = most / (8 if kind == "Q4_0" else 16)
        return step + most * HALF
    step = (high - low) / (15 if kind == "Q4_1" else 31)
    return step / 2 + (high - low) * HALF + np.abs(low) * HALF


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_a_quantised_weight_is_as_near_as_its_type_allows(kind, tmp_path):
    model = made("qwen2")
    folder = converted(write(tmp_path / "model.gguf", model, kind))
    found, worst = load_file(folder / "model.safetensors"), 0.0
    for name, weight in model.state_dict().items():
        if weight.ndim != 2 or name == "lm_head.weight":
            continue
        blocks = weight.numpy().reshape(-1, 32)
        assert found[name].dtype == np.float32
        off = np.abs(found[name].reshape(-1, 32) - blocks)
        share = (off / bound(kind, blocks)).max()
        assert share <= 1.0001, name
        worst = max(worst, share)
    assert worst > 0.9  # the bound is not far above what happens


@pytest.mark.parametrize(
    "kind", [name for name, *_ in TYPES.values() if name not in EXACT]
)
def test_blocks_say_what_a_second_implementation_reads(kind):
    """Of transformers, in torch; Q5_0 and Q5_1, which it lacks, are written out here."""
    ours = next(one for one in TYPES.values() if one[0] == kind)
    raw = np.random.default_rng(3).integers(0, 256, (64, ours[2] * 2), np.uint8)
    blocks = raw.reshape(-1, ours[2])
    # Scales of 16 bits that are finite: the places differ by type.
    for place in {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}.get(kind, (0, 2)):
        if place == 0 or kind not in ("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS"):
            blocks[:, place + 1] &= 0x3F
    found = dequantised(raw, kind).reshape(-1)
    number = next(n for n, one in TYPES.items() if one[0] == kind)
    if kind in ("Q5_0", "Q5_1"):
        wanted = fifth_bits(blocks, kind)
    else:
        other = pytest.importorskip("transformers.integrations.gguf.dequant")
        wanted = other.dequantize(torch.from_numpy(blocks.copy()), number).numpy()
    assert np.isfinite(found).all() and np.abs(found).max() > 0
    assert np.allclose(found, wanted.reshape(-1), rtol=1e-6, atol=1e-7)


def fifth_bits(blocks: np.ndarray, kind: str) -> np.ndarray:
    found = []
    for block in blocks:
        scale, block = block[:2].view(np.float16)[0], block[2:]
        low = np.float32(-16) * np.float32(scale)
        if kind == "Q5_1":
            low, block = np.float32(block[:2].view(np.float16)[0]), block[2:]
        high = int.from_bytes(bytes(block[:4]), "little")
        nibbles = [*(block[4:] & 15), *(block[4:] >> 4)]
        values = [int(n) + 16 * (high >> i & 1) for i, n in enumerate(nibbles)]
        found.append(np.array(values, np.float32) * np.float32(scale) + low)
    return np.stack(found)


# --- nothing is passed over --------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_every_setting_is_used(case, tmp_path):
    """Another value of any setting gives another configuration, or is refused."""
    model = made(case)
    usual = said(write(tmp_path / "usual.gguf", model))
    for key, value in settings(model.config).items():
        other = f"{value}x" if isinstance(value, str) else value * 2
        file = write(tmp_path / "other.gguf", model, change={key: other})
        try:
            assert said(file) != usual, key
        except IdiolectError as error:
            assert "cannot be used as a backbone" in str(error)


def said(file: Path) -> dict[str, Any]:
    return json.loads((converted(file) / "config.json").read_text())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention.layer_norm_rms_epsilon", None),
        ("context_length", None),
        ("block_count", 0),
        ("block_count", 2**31),
        ("attention.head_count", 0),
        ("attention.head_count_kv", [2, 8]),
        ("feed_forward_length", 10**9 * 4),
        ("attention.scale", 0.5),
        ("logit_scale", 2.0),
        ("expert_count", 8),
        ("rope.scaling.type", "longrope"),
        ("rope.dimension_count", 4),
        ("rope.freq_base", 0.0),
        ("rope.freq_base", float("nan")),
        ("vocab_size", 5),
        ("attention.causal", False),
    ],
)
def test_a_setting_that_is_missing_or_unknown_is_named(key, value, tmp_path):
    file = write(tmp_path / "model.gguf", made("llama"), change={key: value})
    with pytest.raises(IdiolectError, match=key):
        converted(file)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["llama", "qwen2", "gemma3", "phi3, longrope"])
def test_every_tensor_is_used_or_named(case, tmp_path):
    model = made(case)
    whole = tensors(model)
    for name in whole:
        if ".1." in name or (name == "output.weight"):
            continue  # of the second layer; without a head it is tied
        rest = {key: value for key, value in whole.items() if key != name}
        with pytest.raises(IdiolectError, match="cannot be used as a backbone"):
            converted(write(tmp_path / "less.gguf", model, weights=rest))
        if whole[name].ndim == 2:
            turned = {**whole, name: np.concatenate([whole[name]] * 2, 1)}
            with pytest.raises(IdiolectError, match="cannot be used as a backbone"):
                converted(write(tmp_path / "other.gguf", model, weights=turned))
    for name in (
        "blk.0.attn_q.lora",
        "blk.0.ffn_gate_inp.weight",
        "v.patch_embd.weight",
    ):
        more = {**whole, name: np.ones((32, 32), np.float32)}
        with pytest.raises(IdiolectError, match=name):
            converted(write(tmp_path / "more.gguf", model, weights=more))


def test_a_head_is_tied_exactly_where_the_file_has_none(tmp_path):
    own = said(write(tmp_path / "own.gguf", made("llama")))
    tied = said(write(tmp_path / "tied.gguf", made("llama, tied")))
    assert not own["tie_word_embeddings"]
    assert tied["tie_word_embeddings"]


def test_a_type_that_is_not_supported_is_named_before_any_weight(tmp_path, monkeypatch):
    file = write(tmp_path / "model.Q8_0.gguf", made("llama"))
    data = bytearray(file.read_bytes())
    place = data.index(b"blk.1.ffn_down.weight") + len(b"blk.1.ffn_down.weight") + 20
    data[place : place + 4] = (16).to_bytes(4, "little")
    file.write_bytes(data)
    monkeypatch.setattr("numpy.memmap", None)
    with pytest.raises(IdiolectError, match=r"blk\.1\.ffn_down\.weight.*IQ2_XXS"):
        converted(file)


def test_the_package_is_asked_for_where_it_is_needed(tmp_path, monkeypatch):
    plain = write(tmp_path / "plain.gguf", made("llama"))
    small = write(tmp_path / "small.gguf", made("llama"), "Q8_0")
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(IdiolectError, match="pip install gguf"):
        converted(small)
    assert converted(plain).is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(
    "value", [2.5, -1.0, True, "x", [3], ["x"], [0.5] * 288, 2**30]
)
@pytest.mark.parametrize("case", ["llama", "gemma3"])
def test_a_setting_of_any_kind_is_read_or_refused_in_a_sentence(case, value, tmp_path):
    """Whatever the file says: no other exception, and nothing half converted."""
    model = made(case)
    of_model = [key for key in settings(model.config) if key != "vocab_size"]
    of_model += ["attention.sliding_window_pattern", "rope.scaling.type"]
    of_tokens = [*vocabulary(), "scores", "add_bos_token", "unknown_token_id"]
    for key in (*of_model, *of_tokens, ".general.alignment", ".general.type"):
        file = tmp_path / "model.gguf"
        if key in of_tokens:
            write(file, model, words={**vocabulary(), key: value})
        else:
            write(file, model, change={key: value})
        try:
            converted(file)
        except IdiolectError as error:
            assert "cannot be used as a backbone" in str(error), key
            assert len(str(error)) < 1000
