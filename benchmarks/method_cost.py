"""What a user costs by each method: CPU seconds to prepare, bytes kept, time per token.

    OMP_NUM_THREADS=1 python benchmarks/method_cost.py [--backbone smollm2]

One synthetic user of 16 texts, with as many unlabeled ones; learning rate and recipe are
the defaults, and each method begins without cached reference scores. Preparing is the
training, for `pag` the profile, for `steer` the vector. A token's time is that of writing
the held-out prompts' outputs, of at most 32 tokens, one after another, prompts included.
CPU seconds of one thread: other processes disturb them less than seconds. Each once.
Writes benchmarks/results/method_cost-BACKBONE.json; `for_whom.py` makes the page.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from report import save

from idiolect.common.config import Config, parse
from idiolect.common.data.load import load_dataset
from idiolect.common.data.types import User
from idiolect.common.engine.adapters import Lora, stack
from idiolect.common.engine.backbone import backbone_of
from idiolect.common.engine.fitting import encode_all
from idiolect.common.engine.rates import with_rates
from idiolect.common.engine.reference import Reference
from idiolect.common.engine.scoring import generate
from idiolect.common.methods import pag, rag
from idiolect.common.methods.personalise import personalise
from idiolect.common.unlabeled.sets import Unlabeled, UnlabeledSet

METHODS = "shared", "rag", "pag", "steer", "sft", "c-bpo"
USERS, HISTORY, BUDGET = 8, 16, 32


def main() -> None:
    """Measure every method once, print and write."""
    parser = argparse.ArgumentParser(description="What a user costs, by method.")
    parser.add_argument("--backbone", default="smollm2")
    name = parser.parse_args().backbone
    torch.set_num_threads(1)
    keys: dict[str, Any] = {"users": USERS, "development-users": 0, "history": HISTORY}
    keys |= {"backbone": name, "unlabeled.kind": "others"}
    config = with_rates(parse(keys))
    found = {method: measured(method, config) for method in METHODS}
    print(json.dumps(found, indent=1))
    save(
        f"method_cost-{name}", {"backbone": name, "history": HISTORY, "methods": found}
    )


def measured(method: str, config: Config) -> dict[str, float]:
    """CPU seconds to prepare one user, bytes that are kept, and seconds per token."""
    reference, users = Reference(backbone_of(config)), load_dataset(config).users
    user, began = users[0], time.process_time()
    lora, asked, size = None, user, 0
    if method == "rag":
        asked = rag.prompted(reference, user, config)
    elif method == "pag":
        size = len(pag.write_profile(reference, user).encode())
    elif method != "shared":
        others = unlabeled(users)
        rate = max(config.learning_rate_list)
        (one,) = personalise(reference, [user], others, method, rate, config)
        lora, size = one.lora, size_of(one.lora)
    prepared = time.process_time() - began
    if method == "pag":  # a device would keep the profile
        asked = pag.prompted(reference, user, config)
    return {
        "train": prepared,
        "bytes": size,
        "token": per_token(reference, lora, asked),
    }


def unlabeled(users: Sequence[User]) -> UnlabeledSet:
    """Everybody's texts, from which a user's own are taken out."""
    return UnlabeledSet(
        tuple(
            Unlabeled(replace(item, rivals=()), 1.0, user.id)
            for user in users
            for item in user.history
        )
    )


def size_of(lora: Lora | None) -> int:
    """Return the bytes of an adapter's numbers, as a device keeps them."""
    parts = (lora.a, lora.b, lora.bias) if lora else ()
    return sum(t.numel() * t.element_size() for part in parts for t in part.values())


def per_token(reference: Reference, lora: Lora | None, user: User) -> float:
    """CPU seconds per token of the outputs for a user's held-out prompts."""
    backbone = reference.backbone
    policy = [reference.shared, *([stack([lora])] if lora else [])]
    items = encode_all(backbone, user.held_out)
    count, began = 0, time.process_time()
    for item in items:
        (text,) = generate(backbone, policy, [item.ids[: item.prompt_length]], BUDGET)
        ids = backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
        count += min(BUDGET, len(ids) + 1)
    return (time.process_time() - began) / count


if __name__ == "__main__":
    main()
