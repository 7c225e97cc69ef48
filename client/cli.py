"""`idiolect`: the command of a device and its owner.

Exit codes: 1 where the new adapter loses and is not used, or where `doctor` finds a
problem; the others are in `common/command.py`.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from ..common.command import (
    Argument,
    Command,
    add_commands,
    carry_out,
    given,
    new_parser,
)
from ..common.config.methods import current_name
from ..common.files import home

PRIVATE = "-: from standard input, or asked for"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `idiolect` and return its exit code."""
    return carry_out(
        _parser, arguments, lambda options: options.vault.parent, quote=False
    )


# --- the commands ----------------------------------------------------------------------


YES = given("--yes", action="store_true", help="do not ask")
NUMBERS = given("--verbose", action="store_true", help="show the numbers, too")
WEAK = given(
    "--weak", action="store_true", help="take a passphrase that is easy to guess"
)


@dataclass(frozen=True)
class OwnerCommand(Command):
    """One command of the owner.

    `run` is a module of `commands`, or with a dot of another room, and a function in it,
    which is loaded when the command runs: `--help` must not wait for torch.

    Attributes
    ----------
    opens
        The function takes the open vault and the options, and its module is loaded when
        the vault is open: a terminal would show a passphrase that is typed while
        something loads. False: it takes the options and opens the vault itself.
    """

    opens: bool = True


GROUPS = {
    "vault": "make the vault, check it, or change its passphrase",
    "history": "look at the history",
    "node": "take part in the runs of a server",
}

