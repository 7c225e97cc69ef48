"""The owner's history in the vault: what is imported, listed, liked and disliked."""

import csv
import hashlib
import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import time
from typing import Any

from ..common.errors import IdiolectError
from ..common.tasks.types import Item, Prompt
from .vault import Record, Source, Vault

KIND = "item"
LONGEST_NAME = 255  # characters of a source's name: as long as a file's can be
LONGEST = 100_000  # characters of a prompt or a text; a longer one is no message
PROMPTS = ("prompt", "input", "question")
TEXTS = ("target", "text", "output", "completion", "answer")
# Marks that reorder what a terminal shows.
BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Entry:
    """One pair of the history.

    Attributes
    ----------
    prompt, target
        What was asked, and what the owner wrote (or turned down).
    liked
        False: a known negative.
    source
        Name of the import it came from, which can be forgotten as a whole.
    added
        Seconds since 1970, and the order of the list.
    generation
        Of the source, when the entry was read (`Vault.generation`); not kept with it.
    """

    prompt: Prompt
    target: str
    liked: bool = True
    source: str = "by hand"
    added: float = 0.0
    generation: str = field(default="", compare=False)

    @property
    def id(self) -> str:
        """Hash of the pair: the same pair twice is one entry."""
        text = json.dumps([self.prompt.text, self.target]).encode()
        return hashlib.sha256(text).hexdigest()[:12]

    def item(self) -> Item:
        """The pair as training takes it."""
        return Item(self.id, self.prompt, self.target)


def clean(text: str) -> str:
    """Text in NFC without control characters and marks that a terminal would obey."""
    text = unicodedata.normalize("NFC", BIDI.sub("", text))
    return "".join(
        c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs")
    ).strip()


def source_name(given: str) -> str:
    """A source's name as it is kept: one line of text that a terminal only shows.

    Raises
    ------
    IdiolectError
        Nothing is left of it, or it is too long.
    """
    name = _tidy(given)
    if not name or len(name) > LONGEST_NAME:
        what = f"has {len(name)} characters" if name else "is empty"
        raise IdiolectError(
            f"the source's name {what}: name it with 1 to {LONGEST_NAME} characters by "
            "--source NAME."
        )
    return name


def known_sources(given: str, known: Collection[str]) -> set[str]:
    """The sources that an owner means by a name, written as they are kept.

    It is one, unless names were kept by a version that did not tidy them.

    Raises
    ------
    IdiolectError
        There is none.
    """
    found = {given} & set(known) or {n for n in known if _tidy(n) == _tidy(given)}
    if not found:
        raise IdiolectError(
            f"there is no source '{_tidy(given):.80}': see `idiolect history sources`."
        )
    return found


def _tidy(name: str) -> str:
    return " ".join(clean(name).split())


# --- in the vault ----------------------------------------------------------------------


def add(vault: Vault, entries: Iterable[Entry], source: str) -> tuple[int, int]:
    """Keep entries, all or none.

    Parameters
    ----------
    vault, entries
        What is kept, and where.
    source
        A name to forget them by, as the owner chose it; kept as `source_name` has it.

    Returns
    -------
    tuple
        How many are new, and how many were there already (and stay as they are).
    """
    source = source_name(source)
    given, now = list(entries), time()
    with vault.transaction():
        # The order of a file is the order of the list, whatever the clock's resolution.
        new = [
            replace(entry, source=source, added=now + number * 1e-6)
            for number, entry in enumerate(unknown(vault, given))
        ]
        if new:
            vault.put(KIND, map(_record, new), Source("import", source))
    return len(new), len(given) - len(new)


def unknown(vault: Vault, entries: Iterable[Entry]) -> list[Entry]:
    """The entries that are not in the vault, each once."""
    once: dict[str, Entry] = {}
    for entry in entries:
        once.setdefault(entry.id, entry)
    return [entry for entry in once.values() if not vault.holds(KIND, entry.id)]


def entries(vault: Vault) -> list[Entry]:
    """The whole history, oldest first."""
    with vault.reading():
        found = [_entry(record.body) for record in vault.records(KIND)]
        names = {entry.source for entry in found}
        now = {name: vault.generation(Source("import", name)) for name in names}
    found = [replace(entry, generation=now[entry.source]) for entry in found]
    return sorted(found, key=lambda entry: entry.added)


def find(vault: Vault, ids: Iterable[str]) -> list[Entry]:
    """Entries by id or by the beginning of one.

    Raises
    ------
    IdiolectError
        None begins like that, or more than one does.
    """
    everything = entries(vault)
    found = []
    for name in ids:
        matching = [entry for entry in everything if name and entry.id.startswith(name)]
        if len(matching) != 1:
            many = f"{len(matching)} entries begin" if matching else "no entry begins"
            raise IdiolectError(f"{many} with '{name}': see `idiolect history list`.")
        found.append(matching[0])
    return found


