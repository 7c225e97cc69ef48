"""Tables of pairs: JSON lines, JSON lists and CSV files, by the names of their columns."""

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from ...common.data.cleaning import missing
from ...common.errors import IdiolectError, refuse_if
from .rows import Bad, Left, Row, TextError, wrong

PROMPTS = ("prompt", "question", "instruction")
INPUTS = ("input", "context")  # behind an instruction, or a prompt of its own
TEXTS = ("target", "output", "completion", "response", "answer", "text")
VERDICTS = ("liked", "label")
DATES = (
    *("date", "datetime", "timestamp", "timestamp_ms", "time"),
    *("created_at", "created", "created_utc", "create_time", "createdat"),
    *("sent_at", "sent", "published_at", "published", "posted_at", "posted", "added"),
)
PEOPLE = (
    *("user", "user_id", "userid", "username", "author", "sender", "sender_name"),
    *("from", "speaker", "nickname", "handle"),
)
CHATS = ("messages", "conversations", "conversation")
ANSWERING = ("assistant", "gpt", "chatgpt", "bot", "bard", "model")
ASKING = ("user", "human", "system", "developer", "tool", "function", "observation")
LONGEST_FIELD = 2**31 - 1
DELIMITERS = ",;\t|"
# How data frames and databases write an empty cell in a CSV file.
NULLS = ("NaN", "nan", "<NA>", "NaT", "NULL", "null", "None")

Found = Row | Left | Bad


# --- columns ---------------------------------------------------------------------------


def pairs(fields: Any, place: str) -> list[Row | Bad]:
    """The pairs of one row of a table.

    Parameters
    ----------
    fields
        Column -> value, as the file has them.
    place
        For a sentence about it.

    Returns
    -------
    list
        One row; two where it holds a chosen and a rejected text; or what is wrong.
    """
    if not isinstance(fields, dict):
        return [Bad(place, "is not a JSON object", "no JSON object")]
    names: dict[str, str] = {}
    for name in fields:
        if (other := names.setdefault(name.strip().casefold(), name)) is not name:
            what = f"has two columns of one name, {other!r} and {name!r}"
            return [Bad(place, what, TWICE, "rename or remove one")]
    row = _Columns(fields, names)
    try:
        found = _preference(row) or _chat(row) or _single(row)
    except TextError as error:
        return [wrong(place, error)]
    if not found:
        seen = ", ".join(map(repr, list(fields)[:8])) or "none"
        what = f"has no text: it needs one of {', '.join(TEXTS)}, and its columns are"
        return [Bad(place, f"{what} {seen}", "no text")]
    date, who = row.first(DATES, "date"), row.first(PEOPLE, "who")
    who = None if missing(who) or who == "" else str(who)
    read = tuple(row.read.items())
    ignored = tuple(name for name in fields if name not in row.read.values())
    return [
        Row(place, *one, date, who, read, ignored, changed=tuple(row.changed))
        for one in found
    ]


class _Columns:
    """The fields of a row, and which of them were read as what."""

    def __init__(self, fields: Mapping[str, Any], names: Mapping[str, str]) -> None:
        self.fields, self.names = fields, names
        self.read: dict[str, str] = {}
        self.changed: list[str] = []

    def first(self, wanted: Sequence[str], role: str) -> Any:
        """The first column of these that has a value; None: no column has one."""
        there = [self.names[name] for name in wanted if name in self.names]
        full = [name for name in there if not missing(self.fields[name])]
        if not there:
            return None
        self.read[role] = (full or there)[0]
        return self.fields[self.read[role]]


def _preference(row: _Columns) -> list[tuple[Any, Any, bool]]:
    """A pair of answers, as DPO takes them: one was chosen, the other rejected."""
    if not {"chosen", "rejected"} <= set(row.names):
        return []
    asked = _asked(row)
    return [
        (*_answered(row.first((name,), name), asked, name), name == "chosen")
        for name in ("chosen", "rejected")
    ]


