"""Steering: one vector per user, added to a layer's output; nothing is trained.

StyleVector (Zhang et al., ACL 2025, arXiv 2503.05213), with two differences: the vector
contrasts with the unlabeled set, which is the model's own text at the same prompts only
with ``unlabeled.kind=self``; and it is added at every token, those of the prompt too.
"""

from collections.abc import Sequence

import torch

from ..config import Config
from ..engine.adapters import Lora
from ..engine.reference import Reference
from ..engine.scoring import embed
from ..engine.training import Trained
from ..errors import refuse_if
from ..unlabeled.draws import Draw

# What a training log has: there were no steps.
LOG = {"steps": 0.0, "loss": 0.0, "clamp_rate": 0.0, "delta": 0.0}


def made(reference: Reference, draws: Sequence[Draw], config: Config) -> Trained:
    """The steering vectors of users, in the place of adapters.

        v = strength (mean_own h(x, y) - mean_unlabeled h(x, y))

    where h is the mean over the completion tokens of the output of ``steer.layer``, in the
    reference. The mean is over items.

    Raises
    ------
    IdiolectError
        The backbone has no such layer, or nothing above it.
    """
    backbone, depth = reference.backbone, layer_of(reference, config)
    loras: list[Lora] = []
    for drawn in draws:
        own, others = (
            embed(backbone, reference.shared, rows, depth).mean(0)
            for rows in (drawn.own, drawn.aux)
        )
        vector = torch.from_numpy(config.steer.strength * (own - others)).float()
        name = f"model.layers.{depth - 1}"
        # Scaled as other adapters are, so that a strength of 1 is this vector.
        whole = config.lora.scaling or 1.0
        loras.append(Lora({}, {}, whole, {name: vector.to(backbone.device) / whole}))
    return Trained(loras, [dict(LOG) for _ in draws])


def layer_of(reference: Reference, config: Config) -> int:
    """The layer, counted from 1: the one that is configured, or the middle one."""
    layers = len(reference.backbone.model.model.layers)
    depth = config.steer.layer or max(1, layers // 2)
    refuse_if(
        depth >= layers,
        f"steer.layer is {depth}, but this backbone has {layers} layers, and there has to "
        f"be one above it: use 1 to {layers - 1}, or 0 for the middle one.",
    )
    return depth
