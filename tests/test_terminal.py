"""Every command of both sides, over hostile text: only printable characters come out.

What a server, a device, a file or a run's folder can say is made as bad as it gets; then
every command is run, and what it wrote to standard output and error is looked at.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from idiolect.client import cli as device
from idiolect.client.owner import (
    adapters,
    consent,
    elsewhere,
    history,
    training,
    writing,
)
from idiolect.client.owner.adapters import Version
from idiolect.client.owner.history import Entry
from idiolect.client.owner.keys import RandomKey
from idiolect.client.owner.records import DEVICE as DEVICE_SOURCE
from idiolect.client.owner.vault import Vault
from idiolect.common.config import parse
from idiolect.common.data.types import Prompt
from idiolect.common.errors import IdiolectError
from idiolect.server import cli as server
from idiolect.server.run import results
from idiolect.server.simulate.progress import Display

from .common.test_text import HOSTILE
from .server.run.test_results import make

KEY = RandomKey(bytes(32))
# What no file system and no command line takes.
NAME = HOSTILE.replace("/", "").replace("\x00", "").replace("\ud800", "")[:200]


def leaves(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator:
    """Every command of a parser, as the words that begin it."""
    parts = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not parts:
        yield words
    for part in parts:
        for name, one in part.choices.items():
            yield from leaves(one, (*words, name))


def clean(said: str) -> None:
    assert all(c == "\n" or c.isprintable() for c in said), ascii(said)


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """A vault in which everything that another could have named is hostile."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_text("correct horse battery")
    monkeypatch.setenv("IDIOLECT_PASSPHRASE_FILE", str(tmp_path / "secret"))
    path = tmp_path / NAME / "vault.db"
    path.parent.mkdir()
    monkeypatch.setattr("idiolect.client.owner.unlock.unlock", lambda *_: KEY)
    with Vault.create(path, KEY) as vault:
        pairs = [
            Entry(Prompt("", f"{HOSTILE} {i}"), HOSTILE + str(i)) for i in range(3)
        ]
        pairs = [
            Entry(Prompt("", p.prompt.text.replace("\ud800", "")), p.target[:60])
            for p in pairs
        ]
        history.add(vault, pairs, NAME)
        consent.note_sent(vault, NAME, NAME, 3, (None, NAME))
        consent.note_sent(vault, NAME, "AdaptReply", 3, (8.0, ""))
        config = parse(
            {
                "task": "text",
                "users": 200,
                "personalise.learning-rates": "1e-3",
                "privacy.mode": "central",
            }
        )
        consent.agree(vault, "1", NAME, config)
        vault.put(
            "state",
            [consent.Record("settings", json.dumps({"backbone": NAME}).encode())],
            DEVICE_SOURCE,
        )
    version = Version(1, NAME, NAME, (NAME,), 3, 0, 1, 1.0, 2.0, 2.0, NAME, NAME)
    monkeypatch.setattr(adapters, "versions", lambda _vault: [version])
    monkeypatch.setattr(adapters, "active", lambda _vault: 1)

    def refuse(*_args, **_more):
        raise IdiolectError(f"it says {HOSTILE}")

    monkeypatch.setattr(training, "train", refuse)
    monkeypatch.setattr(adapters, "rollback", refuse)
    monkeypatch.setattr(elsewhere, "export", refuse)
    monkeypatch.setattr("idiolect.client.page.serve.serve", lambda *_: None)
    written = {"personal": HOSTILE, "shared": HOSTILE}
    writer = SimpleNamespace(write=lambda **_: written)
    monkeypatch.setattr(writing, "writer", lambda _vault: writer)
    monkeypatch.setattr(
        "idiolect.client.node.worker.keep_running",
        lambda _vault, _key, say: say(HOSTILE),
    )
    return path


INVITATION = {"address": f"{NAME}:1", "certificate": HOSTILE, "signing_key": HOSTILE}
DEVICE = [
    ("status",),
    ("models",),
    ("models", "--try", NAME),
    ("vault", "init"),
    ("vault", "check"),
    ("vault", "repair", "--yes"),
    ("vault", "rewrap", "--new-passphrase-file", NAME),
    ("import", "FILE"),
    ("import", "FILE", "--source", NAME),
    ("import", NAME),
    ("history", "list"),
    ("history", "list", "--search", "owned"),
    ("history", "sources"),
    ("history", "export", NAME),
    ("feedback", "up", NAME),
    ("feedback", "down", "--text", NAME),
    ("forget", "--source", f"no {NAME}", "--yes"),
    ("forget", NAME, "--yes"),
    ("personalize",),
    ("generate", NAME),
    ("generate", NAME, "--compare"),
    ("ui",),
    ("ui", "--port", NAME),
    ("chat", "--system", NAME, "--max-new-tokens", "9999"),
    ("serve-local", "--port", "0", "--origin", NAME),
    ("use",),
    ("use", NAME),
    ("use", "1"),
    ("rollback",),
    ("reset",),
    ("export-adapter", NAME),
    ("export-adapter", NAME, "--format", "gguf"),
    ("import-adapter", NAME),
    ("node", "join", "INVITATION"),
    ("node", "join", NAME),
    ("node", "vouched", NAME),
    ("node", "run"),
    ("consent",),
    ("consent", NAME, "no"),
    ("consent", NAME),
    ("consent", "update"),
    ("settings",),
    ("settings", NAME, "1"),
    ("settings", NAME),
    ("settings", "backbone"),
    ("settings", "max-load", NAME),
    ("settings", "backbone", NAME),
    ("doctor",),
    ("sent",),
    ("directory",),
    ("pause",),
    ("resume",),
    ("leave", "--yes"),
    ("completion", NAME),
]


