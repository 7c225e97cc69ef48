from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from idiolect.common.config import parse
from idiolect.common.data import personas
from idiolect.common.data.types import Truth
from idiolect.common.engine.adapters import (
    Lora,
    attached,
    hash_lora,
    new_lora,
    zero_shared,
)
from idiolect.common.engine.reference import Reference
from idiolect.common.errors import IdiolectError
from idiolect.common.methods import personalise as module
from idiolect.common.methods.personalise import (
    Personal,
    mismatched,
    personalise,
    preference_samples,
)
from idiolect.common.methods.shared import clip_rows, shared_update
from idiolect.common.unlabeled import alpha
from idiolect.common.unlabeled.draws import draw_for
from idiolect.common.unlabeled.overlap import Overlap
from idiolect.common.unlabeled.sets import Unlabeled, UnlabeledSet
from idiolect.common.unlabeled.votes import user_vote
from tests.common.conftest import CONFIG, config
from tests.common.engine.test_scoring import obvious_logp


def train(reference, users, others, method, settings=CONFIG):
    return personalise(reference, users, others, method, 3e-3, settings)


def lora_of(result: Personal) -> Lora:
    assert result.lora is not None, result.error
    return result.lora


@pytest.mark.parametrize("method", ["sft", "cope", "kto", "bco", "c-bpo", "positives"])
def test_a_group_equals_its_users_alone(reference, users, others, method):
    together = train(reference, users, others, method)
    for k, user in enumerate(users):
        (alone,) = train(reference, [user], others, method)
        assert together[k].user == user.id
        assert together[k].alpha == pytest.approx(alone.alpha)
        for name, tensor in lora_of(alone).b.items():
            torch.testing.assert_close(
                tensor, lora_of(together[k]).b[name], atol=2e-5, rtol=1e-3
            )


def test_nobody_elses_history_reaches_an_sft_adapter(reference, users, others):
    """The public OPPU code trains user i on users 0..i; here user 0 changes nothing."""
    changed = replace(users[0], history=users[0].history[::-1][:3])
    before = train(reference, users, others, "sft")
    after = train(reference, [changed, *users[1:]], others, "sft")
    assert hash_lora(before[0].lora) != hash_lora(after[0].lora)
    for one, two in zip(before[1:], after[1:], strict=True):
        for name, tensor in lora_of(one).b.items():
            torch.testing.assert_close(
                tensor, lora_of(two).b[name], atol=2e-5, rtol=1e-3
            )


def test_own_items_are_left_out_of_the_unlabeled_set(reference, wide, users, others):
    seen = draw_for(reference, users[0], others, CONFIG).aux
    own = {wide.encode(item).ids for item in users[0].history}
    assert len(seen) == 6
    assert not own & {encoded.ids for encoded in seen}


def test_self_samples_stay_on_the_own_prompts(reference, wide, users):
    settings = config(unlabeled__kind="self")
    first = draw_for(reference, users[0], UnlabeledSet(), settings).aux
    again = draw_for(reference, users[0], UnlabeledSet(), settings).aux
    prompts = {e.ids[: e.prompt_length] for e in map(wide.encode, users[0].history)}
    assert first == again and len(first) > 0
    assert {e.ids[: e.prompt_length] for e in first} <= prompts
    (trained,) = train(reference, users[:1], UnlabeledSet(), "c-bpo", settings)
    assert (trained.alpha, trained.estimated) == (0.5, False)


def test_alpha_is_estimated_for_a_population_and_fixed_by_config(
    reference, users, others
):
    estimated = train(reference, users, others, "c-bpo")
    assert all(p.estimated and 0 <= (p.alpha or -1) <= 0.9 for p in estimated)
    fixed = train(reference, users, others, "c-bpo", config(unlabeled__alpha="0.25"))
    assert [(p.alpha, p.estimated) for p in fixed] == [(0.25, False)] * 3


