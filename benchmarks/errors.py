"""Provoke the errors of both commands, and write docs/errors.md.

    python benchmarks/errors.py


Every case is a command line that somebody could type, in a folder that `prepare` fills.
tests/test_errors.py provokes them too, and holds what comes out against case and page.
"""

import contextlib
import io
import json
import os
import re
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

from idiolect.client import cli as device
from idiolect.client.owner.history import Entry, add
from idiolect.client.owner.keys import RandomKey
from idiolect.client.owner.vault import Vault
from idiolect.common.config import parse, to_toml
from idiolect.common.data.types import Prompt
from idiolect.common.errors import DefectError
from idiolect.server import cli as server

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "errors.md"
KEY = RandomKey(bytes(32))
PHRASE = "seven herons wade past midnight"


@dataclass(frozen=True)
class Case:
    """One error: what is typed, what comes of it.

    Attributes
    ----------
    words
        The command line behind `idiolect` or `idiolect-server`.
    part
        Of the sentence.
    code
        Exit code.
    locked
        Whether the vault has to be unlocked as in life; else its key is at hand.
    command
        Which of both it is.
    failing
        ``module:function`` that fails, and with what: errors that no command line provokes.
    """

    words: str
    part: str
    code: int = 2
    locked: bool = False
    failing: tuple[str, BaseException] | None = None
    command: str = "idiolect"


LAMP = str(ROOT / "simulations" / "lamp")
SEVERAL = "personalise.learning-rates=1e-3,3e-3"
SELF = "-c task=text -c personalise.learning-rates=1e-3 -c unlabeled.kind=self"
NEW = "vault init --vault new.db --passphrase-file phrase"
OWNER = "idiolect.client.owner.training:train"
JUDGE = "--model m --endpoint http://127.0.0.1:9/v1"
SHOW = "idiolect.server.run.results:load"