def test_every_command_of_a_device_is_walked_over():
    walked = {tuple(words) for words in DEVICE}
    for leaf in leaves(device._parser()):
        assert any(words[: len(leaf)] == leaf for words in walked), leaf


@pytest.mark.parametrize("json_too", [False, True])
@pytest.mark.parametrize("words", DEVICE, ids=lambda words: ascii(" ".join(words))[:40])
def test_a_device_shows_only_what_prints(hostile, tmp_path, capfd, words, json_too):
    file = tmp_path / f"{NAME}.jsonl"
    file.write_text(json.dumps({"prompt": "a", "target": "b"}) + "\n")
    invitation = tmp_path / f"{NAME}.json"
    invitation.write_text(json.dumps(INVITATION))
    places = {"FILE": str(file), "INVITATION": str(invitation)}
    given = [str(places.get(word, word)) for word in words]
    more = ["--json"] if json_too else []
    device.main([*given, "--vault", str(hostile), *more])
    said = capfd.readouterr()
    clean(said.out)
    clean(said.err)
    assert said.out or said.err
    if json_too:
        json.loads(said.out)


def test_a_server_shows_only_what_prints(tmp_path, capfd, monkeypatch):
    found = make()
    found["run"] |= {"task": NAME, "backbone": NAME, "recipe": HOSTILE}
    found["run"]["failed"] = {HOSTILE: f"adapt: its node failed: {HOSTILE}"}
    found["run"] |= {"dropped": {HOSTILE: 3}, "path": HOSTILE}
    method = next(iter(found["methods"]))
    found["methods"][HOSTILE] = {HOSTILE: next(iter(found["methods"][method].values()))}
    found["privacy"]["unprotected"] = {HOSTILE: HOSTILE}
    found["privacy"]["not_covered"] = [HOSTILE]
    runs = tmp_path / "runs"
    (runs / NAME).mkdir(parents=True)
    results.write_json(runs / NAME / "results.json", found)
    event = {"event": "failed", "message": HOSTILE}
    (runs / NAME / "metrics.jsonl").write_text(json.dumps(event) + "\n")
    (runs / NAME / "config.toml").write_text('task = "text"\n')
    names = ("node-id", "status", "online-at", "created-at", "label", "last-seen")
    node = dict.fromkeys(names, HOSTILE)

    def refuse(*_args, **_more):
        raise IdiolectError(f"Flower could not list devices: {HOSTILE}")

    monkeypatch.setattr("idiolect.server.deploy.nodes.nodes", lambda _at: [node])
    monkeypatch.setattr("idiolect.server.deploy.nodes.add_node", lambda *_: HOSTILE)
    monkeypatch.setattr(
        "idiolect.server.deploy.serve.serve", lambda a, b, c, say, *_: say(HOSTILE)
    )
    monkeypatch.setattr("idiolect.server.deploy.runs.run", refuse)
    plan = SimpleNamespace(folder=tmp_path / NAME)
    monkeypatch.setattr("idiolect.server.deploy.runs.prepare", lambda *_: plan)
    monkeypatch.setattr("idiolect.server.simulate.plan.prepare", lambda *_: None)
    monkeypatch.setattr("idiolect.server.simulate.plan.has_finished", lambda _: True)
    monkeypatch.setattr("idiolect.server.simulate.launch.simulate", lambda *_: found)
    monkeypatch.setattr(
        "idiolect.server.audit.audit.audit_run", lambda f, s, say: say(HOSTILE)
    )
    monkeypatch.setattr("idiolect.server.audit.audit.defects", lambda _found: [HOSTILE])
    rate, counts = (
        {"mean": 0.5, "ci95": None, "n": 1},
        ("wins", "losses", "ties", "same"),
    )
    counts += "asked", "followed", "first", "unjudged", "spoken"
    row = {"win-rate": rate, **dict.fromkeys(counts, 1)}
    row |= {"agrees": {HOSTILE: {"rho": 1.0, "n": 5}}}
    judged = {"model": HOSTILE, "malformed": 1, "pairs": {HOSTILE: row}}
    monkeypatch.setattr("idiolect.server.pairwise.material.material", lambda *_: plan)
    monkeypatch.setattr("idiolect.server.pairwise.judge.judge", lambda *_: judged)
    judge = ["judge", NAME, "--model", NAME, "--endpoint"]
    at = ["--output-dir", str(runs)]
    commands = [
        ["runs", *at],
        ["runs", "--json", *at],
        ["show", NAME, *at],
        ["show", NAME, "--json", *at],
        ["show", f"no {NAME}", *at],
        ["compare", NAME, f"{NAME} 2", *at],
        ["audit", NAME, *at],
        [*judge, "http://127.0.0.1", *at],
        [*judge, "http://127.0.0.1", "--json", *at],
        [*judge, f"http://{NAME}", *at],
        [*judge, NAME, *at],
        ["report", NAME, *at],
        ["report", f"no {NAME}", *at],
        ["delete", NAME, *at],
        ["delete", f"no {NAME}", "--yes", *at],
        ["study", NAME],
        ["simulate", NAME],
        ["keys", "init", NAME, "--at", str(tmp_path / "k")],
        ["keys", "witness", NAME, "--at", str(tmp_path / "k")],
        ["witness", "key", "--key-file", str(tmp_path / "w.key")],
        ["witness", "vouch", NAME, NAME, "--key-file", str(tmp_path / "w.key")],
        ["serve", "--at", str(tmp_path)],
        ["doctor", "--at", str(tmp_path), "--backbone", NAME],
        ["doctor", "--at", NAME, "--json"],
        ["run", NAME, "--at", str(tmp_path)],
        ["attach", NAME, "--at", str(tmp_path)],
        ["stop", NAME, "--at", str(tmp_path)],
        ["nodes", "list"],
        ["nodes", "list", "--json"],
        ["nodes", "add", NAME],
        ["nodes", "revoke", NAME],
        ["completion", NAME],
    ]
    for leaf in leaves(server._parser()):
        known = [tuple(words[: len(leaf)]) == leaf for words in commands]
        assert any(known) or leaf == ("keys", "renew"), leaf
    for words in commands:
        server.main(words)
        said = capfd.readouterr()
        clean(said.out)
        clean(said.err)
        assert said.out or said.err, words
    server.main(["show", NAME, *at])
    assert "[red]x[/red]" in capfd.readouterr().out  # nothing in a name is markup


