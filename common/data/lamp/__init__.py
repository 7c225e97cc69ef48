"""LaMP and LongLaMP: users from the published files and from the shape used by OPPU.

docs/data.md describes the tasks, and how the text of a user is split.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...config import Config
from ...errors import IdiolectError
from ...seeds import numpy_generator
from ...text import printable
from ..dates import order_of, seconds
from ..types import Dataset, Item, User
from . import longlamp
from .files import records
from .forms import FORMS, Form
from .items import (
    EMPTY,
    BadUserError,
    bad_if,
    entries_of,
    is_hollow,
    name_of,
    pair,
    profile_items,
    question,
)
from .leaks import HeldOut, without

logger = logging.getLogger(__name__)

# Items of public text: enough for a bank of `votes`. Reading stops when they are found.
PUBLIC = 4000
# What is left out of the users who stay, or not done for them; counted in
# `Dataset.dropped`.
LEAKED = "history items equal to a held-out item"
HOLLOW = "questions without text or answer"
UNASKED = "questions behind the first `held-out`"
UNKNOWN = "questions of unknown wording, taken whole"


def read(config: Config) -> Dataset:
    """Read the users of a LaMP task.

    The first ``config.users`` in file order are evaluated, the next
    ``config.development_users`` are development users. Who has fewer than
    ``config.least_history`` items is passed over for the first, not for the second. The
    history of all others, without texts of held-out items, is `Dataset.public`. The counts
    in `Dataset.dropped` are also logged in one line.

    Raises
    ------
    IdiolectError
        The file is missing, not JSON, or of another task; a user's record is malformed and
        ``skip-bad-users`` is off; or there are too few users.
    """
    form = FORMS[config.task]
    name, found = _records(config.data, form)
    dropped: Counter[str] = Counter()
    names: set[str] = set()
    evaluated: list[User] = []
    development: list[User] = []
    public: list[Item] = []
    for index, record in enumerate(found):
        try:
            user, removed = _user(record, form, config)
            bad_if(
                user.id in names, "duplicate user", "an earlier record has this user"
            )
        except BadUserError as bad:
            if not config.skip_bad_users:
                named = record.get("user_id") if isinstance(record, dict) else None
                who = "" if named is None else f" (user '{str(named):.100}')"
                raise IdiolectError(
                    f"{name}: record {index}{who}: {bad}: repair the file, or set "
                    "skip-bad-users=true to leave such users out."
                ) from None
            dropped[bad.reason] += 1
            continue
        names.add(user.id)
        group = _group(user, evaluated, development, config)
        if group is None:
            public.extend(user.history)
        else:
            group.append(user)
            dropped += removed
        if _enough(evaluated, development, config) and len(public) >= PUBLIC:
            break
    listed = ", ".join(f"{reason}: {n}" for reason, n in dropped.items())
    if not _enough(evaluated, development, config):
        raise _too_few(name, len(evaluated), len(names), listed, config)
    if listed:
        logger.warning("warning: %s: %s", printable(name), listed)
    users = (*evaluated, *development)
    held = HeldOut([item for user in users for item in user.held_out], form)
    return Dataset(
        task=form.task,
        users=_with_rivals(evaluated, development, config),
        development=_with_rivals(development, evaluated, config),
        public=tuple(item for item in public if not held.has(item, form))[:PUBLIC],
        dropped=dict(dropped),
        source=name,
    )


def _group(
    user: User, evaluated: list[User], development: list[User], config: Config
) -> list[User] | None:
    """The group that a user comes into; None: neither, the text is public."""
    if len(evaluated) < config.users and len(user.history) >= config.least_history:
        return evaluated
    # With `least_history` 0 nobody gets here before all evaluated users are found.
    return development if len(development) < config.development_users else None


def _enough(
    evaluated: Sequence[User], development: Sequence[User], config: Config
) -> bool:
    found = len(evaluated), len(development)
    return found == (config.users, config.development_users)


def _too_few(
    name: str, evaluated: int, usable: int, listed: str, config: Config
) -> IdiolectError:
    """The error of a file with too few users."""
    why = f" (left out: {listed})" if listed else ""
    wanted = config.users + config.development_users
    if config.least_history and evaluated < config.users:
        return IdiolectError(
            f"{name} holds {evaluated} users with least-history={config.least_history} "
            f"items or more{why}, but users={config.users}: lower 'users' or "
            "'least-history', or take another file."
        )
    return IdiolectError(
        f"{name} holds {usable} usable users{why}, but users={config.users} and "
        f"development-users={config.development_users} ask for {wanted}: lower "
        "'users' or 'development-users', or take another file."
    )


@dataclass(frozen=True)
class Kept:
    """One item of somebody's files, as an owner imports it.

    Attributes
    ----------
    user, place
        The user, and the place in the user's record.
    item
        None if it cannot be used (`problem`).
    date
        As in the file; a question has the date of the newest profile item.
    problem
        What is wrong, and the reason under which it is counted.
    """

    user: str
    place: str
    item: Item | None
    date: Any = None
    problem: tuple[str, str] = ("", "")


def everything(path: Path, task: str) -> Iterator[Kept]:
    """Yield all items of the files: of each user the profile, then the answered questions.

    Raises
    ------
    IdiolectError
        The file is missing, not JSON, or of another task.
    """
    form = FORMS[task]
    for index, record in enumerate(_records(str(path), form)[1]):
        try:
            name = name_of(record)
            parts = [(part, entries_of(record, part)) for part in ("profile", "query")]
        except BadUserError as bad:
            yield Kept(f"record {index}", "", None, None, (str(bad), bad.reason))
            continue
        for part, entries in parts:
            for number, entry in enumerate(entries):
                yield _kept(entry, f"{part}[{number}]", name, form, parts[0][1])


def _records(data: str, form: Form) -> tuple[str, Iterable[Any]]:
    """Return the name of what `data` says, and unchecked records in OPPU's shape."""
    if form.template:
        return longlamp.records(data, form)
    return records(Path(data).expanduser(), form.task.name)


