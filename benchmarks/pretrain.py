"""Pretrain the built-in backbone: ``python benchmarks/pretrain.py``.

A Llama of about a million parameters learns to read the articles, films and reviews of
the persona worlds and to answer them in every style alike: each attribute of each text is
drawn uniformly. What a population or a person prefers is left for adapters to learn.
Held-out and public prompts of the personas never occur here (see `personas.purpose`).

With ``--size small --folder FOLDER`` the model has ten million parameters, to see whether
what is found with the built-in one holds for a larger one. That wants a GPU.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from idiolect.common.data.personas import WORLDS, draw_event
from idiolect.common.data.personas.authors import combinations
from idiolect.common.data.personas.headline import read
from idiolect.common.data.personas.world import Event, World
from idiolect.common.data.types import Prompt
from idiolect.common.engine.model_folder import TINY
from idiolect.common.seeds import derive, numpy_generator

# Models and tokenizers are Any below: transformers' own annotations don't fit its use.
PAD, BOS, EOS = "<pad>", "<s>", "</s>"
BLOCK = 16  # batches that are sorted by length together
# Headlines are the hardest of the three: all their words must be copied.
SHARES = {"headline": 0.7, "tagging": 0.15, "rating": 0.15}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result, but for the machine's arithmetic.

    Attributes
    ----------
    prompt_weight
        Weight of a prompt token in the loss against 1 of a target token. Most of a
        prompt is random content that nobody can predict.
    writers
        Processes that make up the texts, each a stream of its own, in turn; 0: one
        stream, made up in between. A GPU reads faster than one process writes.
    """

    seed: int = 2026
    vocabulary: int = 1536
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    feed_forward: int = 320
    context: int = 512
    steps: int = 5000
    batch: int = 64
    learning_rate: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.01
    prompt_weight: float = 0.1
    held_out: int = 500
    writers: int = 0


RECIPES = {
    "tiny": Recipe(),
    "small": Recipe(
        hidden=320,
        layers=8,
        heads=10,
        feed_forward=864,
        learning_rate=1e-3,
        writers=8,
    ),
}


def texts(seed: int, wanted: str) -> Iterator[tuple[World, Event, str]]:
    """Endless (world, event, target), all styles equally likely.

    Parameters
    ----------
    seed, wanted
        Seed of the stream, and the purpose of its prompts (`personas.purpose`).
    """
    rng = numpy_generator(seed, "pretraining", wanted)
    while True:
        task = str(rng.choice(list(SHARES), p=list(SHARES.values())))
        world = WORLDS[task]
        event = draw_event(world, rng, wanted)
        style = {
            name: values[int(rng.integers(len(values)))]
            for name, values in world.attributes.items()
        }
        yield world, event, world.write(event, style)


def train_tokenizer(recipe: Recipe) -> Any:
    """Train a byte-level BPE on the same stream of texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    stream = texts(recipe.seed, "history")
    samples = islice(stream, 30_000)
    tokenizer.train_from_iterator(
        (f"{world.prompt(event).text} {target}" for world, event, target in samples),
        trainers.BpeTrainer(
            vocab_size=recipe.vocabulary,
            special_tokens=[PAD, BOS, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=recipe.context,
        clean_up_tokenization_spaces=False,
    )


def new_model(recipe: Recipe, tokenizer: Any) -> Any:
    """Make the untrained model."""
    torch.manual_seed(derive(recipe.seed, "weights"))
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            intermediate_size=recipe.feed_forward,
            max_position_embeddings=recipe.context,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def encode(tokenizer: Any, prompt: Prompt, target: str) -> tuple[list[int], int]:
    """Tokens as the engine makes them, and how many of them are the prompt's."""
    before = tokenizer(prompt.text)["input_ids"]
    after = tokenizer(f" {target}", add_special_tokens=False)["input_ids"]
    return [*before, *after, tokenizer.eos_token_id], len(before)


def batches(recipe: Recipe, tokenizer: Any) -> Iterator[list[tuple[list[int], int]]]:
    """Endless batches of sequences of about the same length, in random order."""
    if recipe.writers:
        written = Written(replace(recipe, writers=0), tokenizer)
        yield from DataLoader(written, batch_size=None, num_workers=recipe.writers)
        return
    stream = texts(recipe.seed, "history")
    rng = numpy_generator(recipe.seed, "order")
    while True:
        block = [
            encode(tokenizer, world.prompt(event), target)
            for world, event, target in islice(stream, BLOCK * recipe.batch)
        ]
        block.sort(key=lambda row: len(row[0]))
        for i in rng.permutation(BLOCK):
            yield block[i * recipe.batch : (i + 1) * recipe.batch]


