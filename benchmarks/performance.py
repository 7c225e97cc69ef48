"""Write docs/performance.md from the result files that the benchmarks wrote.

python benchmarks/performance.py
"""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
NAMES = {
    "cold": "idiolect, C-BPO, cold",
    "warm": "idiolect, C-BPO, warm reference scores",
    "small": "idiolect, C-BPO, cold, half of a step's rows at once",
    "bounded": "idiolect, C-BPO, cold, engine.memory={bound}",
    "trl": "trl KTOTrainer + peft",
    "trl-cached": "trl KTOTrainer + peft, precomputed reference",
    "trl-bco": "trl 1.8.0 BCOTrainer + peft",
    "tight": "idiolect cold, 1.5 times the least `engine.memory`",
    "upper": "idiolect cold, adapters on the upper half of the layers",
    "sft": "plain peft SFT loop, same rows",
    "limit": "frozen matrix products alone",
}
# What is compared, one peer, the other, a number of both, at most or at least what.
TARGETS = (
    ("trl KTOTrainer / idiolect cold, time", "trl", "cold", "seconds", "≥ 4"),
    ("idiolect warm / SFT loop, time", "warm", "sft", "seconds", "≤ 1.1"),
    ("idiolect cold / SFT loop, time", "cold", "sft", "seconds", "≤ 1.3"),
    ("idiolect warm / limit, time", "warm", "limit", "seconds", "≤ 1.6"),
    ("idiolect cold / trl KTOTrainer, memory", "cold", "trl", "bytes", "≤ 0.5"),
    ("trl KTOTrainer / half of a step at once, time", "trl", "small", "seconds", "≥ 4"),
    (
        "half of a step at once / trl KTOTrainer, memory",
        "small",
        "trl",
        "bytes",
        "≤ 0.5",
    ),
)
# Those of a model of real size, and at most how many megabytes.
REAL = (
    ("idiolect cold / frozen products, time", "cold", "limit", "seconds", "≤ 1.25"),
    ("trl KTOTrainer / idiolect cold, time", "trl", "cold", "seconds", "≥ 5"),
    ("idiolect cold / SFT loop, time", "cold", "sft", "seconds", "≤ 0.5"),
    ("bounded / unbounded, time", "bounded", "cold", "seconds", "≤ 1.35"),
    (
        "upper half of the layers: all / those, time",
        "cold",
        "upper",
        "seconds",
        "≥ 1.7",
    ),
)
MEGABYTES = (
    ("bounded, MiB above the backbone", "bounded", "bytes", {}, 300),
    ("tight, MiB in all", "tight", "total", {"smollm2": 700, "0.5B": 1200}, 0),
)


