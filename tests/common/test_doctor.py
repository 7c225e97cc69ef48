"""Each check of `doctor`, with something wrong and with nothing wrong."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from idiolect.common import doctor
from idiolect.common.doctor import Finding
from idiolect.common.errors import IdiolectError

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def wrong(found: Finding) -> str:
    """What is wrong, with a next step behind a colon."""
    assert not found.ok
    what, _, step = found.text.partition(": ")
    assert what and len(step) > 8 and found.text.endswith(".")
    return found.text


def test_room_on_the_disk():
    place = Path("/data")
    assert doctor.disk(300 << 20, 200 << 20, place).text == "300 MB free at /data."
    assert doctor.disk(200 << 20, 200 << 20, place).ok
    said = wrong(doctor.disk(100 << 20, 2000 << 20, place))
    assert "100 MB free at /data, and 2,000 MB are needed: make room" in said


@pytest.mark.parametrize(
    ("needed", "free", "allowed", "part"),
    [
        (500, 400, 0, "400 MB are free: end other programs"),
        (500, 900, 300, "memory-mb allows 300: `idiolect settings memory-mb"),
        (500, 400, 300, "memory-mb allows 300"),
    ],
)
def test_memory_that_is_too_little(needed, free, allowed, part):
    assert part in wrong(doctor.memory(needed, free, allowed, "tiny"))


def test_memory_that_is_enough():
    assert doctor.memory(500, 500, 500, "tiny").ok
    assert doctor.memory(500, 500, 0, "tiny").ok


@pytest.mark.parametrize(
    ("begin", "end", "check", "part"),
    [
        (NOW + DAY / 24, NOW + 90 * DAY, "clock", "2026-06-01 13:00: set the clock"),
        (NOW - DAY, NOW, "certificate", "it ended on 2026-06-01: renew"),
        (NOW - DAY, NOW + 29 * DAY, "certificate", "it ends on 2026-06-30: renew"),
    ],
)
def test_a_certificate_that_is_not_valid_now_or_not_for_long(begin, end, check, part):
    found = doctor.validity("it", begin, end, NOW, "renew it now")
    assert part in wrong(found) and found.check == check


def test_a_certificate_that_is_valid():
    found = doctor.validity("it", NOW - DAY, NOW + 31 * DAY, NOW, "renew")
    assert found.ok and "valid for 31 more days, until 2026-07-02" in found.text


@pytest.mark.parametrize(
    ("ahead", "ok", "part"),
    [
        (0.0, True, "0 s behind"),
        (5.5, True, "6 s ahead of"),  # the server's seconds are whole
        (7.0, False, "7 s ahead of the server's: set it"),
        (-299.0, True, "299 s behind"),
        (-301.0, False, "301 s behind the server's: set it"),
        (3600.0, False, "3600 s ahead of"),
    ],
)
def test_a_clock_beside_the_servers(ahead, ok, part):
    found = doctor.clock(ahead, early=5, late=300)
    assert found.ok is ok and part in found.text
    assert "allowed are 5 s ahead and 300 s behind" in found.text


def test_packages_that_are_missing_or_of_another_version():
    needed = [
        "flwr>=1.42,<1.43",
        "torch>=2.8",
        "h11>=0.16; extra == 'server'",
        "jinja2>=3.1",
    ]
    there = {"flwr": "1.43.0", "torch": "2.9.1+cpu", "h11": ""}.get
    found = [*doctor.unmet(needed, "server", lambda name: there(name, "3.1.6"))]
    assert found == [
        "flwr 1.43.0 where flwr<1.43,>=1.42 is needed",
        "no h11 where h11>=0.16 is needed",
    ]
    # A device does not need what only a server needs.
    assert [*doctor.unmet(needed[2:], "", lambda name: there(name, "3.1.6"))] == []


def test_what_is_installed_here_is_what_is_needed():
    found = doctor.packages()
    assert found.ok and found.text.startswith("idiolect ") and "Flower 1." in found.text


def test_a_package_that_is_missing_is_named_with_what_to_type(monkeypatch):
    monkeypatch.setattr(doctor, "requires", lambda _: ["surely-not-there>=1"])
    said = wrong(doctor.packages("server"))
    assert "no surely-not-there" in said and "'idiolect[server]'" in said


def test_a_check_that_cannot_look_is_a_problem():
    def refused() -> Finding:
        raise IdiolectError("it is damaged: mend it.")

    def forbidden() -> Finding:
        raise PermissionError(13, "Permission denied", "/data/key")

    assert doctor.attempt("a", refused) == Finding(
        "a", False, "it is damaged: mend it."
    )
    said = wrong(doctor.attempt("a", forbidden))
    assert "Permission denied (/data/key)" in said


def test_a_report_says_all_and_whether_all_is_well():
    good, bad = (
        Finding("disk", True, "fine."),
        Finding("certificate", False, "x\x1b: y."),
    )
    body, lines, well = doctor.report([good, bad])
    assert not well and body[0] == {"check": "disk", "ok": True, "text": "fine."}
    assert lines == [
        "disk         ok       fine.",
        "certificate  PROBLEM  x\ufffd: y.",
    ]
    assert doctor.report([good])[2]
