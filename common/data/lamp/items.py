"""One entry of a user's record as an item: prompt, target, date.

Source: Salemi and Zamani 2024 (how a profile item becomes a pair).
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ...config import LONGEST_NAME
from ..cleaning import clean, missing
from ..dates import oldest_first, order_of, seconds
from ..types import Item, Prompt
from .forms import Form

EMPTY = "history items without text"
UNDATED = "histories in file order, since an item has no date"


class BadUserError(Exception):
    """A user's record cannot be used: the reason to count it under, and the detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def bad_if(wrong: object, reason: str, detail: str) -> None:
    """Raise a `BadUserError` where something is wrong."""
    if wrong:
        raise BadUserError(reason, detail)


def name_of(record: Any) -> str:
    """Return the user's name in a record."""
    bad_if(
        not isinstance(record, dict), "wrong type", "the record is not a JSON object"
    )
    name = _field(record, "user_id", "user_id")
    if isinstance(name, float) and name.is_integer():  # as data frames write integers
        name = int(name)
    bad_if(
        isinstance(name, bool) or not isinstance(name, str | int),
        "wrong type",
        "field 'user_id' is not a text or number",
    )
    name = clean(str(name))
    bad_if(
        not 0 < len(name) <= LONGEST_NAME,
        "unusable id",
        f"field 'user_id' has {len(name)} characters, and 1 to {LONGEST_NAME} are "
        "possible",
    )
    return name


def entries_of(record: dict[str, Any], name: str) -> list[Any]:
    """Return a list in a record: ``profile`` or ``query``."""
    return _field(record, name, name, list, "a list")


def question(entry: Any, place: str, user: str, form: Form) -> Item:
    """Return a question and its gold output."""
    name = _field(entry, "id", f"{place}.id")
    question = _text(entry, "input", place)
    bad_if(
        entry.get("gold") is None,
        "missing gold",
        f"{place} (id '{name}') has no gold output",
    )
    gold = _answer(entry, "gold", place, form)
    if not question or not gold:
        field = "gold" if question else "input"
        raise BadUserError("empty text", f"field '{place}.{field}' is empty")
    return Item(f"{user}/query/{name}", _split(question, form), gold)


def profile_items(
    record: dict[str, Any], user: str, form: Form
) -> tuple[list[Item], Counter[str]]:
    """Return history pairs, oldest first, and counts of what was left out."""
    entries = entries_of(record, "profile")
    pairs: list[Item] = []
    dates: dict[str, Any] = {}
    for index, entry in enumerate(entries):
        place = f"profile[{index}]"
        if _is_missing(entry):
            continue
        if isinstance(entry, dict):  # an item with a missing value is left out
            entry = {
                k: "" if _is_missing(value) else value for k, value in entry.items()
            }
        prompt, target = pair(entry, place, form)
        if prompt.input and target:
            pairs.append(Item(f"{user}/profile/{index}", prompt, target))
            dates[f"{place}.{form.date}"] = entry.get(form.date)
    given = {place: date for place, date in dates.items() if not _is_missing(date)}
    found = _seconds(given)
    if len(found) == len(pairs):
        pairs = [pairs[place] for place in oldest_first(found)]
    undated = 0 < len(found) < len(pairs)
    return pairs, Counter({EMPTY: len(entries) - len(pairs), UNDATED: undated})


def _is_missing(value: Any) -> bool:
    """Whether a value is null, NaN or empty."""
    return missing(value) or value == ""


def is_hollow(question: Any) -> bool:
    """Whether a question has no text or no answer."""
    if not isinstance(question, dict):
        return _is_missing(question)
    both = (question.get("input"), question.get("gold"))
    return any(_is_missing(v) or (isinstance(v, str) and not clean(v)) for v in both)


def pair(entry: Any, place: str, form: Form) -> tuple[Prompt, str]:
    """Return prompt and target of a profile item, in the form of the task's questions."""
    text = _text(entry, form.source, place)
    if form.template:
        fields = {name: _said(entry, name, place) for name in form.others}
        before, after = form.filled(fields)
        answer = _answer(entry, form.answer, place, form)
        return Prompt(before, text, after + form.cue), answer
    if form.answer:
        cue = f" {form.answer}:" if form.history else form.cue
        answer = _answer(entry, form.answer, place, form)
        return Prompt(form.history or form.question, text, cue), answer
    # A tweet has no answer: its first sixth is the prompt, the rest the target. The authors
    # of LaMP draw a tenth to a quarter at random; a sixth is about their mean.
    words = text.split()
    start = max(1, len(words) // 6)
    return Prompt(form.history, " ".join(words[:start])), " ".join(words[start:])


def _split(question: str, form: Form) -> Prompt:
    """Split a question into instruction and text; of an unknown wording all is text."""
    end = question.rfind(form.stop) if form.stop else len(question)
    start = len(form.question)
    known = form.question and question.startswith(form.question)
    if not known or end <= start:
        found = re.match(form.wording, question, re.IGNORECASE)
        if found is None:
            return Prompt("", question, form.cue)
        start, end = found.span("input")
        end = start + len(question[start:end].rstrip())
    return Prompt(question[:start], question[start:end], question[end:] + form.cue)


def _field(
    entry: Any, name: str, place: str, kind: type = object, words: str = ""
) -> Any:
    if not isinstance(entry, dict):
        owner = place.rpartition(".")[0]
        raise BadUserError("wrong type", f"{owner} is not a JSON object")
    value = entry.get(name)
    bad_if(value is None, "missing field", f"field '{place}' is missing")
    bad_if(not isinstance(value, kind), "wrong type", f"field '{place}' is not {words}")
    return value


def _text(entry: Any, name: str, place: str) -> str:
    return clean(_field(entry, name, f"{place}.{name}", str, "a text"))


def _said(entry: Any, name: str, place: str) -> str:
    """Return a field that is a text or a number, as text; a rating of 5.0 is "5.0"."""
    value = _field(entry, name, f"{place}.{name}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        why = f"field '{place}.{name}' is neither a text nor a number"
        raise BadUserError("wrong type", why)
    return clean(value)


def _answer(entry: Any, name: str, place: str, form: Form) -> str:
    """Return y: a text, or one of the task's labels (4 and 4.0 are "4")."""
    # History pairs of LaMP-1 have texts, although its questions have labels.
    if not form.task.labels or (form.history and name == form.answer):
        return _text(entry, name, place)
    value = _field(entry, name, f"{place}.{name}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = f"{value:g}" if isinstance(value, float) else str(value)
    if not isinstance(value, str):
        raise BadUserError("wrong type", f"field '{place}.{name}' is not a label")
    label, known = clean(value), form.task.labels
    if label and label not in known:
        why = f"field '{place}.{name}' is {label!r}, not one of {', '.join(known)}"
        raise BadUserError("unknown label", why)
    return label


def _seconds(dates: Mapping[str, Any]) -> list[float]:
    """Return the dates of a profile as numbers; a date that cannot be read is an error."""
    place, found = "a date of 'profile'", list[float]()
    try:
        order = order_of(dates.values())
        for field, date in dates.items():
            place = f"field '{field}' is {str(date)!r:.40}"
            found.append(seconds(date, order))
    except ValueError as error:
        raise BadUserError("unreadable date", f"{place}: {error}") from None
    return found
