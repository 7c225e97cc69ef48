"""The owner's history in the vault: what is imported, listed, liked and disliked."""

import contextlib
import hashlib
import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import astuple, dataclass, field, replace
from time import time

from ...common.data.types import Item, Prompt
from ...common.errors import IdiolectError, refuse_if
from .records import Record, Source
from .vault import Vault

KIND = "item"
LONGEST_NAME = 255  # characters of a source's name: as long as a file's can be
STEP = 1e-6  # seconds between two entries that were added at once
LONGEST = 100_000  # characters of a prompt or a text; a longer one is not a message
# Marks that reorder what a terminal shows, and byte-order marks.
BIDI = re.compile("[\u202a-\u202e\u2066-\u2069\ufeff]")
# White space by its meaning becomes white space, or two words would become one.
_BREAK = re.compile("\r\n|[\v\f\r\x85\u2028\u2029]")
_BLANK = re.compile("[\x1c-\x1f]")
CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]")
# Unicode's default ignorables, blanks that it calls letters or symbols, and the sign that
# replaces an attachment: a text of nothing else is empty.
_UNSEEN = re.compile(
    "[\\s\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\ufffc"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]*"
)


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
        When it came into the vault, in seconds since 1970; never before what was there.
    written
        When it was written, in seconds since 1970; None: its source does not say.
    generation
        Of the source, when the entry was read (`Vault.generation`); not kept with it.
    """

    prompt: Prompt
    target: str
    liked: bool = True
    source: str = "by hand"
    added: float = 0.0
    written: float | None = None
    generation: str = field(default="", compare=False)

    @property
    def id(self) -> str:
        """Hash of the pair: the same pair twice is one entry."""
        text = json.dumps([self.prompt.text, self.target]).encode()
        return hashlib.sha256(text).hexdigest()[:12]

    @property
    def when(self) -> float:
        """The order of the list: when it was written, or else when it was added."""
        return self.added if self.written is None else self.written

    def item(self) -> Item:
        """The pair as training takes it."""
        return Item(self.id, self.prompt, self.target)


def clean(text: str) -> str:
    """Text in NFC, without control characters and marks that change what a terminal does.

    Control characters and separators that are white space become a line end or a blank.
    A text in which nothing can be seen is empty.
    """
    text = tidy(text).strip()
    return "" if _UNSEEN.fullmatch(text) else text


def tidy(text: str) -> str:
    """A part of a text as `clean` has it, with the white space at its ends."""
    text = _BLANK.sub(" ", _BREAK.sub("\n", BIDI.sub("", text)))
    return unicodedata.normalize("NFC", CONTROL.sub("", text))


def source_name(given: str) -> str:
    """A source's name as it is kept: one line without control characters.

    Raises
    ------
    IdiolectError
        Nothing is left of it, or it is too long.
    """
    name = _tidy(given)
    what = f"has {len(name)} characters" if name else "is empty"
    refuse_if(
        not 0 < len(name) <= LONGEST_NAME,
        f"the source's name {what}: name it with 1 to {LONGEST_NAME} characters by "
        "--source NAME.",
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
    refuse_if(
        not found,
        f"there is no source '{_tidy(given):.80}': see `idiolect history sources`.",
    )
    return found


def _tidy(name: str) -> str:
    return " ".join(clean(name).split())


# --- in the vault ----------------------------------------------------------------------


def add(vault: Vault, entries: Iterable[Entry], source: str) -> int:
    """Keep entries, all or none; return how many are new.

    Those that are there already stay as they are.

    Parameters
    ----------
    vault, entries
        Where, and what.
    source
        A name to forget them by, as the owner chose it; kept as `source_name` returns it.
    """
    source = source_name(source)
    with vault.transaction():
        before = disliked(vault)
        new = unknown(vault, entries)
        if new:
            # The order of a file is the order of the list, whatever the clock's resolution.
            start = _next(vault, len(new))
            new = [
                replace(entry, source=source, added=start + number * STEP)
                for number, entry in enumerate(new)
            ]
            vault.put(KIND, map(_record, new), Source("import", source))
            note_disliked(vault, before, sum(not entry.liked for entry in new))
    return len(new)


def _next(vault: Vault, number: int) -> float:
    """Return a time for the first of some new entries; the others follow by `STEP`.

    It is now, or right after the last: a clock that was set back does not make the newest
    entries the oldest.
    """
    last = vault.noted("added")
    if last is None:
        last = max((entry.added for entry in entries(vault)), default=0)
    start = max(time(), last + STEP)
    vault.note("added", start + (number - 1) * STEP)
    return start


def unknown(vault: Vault, entries: Iterable[Entry]) -> list[Entry]:
    """The entries that are not in the vault, each once."""
    once: dict[str, Entry] = {}
    for entry in entries:
        once.setdefault(entry.id, entry)
    return [entry for entry in once.values() if not vault.holds(KIND, entry.id)]


def contradicted(vault: Vault, entries: Iterable[Entry]) -> int:
    """How many of these are in the vault with the other verdict."""
    found = ((vault.get(KIND, entry.id), entry) for entry in entries)
    return sum(body is not None and _entry(body).liked != e.liked for body, e in found)


def entries(vault: Vault) -> list[Entry]:
    """The whole history, oldest first: by when it was written, or else added."""
    with vault.reading():
        kept = [_entry(record.body) for record in vault.records(KIND)]
        found = _of_now(vault, kept)
    return sorted(found, key=lambda entry: (entry.when, entry.added))


def find(vault: Vault, ids: Iterable[str]) -> list[Entry]:
    """Entries by id or by the beginning of one.

    Raises
    ------
    IdiolectError
        None begins like that, or more than one does.
    """
    ids = list(ids)
    bodies = [vault.get(KIND, name) for name in ids]
    whole = [_entry(body) for body in bodies if body is not None]
    if len(whole) == len(ids):  # no other entry has to be opened
        return _of_now(vault, whole)
    everything = entries(vault)
    found = []
    for name in ids:
        matching = [entry for entry in everything if name and entry.id.startswith(name)]
        many = f"{len(matching)} entries begin" if matching else "no entry begins"
        wrong = f"{many} with '{name}': see `idiolect history list`."
        refuse_if(len(matching) != 1, wrong)
        found.append(matching[0])
    return found


def judge(vault: Vault, entry: Entry, liked: bool) -> Entry:
    """Keep a pair as liked or disliked, whether or not it is there already."""
    with vault.transaction():
        number = disliked(vault)
        body = vault.get(KIND, entry.id)
        before = _entry(body) if body else replace(entry, added=_next(vault, 1))
        after = replace(before, liked=liked)
        vault.put(KIND, [_record(after)], Source("import", after.source))
        was = body is not None and not before.liked
        note_disliked(vault, number, (not liked) - was)
    return after


@dataclass(frozen=True)
class Counts:
    """How many pairs there are, and of which source (name -> number)."""

    liked: int
    disliked: int
    sources: dict[str, int]


def counts(vault: Vault) -> Counts:
    """Count the history without opening its texts. Not within `Vault.reading`.

    The verdicts are sealed with the texts, so the number of dislikes is noted with every
    change. If that is missing, since another version wrote, all are opened once.
    """
    with vault.reading():
        mark, number = vault.mark(KIND), disliked(vault)
        noted = number is not None
        if number is None:
            number = sum(not entry.liked for entry in entries(vault))
        sources = {one.name: n for one, n in vault.counted(KIND).items()}
    if not noted:
        with contextlib.suppress(IdiolectError):  # a vault that cannot be written
            vault.note("disliked", [mark, number])
    return Counts(sum(sources.values()) - number, number, sources)


def disliked(vault: Vault) -> int | None:
    """How many pairs are disliked; None: that was noted of another history, or never."""
    mark = vault.mark(KIND)
    of, number = vault.noted("disliked", ("0 0", 0))
    return number if of == mark else None


def note_disliked(vault: Vault, before: int | None, more: int) -> None:
    """Note that so many more pairs are disliked than before; within the transaction."""
    if before is not None:
        vault.note("disliked", [vault.mark(KIND), before + more])


def _of_now(vault: Vault, found: Sequence[Entry]) -> list[Entry]:
    """Entries with the generations that their sources have at this moment."""
    names = {entry.source for entry in found}
    now = {name: vault.generation(Source("import", name)) for name in names}
    return [replace(entry, generation=now[entry.source]) for entry in found]


def _record(entry: Entry) -> Record:
    fields = {
        "prompt": astuple(entry.prompt),
        "target": entry.target,
        "liked": entry.liked,
        "source": entry.source,
        "added": entry.added,
        "written": entry.written,
    }
    return Record(entry.id, json.dumps(fields).encode())


def _entry(body: bytes) -> Entry:
    fields = json.loads(body)
    return Entry(**{**fields, "prompt": Prompt(*fields["prompt"])})
