"""One algorithm, two cohorts: in this process, and behind messages."""

import pytest

from idiolect.common.config import parse_run
from idiolect.common.data.load import load_dataset
from idiolect.common.engine.reference import load_reference
from idiolect.server.run import checkpoint
from idiolect.server.run.adapt import adapt
from idiolect.server.run.local import fitted, local_run
from idiolect.server.run.personalise import evaluate, personalise
from idiolect.server.run.pool import pool
from tests.server.federation import FakeGrid, run

PRIVATE = {"privacy.mode": "central", "privacy.seeded": True, "privacy.delta": 1e-3}


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluate.generate": True, "evaluate.users": 1, "engine.stack": 2},
        PRIVATE
        | {"privacy.sampling": 0.6, "privacy.vote-sampling": 0.6, "seed": 4}
        | {"adapt.clip-quantile": 0.5, "privacy.epsilon": 40.0, "quorum": 0.0},
        PRIVATE
        | {"privacy.metrics": "noisy", "privacy.epsilon": 50.0, "adapt.rank": 1}
        | {"development-users": 0, "personalise.learning-rates": "1e-3"},
        {"unlabeled.kind": "anonymised", "unlabeled.buckets": 3}
        | {"unlabeled.support": 4, "adapt.wire": "float32"},
        {"unlabeled.kind": "others", "adapt.users": "development", "methods": "kto"},
        {"unlabeled.bank-from": "shared", "unlabeled.features": "backbone"},
        {"unlabeled.kind": "self", "methods": "cope,c-bpo"},
    ],
    ids=["plain", "coins", "noisy", "anonymised", "others", "bank", "self"],
)
def test_both_cohorts_give_the_same_numbers(settings, changes):
    given = settings | {"deadline": 600.0} | changes
    config, _ = parse_run(given)
    remote = checkpoint.load(run(given, FakeGrid(1)), {})
    reference = load_reference(config)
    dataset = fitted(reference.backbone, load_dataset(config))
    here = local_run(config, reference, dataset)
    for phase in (adapt, pool, personalise, evaluate):
        phase(here)
    local = here.state
    assert local.shared.keys() == remote.shared.keys()
    for name, array in local.shared.items():
        assert array.tobytes() == remote.shared[name].tobytes() and array.any()
    for entry, other in zip(local.unlabeled or (), remote.unlabeled or (), strict=True):
        assert (entry.item.target, entry.weight) == (other.item.target, other.weight)
    assert local.trials == remote.trials
    assert local.learning_rates == remote.learning_rates
    assert local.metrics == remote.metrics
    assert local.noisy_metrics == remote.noisy_metrics
    assert (local.clip, local.floor) == (remote.clip, remote.floor)
    assert local.took_part == remote.took_part
    if config.privacy.metrics != "noisy":  # else a device says nothing of it
        assert local.outcomes == remote.outcomes
