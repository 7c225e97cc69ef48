"""Everything that stands ready for a GPU, in one command.

    python benchmarks/gpu.py [--runs N] [--rehearse]

Needs one CUDA device, and `idiolect[smollm2]`. In turn, each with its time:

- the tests that need one (`tests/common/engine/test_gpu.py`);
- users per minute and memory against K (`many_users.py`), for the shapes 0.1B, 0.5B and
  1.5B with random weights (`shapes.py`), and for smollm2;
- the share of a training's time in which the GPU computes, for K = 1, 4 and 16 users of
  each. The rest is the CPU that launches kernels: what CUDA graphs could save at most;
- an owner's `personalize` and `generate` on smollm2, 24 pairs, in float32 and bfloat16.

Writes benchmarks/results/gpu.json and many_users-NAME-gpu.json, and the table of
docs/gpu.md. `--rehearse` does the same on a CPU with the built-in model, once, to see that
the command works; it writes nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from many_users import world
from one_user import METHOD, RATE
from owners import Device, rows_of, write_rows
from report import ROOT, between, printed, save
from shapes import SHAPES, shape, write
from torch.profiler import ProfilerActivity, profile

PAGE = ROOT / "docs" / "gpu.md"
BEGIN, END = "<!-- measured -->\n", "<!-- /measured -->\n"
SIZES = (1, 4, 16)
PAIRS = 24  # of an owner


def models(folder: Path, rehearse: bool) -> Iterator[str]:
    """The backbones that are measured; random ones are made in a folder."""
    if rehearse:
        yield "tiny"
        return
    for name in SHAPES:
        write(shape(name), torch.bfloat16, folder / name)
        yield str(folder / name)
    yield "smollm2"


def busy(backbone: str, sizes: Sequence[int], dtype: str) -> dict[str, float]:
    """For each K the share of a training's time in which the device computes.

    On a GPU the sum of its kernels' times over the time on the wall, after a training that
    is not timed. On a CPU the operators' times.
    """
    from idiolect.common.methods.personalise import personalise

    config, reference, users, unlabeled = world(backbone, max(sizes) + 1, dtype)
    gpu = reference.backbone.device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    found: dict[str, float] = {}
    for size in sizes:
        group = users[:size]
        personalise(reference, group, unlabeled, METHOD, RATE, config)
        with profile(activities=kinds) as seen:
            began = time.perf_counter()
            personalise(reference, group, unlabeled, METHOD, RATE, config)
            if gpu:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - began
        name = "self_device_time_total" if gpu else "self_cpu_time_total"
        total = sum(getattr(event, name) for event in seen.key_averages())
        found[str(size)] = total / 1e6 / seconds
    return found


def owner(backbone: str, dtype: str, device: str) -> dict[str, float]:
    """Seconds that an owner's two commands take, from the start of each process."""
    with tempfile.TemporaryDirectory() as place:
        one, history = Device(Path(place)), Path(place) / "pairs.jsonl"
        write_rows(history, rows_of("chat-mia")[:PAIRS])
        one.run("vault", "init", "--backbone", backbone)
        one.run("import", str(history))
        one.run("settings", "dtype", dtype)
        one.run("settings", "device", device)
        trained = one.watch("personalize")
        one.run("use", str(trained["said"]["number"]))
        began = time.perf_counter()
        one.run("generate", "-", given="Are you coming tonight?")
        return {
            "personalize": trained["seconds"],
            "generate": time.perf_counter() - began,
            "bytes": trained["bytes"],
        }


def measured(folder: Path, runs: int, rehearse: bool) -> dict[str, Any]:
    """Run all parts and return what they found."""
    dtype, device = ("float32", "cpu") if rehearse else ("bfloat16", "cuda")
    found: dict[str, Any] = {"torch": torch.__version__, "busy": {}, "owner": {}}
    if not rehearse:
        found["gpu"] = torch.cuda.get_device_name()
    began = time.monotonic()

    def say(words: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {words}", flush=True)

    say("tests")
    tests = [sys.executable, "-m", "pytest", "-q", "tests/common/engine/test_gpu.py"]
    found["tests"] = subprocess.run(tests, cwd=ROOT).returncode
    for backbone in models(folder, rehearse):
        name = Path(backbone).name
        say(f"{name}: share of the time in which it computes")
        words = ["--busy", backbone, "--dtype", dtype]
        found["busy"][name] = printed(__file__, *words)
        say(f"{name}: users per minute")
        if not rehearse:
            many = [str(ROOT / "benchmarks" / "many_users.py"), "--no-trl"]
            many += ["--backbone", backbone, "--runs", str(runs)]
            subprocess.run([sys.executable, *many], check=True)
    for kind in dict.fromkeys(("float32", dtype)):
        say(f"an owner's commands in {kind}")
        backbone = "tiny" if rehearse else "smollm2"
        found["owner"][kind] = owner(backbone, kind, device)
    say("done")
    return found


def table(found: dict[str, Any]) -> str:
    """What was measured, as the page shows it."""
    sizes = ", ".join(map(str, SIZES))
    lines = [
        (
            f"On {found.get('gpu', 'a CPU')} with torch {found['torch']}; its tests "
            f"{'failed' if found['tests'] else 'passed'}."
        ),
        "",
        f"| backbone | share of the time in which it computes, at K = {sizes} |",
        "| --- | --- |",
    ]
    for name, shares in found["busy"].items():
        parts = ", ".join(f"{shares[key]:.0%}" for key in shares)
        lines.append(f"| {name} | {parts} |")
    lines += ["", "| an owner's smollm2 in | personalize | generate | memory |"]
    lines += ["| --- | --- | --- | --- |"]
    for kind, row in found["owner"].items():
        lines.append(
            f"| {kind} | {row['personalize']:.0f} s | {row['generate']:.1f} s "
            f"| {row['bytes'] / 2**20:.0f} MB |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description="All that stands ready for a GPU.")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--rehearse", action="store_true", help="on a CPU; no results")
    parser.add_argument("--busy", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.busy:
        sizes = SIZES if torch.cuda.is_available() else SIZES[:1]
        print(json.dumps(busy(given.busy, sizes, given.dtype)))
        return 0
    if not (given.rehearse or torch.cuda.is_available()):
        print("There is no CUDA device here: `--rehearse` shows what would be done.")
        return 2
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), given.runs, given.rehearse)
    print(table(found))
    if not given.rehearse:
        save("gpu", found)
        PAGE.write_text(between(PAGE.read_text(), BEGIN, END, table(found)))
    return found["tests"] != 0


if __name__ == "__main__":
    sys.exit(main())