def judge(vault: Vault, entry: Entry, liked: bool) -> Entry:
    """Keep a pair as liked or disliked, whether or not it is there already."""
    with vault.transaction():
        body = vault.get(KIND, entry.id)
        before = _entry(body) if body else replace(entry, added=time())
        after = replace(before, liked=liked)
        vault.put(KIND, [_record(after)], Source("import", after.source))
    return after


def _record(entry: Entry) -> Record:
    prompt = entry.prompt
    fields = {
        "prompt": [prompt.before, prompt.input, prompt.after],
        "target": entry.target,
        "liked": entry.liked,
        "source": entry.source,
        "added": entry.added,
    }
    return Record(entry.id, json.dumps(fields).encode())


def _entry(body: bytes) -> Entry:
    fields = json.loads(body)
    return Entry(**{**fields, "prompt": Prompt(*fields["prompt"])})


# --- files -----------------------------------------------------------------------------


def read_file(path: Path, task: str = "", user: str = "") -> list[Entry]:
    """Read a file of pairs.

    Parameters
    ----------
    path
        ``.jsonl``: one object a line; ``.csv``: with a header; both with a text (column
        ``target``, ``text``, ``output``, ``completion`` or ``answer``), a prompt
        (``prompt``, ``input`` or ``question``; may be missing) and ``liked`` (may be
        missing). Or, with `task`, LaMP or OPPU files (docs/data.md).
    task, user
        A LaMP task such as ``LaMP-5``, and whose history of its many to take.

    Raises
    ------
    IdiolectError
        Names the file, the line, and what is wrong with it; nothing is imported.
    """
    if task:
        return _read_lamp(path, task, user)
    rows = {".jsonl": _jsonl, ".csv": _csv}.get(path.suffix.lower())
    if rows is None:
        raise IdiolectError(
            f"{path.name}: a history is a .jsonl or a .csv file, or with --task a LaMP "
            "file."
        )
    found = [_pair(fields, place) for place, fields in rows(path)]
    if not found:
        raise IdiolectError(f"{path.name} holds no pairs: nothing to import.")
    return found


def _jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        place = f"{path.name}, line {number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise IdiolectError(f"{place} is no JSON ({error}): mend it.") from None
        if not isinstance(fields, dict):
            raise IdiolectError(f"{place} is no JSON object: mend it.")
        yield place, fields


def _csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(_lines(path), strict=True)
    try:
        for fields in reader:
            place = f"{path.name}, line {reader.line_num}"
            if None in fields or None in fields.values():
                raise IdiolectError(
                    f"{place} has more or fewer fields than the header: quote commas."
                )
            yield place, {key.strip().lower(): text for key, text in fields.items()}
    except csv.Error as error:
        raise IdiolectError(
            f"{path.name}, line {reader.line_num}: {error}: mend it."
        ) from None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise IdiolectError(
            f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8."
        ) from None
    except OSError as error:
        raise IdiolectError(f"{path} cannot be read: {error.strerror}.") from None


def _pair(fields: dict[str, Any], place: str) -> Entry:
    given = [name for name in TEXTS if name in fields]
    asked = [name for name in PROMPTS if name in fields]
    if not given:
        raise IdiolectError(f"{place} has no text: it needs one of {', '.join(TEXTS)}.")
    target = _text(fields[given[0]], given[0], place)
    if not target:
        raise IdiolectError(f"{place} has an empty {given[0]}: fill or remove it.")
    prompt = _text(fields[asked[0]], asked[0], place) if asked else ""
    return Entry(Prompt("", prompt), target, _liked(fields.get("liked", True), place))


def _text(value: Any, name: str, place: str) -> str:
    if not isinstance(value, str):
        raise IdiolectError(f"{place}: {name} must be text, not {value!r:.40}.")
    if len(value) > LONGEST:
        raise IdiolectError(
            f"{place}: {name} has {len(value)} characters, and {LONGEST} are allowed: "
            "split it."
        )
    return clean(value)


def _liked(value: Any, place: str) -> bool:
    words = {"true": True, "1": True, "yes": True, "": True}
    words |= {"false": False, "0": False, "no": False}
    word = str(value).strip().lower()
    if word not in words:
        raise IdiolectError(f"{place}: liked must be true or false, not {value!r:.40}.")
    return words[word]


def _read_lamp(path: Path, task: str, user: str) -> list[Entry]:
    from ..common.config import parse
    from ..common.tasks import lamp

    if task not in lamp.FORMS:
        raise IdiolectError(f"--task must be one of {', '.join(lamp.FORMS)}.")
    # Everyone's, and all of it: one owner is picked below.
    most = {"history": 10**6, "held-out": 1}
    config = parse({**most, "task": task, "data": str(path), "skip-bad-users": True})
    everyone = lamp.everyone(config)
    if not user and len(everyone) == 1:
        user = everyone[0].id
    chosen = [one for one in everyone if one.id == user]
    if not chosen:
        names = ", ".join(one.id for one in everyone[:5])
        raise IdiolectError(
            f"{path.name} holds {len(everyone)} users ({names}, …): say whose history to "
            "import by --user ID."
        )
    items = (*chosen[0].history, *chosen[0].held_out)
    return [Entry(item.prompt, item.target) for item in items]
