"""One entrance to all data: personas, official LaMP files, OPPU-shaped files."""

import json
from collections import Counter
from functools import lru_cache
from pathlib import Path

from ..config import LONGEST_NAME, Config
from ..errors import IdiolectError, explained, refuse_if
from . import lamp, metrics
from .cleaning import clean, read_text
from .lamp.forms import FORMS
from .types import Dataset, Item, Prompt, Task

# What an owner keeps on a device has no fixed shape.
TEXT = Task("text", "generation", max_new_tokens=64)


@lru_cache(maxsize=4)
def load_dataset(config: Config) -> Dataset:
    """Users, development users and public text of a run; kept in memory per config.

    Raises
    ------
    IdiolectError
        Task and ``data`` do not go together, the data are malformed, or there are fewer
        users than asked for.
    """
    refuse_if(
        config.task == TEXT.name,
        "task 'text' is what an owner keeps on a device (`idiolect import`); there is "
        "nothing to simulate: set 'task' to headline or to a LaMP task.",
    )
    if config.task in FORMS:
        refuse_if(
            not config.data,
            f"task '{config.task}' reads real data but 'data' is empty: download "
            "the official files (docs/data.md says where) and set data=FOLDER, or "
            "use a personas task such as task=headline.",
        )
        _check_meteor(config)
        dataset = lamp.read(config)
        check(dataset)
        return dataset
    refuse_if(
        config.data,
        f"task '{config.task}' is made of personas and reads no files, but "
        f"'data' is {config.data!r}: leave 'data' empty, or set 'task' to the "
        "LaMP task of these files, such as task=LaMP-4.",
    )
    from . import personas  # only here, because real data never need the generator

    return personas.make(config)


def _check_meteor(config: Config) -> None:
    """Refuse a metric whose data are not there, before anything is read."""
    asked, long = config.evaluate, FORMS[config.task].task.kind == "long"
    if long and asked.generate and asked.meteor == metrics.WORDNET:
        gone = metrics.wordnet_missing()
        refuse_if(
            gone,
            f"evaluate.meteor=wordnet needs nltk's data {' and '.join(gone)}: install them "
            f"with `python -m nltk.downloader {' '.join(gone)}`, or set "
            "evaluate.meteor=stems, which has no synonyms.",
        )


def task_of(name: str) -> Task:
    """Return the task that a config names."""
    if name in FORMS:
        return FORMS[name].task
    if name == TEXT.name:
        return TEXT
    from . import personas

    return personas.WORLDS[name].task


def check(dataset: Dataset) -> None:
    """Refuse a dataset that a run could not use.

    Raises
    ------
    IdiolectError
        A user's name appears twice or cannot be used, or a user has
        nothing to learn from or nothing to be measured on.
    """
    users = dataset.everybody
    for name, count in Counter(user.id for user in users).items():
        refuse_if(
            count > 1,
            f"user '{name}' appears {count} times: give every user one record.",
        )
    for user in users:
        refuse_if(
            not 0 < len(user.id) <= LONGEST_NAME or clean(user.id) != user.id,
            f"user {user.id!r:.120} has no usable id: use 1 to {LONGEST_NAME} "
            "characters, without control characters and with single blanks.",
        )
        if not user.history or not user.held_out:
            lacking = "held-out items" if user.history else "history"
            raise IdiolectError(
                f"user '{user.id}' has no {lacking}: add items, or remove the user."
            )


def public_items(path: str | Path) -> tuple[Item, ...]:
    """Read public text for ``unlabeled.file``: JSON lines of ``{"prompt", "target"}``.

    Blank lines are skipped. The whole prompt is the part that may be shortened.

    Raises
    ------
    IdiolectError
        The file is missing, unreadable or empty, or a line is not such an object.
    """
    path = Path(path).expanduser()
    lines = read_text(path, "unlabeled.file").split("\n")
    items = [
        _public_item(f"{path.name}, line {number}", f"public/{number}", line)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    refuse_if(
        not items,
        f"{path} holds no items: write one JSON object with prompt and target per "
        "line.",
    )
    return tuple(items)


def _public_item(place: str, name: str, line: str) -> Item:
    how = 'write {"prompt": "…", "target": "…"}'
    with explained(f"{place}: not JSON", how, (ValueError, RecursionError)):
        record = json.loads(line)
    texts: dict[str, str] = {}
    for field in ("prompt", "target"):
        value = record.get(field) if isinstance(record, dict) else None
        texts[field] = clean(value) if isinstance(value, str) else ""
        refuse_if(
            not texts[field],
            f"{place}: field '{field}' is missing, empty or no text: {how}.",
        )
    return Item(name, Prompt("", texts["prompt"]), texts["target"])
