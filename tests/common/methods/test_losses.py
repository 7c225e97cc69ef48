"""Gradients of all losses."""

import pytest
import torch

from idiolect.common.engine.objectives import Scored
from tests.common.methods.losses import (
    alpha,
    bco_loss,
    c_bpo_loss,
    dpo_loss,
    kto_loss,
    means,
    sft_loss,
)


@pytest.mark.parametrize("method", ["sft", "c_bpo", "bco", "kto", "extended", "dpo"])
def test_gradients_match_finite_differences(method):
    torch.manual_seed(1)
    reference = torch.randn(5, dtype=torch.float64)
    start = torch.randn(5, dtype=torch.float64)
    ones = torch.ones(5, dtype=torch.float64)

    # KTO's z carries no gradient, so it is held fixed in the differences too.
    fixed = Scored(start[2:].clone(), reference[2:], ones[2:], ones[2:])

    def value(logp):
        one = Scored(logp[:2], reference[:2], ones[:2], ones[:2])
        two = Scored(logp[2:], reference[2:], ones[2:], ones[2:])
        state = means(0.3, -0.2)
        return {
            "sft": lambda: sft_loss(one, state),
            "c_bpo": lambda: c_bpo_loss(one, two, alpha(0.4), state, 0.7, 0.9),
            "bco": lambda: bco_loss(one, two, state, 0.7, 0.9),
            "kto": lambda: kto_loss(one, two, fixed, state, 0.7),
            "extended": lambda: c_bpo_loss(
                *(one, two, alpha(0.4), state, 0.7, 0.9),
                unlabeled_weight=0.3,
                anchor=0.5,
                reward="token",
            ),
            "dpo": lambda: dpo_loss(
                one, Scored(*(t[:2] for t in vars(two).values())), state, 0.7
            ),
        }[method]().value

    logp = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(logp), logp)
    step = 1e-6
    for i in range(5):
        up, down = start.clone(), start.clone()
        up[i] += step
        down[i] -= step
        slope = (value(up) - value(down)).item() / (2 * step)
        assert gradient[i].item() == pytest.approx(slope, abs=1e-7)
