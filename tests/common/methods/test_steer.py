"""Steering: the vector is a difference of means, and moves one user only."""

import numpy as np
import pytest
import torch

from idiolect.common.engine.adapters import (
    Lora,
    attached,
    dump_lora,
    hash_lora,
    parse_lora,
    shadowed,
    side_by_side,
    stack,
)
from idiolect.common.engine.exports import export_peft
from idiolect.common.engine.fitting import encode_all
from idiolect.common.engine.scoring import generate, score_users
from idiolect.common.errors import IdiolectError
from idiolect.common.methods.evaluation import evaluate
from idiolect.common.methods.personalise import personalise
from idiolect.common.unlabeled.draws import draw_for
from tests.common.conftest import CONFIG, config


def made(reference, users, others, **changes) -> list[Lora]:
    settings = config(steer__strength=2.0, **changes)
    found = personalise(reference, users, others, "steer", 1e-3, settings)
    return [one.lora for one in found if one.lora is not None]


def first_layer(backbone, ids, *adapters: Lora) -> torch.Tensor:
    """The first layer's output [1, L, d]."""
    layer, seen = backbone.model.model.layers[0], []
    with torch.no_grad(), attached(backbone, *adapters):
        handle = layer.register_forward_hook(lambda *a: seen.append(a[-1]))
        backbone.model(torch.tensor([ids]))
        handle.remove()
    return seen[0]


def by_hand(reference, rows) -> torch.Tensor:
    """Mean over rows of the mean over completion tokens of the first layer's output."""
    means = [
        first_layer(reference.backbone, row.ids, reference.shared)[
            0, row.prompt_length :
        ].mean(0)
        for row in rows
    ]
    return torch.stack(means).mean(0)


def test_the_vector_is_the_difference_of_mean_hidden_states(reference, users, others):
    loras = made(reference, users, others)
    for user, lora in zip(users, loras, strict=True):
        drawn = draw_for(reference, user, others, CONFIG)
        wanted = by_hand(reference, drawn.own) - by_hand(reference, drawn.aux)
        assert list(lora.bias) == ["model.layers.0"]
        found = lora.scaling * lora.bias["model.layers.0"]
        torch.testing.assert_close(found, 2.0 * wanted)


def test_it_is_added_to_the_layers_output(reference, users, others):
    (lora, *_), backbone = made(reference, users, others), reference.backbone
    hooks = len(backbone.model.model.layers[0]._forward_hooks)
    plain = first_layer(backbone, [1, 5, 9], reference.shared)
    steered = first_layer(backbone, [1, 5, 9], reference.shared, lora)
    shift = (lora.scaling * lora.bias["model.layers.0"]).expand(1, 3, -1)
    torch.testing.assert_close(steered - plain, shift, atol=1e-5, rtol=1e-4)
    assert len(backbone.model.model.layers[0]._forward_hooks) == hooks


def test_strength_0_is_the_shared_policy(reference, users, others):
    settings = config(steer__strength=0.0, evaluate__generate=True)
    found = personalise(reference, users, others, "steer", 1e-3, settings)
    none = [None] * len(users)
    steered = evaluate(
        reference, [o.lora for o in found], users, "steer", settings, True
    )
    shared = evaluate(reference, none, users, "shared", settings, True)
    for one, two in zip(steered, shared, strict=True):
        same = ("nll", "mae", "rmse")
        assert [one[name] for name in same] == [two[name] for name in same]


@pytest.mark.parametrize("contrast", [0.0, 1.0])
def test_users_together_are_users_alone(reference, users, others, contrast):
    backbone, loras = reference.backbone, made(reference, users, others)
    items = [encode_all(backbone, user.held_out) for user in users]
    together = score_users(backbone, [reference.shared, stack(loras)], items)
    prompts = [row.ids[: row.prompt_length] for rows in items for row in rows]
    texts = generate(
        backbone, [reference.shared, stack(loras)], prompts, 6, contrast=contrast
    )
    merged = side_by_side([[reference.shared, lora] for lora in loras])
    joined = score_users(backbone, [merged], items)
    for k, (lora, rows) in enumerate(zip(loras, items, strict=True)):
        own = [reference.shared, stack([lora])]
        (alone,) = score_users(backbone, own, [rows])
        assert together[k] == pytest.approx(alone, rel=1e-5)
        assert joined[k] == pytest.approx(alone, rel=1e-5)
        asked = prompts[k * len(rows) : (k + 1) * len(rows)]
        wanted = generate(backbone, own, asked, 6, contrast=contrast)
        assert texts[k * len(rows) : (k + 1) * len(rows)] == wanted
    (plain,) = score_users(backbone, [reference.shared], items[:1])
    assert not np.allclose(plain, together[0])


def test_the_reference_to_contrast_with_is_not_steered(reference, users, others):
    loras = stack(made(reference, users, others))
    both = shadowed(loras).bias["model.layers.0"].chunk(2)
    assert torch.equal(both[0], loras.bias["model.layers.0"])
    assert not both[1].any()


def test_it_is_kept_as_bytes_and_is_part_of_its_identity(reference, users, others):
    one, two, *_ = made(reference, users, others)
    again, _ = parse_lora(dump_lora(one, {}))
    assert hash_lora(again) == hash_lora(one) != hash_lora(two)


def test_what_cannot_be_is_refused(reference, users, others, tmp_path):
    with pytest.raises(IdiolectError, match=r"steer\.layer is 2, but .* use 1 to 1"):
        made(reference, users, others, steer__layer=2)
    (lora, *_) = made(reference, users, others)
    with pytest.raises(IdiolectError, match="export an adapter of another method"):
        export_peft(tmp_path / "x", reference.backbone, reference.shared, lora)
    wrong = Lora({}, {}, 1.0, {"model.layers.7": lora.bias["model.layers.0"]})
    with (
        pytest.raises(IdiolectError, match="layer 'model.layers.7' does not fit"),
        attached(reference.backbone, wrong),
    ):
        pass
