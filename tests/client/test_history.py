import json
from dataclasses import replace

import pytest

from idiolect.client import consent, history, owner
from idiolect.client.history import Entry
from idiolect.client.vault import DEVICE, RandomKey, Record, Source, Vault
from idiolect.common.errors import IdiolectError
from idiolect.common.tasks.types import Prompt


@pytest.fixture
def vault(tmp_path):
    with Vault.create(tmp_path / "vault.db", RandomKey(bytes(32))) as made:
        yield made


def pair(prompt: str, target: str) -> Entry:
    return Entry(Prompt("", prompt), target)


def written(tmp_path, name: str, text: str):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_json_lines(tmp_path):
    lines = [
        {"prompt": "a?", "target": "yes"},
        {"input": "b?", "output": "no", "liked": False},
        {"text": "  alone\n in two lines \u0007\u202e"},
    ]
    text = "\n\n".join(map(json.dumps, lines)) + "\n"
    found = history.read_file(written(tmp_path, "mail.jsonl", text))
    assert found == [
        pair("a?", "yes"),
        Entry(Prompt("", "b?"), "no", liked=False),
        pair("", "alone\n in two lines"),
    ]


def test_csv_with_quotes_and_a_missing_liked(tmp_path):
    text = 'Prompt,target,liked\n"a, b",one,\nc,"two ""2""",no\n'
    found = history.read_file(written(tmp_path, "mail.csv", text))
    assert found == [
        pair("a, b", "one"),
        Entry(Prompt("", "c"), 'two "2"', liked=False),
    ]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.jsonl", '{"target": "x"}\n{"target": \n', "line 2 is no JSON"),
        ("a.jsonl", '["x"]\n', "line 1 is no JSON object"),
        ("a.jsonl", "[" * 100_000, "line 1 is no JSON"),
        ("a.jsonl", '{"prompt": "x"}\n', "line 1 has no text"),
        ("a.jsonl", '{"target": " \\u0007"}\n', "line 1 has an empty target"),
        ("a.jsonl", '{"target": 3}\n', "target must be text, not 3"),
        ("a.jsonl", '{"target": "x", "prompt": null}\n', "prompt must be text"),
        ("a.jsonl", '{"target": "x", "liked": "maybe"}\n', "true or false"),
        ("a.jsonl", json.dumps({"target": "x" * 100_001}), "100001 characters"),
        ("a.jsonl", "\n\n", "nothing to import"),
        ("a.csv", "target\na,b\n", "more or fewer fields"),
        ("a.csv", "prompt,target\na\n", "more or fewer fields"),
        ("a.csv", 'target\n"a\n', "unexpected end"),
        ("a.csv", "words\na\n", "has no text"),
        ("a.txt", "words", ".jsonl or a .csv"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, name, text, sentence):
    with pytest.raises(IdiolectError) as error:
        history.read_file(written(tmp_path, name, text))
    assert sentence in str(error.value) and name in str(error.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "latin.csv").write_bytes(b"target\n\xe9\n")
    for name in ("latin.csv", "missing.jsonl"):
        with pytest.raises(IdiolectError, match=name):
            history.read_file(tmp_path / name)


def lamp_file(tmp_path, users):
    records = [
        {
            "user_id": user,
            "profile": [
                {"id": f"{user}{i}", "title": f"title {i}", "abstract": f"about {i}"}
                for i in range(3)
            ],
            "query": [
                {"input": "Generate a title for: about 9", "gold": "title 9", "id": "9"}
            ],
        }
        for user in users
    ]
    return written(tmp_path, "oppu.json", json.dumps(records))


def test_one_user_of_a_lamp_file(tmp_path):
    path = lamp_file(tmp_path, ["ann", "bob"])
    found = history.read_file(path, "LaMP-5", "bob")
    assert "title 2" in [entry.target for entry in found] and len(found) >= 3
    with pytest.raises(IdiolectError, match="2 users.*--user"):
        history.read_file(path, "LaMP-5")
    with pytest.raises(IdiolectError, match="--user"):
        history.read_file(path, "LaMP-5", "eve")
    with pytest.raises(IdiolectError, match="--task must be one of LaMP-1"):
        history.read_file(path, "LaMP-9", "bob")
    assert history.read_file(lamp_file(tmp_path, ["ann"]), "LaMP-5")


