"""The ledger against the figures of the privacy notes, and against being killed."""

import json
import math
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import dp_accounting
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from idiolect.common.errors import IdiolectError
from idiolect.server.privacy import ledger as module
from idiolect.server.privacy.ledger import (
    BudgetSpent,
    Epsilons,
    Event,
    Ledger,
    calibrate,
    card,
    describe,
    epsilons,
    joint,
    power,
    read_ledger,
    strongest,
)

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


# --- accounting ----------------------------------------------------------------------


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
    assert power(0.0, 0.0, 0.01) == pytest.approx(0.01)
    assert power(1.0, 1e-3, 0.01) == pytest.approx(math.e * 0.01 + 1e-3)
    assert power(6.0, 1e-3, 0.01) == pytest.approx(1 - math.exp(-6) * 0.989)
    assert power(5000.0, 1e-6) == power(math.inf, 1e-6) == 1


@pytest.mark.parametrize("z", [0.3, 1.0, 4.0])
def test_no_attacker_on_a_gaussian_beats_the_bound(z):
    best = norm.cdf(norm.ppf(0.01) + 1 / z)  # Neyman-Pearson
    epsilon = epsilons({Event("adapt", z): 1}, DELTA).release
    assert best <= power(epsilon, DELTA)
    assert strongest({Event("adapt", z): 1})[0] == pytest.approx(best)


def test_the_best_attack_on_the_events_and_not_on_their_epsilon():
    """Two Gaussians of .9236 spend epsilon 8, with which 100 % would be possible."""
    two = {Event("adapt", 0.9236): 1, Event("votes", 0.9236): 1}
    assert power(epsilons(two, DELTA).release, DELTA) > 0.999
    assert strongest(two) == (pytest.approx(0.2133, abs=1e-4),) * 2
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
    found, known = strongest({Event("adapt", z, q): 1})
    assert best <= found <= best + 1e-4
    assert known == pytest.approx(norm.cdf(norm.ppf(0.01) + 1 / z))


def test_a_cap_weakens_who_knows_who_took_part():
    ten = {Event("adapt", 2.0, 0.1): 10}
    assert strongest(ten, 1)[1] == pytest.approx(norm.cdf(norm.ppf(0.01) + 1 / 2))
    assert strongest(ten)[1] == pytest.approx(norm.cdf(norm.ppf(0.01) + 10**0.5 / 2))


def test_the_best_attack_where_there_is_no_noise_or_no_release():
    assert strongest({Event("adapt", 0.0): 1}) == (1.0, 1.0)
    assert strongest({Event("adapt", 1e-9, 0.5): 1}) == (1.0, 1.0)
    assert strongest({}) == (pytest.approx(0.01),) * 2


# --- the ledger ----------------------------------------------------------------------


def full(path: Path | None = None) -> Ledger:
    """Everything that a ledger can hold."""
    ledger = budgeted(path, 9.0, cap=2, population=1000, rng="seeded")
    ledger.charge(PLAIN, clip=10.0, bank="ü")
    ledger.charge(Event("votes", 3.0, 0.1, cohort=200, population=1000))
    ledger.charge(PLAIN, clip=7.5)
    ledger.open("metrics", "values per user", "simulation")
    ledger.observed_participations["adapt"] = 2
    ledger.audits.append({"name": "one-run", "eps_lb": 0.1, "max_detectable": 4.19})
    ledger.save()
    return ledger


def test_a_ledger_gives_back_what_was_written(tmp_path):
    ledger = full(tmp_path / "ledger.json")
    assert read_ledger(tmp_path / "ledger.json") == ledger
    assert [c.id for c in ledger.charges] == ["adapt/0", "votes/0", "adapt/1"]
    assert ledger.events()[PLAIN] == 2


def test_an_infinite_budget_is_null_in_the_file(tmp_path):
    ledger = budgeted(tmp_path / "l.json", math.inf)
    assert ledger.charge(Event("adapt", 0.0)) == "adapt/0"
    assert json.loads((tmp_path / "l.json").read_text())["epsilon"] is None
    assert read_ledger(tmp_path / "l.json").epsilon == math.inf


