"""What cells share, and which keys each part depends on."""

import pytest

from idiolect.common.config import METHODS, UNTRAINED, parse_run
from idiolect.common.config.keys import AFFECTS, POOL, SHARED, SOME
from idiolect.server.study.cache import Cache, cell_key, stage_key
from idiolect.server.study.cells import run_cell

pytestmark = pytest.mark.slow  # `make quick` leaves these files out


def parse(values):
    """The configuration of a cell; the settings of a run name its folder too."""
    return parse_run(values)[0]


def test_keys_without_effect_do_not_make_another_stage():
    plain = parse({})
    other = parse({"methods": "base", "unlabeled.alpha": "0.2"})
    assert stage_key(plain, SHARED) == stage_key(other, SHARED)
    assert cell_key(plain) != cell_key(other)
    for changed in ({"seed": 1}, {"adapt.rounds": 1}, {"lora.rank": 2}, {"users": 9}):
        assert stage_key(parse(changed), SHARED) != stage_key(plain, SHARED)
    assert stage_key(parse({"unlabeled.bank": 9}), POOL) != stage_key(plain, POOL)


def matters(method, key, value):
    return stage_key(parse({key: value}), method) != stage_key(parse({}), method)


def test_each_method_depends_on_its_own_keys():
    """A key that a method uses and its row leaves out would share too much."""

    def users_of(key, value):
        return {method for method in METHODS if matters(method, key, value)}

    asked = {"rag", "pag"}
    own = set(METHODS) - set(UNTRAINED)
    trained = own - {"steer"}
    assert users_of("evaluate.retrieved", 2) == asked
    assert users_of("evaluate.contrast", 0.1) == own
    assert users_of("personalise.epochs", 1) == trained
    assert users_of("personalise.beta", 0.1) == trained - {"sft"}
    assert users_of("unlabeled.kind", "public") == own - {"sft", "cope"}
    assert users_of("steer.layer", 2) == users_of("steer.strength", 2.0) == {"steer"}
    assert users_of("history", 4) == set(METHODS)


# Every key that some method does not use, at another value than usual.
OTHERWISE = {
    "unlabeled.kind": "others",
    "unlabeled.ratio": 2.0,
    "unlabeled.alpha": "0.2",
    "unlabeled.alpha-features": "backbone",
    "unlabeled.alpha-items": 0,
    "personalise.epochs": 2,
    "personalise.batch": 3,
    "personalise.learning-rates": "1e-2",
    "personalise.beta": 0.3,
    "personalise.ema": 0.5,
    "personalise.boundary": "pooled",
    "personalise.reward": "token",
    "personalise.unlabeled-weight": 0.7,
    "personalise.unlabeled-tokens": "differing",
    "personalise.disliked-weight": 0.3,
    "personalise.anchor": 0.3,
    "personalise.strength": "0.5",
    "personalise.items": 3,
    "disliked": 2,
    "evaluate.retrieved": 1,
    "evaluate.contrast": 2.0,
    "evaluate.contrasted": "sft,cope,kto,bco,positives,c-bpo",
    "steer.layer": 1,
    "steer.strength": 3.0,
}


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_does_not_use_changes_nothing(settings, method):
    def measured(changes):
        keys = {**settings, "methods": method, "evaluate.generate": True, **changes}
        return run_cell(parse(keys), Cache())["users"]

    unused = {
        key: value
        for key, value in OTHERWISE.items()
        if not matters(method, key, value)
    }
    assert unused
    assert measured(unused) == measured({})


def test_every_key_that_is_unused_somewhere_is_tried():
    some = {name for name, affects in AFFECTS.items() if SOME in affects}
    set_of = {name for name in some if name.startswith("unlabeled.")}
    assert some - set_of <= OTHERWISE.keys()


def test_what_sums_of_integers_cost_is_not_taken_from_cells_of_another_quorum():
    plain, summed = {}, {"secagg.mode": "sum"}
    for given, differs in ((plain, False), (summed, True)):
        one, other = (parse(given | {"quorum": share}) for share in (0.5, 0.6))
        assert (stage_key(one, SHARED) != stage_key(other, SHARED)) == differs
    known, more = (parse(summed | {"secagg.colluding": c}) for c in (0.1, 0.2))
    assert stage_key(known, SHARED) != stage_key(more, SHARED)
