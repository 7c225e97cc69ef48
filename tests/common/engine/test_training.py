from dataclasses import replace

import pytest
import torch

from idiolect.common.config import LoraShape, Personalise
from idiolect.common.engine import training
from idiolect.common.engine.adapters import hash_lora, new_lora, stack, zero_shared
from idiolect.common.engine.backbone import Encoded
from idiolect.common.engine.memory import Saving, TooLittleMemory
from idiolect.common.engine.objectives import LossFunction
from idiolect.common.engine.reference import Reference
from idiolect.common.engine.scoring import score_users
from idiolect.common.engine.training import (
    Adam,
    Example,
    TrainingSet,
    TrainingSettings,
    adam_step,
    batches,
    largest,
    learning_rate,
    sgd_step,
    train,
)
from idiolect.common.methods import bco, c_bpo, cope, kto, positives, sft
from tests.common.engine.test_adapters import adapter

SHAPE = LoraShape(rank=3, alpha=6.0)
KEYS = Personalise(unlabeled_weight=1.0, anchor=0.0)  # the paper's


def with_keys(loss) -> LossFunction:
    return lambda batch, means: loss(batch, means, KEYS)


SFT, C_BPO, DPO = map(with_keys, (sft.loss, c_bpo.loss, cope.dpo))
LOSSES = {"sft": SFT, "kto": with_keys(kto.loss), "bco": with_keys(bco.loss)}
LOSSES |= {"c-bpo": C_BPO, "positives": with_keys(positives.loss), "dpo": DPO}
SETTINGS = TrainingSettings(5e-3, epochs=2, batch=3)


@pytest.fixture(scope="module")
def material(backbone, items):
    """A shared adapter, three users' starts and training sets of different lengths."""
    shared = adapter(backbone, "s", 3)
    encoded = [backbone.encode(item) for item in items]
    reference = Reference(backbone, shared)
    scores = reference.scores(encoded)
    examples = [Example(e, s) for e, s in zip(encoded, scores, strict=True)]
    data = []
    for k, (first, last) in enumerate(((0, 7), (4, 9), (3, 5))):
        own, aux = examples[first:last], examples[last:] + examples[:first]
        aux = [replace(e, weight=1.0 + i % 2) for i, e in enumerate(aux)]
        pairs = own[1:] + aux + own[:1]
        worse = examples[::-1][: len(own)]
        data.append(TrainingSet(f"u{k}", own, aux, aux[:2], pairs, 0.2 * k, worse))
    starts = [new_lora(backbone, SHAPE, 0, f"u{k}") for k in range(3)]
    return reference, starts, data


def distance(one, two) -> float:
    pairs = [(one.a[n], two.a[n]) for n in one.a] + [
        (one.b[n], two.b[n]) for n in one.b
    ]
    return max((x - y).abs().max().item() for x, y in pairs)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_k_users_equal_k_runs(material, loss):
    reference, starts, data = material
    together = train(reference, starts, data, loss, SETTINGS)
    for k, one_set in enumerate(data):
        alone = train(reference, starts[k : k + 1], [one_set], loss, SETTINGS)
        assert distance(alone.loras[0], starts[k]) > 5e-3
        assert distance(alone.loras[0], together.loras[k]) < 1e-4
        assert together.logs[k] == pytest.approx(alone.logs[0], abs=1e-3)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_accumulation_changes_nothing(material, loss):
    reference, starts, data = material
    whole = train(reference, starts, data, loss, SETTINGS)
    parts = train(reference, starts, data, loss, replace(SETTINGS, microbatch=2))
    for one, two in zip(whole.loras, parts.loras, strict=True):
        assert distance(one, two) < 1e-4
    assert [log["delta"] for log in whole.logs] == pytest.approx(
        [log["delta"] for log in parts.logs], abs=1e-3
    )


