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
    "trl": "trl KTOTrainer + peft",
    "trl-cached": "trl KTOTrainer + peft, precomputed reference",
    "trl-bco": "trl 1.8.0 BCOTrainer + peft",
    "sft": "plain peft SFT loop, same rows",
    "limit": "frozen matrix products alone",
}
# Peer, what is compared, with whom, at most (or, of the rate, at least) what.
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
            f"{found['runs']} runs in turn:"
        ),
        "",
        "| peer | seconds | CPU seconds | MiB above the backbone |",
        "| --- | --- | --- | --- |",
    ]
    for peer, row in medians.items():
        lines.append(
            f"| {NAMES[peer]} | {row['seconds']:.2f} | {row['cpu']:.2f} "
            f"| {row['bytes'] / 2**20:.0f} |"
        )
    compared = [
        (text, medians[one][key] / medians[other][key], target)
        for text, one, other, key, target in TARGETS
        if one in medians and other in medians
    ]
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
            f"{found['state_bytes'] / 2**20:.0f} MiB; the rest of what one more user "
            "takes are activations."
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
            f"server by {own:.2f}: each holds everybody's texts; more groups also have "
            "longer ones among them, which set the peak of a pass."
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
            "No engine reaches that target with this backbone and objective: the frozen "
            f"matrix products of a user's own C-BPO training alone are {least:.2f} CPU "
            f"seconds (`one_user.py`), {least / cores:.2f} s on {cores} cores, and so at "
            f"most {naive * cores / least:.1f} times the naive app's rate, before the "
            "shared adapter, adapters, attention, reference scores and evaluation. The "
            "naive app trains by SFT, on half as many rows."
        ),
        "",
    ]


def wire(found: dict[str, Any]) -> list[str]:
    """Table of the shared adapter's bytes."""
    lines = [
        "Bytes of one user's task and reply in a round of the shared adapter, as Flower",
        "serialises them. Plain: A and B as float32, both ways. That signed bytes cost no",
        "quality that three seeds of personas show is in [the findings](findings.md).",
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
        "word is what transformers' own loss computes; this engine computes them for the",
        "completion alone, in chunks, so that its memory follows the activations.",
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
            "| process start to first optimiser step | whole task | CPU "
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
`benchmarks/results`; don't edit. Every ratio is between peers that were run on one
machine, on its CPU where no GPU is named, in turn where nothing else is said. What each
peer is, the first lines of its program say. A `+` after a commit: files had changed since,
the results that the bench itself had just written among them.

## One user

C-BPO with 32 history and 32 unlabeled items, 3 epochs, rank 8 on every projection,
against trl's KTOTrainer, a plain SFT loop with peft over the same rows, and the matrix
products that no method can do without (`benchmarks/one_user.py`).
"""

NOTES = """
With two threads this engine's wait for each other by spinning for some microseconds and
then sleeping (`GOMP_SPINCOUNT`, set by the package unless `OMP_WAIT_POLICY` is); the peers'
spin all the time, which is faster where nothing else runs and several times slower beside
another busy process. For a model as small as the built-in one, one thread wastes least
(`idiolect settings threads 1`).

What pays, and is in: one optimiser step for all users, in one buffer; adapters attached
once for a whole training; no attention mask; logits for the completion alone, in chunks;
the last layer's feed-forward block only where a token is predicted, for the families whose
layer is attention and block one after the other; the adapters' narrow products transposed
on a CPU, and in the backbone's dtype on a GPU.

What was tried on a CPU and does not pay: torch.compile of the norms, the rotary
embedding and the gate (it takes longer to start than ten users, and nothing is gained
beyond the noise); PyTorch's plain attention instead of its blockwise one (no faster at
50 tokens, slower at 160); memory that malloc never returns (nothing; there are few page
faults left); the adapters of q, k and v, and of gate and up, in one product each and
together with the frozen one (a few percent of a step, for a second path beside the
hooks). Not tried: packing without padding (what padding adds is said above, and is the
most that it could save); the queries of the last layer (they need each family's own
attention code); adapters on the upper layers only (another model, whose quality would
have to be shown); reuse of the prompts' common beginning (a few tokens here); CUDA
graphs and pinned prefetch (on a GPU the first is what to try next).

"""

MANY = """## Many users in one pass (`benchmarks/many_users.py`)

C-BPO with warm reference scores; trl's KTOTrainer trains one user after the other. The
shapes with a number of parameters for a name have random weights (`benchmarks/shapes.py`).
With several users in one pass a GPU does in one launch what it would do in many: a single
user, and most of what is left at K = 16, is the time that the CPU takes to launch kernels,
while the GPU waits. So a larger K, or fewer kernels, would bring more.
"""

SIMULATION = """## Many users through Flower (`benchmarks/simulation.py`)

The shared adapter, votes and one trained method (`shared,c-bpo`), one learning rate, no
development users, no outputs; the naive app was run first.
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
