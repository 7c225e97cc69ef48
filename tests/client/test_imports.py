"""Files that people have: what becomes a pair, in which order, and what is said."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idiolect.client.imports import chats, kinds
from idiolect.client.imports.files import records_of
from idiolect.client.imports.mail import own_words
from idiolect.client.imports.read import Asked, read, report
from idiolect.client.owner.history import Entry
from idiolect.common.data.types import Prompt
from idiolect.common.errors import IdiolectError

SKIP = Asked(skip=True)
DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def put(tmp_path):
    """Write a file, of text, bytes or rows, and return its path."""

    def write(name, content):
        path = tmp_path / name
        if isinstance(content, list):
            content = "\n".join(map(json.dumps, content))
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def got(path, asked=None):
    """What was read, as (prompt, text, liked), oldest first."""
    found = read(path, asked).entries
    return [(entry.prompt.text, entry.target, entry.liked) for entry in found]


def texts(path, asked=None):
    return [entry.target for entry in read(path, asked).entries]


def refused(path, asked=None):
    with pytest.raises(IdiolectError) as error:
        read(path, asked)
    assert path.name in str(error.value)
    return str(error.value)


# --- columns ---------------------------------------------------------------------------


def test_json_lines(put):
    rows = [
        {"prompt": "a?", "target": "yes"},
        {"input": "b?", "output": "no", "liked": False},
        {"text": "  alone\n in two lines \u0007\u202e"},
    ]
    found = read(put("mail.jsonl", rows))
    assert found.entries == (
        Entry(Prompt("", "a?"), "yes"),
        Entry(Prompt("", "b?"), "no", liked=False),
        Entry(Prompt("", ""), "alone\n in two lines"),
    )
    assert found.changed == {"control characters removed": 1}


def test_a_csv_file_with_quotes_and_a_verdict(put):
    text = 'Prompt,target,liked\n"a, b",one,\nc,"two ""2""",no\n\n,,\n'
    assert got(put("mail.csv", text)) == [
        ("a, b", "one", True),
        ("c", 'two "2"', False),
    ]


@pytest.mark.parametrize(
    ("value", "liked"),
    [
        *((v, True) for v in (True, 1, 1.0, "TRUE", "yes", " Y ", "1.0", "", None)),
        (float("nan"), True),
        *((v, False) for v in (False, 0, 0.0, "false", "False", "NO", "n", "0", "0.0")),
    ],
)
@pytest.mark.parametrize("column", ["label", "liked", "Liked", "LABEL "])
def test_verdicts_as_kto_and_data_frames_write_them(put, value, column, liked):
    row = {"prompt": "title?", "completion": "Hats", column: value}
    found = read(put("kto.jsonl", [row]))
    assert [entry.liked for entry in found.entries] == [liked]
    assert found.read["liked"] == [column] and found.ignored == {}
    if isinstance(value, str):
        path = put("kto.csv", f"prompt,completion,{column}\ntitle?,Hats,{value}\n")
        assert got(path) == [("title?", "Hats", liked)]


def test_a_verdict_that_is_none_is_refused(put):
    path = put("a.jsonl", [{"text": "x", "label": "positive"}])
    assert "label must be true or false, not 'positive'" in refused(path)


def test_a_pair_that_is_liked_and_disliked_is_neither(put):
    rows = [
        {"text": "both", "liked": True},
        {"text": "both ", "liked": False},
        {"text": "both", "liked": True},
        {"text": "one", "liked": False},
        {"text": "one", "liked": 0},
    ]
    found = read(put("a.jsonl", rows))
    assert [(e.target, e.liked) for e in found.entries] == [("one", False)]
    assert found.left_out == {"both liked and disliked": 3, "repeated": 1}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        (
            {"instruction": "Shorten.", "input": "Long words", "output": "x"},
            "Shorten.\n\nLong words",
        ),
        ({"instruction": "Shorten.", "input": "", "output": "x"}, "Shorten."),
        ({"instruction": "Shorten.", "input": None, "output": "x"}, "Shorten."),
        (
            {"Instruction": "Say.", "context": "Of this", "response": "x"},
            "Say.\n\nOf this",
        ),
        ({"prompt": "Shorten.", "input": "This", "target": "x"}, "Shorten.\n\nThis"),
        ({"question": "Who?", "answer": "x"}, "Who?"),
    ],
)
def test_an_instruction_and_what_it_is_about_are_the_prompt(put, row, prompt):
    assert got(put("alpaca.jsonl", [row])) == [(prompt, "x", True)]
    assert got(put("alpaca.json", json.dumps([row]))) == [(prompt, "x", True)]


def test_columns_are_said_read_or_not(put):
    rows = [
        {"text": "whole", "instruction": "do", "output": "done", "lang": "de"},
        {"output": "again", "lang": "de"},
    ]
    found = read(put("a.jsonl", rows))
    assert texts(put("a.jsonl", rows)) == ["done", "again"]
    assert found.read == {"text": ["output"], "prompt": ["instruction"]}
    assert found.ignored == {"text": 1, "lang": 2}
    said = report(found)
    assert "text from 'output', prompt from 'instruction'" in said
    assert "ignored columns: 'text', 'lang'" in said
    assert "the file's, its last row taken as the newest" in said
    assert max(map(len, said.splitlines())) <= 80


