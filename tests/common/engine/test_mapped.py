"""Weights in their file: pages are given back, and the numbers stay."""

import re
from pathlib import Path

import pytest
import torch

from idiolect.common.engine.adapters import attached
from idiolect.common.engine.backbone import Encoded, load_backbone
from idiolect.common.engine.mapped import a_layer_at_a_time, clean_regions, give_back
from idiolect.common.engine.memory import Saving, recomputed
from idiolect.common.engine.scoring import collate, completion_logp, score_users
from tests.common.conftest import write_model
from tests.common.engine.test_adapters import adapter

ROWS = [Encoded(tuple(range(3, 40)), 20), Encoded(tuple(range(3, 60)), 30)]
LAYERS = 4

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/smaps").exists(), reason="only Linux tells what is mapped"
)


def resident() -> int:
    """Kilobytes of safetensors files in this process."""
    total, mapped = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-", line):
            mapped = line.endswith(".safetensors")
        elif line.startswith("Rss:") and mapped:
            total += int(line.split()[1])
    return total


@pytest.fixture
def large(tmp_path):
    """A Llama whose layers have 1.5 MB of weights each."""
    folder = write_model(
        tmp_path,
        "llama",
        num_hidden_layers=LAYERS,
        hidden_size=128,
        intermediate_size=768,
    )
    return load_backbone(str(folder), "float32", "cpu", 96)


def test_a_layer_is_given_back_after_it_was_used(large):
    weights = [p.clone() for p in large.model.parameters()]
    touched = resident()
    size = sum(p.nbytes for p in large.model.model.layers[0].parameters()) // 1024
    assert touched >= LAYERS * size * 0.9  # cloning has just read all of it
    scores = score_users(large, [None], [ROWS])
    assert resident() < touched - (LAYERS - 1) * size * 0.9
    assert all(map(torch.equal, weights, large.model.parameters()))
    assert scores == score_users(large, [None], [ROWS])


def test_training_within_a_budget_gives_layers_back_too(large):
    lora = adapter(large, "u", 1)
    leaves = [t.requires_grad_() for t in (*lora.a.values(), *lora.b.values())]
    size = sum(p.nbytes for p in large.model.model.layers[0].parameters()) // 1024
    found, held = [], []
    for layers in (0, LAYERS - 1):
        with attached(large, lora), recomputed(large, lora, Saving(0, layers)):
            total = completion_logp(large, collate(large, ROWS)).sum()
            found.append(torch.autograd.grad(total, leaves))
            held.append(resident())
    assert held[1] < held[0] - (LAYERS - 2) * size * 0.9
    assert all(map(torch.equal, *found))


def test_nothing_is_given_back_of_weights_that_are_not_a_clean_file(large):
    """The kernel would clear memory that has no file, and undo what was written."""
    free = torch.ones(1 << 20)
    give_back(iter([free]), clean_regions())
    assert free.sum() == 1 << 20
    weight = large.model.model.layers[0].mlp.gate_proj.weight
    with torch.no_grad():
        weight.add_(1)
    written = weight.clone()
    with a_layer_at_a_time(large.model, clean_regions()):
        large.model(torch.tensor([ROWS[0].ids]))
    assert torch.equal(weight, written)
