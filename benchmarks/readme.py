"""Put the table of a run into the README: ``python benchmarks/readme.py [RESULTS.json]``.

Takes what the table needs from the results of the main job (default: the newest run), keeps
it in ``benchmarks/results/readme.json``, and replaces what stands between the two markers.
The table has means over users, and for the main differences also the 95 % intervals, paired
by user. No number in the README is written by hand.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from idiolect.common.files import home

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
KEPT = ROOT / "benchmarks" / "results" / "readme.json"
START, END = "<!-- results of make lamp -->\n", "<!-- end of results -->\n"
METRICS = ("nll", "rouge-l", "own-style", "shared-style")
NAMES = {"oppu": "sft"}  # version 0.2 called SFT by the name of a paper
ROWS = {
    "base": "frozen backbone",
    "shared": "with the shared adapter",
    "sft": "own adapter: SFT",
    "kto": "own adapter: KTO",
    "bco": "own adapter: BCO",
    "positives": "own adapter: C-BPO's positive term",
    "c-bpo": "own adapter: C-BPO",
}
PAIRS = ("c-bpo - sft", "positives - sft", "c-bpo - bco")


def taken(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the table needs of ``results.json``, by the names of today."""
    run = results["run"]
    methods = {NAMES.get(name, name): row for name, row in results["methods"].items()}
    pairs = {
        " - ".join(NAMES.get(side) or side for side in name.split(" - ")): row
        for name, row in results["pairs"].items()
    }
    return {
        "run": {name: run[name] for name in ("task", "seed", "commit", "versions")},
        "users": len(results["users"]),
        "methods": {n: {m: methods[n][m] for m in METRICS} for n in ROWS},
        "pairs": {n: {m: pairs[n][m] for m in METRICS} for n in PAIRS},
    }


def table(kept: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the table."""
    title = f"{kept['users']} users, seed {kept['run']['seed']}"
    heads = [f"{metric} ↓" if metric == "nll" else metric for metric in METRICS]
    yield f"| {title} | " + " | ".join(heads) + " |"
    yield "| --- |" + " --- |" * len(METRICS)
    for name, words in ROWS.items():
        row = kept["methods"][name]
        cells = " | ".join(f"{row[metric]['mean']:.3f}" for metric in METRICS)
        yield f"| `{name}`: {words} | {cells} |"
    for name in PAIRS:
        row = kept["pairs"][name]
        yield f"| {name} | {' | '.join(difference(row[m]) for m in METRICS)} |"


def difference(value: Mapping[str, Any]) -> str:
    """Return a paired difference with its interval, bold where that is clear of zero."""
    low, high = value["ci95"]
    mean = f"{value['mean']:+.3f}"
    mean = f"**{mean}**" if low > 0 or high < 0 else mean
    return f"{mean} ({low:+.3f} to {high:+.3f})"


def written(text: str, kept: Mapping[str, Any]) -> str:
    """Return the README's text with the table between the markers."""
    head, rest = text.split(START)
    _, tail = rest.split(END)
    return head + START + "\n".join(table(kept)) + "\n" + END + tail


def main(path: Path) -> None:
    """Keep what the table needs, and rewrite the table."""
    kept = taken(json.loads(path.read_text()))
    KEPT.write_text(json.dumps(kept, indent=1) + "\n")
    README.write_text(written(README.read_text(), kept))


if __name__ == "__main__":
    newest = home() / "runs" / "latest" / "results.json"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else newest)