def read(name: str) -> dict[str, Any] | None:
    """Return a result file, or None where that benchmark was not run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def met(value: float, target: str) -> str:
    """Whether a ratio keeps to ``≤ x`` or ``≥ x``."""
    sign, bound = target.split()
    good = value <= float(bound) if sign == "≤" else value >= float(bound)
    return "yes" if good else "**no**"


def ratios(found: list[tuple[str, float, str]]) -> list[str]:
    """Table of (what, ratio, target)."""
    lines = ["| ratio | measured | target | met |", "| --- | --- | --- | --- |"]
    for text, ratio, target in found:
        lines.append(f"| {text} | {ratio:.2f} | {target} | {met(ratio, target)} |")
    return [*lines, ""]


def measured(found: dict[str, Any]) -> list[str]:
    """When, where and on what code a result was measured."""
    if not (origin := found.get("origin")):
        return ["Measured before results kept their commit.", ""]
    commit, day = origin["commit"], origin["day"]
    return [f"Measured at {commit}, {day}, on {origin['processor']}.", ""]


def one_user(found: dict[str, Any]) -> list[str]:
    """Tables of the peers, and of the ratios that were aimed at."""
    medians = found["medians"]
    lines = [
        (
            f"Backbone `{found['backbone']}`, {found['threads']} thread(s), medians of "
            f"{found['runs']} runs in turn"
            + (
                f" (of {', '.join(beside)} at the same time, on another core):"
                if (beside := found.get("beside"))
                else ":"
            )
        ),
        "",
        "| peer | seconds | CPU seconds | MiB above the backbone | MiB in all |",
        "| --- | --- | --- | --- | --- |",
    ]
    bound = found.get("bound", 300)  # of results before it was kept
    for peer, row in medians.items():
        total = f"{row['total'] / 2**20:.0f}" if "total" in row else ""
        name = NAMES[peer].format(bound=bound)
        lines.append(
            f"| {name} | {row['seconds']:.2f} | {row['cpu']:.2f} "
            f"| {row['bytes'] / 2**20:.0f} | {total} |"
        )
    real = "bounded" in medians
    compared = [
        (text, medians[one][key] / medians[other][key], target)
        for text, one, other, key, target in (REAL if real else TARGETS)
        if one in medians and other in medians
    ]
    for text, peer, key, most, usual in MEGABYTES if real else ():
        if peer in medians and (bound := most.get(found["backbone"], usual)):
            compared.append((text, medians[peer][key] / 2**20, f"≤ {bound}"))
    return [*lines, "", *ratios(compared)]


def many_users(found: dict[str, Any]) -> list[str]:
    """Table of users per minute and memory against K."""
    medians, peer = found["medians"], found.get("trl")
    one, place = medians["1"], found.get("gpu", "the CPU")
    count = f"medians of {found['runs']} runs" if found["runs"] > 1 else "one run"
    lines = [
        (
            f"Backbone `{found['backbone']}` in {found['dtype']} on {place}, {count}. A "
            f"user's adapter, gradient and moments are "
            f"{found['state_bytes'] / 2**20:.0f} MiB; the rest of the memory of one more "
            "user is activations."
        ),
        "",
        (
            "| K | users per minute | of K = 1 | of trl | CPU s per user | MiB "
            "| MiB per extra user |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for size, row in medians.items():
        extra = (row["bytes"] - one["bytes"]) / max(1, int(size) - 1) / 2**20
        rate = row["users_per_minute"]
        of_peer = f"{rate / peer['users_per_minute']:.1f}" if peer else ""
        lines.append(
            f"| {size} | {rate:.0f} | {rate / one['users_per_minute']:.2f} "
            f"| {of_peer} | {row['cpu_per_user']:.2f} | {row['bytes'] / 2**20:.0f} "
            f"| {'' if size == '1' else f'{extra:.0f}'} |"
        )
    if peer:
        lines.append(
            f"| trl | {peer['users_per_minute']:.0f} "
            f"| {peer['users_per_minute'] / one['users_per_minute']:.2f} | 1.0 | "
            f"| {peer['bytes'] / 2**20:.0f} | |"
        )
    if "gpu" in found and peer:
        most = medians["16"]["users_per_minute"]
        compared = [
            ("K = 16 / K = 1, users per minute", most / one["users_per_minute"], "≥ 5"),
            ("K = 16 / trl, users per minute", most / peer["users_per_minute"], "≥ 10"),
        ]
        return [*lines, "", *ratios(compared)]
    return [*lines, ""]


def simulation(found: dict[str, Any]) -> list[str]:
    """Tables of the runs, their lines, and the ratio of the slopes."""
    lines = [
        "| who | users | seconds | all processes, MiB | the server's, MiB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for who, name in (("ours", "idiolect"), ("naive", "naive Flower app")):
        for row in found[who]["rows"]:
            peaks = [
                f"{row[key]:.0f}" if key in row else ""
                for key in ("peak_mb", "server_mb")
            ]
            cells = [name, str(row["users"]), f"{row['seconds']:.0f}", *peaks]
            lines.append(f"| {' | '.join(cells)} |")
    mine, theirs = found["ours"]["line"], found["naive"]["line"]
    ratio = theirs["per_user"] / mine["per_user"]
    first, *_, last = found["ours"]["rows"]
    users = last["users"] - first["users"]
    growth, own = ((last[k] - first[k]) / users for k in ("peak_mb", "server_mb"))
    return [
        *lines,
        "",
        (
            f"A line through each: idiolect {mine['start']:.0f} s + "
            f"{mine['per_user']:.2f} s per user (worst error {mine['worst_error']:.0%}), "
            f"the naive app {theirs['start']:.0f} s + {theirs['per_user']:.2f} s per user: "
            f"**{ratio:.1f}** times the users per minute (target ≥ 10: "
            f"{met(ratio, '≥ 10')}). Start-up of the smallest run of idiolect, everything "
            f"outside its phases: {first['start']:.0f} s (target ≤ 25). Its "
            f"processes grow by {growth:.2f} MiB per user together (target: flat), the "
            f"server by {own:.2f}: with more groups the longest group, which sets the peak "
            "of a pass, is longer."
        ),
        "",
        *bound(theirs["per_user"]),
    ]


def bound(naive: float, cores: int = 2) -> list[str]:
    """How much faster than `naive` seconds per user any engine could be."""
    if not (found := read("one_user-tiny-1")):
        return []
    least = found["medians"]["limit"]["cpu"]
    return [
        (
            "No engine can reach that target with this backbone and objective: the frozen "
            f"matrix products of a user's own C-BPO training alone are {least:.2f} CPU "
            f"seconds (`one_user.py`), {least / cores:.2f} s on {cores} cores. That is at "
            f"most {naive * cores / least:.1f} times the naive app's rate, before the "
            "shared adapter, adapters, attention, reference scores and evaluation. The "
            "naive app trains by SFT, on half as many rows."
        ),
        "",
    ]


def wire(found: dict[str, Any]) -> list[str]:
    """Table of the shared adapter's bytes."""
    lines = [
        "Bytes of one user's request and reply in a round of the shared adapter, as Flower",
        "serialises them. Plain: A and B as float32, both ways. Signed bytes lost no",
        "visible quality in three seeds of personas: [study](findings/wire.md).",
        "",
        "| model, projections, rank | down | up | plain, both | ratio | target | met |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in found["rows"]:
        target = "≤ 0.1" if row["targets"] == "q,v" else "≤ 0.15"
        both = sum(row["plain"].values())
        lines.append(
            f"| {row['model']}, {row['targets']}, {row['rank']} | {row['ours']['down']:,} "
            f"| {row['ours']['up']:,} | {both:,} | {row['ratio']:.3f} | {target} "
            f"| {met(row['ratio'], target)} |"
        )
    return [*lines, ""]


def long_prompts(found: dict[str, Any]) -> list[str]:
    """Table of the memory of a step against lengths."""
    lines = [
        "One step over four rows, vocabulary of 32,000 words. A logit for every token and",
        "word is what transformers' own loss computes. This engine computes them for the",
        "completion only, in chunks, so its memory depends on the activations.",
        "",
        "| prompt | completion | all logits, MiB | idiolect, MiB | peft SFT, MiB | ratio |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in found["rows"]:
        mine, theirs = row["ours"]["bytes"], row["peft"]["bytes"]
        lines.append(
            f"| {row['prompt']} | {row['completion']} | {row['logits'] / 2**20:.0f} "
            f"| {mine / 2**20:.0f} | {theirs / 2**20:.0f} | {mine / theirs:.2f} |"
        )
    return [*lines, ""]


def device_cost(found: dict[str, Any]) -> list[str]:
    """Table of what one device pays."""
    row = found["medians"]
    imports = ", ".join(f"`{k}` {v:.2f} s" for k, v in row["import"].items())
    return [
        (
            "| process start to first optimiser step | whole request | CPU "
            "seconds | largest resident set |"
        ),
        "| --- | --- | --- | --- |",
        (
            f"| {row['first_step']:.1f} s | {row['seconds']:.1f} s | {row['cpu']:.1f} "
            f"| {row['bytes'] / 2**20:.0f} MiB |"
        ),
        "",
        f"Imports where no model is needed (target ≤ 0.3 s): {imports}.",
        "",
    ]


INTRODUCTION = """# Performance

Written by `make bench` (`benchmarks/performance.py`) from the files in
`benchmarks/results`. Do not edit. Every ratio is between programs that were run on one
machine: on its CPU unless a GPU is named, and in turn unless stated. The docstring of each
benchmark says what it compares. A `+` after a commit: files had changed since that commit,
for example the results that the bench itself had just written.

## One user

C-BPO with 32 history and 32 unlabeled items, 3 epochs, rank 8 on every projection. It is
compared with trl's KTOTrainer, with a plain SFT loop with peft over the same rows, and with
the matrix products that every method needs (`benchmarks/one_user.py`).
"""

NOTES = """
Memory above the backbone counts from a process that has read all weights. Within a budget
weights are given back to their file after use, so less than the budget, or nothing, is seen
above it. The memory in all is the largest resident set of the process from its start.

With two threads, this engine's threads wait for each other by spinning for some
microseconds and then sleeping (`GOMP_SPINCOUNT`, which the package sets unless
`OMP_WAIT_POLICY` is set). The threads of the other programs spin all the time. That is
faster on an idle machine and several times slower beside another busy process. For a model
as small as the built-in one, one thread is most efficient (`idiolect settings threads 1`).

**Used, because it saves time or memory:**

- one optimiser step for all users, in one buffer
- adapters attached once for a whole training
- no attention mask
- logits for the completion only, in chunks
- weights of 16 bits kept as they are and widened a block at a time, with the same numbers
- the last layer's feed-forward block only where a token is predicted, for model families
  whose layer is attention followed by the block
- the adapters' narrow products transposed on a CPU, and in the backbone's dtype on a GPU

**Tried on a CPU, without benefit:**

- torch.compile of the norms, the rotary embedding and the gate: starting takes longer than
  ten users, and nothing is gained beyond the noise
- PyTorch's plain attention instead of its blockwise one: not faster at 50 tokens, slower
  at 160
- memory that malloc never returns: no gain, there are few page faults
- the adapters of q, k and v, and of gate and up, in one product each, together with the
  frozen one: a few percent of a step, for a second code path beside the hooks

**Not tried:**

- skipping queries of the last layer; this needs each family's own attention code
- CUDA graphs and pinned prefetch; CUDA graphs are the next thing to try on a GPU

"""

MANY = """## Many users in one pass (`benchmarks/many_users.py`)

C-BPO with warm reference scores; trl's KTOTrainer trains one user after another. The models
that are named by their number of parameters have random weights (`benchmarks/shapes.py`).
With several users in one pass a GPU needs one kernel launch instead of many. For a single
user, and for most of the time left at K = 16, the GPU waits while the CPU launches kernels.
A larger K or fewer kernels would therefore help.
"""

SIMULATION = """## Many users through Flower (`benchmarks/simulation.py`)

The shared adapter, votes and one trained method (`shared,c-bpo`), with one learning rate,
no development users and no outputs. The naive app was run first.
"""


def shares(found: dict[str, Any]) -> list[str]:
    """What holds `warm` above the limit: where a profile of its training says time goes."""
    parts = ", ".join(f"{name} {part:.0%}" for name, part in found["shares"].items())
    return [
        (
            "Where the time of training goes, by `torch.profiler` on one thread: "
            f"{parts}. Padding adds {found['padding']:.0%} to the tokens."
        ),
        "",
    ]


def main() -> None:
    """Write the page from what is there."""
    lines = [INTRODUCTION]
    for path in sorted(RESULTS.glob("one_user-*.json")):
        found = json.loads(path.read_text())
        lines += one_user(found) + shares(found) + measured(found)
    lines += [NOTES]
    many = sorted(RESULTS.glob("many_users-*.json"))
    if many:
        lines += [MANY]
    for path in many:
        found = json.loads(path.read_text())
        lines += many_users(found) + measured(found)
    if found := read("long_prompts"):
        lines += ["## Long prompts (`benchmarks/long_prompts.py`)", ""]
        lines += long_prompts(found) + measured(found)
    if found := read("simulation"):
        lines += [SIMULATION, *simulation(found), *measured(found)]
    if found := read("wire"):
        lines += ["## On the wire (`benchmarks/wire.py`)", ""]
        lines += wire(found) + measured(found)
    if found := read("device_cost"):
        lines += ["## One device (`benchmarks/device_cost.py`)", ""]
        lines += device_cost(found) + measured(found)
    PAGE.write_text("\n".join(lines).rstrip() + "\n")
    print(PAGE)


if __name__ == "__main__":
    main()
