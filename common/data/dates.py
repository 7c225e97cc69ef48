"""Dates as people's files write them, as seconds since 1970.

They are for order. A time without a zone is taken as UTC, the same for every row. What
two countries read differently (03/04/2024) is never guessed: `order_of` decides from a
whole column, and says so where the column cannot.
"""

import contextlib
import math
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import pairwise
from typing import Any, Literal

Order = Literal["dmy", "mdy"]

_TIME = (
    r"(?:,?[\sT]+(?P<hour>\d{1,2})[:.](?P<minute>\d{2})"
    r"(?:[:.](?P<second>\d{2})(?:[.,]\d+)?)?\s*(?P<half>[ap])?\.?\s?m?\.?)?"
)
_YEAR_FIRST = re.compile(
    r"(?P<year>\d{4})(?:(?P<mark>[-/.])(?P<month>\d{1,2})"
    rf"(?:(?P=mark)(?P<day>\d{{1,2}}){_TIME})?)?",
    re.I,
)
_YEAR_LAST = re.compile(
    r"(?P<day>\d{1,2})(?P<mark>[-/.])(?P<month>\d{1,2})"
    rf"(?P=mark)(?P<year>\d{{4}}|\d{{2}}){_TIME}",
    re.I,
)
_NAMED = tuple(
    re.compile(rf"{beginning},? (?P<year>\d{{4}}){_TIME}", re.I)
    for beginning in (
        r"(?P<day>\d{1,2})\.? (?P<month>[a-z]{3,9})\.?",
        r"(?P<month>[a-z]{3,9})\.? (?P<day>\d{1,2})",
    )
)
_YEAR_MONTH = re.compile(r"\d{4}\.\d\d")  # 2015.05 is a month and not a number
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e\+?\d+)?", re.I)
_NAMES = (
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
)  # fmt: skip
_MONTHS = {name: number for number, name in enumerate(_NAMES, 1)}
_WEEKDAY = re.compile(r"(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*,? ", re.I)
# Digits before the decimal point of seconds, milliseconds, microseconds, nanoseconds.
_UNITS = ((1e8, 1e11, 1), (1e11, 1e14, 1e3), (1e14, 1e17, 1e6), (1e17, 1e20, 1e9))


class AmbiguousError(ValueError):
    """A date that is one day in one country and another day in another."""


def seconds(value: Any, order: Order | None = None) -> float:
    """Return a date as seconds since 1970.

    Parameters
    ----------
    value
        ISO 8601 and its beginnings (``2015``, ``2015-05``), the same with slashes or dots,
        the dates of e-mail, English names of months, ``31/12/2024`` and ``12/31/2024``,
        ``31.12.2024`` (day first, everywhere), or a number: seconds, milli-, micro- or
        nanoseconds since 1970 by its size, a year, or ``20241231``.
    order
        Which of day and month comes first between slashes or dashes; None: not known.

    Raises
    ------
    AmbiguousError
        It depends on `order`, which is None.
    ValueError
        It is no date.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{value!r:.40} is no date")
    text = " ".join(str(value).split())
    if _NUMBER.fullmatch(text) and not _YEAR_MONTH.fullmatch(text):
        return _number(text)
    with contextlib.suppress(ValueError):
        return _stamp(datetime.fromisoformat(re.sub(r" ?(UTC|GMT)$", "+00:00", text)))
    bare = _WEEKDAY.sub("", text, count=1)
    for pattern in (_YEAR_FIRST, _YEAR_LAST, *_NAMED):
        if found := pattern.fullmatch(bare if pattern in _NAMED else text):
            known = pattern is not _YEAR_LAST or found["mark"] == "."
            return _day(found, "dmy" if known else order)
    if _WEEKDAY.match(text) or re.match(r"\d{1,2} [a-z]{3} ", text, re.I):
        with contextlib.suppress(ValueError, TypeError, IndexError, OverflowError):
            return _stamp(parsedate_to_datetime(text))
    raise ValueError(f"{text:.40} is no date")


def order_of(values: Iterable[Any]) -> Order | None:
    """Decide from a whole column whether days come before months.

    Returns
    -------
    str or None
        None: no value shows it.

    Raises
    ------
    ValueError
        Some values show one and some the other.
    """
    seen: dict[Order, str] = {}
    for value in values:
        if not isinstance(value, str):
            continue
        found = _YEAR_LAST.fullmatch(" ".join(value.split()))
        if found and found["mark"] != ".":
            if int(found["day"]) > 12:
                seen.setdefault("dmy", value)
            if int(found["month"]) > 12:
                seen.setdefault("mdy", value)
    if len(seen) == 2:
        raise ValueError(f"{seen['dmy']} has the day first and {seen['mdy']} the month")
    return next(iter(seen), None)


def oldest_first(dates: Sequence[float]) -> list[int]:
    """Places of a sequence of dates, by date.

    Of equal dates, the one that stands first is the older, unless the sequence as a whole
    has the newest first.
    """
    sign = -1 if newest_first(dates) else 1
    return sorted(range(len(dates)), key=lambda place: (dates[place], sign * place))


def newest_first(dates: Sequence[float]) -> bool:
    """Whether a sequence of dates goes down more often than up."""
    steps = list(pairwise(dates))
    return sum(a > b for a, b in steps) > sum(a < b for a, b in steps)


def _number(text: str) -> float:
    number = float(text)
    if 1000 <= number <= 9999 and number.is_integer():
        return _stamp(datetime(int(number), 1, 1))
    if re.fullmatch(r"(19|20)\d{6}", text):
        return _stamp(datetime(int(text[:4]), int(text[4:6]), int(text[6:])))
    for least, most, unit in _UNITS:
        if least <= number < most:
            return number / unit
    raise ValueError(f"{text:.40} is no date")


def _day(found: re.Match[str], order: Order | None) -> float:
    """Return a date from its parts; of what is missing, the first or zero."""
    year, month, day, hour, minute, second = (
        found[part] or missing
        for part, missing in zip(
            ("year", "month", "day", "hour", "minute", "second"), "011000", strict=True
        )
    )
    if order is None and day != month:
        raise AmbiguousError(f"{found[0]:.40} has the day or the month first")
    if order == "mdy":
        day, month = month, day
    if month.isalpha() and month[:3].lower() not in _MONTHS:
        raise ValueError(f"{found[0]:.40} is no date")
    number = _MONTHS[month[:3].lower()] if month.isalpha() else int(month)
    century = 0 if len(year) == 4 else 2000 if int(year) < 70 else 1900
    hours = int(hour)
    if found["half"]:
        if not 1 <= hours <= 12:
            raise ValueError(f"{hours} {found['half']}m is no time")
        hours = hours % 12 + (12 if found["half"].lower() == "p" else 0)
    clock = (hours, int(minute), int(second))
    return _stamp(datetime(century + int(year), number, int(day), *clock))


def _stamp(moment: datetime) -> float:
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    found = moment.timestamp()
    if not math.isfinite(found):
        raise ValueError(f"{moment} is no date")
    datetime.fromtimestamp(found, UTC)  # raises where its zone leads out of all years
    return found
