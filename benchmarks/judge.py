"""Whether authors can be told apart, and from how many words on.

    python benchmarks/judge.py FOLDER ...

Each FOLDER has an ``oppu_users.json`` (docs/data.md). For several numbers of questioned
texts, the ceiling and the floor of `idiolect.server.study.judge` are measured on real
text: a third of the users who have enough fit the judge, the others are recognised. The
mean over ``--seeds`` divisions of the users is printed as a table in Markdown.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from idiolect.common.data.types import Item, Prompt, User
from idiolect.server.study.judge import calibrate

SIZES = (1, 2, 4, 6, 12, 24)
# The longer text of each record, where a record has one.
TEXTS = {"title": ("title",), "text": ("text", "abstract")}


def read(folder: Path, kind: str) -> list[list[str]]:
    """Texts of each user, in the order of the file: titles, or the long texts."""
    found: list[list[str]] = []
    for user in json.loads((folder / "oppu_users.json").read_text()):
        records = user["profile"]
        texts = [one[name] for one in records for name in TEXTS[kind] if name in one]
        texts += [one["gold"] for one in user["query"] if kind == "title"]
        found.append([text for text in texts if text.strip()])
    return found


def user_of(number: int, texts: Sequence[str], held_out: int) -> User:
    """The newest texts are questioned, the older ones known."""
    items = tuple(Item(str(i), Prompt("", ""), text) for i, text in enumerate(texts))
    return User(str(number), items[:-held_out], items[-held_out:])


def rows(folder: Path, kind: str, seeds: int) -> Iterator[list[str]]:
    """A row of the table for each number of texts and of candidates."""
    people = read(folder, kind)
    for size in SIZES:
        able = [texts for texts in people if len(texts) >= 2 * size + 4]
        for candidates in (8, 16):
            found = []
            for seed in range(seeds):
                order = np.random.default_rng(seed).permutation(len(able))
                users = [user_of(int(i), able[i], size) for i in order]
                third = len(users) // 3
                one = calibrate(
                    users[third:], users[:third], seed, candidates=candidates
                )
                found += [one.section] if one else []
            if found:
                yield row(f"{folder.name}, {kind}", len(able), size, found)


def row(name: str, users: int, size: int, found: Sequence[dict]) -> list[str]:
    """Means over the divisions, and in how many of them authors are told apart."""

    def mean(end: str, metric: str) -> float:
        return float(np.mean([one[end][metric]["mean"] for one in found]))

    both = [
        f"{mean('ceiling', metric):.2f} / {mean('floor', metric):.2f}"
        for metric in ("recognised", "recognised-mrr")
    ]
    words = float(np.mean([one["words"] for one in found]))
    apart = sum(one["apart"] for one in found)
    return [
        *(name, str(users), str(size), f"{words:.0f}", str(found[0]["candidates"])),
        *(*both, f"{apart} of {len(found)}"),
    ]


HEADS = (
    *("texts", "users", "questioned", "words", "candidates"),
    *("accuracy: ceiling / floor", "MRR: ceiling / floor", "told apart"),
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print(f"| {' | '.join(HEADS)} |\n|{' --- |' * len(HEADS)}")
    for folder in options.folders:
        for kind in TEXTS:
            for cells in rows(folder, kind, options.seeds):
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
