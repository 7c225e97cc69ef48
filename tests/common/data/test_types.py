"""Users who are made when they are asked for: the same as those in memory."""

import pytest

from idiolect.common.config import parse
from idiolect.common.data import personas
from idiolect.common.data.types import MadeUsers, User, names_of

KEYS = {"users": 5, "development-users": 3, "history": 2, "held-out": 1}


def made(number: int) -> User:
    COUNTS.append(number)
    return User(f"u{number}", (), ())


COUNTS: list[int] = []


def test_they_behave_like_a_tuple_and_are_made_late():
    COUNTS.clear()
    users = MadeUsers([f"u{i}" for i in range(6)], made)
    odd, first = users[1::2], users[:2]
    both = odd + first
    assert names_of(both) == ("u1", "u3", "u5", "u0", "u1") and len(both) == 5
    assert len(users) == 6 and not COUNTS
    assert [user.id for user in both] == [*names_of(both)]
    assert COUNTS == [1, 3, 5, 0, 1]
    assert both[-1].id == "u1" and odd[-1].id == "u5" and COUNTS[5:] == [1, 5]
    with pytest.raises(IndexError):
        odd[3]
    assert names_of(users[9:]) == ()
    assert names_of((User("a", (), ()),)) == ("a",)


@pytest.mark.parametrize("task", ["headline", "rating"])
def test_many_personas_are_made_as_few_are(monkeypatch, task):
    config = parse({**KEYS, "task": task})
    held = personas.make(config)
    monkeypatch.setattr(personas, "MOST_HELD", 7)
    late = personas.make(config)
    assert isinstance(held.everybody, tuple) and isinstance(late.everybody, MadeUsers)
    assert tuple(late.users) == held.users
    assert tuple(late.development) == held.development
    assert tuple(late.everybody) == held.everybody and late.numbers == held.numbers
    assert late.public == held.public
