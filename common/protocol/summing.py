"""Masked sums in messages: the plan that both sides make, and what is in which array.

`secure` has the exchanges as pure functions. Here stands how their parts travel: a member
is a user of the run, known by the number of its entry in the directory, and what it sends
are arrays of bytes whose lengths follow from the plan.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from ..config import Config
from ..secure import directory as members
from ..secure.directory import Entry
from ..secure.grid import Grid
from ..secure.masks import NONCE, SEED, TAG
from ..secure.neighbours import colluding
from ..secure.plan import Plan, Segment
from ..secure.rows import Terms, terms
from ..secure.secure import Report, opened_of
from .messages import (
    AdaptRequest,
    EvaluateRequest,
    Request,
    Rows,
    Shapes,
    Summing,
    VoteRequest,
    array_type,
    refuse_if,
)
from .packing import plain
from .signed import make_part, part_names

# Fields of a request that a row does not depend on. A manifest has a time, and is made
# again when a run is resumed. The release is in the plan.
_APART = ("run", "step", "folder", "users", "release", "manifest", "signature")
_OF_SUMS = ("summing", "directory")
# Kind of a request for rows -> the stage whose sums they go into.
STAGES: dict[type[Request], str] = {
    AdaptRequest: "adapt",
    VoteRequest: "votes",
    EvaluateRequest: "metrics",
}


def content_of(request: Request) -> str:
    """SHA-256 over all fields of a request that a row depends on, in hex."""
    large = part_names(type(request))

    def told(name: str) -> Any:
        value = getattr(request, name)
        return make_part(name, value).hash if name in large else plain(value)

    names = {entry.name for entry in fields(request)} - {*_APART, *_OF_SUMS}
    text = json.dumps([type(request).__name__, {n: told(n) for n in sorted(names)}])
    return hashlib.sha256(text.encode()).hexdigest()


def from_hex(text: str) -> bytes:
    """Bytes of hex digits; of any other text none, which no hash or signature is."""
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""


def bitmap(places: Collection[int], size: int) -> str:
    """Return places in 0..size-1 as a bitmap, in hex digits."""
    bits = np.zeros(size, np.uint8)
    bits[sorted(places)] = 1
    return np.packbits(bits).tobytes().hex()


def places_of(bits: str, size: int) -> tuple[int, ...]:
    """Return the places of a `bitmap`, ascending.

    Raises
    ------
    ProtocolError
        It is none of this size.
    """
    body = from_hex(bits)
    refuse_if(
        len(body) != -(-size // 8) or len(bits) != 2 * len(body),
        f"a list of members is not a bitmap of {size} places.",
    )
    unpacked = np.unpackbits(np.frombuffer(body, np.uint8))
    refuse_if(unpacked[size:].any(), "a list of members names one that there is not.")
    return tuple(np.flatnonzero(unpacked[:size]).tolist())


def terms_of(summing: Summing) -> Terms:
    """Return the terms of a sum; see `rows.terms` for what is refused."""
    return terms(summing.clip, summing.z, summing.bit_z, summing.most, summing.required)


def plan_of(
    run: str, summing: Summing, directory: Sequence[Entry], config: Config
) -> Plan:
    """Make the plan of a sum: the server and each member make the same one.

    Parameters
    ----------
    run
        The run's id.
    summing, directory
        As in the request.
    config
        Of the run.

    Raises
    ------
    IdiolectError
        No sum can be so (`Plan`, `directory.numbers`, `rows.terms`).
    """
    numbers = members.numbers(directory)
    cohort = tuple(numbers[k] for k in places_of(summing.cohort, len(numbers)))
    known = terms_of(summing)
    segments = [Segment(summing.length, _exponent(known.grid), known.variance)]
    if known.bit_variance is not None:
        segments.append(Segment(1, _exponent(known.bit_grid), known.bit_variance))
    return Plan(
        run,
        summing.release,
        summing.stage,
        members.root(directory),
        cohort,
        from_hex(summing.content),
        tuple(segments),
        known.grid.word,
        summing.required,
        colluding(config.secagg.colluding, len(cohort)),
    )


def _exponent(grid: Grid) -> int:
    return int(np.frexp(grid.unit)[1]) - 1


def with_plan(
    run: str, summing: Summing, directory: Sequence[Entry], config: Config
) -> tuple[Summing, Plan]:
    """Return a summing with the hash of its plan, and the plan; as `plan_of`."""
    plan = plan_of(run, summing, directory, config)
    return replace(summing, plan=plan.hash.hex()), plan


# --- arrays ------------------------------------------------------------------------------


def sealed_size(plan: Plan, place: int) -> int:
    """Bytes of one bundle of a member."""
    return NONCE + SEED * (1 + len(plan.graph.masks[place])) + TAG


def report_shapes(plan: Plan, places: Sequence[int]) -> Shapes:
    """Shapes of the arrays of these members' reports."""
    return {
        f"masked{plan.word}": (len(places), plan.length),
        "bundles": (
            sum(sealed_size(plan, i) * len(plan.graph.holders[i]) for i in places),
        ),
        "checks": (sum(SEED * (1 + len(plan.graph.masks[i])) for i in places),),
    }


