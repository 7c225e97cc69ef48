"""Which kinds of files are read, and how each is recognised."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from ...common.errors import IdiolectError, refuse_if
from . import chats, files, mail, notes, profiles, tables
from .rows import Bad, Left, Owner, Row

Found = Row | Left | Bad | Owner


@dataclass(frozen=True)
class Kind:
    """One kind of file; docs/device.md says how each is known and what is taken from it."""

    name: str
    table: bool = False  # of rows that its owner can correct one by one


JSONL, RECORDS = Kind("JSON lines", True), Kind("JSON list", True)
CSV = Kind("CSV", True)
CHATGPT, CLAUDE = Kind("ChatGPT"), Kind("Claude")
WHATSAPP, TELEGRAM = Kind("WhatsApp"), Kind("Telegram")
MBOX, NOTES, LAMP = Kind("mbox"), Kind("notes"), Kind("LaMP, OPPU or LongLaMP")
KINDS = (JSONL, RECORDS, CSV, CHATGPT, CLAUDE, WHATSAPP, TELEGRAM, MBOX, NOTES, LAMP)


def opened(
    path: Path, task: str = "", encoding: str = ""
) -> tuple[Kind, Callable[[], Iterator[Found]]]:
    """Return the kind of a file, and what reads it from the beginning."""
    if task:
        return LAMP, partial(profiles.read_profiles, path, task)
    if path.is_dir():
        return _folder(path)
    suffix, name = path.suffix.lower(), path.name
    # Read as bytes: each mail has its own encoding.
    if suffix == ".mbox" or files.begins(path, b"From "):
        return MBOX, lambda: mail.read_mbox(path)
    lines = partial(files.lines_of, path, encoding)
    start = next(lines(), "") if suffix != ".json" else ""

    if suffix in (".jsonl", ".ndjson"):
        return JSONL, lambda: tables.read_jsonl(lines(), name)
    if suffix in (".csv", ".tsv"):
        mark = tables.shown(tables.delimiter_of(start))
        kind = replace(CSV, name=f"CSV, its columns separated by {mark}")
        return kind, lambda: tables.read_csv(lines(), name)
    if suffix == ".json":
        return _json(path, encoding)
    if suffix == ".txt" and chats.is_whatsapp("".join(islice(lines(), 5))):
        return WHATSAPP, lambda: chats.read_whatsapp(lines(), name)
    raise _unknown(path)


def _folder(path: Path) -> tuple[Kind, Callable[[], Iterator[Found]]]:
    if path.suffix == ".mbox" and (path / "mbox").is_file():
        return MBOX, lambda: mail.read_mbox(path / "mbox")
    known = ("conversations.json", "result.json", "_chat.txt")
    refuse_if(
        there := next((name for name in known if (path / name).is_file()), ""),
        f"{path} is a folder with {there}: import that file, {path / there}.",
    )
    return NOTES, lambda: notes.read_notes(path)


def _json(path: Path, encoding: str) -> tuple[Kind, Callable[[], Iterator[Found]]]:
    records = partial(files.records_of, path, encoding)
    first = next(records(), None)
    keys = set(first) if isinstance(first, dict) else set()
    if "mapping" in keys:
        return CHATGPT, lambda: chats.read_chatgpt(records(), path.name)
    if "chat_messages" in keys:
        return CLAUDE, lambda: chats.read_claude(records(), path.name)
    refuse_if(
        {"profile", "query"} <= keys or ("profile" in keys and "input" in keys),
        f"{path.name} is a LaMP or OPPU file: say of which task by --task LaMP-4 (or "
        "another), and whose history by --user ID.",
    )
    single = not files.is_list(path, encoding)
    if single and keys & {"chats", "personal_information", "messages"}:
        return TELEGRAM, lambda: chats.read_telegram(next(records()), path.name)
    if single:
        raise _unknown(path)
    return RECORDS, lambda: tables.read_records(records(), path.name)


def _unknown(path: Path) -> IdiolectError:
    hint = {
        ".zip": "unpack it, and import the file in it (conversations.json, _chat.txt)",
        ".txt": "a chat of WhatsApp begins each message with its date; put a note into "
        "a folder, and import the folder",
        ".md": "put it into a folder, and import the folder",
        ".xlsx": "save it as .csv",
        ".ods": "save it as .csv",
        ".parquet": "write it as .jsonl",
        ".html": "export the chat as JSON instead",
    }.get(path.suffix.lower(), "docs/device.md lists what can be read")
    return IdiolectError(
        f"{path.name} is not of a kind that is read (.jsonl, .json, .csv, .mbox, a chat's "
        f".txt, a folder of notes): {hint}."
    )