@dataclass(frozen=True)
class Written(IterableDataset):
    """The batches of one writer, whose number is the rest of its seed."""

    recipe: Recipe
    tokenizer: Any

    def __iter__(self) -> Iterator[list[tuple[list[int], int]]]:
        """Endless batches."""
        writer = get_worker_info()
        number = writer.id if writer else 0
        seed = derive(self.recipe.seed, "writer", number)
        return batches(replace(self.recipe, seed=seed), self.tokenizer)


def token_losses(
    model: Any, rows: list[tuple[list[int], int]]
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of every token but the first.

    Returns
    -------
    losses, kind
        [rows, length - 1] each; kind is 1 for prompt, 2 for target, 0 for padding.
    """
    length = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    kind = torch.zeros(len(rows), length, dtype=torch.long)
    for row, (tokens, prompt) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        kind[row, :prompt] = 1
        kind[row, prompt : len(tokens)] = 2
    ids, kind = ids.to(model.device), kind.to(model.device)
    # Right-padded and causal: what follows a sequence cannot change it.
    with torch.autocast("cuda", torch.bfloat16, enabled=ids.is_cuda):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    losses = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return losses.view(len(rows), -1), kind[:, 1:]


def train(model: Any, tokenizer: Any, recipe: Recipe) -> int:
    """Train in place; return the number of tokens seen."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed}, {"params": plain, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=recipe.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: learning_rate_factor(step, recipe)
    )
    model.train()
    seen, start = 0, time.time()
    for step, rows in enumerate(islice(batches(recipe, tokenizer), recipe.steps)):
        losses, kind = token_losses(model, rows)
        weight = (kind == 2) + recipe.prompt_weight * (kind == 1)
        loss = (losses * weight).sum() / weight.sum()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        seen += sum(len(ids) for ids, _ in rows)
        if step % 100 == 0:
            target = losses[kind == 2].mean().item()
            speed = seen / (time.time() - start)
            print(
                f"step {step}: nll {target:.3f} per target token, {speed:.0f} tokens/s",
                flush=True,
            )
    return seen


