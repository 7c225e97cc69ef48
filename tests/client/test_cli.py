"""The owner's commands, as an owner runs them, on the built-in backbone."""

import argparse
import contextlib
import io
import json
import os
import pty
import re
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from rich.cells import cell_len

from idiolect.client.cli import main
from idiolect.client.commands.answer import Answer
from idiolect.client.commands.vault import TOY
from idiolect.client.node import membership
from idiolect.client.owner import (
    adapters,
    consent,
    forgetting,
    loading,
    training,
    writing,
)
from idiolect.client.owner.history import Entry
from idiolect.client.owner.keys import Passphrase, RandomKey
from idiolect.client.owner.records import Source
from idiolect.client.owner.resident import Reply
from idiolect.client.owner.vault import Vault
from idiolect.common.config import parse
from idiolect.common.data.load import load_dataset
from idiolect.common.data.types import Prompt
from idiolect.common.engine.pieces import Piece
from idiolect.common.engine.reference import load_reference
from idiolect.common.errors import IdiolectError
from tests.common.conftest import write_model

pytestmark = pytest.mark.slow

SECRET = "correct horse battery"


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "secret").write_text(SECRET)
    monkeypatch.setenv("IDIOLECT_PASSPHRASE_FILE", str(tmp_path / "secret"))
    monkeypatch.setenv("IDIOLECT_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def run(capsys):
    def command(*words, code=0):
        assert main([*map(str, words)]) == code
        return capsys.readouterr()

    return command


@pytest.fixture
def asked(run):
    """Run a command with --json and return what it printed."""
    return lambda *words, code=0: json.loads(run(*words, "--json", code=code).out)


@pytest.fixture
def persona(place):
    """A file with the history of one persona."""
    config = parse({"users": 1, "history": 24, "held-out": 8})
    user = load_dataset(config).users[0]
    path = place / "persona.jsonl"
    lines = [
        json.dumps({"prompt": item.prompt.text, "target": item.target})
        for item in (*user.history, *user.held_out)
    ]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def ready(place, persona, run):
    run("vault", "init")
    run("import", persona)
    return place


def vault_of(place):
    return Vault.open(place / "home" / "device" / "vault.db", Passphrase(SECRET))


def test_an_owner_from_import_to_forgetting(ready, run, asked):
    assert "no adapter is in use" in run("status").out
    new = asked("personalize")
    assert new["accepted"] and new["nll"] < new["nll_before"] - 0.05
    assert (new["trained"], new["held_out"]) == (26, 6)
    found = asked("status")
    assert (found["liked"], found["active"]) == (32, 1)

    prompt = asked("history", "list")[-1]["prompt"]
    texts = asked("generate", prompt, "--compare")
    assert set(texts) == {"personal", "shared"} and texts["personal"]
    assert texts["personal"] != texts["shared"]
    assert run("generate", prompt).out.strip() == " ".join(texts["personal"].split())

    second = asked("personalize", "--method", "sft")
    assert second["number"] == 2 and asked("status")["active"] == 2
    assert asked("use", "2", "--strength", "0") == {"active": 2, "strength": 0}
    assert asked("generate", prompt) == {"personal": texts["shared"]}
    assert asked("rollback") == {"active": 1}
    assert asked("rollback") == {"active": 0}
    assert "`idiolect use N` puts one of 1, 2 into use" in run("rollback", code=2).err

    gone = asked("forget", "--source", "persona.jsonl", "--yes")
    assert gone == {"pairs": 32, "adapters": [1, 2], "retrained": None}
    assert asked("history", "list") == [] and asked("status")["adapters"] == []
    assert "no adapter is in use" in run("generate", "x", code=2).err


def test_forgetting_a_pair_erases_the_adapters_that_learnt_it_and_trains_anew(
    place, persona, run, asked
):
    run("vault", "init")
    run("import", _more(place), "--source", "more")
    run("import", persona)
    new = asked("personalize", "--method", "sft")
    assert set(new["sources"]) == {"more", "persona.jsonl"}
    words = {e["target"]: e["id"] for e in asked("history", "list")}
    found = asked("forget", words["something else 3"], "--yes")
    assert found == {"pairs": 1, "adapters": [1], "retrained": 2}
    (kept,) = asked("status")["adapters"]
    assert kept["method"] == "sft" and kept["trained"] == new["trained"] - 1
    assert len(asked("history", "list", "--search", "something ELSE")) == 4
    assert asked("vault", "check")["records"] > 30
    with vault_of(place) as vault:
        found = vault.sources()
        assert Source("import", "more") in found
        assert Source("adapter", "1") not in found


def test_forgetting_that_is_interrupted_says_what_is_gone(run, kept, monkeypatch):
    def interrupt(*_args):
        raise KeyboardInterrupt

    kept(1)
    run("use", "1")
    nobody: Any = None  # the fixture looks at no vault
    stale = adapters.versions(nobody)
    monkeypatch.setattr(forgetting, "forget", lambda *_: (1, stale))
    monkeypatch.setattr(training, "train", interrupt)
    said = run("forget", "--source", "persona.jsonl", "--yes", code=130).err
    assert "what was named is forgotten" in said and "nothing was changed" not in said


def test_who_went_back_to_the_bare_model_stays_there(persona, run, asked):
    run("vault", "init")
    run("import", persona)
    asked("personalize", "--method", "sft")
    run("reset")
    found = asked("forget", "--source", "persona.jsonl", "--yes")
    assert found == {"pairs": 32, "adapters": [1], "retrained": None}
    assert asked("status")["active"] == 0


def _more(place):
    path = place / "more.csv"
    rows = [f"question {i},something else {i}" for i in range(5)]
    path.write_text("prompt,target\n" + "\n".join(rows) + "\n")
    return path


def test_disliked_pairs_are_learnt_to_be_avoided(ready, run, asked):
    bad = {"--prompt": "What is this?", "--text": "nothing that I would say"}
    words = [word for both in bad.items() for word in both]

    def disliked_shift():
        asked("personalize")
        with vault_of(ready) as vault:
            config = loading.config_of(consent.settings(vault))
            found = load_reference(config)
            backbone, zero = found.backbone, found.adapter
            entry = Entry(Prompt("", bad["--prompt"]), bad["--text"])
            encoded = [backbone.encode(entry.item())]
            _, lora = adapters.adapter(vault, backbone, zero)
        from idiolect.common.engine.scoring import score_users

        with_it = score_users(backbone, [lora], [encoded])[0][0]
        return with_it - score_users(backbone, [], [encoded])[0][0]

    without = disliked_shift()
    run("feedback", "down", *words)
    assert asked("status")["disliked"] == 1
    assert disliked_shift() < without - 1


def test_an_adapter_that_loses_is_kept_but_not_used(ready, run, asked):
    asked("personalize")
    # High enough to lose, and not so high that one processor overflows and another not.
    found = asked("personalize", "--learning-rate", "0.2", code=1)
    assert not found["accepted"] and found["nll"] > found["nll_before"]
    assert asked("status")["active"] == 1
    said = run("personalize", "--learning-rate", "0.2", code=1).out
    assert "NOT used: at your newest prompts it " in said


def test_what_has_changed_is_said_in_plain_words(ready, run, asked):
    said = run("personalize")
    assert "Adapter 1 is in use: it predicts your own texts better" in said.out
    assert said.out.count("you wrote: ") == 3 and "NLL" not in said.out
    assert "loading the libraries" in said.err and said.err.count("loading") == 2
    new = asked("personalize", "--method", "sft")
    assert [set(one) for one in new["changes"]] == [
        {"asked", "before", "after", "own"}
    ] * 3
    last = asked("history", "list")[-3:]
    assert [one["own"] for one in new["changes"]] == [e["target"] for e in last]
    first = asked("use")["adapters"][0]
    assert "changes" not in first
    assert "learnt from 26 pairs" in run("use").out
    assert "c-bpo on 26 pairs; NLL 0." in run("use", "--verbose").out


def test_progress_is_shown_before_anything_large_is_loaded(ready):
    code = (
        "import sys; from idiolect.client.cli import main\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name in ('torch', 'numpy', 'transformers'): sys.exit(f'no {name}')\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "main(['personalize'])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    first, *_, last = ran.stderr.splitlines()
    assert first.split()[:4] == ["0:00", "loading", "the", "libraries;"]
    assert last.startswith("no ") and ran.stdout == ""


@pytest.mark.process
@pytest.mark.parametrize("when", ["loading the libraries", "writing texts"])
def test_ctrl_c_ends_a_training_at_once_and_changes_nothing(ready, asked, when):
    code = (  # a shell lets its background jobs ignore SIGINT, and so would the test
        "import signal, sys; from idiolect.client.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.exit(main(['personalize']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as ran:
        assert ran.stderr is not None
        said = ran.stderr.readline()
        while when not in said:
            said = ran.stderr.readline()
        ran.send_signal(signal.SIGINT)
        began = time.monotonic()
        out, err = ran.communicate(timeout=90)
    assert ran.returncode == 130 and time.monotonic() - began < 60
    assert out == "" and "nothing was changed" in err and "Traceback" not in err
    found = asked("status")
    assert found["adapters"] == [] and found["active"] == 0


def test_the_exported_adapter_is_one_that_peft_reads(ready, run, asked):
    asked("personalize")
    folder = ready / "out"
    said = run("export-adapter", folder).out
    assert "can reveal texts that it was trained on (docs/extraction.md)" in said
    assert "differential privacy of a federated run does not cover it" in said
    card = (folder / "README.md").read_text()
    assert asked("export-adapter", ready / "again")["warning"] in card
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from idiolect.common.engine.backbone import TINY

    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(TINY), str(folder)
    )
    assert vars(model.peft_config["default"])["r"] == 16
    assert "not empty" in run("export-adapter", folder, code=2).err

    said = run("export-adapter", ready / "gguf", "--format", "gguf").out
    assert "an adapter for llama.cpp" in said and "can reveal texts" in said
    names = {file.name for file in (ready / "gguf").iterdir()}
    assert names == {"adapter.gguf", "base.gguf", "Modelfile", "README.md"}
    found = asked("export-adapter", ready / "whole", "--format", "merged")
    assert found["difference"] < 0.05 and not found["without"]
    assert "loaded again, its logits differ by" not in found["warning"]
    assert "Trained by c-bpo on 26 pairs" in (ready / "whole" / "README.md").read_text()

    asked("use", "none")
    said = run("import-adapter", folder).out
    assert "it says that it was made for 'tiny'" in said
    assert "adapter 2 is in use now; before: none." in said
    assert "  adapter 1: learnt from 26 pairs\n* adapter 2: imported" in run("use").out
    assert asked("rollback") == {"active": 1}
    again = asked("import-adapter", folder)
    assert (again["number"], again["active"], again["imported"]) == (2, 2, True)


def test_too_little_history_is_said(place, run):
    run("vault", "init")
    run("feedback", "up", "--text", "only one")
    assert "needs 4" in run("personalize", code=2).err


def test_import_counts_and_a_dry_run_changes_nothing(place, persona, run, asked):
    run("vault", "init")
    assert asked("import", persona, "--dry-run")["new"] == 32
    assert asked("history", "list") == []
    assert asked("import", persona, "--source", "mail")["new"] == 32
    assert asked("import", persona) == {
        "new": 0,
        "known": 32,
        "source": "persona.jsonl",
        "other_verdict": 0,
        "kind": "JSON lines",
        "read": {"text": ["target"], "prompt": ["prompt"]},
        "ignored": {},
        "order": "the file's, its last row taken as the newest (it has no dates; "
        "--newest-first reverses it)",
        "left_out": {},
        "changed": {},
    }
    assert asked("history", "sources") == {"mail": 32}
    assert "32 were there" in run("import", persona, "--dry-run").out


def test_a_bad_line_imports_nothing(place, persona, run, asked):
    run("vault", "init")
    persona.write_text(persona.read_text() + "\n{broken")
    assert "line 33 is not JSON" in run("import", persona, code=2).err
    assert asked("history", "list") == []


def test_listing_searches_and_shortens(ready, run, asked):
    everything = asked("history", "list")
    assert len(run("history", "list", "--last", "3").out.splitlines()) == 3
    assert asked("history", "list", "--last", "3") == everything[-3:]
    assert asked("history", "list", "--last", "0") == []
    word = everything[5]["target"].upper()
    assert everything[5] in asked("history", "list", "--search", word)
    assert max(map(len, run("history", "list").out.splitlines())) < 160
    assert run("history", "list", "--search", "no such text").out == "nothing.\n"


@pytest.mark.parametrize("columns", [80, 132])
def test_a_listed_pair_has_one_line_of_the_terminal(ready, run, monkeypatch, columns):
    run("feedback", "up", "--prompt", "宛先 " * 40, "--text", "返事 " * 40)
    monkeypatch.setenv("COLUMNS", str(columns))
    listed = run("history", "list").out.splitlines()
    assert len(listed) == 33
    assert max(map(cell_len, listed)) <= columns
    assert cell_len(listed[-1]) > columns - 6 and listed[-1].endswith("…")
    assert "…" in listed[0] and " => " in listed[0]


def test_nothing_that_a_terminal_obeys_is_kept(place, run, asked):
    run("vault", "init")
    run(
        "feedback", "up", "--prompt", "\x1b[2Jwho", "--text", "\x1b]0;owned\x07me\u202e"
    )
    (entry,) = asked("history", "list")
    assert (entry["prompt"], entry["target"]) == ("[2Jwho", "]0;ownedme")


def test_the_exported_history_is_the_owners_alone_and_imports_again(ready, run, asked):
    path = ready / "out.jsonl"
    run("history", "export", path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "out.jsonl cannot be written" in run("history", "export", path, code=2).err
    assert asked("import", path)["known"] == 32


def test_keys(ready, run, monkeypatch):
    other = ready / "other"
    other.write_text("another")
    wrong = run("status", "--passphrase-file", other, code=2)
    assert "does not open" in wrong.err and "Traceback" not in wrong.err
    refused = run("vault", "rewrap", "--new-passphrase-file", other, code=2)
    assert "--weak" in refused.err
    # The environment names a file with the passphrase that there is, not with a new one.
    assert "--new-passphrase-file" in run("vault", "rewrap", code=2).err
    run("vault", "rewrap", "--new-passphrase-file", other, "--weak")
    assert "does not open" in run("status", code=2).err
    assert "32 liked" in run("status", "--passphrase-file", other).out


def test_a_weak_passphrase_makes_no_vault_unless_it_is_meant(place, run):
    (place / "secret").write_text("secret")
    assert "--weak" in run("vault", "init", code=2).err
    assert not (place / "home" / "device" / "vault.db").exists()
    run("vault", "init", "--weak")
    run("vault", "check")


def test_a_damaged_vault_goes_on_with_what_is_left(ready, run, asked):
    path = ready / "home" / "device" / "vault.db"
    database = sqlite3.connect(path)
    with database:
        database.execute("DELETE FROM records WHERE kind = 'state'")
        database.execute(
            "UPDATE records SET sealed = zeroblob(50) WHERE number = "
            "(SELECT MAX(number) FROM records)"
        )
    database.close()
    for words in (["status"], ["vault", "check"], ["history", "list"], ["pause"]):
        assert "vault repair" in run(*words, code=2).err
    assert asked("vault", "repair", "--yes") == {"deleted": 1}
    assert len(asked("history", "list")) == 31


def test_an_erasure_that_waits_for_another_process_is_said(ready, run, monkeypatch):
    monkeypatch.setattr(Vault.erase, "__defaults__", (0.05,))
    path = ready / "home" / "device" / "vault.db"
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT COUNT(*) FROM records").fetchone()
    said = run("forget", "--source", "persona.jsonl", "--yes", code=2).err
    assert "the pairs and what learnt them are deleted, but" in said
    assert "vault check" in said and "vault check" in run("vault", "check", code=2).err
    reader.close()
    run("vault", "check")


def test_an_export_that_fails_leaves_nothing(ready, run, monkeypatch):
    asked_for = []

    def full(number):
        asked_for.append(number)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("idiolect.common.files.os.fsync", full)
    said = run("history", "export", ready / "out.jsonl", code=2).err
    assert "No space left" in said and asked_for
    assert not (ready / "out.jsonl").exists()


def test_consent_for_training_is_yes_or_no(ready, run, asked):
    assert asked("consent")["training"] == "yes"
    assert asked("consent", "training", "no")["training"] == "no"
    assert "yes" in run("consent", "training", "noisy", code=2).err
    assert "noisy" in run("consent", "update", "yes", code=2).err
    assert asked("consent")["update"] == "noisy"


def test_everything_can_be_forgotten(ready, run, monkeypatch):
    assert "--yes" in run("forget", "--everything", code=2).err
    run("forget", "--everything", "--yes")
    assert [f.name for f in (ready / "home" / "device").iterdir()] == []
    assert "vault init" in run("status", code=2).err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["status"], "vault init"),
        (["import", "missing.jsonl"], "missing.jsonl"),
        (["vault", "init", "--backbone", "/nowhere"], "backbone '/nowhere'"),
    ],
)
def test_without_a_vault_each_command_says_what_to_do(place, run, words, sentence):
    assert sentence in run(*words, code=2).err
    assert not (place / "home" / "device" / "vault.db").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["vault", "init"], "already"),
        (["feedback", "up"], "an ID, or"),
        (["feedback", "up", "zzz"], "no entry begins with 'zzz'"),
        (["forget", "--yes"], "say what to forget"),
        (["forget", "zzz", "--yes"], "no entry begins"),
        (["forget", "--source", "nowhere", "--yes"], "no source 'nowhere'"),
        (["generate", "x"], "no adapter is in use"),
        (["personalize", "--learning-rate", "-1"], "learning-rate"),
    ],
)
def test_mistakes_get_a_sentence_and_change_nothing(ready, run, asked, words, sentence):
    before = asked("status")
    assert sentence in run(*words, code=2).err
    assert asked("status") == before


