"""Whether an adapter writes as it should, which the likelihood of texts does not show.

An adapter that gives the user's unseen texts a higher likelihood can still end in loops,
stop at once, never stop, or recite what it learnt from. So it continues a few held-out
prompts, and what it writes is compared with what the policy before it wrote there and with
what the user wrote. Pure functions of texts, in bytes of UTF-8: the same for every script
and tokenizer.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Prompts that are continued, and tokens of each answer: on two cores a few seconds for a
# model of 135 million parameters, and long enough for a loop to show.
PROMPTS, TOKENS = 4, 48
# `scoring.generate`'s, wherever an owner's model writes. Of SmolLM2-135M's answers to the
# unseen prompts of two owners, 3 of 24 were loops without it, and none with it.
REPETITION = 1.1
# A text that zlib makes this many times shorter repeats itself: the threshold by which
# Whisper notices loops in its transcripts (Radford et al. 2022, 4.5). English prose of this
# length has 1.2 to 1.6.
COMPRESSED = 2.4
# The end of a text is a loop if one piece comes at least three times in a row there, in at
# least this many bytes: "ha ha ha ha" and "!!!!!" are no loops.
TIMES, LOOP = 3, 32
# A text is copied if this share of it, and at least this many bytes, are in one text of the
# history in one piece. What is shorter (seven English words) everyone writes again.
COPIED, COPY = 0.6, 40

# Fault -> what it is, said of an adapter.
FAULTS = {
    "loops": "it repeats itself",
    "empty": "it writes nothing",
    "endless": "its texts do not come to an end, and yours do",
    "copies": "it writes out, word for word, what it learnt from",
}


@dataclass(frozen=True)
class Text:
    """The first `TOKENS` tokens of a text, and whether it had ended by then."""

    text: str
    ended: bool = True


def fault(
    new: Sequence[Text],
    before: Sequence[Text],
    own: Sequence[Text],
    learnt: Sequence[str],
) -> str:
    """What is wrong with the texts of a new adapter: a key of `FAULTS`, or empty.

    A fault counts if more than a quarter of the new texts have it, and more than the texts
    that the policy before wrote at the same prompts, and than the user's own: one text of
    four goes wrong with a small model whose adapter is fine, and a user who repeats
    phrases is to be imitated.

    Parameters
    ----------
    new, before
        What the new adapter and the policy before it wrote, prompt by prompt.
    own
        What the user wrote there.
    learnt
        Texts that the adapter was trained on.
    """
    history = "\0".join(map(_plain, learnt))
    tests: dict[str, Callable[[Text], bool]] = {
        "loops": lambda one: loops(one.text),
        "empty": lambda one: not one.text.strip(),
        "endless": lambda one: not one.ended,
        "copies": lambda one: copied(one.text, history),
    }
    for name, wrong in tests.items():
        found, *others = (sum(map(wrong, texts)) for texts in (new, before, own))
        if found > max(*others, len(new) // 4):
            return name
    return ""


def loops(text: str) -> bool:
    """Whether a text repeats itself, as a whole or at its end."""
    data = text.encode()
    if len(data) < LOOP:
        return False
    if len(data) > COMPRESSED * len(zlib.compress(data, 9)):
        return True
    for period in range(1, (len(data) + 1) // TIMES + 1):
        same = 0
        while same < len(data) - period and data[-1 - same] == data[-1 - same - period]:
            same += 1
        # The first piece may lack the blank or comma that joins it to what is before.
        if same + period + 1 >= max(TIMES * period, LOOP):
            return True
    return False


def copied(text: str, history: str) -> bool:
    """Whether most of a text is in the history in one piece.

    Parameters
    ----------
    text
        What was written.
    history
        The texts learnt from, as `_plain` leaves them, with zero characters in between.
    """
    plain = _plain(text)
    shortest = max(COPY, math.ceil(COPIED * len(plain.encode())))
    ends = (_end_of(plain, start, shortest) for start in range(len(plain)))
    pieces = (plain[start:end] for start, end in enumerate(ends) if end)
    return any(piece in history for piece in pieces)


def _plain(text: str) -> str:
    """A text without differences of case and blanks, and without zero characters."""
    return " ".join(text.replace("\0", " ").casefold().split())


def _end_of(text: str, start: int, size: int) -> int:
    """Where the shortest piece from `start` on with so many bytes ends; 0: nowhere."""
    while size > 0 and start < len(text):
        size -= len(text[start].encode())
        start += 1
    return start if size <= 0 else 0
