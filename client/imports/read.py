"""Read a file as a history: checked, in order, with a report of what was left out."""

import heapq
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from textwrap import fill
from time import monotonic

from ...common.data.cleaning import missing
from ...common.data.dates import AmbiguousError, Order, order_of, seconds
from ...common.data.types import Prompt
from ...common.errors import IdiolectError, explained, refuse_if
from ...common.text import printable, tell
from ..owner.history import Entry
from .kinds import WHATSAPP, Found, Kind, opened
from .rows import Bad, Left, Owner, Row, TextError, folded, liked, tidy, wrong
from .tables import NULLS

MOST = 100_000  # rows: what fits into memory, and more than a device trains on
SECONDS = 2.0  # until progress is reported; each interval is twice the one before
ORDERS: dict[str, Order] = {"dmy": "dmy", "mdy": "mdy"}
DATES = (*ORDERS, "ignore")
FILL = "fill or remove it"


@dataclass(frozen=True)
class Asked:
    """How an owner wants a file to be read.

    Attributes
    ----------
    task
        A LaMP task; empty: the file is of another kind.
    user
        Whose of the people in it; empty: there is only one, or the file says it.
    dates
        ``dmy`` or ``mdy``: what stands first between slashes; ``ignore``: keep the order
        of the file; empty: as the column shows.
    newest_first
        The first row of a file without dates is the newest.
    most
        Rows to keep, the newest; the others are counted.
    skip
        Leave out and count what cannot be read, instead of refusing the file.
    encoding
        Of the text; empty: as its byte-order mark says, or UTF-8.
    """

    task: str = ""
    user: str = ""
    dates: str = ""
    newest_first: bool = False
    most: int = MOST
    skip: bool = False
    encoding: str = ""


@dataclass(frozen=True)
class Imported:
    """What was read, and what was not.

    Attributes
    ----------
    entries
        Oldest first.
    kind
        Of the file.
    read
        What was taken -> the names of the columns that it was taken from.
    ignored
        Names of columns, each with the number of rows in which it was not read.
    order
        What the order is by.
    left_out, changed
        Reason -> number of rows.
    table
        Whether it has columns, which `report` lists where they were not read.
    """

    entries: tuple[Entry, ...]
    kind: str
    read: dict[str, list[str]]
    ignored: dict[str, int]
    order: str
    left_out: dict[str, int]
    changed: dict[str, int]
    table: bool = False


def read(path: Path, asked: Asked | None = None, say: bool = False) -> Imported:
    """Read a file or a folder as a history.

    Parameters
    ----------
    path, asked
        What, and how.
    say
        Report progress on standard error, if it takes long.

    Raises
    ------
    IdiolectError
        Names the file, the line, and what is wrong with it; nothing is imported.
    """
    asked = asked or Asked()
    refuse_if(asked.most < 1, "--most is the number of rows to keep: give 1 or more.")
    refuse_if(
        asked.dates not in ("", *DATES), f"--dates must be one of {', '.join(DATES)}."
    )
    kind, rows = opened(path, asked.task, asked.encoding)
    reading = _Reading(path.name, kind, asked, rows)
    due, wait = monotonic() + SECONDS, SECONDS
    for number, found in enumerate(rows(), 1):
        reading.take(found)
        if say and monotonic() > due:
            wait *= 2
            due += wait
            tell(f"{printable(path.name)}: {number} rows read so far", sys.stderr)
    return reading.done()


def report(found: Imported, width: int = 80) -> str:
    """What was read, ignored, left out and changed, and by what it is ordered."""
    read = [f"{what} from {_listed(names)}" for what, names in found.read.items()]
    lines = [f"read as {found.kind}: {', '.join(read)}"]
    if found.ignored or found.table:
        lines.append(f"ignored columns: {_listed(list(found.ignored)) or 'none'}")
    lines += [f"order: {found.order}", f"left out: {_counted(found.left_out)}"]
    if found.changed:
        lines.append(f"changed: {_counted(found.changed)}")
    return "\n".join(
        fill(
            printable(line, 2000), width, subsequent_indent="  ", break_on_hyphens=False
        )
        for line in lines
    )