@pytest.mark.parametrize(
    "words",
    [["--help"], ["history", "list"], ["history", "sources"], ["vault", "check"]],
)
def test_what_needs_no_model_does_not_wait_for_torch(ready, words):
    code = (
        "import sys; from idiolect.client.cli import main\n"
        f"try: code = main({words})\n"
        "except SystemExit as end: code = end.code\n"
        "assert not code and not {'torch', 'flwr', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# --- private text ----------------------------------------------------------------------


@pytest.fixture
def typed(monkeypatch):
    """Stand for standard input: a pipe, or a terminal."""

    def give(text, terminal=False):
        stream = io.TextIOWrapper(
            io.BytesIO(text.encode("utf-8", "surrogateescape")), "utf-8"
        )
        stream.isatty = lambda: terminal
        monkeypatch.setattr(sys, "stdin", stream)

    return give


@pytest.fixture
def written(monkeypatch):
    """Stand for the model: note the prompts."""
    prompts = []

    class Writer:
        """Writes the same text everywhere."""

        def __init__(self, vault):
            self.chosen = consent.settings(vault)

        def write(self, prompt, **_more):
            prompts.append(prompt)
            return {"personal": "words"}

        def converse(self, asked):
            prompts.append(asked.texts[0])
            pieces = (Piece(text) for text in ("wor", "", "ds"))
            return Reply(self.chosen["backbone"], False, 3, 0, pieces)

    monkeypatch.setattr(writing, "writer", Writer)
    return prompts


@pytest.fixture
def cheap(place, monkeypatch):
    """A vault that opens without Argon2."""
    monkeypatch.setattr(
        "idiolect.client.owner.unlock.unlock", lambda *_: RandomKey(bytes(32))
    )
    Vault.create(place / "home" / "device" / "vault.db", RandomKey(bytes(32))).close()
    return place


def test_a_prompt_comes_from_standard_input(cheap, run, typed, written):
    for words in (["generate"], ["generate", "-"]):
        typed("dear Ann,\nabout tomorrow\n")
        said = run(*words)
        assert said.out == "words\n" and said.err == f"tiny is {TOY}.\n"
    assert written == ["dear Ann,\nabout tomorrow"] * 2
    typed("dear Ann,\nthe next line is not asked for\n", terminal=True)
    assert "prompt (one line):" in run("generate").err
    assert written[2] == "dear Ann,"


def test_a_prompt_on_the_command_line_is_taken_with_a_warning(
    cheap, run, typed, written
):
    typed("")
    said = run("generate", "dear Ann,", "--json")
    assert json.loads(said.out) == {"personal": "words"}
    assert "other users of this machine can read it" in said.err
    assert "Ann" not in said.err
    assert written == ["dear Ann,"]


def test_feedback_and_search_take_text_from_standard_input(cheap, run, asked, typed):
    typed("who is it?\nmy own\nwords\n")
    assert run("feedback", "up", "--prompt", "-", "--text", "-").err == ""
    typed("other words")
    run("feedback", "down", "--text", "-")
    found = asked("history", "list")
    pairs = [(entry["prompt"], entry["target"], entry["liked"]) for entry in found]
    assert pairs == [("who is it?", "my own\nwords", True), ("", "other words", False)]
    typed("OWN\n")
    assert asked("history", "list", "--search", "-") == found[:1]
    typed("")
    assert "command line" in run("history", "list", "--search", "own").err
    assert "command line" in run("feedback", "up", "--text", "words").err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no prompt on standard input"),
        (" \n", "no prompt on standard input"),
        ("x" * 100_001, "more than 100000 characters"),
        ("\udcff", "not UTF-8"),
    ],
)
def test_what_cannot_be_a_prompt_is_said(cheap, run, typed, written, text, said):
    typed(text)
    assert said in run("generate", "-", code=2).err
    assert written == []


