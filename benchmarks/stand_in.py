"""Invented data and a small model, where study `paper` looks for the real ones.

    python benchmarks/stand_in.py FOLDER

Writes FOLDER/data with LaMP-4, LaMP-5 and the three tasks of LongLaMP as they are published
(questions and outputs; one row per question in JSON lines), and FOLDER/models with the
built-in model under the name of Mistral-7B-Instruct-v0.3. Then prints the commands that run
the study on them. The texts are made of word lists, so the numbers say that the study runs,
and nothing else. The study's page knows that by the users' names (`published.STAND_IN`) and
by the number of the model's parameters.
"""

import argparse
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from idiolect.common.data.lamp.forms import FORMS
from idiolect.common.data.lamp.longlamp import PUBLISHED
from idiolect.common.engine.model_folder import TINY
from idiolect.common.seeds import numpy_generator
from idiolect.server.study.published import STAND_IN

USERS, ITEMS = 8, 9  # of each user the last item is asked for
MODEL = "Mistral-7B-Instruct-v0.3"
STUDY = Path(__file__).resolve().parents[1] / "simulations/lamp/experiments/paper.toml"
# What is smaller than in the study.
KEYS = (
    "users=4",
    "development-users=4",
    "history=8",
    "engine.dtype=float32",
    "engine.max-length=320",
    "adapt.rounds=1",
)
SUBJECTS = ["council", "river", "engine", "forest", "market", "archive", "teacher"]
VERBS = ["opens", "measures", "joins", "leaves", "repairs", "follows", "explains"]
OBJECTS = ["a bridge", "the old method", "new numbers", "its neighbours", "the winter"]
ASIDES = ["at last", "in short", "it seems", "without doubt", "as ever", "for once"]
Fields = dict[str, str]


def sentence(rng: np.random.Generator, aside: str) -> str:
    """One sentence; half of the time with the author's own aside."""
    words = [str(rng.choice(kind)) for kind in (SUBJECTS, VERBS, OBJECTS)]
    said = f"the {' '.join(words)}"
    return f"{aside}, {said}." if rng.random() < 0.5 else f"{said}."


def text(rng: np.random.Generator, aside: str, sentences: int) -> str:
    """Return a text of so many sentences."""
    return " ".join(sentence(rng, aside) for _ in range(sentences))


def line(rng: np.random.Generator, aside: str) -> str:
    """Return a title: a sentence without its full stop."""
    return sentence(rng, aside).rstrip(".")


def headline(rng: np.random.Generator, aside: str) -> Fields:
    """Return a profile item of LaMP-4."""
    return {"text": text(rng, "today", 4), "title": line(rng, aside)}


def paper(rng: np.random.Generator, aside: str) -> Fields:
    """Return a profile item of LaMP-5."""
    return {"abstract": text(rng, "here", 4), "title": line(rng, aside)}


def abstract(rng: np.random.Generator, aside: str) -> Fields:
    """Return a profile item of LongLaMP-abstract."""
    return {"title": line(rng, "on this"), "abstract": text(rng, aside, 8)}


def review(rng: np.random.Generator, aside: str) -> Fields:
    """Return a profile item of LongLaMP-review."""
    return {
        "overall": f"{rng.integers(1, 6)}.0",
        "description": text(rng, "new", 3),
        "summary": line(rng, aside),
        "reviewText": text(rng, aside, 8),
    }


def post(rng: np.random.Generator, aside: str) -> Fields:
    """Return a profile item of LongLaMP-topic."""
    return {"summary": line(rng, "about this"), "content": text(rng, aside, 8)}


MAKERS: dict[str, Callable[[np.random.Generator, str], Fields]] = {
    "LaMP-4": headline,
    "LaMP-5": paper,
    "LongLaMP-abstract": abstract,
    "LongLaMP-review": review,
    "LongLaMP-topic": post,
}


def authors(task: str) -> list[tuple[str, list[Fields]]]:
    """Return users with their items, the last of which is asked for."""
    found = []
    for number in range(USERS):
        rng = numpy_generator(0, "stand-in", task, number)
        aside = ASIDES[number % len(ASIDES)]
        items = [MAKERS[task](rng, aside) for _ in range(ITEMS)]
        dated = [
            {**item, FORMS[task].date: f"20{10 + year}"}
            for year, item in enumerate(items)
        ]
        found.append((f"{STAND_IN}{number:03d}", dated))
    return found


def asked(task: str, item: Fields) -> tuple[str, str]:
    """Return the published question about an item, and its answer."""
    form = FORMS[task]
    if not form.template:
        return form.question + item[form.source], item[form.answer]
    question = form.template.format(**item)
    if form.stop:  # phrases of the abstract, which profiles do not have
        question += f" using the following items: 1. {item[form.answer].split('.')[0]}"
    return question, item[form.answer]


def write_lamp(task: str, folder: Path) -> None:
    """Write questions and outputs of a task of LaMP, split by user."""
    questions, golds = [], []
    for name, items in authors(task):
        question, answer = asked(task, items[-1])
        profile = [{"id": f"{name}-{k}", **item} for k, item in enumerate(items[:-1])]
        questions.append({"id": name, "input": question, "profile": profile})
        golds.append({"id": name, "output": answer})
    outputs = {"task": task.replace("-", "_"), "golds": golds}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dev_questions.json").write_text(json.dumps(questions))
    (folder / "dev_outputs.json").write_text(json.dumps(outputs))


def write_longlamp(task: str, folder: Path) -> None:
    """Write rows of a task of LongLaMP, split by user."""
    kind, user = PUBLISHED[task]
    rows: list[dict[str, Any]] = []
    for name, items in authors(task):
        question, answer = asked(task, items[-1])
        row = {user: name, "input": question, "output": answer, "profile": items[:-1]}
        rows.append(row)
    place = folder / f"{kind}_user"
    place.mkdir(parents=True, exist_ok=True)
    (place / "test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def main() -> None:
    """Write everything, and say how it is run."""
    parser = argparse.ArgumentParser(description="Stand-ins for study `paper`.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.absolute()
    data, models = folder / "data", folder / "models"
    for task in MAKERS:
        if task in PUBLISHED:
            write_longlamp(task, data / "LongLaMP")
        else:
            write_lamp(task, data / task)
    shutil.copytree(TINY, models / MODEL, dirs_exist_ok=True)
    words = [
        "idiolect-server",
        "study",
        str(STUDY),
        "--output-dir",
        str(folder / "out"),
    ]
    words += [word for key in KEYS for word in ("-c", key)]
    print(f"export IDIOLECT_DATA={shlex.quote(str(data))}")
    print(f"export IDIOLECT_MODELS={shlex.quote(str(models))}")
    print(shlex.join(words))


if __name__ == "__main__":
    main()
