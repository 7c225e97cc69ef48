"""One algorithm, two cohorts: in this process, and behind messages."""

from typing import Any

import numpy as np
import pytest

from idiolect.common.config import parse_run
from idiolect.common.data.load import load_dataset
from idiolect.common.engine.reference import load_reference
from idiolect.common.protocol.messages import Outcome
from idiolect.server.run import checkpoint
from idiolect.server.run.adapt import adapt
from idiolect.server.run.local import fitted, local_run
from idiolect.server.run.personalise import evaluate, personalise
from idiolect.server.run.pool import pool
from tests.server.federation import FakeGrid, run

pytestmark = pytest.mark.slow

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
        PRIVATE
        | {"privacy.metrics": "noisy", "privacy.epsilon": 50.0, "adapt.rank": 1}
        | {"development-users": 0, "personalise.learning-rates": "1e-3"}
        | {"secagg.mode": "sum", "adapt.clip-quantile": 0.5, "users-per-node": 1},
        {"unlabeled.kind": "anonymised", "unlabeled.buckets": 3}
        | {"unlabeled.support": 4, "adapt.wire": "float32"},
        {"unlabeled.kind": "others", "adapt.users": "development", "methods": "kto"},
        {"unlabeled.bank-from": "shared", "unlabeled.features": "backbone"},
        {"unlabeled.kind": "self", "methods": "cope,c-bpo"},
    ],
    ids=["plain", "coins", "noisy", "summed", "anonymised", "others", "bank", "self"],
)
def test_both_cohorts_give_the_same_numbers(settings, changes):
    given = settings | {"deadline": 600.0} | changes
    config, _ = parse_run(given)
    nodes = 3 if config.users_per_node else 1
    remote = checkpoint.load(run(given, FakeGrid(nodes)), {})
    reference = load_reference(config)
    dataset = fitted(reference.backbone, load_dataset(config))
    here = local_run(config, reference, dataset)
    for phase in (adapt, pool, personalise, evaluate):
        phase(here)
    ours, theirs = here.state, remote
    names = ["shared", "trials", "learning_rates", "metrics", "noisy_metrics"]
    names += ["clip", "floor", "took_part"]
    if config.privacy.metrics != "noisy":  # else a device says nothing of it
        names.append("outcomes")
    for name in names:
        alike(getattr(ours, name), getattr(theirs, name))
    for entry, other in zip(ours.unlabeled or (), theirs.unlabeled or (), strict=True):
        assert entry.item.target == other.item.target
        alike(entry.weight, other.weight)
    assert all(array.any() for array in ours.shared.values())


@pytest.mark.parametrize("wire", ["int8", "float32"])
def test_without_noise_sums_of_integers_change_no_bit(settings, wire):
    """Of the shared adapter and of the votes, from the same rows."""
    found = []
    for mode in ("off", "sum"):
        given = settings | {"secagg.mode": mode, "adapt.wire": wire}
        config, _ = parse_run(given)
        reference = load_reference(config)
        dataset = fitted(reference.backbone, load_dataset(config))
        here = local_run(config, reference, dataset)
        for phase in (adapt, pool):
            phase(here)
        found.append(here.state)
    plain, whole = found
    for name, array in plain.shared.items():
        assert array.any() and array.tobytes() == whole.shared[name].tobytes()
    assert plain.unlabeled == whole.unlabeled


def alike(one: Any, other: Any) -> None:
    """Equal but for rounding: a CPU trains one user in other last bits now and then."""
    if isinstance(one, Outcome):
        one, other = vars(one), vars(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            alike(one[name], other[name])
    else:
        np.testing.assert_allclose(
            np.array(one, float), np.array(other, float), 1e-4, 5e-5
        )
