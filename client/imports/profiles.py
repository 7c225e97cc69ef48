"""LaMP files and files in OPPU's shape: a user's profile and answered questions."""

from collections.abc import Iterator
from pathlib import Path

from ...common.data.lamp import everything
from ...common.data.lamp.forms import FORMS
from ...common.data.lamp.items import EMPTY
from ...common.errors import refuse_if
from .rows import Bad, Left, Row

# An item without text says nothing about its user, who stays.
_LEFT = (EMPTY, "missing field", "missing gold", "empty text")
_COLUMNS = (
    ("text", "profile and gold"),
    ("prompt", "profile and input"),
    ("date", "date"),
)


def read_profiles(path: Path, task: str) -> Iterator[Row | Left | Bad]:
    """Everybody's items, as the task's questions and answers (docs/data.md).

    Raises
    ------
    IdiolectError
        There is no such task; the files are missing, not JSON, or of another task.
    """
    refuse_if(task not in FORMS, f"--task must be one of {', '.join(FORMS)}.")
    for one in everything(path, task):
        place = f"{path.name}, user '{one.user}', {one.place}"
        what, reason = one.problem
        if one.item is not None:
            prompt, text = one.item.prompt, one.item.target
            yield Row(place, prompt, text, None, one.date, one.user, _COLUMNS)
        elif reason in _LEFT:
            yield Left("items without text or answer")
        else:
            yield Bad(place, f"cannot be read: {what}", reason, who=one.user)