OF_DEVICE = (
    # the command line
    Case("", "required: COMMAND"),
    Case("fly", "invalid choice: 'fly'"),
    Case("status --fast", "unrecognized arguments: --fast"),
    Case("import", "required: file"),
    Case("completion fish", "invalid choice: 'fish'"),
    Case("history list --last many", "invalid int value: 'many'"),
    Case("feedback sideways", "invalid choice: 'sideways'"),
    Case("personalize --method magic", "invalid choice: 'magic'"),
    Case("consent votes perhaps", "invalid choice: 'perhaps'"),
    # the vault
    Case("status --vault none.db", "there is no vault at"),
    Case("status --vault text.txt", "is not a vault, or it is damaged"),
    Case("vault init", "already"),
    Case("vault init --vault new.db --passphrase-file short", "too short", locked=True),
    Case(
        "vault init --vault new.db --passphrase-file none",
        "cannot be read",
        locked=True,
    ),
    Case("vault init --vault new.db --passphrase-file empty", "is empty", locked=True),
    Case(
        "vault init --vault text.txt/v.db --passphrase-file phrase",
        "no vault can be made",
    ),
    Case(f"{NEW} --backbone ./none", "neither a folder nor a GGUF file"),
    Case(f"{NEW} --backbone no!id", "neither a folder nor a model id"),
    Case("vault init --vault new.db --max-length 3", "max-length"),
    Case("status --passphrase-file phrase", "key", locked=True),
    Case("vault repair", "--yes"),
    # the history
    Case("import none.jsonl", "cannot be read"),
    Case("import text.txt", "text.txt"),
    Case("import broken.jsonl", "line 1"),
    Case("import notext.jsonl", "no text"),
    Case("import empty.jsonl", "empty.jsonl"),
    Case("import latin.jsonl", "UTF-8"),
    Case("import pairs.jsonl --task LaMP-9", "must be one of LaMP-1"),
    Case("import nobody_users.json --task LaMP-4", "holds no pairs"),
    Case("history export pairs.jsonl", "cannot be written"),
    Case("feedback up", "an ID, or a new pair"),
    Case("feedback up 123", "no entry begins with '123'"),
    Case("forget", "say what to forget"),
    Case("forget --everything", "--yes"),
    Case("forget --source none --yes", "no source 'none'"),
    # the model
    Case("personalize", "training needs"),
    Case("personalize --learning-rate fast", "invalid float value: 'fast'"),
    Case("generate", "no prompt on standard input"),
    Case("chat --max-new-tokens 9999", "do not fit into max-length"),
    Case("serve-local --port 99999", "no port 99999"),
    Case("serve-local --port 0 --origin *", "one web page's scheme"),
    Case("rollback", "no adapter is in use"),
    Case("use 9", "9"),
    Case("ui --port 99999", "there is no port 99999"),
    Case("export-adapter folder", "not empty"),
    Case("export-adapter new", "no adapter is in use"),
    Case("export-adapter new --format onnx", "invalid choice: 'onnx'"),
    Case("import-adapter folder", "holds no PEFT adapter"),
    # the server
    Case("node join none.json", "is not an invitation"),
    Case("node join pairs.jsonl", "is not an invitation"),
    Case("node vouched 00", "has joined no server"),
    Case("node run", "joined no server"),
    Case("consent everything no", "update"),
    Case("settings speed 1", "no setting 'speed'"),
    Case("settings memory-mb lots", "it takes"),
    Case("models --try ./none", "neither a folder nor a GGUF file"),
    Case("settings backbone ./none", "neither a folder nor a GGUF file"),
    Case("leave", "has joined no server"),
    # what is in files and words
    Case("import pairs.jsonl --encoding klingon", "no encoding 'klingon'"),
    Case("import chat.txt", "say whose history"),
    Case("import chat.txt --user Nobody", "no user 'Nobody'"),
    Case("import pairs.jsonl --user me", "does not say who wrote what"),
    Case("import pairs.jsonl --most 0", "give 1 or more"),
    Case("import pairs.jsonl --dates maybe", "invalid choice: 'maybe'"),
    Case("import twice.csv", "two columns of one name"),
    Case("import nocolumn.csv", "has no text"),
    Case("import empty.csv", "is empty"),
    Case("import cr.csv", "CR alone"),
    Case("import month.csv", "day or the month first"),
    Case("import undated.jsonl", "line 2 has no date"),
    Case("import baddate.jsonl", "yesterday is no date"),
    Case("import number.jsonl", "must be text, not 5"),
    Case("import verdict.jsonl", "must be true or false"),
    Case("import long.jsonl", "100000 are allowed"),
    Case("import turns.jsonl", "no turn of the assistant"),
    Case("import roles.jsonl", "a turn of 'judge'"),
    Case("import twokeys.jsonl", "two columns of one name"),
    Case("import list.json", "is not a JSON object"),
    Case("import none.mbox", "since it does not exist"),
    Case("import hollow", "holds no pairs"),
    Case("import data", "files other than .txt and .md (3)"),
    Case("import profiles.json --task LaMP-4", "items without text"),
    Case("forget 123 --yes", "no entry begins with '123'"),
    Case("forget --source one", "--yes"),
    Case("use x", "'x' is not the number of an adapter"),
    Case("settings threads -1", "it takes a whole number"),
    Case("settings backbone no!id", "neither a folder nor a model id"),
    Case("settings most-epsilon lots", "it takes a number"),
    Case("settings on-battery maybe", "it takes yes or no"),
    Case("settings dtype float8", "it takes float32, bfloat16 or float16"),
    Case("settings max-length 3", "it takes a whole number from 16"),
    Case("settings fewest-users 0", "it takes a whole number from 1"),
    Case("consent training clear", "it takes no or yes"),
    Case("node join nowhere.json", "its certificate can't be read"),
    Case("status", "there is no terminal to ask at", locked=True),
    Case("vault rewrap", "there is no terminal to ask at", locked=True),
    Case("status --passphrase-file wide", "UTF-16", locked=True),
    Case(
        "vault init --vault new.db --passphrase-file common",
        "guessed first",
        locked=True,
    ),
    # what no command line provokes
    Case("personalize", "has a defect", 70, failing=(OWNER, KeyError("x"))),
    Case("personalize", "interrupted", 130, failing=(OWNER, KeyboardInterrupt())),
    Case("personalize", "not enough memory", failing=(OWNER, MemoryError())),
    Case(
        "personalize",
        "No space left",
        failing=(OWNER, OSError(28, "No space left on device")),
    ),
)
OF_SERVER = (
    # the command line
    Case("", "required: COMMAND"),
    Case("show", "required: RUN"),
    Case("completion fish", "invalid choice: 'fish'"),
    Case("keys init", "required: NAME"),
    Case("audit latest --seed x", "invalid int value: 'x'"),
    # simulations
    Case("simulate none", "does not exist"),
    Case("simulate broken", "not valid TOML"),
    Case("simulate other", "no table [tool.flwr.app.config]"),
    Case("simulate APP -c users", "takes key=value"),
    Case("simulate APP -c usres=3", "usres"),
    Case("simulate APP -c users=many", "users"),
    Case("simulate APP -c users=-3", "users"),
    Case(
        "simulate APP -c task=text -c personalise.learning-rates=1e-3",
        "on their devices",
    ),
    Case(f"simulate APP -c task=text -c {SEVERAL}", "goes to devices"),
    Case("simulate APP -c task=LaMP-4", "'data' is empty"),
    Case("simulate APP -c data=none", "reads no files"),
    Case("simulate APP -c task=LaMP-4 -c data=none", "no file or folder"),
    Case("simulate APP -c task=LaMP-4 -c data=folder", "holds neither"),
    Case("simulate APP -c task=LaMP-4 -c data=nobody_users.json", "missing"),
    Case("simulate APP -c backbone=./none", "neither a folder nor a GGUF file"),
    Case("simulate APP -c backbone=folder", "neither a config.json nor"),
    Case("simulate APP --name latest", "names a folder"),
    Case("simulate APP --name begun", "exists"),
    Case("simulate APP --resume never", "no run 'never'"),
    Case("simulate APP --resume begun", "before it had saved its config"),
    Case("simulate APP --nodes 0", "--nodes is 0"),
    Case("simulate APP --gpus-per-node 1.5", "a share of one GPU"),
    Case("simulate APP --gpus-per-node 1 -c engine.device=cpu", "its own GPUs alone"),
    Case("simulate APP --ray lab", "give HOST:PORT of the head"),
    Case("simulate APP --ray 127.0.0.1:1", "no Ray cluster answers"),
    Case("simulate APP --ray auto --plan", "leave out one of them"),
    # studies
    Case("study none.toml", "cannot be read"),
    Case("study pairs.jsonl", "is not TOML"),
    Case("study little.toml", "found too little"),
    # results
    Case("show never", "no run 'never'"),
    Case("show begun", "no results"),
    Case("show damaged", "is damaged"),
    Case("compare", "required: RUN"),
    Case("compare never seen", "no run 'never'"),
    Case("compare seen", "two runs or more"),
    Case("compare seen begun", "no results"),
    Case("compare seen noisy", "no values per user"),
    Case("compare seen early", "does not say"),
    Case("compare seen unseen", "other users"),
    Case("judge seen", "required: --endpoint, --model"),
    Case(f"judge never {JUDGE}", "no run 'never'"),
    Case(f"judge begun {JUDGE}", "no results"),
    Case(f"judge seen {JUDGE}", "no readable config.toml"),
    Case(f"judge seen {JUDGE} --timeout 0", "is no time"),
    Case("judge seen --model m --endpoint lab", "is no address of a model"),
    Case("judge seen --model m --endpoint http://lab.example/v1", "not this machine"),
    Case("audit never", "no run 'never'"),
    Case("report never", "no run 'never'"),
    Case("report begun", "no results"),
    Case("report list.json", "not the summary of a study"),
    Case("delete never --yes", "no run 'never'"),
    Case("delete folder --yes --output-dir .", "no run's own folder"),
    Case("delete older", "confirm with --yes"),
    # a server of devices
    Case("keys init a/b --at new", "is not a host name or an address"),
    Case("keys init one.example", "there are keys in"),
    Case("keys renew --at none", "none"),
    Case("keys witness 00", "is not the key of a witness"),
    Case("witness key --key-file list.json", "list.json"),
    Case("witness vouch none.json LINE --key-file none", "no key of a witness"),
    Case("serve --at none", "none"),
    Case("serve --metrics 99999", "99999 is not a port"),
    Case(
        "run APP -c task=text -c personalise.learning-rates=1e-3", "needs public text"
    ),
    Case("run APP -c task=text -c unlabeled.file=none", "cannot read ./none"),
    Case(f"run APP {SELF}", "no server is up"),
    Case("run APP", "is for simulations"),
    Case("attach none", "no run was submitted"),
    Case("stop none", "no run was submitted"),
    Case("nodes list", "no server is up"),
    Case("nodes add key", "no server is up"),
    Case("nodes revoke 1", "no server is up"),
    # what is in settings, data and folders
    Case("simulate APP -c methods=magic", "names 'magic'"),
    Case("simulate APP -c methods=", "name at least one"),
    Case("simulate APP -c methods=base,base", "twice"),
    Case("simulate APP -c personalise.learning-rates=fast", "positive numbers"),
    Case("simulate APP -c unlabeled.alpha=2", "in [0, 0.99]"),
    Case(
        "simulate APP -c unlabeled.alpha=true -c task=LaMP-4",
        "overlap of real users is not known",
    ),
    Case(
        f"simulate APP -c development-users=0 -c {SEVERAL}",
        "of several rates one is chosen",
    ),
    Case("simulate APP -c history=100000", "at most 1000000 are made"),
    Case("simulate APP -c privacy.metrics=noisy", "needs the ledger"),
    Case("simulate APP -c adapt.clip-quantile=0.5", "needs the ledger"),
    Case("simulate APP -c privacy.mode=central -c privacy.delta=0.5", "must lie in"),
    Case(
        "simulate APP -c privacy.mode=central -c adapt.clip=0",
        "proportional to the clip",
    ),
    Case(
        f"simulate APP -c privacy.mode=central -c privacy.metrics=noisy -c {SEVERAL}",
        "release that no noise covers",
    ),
    Case("simulate APP -c evaluate.contrasted=base", "names 'base'"),
    Case("simulate APP -c device=gpu", "use one of auto, cpu, cuda, cuda:N"),
    Case("simulate APP --name a/b", "it names a folder"),
    Case("simulate APP -c quorum=2", "must lie in [0, 1]"),
    Case("simulate APP -c lora.rank=3.5", "takes a whole number"),
    Case("simulate APP -c evaluate.generate=perhaps", "takes true or false"),
    Case("simulate APP -c task=LaMP-99", "use one of headline"),
    Case("simulate APP -c unlabeled.file=text.txt", "not JSON"),
    Case("simulate APP -c task=LaMP-4 -c data=data/text_users.json", "is not JSON"),
    Case(
        "simulate APP -c task=LaMP-4 -c data=data/object_users.json",
        "not a list of users",
    ),
    Case("simulate APP -c task=LaMP-4 -c data=data/latin_users.json", "is not UTF-8"),
    Case("simulate APP -c task=LaMP-4 -c data=data", "one of these files"),
    Case("simulate APP -c task=LaMP-4 -c data=alone", "no dev_outputs.json beside it"),
    Case("simulate APP -c task=LaMP-4 -c data=foreign", "set task=LaMP-5"),
    Case("simulate APP -c task=LaMP-4 -c data=goldless", "no list 'golds'"),
    Case("simulate APP -c backbone=models/foreign", "family 't5'"),
    Case("simulate APP -c backbone=models/quantised", "are quantised"),
    Case("simulate APP -c backbone=models/pointer", "Git LFS pointer"),
    Case("simulate APP -c backbone=models/shard", "weight files are missing"),
    Case("simulate APP -c backbone=models/cut", "cut short"),
    Case("simulate APP -c backbone=models/beside", "adapter lies beside"),
    Case("simulate APP -c backbone=models/two", "2 GGUF files"),
    Case("simulate APP -c backbone=models/text.gguf", "not a GGUF file"),
    Case("simulate APP -c backbone=models/old.gguf", "version 1"),
    Case("simulate APP -c backbone=models/end.gguf", "cut short"),
    Case("simulate APP -c backbone=models/adapter.gguf", "'adapter'"),
    Case("simulate APP -c backbone=models/bert.gguf", "architecture 'bert'"),
    Case(
        "simulate APP -c backbone=models/none.gguf", "neither a folder nor a GGUF file"
    ),
    Case("simulate unlisted", "lists no"),
    Case("keys init lab.example --port 0 --at new", "0 is not a port"),
    Case("keys renew lab.example --at unkeyed", "there is no ca.key"),
    Case("keys renew other.example", "connect to lab.example, as the invitation says"),
    Case("keys renew --at damaged", "give the names"),
    Case("serve --at damaged", "is damaged"),
    Case("serve --at uninvited", "can't be read"),
    Case("run APP -c task=text", "needs public text"),
    Case("run APP -c task=text -c unlabeled.kind=others", "goes to devices"),
    Case(
        "run APP -c task=text -c personalise.learning-rates=1e-3 -c data=data",
        "leave data empty",
    ),
    Case("run none", "does not exist"),
    Case("study claims.toml", "[[claims]]"),
    Case("study measured.toml", "measured is 'often'"),
    Case("study plot.toml", "not a key of the grid"),
    Case("study published.toml", "needs source and [[published.numbers]]"),
    Case("study numbers.toml", "name a key of the grid"),
    Case("study fine.toml -c users", "takes key=value"),
    Case("study fine.toml -c seed=1", "is a key of its grid"),
    Case("study fine.toml -c usres=1", "did you mean 'users'"),
    Case("study named.toml -c users=3", "are the same"),
    Case("study fine.toml -c users=3 --findings out", "leave out --findings"),
    # what no command line provokes
    Case("show begun", "has a defect", 70, failing=(SHOW, KeyError("x"))),
    Case("show begun", "interrupted", 130, failing=(SHOW, KeyboardInterrupt())),
    Case(
        "simulate APP",
        "met a defect",
        70,
        failing=(
            "idiolect.server.simulate.launch:simulate",
            DefectError(
                "the run met a defect of idiolect: see the log, and report it."
            ),
        ),
    ),
)
CASES = (*OF_DEVICE, *(replace(case, command="idiolect-server") for case in OF_SERVER))