@pytest.mark.parametrize("main", [device.main, server.main])
def test_a_wrong_command_line_is_quoted_printably(main, capfd):
    for words in ([NAME], ["status", NAME], ["runs", NAME], ["nodes", NAME]):
        assert main(words) == 2
        clean(capfd.readouterr().err)


def test_a_console_takes_nothing_for_an_instruction(capfd):
    results.console(120).print("run [red]x[/red] :smile:", highlight=False)
    assert capfd.readouterr().out == "run [red]x[/red] :smile:\n"


def test_progress_quotes_nobodys_controls(capfd):
    with Display(results.console(120)) as display:
        display.show({"event": "phase", "phase": HOSTILE})
        display.show({"event": "warning", "message": HOSTILE})
        display.show({"event": "user", "user": HOSTILE, "error": HOSTILE})
        progress = {"event": "progress", "phase": HOSTILE, "label": HOSTILE}
        display.show(progress | {"done": 1, "total": 2, "fraction": 0.5})
    said = capfd.readouterr().out
    clean(said)
    assert said.count("owned") >= 5 and "[red]x[/red]" in said


def test_a_workers_log_is_guarded(tmp_path):
    """The node's process logs what a server sent: its type of message, its run's name."""
    code = (
        "import logging\n"
        "from idiolect.client.node import worker\n"
        "class Vault:\n"
        "    @staticmethod\n"
        "    def open(path, key):\n"
        f"        logging.getLogger('flwr').warning({HOSTILE!r})\n"
        f"        raise worker.IdiolectError({HOSTILE!r})\n"
        "worker.Vault = Vault\n"
        "raise SystemExit(worker.main())"
    )
    with (tmp_path / "said").open("wb") as stream:
        worker = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=stream,
        )
        assert worker.stdin
        worker.stdin.write(b'{"secret": "' + b"00" * 32 + b'"}\n')
        worker.stdin.flush()  # stays open: its end would end the worker
        assert worker.wait(120) == 1
        worker.stdin.close()
    said = (tmp_path / "said").read_text()
    assert said.count("owned") == 2
    # Flower colours its own levels.
    for colour in ("\x1b[91m", "\x1b[92m", "\x1b[93m", "\x1b[0m"):
        said = said.replace(colour, "")
    clean(said)
