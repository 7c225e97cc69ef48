"""A study of my own: C-BPO against SFT, for unusual users and for usual ones.

Each cell is a run on synthetic users in this process, without Flower. A finished cell is a
file in FOLDER: the same command again does only what is missing.
Run it with `python examples/study_of_my_own.py [FOLDER]`.
"""

import sys
import tempfile
from pathlib import Path

from idiolect.server.study.cells import run_study
from idiolect.server.study.declaration import Study

STUDY = Study(
    name="mine",
    title="C-BPO against SFT",
    question="Does C-BPO beat SFT, for unusual users and for usual ones?",
    config={  # what all cells share: keys of docs/configuration.md
        "users": 6,
        "development-users": 0,
        "history": 8,
        "held-out": 2,
        "adapt.rounds": 0,
        "unlabeled.kind": "others",
        "methods": "shared,sft,c-bpo",
        "personalise.learning-rates": "3e-3",
        "evaluate.generate": False,
    },
    grid={"persona.overlap": [0.2, 0.8]},  # a cell for each value
)


def main(folder: Path) -> None:
    """Run the study, and print each difference with its paired 95 % interval."""
    for cell in run_study(STUDY, folder):
        overlap = cell["cell"]["persona.overlap"]
        print(f"users who share {overlap:.0%} of their style with the others:")
        for metric in ("nll", "contrast"):
            found = cell["pairs"]["c-bpo - sft"][metric]
            low, high = found["ci95"]
            said = "not told apart" if low <= 0 <= high else "told apart"
            print(f"  {metric}: {found['mean']:+.3f} [{low:+.3f}, {high:+.3f}], {said}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch))