def test_a_chosen_and_a_rejected_answer_are_liked_and_disliked(put):
    turns = [{"role": "user", "content": "q"}]
    rows = [
        {"prompt": "p", "chosen": "good", "rejected": "bad", "margin": 2},
        {
            "chosen": [*turns, {"role": "assistant", "content": "nice"}],
            "rejected": [*turns, {"role": "assistant", "content": "rude"}],
        },
        {
            "prompt": turns,
            "chosen": [{"role": "assistant", "content": "a"}],
            "rejected": "b",
        },
        {"prompt": "same", "chosen": "x", "rejected": "x"},
    ]
    found = read(put("dpo.jsonl", rows))
    assert got(put("dpo.jsonl", rows)) == [
        ("p", "good", True),
        ("p", "bad", False),
        ("q", "nice", True),
        ("q", "rude", False),
        ("q", "a", True),
        ("q", "b", False),
    ]
    assert found.ignored == {"margin": 2}
    assert found.left_out == {"both liked and disliked": 2}


def test_the_last_answer_of_turns_is_the_text(put):
    rows = [
        {
            "messages": [
                {"role": "user", "content": "Name?"},
                {"role": "assistant", "content": "Ida"},
            ]
        },
        {
            "conversations": [
                {"from": "system", "value": "Be short."},
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Yes?"},
                {"from": "human", "value": "Colour?"},
                {"from": "gpt", "value": "Red"},
                {"from": "human", "value": "Thanks"},
            ]
        },
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "A"}, {"type": "image"}],
                },
                {"role": "assistant", "content": None, "tool_calls": []},
                {"role": "assistant", "content": [{"type": "text", "text": "B"}]},
            ],
            "label": False,
        },
    ]
    assert got(put("chat.jsonl", rows)) == [
        ("Name?", "Ida", True),
        ("Be short.\n\nHi\n\nYes?\n\nColour?", "Red", True),
        ("A", "B", False),
    ]
    found = read(put("chat.jsonl", rows))
    assert found.changed == {"turns behind the last answer left out": 1}


@pytest.mark.parametrize(
    ("turns", "sentence"),
    [
        ("hello", "must be a list of turns"),
        (["hello"], "holds 'hello', which is not a turn"),
        ([{"role": "user", "content": "x"}], "no turn of the assistant"),
        ([{"role": "pirate", "content": "x"}], "a turn of 'pirate'"),
        ([{"role": "assistant", "content": 5}], "holds 5, which is not text"),
    ],
)
def test_turns_that_are_none_are_refused(put, turns, sentence):
    assert sentence in refused(put("chat.jsonl", [{"messages": turns}]))


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.jsonl", '{"target": "x"}\n{"target": \n', "line 2 is not JSON"),
        ("a.jsonl", '["x"]\n', "line 1 is not a JSON object"),
        ("a.jsonl", "{" * 100_000, "line 1 is not JSON"),
        ("a.jsonl", "[" * 100_000, "line 1 begins one JSON list"),
        ("a.jsonl", '{"prompt": "x"}\n', "line 1 has no text: it needs one of target"),
        ("a.jsonl", '{"target": " \\u0007"}\n', "line 1 has an empty target"),
        ("a.jsonl", '{"target": null}\n', "line 1 has no target"),
        ("a.jsonl", '{"target": NaN}\n', "line 1 has no target"),
        ("a.jsonl", '{"target": 3}\n', "target must be text, not 3"),
        ("a.jsonl", '{"target": "x", "prompt": 3}\n', "prompt must be text"),
        ("a.jsonl", '{"target": "x", "liked": "maybe"}\n', "true or false"),
        ("a.jsonl", '{"target": "x", "target": "y"}\n', "of one name, 'target'"),
        ("a.jsonl", '{"Text": "x", "text": "y"}\n', "of one name, 'Text' and 'text'"),
        ("a.jsonl", json.dumps({"target": "x" * 100_001}), "100001 characters"),
        ("a.jsonl", "\n\n", "nothing to import"),
        ("a.csv", "target\na,b\n", "2 fields and the header 1"),
        ("a.csv", "prompt,target\na\n", "1 fields and the header 2"),
        ("a.csv", 'target\n"a\n', "line 2 cannot be read (unexpected end"),
        (
            "a.csv",
            "words\na\n",
            "has no text: its header, separated by commas, is 'words'",
        ),
        ("a.csv", "text,prompt, TEXT\na,b,c\n", "two columns of one name, 'text'"),
        ("a.csv", "text,liked\nNaN,\n", "line 2 has no text"),
        ("a.csv", "text\ra\rb\r", "end with CR alone"),
        ("a.csv", "", "is empty"),
        ("a.csv", "\ntext\na\n", "its first line is"),
        ("a.txt", "words", "not of a kind that is read"),
        ("a.zip", "PK", "unpack it"),
        ("a.json", "{", "not JSON"),
        ("a.json", '{"a": 1}', "not of a kind that is read"),
        ("a.json", '[{"text": "x"} {"text": "y"}]', "no comma after record 1"),
        ("a.json", '[{"text": "x"}', "record 1: the list does not end"),
        ("a.json", '[{"text": "x"}] 1', "something follows its 1 records"),
        ("a.json", '[{"text": "x", "text": "y"}]', "record 1 has two columns"),
        ("a.json", "[]", "nothing to import"),
        ("a.json", "[3]", "record 1 is not a JSON object"),
        ("a.jsonl", '[{"text": "x"},\n{"text": "y"}]\n', "call the file .json"),
    ],
)
def test_a_bad_file_is_named_with_its_line(put, name, text, sentence):
    assert sentence in refused(put(name, text))


