"""What a training step costs, counted and not timed: a slower hot path is a failed test.

Counts do not depend on the machine. Where one is exceeded on purpose, say why in the
commit that raises it.
"""

from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from idiolect.common.config import parse
from idiolect.common.data.load import load_dataset
from idiolect.common.engine.adapters import new_lora, zero_shared
from idiolect.common.engine.backbone import load_backbone
from idiolect.common.engine.objectives import LossFunction
from idiolect.common.engine.reference import Reference
from idiolect.common.engine.training import batches, train
from idiolect.common.methods import c_bpo
from idiolect.common.methods.personalise import training_settings
from idiolect.common.unlabeled.draws import draw_for
from idiolect.common.unlabeled.sets import Unlabeled, UnlabeledSet

pytestmark = pytest.mark.slow

# Operations of a step, whatever their size. A few dozen are PyTorch's own and move with
# its version: hence the tolerance.
OPERATIONS, TOLERANCE = 2141, 0.05


class Counter(TorchDispatchMode):
    """Counts the operations that reach PyTorch's kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def made():
    keys = {"users": 2, "development-users": 0, "unlabeled.kind": "others"}
    config = parse({**keys, "personalise.learning-rates": "3e-3"})
    backbone = load_backbone("tiny", "float32", "cpu", config.engine.max_length)
    shared = zero_shared(backbone, config.shared_shape, config.seed)
    user, other = load_dataset(config).users
    entries = tuple(Unlabeled(item, 1.0, other.id) for item in other.history)
    reference = Reference(backbone, shared)
    drawn = draw_for(reference, user, UnlabeledSet(entries), config)
    return reference, config, c_bpo.training_set(reference, user, drawn, 0.5)


def trained(made, mode) -> int:
    reference, config, data = made
    settings = training_settings(config, 3e-3)
    backbone = reference.backbone
    start = [new_lora(backbone, config.lora, config.seed, "personal", data.user)]
    with mode:
        train(reference, start, [data], loss_of(config), settings)
    return len(batches(data, settings))


def loss_of(config) -> LossFunction:
    return partial(c_bpo.loss, settings=config.personalise)


def frozen_products(made) -> float:
    """Operations of y = x W' and dx = dy W, the vocabulary for completions only."""
    reference, config, data = made
    sizes = {
        name: 4 * module.weight.numel()
        for name, module in reference.backbone.model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    head = sizes.pop("lm_head")
    total = 0.0
    for batch in batches(data, training_settings(config, 3e-3)):
        rows = [example.encoded for kind in batch.values() for example in kind]
        padded = len(rows) * max(len(row.ids) for row in rows)
        completion = sum(len(row.ids) - row.prompt_length for row in rows)
        total += padded * sum(sizes.values()) + completion * head
    return total


def test_the_matrix_products_of_a_step(made) -> None:
    """The adapters' come on top, at rank 8 + 8 of which 8 learn; the last layer's
    feed-forward block falls away where nothing is predicted, and so does what rows share
    but for once."""
    counter = FlopCounterMode(display=False)
    trained(made, counter)
    assert counter.get_total_flops() / frozen_products(made) == pytest.approx(
        0.936, abs=0.01
    )


def test_the_operations_of_a_step(made) -> None:
    counter = Counter()
    steps = trained(made, counter)
    assert counter.count / steps == pytest.approx(OPERATIONS, rel=TOLERANCE)


def test_users_in_one_stack_share_the_operations(made) -> None:
    """Four users cost no more operations than one and a quarter."""
    reference, config, data = made
    settings, loss = training_settings(config, 3e-3), loss_of(config)
    start = [
        new_lora(reference.backbone, config.lora, config.seed, "personal", str(k))
        for k in range(4)
    ]
    alone, together = Counter(), Counter()
    with alone:
        train(reference, start[:1], [data], loss, settings)
    with together:
        train(reference, start, [data] * 4, loss, settings)
    assert together.count < 1.25 * alone.count
