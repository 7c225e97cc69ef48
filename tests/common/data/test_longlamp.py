"""LongLaMP readers: files of the published shapes, and siblings that are broken."""

import json
import sys
from typing import Any

import pytest

from idiolect.common.config import parse
from idiolect.common.data import lamp
from idiolect.common.data.lamp import forms, longlamp
from idiolect.common.data.load import load_dataset
from idiolect.common.errors import IdiolectError

pytestmark = pytest.mark.slow

ABSTRACT, REVIEW, TOPIC = "LongLaMP-abstract", "LongLaMP-review", "LongLaMP-topic"
FOLDERS = {
    ABSTRACT: "abstract_generation",
    REVIEW: "product_review",
    TOPIC: "topic_writing",
}


def review_question(rating: str, description: str, summary: str) -> str:
    """As it is published, with its slip."""
    return (
        "Generate the review text written by a reviewer who has a given an overall "
        f'rating of "{rating}" for a product with description "{description}". The '
        f'summary of the review text is "{summary}".'
    )


# task -> (field of the user, profile item, question), numbered by user u and item i: the
# public schema
SAMPLES: dict[str, Any] = {
    ABSTRACT: (
        "name",
        lambda u, i: {
            "abstract": f"We study {u}.{i} at length.",
            "id": f"{u}{i}",
            "title": f"Paper {u}.{i}",
            "year": 2001 + i,
        },
        lambda u, q: (
            f'Generate an abstract for the title "Asked {u}.{q}" using the following '
            "items: 1. deep nets\n2. long texts"
        ),
    ),
    REVIEW: (
        "reviewerId",
        lambda u, i: {
            "description": f"Lamp {u}.{i}, brass",
            "overall": f"{1 + i % 5}.0",
            "reviewText": f"I like lamp {u}.{i}.\nVery much.",
            "summary": f"Fine {u}.{i}",
        },
        lambda u, q: review_question("5.0", f"Asked {u}.{q}, oak", f"Good {u}.{q}"),
    ),
    TOPIC: (
        "author",
        lambda u, i: {
            "author": f"u{u}",
            "content": f"So there I was {u}.{i}. It rained.",
            "id": f"t3_{u}{i}",
            "summary": f"walk {u}.{i} in the rain",
        },
        lambda u, q: f"Generate the content for a reddit post asked {u}.{q} of me",
    ),
}


def rows_of(task: str, users: int = 6, items: int = 8, questions: int = 1) -> list[Any]:
    """Rows of one split; with several questions a user they are mixed, as in time."""
    field, item, question = SAMPLES[task]
    return [
        {
            field: f"u{u}",
            "input": question(u, q),
            "output": f"Gold {u}.{q}, first line.\nAnd the second line.",
            "profile": [item(u, i) for i in range(items + q)],
        }
        for q in range(questions)
        for u in range(users)
    ]


def parquet(path, rows) -> None:
    import pyarrow
    from pyarrow import parquet as files

    files.write_table(pyarrow.Table.from_pylist(rows), path)