def test_bad_rows_are_left_out_and_counted_if_asked(put):
    rows = [
        {"text": "good", "prompt": None, "liked": None},
        {"text": None},
        {"text": float("nan"), "prompt": "x"},
        {"text": "\u200b\u00ad"},
        {"text": 3},
        {"words": "x"},
        {"text": "x", "liked": "perhaps"},
    ]
    path = put("a.jsonl", rows)
    path.write_text(path.read_text() + '\n{broken\n{"text": "x", "text": "y"}\n')
    found = read(path, SKIP)
    assert [entry.target for entry in found.entries] == ["good"]
    assert found.left_out == {
        "no text": 4,
        "empty text": 1,
        "no verdict": 1,
        "not JSON": 1,
        "two columns of one name": 1,
    }
    assert "left out: no text (4), empty text (1), no verdict (1)," in report(found)
    found = read(put("a.csv", 'text,prompt\nhi,NaN\n,p\nNULL,p\na,b,c\n"q'), SKIP)
    assert [(e.prompt.text, e.target) for e in found.entries] == [("", "hi")]
    assert sum(found.left_out.values()) == 4


# --- lines and encodings ---------------------------------------------------------------

BREAKS = "\u2028\u2029\x85\v\f\x1c\x1d\x1e\r"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", list(BREAKS))
def test_only_lf_and_crlf_end_a_line(put, mark, end):
    for name, text in (
        ("a.csv", f"text{end}one{mark}two{end}three{end}"),
        ("quoted.csv", f'text{end}"one{mark}two"{end}three{end}'),
        ("a.jsonl", f'{{"text": "one\u2028two"}}{end}{{"text":{" "}"three"}}{end}'),
    ):
        first, second = texts(put(name, text))
        assert first.split() == ["one", "two"] and second == "three"


@pytest.mark.parametrize(
    ("mark", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "|"), (",", "commas")]
)
def test_what_parts_columns_is_seen_and_said(put, mark, name):
    text = mark.join(["prompt", "text", "liked"]) + "\r\n"
    text += mark.join(["how?", '"Fine, thanks; yes|no\t."', "false"]) + "\r\n"
    found = read(put("a.csv", text))
    assert found.entries[0].target == "Fine, thanks; yes|no\t."
    assert found.entries[0].liked is False and name in found.kind
    assert f"its columns separated by {name}" in report(found)


def test_a_spreadsheets_own_note_about_its_delimiter_is_understood(put):
    found = read(put("a.csv", "sep=;\ntext;prompt\na,b;c\n"))
    assert [(e.target, e.prompt.text) for e in found.entries] == [("a,b", "c")]
    assert "semicolons" in found.kind


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_byte_order_marks_are_obeyed(put, encoding):
    for name, text in (
        ("a.csv", "text\ncafé 😀\n"),
        ("a.jsonl", '{"text": "café 😀"}'),
    ):
        assert texts(put(name, text.encode(encoding))) == ["café 😀"]
    assert texts(put("a.json", '[{"text": "é"}]'.encode(encoding))) == ["é"]


def test_another_encoding_is_refused_or_named(put):
    path = put("a.csv", "text\nok\ncafé\n".encode("cp1252"))
    assert "is not UTF-8 text" in refused(path) and "--encoding cp1252" in refused(path)
    assert texts(path, Asked(encoding="cp1252")) == ["ok", "café"]
    with pytest.raises(IdiolectError, match="no encoding 'klingon': try utf-8"):
        read(path, Asked(encoding="klingon"))
    for no_text in ("hex", "rot13", "undefined"):  # Python has codecs that make no text
        with pytest.raises(IdiolectError, match=f"no encoding '{no_text}'"):
            read(path, Asked(encoding=no_text))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (
            "It\u00e2\u0080\u0099s fine \u00f0\u009f\u0098\u0082",
            "It’s fine 😂",
        ),  # Latin-1
        ("Itâ€™s schÃ¶n", "It’s schön"),  # Windows-1252
        ("It\x92s \x93here\x94", "It’s “here”"),  # Windows-1252 read as Latin-1
        ("\u00d7\u0090\u00d7\u0091", "אב"),
        ("Ã©tÃ©, été", "été, été"),  # half of it
    ],
)
def test_wrongly_decoded_text_is_repaired(put, text, kept):
    found = read(put("a.jsonl", [{"text": text, "prompt": text}, {"text": "fine"}]))
    assert found.entries[0].target == found.entries[0].prompt.text == kept
    assert found.changed == {"repaired, after a wrong decoding": 1}


