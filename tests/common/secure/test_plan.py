"""The plan: its hash changes with every field, and one that cannot be is refused."""

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idiolect.common.errors import IdiolectError
from idiolect.common.secure.plan import Plan, Segment, refuse_other

from .world import a_plan

CHANGES = {
    "run": "other",
    "release": "2",
    "stage": "votes",
    "directory": bytes([1]) * 32,
    "cohort": (1, *range(101, 110)),
    "content": bytes([1]) * 32,
    "segments": (Segment(3, -21, 0),),
    "word": 64,
    "required": 7,
    "corrupt": 2,
}


def test_the_hash_changes_with_every_field() -> None:
    assert set(CHANGES) == {field.name for field in fields(Plan)}
    plans = [a_plan(10), *(a_plan(10, **{name: CHANGES[name]}) for name in CHANGES)]
    for segment in (Segment(4, -20, 0), Segment(3, -20, 1)):
        plans.append(a_plan(10, segments=(segment,)))
    assert len({plan.hash for plan in plans}) == len(plans)
    assert a_plan(10).hash == a_plan(10).hash


@given(st.lists(st.text(max_size=3), min_size=3, max_size=3))
def test_the_border_between_two_fields_counts(names: list[str]) -> None:
    run, release, stage = names
    one = a_plan(5, run=run, release=release, stage=stage)
    other = a_plan(5, run=run + release, release="", stage=stage)
    assert (one.hash == other.hash) == (release == "")


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_a_device_refuses_another_plan_by_the_name_of_what_differs(name: str) -> None:
    refuse_other(a_plan(10), a_plan(10))
    with pytest.raises(IdiolectError, match=f"differs from this device's in '{name}'"):
        refuse_other(a_plan(10, **{name: CHANGES[name]}), a_plan(10))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"cohort": (3, 2, 1)}, "not in ascending order"),
        ({"cohort": (1, 2, 2, 3)}, "not in ascending order"),
        ({"cohort": (-1, 2, 3)}, "not in ascending order"),
        ({"cohort": (1, 2, 2**64)}, "not in ascending order"),
        ({"cohort": ()}, "it has 0 members"),
        ({"cohort": (1, 2), "required": 2}, "it has 2 members"),
        ({"directory": b"short"}, "a hash is none"),
        ({"content": b""}, "a hash is none"),
        ({"word": 16}, "words of 16 bits"),
        ({"segments": ()}, "no coordinate"),
        ({"segments": (Segment(0, 0, 0),)}, "no coordinate"),
        ({"segments": (Segment(1, 0, -1),)}, "a variance is negative"),
        ({"required": 2}, "2 of 10 are required"),
        ({"required": 11}, "11 of 10 are required"),
        ({"corrupt": -1}, "-1 of 10 are corrupt"),
        ({"corrupt": 10}, "10 of 10 are corrupt"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(changes: dict, why: str) -> None:
    with pytest.raises(IdiolectError, match=why) as refusal:
        a_plan(10, **changes)
    assert str(refusal.value).endswith("ask its operator.")
