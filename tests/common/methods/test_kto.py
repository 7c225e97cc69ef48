"""KTO: its loss in closed form, and its mismatched pairs."""

import math

import pytest
import torch

from idiolect.common.engine.objectives import (
    Scored,
    zero_means,
)
from idiolect.common.methods.kto import mismatched
from tests.common.methods.losses import (
    kto_loss,
    means,
    scored,
)


def test_kto_closed_form_with_positive_and_negative_divergence():
    positive, unlabeled = scored([0.8]), scored([0.2, -0.4])
    for shift, z in ((0.5, 0.5), (-0.5, 0.0)):
        loss = kto_loss(positive, unlabeled, scored([shift, shift]), means(), 2.0)

        def sigmoid(x):
            return 1 / (1 + math.exp(-x))

        terms = [1 - sigmoid(2 * (0.8 - z))]
        terms += [1 - sigmoid(2 * (z - u)) for u in (0.2, -0.4)]
        assert loss.value.item() == pytest.approx(sum(terms) / 3)


def test_kto_divergence_carries_no_gradient():
    other = torch.tensor([0.5], requires_grad=True)
    pairs = Scored(other, torch.zeros(1), torch.ones(1), torch.ones(1))
    items = Scored(torch.ones(1), torch.zeros(1), torch.ones(1), torch.ones(1))
    assert not kto_loss(items, items, pairs, zero_means(), 1.0).value.requires_grad


def test_mismatched_pairs_shift_the_completions(wide, users):
    encoded = [wide.encode(item) for item in users[0].history]
    pairs = mismatched(encoded, 400)
    for k, pair in enumerate(pairs):
        after = encoded[(k + 1) % len(encoded)]
        assert pair.ids[: pair.prompt_length] == encoded[k].ids[: pair.prompt_length]
        assert pair.ids[pair.prompt_length :] == after.ids[after.prompt_length :]
    assert all(len(pair.ids) <= 60 for pair in mismatched(encoded, 60))


def test_known_negatives_are_a_mean_of_their_own_and_no_part_of_z():
    items = scored([0.8]), scored([0.2, -0.4]), scored([0.5, 0.3])
    plain = kto_loss(*items, means(), 2.0)
    loss = kto_loss(*items, means(), 2.0, negative=scored([0.9, -0.3]))
    terms = [1 - 1 / (1 + math.exp(-2 * (0.4 - u))) for u in (0.9, -0.3)]
    assert (loss.value - plain.value).item() == pytest.approx(sum(terms) / 2)
    for weight in (0.0, 0.3):
        some = kto_loss(*items, means(), 2.0, weight, negative=scored([0.9, -0.3]))
        added = (some.value - plain.value).item()
        assert added == pytest.approx(weight * sum(terms) / 2)