def test_what_cannot_be_repaired_is_refused_before_anything_is_removed(put):
    path = put("a.jsonl", [{"text": "a\x81b"}, {"text": "ok"}])
    assert "was decoded wrongly ('a\\x81b') and cannot be repaired" in refused(path)
    assert read(path, SKIP).left_out == {"wrongly decoded": 1}


@pytest.mark.parametrize(
    "text",
    ["café, naïve, Grüße", "£5 à la mode, 5 °C", "CAFÉ™", "Привет", "שלום", "日本語"],
)
def test_text_that_makes_sense_is_left_as_it_is(put, text):
    found = read(put("a.jsonl", [{"text": text}]))
    assert found.entries[0].target == text and not found.changed


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_is_kept_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(json.dumps({"text": text, "prompt": text, "date": text[:5]}))
    try:
        (entry,) = read(path, Asked(dates="ignore")).entries
        assert entry.target == entry.prompt.text
    except IdiolectError as error:
        assert path.name in str(error)


# --- order -----------------------------------------------------------------------------


def test_the_newest_by_date_come_last_whatever_the_order_of_the_file(put):
    rows = [
        {"text": f"post {day}", "date": f"2024-03-{day:02d}"} for day in range(9, 0, -1)
    ]
    found = read(put("a.jsonl", rows))
    assert [entry.target for entry in found.entries] == [
        f"post {d}" for d in range(1, 10)
    ]
    assert found.order.startswith("by date (from 'date'), 2024-03-01 to 2024-03-09")
    assert "the file has the newest first" in found.order
    assert found.entries[0].written == 1709251200.0
    rows = [
        {"text": f"post {n}", "created_utc": 1_700_000_000 + n % 5} for n in range(5)
    ]
    assert texts(put("b.jsonl", rows[::-1])) == [f"post {n}" for n in range(5)]


def test_within_a_day_a_newest_first_file_is_turned_round(put):
    days = (3, 2, 2, 2, 1)
    rows = [{"text": str(n), "date": f"2024-03-0{day}"} for n, day in enumerate(days)]
    assert texts(put("a.jsonl", rows)) == ["4", "3", "2", "1", "0"]


def test_slashes_are_read_by_the_column_or_asked_about(put):
    def rows(*dates):
        return [{"text": str(n), "date": date} for n, date in enumerate(dates)]

    path = put("a.jsonl", rows("05/04/2024", "06/03/2024", "13/01/2024"))
    assert texts(path) == ["2", "1", "0"]
    path = put("b.jsonl", rows("05/04/2024", "06/03/2024", "01/13/2024"))
    assert texts(path) == ["2", "0", "1"]
    path = put("c.jsonl", rows("05/04/2024", "06/03/2024"))
    sentence = refused(path)
    assert (
        "'date'" in sentence and "05/04/2024" in sentence and "--dates dmy" in sentence
    )
    assert texts(path, Asked(dates="dmy")) == ["1", "0"]
    assert texts(path, Asked(dates="mdy")) == ["0", "1"]
    found = read(path, Asked(dates="ignore"))
    assert [e.target for e in found.entries] == ["0", "1"] and "ignore" in found.order
    assert [e.written for e in found.entries] == [None, None]
    assert "not of one kind" in refused(
        put("d.jsonl", rows("13/01/2024", "01/13/2024"))
    )


def test_a_date_that_is_none_is_refused_by_its_column(put):
    path = put("a.jsonl", [{"text": "a", "time": "12:30"}, {"text": "b", "time": 2024}])
    assert "line 1: time: 12:30 is no date" in refused(path)
    assert read(path, SKIP).left_out == {"unreadable date": 1}
    path = put("b.jsonl", [{"text": "a"}, {"text": "b", "date": "2024-01-01"}])
    assert "line 1 has no date, and other rows have one" in refused(path)
    found = read(path, SKIP)
    assert [entry.target for entry in found.entries] == ["b"]
    assert found.left_out == {"no date, where others have one": 1}


def test_a_file_without_dates_is_in_its_own_order_or_turned_round(put):
    path = put("a.jsonl", [{"text": str(n)} for n in range(4)])
    assert texts(path) == ["0", "1", "2", "3"]
    assert texts(path, Asked(newest_first=True)) == ["3", "2", "1", "0"]
    assert texts(path, Asked(newest_first=True, most=2)) == ["1", "0"]


def test_of_a_large_file_the_newest_are_kept_and_the_others_counted(put):
    rows = [{"text": str(n), "date": 1_700_000_000 + n * 7 % 100} for n in range(100)]
    found = read(put("a.jsonl", rows), Asked(most=10))
    newest = sorted(rows, key=lambda row: row["date"])[-10:]
    assert [entry.target for entry in found.entries] == [row["text"] for row in newest]
    assert found.left_out == {"older than the newest 10 (--most)": 90}
    assert texts(
        put("b.jsonl", [{"text": str(n)} for n in range(9)]), Asked(most=2)
    ) == ["7", "8"]
    with pytest.raises(IdiolectError, match="--most"):
        read(put("a.jsonl", rows), Asked(most=0))


