"""The built-in backbone is what its README says, and its script makes such a thing."""

import dataclasses
import json
import math
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from idiolect.common.config import parse
from idiolect.common.data.personas import PURPOSES, WORLDS, make, purpose
from idiolect.common.data.personas.headline import read
from idiolect.common.data.types import Prompt
from idiolect.common.engine.backbone import Backbone, load_backbone
from idiolect.common.engine.model_folder import TINY

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))

import pretrain  # noqa: E402  # pyright: ignore[reportMissingImports]

REPORT = json.loads((TINY / "build.json").read_text())
RECIPE = pretrain.Recipe(**REPORT["recipe"])


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load_backbone("tiny", "float32", "cpu", 512)


def test_is_as_small_as_stated(tiny: Backbone) -> None:
    parameters = sum(p.numel() for p in tiny.model.parameters())
    assert parameters == REPORT["parameters"] < 1_100_000
    assert len(tiny.tokenizer) == REPORT["vocabulary"]
    assert (TINY / "model.safetensors").stat().st_size < 2_200_000
    assert tiny.model.dtype == torch.float32
    assert tiny.context == 512


def test_readme_is_written_from_the_report() -> None:
    assert (TINY / "README.md").read_text() == pretrain.readme(REPORT)


@pytest.mark.slow
def test_held_out_loss_is_the_stated_one(tiny: Backbone) -> None:
    losses = pretrain.held_out_losses(tiny.model, tiny.tokenizer, RECIPE)
    for task, stated in REPORT["held_out_nll_per_target_token"].items():
        assert losses[task]["nll"] == pytest.approx(stated["nll"], abs=2e-3)
        assert losses[task]["least"] == stated["least"]
        # Nothing is left to learn but the styles, and these were uniform.
        assert stated["least"] - 0.05 < stated["nll"] < stated["least"] + 0.15


def test_least_loss_of_headlines_is_the_entropy_of_their_style() -> None:
    values = [len(v) for v in WORLDS["headline"].attributes.values()]
    entropy = sum(math.log(v) for v in values)
    assert pretrain.style_entropy(WORLDS["headline"]) == pytest.approx(entropy)


def test_headlines_copy_the_article(tiny: Backbone) -> None:
    few = dataclasses.replace(RECIPE, held_out=60)
    share, examples = pretrain.faithful(tiny.model, tiny.tokenizer, few)
    # 4.5 standard deviations below the stated share.
    stated = REPORT["faithful_headlines"]
    assert stated > 0.9
    assert share > stated - 4.5 * math.sqrt(stated * (1 - stated) / 60) - 1e-9
    assert len(examples) == 5


def test_faithful_tells_a_wrong_headline_from_a_right_one(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = dataclasses.replace(RECIPE, held_out=8)
    answer = "Council repairs old bridge in 12 days"
    tokens = tiny.tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]

    def same_answer(input_ids: torch.Tensor, **_: object) -> torch.Tensor:
        rows = torch.tensor([tokens] * len(input_ids))
        return torch.cat([input_ids, rows], dim=1)

    monkeypatch.setattr(tiny.model, "generate", same_answer)
    share, examples = pretrain.faithful(tiny.model, tiny.tokenizer, few)
    assert share == 0
    assert examples[0][1] == answer


def test_trains_on_what_the_engine_will_encode(tiny: Backbone) -> None:
    for task in WORLDS:
        data = make(parse({"task": task, "users": 2, "unlabeled.bank": 1}))
        for item in data.users[0].history[:10]:
            ids, prompt = pretrain.encode(tiny.tokenizer, item.prompt, item.target)
            encoded = tiny.encode(item)
            assert tuple(ids) == encoded.ids
            assert prompt == encoded.prompt_length
            assert len(ids) <= 60
            assert ids[0] == tiny.tokenizer.bos_token_id
            assert ids[-1] == tiny.tokenizer.eos_token_id


def test_training_text_is_nobodys() -> None:
    counts: dict[str, int] = {}
    total = 0
    for world, event, target in islice(pretrain.texts(RECIPE.seed, "history"), 3000):
        assert purpose(world, event) == PURPOSES[0] == "history"
        if world.task.name == "headline":
            total += 1
            close = read(target)["close"]
            counts[close] = counts.get(close, 0) + 1
    # All five values alike: within 4.5 standard deviations, chance of a false alarm
    # below 1e-4 over the six checks (and the seed is fixed).
    for count in counts.values():
        assert abs(count - total / 5) < 4.5 * math.sqrt(total * 0.2 * 0.8)
    assert len(counts) == 5
    assert abs(total - 2100) < 4.5 * math.sqrt(3000 * 0.7 * 0.3)


@pytest.mark.process
def test_writers_take_turns_each_with_texts_of_its_own(tiny: Backbone) -> None:
    recipe = pretrain.Recipe(batch=2, writers=2)
    first, second, third = islice(pretrain.batches(recipe, tiny.tokenizer), 3)
    assert first != second != third
    again = islice(pretrain.batches(recipe, tiny.tokenizer), 3)
    assert [first, second, third] == list(again)
    one = pretrain.Written(dataclasses.replace(recipe, writers=0), tiny.tokenizer)
    # What comes from another process comes in lists.
    alone = [[list(row) for row in batch] for batch in islice(one, 2)]
    assert [first, third] == alone


def test_only_targets_and_prompts_are_counted_as_such(tiny: Backbone) -> None:
    short = pretrain.encode(
        tiny.tokenizer, Prompt("Tag this film: ", "A desert."), "magic"
    )
    long = pretrain.encode(
        tiny.tokenizer, Prompt("", "The old bridge in Arden"), "a b c"
    )
    together, kind = pretrain.token_losses(tiny.model, [short, long])
    alone, _ = pretrain.token_losses(tiny.model, [short])
    length = len(short[0])
    torch.testing.assert_close(
        together[0, : length - 1], alone[0], atol=1e-4, rtol=1e-4
    )
    # The first token is never predicted, so a prompt counts one fewer.
    assert (kind == 1).sum(dim=1).tolist() == [short[1] - 1, long[1] - 1]
    targets = [len(short[0]) - short[1], len(long[0]) - long[1]]
    assert (kind == 2).sum(dim=1).tolist() == targets


def test_learning_rate_warms_up_and_comes_down() -> None:
    recipe = pretrain.Recipe(steps=1100, warmup=100)
    factors = [
        pretrain.learning_rate_factor(step, recipe) for step in (0, 99, 600, 1100)
    ]
    assert factors == pytest.approx([0.01, 1.0, 0.5, 0.0])


@pytest.mark.slow
def test_the_script_makes_a_backbone(tmp_path: Path) -> None:
    recipe = pretrain.Recipe(
        steps=40,
        hidden=32,
        layers=1,
        heads=2,
        feed_forward=48,
        batch=16,
        warmup=5,
        held_out=3,
    )
    report = pretrain.build(tmp_path, recipe)
    stored = json.loads((tmp_path / "build.json").read_text())
    assert stored == json.loads(json.dumps(report))
    assert report["recipe"] == dataclasses.asdict(recipe)
    loss = report["held_out_nll_per_target_token"]["headline"]["nll"]
    # Without training it would be the logarithm of the vocabulary.
    assert loss < math.log(report["vocabulary"]) - 1
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    again = pretrain.held_out_losses(model, tokenizer, recipe)["headline"]["nll"]
    assert again == pytest.approx(loss, abs=2e-3)
    text = "Write a headline: The old bridge in Arden…"
    assert (
        tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    )
