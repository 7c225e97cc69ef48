"""Pieces of a text: joined they are the text, and none shows what is not sure yet."""

import sys
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from idiolect.client.owner.history import clean, tidy
from idiolect.common.engine.pieces import begun, first_stop, joins, settled, sure


def streamed(text: str, stops: tuple[str, ...] = (), step: int = 1) -> list[str]:
    """The pieces of a text that comes `step` characters at a time, up to a stop."""
    found, shown = [], ""
    for end in range(step, len(text) + step, step):
        whole, stopped = sure(text[:end], stops, False, tidy, clean)
        assert whole.startswith(shown)
        found.append(whole[len(shown) :])
        shown = whole
        if stopped:
            return found
    whole, _ = sure(text, stops, True, tidy, clean)
    assert whole.startswith(shown)
    return [*found, whole[len(shown) :]]


def obvious(text: str, stops: tuple[str, ...]) -> str:
    """A text up to the stop that is complete first, as it is read to the end."""
    text = tidy(text).lstrip()
    for end in range(len(text) + 1):
        cuts = [end - len(s) for s in stops if text[:end].endswith(s)]
        if cuts:
            return clean(text[: min(cuts)])
    return clean(text)


ODD = [
    *("a", "b", " ", "\n", "e\u0301", "\u0301", "\u0327", "\u1100", "\u1161", "\u11a8"),
    *("\uac00", "👍", "\U0001f3fd", "👨", "\u200d", "👩", "\ufe0f", "🇩", "🇪", "漢"),
    *("\ufffd", "\x00", "\r", "\ufeff", "\u202e", "\u0e33", "\u200b", "\x1c", "="),
    *("\u0338", "ﬁ", "\u212b", "\u09c7", "\u09be"),
]
texts = st.lists(st.sampled_from(ODD) | st.characters(), max_size=12).map("".join)
stops = st.lists(st.sampled_from(["a", "ab", "ba", "b\n", "aab", "\n\n", "é", "👍a"]))


@given(texts, st.integers(1, 4))
@example("  e\u202a\u0301 x \n", 1)
@example("\u200b\u200b", 1)
@example("\u200ba", 1)
def test_pieces_joined_are_the_clean_text(text: str, step: int) -> None:
    assert "".join(streamed(text, (), step)) == clean(text)


@given(texts, stops.map(tuple), st.integers(1, 4))
@example("xaab", ("ab", "aab"), 2)
@example("x\n\na", ("\n\n",), 1)
def test_a_text_ends_at_the_stop_that_is_complete_first(text, stops, step) -> None:
    assert "".join(streamed(text, stops, step)) == obvious(text, stops)


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one STOP two", ("STOP",), "one"),
        ("one STO", ("STOP",), "one STO"),  # ends in half a stop: nothing is lost
        ("one STO two", ("STOP",), "one STO two"),
        ("xabcdefghi", ("bc", "abcd"), "xa"),  # overlapping
        ("xabd", ("bc", "abcd"), "xabd"),
        ("STOP", ("STOP",), ""),
        ("a\nb", ("\n",), "a"),
        ("\n\na\nb", ("\n",), "a"),  # white space at the beginning is not the text's
        ("aaaab", ("aab",), "aa"),
    ],
)
def test_stops(text: str, stops: tuple[str, ...], expected: str) -> None:
    for step in range(1, 9):
        assert "".join(streamed(text, stops, step)) == expected


def test_no_part_of_a_stop_is_shown_before_it_is_known() -> None:
    shown = ""
    for piece in streamed("one STO! two STOP", ("STOP",)):
        shown += piece
        assert not any(shown.endswith("STOP"[:n]) for n in (2, 3, 4)) or "STO!" in shown
    assert shown == "one STO! two"


@pytest.mark.parametrize(
    "sign", ["e\u0301", "👍\U0001f3fd", "👨\u200d👩\u200d👧", "🇩🇪", "각", "❤\ufe0f"]
)
def test_no_part_of_a_sign_is_shown(sign: str) -> None:
    for piece in streamed(f"a{sign}b"):
        assert piece in ("", "a", clean(sign), "b", clean(sign) + "b")


def test_a_line_end_is_sure_at_once_and_a_broken_character_never() -> None:
    assert settled("ab\n") == 3
    assert settled("ab") == 1
    assert settled("ab\ufffd\ufffd") == 1
    assert settled("ab\ufffdc") == 3
    assert settled("") == settled("a") == settled("\ufffd") == 0


def test_all_characters_that_compose_with_the_one_before_them_are_known() -> None:
    """Unicode's canonical compositions of two characters, and Hangul's."""
    second = set()
    for number in range(sys.maxunicode + 1):
        parts = unicodedata.decomposition(chr(number)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            second.add(chr(int(parts[1], 16)))
        if unicodedata.combining(chr(number)):
            second.add(chr(number))
    second |= {chr(n) for n in [*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)]}
    assert len(second) > 900
    assert [c for c in second if not joins("a", c)] == []


def test_a_beginning_of_a_stop() -> None:
    assert begun("xab", ("abc", "bd")) == 2
    assert begun("xabc", ("abc",)) == 0
    assert begun("", ("abc",)) == begun("x", ()) == 0
    assert first_stop("xabc", ()) is None