def prepare(folder: Path) -> None:
    """Fill a folder with what the cases name: a vault, keys, runs, and broken files."""
    home = folder / "home"
    for name in ("folder", "broken", "other", "home/device", "home/server"):
        (folder / name).mkdir(parents=True)
    for run in ("begun", "damaged"):
        (home / "runs" / run).mkdir(parents=True)
    pair = json.dumps({"prompt": "a", "target": "b"})
    files = {
        "pairs.jsonl": pair + "\n",
        "notext.jsonl": '{"prompt": "a"}\n',
        "broken.jsonl": "{\n",
        "empty.jsonl": "",
        "text.txt": "plain text\n" * 100,
        "short": "abc\n",
        "empty": "",
        "phrase": PHRASE + "\n",
        "folder/file": "",
        "nobody_users.json": '[{"user_id": "7"}]',
        "little.toml": 'title = "x"\n',
        "broken/pyproject.toml": "[",
        "other/pyproject.toml": "[tool]\n",
        "home/runs/damaged/results.json": "{",
        "home/runs/damaged/config.toml": "",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "latin.jsonl").write_bytes(b'{"text": "gr\xfc\xdfe"}\n')
    _prepare_imports(folder)
    _prepare_data(folder)
    _prepare_models(folder / "models")
    _prepare_server(folder)
    with Vault.create(home / "device" / "vault.db", KEY) as vault:
        add(vault, [Entry(Prompt("", "a"), "b")], "one")
    with said_in(folder), contextlib.redirect_stdout(io.StringIO()):
        server.main(["keys", "init", "lab.example"])