def test_no_option_takes_a_passphrase():
    """Only files that hold one; a command line is no secret."""
    from idiolect.client.cli import _parser

    from ..test_terminal import leaves

    def options(parser, words):
        for word in words:
            (part,) = [a for a in parser._actions if a.choices and word in a.choices]
            parser = part.choices[word]
        return [name for action in parser._actions for name in action.option_strings]

    named = {name for words in leaves(_parser()) for name in options(_parser(), words)}
    secret = {name for name in named if re.search("pass|secret|key(?!ring)", name)}
    files = {"--passphrase-file", "--new-passphrase-file"}
    assert secret == files | {"--new-key"}  # which makes one, and takes none


# --- what the owner sees of privacy ----------------------------------------------------


def test_status_shows_the_ceilings_and_sent_what_protects(cheap, run, asked):
    with Vault.open(
        cheap / "home" / "device" / "vault.db", RandomKey(bytes(32))
    ) as vault:
        private = {"task": "text", "users": 200, "personalise.learning-rates": "1e-3"}
        private |= {"privacy.mode": "central", "privacy.epsilon": 3.0}
        consent.agree(vault, "1", "one", parse(private))
        for kind in ("AdaptReply", "EvaluateReply", "HelloReply"):
            covered = consent.cover(kind, parse(private))
            consent.note_sent(vault, "one", kind, 10, covered)
    said = run("status").out
    assert (
        "1 runs together: epsilon 3 of 8, delta 1e-06 of 1e-5, 5 of 100 releases"
        in said
    )
    assert "at least 10 users" in said and "neither protected" not in said
    run("consent", "update", "clear")
    assert "neither protected nor counted: update" in run("status").out
    assert asked("status")["privacy"]["ceilings"]["most-epsilon"] == "8"
    lines = run("sent").out.splitlines()
    assert [line.split()[:1] + line.split()[2:] for line in lines[1:4]] == [
        [lines[1].split()[0], "10", "update", "one", "eps", "3"],
        [lines[2].split()[0], "10", "metrics", "one", "none", "[1]"],
        [lines[3].split()[0], "10", "greeting", "one", "none", "[2]"],
    ]
    assert lines[0].split() == ["when", "bytes", "what", "run", "protected", "by"]
    assert lines[4:] == [
        "[1] privacy.metrics is 'clear'",
        "[2] nothing of the text is in it",
    ]
    assert max(map(len, lines)) <= 80
    assert [one["what"] for one in asked("sent")] == ["update", "metrics", "greeting"]
    run("settings", "most-epsilon", "16")
    assert "epsilon 3 of 16" in run("status").out


