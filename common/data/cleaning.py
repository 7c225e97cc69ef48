"""Text of any source as the models see it: no control characters, single blanks.

Text that was once decoded wrongly ("cafÃ©") is put right before anything is removed: what
a wrong decoding leaves are often control characters (U+0080 to U+009F), which readers
remove, and after that nothing can be repaired any more.
"""

import re
import unicodedata
from pathlib import Path
from typing import Any

import ftfy
from ftfy.fixes import fix_c1_controls

from ..errors import IdiolectError

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


# Only the encoding is put right: ftfy has no say in anything else about the text.
_CONFIG = ftfy.TextFixerConfig(
    fix_c1_controls=False, replace_lossy_sequences=False, explain=False
)
# NEL (U+0085) is left out: it ends a line in its own right.
DAMAGED = re.compile("[\x80-\x84\x86-\x9f]")
# One character of UTF-8 became two or more that stand together, or "Ã" and a blank.
# Most text has none, and ftfy takes half a millisecond.
_SUSPECT = re.compile("[^\x00-\x7f]{2}|\xc3 |[\x80-\x9f]")
_NEL = re.compile("(?<![\x80-\xff])\x85")  # not behind what may be the same character's


def repaired(text: str) -> str:
    """Text without the traces of a wrong decoding.

    UTF-8 that was read as Latin-1, Windows-1252 or one of their siblings is decoded again
    (ftfy's heuristic, which changes no text that makes sense as it is); what is left of
    U+0080 to U+009F is what Windows-1252 has there. Five of these characters stand for
    nothing, and stay.
    """
    if not _SUSPECT.search(text):
        return text
    if not DAMAGED.search(text):
        text = _NEL.sub("\n", text)
    found = ftfy.fix_encoding(text, _CONFIG)
    return fix_c1_controls(found) if DAMAGED.search(found) else found
