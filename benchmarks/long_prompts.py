"""Memory of one training step against the lengths of prompt and completion, on a CPU.

    python benchmarks/long_prompts.py

One step over four rows with a vocabulary of 32,000 words: C-BPO with this engine, and SFT
with peft and transformers' own loss, which has a logit for every token and word. The model
is a Llama of twelve million random parameters. Each measurement is a process of its own:
the largest resident set above that with the backbone loaded and one backward pass done.
Writes benchmarks/results/long_prompts.json.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from one_user import first_pass, forget_peak, memory
from report import printed, save

LENGTHS = ((300, 50), (300, 200), (1300, 50), (1300, 200))
ROWS, WORDS = 4, 32_000


def write_model(folder: str) -> None:
    """Write the random model."""
    import torch
    from shapes import write
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    write(config, torch.float32, Path(folder))


def ours(backbone: Any, rows: list[Any]) -> None:
    """One step of C-BPO: half of the rows are the user's."""
    from idiolect.common.config import LoraShape, Personalise
    from idiolect.common.engine.adapters import new_lora, zero_shared
    from idiolect.common.engine.reference import Reference
    from idiolect.common.engine.training import (
        Example,
        TrainingSet,
        TrainingSettings,
        train,
    )
    from idiolect.common.methods import c_bpo

    shape = LoraShape()
    examples = [Example(row, -100.0) for row in rows]
    half = len(rows) // 2
    data = TrainingSet("u", examples[:half], unlabeled=examples[half:], alpha=0.3)
    settings = TrainingSettings(1e-3, epochs=1, batch=half)
    reference = Reference(backbone, zero_shared(backbone, shape, 0))
    loss = partial(c_bpo.loss, settings=Personalise(unlabeled_weight=1.0, anchor=0.0))
    train(reference, [new_lora(backbone, shape, 0, "u")], [data], loss, settings)


def with_peft(backbone: Any, rows: list[Any]) -> None:
    """One step of SFT, as anybody would write it."""
    import torch
    from naive_app import batch_loss
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = get_peft_model(backbone.model, lora)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    batch_loss(model, rows).backward()
    optimizer.step()


def measure(who: str, folder: str, prompt: int, completion: int) -> dict[str, float]:
    """Seconds and bytes of one step."""
    import torch

    from idiolect.common.engine.backbone import Encoded, load_backbone

    backbone = load_backbone(folder, "float32", "cpu", 2048)
    first_pass(backbone)
    torch.manual_seed(0)
    ids = torch.randint(3, WORDS, (ROWS, prompt + completion)).tolist()
    rows = [Encoded(tuple(row), prompt) for row in ids]
    forget_peak()
    before, began = memory("VmRSS"), time.perf_counter()
    {"ours": ours, "peft": with_peft}[who](backbone, rows)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "bytes": memory("VmHWM") - before}


def main() -> None:
    """Measure both at all lengths, and write the result."""
    parser = argparse.ArgumentParser(description="Memory against lengths.")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        who, folder, prompt, completion = given.one
        print(json.dumps(measure(who, folder, int(prompt), int(completion))))
        return
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        write_model(folder)
        for prompt, completion in LENGTHS:
            row: dict[str, Any] = {"prompt": prompt, "completion": completion}
            row["logits"] = 4 * ROWS * (prompt + completion) * WORDS
            for who in ("ours", "peft"):
                words = (who, folder, str(prompt), str(completion))
                row[who] = printed(__file__, "--one", *words)
            rows.append(row)
            print(json.dumps(row), flush=True)
    save("long_prompts", {"rows": rows})


if __name__ == "__main__":
    main()
