"""The cost of personalising one user, against what people would use instead.

    python benchmarks/one_user.py [--backbone NAME] [--threads N] [--runs N] [--bco DIR]
        [--peers NAME,...] [--beside NAME,...]

Peers, each in a process of its own and in turn (those of `--beside` at the same time, on
another core), on the same history and the same unlabeled items (3 epochs, rank 8 on every
projection, float32):

`cold`, `warm`  this engine with C-BPO: alpha, reference scores, training. Cold computes
                the reference scores; warm finds them, as every method after the first does
`small`         `cold` with `engine.microbatch=8`: half of a step's rows at once
`bounded`       `cold` with `engine.memory=550`: more than a process that has read all
                weights grows by, since they are given back during the training
`tight`         `cold` in 1.5 times the least `engine.memory` that works, and no weight is
                read before; `total` is the whole process, its libraries included
`upper`         `cold` with adapters on the upper half of the layers
`trl`           trl's KTOTrainer with peft, as it comes, but without gradient
                checkpointing, which costs time and saves no memory that a model this
                small would need
`trl-cached`    the same with precompute_ref_log_probs
`trl-bco`       the BCOTrainer of trl 1.8.0, the last release that has one; only with
                `--bco DIR`, after `pip install --no-deps --target DIR trl==1.8.0`
`sft`           a plain loop with peft and torch's AdamW over the same rows: the floor that
                any objective pays
`limit`         only the matrix products of the frozen projections over the same tokens,
                forward and backward to the activations, at these shapes

The time is from a loaded backbone to a trained adapter, without imports; the memory is
the largest resident set above that of the process with the backbone loaded and one
backward pass done, which reads 60 MB of library code in, the same for everybody. Writes
benchmarks/results/one_user-BACKBONE-THREADS.json; `performance.py` makes the page.
"""

import argparse
import gc
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from report import medians, printed, save

OURS = ("cold", "warm", "small", "bounded", "tight", "upper")
PEERS = (*OURS, "trl", "trl-cached", "sft", "limit")
USUAL = ("cold", "warm", "small", "trl", "trl-cached", "sft", "limit")
METHOD, RATE = "c-bpo", 3e-3
# Megabytes for training. Weights are given back meanwhile, so the process grows by less.
BOUND = 550
TIGHT = 1.5  # times the least budget
# Name -> parts of the names of operations; the first that fits counts.
SHARES = {
    "attention": ("scaled_dot_product",),
    "the adapters' products": ("bmm", "LowRank"),
    "the frozen products": ("::mm", "::addmm"),
}


def world(backbone_name: str, users: int, dtype: str = "float32") -> tuple[Any, ...]:
    """Load the reference, and make users and the unlabeled set."""
    from idiolect.common.config import parse
    from idiolect.common.data.load import load_dataset
    from idiolect.common.engine.reference import load_reference
    from idiolect.common.unlabeled.sets import Unlabeled, UnlabeledSet

    keys = {"users": users, "development-users": 0, "backbone": backbone_name}
    keys |= {"engine.dtype": dtype}
    keys |= {"unlabeled.kind": "others", "personalise.learning-rates": str(RATE)}
    config = parse(keys)
    reference, dataset = load_reference(config), load_dataset(config)
    entries = tuple(
        Unlabeled(replace(item, rivals=()), 1.0, user.id)
        for user in dataset.users
        for item in user.history
    )
    return config, reference, dataset.users, UnlabeledSet(entries)


def prepared(backbone_name: str, dtype: str = "float32") -> tuple[Any, ...]:
    """Make one user with a history of 32 and 32 unlabeled items, and encode them."""
    from idiolect.common.unlabeled.draws import draw_for

    config, reference, users, unlabeled = world(backbone_name, 8, dtype)
    drawn = draw_for(reference, users[0], unlabeled, config)
    return config, reference, users[0], unlabeled, drawn


