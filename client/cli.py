"""`idiolect`: the command of a device and its owner.

Exit codes: 1 where the new adapter loses and is not used; the others are in
`common/command.py`.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill
from time import localtime, strftime
from typing import TYPE_CHECKING, Any

from ..common.command import carry_out, new_parser
from ..common.errors import IdiolectError
from ..common.files import home, write_new
from ..common.text import printable, tell, tell_json, tell_sentence

if TYPE_CHECKING:
    from .owner.consent import Sent
    from .owner.history import Entry
    from .owner.owner import Version
    from .owner.vault import Vault

# Imported by the functions that need them: `--help` must not wait for torch.

NO_LIMIT = "; 0: no limit"
ROW = len("0123456789ab  +  2026-01-31   => ")  # what a list says beside the texts
PRIVATE = "-: from standard input, or asked for"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `idiolect` and return its exit code."""
    return carry_out(
        _parser, arguments, lambda options: options.vault.parent, quote=False
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
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_vault(commands)
    _add_history(commands)
    _add_model(commands)
    _add_server(commands)
    return parser


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."  # names in it stay as they are written


def _add(commands: Any, name: str, run: Callable, text: str) -> argparse.ArgumentParser:
    one = commands.add_parser(name, help=text, description=_sentence(text))
    one.set_defaults(run=run)
    one.add_argument("--json", action="store_true", help="print JSON")
    one.add_argument(
        "--vault",
        type=Path,
        metavar="FILE",
        default=home() / "device" / "vault.db",
        help="the vault (default: %(default)s)",
    )
    one.add_argument(
        "--passphrase-file",
        type=Path,
        metavar="FILE",
        help="its first line opens the vault (default: $IDIOLECT_PASSPHRASE_FILE, the "
        "systemd credential idiolect-passphrase, the keyring, or ask)",
    )
    return one


def _add_vault(commands: Any) -> None:
    text = "make the vault, check it, or change its passphrase"
    vault = commands.add_parser("vault", help=text, description=_sentence(text))
    parts = vault.add_subparsers(required=True, metavar="COMMAND")
    init = _add(parts, "init", _init, "make an empty vault")
    init.add_argument(
        "--keyring", action="store_true", help="keep its key in the system's keyring"
    )
    _add_weak(init)
    init.add_argument(
        "--backbone",
        default="tiny",
        help="a folder or a model id (default: %(default)s, which is built in)",
    )
    init.add_argument(
        "--max-length",
        type=int,
        default=512,
        metavar="TOKENS",
        help="of a prompt and its text together (default: %(default)s)",
    )
    _add(parts, "check", _check, "open every record, to see that none is damaged")
    rewrap = _add(parts, "rewrap", _rewrap, "change the passphrase")
    rewrap.add_argument(
        "--new-passphrase-file",
        type=Path,
        metavar="FILE",
        help="its first line is the new one (default: ask)",
    )
    _add_weak(rewrap)
    repair = _add(
        parts, "repair", _repair, "go on with what is left of a damaged vault"
    )
    repair.add_argument("--yes", action="store_true", help="do not ask")
    _add(
        commands,
        "status",
        _status,
        "say what the vault holds, which adapter is used, what leaves, and what is next",
    )


def _add_weak(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weak", action="store_true", help="take a passphrase that is easy to guess"
    )


def _add_history(commands: Any) -> None:
    one = _add(commands, "import", _import, "add the pairs of a file to the history")
    one.add_argument(
        "file",
        type=Path,
        help="a .jsonl, .json, .csv or .mbox file, a chat's export (ChatGPT, Claude, "
        "WhatsApp, Telegram), a folder of notes, or with --task a LaMP or OPPU file",
    )
    one.add_argument("--source", help="name to forget it by (default: the file's)")
    one.add_argument("--task", default="", help="LaMP-1 … LaMP-7: a LaMP or OPPU file")
    one.add_argument(
        "--user", default="", metavar="NAME", help="whose of the people in the file"
    )
    one.add_argument(
        "--dates",
        choices=("dmy", "mdy", "ignore"),
        default="",
        help="of 03/04/2024: day or month first; ignore: keep the order of the file "
        "(default: as the column shows)",
    )
    one.add_argument(
        "--newest-first",
        action="store_true",
        help="of a file without dates: its first row is the newest",
    )
    one.add_argument(
        "--most",
        type=int,
        default=100_000,
        metavar="N",
        help="keep only the newest N rows (default: %(default)s)",
    )
    one.add_argument(
        "--skip-bad-rows",
        action="store_true",
        help="leave out and count what cannot be read (default: refuse the file)",
    )
    one.add_argument(
        "--encoding",
        default="",
        metavar="NAME",
        help="of the text, such as cp1252 (default: UTF-8, or as its mark says)",
    )
    one.add_argument(
        "--dry-run", action="store_true", help="read it, and change nothing"
    )

    text = "look at the history"
    part = commands.add_parser("history", help=text, description=_sentence(text))
    parts = part.add_subparsers(required=True, metavar="COMMAND")
    one = _add(parts, "list", _list, "list the pairs, oldest first")
    one.add_argument(
        "--search", default="", metavar="TEXT", help=f"only those with it; {PRIVATE}"
    )
    one.add_argument(
        "--last", type=int, metavar="N", help="only the newest N (default: all)"
    )
    _add(parts, "sources", _sources, "list where the pairs came from")
    one = _add(
        parts, "export", _export_history, "write the history in clear, as JSON lines"
    )
    one.add_argument("file", type=Path, help="a new file")

    one = _add(commands, "feedback", _feedback, "like or dislike a pair")
    one.add_argument("verdict", choices=("up", "down"), help="like or dislike")
    one.add_argument("id", nargs="?", default="", help="a pair of `history list`")
    one.add_argument("--prompt", default="", help=f"of a new pair; {PRIVATE}")
    one.add_argument(
        "--text",
        default="",
        help=f"of a new pair; {PRIVATE}; where both are -, the first line is the prompt",
    )

    one = _add(
        commands, "forget", _forget, "erase text, and the adapters that learnt it"
    )
    one.add_argument("ids", nargs="*", metavar="ID", help="pairs of `history list`")
    one.add_argument("--source", action="append", default=[], help="whole sources")
    one.add_argument("--everything", action="store_true", help="the vault itself")
    one.add_argument("--yes", action="store_true", help="do not ask")
    one.add_argument(
        "--no-retrain", action="store_true", help="go on without an adapter"
    )


def _add_model(commands: Any) -> None:
    one = _add(commands, "personalize", _personalize, "train an adapter on the history")
    one.add_argument(
        "--method",
        choices=("c-bpo", "oppu"),
        default="c-bpo",
        help="against samples of the model itself, or on the history alone (default: "
        "%(default)s)",
    )
    one.add_argument(
        "--learning-rate",
        type=float,
        default=3e-3,
        metavar="RATE",
        help="step size of the training (default: %(default)s)",
    )
    one = _add(commands, "generate", _generate, "continue a prompt in the owner's way")
    one.add_argument("prompt", nargs="?", help=f"(default: -); {PRIVATE}")
    one.add_argument("--compare", action="store_true", help="also without the adapter")
    one.add_argument(
        "--max-new-tokens",
        type=int,
        default=64,
        metavar="N",
        help="length of the answer, at most (default: %(default)s)",
    )
    one = _add(commands, "use", _use, "list the adapters, or choose one")
    one.add_argument(
        "number", nargs="?", help="an adapter of the list, or none (default: list them)"
    )
    _add(commands, "rollback", _rollback, "use the adapter before the one in use")
    _add(
        commands,
        "reset",
        _reset,
        "go back to the bare model: no adapter, and none of a server's to train on",
    )
    one = _add(
        commands, "export-adapter", _export, "write the adapter, in clear, for PEFT"
    )
    one.add_argument("folder", type=Path, help="a new or empty folder")


def _add_server(commands: Any) -> None:
    text = "take part in the runs of a server"
    node = commands.add_parser("node", help=text, description=_sentence(text))
    parts = node.add_subparsers(required=True, metavar="COMMAND")
    join = _add(parts, "join", _join, "remember a server, and show this device's key")
    join.add_argument("invitation", type=Path, help="the file that its operator gave")
    _add(parts, "run", _node, "answer the server's tasks until ended")
    one = _add(commands, "consent", _consent, "say what may leave the device")
    one.add_argument(
        "outflow",
        nargs="?",
        help="update, votes, metrics, items or training (default: show all)",
    )
    one.add_argument(
        "answer",
        nargs="?",
        choices=("no", "noisy", "clear", "yes"),
        help="from now on (default: show what was answered)",
    )
    one = _add(commands, "settings", _settings, "show or change what the device uses")
    one.add_argument("name", nargs="?", help="a setting (default: show all)")
    one.add_argument(
        "value",
        nargs="?",
        help="from now on (default: show what it is, and which values it takes)",
    )
    _add(commands, "sent", _sent, "list what left the device")
    _add(commands, "pause", _pause, "answer no server for now")
    _add(commands, "resume", _resume, "answer again")
    one = _add(commands, "leave", _leave, "leave the server, and forget it")
    one.add_argument("--yes", action="store_true", help="do not ask")


# --- the vault -------------------------------------------------------------------------


def _open(options: argparse.Namespace, trusting: bool = False) -> "Vault":
    from .owner.database import is_there
    from .owner.unlock import unlock
    from .owner.vault import Vault

    if not is_there(options.vault):
        raise IdiolectError(
            f"there is no vault at {options.vault}: make one by `idiolect vault init`."
        )
    key = unlock(options.vault, options.passphrase_file)
    return Vault.open(options.vault, key, trusting)


def _say(
    options: argparse.Namespace, found: Any, text: str, exact: bool = False
) -> int:
    """Print a result; what is `exact` is to be copied, so no line end is put into it."""
    if options.json:
        tell_json(found)
    else:
        (tell if exact else tell_sentence)(text)
    return 0


# --- private text ----------------------------------------------------------------------

ASK = "-"  # as a value: read it from standard input, or ask at the terminal


def _private(given: str | None, what: str, rest: bool = True) -> str:
    """Return text that is nobody else's business, from where nobody else can read it.

    Everyone on a machine can read the command lines of its processes while they run, and
    the shell keeps them. So text is read from standard input; at a terminal it is asked
    for, one line. Text that was given as an argument is taken, with a warning.

    Parameters
    ----------
    given
        What stood on the command line; None or `ASK`: nothing did.
    what
        What it is called.
    rest
        Take all that is left of standard input, or only its next line.
    """
    if given not in (None, ASK):
        if given:
            tell_sentence(
                f"warning: the {what} stands on the command line, where other users of "
                f"this machine can read it and the shell keeps it: give '{ASK}' instead.",
                sys.stderr,
            )
        return given
    if sys.stdin.isatty():
        tell(f"{what} (one line):", sys.stderr)
        rest = False
    from .owner.history import LONGEST

    try:
        text = sys.stdin.read(LONGEST + 1) if rest else sys.stdin.readline(LONGEST + 1)
    except UnicodeDecodeError:
        raise IdiolectError(
            f"the {what} is not UTF-8 text: save it as UTF-8."
        ) from None
    if len(text) > LONGEST:
        raise IdiolectError(
            f"the {what} has more than {LONGEST} characters: give a shorter one."
        )
    if not text.strip():
        raise IdiolectError(f"there is no {what} on standard input: write one.")
    return text.strip("\r\n")


def _init(options: argparse.Namespace) -> int:
    from .owner.consent import SETTINGS, check_setting, choose
    from .owner.database import is_there
    from .owner.unlock import forget_keyring_entry, new_keyring_entry, new_passphrase
    from .owner.vault import Vault

    if is_there(options.vault):
        raise IdiolectError(
            f"there is a vault at {options.vault} already: it is left as it is."
        )
    backbone = _folder(options.backbone)
    chosen = {"backbone": backbone, "max-length": str(options.max_length)}
    for name, value in chosen.items():
        check_setting(name, value)
    # Asked before the model is loaded: what is typed meanwhile would be shown.
    if options.keyring:
        key = new_keyring_entry(options.vault)
    else:
        key = new_passphrase(options.passphrase_file, options.weak)
    try:
        from .owner.owner import check_loads

        check_loads(SETTINGS | chosen)  # before there is a vault that needs it
        with Vault.create(options.vault, key) as vault:
            choose(vault, **chosen)
    except BaseException:
        if options.keyring and not options.vault.exists():
            forget_keyring_entry(options.vault)
        raise
    return _say(
        options,
        {"vault": str(options.vault)},
        f"{options.vault} is ready.\nWithout its key nobody can open it, you included.\n"
        "next: `idiolect import FILE` adds what you have written.",
    )


def _folder(backbone: str) -> str:
    """A backbone's folder from wherever it is looked for; a model id as it is."""
    path = Path(backbone).expanduser()
    return str(path.absolute()) if backbone != "tiny" and path.is_dir() else backbone


def _check(options: argparse.Namespace) -> int:
    with _open(options) as vault:
        count = vault.check()
    return _say(options, {"records": count}, f"{count} records, none damaged.")


def _rewrap(options: argparse.Namespace) -> int:
    from .owner.database import ErasureError
    from .owner.unlock import forget_keyring_entry, new_passphrase

    with _open(options) as vault:
        key = new_passphrase(options.new_passphrase_file, options.weak, other=True)
        try:
            vault.rewrap(key)
        except ErasureError:  # it has the new one all the same
            forget_keyring_entry(options.vault)
            raise
    forget_keyring_entry(options.vault)
    return _say(options, {}, "the vault has a new passphrase.")


def _repair(options: argparse.Namespace) -> int:
    _sure(options, "what is damaged is deleted, and the rest believed")
    with _open(options, trusting=True) as vault:
        gone = vault.repair()
    text = (
        f"{gone} damaged records are gone. The rest may be older than what you wrote last: "
        "look at `idiolect consent`, `idiolect settings` and `idiolect history list`."
    )
    return _say(options, {"deleted": gone}, text)


def _status(options: argparse.Namespace) -> int:
    with _open(options) as vault:
        from . import overview

        found = overview.status(vault)
    return _say(options, found, overview.text(found))


# --- the history -----------------------------------------------------------------------


def _import(options: argparse.Namespace) -> int:
    from .imports.read import Asked, read, report
    from .owner import history

    source = history.source_name(options.source or options.file.resolve().name)
    asked = Asked(
        task=options.task,
        user=options.user,
        dates=options.dates,
        newest_first=options.newest_first,
        most=options.most,
        skip=options.skip_bad_rows,
        encoding=options.encoding,
    )
    found = read(options.file, asked, say=True)
    with _open(options) as vault:
        other = history.contradicted(vault, found.entries)
        if options.dry_run:
            new = len(history.unknown(vault, found.entries))
            counts = (new, len(found.entries) - new)
        else:
            counts = history.add(vault, found.entries, source)
    disliked = sum(not entry.liked for entry in found.entries)
    pairs = "1 pair" if counts[0] == 1 else f"{counts[0]} pairs"
    verb = "would be added" if options.dry_run else "added"
    text = f"{pairs} {verb} from '{printable(source)}', {counts[1]} were there already."
    if disliked:
        text += f" {disliked} of the file's are disliked."
    if other:
        text += (
            f" {other} of those have the other verdict in the vault, which stays: "
            "`idiolect feedback` changes it."
        )
    account = {k: v for k, v in vars(found).items() if k not in ("entries", "table")}
    said = {"new": counts[0], "known": counts[1], "source": source}
    said |= {"other_verdict": other, **account}
    return _say(options, said, f"{fill(text, 80)}\n{report(found)}")


def _list(options: argparse.Namespace) -> int:
    from .owner.history import entries

    word = _private(options.search, "text to search for").casefold()
    with _open(options) as vault:
        found = entries(vault)
    found = [e for e in found if word in f"{e.prompt.text}\n{e.target}".casefold()]
    if options.last is not None:
        found = found[max(len(found) - options.last, 0) :]
    # A line for each pair: the prompt gets two fifths of what its id and date leave.
    room = max(get_terminal_size((150, 24)).columns - ROW, 20)
    prompts = room * 2 // 5
    lines = [
        f"{entry.id}  {'+' if entry.liked else '-'}  "
        f"{strftime('%Y-%m-%d', localtime(entry.when))}  "
        f"{_short(entry.prompt.text, prompts)} => {_short(entry.target, room - prompts)}"
        for entry in found
    ]
    text = "\n".join(lines) if lines else "nothing."
    return _say(options, [_plain(entry) for entry in found], text)


def _short(text: str, width: int) -> str:
    from rich.cells import cell_len, set_cell_size

    text = printable(" ".join(text.split()), width + 1)
    short = set_cell_size(text, width - 1).rstrip() + "…"
    return text if cell_len(text) <= width else short


def _plain(entry: "Entry") -> dict[str, Any]:
    return {
        "id": entry.id,
        "prompt": entry.prompt.text,
        "target": entry.target,
        "liked": entry.liked,
        "source": entry.source,
        "added": entry.added,
        "date": entry.written,
    }


def _sources(options: argparse.Namespace) -> int:
    from .owner.history import entries

    counts: dict[str, int] = {}
    with _open(options) as vault:
        for entry in entries(vault):
            counts[entry.source] = counts.get(entry.source, 0) + 1
    lines = [f"{count:6}  {printable(source)}" for source, count in counts.items()]
    return _say(options, counts, "\n".join(lines) if lines else "nothing.")


def _export_history(options: argparse.Namespace) -> int:
    from .owner.history import entries

    with _open(options) as vault:
        lines = [json.dumps(_plain(entry)) for entry in entries(vault)]
    try:
        write_new(options.file, "".join(f"{line}\n" for line in lines).encode())
    except OSError as error:
        raise IdiolectError(
            f"{options.file} cannot be written ({error.strerror}): name a new file."
        ) from error
    text = f"{len(lines)} pairs are in {options.file}, in clear."
    return _say(options, {"pairs": len(lines)}, text)


def _feedback(options: argparse.Namespace) -> int:
    from ..common.data.types import Prompt
    from .owner.history import Entry, clean, find, judge

    if bool(options.id) == bool(options.text):
        raise IdiolectError("say what it is about: an ID, or a new pair by --text.")
    given = None
    if not options.id:
        prompt = _private(options.prompt, "prompt", options.text != ASK)
        text = _private(options.text, "text")
        given = Entry(Prompt("", clean(prompt)), clean(text))
    # In one transaction: what is forgotten meanwhile does not come back.
    with _open(options) as vault, vault.transaction():
        entry = given or find(vault, [options.id])[0]
        entry = judge(vault, entry, options.verdict == "up")
    verb = "liked" if entry.liked else "disliked: the next training learns to avoid it"
    return _say(options, _plain(entry), f"{entry.id} is {verb}.")


def _forget(options: argparse.Namespace) -> int:
    if not (options.ids or options.source or options.everything):
        raise IdiolectError("say what to forget: IDs, --source NAME, or --everything.")
    _sure(options, "what is forgotten is gone")
    if options.everything:
        return _forget_everything(options)
    with _open(options) as vault:
        from .owner import owner

        used = owner.active(vault)
        count, stale = owner.forget(vault, options.source, options.ids)
        numbers = [one.number for one in stale]
        found: dict[str, Any] = {"pairs": count, "adapters": numbers, "retrained": None}
        pairs = "1 pair is" if count == 1 else f"{count} pairs are"
        knew = ", ".join(map(str, numbers)) or "none"
        text = f"{pairs} gone; adapters that are erased with that: {knew}."
        # Only in the place of the one in use: an owner who has none wants none.
        if used in numbers and not options.no_retrain:
            try:
                new = owner.train(vault, stale[-1].method)
            except IdiolectError as error:
                text += f"\nno adapter is in use: {error}"
            else:
                found["retrained"] = new.number
                text += f"\nadapter {new.number} ({_verdict(new)}) was trained "
                text += "on what remains."
    return _say(options, found, text)


def _sure(options: argparse.Namespace, what: str) -> None:
    if options.yes:
        return
    if not sys.stdin.isatty():
        raise IdiolectError(f"{what}: say so with --yes.")
    try:
        said = input(f"{what}. Go on (yes/no)? ")
    except EOFError:
        said = ""
    if said.strip() != "yes":
        raise IdiolectError("nothing was done, since the answer was not 'yes'.")


def _forget_everything(options: argparse.Namespace) -> int:
    from .owner.unlock import forget_keyring_entry

    # The key first: without it, what a crash leaves of the file is noise.
    forget_keyring_entry(options.vault)
    from .owner.alone import note_of

    for beside in ("", "-wal", "-shm"):
        Path(f"{options.vault}{beside}").unlink(missing_ok=True)
    note_of(options.vault).unlink(missing_ok=True)
    return _say(options, {"everything": True}, f"{options.vault} is gone.")


# --- the model -------------------------------------------------------------------------


def _personalize(options: argparse.Namespace) -> int:
    with _open(options) as vault:
        from . import overview
        from .owner.owner import train

        if sys.stderr.isatty():  # nothing else is said for as long as it takes
            tell("training; Ctrl-C ends it and changes nothing", sys.stderr)
        new = train(vault, options.method, options.learning_rate)
    one = overview.shown(new)
    text = f"adapter {new.number} ({_verdict(new)}): {overview.judged(one)}"
    _say(options, one, text)
    return 0 if new.accepted else 1


def _verdict(new: "Version") -> str:
    if new.accepted:
        return "in use now"
    if new.nll <= min(new.nll_before, new.nll_bare):
        return "NOT used: the one in use does better"
    return "NOT used: the model does better without it"


def _generate(options: argparse.Namespace) -> int:
    prompt = _private(options.prompt, "prompt")
    with _open(options) as vault:
        from .owner.owner import write

        found = write(vault, prompt, options.max_new_tokens, options.compare)
    lines = [f"{name + ':':10}{text}" for name, text in found.items()]
    text = "\n".join(lines) if options.compare else found["personal"]
    return _say(options, found, text, exact=True)


def _use(options: argparse.Namespace) -> int:
    with _open(options) as vault:
        from . import overview
        from .owner import owner

        if options.number is None:
            found = overview.adapters(vault)
            return _say(options, found, "\n".join(overview.adapter_lines(found)))
        before, number = owner.active(vault), _number(options.number)
        chosen = owner.use(vault, number)
    text = _changed(number, before)
    if chosen and not chosen.accepted:
        text += (
            "\nwhen it was trained, the model did better without it, or with another."
        )
    return _say(options, {"active": number}, text)


def _number(given: str) -> int:
    if given == "none":
        return 0
    if not (given.isascii() and given.isdigit() and 0 < len(given) < 10):
        raise IdiolectError(
            f"'{printable(given, 40)}' is no adapter's number: `idiolect use` lists them; "
            "none uses none."
        )
    return int(given)


def _changed(number: int, before: int) -> str:
    """Say which adapter is in use now, and how to take that back."""
    text = f"adapter {number} is in use now" if number else "no adapter is in use now"
    if number == before:
        return f"{text}, as before."
    was = f"adapter {before}" if before else "none"
    return f"{text}; before: {was}. `idiolect use {before or 'none'}` takes that back."


def _rollback(options: argparse.Namespace) -> int:
    with _open(options) as vault:
        from .owner.owner import active, rollback

        before = active(vault)
        number = rollback(vault)
    return _say(options, {"active": number}, _changed(number, before))


def _reset(options: argparse.Namespace) -> int:
    with _open(options) as vault:
        from .owner.owner import reset

        before = reset(vault)
    text = f"{_changed(0, before)}\nthe next training starts from the bare model."
    return _say(options, {"active": 0}, text)


def _export(options: argparse.Namespace) -> int:
    with _open(options) as vault:
        from .owner.owner import export

        try:
            export(vault, options.folder)
        except OSError as error:
            raise IdiolectError(
                f"{options.folder} is no folder ({error.strerror}): name another."
            ) from error
    text = f"{options.folder} is a PEFT adapter, in clear."
    return _say(options, {"folder": str(options.folder)}, text)


# --- the server ------------------------------------------------------------------------


def _join(options: argparse.Namespace) -> int:
    from .node.membership import fingerprint, join, public_line, read_invitation

    server = read_invitation(options.invitation)
    with _open(options) as vault:
        join(vault, server)
        line = public_line(vault)
    mark = fingerprint(server)
    text = (
        f"joined {printable(server.address)}, whose authority is, as `serve` shows it:\n"
        f"  {mark}\n"
        f"Send its operator this line, for `idiolect-server nodes add`:\n{line}"
    )
    found = {"server": server.address, "key": line, "authority": mark}
    return _say(options, found, text, exact=True)


def _node(options: argparse.Namespace) -> int:
    from .node.keeper import keep_running
    from .node.membership import joined
    from .owner.unlock import unlock
    from .owner.vault import Vault

    key = unlock(options.vault, options.passphrase_file)
    with Vault.open(options.vault, key) as vault:  # before anything is started
        joined(vault)
    return keep_running(options.vault, key, tell)


def _consent(options: argparse.Namespace) -> int:
    from .owner import consent

    with _open(options) as vault:
        if options.answer:
            consent.consent(vault, options.outflow, options.answer)
        found = consent.consents(vault)
    lines = [
        f"{name:10}{given:7}{consent.NAMES[name]}" for name, given in found.items()
    ]
    if not options.outflow:
        lines.append("`idiolect consent NAME` shows which answers there are.")
        return _say(options, found, "\n".join(lines))
    choices = consent.answers_to(options.outflow)
    given, usual = found[options.outflow], consent.DEFAULTS[options.outflow]
    if options.answer:
        return _say(options, found, f"{options.outflow} is {given} from now on.")
    lines = [f"{options.outflow} is {given} (default: {usual})"]
    lines += [f"  {consent.NAMES[options.outflow]}", "it takes"]
    lines += [f"  {one:6} {meaning}" for one, meaning in choices.items()]
    one = {"name": options.outflow, "value": given, "default": usual}
    return _say(options, {**one, "takes": list(choices)}, "\n".join(lines))


def _settings(options: argparse.Namespace) -> int:
    from .owner import consent

    said = ""
    with _open(options) as vault:
        if options.value is not None:
            said = _choose(vault, options.name, options.value)
        found = consent.settings(vault)
    if not options.name:
        lines = [
            f"{name:14}{value:9} {consent.MEANINGS[name]}"
            + NO_LIMIT * consent.takes(name).endswith(NO_LIMIT)
            for name, value in found.items()
        ]
        lines.append(
            "`idiolect settings NAME` shows a default, and which values it takes."
        )
        return _say(options, found, "\n".join(lines))
    value, usual = found[consent.known_setting(options.name)], consent.SETTINGS
    if options.value is not None:
        return _say(options, found, f"{options.name} is {value} from now on.{said}")
    one = {"name": options.name, "value": value, "default": usual[options.name]}
    one["takes"] = consent.takes(options.name)
    text = "{name} is {value} (default: {default})\n  {}\nit takes {takes}"
    return _say(options, one, text.format(consent.MEANINGS[options.name], **one))


def _choose(vault: "Vault", name: str, value: str) -> str:
    """Change a setting, if it can be used; returns what else that means."""
    from .owner import consent

    value = _folder(value) if name == "backbone" else value
    consent.check_setting(name, value)
    said = ""
    if name in ("backbone", "max-length"):
        from .owner import owner

        loaded = owner.check_loads({**consent.settings(vault), name: value})
        number = owner.active(vault)
        of = [one.backbone for one in owner.versions(vault) if one.number == number]
        if of and of[0] != loaded.hash:
            said = f"\nadapter {number}, in use, was trained on other weights: train again "
            said += "by `idiolect personalize`."
    consent.choose(vault, **{name: value})
    return said


def _sent(options: argparse.Namespace) -> int:
    from .owner.consent import sent, word_of

    with _open(options) as vault:
        found = sent(vault)
    listed = [{**asdict(one), "what": word_of(one.kind)} for one in found]
    notes = list(dict.fromkeys(one.why for one in found if one.why))
    lines = [("when", "bytes", "what", "run", "protected by")] if found else []
    for one in found:
        when = strftime("%Y-%m-%d %H:%M", localtime(one.time))
        run, what = printable(one.run, 60), word_of(one.kind)
        lines.append((when, str(one.bytes), what, run, _covered(one, notes)))
    text = [
        f"{when:16}  {size:>9}  {what:8}  {run:22}  {covered}"
        for when, size, what, run, covered in lines
    ]
    text += [f"[{n}] {printable(why, 200)}" for n, why in enumerate(notes, 1)]
    return _say(options, listed, "\n".join(text) if text else "nothing has left.")


def _covered(one: "Sent", notes: list[str]) -> str:
    if one.epsilon is not None:
        return f"eps {one.epsilon:g}"
    return f"none [{notes.index(one.why) + 1}]" if one.why else "none"


def _pause(options: argparse.Namespace) -> int:
    return _set_paused(
        options, True, "this device answers no server now; `idiolect resume` ends that."
    )


def _resume(options: argparse.Namespace) -> int:
    return _set_paused(
        options, False, "this device answers its server again, by `idiolect node run`."
    )


def _set_paused(options: argparse.Namespace, yes: bool, text: str) -> int:
    from .node.membership import server_of
    from .owner.consent import pause

    with _open(options) as vault:
        pause(vault, yes)
        if server_of(vault) is None:
            text += "\nit has joined none: `idiolect node join INVITATION` joins one."
            text = text.replace("its server again", "a server again")
    return _say(options, {"paused": yes}, text)


def _leave(options: argparse.Namespace) -> int:
    with _open(options) as vault:
        from .node.membership import leave, server_of

        server = server_of(vault)
        if server is None:
            raise IdiolectError(
                "this device has joined no server, so there is none to leave: `idiolect "
                "node join INVITATION` joins one."
            )
        _sure(options, f"this device's key for {printable(server.address)} is erased")
        leave(vault)
    text = (
        f"left {printable(server.address)}. Ask its operator to revoke this device's "
    )
    return _say(options, {"left": True}, f"{text}key as well.")


if __name__ == "__main__":
    sys.exit(main())
