import contextlib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idiolect.common.data.dates import (
    AmbiguousError,
    newest_first,
    oldest_first,
    order_of,
    seconds,
)

NOON = datetime(2024, 3, 12, 12, 0, 5, tzinfo=UTC).timestamp()
DAY = datetime(2024, 3, 12, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2024-03-12T12:00:05Z", NOON),
        ("2024-03-12T13:00:05+01:00", NOON),
        ("2024-03-12 12:00:05 UTC", NOON),
        ("2024-03-12 12:00:05.25", NOON + 0.25),
        ("2024/03/12 12:00:05", NOON),
        ("2024.03.12, 12:00:05 pm", NOON),
        ("2024-03-12", DAY),
        ("2024/3/12", DAY),
        ("20240312", DAY),
        (20240312, DAY),
        ("2024-03", datetime(2024, 3, 1, tzinfo=UTC).timestamp()),
        (2024, datetime(2024, 1, 1, tzinfo=UTC).timestamp()),
        ("12.03.2024 12:00:05", NOON),
        ("12.3.24", DAY),
        ("12 March 2024", DAY),
        ("Mar 12, 2024, 12:00:05 PM", NOON),
        ("Tuesday, March 12, 2024", DAY),
        ("Tue, 12 Mar 2024 13:00:05 +0100", NOON),
        ("Tue Mar 12 12:00:05 +0000 2024", NOON),
        (NOON, NOON),
        (str(NOON), NOON),
        (int(NOON) * 1000, NOON),
        (int(NOON) * 10**6, NOON),
        (str(int(NOON) * 10**9), NOON),
    ],
)
def test_dates_as_people_write_them(value, expected):
    assert seconds(value) == pytest.approx(expected, abs=1e-3)


def test_day_and_month_between_slashes_are_never_guessed():
    for text in ("03/04/2024", "13/04/2024", "3-4-24, 9:15 pm"):
        with pytest.raises(AmbiguousError):
            seconds(text)
    assert seconds("03/12/2024", "mdy") == seconds("12/03/2024", "dmy") == DAY
    assert seconds("03/03/2024") == seconds("2024-03-03")
    assert order_of(["03/04/2024", None, 7, "13/04/2024"]) == "dmy"
    assert order_of(["03/04/2024", "04/13/2024"]) == "mdy"
    assert order_of(["03/04/2024", "12.31.2024", "2024-13-13"]) is None
    with pytest.raises(ValueError, match="the day first and 04/13/2024 the month"):
        order_of(["13/04/2024", "04/13/2024"])


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, "", "yesterday", "12:30", 7, "2024-13-01", "13/13/2024", "1e400"),
        *(
            "31/02/2024",
            "9" * 40,
            -5,
            12.5,
            "0000-00-00",
            "32 March 2024",
            "5 Foo 2024",
        ),
        *("2024-03-12 25:00", "03/04/2024 13:00 pm", [2024]),
    ],
)
def test_what_is_no_date_is_refused(value):
    with pytest.raises(ValueError):
        seconds(value, "dmy")


@given(
    st.one_of(st.text(), st.floats(), st.integers(), st.from_regex(r"[\d/:., apm-]+"))
)
def test_anything_else_is_a_value_error(value):
    with contextlib.suppress(ValueError):
        assert isinstance(seconds(value), float)


def test_of_equal_dates_a_newest_first_file_has_the_newer_first():
    assert oldest_first([3, 2, 2, 1]) == [3, 2, 1, 0] and newest_first([3, 2, 2, 1])
    assert oldest_first([1, 2, 2, 3]) == [0, 1, 2, 3] and not newest_first([1, 2, 2, 3])
    assert oldest_first([5, 5, 5]) == [0, 1, 2]
