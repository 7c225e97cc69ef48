"""What a page is made of, and how numbers and texts are written on it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

ABSENT = "not available"
MOST_ROWS = 200  # of one table; a page stays small whatever a run holds


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows.

    Attributes
    ----------
    caption, heads, rows
        Its texts; every row has as many cells as there are heads.
    folded
        Whether it is shown only when the reader opens it (and in print).
    numbers
        Whether all columns but the first hold numbers, and are aligned so.
    note
        A sentence below it: what was left out.
    """

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False
    numbers: bool = True
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A picture, with the table that holds the same numbers.

    `svg` is markup of `pictures`; empty where pictures cannot be drawn.
    """

    title: str
    svg: str
    table: Table


@dataclass(frozen=True)
class Section:
    """A part of the page: sentences, figures side by side, tables, commands.

    `lead` is its most important sentence, `texts` are samples of text (`Sample`).
    """

    id: str
    title: str
    lead: str = ""
    sentences: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    listed: Sequence[str] = ()
    command: str = ""
    samples: Sequence["Sample"] = ()


@dataclass(frozen=True)
class Sample:
    """One prompt, the user's own text, and what each method wrote."""

    title: str
    prompt: str
    reference: str
    outputs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Page:
    """All that is written into the template."""

    title: str
    line: str
    sections: Sequence[Section]


def table(
    caption: str, heads: Sequence[str], rows: Iterable[Sequence[Any]], **more: Any
) -> Table:
    """Make a table of at most `MOST_ROWS` rows; the caption's note counts the others."""
    every = [tuple(map(str, row)) for row in rows]
    if (left := len(every) - MOST_ROWS) > 0:
        more["note"] = f"The first {MOST_ROWS} rows; {left} more are left out here."
    return Table(caption, heads, every[:MOST_ROWS], **more)


def finite(value: Any) -> Any:
    """Return a JSON-like value with None in place of numbers that are not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return value


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def number(value: Any, form: str = ".3f") -> str:
    """Write a number, or that there is none."""
    return format(value, form) if is_number(value) else ABSENT


def interval(entry: Any, signed: bool = False) -> str:
    """Write the interval of a mean, or that it has none."""
    form = "+.3f" if signed else ".3f"
    ends = entry.get("ci95") if isinstance(entry, dict) else None
    if not (isinstance(ends, list) and len(ends) == 2 and all(map(is_number, ends))):
        return ABSENT
    return f"{ends[0]:{form}} to {ends[1]:{form}}"


def has_mean(entry: Any) -> bool:
    """Whether an entry of `results.by_method` has a mean."""
    return isinstance(entry, dict) and is_number(entry.get("mean"))


def ends_of(entry: Any) -> tuple[float, float] | None:
    """Return the ends of an entry's interval, or None."""
    return None if interval(entry) == ABSENT else (entry["ci95"][0], entry["ci95"][1])


def clear_of_zero(entry: Any) -> bool:
    """Whether the interval of a difference does not contain zero."""
    ends = ends_of(entry)
    return ends is not None and (ends[0] > 0 or ends[1] < 0)


def short(text: str, most: int = 28) -> str:
    """Shorten a name for a picture; the table beside it has all of it."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
