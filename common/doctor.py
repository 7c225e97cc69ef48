"""What `doctor` looks at on both sides: each check is a function of what was measured.

A check says in one line what it found, and where something is wrong, what to do. Nothing is
changed. What is measured here is the machine's; each side has checks of its own as well.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from .command import refusal
from .errors import IdiolectError, pip_install
from .text import printable

NAMED = ("flwr", "torch")  # packages whose versions are always told
SOON = timedelta(days=30)  # before its end a certificate is warned of
MB = 1 << 20


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes
    ----------
    check
        Its name.
    ok
        Whether all is well.
    text
        One sentence; if not, with the next step.
    """

    check: str
    ok: bool
    text: str


def attempt(check: str, look: Callable[[], Finding]) -> Finding:
    """Return what a check found, or the error that kept it from looking."""
    try:
        return look()
    except IdiolectError as error:
        return Finding(check, False, str(error))
    except OSError as error:
        _, text = refusal(error) or (0, f"{error.strerror or error}: look at it.")
        return Finding(check, False, text)


def report(findings: Sequence[Finding]) -> tuple[list[dict[str, Any]], list[str], bool]:
    """Return the findings as JSON and as lines, and whether all is well."""
    wide = max(len(one.check) for one in findings)
    lines = [
        f"{one.check:{wide}}  {'ok' if one.ok else 'PROBLEM':7}  {printable(one.text, 800)}"
        for one in findings
    ]
    return [asdict(one) for one in findings], lines, all(one.ok for one in findings)


# --- checks ----------------------------------------------------------------------------


def disk(free: int, needed: int, place: Path, what: str = "") -> Finding:
    """Whether there is room on the disk; in bytes."""
    said = f"{free // MB:,} MB free at {place}"
    if free < needed:
        more = f"{said}, and {needed // MB:,} MB are needed{what}: make room there."
        return Finding("disk", False, more)
    return Finding("disk", True, f"{said}.")


def memory(needed: float, free: float, allowed: int = 0, what: str = "") -> Finding:
    """Whether work fits into the memory that is free, and that is allowed; in MB.

    Parameters
    ----------
    needed, free
        What it takes at least, and what is available.
    allowed
        The owner's ``memory-mb``; 0: no limit.
    what
        What needs it.
    """
    said = f"{what} needs at least {needed:,.0f} MB"
    if allowed and needed > allowed:
        return Finding(
            "memory",
            False,
            f"{said}, and memory-mb allows {allowed:,}: `idiolect settings memory-mb "
            "NUMBER`, or a smaller backbone.",
        )
    if needed > free:
        return Finding(
            "memory",
            False,
            f"{said}, and {free:,.0f} MB are free: end other programs, or use a smaller "
            "backbone.",
        )
    within = f", memory-mb allows {allowed:,}" if allowed else ""
    return Finding("memory", True, f"{said}; {free:,.0f} MB are free{within}.")


def validity(
    what: str, begin: datetime, end: datetime, now: datetime, renew: str
) -> Finding:
    """Whether a certificate is valid now; one that is not may also mean a wrong clock."""
    if now < begin:
        return Finding(
            "clock",
            False,
            f"this clock says {now:%Y-%m-%d %H:%M} UTC, and {what} begins on "
            f"{begin:%Y-%m-%d %H:%M}: set the clock.",
        )
    left = (end - now).days
    if now >= end or end - now < SOON:
        verb = "ended" if now >= end else "ends"
        return Finding(
            "certificate", False, f"{what} {verb} on {end:%Y-%m-%d}: {renew}."
        )
    text = f"{what} is valid for {left} more days, until {end:%Y-%m-%d}."
    return Finding("certificate", True, text)


def clock(ahead: float, early: float, late: float) -> Finding:
    """Whether this clock is near enough to the server's.

    Parameters
    ----------
    ahead
        By how many seconds it is ahead of it; negative: behind.
    early, late
        How far ahead and how far behind it may be.
    """
    way = "ahead of" if ahead > 0 else "behind"
    said = f"this clock is {abs(ahead):.0f} s {way} the server's"
    allowed = f"allowed are {early:g} s ahead and {late:g} s behind"
    # The server says its time in whole seconds.
    if not -late < ahead < early + 1:
        return Finding("clock", False, f"{said}: set it ({allowed}).")
    return Finding("clock", True, f"{said} ({allowed}).")


def packages(extra: str = "") -> Finding:
    """Whether what this version needs is installed, in the versions that it needs."""
    name = "idiolect"
    wrong = [*unmet(requires(name) or (), extra, installed)]
    known = [f"{one} {installed(one)}" for one in (name, *NAMED)]
    said = ", ".join(known).replace("flwr", "Flower")
    if wrong:
        where = f"{name}[{extra}]" if extra else name
        then = pip_install("-c", "constraints.txt", where)
        text = f"{said}; {', '.join(wrong)}: `{then}`."
        return Finding("versions", False, text)
    return Finding("versions", True, f"{said}.")


def installed(name: str) -> str:
    """Return the version of a package; empty if it is not there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def unmet(
    needed: Sequence[str], extra: str, there: Callable[[str], str]
) -> Iterator[str]:
    """Say of each requirement that is not met what is there instead."""
    from packaging.requirements import Requirement

    for line in needed:
        one = Requirement(line)
        if one.marker is not None and not one.marker.evaluate({"extra": extra}):
            continue
        found = there(one.name)
        if not found or not one.specifier.contains(found, prereleases=True):
            there_is = f"{one.name} {found}" if found else f"no {one.name}"
            yield f"{there_is} where {one.name}{one.specifier} is needed"
