from dataclasses import replace

import pytest
import torch

from idiolect.common.config import LoraShape
from idiolect.common.engine.adapters import hash_lora, new_lora, stack, zero_shared
from idiolect.common.engine.reference import Reference
from idiolect.common.engine.scoring import score_users
from idiolect.common.engine.training import (
    Adam,
    Example,
    Lesson,
    Recipe,
    adam_step,
    learning_rate,
    plan,
    sgd_step,
    train,
)
from tests.common.engine.test_adapters import adapter

SHAPE = LoraShape(rank=3, alpha=6.0)
METHODS = ("sft", "kto", "bco", "c-bpo", "positives", "dpo")
RECIPE = Recipe("c-bpo", 5e-3, epochs=2, batch=3)


@pytest.fixture(scope="module")
def material(backbone, items):
    """A shared adapter, three users' starts and lessons of different lengths."""
    shared = adapter(backbone, "s", 3)
    encoded = [backbone.encode(item) for item in items]
    scores = Reference(backbone, shared).scores(encoded)
    examples = [Example(e, s) for e, s in zip(encoded, scores, strict=True)]
    lessons = []
    for k, (first, last) in enumerate(((0, 7), (4, 9), (3, 5))):
        own, aux = examples[first:last], examples[last:] + examples[:first]
        aux = [replace(e, weight=1.0 + i % 2) for i, e in enumerate(aux)]
        pairs = own[1:] + aux + own[:1]
        worse = examples[::-1][: len(own)]
        lessons.append(Lesson(f"u{k}", own, aux, aux[:2], pairs, 0.2 * k, worse))
    starts = [new_lora(backbone, SHAPE, 0, f"u{k}") for k in range(3)]
    return shared, starts, lessons


def distance(one, two) -> float:
    pairs = [(one.a[n], two.a[n]) for n in one.a] + [
        (one.b[n], two.b[n]) for n in one.b
    ]
    return max((x - y).abs().max().item() for x, y in pairs)