def _prepare_imports(folder: Path) -> None:
    """Histories, each with one thing wrong."""
    turn = {"role": "user", "content": "a"}
    rows = {
        "undated": [{"text": "a", "date": "2024-05-01"}, {"text": "b"}],
        "baddate": [{"text": "a", "date": "yesterday"}],
        "number": [{"text": 5}],
        "verdict": [{"text": "a", "liked": "perhaps"}],
        "long": [{"text": "a" * 2_000_000}],
        "turns": [{"messages": [turn]}],
        "roles": [{"messages": [turn, {"role": "judge", "content": "b"}]}],
        "garbled": [{"text": "caf\ufffd and \ufffd\ufffd"}],
    }
    for name, found in rows.items():
        lines = "".join(json.dumps(row) + "\n" for row in found)
        (folder / f"{name}.jsonl").write_text(lines)
    profile = [{"id": "1", "text": "a", "title": "b"}]
    texts = {
        "twice.csv": "text,text\na,b\n",
        "nocolumn.csv": "when,what\n1,2\n",
        "empty.csv": "",
        "month.csv": "date,text\n03/04/2024,a\n05/06/2024,b\n",
        "cr.csv": "text,prompt\ra,b\r",
        "twokeys.jsonl": '{"text": "a", "text": "b"}\n',
        "list.json": "[1, 2]",
        "chat.txt": "03.04.24, 10:11 - Ada: hello\n03.04.24, 10:12 - Bob: hi\n",
        "profiles.json": json.dumps([{"user_id": "7", "profile": profile}]),
        "hollow/.keep": "",
        "common": "passwordpassword\n",
        "nowhere.json": json.dumps(
            {"address": "lab", "certificate": "", "signing_key": "00" * 32}
        ),
        "weak.json": json.dumps(
            {"address": "lab:9443", "certificate": "", "signing_key": "00"}
        ),
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "wide").write_text(PHRASE, encoding="utf-16")


