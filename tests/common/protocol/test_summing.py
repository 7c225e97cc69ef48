"""What a masked sum is in messages: bitmaps, plans, and arrays of bytes."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from idiolect.common.config import parse
from idiolect.common.errors import IdiolectError
from idiolect.common.protocol.messages import AdaptRequest, ProtocolError, Summing
from idiolect.common.protocol.summing import (
    bitmap,
    bundles_of,
    content_of,
    opening_arrays,
    opening_shapes,
    openings_of,
    places_of,
    plan_of,
    report_arrays,
    report_shapes,
    reports_of,
    rows_held,
    share_sizes,
    with_plan,
)
from idiolect.common.secure.directory import Entry, make_entry, make_keys, root
from idiolect.common.secure.secure import opened_of
from tests.common.secure.world import a_plan, release

CONFIG = parse({"secagg.mode": "on", "users": 10, "adapt.wire": "float32"})


@given(
    st.integers(1, 70).flatmap(
        lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))
    )
)
def test_a_bitmap_is_read_as_it_was_written(case):
    size, places = case
    assert places_of(bitmap(places, size), size) == tuple(sorted(places))


@given(st.text(max_size=40), st.integers(1, 70))
def test_what_is_no_bitmap_is_refused_or_read(text, size):
    try:
        places = places_of(text, size)
    except ProtocolError:
        return
    assert bitmap(places, size) == text.lower()


@pytest.mark.parametrize("members", [5, 150, 260])
def test_reports_travel_as_arrays(members):
    plan = a_plan(members)
    rows = {i: np.arange(plan.length) + i for i in range(members)}
    sent = release(plan, rows).reports
    some = {place: sent[place] for place in (4, 0, 3)}
    arrays = report_arrays(plan, some)
    shapes = report_shapes(plan, tuple(some))
    assert {name: array.shape for name, array in arrays.items()} == shapes
    for place, report in reports_of(plan, tuple(some), arrays).items():
        assert report.bundles == some[place].bundles
        assert report.checks == some[place].checks
        np.testing.assert_array_equal(report.masked, some[place].masked)


def test_bundles_and_openings_travel_as_bytes():
    plan = a_plan(6)
    seen = release(plan, {i: np.arange(3) for i in range(6)}, reported=range(5))
    held = {place: rows_held(plan, place, seen.counted) for place in (5, 2)}
    data = b"".join(
        seen.reports[r].bundles[i] for i, rows in held.items() for r in rows
    )
    found = bundles_of(plan, (5, 2), seen.counted, data)
    assert found == {
        i: {row: seen.reports[row].bundles[i] for row in rows}
        for i, rows in held.items()
    }
    for broken in (data[:-1], data + b"x", b""):
        with pytest.raises(ProtocolError, match="not as long as the plan says"):
            bundles_of(plan, (5, 2), seen.counted, broken)
    some = {place: seen.openings[place] for place in (5, 2)}
    opened = {place: tuple(rows) for place, rows in some.items()}
    arrays = opening_arrays(some)
    sizes = share_sizes(plan, seen.counted)
    shapes = opening_shapes(plan, sizes, opened)
    assert arrays["shares"].shape == shapes["shares"]
    assert openings_of(sizes, opened, arrays) == some
    assert len(opened_of(plan, 0, seen.counted)) == 2  # its own seed, and that with 5


@pytest.mark.parametrize("rows", [(2,), (5,), (1, 1), (99,)])
def test_shares_of_who_holds_none_are_refused(rows):
    plan = a_plan(6)
    with pytest.raises(ProtocolError, match="does not hold|do not hold"):
        opening_shapes(plan, share_sizes(plan, frozenset(range(5))), {2: rows})


def a_request(**changes) -> AdaptRequest:
    rows = {"q": np.ones((2, 2), np.float32)}
    fields = {"round": 0, "release": "adapt/0", "clip": 1.0, "shared": rows}
    return AdaptRequest("run", "s", {"seed": 1}, "/f", ("u",), **(fields | changes))


def test_content_is_what_a_row_depends_on():
    one = a_request()
    same = dataclasses.replace(one, step="t", folder="", users=("v", "w"), release="x")
    assert content_of(one) == content_of(same)
    others = [
        a_request(clip=2.0),
        a_request(round=1),
        a_request(shared={"q": np.zeros((2, 2), np.float32)}),
        dataclasses.replace(one, config={"seed": 2}),
    ]
    assert len({content_of(one), *map(content_of, others)}) == 5


def directory(count: int) -> tuple[Entry, ...]:
    from cryptography.hazmat.primitives.asymmetric import ec

    return tuple(
        make_entry(i, ec.generate_private_key(ec.SECP384R1()), make_keys(), "run", "00")
        for i in range(count)
    )


MEMBERS = directory(10)
SUMMING = Summing(
    "adapt", "adapt/0", bitmap(range(10), 10), "00" * 32, 1.0, 8.0, None, 10, 6, 4, ""
)


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "votes"},
        {"release": "adapt/1"},
        {"cohort": bitmap(range(9), 10)},
        {"content": "01" * 32},
        {"clip": 4.0},
        {"z": 7.0},
        {"bit_z": 10.0},
        {"most": 11},
        {"required": 5},
        {"length": 5},
    ],
)
def test_every_word_of_a_sum_is_in_its_plan(change):
    plan = plan_of("run", SUMMING, MEMBERS, CONFIG)
    other = plan_of("run", dataclasses.replace(SUMMING, **change), MEMBERS, CONFIG)
    assert plan.hash != other.hash


def test_the_plan_is_of_one_run_directory_and_share_of_corrupt_members():
    plan = plan_of("run", SUMMING, MEMBERS, CONFIG)
    odd = (dataclasses.replace(MEMBERS[0], signature="00"), *MEMBERS[1:])
    assert root(odd) != root(MEMBERS)
    more = parse({"secagg.colluding": 0.3, "users": 10})
    others = [
        plan_of("other", SUMMING, MEMBERS, CONFIG),
        plan_of("run", SUMMING, odd, CONFIG),
        plan_of("run", SUMMING, MEMBERS, more),
    ]
    assert len({plan.hash, *(other.hash for other in others)}) == 4
    assert with_plan("run", SUMMING, MEMBERS, CONFIG)[0].plan == plan.hash.hex()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"cohort": "zz"}, "not a bitmap"),
        ({"cohort": "ffff"}, "names one that there is not"),
        ({"cohort": "8000"}, "a sum hides one among 3"),
        ({"content": "zz"}, "a hash is none"),
        ({"content": ""}, "a hash is none"),
        ({"clip": 0.0}, "bounds nothing"),
        ({"z": -1.0}, "noise of multiplier"),
        ({"z": 1e30}, "do not fit into 32 bits"),
        ({"most": 0}, "0 rows is none|0 members is none|over 0 members"),
        ({"required": 2}, "2 of 10 are required"),
        ({"required": 11}, "11 of 10 are required"),
        ({"length": 0}, "no coordinate"),
        ({"length": -4}, "no coordinate"),
    ],
)
def test_a_sum_that_there_cannot_be_is_refused(change, sentence):
    with pytest.raises(IdiolectError, match=sentence):
        plan_of("run", dataclasses.replace(SUMMING, **change), MEMBERS, CONFIG)


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        (MEMBERS[::-1], "in the order of their numbers"),
        ((dataclasses.replace(MEMBERS[0], number="-1"), *MEMBERS[1:]), "in the order"),
        ((dataclasses.replace(MEMBERS[0], number=""), *MEMBERS[1:]), "in the order"),
        (
            (*MEMBERS[:9], dataclasses.replace(MEMBERS[9], number=str(2**64))),
            "in the order",
        ),
        (
            (dataclasses.replace(MEMBERS[0], signing=MEMBERS[1].signing), *MEMBERS[1:]),
            "the same signing key",
        ),
    ],
)
def test_a_directory_that_there_cannot_be_is_refused(entries, sentence):
    with pytest.raises(IdiolectError, match=sentence):
        plan_of("run", SUMMING, entries, CONFIG)
