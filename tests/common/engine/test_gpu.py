"""The engine on a GPU computes what it computes on a CPU, within what bf16 can hold."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from idiolect.common.config import Personalise, parse
from idiolect.common.data import personas
from idiolect.common.engine.adapters import Lora, new_lora, stack, zero_shared
from idiolect.common.engine.backbone import Encoded, load_backbone
from idiolect.common.engine.reference import Reference
from idiolect.common.engine.scoring import (
    collate,
    completion_logp,
    generate,
    score_users,
)
from idiolect.common.engine.training import (
    Example,
    TrainingSet,
    TrainingSettings,
    train,
)
from idiolect.common.methods import c_bpo, sft
from idiolect.common.methods.personalise import personalise
from idiolect.common.unlabeled.sets import Unlabeled, UnlabeledSet
from tests.common.conftest import write_tokenizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
KEYS = {"users": 4, "development-users": 0, "history": 12, "seed": 3}
KEYS |= {"unlabeled.kind": "others", "personalise.learning-rates": "1e-3"}
CONFIG = parse(KEYS)
SETTINGS = TrainingSettings(0.5, epochs=2, batch=4, optimizer="sgd")
OBJECTIVE = Personalise(beta=0.3, unlabeled_weight=1.0, anchor=0.0)


@pytest.fixture(scope="module")
def dataset():
    return personas.make(CONFIG)


def tiny(dtype: str, device: str):
    # Not `load_backbone` itself, which keeps one backbone only.
    return load_backbone.__wrapped__("tiny", dtype, device, 512)


def sets(backbone, users) -> list[TrainingSet]:
    """Each user's history against the next user's, with reference scores."""
    shared = zero_shared(backbone, CONFIG.shared_shape, 0)
    found = []
    for k, user in enumerate(users):
        kinds = []
        for items in (user.history, users[k - 1].history):
            encoded = [backbone.encode(item) for item in items]
            (scores,) = score_users(backbone, [shared], [encoded])
            kinds.append([Example(e, s) for e, s in zip(encoded, scores, strict=True)])
        found.append(TrainingSet(user.id, kinds[0], unlabeled=kinds[1], alpha=0.3))
    return found


def trained(backbone, chosen: list[TrainingSet], settings=SETTINGS) -> list[Lora]:
    reference = Reference(backbone, zero_shared(backbone, CONFIG.shared_shape, 0))
    start = [new_lora(backbone, CONFIG.lora, 0, "personal", one.user) for one in chosen]
    loss = partial(c_bpo.loss, settings=OBJECTIVE)
    return train(reference, start, chosen, loss, settings).loras


def assert_alike(one: Lora, other: Lora, tolerance: float) -> None:
    """B, which starts at zero: the distance over the length."""
    for name in one.b:
        ours, theirs = one.b[name].cpu(), other.b[name].cpu()
        assert ours.norm() > 0
        assert (ours - theirs).norm() / theirs.norm() < tolerance, name


def test_training_equals_that_on_a_cpu(dataset):
    cpu, gpu = tiny("float32", "cpu"), tiny("float32", "cuda")
    expected = trained(cpu, sets(cpu, dataset.users))
    found = trained(gpu, sets(gpu, dataset.users))
    assert all(lora.a.keys() == lora.b.keys() for lora in found)
    assert next(iter(found[0].b.values())).is_cuda
    for one, other in zip(found, expected, strict=True):
        assert_alike(one, other, 2e-3)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-3), ("bfloat16", 0.2)])
def test_a_stack_equals_its_users_alone(dataset, dtype, tolerance):
    backbone = tiny(dtype, "cuda")
    chosen = sets(backbone, dataset.users)
    together = trained(backbone, chosen)
    for lora, one in zip(together, chosen, strict=True):
        assert_alike(lora, trained(backbone, [one])[0], tolerance)


def test_microbatches_change_nothing(dataset):
    backbone = tiny("float32", "cuda")
    chosen = sets(backbone, dataset.users[:2])
    whole = trained(backbone, chosen)
    parts = trained(backbone, chosen, replace(SETTINGS, microbatch=3))
    for one, other in zip(parts, whole, strict=True):
        assert_alike(one, other, 2e-3)


def test_bf16_moves_adapters_as_float32_does(dataset):
    exact, rounded = tiny("float32", "cuda"), tiny("bfloat16", "cuda")
    # The same references: what is compared is training.
    chosen = sets(exact, dataset.users)
    expected, found = trained(exact, chosen), trained(rounded, chosen)
    for one, other in zip(found, expected, strict=True):
        assert next(iter(one.b.values())).dtype == torch.float32
        assert_alike(one, other, 0.3)


def test_scores_and_greedy_text_are_those_of_a_cpu(dataset):
    texts, scores = [], []
    for device in ("cpu", "cuda"):
        backbone = tiny("float32", device)
        users = [[backbone.encode(i) for i in u.held_out] for u in dataset.users]
        loras = [
            new_lora(backbone, CONFIG.lora, 0, "personal", u.id) for u in dataset.users
        ]
        for k, lora in enumerate(loras):
            generator = torch.Generator().manual_seed(k)
            for tensor in lora.b.values():
                drawn = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(0.05 * drawn)
        scores.append(score_users(backbone, [stack(loras)], users))
        prompts = [e.ids[: e.prompt_length] for user in users for e in user[:2]]
        texts.append(generate(backbone, [stack(loras)], prompts, 12))
    torch.testing.assert_close(
        torch.tensor(scores[1]), torch.tensor(scores[0]), atol=2e-3, rtol=1e-3
    )
    # Two tokens may be as likely as each other: one text may differ.
    assert sum(a == b for a, b in zip(*texts, strict=True)) >= len(texts[0]) - 1


def test_the_whole_of_personalise_runs_in_bf16(dataset):
    backbone = tiny("bfloat16", "cuda")
    reference = Reference(backbone, zero_shared(backbone, CONFIG.shared_shape, 0))
    items = [item for user in dataset.users for item in user.history]
    unlabeled = UnlabeledSet(tuple(map(Unlabeled, items)))
    for method in ("sft", "cope", "kto", "bco", "c-bpo"):
        found = personalise(reference, dataset.users, unlabeled, method, 1e-3, CONFIG)
        assert [each.error for each in found] == [""] * 4


def test_memory_of_long_prompts_grows_with_the_completion(tmp_path):
    """1,300 tokens in, 200 out, 32,000 words: no table of prompt x vocabulary."""
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    backbone = load_backbone.__wrapped__(str(tmp_path), "bfloat16", "cuda", 2048)
    lora = new_lora(backbone, CONFIG.lora, 0, "personal")

    def peak(completion: int) -> int:
        ids = tuple(range(1500))
        items = [Example(Encoded(ids, 1500 - completion)) for _ in range(8)]
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        settings = TrainingSettings(1e-3, epochs=1, batch=8)
        data = [TrainingSet("u", items)]
        train(Reference(backbone), [lora], data, sft.loss, settings)
        return torch.cuda.max_memory_allocated() - before

    whole = 8 * 1500 * 32_000 * 4
    assert peak(200) < whole / 2
    # All of it as completion: still no whole table, since chunks are computed anew.
    assert peak(1300) < whole
    batch = collate(backbone, [Encoded(tuple(range(1500)), 1300)])
    assert completion_logp(backbone, batch).shape == (1,)
