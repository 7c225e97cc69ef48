"""One value of a configuration: its type, its range, and the sentence that refuses it."""

import difflib
import math
from typing import cast

from ..errors import IdiolectError, refuse_if
from ..text import printable
from .keys import FIELDS, LONGEST, LONGEST_NAME, MOST_INT, Scalar

_TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def check(name: str, value: object) -> Scalar:
    """Return the value in its declared type, or say what is wrong with it."""
    entry = FIELDS.get(name)
    if entry is None:
        near = difflib.get_close_matches(name[:LONGEST_NAME], FIELDS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "see docs/configuration.md."
        raise IdiolectError(f"unknown config key '{printable(name, 80)}': {hint}")
    wanted = type(entry.default)
    # Within these bounds only: what no float holds is out of range as it is.
    if wanted is float and type(value) is int and abs(value) <= MOST_INT:
        value = float(value)
    number = type(value) in (int, float) and wanted in (int, float)
    low, high = entry.metadata["low"], entry.metadata["high"]
    endless = type(value) is float and value == math.inf and entry.metadata["infinite"]
    if number and not (low <= cast(float, value) <= high or endless):
        raise refused(name, value, f"it must lie in [{low:g}, {high:g}]")
    if type(value) is not wanted:
        raise IdiolectError(
            f"config key '{name}' takes {_TYPES[wanted]}, not {quoted(value)}: "
            f"{entry.metadata['help']}."
        )
    if isinstance(value, str):
        return check_text(name, value, choices=entry.metadata["choices"])
    return cast(Scalar, value)


def check_text(
    name: str, value: str, *, choices: tuple[str, ...] = (), longest: int = LONGEST
) -> str:
    """Return a text, if it is valid Unicode, not too long, and one of the choices."""
    refuse_if(
        len(value) > longest,
        f"config key '{name}' has {len(value)} characters: at most {longest} are "
        "allowed.",
    )
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates
        raise refused(name, value, "it is not valid Unicode text") from None
    if choices and value not in choices:
        listed = ", ".join(filter(None, choices))
        raise refused(name, value, f"use one of {listed}")
    return value


def refused(name: str, value: object, why: str) -> IdiolectError:
    """Say why one key cannot have its value."""
    return IdiolectError(f"config key '{name}' is {quoted(value)}: {why}.")


def quoted(value: object) -> str:
    """Return a value as a sentence quotes it, whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python writes
        return "something that cannot be written down"
    return printable(text if len(text) <= 80 else text[:79] + "…", 80)