def _kept(entry: Any, place: str, user: str, form: Form, profile: list[Any]) -> Kept:
    try:
        if place.startswith("query"):
            dates = [one.get(form.date) for one in profile if isinstance(one, dict)]
            return Kept(user, place, question(entry, place, user, form), _latest(dates))
        prompt, target = pair(entry, place, form)
        bad_if(not prompt.input or not target, EMPTY, f"{place} has no text")
    except BadUserError as bad:
        return Kept(user, place, None, None, (str(bad), bad.reason))
    item = Item(f"{user}/{place}", prompt, target)
    return Kept(user, place, item, entry.get(form.date))


def _latest(dates: list[Any]) -> Any:
    """Return the latest date of a profile; the last one if they cannot be compared."""
    try:
        order = order_of(dates)
        return max(dates, key=lambda date: seconds(date, order), default=None)
    except ValueError:
        return next((date for date in reversed(dates) if date is not None), None)


def _user(record: Any, form: Form, config: Config) -> tuple[User, Counter[str]]:
    """Check one record and split it into history and held-out items."""
    name = name_of(record)
    entries = entries_of(record, "query")
    # If no question is complete, the error names the first one.
    whole = [n for n, entry in enumerate(entries) if not is_hollow(entry)]
    queries = [
        question(entries[index], f"query[{index}]", name, form)
        for index in whole or range(len(entries))
    ]
    bad_if(
        len({item.id for item in queries}) < len(queries),
        "duplicate id",
        "two entries of 'query' have the same id",
    )
    found, removed = profile_items(record, name, form)
    held = queries[: config.held_out]
    removed[HOLLOW] = len(entries) - len(queries)
    removed[UNASKED] = len(queries) - len(held)
    removed[UNKNOWN] = sum(not item.prompt.before for item in held)
    profile = without(found, held, form)
    # A user with few questions gets more held-out items from the profile: a mean over one
    # item is too noisy. Not if history pairs have another form than the questions.
    same = form.whole and not form.history
    few = 0 if not same else min(config.held_out - len(held), len(profile) // 4)
    older = profile[: len(profile) - few]
    held += profile[len(profile) - few :]
    history = without(older, held, form)
    removed[LEAKED] = len(found) - len(profile) + len(older) - len(history)
    bad_if(not history, "empty history", "there is no history item to learn from")
    bad_if(not held, "nothing held out", "there is no item to be measured on")
    return User(name, tuple(history[-config.history :]), tuple(held)), +removed


def _with_rivals(
    users: Sequence[User], others: Sequence[User], config: Config
) -> tuple[User, ...]:
    """Give every held-out item rivals: held-out items of other users, drawn from the seed.

    Rivals are of the same group, so evaluated users are compared among themselves; of
    `others` if the group has only one user. None is a text that the user has, too: a paper
    with two authors.
    """

    def text(item: Item) -> tuple[str, str]:
        return item.prompt.input, item.target

    result: list[User] = []
    for user in users:
        own = {text(item) for item in (*user.held_out, *user.history)}
        group = [other for other in users if other.id != user.id] or others
        pool = [i for other in group for i in other.held_out if text(i) not in own]
        draw = numpy_generator(config.seed, "rivals", user.id)
        count, most = len(user.held_out), min(config.evaluate.rivals, len(pool))
        picks = draw.integers(len(pool), size=(count, 1)) if pool else [()] * count
        if config.evaluate.rivals > 1:
            picks = [draw.choice(len(pool), most, replace=False) for _ in picks]
        held = (
            replace(item, rivals=tuple(pool[i] for i in chosen))
            for item, chosen in zip(user.held_out, picks, strict=True)
        )
        result.append(replace(user, held_out=tuple(held)))
    return tuple(result)