def test_the_true_overlap_takes_the_place_of_the_estimate(reference, users, others):
    truth = [Truth(share, {}, {}, 1.0) for share in (0.2, 0.5, 0.95)]
    known = [replace(u, truth=t) for u, t in zip(users, truth, strict=True)]
    settings = config(unlabeled__alpha="true", task="headline")
    found = [
        (p.alpha, p.estimated)
        for p in train(reference, known, others, "c-bpo", settings)
    ]
    assert found == [(0.2, False), (0.5, False), (0.9, False)]


def alphas(reference, users, others, settings) -> list[float]:
    found = []
    for user in users:
        drawn = draw_for(reference, user, others, settings)
        found.append(alpha.alpha_of(reference, user, drawn, settings).alpha)
    return found


def test_alpha_is_kept_for_its_user_its_set_and_its_seed(reference, users, others):
    twins = [replace(user, id=f"twin of {user.id}") for user in users]
    less = [replace(user, history=user.history[:-1]) for user in users]
    heavy = [replace(entry, weight=1.0 + i % 3) for i, entry in enumerate(others.items)]
    heavy, fewer = UnlabeledSet(tuple(heavy)), UnlabeledSet(others.items[2:])
    cases = [
        (users, others, config(unlabeled__alpha_items=4)),
        (twins, others, config(unlabeled__alpha_items=4)),
        (users, fewer, config(unlabeled__alpha_items=4)),
        (users, others, config(unlabeled__alpha_items=5)),
        (users, others, config(unlabeled__alpha_items=4, seed=7)),
        (less, others, config(unlabeled__alpha_items=4)),
        (users, heavy, config()),
        (users, others, config()),
    ]
    kept = [alphas(reference, *case) for case in cases]
    assert len({tuple(each) for each in kept}) == len(cases)
    for case, known in zip(cases, kept, strict=True):
        reference.forget()
        assert alphas(reference, *case) == known


def test_alpha_from_embeddings_is_kept_for_its_reference(
    reference, wide, users, others
):
    settings = config(unlabeled__alpha_features="backbone")
    other = new_lora(wide, settings.shared_shape, 1, "other")
    for tensor in other.b.values():
        tensor.normal_()
    policies = reference, reference.with_shared(other)
    kept = [alphas(policy, users, others, settings) for policy in policies]
    assert kept[0] != kept[1]
    reference.forget()
    assert alphas(policies[1], users, others, settings) == kept[1]


def test_alpha_from_ngrams_ranks_users_by_their_true_overlap(reference):
    """48 personas with 32 headlines each; nothing of this runs the model."""
    settings = parse(
        {
            "unlabeled.kind": "others",
            "unlabeled.alpha-features": "ngrams",
            "unlabeled.alpha-items": 128,
        }
    )
    people = personas.make(settings).users
    entries = [Unlabeled(item, 1.0, u.id) for u in people for item in u.history]
    others = UnlabeledSet(tuple(entries))
    found = alphas(reference, people, others, settings)
    truth = [user.truth.overlap for user in people if user.truth]
    assert np.corrcoef(rankdata(truth), rankdata(found))[0, 1] > 0.8


def test_alpha_looks_at_as_many_items_as_it_is_told(
    reference, users, others, monkeypatch
):
    seen: list[tuple[int, float]] = []

    def estimate(target, unlabeled, weights, generator):
        seen.append((len(unlabeled), weights.sum()))
        return Overlap(0.1, True)

    monkeypatch.setattr(alpha.overlap, "estimate", estimate)
    for count in (0, 4, 400):
        for features in ("backbone", "ngrams"):
            settings = config(
                unlabeled__alpha_items=count, unlabeled__alpha_features=features
            )
            alphas(reference, users[:1], others, settings)
    drawn, four, everything = (6, 6.0), (4, 4.0), (12, 12.0)
    assert seen[:2] == [drawn] * 2 and seen[4:] == [everything] * 2
    assert all(n <= four[0] and total == four[1] for n, total in seen[2:4])


def test_overflow_is_reported_by_name(reference, users, others):
    results = personalise(reference, users, others, "sft", 1e30, CONFIG)
    assert all(p.lora is None for p in results)
    assert users[1].id in results[1].error and "learning rate" in results[1].error


def test_an_empty_history_is_refused(reference, users, others):
    with pytest.raises(IdiolectError, match="empty history"):
        train(reference, [replace(users[0], history=())], others, "c-bpo")


