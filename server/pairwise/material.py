"""What is compared: outputs that a simulation kept, and its users' own texts.

A simulation without privacy keeps what methods wrote (`client/node/state.py`). Nobody
else's texts come here: not those of devices, not those of a run that hides its users.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.config import Config
from ...common.data.load import load_dataset
from ...common.data.metrics import answer_of
from ...common.data.types import Task
from ...common.errors import IdiolectError, refuse_if
from ...common.text import printable
from ..run import results
from ..run.checkpoint import read_config
from ..run.entry import identity_of
from .question import Pair

FOLDER = "texts"


@dataclass(frozen=True)
class Material:
    """A finished simulation and what it kept.

    Attributes
    ----------
    folder, results
        Where it is, and its ``results.json``.
    written
        Method -> user -> list of {prompt, reference, output}.
    own
        User -> texts of the history, the oldest first.
    """

    folder: Path
    results: Mapping[str, Any]
    written: Mapping[str, Mapping[str, Sequence[Mapping[str, str]]]]
    own: Mapping[str, Sequence[str]]


def material(output_dir: str, name: str) -> Material:
    """Read a run.

    Raises
    ------
    IdiolectError
        It is no finished simulation, it kept no outputs, outputs are labels, or its data
        are not what they were.
    """
    study = results.runs_folder(output_dir).parent / "studies" / name
    is_study = "/" not in name and (study / "cells").is_dir()
    refuse_if(
        is_study and not (results.runs_folder(output_dir) / name).is_dir(),
        f"'{printable(name)}' is a study, and studies keep no outputs: run the cell in "
        "question by `idiolect-server simulate` with its keys, and judge that run.",
    )
    folder = results.find(output_dir, name)
    found = results.load(output_dir, name)
    try:
        config = read_config(folder)
    except (OSError, ValueError) as error:
        raise IdiolectError(
            f"run '{folder.name}' has no readable config.toml: judge a run that this "
            "version made."
        ) from error
    refuse_if(
        config.on_devices or not found["run"].get("simulation"),
        f"run '{folder.name}' is of people's devices, or protects its users: only outputs "
        "of a simulation without privacy can be judged.",
    )
    written = _written(folder, found["users"])
    refuse_if(
        not written,
        f"run '{folder.name}' kept no outputs: simulate with evaluate.generate=true and "
        "without privacy (evaluate.users says for how many users).",
    )
    own, task = _own(config, found, folder.name)
    refuse_if(
        task.kind not in ("generation", "long"),
        f"outputs of task '{task.name}' are labels or numbers, and their metrics say all "
        "about them: judge a run whose outputs are texts.",
    )
    return Material(folder, found, _as_measured(written, task), own)


def _written(folder: Path, users: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Read the files that a simulation kept; one that is damaged counts as not there."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / FOLDER).glob("*/*.json")):
        try:
            one = json.loads(path.read_text())
            items = [
                {key: str(item[key]) for key in ("prompt", "reference", "output")}
                for item in one["items"]
            ]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if one.get("user") in users and items:
            found.setdefault(path.parent.name, {})[one["user"]] = items
    return found


def _as_measured(written: Mapping[str, Any], task: Task) -> dict[str, dict[str, Any]]:
    """Leave of outputs what the other metrics see (`metrics.answer_of`)."""
    return {
        method: {
            user: [{**one, "output": answer_of(task, one["output"])} for one in items]
            for user, items in users.items()
        }
        for method, users in written.items()
    }


def _own(
    config: Config, found: Mapping[str, Any], name: str
) -> tuple[dict[str, list[str]], Task]:
    """Read the data again; refuse others than the run's."""
    dataset = load_dataset(config)
    then = (found.get("identity") or {}).get("data")
    refuse_if(
        then != identity_of(config, dataset, "", {})["data"],
        f"the data of run '{name}' are not what they were when it ran: put them back, or "
        "run it again.",
    )
    own = {user.id: [item.target for item in user.history] for user in dataset.users}
    return own, dataset.task


def pairs_of(
    material: Material, one: str, other: str, items: int, own: int, reference: bool
) -> list[Pair]:
    """Return what is compared of two methods, the first prompts of all users first.

    Parameters
    ----------
    material, one, other
        The run, and its methods.
    items
        Prompts of each user, at most.
    own
        How many of the user's newest texts the judge sees.
    reference
        Whether it sees what the user wrote at the prompt.
    """
    both = (material.written[method] for method in (one, other))
    first, second = both
    users = [
        user for user in material.results["users"] if user in first and user in second
    ]
    return [
        Pair(
            user,
            k,
            a["prompt"],
            a["output"],
            b["output"],
            tuple(material.own.get(user, ())[-own:] if own else ()),
            a["reference"] if reference else "",
        )
        for k in range(items)
        for user in users
        for a, b in zip(first[user][k : k + 1], second[user][k : k + 1], strict=False)
        if a["prompt"] == b["prompt"]
    ]


def methods_of(material: Material, words: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of methods that are asked for; none: those the run compares.

    Raises
    ------
    IdiolectError
        A word is no pair of methods of which outputs were kept.
    """
    kept = [m for m in material.results["methods"] if m in material.written]
    if not words:
        found = results.pairs_of(kept)
        refuse_if(
            not found,
            f"run '{material.folder.name}' kept outputs of {', '.join(kept)} alone: judge "
            "a run with two methods.",
        )
        return found
    found = []
    for word in words:
        one, _, other = (part.strip() for part in word.partition(","))
        refuse_if(
            one not in kept or other not in kept or one == other,
            f"--pairs {printable(word, 200)} names no two methods with outputs: take two "
            f"of {', '.join(kept)}, with a comma between them.",
        )
        found.append((one, other))
    return list(dict.fromkeys(found))
