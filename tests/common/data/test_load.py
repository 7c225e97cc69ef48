"""The one entrance to data, and files of public text."""

import pytest

from idiolect.common.config import parse
from idiolect.common.data import load, personas
from idiolect.common.data.types import Dataset, Item, Prompt, Task, User
from idiolect.common.errors import IdiolectError


def user(name="u", history=1, held_out=1):
    def items(part, count):
        prompt = Prompt("", "x")
        return tuple(Item(f"{name}/{part}/{i}", prompt, "y") for i in range(count))

    return User(name, items("history", history), items("query", held_out))


def dataset(*users, development=()):
    return Dataset(Task("headline", "generation"), tuple(users), tuple(development))


def refused(function, *arguments):
    with pytest.raises(IdiolectError) as caught:
        function(*arguments)
    return str(caught.value)


def test_personas_read_no_files(tmp_path):
    message = refused(load.load_dataset, parse({"data": str(tmp_path)}))
    assert "reads no files" in message and "leave 'data' empty" in message


def test_lamp_needs_files():
    message = refused(load.load_dataset, parse({"task": "LaMP-4"}))
    assert "'data' is empty" in message and "docs/data.md" in message


def test_dispatch_is_cached_and_checked(monkeypatch):
    calls = []

    def make(config):
        calls.append(config)
        return dataset(user("a"), user("b"))

    monkeypatch.setattr(personas, "make", make)
    load.load_dataset.cache_clear()
    config = parse({"seed": 12345})
    try:
        assert load.load_dataset(config) is load.load_dataset(parse({"seed": 12345}))
        assert calls == [config]
        load.load_dataset(parse({"seed": 12346}))
        assert len(calls) == 2
    finally:
        load.load_dataset.cache_clear()


def test_a_sound_dataset_passes():
    load.check(dataset(user("a"), user("B-1.2@x_y+z"), development=[user("7")]))


def test_users_are_unique_across_groups():
    message = refused(load.check, dataset(user("a"), development=[user("a")]))
    assert "user 'a' appears 2 times" in message


@pytest.mark.parametrize("name", ["", " ", "a  b", "\0", "a\n", "\u200b", "x" * 101])
def test_names_that_cannot_be_told_apart_are_refused(name):
    assert "has no usable id" in refused(load.check, dataset(user(name)))


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "a b", "é", "-", "x" * 100])
def test_names_need_not_be_file_names(name):
    load.check(dataset(user(name)))


def test_empty_parts_are_named():
    message = refused(load.check, dataset(user("a", history=0)))
    assert "user 'a' has no history" in message
    message = refused(load.check, dataset(user("a", held_out=0)))
    assert "user 'a' has no held-out items" in message


def test_public_items(tmp_path):
    path = tmp_path / "public.jsonl"
    path.write_text(
        '{"prompt": "Write:\\n it", "target": "One\\u0000", "more": 1}\n\n'
        '{"prompt": "Again", "target": "Two\u2028lines"}\n',
        encoding="utf-8",
    )
    first, second = load.public_items(path)
    assert (first.id, first.prompt, first.target) == (
        "public/1",
        Prompt("", "Write: it"),
        "One",
    )
    assert (second.id, second.target) == ("public/3", "Two lines")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{oops", "line 2: not JSON"),
        ("[" * 100_000, "line 2: not JSON"),
        ("[1]", "line 2: field 'prompt' is missing"),
        ('{"target": "y"}', "line 2: field 'prompt' is missing"),
        ('{"prompt": "x"}', "line 2: field 'target' is missing"),
        ('{"prompt": "x", "target": 5}', "line 2: field 'target' is missing, empty or"),
        ('{"prompt": "x", "target": "  "}', "line 2: field 'target' is missing, empty"),
    ],
)
def test_public_lines_are_checked(tmp_path, line, sentence):
    path = tmp_path / "public.jsonl"
    path.write_text('{"prompt": "x", "target": "y"}\n' + line)
    message = refused(load.public_items, path)
    assert message.startswith("public.jsonl, ") and sentence in message


def test_public_file_missing_or_empty(tmp_path):
    message = refused(load.public_items, tmp_path / "none.jsonl")
    assert "cannot read" in message and "unlabeled.file" in message
    (tmp_path / "empty.jsonl").write_text("\n\n")
    assert "holds no items" in refused(load.public_items, tmp_path / "empty.jsonl")
