"""Random models of known shapes: what speed and memory need of a model, without weights.

    python benchmarks/shapes.py 0.5B FOLDER

Qwen2's layout (Qwen2-0.5B and Qwen2-1.5B to the number, and a smaller one of the same
proportions), random weights in bf16, and the built-in tokenizer, whose ids are all low:
the vocabulary is as wide as theirs all the same.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from idiolect.common.config import LoraShape
from idiolect.common.engine.backbone import TINY, projections

# Hidden size, layers, heads, heads of keys and values, feed-forward size.
SHAPES = {
    "0.1B": (512, 12, 8, 2, 2752),
    "0.5B": (896, 24, 14, 2, 4864),
    "1.5B": (1536, 28, 12, 2, 8960),
}


def shape(name: str) -> Qwen2Config:
    """Configuration of a shape."""
    hidden, layers, heads, groups, feed_forward = SHAPES[name]
    return Qwen2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        intermediate_size=feed_forward,
        vocab_size=151936,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    )


def linears(config: object, targets: str) -> dict[str, tuple[int, int]]:
    """Adapted projection -> (out, in), without any weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    found = projections(model, LoraShape(targets=targets))
    return {name: (m.out_features, m.in_features) for name, m in found.items()}


def write(config: Any, dtype: torch.dtype, folder: Path) -> None:
    """Write a random model of a configuration, with a tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    config.pad_token_id = tokenizer.pad_token_id
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="A random model of a known shape.")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    write(shape(given.shape), torch.bfloat16, given.folder)
    print(given.folder)


if __name__ == "__main__":
    main()
