import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from idiolect.common.engine import backbone as backbone_module
from idiolect.common.engine import scoring
from idiolect.common.engine.adapters import attached, stack, zero_shared
from idiolect.common.engine.backbone import FAMILIES, Encoded, load_backbone
from idiolect.common.engine.reference import Reference
from idiolect.common.engine.scoring import (
    collate,
    completion_logp,
    contrasted,
    embed,
    generate,
    score_users,
    token_logp,
)
from tests.common.engine.test_adapters import SHAPE, adapter


def obvious_logp(backbone, encoded: Encoded) -> float:
    """log p(completion | prompt) from the whole model, one token after the other."""
    ids = torch.tensor([encoded.ids])
    with torch.no_grad():
        logp = F.log_softmax(backbone.model(ids).logits[0].float(), dim=-1)
    places = range(encoded.prompt_length, len(encoded.ids))
    return sum(logp[t - 1, encoded.ids[t]].item() for t in places)


def obvious(backbone, lora, encoded: list[Encoded]) -> list[float]:
    """That of every item, one after the other, under an adapter."""
    with attached(backbone, lora):
        return [obvious_logp(backbone, e) for e in encoded]


@pytest.mark.parametrize("family", FAMILIES)
def test_logp_equals_the_whole_model(family, model_folder, items):
    backbone = load_backbone(str(model_folder(family)), "float32", "cpu", 96)
    encoded = [backbone.encode(item) for item in items[:4]]
    with torch.no_grad():
        logp = completion_logp(backbone, collate(backbone, encoded))
    assert logp.tolist() == pytest.approx(
        [obvious_logp(backbone, e) for e in encoded], abs=1e-3
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_short_last_layer_has_the_gradients_of_the_whole(
    family, model_folder, items, monkeypatch
):
    backbone = load_backbone(str(model_folder(family)), "float32", "cpu", 96)
    encoded = [None, *(backbone.encode(item) for item in items[:5])]
    lora = adapter(backbone, "u", 1)
    leaves = [t.requires_grad_() for t in (*lora.a.values(), *lora.b.values())]
    found = []
    for plain in (backbone_module.PLAIN_LAYER, set()):
        monkeypatch.setattr(backbone_module, "PLAIN_LAYER", plain)
        with attached(backbone, lora):
            logp = completion_logp(backbone, collate(backbone, encoded))
        found.append([logp.detach(), *torch.autograd.grad(logp.sum(), leaves)])
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)


def test_the_last_layer_is_itself_again_after_an_error(backbone, items):
    batch = collate(backbone, [backbone.encode(items[0])])
    layer = backbone.model.model.layers[-1]
    with torch.no_grad(), pytest.raises(IndexError):
        backbone.hidden_at(batch, torch.full((1, 1), 10**6))
    assert "forward" not in vars(layer)


def test_filler_rows_score_nothing(backbone, items):
    encoded = backbone.encode(items[0])
    with torch.no_grad():
        logp = completion_logp(backbone, collate(backbone, [None, encoded, None]))
        nothing = completion_logp(backbone, collate(backbone, [None, None]))
    assert nothing.tolist() == [0, 0]
    assert logp[0] == logp[2] == 0
    assert logp[1].item() == pytest.approx(obvious_logp(backbone, encoded), abs=1e-4)


def test_chunked_head_has_the_same_values_and_gradients(backbone, items, monkeypatch):
    encoded = [backbone.encode(item) for item in items]
    lora = adapter(backbone, "u", 1)
    results = []
    for limit in (1 << 24, 700):  # 700 / vocabulary: two positions at a time
        monkeypatch.setattr(scoring, "LOGITS_PER_CHUNK", limit)
        leaf = next(iter(lora.b.values())).clone().requires_grad_()
        lora.b[next(iter(lora.b))] = leaf
        with attached(backbone, lora):
            logp = completion_logp(backbone, collate(backbone, encoded))
        (gradient,) = torch.autograd.grad(logp.sum(), leaf)
        results.append((logp.detach(), gradient))
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("most", [1 << 24, 700])
def test_the_head_of_a_wide_vocabulary_is_exact(
    family, most, model_folder, monkeypatch
):
    """Values and gradients are those of log softmax in float64, capped logits included."""
    backbone = load_backbone(str(model_folder(family)), "float32", "cpu", 96)
    monkeypatch.setattr(scoring, "WIDE", 1)
    torch.manual_seed(0)
    states = torch.randn(7, 32, requires_grad=True)
    labels = torch.tensor([0, 5, 299, 17, 17, 3, 120])
    weights = torch.linspace(-1, 2, 7)
    found = scoring._token_logp(backbone, states, labels, most)
    (gradient,) = torch.autograd.grad((weights * found).sum(), states)
    logits = backbone.logits(states).double()
    expected = logits.log_softmax(-1).gather(1, labels.unsqueeze(1)).squeeze(1)
    (wanted,) = torch.autograd.grad((weights * expected).sum(), states)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        assert torch.equal(scoring._token_logp(backbone, states, labels, most), found)


