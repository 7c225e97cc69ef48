"""`idiolect`: the command of a device and its owner.

Exit codes: 1 where the new adapter loses and is not used; the others are in
`common/command.py`.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..common.command import carry_out, new_parser
from ..common.config.methods import current_name
from ..common.files import home

PRIVATE = "-: from standard input, or asked for"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `idiolect` and return its exit code."""
    return carry_out(
        _parser, arguments, lambda options: options.vault.parent, quote=False
    )


# --- the commands ----------------------------------------------------------------------


def _given(*names: str, **how: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """One argument of a command, as `ArgumentParser.add_argument` takes it."""
    return names, how


YES = _given("--yes", action="store_true", help="do not ask")
WEAK = _given(
    "--weak", action="store_true", help="take a passphrase that is easy to guess"
)


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes
    ----------
    words
        What is typed.
    run
        Module of `commands` and function in it, which is loaded when the command runs:
        `--help` must not wait for torch.
    text
        What `--help` says of it.
    arguments
        Its own, besides those of every command.
    opens
        The function takes the open vault and the options, and its module is loaded when
        the vault is open: a terminal would show a passphrase that is typed while
        something loads. False: it takes the options and opens the vault itself.
    asks
        Option whose private text is read before the vault is opened; empty: none.
    """

    words: str
    run: str
    text: str
    arguments: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = ()
    opens: bool = True
    asks: str = ""


GROUPS = {
    "vault": "make the vault, check it, or change its passphrase",
    "history": "look at the history",
    "node": "take part in the runs of a server",
}

COMMANDS = (
    Command(
        "vault init",
        "vault:init",
        "make an empty vault",
        (
            _given(
                "--keyring",
                action="store_true",
                help="keep its key in the system's keyring",
            ),
            WEAK,
            _given(
                "--backbone",
                default="tiny",
                help="a folder or a model id (default: %(default)s, which is built in)",
            ),
            _given(
                "--max-length",
                type=int,
                default=512,
                metavar="TOKENS",
                help="of a prompt and its text together (default: %(default)s)",
            ),
        ),
        opens=False,
    ),
    Command(
        "vault check", "vault:check", "open every record, to see that none is damaged"
    ),
    Command(
        "vault rewrap",
        "vault:rewrap",
        "change the passphrase",
        (
            _given(
                "--new-passphrase-file",
                type=Path,
                metavar="FILE",
                help="its first line is the new one (default: ask)",
            ),
            WEAK,
        ),
    ),
    Command(
        "vault repair",
        "vault:repair",
        "go on with what is left of a damaged vault",
        (YES,),
        opens=False,
    ),
    Command(
        "status",
        "status:status",
        "say what the vault holds, which adapter is used, what leaves, and what is next",
    ),
    Command(
        "import",
        "history:import_file",
        "add the pairs of a file to the history",
        (
            _given(
                "file",
                type=Path,
                help="a .jsonl, .json, .csv or .mbox file, a chat's export (ChatGPT, "
                "Claude, WhatsApp, Telegram), a folder of notes, or with --task a LaMP or "
                "OPPU file",
            ),
            _given("--source", help="name to forget it by (default: the file's)"),
            _given("--task", default="", help="LaMP-1 … LaMP-7: a LaMP or OPPU file"),
            _given(
                "--user", default="", metavar="NAME", help="whose of the people in it"
            ),
            _given(
                "--dates",
                choices=("dmy", "mdy", "ignore"),
                default="",
                help="of 03/04/2024: day or month first; ignore: keep the order of the "
                "file (default: as the column shows)",
            ),
            _given(
                "--newest-first",
                action="store_true",
                help="of a file without dates: its first row is the newest",
            ),
            _given(
                "--most",
                type=int,
                default=100_000,
                metavar="N",
                help="keep only the newest N rows (default: %(default)s)",
            ),
            _given(
                "--skip-bad-rows",
                action="store_true",
                help="leave out and count what cannot be read (default: refuse the file)",
            ),
            _given(
                "--encoding",
                default="",
                metavar="NAME",
                help="of the text, such as cp1252 (default: UTF-8, or as its byte-order "
                "mark says)",
            ),
            _given(
                "--dry-run", action="store_true", help="read it, and change nothing"
            ),
        ),
        opens=False,
    ),
    Command(
        "history list",
        "history:list_pairs",
        "list the pairs, oldest first",
        (
            _given(
                "--search",
                default="",
                metavar="TEXT",
                help=f"only those with it; {PRIVATE}",
            ),
            _given(
                "--last", type=int, metavar="N", help="only the newest N (default: all)"
            ),
        ),
        opens=False,
    ),
    Command("history sources", "history:sources", "list where the pairs came from"),
    Command(
        "history export",
        "history:export",
        "write the history in clear, as JSON lines",
        (_given("file", type=Path, help="a new file"),),
    ),
    Command(
        "feedback",
        "history:feedback",
        "like or dislike a pair",
        (
            _given("verdict", choices=("up", "down"), help="like or dislike"),
            _given("id", nargs="?", default="", help="a pair of `history list`"),
            _given("--prompt", default="", help=f"of a new pair; {PRIVATE}"),
            _given(
                "--text",
                default="",
                help=f"of a new pair; {PRIVATE}; where both are -, the first line is the "
                "prompt",
            ),
        ),
        opens=False,
    ),
    Command(
        "forget",
        "history:forget",
        "erase text, and the adapters that learnt it",
        (
            _given("ids", nargs="*", metavar="ID", help="pairs of `history list`"),
            _given("--source", action="append", default=[], help="whole sources"),
            _given("--everything", action="store_true", help="the vault itself"),
            YES,
            _given(
                "--no-retrain", action="store_true", help="go on without an adapter"
            ),
        ),
        opens=False,
    ),
    Command(
        "personalize",
        "model:personalize",
        "train an adapter on the history",
        (
            _given(
                "--method",
                type=current_name,
                choices=("c-bpo", "sft"),
                default="c-bpo",
                help="against samples of the model itself, or on the history alone "
                "(default: %(default)s)",
            ),
            _given(
                "--learning-rate",
                type=float,
                default=3e-3,
                metavar="RATE",
                help="step size of the training (default: %(default)s)",
            ),
        ),
    ),
    Command(
        "generate",
        "model:generate",
        "continue a prompt in the owner's way",
        (
            _given("prompt", nargs="?", help=f"(default: -); {PRIVATE}"),
            _given("--compare", action="store_true", help="also without the adapter"),
            _given(
                "--max-new-tokens",
                type=int,
                default=64,
                metavar="N",
                help="length of the answer, at most (default: %(default)s)",
            ),
        ),
        asks="prompt",
    ),
    Command(
        "use",
        "model:use",
        "list the adapters, or choose one",
        (
            _given(
                "number",
                nargs="?",
                help="an adapter of the list, or none (default: list them)",
            ),
        ),
    ),
    Command("rollback", "model:rollback", "use the adapter before the one in use"),
    Command(
        "reset",
        "model:reset",
        "go back to the bare model: no adapter, and none of a server's to train on",
    ),
    Command(
        "export-adapter",
        "model:export",
        "write the adapter, in clear, for PEFT",
        (_given("folder", type=Path, help="a new or empty folder"),),
    ),
    Command(
        "node join",
        "server:join",
        "remember a server, and show this device's key",
        (_given("invitation", type=Path, help="the file that its operator gave"),),
        opens=False,
    ),
    Command(
        "node run",
        "server:run_node",
        "answer the server's messages until ended",
        opens=False,
    ),
    Command(
        "consent",
        "server:answer",
        "say what may leave the device",
        (
            _given(
                "outflow",
                nargs="?",
                help="update, votes, metrics, items or training (default: show all)",
            ),
            _given(
                "answer",
                nargs="?",
                choices=("no", "noisy", "clear", "yes"),
                help="from now on (default: show what was answered)",
            ),
        ),
    ),
    Command(
        "settings",
        "server:settings",
        "show or change what the device uses",
        (
            _given("name", nargs="?", help="a setting (default: show all)"),
            _given(
                "value",
                nargs="?",
                help="from now on (default: show what it is, and which values it takes)",
            ),
        ),
    ),
    Command("sent", "server:sent", "list what left the device"),
    Command("pause", "server:pause", "answer no server for now"),
    Command("resume", "server:resume", "answer again"),
    Command("leave", "server:leave", "leave the server, and forget it", (YES,)),
)


# --- the command line ------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "idiolect",
        "The owner's side of a device: a history in an encrypted vault, and a "
        "model that learns from it. Only `idiolect node run` talks to a server.",
    )
    parser.add_argument(
        "--version", action="version", version=f"idiolect {version('idiolect')}"
    )
    top = parser.add_subparsers(required=True, metavar="COMMAND")
    groups: dict[str, Any] = {"": top}
    for command in COMMANDS:
        group, _, name = command.words.rpartition(" ")
        if group not in groups:
            part = _add(top, group, GROUPS[group])
            groups[group] = part.add_subparsers(required=True, metavar="COMMAND")
        one = _add(groups[group], name, command.text)
        one.set_defaults(run=partial(_run, command))
        for names, how in (*_common(), *command.arguments):
            one.add_argument(*names, **how)
    return parser


def _add(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    sentence = f"{text[0].upper()}{text[1:]}."  # names in it stay as they are written
    return commands.add_parser(name, help=text, description=sentence)


def _common() -> tuple[tuple[tuple[str, ...], dict[str, Any]], ...]:
    """The arguments of every command."""
    return (
        _given("--json", action="store_true", help="print JSON"),
        _given(
            "--vault",
            type=Path,
            metavar="FILE",
            default=home() / "device" / "vault.db",
            help="the vault (default: %(default)s)",
        ),
        _given(
            "--passphrase-file",
            type=Path,
            metavar="FILE",
            help="its first line opens the vault (default: $IDIOLECT_PASSPHRASE_FILE, the "
            "systemd credential idiolect-passphrase, the keyring, or ask)",
        ),
    )


def _run(command: Command, options: argparse.Namespace) -> int:
    """Carry out a command; returns its exit code."""
    module, _, name = command.run.partition(":")
    module = f"{__package__}.commands.{module}"
    if command.opens:
        from .commands.answer import opened, private

        if command.asks:
            given = getattr(options, command.asks)
            setattr(options, command.asks, private(given, command.asks))
        with opened(options) as vault:
            answer = getattr(import_module(module), name)(vault, options)
    else:
        answer = getattr(import_module(module), name)(options)
    return answer if isinstance(answer, int) else answer.show(options)


if __name__ == "__main__":
    sys.exit(main())
