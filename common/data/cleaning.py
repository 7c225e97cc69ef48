"""Text of any source as the models see it: no control characters, single blanks."""

import re
import unicodedata
from pathlib import Path
from typing import Any

from ..errors import IdiolectError
from .repair import DAMAGED, repaired

# Control characters that are not white space, byte order marks, lone surrogates (which
# JSON can spell and no tokenizer can encode).
_NOISE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufeff\ud800-\udfff]")
# Letters and symbols that are invisible: Hangul fillers, the empty pattern of Braille.
_BLANK = "\u115f\u1160\u3164\uffa0\u2800"


def clean(text: str) -> str:
    """Return text without control characters, each run of white space as one blank.

    A text with invisible characters only becomes empty.
    """
    if DAMAGED.search(text):  # before characters are removed
        text = repaired(text)
    text = " ".join(_NOISE.sub("", text).split())
    return "" if not text.isascii() and all(map(_is_invisible, text)) else text


def _is_invisible(character: str) -> bool:
    return character in _BLANK or unicodedata.category(character) in ("Cf", "Mn", "Zs")


def read_text(path: Path, key: str) -> str:
    """Read a UTF-8 file that a config key names.

    Raises
    ------
    IdiolectError
        There is no such file, or it cannot be read as text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise IdiolectError(
            f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8."
        ) from None
    except OSError as error:
        raise IdiolectError(
            f"cannot read {path}: {error.strerror}; check the config key '{key}'."
        ) from None


def missing(value: Any) -> bool:
    """Whether a value is null or NaN, as data frames and databases write missing values."""
    return value is None or value != value