def report_arrays(plan: Plan, reports: Mapping[int, Report]) -> Rows:
    """Reports as arrays: place -> report, in their order."""
    name = f"masked{plan.word}"
    masked = [report.masked for report in reports.values()]
    table = np.array(masked, array_type(name)).reshape(len(reports), plan.length)
    bundles = b"".join(b for r in reports.values() for b in r.bundles.values())
    checks = b"".join(report.checks for report in reports.values())
    return {name: table, "bundles": _bytes(bundles), "checks": _bytes(checks)}


def reports_of(plan: Plan, places: Sequence[int], arrays: Rows) -> dict[int, Report]:
    """Read what `report_arrays` wrote, of these members; the shapes were checked before."""
    found, masked = dict[int, Report](), arrays[f"masked{plan.word}"]
    bundles, checks = arrays["bundles"].tobytes(), arrays["checks"].tobytes()
    near, holders = plan.graph.masks, plan.graph.holders
    sealed = [sealed_size(plan, place) for place in places for _ in holders[place]]
    own = _pieces(checks, (SEED * (1 + len(near[place])) for place in places))
    parts = _pieces(bundles, sealed)
    for k, place in enumerate(places):
        some = dict(zip(holders[place], parts, strict=False))
        found[place] = Report(masked[k], some, next(own))
    return found


def _pieces(data: bytes, sizes: Iterable[int]) -> Iterator[bytes]:
    """Cut bytes into pieces of these sizes."""
    at = 0
    for size in sizes:
        yield data[at : at + size]
        at += size


def _bytes(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def rows_held(plan: Plan, place: int, counted: Collection[int]) -> tuple[int, ...]:
    """Rows of U that a member holds shares of, in the order of `OpenRequest.bundles`."""
    return tuple(row for row in plan.graph.holders[place] if row in counted)


def bundles_of(
    plan: Plan, places: Sequence[int], counted: Collection[int], data: bytes
) -> dict[int, dict[int, bytes]]:
    """Read `OpenRequest.bundles`: member -> row -> bundle.

    Raises
    ------
    ProtocolError
        They are not as long as the plan says.
    """
    rows = {place: rows_held(plan, place, counted) for place in places}
    sizes = [sealed_size(plan, row) for held in rows.values() for row in held]
    refuse_if(
        len(data) != sum(sizes), "the sealed shares are not as long as the plan says."
    )
    parts = _pieces(data, sizes)
    return {place: {row: next(parts) for row in held} for place, held in rows.items()}


def share_sizes(plan: Plan, counted: Collection[int]) -> dict[int, int]:
    """Row of U -> bytes of a share of its opened seeds."""
    return {row: SEED * len(opened_of(plan, row, counted)) for row in counted}


def opening_shapes(
    plan: Plan, sizes: Mapping[int, int], rows: Mapping[int, Sequence[int]]
) -> Shapes:
    """Shape of `OpenReply.shares`, where these members have opened these rows.

    Parameters
    ----------
    plan, sizes
        Of the sum (`share_sizes`).
    rows
        Member -> rows.

    Raises
    ------
    ProtocolError
        A row is not one that the member holds shares of, or stands there twice.
    """
    for place, opened in rows.items():
        held = rows_held(plan, place, sizes)
        refuse_if(
            not set(opened) <= set(held) or len(set(opened)) < len(opened),
            "shares of a row came from a member who does not hold them.",
        )
    count = sum(sizes[row] for opened in rows.values() for row in opened)
    return {"shares": (count,)}


def opening_arrays(openings: Mapping[int, Mapping[int, bytes]]) -> Rows:
    """Openings as the array of a reply: member -> row -> shares, in their order."""
    some = (share for opened in openings.values() for share in opened.values())
    return {"shares": _bytes(b"".join(some))}


def openings_of(
    sizes: Mapping[int, int], rows: Mapping[int, Sequence[int]], arrays: Rows
) -> dict[int, dict[int, bytes]]:
    """Read what `opening_arrays` wrote, of these members and rows; as `opening_shapes`."""
    told = (sizes[row] for opened in rows.values() for row in opened)
    parts = _pieces(arrays["shares"].tobytes(), told)
    return {
        place: {row: next(parts) for row in opened} for place, opened in rows.items()
    }