def test_a_long_list_is_read_a_piece_at_a_time(put, monkeypatch):
    monkeypatch.setattr("idiolect.client.imports.files._PIECE", 7)
    values = [{"text": "a, ]\u2028 b" * n, "n": n} for n in range(30)] + [
        12345678901,
        [],
        "x",
    ]
    for indent in (None, 2):
        path = put("a.json", "\ufeff " + json.dumps(values, indent=indent) + "\n ")
        assert list(records_of(path)) == values
    assert list(records_of(put("b.json", "[ ]"))) == []


# --- people ----------------------------------------------------------------------------


def test_a_file_of_several_people_is_asked_about(put):
    text = "author,text\nAnna,one\nBen,two\nanna ,three\n,four\n"
    path = put("a.csv", text)
    sentence = refused(path)
    assert "3 users: Anna (2), Ben (1), nobody named (1)" in sentence
    assert "--user NAME" in sentence
    found = read(path, Asked(user="ANNA"))
    assert [entry.target for entry in found.entries] == ["one", "three"]
    assert found.left_out == {"of other people": 2}
    sentence = refused(path, Asked(user="NOBODY"))
    assert sentence.startswith(
        "no user 'NOBODY': a.csv holds 3 users: Anna (2), Ben (1)"
    )
    assert texts(put("b.csv", "author,text\nAnna,one\nAnna,two\n")) == ["one", "two"]
    assert "leave out --user" in refused(
        put("c.csv", "text\none\n"), Asked(user="Anna")
    )


def oppu(put, users, queries=1):
    records = [
        {
            "user_id": user,
            "profile": [
                {"id": f"{i}", "title": f"title {i}", "abstract": f"about {i}"}
                for i in range(3)
            ],
            "query": [
                {"input": f"about {9 + n}", "gold": f"title {9 + n}", "id": f"{n}"}
                for n in range(queries)
            ],
        }
        for user in users
    ]
    return put("oppu.json", json.dumps(records)), records


def test_one_user_of_a_lamp_file(put):
    path, _ = oppu(put, ["ann", "jörg müller-ß"])
    found = texts(path, Asked(task="LaMP-5", user="jörg müller-ß"))
    assert found == ["title 0", "title 1", "title 2", "title 9"]
    assert "2 users: ann (4), jörg" in refused(path, Asked(task="LaMP-5"))
    assert refused(path, Asked(task="LaMP-5", user="eve")).startswith("no user 'eve': ")
    with pytest.raises(IdiolectError, match="--task must be one of LaMP-1"):
        read(path, Asked(task="LaMP-9", user="ann"))
    assert "--task LaMP-4" in refused(path)
    assert len(texts(oppu(put, ["ann"])[0], Asked(task="LaMP-5"))) == 4


def test_all_answered_questions_of_a_user_are_read(put):
    path, records = oppu(put, ["ann"], queries=4)
    records[0]["query"][1]["gold"] = None
    records[0]["profile"][0]["title"] = None
    path.write_text(json.dumps(records))
    found = read(path, Asked(task="LaMP-5"))
    assert [e.target for e in found.entries] == [
        *("title 1", "title 2", "title 9", "title 11", "title 12")
    ]
    assert found.left_out == {"items without text or answer": 2}
    assert found.entries[0].prompt.before.startswith("Generate a title")


def test_profiles_are_in_the_order_of_their_dates(put):
    path, records = oppu(put, ["ann", "ben"])
    for day, item in zip((3, 1, 2), records[0]["profile"], strict=True):
        item["date"] = f"2020/0{day}/11"
    records[1]["profile"] = [None]
    path.write_text(json.dumps(records))
    found = read(path, Asked(task="LaMP-5", user="ann"))
    assert [e.target for e in found.entries] == [
        "title 1",
        "title 2",
        "title 0",
        "title 9",
    ]
    assert "by date (from 'date'), 2020-01-11" in found.order


# --- chats -----------------------------------------------------------------------------


def node(role, text, parent, time=None, **more):
    message = {"author": {"role": role}, "create_time": time}
    message["content"] = {"content_type": "text", "parts": [text]}
    return {"message": message | more, "parent": parent}


def test_of_a_chatgpt_export_the_branches_shown_last_are_read(put):
    late = {
        "title": "late",
        "create_time": 1_700_000_000,
        "current_node": "d",
        "mapping": {
            "root": {"message": None, "parent": None},
            "x": node("user", "first wording", "root", 1_700_000_000),
            "y": node("assistant", "answer to it", "x"),
            "a": node("user", "second wording", "root", 1_700_000_001),
            "b": node("assistant", "Which one?", "a"),
            "c": node("tool", "noise", "b"),
            "h": node(
                "user",
                "about me",
                "c",
                metadata={"is_visually_hidden_from_conversation": True},
            ),
            "d": node("user", "the red one", "h", 1_700_000_009),
        },
    }
    early = {
        "create_time": 1_600_000_000,
        "mapping": {
            "a": node("user", "hello", None),
            "b": node("user", [{"asset_pointer": "picture"}], None),
        },
    }
    early["mapping"]["b"]["message"]["content"]["parts"] = [
        {"asset_pointer": "picture"}
    ]
    early["mapping"]["b"]["parent"] = "a"
    early["current_node"] = "b"
    found = read(put("conversations.json", json.dumps([late, early])))
    assert [(e.prompt.text, e.target) for e in found.entries] == [
        ("", "hello"),
        ("", "second wording"),
        ("Which one?", "the red one"),
    ]
    assert found.left_out == {
        "messages on branches that were edited away": 1,
        "messages without text": 1,
    }
    assert found.entries[0].written == 1_600_000_000


