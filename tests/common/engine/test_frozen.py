"""Weights in 16 bits, products in float32: the numbers of a float32 copy."""

from typing import cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from idiolect.common.engine import backbone, frozen
from idiolect.common.engine.adapters import attached
from idiolect.common.engine.backbone import FAMILIES, load_backbone
from idiolect.common.engine.frozen import Frozen, Widened, product, product_back
from idiolect.common.engine.memory import Saving, recomputed
from idiolect.common.engine.scoring import collate, completion_logp, generate
from tests.common.engine.test_adapters import adapter
from tests.common.engine.test_mapped import ROWS


@pytest.fixture(autouse=True)
def _small_models_count_as_large(monkeypatch):
    monkeypatch.setattr(backbone, "LARGE", 0)


def narrowed(folder, tmp_path, dtype):
    """The folder's model with weights of 16 bits, and the same weights in float32."""
    weights = load_file(folder / "model.safetensors")
    narrow = {name: weight.to(dtype) for name, weight in weights.items()}
    found = []
    for name, tensors in {
        "narrow": narrow,
        "wide": {name: weight.float() for name, weight in narrow.items()},
    }.items():
        copy = tmp_path / name
        copy.mkdir()
        for file in folder.iterdir():
            if file.suffix != ".safetensors":
                (copy / file.name).write_bytes(file.read_bytes())
        save_file(tensors, copy / "model.safetensors", {"format": "pt"})
        found.append(load_backbone(str(copy), "float32", "cpu", 96))
    return found


def gradients(model, saving):
    """Scores of two rows, and their gradients."""
    lora = adapter(model, "u", 1)
    leaves = [t.requires_grad_() for t in (*lora.a.values(), *lora.b.values())]
    with attached(model, lora), recomputed(model, lora, saving):
        scores = completion_logp(model, collate(model, ROWS))
        return [scores, *torch.autograd.grad(scores.sum(), leaves)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_family_has_the_numbers_of_a_float32_copy(
    model_folder, tmp_path, family, dtype
):
    narrow, wide = narrowed(model_folder(family), tmp_path, dtype)
    kinds = [module for module in narrow.model.modules() if hasattr(module, "weight")]
    matrices = [m for m in kinds if isinstance(m, Frozen | Widened)]
    assert matrices
    assert all(m.weight.dtype == dtype for m in matrices)
    assert all(m.weight.dtype == torch.float32 for m in kinds if m not in matrices)
    assert narrow.dtype == wide.dtype == torch.float32
    for saving in (Saving(), Saving(0, 1), Saving(0, 1, 3)):
        pairs = zip(gradients(narrow, saving), gradients(wide, saving), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
    prompts = [row.ids[:20] for row in ROWS]
    assert generate(narrow, [], prompts, 8) == generate(wide, [], prompts, 8)


def test_blocks_add_up(monkeypatch):
    """Products of a matrix that is read in several blocks, bias included."""
    monkeypatch.setattr(frozen, "BLOCK", 3 * 16)
    linear = torch.nn.Linear(16, 20, dtype=torch.bfloat16).requires_grad_(False)
    linear.bias.data = linear.bias.data.float()
    linear.__class__ = Frozen
    x = torch.randn(2, 5, 16, requires_grad=True)
    wide = linear.weight.float()
    output = linear(x)
    assert torch.allclose(output, x @ wide.T + linear.bias, atol=1e-5)
    assert torch.equal(output, product(linear, x.detach()))
    slopes = torch.randn(2, 5, 20)
    output.backward(slopes)
    assert x.grad is not None
    assert torch.allclose(x.grad, slopes @ wide, atol=1e-5)
    assert torch.equal(x.grad, product_back(linear, slopes))


def test_a_wide_vocabulary_is_read_in_blocks(model_folder, tmp_path, monkeypatch):
    """Its scores, and their gradients, are those of one product."""
    _, whole = narrowed(model_folder("llama"), tmp_path, torch.bfloat16)
    expected = gradients(whole, Saving(0, 1))
    assert type(whole.model.lm_head) is torch.nn.Linear
    monkeypatch.setattr(frozen, "BLOCK", 700)
    load_backbone.cache_clear()
    again = load_backbone(whole.name, "float32", "cpu", 96)
    assert type(again.model.lm_head) is Frozen
    for found, right in zip(gradients(again, Saving(0, 1)), expected, strict=True):
        assert torch.allclose(found, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", ["a norm in float32", "bfloat16 asked for"])
def test_other_models_are_loaded_as_before(model_folder, tmp_path, which):
    narrow, wide = narrowed(model_folder("llama"), tmp_path, torch.bfloat16)
    folder = tmp_path / "narrow"
    if which == "bfloat16 asked for":
        found = load_backbone(str(folder), "bfloat16", "cpu", 96)
        assert found.dtype == torch.bfloat16
    else:
        tensors = load_file(folder / "model.safetensors")
        name = "model.norm.weight"
        tensors[name] = tensors[name].float() + 1e-4  # no bfloat16 has this value
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        load_backbone.cache_clear()
        found = load_backbone(str(folder), "float32", "cpu", 96)
        assert torch.equal(found.model.model.norm.weight, tensors[name])
    assert not any(isinstance(m, Frozen | Widened) for m in found.model.modules())


def test_blocks_are_widened_in_one_place(monkeypatch):
    """New memory for each would leave holes of its size in the heap."""
    monkeypatch.setattr(frozen, "BLOCK", 3 * 16)
    linear = torch.nn.Linear(16, 20, bias=False, dtype=torch.bfloat16)
    linear.requires_grad_(False).__class__ = Frozen
    linear = cast(Frozen, linear)
    blocks = [(part, block) for part, block in frozen._blocks(linear, torch.float32)]
    assert len({block.data_ptr() for _, block in blocks}) == 1
    assert {block.numel() for _, block in blocks} == {3 * 16, 2 * 16}
    part, last = blocks[-1]
    assert torch.equal(last, linear.weight[part].float())
    # A matrix that needs no widening is not copied.
    linear.to(torch.float32)
    _, block = next(frozen._blocks(linear, torch.float32))
    assert block.data_ptr() == linear.weight.data_ptr()