def learning_rate_factor(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to zero."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.5 * (1 + math.cos(math.pi * done))


def held_out(recipe: Recipe) -> dict[str, list[tuple[World, Event, str]]]:
    """Collect texts on held-out prompts, by task."""
    found: dict[str, list[tuple[World, Event, str]]] = {task: [] for task in SHARES}
    for text in texts(recipe.seed, "held-out"):
        if len(rows := found[text[0].task.name]) < recipe.held_out:
            rows.append(text)
        elif all(len(rows) == recipe.held_out for rows in found.values()):
            break
    return found


@torch.no_grad()
def held_out_losses(
    model: Any, tokenizer: Any, recipe: Recipe
) -> dict[str, dict[str, float]]:
    """Negative log-likelihood per target token on held-out prompts, by task.

    Returns
    -------
    dict
        ``nll``, and ``least``: the expected value for a model that is certain of the
        content and knows all styles to be equally likely.
    """
    model.eval()
    result = {}
    for task, found in held_out(recipe).items():
        rows = [
            encode(tokenizer, w.prompt(event), target) for w, event, target in found
        ]
        losses, kind = token_losses(model, rows)
        # Nobody can foresee a random style: what it costs on average is the least loss.
        least = style_entropy(WORLDS[task]) * len(rows) / (kind == 2).sum().item()
        loss = losses[kind == 2].mean().item()
        result[task] = {"nll": round(loss, 4), "least": round(least, 4)}
    return result


def style_entropy(world: World) -> float:
    """Entropy in nats of the text of an event when all styles are equally likely."""
    _, _, text = combinations(world)
    chances = np.bincount(text.ravel()) / text.size
    return float(-(chances * np.log(chances)).sum() - math.log(len(world.situations)))


@torch.no_grad()
def faithful(
    model: Any, tokenizer: Any, recipe: Recipe
) -> tuple[float, list[tuple[str, str]]]:
    """Whether headlines generated for held-out articles tell what the article tells.

    Returns
    -------
    share, examples
        Share of sampled headlines that are, letter by letter, the headline of their
        article in some style; and the first few (article, headline).
    """
    model.eval()
    torch.manual_seed(derive(recipe.seed, "samples"))
    found = held_out(recipe)["headline"]
    prompts = [world.prompt(event) for world, event, _ in found]
    tokens = tokenizer(
        [prompt.text for prompt in prompts],
        return_tensors="pt",
        padding=True,
        padding_side="left",
        return_token_type_ids=False,
    ).to(model.device)
    output = model.generate(**tokens, max_new_tokens=40, do_sample=True)
    written = tokenizer.batch_decode(
        output[:, tokens["input_ids"].shape[1] :], skip_special_tokens=True
    )
    written = [text.strip() for text in written]
    right = [
        world.attributes.keys() == (style := read(text)).keys()
        and world.write(event, style) == text
        for (world, event, _), text in zip(found, written, strict=True)
    ]
    articles = [prompt.input for prompt in prompts]
    return sum(right) / len(right), list(zip(articles, written, strict=True))[:5]


def build(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Pretrain, measure and save; return what is written to ``build.json``."""
    start = time.time()
    tokenizer = train_tokenizer(recipe)
    model = new_model(recipe, tokenizer)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    seen = train(model, tokenizer, recipe)
    # What is shipped is what is measured: weights rounded to half precision.
    model = model.half().float()
    share, examples = faithful(model, tokenizer, recipe)
    report = {
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "tokens": seen,
        "seconds": round(time.time() - start),
        "device": device_name(model),
        "held_out_nll_per_target_token": held_out_losses(model, tokenizer, recipe),
        "faithful_headlines": round(share, 4),
        "examples": examples,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
            "numpy": np.__version__,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)
    (folder / "build.json").write_text(json.dumps(report, indent=2) + "\n")
    (folder / "README.md").write_text(readme(report))
    return report


def device_name(model: Any) -> str:
    """What the model was trained on."""
    if model.device.type == "cuda":
        return f"one {torch.cuda.get_device_name()}"
    return f"{torch.get_num_threads()} CPU threads"


def readme(report: dict[str, Any]) -> str:
    """Describe the model; every number comes from the report."""
    losses = "\n".join(
        f"| {task} | {loss['nll']:.3f} | {loss['least']:.3f} |"
        for task, loss in report["held_out_nll_per_target_token"].items()
    )
    examples = "\n".join(f"- {a}\n  **{h}**" for a, h in report["examples"])
    versions = ", ".join(f"{k} {v}" for k, v in report["versions"].items())
    recipe = report["recipe"]
    size = "" if recipe["hidden"] == Recipe.hidden else " --size small"
    return f"""# The built-in backbone

Written by `python benchmarks/pretrain.py{size}`, which also made the
weights; the numbers are those of `build.json`. Do not edit.

| a Llama of | {report["parameters"]:,} parameters |
| --- | --- |
| tokenizer | byte-level BPE, {report["vocabulary"]:,} tokens |
| trained on | {report["tokens"]:,} tokens in {recipe["steps"]:,} steps, from scratch |
| took | {report["seconds"]:,} seconds on {report["device"]} |
| seed | {recipe["seed"]} |
| versions | {versions} |

**Training text.** Articles with headlines, films with tags, reviews with stars, from the
persona worlds in `common/data/personas` and from nowhere else, every attribute of every
text drawn uniformly: no population's and no person's style. The articles come from the
same grammar as those of the personas, but prompts that personas hold out or make public
are never trained on (`purpose` in `common/data/personas`). The model knows no fact and
no real person, and speaks of nothing but these worlds.

**Held-out loss.** Negative log-likelihood in nats per target token, end of sequence
included, on {recipe["held_out"]} held-out prompts per task. The styles are random, so no
model can reach zero: the least possible is what their entropy costs on average.

| task | nll | least possible |
| --- | --- | --- |
{losses}

**Copying.** {report["faithful_headlines"]:.1%} of the headlines sampled for held-out
articles are letter by letter what the article tells, in some style. The first five:

{examples}

**Files.** `model.safetensors` (half precision, loads as float32), `config.json`,
`generation_config.json`, `tokenizer.json`, `tokenizer_config.json`, `build.json`. Another
machine or another version gives slightly other weights, and so another backbone hash.
Licence: that of the project.
"""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=TINY, help="where to write")
    parser.add_argument("--size", choices=RECIPES, default="tiny")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    arguments = parser.parse_args()
    recipe = replace(RECIPES[arguments.size], steps=arguments.steps)
    report = build(arguments.folder, recipe)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
