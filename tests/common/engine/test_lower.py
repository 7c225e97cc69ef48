"""Where only the upper layers are trained, the lower ones are computed once."""

from dataclasses import replace

import pytest
import torch

from idiolect.common.config import LoraShape
from idiolect.common.engine import training
from idiolect.common.engine.adapters import attached, new_lora, stack
from idiolect.common.engine.backbone import (
    FAMILIES,
    layer_of,
    load_backbone,
    projections,
)
from idiolect.common.engine.lower import lower_bytes, lower_states, lowest_layer
from idiolect.common.engine.memory import Saving, recomputed, step_bytes, within
from idiolect.common.engine.scoring import collate, completion_logp
from idiolect.common.engine.training import train
from idiolect.common.errors import IdiolectError
from tests.common.conftest import write_model
from tests.common.engine.test_adapters import adapter, randomised
from tests.common.engine.test_layout import ROWS, WINDOWED
from tests.common.engine.test_training import LOSSES, SETTINGS, distance
from tests.common.engine.test_training import material as material

UPPER = LoraShape(rank=3, alpha=6.0, layers=1)


def upper(backbone, name: str, seed: int):
    return randomised(new_lora(backbone, UPPER, 0, name), seed)


def scores_and_gradients(backbone, layout, loras) -> list[torch.Tensor]:
    stacked = stack(loras)
    leaves = [*stacked.a.values(), *stacked.b.values()]
    for leaf in leaves:
        leaf.requires_grad_()
    with attached(backbone, adapter(backbone, "s", 9), stacked):
        total = completion_logp(backbone, layout)
        weights = torch.linspace(-1, 1, len(total))
        return [total.detach(), *torch.autograd.grad((weights * total).sum(), leaves)]


def calls(backbone, layer: int) -> list[int]:
    """Counts, in its length, how often a layer computes."""
    seen: list[int] = []
    norm = backbone.model.model.layers[layer].input_layernorm
    norm.register_forward_hook(lambda *_: seen.append(1))
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_gradients_are_those_of_all_layers(family, tmp_path, model_folder):
    folder = model_folder(family)
    if family in WINDOWED:
        folder = write_model(tmp_path, family, **WINDOWED[family])
    backbone = load_backbone.__wrapped__(str(folder), "float32", "cpu", 96)
    depth = len(backbone.model.model.layers) - 1
    loras = [upper(backbone, "u", 1), upper(backbone, "v", 2)]
    assert {lowest_layer(lora) for lora in loras} == {depth} != {0}
    users = [ROWS[:4], [ROWS[0], *ROWS[4:6], None]]
    flat = [row for rows in users for row in rows]
    layout = collate(backbone, flat, 2)
    expected = scores_and_gradients(backbone, layout, loras)
    known = lower_states(
        backbone,
        adapter(backbone, "s", 9),
        depth,
        [[row for row in rows if row] for rows in users],
    )
    below = calls(backbone, 0)
    found = scores_and_gradients(backbone, known.of(backbone, layout, flat), loras)
    assert not below
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    scores_and_gradients(backbone, layout, loras)
    assert len(below) == 1  # the layers are whole again


def test_known_layers_leave_tokens_their_weights(backbone):
    row = replace(ROWS[0], weights=(2.0,) * (len(ROWS[0].ids) - ROWS[0].prompt_length))
    depth = len(backbone.model.model.layers) - 1
    layout = collate(backbone, [row])
    known = lower_states(backbone, None, depth, [[row]]).of(backbone, layout, [row])
    plain = completion_logp(backbone, collate(backbone, ROWS[:1]))
    torch.testing.assert_close(completion_logp(backbone, known), 2 * plain)


def test_recomputed_upper_layers_change_no_bit(tmp_path):
    folder = write_model(tmp_path, "llama", num_hidden_layers=6)
    backbone = load_backbone.__wrapped__(str(folder), "float32", "cpu", 96)
    shape = replace(UPPER, layers=4)
    lora = randomised(new_lora(backbone, shape, 0, "u"), 1)
    for leaf in (*lora.a.values(), *lora.b.values()):
        leaf.requires_grad_()
    layout = lower_states(backbone, None, 2, [ROWS]).of(
        backbone, collate(backbone, ROWS), ROWS
    )
    found = []
    for saving in (Saving(2), Saving(2, 3), Saving(2, 3, 4)):
        with attached(backbone, lora), recomputed(backbone, lora, saving):
            total = completion_logp(backbone, layout).sum()
            leaves = [*lora.a.values(), *lora.b.values()]
            found.append(torch.autograd.grad(total, leaves))
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))
    # Half of the layers need half of the memory.
    both = [within(backbone, layout, 0, 1e9, depth) for depth in (0, 3)]
    whole, half = (step_bytes(backbone, layout, saving) for saving in both)
    assert half < 0.7 * whole


@pytest.mark.parametrize("method", LOSSES)
def test_training_gives_the_adapters_of_all_layers_computed(
    method, material, monkeypatch
):
    reference, _, data = material
    backbone = reference.backbone
    starts = [new_lora(backbone, UPPER, 0, f"u{k}") for k in range(len(data))]
    loss, below = LOSSES[method], calls(backbone, 0)
    once = train(reference, starts, data, loss, SETTINGS).loras
    assert len(below) == len(data)
    alone = train(reference, starts[1:2], data[1:2], loss, SETTINGS).loras[0]
    monkeypatch.setattr(training, "SHARE", 0.0)  # nothing fits
    below.clear()
    always = train(reference, starts, data, loss, SETTINGS).loras
    assert len(below) > len(data)
    for mine, theirs in zip(once, always, strict=True):
        assert distance(mine, theirs) < 1e-5
    assert distance(once[1], alone) < 1e-5
    assert distance(once[0], starts[0]) > 1e-3


def test_the_states_are_part_of_the_memory_that_is_allowed(material, monkeypatch):
    reference, _, data = material
    backbone, budgets = reference.backbone, []
    start = [new_lora(backbone, UPPER, 0, "u0")]

    def within(_backbone, _layout, _numbers, budget: float, depth: int) -> Saving:
        budgets.append(budget)
        return Saving(depth)

    monkeypatch.setattr(training, "within", within)
    settings = replace(SETTINGS, memory=10**6)
    train(reference, start, data[:1], LOSSES["sft"], settings)
    rows = [e.encoded for kind in training.KINDS for e in getattr(data[0], kind)]
    kept = lower_states(backbone, reference.shared, 1, [rows]).bytes
    assert kept == lower_bytes(backbone, [rows]) > 0
    assert budgets == [10**6 - kept]


def test_other_shared_adapter_other_states(material):
    reference, _, data = material
    rows = [[example.encoded for example in data[0].positive]]
    bare = lower_states(reference.backbone, None, 1, rows).states[0]
    found = lower_states(reference.backbone, reference.shared, 1, rows).states[0]
    assert found.keys() == bare.keys()
    assert not any(torch.allclose(found[ids], bare[ids]) for ids in found)


def test_adapters_on_the_upper_layers(backbone):
    names = projections(backbone.model, UPPER)
    layers = len(backbone.model.model.layers)
    assert {layer_of(name) for name in names} == {layers - 1}
    assert len(projections(backbone.model, LoraShape(layers=layers))) == len(
        projections(backbone.model, LoraShape())
    )
    with pytest.raises(IdiolectError, match=f"but this backbone has {layers} layers"):
        projections(backbone.model, replace(UPPER, layers=layers + 1))


def test_all_layers_keep_nothing(material):
    reference, starts, data = material
    assert lowest_layer(starts[0]) == 0
    assert training._lower(reference, 0, data, SETTINGS) is None