def test_adding_leaves_out_what_is_there(vault):
    one, two = pair("a", "1"), pair("b", "2")
    assert history.add(vault, [one, two, one], "mail") == (2, 1)
    assert history.add(vault, [two, pair("c", "3")], "notes") == (1, 1)
    found = history.entries(vault)
    assert [entry.target for entry in found] == ["1", "2", "3"]
    assert [entry.source for entry in found] == ["mail", "mail", "notes"]
    assert found[0].item().prompt.text == "a" and found[0].item().id == one.id


def test_a_prompt_in_three_parts_comes_back(vault):
    entry = Entry(Prompt("before ", "input", " after"), "text")
    history.add(vault, [entry], "mail")
    assert history.entries(vault)[0].prompt == entry.prompt


HOSTILE = (
    *("device", "adapter 1", "run notes.jsonl", "run ", "run r", "import", "by hand"),
    *(
        '["device", ""]',
        "../vault.db",
        "x'; DROP TABLE records; --",
        "%s{0}",
        "x" * 255,
    ),
)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_sources_name_means_nothing_else(vault, name):
    """Not to settings, an adapter or a run's leftovers, which are of other kinds."""
    consent.choose(vault, threads="3")
    consent.pause(vault, True)
    others = [DEVICE, Source("run", "r"), Source("adapter", "1")]
    for source in others[1:]:
        vault.put("kept", [Record(source.kind, b"")], source)
    with pytest.raises(IdiolectError, match="there is no source"):
        owner.forget(vault, [name])
    history.add(vault, [pair("a", "1")], name)
    history.add(vault, [pair("b", "2")], "mail")
    assert [e.source for e in history.entries(vault)] == [name.strip(), "mail"]
    assert owner.forget(vault, [name]) == (1, [])
    assert [e.source for e in history.entries(vault)] == ["mail"]
    # What a run has trained is forgotten with any pair; nothing else is.
    assert vault.sources() == [DEVICE, others[2], Source("import", "mail")]
    assert consent.settings(vault)["threads"] == "3" and consent.paused(vault)


def test_a_name_that_a_terminal_would_obey_is_tidied_and_still_forgets(vault):
    for number, name in enumerate(("a\x1b[2Jb\n\tc", "\udcffnotes", "  d \u202e ")):
        history.add(vault, [pair("q", str(number))], name)
    assert [e.source for e in history.entries(vault)] == ["a[2Jb c", "notes", "d"]
    for name in ("a\x1b[2Jb\n\tc", "\udcffnotes", "d"):
        assert owner.forget(vault, [name]) == (1, [])
    # A version that did not tidy names kept this one.
    odd = replace(pair("q", "odd"), source="e\x07")
    vault.put(history.KIND, [history._record(odd)], Source("import", odd.source))
    assert owner.forget(vault, ["e"]) == (1, [])


@pytest.mark.parametrize("name", ["", " \n", "\x07", "x" * 256])
def test_a_name_that_is_none_is_refused(vault, name):
    with pytest.raises(IdiolectError, match=r"source's name .*1 to 255.*--source NAME"):
        history.add(vault, [pair("a", "1")], name)
    assert history.entries(vault) == []


def test_entries_are_found_by_the_beginning_of_their_id(vault):
    history.add(vault, [pair("a", "1"), pair("b", "2")], "mail")
    one, two = history.entries(vault)
    assert history.find(vault, [two.id[:6], one.id]) == [two, one]
    for name, sentence in (("zz", "no entry begins"), ("", "no entry begins")):
        with pytest.raises(IdiolectError, match=sentence):
            history.find(vault, [name])


def test_a_verdict_keeps_the_place_and_can_be_taken_back(vault):
    history.add(vault, [pair("a", "1"), pair("b", "2")], "mail")
    first = history.entries(vault)[0]
    assert not history.judge(vault, first, False).liked
    assert [entry.liked for entry in history.entries(vault)] == [False, True]
    history.judge(vault, first, True)
    history.judge(vault, pair("c", "never"), False)
    found = history.entries(vault)
    assert [(e.target, e.liked) for e in found] == [
        ("1", True),
        ("2", True),
        ("never", False),
    ]
    assert found[0].source == "mail" and found[2].source == "by hand"