def _chat(row: _Columns) -> list[tuple[Any, Any, Any]]:
    """A list of turns: the last answer is the text, and all before it the prompt."""
    turns = row.first(CHATS, "turns")
    if turns is None:
        return []
    pair = answered(turns, row.read["turns"])
    if _role(turns[-1]) not in ANSWERING:
        row.changed.append("turns behind the last answer left out")
    return [(*pair, row.first(VERDICTS, "liked"))]


def _single(row: _Columns) -> list[tuple[Any, Any, Any]]:
    if not set(TEXTS) & set(row.names):
        return []
    text = row.first(TEXTS, "text")
    pair = _answered(text, _asked(row), row.read["text"])
    return [(*pair, row.first(VERDICTS, "liked"))]


def _asked(row: _Columns) -> Any:
    """Return the prompt: an instruction, and the input that it is about."""
    asked, more = row.first(PROMPTS, "prompt"), row.first(INPUTS, "input")
    if isinstance(asked, list):
        asked = "\n\n".join(said for _, said in _turns(asked, row.read["prompt"]))
    parts = [part for part in (asked, more) if not missing(part) and part != ""]
    if len(parts) < 2:
        return parts[0] if parts else None
    for part, role in ((asked, "prompt"), (more, "input")):
        if not isinstance(part, str):
            raise TextError(
                f"{row.read[role]} must be text, not {part!r:.40}", "no text"
            )
    return "\n\n".join(parts)


def _answered(text: Any, asked: Any, name: str) -> tuple[Any, Any]:
    """Prompt and text, where the text may be a list of turns."""
    if not isinstance(text, list):
        return asked, text
    before, text = answered(text, name)
    if asked and before and before != asked:
        before = f"{asked}\n\n{before}"
    return before or asked, text


def answered(turns: Any, name: str) -> tuple[str, str]:
    """Return the last answer of a list of turns, and what is before it as the prompt.

    Parameters
    ----------
    turns
        ``[{"role", "content"}, …]`` or ``[{"from", "value"}, …]``.
    name
        Of the column, for a sentence about it.

    Raises
    ------
    TextError
        It is not such a list, or nobody answers in it.
    """
    found = _turns(turns, name)
    answers = [number for number, (role, _) in enumerate(found) if role in ANSWERING]
    if not answers:
        raise TextError(f"{name} has no turn of the assistant", "no answer")
    before = [said for _, said in found[: answers[-1]] if said.strip()]
    return "\n\n".join(before), found[answers[-1]][1]


def _turns(turns: Any, name: str) -> list[tuple[str, str]]:
    if not isinstance(turns, list):
        raise TextError(
            f"{name} must be a list of turns, not {turns!r:.40}", "no turns"
        )
    found = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise TextError(
                f"{name} holds {turn!r:.40}, which is not a turn", "no turns"
            )
        role = _role(turn)
        if role not in (*ANSWERING, *ASKING):
            raise TextError(f"{name} has a turn of {role!r:.40}", "unknown role")
        found.append((role, said(turn.get("content", turn.get("value")), name)))
    return found


def _role(turn: Mapping[str, Any]) -> str:
    return str(turn.get("role", turn.get("from"))).casefold()


def said(content: Any, name: str, between: str = "\n") -> str:
    """Text of a turn, which may be in parts; pictures and calls have none.

    Raises
    ------
    TextError
        It is not text.
    """
    if content is None:
        return ""
    parts = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        if isinstance(part, dict):
            part = part.get("text") or ""
        if not isinstance(part, str):
            raise TextError(f"{name} holds {part!r:.40}, which is not text", "no text")
        texts.append(part)
    return between.join(text for text in texts if text)


# --- JSON ------------------------------------------------------------------------------


TWICE = "two columns of one name"
AS_JSON = "call the file .json, since .jsonl has one object a line"


def read_jsonl(lines: Iterator[str], name: str) -> Iterator[Found]:
    """Rows of a file with one JSON object a line."""
    for number, line in enumerate(lines, 1):
        place = f"{name}, line {number}"
        if not line.strip():
            continue
        try:
            yield from pairs(json.loads(line, object_pairs_hook=unique), place)
        except TextError as error:
            yield Bad(place, str(error), error.reason, "rename or remove one")
        except (ValueError, RecursionError) as error:
            if number == 1 and line.lstrip().startswith("["):
                yield Bad(place, "begins one JSON list", "not JSON", AS_JSON)
            else:
                yield Bad(place, f"is not JSON ({error})", "not JSON")


