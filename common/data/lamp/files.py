"""Files of LaMP data: the official ones, and the shape of OPPU; one record per user."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import IdiolectError, refuse_if, words_of
from ..cleaning import read_text
from .forms import FORMS

logger = logging.getLogger(__name__)


def records(path: Path, task: str) -> tuple[str, list[Any]]:
    """Return the name of the source, and one unchecked record per user in OPPU's shape."""
    path = _find(path)
    name, records = path.name, _list(path)
    official = path.name.endswith("_questions.json")
    beside = _outputs(path) if official else path.with_name(f"{path.stem}_label.json")
    if official or beside.is_file():
        name = f"{path.name} with {beside.name}"
        golds = _golds(beside, task if official else None)
        records = _grouped(records, golds) if official else _labelled(records, golds)
    logger.info("%s: %d users from %s", task, len(records), path)
    return name, records


def _find(path: Path) -> Path:
    """Return the file with questions or the OPPU file: `path`, or the one in the folder."""
    if path.is_file():
        return path
    refuse_if(
        not path.is_dir(),
        f"there is no file or folder {path}: set 'data' to the folder with the "
        "LaMP files (docs/data.md says where to get them).",
    )
    parts = [path / f"{part}_questions.json" for part in ("dev", "train", "test")]
    official = [questions for questions in parts if questions.is_file()]
    for questions in official:
        if _outputs(questions).is_file():
            return questions
    shaped = sorted({*path.glob("*users.json"), *path.glob("user_*_history.json")})
    if len(shaped) == 1:
        return shaped[0]
    refuse_if(
        shaped,
        f"{path} holds {' and '.join(p.name for p in shaped)}: set 'data' to one "
        "of these files.",
    )
    if official:
        raise IdiolectError(
            f"{official[0].name} in {path} has no "
            f"{_outputs(official[0]).name} beside it: put the file with the outputs "
            "there (LaMP keeps those of its test split to itself)."
        )
    raise IdiolectError(
        f"{path} holds neither dev_questions.json with dev_outputs.json nor a file "
        "*users.json: set 'data' to the folder of one LaMP task (see docs/data.md)."
    )


def _outputs(questions: Path) -> Path:
    return questions.with_name(questions.name.replace("_questions", "_outputs"))


def _json(path: Path) -> Any:
    text = read_text(path, "data")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise IdiolectError(
            f"{path} is not JSON: line {error.lineno}, column {error.colno}: "
            f"{error.msg}; repair the file or download it again."
        ) from None
    except (RecursionError, ValueError) as error:  # nested too deeply, too many digits
        raise IdiolectError(
            f"{path} cannot be read as JSON ({words_of(error)}): download it again."
        ) from None


def _list(path: Path) -> list[Any]:
    records = _json(path)
    refuse_if(
        not isinstance(records, list),
        f"{path} is not a list of users: see docs/data.md for the two shapes.",
    )
    return records


def _golds(path: Path, task: str | None) -> dict[str, Any]:
    """Question id -> output, from ``{"task", "golds": [{"id", "output"}]}``."""
    content = _json(path)
    golds: Any = content.get("golds") if isinstance(content, dict) else None
    refuse_if(
        not isinstance(golds, list),
        f"{path} has no list 'golds': see docs/data.md for the official shape.",
    )
    named = str(content.get("task", "")).replace("_", "-")
    named = "LaMP-2" if named == "LaMP-2M" else named  # as OPPU calls the movies
    # The news form of LaMP-2 was first published under the name of the movies.
    own = {task, "LaMP-2"} if task == "LaMP-2N" else {task}
    refuse_if(
        task and named and named not in own,
        f"{path} holds {named}, but the config says {task}: set task={named}."
        if named in FORMS
        else f"{path} holds '{named}', not {task}: set 'data' to other files.",
    )
    for index, gold in enumerate(golds):
        refuse_if(
            not isinstance(gold, dict) or "id" not in gold,
            f"{path}: golds[{index}] has no field 'id': repair the file or "
            "download it again.",
        )
    return {str(gold["id"]): gold.get("output") for gold in golds}


def _grouped(questions: Sequence[Any], golds: dict[str, Any]) -> list[Any]:
    """Return official questions as one record per user.

    In the user-based files each question is a user. The time-based files name the user, who
    may have several questions; the profile of the first one is used, as in LaMP's own
    per-user training.
    """
    users: dict[str, Any] = {}
    for index, question in enumerate(questions):
        if not isinstance(question, dict):
            users[f"\0{index}"] = question
            continue
        name = question.get("user_id", question.get("id"))
        record = users.setdefault(
            f"\0{index}" if name is None else str(name),
            {"user_id": name, "profile": question.get("profile"), "query": []},
        )
        query = {key: question.get(key) for key in ("id", "input")}
        record["query"].append({**query, "gold": golds.get(str(query["id"]))})
    return list(users.values())


def _labelled(records: list[Any], golds: dict[str, Any]) -> list[Any]:
    """Return OPPU's evaluation records with the golds of the label file filled in."""
    for record in records:
        queries = record.get("query") if isinstance(record, dict) else None
        for query in queries if isinstance(queries, list) else ():
            if isinstance(query, dict):
                query.setdefault("gold", golds.get(str(query.get("id"))))
    return records
