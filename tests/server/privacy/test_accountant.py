"""The accountant against known numbers, closed forms and its own bounds."""

import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import dp_accounting
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from idiolect.common.errors import IdiolectError
from idiolect.common.privacy.protected import joint
from idiolect.server.privacy.accountant import (
    Epsilons,
    Event,
    attack_power,
    calibrate,
    epsilons,
    power_bound,
)
from idiolect.server.privacy.card import card, describe
from idiolect.server.privacy.ledger import BudgetSpent, Ledger

pytestmark = pytest.mark.slow  # `make quick` leaves these files out

DELTA = 1e-6
A = Event("adapt", 1.0, 0.01)
VOTES, STATISTICS = Event("votes", 3.0, 0.1), Event("pool", 5.0, 0.1)
G = {replace(A, clip_bit_z=10.0): 50, VOTES: 2, STATISTICS: 1}
PLAIN = Event("adapt", 4.0)  # without sampling: closed form, and fast

few = settings(max_examples=10, deadline=None, derandomize=True, database=None)
noises = st.floats(0.8, 20.0)
rates = st.sampled_from([0.01, 0.03, 0.1, 0.5, 1.0])


def budgeted(path: Path | None = None, epsilon: float = 1.0, **rest) -> Ledger:
    return Ledger(path, epsilon, DELTA, **rest)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ({A: 50}, 0.816),
        (G, 0.847),
        ({replace(A, cohort=150, population=10_000): 50}, 0.820),
        ({A: 50, replace(A, stage="again"): 0}, 0.816),
        ({replace(A, q=1.0): 50}, 57.8),
        ({Event("adapt", 1.0, 0.2): 20}, 7.66),
        ({Event("adapt", 1.0, 0.1): 30}, 4.92),
        ({Event("adapt", 1.0, 0.05): 50}, 3.20),
        ({Event("adapt", 2.0, 0.05): 50}, 0.92),
    ],
)
def test_against_whoever_sees_the_releases(events, expected):
    found = epsilons(events, DELTA).release
    assert found == pytest.approx(expected, abs=0.05 if expected > 10 else 0.005)
    if expected < 0.9:
        assert found == pytest.approx(expected, abs=0.0006)


@pytest.mark.parametrize(
    ("events", "cap", "expected"),
    [
        ({A: 50}, 1, 4.89),
        ({A: 50}, 2, 7.29),
        ({A: 50}, 5, 12.6),
        ({A: 50}, 0, 57.8),
        ({A: 50}, 50, 57.8),
        (G, 1, 5.32),
    ],
)
def test_against_a_server_that_knows_the_participants(events, cap, expected):
    found = epsilons(events, DELTA, cap).participants
    assert found == pytest.approx(expected, abs=0.05 if expected > 10 else 0.006)


def test_a_cap_counts_the_most_expensive_events_of_each_stage():
    cheap, dear = Event("adapt", 9.0, 0.1), Event("adapt", 2.0, 0.1)
    votes = Event("votes", 3.0)
    found = epsilons({cheap: 5, dear: 2, votes: 4}, DELTA, 3).participants
    z = (2 / 2**2 + 1 / 9**2 + 3 / 3**2) ** -0.5
    expected = dp_accounting.get_epsilon_gaussian(z, DELTA)
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_cap_leaves_the_amplified_epsilon_alone():
    assert epsilons(G, DELTA, 1).release == epsilons(G, DELTA).release


def test_the_clip_bit_is_part_of_one_gaussian():
    assert joint(1.0, 10.0) == pytest.approx(1.01**-0.5, rel=1e-12)
    assert (joint(2.0, 0.0), joint(0.0, 3.0)) == (2.0, 0.0)
    bit = epsilons({replace(PLAIN, clip_bit_z=3.0): 4}, DELTA)
    assert bit == epsilons({Event("adapt", joint(4.0, 3.0)): 4}, DELTA)
    assert bit.release > epsilons({PLAIN: 4}, DELTA).release


def test_merged_events_are_what_one_by_one_gives():
    accountant = dp_accounting.pld.PLDAccountant(value_discretization_interval=3e-4)
    for z, q in ((1.0, 0.1), (1.0, 0.1), (3.0, 0.2), (1.0, 0.1)):
        gaussian = dp_accounting.GaussianDpEvent(z)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(q, gaussian))
    one, other = Event("adapt", 1.0, 0.1), Event("votes", 3.0, 0.2)
    same = {one: 2, replace(one, stage="metrics"): 1, other: 1}
    found = epsilons(same, DELTA).release
    # Ours has the coarser grid, which errs on the high side only.
    assert 0 <= found - accountant.get_epsilon(DELTA) < 0.003


def test_a_cohort_that_nobody_exceeds_changes_nothing():
    event = Event("adapt", 1.0, 0.05, cohort=80, population=80)
    assert epsilons({event: 3}, DELTA) == epsilons({replace(event, cohort=0): 3}, DELTA)
    everybody = replace(PLAIN, cohort=80, population=80)
    assert epsilons({everybody: 3}, DELTA) == epsilons({PLAIN: 3}, DELTA)


