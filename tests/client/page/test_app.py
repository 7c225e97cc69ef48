"""The page's addresses: who may ask, what is done, and what a hostile request gets."""

import asyncio
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest

from idiolect.client.imports.read import Asked
from idiolect.client.imports.read import read as read_file
from idiolect.client.local.guard import MOST
from idiolect.client.owner import adapters, consent, history, learning
from idiolect.client.page import app as page
from idiolect.client.page import uploads
from idiolect.client.page.uploads import Uploads
from idiolect.common.errors import IdiolectError

from .conftest import HERE, Tab, looked_into

FILES = Path(page.__file__).parent
NAMES = [act.__name__ for act in (*page.ASKED, page.write)]


# --- who may ask -----------------------------------------------------------------------


def test_the_link_works_once_and_without_it_nothing_is_shown(served):
    client, entry, _ = served
    for address in (f"{entry.room}/", f"{entry.room}/page.js"):
        assert client.get(address).status_code == 401
    assert client.post(f"{entry.room}/api/overview", json={}).status_code == 401
    first = client.get(entry.link)
    assert "HttpOnly" in first.headers["set-cookie"]
    assert "SameSite=Strict" in first.headers["set-cookie"]
    assert client.get(f"{entry.room}/").status_code == 200
    client.cookies.clear()
    link = f"{HERE}/open?code={'x' * 43}"
    assert client.get(link).status_code == 403
    assert client.get(f"{entry.room}/").status_code == 401


def test_a_link_that_was_used_opens_nothing(served):
    client, entry, _ = served
    link = entry.link
    client.get(link)
    client.cookies.clear()
    assert client.get(link).status_code == 403
    assert client.get(f"{entry.room}/").status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example:8123"},
        {"host": "127.0.0.1:8124"},
        {"host": "evil.example"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8124"},
        {"sec-fetch-site": "cross-site"},
    ],
)
@pytest.mark.parametrize("name", ["overview", "forget", "write"])
def test_strangers_are_refused_though_they_have_the_cookie(tab, name, headers):
    assert tab.post(name, {}, headers=headers).status_code == 403


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
    ],
)
def test_what_a_form_can_send_is_refused(tab, kind):
    for name in (*NAMES, "upload"):
        answer = tab.post(
            name, content=b'{"paused": true}', headers={"content-type": kind}
        )
        assert answer.status_code == 415, name
    assert tab.ask("overview")["leaves"]["paused"] is False


def test_only_a_file_comes_as_bytes_of_which_there_may_be_many(tab):
    for kind in (page.BYTES, f"{page.BYTES.upper()}; x=y"):
        for name in NAMES:
            answer = tab.post(name, content=b"{}", headers={"content-type": kind})
            assert answer.status_code == 400 and "load it again" in answer.text


def test_nothing_is_changed_by_reading(tab):
    for name in (*NAMES, "upload"):
        answer = tab.client.get(f"{tab.room}/api/{name}")
        assert answer.status_code == 405, name


# --- the files of the page -------------------------------------------------------------


def test_the_policy_allows_nothing_inline_and_nothing_from_elsewhere(tab):
    answer = tab.client.get(f"{tab.room}/")
    rules = dict(
        rule.strip().partition(" ")[::2]
        for rule in answer.headers["content-security-policy"].split(";")
    )
    assert rules["default-src"] == "'none'"
    for name in ("script-src", "style-src", "img-src", "connect-src"):
        assert rules.pop(name) == "'self'"
    assert rules["require-trusted-types-for"] == "'script'"
    assert not re.search("unsafe|http|data:|\\*", str(rules))
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"


def test_the_page_has_no_inline_script_or_style_and_no_outside_address():
    text = (FILES / "page.html").read_text()
    assert re.findall(r"<script[^>]*>[^<]", text) == []
    assert not re.search(r"<style|\sstyle=|\son\w+=", text)
    for name in ("page.html", "page.css", "page.js"):
        found = re.findall(r"(?:https?:)?//[\w.-]+\.\w+", (FILES / name).read_text())
        assert found == [], name


