"""How much noise a device believes a masked sum to have."""

import pytest

from idiolect.common.config import parse
from idiolect.common.errors import IdiolectError
from idiolect.common.privacy.protected import (
    gaussian_epsilon,
    sampled_delta,
    summed_delta,
)
from idiolect.common.secure.expected import expected, refuse_noise
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


@pytest.mark.parametrize("z", [0.7, 3.0])
@pytest.mark.parametrize(
    ("rate", "count"), [(1.0, 40), (0.99, 40), (0.3, 5), (0.05, 1)]
)
def test_a_sum_of_draws_costs_no_more_than_the_accountant_says(rate, count, z):
    """The bound is from below, so it refuses no server that calibrates honestly."""
    delta = 1e-5
    if rate == 1:
        exact = gaussian_epsilon(count / z**2, delta)
        assert summed_delta(z, 1.0, exact, count) == pytest.approx(delta, rel=1e-3)
        return
    found = epsilons({Event("adapt", z, rate): count}, delta).release
    assert summed_delta(z, rate, found, count) <= delta * 1.01
    if count == 1:
        exact = sampled_delta(z, rate, 2.0)
        assert summed_delta(z, rate, 2.0, 1) == pytest.approx(
            exact, rel=1e-3, abs=1e-12
        )


@pytest.mark.parametrize("more", [{"privacy.cohort": 199}, {"privacy.sampling": 0.99}])
def test_a_draw_of_nearly_everybody_needs_the_noise_of_all_releases(more):
    """With a cohort of one less, each of 90 releases alone was within epsilon."""
    given = KEYS | {"adapt.rounds": 90, "privacy.cohort": 200, "privacy.delta": 1e-6}
    config = parse(given | more)
    least = 6.1  # 90 releases of it cost 8.1 at this delta
    assert gaussian_epsilon(90 / least**2, 1e-6) == pytest.approx(8.1, abs=0.1)
    refuse_noise(config, "adapt", least * 1.02, None)
    for z in (0.653, 0.9 * least):
        with pytest.raises(IdiolectError, match="not what the run declares"):
            refuse_noise(config, "adapt", z, None)


def test_a_sum_of_few_has_a_third_of_the_declared_noise():
    """Each adds a share of a million's: of ten the server would see z = .003."""
    many = {"users": 1_000_000, "quorum": 1e-5, "privacy.delta": 1e-7}
    with pytest.raises(IdiolectError, match="10 of 1000000 rows, .* less than a third"):
        expected(parse(KEYS | many), 1_000_000, "adapt")
    config = parse(KEYS | {"quorum": 0.5})
    assert expected(config, 200, "adapt").required == 100