COMMANDS = (
    OwnerCommand(
        "vault init",
        "vault:init",
        "make an empty vault",
        (
            given(
                "--keyring",
                action="store_true",
                help="keep its key in the system's keyring",
            ),
            WEAK,
            given(
                "--backbone",
                default="",
                help="tiny, which is built in, smollm2, a folder, a GGUF file or a model "
                "id (default: ask, or tiny where there is no terminal)",
            ),
            given(
                "--max-length",
                type=int,
                default=512,
                metavar="TOKENS",
                help="of a prompt and its text together (default: %(default)s)",
            ),
        ),
        opens=False,
        examples=(
            "",
            "--keyring --backbone smollm2 --max-length 1024",
        ),
    ),
    OwnerCommand(
        "vault check", "vault:check", "open every record, to see that none is damaged"
    ),
    OwnerCommand(
        "vault rewrap",
        "vault:rewrap",
        "change the passphrase",
        (
            given(
                "--new-passphrase-file",
                type=Path,
                metavar="FILE",
                help="its first line is the new one (default: ask)",
            ),
            WEAK,
        ),
        examples=("--new-passphrase-file new.txt",),
    ),
    OwnerCommand(
        "vault repair",
        "vault:repair",
        "go on with what is left of a damaged vault",
        (YES,),
        opens=False,
    ),
    OwnerCommand(
        "status",
        "status:status",
        "say what the vault holds, which adapter is used, what leaves, and what is next",
        (NUMBERS,),
    ),
    OwnerCommand(
        "models",
        "models:list_models",
        "list the models of this machine, or measure one",
        (
            given(
                "--try",
                dest="trying",
                default="",
                metavar="NAME",
                help="personalise this one on a small job of made-up pairs, and keep the "
                "time and memory that it took",
            ),
        ),
        opens=False,
        examples=("--try smollm2",),
    ),
    OwnerCommand(
        "import",
        "history:import_file",
        "add the pairs of a file to the history",
        (
            given(
                "file",
                type=Path,
                help="a .jsonl, .json, .csv or .mbox file, a chat's export (ChatGPT, "
                "Claude, WhatsApp, Telegram), a folder of notes, or with --task a LaMP or "
                "OPPU file",
            ),
            given("--source", help="name to forget it by (default: the file's)"),
            given(
                "--task",
                default="",
                help="LaMP-1, … LongLaMP-topic: a file of LaMP, OPPU or LongLaMP",
            ),
            given(
                "--user", default="", metavar="NAME", help="whose of the people in it"
            ),
            given(
                "--dates",
                choices=("dmy", "mdy", "ignore"),
                default="",
                help="of 03/04/2024: day or month first; ignore: keep the order of the "
                "file (default: as the column shows)",
            ),
            given(
                "--newest-first",
                action="store_true",
                help="of a file without dates: its first row is the newest",
            ),
            given(
                "--most",
                type=int,
                default=100_000,
                metavar="N",
                help="keep only the newest N rows (default: %(default)s)",
            ),
            given(
                "--skip-bad-rows",
                action="store_true",
                help="leave out and count what cannot be read (default: refuse the file)",
            ),
            given(
                "--encoding",
                default="",
                metavar="NAME",
                help="of the text, such as cp1252 (default: UTF-8, or as its byte-order "
                "mark says)",
            ),
            given("--dry-run", action="store_true", help="read it, and change nothing"),
        ),
        opens=False,
        examples=(
            "sent.mbox --dry-run",
            "posts.csv --source blog --dates dmy",
        ),
    ),
    OwnerCommand(
        "history list",
        "history:list_pairs",
        "list the pairs, oldest first",
        (
            given(
                "--search",
                default="",
                metavar="TEXT",
                help=f"only those with it; {PRIVATE}",
            ),
            given(
                "--last", type=int, metavar="N", help="only the newest N (default: all)"
            ),
        ),
        opens=False,
        examples=("--search lunch --last 5",),
    ),
    OwnerCommand(
        "history sources", "history:sources", "list where the pairs came from"
    ),
    OwnerCommand(
        "history export",
        "history:export",
        "write the history in clear, as JSON lines",
        (given("file", type=Path, help="a new file"),),
        examples=("history.jsonl",),
    ),
    OwnerCommand(
        "feedback",
        "history:feedback",
        "like or dislike a pair",
        (
            given("verdict", choices=("up", "down"), help="like or dislike"),
            given("id", nargs="?", default="", help="a pair of `history list`"),
            given("--prompt", default="", help=f"of a new pair; {PRIVATE}"),
            given(
                "--text",
                default="",
                help=f"of a new pair; {PRIVATE}; where both are -, the first line is the "
                "prompt",
            ),
        ),
        opens=False,
        examples=(
            "up 3f2a9c",
            "down --prompt 'Invite Ann.' --text 'Dear Madam or Sir,'",
        ),
    ),
    OwnerCommand(
        "forget",
        "history:forget",
        "erase text, and the adapters that learnt it",
        (
            given("ids", nargs="*", metavar="ID", help="pairs of `history list`"),
            given("--source", action="append", default=[], help="whole sources"),
            given("--everything", action="store_true", help="the vault itself"),
            YES,
            given("--no-retrain", action="store_true", help="go on without an adapter"),
        ),
        opens=False,
        examples=(
            "3f2a9c",
            "--source sent.mbox --no-retrain",
        ),
    ),
    OwnerCommand(
        "personalize",
        "personalize:personalize",
        "train an adapter on the history",
        (
            given(
                "--method",
                type=current_name,
                choices=("c-bpo", "sft"),
                default="c-bpo",
                help="against samples of the model itself, or on the history alone "
                "(default: %(default)s)",
            ),
            given(
                "--learning-rate",
                type=float,
                metavar="RATE",
                help="step size of the training (default: by the size of the model)",
            ),
            NUMBERS,
        ),
        examples=(
            "",
            "--method sft --learning-rate 1e-3 --verbose",
        ),
    ),
    OwnerCommand(
        "generate",
        "write:generate",
        "continue a prompt in the owner's way",
        (
            given("prompt", nargs="?", help=f"(default: -); {PRIVATE}"),
            given("--compare", action="store_true", help="also without the adapter"),
            given(
                "--max-new-tokens",
                type=int,
                default=64,
                metavar="N",
                help="length of the answer, at most (default: %(default)s)",
            ),
        ),
        opens=False,
        examples=(
            "'Invite Ann to lunch.' --compare",
            "- --max-new-tokens 200",
        ),
    ),
    OwnerCommand(
        "ui",
        "page.serve:ui",
        "show all this as a page in a browser of this machine",
        (
            given(
                "--port",
                type=int,
                default=0,
                metavar="N",
                help="of 127.0.0.1 (default: %(default)s, any that is free)",
            ),
            given("--open", action="store_true", help="open it in the browser"),
        ),
        opens=False,
        examples=("--open",),
    ),
    OwnerCommand(
        "chat",
        "chat:chat",
        "talk with the personal model; nothing of it is kept",
        (
            given(
                "--system",
                metavar="TEXT",
                help=f"what the model is told first; {PRIVATE}",
            ),
            given(
                "--max-new-tokens",
                type=int,
                default=None,
                metavar="N",
                help="length of an answer, at most (default: 256, or half the max-length)",
            ),
        ),
        opens=False,
        examples=("--system 'Answer in one sentence.'",),
    ),
    OwnerCommand(
        "serve-local",
        "local:serve",
        "let editors and other programs of this machine use the personal model",
        (
            given(
                "--port",
                type=int,
                default=4346,
                metavar="N",
                help="of 127.0.0.1; 0: a free one (default: %(default)s)",
            ),
            given(
                "--origin",
                action="append",
                default=[],
                metavar="URL",
                help="a web page that may ask, such as http://localhost:5173 (default: "
                "none)",
            ),
            given(
                "--new-key",
                action="store_true",
                help="make another key; programs that have the one before are refused",
            ),
        ),
        opens=False,
        examples=(
            "",
            "--port 0 --origin http://localhost:5173",
        ),
    ),
    OwnerCommand(
        "use",
        "model:use",
        "list the adapters, or choose one",
        (
            given(
                "number",
                nargs="?",
                help="an adapter of the list, or none (default: list them)",
            ),
            given(
                "--strength",
                type=float,
                metavar="X",
                help="by how much it changes the model, from 0 to 4; 1: as it was trained",
            ),
            NUMBERS,
        ),
        examples=(
            "2 --strength 0.5",
            "none",
        ),
    ),
    OwnerCommand("rollback", "model:rollback", "use the adapter before the one in use"),
    OwnerCommand(
        "reset",
        "model:reset",
        "go back to the bare model: no adapter, and none of a server's to train on",
    ),
    OwnerCommand(
        "export-adapter",
        "model:export",
        "write the adapter, in clear, for other programs",
        (
            given("folder", type=Path, help="a new or empty folder"),
            given(
                "--format",
                choices=("peft", "gguf", "merged"),
                default="peft",
                help="for PEFT; for llama.cpp, with a Modelfile for Ollama; or a whole "
                "model, as a folder and a GGUF file (default: %(default)s)",
            ),
        ),
        examples=("mine --format gguf",),
    ),
    OwnerCommand(
        "import-adapter",
        "model:bring",
        "take somebody's adapter as one of yours",
        (given("folder", type=Path, help="a LoRA that PEFT saved"),),
        examples=("theirs",),
    ),
    OwnerCommand(
        "node join",
        "server:join",
        "remember a server, and show this device's key",
        (given("invitation", type=Path, help="the file that its operator gave"),),
        opens=False,
        examples=("invitation.json",),
    ),
    OwnerCommand(
        "node vouched",
        "server:vouched",
        "keep what the witness of the invitation signed",
        (given("voucher", help="what `idiolect-server witness vouch` printed"),),
    ),
    OwnerCommand(
        "node run",
        "server:run_node",
        "answer the server's messages until ended",
        opens=False,
    ),
    OwnerCommand(
        "consent",
        "server:answer",
        "say what may leave the device",
        (
            given(
                "outflow",
                nargs="?",
                help="update, votes, metrics, items or training (default: show all)",
            ),
            given(
                "answer",
                nargs="?",
                choices=("no", "summed", "noisy", "clear", "yes"),
                help="from now on (default: show what was answered)",
            ),
        ),
        examples=("metrics no",),
    ),
    OwnerCommand(
        "settings",
        "server:settings",
        "show or change what the device uses",
        (
            given("name", nargs="?", help="a setting (default: show all)"),
            given(
                "value",
                nargs="?",
                help="from now on (default: show what it is, and which values it takes)",
            ),
        ),
        examples=(
            "max-length 1024",
            "most-epsilon 4",
        ),
    ),
    OwnerCommand(
        "doctor",
        "doctor:examine",
        "look whether this device is well: versions, disk, model, memory, and its server",
        opens=False,
    ),
    OwnerCommand("sent", "server:sent", "list what left the device"),
    OwnerCommand(
        "directory",
        "server:directory",
        "list the members of the last masked sums, to compare with other owners",
    ),
    OwnerCommand("pause", "server:pause", "answer no server for now"),
    OwnerCommand("resume", "server:resume", "answer again"),
    OwnerCommand("leave", "server:leave", "leave the server, and forget it", (YES,)),
)


