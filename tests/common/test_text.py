"""Text from elsewhere reaches a terminal or a log as printable characters only."""

import io
import json
import logging
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idiolect.common.text import (
    duration,
    guard,
    lines,
    printable,
    read_json,
    read_toml,
    shown,
    tell,
    tell_json,
    tell_pieces,
)

# Clears the screen, sets the title, makes a link of anything, forges a line, reorders,
# hides, and tags.
HOSTILE = (
    "\x1b[2J\x1b]0;owned\x07\x1b]8;;http://x\x1b\\here\x1b]8;;\x1b\\\r\nerror: forged"
    "\x9b31m\u202eevil\u2066\u200b\u2028next\u2029\ufeff\U000e0041\x7f\x00\ud800 "
    "[red]x[/red] :boom:"
)


@given(st.text(), st.integers(0, 50))
def test_a_part_of_a_line_is_printable_and_short(text, longest):
    said = printable(text, longest)
    assert said.isprintable() and len(said) <= longest
    if text.isprintable():
        assert said == text[:longest]


@given(st.text())
def test_text_of_several_lines_keeps_its_lines_and_nothing_else(text):
    said = lines(text)
    assert all(c == "\n" or c.isprintable() for c in said)
    assert said.count("\n") == text.count("\n")


def test_words_of_other_scripts_stay_readable():
    assert printable("\u0645\u06cc\u200c\u062e") == "\u0645\u06cc\u062e"
    assert printable("10\u00a0kg\u3000\u6f22\u5b57") == "10 kg \u6f22\u5b57"
    assert printable("caf\u00e9 \u00e9 \U0001f600") == "caf\u00e9 \u00e9 \U0001f600"
    assert printable("a\x1bb\u202ec") == "a\ufffdb\ufffdc"
    assert lines("a\tb\r\nc") == "a   b\ufffd\nc"


def test_values_are_cleaned_at_every_depth():
    value = {HOSTILE: [HOSTILE, {"a": (HOSTILE, 1.5, None, True)}]}
    text = json.dumps(shown(value), ensure_ascii=False)
    assert text.isprintable() and shown([1.5, None, True]) == [1.5, None, True]


def test_what_is_told_is_printable_and_json_is_ascii(capsys):
    tell(HOSTILE)
    tell_json({"a": HOSTILE})
    said, parsed = capsys.readouterr().out.rstrip("\n").rsplit("\n", 1)
    assert all(c == "\n" or c.isprintable() for c in said)
    assert parsed.isascii() and parsed.isprintable()
    assert json.loads(parsed) == {"a": HOSTILE}


def test_a_guarded_log_writes_nothing_that_a_terminal_obeys():
    stream = io.StringIO()
    log = logging.getLogger("hostile-test")
    handler = logging.StreamHandler(stream)
    log.addHandler(handler)
    log.propagate = False
    try:
        guard(log)
        guard(log)
        assert len(log.filters) == len(handler.filters) == 1
        log.warning("%s said %s", HOSTILE, HOSTILE)
        log.warning(HOSTILE)
        log.warning("100%", HOSTILE)  # a format that takes no argument
        log.getChild("more").warning("%s", HOSTILE)
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            log.warning("a task failed", exc_info=True)
    finally:
        log.removeHandler(handler)
    said = stream.getvalue()
    assert all(c == "\n" or c.isprintable() for c in said)
    assert said.count("owned") == 6 and "Traceback" in said


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"a":' * 200_000,
        "9" * 5000,
        '{"a": ' + "9" * 5000 + "}",
        '{"a": 1, "a": 2}',
        '{"a": {"b": 1, "c": {"d": 1, "d": 2}}}',
        "",
        "{",
        "\x00",
    ],
)
def test_json_of_a_stranger_is_read_or_refused(text):
    with pytest.raises(ValueError):
        read_json(text)
    assert read_json('{"a": [1, {"b": 1e400}]}') == {"a": [1, {"b": float("inf")}]}


@pytest.mark.parametrize("text", ["x = " + "[" * 200_000, "x = " + "9" * 5000, "x"])
def test_toml_is_read_or_refused(text):
    with pytest.raises(tomllib.TOMLDecodeError):
        read_toml(text)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(5, "5 s"), (89, "89 s"), (95, "2 min"), (3000, "50 min"), (7500, "2 h 5 min")],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize("words", ["a\tb\nc\td\x1b[0m\u200dé", "", "one\n\ntwo", "\n"])
def test_pieces_show_what_the_whole_text_shows(capsys, words):
    tell(words)
    whole = capsys.readouterr().out
    for step in (1, 2, 5):
        parts = (words[i : i + step] for i in range(0, len(words), step))
        assert tell_pieces(parts) == words
        assert capsys.readouterr().out == whole
