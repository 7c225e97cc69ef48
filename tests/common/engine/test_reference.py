"""The frozen reference: what it keeps, and for what."""

from dataclasses import replace

import pytest

from idiolect.common.engine import reference as module
from idiolect.common.engine.backbone import Encoded, load_backbone
from idiolect.common.engine.reference import Reference
from tests.common.engine.test_adapters import adapter


def test_cache_computes_once_and_never_returns_a_stale_score(
    backbone, items, monkeypatch
):
    encoded = [backbone.encode(item) for item in items[:3]]
    passes = []
    real = module.score_users

    def counted(backbone, adapters, users):
        passes.append(len(users[0]))
        return real(backbone, adapters, users)

    monkeypatch.setattr(module, "score_users", counted)
    reference = Reference(backbone, adapter(backbone, "s", 3))
    first = reference.scores(encoded)
    assert reference.scores(encoded) is first
    assert Reference(backbone).with_shared(reference.shared).hash == reference.hash
    other = reference.with_shared(adapter(backbone, "s", 4)).scores(encoded)
    assert other[0] != first[0]
    (alone,) = reference.scores(encoded[:1])
    shifted = Encoded(encoded[0].ids, encoded[0].prompt_length - 1)
    assert reference.scores([shifted])[0] != alone
    count = len(encoded[0].ids) - encoded[0].prompt_length
    (half,) = reference.scores([replace(encoded[0], weights=(0.5,) * count)])
    assert half == pytest.approx(alone / 2)
    assert passes == [3, 3, 1, 1, 1]


def test_the_bits_of_a_score_do_not_depend_on_what_was_cached_before(backbone, items):
    encoded = [backbone.encode(item) for item in items]
    fresh = Reference(backbone).scores(encoded[:7])
    used = Reference(backbone)
    for k in range(7):
        used.scores(encoded[k : k + 2])
    assert used.scores(encoded[:7]) == fresh


def test_cache_tells_backbones_and_dtypes_apart(backbone, model_folder, items):
    half = load_backbone(str(model_folder("llama")), "bfloat16", "cpu", 96)
    assert half.hash == backbone.hash
    encoded = [backbone.encode(items[0])]
    reference = Reference(backbone)
    first = reference.scores(encoded)
    renamed = replace(backbone, hash="other weights")
    other = replace(reference, backbone=renamed).scores(encoded)
    rounded = replace(reference, backbone=half).scores(encoded)
    assert len(reference._store.results) == 3
    assert other == first != rounded
    assert reference.scores(encoded) is first


def test_nothing_is_kept_after_forget(backbone, items):
    reference = Reference(backbone, adapter(backbone, "s", 3))
    encoded = [backbone.encode(items[0])]
    first = reference.bare.scores(encoded)
    row = reference.ngrams("a headline")
    assert reference.ngrams("a headline") is row
    reference.forget()
    assert not reference._store.results
    assert reference.bare.scores(encoded) == first
    assert reference.bare.scores(encoded) is not first
    assert reference.ngrams("a headline") is not row