def read_records(records: Iterator[Any], name: str) -> Iterator[Found]:
    """Rows of a JSON list of objects."""
    for number, fields in enumerate(records, 1):
        yield from pairs(fields, f"{name}, record {number}")


def unique(found: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object of JSON, unless it names a key twice.

    Raises
    ------
    TextError
        It does: one of the two would be lost.
    """
    fields = dict(found)
    if len(fields) != len(found):
        names = [name for name, _ in found]
        twice = next(name for name in names if names.count(name) > 1)
        raise TextError(f"has two columns of one name, {twice!r:.80}", TWICE)
    return fields


# --- CSV -------------------------------------------------------------------------------


def read_csv(lines: Iterator[str], name: str) -> Iterator[Found]:
    r"""Rows of a CSV file with a header; the first line shows the delimiter.

    A line ends with ``\n`` or ``\r\n`` and with nothing else; another line break in a
    field stays in it.
    """
    first = next(lines, "")
    named = re.fullmatch(r"sep=(.)\r?\n?", first, re.I)  # as spreadsheets write
    first, skipped = (next(lines, ""), 1) if named else (first, 0)
    delimiter = named[1] if named else delimiter_of(first)

    def given() -> Iterator[str]:
        # To `csv`, a CR alone would end a line: any other break does as well for `clean`.
        for line in chain([first], lines):
            yield re.sub("\r(?!\n)", "\v", line)

    # A longer field would be cut, and the rest read as further rows.
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(given(), delimiter=delimiter, strict=True)
    header = _header(reader, name, delimiter)
    while True:
        place = f"{name}, line {reader.line_num + 1 + skipped}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Bad(place, f"cannot be read ({error})", "not CSV")
            continue
        values = (None if cell in NULLS else cell for cell in cells)
        if any(cells) and len(cells) == len(header):
            yield from pairs(dict(zip(header, values, strict=True)), place)
        elif any(cells):
            yield Bad(
                place,
                f"has {len(cells)} fields and the header {len(header)}",
                "more or fewer fields than the header",
                f"quote fields that hold {shown(delimiter)}",
            )


def delimiter_of(header: str) -> str:
    """The delimiter of a header: the one that gives the most columns that are read."""
    known = {*TEXTS, *CHATS, "chosen", *PROMPTS}

    def columns(mark: str) -> int:
        cells = next(csv.reader([header.replace("\r", "")], delimiter=mark), [])
        return len(known & {cell.strip().casefold() for cell in cells})

    return max(DELIMITERS, key=lambda mark: (columns(mark), header.count(mark)))


def shown(delimiter: str) -> str:
    """Return a delimiter's name."""
    return {",": "commas", ";": "semicolons", "\t": "tabs"}.get(delimiter, delimiter)


def _header(reader: Any, name: str, delimiter: str) -> list[str]:
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise IdiolectError(f"{name}, line 1: {error}: correct the header.") from None
    refuse_if(
        any("\v" in cell for cell in header),
        f"{name}: its lines end with CR alone, which is not a line end here: save it "
        r"with \n or \r\n.",
    )
    refuse_if(
        not any(header),
        f"{name} is empty, or its first line is: begin it with the header.",
    )
    keys = [cell.strip().casefold() for cell in header]
    twice = {key for key in keys if keys.count(key) > 1 and key}
    refuse_if(
        twice,
        f"{name}: its header has two columns of one name, "
        f"{', '.join(map(repr, sorted(twice)))}: rename or remove one of them.",
    )
    refuse_if(
        not {*TEXTS, *CHATS, "chosen"} & set(keys),
        f"{name} has no text: its header, separated by {shown(delimiter)}, is "
        f"{', '.join(map(repr, header[:8]))}; name the column with the text one of "
        f"{', '.join(TEXTS)}.",
    )
    return [cell or f"column {number}" for number, cell in enumerate(header, 1)]
