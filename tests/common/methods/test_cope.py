"""CoPe: DPO in closed form, and its two stages."""

import math
from dataclasses import replace

import pytest
import torch

from idiolect.common.engine.adapters import (
    Lora,
    attached,
    hash_lora,
)
from idiolect.common.engine.objectives import (
    boundary,
)
from idiolect.common.methods import cope as cope_module
from idiolect.common.methods import personalise as module
from idiolect.common.methods.cope import preference_samples
from idiolect.common.methods.personalise import (
    Personal,
    personalise,
)
from idiolect.common.unlabeled.sets import UnlabeledSet
from tests.common.conftest import CONFIG, config
from tests.common.engine.test_scoring import obvious_logp
from tests.common.methods.losses import (
    dpo_loss,
    means,
    minus_log_sigmoid,
    scored,
)


def train(reference, users, others, method, settings=CONFIG):
    return personalise(reference, users, others, method, 3e-3, settings)


def lora_of(result: Personal) -> Lora:
    assert result.lora is not None, result.error
    return result.lora


def test_dpo_closed_form():
    chosen = scored([-2.0, -1.0], [-3.0, -1.5])
    rejected = scored([-4.0, -0.5], [-3.5, -2.0])
    margins = [(1.0 + 0.5) * 0.5, (0.5 - 1.5) * 0.5]
    loss = dpo_loss(chosen, rejected, means(0.3, 0.1), 0.5)
    expected = sum(map(minus_log_sigmoid, margins)) / 2
    assert loss.value.item() == pytest.approx(expected, rel=1e-12)
    assert boundary(loss.means).item() == pytest.approx(0.2)
    assert loss.clamped.item() == 0


def test_dpo_is_log_two_at_its_reference_and_counts_real_pairs_only():
    same = scored([-2.0, -3.0], [-2.0, -3.0])
    assert dpo_loss(same, same, means(), 3.0).value.item() == pytest.approx(math.log(2))
    for filler in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0]):
        chosen = scored([1.0, 9.0], weight=[1.0, filler[0]])
        rejected = scored([0.0, 2.0], weight=[1.0, filler[1]])
        loss = dpo_loss(chosen, rejected, means(), 1.0)
        assert loss.value.item() == pytest.approx(minus_log_sigmoid(1.0))


def test_dpo_pairs_by_place():
    chosen, rejected = scored([2.0, 0.0]), scored([1.0, -3.0])
    crossed = dpo_loss(chosen, scored([-3.0, 1.0]), means(), 1.0).value.item()
    expected = (minus_log_sigmoid(1.0) + minus_log_sigmoid(3.0)) / 2
    assert dpo_loss(chosen, rejected, means(), 1.0).value.item() == pytest.approx(
        expected
    )
    assert crossed != pytest.approx(expected)


def test_preference_pairs_have_one_prompt_each(reference, wide, users):
    own = [wide.encode(item) for item in users[0].history]
    samples = preference_samples(reference, users[0], own, CONFIG)
    again = preference_samples(reference, users[0], own, CONFIG)
    other = config(seed=1)
    assert samples == again
    assert samples != preference_samples(reference, users[0], own, other)
    for mine, sample in zip(own, samples, strict=True):
        assert sample.prompt_length == mine.prompt_length
        assert sample.ids[: mine.prompt_length] == mine.ids[: mine.prompt_length]
        assert mine.prompt_length < len(sample.ids) <= wide.context


def test_cope_is_sft_and_then_one_epoch_of_dpo_against_it(
    reference, wide, users, others, monkeypatch
):
    calls: list[tuple] = []
    real = module.train

    def watch(reference, start, data, loss, settings, *followed):
        result = real(reference, start, data, loss, settings, *followed)
        calls.append((start, data, settings, result.loras))
        return result

    for stage in (module, cope_module):
        monkeypatch.setattr(stage, "train", watch)
    (cope,) = train(reference, users[:1], others, "cope")
    (plain,) = train(reference, users[:1], others, "sft")
    (_, sft, first, tuned), (start, pairs, second, _) = calls[:2]
    assert (first.epochs, second.epochs) == (CONFIG.personalise.epochs, 1)
    assert hash_lora(start[0]) == hash_lora(tuned[0]) == hash_lora(plain.lora)
    assert hash_lora(cope.lora) != hash_lora(plain.lora)
    assert cope.log["steps"] == 2 * 2 + 2
    (pair_set,) = pairs
    own = [wide.encode(item) for item in users[0].history]
    assert [e.encoded for e in pair_set.positive] == own
    assert [e.encoded for e in sft[0].positive] == own
    with attached(wide, reference.shared, plain.lora):
        for example in (*pair_set.positive, *pair_set.rejected):
            expected = obvious_logp(wide, example.encoded)
            assert example.reference == pytest.approx(expected, abs=1e-3)


def test_cope_does_not_depend_on_the_unlabeled_set(reference, users, others):
    (one,) = train(reference, users[:1], others, "cope")
    settings = config(unlabeled__kind="public", unlabeled__ratio=2.0)
    (two,) = train(
        reference, users[:1], UnlabeledSet(others.items[::2]), "cope", settings
    )
    assert hash_lora(one.lora) == hash_lora(two.lora)


def test_an_overflow_in_copes_first_stage_costs_one_user(
    reference, users, others, monkeypatch
):
    clean = train(reference, users, others, "cope")
    real = module.new_lora

    def broken(backbone, shape, seed, *names):
        lora = real(backbone, shape, seed, *names)
        if users[1].id not in names:
            return lora
        return replace(lora, b={n: t + torch.inf for n, t in lora.b.items()})

    monkeypatch.setattr(module, "new_lora", broken)
    mixed = train(reference, users, others, "cope")
    assert mixed[1].lora is None and users[1].id in mixed[1].error
    for k in (0, 2):
        for name, tensor in lora_of(clean[k]).b.items():
            torch.testing.assert_close(
                tensor, lora_of(mixed[k]).b[name], atol=2e-5, rtol=1e-3
            )