def test_a_conversation_without_a_current_node_ends_at_its_newest(put):
    tree = {"a": node("user", "hi", None, 1), "b": node("assistant", "yes?", "a", 2)}
    tree |= {"c": node("user", "bye", "b", 3), "loop": {"parent": "loop"}}
    path = put(
        "conversations.json", json.dumps([{"mapping": tree, "create_time": 1.7e9}])
    )
    assert texts(path, Asked(dates="ignore")) == ["hi", "bye"]
    assert "conversation 2 has no messages" in refused(
        put("conversations.json", json.dumps([{"mapping": {}}, {"mapping": 5}]))
    )


def test_a_claude_export(put):
    turns = [
        {"sender": "human", "text": "Hi", "created_at": "2024-01-01T00:00:00Z"},
        {"sender": "assistant", "text": "Yes?"},
        {"sender": "human", "text": "Bye", "created_at": "2024-01-01T00:01:00Z"},
        {"sender": "human", "text": " ", "created_at": "2024-01-01T00:01:00Z"},
    ]
    found = read(put("conversations.json", json.dumps([{"chat_messages": turns}])))
    assert [(e.prompt.text, e.target) for e in found.entries] == [
        ("", "Hi"),
        ("Yes?", "Bye"),
    ]
    assert found.left_out == {"messages without text": 1}


def test_a_claude_message_whose_text_is_null(put):
    """Of files alone: nothing was written. In parts: that is the text."""
    parts = [{"type": "text", "text": "In parts"}, {"type": "image", "source": {}}]
    turns = [
        {"sender": "human", "text": None, "files": [{"file_name": "a.pdf"}]},
        {"sender": "assistant", "text": None, "content": [{"text": "Which page?"}]},
        {"sender": "human", "text": None, "content": parts},
    ]
    export = [{"chat_messages": turns, "created_at": "2024-01-01T00:00:00Z"}]
    found = read(put("conversations.json", json.dumps(export)))
    assert [(e.prompt.text, e.target) for e in found.entries] == [
        ("Which page?", "In parts")
    ]
    assert found.left_out == {"messages without text": 1}
    export[0]["chat_messages"] = [{"sender": "human", "text": 5}]
    assert "a message holds 5, which is not text" in refused(
        put("conversations.json", json.dumps(export))
    )


IPHONE = """\ufeff[13/02/2024, 10:00:03] Family: \u200eMessages are end-to-end encrypted.\r
[13/02/2024, 10:00:04] Anna: hi all\r
it's: me\u2028again\r
[13/02/2024, 10:00:09] Ben Ö: how are you?\r
[13/02/2024, 10:00:19] ~\u202fCarla: and where?\r
\u200e[13/02/2024, 10:01:03] Anna: \u200eimage omitted\r
[13/02/2024, 09:59:30] Anna: fine \u200e<This message was edited>\r
[13/02/2024, 09:59:31] Anna: at home\r
"""
ANDROID = """12/31/23, 9:15\u202fPM - Messages are encrypted
12/31/23, 9:15\u202fPM - Ben: Party?
12/31/23, 9:16\u202fPM - Anna: <Media omitted>
1/1/24, 12:01\u202fAM - Anna: Happy new year

Ben!
1/1/24, 1:02 PM - Ben: You too
"""
GERMAN = "31.12.23, 21:15 - Anna: Prost\n01.01.24, 00:01 - Ben: Danke\n"


def test_whatsapp_from_an_iphone(put):
    path = put("_chat.txt", IPHONE)
    assert "3 users: Anna (3), Ben Ö (1), Carla (1)" in refused(path)
    found = read(path, Asked(user="anna"))
    assert [(e.prompt.text, e.target) for e in found.entries] == [
        ("", "hi all\nit's: me\nagain"),
        ("how are you?\nand where?", "fine"),  # the clock was set back in between
        ("", "at home"),
    ]
    assert found.entries[1].written == 1707818404.0
    assert found.left_out == {
        "notices, pictures, calls and deleted messages": 2,
        "of other people": 2,
    }
    assert texts(path, Asked(user="Ben O\u0308")) == ["how are you?"]


def test_whatsapp_from_android(put):
    found = read(put("WhatsApp Chat with Ben.txt", ANDROID), Asked(user="Anna"))
    assert [(e.prompt.text, e.target) for e in found.entries] == [
        ("Party?", "Happy new year\n\nBen!")
    ]
    assert found.entries[0].written == 1704067260.0
    assert texts(put("chat.txt", GERMAN), Asked(user="Ben")) == ["Danke"]