def test_weights_of_tokens_reach_the_gradient_whoever_else_trains(material):
    reference, starts, data = material

    def weighted(example, weight):
        count = len(example.encoded.ids) - example.encoded.prompt_length
        weights = tuple(weight * (i % 2) for i in range(count))
        encoded = replace(example.encoded, weights=weights)
        return replace(example, encoded=encoded, reference=example.reference * weight)

    other = [
        replace(d, unlabeled=[weighted(e, 0.9) for e in d.unlabeled]) for d in data
    ]
    plain = train(reference, starts, data, C_BPO, SETTINGS)
    whole = train(reference, starts, other, C_BPO, SETTINGS)
    parts = train(reference, starts, other, C_BPO, replace(SETTINGS, microbatch=2))
    for k, one in enumerate(whole.loras):
        (alone,) = train(reference, [starts[k]], [other[k]], C_BPO, SETTINGS).loras
        assert distance(one, plain.loras[k]) > 1e-3
        assert distance(one, parts.loras[k]) < 1e-4
        assert distance(one, alone) < 1e-4


def test_the_largest_step_is_that_of_the_largest_layout(backbone):
    """Two users of one long and one short row each take the place of two long ones."""

    def step(*lengths: int):
        made = [
            Example(Encoded((7 + k, *range(20, 19 + n)), 1), 0.0)
            for k, n in enumerate(lengths)
        ]
        return [{"positive": [one]} for one in made]

    even, uneven = step(40, 40), step(70, 6)
    for steps in ([even, uneven], [uneven, even]):
        assert largest(backbone, steps).ids.shape == (2, 70)


def test_adapters_of_different_scalings_are_not_trained_together(material):
    reference, starts, data = material
    other = [starts[0], replace(starts[1], scaling=0.5)]
    with pytest.raises(ValueError, match="one scaling"):
        train(reference, other, data[:2], C_BPO, SETTINGS)


def test_a_budget_changes_no_bit_until_rows_must_be_split(material, monkeypatch):
    """The built-in forecast would need large tensors to be tested; the choices are not."""
    reference, starts, data = material
    whole = train(reference, starts, data, C_BPO, SETTINGS)
    monkeypatch.setattr(training, "within", lambda *_: Saving(recompute=1))
    again = train(reference, starts, data, C_BPO, SETTINGS)
    assert [hash_lora(one) for one in again.loras] == [
        hash_lora(o) for o in whole.loras
    ]
    monkeypatch.setattr(training, "within", lambda *_: Saving(passes=9))
    parts = train(reference, starts, data, C_BPO, SETTINGS)
    assert hash_lora(parts.loras[0]) != hash_lora(whole.loras[0])
    for one, two in zip(whole.loras, parts.loras, strict=True):
        assert distance(one, two) < 1e-4


def test_a_budget_that_cannot_be_kept_is_refused_with_one_that_can(material):
    reference, starts, data = material
    with pytest.raises(TooLittleMemory, match="allows 0 MB") as refused:
        train(reference, starts, data, C_BPO, replace(SETTINGS, memory=1))
    enough = refused.value.least << 20
    found = train(reference, starts, data, C_BPO, replace(SETTINGS, memory=enough))
    whole = train(reference, starts, data, C_BPO, SETTINGS)
    for one, two in zip(whole.loras, found.loras, strict=True):
        assert distance(one, two) < 1e-4  # rows may have been split


def test_training_again_gives_the_same_bits(backbone, material):
    reference, starts, data = material
    one = train(reference, starts, data, C_BPO, SETTINGS)
    two = train(reference, starts, data, C_BPO, SETTINGS)
    assert list(map(hash_lora, one.loras)) == list(map(hash_lora, two.loras))
    assert distance(starts[0], new_lora(backbone, SHAPE, 0, "u0")) == 0


def test_training_raises_the_likelihood_of_the_own_items_only_for_the_owner(
    backbone, material
):
    reference, starts, data = material
    settings = replace(SETTINGS, epochs=6)
    loras = train(reference, starts[:1], data[:1], SFT, settings).loras
    own = [example.encoded for example in data[0].positive]
    before = score_users(backbone, [reference.shared], [own])[0]
    after = score_users(backbone, [reference.shared, stack(loras)], [own])[0]
    assert sum(after) > sum(before) + 5


