"""The privacy card: its fields, and what it says in English."""

import json
import math
from importlib.metadata import version as version_of

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idiolect.server.privacy import card as module
from idiolect.server.privacy.accountant import (
    Event,
    epsilons,
)
from idiolect.server.privacy.card import card, describe
from idiolect.server.privacy.ledger import Charge, Ledger
from tests.server.privacy.test_accountant import (
    DELTA,
    PLAIN,
    STATISTICS,
    VOTES,
    G,
    budgeted,
    few,
)
from tests.server.privacy.test_ledger import full


def programme_g() -> Ledger:
    ledger = budgeted(None, 1.0, cap=1, population=10_000)
    for k in range(50):
        ledger.charges.append(
            Charge(f"adapt/{k}", next(iter(G)), {"clip": 10.0 - k / 10}, 0.0)
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
        "lib": "dp_accounting " + version_of("dp-accounting"),
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
        "anybody who sees the shared adapter and the unlabeled set: epsilon 0.847"
        in text
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
    assert "the noisy part alone, anybody who sees the shared adapter: epsilon" in text


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
        assert ("is fully exposed" in text) == told


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
    assert value * (1 - 1e-8) <= float(module.upper(value)) <= 1.011 * value
