"""Memory within a budget: what is kept and what is computed again changes no bit."""

import pytest
import torch

from idiolect.common.engine import memory
from idiolect.common.engine.adapters import Lora, attached
from idiolect.common.engine.backbone import FAMILIES, Encoded, load_backbone
from idiolect.common.engine.memory import (
    Saving,
    layer_bytes,
    products,
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
    for layers, kept in (
        (0, 0),
        (1, 0),
        (1, 2),
        (1, len(products(backbone, range(1)))),
    ):
        with (
            attached(backbone, lora),
            recomputed(backbone, lora, Saving(0, layers, kept)),
        ):
            total = completion_logp(backbone, collate(backbone, ROWS)).sum()
            found.append([total.detach(), *torch.autograd.grad(total, leaves)])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))
    for module in backbone.model.model.layers.modules():
        assert "forward" not in vars(module)


def test_kept_products_are_not_computed_again(backbone, monkeypatch):
    """With all of them kept no frozen product of a recomputed layer is."""
    lora = trainable(adapter(backbone, "u", 1))
    weights = {
        module.weight.data_ptr()
        for module in backbone.model.model.layers[0].modules()
        if isinstance(module, torch.nn.Linear)
    }
    taken: list[int] = []
    plain = torch.nn.functional.linear

    def counted(x, weight, bias=None):
        taken.append(weight.data_ptr())
        return plain(x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    counts = []
    for kept in (0, 2, len(products(backbone, range(1)))):
        with attached(backbone, lora), recomputed(backbone, lora, Saving(0, 1, kept)):
            total = completion_logp(backbone, collate(backbone, ROWS)).sum()
            taken.clear()
            total.backward()
        counts.append(sum(weight in weights for weight in taken))
    # The last one, of the feed-forward block's output, is never needed.
    assert counts == [len(weights) - 1, len(weights) - 3, 0]


def test_a_backward_pass_after_the_adapter_is_gone_is_an_error(backbone):
    lora = trainable(adapter(backbone, "u", 1))
    leaves = [*lora.a.values(), *lora.b.values()]
    with attached(backbone, lora), recomputed(backbone, lora, Saving(0, 1)):
        total = completion_logp(backbone, collate(backbone, ROWS)).sum()
    with pytest.raises(RuntimeError):
        torch.autograd.grad(total, leaves)


def test_recomputed_layers_keep_less(tmp_path):
    folder = write_model(tmp_path, "llama", num_hidden_layers=6)
    backbone = load_backbone(str(folder), "float32", "cpu", 128)
    lora = trainable(adapter(backbone, "u", 1))
    row = Encoded(tuple(range(3, 103)), 98)
    plain = kept(backbone, lora, row)
    with recomputed(backbone, lora, Saving(0, 5)):
        assert kept(backbone, lora, row) < plain / 3


@pytest.mark.parametrize(("passes", "times"), [(1, 2), (2, 4)])
def test_freed_memory_is_returned_often_only_where_rows_are_split(
    tmp_path, monkeypatch, passes, times
):
    folder = write_model(tmp_path, "llama", num_hidden_layers=6)
    backbone = load_backbone(str(folder), "float32", "cpu", 128)
    lora = trainable(adapter(backbone, "u", 1))
    returns: list[int] = []
    saving = Saving(0, 5, passes=passes)
    with attached(backbone, lora), recomputed(backbone, lora, saving):
        monkeypatch.setattr(memory, "_malloc", lambda **given: returns.append(1))
        completion_logp(backbone, collate(backbone, ROWS)).sum().backward()
        monkeypatch.undo()
    assert len(returns) == times  # forward and backward


def test_products_are_kept_before_layers_and_all_within_the_budget(tmp_path):
    folder = write_model(tmp_path, "llama", num_hidden_layers=6)
    backbone = load_backbone(str(folder), "float32", "cpu", 128)
    layout = collate(backbone, [Encoded(tuple(range(3, 103)), 98)] * 10)
    assert within(backbone, layout, 1000, 1e9) == Saving()
    budgets = [2.0 ** (size / 4) for size in range(120, 40, -1)]
    found = [within(backbone, layout, 0, budget) for budget in budgets]
    assert [saving.recompute for saving in found] == sorted(s.recompute for s in found)
    assert [saving.passes for saving in found] == sorted(s.passes for s in found)
    some = [s for s in found if 0 < s.products < len(products(backbone, s.layers))]
    assert some and all(s.recompute == 5 and s.passes == 1 for s in some)
    assert (found[-1].recompute, found[-1].products, found[-1].passes) == (5, 0, 10)
    for budget, saving in zip(budgets, found, strict=True):
        if saving.passes == 1:
            assert step_bytes(backbone, layout, saving) <= budget