def test_one_steps_of_sft_equal_torch_adamw(backbone, material):
    reference, starts, data = material
    settings = TrainingSettings(1e-2, epochs=3, batch=100, warmup=0.0, clip=1e9)
    ours = train(reference, starts[:1], data[:1], SFT, settings).loras[0]
    leaves = {n: t.clone().requires_grad_() for n, t in starts[0].a.items()}
    ups = {n: t.clone().requires_grad_() for n, t in starts[0].b.items()}
    optimiser = torch.optim.AdamW(
        [*leaves.values(), *ups.values()], 1e-2, weight_decay=0
    )
    from idiolect.common.engine.adapters import Lora, attached
    from idiolect.common.engine.scoring import (
        collate,
        completion_logp,
        completion_tokens,
    )

    encoded = [example.encoded for example in data[0].positive]
    for _ in range(3):
        with attached(backbone, reference.shared, Lora(leaves, ups, starts[0].scaling)):
            logp = completion_logp(backbone, collate(backbone, encoded))
        optimiser.zero_grad()
        (-logp.sum() / sum(map(completion_tokens, encoded))).backward()
        optimiser.step()
    theirs = Lora(leaves, ups, starts[0].scaling)
    assert distance(ours, theirs) < 1e-4


def test_a_frozen_a_does_not_move(backbone, material):
    _, _, data = material
    shared = zero_shared(backbone, SHAPE, 0)
    settings = replace(SETTINGS, train_a=False)
    trained = train(Reference(backbone), [shared] * 3, data, SFT, settings).loras
    for lora in trained:
        assert all(torch.equal(lora.a[n], shared.a[n]) for n in shared.a)
        assert any(lora.b[n].abs().max() > 1e-3 for n in shared.b)
    assert distance(trained[0], trained[1]) > 1e-3


def test_an_overflowing_user_does_not_touch_the_others(material):
    reference, starts, data = material
    broken = replace(starts[1], b={n: t + float("inf") for n, t in starts[1].b.items()})
    mixed = train(reference, [starts[0], broken, starts[2]], data, C_BPO, SETTINGS)
    clean = train(reference, starts, data, C_BPO, SETTINGS)
    assert not all(t.isfinite().all() for t in mixed.loras[1].b.values())
    assert distance(mixed.loras[0], clean.loras[0]) < 2e-5
    assert distance(mixed.loras[2], clean.loras[2]) < 2e-5


def test_alpha_changes_the_result_and_is_reported_with_the_clamp(backbone, material):
    reference, starts, data = material
    high = [replace(one_set, alpha=0.9) for one_set in data]
    one = train(reference, starts, data, C_BPO, SETTINGS)
    two = train(reference, starts, high, C_BPO, SETTINGS)
    assert distance(one.loras[0], two.loras[0]) > 1e-4
    assert two.logs[0]["clamp_rate"] >= one.logs[0]["clamp_rate"]
    assert one.logs[0]["steps"] == 2 * 3


def test_the_batches_visit_everything_once_per_epoch(material):
    one_set = material[2][0]
    found = batches(one_set, SETTINGS)
    assert len(found) == 2 * 3
    for epoch in (found[:3], found[3:]):
        for kind in ("positive", "unlabeled", "negative"):
            seen = [example for batch in epoch for example in batch[kind]]
            assert sorted(map(id, seen)) == sorted(map(id, getattr(one_set, kind)))
            sizes = [len(batch[kind]) for batch in epoch]
            assert max(sizes) - min(sizes) <= 1
    assert [id(e) for e in found[0]["positive"]] != [
        id(e) for e in found[3]["positive"]
    ]


def test_mismatched_pairs_follow_their_items(material):
    one_set = material[2][0]
    batch = batches(one_set, SETTINGS)[0]
    own = [one_set.positive.index(e) for e in batch["positive"]]
    aux = [one_set.unlabeled.index(e) for e in batch["unlabeled"]]
    expected = [one_set.mismatched[i] for i in own]
    expected += [one_set.mismatched[len(one_set.positive) + i] for i in aux]
    assert batch["mismatched"] == expected


def test_what_is_rejected_follows_its_positive(material):
    one_set = material[2][0]
    for batch in batches(one_set, SETTINGS):
        own = [one_set.positive.index(e) for e in batch["positive"]]
        assert batch["rejected"] == [one_set.rejected[i] for i in own]
    (batch,) = batches(
        TrainingSet("u", one_set.positive), TrainingSettings(1.0, 1, 100)
    )
    assert batch["rejected"] == []


