"""How much noise a device believes a masked sum to have."""

import pytest

from idiolect.common.config import parse
from idiolect.common.errors import IdiolectError
from idiolect.common.privacy.protected import gaussian_epsilon, sampled_delta
from idiolect.common.secure.expected import refuse_noise
from idiolect.server.privacy.accountant import Event, epsilons

KEYS = {
    "task": "text",
    "users": 200,
    "methods": "shared,c-bpo",
    "secagg.mode": "on",
    "adapt.rounds": 1,
    "adapt.wire": "float32",
    "privacy.mode": "central",
    "privacy.metrics": "noisy",
    "privacy.epsilon": 8.0,
    "privacy.delta": 1e-4,
}


def drawn(rate: float, epsilon: float = 8.0) -> dict:
    return KEYS | {
        "privacy.sampling": rate,
        "privacy.cohort": 200,
        "privacy.epsilon": epsilon,
    }


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.99])
@pytest.mark.parametrize("z", [0.3, 1.0, 4.0])
def test_the_delta_of_a_draw_is_that_of_the_accountant(rate, z):
    found = epsilons({Event("adapt", z, rate): 1}, 1e-4)
    assert sampled_delta(z, rate, found.release) == pytest.approx(1e-4, rel=0.02)
    assert sampled_delta(z, 1.0, gaussian_epsilon(z**-2, 1e-4)) == pytest.approx(1e-4)


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.99])
@pytest.mark.parametrize("epsilon", [0.5, 8.0, 500.0])
def test_noise_that_costs_more_than_epsilon_is_refused_though_users_are_drawn(
    rate, epsilon
):
    """A server that declares an epsilon, leaves the noise open, and names next to none."""
    config = parse(drawn(rate, epsilon))
    least = min(
        z / 1000
        for z in range(1, 20_000)
        if sampled_delta(z / 1000, rate, epsilon) <= config.privacy.delta
    )
    refuse_noise(config, "adapt", least * 1.01, None)
    for z in (1e-9, least * 0.9, 0.0):
        with pytest.raises(IdiolectError, match="not what the run declares"):
            refuse_noise(config, "adapt", z, None)


def test_an_enormous_epsilon_asks_for_next_to_nothing():
    refuse_noise(parse(drawn(0.5, 1e6)), "adapt", 0.01, None)