@pytest.mark.parametrize("method", METHODS)
def test_k_users_equal_k_runs(backbone, material, method):
    shared, starts, lessons = material
    recipe = replace(RECIPE, method=method)
    together = train(backbone, shared, starts, lessons, recipe)
    for k, lesson in enumerate(lessons):
        alone = train(backbone, shared, starts[k : k + 1], [lesson], recipe)
        assert distance(alone.loras[0], starts[k]) > 5e-3
        assert distance(alone.loras[0], together.loras[k]) < 1e-4
        assert together.logs[k] == pytest.approx(alone.logs[0], abs=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_accumulation_changes_nothing(backbone, material, method):
    shared, starts, lessons = material
    recipe = replace(RECIPE, method=method)
    whole = train(backbone, shared, starts, lessons, recipe)
    parts = train(backbone, shared, starts, lessons, replace(recipe, microbatch=2))
    for one, two in zip(whole.loras, parts.loras, strict=True):
        assert distance(one, two) < 1e-4
    assert [log["delta"] for log in whole.logs] == pytest.approx(
        [log["delta"] for log in parts.logs], abs=1e-3
    )


def test_training_again_gives_the_same_bits(backbone, material):
    shared, starts, lessons = material
    one = train(backbone, shared, starts, lessons, RECIPE)
    two = train(backbone, shared, starts, lessons, RECIPE)
    assert list(map(hash_lora, one.loras)) == list(map(hash_lora, two.loras))
    assert distance(starts[0], new_lora(backbone, SHAPE, 0, "u0")) == 0


def test_training_raises_the_likelihood_of_the_own_items_only_for_the_owner(
    backbone, material
):
    shared, starts, lessons = material
    recipe = replace(RECIPE, method="sft", epochs=6)
    loras = train(backbone, shared, starts[:1], lessons[:1], recipe).loras
    own = [example.encoded for example in lessons[0].positive]
    before = score_users(backbone, [shared], [own])[0]
    after = score_users(backbone, [shared, stack(loras)], [own])[0]
    assert sum(after) > sum(before) + 5


def test_one_steps_of_sft_equal_torch_adamw(backbone, material):
    shared, starts, lessons = material
    recipe = Recipe("sft", 1e-2, epochs=3, batch=100, warmup=0.0, clip=1e9)
    ours = train(backbone, shared, starts[:1], lessons[:1], recipe).loras[0]
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

    encoded = [example.encoded for example in lessons[0].positive]
    for _ in range(3):
        with attached(backbone, shared, Lora(leaves, ups, starts[0].scaling)):
            logp = completion_logp(backbone, collate(backbone, encoded))
        optimiser.zero_grad()
        (-logp.sum() / sum(map(completion_tokens, encoded))).backward()
        optimiser.step()
    theirs = Lora(leaves, ups, starts[0].scaling)
    assert distance(ours, theirs) < 1e-4


def test_a_frozen_a_does_not_move(backbone, material):
    _, _, lessons = material
    shared = zero_shared(backbone, SHAPE, 0)
    recipe = replace(RECIPE, method="sft", train_a=False)
    trained = train(backbone, None, [shared] * 3, lessons, recipe).loras
    for lora in trained:
        assert all(torch.equal(lora.a[n], shared.a[n]) for n in shared.a)
        assert any(lora.b[n].abs().max() > 1e-3 for n in shared.b)
    assert distance(trained[0], trained[1]) > 1e-3


def test_an_overflowing_user_does_not_touch_the_others(backbone, material):
    shared, starts, lessons = material
    broken = replace(starts[1], b={n: t + float("inf") for n, t in starts[1].b.items()})
    mixed = train(backbone, shared, [starts[0], broken, starts[2]], lessons, RECIPE)
    clean = train(backbone, shared, starts, lessons, RECIPE)
    assert not all(t.isfinite().all() for t in mixed.loras[1].b.values())
    assert distance(mixed.loras[0], clean.loras[0]) < 2e-5
    assert distance(mixed.loras[2], clean.loras[2]) < 2e-5


def test_alpha_changes_the_result_and_is_reported_with_the_clamp(backbone, material):
    shared, starts, lessons = material
    high = [replace(lesson, alpha=0.9) for lesson in lessons]
    one = train(backbone, shared, starts, lessons, RECIPE)
    two = train(backbone, shared, starts, high, RECIPE)
    assert distance(one.loras[0], two.loras[0]) > 1e-4
    assert two.logs[0]["clamp_rate"] >= one.logs[0]["clamp_rate"]
    assert one.logs[0]["steps"] == 2 * 3


def test_plan_visits_everything_once_per_epoch(material):
    lesson = material[2][0]
    steps = plan(lesson, RECIPE)
    assert len(steps) == 2 * 3
    for epoch in (steps[:3], steps[3:]):
        for kind in ("positive", "unlabeled", "negative"):
            seen = [example for step in epoch for example in step[kind]]
            assert sorted(map(id, seen)) == sorted(map(id, getattr(lesson, kind)))
            sizes = [len(step[kind]) for step in epoch]
            assert max(sizes) - min(sizes) <= 1
    assert [id(e) for e in steps[0]["positive"]] != [
        id(e) for e in steps[3]["positive"]
    ]


def test_mismatched_pairs_follow_their_items(material):
    lesson = material[2][0]
    step = plan(lesson, RECIPE)[0]
    own = [lesson.positive.index(e) for e in step["positive"]]
    aux = [lesson.unlabeled.index(e) for e in step["unlabeled"]]
    expected = [lesson.mismatched[i] for i in own]
    expected += [lesson.mismatched[len(lesson.positive) + i] for i in aux]
    assert step["mismatched"] == expected


def test_what_is_rejected_follows_its_positive(material):
    lesson = material[2][0]
    for step in plan(lesson, RECIPE):
        own = [lesson.positive.index(e) for e in step["positive"]]
        assert step["rejected"] == [lesson.rejected[i] for i in own]
    (step,) = plan(Lesson("u", lesson.positive), Recipe("sft", 1.0, 1, 100))
    assert step["rejected"] == []


def test_dpo_parts_what_is_preferred_from_what_is_not(backbone, material):
    shared, starts, lessons = material
    recipe = replace(RECIPE, method="dpo", epochs=4)
    (lora,) = train(backbone, shared, starts[:1], lessons[:1], recipe).loras

    def margin(*adapters):
        own, worse = (
            sum(score_users(backbone, adapters, [[e.encoded for e in part]])[0])
            for part in (lessons[0].positive, lessons[0].rejected)
        )
        return own - worse

    assert margin(shared, stack([lora])) > margin(shared) + 5


def test_learning_rate_warms_up_and_ends():
    recipe = Recipe("sft", 1.0, 1, 1, warmup=0.5)
    rates = [learning_rate(recipe, t, 4) for t in range(6)]
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
    shared, starts, lessons = material
    logs = train(backbone, shared, starts, lessons, RECIPE).logs
    assert len({round(log["delta"], 6) for log in logs}) == 3


# --- plain gradient steps --------------------------------------------------------------


def test_sgd_closed_form_and_finished_rows_stay():
    flat = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    gradient = torch.tensor([[0.3, 0.4], [3.0, 4.0], [torch.nan, 1.0]])
    sgd_step(flat, gradient, torch.tensor([2.0, 2.0, 0.0]), clip=1.0)
    expected = [[0.4, 1.2], [1 - 2 * 0.6, 2 - 2 * 0.8], [1.0, 2.0]]
    torch.testing.assert_close(flat, torch.tensor(expected))


def test_a_recipe_chooses_its_optimizer(backbone, material):
    """After one step from B = 0 Adam moved every entry by its rate; sgd did not."""
    _, _, lessons = material
    shared = zero_shared(backbone, SHAPE, 0)
    recipe = Recipe("sft", 1e-3, epochs=1, batch=100, warmup=0.0, train_a=False)
    moves = {}
    for optimizer in ("adam", "sgd"):
        chosen = replace(recipe, optimizer=optimizer)
        (lora,) = train(backbone, None, [shared], lessons[:1], chosen).loras
        moves[optimizer] = torch.cat([b.flatten() for b in lora.b.values()]).abs()
    # Adam divides by |g| + 1e-8: where a gradient is tiny it moves by less.
    assert (moves["adam"] > 0.9e-3).float().mean() > 0.9
    assert moves["sgd"].std() > 0.3 * moves["sgd"].mean() > 0
    double = replace(recipe, optimizer="sgd", learning_rate=2e-3)
    (lora,) = train(backbone, None, [shared], lessons[:1], double).loras
    twice = torch.cat([b.flatten() for b in lora.b.values()]).abs()
    torch.testing.assert_close(twice, 2 * moves["sgd"], rtol=1e-3, atol=1e-9)