def _prepare_data(folder: Path) -> None:
    """Files of tasks and studies, each with one thing wrong."""
    questions = json.dumps([{"id": "1", "input": "a", "profile": []}])
    study = 'title = "x"\n[grid]\nseed = [0]\n[config]\ntask = "headline"\n'
    named = "[named.crowd.few]\nusers = 2\n[named.crowd.many]\nusers = 9\n"
    one = '[[published.numbers]]\ncell = { seed = 7 }\nmetric = "nll"\nvalues = {}\n'
    texts = {
        "fine.toml": study,
        "named.toml": study.replace("seed = [0]", 'crowd = ["few", "many"]') + named,
        "published.toml": f"{study}[published]\n",
        "numbers.toml": f'{study}[published]\nsource = "x"\n{one}',
        "data/text_users.json": "plain",
        "data/object_users.json": "{}",
        "alone/dev_questions.json": questions,
        "foreign/dev_questions.json": questions,
        "foreign/dev_outputs.json": '{"task": "LaMP_5", "golds": []}',
        "goldless/dev_questions.json": questions,
        "goldless/dev_outputs.json": "{}",
        "unlisted/pyproject.toml": "[tool.flwr.app.config]\nseed = 0\n",
        "claims.toml": f"{study}[[claims]]\nsays = 1\n",
        "measured.toml": f'measured = "often"\n{study}',
        "grid.toml": study.replace("seed = [0]", "sed = [0]"),
        "control.toml": study.replace("seed = [0]", 'control = ["magic"]'),
        "plot.toml": f'{study}[plot]\nx = "users"\n',
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "data/latin_users.json").write_bytes(b'[{"user_id": "gr\xfc"}]')