def _listed(names: list[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"'{printable(name, 60)}'" for name in names[:most]) + more


def _counted(reasons: dict[str, int]) -> str:
    found = (f"{reason} ({number})" for reason, number in reasons.items() if number)
    return ", ".join(found) or "nothing"


# --- one file --------------------------------------------------------------------------


@dataclass
class _People:
    """How many rows each person wrote, and whose are wanted."""

    wanted: str
    owner: str = ""  # as the file itself says
    names: dict[str, str] = field(default_factory=dict)
    wrote: Counter[str] = field(default_factory=Counter)

    def mine(self, who: str | None, key: str) -> bool:
        """Note who wrote a row; return whether it counts as the owner's."""
        key = key or folded(who or "")
        self.names.setdefault(key, who or "nobody named")
        self.wrote[key] += 1
        if self.wanted:
            wanted = folded(self.wanted)
            return key in (self.wanted, wanted) or folded(who or "") == wanted
        return not self.owner or key == self.owner

    def check(self, name: str) -> None:
        """Refuse a file if it is not clear whose rows to read."""
        wanted, owner = self.wanted, self.owner
        meant = [
            key
            for key, who in self.names.items()
            if wanted in (key, who) or folded(who) == folded(wanted)
        ]
        people, shown = self.listed(), printable(wanted, 80)
        refuse_if(
            wanted and set(self.names) <= {""},
            f"{name} does not say who wrote what: leave out --user, if all of it is "
            "yours.",
        )
        refuse_if(
            wanted and not meant,
            f"no user '{shown}': {name} holds {people}. Say whose it is by --user.",
        )
        ids = ", ".join(f"'{printable(key, 80)}'" for key in meant[:5])
        refuse_if(
            wanted and len(meant) > 1,
            f"{name}: {len(meant)} users are called '{shown}': give one of {ids} to "
            "--user.",
        )
        refuse_if(
            not wanted and owner and owner not in self.names,
            f"{name} holds nothing of its account's owner, only {people}: say whose it "
            "is by --user.",
        )
        refuse_if(
            not wanted and not owner and len(self.names) > 1,
            f"{name} holds {people}: say whose history to import by --user NAME.",
        )

    def listed(self) -> str:
        """The people with the most rows, and how many rows."""
        if not self.wrote:
            return "nobody's messages"
        most = self.wrote.most_common(5)
        named = [f"{printable(self.names[key], 40)} ({n})" for key, n in most]
        more = ", …" if len(self.names) > 5 else ""
        users = "user" if len(self.names) == 1 else "users"
        return f"{len(self.names)} {users}: {', '.join(named)}{more}"


class _Reading:
    """What was found so far; `Asked.most` bounds what is kept of it."""

    def __init__(
        self, name: str, kind: Kind, asked: Asked, again: Callable[[], Iterator[Found]]
    ) -> None:
        self.name, self.kind, self.asked, self.again = name, kind, asked, again
        self.people = _People(asked.user)
        self.order: Order | None = ORDERS.get(asked.dates)
        # Why there is no order by date.
        self.file_order = "as --dates ignore asks" if asked.dates == "ignore" else ""
        self.kept: list[tuple[float, int, Entry]] = []
        self.rows, self.dated, self.last = 0, 0, float("-inf")
        self.undated = ""  # the first place without a date
        self.read: dict[str, dict[str, None]] = {}
        self.steps, self.ignored = Counter[str](), Counter[str]()
        self.left, self.changed = Counter[str](), Counter[str]()

    def take(self, found: Found) -> None:
        """Take the next thing that a reader found."""
        if isinstance(found, Owner):
            self.people.owner = found.name
        elif isinstance(found, Left):
            self.left[found.reason] += found.number
        elif isinstance(found, Bad):
            self.refuse(found)
        elif not self.people.mine(found.who, found.key):
            self.left["of other people"] += 1
        elif self.people.wanted or self.people.owner or len(self.people.names) == 1:
            self.row(found)  # else `_People.check` asks whose rows to read

    def refuse(self, bad: Bad) -> None:
        """Count a row that cannot be read, or refuse the file for it."""
        wanted = self.people.wanted
        if bad.who and wanted and folded(bad.who) != folded(wanted):
            self.left["of other people"] += 1
        elif self.asked.skip:
            self.left[bad.reason] += 1
        else:
            raise IdiolectError(
                f"{bad.place} {bad.what}: {bad.hint}, or leave such rows out by "
                "--skip-bad-rows."
            )

    def row(self, row: Row) -> None:
        """Check and keep a row of the owner's."""
        names = dict(row.columns)
        try:
            entry, changed = _entry(row, names)
            date = self.date(row, names)
        except TextError as error:
            return self.refuse(wrong(row.place, error))
        if not entry.target:
            return self.empty(row, names)
        self.rows += 1
        for what, column in row.columns:
            if what != "date" or date is not None:
                self.read.setdefault(what, {})[column] = None
        self.ignored.update(row.ignored)
        self.changed.update({*changed, *row.changed})
        if date is None:
            self.undated = self.undated or row.place
        else:
            self.dated += 1
            if self.dated > 1 and date != self.last:
                self.steps["down" if date < self.last else "up"] += 1
            self.last = date
        self.keep(replace(entry, written=date))

    def keep(self, entry: Entry) -> None:
        """Keep an entry, and drop the oldest where there are too many."""
        number = -self.rows if self.asked.newest_first else self.rows
        date = float("-inf") if entry.written is None else entry.written
        if len(self.kept) < self.asked.most:
            heapq.heappush(self.kept, (date, number, entry))
        else:
            heapq.heappushpop(self.kept, (date, number, entry))
            self.left[f"older than the newest {self.asked.most} (--most)"] += 1

    def empty(self, row: Row, names: dict[str, str]) -> None:
        """Count or refuse a row whose text is empty."""
        name = names.get("text", "text")
        if not self.kind.table:
            self.left["without visible text"] += 1
        elif missing(row.target):
            self.refuse(Bad(row.place, f"has no {name}", "no text", FILL))
        else:
            self.refuse(Bad(row.place, f"has an empty {name}", "empty text", FILL))

    def date(self, row: Row, names: dict[str, str]) -> float | None:
        """When a row was written; None: it does not say."""
        given = row.date
        if self.file_order or missing(given) or str(given).strip() in ("", *NULLS):
            return None
        try:
            found = seconds(given, self.order)
        except AmbiguousError:
            self.decide(names.get("date", "date"), str(given))
            return self.date(row, names)
        except (ValueError, OverflowError) as error:
            raise TextError(
                f"{names.get('date', 'date')}: {error} (--dates ignore keeps the order of "
                "the file)",
                "unreadable date",
            ) from None
        # A chat is in the order of its file: a clock that was set back does not change it.
        return max(found, self.last) if self.kind is WHATSAPP else found

    def decide(self, column: str, example: str) -> None:
        """Read the whole file to decide whether dates begin with the day or the month."""
        rows = (row for row in self.again() if isinstance(row, Row))
        what = f"{self.name}: column '{column}' is not of one kind"
        then = "correct it, or keep the order of the file by --dates ignore"
        with explained(what, then, ValueError):
            self.order = order_of(row.date for row in rows)
        refuse_if(
            self.order is None and self.kind is not WHATSAPP,
            f"{self.name}: column '{column}' does not show whether {example} has the day "
            "or the month first: say it by --dates dmy or --dates mdy, or keep the order "
            "of the file by --dates ignore.",
        )
        if self.order is None:
            self.file_order = f"{example} may be in two months: --dates dmy or mdy"

    def done(self) -> Imported:
        """Sort what was kept, and count the rest."""
        self.people.check(self.name)
        refuse_if(
            self.undated and self.dated and not self.asked.skip,
            f"{self.undated} has no date, and other rows have one: add it, leave such "
            "rows out by --skip-bad-rows, or keep the order of the file by --dates "
            "ignore.",
        )
        newest_first = self.asked.newest_first or self.steps["down"] > self.steps["up"]
        sign = -1 if newest_first and not self.asked.newest_first else 1
        found = [e for _, _, e in sorted(self.kept, key=lambda k: (k[0], sign * k[1]))]
        if self.dated and self.undated:
            whole, found = found, [e for e in found if e.written is not None]
            self.left["no date, where others have one"] += len(whole) - len(found)
        if self.file_order:
            found = [replace(entry, written=None) for entry in found]
        entries = self.once(found)
        refuse_if(
            not entries,
            f"{self.name} holds no pairs: nothing to import (left out: "
            f"{_counted(self.left)}); give a file or folder that `idiolect import "
            "--help` names.",
        )
        return Imported(
            entries=entries,
            kind=self.kind.name,
            read={what: list(names) for what, names in self.read.items()},
            ignored=dict(self.ignored),
            order=self.ordered(entries, newest_first),
            left_out=dict(+self.left),
            changed=dict(self.changed),
            table=self.kind.table,
        )

    def once(self, found: list[Entry]) -> tuple[Entry, ...]:
        """Each pair once; none that is liked and disliked."""
        both = {e.id for e in found if e.liked} & {e.id for e in found if not e.liked}
        clear = [entry for entry in found if entry.id not in both]
        kept: dict[str, Entry] = {}
        for entry in clear:
            kept.setdefault(entry.id, entry)
        self.left["both liked and disliked"] += len(found) - len(clear)
        self.left["repeated"] += len(clear) - len(kept)
        return tuple(kept.values())

    def ordered(self, entries: tuple[Entry, ...], newest_first: bool) -> str:
        """Say what the order is by."""
        if entries[0].written is None:
            end = "first" if newest_first else "last"
            why = self.file_order or "it has no dates; --newest-first reverses it"
            return f"the file's, its {end} row taken as the newest ({why})"
        days = [
            datetime.fromtimestamp(e.written or 0, UTC).strftime("%Y-%m-%d")
            for e in (entries[0], entries[-1])
        ]
        note = "; the file has the newest first" if newest_first else ""
        columns = _listed(list(self.read.get("date", {})))
        return f"by date (from {columns}), {days[0]} to {days[1]}{note}"


def _entry(row: Row, names: dict[str, str]) -> tuple[Entry, tuple[str, ...]]:
    """The pair of a row, and what was changed in it."""
    target, changed = tidy(row.target, names.get("text", "text"))
    if isinstance(row.prompt, Prompt):
        prompt = row.prompt
    else:
        asked, more = tidy(row.prompt, names.get("prompt", "prompt"))
        prompt, changed = Prompt("", asked), changed + more
    judged = liked(row.liked, names.get("liked", "liked"))
    return Entry(prompt, target, judged), changed