# --- first contact ---------------------------------------------------------------------


def test_every_command_asks_for_the_key_before_it_loads_anything_slow(place):
    """What is typed while something loads would be shown by the terminal."""
    code = """
import sys
from pathlib import Path
from idiolect.client import cli
from idiolect.client.owner import unlock

path = Path(sys.argv[1])
seen = []

def ask(*_):
    seen.append(sorted({"torch", "numpy", "flwr", "transformers"} & set(sys.modules)))
    raise KeyboardInterrupt

def parsed(words):
    return cli._parser().parse_args([*words, "--vault", str(path)])

unlock.unlock = unlock.new_passphrase = ask
commands = [words.split() for words in sys.argv[2:]]
for words in [["vault", "init"], *commands]:
    options = parsed(words)
    try:
        options.run(options)
    except KeyboardInterrupt:
        pass
    path.touch()
assert seen == [[]] * (len(commands) + 1), seen
"""
    words = [
        *("status", "vault check", "vault rewrap", "vault repair --yes", "personalize"),
        *("use", "use 1", "rollback", "reset", "export-adapter x", "node run"),
        *("generate hello", "forget --source x --yes", "history list", "sent"),
        *(
            "settings",
            "settings threads 1",
            "consent",
            "pause",
            "resume",
            "leave --yes",
        ),
        *("feedback up x", "history sources", "history export x"),
    ]
    subprocess.run(
        [sys.executable, "-c", code, str(place / "vault.db"), *words],
        check=True,
        stdin=subprocess.DEVNULL,
    )