def test_turning_users_away_costs_more_than_the_coins_alone():
    free = epsilons({Event("adapt", 1.0, 0.05): 20}, DELTA).release
    tight = Event("adapt", 1.0, 0.05, cohort=50, population=1000)
    assert epsilons({tight: 20}, DELTA).release > 1.2 * free
    # A sensitivity of two is the worst that replacing somebody can do.
    assert epsilons({tight: 20}, DELTA).release < (
        epsilons({Event("adapt", 0.5, 0.05): 20}, DELTA).release
    )


@pytest.mark.parametrize(
    ("z", "bit"), [(0.0, 0.0), (0.0, 10.0), (1e-300, 0.0), (1.0, 1e-4)]
)
def test_without_noise_there_is_no_guarantee(z, bit):
    found = epsilons({A: 1, Event("votes", z, 0.5, bit): 1}, DELTA, 1)
    assert found == Epsilons(math.inf, math.inf)


def test_nothing_costs_nothing():
    assert epsilons({}, DELTA) == epsilons({A: 0}, DELTA) == Epsilons(0.0, 0.0)


@pytest.mark.parametrize("z", [0.0011, 0.09, 1e5, 1e300])
def test_extreme_noise_neither_hangs_nor_claims_too_much(z):
    found = epsilons({Event("adapt", z, 0.01): 3}, DELTA)
    assert found.release <= found.participants + 2e-3
    assert found.release > 10 if z < 1 else found.release < 0.01


@few
@given(z=noises, q=rates, count=st.integers(1, 8))
def test_more_releases_less_noise_and_more_users_cost_more(z, q, count):
    event = Event("adapt", z, q)
    here = epsilons({event: count, VOTES: 1}, DELTA)
    for dearer in (
        {event: count + 1, VOTES: 1},
        {replace(event, z=0.8 * z): count, VOTES: 1},
        {replace(event, q=min(1.0, 1.5 * q)): count, VOTES: 1},
        {event: count, VOTES: 1, replace(event, stage="metrics"): 1},
    ):
        there = epsilons(dearer, DELTA)
        # Of rounding size: the closed form and the grid meet where the rate becomes 1.
        assert there.release >= here.release - 2e-3 * (q < 1)
        assert there.participants >= here.participants
    assert here.release <= here.participants + 3e-3


@few
@given(z=noises, caps=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_a_tighter_cap_never_costs_more(z, caps):
    events = {Event("adapt", z): 6, Event("adapt", 2 * z): 6, Event("votes", 3.0): 3}
    tight, loose = (epsilons(events, DELTA, c).participants for c in sorted(caps))
    assert tight <= loose <= epsilons(events, DELTA).participants


@pytest.mark.parametrize(
    "wrong",
    [
        {"z": -1.0},
        {"z": math.nan},
        {"z": math.inf},
        {"q": 0.0},
        {"q": 1.1},
        {"clip_bit_z": -0.1},
        {"cohort": 5},
        {"cohort": -1, "population": 5},
    ],
)
def test_an_event_that_nobody_could_charge(wrong):
    with pytest.raises(ValueError, match="Event"):
        replace(A, **wrong)


def test_without_the_accountant_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(IdiolectError, match=r"pip install 'idiolect\[server\]'"):
        budgeted().check(Event("adapt", 4.321))
    # An infinite budget never asks, so that trying things out needs no accountant.
    budgeted(None, math.inf).charge(Event("adapt", 4.321))
    assert epsilons({}, DELTA).release == 0
    assert card(budgeted(), "run", "0", "0")["mode"] == "off"


@pytest.mark.process
def test_devices_do_not_load_the_accountant():
    code = "import sys, idiolect.server.privacy.ledger as l; "
    code += "l.Ledger(None, 1.0, 1e-6); print('dp_accounting' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout == "False\n"


# --- calibration ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("q", "count", "expected"),
    [
        (0.01, 50, ("0.945", "0.774", "0.614", "0.473")),
        (1.0, 1, ("4.23", "2.23", "1.19", "0.65")),
        (1.0, 50, ("29.9", "15.8", "8.4", "4.6")),
    ],
)
def test_calibrated_noise(q, count, expected):
    for epsilon, value in zip((1, 2, 4, 8), expected, strict=True):

        def programme(z):
            return {Event("adapt", z, q): count}

        z = calibrate(programme, epsilon, DELTA)
        last_digit = 10.0 ** -len(value.partition(".")[2])
        assert z == pytest.approx(float(value), abs=0.6 * last_digit)
        assert epsilons(programme(z), DELTA).release <= epsilon
        assert epsilons(programme(z * 0.999), DELTA).release > epsilon


@pytest.mark.parametrize("epsilon", [0.3, 4.0])
def test_no_planned_charge_is_refused(epsilon):
    def programme(z):
        return {
            Event("adapt", z, 0.05, 10.0, cohort=90, population=1000): 8,
            Event("votes", 1.5 * z, 0.2): 2,
            Event("metrics", 2 * z): 2,
        }

    start = time.process_time()
    z = calibrate(programme, epsilon, DELTA)
    ledger = budgeted(epsilon=epsilon)
    for event, count in programme(z).items():
        for _ in range(count):
            ledger.charge(event)
    assert time.process_time() - start < 20
    assert 0.99 * epsilon < ledger.spent().release <= epsilon
    with pytest.raises(BudgetSpent):
        ledger.charge(Event("adapt", z, 0.05, 10.0, cohort=90, population=1000))


