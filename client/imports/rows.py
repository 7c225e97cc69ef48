"""What a reader finds in a file, before it is checked: rows, and what is not a row."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from ...common.data.cleaning import DAMAGED, missing, repaired
from ..owner.history import CONTROL, LONGEST, clean

# What a messenger writes in the place of a picture, in texts that passed through its app.
_OMITTED = re.compile("\u200e\\w[\\w ]{2,20} omitted")


@dataclass(frozen=True)
class Row:
    """One pair as a file has it.

    Attributes
    ----------
    place
        File and line, for a sentence about it.
    prompt, target
        As they were found; must turn out to be text.
    liked
        As it was found; None: nothing is said.
    date
        As it was found; None: there is none.
    who
        Who wrote it; None: the file does not say.
    columns
        What was read: what it was taken for, and the column's name in the file.
    ignored
        Names of the columns that were not read.
    changed
        What of it was not read, though its column was.
    key
        Sets apart two people of one name, where the file does; empty: their names do.
    """

    place: str
    prompt: Any
    target: Any
    liked: Any = None
    date: Any = None
    who: str | None = None
    columns: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()
    key: str = ""
    changed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Left:
    """Something of a kind that is not a pair of the owner's: left out, and counted."""

    reason: str
    number: int = 1


@dataclass(frozen=True)
class Owner:
    """The file itself says whose it is."""

    name: str


@dataclass(frozen=True)
class Bad:
    """A row that cannot be read: it stops the import, unless such rows are skipped."""

    place: str
    what: str
    reason: str
    hint: str = "correct it"
    who: str = ""  # whose it is, where the file has several people's


class TextError(ValueError):
    """A text that cannot be kept: what is wrong with it, and the reason to count it by."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(what)
        self.reason = reason


def wrong(place: str, error: TextError) -> Bad:
    """A row with a text that cannot be kept."""
    return Bad(f"{place}:", str(error), error.reason)


def tidy(value: Any, name: str) -> tuple[str, tuple[str, ...]]:
    """Return a text as it is kept, and what was changed in it.

    UTF-8 that was once read as another encoding is repaired: "cafÃ©" is "café". This
    comes first, since wrong decoding leaves control characters, which are removed later.

    Raises
    ------
    TextError
        It is not text, is too long, or is damaged beyond repair.
    """
    if missing(value):
        return "", ()
    if not isinstance(value, str):
        raise TextError(f"{name} must be text, not {value!r:.40}", "no text")
    if len(value) > LONGEST:
        raise TextError(
            f"{name} has {len(value)} characters, and {LONGEST} are allowed", "too long"
        )
    text = repaired(value)
    same = text == value or text == value.replace("\x85", "\n")
    changed = () if same else ("repaired, after a wrong decoding",)
    if found := DAMAGED.search(text):
        start = max(0, found.start() - 10)
        raise TextError(
            f"{name} was decoded wrongly ({text[start : start + 20]!a}) and cannot be "
            "repaired",
            "wrongly decoded",
        )
    if CONTROL.search(text):
        changed += ("control characters removed",)
    return "" if _OMITTED.fullmatch(text.strip()) else clean(text), changed


def liked(value: Any, name: str) -> bool:
    """Read a verdict; nothing said is liked.

    Raises
    ------
    TextError
        It is neither.
    """
    word = "" if missing(value) else str(value).strip().casefold()
    if word in ("", "true", "1", "1.0", "yes", "y", "t", "like", "liked", "up"):
        return True
    if word in ("false", "0", "0.0", "no", "n", "f", "dislike", "disliked", "down"):
        return False
    raise TextError(f"{name} must be true or false, not {value!r:.40}", "no verdict")


def folded(name: str) -> str:
    """A name as two people's names are compared."""
    return " ".join(unicodedata.normalize("NFC", clean(name)).split()).casefold()