def _terminal(words, place, *steps):
    """Run a command at a terminal of its own; type each answer after what it waits for."""
    pid, terminal = pty.fork()
    if not pid:
        os.environ.pop("IDIOLECT_PASSPHRASE_FILE", None)
        os.environ["IDIOLECT_HOME"] = str(place)
        code = "import sys; from idiolect.client.cli import main; sys.exit(main())"
        os.execv(sys.executable, [sys.executable, "-c", code, *words])
    said = b""
    for waited, typed in steps:
        while waited.encode() not in said.split(b"\0")[-1]:
            said += os.read(terminal, 4096)
        said += b"\0"  # what comes before is over
        os.write(terminal, typed.encode())
    with contextlib.suppress(OSError):  # the terminal's end
        while more := os.read(terminal, 4096):
            said += more
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said.decode()


def test_a_typed_passphrase_is_asked_twice_and_never_shown(tmp_path):
    words, again = "four green old boots", "the same again"
    asked = (
        ("model (Enter", "tiny\n"),
        ("new passphrase (12 characters or more)", f"{words}\n"),
    )
    code, said = _terminal(
        ["vault", "init"], tmp_path, *asked, (again, f"{words}\nnot a command")
    )
    assert code == 0 and "is ready; its model is tiny" in " ".join(said.split())
    assert said.count("what it writes is nonsense") == 1, said
    assert "green" not in said and "next: `idiolect import FILE`" in said
    code, said = _terminal(["pause"], tmp_path, ("passphrase of", f"{words}\n"))
    assert code == 0 and "green" not in said and "idiolect resume" in said