def test_shared_update_is_clipped_per_user_and_leaves_a_alone(wide, users):
    start = zero_shared(wide, CONFIG.lora, 0)
    reference = Reference(wide, start)
    free = shared_update(reference, users, config(adapt__clip=1e3), 1)
    tight = shared_update(reference, users, config(adapt__clip=0.01), 1)

    def norms(rows):
        return torch.stack([t.flatten(1).square().sum(1) for t in rows.values()]).sum(0)

    assert set(free) == set(start.b)
    assert all(free[n].shape == (3, *start.b[n].shape) for n in free)
    assert (norms(free).sqrt() > 0.01).all()
    torch.testing.assert_close(norms(tight).sqrt(), torch.full((3,), 0.01))
    alone = shared_update(reference, users[1:2], config(adapt__clip=1e3), 1)
    for name in free:
        torch.testing.assert_close(free[name][1:2], alone[name], atol=2e-5, rtol=1e-3)
    later = shared_update(reference, users, config(adapt__clip=1e3), 2)
    assert any(not torch.equal(later[n], free[n]) for n in free)


def test_clipping_leaves_short_rows_alone():
    rows = {
        "x": torch.tensor([[[3.0]], [[0.3]]]),
        "y": torch.tensor([[[4.0]], [[0.4]]]),
    }
    clipped = clip_rows(rows, 1.0)
    torch.testing.assert_close(clipped["x"].flatten(), torch.tensor([0.6, 0.3]))
    torch.testing.assert_close(clipped["y"].flatten(), torch.tensor([0.8, 0.4]))


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

    def watch(backbone, shared, start, lessons, recipe):
        result = real(backbone, shared, start, lessons, recipe)
        calls.append((start, lessons, recipe, result.loras))
        return result

    monkeypatch.setattr(module, "train", watch)
    (cope,) = train(reference, users[:1], others, "cope")
    (sft,) = train(reference, users[:1], others, "sft")
    (_, sft, first, tuned), (start, pairs, second, _) = calls[:2]
    assert (first.method, first.epochs) == ("sft", CONFIG.personalise.epochs)
    assert (second.method, second.epochs) == ("dpo", 1)
    assert hash_lora(start[0]) == hash_lora(tuned[0]) == hash_lora(sft.lora)
    assert hash_lora(cope.lora) != hash_lora(sft.lora)
    assert cope.log["steps"] == 2 * 2 + 2
    (lesson,) = pairs
    own = [wide.encode(item) for item in users[0].history]
    assert [e.encoded for e in lesson.positive] == own
    assert [e.encoded for e in sft[0].positive] == own
    with attached(wide, reference.shared, sft.lora):
        for example in (*lesson.positive, *lesson.rejected):
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


def test_mismatched_pairs_shift_the_completions(wide, users):
    encoded = [wide.encode(item) for item in users[0].history]
    pairs = mismatched(encoded, 400)
    for k, pair in enumerate(pairs):
        after = encoded[(k + 1) % len(encoded)]
        assert pair.ids[: pair.prompt_length] == encoded[k].ids[: pair.prompt_length]
        assert pair.ids[pair.prompt_length :] == after.ids[after.prompt_length :]
    assert all(len(pair.ids) <= 60 for pair in mismatched(encoded, 60))


def test_a_smaller_shared_adapter_has_the_scale_of_the_others():
    settings = config(adapt__rank=2, lora__rank=8, lora__alpha=16.0)
    assert settings.shared_shape.rank == 2
    assert settings.shared_shape.alpha / 2 == settings.lora.alpha / 8
    assert config().shared_shape == config().lora


def test_votes_by_hidden_states_are_votes(wide, users):
    settings = config(unlabeled__kind="votes", unlabeled__features="backbone")
    bank = personas.make(settings).public
    vote = user_vote(Reference(wide), bank, users[0], settings)
    assert vote.shape == (8,) and (vote >= 0).all()
    assert 0 < (vote.astype(float) ** 2).sum() <= 1 + 1e-6
    other = user_vote(Reference(wide), bank, users[1], settings)
    assert (vote != other).any()