def test_dpo_parts_what_is_preferred_from_what_is_not(backbone, material):
    reference, starts, data = material
    settings, shared = replace(SETTINGS, epochs=4), reference.shared
    (lora,) = train(reference, starts[:1], data[:1], DPO, settings).loras

    def margin(*adapters):
        own, worse = (
            sum(score_users(backbone, adapters, [[e.encoded for e in part]])[0])
            for part in (data[0].positive, data[0].rejected)
        )
        return own - worse

    assert margin(shared, stack([lora])) > margin(shared) + 5


def test_learning_rate_warms_up_and_ends():
    settings = TrainingSettings(1.0, 1, 1, warmup=0.5)
    rates = [learning_rate(settings, t, 4) for t in range(6)]
    assert rates == [0.5, 1.0, 1.0, 1.0, 0.0, 0.0]


def test_adam_step_matches_torch_per_user_and_stops_the_finished():
    torch.manual_seed(0)
    start, gradients = torch.randn(2, 5), torch.randn(3, 2, 5)
    flat = start.clone()
    state = Adam(torch.zeros(2, 5), torch.zeros(2, 5), torch.zeros(2))
    leaf = start[0].clone().requires_grad_()
    optimiser = torch.optim.Adam([leaf], 0.1)
    second: list[torch.Tensor] = []
    for t in range(3):
        rates = torch.tensor([0.1, 0.1 if t == 0 else 0.0])
        state = adam_step(flat, gradients[t].clone(), state, rates, clip=1.0)
        leaf.grad = gradients[t, 0].clone()
        torch.nn.utils.clip_grad_norm_([leaf], 1.0)
        optimiser.step()
        if t == 0:
            second = [flat[1].clone(), state.first[1].clone()]
    torch.testing.assert_close(flat[0], leaf.detach(), atol=1e-5, rtol=1e-4)
    assert torch.equal(flat[1], second[0])
    assert torch.equal(state.first[1], second[1])
    assert state.steps.tolist() == [3, 1]


def test_delta_is_saved_per_user(backbone, material):
    reference, starts, data = material
    logs = train(reference, starts, data, C_BPO, SETTINGS).logs
    assert len({round(log["delta"], 6) for log in logs}) == 3


# --- plain gradient steps --------------------------------------------------------------


def test_sgd_closed_form_and_finished_rows_stay():
    flat = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    gradient = torch.tensor([[0.3, 0.4], [3.0, 4.0], [torch.nan, 1.0]])
    sgd_step(flat, gradient, torch.tensor([2.0, 2.0, 0.0]), clip=1.0)
    expected = [[0.4, 1.2], [1 - 2 * 0.6, 2 - 2 * 0.8], [1.0, 2.0]]
    torch.testing.assert_close(flat, torch.tensor(expected))


def test_settings_choose_the_optimizer(backbone, material):
    """After one step from B = 0 Adam moved every entry by its rate; sgd did not."""
    _, _, data = material
    shared = zero_shared(backbone, SHAPE, 0)
    bare = Reference(backbone)
    settings = TrainingSettings(1e-3, epochs=1, batch=100, warmup=0.0, train_a=False)
    moves = {}
    for optimizer in ("adam", "sgd"):
        chosen = replace(settings, optimizer=optimizer)
        (lora,) = train(bare, [shared], data[:1], SFT, chosen).loras
        moves[optimizer] = torch.cat([b.flatten() for b in lora.b.values()]).abs()
    # Adam divides by |g| + 1e-8: where a gradient is tiny it moves by less.
    assert (moves["adam"] > 0.9e-3).float().mean() > 0.9
    assert moves["sgd"].std() > 0.3 * moves["sgd"].mean() > 0
    double = replace(settings, optimizer="sgd", learning_rate=2e-3)
    (lora,) = train(bare, [shared], data[:1], SFT, double).loras
    twice = torch.cat([b.flatten() for b in lora.b.values()]).abs()
    torch.testing.assert_close(twice, 2 * moves["sgd"], rtol=1e-3, atol=1e-9)