def test_which_model_is_asked_at_a_terminal(place, run, typed, capsys, monkeypatch):
    from idiolect.common.gguf import convert

    def init(answer, code=0, *more):
        shutil.rmtree(place / "home", ignore_errors=True)
        typed(answer, terminal=True)
        return run("vault", "init", *more, code=code)

    folder = write_model(place / "my model", "llama")
    said = init(f"{folder}\n")
    assert f"its model is {folder}." in said.out and "nonsense" not in said.out
    assert "Which model?" in said.err and "nonsense" in said.err
    monkeypatch.setattr(convert, "smollm2", lambda: None)
    said = init("\n")
    assert "its model is tiny, a tiny model" in said.out
    assert "model (Enter: tiny)" in said.err and "not installed" in said.err
    assert "-m pip install gguf && " in init("smollm2\n", 2).err
    monkeypatch.setattr(convert, "smollm2", lambda: place / "x.gguf")
    said = init("\n", 2)
    assert "model (Enter: smollm2)" in said.err and "x.gguf" in said.err
    assert "is neither a folder" in init("./nowhere\n", 2).err
    assert not (place / "home" / "device" / "vault.db").exists()
    assert "Which model?" not in init("x\n", 0, "--backbone", "tiny").err


@pytest.mark.usefixtures("written")
def test_the_toy_says_that_it_is_one(ready, run):
    said = run("generate", "x")
    assert said.out == "words\n" and said.err.count("what it writes is nonsense") == 1
    with vault_of(ready) as vault:
        consent.choose(vault, backbone="some/model")
    assert "nonsense" not in run("generate", "x").err


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("a\n", "12 characters or more"),
        ("aaaaaaaaaaaaaaaa\n", "12 characters or more"),
        ("\n", "no passphrase was typed"),
        ("\x04", "no passphrase was typed"),
    ],
)
def test_a_typed_passphrase_follows_the_rule_of_a_file(tmp_path, typed, sentence):
    words = ["vault", "init", "--backbone", "tiny"]
    code, said = _terminal(words, tmp_path, ("new passphrase", typed))
    assert code == 2 and sentence in said and "Traceback" not in said
    assert not (tmp_path / "device" / "vault.db").exists()


def test_only_what_is_to_be_copied_is_not_broken_at_a_terminal(monkeypatch):
    text = f"a sentence  with {'many words ' * 9}in it\n  short   line"
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "80")
    Answer({}, text).show(argparse.Namespace(json=False))
    broken = screen.getvalue()
    assert len(broken.splitlines()) == 3 and broken.endswith("\n  short   line\n")
    assert max(map(len, broken.splitlines())) <= 80
    Answer({}, text, exact=True).show(argparse.Namespace(json=False))
    assert screen.getvalue() == f"{broken}{text}\n"


def test_the_only_adapter_is_named(cheap, run, kept):
    kept(1)
    assert "`idiolect use 1` puts the one" in run("use", "9", code=2).err


