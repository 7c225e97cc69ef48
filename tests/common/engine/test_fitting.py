"""Items that no context holds: left out and counted, whoever meets them."""

from dataclasses import replace

import pytest

from idiolect.common.config import parse
from idiolect.common.data.load import load_dataset
from idiolect.common.data.types import TOO_LONG, Item, Prompt
from idiolect.common.engine.backbone import load_backbone
from idiolect.common.engine.fitting import fitting, too_long
from idiolect.common.engine.reference import Reference
from idiolect.common.errors import IdiolectError
from idiolect.common.unlabeled.draws import not_own
from idiolect.common.unlabeled.sets import Unlabeled, UnlabeledSet
from idiolect.server.run import local

CONTEXT = 128
LONG = Item("long", Prompt("", "so"), "word after word " * CONTEXT)
CUT = Item("cut", Prompt("", "word after word " * CONTEXT), "short")
CONFIG = parse(
    {"users": 4, "development-users": 1, "personalise.learning-rates": "1e-3"}
)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("tiny", "float32", "cpu", CONTEXT)


def test_only_what_does_not_fit_is_left_out(backbone):
    user = load_dataset(CONFIG).users[0]
    held = replace(user.held_out[0], rivals=(LONG, *user.held_out[0].rivals))
    given = replace(
        user,
        history=(LONG, *user.history, CUT),
        held_out=(held, *user.held_out[1:], LONG),
        disliked=(LONG,),
    )
    found, count = fitting(backbone, given)
    assert found == replace(user, history=(*user.history, CUT))
    assert count == 3
    assert fitting(backbone, user) == (user, 0)
    assert too_long(backbone, found) == ""
    empty = replace(user, history=())
    assert "no history item that fits" in too_long(backbone, empty)


def test_a_public_item_that_is_too_long_harms_nobody(backbone):
    user = load_dataset(CONFIG).users[0]
    history = load_dataset(CONFIG).users[1].history
    public = UnlabeledSet((Unlabeled(LONG), *map(Unlabeled, history)))
    for features in ("backbone", "ngrams"):
        config = parse({"unlabeled.features": features})
        others = not_own(Reference(backbone), user, public, config)
        assert LONG not in [entry.item for entry in others] and others


def test_a_study_goes_on_without_it(backbone):
    dataset = load_dataset(CONFIG)
    first, *rest = dataset.users
    damaged = replace(
        dataset, users=(replace(first, history=(LONG, *first.history)), *rest)
    )
    found = local.fitted(backbone, damaged)
    assert found.users == dataset.users and found.dropped == {TOO_LONG: 1}
    gone = replace(dataset, users=(replace(first, held_out=(LONG,)), *rest))
    with pytest.raises(IdiolectError, match="no held-out item that fits"):
        local.fitted(backbone, gone)
