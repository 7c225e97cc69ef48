"""Lines and JSON records of a file, a piece at a time, whatever its size."""

import codecs
import json
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ...common.errors import IdiolectError, explained, refuse_if
from .rows import TextError
from .tables import unique

LONGEST_LINE = 16_000_000  # characters; a longer one is not a row of a history
WHOLE = 512_000_000  # bytes of a file that has to be read as a whole
_PIECE = 1 << 20  # characters read at once
_WHITE = re.compile(r"[ \t\r\n]*")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def encoding_of(path: Path, given: str = "") -> str:
    """Return the encoding that was given, that a byte-order mark names, or UTF-8.

    Raises
    ------
    IdiolectError
        There is no such file or encoding.
    """
    start = _start(path, 4)
    try:
        if given:
            "a".encode(given)  # `lookup` finds "hex" too, which is not for text
    except (LookupError, UnicodeError):
        raise IdiolectError(
            f"there is no encoding '{given:.40}': try utf-8, utf-16, cp1252 or latin-1."
        ) from None
    found = next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")
    if not given and found == "utf-8" and b"\0" in start:
        found = "utf-16-le" if start[1:2] == b"\0" else "utf-16-be"
    return given or found


def begins(path: Path, mark: bytes) -> bool:
    """Whether a file begins with these bytes.

    Raises
    ------
    IdiolectError
        It cannot be read.
    """
    return _start(path, len(mark)) == mark


def _start(path: Path, length: int) -> bytes:
    with _reading(path), path.open("rb") as stream:
        return stream.read(length)


def lines_of(path: Path, encoding: str = "") -> Iterator[str]:
    r"""Lines of a text file, which end with ``\n`` (after a ``\r`` or not) alone.

    Raises
    ------
    IdiolectError
        It cannot be read, or is not in this encoding.
    """
    encoding = encoding_of(path, encoding)
    number = 0
    try:
        with _reading(path), path.open(encoding=encoding, newline="\n") as stream:
            while line := stream.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise IdiolectError(
                        f"{path.name}, line {number} has more than {LONGEST_LINE} "
                        "characters: is this a file of lines?"
                    )
                yield line
    except UnicodeError as error:
        raise _undecodable(path, encoding, number, error) from None


def is_list(path: Path, encoding: str = "") -> bool:
    """Whether a file of JSON is one list."""
    with path.open(encoding=encoding_of(path, encoding)) as stream:
        return stream.read(_PIECE).lstrip().startswith("[")


def records_of(path: Path, encoding: str = "") -> Iterator[Any]:
    """Elements of a file that is one JSON list, or the one thing that it is instead.

    Raises
    ------
    IdiolectError
        It cannot be read, or is not JSON.
    """
    encoding = encoding_of(path, encoding)
    try:
        with _reading(path), path.open(encoding=encoding) as stream:
            text = stream.read(_PIECE).lstrip()
            if text.startswith("["):
                yield from _elements(stream, text[1:], path)
                return
            refuse_if(
                path.stat().st_size > WHOLE,
                f"{path.name} has {path.stat().st_size >> 20} MiB, and "
                f"{WHOLE >> 20} are read of such a file: export less at a time.",
            )
            yield _parsed(text + stream.read(), path)
    except UnicodeError as error:
        raise _undecodable(path, encoding, 0, error) from None


def _elements(stream: Any, text: str, path: Path) -> Iterator[Any]:
    """Elements of a list after its bracket; `text` is the beginning of the rest."""
    decoder = json.JSONDecoder(object_pairs_hook=unique)
    number, place, ended = 0, 0, False
    while True:
        place = _skip(text, place)
        if text.startswith("]", place):
            if (text[place + 1 :] + stream.read(_PIECE)).strip():
                raise _not_json(path, f"something follows its {number} records")
            return
        start = place
        if number and place < len(text):
            if text[place] != ",":
                raise _not_json(path, f"there is no comma after record {number}")
            start = _skip(text, place + 1)
        try:
            found, end = decoder.raw_decode(text, start)
            error = None
        except TextError as twice:
            raise IdiolectError(
                f"{path.name}, record {number + 1} {twice}: rename or remove one."
            ) from None
        except (ValueError, RecursionError) as wrong:
            found, end, error = None, len(text), wrong
        if end < len(text):  # whatever it is, it does not go on in the next piece
            number, place = number + 1, end
            yield found
            continue
        if ended or isinstance(error, RecursionError) or end - place > WHOLE:
            raise _not_json(
                path, f"record {number + 1}: {error or 'the list does not end'}"
            )
        piece = stream.read(max(_PIECE, len(text) - place))
        text, place, ended = text[place:] + piece, 0, not piece


def _skip(text: str, place: int) -> int:
    """Return the place of the next character that is not white space in JSON."""
    found = _WHITE.match(text, place)
    return found.end() if found else place


def _parsed(text: str, path: Path) -> Any:
    try:
        return json.loads(text, object_pairs_hook=unique)
    except TextError as twice:
        raise IdiolectError(f"{path.name} {twice}: rename or remove one.") from None
    except (ValueError, RecursionError) as error:
        raise _not_json(path, str(error)) from None


def _not_json(path: Path, why: str) -> IdiolectError:
    return IdiolectError(
        f"{path.name} is not JSON ({why}): export it again, or call it .jsonl if each "
        "line is one object."
    )


def _undecodable(
    path: Path, encoding: str, number: int, error: UnicodeError
) -> IdiolectError:
    after = f" (after line {number})" if number else ""
    name = {"utf-8": "UTF-8", "utf-8-sig": "UTF-8"}.get(encoding, encoding)
    decoding = isinstance(error, UnicodeDecodeError)
    byte = f", byte {error.object[error.start]:#04x}" if decoding else ""
    return IdiolectError(
        f"{path.name} is not {name} text{after}{byte}: save it as UTF-8, or name its "
        "encoding, such as --encoding cp1252."
    )


def _reading(path: Path) -> AbstractContextManager[None]:
    return explained(f"{path} cannot be read", "check the name and its owner")