def test_use_chooses_an_adapter_and_says_how_to_go_back(cheap, run, asked, kept):
    kept(1, 2, 3, losing=(2,))
    assert asked("use") == {k: asked("status")[k] for k in ("active", "adapters")}
    listed = run("use").out
    assert listed.count("not good enough") == 1 and "no adapter is in use" in listed
    assert "adapter 2: learnt from 26 pairs; not good enough: the model" in listed
    assert "`idiolect use N` puts one of 1, 2, 3" in run("rollback", code=2).err
    assert "`idiolect use N` puts one of 1, 2, 3" in run("use", "9", code=2).err
    assert "`idiolect use` lists them" in run("use", "two", code=2).err
    assert "before: none" in run("use", "3").out
    said = run("rollback").out  # not to the one that loses
    assert "adapter 1 is in use now" in said and "`idiolect use 3`" in said
    said = run("use", "2").out
    assert "not used when it was trained: the model predicts" in said
    assert "without it." in said
    assert asked("status")["active"] == 2
    assert "* adapter 2" in run("use").out
    assert "`idiolect use 2` takes that back" in run("reset").out
    assert asked("use", "3") == {"active": 3}
    assert "as before" in run("use", "3").out
    assert asked("use", "none") == {"active": 0}


def test_use_turns_the_strength(cheap, run, asked):
    from idiolect.client.owner.adapters import Version
    from idiolect.common.engine.adapters import Lora

    with _cheap_vault(cheap) as vault:
        lora = Lora({"q": torch.ones(1, 2)}, {"q": torch.ones(2, 1)}, 2.0)
        adapters.keep(vault, Version(1, "sft", "w", (), 26, 0, 6, 0.4, 0.5), lora)
    assert asked("use", "1", "--strength", "2.5") == {"active": 1, "strength": 2.5}
    assert (
        "its strength is 0.5; before: 2.5" in run("use", "1", "--strength", "0.5").out
    )
    assert "strength 0.5" in run("use").out
    wrong = run("use", "1", "--strength", "9", code=2).err
    assert "give a number from 0" in wrong
    assert "`idiolect use N" in run("use", "--strength", "2", code=2).err
    assert "give the number" in run("use", "none", "--strength", "2", code=2).err


@pytest.fixture
def kept(cheap, monkeypatch):
    """Adapters as they are kept, without training."""
    from idiolect.client.owner.adapters import Version

    def keep(*numbers, losing=()):
        versions = [
            Version(n, "c-bpo", "w", (), 26, 0, 6, 2.0 if n in losing else 0.4, 0.5)
            for n in numbers
        ]
        monkeypatch.setattr(adapters, "versions", lambda _vault: versions)

    return keep


def test_without_any_adapter_use_and_rollback_say_what_trains_one(cheap, run):
    for words in (["use", "1"], ["rollback"], ["generate", "-"]):
        if words[0] != "generate":
            assert "`idiolect personalize`" in run(*words, code=2).err
    assert "`idiolect personalize`" in run("use").out


SERVER = {"address": "lab.example:9443", "certificate": "", "signing_key": "00" * 32}


def test_leaving_without_a_server_says_so_before_it_asks(cheap, run, asked):
    for words in (["leave"], ["leave", "--yes"]):
        said = run(*words, code=2)
        assert "has joined no server" in said.err and "operator" not in said.out
    with _cheap_vault(cheap) as vault:
        membership.join(vault, membership.Server(**SERVER))
    assert "erased: confirm with --yes" in run("leave", code=2).err
    assert "left lab.example:9443. Ask its operator" in run("leave", "--yes").out
    assert asked("status")["server"] is None and asked("status")["joined"] is None


def _cheap_vault(place):
    return Vault.open(place / "home" / "device" / "vault.db", RandomKey(bytes(32)))


def test_status_says_joined_paused_consent_and_what_is_next(cheap, run, asked, kept):
    said = run("status").out
    assert "server: none joined" in said and "next: `idiolect import FILE`" in said
    assert "update noisy, votes noisy, metrics noisy, items no, training yes" in said
    assert "paused:" not in said and asked("status")["paused"] is False
    for i in range(4):
        run("feedback", "up", "--text", f"text {i}")
    assert "next: `idiolect personalize`" in run("status").out
    began = time.time()
    with _cheap_vault(cheap) as vault:
        membership.join(vault, membership.Server(**SERVER))
    kept(1)
    said = run("status").out
    assert (
        "which has not let this device in yet" in said
        and "next: `idiolect node run`" in said
    )
    run("pause")
    run("consent", "items", "clear")
    said = run("status").out
    assert "paused: no server is answered until `idiolect resume`" in said
    assert "items clear" in said and "next: `idiolect resume`" in said
    run("resume")
    with _cheap_vault(cheap) as vault:
        membership.note_number(vault, 77)
        membership.join(
            vault, membership.Server(**SERVER | {"address": "new.example:1"})
        )
    found = asked("status")
    assert found["device"] == "device-77" and found["server"] == "new.example:1"
    assert began <= found["joined"] <= time.time()
    assert "as device-77" in run("status").out
    assert "next: `idiolect use N`" in run("status").out


def test_one_setting_is_shown_with_its_default_and_range(cheap, run, asked):
    assert asked("settings", "threads") == {
        "name": "threads",
        "value": "0",
        "default": "0",
        "takes": "a whole number from 0 to 4096; 0: no limit",
    }
    assert "max-seconds is 60 from now on" in run("settings", "max-seconds", "60").out
    said = run("settings", "max-seconds").out
    assert "max-seconds is 60 (default: 3600)" in said and "2592000" in said
    for name in consent.SETTINGS:
        found = asked("settings", name)
        assert found["value"] == asked("settings")[name]
        assert consent.MEANINGS[name] in run("settings", name).out
    assert "no setting 'nope'" in run("settings", "nope", code=2).err
    listed = {line.split()[0]: line for line in run("settings").out.splitlines()}
    unlimited = {name for name, line in listed.items() if line.endswith("0: no limit")}
    assert unlimited == {"threads", "memory-mb", "max-seconds", "max-load"}
    assert max(map(len, listed.values())) <= 80