def test_a_charge_is_on_disk_before_it_returns(tmp_path):
    code = f"""
import os, signal, pathlib
from idiolect.server.privacy.ledger import Event, Ledger
ledger = Ledger(pathlib.Path({str(tmp_path / "l.json")!r}), float("inf"), 1e-6)
for k in range(3):
    ledger.charge(Event("adapt", 2.0, 0.5), round=k)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    found = read_ledger(tmp_path / "l.json")
    assert [c.note for c in found.charges] == [{"round": k} for k in range(3)]
    assert found.charge(Event("adapt", 2.0, 0.5)) == "adapt/3"


def test_a_charge_that_cannot_be_written_was_not_made(tmp_path, monkeypatch):
    ledger = full(tmp_path / "l.json")

    def crash(path, data):
        raise OSError("no space")

    monkeypatch.setattr(module, "write_atomically", crash)
    for attempt in (lambda: ledger.charge(PLAIN), lambda: ledger.open("a", "b", "c")):
        with pytest.raises(OSError, match="no space"):
            attempt()
    assert ledger == read_ledger(tmp_path / "l.json")


def test_a_refused_charge_leaves_everything_as_it_was(tmp_path):
    ledger = budgeted(tmp_path / "l.json", 3.0)
    with pytest.raises(BudgetSpent, match=r"'adapt'.*budget of 3"):
        for _ in range(99):
            ledger.charge(PLAIN)
    count = len(ledger.charges)
    before = (tmp_path / "l.json").read_bytes()
    assert epsilons({PLAIN: count}, DELTA).release <= 3.0
    assert epsilons({PLAIN: count + 1}, DELTA).release > 3.0
    for event in (PLAIN, Event("votes", 0.0), replace(PLAIN, z=3.0)):
        with pytest.raises(BudgetSpent):
            ledger.charge(event)
    assert len(ledger.charges) == count
    assert (tmp_path / "l.json").read_bytes() == before
    ledger.charge(Event("adapt", 500.0))  # what still fits is not refused


@few
@given(z=st.floats(0.0, 9.0), budget=st.floats(0.1, 9.0), cap=st.integers(0, 3))
def test_checking_changes_nothing_and_agrees_with_charging(z, budget, cap):
    ledger = budgeted(None, budget, cap=cap)
    event = Event("adapt", z)
    for _ in range(3):
        before = replace(ledger, charges=list(ledger.charges))
        try:
            ledger.check(event)
            allowed = True
        except BudgetSpent:
            allowed = False
        assert ledger == before
        if not allowed:
            with pytest.raises(BudgetSpent):
                ledger.charge(event)
            assert ledger == before
            break
        ledger.charge(event)
        assert ledger.spent().release <= budget * (1 + 1e-9)


def test_charging_many_rounds_is_fast():
    ledger = budgeted(None, 1.0, cap=1)
    start = time.process_time()
    for _ in range(40):
        ledger.charge(A)
    assert time.process_time() - start < 30
    assert ledger.spent() == epsilons({A: 40}, DELTA, 1)


def test_a_new_ledger_does_not_forget_an_old_one(tmp_path):
    full(tmp_path / "l.json")
    with pytest.raises(IdiolectError, match=r"l\.json exists already"):
        budgeted(tmp_path / "l.json")


def test_devices_that_report_more_than_the_cap_are_believed():
    ledger = budgeted(None, 99.0, cap=1)
    for _ in range(3):
        ledger.charge(PLAIN)
    assert ledger.spent() == epsilons({PLAIN: 3}, DELTA, 1)
    ledger.observed_participations["adapt"] = 2
    assert ledger.spent() == epsilons({PLAIN: 3}, DELTA, 2)
    assert "the cap was not kept" in "\n".join(describe(card(ledger, "r", "0", "0")))
    ledger.cap = 0
    assert ledger.spent() == epsilons({PLAIN: 3}, DELTA)


def test_an_open_release_is_recorded_once(tmp_path):
    ledger = budgeted(tmp_path / "l.json")
    for _ in range(2):
        ledger.open("pool", "others' text", "simulation: the paper's setting")
        ledger.open("pool", "supported text", "not differentially private")
    assert read_ledger(tmp_path / "l.json").open_releases == ledger.open_releases
    assert [r["what"] for r in ledger.open_releases] == [
        "others' text",
        "supported text",
    ]
    assert ledger.simulation_reasons() == ["pool: others' text"]
    assert len(full().simulation_reasons()) == 2


def _without(name):
    return lambda body: body.pop(name)


@pytest.mark.parametrize(
    "damage",
    [
        lambda body: body.update(schema=2),
        lambda body: body.update(delta="small"),
        lambda body: body.update(delta=0),
        lambda body: body.update(rng="dice"),
        lambda body: body.update(unknown=1),
        lambda body: body.update(open_releases=[1]),
        lambda body: body.update(charges={"a": 1}),
        lambda body: body["charges"].pop(0),
        lambda body: body["charges"][0]["event"].update(z=math.nan),
        lambda body: body["charges"][0]["event"].update(z="1"),
        lambda body: body["charges"][0]["event"].pop("z"),
        _without("schema"),
        _without("charges"),
        _without("epsilon"),
        _without("delta"),
    ],
)
def test_a_damaged_ledger_is_refused(tmp_path, damage):
    full(tmp_path / "l.json")
    body = json.loads((tmp_path / "l.json").read_text())
    damage(body)
    (tmp_path / "l.json").write_text(json.dumps(body))
    with pytest.raises(IdiolectError, match=r"l\.json cannot be read"):
        read_ledger(tmp_path / "l.json")


@pytest.mark.parametrize(
    "data", [None, b"", b"{", b"[]", b"null", b"\xff", b"[" * 9999]
)
def test_no_ledger_at_all(tmp_path, data):
    if data is not None:
        (tmp_path / "l.json").write_bytes(data)
    with pytest.raises(IdiolectError, match=r"l\.json cannot be read"):
        read_ledger(tmp_path / "l.json")


# --- the card ------------------------------------------------------------------------


def programme_g() -> Ledger:
    ledger = budgeted(None, 1.0, cap=1, population=10_000)
    for k in range(50):
        ledger.charges.append(
            module.Charge(f"adapt/{k}", next(iter(G)), {"clip": 10.0 - k / 10}, 0.0)
        )
    ledger.charge(VOTES, bank="sha256:ab")
    ledger.charge(VOTES, bank="sha256:cd")
    ledger.charge(STATISTICS)
    ledger.observed_participations = {"adapt": 1, "votes": 1}
    ledger.audits = [
        {"name": "one-run", "eps_lb": 0.3, "max_detectable": 4.19, "conf": 0.95}
    ]
    return ledger


def test_the_card_of_the_sample_programme():
    found = card(programme_g(), "first", "0.1", "abc")
    assert found == json.loads(json.dumps(found, allow_nan=False))
    assert found["schema"] == "idiolect.privacy-card/1"
    assert (found["run"], found["mode"], found["simulation_because"]) == (
        "first",
        "central",
        [],
    )
    assert found["epsilon"] == {
        "release_observer": pytest.approx(0.847, abs=6e-4),
        "server_knows_participants": pytest.approx(5.32, abs=6e-3),
        "individual_updates_visible_to_server": True,
        "dp_events_only": None,
    }
    assert (found["budget"], found["delta"]) == (1.0, DELTA)
    assert found["population"]["N"] == 10_000
    assert found["accountant"] == {
        "lib": "dp_accounting " + module.version_of("dp-accounting"),
        "type": "PLD",
        "interval": 1e-3,
        "upper_bound": True,
    }
    assert found["events"][0] == {
        "stage": "adapt",
        "mechanism": "Poisson-sampled Gaussian",
        "q": 0.01,
        "z": 1.0,
        "clip_bit_z": 10.0,
        "cohort": None,
        "rounds": 50,
        "notes": {"clip": {"min": pytest.approx(5.1), "max": 10.0}},
    }
    assert found["events"][1]["notes"] == {"bank": ["sha256:ab", "sha256:cd"]}
    assert found["amplification"]["claimed"]
    assert found["participation"] == {"cap": 1, "enforced": "device", "observed_max": 1}
    assert found["secagg"] == {"protocol": "none"}
    assert found["rng"] == "operating system"
    assert found["code"] == {"version": "0.1", "commit": "abc"}
    proven = found["claims"]["proven"]
    assert "(0.847, 1e-06)" in proven[0]
    assert "(5.33, 1e-06)" in proven[1]
    assert "takes part in at most 1" in "\n".join(found["claims"]["assumed"])


def test_the_card_in_words():
    found = card(programme_g(), "first", "0.1", "abc")
    lines = describe(found, whole=False)
    assert 8 <= len(lines) <= 14
    (short,) = [line for line in lines if line.startswith("not covered")]
    assert "7 things" in short and "`idiolect-server show first`" in short
    listed = [line for line in describe(found) if line.startswith("not covered: ")]
    assert listed == [f"not covered: {what}" for what in found["not_covered"]]
    text = "\n".join(lines)
    assert lines[0].startswith("mode: central")
    assert (
        "whoever sees the shared adapter and the unlabeled set: epsilon 0.847" in text
    )
    # The best attack on these events; e^.847 of 1 %, which epsilon alone allows, is 2.4 %.
    assert "recognises at most 1.5 % of those" in text
    assert "epsilon 5.33 at delta 1e-06" in text  # 5.321 rounded up
    assert (
        "adapt: 50 x Poisson-sampled Gaussian, noise multiplier 1, clip bit 10" in text
    )
    assert "participation: at most 1" in text
    assert (
        "at least 0.3 with 95 % confidence; it could have shown 4.19 at most, where 0.847 "
        "is claimed." in text
    )
    assert "no privacy guarantee" not in text
    assert not any(line.startswith("simulation") for line in lines)


def test_without_sampling_no_secret_is_assumed():
    ledger = budgeted(None, 99.0)
    ledger.charge(PLAIN)
    found = card(ledger, "r", "0", "0")
    assert found["amplification"] == {"claimed": False, "sampler": None, "assumes": []}
    assert "who took part" not in " ".join(found["claims"]["assumed"])
    assert found["participation"]["enforced"] is None
    assert not any(line.startswith("sampling") for line in describe(found))


def test_the_card_of_a_run_that_released_nothing():
    found = card(budgeted(rng="seeded"), "r", "0", "0")
    assert (found["mode"], found["epsilon"], found["events"]) == ("off", None, [])
    assert found["claims"] == {"proven": [], "measured": [], "assumed": []}
    assert "no privacy guarantee" in describe(found)[1]


def test_an_open_release_takes_the_guarantee_away():
    ledger = budgeted(None, 9.0)
    ledger.charge(PLAIN)
    ledger.open("pool", "texts that 20 users support", "not differentially private")
    found = card(ledger, "r", "0", "0")
    alone = epsilons({PLAIN: 1}, DELTA).release
    assert found["mode"] == "central"
    assert found["epsilon"] == {
        "release_observer": None,
        "server_knows_participants": None,
        "individual_updates_visible_to_server": True,
        "dp_events_only": {
            "release_observer": alone,
            "server_knows_participants": alone,
        },
    }
    assert "the noisy releases by themselves" in found["claims"]["proven"][0]
    assert "texts that 20 users support" in found["not_covered"][0]
    text = "\n".join(describe(found))
    assert "no privacy guarantee: something was released without noise" in text
    assert "the noisy part alone, whoever sees the shared adapter: epsilon" in text


def test_a_release_without_noise_takes_the_guarantee_away():
    ledger = budgeted(None, math.inf)
    ledger.charge(Event("adapt", 0.0, 0.1))
    found = card(ledger, "r", "0", "0")
    assert (found["mode"], found["budget"]) == ("off", None)
    assert found["epsilon"]["release_observer"] is None
    assert found["epsilon"]["dp_events_only"] is None
    assert found["claims"]["proven"] == []
    assert "adapt: released without noise" in found["not_covered"]
    ledger.charge(VOTES)
    found = card(ledger, "r", "0", "0")
    assert found["epsilon"]["release_observer"] is None
    one = epsilons({VOTES: 1}, DELTA).release
    assert found["epsilon"]["dp_events_only"]["release_observer"] == one


def test_a_card_names_the_setting_that_makes_epsilon_infinite():
    ledger = budgeted(None, math.inf)
    ledger.open("metrics", "metrics", "simulation", "privacy.metrics=clear")
    ledger.open("pool", "text", "simulation", "unlabeled.kind=others")
    ledger.open("adapt", "sum", "simulation", "privacy.metrics=clear")
    ledger.charge(Event("adapt", 0.0))
    text = "\n".join(describe(card(ledger, "r", "0", "0")))
    assert (
        "with privacy.metrics=clear, unlabeled.kind=others, privacy.epsilon=inf "
        "something was released without noise" in text
    )


def test_an_audit_beside_an_epsilon_is_explained():
    ledger = budgeted(None, 9.0)
    ledger.charge(PLAIN)
    bound = {"eps_lb": 0.477, "max_detectable": 4.2, "conf": 0.95, "guesses": 200}
    ledger.audits.append({"name": "one", **bound, "claimed": 0.6})
    lines = describe(card(ledger, "r", "0", "0"))
    assert "lower bound, measured from 200 guesses with 95 % confidence" in lines[-2]
    assert "upper bound, proven for every attack" in lines[-2]
    ledger.audits[:] = [{"name": "s", "exposure": 1.0, "highest": 10.0, "sampled": 0}]
    ledger.audits[0]["samples"] = 9
    assert "lower bound" not in " ".join(describe(card(ledger, "r", "0", "0")))


def test_a_seeded_run_proves_nothing():
    found = card(full(), "r", "0", "0")
    assert found["mode"] == "simulation"
    assert found["claims"]["proven"] == []
    assert "came from a seed" in " ".join(found["claims"]["assumed"])
    lines = describe(found)
    assert sum(line.startswith("simulation: ") for line in lines) == 2
    assert lines[0] == "mode: a simulation, not fit for real users"


def test_a_delta_that_would_allow_exposing_somebody():
    for population, told in ((99_000, False), (101_000, True)):
        ledger = budgeted(None, 9.0, population=population)
        ledger.charge(PLAIN)
        text = " ".join(card(ledger, "r", "0", "0")["not_covered"])
        assert ("is exposed altogether" in text) == told


@pytest.mark.parametrize(
    ("audit", "said"),
    [
        (
            {"eps_lb": 9.0, "max_detectable": 12.0},
            "more than the 1.07 claimed: a defect",
        ),
        ({"eps_lb": 0.0, "max_detectable": 1.0}, "does not support the 1.07 claimed"),
        (
            {"eps_lb": 0.0, "max_detectable": 4.0},
            "it could have shown 4 at most, where 1.07 is claimed.",
        ),
        ({"eps_lb": 3.0, "broken": True}, "1.07 is claimed: caught; broken on purpose"),
        (
            {"eps_lb": 1.0, "broken": True},
            "not caught by this attack; broken on purpose",
        ),
        ({"eps_lb": 3.0, "claimed": 4.0}, "where 4 is claimed."),
    ],
)
def test_an_audit_is_judged_by_what_it_could_have_seen(audit, said):
    ledger = budgeted(None, 9.0)
    ledger.charge(PLAIN)
    ledger.audits.append({"name": "shadow", **audit})
    found = card(ledger, "r", "0", "0")
    assert said in found["claims"]["measured"][0]
    assert said in describe(found)[-1]


@few
@given(st.floats(1e-6, 1e6))
def test_a_bound_is_never_printed_too_small(value):
    assert value * (1 - 1e-8) <= float(module._up(value)) <= 1.011 * value


def test_events_are_counted_not_ordered():
    ledger = full()
    assert ledger.events() == Counter(c.event for c in reversed(ledger.charges))


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