# --- the command line ------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "idiolect",
        "The owner's side of a device: a history in an encrypted vault, and a "
        "model that learns from it. Only `idiolect node run` talks to a server, and "
        "`idiolect doctor` asks it how it is.",
    )
    return add_commands(parser, COMMANDS, GROUPS, _run, _common())


def _common() -> tuple[Argument, ...]:
    """The arguments of every command."""
    return (
        given("--json", action="store_true", help="print JSON"),
        given(
            "--vault",
            type=Path,
            metavar="FILE",
            default=home() / "device" / "vault.db",
            help="the vault (default: %(default)s)",
        ),
        given(
            "--passphrase-file",
            type=Path,
            metavar="FILE",
            help="its first line opens the vault (default: $IDIOLECT_PASSPHRASE_FILE, the "
            "systemd credential idiolect-passphrase, the keyring, or ask)",
        ),
    )


def _run(command: OwnerCommand, options: argparse.Namespace) -> int:
    """Carry out a command; returns its exit code."""
    module, _, name = command.run.partition(":")
    room = "" if "." in module else "commands."
    module = f"{__package__}.{room}{module}"
    if command.opens:
        from .commands.answer import opened

        with opened(options) as vault:
            answer = getattr(import_module(module), name)(vault, options)
    else:
        answer = getattr(import_module(module), name)(options)
    return answer if isinstance(answer, int) else answer.show(options)


if __name__ == "__main__":
    sys.exit(main())