def test_a_device_that_joined_nobody_says_so_when_it_answers_again(cheap, run):
    for word in ("pause", "resume"):
        said = run(word).out
        assert "has joined none" in said and "its server" not in said


def test_one_answer_is_shown_with_its_default_and_choices(cheap, run, asked):
    run("consent", "update", "clear")
    assert asked("consent", "update") == {
        "name": "update",
        "value": "clear",
        "default": "noisy",
        "takes": ["no", "summed", "noisy", "clear"],
    }
    assert asked("consent", "training")["takes"] == ["no", "yes"]
    said = run("consent", "update").out
    assert "update is clear (default: noisy)" in said and "unprotected" in said
    assert "no outflow 'nope'" in run("consent", "nope", code=2).err
    assert "no outflow 'nope'" in run("consent", "nope", "no", code=2).err


def test_a_backbone_that_cannot_be_loaded_is_no_setting(
    cheap, run, asked, tmp_path, monkeypatch
):
    (tmp_path / "empty").mkdir()
    before = asked("settings")
    for value in ("/nope", str(tmp_path / "empty"), str(tmp_path)):
        run("settings", "backbone", value, code=2)
        assert asked("settings") == before
    from idiolect.common.engine.backbone import TINY

    shutil.copytree(TINY, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    run("settings", "backbone", "model")  # kept as it is from everywhere
    assert asked("settings")["backbone"] == str(tmp_path / "model")


def test_help_keeps_names_and_shows_every_default():
    from idiolect.client.cli import _parser

    from ..test_terminal import leaves

    for words in leaves(_parser()):
        parser: Any = _parser()
        for word in words:
            (part,) = [a for a in parser._actions if a.choices and word in a.choices]
            (text,) = [a.help for a in part._choices_actions if a.dest == word]
            parser = part.choices[word]
            assert parser.description == f"{text[0].upper()}{text[1:]}."
        for action in parser._actions:
            assert action.help, (words, action.dest)
            if action.default not in (None, False, "", [], argparse.SUPPRESS):
                assert "%(default)s" in action.help, (words, action.dest)


# --- limits of the owner's own training ------------------------------------------------


@pytest.fixture
def held(ready, monkeypatch):
    """A training that notes what it was held to, and may do something first."""
    seen = {}

    def train(*_):
        import torch

        seen["threads"] = torch.get_num_threads()
        seen["memory"] = resource.getrlimit(resource.RLIMIT_DATA)[0]
        seen.get("do", lambda: None)()
        raise IdiolectError("it was let in")

    monkeypatch.setattr(training, "split", train)
    return seen


def test_the_owners_limits_hold_for_the_owners_own_training(run, held):
    import torch

    before = torch.get_num_threads(), resource.getrlimit(resource.RLIMIT_DATA)
    run("settings", "threads", "3")
    run("settings", "memory-mb", "900000")
    assert "it was let in" in run("personalize", code=2).err
    assert (held["threads"], held["memory"]) == (3, 900000 << 20)
    after = torch.get_num_threads(), resource.getrlimit(resource.RLIMIT_DATA)
    assert after == before
    run("settings", "memory-mb", "1")
    said = run("personalize", code=2).err
    assert "memory-mb is 1" in said and "`idiolect settings memory-mb NUMBER`" in said
    run("settings", "memory-mb", "0")
    run("settings", "max-seconds", "0.2")
    held["do"] = lambda: time.sleep(20)
    said = run("personalize", code=2).err
    assert "longer than the 0.2 s" in said and "settings max-seconds" in said
    run("settings", "max-seconds", "0")
    held["do"] = lambda: bytearray(1 << 62)
    assert "does not fit into" in run("personalize", code=2).err
    run("settings", "max-load", "1e-9")
    said = run("personalize", code=2).err
    assert "the device is busy" in said and "settings max-load" in said


def test_a_second_training_says_which_one_is_running(run, held, ready):
    place = ready / "home" / "device" / ".vault.db.training"
    code = (
        "import sys, time; from pathlib import Path\n"
        "from idiolect.client.owner.limits import alone\n"
        "with alone(Path(sys.argv[1])): print('in', flush=True); time.sleep(600)"
    )
    vault = ready / "home" / "device" / "vault.db"
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(vault)], stdout=subprocess.PIPE
    )
    assert first.stdout and first.stdout.readline() == b"in\n"
    try:
        said = run("personalize", code=2).err
        assert f"process {first.pid}" in said and "since 20" in said
        assert "let in" not in said and stat.S_IMODE(place.stat().st_mode) == 0o600
    finally:
        first.kill()  # -9
        first.wait()
        first.stdout.close()
    assert "let in" in run("personalize", code=2).err
    assert "let in" in run("personalize", code=2).err  # and it let go of it