def _prepare_models(folder: Path) -> None:
    """Folders of models, each with one thing wrong; none is read as far as its weights."""
    llama = {"model_type": "llama"}
    index = {"metadata": {}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    models = {
        "foreign": {"config.json": json.dumps({"model_type": "t5"})},
        "quantised": {
            "config.json": json.dumps(llama | {"quantization_config": {"bits": 4}})
        },
        "pointer": {"model.safetensors": pointer},
        "shard": {"model.safetensors.index.json": json.dumps(index)},
        "cut": {"model.safetensors": "12345678{"},
        "beside": {"adapter_config.json": "{}"},
        "ends": {"generation_config.json": json.dumps({"eos_token_id": "two"})},
    }
    for name, files in models.items():
        (folder / name).mkdir(parents=True)
        for file, text in ({"config.json": json.dumps(llama)} | files).items():
            (folder / name / file).write_text(text)
    _prepare_gguf(folder)


def _prepare_gguf(folder: Path) -> None:
    """GGUF files that end behind their settings, which are texts."""

    def text(words: str) -> bytes:
        return struct.pack("<Q", len(words)) + words.encode()

    def file(version: int = 3, **settings: str) -> bytes:
        pairs = (f"general.{key}" for key in settings)
        body = b"".join(
            text(key) + struct.pack("<I", 8) + text(value)
            for key, value in zip(pairs, settings.values(), strict=True)
        )
        return b"GGUF" + struct.pack("<IQQ", version, 0, len(settings)) + body

    bert = file(architecture="bert")
    files = {
        "text.gguf": b"a text",
        "old.gguf": file(version=1),
        "end.gguf": bert[:-2],
        "adapter.gguf": file(type="adapter"),
        "bert.gguf": bert,
        "two/a.gguf": bert,
        "two/b.gguf": bert,
    }
    (folder / "two").mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)