def lines(path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(data, task=REVIEW, users=3, development=2, **more):
    keys = {key.replace("_", "-"): value for key, value in more.items()}
    config = {"task": task, "data": str(data), "users": users}
    return lamp.read(parse({**config, "development-users": development, **keys}))


def refused(data, task=REVIEW, **more) -> str:
    with pytest.raises(IdiolectError) as caught:
        read(data, task, **more)
    said = str(caught.value)
    assert "\n" not in said and said.endswith(".")
    return said


# --- shapes that are right --------------------------------------------------------------


@pytest.mark.parametrize("task", SAMPLES)
@pytest.mark.parametrize("shape", ["shards", "one", "jsonl", "json", "root"])
def test_every_task_is_read_in_every_shape(tmp_path, task, shape):
    rows, folder = rows_of(task), tmp_path
    if shape in ("shards", "one", "root"):
        pytest.importorskip("pyarrow")
    if shape in ("shards", "root"):
        if shape == "root":
            folder = tmp_path / f"{FOLDERS[task]}_user"
            folder.mkdir()
        parquet(folder / "test-00000-of-00002.parquet", rows[:2])
        parquet(folder / "test-00001-of-00002.parquet", rows[2:])
        lines(folder / "val.jsonl", rows_of(task, users=2))
    elif shape == "one":
        parquet(tmp_path / "test.parquet", rows)
    elif shape == "jsonl":
        lines(tmp_path / "test.jsonl", rows)
    else:
        (tmp_path / "train.json").write_text(json.dumps(rows))
    dataset = read(tmp_path, task, held_out=1)
    assert [user.id for user in dataset.users] == ["u0", "u1", "u2"]
    assert [user.id for user in dataset.development] == ["u3", "u4"]
    assert {item.id.split("/")[0] for item in dataset.public} == {"u5"}
    (asked,) = dataset.users[1].held_out
    published = " ".join(rows[1]["input"].split())
    assert asked.prompt.text == published + forms.FORMS[task].cue
    assert asked.target == "Gold 1.0, first line. And the second line."
    assert asked.prompt.input.lower().startswith("asked 1.0")
    assert dataset.dropped == {}
    assert dataset.task.kind == "long"


@pytest.mark.parametrize(
    ("task", "before", "source", "after", "target"),
    [
        (
            ABSTRACT,
            'Generate an abstract for the title "',
            "Paper 0.7",
            '" abstract:',
            "We study 0.7 at length.",
        ),
        (
            REVIEW,
            review_question("3.0", "|", "").partition("|")[0],
            "Lamp 0.7, brass",
            '". The summary of the review text is "Fine 0.7". review:',
            "I like lamp 0.7. Very much.",
        ),
        (
            TOPIC,
            "Generate the content for a reddit post ",
            "walk 0.7 in the rain",
            " content:",
            "So there I was 0.7. It rained.",
        ),
    ],
)
def test_a_history_pair_is_asked_as_the_question_is(
    tmp_path, task, before, source, after, target
):
    lines(tmp_path / "val.jsonl", rows_of(task))
    last = read(tmp_path, task, held_out=1).users[0].history[-1]
    prompt = last.prompt
    assert (prompt.before, prompt.input, prompt.after) == (before, source, after)
    assert last.target == target


def test_braces_in_a_text_are_no_fields(tmp_path):
    rows = rows_of(REVIEW)
    rows[0]["profile"][-1] |= {"overall": "{summary}", "description": "{overall} {x}"}
    lines(tmp_path / "test.jsonl", rows)
    prompt = read(tmp_path, held_out=1).users[0].history[-1].prompt
    assert prompt.input == "{overall} {x}" and '"{summary}"' in prompt.before


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_questions_of_one_user_are_one_record_with_the_first_profile(tmp_path, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    rows = rows_of(TOPIC, users=3, questions=3)
    # What a later profile has, an earlier question asks for.
    rows[3]["profile"][-1]["content"] = rows[0]["output"]
    write = parquet if suffix == "parquet" else lines
    write(tmp_path / f"test.{suffix}", rows)
    dataset = read(tmp_path, TOPIC, users=2, development=1, held_out=3)
    user = dataset.users[0]
    assert [item.target[:8] for item in user.held_out] == [
        "Gold 0.0",
        "Gold 0.1",
        "Gold 0.2",
    ]
    assert len(user.history) == 8 and dataset.dropped == {}


def test_held_out_grows_by_history_pairs_that_ask_all_that_a_question_asks(tmp_path):
    for task, count in ((REVIEW, 3), (TOPIC, 3), (ABSTRACT, 1)):
        lines(tmp_path / "test.jsonl", rows_of(task))
        held = read(tmp_path, task, held_out=8).users[0].held_out
        assert len(held) == count, task  # of eight items a quarter, and the question


def test_abstracts_are_ordered_by_year(tmp_path):
    rows = rows_of(ABSTRACT)
    rows[0]["profile"].reverse()
    lines(tmp_path / "test.jsonl", rows)
    history = read(tmp_path, ABSTRACT, history=2).users[0].history
    assert [item.prompt.input for item in history] == ["Paper 0.6", "Paper 0.7"]


@pytest.mark.parametrize("task", SAMPLES)
def test_what_a_question_asks_for_is_not_learnt(tmp_path, task):
    rows, source = rows_of(task), forms.FORMS[task].source
    rows[0]["profile"][2][source] = read_input(rows[0], task)
    rows[0]["profile"][4][forms.FORMS[task].answer] = rows[0]["output"].upper()
    rows[1]["profile"][5][source] = "5.0"  # stands in a question, as a rating
    lines(tmp_path / "test.jsonl", rows)
    dataset = read(tmp_path, task, held_out=1)
    assert dataset.dropped == {lamp.LEAKED: 2}
    assert len(dataset.users[1].history) == 8


def read_input(row, task) -> str:
    found = {ABSTRACT: "Asked 0.0", REVIEW: "Asked 0.0, oak", TOPIC: "asked 0.0 of me"}
    assert found[task] in row["input"]
    return found[task]


REWORDED = {
    ABSTRACT: [
        'Generate an abstract for a paper with the title: "TEXT".',
        "Write an abstract for the title \u201cTEXT\u201d with the following items: 1. x",
    ],
    REVIEW: [
        (
            "Generate the review text written by a reviewer who has given an overall "
            'rating of "4.0" for a product with description "TEXT". The summary of the '
            'review text is "all good".'
        ),
        (
            "Generate the review text written by a reviewer who has given an overall "
            "rating of 4 for a product with description TEXT. The summary of the review "
            "text is all good."
        ),
    ],
    TOPIC: ["Write the content for a Reddit post: TEXT"],
}


@pytest.mark.parametrize(
    ("task", "wording"),
    [(task, text) for task, all in REWORDED.items() for text in all],
)
def test_a_question_in_other_words_is_recognised(tmp_path, task, wording):
    rows, source = rows_of(task), forms.FORMS[task].source
    text = rows[0]["profile"][3][source]
    rows[0]["input"] = wording.replace("TEXT", text)
    lines(tmp_path / "test.jsonl", rows)
    dataset = read(tmp_path, task, held_out=1)
    (asked,) = dataset.users[0].held_out
    assert asked.prompt.input == text
    assert asked.prompt.text == rows[0]["input"] + forms.FORMS[task].cue
    assert dataset.dropped == {lamp.LEAKED: 1}


# --- copies in other hands ----------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda profile: json.dumps(profile),
        lambda profile: {key: [one[key] for one in profile] for key in profile[0]},
        lambda profile: [one | {"overall": float(one["overall"])} for one in profile],
        lambda profile: [
            one | {"description": one["description"].split(" ", 1)} for one in profile
        ],
    ],
    ids=["json in a text", "lists", "numbers", "paragraphs"],
)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_other_shapes_of_a_profile_are_the_same_users(tmp_path, change, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    rows = rows_of(REVIEW)
    lines(tmp_path / "plain.jsonl", rows)
    write = parquet if suffix == "parquet" else lines
    changed = [row | {"profile": change(row["profile"])} for row in rows]
    write(tmp_path / f"test.{suffix}", changed)
    assert read(tmp_path).users == read(tmp_path / "plain.jsonl").users


def test_other_names_of_fields(tmp_path):
    rows = rows_of(TOPIC)
    lines(tmp_path / "plain.jsonl", rows)
    changed = [
        {
            "user_id": row["author"],
            **{key: row[key] for key in ("input", "output")},
            "profile": [
                {"input": one["summary"], "output": one["content"]}
                for one in row["profile"]
            ],
        }
        for row in rows
    ]
    lines(tmp_path / "test.jsonl", changed)
    assert read(tmp_path, TOPIC).users == read(tmp_path / "plain.jsonl", TOPIC).users


def test_own_users_in_oppus_shape(tmp_path):
    _, item, question = SAMPLES[REVIEW]
    records = [
        {
            "user_id": u,
            "profile": [item(u, i) for i in range(8)],
            "query": [{"id": q, "input": question(u, q), "gold": "Mine"} for q in "ab"],
        }
        for u in range(5)
    ]
    path = tmp_path / "users.json"
    path.write_text(json.dumps(records))
    assert len(read(path, held_out=2).users[0].held_out) == 2


def test_a_data_set_of_a_hub(monkeypatch):
    asked = []

    class Library:
        @staticmethod
        def load_dataset(*names, split):
            asked.append((*names, split))
            return rows_of(REVIEW)

    monkeypatch.setitem(sys.modules, "datasets", Library)
    name = "hub:LongLaMP/LongLaMP/product_review_user/test"
    dataset = read(name, held_out=1)
    assert asked == [("LongLaMP/LongLaMP", "product_review_user", "test")]
    assert dataset.source == name and len(dataset.users) == 3

    def broken(*_names, split):
        raise ConnectionError(f"no {split}\n  here.")

    monkeypatch.setattr(Library, "load_dataset", broken)
    assert "(no test here): check the names and the connection" in refused(name)
    assert "write hub:OWNER/NAME/CONFIG/SPLIT" in refused("hub:LongLaMP/LongLaMP")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "needs the library datasets: install idiolect[longlamp]" in refused(name)


# --- siblings that are broken -------------------------------------------------------------


def test_a_part_that_is_missing(tmp_path):
    (tmp_path / "test-00000-of-00003.parquet").touch()
    (tmp_path / "test-00002-of-00003.parquet").touch()
    said = refused(tmp_path)
    assert "lacks test-00001-of-00003.parquet of 3 parts: download it too" in said


def test_a_parquet_file_that_is_damaged(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "test.parquet"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert f"{path} is not a parquet file" in refused(tmp_path)
    parquet(path, rows_of(REVIEW, users=40))
    whole = bytearray(path.read_bytes())
    whole[200:3000] = bytes(2800)  # its directory at the end is whole
    path.write_bytes(whole)
    assert f"{path} cannot be read" in refused(tmp_path)


def test_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "test.parquet").touch()
    said = refused(tmp_path)
    assert "test.parquet needs the library pyarrow: install idiolect[longlamp]" in said


def test_both_kinds_of_split(tmp_path):
    for kind in ("user", "temporal"):
        (tmp_path / f"product_review_{kind}").mkdir()
    said = refused(tmp_path)
    assert "product_review_user and product_review_temporal: set 'data' to one" in said


def test_no_files(tmp_path):
    assert "there is no file or folder" in refused(tmp_path / "nowhere")
    (tmp_path / "dev_questions.json").write_text("[]")
    assert "holds no test, val or train as .parquet, .jsonl or" in refused(tmp_path)


@pytest.mark.parametrize(("held", "asked"), [(TOPIC, REVIEW), (REVIEW, ABSTRACT)])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_files_of_another_task(tmp_path, held, asked, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    write = parquet if suffix == "parquet" else lines
    write(tmp_path / f"test.{suffix}", rows_of(held))
    said = refused(tmp_path, asked)
    assert f"test.{suffix} holds {held}, but the config says {asked}" in said
    assert f"set task={held}." in said


@pytest.mark.parametrize("field", ["reviewerId", "input", "output", "profile"])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_field_that_is_missing_everywhere(tmp_path, field, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    rows = rows_of(REVIEW)
    for row in rows:
        del row[field]
    (parquet if suffix == "parquet" else lines)(tmp_path / f"test.{suffix}", rows)
    said = refused(tmp_path)
    assert f"test.{suffix} has no field {field}" in said and "(it has " in said


@pytest.mark.parametrize("text", ['{"input": ', "[" * 100_000, "9" * 10_000])
def test_a_line_that_is_not_json(tmp_path, text):
    path = tmp_path / "test.jsonl"
    lines(path, rows_of(REVIEW))
    # A line that begins with a bracket is a list only where the file begins with it.
    path.write_text(path.read_text() + text + "\n")
    assert f"{path}, line 7, is not JSON" in refused(tmp_path)
    path.write_bytes(b'{"input": "\xff"}')
    assert "is not UTF-8 text (byte 11)" in refused(tmp_path)


def at(row, *path):
    for step in path:
        row = row[step]
    return row


BROKEN = [
    ((), "reviewerId", None, "missing field", "field 'user_id' is missing"),
    ((), "reviewerId", ["u"], "wrong type", "'user_id' is not a text or number"),
    ((), "input", None, "missing field", "'query[0].input' is missing"),
    ((), "output", None, "missing gold", "has no gold output"),
    ((), "output", " \n", "empty text", "'query[0].gold' is empty"),
    ((), "profile", None, "missing field", "field 'profile' is missing"),
    ((), "profile", "none", "wrong type", "field 'profile' is not a list"),
    ((), "profile", [], "empty history", "no history item to learn from"),
    (
        (),
        "profile",
        {"reviewText": ["a", "b"], "description": ["a"]},
        "wrong type",
        "field 'profile' is not a list",
    ),
    (("profile", 1), "reviewText", 7, "wrong type", "'profile[1].reviewText' is not"),
    (("profile", 1), "overall", [5], "wrong type", "neither a text nor a number"),
    (("profile", 1), "description", [5], "wrong type", "'profile[1].description' is"),
]


@pytest.mark.parametrize(("path", "field", "value", "reason", "sentence"), BROKEN)
def test_a_malformed_user_is_named_or_counted(
    tmp_path, path, field, value, reason, sentence
):
    rows = rows_of(REVIEW)
    at(rows[1], *path)[field] = value
    lines(tmp_path / "test.jsonl", rows)
    said = refused(tmp_path)
    assert said.startswith(f"{tmp_path.name}/test.jsonl: record 1")
    assert sentence in said and "skip-bad-users=true" in said
    dataset = read(tmp_path, skip_bad_users=True)
    assert dataset.dropped == {reason: 1}
    assert [user.id for user in dataset.users] == ["u0", "u2", "u3"]


def test_a_field_that_one_item_lacks_and_a_value_that_is_missing(tmp_path):
    rows = rows_of(REVIEW)
    rows[0]["profile"][2]["description"] = None
    rows[0]["profile"][3]["summary"] = float("nan")  # asked with an empty summary
    lines(tmp_path / "test.jsonl", rows)
    user = read(tmp_path, held_out=1).users[0]
    assert len(user.history) == 7
    assert user.history[2].prompt.after.endswith('text is "". review:')
    del rows[0]["profile"][3]["summary"]
    lines(tmp_path / "test.jsonl", rows)
    assert "field 'profile[3].summary' is missing" in refused(tmp_path)


def test_a_year_that_is_none(tmp_path):
    rows = rows_of(ABSTRACT)
    rows[0]["profile"][4]["year"] = "n.d."
    lines(tmp_path / "test.jsonl", rows)
    assert "field 'profile[4].year' is 'n.d.'" in refused(tmp_path, ABSTRACT)


def test_lists_are_no_rows(tmp_path):
    path = tmp_path / "test.json"
    path.write_text('[["input", "output"]]')
    assert "record 0: the record is not a JSON object" in refused(tmp_path)
    path.write_text('{"rows": []}')
    assert "has no field reviewerId or user_id, input" in refused(tmp_path)


def test_every_task_has_a_place():
    long = {name for name, form in forms.FORMS.items() if form.template}
    assert set(longlamp.PUBLISHED) == long == set(SAMPLES)


def test_meteor_with_synonyms_needs_its_data(tmp_path, monkeypatch):
    from idiolect.common.data import metrics

    monkeypatch.setattr(metrics, "wordnet_missing", lambda: ["wordnet"])
    lines(tmp_path / "test.jsonl", rows_of(REVIEW))
    keys = {"task": REVIEW, "data": str(tmp_path), "users": 3, "development-users": 2}
    with pytest.raises(IdiolectError, match="needs nltk's data wordnet: install"):
        load_dataset(parse({**keys, "evaluate.meteor": "wordnet"}))
    assert len(load_dataset(parse(keys)).users) == 3
