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
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

from idiolect.client import cli as device
from idiolect.client.owner.history import Entry, add
from idiolect.client.owner.vault import RandomKey, Vault
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
SELF = "-c task=text -c personalise.learning-rates=1e-3 -c unlabeled.kind=self"
NEW = "vault init --vault new.db --passphrase-file phrase"
OWNER = "idiolect.client.owner.owner:train"
SHOW = "idiolect.server.run.results:load"

OF_DEVICE = (
    # the command line
    Case("", "required: COMMAND"),
    Case("fly", "invalid choice: 'fly'"),
    Case("status --fast", "unrecognized arguments: --fast"),
    Case("import", "required: file"),
    Case("history list --last many", "invalid int value: 'many'"),
    Case("feedback sideways", "invalid choice: 'sideways'"),
    Case("personalize --method magic", "invalid choice: 'magic'"),
    Case("consent votes perhaps", "invalid choice: 'perhaps'"),
    # the vault
    Case("status --vault none.db", "there is no vault at"),
    Case("status --vault text.txt", "is no vault, or it is damaged"),
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
    Case(f"{NEW} --backbone ./none", "is no folder"),
    Case(f"{NEW} --backbone no!id", "no folder and no model id"),
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
    Case("rollback", "no adapter is in use"),
    Case("use 9", "9"),
    Case("export-adapter folder", "not empty"),
    Case("export-adapter new", "no adapter is in use"),
    # the server
    Case("node join none.json", "is no invitation"),
    Case("node join pairs.jsonl", "is no invitation"),
    Case("node run", "joined no server"),
    Case("consent everything no", "update"),
    Case("settings speed 1", "no setting 'speed'"),
    Case("settings memory-mb lots", "it takes"),
    Case("settings backbone ./none", "is no folder"),
    Case("leave", "has joined no server"),
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
    Case("simulate", "required: APP"),
    Case("show", "required: RUN"),
    Case("keys init", "required: NAME"),
    Case("audit latest --seed x", "invalid int value: 'x'"),
    # simulations
    Case("simulate none", "does not exist"),
    Case("simulate broken", "no valid TOML"),
    Case("simulate other", "no table [tool.flwr.app.config]"),
    Case("simulate APP -c users", "takes key=value"),
    Case("simulate APP -c usres=3", "usres"),
    Case("simulate APP -c users=many", "users"),
    Case("simulate APP -c users=-3", "users"),
    Case(
        "simulate APP -c task=text -c personalise.learning-rates=1e-3",
        "on their devices",
    ),
    Case("simulate APP -c task=text", "goes to devices"),
    Case("simulate APP -c task=LaMP-4", "'data' is empty"),
    Case("simulate APP -c data=none", "reads no files"),
    Case("simulate APP -c task=LaMP-4 -c data=none", "no file or folder"),
    Case("simulate APP -c task=LaMP-4 -c data=folder", "holds neither"),
    Case("simulate APP -c task=LaMP-4 -c data=nobody_users.json", "missing"),
    Case("simulate APP -c backbone=./none", "is no folder"),
    Case("simulate APP -c backbone=folder", "no config.json"),
    Case("simulate APP --name latest", "names a folder"),
    Case("simulate APP --name begun", "exists"),
    Case("simulate APP --resume never", "no run 'never'"),
    Case("simulate APP --resume begun", "before it had saved its config"),
    Case("simulate APP --nodes 0", "--nodes is 0"),
    # studies
    Case("study none.toml", "cannot be read"),
    Case("study pairs.jsonl", "is no TOML"),
    Case("study little.toml", "found too little"),
    # results
    Case("show never", "no run 'never'"),
    Case("show begun", "no results"),
    Case("show damaged", "is damaged"),
    Case("audit never", "no run 'never'"),
    # a server of devices
    Case("keys init a/b --at new", "no host name and no address"),
    Case("keys init one.example", "there are keys in"),
    Case("keys renew --at none", "none"),
    Case("serve --at none", "none"),
    Case(
        "run APP -c task=text -c personalise.learning-rates=1e-3", "needs public text"
    ),
    Case("run APP -c task=text -c unlabeled.file=none", "goes to devices"),
    Case(f"run APP {SELF}", "no server is up"),
    Case("run APP", "is for simulations"),
    Case("attach none", "no run was handed"),
    Case("stop none", "no run was handed"),
    Case("nodes list", "no server is up"),
    Case("nodes add key", "no server is up"),
    Case("nodes revoke 1", "no server is up"),
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
    with Vault.create(home / "device" / "vault.db", KEY) as vault:
        add(vault, [Entry(Prompt("", "a"), "b")], "one")
    with said_in(folder), contextlib.redirect_stdout(io.StringIO()):
        server.main(["keys", "init", "lab.example"])


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
        if case.failing:
            place, error = case.failing
            target = place.replace(":", ".")
            stack.enter_context(mock.patch(target, side_effect=error))
        code = main(words)
    text = said.getvalue().replace(str(folder / "home"), "HOME")
    text = text.replace(str(folder), ".").replace(LAMP, "APP")
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
| 1 | the new adapter loses; the run failed; an audit found a leak | what is said |
| 2 | command, file, setting or machine: something is wrong | what the sentence says |
| 70 | a defect of idiolect; its traceback is in a private file | start again, report it |
| 130 | Ctrl-C | start it again |
| 141 | whoever read the output has gone, as in `\\| head` | |
| 143 | SIGTERM | |

On a device that file says where it went wrong, and not a word of what was wrong, since that
could quote the owner. Errors go to standard error; with `--json`, standard output also has
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