@pytest.mark.parametrize(
    "notice",
    [
        "Diese Nachricht wurde gelöscht.",
        "Vous avez supprimé ce message",
        "Eliminaste este mensaje.",
        "IMG-1.jpg (Datei angehängt)",
    ],
)
def test_whatsapps_own_words_are_left_out_in_other_languages(put, notice):
    said = f"31.12.23, 21:15 - Anna: {notice}\n31.12.23, 21:16 - Anna: Prost\n"
    found = read(put("chat.txt", said))
    assert [entry.target for entry in found.entries] == ["Prost"]
    assert found.left_out == {"notices, pictures, calls and deleted messages": 1}


def test_what_is_written_below_a_picture_is_kept(put):
    said = "31.12.23, 21:15 - Anna: \u200eIMG-1.jpg (file attached)\nthe lake\n"
    assert texts(put("chat.txt", said)) == ["the lake"]


def test_whatsapp_with_dates_of_two_readings_keeps_the_order_of_the_chat(put):
    path = put("chat.txt", "3/4/24, 10:00 - Anna: one\n2/5/24, 10:00 - Anna: two\n")
    found = read(path)
    assert [entry.target for entry in found.entries] == ["one", "two"]
    assert [entry.written for entry in found.entries] == [None, None]
    assert "3/4/24" in found.order and "--dates dmy" in found.order
    assert read(path, Asked(dates="dmy")).entries[0].written == 1712138400.0


def test_telegram(put):
    me, ben = {"from": "Me", "from_id": "user1"}, {"from": "Ben", "from_id": "user2"}

    def message(number, who, text, **more):
        time = str(1_700_000_000 + number)
        row = {"id": number, "type": "message", "date_unixtime": time, "text": text}
        return row | who | more

    chat = {
        "name": "Ben",
        "type": "personal_chat",
        "messages": [
            {"id": 0, "type": "service", "actor": "Ben"},
            message(1, ben, "Where?"),
            message(2, ben, "And when?"),
            message(3, me, ["at ", {"type": "link", "text": "home.org"}, " ok"]),
            message(4, me, "there", reply_to_message_id=1),
            message(5, me, "news", forwarded_from="Paper"),
            message(6, me, "", photo="a.jpg"),
        ],
    }
    path = put("result.json", json.dumps(chat))
    assert "2 users: Ben (2), Me (2)" in refused(path)
    expected = [
        ("Where?\nAnd when?", "at home.org ok", True),
        ("Where?", "there", True),
    ]
    assert got(path, Asked(user="me")) == got(path, Asked(user="user1")) == expected
    account = {"personal_information": {"user_id": 1}, "chats": {"list": [chat]}}
    found = read(put("result.json", json.dumps(account)))
    assert [(e.prompt.text, e.target, True) for e in found.entries] == expected
    assert found.left_out["forwarded messages"] == 1
    twin = message(7, {"from": "Me", "from_id": "user3"}, "I am another")
    chat["messages"].append(twin)
    sentence = refused(put("result.json", json.dumps(chat)), Asked(user="Me"))
    assert "2 users are called 'Me': give one of 'user1', 'user3'" in sentence


# --- mail and notes --------------------------------------------------------------------

MAIL = """From me Tue Mar 12 10:00:00 2024
From: Me Myself <Me@x.org>
Subject: Re: AW: Lunch
Date: Wed, 13 Mar 2024 10:00:00 +0100
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: quoted-printable

Ja, sch=C3=B6n.

Am 12.03.2024 um 09:00 schrieb Anna:
> Lunch?

>From here it is near.
--=20
Me Myself

From anna Tue Mar 12 11:00:00 2024
From: anna@y.org
Subject: =?utf-8?q?Caf=C3=A9?=
Date: Tue, 12 Mar 2024 11:00:00 +0000

Good.

From me Tue Mar 12 11:00:00 2024
From: me@x.org
Subject: older
Date: Mon, 11 Mar 2024 11:00:00 +0000
Content-Type: text/html

<b>no plain text</b>
"""


def test_a_mailbox_is_not_of_one_encoding(put):
    head = (
        "From x\nFrom: me@x.org\nSubject: s\nContent-Type: text/plain; charset=latin-1"
    )
    mails = f"{head}\nContent-Transfer-Encoding: 8bit\n\ncafé\n".encode("latin-1")
    for name in ("a.mbox", "Sent"):
        assert texts(put(name, mails)) == ["café"]


def test_telegrams_ids_may_be_anything(put):
    one = {"type": "message", "from": "A", "from_id": "u1", "date": "2024-01-01"}
    messages = [
        {**one, "id": [1], "text": "x"},
        {**one, "id": 2, "reply_to_message_id": {"a": 1}, "text": "y"},
    ]
    path = put("result.json", json.dumps({"messages": messages}))
    assert texts(path) == ["x", "y"]


