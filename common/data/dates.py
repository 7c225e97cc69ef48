"""Dates as people's files write them, as seconds since 1970.

They are for order. A time without a zone is taken as UTC, the same for every row. What
two countries read differently (03/04/2024) is never guessed: `order_of` decides from a
whole column, and says so where the column cannot.
"""

import math
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import pairwise
from typing import Any, Literal

Order = Literal["dmy", "mdy"]

_CLOCK = r"(\d{1,2})[:.](\d{2})(?:[:.](\d{2})(?:[.,]\d+)?)?"
_TIME = rf"(?:,?[\sT]+{_CLOCK}\s*([ap])?\.?\s?m?\.?)?"
_YEAR_FIRST = re.compile(
    rf"(\d{{4}})(?:([-/.])(\d{{1,2}})(?:\2(\d{{1,2}}){_TIME})?)?", re.I
)
_YEAR_LAST = re.compile(
    rf"(\d{{1,2}})([-/.])(\d{{1,2}})\2(\d{{4}}|\d{{2}}){_TIME}", re.I
)
_DAY_NAME = re.compile(rf"(\d{{1,2}})\.? ([a-z]{{3,9}})\.?,? (\d{{4}}){_TIME}", re.I)
_NAME_DAY = re.compile(rf"([a-z]{{3,9}})\.? (\d{{1,2}}),? (\d{{4}}){_TIME}", re.I)
_YEAR_MONTH = re.compile(r"\d{4}\.\d\d")  # 2015.05 is a month and not a number
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e\+?\d+)?", re.I)
_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct")
_MONTHS = {name: number for number, name in enumerate((*_NAMES, "nov", "dec"), 1)}
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
    for read in (_iso, _year_first, _named, _mail):
        found = read(text)
        if found is not None:
            return found
    return _year_last(text, order)


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
        if found and found[2] != ".":
            if int(found[1]) > 12:
                seen.setdefault("dmy", value)
            if int(found[3]) > 12:
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
        return _utc(int(number))
    if re.fullmatch(r"(19|20)\d{6}", text):
        return _utc(int(text[:4]), int(text[4:6]), int(text[6:]))
    for least, most, unit in _UNITS:
        if least <= number < most:
            return number / unit
    raise ValueError(f"{text:.40} is no date")


def _year_first(text: str) -> float | None:
    found = _YEAR_FIRST.fullmatch(text)
    if found is None:
        return None
    year, _, month, day, *time = found.groups()
    return _utc(int(year), int(month or 1), int(day or 1), *_clock(*time))


def _iso(text: str) -> float | None:
    text = re.sub(r" ?(UTC|GMT)$", "+00:00", text)
    try:
        return _stamp(datetime.fromisoformat(text))
    except ValueError:
        return None


def _named(text: str) -> float | None:
    text = _WEEKDAY.sub("", text, count=1)
    if found := _DAY_NAME.fullmatch(text):
        day, month, year, *time = found.groups()
    elif found := _NAME_DAY.fullmatch(text):
        month, day, year, *time = found.groups()
    else:
        return None
    if month[:3].lower() not in _MONTHS:
        raise ValueError(f"{text:.40} is no date")
    return _utc(int(year), _MONTHS[month[:3].lower()], int(day), *_clock(*time))


def _mail(text: str) -> float | None:
    if not _WEEKDAY.match(text) and not re.match(r"\d{1,2} [a-z]{3} ", text, re.I):
        return None
    try:
        return _stamp(parsedate_to_datetime(text))
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _year_last(text: str, order: Order | None) -> float:
    found = _YEAR_LAST.fullmatch(text)
    if found is None:
        raise ValueError(f"{text:.40} is no date")
    first, mark, second, year, *time = found.groups()
    if mark == ".":
        order = "dmy"
    if order is None and first != second:
        raise AmbiguousError(f"{text:.40} has the day or the month first")
    day, month = (second, first) if order == "mdy" else (first, second)
    full = int(year) + (0 if len(year) == 4 else 2000 if int(year) < 70 else 1900)
    return _utc(full, int(month), int(day), *_clock(*time))


def _clock(
    hour: str | None, minute: str | None, second: str | None, half: str | None
) -> tuple[int, int, int]:
    hours = int(hour or 0)
    if half:
        if not 1 <= hours <= 12:
            raise ValueError(f"{hours} {half}m is no time")
        hours = hours % 12 + (12 if half.lower() == "p" else 0)
    return hours, int(minute or 0), int(second or 0)


def _utc(
    year: int,
    month: int = 1,
    day: int = 1,
    hour: int = 0,
    minute: int = 0,
    second: int = 0,
) -> float:
    return _stamp(datetime(year, month, day, hour, minute, second))


def _stamp(moment: datetime) -> float:
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    found = moment.timestamp()
    if not math.isfinite(found):
        raise ValueError(f"{moment} is no date")
    datetime.fromtimestamp(found, UTC)  # raises where its zone leads out of all years
    return found