def test_the_files_of_the_page_are_packaged():
    project = tomllib.loads((FILES.resolve().parents[1] / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["idiolect.client.page"]
    packaged = {path.name for pattern in patterns for path in FILES.glob(pattern)}
    assert packaged == {file for file, _ in page.STATIC.values()}


def test_text_is_never_set_as_markup():
    code = (FILES / "page.js").read_text()
    markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser"
    assert re.findall(rf"{markup}|eval\(|\bFunction\(", code) == []


def test_every_part_that_the_script_names_is_on_the_page():
    text, code = (FILES / "page.html").read_text(), (FILES / "page.js").read_text()
    ids = re.findall(r'\bid="([\w-]+)"', text)
    assert len(ids) == len(set(ids))
    named = re.findall(r'(?:\$|\bfill|\bon|\bsubmit)\("([\w-]+)"', code)
    assert set(named) <= set(ids)
    assert set(re.findall(r'for="([\w-]+)"', text)) <= set(ids)
    assert set(re.findall(r'aria-(?:labelledby|describedby)="([\w-]+)"', text)) <= set(
        ids
    )
    asked = set(re.findall(r'\b(?:ask|send)\("(\w+)"', code))
    assert asked == {*NAMES, "upload"}


# --- hostile requests ------------------------------------------------------------------

WRONG: list[Any] = [
    None,
    True,
    -1,
    1.5,
    "x",
    "'; --",
    [],
    ["x", 1],
    {},
    10**30,
    10**400,  # no float is as large
    "\ud800",
]
FIELDS = (
    *("search", "source", "skip", "id", "prompt", "text", "liked", "ids", "sources"),
    *("train", "method", "number", "strength", "outflow", "answer", "name", "value"),
    *("paused", "budget", "compare"),
)


@pytest.fixture
def idle(desk, monkeypatch):
    """No process is started."""

    async def nothing(*_args: Any, **_more: Any) -> None:
        raise IdiolectError("not in this test: go on.")

    monkeypatch.setattr(desk.trainer, "start", nothing)
    monkeypatch.setattr(desk.scribe, "_loaded", nothing)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "example"])
def test_no_request_finds_a_defect(tab, idle, name):
    for field in FIELDS:
        for value in WRONG:
            answer = tab.post(name, {field: value})
            assert answer.status_code in (200, 400), (field, value, answer.text)
            if answer.status_code == 400:
                assert ":" in answer.json()["error"]["message"] or "." in answer.text


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b"nul", b'{"a": NaN}', b"[" * 10_000]
)
def test_what_is_no_object_is_refused(tab, body):
    for name in NAMES:
        kind = {"content-type": "application/json"}
        answer = tab.post(name, content=body, headers=kind)
        assert answer.status_code == 400 and "load it again" in answer.text


def test_a_setting_that_is_no_ceiling_is_not_changed_from_the_page(tab):
    said = tab.refused("ceiling", {"name": "backbone", "value": "/etc"})
    assert "idiolect settings" in said
    said = tab.refused("ceiling", {"name": "most-epsilon", "value": "much"})
    assert "it takes a number from 0" in said
    said = tab.refused("ceiling", {"name": "most-delta", "value": "2"})
    assert "it takes a probability below 1" in said
    tab.ask("ceiling", name="most-epsilon", value="2.5")
    (first, *_) = tab.ask("overview")["leaves"]["ceilings"]
    assert first["most"] == "2.5"


def test_a_defect_is_one_sentence_and_its_traceback_quotes_nothing(
    tab, place, monkeypatch
):
    def fails(*_: Any) -> None:
        raise ZeroDivisionError(" ".join(("private", "words")))

    monkeypatch.setattr("idiolect.client.page.views.pairs", fails)
    said = tab.refused("pairs", status=500)
    assert "idiolect has a defect" in said
    (kept,) = place.parent.glob("idiolect-error-*")
    assert "private words" not in kept.read_text()


# --- the history -----------------------------------------------------------------------

LINES = b'{"prompt": "a?", "target": "one", "extra": 1}\n{"target": "two"}\n'