def test_a_long_field_is_left_out_whole(put):
    path = put("a.csv", 'text\n"' + "x\n" * 70000 + '"\nshort\n')
    assert "line 2: text has 140000 characters" in refused(path)
    found = read(path, SKIP)
    assert [entry.target for entry in found.entries] == ["short"]
    assert found.left_out == {"too long": 1}


@pytest.mark.parametrize(
    "date", ["9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+14:00"]
)
def test_a_date_that_its_zone_leads_out_of_all_years_is_refused(put, date):
    said = refused(put("a.jsonl", [{"text": "x", "date": date}]))
    assert "line 1: date: " in said


def test_a_mailbox(put):
    path = put("sent.mbox", MAIL)
    assert "2 users: me@x.org (1), anna@y.org (1)" in refused(path)
    found = read(path, Asked(user="ME@x.org"))
    assert [(e.prompt.text, e.target) for e in found.entries] == [
        ("Lunch", "Ja, schön.\n\nFrom here it is near.")
    ]
    assert found.entries[0].written == 1710320400.0
    assert found.left_out == {"of other people": 1, "mails without plain text": 1}
    folder = path.with_name("Apple.mbox")
    folder.mkdir()
    path.rename(folder / "mbox")
    assert texts(folder, Asked(user="anna@y.org")) == ["Good."]


NESTED = b"".join(
    b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (i, i)
    for i in range(1500)
)


@pytest.mark.parametrize(
    "mail",
    [
        b"From: " + b"(" * 3000 + b"\nSubject: x\n\nbody\n",
        b"From: a@b.c\n" + NESTED + b"Content-Type: text/plain\n\nhi\n",
        b"From: a@b.c\n" + b"Content-Type: message/rfc822\n\n" * 1500 + b"\nhi\n",
    ],
)
def test_one_received_mail_does_not_end_the_import(put, mail):
    head = b"From x@y.org Mon Jan  1 00:00:00 2024\n"
    mine = b"From: me@x.org\nSubject: hi\n\nhello there\n\n"
    path = put("in.mbox", head + mine + head + mail + b"\n")
    assert "mail 2 cannot be read (nested too deeply)" in refused(path)
    found = read(path, Asked(user="me@x.org", skip=True))
    assert [e.target for e in found.entries] == ["hello there"]
    assert found.left_out == {"malformed mail": 1}


@pytest.mark.parametrize(
    ("text", "own"),
    [
        (
            "Yes.\n\nOn Mon, 11 Mar 2024 at 09:00, Anna <a@y.org>\nwrote:\n\n> No?\n",
            "Yes.",
        ),
        ("Yes.\r\n\r\n-----Original Message-----\r\nFrom: x\r\nsecret", "Yes."),
        ("See below:\n\n> one\nyes\n> two\nno", "yes\nno"),
        ("I like: this\n> one\nyes", "I like: this\nyes"),
        ("Hi\n-- \nsignature", "Hi"),
        ("Hi\n\nBegin forwarded message:\n\n> x", "Hi"),
        ("> only\n> quoted", ""),
    ],
)
def test_own_words_of_a_mail(text, own):
    assert own_words(text) == own


def test_a_link_or_a_pipe_among_notes_is_left_out(tmp_path):
    """A handed folder must not bring in what lies elsewhere, nor wait for ever."""
    (tmp_path / "secret.key").write_text("a private key")
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.md").write_text("my note")
    (folder / "b.md").symlink_to("../secret.key")
    os.mkfifo(folder / "c.md")
    found = read(folder)
    assert [e.target for e in found.entries] == ["my note"]
    assert found.left_out == {"links and special files": 2}


def test_a_folder_of_notes(put, tmp_path):
    folder = tmp_path / "notes"
    (folder / "sub").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for number, (name, text) in enumerate(
        {
            "new.md": "# New\nwords",
            "sub/old.txt": "old",
            "x.png": "",
            "empty.md": "\n",
        }.items()
    ):
        (folder / name).write_text(text)
        os.utime(folder / name, (1_700_000_000 - number, 1_700_000_000 - number))
    (folder / ".hidden" / "a.txt").write_text("secret")
    found = read(folder)
    assert [(e.prompt.text, e.target) for e in found.entries] == [
        ("old", "old"),
        ("new", "# New\nwords"),
    ]
    assert found.left_out == {"files other than .txt and .md": 1, "empty files": 1}
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(IdiolectError, match="latin.txt is not UTF-8 text"):
        read(folder)
    assert read(folder, SKIP).left_out["not UTF-8"] == 1
    put("notes/conversations.json", "[]")
    with pytest.raises(IdiolectError, match="import that file"):
        read(folder)


def test_the_documentation_lists_what_is_read():
    page = (DOCS / "device.md").read_text()
    table = page[page.index("| kind | known by | text | prompt |") :].split("\n\n")[0]
    named = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()]
    assert named[2:] == [kind.name for kind in kinds.KINDS]
    assert f"the messages of others right before, at most {chats.BEFORE} |" in table


def test_a_file_that_is_not_there_is_named(tmp_path):
    for name in ("missing.jsonl", "missing.json", "missing.mbox", "missing"):
        assert "cannot be read" in refused(tmp_path / name)
