from dataclasses import replace

import pytest

from idiolect.client.owner import consent, forgetting, history, learning
from idiolect.client.owner.history import Entry
from idiolect.client.owner.keys import RandomKey
from idiolect.client.owner.records import DEVICE, Record, Source
from idiolect.client.owner.vault import Vault
from idiolect.common.data.types import Prompt
from idiolect.common.errors import IdiolectError


@pytest.fixture
def vault(tmp_path):
    with Vault.create(tmp_path / "vault.db", RandomKey(bytes(32))) as made:
        yield made


def pair(prompt: str, target: str) -> Entry:
    return Entry(Prompt("", prompt), target)


def test_adding_leaves_out_what_is_there(vault):
    one, two = pair("a", "1"), pair("b", "2")
    assert history.add(vault, [one, two, one], "mail") == 2
    assert history.add(vault, [two, pair("c", "3")], "notes") == 1
    found = history.entries(vault)
    assert [entry.target for entry in found] == ["1", "2", "3"]
    assert [entry.source for entry in found] == ["mail", "mail", "notes"]
    assert found[0].item().prompt.text == "a" and found[0].item().id == one.id


def test_a_clock_that_was_set_back_leaves_the_newest_last(vault, monkeypatch):
    history.add(vault, [pair("a", "1"), pair("b", "2")], "mail")
    monkeypatch.setattr(history, "time", lambda: 1000.0)  # 1970
    history.add(vault, [pair("c", "3")], "later")
    history.judge(vault, pair("d", "4"), True)
    found = history.entries(vault)
    assert [entry.target for entry in found] == ["1", "2", "3", "4"]
    user, _ = learning.split(found)
    assert [item.target for item in user.held_out] == ["4"]


def test_a_vault_that_noted_no_last_time_goes_on_behind_its_newest(vault, monkeypatch):
    """As a version before left it."""
    history.add(vault, [pair("a", "1")], "mail")
    vault.delete("state", ["added"])
    monkeypatch.setattr(history, "time", lambda: 1000.0)
    history.add(vault, [pair("b", "2")], "later")
    assert [entry.target for entry in history.entries(vault)] == ["1", "2"]


def test_what_has_dates_is_in_their_order_across_imports(vault):
    history.add(vault, [replace(pair("a", "new"), written=2e9)], "this year")
    history.add(vault, [replace(pair("b", "old"), written=1e9)], "last year")
    assert [entry.target for entry in history.entries(vault)] == ["old", "new"]
    assert [entry.written for entry in history.entries(vault)] == [1e9, 2e9]


def test_other_verdicts_in_the_vault_are_counted(vault):
    history.add(vault, [pair("a", "1"), pair("b", "2")], "mail")
    given = [replace(pair("a", "1"), liked=False), pair("b", "2"), pair("c", "3")]
    assert history.contradicted(vault, given) == 1


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a\u000bb", "a\nb"),
        ("a\fb\x85c\u2028d\u2029e\rf\r\ng", "a\nb\nc\nd\ne\nf\ng"),
        ("a\x1cb\x1dc\x1ed\x1fe", "a b c d e"),
        ("a\x00b\x1b[1mc", "ab[1mc"),
        ("\ufeffhello", "hello"),
        ("\u2066hi\u2069 \u05e9\u05dc", "hi \u05e9\u05dc"),
        ("\U0001f468\u200d\U0001f469", "\U0001f468\u200d\U0001f469"),
        *((unseen, "") for unseen in ("\u200b", "\u00ad\u200d", "\ufe0f", "\u3164")),
        *(
            (unseen, "")
            for unseen in ("\u2800 \u200e", "\U000e0041", "\u034f", "\ufffc")
        ),
    ],
)
def test_white_space_stays_white_space_and_what_nobody_sees_is_empty(text, kept):
    assert history.clean(text) == kept


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
        forgetting.forget(vault, [name])
    history.add(vault, [pair("a", "1")], name)
    history.add(vault, [pair("b", "2")], "mail")
    assert [e.source for e in history.entries(vault)] == [name.strip(), "mail"]
    assert forgetting.forget(vault, [name]) == (1, [])
    assert [e.source for e in history.entries(vault)] == ["mail"]
    # What a run has trained is forgotten with any pair; nothing else is.
    assert vault.sources() == [DEVICE, others[2], Source("import", "mail")]
    assert consent.settings(vault)["threads"] == "3" and consent.paused(vault)


def test_a_name_that_a_terminal_would_obey_is_tidied_and_still_forgets(vault):
    for number, name in enumerate(("a\x1b[2Jb\n\tc", "\udcffnotes", "  d \u202e ")):
        history.add(vault, [pair("q", str(number))], name)
    assert [e.source for e in history.entries(vault)] == ["a[2Jb c", "notes", "d"]
    for name in ("a\x1b[2Jb\n\tc", "\udcffnotes", "d"):
        assert forgetting.forget(vault, [name]) == (1, [])
    # A version that did not tidy names kept this one.
    odd = replace(pair("q", "odd"), source="e\x07")
    vault.put(history.KIND, [history._record(odd)], Source("import", odd.source))
    assert forgetting.forget(vault, ["e"]) == (1, [])


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


def by_opening(vault: Vault) -> history.Counts:
    """The same as `history.counts`, from the texts themselves."""
    found = history.entries(vault)
    disliked = sum(not entry.liked for entry in found)
    names = [entry.source for entry in found]
    sources = {name: names.count(name) for name in names}
    return history.Counts(len(found) - disliked, disliked, sources)


def test_the_history_is_counted_without_opening_it(vault, monkeypatch):
    def checked() -> None:
        right = by_opening(vault)
        with monkeypatch.context() as patch:
            patch.setattr(history, "entries", None)
            assert history.counts(vault) == right

    checked()
    mails = [replace(pair("a", str(n)), liked=n % 3 > 0) for n in range(9)]
    history.add(vault, mails, "mail")
    checked()
    history.add(vault, [pair("b", "1"), mails[0]], "chat")
    checked()
    for entry, liked in ((mails[1], False), (mails[1], False), (mails[0], True)):
        history.judge(vault, entry, liked)
        checked()
    history.judge(vault, pair("new", "text"), False)
    checked()
    forgetting.forget(vault, ids=[mails[1].id, mails[2].id])
    checked()
    forgetting.forget(vault, sources=["by hand"])
    checked()
    forgetting.forget(vault, sources=["mail", "chat"])
    checked()
    assert history.counts(vault) == history.Counts(0, 0, {})


def test_what_another_version_wrote_is_counted_once(vault):
    """It does not note how many are disliked."""
    history.add(vault, [replace(pair("a", "1"), liked=False), pair("b", "2")], "mail")
    vault.delete("state", ["disliked"])
    for _ in range(2):
        assert history.counts(vault) == history.Counts(1, 1, {"mail": 2})
        assert history.disliked(vault) == 1
    record = history._record(replace(pair("c", "3"), liked=False, source="mail"))
    vault.put(history.KIND, [record], Source("import", "mail"))
    assert history.disliked(vault) is None
    assert history.counts(vault) == history.Counts(1, 2, {"mail": 3})
    assert history.disliked(vault) == 2


def test_a_whole_id_opens_nothing_else(vault, monkeypatch):
    made = [pair("a", str(n)) for n in range(5)]
    history.add(vault, made, "mail")
    right = history.find(vault, [made[3].id[:11], made[1].id])
    monkeypatch.setattr(history, "entries", None)
    found = history.find(vault, [made[3].id, made[1].id])
    assert found == right and [one.generation for one in found] == [
        one.generation for one in right
    ]
