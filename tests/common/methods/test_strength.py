"""The strength of an own adapter: what it does, and how it is fitted."""

from dataclasses import replace

import pytest
import torch

from idiolect.common.engine.adapters import scaled, stack
from idiolect.common.engine.scoring import score_users
from idiolect.common.methods import strength
from idiolect.common.methods.evaluation import evaluate, held_out_nll
from idiolect.common.methods.personalise import personalise
from tests.common.conftest import config
from tests.common.engine.test_adapters import adapter

FITTED = config(personalise__strength="fitted")


def test_users_of_different_strength_are_as_each_alone(reference, wide, users):
    loras = [adapter(wide, f"u{k}", k) for k in range(3)]
    own = [scaled(lora, s) for lora, s in zip(loras, (0.0, 0.5, 3.0), strict=True)]
    rows = [[wide.encode(item) for item in user.held_out] for user in users]
    together = score_users(wide, [reference.shared, stack(own)], rows)
    for lora, mine, found in zip(own, rows, together, strict=True):
        (alone,) = score_users(wide, [reference.shared, lora], [mine])
        assert found == pytest.approx(alone, abs=1e-4)
    (without,) = score_users(wide, [reference.shared], [rows[0]])
    assert together[0] == pytest.approx(without, abs=1e-4)
    assert len({tuple(lora.b[n].norm().item() for n in lora.b) for lora in own}) == 3


def test_an_adapter_that_hurts_is_switched_off_and_a_weak_one_turned_up(
    reference, users, others
):
    (good,) = personalise(reference, users[:1], others, "sft", 3e-3, config())
    assert good.lora is not None
    learnt = users[0].history
    bad = scaled(good.lora, -0.1)
    weak = scaled(good.lora, 0.25)
    trials = [[(bad, learnt)], [(weak, learnt)], [(good.lora, ())], []]
    found = strength.fit(reference, trials)
    assert found[0] == 0 and found[1] > 2 and found[2:] == [1, 1]


def test_the_line_search_finds_the_lowest_point_of_the_grid(reference, wide, users):
    loras = [adapter(wide, f"u{k}", k) for k in range(3)]
    texts = [user.history for user in users]
    trials = [[(lora, own)] for lora, own in zip(loras, texts, strict=True)]
    found = strength.fit(reference, trials)
    for lora, user, best in zip(loras, users, found, strict=True):
        who = replace(user, held_out=user.history)

        def nll(s, lora=lora, who=who):
            return held_out_nll(reference, [scaled(lora, s)], [who], "sft")[0]

        assert nll(best) <= min(map(nll, strength.GRID)) + 1e-6
    # Of equal strengths the one that changes least is taken.
    nothing = replace(loras[0], b={n: 0 * b for n, b in loras[0].b.items()})
    assert strength.fit(reference, [[(nothing, texts[0])]]) == [1.0]


def test_what_is_trained_on_does_not_fit_the_strength(
    reference, users, others, monkeypatch
):
    learnt, fitted = [], []
    train, fit = personalise.__globals__["train"], strength.fit

    def watched(reference, start, data, *rest):
        learnt.extend(e.encoded.ids for e in data[0].positive)
        return train(reference, start, data, *rest)

    def seen(reference, trials):
        ((_, texts),) = trials[0]
        fitted.extend(reference.backbone.encode(item).ids for item in texts)
        return fit(reference, trials)

    monkeypatch.setitem(personalise.__globals__, "train", watched)
    monkeypatch.setattr(strength, "fit", seen)
    (one,) = personalise(reference, users[:1], others, "sft", 3e-3, FITTED)
    everything = [reference.backbone.encode(item).ids for item in users[0].history]
    assert [*learnt, *fitted] == everything and len(fitted) == strength.FEWEST
    plain = config()
    assert one.lora is not None
    assert one.lora.scaling == one.strength * plain.lora.alpha / plain.lora.rank


@pytest.mark.parametrize(("items", "kept"), [(3, 0), (4, 2), (14, 2), (15, 3), (32, 6)])
def test_a_fifth_is_kept_back_where_enough_remains(users, items, kept):
    history = tuple(replace(users[0].history[0], id=str(n)) for n in range(items))
    learnt, held = strength.kept_back(history)
    assert len(held) == kept and (*learnt, *held) == history