def ours(backbone_name: str, peer: str) -> Callable[[], object]:
    """One user with this engine, as a device does it."""
    from idiolect.common.engine.memory import TooLittleMemory
    from idiolect.common.methods.personalise import personalise

    config, reference, user, unlabeled, _ = prepared(backbone_name)
    if peer != "tight":
        first_pass(reference.backbone)
    if peer == "small":
        fewer = replace(config.engine, microbatch=config.personalise.batch)
        config = replace(config, engine=fewer)
    if peer == "bounded":
        config = replace(config, engine=replace(config.engine, memory=BOUND))
    if peer == "tight":
        config = replace(config, engine=replace(config.engine, memory=1))
    if peer == "upper":
        layers = reference.backbone.model.config.num_hidden_layers
        config = replace(config, lora=replace(config.lora, layers=layers // 2))

    def work() -> object:
        run = partial(personalise, reference, [user], unlabeled, METHOD, RATE)
        try:
            return run(config)
        except TooLittleMemory as error:
            least = error.least
        # Not in the clause above: the error holds what the first try has in memory.
        return run(replace(config, engine=replace(config.engine, memory=least)))

    if peer == "warm":
        work()
    return work


def trainer_of(objective: str) -> tuple[Any, Any]:
    """Return a trainer of trl, and the class of its arguments."""
    if objective == "bco":
        from trl.experimental import bco  # pyright: ignore

        return bco.BCOTrainer, bco.BCOConfig
    from trl.trainer.kto_config import KTOConfig  # pyright: ignore[reportMissingImports]
    from trl.trainer.kto_trainer import KTOTrainer  # pyright: ignore[reportMissingImports]

    return KTOTrainer, KTOConfig


def trl(
    backbone_name: str, cached: bool, dtype: str = "float32", objective: str = "kto"
) -> Callable[[], Any]:
    """The same items with a trainer of trl and peft; the work returns the trainer."""
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from peft import LoraConfig

    trainer_class, arguments_class = trainer_of(objective)
    config, reference, _, _, drawn = prepared(backbone_name, dtype)
    backbone = reference.backbone
    first_pass(backbone)
    tokenizer = backbone.tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = [(entry, True) for entry in drawn.own]
    rows += [(entry, False) for entry in drawn.aux]
    # Own and foreign in turn: the trainer takes the rows as they come.
    half = len(rows) // 2
    rows = [rows[k + part] for k in range(half) for part in (0, half)]
    texts = [
        {
            "prompt": tokenizer.decode(entry.ids[: entry.prompt_length]),
            "completion": tokenizer.decode(entry.ids[entry.prompt_length : -1]),
            "label": label,
        }
        for entry, label in rows
    ]

    def work() -> Any:
        arguments = arguments_class(
            output_dir=os.environ.get("TMPDIR", "/tmp"),
            per_device_train_batch_size=2 * config.personalise.batch,
            num_train_epochs=config.personalise.epochs,
            learning_rate=RATE,
            max_length=backbone.context,
            precompute_ref_log_probs=cached,
            gradient_checkpointing=False,
            bf16=dtype == "bfloat16",
            use_cpu=backbone.device.type == "cpu",
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = trainer_class(
            model=backbone.model,
            args=arguments,
            train_dataset=Dataset.from_list(texts),
            processing_class=tokenizer,
            peft_config=LoraConfig(
                r=config.lora.rank,
                lora_alpha=int(config.lora.alpha),
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
        )
        trainer.train()
        return trainer

    return work


def sft(backbone_name: str) -> Callable[[], object]:
    """A plain supervised loop with peft over the same rows, as anybody would write it."""
    import torch
    from naive_app import batch_loss
    from peft import LoraConfig, get_peft_model

    config, reference, _, _, drawn = prepared(backbone_name)
    backbone, size = reference.backbone, 2 * config.personalise.batch
    first_pass(backbone)
    rows = [*drawn.own, *drawn.aux]

    def work() -> object:
        model: Any = get_peft_model(
            backbone.model,
            LoraConfig(
                r=config.lora.rank,
                lora_alpha=int(config.lora.alpha),
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
        )
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=RATE)
        for _ in range(config.personalise.epochs):
            order = torch.randperm(len(rows)).tolist()
            for start in range(0, len(rows), size):
                batch = [rows[i] for i in order[start : start + size]]
                batch_loss(model, batch).backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad()
        return model

    return work


def limit(backbone_name: str) -> Callable[[], object]:
    """The frozen projections alone: y = x W' and dx = dy W, for every step's tokens."""
    import torch

    config, reference, _, _, drawn = prepared(backbone_name)
    backbone, rows = reference.backbone, [*drawn.own, *drawn.aux]
    first_pass(backbone)
    steps = len(rows) // (2 * config.personalise.batch)
    tokens = sum(len(row.ids) for row in rows) // steps
    predicted = sum(len(row.ids) - row.prompt_length for row in rows) // steps
    products = []
    for name, module in backbone.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            count = predicted if name == "lm_head" else tokens
            weight = module.weight.detach().float()
            products.append(
                (
                    torch.randn(count, weight.shape[1]),
                    weight,
                    torch.randn(count, weight.shape[0]),
                )
            )

    def work() -> object:
        with torch.no_grad():
            for _ in range(steps * config.personalise.epochs):
                for x, weight, dy in products:
                    torch.nn.functional.linear(x, weight)
                    torch.mm(dy, weight)
        return None

    return work


def memory(field: str) -> int:
    """Bytes of this process in memory: now (`VmRSS`), or at most since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def shares(backbone_name: str) -> dict[str, Any]:
    """Where the time of training goes, and how much padding adds to the tokens."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from idiolect.common.engine import training
    from idiolect.common.engine.adapters import new_lora
    from idiolect.common.methods import c_bpo
    from idiolect.common.methods.personalise import training_settings
    from idiolect.common.unlabeled.alpha import alpha_of

    torch.set_num_threads(1)
    config, reference, user, _, drawn = prepared(backbone_name)
    alpha = alpha_of(reference, user, drawn, config).alpha
    data = c_bpo.training_set(reference, user, drawn, alpha)
    settings = training_settings(config, RATE)
    loss = partial(c_bpo.loss, settings=config.personalise)
    backbone = reference.backbone
    start = [new_lora(backbone, config.lora, config.seed, "personal", user.id)]
    training.train(reference, start, [data], loss, settings)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        training.train(reference, start, [data], loss, settings)
    found = dict.fromkeys(SHARES, 0.0) | {"the rest": 0.0}
    for event in seen.key_averages():
        fits = [n for n, keys in SHARES.items() if any(k in event.key for k in keys)]
        found[fits[0] if fits else "the rest"] += event.self_cpu_time_total
    total = sum(found.values())
    tokens = padded = 0
    for batch in training.batches(data, settings):
        sizes = [len(e.encoded.ids) for kind in batch.values() for e in kind]
        tokens, padded = tokens + sum(sizes), padded + len(sizes) * max(sizes)
    return {
        "shares": {name: part / total for name, part in found.items()},
        "padding": padded / tokens - 1,
    }


def forget_peak() -> None:
    """Reset the kernel's count of the largest resident set."""
    Path("/proc/self/clear_refs").write_text("5")


def first_pass(backbone: Any) -> None:
    """Read in the code of a forward, a backward and an optimiser step."""
    import torch

    size = (2, 8, backbone.model.config.hidden_size)
    inputs = torch.zeros(
        size, dtype=backbone.dtype, device=backbone.device, requires_grad=True
    )
    backbone.model(inputs_embeds=inputs).logits.sum().backward()
    torch.optim.AdamW([inputs]).step()


def measure(peer: str, backbone_name: str) -> dict[str, float]:
    """Prepare, run once, and return seconds, CPU seconds and bytes above the backbone."""
    if peer in OURS:
        work = ours(backbone_name, peer)
    elif peer in ("trl", "trl-cached"):
        work = trl(backbone_name, peer == "trl-cached")
    elif peer == "trl-bco":
        work = trl(backbone_name, cached=False, objective="bco")
    else:
        work = {"sft": sft, "limit": limit}[peer](backbone_name)
    gc.collect()
    loading = memory("VmHWM")
    forget_peak()
    before, began, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    work()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = memory("VmHWM")
    total = max(loading, peak)
    return {"seconds": seconds, "cpu": cpu, "bytes": peak - before, "total": total}


def in_own_process(
    peer: str, backbone_name: str, threads: int, bco: str = ""
) -> dict[str, Any]:
    """Measure a peer in a new process; `trl-bco` with the trl in the folder `bco`."""
    words = ("--peer", peer, "--backbone", backbone_name)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if peer == "trl-bco":
        environment["PYTHONPATH"] = bco
    return printed(__file__, *words, environment=environment)


def main() -> None:
    """Measure every peer in turn, several times, and write the medians."""
    parser = argparse.ArgumentParser(description="One user, against the peers.")
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--bco", default="", help="folder with trl 1.8.0")
    parser.add_argument("--peers", default=",".join(USUAL), help="which, with commas")
    parser.add_argument("--beside", default="", help="others, at the same time")
    parser.add_argument("--peer", choices=(*PEERS, "trl-bco", "shares"))
    given = parser.parse_args()
    if given.peer == "shares":
        print(json.dumps(shares(given.backbone)))
        return
    if given.peer:
        print(json.dumps(measure(given.peer, given.backbone)))
        return
    peers = [*given.peers.split(","), *(["trl-bco"] if given.bco else [])]
    beside = given.beside.split(",") if given.beside else []
    runs: dict[str, list[dict[str, float]]] = {peer: [] for peer in [*peers, *beside]}

    def in_turn(peers: list[str]) -> None:
        for _ in range(given.runs):
            for peer in peers:
                found = in_own_process(peer, given.backbone, given.threads, given.bco)
                runs[peer].append(found)

    other = threading.Thread(target=in_turn, args=(beside,))
    other.start()
    in_turn(peers)
    other.join()
    found = {peer: medians(rows) for peer, rows in runs.items()}
    for peer, row in found.items():
        print(f"{peer:11}{row['seconds']:8.2f} s {row['bytes'] / 2**20:8.0f} MiB")
    name = Path(given.backbone).name
    report: dict[str, Any] = {"backbone": name, "threads": given.threads}
    report |= {"runs": given.runs, "medians": found, "all": runs, "beside": beside}
    report["bound"] = BOUND
    report |= in_own_process("shares", given.backbone, given.threads)
    save(f"one_user-{name}-{given.threads}", report)


if __name__ == "__main__":
    main()