def test_a_file_is_previewed_before_anything_is_kept(tab, place):
    found = tab.send(LINES, name="letters.jsonl").json()
    assert found["new"] == 2 and found["source"] == "letters.jsonl"
    assert any("'extra'" in line for line in found["report"])
    assert [pair["text"] for pair in found["pairs"]] == ["one", "two"]
    assert tab.ask("pairs", source="letters.jsonl")["found"] == 0
    assert tab.ask("add", id=found["id"], source="my letters")["new"] == 2
    assert tab.ask("pairs", source="my letters")["found"] == 2
    again = tab.send(LINES, name="letters.jsonl").json()
    assert (again["new"], again["known"]) == (0, 2)
    tab.ask("drop", id=again["id"])
    assert "no longer there" in tab.refused("add", {"id": again["id"]})
    assert [path.name for path in place.parent.glob(f"{uploads.PREFIX}*")] == []


def test_a_preview_is_added_once_by_two_tabs(tab):
    found = tab.send(LINES, name="a.jsonl").json()
    assert tab.ask("add", id=found["id"])["new"] == 2
    assert "no longer there" in tab.refused("add", {"id": found["id"]})
    assert tab.ask("pairs", source="a.jsonl")["found"] == 2


@pytest.mark.parametrize(
    "name",
    [
        "../../../escaped.jsonl",
        "/etc/cron.d/escaped.jsonl",
        "..\\..\\escaped.jsonl",
        "a/../../escaped.jsonl",
        "escaped\0.jsonl",
        "escaped.jsonl/../../../x.jsonl",
        "~/escaped.jsonl",
        "$(touch escaped).jsonl",
        "e" * 200 + ".jsonl",
    ],
)
def test_a_files_name_is_no_path(tab, place, tmp_path, monkeypatch, name):
    seen: list[tuple[Path, int]] = []

    def watched(path: Path, asked: Asked) -> Any:
        seen.append((path, stat.S_IMODE(path.stat().st_mode)))
        return read_file(path, asked)

    monkeypatch.setattr(uploads, "read", watched)
    before = set(tmp_path.rglob("*"))
    answer = tab.send(LINES, name=name)
    assert answer.status_code == 200, answer.text
    ((path, mode),) = seen
    assert path.parent == place.parent and path.name.startswith(uploads.PREFIX)
    assert "escaped" not in path.name and mode == 0o600
    assert not path.exists()
    assert {p for p in tmp_path.rglob("*") if "vault.db" not in p.name} <= before


def test_a_file_that_is_refused_is_named_as_its_owner_named_it(tab, place):
    for name, body, part in (
        ("letters.jsonl", b'{"target": "one"}\n{"target":\n', "letters.jsonl, line 2"),
        ("book.xlsx", b"PK", "book.xlsx is not of a kind that is read"),
        ("chat.zip", b"PK", "unpack it"),
        ("", LINES, "the source's name is empty"),
    ):
        answer = tab.send(body, name=name)
        assert answer.status_code == 400, name
        said = answer.json()["error"]["message"]
        assert (
            part in said
            and uploads.PREFIX not in said
            and str(place.parent) not in said
        )
    assert list(place.parent.glob(f"{uploads.PREFIX}*")) == []


def test_whose_texts_are_meant_is_asked_for_and_answered(tab):
    rows = b'{"user": "ann", "text": "mine"}\n{"user": "bob", "text": "his"}\n'
    said = tab.send(rows, name="two.jsonl").json()["error"]["message"]
    assert "import under “Whose texts”." in said
    found = tab.send(rows, name="two.jsonl", user="ann").json()
    assert [pair["text"] for pair in found["pairs"]] == ["mine"]


def test_a_large_file_is_refused_without_being_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "MOST", 1000)
    taken = 0

    async def body():
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield b"x" * 100

    with pytest.raises(IdiolectError, match="the file has more than 100 MB"):
        asyncio.run(Uploads(tmp_path).take(body(), "a.jsonl", Asked()))
    assert taken == 11
    assert list(tmp_path.iterdir()) == []


def test_a_file_may_be_larger_than_anything_else_that_is_asked(tab):
    rows = b"".join(b'{"text": "%d %s"}\n' % (n, b"x" * 20_000) for n in range(60))
    assert len(rows) > MOST
    assert tab.send(rows, name="large.jsonl").json()["new"] == 60
    assert "has more than" in tab.refused("feedback", {"text": "x" * MOST}, status=413)


