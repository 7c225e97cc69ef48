"""Ten thousand users on one machine, and a thousand with the same keys.

    python benchmarks/ten_thousand.py [--sizes 1000,10000,1000] [--page]

Persona users through Flower: 8 texts of history, one round of the shared adapter, votes,
one trained method, its evaluation. CPU seconds of all processes say what a user costs
where other programs run beside it; seconds say how long it took. A thousand are run
before and after, because a machine's own speed can change within the hour. Each run is
kept in ``benchmarks/results/ten_thousand.json``; the same command does what is missing,
and ``--page`` writes a table of docs/scale.md.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

from cpu_time import cpu_of
from report import RESULTS, ROOT, between, origin, save

KEYS = (
    *("development-users=0", "history=8", "adapt.rounds=1", "methods=shared,c-bpo"),
    *("personalise.learning-rates=3e-3", "evaluate.generate=false", "run.name=bench"),
)
MINUTES = 60.0  # for ten thousand
MORE_TIME, MORE_MEMORY = 1.05, 1.10  # for one user, and in all, of what a thousand take
PAGE = ROOT / "docs" / "scale.md"
MARKS = "<!-- many: written by a command -->\n", "<!-- many: end -->"
FILE = RESULTS / "ten_thousand.json"


def one_size(users: int) -> dict[str, float]:
    """Run the job."""
    with tempfile.TemporaryDirectory() as place:
        words = [*KEYS, f"users={users}", f"run.folder={place}"]
        command = [str(Path(sys.executable).parent / "idiolect-server"), "simulate"]
        command += [str(ROOT / "simulations" / "lamp")]
        command += [part for word in words for part in ("-c", word)]
        began = time.perf_counter()
        cpu = cpu_of(command)
        seconds = time.perf_counter() - began
        folder = Path(place) / "bench"
        cost = json.loads((folder / "results.json").read_text())["cost"]
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        memory = [e for e in map(json.loads, lines) if e["event"] == "memory"][-1]
        disk = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    phases = cost["seconds"]
    found = {
        "users": users,
        "seconds": seconds,
        "cpu": cpu,
        "peak_mb": cost["peak_rss_mb"],
    }
    found |= {"server_mb": memory["server_mb"], "disk_mb": disk / (1 << 20)}
    return {**found, **phases, "phases": sum(phases.values())}


def table(found: dict[str, Any]) -> str:
    """The part of the page."""
    heads = (
        *("users", "minutes", "seconds a user", "CPU seconds a user"),
        *("memory of all processes, MiB", "of the server, MiB", "run's folder, MiB"),
    )
    lines = [f"| {' | '.join(heads)} |", "| --- |" + " --- |" * (len(heads) - 1)]
    for row in found["rows"]:
        cells = (
            *(f"{row['users']:,}", f"{row['seconds'] / 60:.1f}"),
            *(
                f"{row['phases'] / row['users']:.2f}",
                f"{row['cpu'] / row['users']:.2f}",
            ),
            *(
                f"{row['peak_mb']:.0f}",
                f"{row['server_mb']:.0f}",
                f"{row['disk_mb']:.0f}",
            ),
        )
        lines.append(f"| {' | '.join(cells)} |")
    about = (
        "Built-in backbone, 8 texts of history, one round, votes, one trained method, "
        f"{found['origin']['processor']}. Seconds a user: of the phases; CPU seconds: of "
        "all processes, start and end included. Rows in the order in which they ran."
    )
    return "\n".join([*lines, "", about, *_targets(found["rows"]), ""])


def _targets(rows: list[dict[str, float]]) -> list[str]:
    """What was aimed at: the largest size over the mean of the smallest."""
    few, many = (pick(row["users"] for row in rows) for pick in (min, max))
    if few == many:
        return []

    def ratio(key: str) -> float:
        of = [mean(row[key] for row in rows if row["users"] == n) for n in (few, many)]
        return of[1] / of[0]

    time_ratio = ratio("cpu") * few / many
    memory = ratio("peak_mb")
    minutes = max(row["seconds"] for row in rows if row["users"] == many) / 60
    said = (
        ("CPU time a user, of that with fewer (mean)", time_ratio, MORE_TIME),
        ("memory, of that with fewer (mean)", memory, MORE_MEMORY),
        ("minutes", minutes, MINUTES),
    )
    lines = ["", "| with the most users | measured | target | met |"]
    lines.append("| --- | --- | --- | --- |")
    for what, value, most in said:
        met = "yes" if value <= most else "**no**"
        lines.append(f"| {what} | {value:.2f} | ≤ {most:g} | {met} |")
    same = [row["cpu"] for row in rows if row["users"] == few]
    said_of_it = (
        f"CPU times of the runs with {few:,} users differ by "
        f"{max(same) / min(same) - 1:.0%}: the machine's own speed changes between runs, "
        "and a ratio below 1 comes from that."
    )
    return [*lines, "", said_of_it]


def main() -> None:
    """Measure what is missing, and write the page if asked to."""
    parser = argparse.ArgumentParser(description="Ten thousand users on one machine.")
    parser.add_argument("--sizes", default="1000,10000,1000")
    parser.add_argument("--page", action="store_true", help="write the table")
    given = parser.parse_args()
    found = json.loads(FILE.read_text()) if FILE.exists() else {"rows": []}
    for size in given.sizes.split(",")[len(found["rows"]) :]:
        found["rows"].append(one_size(int(size)))
        print(json.dumps(found["rows"][-1]), flush=True)
        save("ten_thousand", found)
    if given.page:
        part = table(found | {"origin": origin()})
        PAGE.write_text(between(PAGE.read_text(), *MARKS, part))


if __name__ == "__main__":
    main()