def test_trials_of_a_user_are_judged_together(reference, wide, users):
    """One strength, for the sum of what all trials lack; others do not change it."""
    loras = [adapter(wide, f"u{k}", k) for k in range(3)]
    first, second = users[0].history[:3], users[0].history[3:6]
    apart = [[(loras[0], first), (loras[1], second)], [(loras[2], users[1].history)]]
    (found, other) = strength.fit(reference, apart)
    assert strength.fit(reference, apart[:1]) == [found]
    assert strength.fit(reference, apart[1:]) == [other]

    def total(s):
        rows = [(loras[0], first), (loras[1], second)]
        return sum(
            sum(score_users(wide, [reference.shared, scaled(a, s)], [encoded])[0])
            for a, items in rows
            for encoded in ([wide.encode(item) for item in items],)
        )

    assert total(found) >= max(map(total, strength.GRID)) - 1e-3


@pytest.mark.parametrize(
    ("items", "sizes"), [(3, [0] * 4), (4, [1] * 4), (6, [2, 2, 1, 1])]
)
def test_folds_keep_every_text_from_one_trial(users, items, sizes):
    history = tuple(replace(users[0].history[0], id=str(n)) for n in range(items))
    folds = [strength.fold(history, number) for number in range(strength.FOLDS)]
    assert [len(kept) for _, kept in folds] == sizes
    for learnt, kept in folds:
        assert {*learnt, *kept} == {*history} and not {*learnt} & {*kept}
    if any(sizes):
        assert {item for _, kept in folds for item in kept} == {*history}


def test_a_crossed_strength_is_of_the_adapter_of_the_whole_history(
    reference, users, others, monkeypatch
):
    """Trials learn from three quarters; who has too little keeps strength 1."""
    few = replace(users[1], history=users[1].history[:3])
    seen, train = [], personalise.__globals__["train"]

    def watched(reference, start, data, *rest):
        seen.append([len(one.positive) for one in data])
        return train(reference, start, data, *rest)

    monkeypatch.setitem(personalise.__globals__, "train", watched)
    group, crossed = [users[0], few], config(personalise__strength="crossed")
    found = personalise(reference, group, others, "sft", 1e-2, crossed)
    count = len(users[0].history)
    trials = [[count - len(range(f, count, 4))] for f in range(4)]
    assert seen == [*trials, [count, 3]]
    plain = personalise(reference, group, others, "sft", 1e-2, config())
    assert found[1].strength == 1 != found[0].strength
    for one, raw in zip(found, plain, strict=True):
        assert one.lora is not None and raw.lora is not None
        assert one.lora.scaling == one.strength * raw.lora.scaling
        for name, b in raw.lora.b.items():
            assert torch.equal(one.lora.b[name], b)


@pytest.mark.parametrize(("items", "older"), [(1, 0), (3, 0), (4, 2), (5, 2), (8, 4)])
def test_judges_are_never_fitted_on(users, items, older):
    held = tuple(replace(users[0].history[0], id=str(n)) for n in range(items))
    fits, judges = strength.halves(held)
    assert len(fits) == older and (*fits, *judges) == held


def test_metrics_are_those_at_the_strength_with_the_raw_ones_beside(
    reference, users, others
):
    (raw,) = personalise(reference, users[:1], others, "c-bpo", 3e-3, config())
    half = config(personalise__strength="0.5")
    (own,) = personalise(reference, users[:1], others, "c-bpo", 3e-3, half)
    assert own.lora is not None and raw.lora is not None and own.strength == 0.5
    for name, b in raw.lora.b.items():
        assert torch.equal(own.lora.b[name], b)
    (one,) = evaluate(reference, [raw.lora], users[:1], "c-bpo", config(), False)
    (two,) = evaluate(reference, [own.lora], users[:1], "c-bpo", half, False)
    assert "strength" not in one and two["strength"] == 0.5
    assert two["nll_raw"] == pytest.approx(one["nll"], abs=1e-5) != two["nll"]
    (base,) = evaluate(reference, [None], users[:1], "shared", half, False)
    assert "strength" not in base
