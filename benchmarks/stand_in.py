"""Invented data and a small model, where study `paper` looks for the real ones.

    python benchmarks/stand_in.py FOLDER

Writes FOLDER/data with LaMP-4, LaMP-5 and the three tasks of LongLaMP as they are published
(questions and outputs; one row per question in JSON lines), and FOLDER/models with the
built-in model under the name of Mistral-7B-Instruct-v0.3. Then prints the commands that run
the study on them. The texts are those of personas, so the numbers say that the study runs,
and nothing else. The study's page knows that by the users' names (`STAND_IN`) and
by the number of the model's parameters.
"""

import argparse
import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from idiolect.common.config import parse
from idiolect.common.data.lamp.forms import FORMS
from idiolect.common.data.lamp.longlamp import PUBLISHED
from idiolect.common.data.load import load_dataset
from idiolect.common.data.types import STAND_IN
from idiolect.common.engine.model_folder import TINY

USERS, ITEMS = 8, 9  # of each user the last item is asked for
PARTS = 4  # texts of a persona in one item
TASKS = ("LaMP-4", "LaMP-5", *PUBLISHED)
MODEL = "Mistral-7B-Instruct-v0.3"
STUDY = Path(__file__).resolve().parents[1] / "simulations/lamp/experiments/paper.toml"
# What is smaller than in the study.
KEYS = (
    "users=2",
    "development-users=2",
    "history=4",
    "engine.dtype=float32",
    "engine.max-length=320",
    "adapt.rounds=1",
)
Fields = dict[str, str]
People = Sequence[tuple[str, Sequence[Fields]]]
"""Users with the items of their profiles, the last of which is asked for."""


def authors(task: str) -> list[tuple[str, list[Fields]]]:
    """Return personas as users of a task."""
    given = {"users": USERS, "development-users": 0, "held-out": 1}
    given |= {"history": ITEMS * PARTS - 1, "seed": list(FORMS).index(task)}
    found: list[tuple[str, list[Fields]]] = []
    for number, user in enumerate(load_dataset(parse(given)).users):
        texts = [(i.prompt.input, i.target) for i in (*user.history, *user.held_out)]
        items = [
            item(task, k, texts[k * PARTS : (k + 1) * PARTS]) for k in range(ITEMS)
        ]
        found.append((f"{STAND_IN}{number:03d}", items))
    return found


def item(task: str, index: int, texts: Sequence[tuple[str, str]]) -> Fields:
    """Return one item of a profile, made of some articles and headlines of a persona."""
    articles, headlines = ([text[side] for text in texts] for side in (0, 1))
    made = {
        "LaMP-4": {"text": articles[0], "title": headlines[0]},
        "LaMP-5": {"abstract": " ".join(articles), "title": headlines[0]},
        "LongLaMP-abstract": {"title": headlines[0], "abstract": " ".join(articles)},
        "LongLaMP-review": {
            "overall": f"{1 + index % 5}.0",
            "description": articles[0],
            "summary": headlines[0],
            "reviewText": " ".join(headlines),
        },
        "LongLaMP-topic": {"summary": articles[0], "content": " ".join(headlines)},
    }
    dated = task not in ("LongLaMP-review", "LongLaMP-topic")  # as published
    when = {FORMS[task].date: f"{2001 + index}"} if dated else {}
    return {**made[task], **when}


def asked(task: str, item: Fields) -> tuple[str, str]:
    """Return the published question about an item, and its answer."""
    form = FORMS[task]
    if not form.template:
        return form.question + item[form.source], item[form.answer]
    question = form.template.format(**item)
    if form.stop:  # phrases of the abstract, which profiles do not have
        question += f" using the following items: 1. {item[form.answer].split('.')[0]}"
    return question, item[form.answer]


def write(people: People, task: str, data: Path) -> None:
    """Write the published files of a task into the folder that study `paper` reads."""
    if task in PUBLISHED:
        write_longlamp(people, task, data / "LongLaMP")
    else:
        write_lamp(people, task, data / task)


def write_lamp(people: People, task: str, folder: Path) -> None:
    """Write questions and outputs of a task of LaMP, split by user."""
    questions, golds = [], []
    for name, items in people:
        question, answer = asked(task, items[-1])
        profile = [{"id": f"{name}-{k}", **item} for k, item in enumerate(items[:-1])]
        questions.append({"id": name, "input": question, "profile": profile})
        golds.append({"id": name, "output": answer})
    outputs = {"task": task.replace("-", "_"), "golds": golds}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dev_questions.json").write_text(json.dumps(questions))
    (folder / "dev_outputs.json").write_text(json.dumps(outputs))


def write_longlamp(people: People, task: str, folder: Path) -> None:
    """Write rows of a task of LongLaMP, split by user."""
    kind, user = PUBLISHED[task]
    rows: list[dict[str, Any]] = []
    for name, items in people:
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
    for task in TASKS:
        write(authors(task), task, data)
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
