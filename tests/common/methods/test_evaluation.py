"""Scores, ranks and outputs against the obvious computation."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from idiolect.common.data.types import User
from idiolect.common.engine.adapters import Lora, attached
from idiolect.common.engine.reference import Reference
from idiolect.common.engine.scoring import completion_tokens, score_users
from idiolect.common.methods import evaluation
from idiolect.common.methods.evaluation import evaluate, held_out_nll
from idiolect.common.methods.pag import write_profile
from idiolect.common.methods.rag import with_history
from tests.common.conftest import CONFIG, config
from tests.common.engine.test_adapters import adapter
from tests.common.engine.test_scoring import obvious_logp


def test_evaluation_equals_the_obvious_computation(reference, wide, shared, users):
    loras = [adapter(wide, f"u{k}", k) for k in range(3)]
    results = evaluate(reference, loras, users, "c-bpo", CONFIG, False)
    for user, lora, result in zip(users, loras, results, strict=True):
        own = [wide.encode(item) for item in user.held_out]
        rival = [wide.encode(item.rivals[0]) for item in user.held_out]

        def reward(encoded, lora=lora):
            with attached(wide, shared, lora):
                policy = obvious_logp(wide, encoded)
            with attached(wide, shared):
                reference = obvious_logp(wide, encoded)
            return policy, (policy - reference) / completion_tokens(encoded)

        total = sum(reward(e)[0] for e in own)
        assert result["nll"] == pytest.approx(
            -total / sum(map(completion_tokens, own)), abs=1e-4
        )
        wins = [reward(a)[1] > reward(b)[1] for a, b in zip(own, rival, strict=True)]
        assert result["contrast"] == pytest.approx(sum(wins) / len(wins))


@pytest.mark.parametrize("method", ["base", "shared", "c-bpo"])
def test_the_likelihood_alone_is_the_one_of_the_evaluation(
    reference, wide, shared, users, method
):
    own: list[Lora | None] = [None] * 3
    if method == "c-bpo":
        own = [adapter(wide, f"u{k}", k) for k in range(3)]
    full = evaluate(reference, own, users, method, CONFIG, False)
    alone = held_out_nll(reference, own, users, method)
    assert alone == pytest.approx([found["nll"] for found in full], abs=1e-5)


def test_evaluation_is_per_token_where_lengths_differ(reference, wide, shared, items):
    # The rivals are three times as long, so that whole texts would compare otherwise.
    held = tuple(
        replace(item, rivals=(replace(item, target=f"{other.target} " * 3),))
        for item, other in zip(items, reversed(items), strict=True)
    )
    user, lora = User("u", (), held), adapter(wide, "u", 2)
    (found,) = evaluate(reference, [lora], [user], "c-bpo", CONFIG, False)

    def logp(item, *adapters):
        with attached(wide, *adapters):
            return obvious_logp(wide, wide.encode(item))

    def reward(item):
        return logp(item, shared, lora) - logp(item, shared)

    def count(item):
        return completion_tokens(wide.encode(item))

    total = sum(logp(item, shared, lora) for item in held)
    tokens = [count(item) for item in held]
    assert len(set(tokens)) > 1
    assert found["nll"] == pytest.approx(-total / sum(tokens), abs=1e-4)
    pairs = [(item, item.rivals[0]) for item in held]
    wins = [reward(a) / count(a) > reward(b) / count(b) for a, b in pairs]
    assert sum(wins) != sum(reward(a) > reward(b) for a, b in pairs)
    assert found["contrast"] == pytest.approx(sum(wins) / len(wins))


def test_ranks_among_several_rivals_are_the_obvious_ones(
    reference, wide, shared, users
):
    others = [item for user in users for item in user.history]
    held = tuple(
        replace(item, rivals=tuple(others[k : k + 2 + k]))
        for k, item in enumerate(users[0].held_out)
    )
    user, lora = replace(users[0], held_out=held), adapter(wide, "u", 2)
    (found,) = evaluate(reference, [lora], [user], "c-bpo", CONFIG, False)

    def reward(item):
        encoded = wide.encode(item)
        with attached(wide, shared, lora):
            policy = obvious_logp(wide, encoded)
        with attached(wide, shared):
            reference = obvious_logp(wide, encoded)
        return (policy - reference) / completion_tokens(encoded)

    shares, ranks = [], []
    for item in held:
        rewards = [reward(rival) for rival in item.rivals]
        above = sum(r > reward(item) for r in rewards)
        shares.append(1 - above / len(rewards))
        ranks.append(1 / (1 + above))
    assert len(set(ranks)) > 1
    assert found["contrast"] == pytest.approx(sum(shares) / len(shares))
    assert found["mrr"] == pytest.approx(sum(ranks) / len(ranks))


def test_nobody_gains_by_a_tie():
    found = evaluation.ranking(np.array([1.0]), [np.array([1.0, 0.0, 2.0])])
    assert found["contrast"] == 0.5
    assert found["mrr"] == pytest.approx((1 / 2 + 1 / 3) / 2)  # second or third
    # What says nothing ranks as a coin does.
    silent = evaluation.ranking(np.zeros(1), [np.zeros(7)])
    assert silent["mrr"] == pytest.approx(sum(1 / k for k in range(1, 9)) / 8)


def test_base_ignores_the_shared_adapter_and_shared_has_no_reward(
    reference, wide, shared, users, monkeypatch
):
    def otherwise_rounded(*arguments):
        scores = score_users(*arguments)
        return [[logp * (1 + 1e-6) for logp in user] for user in scores]

    # A score's last bits depend on its batch; they must not decide who wins a contrast.
    monkeypatch.setattr(evaluation, "score_users", otherwise_rounded)
    none = [None] * len(users)
    base = evaluate(reference, none, users, "base", CONFIG, False)
    reference = evaluate(reference, none, users, "shared", CONFIG, False)
    assert [r["contrast"] for r in reference] == [0.5] * 3
    assert all(a["nll"] != b["nll"] for a, b in zip(base, reference, strict=True))
    own = wide.encode(users[0].held_out[0])
    assert base[0]["nll"] > 0 and obvious_logp(wide, own) < 0


# --- the user's own items in the prompt -------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    from idiolect.common.engine.backbone import load_backbone

    return load_backbone("tiny", "float32", "cpu", 512)


@pytest.fixture(scope="module")
def shared_tiny(tiny):
    return adapter(tiny, "s", 3)


@pytest.fixture(scope="module")
def asked(tiny, shared_tiny):
    return Reference(tiny, shared_tiny)


def prompted(reference, user, method):
    profile = write_profile(reference, user) if method == "pag" else ""
    return with_history(reference.backbone, user, 4, 4, profile)


@pytest.mark.parametrize("method", ["rag", "pag"])
def test_prompts_with_own_items_equal_the_obvious_computation(
    asked, tiny, shared_tiny, users, method
):
    user = users[0]
    (found,) = evaluate(asked, [None], [user], method, CONFIG, False)
    (plain,) = evaluate(asked, [None], [user], "shared", CONFIG, False)

    def logp(item):
        with attached(tiny, shared_tiny):
            return obvious_logp(tiny, tiny.encode(item))

    def count(item):
        return completion_tokens(tiny.encode(item))

    longer = prompted(asked, user, method).held_out
    total, tokens, wins = 0.0, 0, []
    for item, asked in zip(user.held_out, longer, strict=True):
        assert len(asked.prompt.text) > 3 * len(item.prompt.text)
        total += logp(asked)
        tokens += count(item)
        own, rival = (
            (logp(one) - logp(was)) / count(was)
            for one, was in ((asked, item), (asked.rivals[0], item.rivals[0]))
        )
        wins.append(own > rival)
    assert found["nll"] == pytest.approx(-total / tokens, abs=1e-4)
    assert found["contrast"] == pytest.approx(sum(wins) / len(wins))
    assert abs(found["nll"] - plain["nll"]) > 1e-3


@pytest.mark.parametrize("method", ["rag", "pag"])
def test_nobody_elses_history_is_in_a_prompt(asked, tiny, shared_tiny, users, method):
    """A group gives what its users give alone, whatever the others wrote."""
    none, settings = [None] * 3, config(evaluate__generate=True)
    together = evaluate(asked, none, users, method, settings, True)
    changed = [replace(u, history=u.history[::-1][:2]) for u in users[1:]]
    group = [users[0], *changed]
    other = evaluate(asked, none, group, method, settings, True)
    (alone,) = evaluate(asked, [None], users[:1], method, settings, True)
    assert together[0] == pytest.approx(alone, abs=1e-5)
    assert other[0] == pytest.approx(alone, abs=1e-5)
    assert other[1]["nll"] != pytest.approx(together[1]["nll"], abs=1e-3)


def test_outputs_are_generated_at_the_longer_prompts(
    asked, tiny, shared_tiny, users, monkeypatch
):
    seen: list[list[int]] = []

    def watch(_backbone, _policy, prompts, _budget, contrast):
        assert contrast == 0.0
        seen.extend(map(list, prompts))
        return ["3"] * len(prompts)

    monkeypatch.setattr(evaluation, "generate", watch)
    evaluate(asked, [None], users[:1], "rag", CONFIG, True)
    longer = map(tiny.encode, with_history(tiny, users[0], 4, 4).held_out)
    assert seen == [list(e.ids[: e.prompt_length]) for e in longer]


def test_as_many_items_as_configured_are_put_into_the_prompt(
    asked, tiny, shared_tiny, users
):
    found = {
        count: evaluate(
            asked,
            [None],
            users[:1],
            "rag",
            config(evaluate__retrieved=count),
            False,
        )[0]["nll"]
        for count in (1, 2, 6, 64)
    }
    assert len({found[1], found[2], found[6]}) == 3
    assert found[6] == found[64]


def test_without_a_history_the_plain_prompt_is_asked(asked, tiny, shared_tiny, users):
    empty = replace(users[0], history=())
    plain, rag, pag = (
        evaluate(asked, [None], [empty], method, CONFIG, False)[0]["nll"]
        for method in ("shared", "rag", "pag")
    )
    assert rag == pytest.approx(plain) and pag == pytest.approx(plain)


def test_only_prompts_with_own_items_need_the_search_library(
    asked, tiny, shared_tiny, users, monkeypatch
):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    for method in ("base", "shared"):
        evaluate(asked, [None], users[:1], method, CONFIG, False)
    with pytest.raises(ImportError, match="bm25s"):
        evaluate(asked, [None], users[:1], "rag", CONFIG, False)


# --- CoPe -------------------------------------------------------------------------------


def test_named_methods_decode_by_contrast_and_are_scored_without(
    reference, wide, shared, users, monkeypatch
):
    loras = [adapter(wide, f"u{k}", k) for k in range(3)]
    asked: list[float] = []
    real = evaluation.generate

    def watch(*arguments, contrast):
        asked.append(contrast)
        return real(*arguments, contrast=contrast)

    monkeypatch.setattr(evaluation, "generate", watch)
    settings = config(evaluate__contrast=0.7, evaluate__contrasted="cope")
    results = {
        method: evaluate(reference, loras, users, method, settings, True)
        for method in ("sft", "cope")
    }
    assert asked == [0.0, 0.7]
    both = replace(settings, evaluate=replace(settings.evaluate, contrasted="sft,cope"))
    (named,) = evaluate(reference, loras[:1], users[:1], "sft", both, True)
    assert asked[2:] == [0.7] and named == pytest.approx(results["cope"][0], abs=1e-5)
    for one, two in zip(*results.values(), strict=True):
        assert (one["nll"], one["contrast"]) == (two["nll"], two["contrast"])
    (alone,) = evaluate(reference, loras[1:2], users[1:2], "cope", settings, True)
    assert alone == pytest.approx(results["cope"][1], abs=1e-5)


def test_generation_adds_the_metrics_of_the_task(reference, wide, shared, users):
    loras = [adapter(wide, f"u{k}", k) for k in range(3)]
    together = evaluate(reference, loras, users, "c-bpo", CONFIG, True)
    assert all({"nll", "contrast", "mae", "rmse"} <= set(r) for r in together)
    (alone,) = evaluate(reference, loras[2:], users[2:], "c-bpo", CONFIG, True)
    assert alone == pytest.approx(together[2], abs=1e-5)


def test_shift_is_the_mean_over_tokens_that_the_reference_expects(
    reference, wide, shared, users, monkeypatch
):
    lora = adapter(wide, "u", 1)
    assert evaluation.shift(reference, None, users[0]) == 0.0
    monkeypatch.setattr(evaluation, "COMMON", 1e-9)  # every token counts
    rivals = [wide.encode(item.rivals[0]) for item in users[0].held_out]
    total = 0.0
    for encoded in rivals:
        with attached(wide, shared, lora):
            total += obvious_logp(wide, encoded)
        with attached(wide, shared):
            total -= obvious_logp(wide, encoded)
    expected = total / sum(map(completion_tokens, rivals))
    found = evaluation.shift(reference, lora, users[0])
    assert found == pytest.approx(expected, abs=1e-4)
    assert abs(found) > 0.01
    monkeypatch.setattr(evaluation, "COMMON", 0.99999)  # no token does
    assert evaluation.shift(reference, lora, users[0]) == 0.0
    measured = config(evaluate__shift=True)
    (result,) = evaluate(reference, [lora], users[:1], "c-bpo", measured, False)
    assert result["shift"] == 0.0


# --- a second opinion, and what privacy needs of a device --------------------------------


def test_without_rivals_there_is_no_contrast(backbone, shared, users):
    """It was .5 whatever the method: each text was compared with itself."""
    alone = [
        replace(u, held_out=tuple(replace(i, rivals=()) for i in u.held_out))
        for u in users
    ]
    settings, plain = config(evaluate__shift=True), Reference(backbone, shared)
    none = [None] * len(users)
    found = evaluate(plain, none, alone, "base", settings, False)
    assert [set(one) for one in found] == [{"nll"}] * len(users)
    # Some items have rivals: these count, and the others say nothing.
    first, *rest = users[0].held_out
    mixed = replace(
        users[0], held_out=(first, *(replace(item, rivals=()) for item in rest))
    )
    only = replace(users[0], held_out=(first,))
    scored = [
        evaluate(plain, [None], [one], "base", settings, False)[0]
        for one in (mixed, only)
    ]
    assert scored[0]["contrast"] == pytest.approx(scored[1]["contrast"])
    assert scored[0]["contrast"] in (0.0, 0.5, 1.0) and rest
