"""What cells share, and which keys each part depends on."""

import pytest

from idiolect.common.config import FIELDS, METHODS, UNTRAINED, parse
from idiolect.server.study import cache
from idiolect.server.study.cache import Cache, key_of
from idiolect.server.study.cells import run_cell


def test_keys_without_effect_do_not_make_another_stage():
    plain = parse({})
    other = parse({"methods": "base", "unlabeled.alpha": "0.2"})
    assert key_of(plain, cache.NOT_SHARED) == key_of(other, cache.NOT_SHARED)
    assert key_of(plain, ()) != key_of(other, ())
    for changed in ({"seed": 1}, {"adapt.rounds": 1}, {"lora.rank": 2}, {"users": 9}):
        assert key_of(parse(changed), cache.NOT_SHARED) != key_of(
            plain, cache.NOT_SHARED
        )
    assert key_of(parse({"unlabeled.bank": 9}), cache.NOT_POOL) != key_of(
        plain, cache.NOT_POOL
    )


def test_each_method_depends_on_its_own_keys():
    """A key named in UNUSED that a method does use would give it another cell's numbers."""
    assert set(cache.UNUSED) == set(METHODS)
    named = {name for names in cache.UNUSED.values() for name in names}
    assert all(any(key.startswith(name) for key in FIELDS) for name in named)

    def matters(method, key, value):
        keys = (key_of(parse(s), cache.UNUSED[method]) for s in ({}, {key: value}))
        return len(set(keys)) == 2

    def users_of(key, value):
        return {method for method in METHODS if matters(method, key, value)}

    asked = {"rag", "pag"}
    trained = set(METHODS) - set(UNTRAINED)
    assert users_of("evaluate.retrieved", 2) == asked
    assert users_of("evaluate.contrast", 0.1) == trained
    assert users_of("personalise.epochs", 1) == trained
    assert users_of("personalise.beta", 0.1) == trained - {"oppu"}
    assert users_of("unlabeled.kind", "public") == trained - {"oppu", "cope"}
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
    "personalise.anchor": 0.3,
    "evaluate.retrieved": 1,
    "evaluate.contrast": 2.0,
    "evaluate.contrasted": "oppu,cope,kto,bco,positives,c-bpo",
}


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_does_not_use_changes_nothing(settings, method):
    def measured(changes):
        keys = {**settings, "methods": method, "evaluate.generate": True, **changes}
        return run_cell(parse(keys), Cache())["users"]

    unused = {
        key: value
        for key, value in OTHERWISE.items()
        if key_of(parse({}), cache.UNUSED[method])
        == key_of(parse({key: value}), cache.UNUSED[method])
    }
    assert unused
    assert measured(unused) == measured({})


def test_every_key_that_is_unused_somewhere_is_tried():
    named = {name for names in cache.UNUSED.values() for name in names}
    assert named - {"unlabeled."} <= OTHERWISE.keys()
