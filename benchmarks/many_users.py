"""Users per minute against the number of users trained in one pass.

    python benchmarks/many_users.py [--backbone DIR] [--users N] [--runs N] [--no-trl]

C-BPO with warm reference scores, as in `one_user.py`: groups of K = 1, 2, 4, 8, 16 (on a
GPU 1, 4, 16) persona users, four of each or as many as `--users` fill, and trl's
KTOTrainer for one user after the other. Computes where `device=auto` does: on a CPU in
float32, on a GPU in bfloat16.

On a CPU each K has a process of its own, whose memory is the largest resident set above
that with the backbone loaded. On a GPU one process runs all K in turn after a first
group that is not timed, and the memory is what torch allocated at most, above the
backbone, the adapters of the users that are done included. Everything is timed that
training a user takes, the estimate of alpha included; only reference scores are known.
Writes benchmarks/results/many_users-BACKBONE[-gpu].json.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from one_user import METHOD, RATE, first_pass, forget_peak, memory, trl, world
from report import medians, printed, save
from shapes import linears
from transformers import AutoConfig

from idiolect.common.config import LoraShape
from idiolect.common.engine.backbone import locate

GPU = torch.cuda.is_available()
SIZES = (1, 4, 16) if GPU else (1, 2, 4, 8, 16)
DTYPE = "bfloat16" if GPU else "float32"
GROUPS = 4  # are timed, or as many as there are users for
Row = dict[str, float]


def measure(sizes: list[int], users: int, backbone_name: str) -> list[tuple[int, Row]]:
    """Train all users in groups of each size: users per minute and bytes, in turn."""
    from idiolect.common.methods.personalise import personalise
    from idiolect.common.unlabeled.draws import draw_for

    def groups(users: Any, size: int) -> list[Any]:
        return [users[i : i + size] for i in range(0, len(users), size)]

    config, reference, everybody, unlabeled = world(backbone_name, users, DTYPE)
    first_pass(reference.backbone)

    def score() -> None:
        """Compute the reference scores, and nothing else that is kept."""
        reference.forget()
        for user in everybody:
            drawn = draw_for(reference, user, unlabeled, config)
            reference.scores(drawn.own)
            reference.scores(drawn.aux)

    def train(size: int) -> int:
        chosen = everybody[: GROUPS * size]
        for group in groups(chosen, size):
            personalise(reference, group, unlabeled, METHOD, RATE, config)
        if GPU:
            torch.cuda.synchronize()
        return len(chosen)

    if GPU:  # kernels are loaded and chosen when they first run
        train(max(sizes))
    rows: list[tuple[int, Row]] = []
    for size in sizes:
        score()
        before, began, cpu = taken(), time.perf_counter(), time.process_time()
        count = train(size)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        row = {"users_per_minute": 60 * count / seconds, "cpu_per_user": cpu / count}
        rows.append((size, row | {"bytes": most() - before}))
    return rows


def state_bytes(backbone_name: str) -> int:
    """Bytes that one more user takes before any activation, all in float32.

    The adapter, its gradient and Adam's two moments.
    """
    lora = LoraShape()
    shapes = linears(AutoConfig.from_pretrained(locate(backbone_name)), lora.targets)
    return 4 * 4 * lora.rank * sum(map(sum, shapes.values()))


def taken() -> int:
    """Bytes that are taken now; what was taken at most is forgotten."""
    if not GPU:
        forget_peak()
        return memory("VmRSS")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def most() -> int:
    """Bytes that were taken at most since `taken`."""
    return torch.cuda.max_memory_allocated() if GPU else memory("VmHWM")


def measure_trl(backbone_name: str) -> Row:
    """One user with trl's KTOTrainer, after one that is not timed."""
    work = trl(backbone_name, cached=False, dtype=DTYPE)
    work().model.unload()
    before, began = taken(), time.perf_counter()
    work()
    if GPU:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return {"users_per_minute": 60 / seconds, "bytes": most() - before}


def in_own_process(backbone: str, *arguments: str) -> Any:
    """What another process of this program prints last."""
    return printed(__file__, "--backbone", backbone, *arguments)


def main() -> None:
    """Measure every K in turn, several times, and write the medians."""
    parser = argparse.ArgumentParser(description="Users per minute against K.")
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--no-trl", action="store_true")
    parser.add_argument("--sizes", type=int, nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--only-trl", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.sizes:
        print(json.dumps(measure(given.sizes, given.users, given.backbone)))
        return
    if given.only_trl:
        print(json.dumps(measure_trl(given.backbone)))
        return
    runs: dict[int, list[Row]] = {size: [] for size in SIZES}
    together = [list(SIZES) * given.runs] if GPU else [[k] for k in SIZES] * given.runs
    for sizes in together:
        asked = ["--users", str(given.users), "--sizes", *map(str, sizes)]
        for size, row in in_own_process(given.backbone, *asked):
            runs[size].append(row)
    found = {str(size): medians(rows) for size, rows in runs.items()}
    for size, row in found.items():
        print(f"K={size:3}{row['users_per_minute']:8.0f} users/min", end="")
        print(f"{row['bytes'] / 2**20:8.0f} MiB")
    name = Path(given.backbone).name
    report: dict[str, Any] = {"backbone": name, "users": given.users, "dtype": DTYPE}
    report |= {"runs": given.runs, "medians": found, "all": runs}
    report["state_bytes"] = state_bytes(given.backbone)
    if GPU:
        report |= {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    if not given.no_trl:
        peer = [in_own_process(given.backbone, "--only-trl") for _ in range(given.runs)]
        report["trl"] = medians(peer)
        print(f"trl   {report['trl']['users_per_minute']:6.1f} users/min", end="")
        print(f"{report['trl']['bytes'] / 2**20:8.0f} MiB")
    save(f"many_users-{name}" + "-gpu" * GPU, report)


if __name__ == "__main__":
    main()
