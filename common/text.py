"""Text of other processes and files: shown safely, and read from JSON and TOML.

Such text can have escape sequences, line breaks that forge a second line, and invisible or
reordering characters. So all text that is shown passes through here: `printable` for a part
of a line, `lines` for several lines, `tell` and `tell_json` instead of `print`, and `guard`
for a log.
"""

import codecs
import io
import json
import logging
import math
import shutil
import sys
import textwrap
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

# Joiners and the soft hyphen belong to words of several scripts and show nothing by
# themselves: they are left out. Everything else that does not print is marked.
_REPLACED = dict.fromkeys(map(ord, "\u00ad\u200c\u200d"))
# Other characters whose Unicode category is "space": they take up room and do no more.
_REPLACED |= dict.fromkeys(
    (0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000), " "
)
MARK = "\ufffd"
LONGEST = 500  # characters of somebody else's sentence
_ASCII = codecs.lookup("ascii")


def printable(text: str, longest: int = LONGEST) -> str:
    """Text for a part of one line: no control characters, no line breaks, not too long.

    Parameters
    ----------
    text
        From anywhere.
    longest
        Characters; the rest is cut off.

    Returns
    -------
    str
        Every character of it is printable in the sense of `str.isprintable`; what was
        not is U+FFFD.
    """
    text = text[:longest].translate(_REPLACED)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else MARK for c in text)


def lines(text: str) -> str:
    """Text of several lines: printable characters and line feeds, and nothing else."""
    parts = text.expandtabs(4).split("\n")
    return "\n".join(printable(part, len(part)) for part in parts)


def shown(value: Any) -> Any:
    """Return a JSON-like value in which every text and key is one printable line."""
    if isinstance(value, str):
        return printable(value, 10 * LONGEST)
    if isinstance(value, Mapping):
        return {shown(key): shown(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [shown(entry) for entry in value]
    return value


def tell(text: str, to: TextIO | None = None) -> None:
    """Print text that may quote anybody, at once."""
    print(lines(text), file=to or sys.stdout, flush=True)


def tell_pieces(pieces: Iterable[str]) -> str:
    """`tell` a text piece by piece, and return it; what is shown is the same."""
    text = shown = ""
    try:
        for piece in pieces:
            text += piece
            now = lines(text)
            print(now[len(shown) :], end="", flush=True)
            shown = now
    except BaseException:
        if shown:
            print(flush=True)
        raise
    print(flush=True)
    return text


def tell_sentence(text: str, to: TextIO | None = None) -> None:
    """`tell`, broken at a terminal between words: names and paths can be copied."""
    to = to or sys.stdout
    if to is not None and to.isatty():
        width = max(shutil.get_terminal_size().columns, 20)
        text = "\n".join(
            wrapped(line, width) if len(line) > width else line
            for line in lines(text).split("\n")
        )
    tell(text, to)


def wrapped(line: str, width: int) -> str:
    """Break a line between words, never inside one."""
    return textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)


def duration(seconds: float) -> str:
    """Return seconds as a person says them: ``42 s``, ``3 min``, ``1 h 5 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def tell_json(value: Any, indent: int | None = None) -> None:
    """Print a value as JSON of printable ASCII: nothing is lost, all else is escaped."""
    # `json` leaves DEL as it is.
    print(json.dumps(value, indent=indent).replace("\x7f", "\\u007f"), flush=True)


def make_encodable() -> None:
    """Let standard output and error take every character: what they lack becomes "?".

    What is read stays exact: ASCII is a part of UTF-8, so where ASCII was expected UTF-8
    is read.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    given = sys.stdin
    if isinstance(given, io.TextIOWrapper) and codecs.lookup(given.encoding) == _ASCII:
        given.reconfigure(encoding="utf-8", errors="strict")


class Printable(logging.Filter):
    """Lets through what it logs without anything that a terminal would obey."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Clean the message and the traceback, which quotes the error's own words."""
        try:
            record.msg = lines(record.getMessage())
        except (TypeError, ValueError):  # a format that does not fit its arguments
            record.msg = lines(f"{record.msg} {record.args}")
        record.args = ()
        if record.exc_info and record.exc_info[0] is not None:
            text = logging.Formatter().formatException(record.exc_info)
            record.exc_text = lines(text)  # formatters take this before their own
        return True


def guard(log: logging.Logger) -> None:
    """Clean everything that this log writes; a second call changes nothing.

    Its handlers are guarded too, since the records of its children pass only by them.
    What they write to takes every character from now on, and none that colours: Flower's
    handler colours wherever it writes.
    """
    make_encodable()
    for place in (log, *log.handlers):
        if getattr(place, "colored", False):
            place.colored = False  # type: ignore[union-attr]
        if not any(isinstance(one, Printable) for one in place.filters):
            place.addFilter(Printable())


# --- reading ---------------------------------------------------------------------------


def read_json(text: str | bytes, endless: bool = False) -> Any:
    """Parse JSON that a stranger may have written.

    Parameters
    ----------
    text
        Anything.
    endless
        Whether Infinity is read, which Python writes and JSON does not have.

    Raises
    ------
    ValueError
        It is none, it is nested too deep, it has a number of thousands of digits or NaN or
        Infinity, which JSON does not have, or an object names a key twice.
    """
    try:
        constant = _endless if endless else _constant
        return json.loads(text, object_pairs_hook=_once, parse_constant=constant)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _endless(name: str) -> float:
    return math.inf if name == "Infinity" else _constant(name)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def read_toml(text: str) -> dict[str, Any]:
    """Parse TOML.

    Raises
    ------
    tomllib.TOMLDecodeError
        It is none, it is nested too deep, or it has a number of thousands of digits.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except (RecursionError, ValueError) as error:
        raise tomllib.TOMLDecodeError(f"it cannot be read ({error})") from None
