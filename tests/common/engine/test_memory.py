"""Memory within a budget: what is kept and what is computed again changes no bit."""

import pytest
import torch

from idiolect.common.engine.adapters import Lora, attached
from idiolect.common.engine.backbone import FAMILIES, Encoded, load_backbone
from idiolect.common.engine.memory import (
    Saving,
    layer_bytes,
    recomputed,
    step_bytes,
    within,
)
from idiolect.common.engine.scoring import collate, completion_logp
from tests.common.conftest import write_model
from tests.common.engine.test_adapters import adapter
from tests.common.engine.test_layout import ROWS


def trainable(lora: Lora) -> Lora:
    for tensor in (*lora.a.values(), *lora.b.values()):
        tensor.requires_grad_()
    return lora


def kept(backbone, lora, row) -> int:
    """Bytes that a pass keeps for its gradient beside weights and adapters."""
    leaves = [*lora.a.values(), *lora.b.values(), *backbone.model.parameters()]
    fixed = {tensor.untyped_storage().data_ptr() for tensor in leaves}
    seen: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in fixed:
            seen[storage.data_ptr()] = storage
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with attached(backbone, lora), hooks:
        total = completion_logp(backbone, collate(backbone, [row]))
    assert total.requires_grad
    return sum(storage.nbytes() for storage in seen.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_forecast_from_shapes_is_what_a_layer_keeps(family, tmp_path):
    sizes = []
    for layers in (3, 5):
        folder = write_model(tmp_path / str(layers), family, num_hidden_layers=layers)
        backbone = load_backbone(str(folder), "float32", "cpu", 128)
        lora = trainable(adapter(backbone, "u", 1))
        sizes.append(kept(backbone, lora, Encoded(tuple(range(3, 103)), 98)))
    measured = (sizes[1] - sizes[0]) / 2 / 100
    forecast = layer_bytes(backbone, 100)
    print(family, measured / forecast)
    assert 0.75 * forecast < measured < 1.05 * forecast


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_layers_change_no_bit_of_any_gradient(family, model_folder):
    backbone = load_backbone(str(model_folder(family)), "float32", "cpu", 96)
    lora = trainable(adapter(backbone, "u", 1))
    leaves = [*lora.a.values(), *lora.b.values()]
    found = []
    for layers in (0, 1):
        with attached(backbone, lora), recomputed(backbone, layers):
            total = completion_logp(backbone, collate(backbone, ROWS)).sum()
            found.append([total.detach(), *torch.autograd.grad(total, leaves)])
    assert all(map(torch.equal, *found))
    assert all("forward" not in vars(layer) for layer in backbone.model.model.layers)


def test_a_backward_pass_after_the_adapter_is_gone_is_an_error(backbone):
    lora = trainable(adapter(backbone, "u", 1))
    leaves = [*lora.a.values(), *lora.b.values()]
    with attached(backbone, lora), recomputed(backbone, 1):
        total = completion_logp(backbone, collate(backbone, ROWS)).sum()
    with pytest.raises(RuntimeError):
        torch.autograd.grad(total, leaves)


def test_recomputed_layers_keep_less(tmp_path):
    folder = write_model(tmp_path, "llama", num_hidden_layers=6)
    backbone = load_backbone(str(folder), "float32", "cpu", 128)
    lora = trainable(adapter(backbone, "u", 1))
    row = Encoded(tuple(range(3, 103)), 98)
    plain = kept(backbone, lora, row)
    with recomputed(backbone, 5):
        assert kept(backbone, lora, row) < plain / 3


def test_the_fewest_layers_that_fit_are_recomputed(tmp_path):
    folder = write_model(tmp_path, "llama", num_hidden_layers=6)
    backbone = load_backbone(str(folder), "float32", "cpu", 128)
    layout = collate(backbone, [Encoded(tuple(range(3, 103)), 98)] * 10)
    tokens, keys = layout.ids.numel(), layout.key.shape[1]
    other = within(backbone, layout, 1000, 1e9)
    assert other == Saving()
    found = [within(backbone, layout, 0, 2.0**size) for size in range(30, 10, -1)]
    assert [saving.recompute for saving in found] == sorted(s.recompute for s in found)
    assert [saving.passes for saving in found] == sorted(s.passes for s in found)
    assert found[-1].recompute == 5 and found[-1].passes == 10
    for size, saving in zip(range(30, 10, -1), found, strict=True):
        if saving.passes == 1:
            assert step_bytes(backbone, tokens, keys, saving.recompute) <= 2.0**size
