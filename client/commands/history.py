"""The commands of the history: import, list, export, like, dislike and forget."""

import argparse
import json
from collections import Counter
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill
from time import localtime, strftime
from typing import Any

from ...common.data.types import Prompt
from ...common.errors import IdiolectError, explained, refuse_if
from ...common.files import write_new
from ...common.text import printable
from ..owner import history, resident, unlock
from ..owner.database import note_of
from ..owner.history import Entry
from ..owner.vault import Vault
from .answer import ASK, Answer, opened, private, sure

ROW = len("0123456789ab  +  2026-01-31   => ")  # what a list says beside the texts


def import_file(options: argparse.Namespace) -> Answer:
    """Add the pairs of a file to the history, and report what was read and left out."""
    from ..imports.read import Asked, read, report  # loads numpy

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
    with opened(options) as vault:
        other = history.contradicted(vault, found.entries)
        if options.dry_run:
            new = len(history.unknown(vault, found.entries))
        else:
            new = history.add(vault, found.entries, source)
    known = len(found.entries) - new
    pairs = "1 pair" if new == 1 else f"{new} pairs"
    verb = "would be added" if options.dry_run else "added"
    text = f"{pairs} {verb} from '{printable(source)}', {known} were there already."
    if disliked := sum(not entry.liked for entry in found.entries):
        text += f" {disliked} of the file's are disliked."
    if other:
        text += (
            f" {other} of those have the other verdict in the vault, which stays: "
            "`idiolect feedback` changes it."
        )
    account = {k: v for k, v in vars(found).items() if k not in ("entries", "table")}
    counts = {"new": new, "known": known, "source": source, "other_verdict": other}
    return Answer(counts | account, f"{fill(text, 80)}\n{report(found)}")


def list_pairs(options: argparse.Namespace) -> Answer:
    """List the pairs, one line each."""
    word = private(options.search, "text to search for").casefold()
    with opened(options) as vault:
        found = history.entries(vault)
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
    return Answer([_plain(entry) for entry in found], "\n".join(lines) or "nothing.")


def _short(text: str, width: int) -> str:
    from rich.cells import cell_len, set_cell_size

    text = printable(" ".join(text.split()), width + 1)
    short = set_cell_size(text, width - 1).rstrip() + "…"
    return text if cell_len(text) <= width else short


def _plain(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "prompt": entry.prompt.text,
        "target": entry.target,
        "liked": entry.liked,
        "source": entry.source,
        "added": entry.added,
        "date": entry.written,
    }


def sources(vault: Vault, _options: argparse.Namespace) -> Answer:
    """List the sources, with their numbers of pairs."""
    counts = Counter(entry.source for entry in history.entries(vault))
    lines = [f"{count:6}  {printable(source)}" for source, count in counts.items()]
    return Answer(counts, "\n".join(lines) or "nothing.")


def export(vault: Vault, options: argparse.Namespace) -> Answer:
    """Write the history in clear."""
    lines = [json.dumps(_plain(entry)) for entry in history.entries(vault)]
    with explained(f"{options.file} cannot be written", "name a new file"):
        write_new(options.file, "".join(f"{line}\n" for line in lines).encode())
    return Answer(
        {"pairs": len(lines)}, f"{len(lines)} pairs are in {options.file}, in clear."
    )


def feedback(options: argparse.Namespace) -> Answer:
    """Like or dislike a pair of the history, or a new one."""
    refuse_if(
        bool(options.id) == bool(options.text),
        "say what it is about: an ID, or a new pair by --text.",
    )
    given = None
    if not options.id:
        prompt = private(options.prompt, "prompt", options.text != ASK)
        text = private(options.text, "text")
        given = Entry(Prompt("", history.clean(prompt)), history.clean(text))
    # In one transaction: what is forgotten meanwhile does not come back.
    with opened(options) as vault, vault.transaction():
        entry = given or history.find(vault, [options.id])[0]
        entry = history.judge(vault, entry, options.verdict == "up")
    verb = "liked" if entry.liked else "disliked: the next training learns to avoid it"
    return Answer(_plain(entry), f"{entry.id} is {verb}.")


FORGOTTEN = (
    "interrupted: what was named is forgotten, and so is the adapter that had learnt it. "
    "`idiolect personalize` goes on with the training on what remains."
)


def forget(options: argparse.Namespace) -> Answer:
    """Erase pairs and the adapters that learnt them, or the vault; train again."""
    refuse_if(
        not (options.ids or options.source or options.everything),
        "say what to forget: IDs, --source NAME, or --everything.",
    )
    sure(options, "what is forgotten is gone")
    if options.everything:
        return _forget_everything(options)
    with opened(options) as vault:
        from ..owner import adapters, forgetting  # after the passphrase was asked for
        from . import status
        from .personalize import trained, verdict

        used = adapters.active(vault)
        count, stale = forgetting.forget(vault, options.source, options.ids)
        numbers = [one.number for one in stale]
        found: dict[str, Any] = {"pairs": count, "adapters": numbers, "retrained": None}
        pairs = "1 pair is" if count == 1 else f"{count} pairs are"
        knew = ", ".join(map(str, numbers)) or "none"
        text = f"{pairs} gone; adapters that are erased with that: {knew}."
        # Only in the place of the one in use: an owner who has none wants none.
        if used in numbers and not options.no_retrain:
            try:
                new = trained(vault, stale[-1].method, if_interrupted=FORGOTTEN)
            except IdiolectError as error:
                text += f"\nno adapter is in use: {error}"
            else:
                found["retrained"] = new.number
                text += "\na new one was trained on what remains. "
                text += verdict(status.shown(new))
    return Answer(found, text)


def _forget_everything(options: argparse.Namespace) -> Answer:
    # The key first: without it, what a crash leaves of the file cannot be read.
    unlock.forget_keyring_entry(options.vault)
    beside = (Path(f"{options.vault}{end}") for end in ("", "-wal", "-shm"))
    notes = note_of(options.vault), resident.endpoint_key(options.vault)
    for path in (*beside, *notes):
        path.unlink(missing_ok=True)
    resident.end(options.vault)
    return Answer({"everything": True}, f"{options.vault} is gone.")
