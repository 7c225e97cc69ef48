"""A conversation in the terminal, with a stand-in for the process that writes."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from idiolect.client.cli import main
from idiolect.client.commands import chat
from idiolect.client.owner import consent
from idiolect.client.owner.keys import Passphrase
from idiolect.client.owner.vault import Vault
from tests.client.local.fake import FakeKeeper

KEY = Passphrase("twelve quiet herons")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vault")
    with Vault.create(folder / "vault.db", KEY) as made:
        consent.choose(made, keep_loaded="1")
    (folder / "pass").write_text(KEY.text)
    return folder


@pytest.fixture
def keeper(place):
    made = FakeKeeper(place / "vault.db")
    yield made
    made.close()
    (place / ".vault.db.loaded").unlink()


@pytest.fixture
def talk(place, keeper, monkeypatch, capsys):
    def run(typed: str, *words: str, code: int = 0) -> Any:
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        where = ["--vault", place / "vault.db", "--passphrase-file", place / "pass"]
        assert main(["chat", *map(str, (*where, *words))]) == code
        return capsys.readouterr()

    return run


def test_a_conversation_and_its_history(talk, keeper):
    said = talk("Hi\n\nAnd now?\n/quit\nnot this\n", "--max-new-tokens", "9")
    assert said.out == "> Hi\nHello 👍!\n> And now?\nHello 👍!\n"
    first, second = keeper.asked
    assert first.texts == ("Hi",) and (first.budget, first.shorten) == (9, True)
    assert second.texts == ("Hi", "Hello 👍!", "And now?")


def test_forget_starts_anew_and_keeps_the_system_message(talk, keeper):
    said = talk("Hi\n/forget\nHi\n/odd\n", "--system", "Be brief.")
    assert [one.texts for one in keeper.asked] == [("Hi",), ("Hi",)]
    assert {one.system for one in keeper.asked} == {"Be brief."}
    assert "what was said is forgotten" in said.err and "no such command" in said.err
    assert keeper.asked[0].budget == 256


def test_what_is_shown_is_kept_when_an_answer_is_ended(talk, keeper, monkeypatch):
    """Ctrl-C at the second piece: the turn ends there, and the chat goes on."""
    real, once = chat.tell_pieces, []

    def interrupted(pieces: Any) -> str:
        def some() -> Any:
            yield next(pieces)
            if not once:
                once.append(True)
                raise KeyboardInterrupt
            yield from pieces

        return real(some())

    keeper.pace = 0.05
    monkeypatch.setattr(chat, "tell_pieces", interrupted)
    said = talk("Hi\nGo on\n")
    assert said.out == "> Hi\nHel\n> Go on\nHello 👍!\n"
    assert keeper.asked[1].texts == ("Hi", "Hel", "Go on")


def test_an_answer_of_which_nothing_was_shown_has_not_been(talk, keeper, monkeypatch):
    real = chat.converse
    once: list[bool] = []

    def interrupted(*given: Any) -> Any:
        if not once:
            once.append(True)
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(chat, "converse", interrupted)
    said = talk("Hi\nHi again\n")
    assert said.out == "> Hi\n> Hi again\nHello 👍!\n"
    assert [one.texts for one in keeper.asked] == [("Hi again",)]


def test_an_error_ends_a_turn_and_not_the_chat(talk, keeper):
    keeper.error = {"error": "the message has 900 tokens: shorten it.", "long": True}
    said = talk("Hi\nHi\n")
    assert said.out == "> Hi\n> Hi\n" and said.err.count("900 tokens") == 2
    assert [one.texts for one in keeper.asked] == [("Hi",), ("Hi",)]


def test_turns_that_are_left_out_are_said_and_not_sent_again(talk, keeper, monkeypatch):
    real = chat.converse

    def dropping(vault: Any, asked: Any) -> Any:
        reply = real(vault, asked)
        if len(asked.texts) == 5:
            object.__setattr__(reply, "dropped", 1)
        return reply

    monkeypatch.setattr(chat, "converse", dropping)
    said = talk("1\n2\n3\n4\n")
    assert "the oldest turn is left out" in said.err
    lengths = [len(one.texts) for one in keeper.asked]
    assert lengths == [1, 3, 5, 5] and keeper.asked[3].texts[0] == "2"


def test_json_is_one_object_for_each_answer(talk):
    said = talk("1\n2\n", "--json").out.splitlines()
    assert [json.loads(line)["answer"] for line in said] == ["Hello 👍!"] * 2


def test_nothing_of_it_is_kept(talk, place):
    secret = "herons-are-secret"
    talk(f"{secret}\n", "--system", f"{secret}2")
    for file in place.rglob("*"):
        if file.is_file():
            assert secret.encode() not in file.read_bytes()


def test_an_answer_has_a_token_at_least(talk, keeper):
    for most in (0, -1):
        assert "ask for 1 to" in talk("hi\n", "--max-new-tokens", most, code=2).err
    assert keeper.asked == []