def test_tokens_count_by_their_weights(backbone, items):
    """Values and gradients are those of a sum that is weighted by hand."""
    rows = [backbone.encode(item) for item in items[:3]]
    sizes = [len(row.ids) - row.prompt_length for row in rows]
    weights = tuple(float(i % 3) for i in range(sizes[1]))
    lora = adapter(backbone, "u", 1)
    leaf = next(iter(lora.b.values())).requires_grad_()

    def scored(rows):
        with attached(backbone, lora):
            logp = completion_logp(backbone, collate(backbone, rows))
        (gradient,) = torch.autograd.grad(logp.sum(), leaf)
        return logp.detach(), gradient

    with attached(backbone, lora):
        each = token_logp(backbone, collate(backbone, rows)).split(sizes)
    second = (torch.tensor(weights) * each[1]).sum()
    (wanted,) = torch.autograd.grad(each[0].sum() + second + each[2].sum(), leaf)
    weighted = [rows[0], replace(rows[1], weights=weights), None, rows[2]]
    logp, gradient = scored(weighted)
    expected = torch.stack([each[0].sum(), second, torch.zeros(()), each[2].sum()])
    torch.testing.assert_close(logp, expected.detach(), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(gradient, wanted, atol=1e-4, rtol=1e-4)
    ones = [replace(r, weights=(1.0,) * n) for r, n in zip(rows, sizes, strict=True)]
    for one, two in zip(scored(ones), scored(rows), strict=True):
        assert torch.equal(one, two)
    nothing = [replace(r, weights=(0.0,) * n) for r, n in zip(rows, sizes, strict=True)]
    assert not any(found.any() for found in scored(nothing))


def test_users_of_a_stack_are_scored_with_their_own_adapters(
    backbone, items, monkeypatch
):
    monkeypatch.setattr(scoring, "TOKENS_PER_PASS", 200)  # several passes
    encoded = [backbone.encode(item) for item in items]
    users = [encoded[:5], encoded[5:7], encoded[7:]]
    loras = [adapter(backbone, f"u{k}", k) for k in range(3)]
    together = score_users(backbone, [stack(loras)], users)
    for lora, own, scores in zip(loras, users, together, strict=True):
        assert scores == pytest.approx(obvious(backbone, lora, own), abs=1e-3)


def test_reference_scores_are_those_of_the_shared_policy(backbone, items):
    encoded = [backbone.encode(item) for item in items]
    shared = adapter(backbone, "s", 3)
    found = Reference(backbone, shared).scores(encoded)
    assert found == pytest.approx(obvious(backbone, shared, encoded), abs=1e-3)


def test_an_embedding_is_the_mean_state_of_the_completion(backbone, items):
    encoded = [backbone.encode(item) for item in items]
    shared = adapter(backbone, "s", 3)
    found = embed(backbone, shared, encoded)
    for e, embedding in zip(encoded, found, strict=True):
        with torch.no_grad(), attached(backbone, shared):
            hidden = backbone.model.model(torch.tensor([e.ids])).last_hidden_state[0]
        mean = hidden[e.prompt_length :].mean(0).double().numpy()
        assert embedding == pytest.approx(mean, abs=1e-4)
    assert embed(backbone, shared, []).shape == (0, found.shape[1])


def test_greedy_generation_equals_the_obvious_loop(backbone, items):
    loras = [adapter(backbone, f"u{k}", k) for k in range(2)]
    prompts = []
    for item in items[:4]:
        encoded = backbone.encode(item)
        prompts.append(encoded.ids[: encoded.prompt_length])
    texts = generate(backbone, [stack(loras)], prompts, 6)
    for k, prompt in enumerate(prompts):
        ids = list(prompt)
        with torch.no_grad(), attached(backbone, loras[k // 2]):
            for _ in range(6):
                ids.append(
                    int(backbone.model(torch.tensor([ids])).logits[0, -1].argmax())
                )
        assert texts[k] == backbone.decode(ids[len(prompt) :])


def prompts_of(backbone, items) -> list[tuple[int, ...]]:
    encoded = [backbone.encode(item) for item in items]
    return [e.ids[: e.prompt_length] for e in encoded]


def obvious_contrast(backbone, shared, lora, prompt, weight, count) -> list[int]:
    """Contrastive decoding of one prompt, token by token over the vocabulary."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            with attached(backbone, shared, lora):
                policy = backbone.model(torch.tensor([ids])).logits[0, -1].softmax(-1)
            with attached(backbone, shared):
                other = backbone.model(torch.tensor([ids])).logits[0, -1].softmax(-1)
        best, chosen = -float("inf"), -1
        for token, (p, q) in enumerate(
            zip(policy.tolist(), other.tolist(), strict=True)
        ):
            score = math.log(p) + weight * (math.log(p) - math.log(q))
            if p >= 0.1 * policy.max().item() and score > best:
                best, chosen = score, token
        ids.append(chosen)
    return ids[len(prompt) :]


@pytest.mark.parametrize("weight", [0.3, 4.0])
def test_contrastive_decoding_equals_the_obvious_loop(backbone, items, weight):
    shared = adapter(backbone, "s", 3)
    loras = [adapter(backbone, f"u{k}", k) for k in range(2)]
    prompts = prompts_of(backbone, items[:4])
    texts = generate(backbone, [shared, stack(loras)], prompts, 6, contrast=weight)
    plain = generate(backbone, [shared, stack(loras)], prompts, 6)
    for k, prompt in enumerate(prompts):
        lora = loras[k // 2]
        ids = obvious_contrast(backbone, shared, lora, prompt, weight, 6)
        assert texts[k] == backbone.decode(ids)
    assert texts != plain


def test_contrastive_decoding_has_greedy_decoding_as_its_limit(backbone, items):
    policy = [adapter(backbone, "s", 3), stack([adapter(backbone, "u", 1)])]
    prompts = [(), *prompts_of(backbone, items[:3])]
    plain = generate(backbone, policy, prompts, 6)
    assert generate(backbone, policy, prompts, 6, contrast=1e-9) == plain
    assert plain[0] == "" and len(plain) == 4


def test_contrast_with_itself_is_greedy_decoding(backbone, items):
    """An own adapter that changes nothing has nothing to favour."""
    shared = adapter(backbone, "s", 3)
    own = stack([zero_shared(backbone, SHAPE, 0)])
    prompts = prompts_of(backbone, items[:3])
    plain = generate(backbone, [shared], prompts, 6)
    assert generate(backbone, [shared, own], prompts, 6, contrast=5.0) == plain


def test_only_plausible_tokens_are_contrasted():
    # The third token is what the policy adds most of, but it is too unlikely.
    policy = torch.tensor([[0.6, 0.3, 0.05, 0.05]]).log()
    other = torch.tensor([[0.6, 0.2, 0.0001, 0.1999]]).log()
    scores = contrasted(torch.cat([policy, other]) + 7.0, 2.0)
    expected = [math.log(0.6), math.log(0.3) + 2 * math.log(1.5)]
    assert scores[0].tolist() == pytest.approx([*expected, -math.inf, -math.inf])
    assert torch.equal(scores[0], scores[1])


def test_there_is_no_contrast_without_own_adapters(backbone):
    with pytest.raises(ValueError, match="only a stack has a reference"):
        generate(backbone, [adapter(backbone, "s", 3)], [(3, 4)], 2, contrast=1.0)


def test_filler_prompts_generate_nothing(backbone, items):
    encoded = backbone.encode(items[0])
    prompt = encoded.ids[: encoded.prompt_length]
    alone = generate(backbone, [], [prompt], 5)
    assert generate(backbone, [], [(), prompt], 5) == ["", *alone]
    assert generate(backbone, [], [(), ()], 5) == ["", ""]


def test_what_stands_in_the_output_is_written_again_less_often(
    backbone, items, monkeypatch
):
    """By the logits: l / penalty or l * penalty, and the prompt's tokens do not count."""
    encoded = backbone.encode(items[0])
    prompt = list(encoded.ids[: encoded.prompt_length])
    monkeypatch.setattr(type(backbone), "decode", lambda _self, ids: ids)

    def written(penalty):
        return list(generate(backbone, [], [prompt], 12, repetition=penalty)[0])

    prompt += range(backbone.model.config.vocab_size)  # whatever follows stands there
    for penalty in (1.0, 1.3, 1e9):
        found = written(penalty)
        for place, token in enumerate(found):
            before, ids = found[:place], torch.tensor([prompt + found[:place]])
            with torch.no_grad():
                logits = backbone.model(ids).logits[0, -1]
            for one in set(before):
                grown = penalty if logits[one] < 0 else 1 / penalty
                logits[one] = logits[one] * grown
            assert token == logits.argmax()
    assert len(set(written(1e9))) > len(set(written(1.0)))


def test_sampling_depends_on_the_seed(backbone, items):
    encoded = backbone.encode(items[0])
    prompt = encoded.ids[: encoded.prompt_length]
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(generate(backbone, [], [prompt] * 4, 8, top_p=0.95))
    assert texts[0] == texts[1] != texts[2]