def test_noise_that_does_not_grow_can_be_too_little():
    with pytest.raises(IdiolectError, match="no noise"):
        calibrate(lambda z: {Event("adapt", z, 1.0, 0.5): 5}, 1.0, DELTA)


def test_an_infinite_budget_takes_no_noise():
    assert calibrate(lambda z: {Event("adapt", z): 5}, math.inf, DELTA) == 0


# --- power of an attacker ------------------------------------------------------------


def test_the_bound_on_an_attacker_has_three_parts():
    assert power_bound(0.0, 0.0, 0.01) == pytest.approx(0.01)
    assert power_bound(1.0, 1e-3, 0.01) == pytest.approx(math.e * 0.01 + 1e-3)
    assert power_bound(6.0, 1e-3, 0.01) == pytest.approx(1 - math.exp(-6) * 0.989)
    assert power_bound(5000.0, 1e-6) == power_bound(math.inf, 1e-6) == 1


@pytest.mark.parametrize("z", [0.3, 1.0, 4.0])
def test_no_attacker_on_a_gaussian_beats_the_bound(z):
    best = norm.cdf(norm.ppf(0.01) + 1 / z)  # Neyman-Pearson
    epsilon = epsilons({Event("adapt", z): 1}, DELTA).release
    assert best <= power_bound(epsilon, DELTA)
    assert attack_power({Event("adapt", z): 1})[0] == pytest.approx(best)


def test_the_best_attack_on_the_events_and_not_on_their_epsilon():
    """Two Gaussians of .9236 spend epsilon 8, with which 100 % would be possible."""
    two = {Event("adapt", 0.9236): 1, Event("votes", 0.9236): 1}
    assert power_bound(epsilons(two, DELTA).release, DELTA) > 0.999
    assert attack_power(two) == (pytest.approx(0.2133, abs=1e-4),) * 2
    ledger = budgeted(None, 9.0)
    for event in two:
        ledger.charge(event)
    found = card(ledger, "r", "0", "0")
    assert found["attacker"]["release_observer"] == pytest.approx(0.2133, abs=1e-4)
    text = "\n".join(describe(found))
    assert text.count("recognises at most 21.4 % of those") == 2
    del found["attacker"]  # as an earlier version wrote it
    assert "recognises at most 100 % of those" in "\n".join(describe(found))


@pytest.mark.parametrize(("z", "q"), [(1.0, 0.1), (1.0, 0.5), (0.5, 0.1), (3.0, 0.01)])
def test_a_hidden_draw_weakens_the_best_attack(z, q):
    """Of a mixture of N(0, 1) and N(1/z, 1) the best test is a threshold."""
    best = (1 - q) * 0.01 + q * norm.cdf(norm.ppf(0.01) + 1 / z)
    found, known = attack_power({Event("adapt", z, q): 1})
    assert best <= found <= best + 1e-4
    assert known == pytest.approx(norm.cdf(norm.ppf(0.01) + 1 / z))


def test_a_cap_weakens_who_knows_who_took_part():
    ten = {Event("adapt", 2.0, 0.1): 10}
    assert attack_power(ten, 1)[1] == pytest.approx(norm.cdf(norm.ppf(0.01) + 1 / 2))
    assert attack_power(ten)[1] == pytest.approx(norm.cdf(norm.ppf(0.01) + 10**0.5 / 2))


def test_the_best_attack_where_there_is_no_noise_or_no_release():
    assert attack_power({Event("adapt", 0.0): 1}) == (1.0, 1.0)
    assert attack_power({Event("adapt", 1e-9, 0.5): 1}) == (1.0, 1.0)
    assert attack_power({}) == (pytest.approx(0.01),) * 2


def test_no_epsilon_against_outsiders_is_not_none_against_the_server():
    """Sampling can hide everything from those who see releases alone, at this delta."""
    rare = {Event("adapt", 1.0, 1e-3): 1}
    spent = epsilons(rare, 1e-3)
    assert spent.release == pytest.approx(0.0, abs=1e-6)
    plain = epsilons({Event("adapt", 1.0): 1}, 1e-3).participants
    assert spent.participants == pytest.approx(plain) and plain > 3


def test_faint_noise_with_a_cohort_is_charged_for_two_rows():
    """Whoever is drawn can turn somebody else away, which moves the sum by 2 C."""
    one = Event("adapt", 0.199, 0.5, cohort=50, population=100)
    charged = epsilons({one: 1}, 1e-3).release
    double = epsilons({Event("adapt", 0.199 / 2): 1}, 1e-3).release
    assert charged == pytest.approx(double, rel=1e-6)
    assert charged > 2 * epsilons({Event("adapt", 0.199): 1}, 1e-3).release
