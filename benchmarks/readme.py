"""Put the table of a run into a page.

    python benchmarks/readme.py [--real] [RESULTS.json]

Takes what the table needs from the results of `make lamp`, with ``--real`` of `make real`
(default: the newest run), keeps it in ``benchmarks/results``, and replaces what stands
between the two markers: in the README, or in ``docs/simulations.md``. The table has means
over users, and for the main differences also the 95 % intervals, paired by user. No number
in it is written by hand.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import between

from idiolect.common.files import home

ROOT = Path(__file__).resolve().parents[1]
END = "<!-- end of results -->\n"
METRICS = ("nll", "rouge-l", "own-style", "shared-style")
NAMES = {"oppu": "sft"}  # version 0.2 called SFT by the name of a paper
ROWS = {
    "base": "frozen backbone",
    "shared": "with the shared adapter",
    "rag": "with the user's items in the prompt",
    "sft": "own adapter: SFT",
    "kto": "own adapter: KTO",
    "bco": "own adapter: BCO",
    "positives": "own adapter: C-BPO's positive term",
    "c-bpo": "own adapter: C-BPO",
}


@dataclass(frozen=True)
class Table:
    """Where the table of a job stands.

    Attributes
    ----------
    page, kept
        The page, and the file with what the table needs.
    start
        Marker before the table; END is behind it.
    methods, pairs
        Rows: methods, and paired differences.
    timed
        Whether time and memory are said below.
    """

    page: Path
    kept: Path
    start: str
    methods: tuple[str, ...]
    pairs: tuple[str, ...]
    timed: bool = False


LAMP = Table(
    ROOT / "README.md",
    ROOT / "benchmarks" / "results" / "readme.json",
    "<!-- results of make lamp -->\n",
    ("base", "shared", "sft", "kto", "bco", "positives", "c-bpo"),
    ("c-bpo - sft", "positives - sft", "c-bpo - bco"),
)
REAL = Table(
    ROOT / "docs" / "simulations.md",
    ROOT / "benchmarks" / "results" / "real.json",
    "<!-- results of make real -->\n",
    ("base", "shared", "rag", "sft", "c-bpo"),
    ("rag - shared", "sft - shared", "c-bpo - sft"),
    timed=True,
)


def taken(results: Mapping[str, Any], which: Table = LAMP) -> dict[str, Any]:
    """Return what the table needs of ``results.json``, by the names of today."""
    run = results["run"]
    methods = {NAMES.get(name, name): row for name, row in results["methods"].items()}
    pairs = {
        " - ".join(NAMES.get(side) or side for side in name.split(" - ")): row
        for name, row in results["pairs"].items()
    }
    return {
        "run": {name: run[name] for name in ("task", "seed", "commit", "versions")},
        **(taken_time(results["cost"]) if which.timed else {}),
        "users": len(results["users"]),
        "methods": {n: {m: methods[n][m] for m in METRICS} for n in which.methods},
        "pairs": {n: {m: pairs[n][m] for m in METRICS} for n in which.pairs},
    }


def taken_time(cost: Mapping[str, Any]) -> dict[str, float]:
    """Return minutes, gigabytes, and the cores of this machine, which ran it."""
    return {
        "minutes": sum(cost["seconds"].values()) / 60,
        "gigabytes": cost["peak_rss_mb"] / 1000,
        "cores": os.cpu_count() or 1,
    }


def table(kept: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the table."""
    title = f"{kept['users']} users, seed {kept['run']['seed']}"
    heads = [f"{metric} ↓" if metric == "nll" else metric for metric in METRICS]
    yield f"| {title} | " + " | ".join(heads) + " |"
    yield "| --- |" + " --- |" * len(METRICS)
    for name, row in kept["methods"].items():
        cells = " | ".join(f"{row[metric]['mean']:.3f}" for metric in METRICS)
        yield f"| `{name}`: {ROWS[name]} | {cells} |"
    for name, row in kept["pairs"].items():
        yield f"| {name} | {' | '.join(difference(row[m]) for m in METRICS)} |"
    if "minutes" in kept:
        took = f"{kept['minutes']:.0f} minutes on {kept['cores']} cores"
        yield ""
        yield f"Time, without the start: {took}. Memory of all processes:"
        yield f"{kept['gigabytes']:.0f} GB: by default training uses what is free. Set"
        yield "`engine.memory` to use less."


def difference(value: Mapping[str, Any]) -> str:
    """Return a paired difference with its interval, bold where that is clear of zero."""
    low, high = value["ci95"]
    mean = f"{value['mean']:+.3f}"
    mean = f"**{mean}**" if low > 0 or high < 0 else mean
    return f"{mean} ({low:+.3f} to {high:+.3f})"


def written(text: str, kept: Mapping[str, Any], which: Table = LAMP) -> str:
    """Return a page's text with the table between the markers."""
    return between(text, which.start, END, "\n".join(table(kept)) + "\n")


def main(path: Path, which: Table) -> None:
    """Keep what the table needs, and rewrite the table."""
    kept = taken(json.loads(path.read_text()), which)
    which.kept.write_text(json.dumps(kept, indent=1) + "\n")
    which.page.write_text(written(which.page.read_text(), kept, which))


if __name__ == "__main__":
    paths = [word for word in sys.argv[1:] if word != "--real"]
    newest = home() / "runs" / "latest" / "results.json"
    main(Path(paths[0]) if paths else newest, REAL if "--real" in sys.argv else LAMP)
