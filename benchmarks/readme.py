"""Put the table of a run into the README: ``python benchmarks/readme.py [RESULTS.json]``.

Replaces what stands between the two markers by a short table of the main job's results
(default: the newest run), so that no number in the README is written by hand. Means over
users; of the differences that matter also the 95 % intervals, paired by user.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from idiolect.common.files import home

README = Path(__file__).parents[1] / "README.md"
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


def table(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the table from what ``results.json`` holds."""
    run = found["run"]
    methods = {NAMES.get(name, name): row for name, row in found["methods"].items()}
    pairs = {
        " - ".join(NAMES.get(side, side) for side in name.split(" - ")): row
        for name, row in found["pairs"].items()
    }
    title = f"{len(found['users'])} users, seed {run['seed']}"
    heads = [f"{metric} ↓" if metric == "nll" else metric for metric in METRICS]
    yield f"| {title} | " + " | ".join(heads) + " |"
    yield "| --- |" + " --- |" * len(METRICS)
    for name, words in ROWS.items():
        cells = (f"{methods[name][metric]['mean']:.3f}" for metric in METRICS)
        yield f"| `{name}`: {words} | " + " | ".join(cells) + " |"
    for name in PAIRS:
        yield (
            f"| {name} | "
            + " | ".join(difference(pairs[name][m]) for m in METRICS)
            + " |"
        )


def difference(value: Mapping[str, Any]) -> str:
    """Return a paired difference with its interval, bold where that is clear of zero."""
    low, high = value["ci95"]
    mean = f"{value['mean']:+.3f}"
    mean = f"**{mean}**" if low > 0 or high < 0 else mean
    return f"{mean} ({low:+.3f} to {high:+.3f})"


def written(text: str, found: Mapping[str, Any]) -> str:
    """Return the README's text with the table between the markers."""
    head, rest = text.split(START)
    _, tail = rest.split(END)
    return head + START + "\n".join(table(found)) + "\n" + END + tail


def main(path: Path) -> None:
    """Rewrite the table between the markers."""
    README.write_text(written(README.read_text(), json.loads(path.read_text())))


if __name__ == "__main__":
    newest = home() / "runs" / "latest" / "results.json"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else newest)
