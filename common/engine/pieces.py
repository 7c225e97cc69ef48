"""A text that is shown while it is written: pieces, none of which is ever taken back.

What has come may still change: a character's bytes are spread over tokens, a mark may
join the letter before it, white space at the end is cut, and what looks like the
beginning of a stop text may become one. So a piece ends before all that. Pure functions.
"""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import IdiolectError

BROKEN = "\ufffd"  # what decoders write for bytes that are no character yet
JOINER = "\u200d"  # of emoji that are one sign
# Vowels and final consonants of Hangul, which join the syllable before them. All other
# characters that do are marks (categories M*).
JOINING_JAMO = ("\u1160", "\u11ff")
FLAGS = ("\U0001f1e6", "\U0001f1ff")  # letters, two of which are one flag
TONES = ("\U0001f3fb", "\U0001f3ff")  # skin tones, which change the emoji before them

STOP, LENGTH = "stop", "length"  # how a text ended: by itself, or by its budget

Tidy = Callable[[str], str]


class TooLong(IdiolectError):
    """A message does not fit into the context."""


@dataclass(frozen=True)
class Piece:
    """What one more token added to a text.

    Attributes
    ----------
    text
        Behind what was there; empty where nothing new is sure.
    end
        Empty, and of the last piece `STOP` or `LENGTH`.
    tokens
        How many were written so far, without the one that ends a text.
    """

    text: str
    end: str = ""
    tokens: int = 0


def joins(before: str, character: str) -> bool:
    """Whether a character may change, or be one sign with, the one before it.

    Invisible characters do: they are left out of texts, and what follows them then joins
    what stands before them.
    """
    kind = unicodedata.category(character)
    return (
        kind[0] == "M"
        or (kind in ("Cc", "Cf", "Cs") and not character.isspace())
        or JOINING_JAMO[0] <= character <= JOINING_JAMO[1]
        or TONES[0] <= character <= TONES[1]
        or before == JOINER
        or all(FLAGS[0] <= one <= FLAGS[1] for one in (before, character))
    )


def settled(text: str) -> int:
    """How many characters of a text no continuation can change.

    All before the last that begins a sign of its own; a line end is one at once.
    """
    end = len(text.rstrip(BROKEN))
    if text[end - 1 : end] == "\n":
        return end
    for place in range(end - 1, 0, -1):
        if not joins(text[place - 1], text[place]):
            return place
    return 0


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where a text is to be cut: at the stop that is complete first; None: nowhere.

    Of two that end at the same place, the longer counts. So the cut does not depend on
    the pieces in which the text came.
    """
    found = [(text.find(stop), stop) for stop in stops]
    ends = [(start + len(stop), start) for start, stop in found if start >= 0]
    return min(ends)[1] if ends else None


def begun(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of a text may be the beginning of a stop."""
    most = min(len(text), max(map(len, stops), default=1) - 1)
    return next(
        (n for n in range(most, 0, -1) if any(s.startswith(text[-n:]) for s in stops)),
        0,
    )


def sure(
    text: str, stops: Sequence[str], whole: bool, tidy: Tidy, clean: Tidy
) -> tuple[str, bool]:
    """What may be shown of a text that has come so far, and whether a stop ended it.

    Parameters
    ----------
    text
        As it was decoded.
    stops
        Texts, none of which is shown, nor anything behind the first.
    whole
        Nothing more will come.
    tidy, clean
        What is done to a text, character by character, and to a whole one: `clean` is
        `tidy` without white space at either end.

    Returns
    -------
    tuple
        A text that begins with what was returned for any shorter beginning of `text`; of
        a whole one without a stop, `clean` of it.
    """
    seen = tidy(text if whole else text[: settled(text)]).lstrip()
    cut = first_stop(seen, stops)
    if cut is not None:
        return clean(seen[:cut]), True
    return clean(seen if whole else seen[: len(seen) - begun(seen, stops)]), False