def _prepare_server(folder: Path) -> None:
    """Folders of servers and runs, each with one thing wrong."""
    runs, config = folder / "home" / "runs", parse({"users": 8})
    for name, users, identity in (
        ("seen", {"u": {}}, {"measured": "a"}),
        ("unseen", {"v": {}}, {"measured": "b"}),
        ("early", {"u": {}}, None),
        ("noisy", {}, {"measured": "a"}),
    ):
        found = {"users": users, "identity": identity, "run": {"task": "headline"}}
        (runs / name).mkdir()
        (runs / name / "results.json").write_text(json.dumps(found))
    for name, text in (
        ("older", 'magic = "yes"\n'),
        ("other", to_toml(config)),
    ):
        (runs / name).mkdir()
        (runs / name / "config.toml").write_text(text)
    with said_in(folder), contextlib.redirect_stdout(io.StringIO()):
        for name in ("damaged", "uninvited", "unkeyed"):
            server.main(["keys", "init", "lab.example", "--at", name])
    (folder / "damaged" / "server.pem").write_text("no certificate")
    (folder / "uninvited" / "invitation.json").write_text("{}")
    (folder / "unkeyed" / "ca.key").unlink()


@contextlib.contextmanager
def said_in(folder: Path) -> Iterator[None]:
    """Be in a folder whose home is that of the commands."""
    before, known = Path.cwd(), dict(os.environ)
    os.environ["IDIOLECT_HOME"] = str(folder / "home")
    os.environ.pop("IDIOLECT_PASSPHRASE_FILE", None)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(known)


def provoke(case: Case, folder: Path) -> tuple[int, str]:
    """Type a case in a folder that was prepared; return code and what was said."""
    words = [LAMP if word == "APP" else word for word in case.words.split()]
    main: Callable[[list[str]], int] = (
        server.main if case.command == "idiolect-server" else device.main
    )
    said = io.StringIO()
    with (
        contextlib.ExitStack() as stack,
        said_in(folder),
        mock.patch("sys.stdin", io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(said),
    ):
        if not case.locked:
            patch = mock.patch("idiolect.client.owner.unlock.unlock", lambda *_: KEY)
            stack.enter_context(patch)
        # A case that is no error any more must not start a run of many minutes.
        started = AssertionError("this command line starts a run")
        run = "idiolect.server.simulate.launch.simulate"
        stack.enter_context(mock.patch(run, side_effect=started))
        if case.failing:
            place, error = case.failing
            target = place.replace(":", ".")
            stack.enter_context(mock.patch(target, side_effect=error))
        code = main(words)
    text = said.getvalue().replace(str(folder / "home"), "HOME")
    text = text.replace(str(folder), ".").replace(LAMP, "APP")
    text = re.sub(r"^ *\d+:\d\d  .*\n", "", text, flags=re.M)  # progress
    return code, re.sub(r"(idiolect-error-)\w+", r"\1…", text)  # of lines, which move


def rows(folder: Path) -> Iterator[tuple[Case, int, str]]:
    """Provoke every case."""
    prepare(folder)
    for case in CASES:
        yield (case, *provoke(case, folder))


def page(found: list[tuple[Case, int, str]]) -> str:
    """Return the page."""
    lines = [HEAD]
    for name in ("idiolect", "idiolect-server"):
        lines += [f"## `{name}`", "", "| typed | code | said |", "|---|---|---|"]
        for case, code, said in found:
            if case.command == name:
                typed = f"`{case.words}`" if case.words else "nothing"
                if case.failing:
                    typed += f", and {type(case.failing[1]).__name__} inside"
                text = said.strip().replace("|", "\\|").replace("<", "&lt;")
                lines.append(f"| {typed} | {code} | {text} |")
        lines.append("")
    return "\n".join(lines)


HEAD = """# Errors

Written by `python benchmarks/errors.py`, which types each of these command lines.

| code | means | what to do |
|---|---|---|
| 0 | success; also a service that was asked to end | |
| 1 | the adapter loses; the run failed; `doctor` or audit found something | what it says |
| 2 | command, file, setting or machine: something is wrong | what the sentence says |
| 70 | a defect of idiolect; its traceback is in a private file | start again, report it |
| 130 | Ctrl-C | start it again |
| 141 | the program that read the output has ended, as in `\\| head` | |
| 143 | SIGTERM | |

On a device that file says where it went wrong but not what was wrong, because that could
quote the owner. Errors go to standard error; with `--json`, standard output also has
`{"error": "…"}`. `HOME` stands for `$IDIOLECT_HOME`, `APP` for simulations/lamp.
"""


def main() -> int:
    """Provoke all errors and write the page."""
    with tempfile.TemporaryDirectory() as place:
        found = list(rows(Path(place).resolve()))
    PAGE.write_text(page(found))
    wrong = [c for c, code, said in found if code != c.code or c.part not in said]
    for case in wrong:
        print(f"not as declared: {case.command} {case.words}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