def test_what_a_crash_left_of_a_file_is_removed(tmp_path):
    import os

    old, new = (tmp_path / f"{uploads.PREFIX}{name}" for name in ("old", "new"))
    for file in (old, new):
        file.write_text("private")
    os.utime(old, (0, 0))
    Uploads(tmp_path).clear()
    assert [path.name for path in tmp_path.iterdir()] == [new.name]


def test_the_example_is_only_there_when_it_is_wanted(tab):
    found = tab.ask("example")
    assert found["new"] == 32 and found["report"] == []
    assert tab.ask("overview")["liked"] == 6
    tab.ask("add", id=found["id"], source=found["source"])
    after = tab.ask("overview")
    assert after["liked"] == 38 and after["next"]["place"] == "train"


def test_listing_searches_by_words_and_source(tab):
    assert [p["text"] for p in tab.ask("pairs")["pairs"]][:2] == ["chat 1!", "chat 0!"]
    found = tab.ask("pairs", search="MAILS 3")
    assert [pair["prompt"] for pair in found["pairs"]] == ["mails 3?"]
    assert tab.ask("pairs", source="chat")["found"] == 2
    assert tab.ask("pairs", skip=5)["pairs"][0]["text"] == "mails 0!"


def test_hostile_text_comes_back_as_it_was_and_as_json(tab):
    text = "<img src=x onerror=alert(1)></script>\u2028'\"&amp;"
    kept = tab.ask("feedback", prompt="<b>", text=text, liked=False)
    assert kept["text"] == history.clean(text) and kept["liked"] is False
    answer = tab.post("pairs", {"search": "onerror"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.json()["pairs"][0]["text"] == history.clean(text)


def test_a_verdict_is_kept_and_taken_back(tab):
    name = tab.ask("pairs")["pairs"][0]["id"]
    assert tab.ask("feedback", id=name, liked=False)["liked"] is False
    assert tab.ask("overview")["disliked"] == 1
    assert tab.ask("feedback", id=name, liked=True)["liked"] is True
    assert "no entry begins" in tab.refused("feedback", {"id": "zzz"})
    assert "there is no text" in tab.refused("feedback", {"prompt": "only this"})
    assert "shorter" in tab.refused("feedback", {"text": "x" * 100_001})


# --- forgetting ------------------------------------------------------------------------


def test_what_forgetting_costs_is_what_it_then_costs(tab, place, monkeypatch):
    monkeypatch.setattr("idiolect.client.page.app.Trainer.start", _never)
    with looked_into(place) as vault:
        _kept_adapters(vault)
    cost = tab.ask("cost", sources=["mails"])
    assert cost == {"pairs": 4, "adapters": [1, 2], "active": True}
    assert tab.ask("overview")["active"] == 2, "asking changed nothing"
    done = tab.ask("forget", sources=["mails"], train=False)
    assert done == {"pairs": 4, "adapters": [1, 2], "again": False}
    after = tab.ask("overview")
    assert after["liked"] == 2 and after["active"] == 0
    assert [one["number"] for one in after["adapters"]] == [3]
    assert "no source 'mails'" in tab.refused("forget", {"sources": ["mails"]})
    assert "nothing is named" in tab.refused("forget", {})


async def _never(*_: Any) -> None:
    raise AssertionError("a training was not asked for")


def _kept_adapters(vault: Any) -> None:
    """Adapters 1 and 2, in use, which learnt from mails, and 3, which did not."""
    import torch

    from idiolect.client.owner.adapters import Version
    from idiolect.common.engine.adapters import Lora

    lora = Lora({"q": torch.ones(1, 2)}, {"q": torch.ones(2, 1)}, 2.0)
    for number, source in ((1, "mails"), (2, "mails"), (3, "chat")):
        fine = Version(number, "c-bpo", "b", (source,), 3, 0, 1, 1.0, 2.0, 2.0)
        adapters.keep(vault, fine, lora)
    adapters.activate(vault, 2)


def test_after_forgetting_a_training_begins_in_the_place_of_the_adapter_in_use(
    tab, desk, place, monkeypatch
):
    begun: list[str] = []

    async def start(method: str) -> None:
        begun.append(method)

    monkeypatch.setattr(desk.trainer, "start", start)
    with looked_into(place) as vault:
        _kept_adapters(vault)
    name = tab.ask("pairs", source="mails")["pairs"][0]["id"]
    tab.ask("forget", ids=[name], train=True)
    assert begun == ["c-bpo"]
    name = tab.ask("pairs", source="chat")["pairs"][0]["id"]
    tab.ask("forget", ids=[name], train=True)
    assert begun == ["c-bpo"], "none was in use"


def test_forgetting_that_fails_changes_nothing_and_ends_what_keeps_the_model(
    tab, desk, place, monkeypatch
):
    ended: list[bool] = []

    async def end() -> None:
        ended.append(True)

    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(desk.scribe, "end", end)
    monkeypatch.setattr("idiolect.client.owner.vault.Vault.forget_some", fails)
    name = tab.ask("pairs")["pairs"][0]["id"]
    said = tab.refused("forget", {"ids": [name]}, status=500)
    assert "make room" in said and ended
    monkeypatch.undo()
    assert tab.ask("overview")["liked"] == 6
    with looked_into(place) as vault:
        assert vault.check() > 0


# --- adapters and what leaves ----------------------------------------------------------


def test_adapters_are_used_rolled_back_and_put_aside(tab, place):
    assert "no adapter is in use" in tab.refused("rollback")
    with looked_into(place) as vault:
        _kept_adapters(vault)
    assert tab.ask("rollback") == {"active": 1}
    tab.ask("use", number=3, strength=0.5)
    (three,) = [one for one in tab.ask("overview")["adapters"] if one["active"]]
    assert (three["number"], three["strength"]) == (3, 0.5)
    assert "there is no adapter 9" in tab.refused("use", {"number": 9})
    assert "strength of 9" in tab.refused("use", {"number": 3, "strength": 9})
    assert tab.ask("reset") == {"before": 3}
    assert tab.ask("overview")["active"] == 0


def test_consent_pause_and_leaving(tab, place):
    found = {one["name"]: one for one in tab.ask("overview")["leaves"]["outflows"]}
    assert set(found) == set(consent.DEFAULTS)
    for name, one in found.items():
        assert [a["name"] for a in one["answers"]] == list(consent.answers_to(name))
    tab.ask("answer", outflow="update", answer="no")
    assert "can't be 'perhaps'" in tab.refused(
        "answer", {"outflow": "update", "answer": "perhaps"}
    )
    assert tab.ask("pause", paused=True) == {"paused": True}
    with looked_into(place) as vault:
        assert consent.consents(vault)["update"] == "no" and consent.paused(vault)
    assert "joined no server" in tab.refused("leave")


def test_what_left_is_all_listed_newest_first(tab, place):
    with looked_into(place) as vault:
        consent.note_sent(vault, "run<b>", "AdaptReply", 12, (8.0, ""))
        consent.note_sent(vault, "run", "EvaluateReply", 5, (None, "no noise"))
    one, two = tab.ask("overview")["sent"]
    assert (one["what"], one["cover"]) == ("metrics", "no noise")
    assert (two["what"], two["cover"], two["run"]) == (
        "update",
        "noise, epsilon 8",
        "run<b>",
    )


def test_training_with_too_little_is_refused_at_once(tab, desk, monkeypatch):
    monkeypatch.setattr(desk.trainer, "start", _never)
    tab.ask("forget", sources=["mails"])
    assert f"training needs {learning.FEWEST}" in tab.refused("train")
    assert "the method is one of" in tab.refused("train", {"method": "magic"})
    assert "no adapter is in use" in tab.refused("write", {"prompt": "x"})


def test_a_tab(tab: Tab) -> None:
    """The overview of a new owner, in full."""
    found = tab.ask("overview")
    assert found["next"]["place"] == "train" and found["training"]["running"] is False
    assert found["sources"] == [
        {"name": "mails", "pairs": 4},
        {"name": "chat", "pairs": 2},
    ]
    assert found["toy"] and found["adapters"] == [] and found["judges"] == 1
