"""alpha of one user, and the second opinion."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import rankdata

from idiolect.common.config import ALPHA_ESTIMATES, parse
from idiolect.common.data import personas
from idiolect.common.data.functionals import functionals
from idiolect.common.data.types import Truth
from idiolect.common.engine.adapters import (
    Lora,
    new_lora,
)
from idiolect.common.methods.personalise import (
    Personal,
    personalise,
)
from idiolect.common.seeds import numpy_generator
from idiolect.common.unlabeled import alpha, heldout, overlap, shares
from idiolect.common.unlabeled.draws import draw_for
from idiolect.common.unlabeled.overlap import Overlap
from idiolect.common.unlabeled.sets import Unlabeled, UnlabeledSet
from tests.common.conftest import CONFIG, config


def train(reference, users, others, method, settings=CONFIG):
    return personalise(reference, users, others, method, 3e-3, settings)


def lora_of(result: Personal) -> Lora:
    assert result.lora is not None, result.error
    return result.lora


def test_alpha_is_estimated_for_a_population_and_fixed_by_config(
    reference, users, others
):
    estimated = train(reference, users, others, "c-bpo")
    assert all(p.estimated and 0 <= (p.alpha or -1) <= 0.9 for p in estimated)
    fixed = train(reference, users, others, "c-bpo", config(unlabeled__alpha="0.25"))
    assert [(p.alpha, p.estimated) for p in fixed] == [(0.25, False)] * 3


def test_the_true_overlap_takes_the_place_of_the_estimate(reference, users, others):
    truth = [Truth(share, {}, {}, 1.0) for share in (0.2, 0.5, 0.95)]
    known = [replace(u, truth=t) for u, t in zip(users, truth, strict=True)]
    settings = config(unlabeled__alpha="true", task="headline")
    found = [
        (p.alpha, p.estimated)
        for p in train(reference, known, others, "c-bpo", settings)
    ]
    assert found == [(0.2, False), (0.5, False), (0.9, False)]


def test_exact_functionals_take_the_place_of_the_estimate(reference, users, others):
    exact = functionals((0.9, 0.1), (0.5, 0.5))
    known = [replace(users[0], truth=Truth(0.6, {}, {}, 1.0, exact))]
    for rule, wanted in (
        ("true", exact.overlap),
        ("true-bound", exact.share_bound),
        ("true-mean", exact.classifier_mean),
    ):
        settings = config(unlabeled__alpha=rule, task="headline")
        assert alphas(reference, known, others, settings) == [wanted]
    bare = [replace(users[0], truth=Truth(0.6, {}, {}, 1.0))]
    with pytest.raises(ValueError, match="'true-mean' needs a truth with functionals"):
        alphas(reference, bare, others, settings)


def test_every_estimate_is_what_its_rule_says(reference, users, others):
    """From held-out probabilities; and one process keeps them apart."""
    g = numpy_generator
    own, aux, ones = (
        g(0, "a").normal(size=(9, 5)),
        g(0, "b").normal(size=(30, 5)),
        np.ones(30),
    )
    scores = heldout.probabilities(own, aux, ones, g(0, "folds"))
    assert scores is not None
    for rule, wanted in (
        ("estimate", overlap.estimate(own, aux, ones, g(0, "folds")).alpha),
        ("calibrated", scores.unlabeled.mean()),
        ("quantile", shares.from_quantile(scores.own)),
        ("best-bin", shares.best_bin(scores.own, scores.unlabeled, ones)),
    ):
        found = alpha.estimated(rule, own, aux, ones, g(0, "folds"))
        assert found.estimated
        assert found.alpha == pytest.approx(min(wanted, overlap.HIGHEST))
        few = alpha.estimated(rule, own[:3], aux, ones, g(0, "folds"))
        assert few == Overlap(overlap.DEFAULT, False)
    kept = [
        alphas(reference, users, others, config(unlabeled__alpha=rule))
        for rule in ALPHA_ESTIMATES
    ]
    assert len({tuple(each) for each in kept}) == len(ALPHA_ESTIMATES)
    assert all(0 <= value <= overlap.HIGHEST for each in kept for value in each)


def alphas(reference, users, others, settings) -> list[float]:
    found = []
    for user in users:
        drawn = draw_for(reference, user, others, settings)
        found.append(alpha.alpha_of(reference, user, drawn, settings).alpha)
    return found


def test_alpha_is_kept_for_its_user_its_set_and_its_seed(reference, users, others):
    twins = [replace(user, id=f"twin of {user.id}") for user in users]
    less = [replace(user, history=user.history[:-1]) for user in users]
    heavy = [replace(entry, weight=1.0 + i % 3) for i, entry in enumerate(others.items)]
    heavy, fewer = UnlabeledSet(tuple(heavy)), UnlabeledSet(others.items[2:])
    cases = [
        (users, others, config(unlabeled__alpha_items=4)),
        (twins, others, config(unlabeled__alpha_items=4)),
        (users, fewer, config(unlabeled__alpha_items=4)),
        (users, others, config(unlabeled__alpha_items=5)),
        (users, others, config(unlabeled__alpha_items=4, seed=7)),
        (less, others, config(unlabeled__alpha_items=4)),
        (users, heavy, config()),
        (users, others, config()),
    ]
    kept = [alphas(reference, *case) for case in cases]
    assert len({tuple(each) for each in kept}) == len(cases)
    for case, known in zip(cases, kept, strict=True):
        reference.forget()
        assert alphas(reference, *case) == known


def test_alpha_from_embeddings_is_kept_for_its_reference(
    reference, wide, users, others
):
    settings = config(unlabeled__alpha_features="backbone")
    other = new_lora(wide, settings.shared_shape, 1, "other")
    for tensor in other.b.values():
        tensor.normal_()
    policies = reference, reference.with_shared(other)
    kept = [alphas(policy, users, others, settings) for policy in policies]
    assert kept[0] != kept[1]
    reference.forget()
    assert alphas(policies[1], users, others, settings) == kept[1]


@pytest.mark.slow
def test_alpha_from_ngrams_ranks_users_by_their_true_overlap(reference):
    """48 personas with 32 headlines each; nothing of this runs the model."""
    settings = parse(
        {
            "unlabeled.kind": "others",
            "unlabeled.alpha-features": "ngrams",
            "unlabeled.alpha-items": 128,
        }
    )
    people = personas.make(settings).users
    entries = [Unlabeled(item, 1.0, u.id) for u in people for item in u.history]
    others = UnlabeledSet(tuple(entries))
    found = alphas(reference, people, others, settings)
    truth = [user.truth.overlap for user in people if user.truth]
    assert np.corrcoef(rankdata(truth), rankdata(found))[0, 1] > 0.8


def test_a_small_set_that_is_drawn_twice_is_looked_at_once(reference, users, others):
    """A copy in another fold would be known to the classifier that is judged on it."""
    one = others.items[0]
    twice = [one, replace(one, owner="another"), others.items[1]]
    found = alpha.distinct(twice)
    assert [(e.item, e.weight) for e in found] == [
        (one.item, one.weight + one.weight),
        (others.items[1].item, others.items[1].weight),
    ]


def test_alpha_looks_at_as_many_items_as_it_is_told(
    reference, users, others, monkeypatch
):
    seen: list[tuple[int, float]] = []

    def estimate(target, unlabeled, weights, generator):
        seen.append((len(unlabeled), weights.sum()))
        return Overlap(0.1, True)

    monkeypatch.setattr(alpha.overlap, "estimate", estimate)
    for count in (0, 4, 400):
        for features in ("backbone", "ngrams"):
            settings = config(
                unlabeled__alpha_items=count, unlabeled__alpha_features=features
            )
            alphas(reference, users[:1], others, settings)
    drawn, four, everything = (6, 6.0), (4, 4.0), (12, 12.0)
    assert seen[:2] == [drawn] * 2 and seen[4:] == [everything] * 2
    assert all(n <= four[0] and total == four[1] for n, total in seen[2:4])
