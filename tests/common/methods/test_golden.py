"""Every method's adapters, on the built-in backbone, are those of earlier versions.

Machines differ in the last bits: what is compared are lengths and likelihoods.
"""

import numpy as np
import pytest

from idiolect.common.config import METHODS, UNTRAINED, parse
from idiolect.common.data import personas
from idiolect.common.engine.adapters import hash_lora
from idiolect.common.engine.reference import Reference, load_reference
from idiolect.common.methods.evaluation import held_out_nll
from idiolect.common.methods.personalise import personalise
from idiolect.common.unlabeled.sets import Unlabeled, UnlabeledSet

pytestmark = pytest.mark.slow  # `make quick` leaves these files out

CONFIG = parse(
    {
        "users": 3,
        "development-users": 0,
        "history": 6,
        "held-out": 3,
        "personalise.epochs": 2,
        "personalise.batch": 4,
        "personalise.learning-rates": "3e-3",
        "unlabeled.kind": "others",
        "engine.device": "cpu",
    }
)
# Method -> L2 norm of B, and NLL per token on the held-out items, of the three users.
GOLDEN: dict[str, tuple[list[float], list[float]]] = {
    "sft": ([1.81841, 1.73446, 1.72139], [0.50937, 0.51053, 0.62157]),
    "cope": ([2.54629, 2.43221, 2.3432], [0.49416, 0.48218, 0.60809]),
    "kto": ([1.66877, 1.64719, 1.79736], [0.52512, 0.53324, 0.62453]),
    "bco": ([1.64338, 1.62884, 1.78713], [0.52689, 0.53479, 0.62444]),
    "c-bpo": ([1.77727, 1.71362, 1.71221], [0.51063, 0.51288, 0.61995]),
    "positives": ([1.79771, 1.72981, 1.70692], [0.50961, 0.51105, 0.62184]),
    "steer": ([0.0, 0.0, 0.0], [0.56217, 0.57106, 0.72445]),
}


@pytest.fixture(scope="module")
def reference() -> Reference:
    return load_reference(CONFIG)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in UNTRAINED])
def test_adapters_are_those_of_earlier_versions(reference, method):
    users = personas.make(CONFIG).users
    entries = [Unlabeled(i, 1.0, user.id) for user in users for i in user.history]
    others = UnlabeledSet(tuple(entries))
    found = personalise(reference, users, others, method, 3e-3, CONFIG)
    again = personalise(reference, users, others, method, 3e-3, CONFIG)
    for one, two in zip(found, again, strict=True):
        assert hash_lora(one.lora) == hash_lora(two.lora)
    loras = [one.lora for one in found]
    norms = [
        float(np.sqrt(sum(float(b.square().sum()) for b in lora.b.values())))
        for lora in loras
        if lora is not None
    ]
    nll = held_out_nll(reference, loras, users, method)
    wanted = GOLDEN[method]
    assert norms == pytest.approx(wanted[0], rel=1e-3)
    assert nll == pytest.approx(wanted[1], rel=1e-3)
