"""What counts as protected: every promise of noise that is none is named."""

import math

import dp_accounting
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from idiolect.common.config import parse
from idiolect.common.privacy.protected import (
    OUTFLOWS,
    charged,
    claim,
    epsilon_of,
    fewest,
    gaussian_epsilon,
    planned,
    protected,
    used,
)
from idiolect.server.privacy.accountant import Event, epsilons

DEVICES = {"task": "text", "personalise.learning-rates": "1e-3", "users": 200}
PRIVATE = DEVICES | {"privacy.mode": "central", "privacy.metrics": "noisy"}


def of(**more):
    return parse(PRIVATE | {key.replace("__", "."): v for key, v in more.items()})


def with_(more):
    return parse(PRIVATE | more)


def test_an_ordinary_private_run_is_protected():
    config = with_({})
    assert [protected(config, name) for name in ("update", "votes", "metrics")] == [
        ""
    ] * 3
    assert claim(config).epsilon == 8.0 and claim(config).delta == 1e-6
    assert claim(config).releases == 4 + 1 + 7 and claim(config).users == 150


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"privacy.mode": "off", "privacy.metrics": "clear"}, "privacy.mode is 'off'"),
        ({"privacy.seeded": True}, "who knows the seed takes the noise off"),
        ({"privacy.epsilon": math.inf}, "infinite: no noise"),
        ({"privacy.epsilon": math.inf, "privacy.noise": 5.0}, "infinite: no noise"),
        ({"privacy.epsilon": 1e6}, "epsilon 1e+06 excludes next to nothing"),
        ({"privacy.epsilon": 21.0}, "epsilon 21 excludes next to nothing"),
        ({"privacy.noise": 1e-300}, "noise of 1e-300 times"),
        ({"privacy.noise": 0.05}, "noise of 0.05 times"),
        ({"privacy.epsilon": 1e6, "privacy.noise": 0.05}, "excludes next to nothing"),
        ({"privacy.noise": 5e-324}, "noise of"),
        ({"users": 1}, "no more than 0.75 users"),
        ({"users": 2}, "no more than 1.5 users"),
        ({"privacy.cohort": 1}, "no more than 0.75 users"),
        ({"quorum": 0.0}, "no more than 0 users"),
        ({"quorum": 0.001}, "no more than 0.2 users"),
    ],
)
def test_noise_that_is_none_is_named(more, said):
    config = with_(more)
    assert said in protected(config, "update")
    if "cohort" not in "".join(more):
        assert protected(config, "metrics")


@pytest.mark.parametrize(
    ("more", "outflow", "said"),
    [
        ({"privacy.sampling": 1e-6}, "update", "no more than 0.00015 users"),
        ({"privacy.vote-sampling": 0.005}, "votes", "no more than 0.75 users"),
        ({"privacy.noise": 2.0, "privacy.votes": 0.01}, "votes", "noise of 0.02 times"),
        (
            {"privacy.noise": 2.0, "privacy.metrics-noise": 0.01},
            "metrics",
            "noise of 0.02",
        ),
        ({"privacy.metrics": "clear"}, "metrics", "privacy.metrics is 'clear'"),
        ({"adapt.rounds": 0}, "update", "no release of this kind"),
        ({"unlabeled.kind": "self"}, "votes", "no release of this kind"),
        ({"unlabeled.kind": "anonymised"}, "votes", "no release of this kind"),
        ({"unlabeled.kind": "anonymised"}, "items", "no noise is added to text"),
        ({}, "items", "no noise is added to text"),
        ({}, "text", "no noise is added to text"),
        # A cohort of few and no sampling: the rest is turned away, not drawn.
        ({"privacy.cohort": 2, "quorum": 0.5}, "update", "no more than 1 users"),
    ],
)
def test_each_outflow_has_an_answer_of_its_own(more, outflow, said):
    config = with_(more)
    assert said in protected(config, outflow)
    others = {"update", "votes", "metrics"} & set(used(config)) - {outflow}
    if "clip-quantile" not in str(more) and "cohort" not in str(more):
        assert not any(protected(config, other) for other in others)


def test_the_clip_bit_counts_as_a_part_of_the_update(monkeypatch):
    monkeypatch.setattr("idiolect.common.privacy.protected.CLIP_BIT", 0.1)
    config = with_({"privacy.noise": 5.0, "adapt.clip-quantile": 0.5})
    assert "noise of 0.1 times" in protected(config, "update")


def test_a_delta_that_a_parser_let_through_is_no_protection():
    from dataclasses import replace

    config = with_({})
    config = replace(config, privacy=replace(config.privacy, delta=6e-4))
    assert "delta 0.0006 is above" in protected(config, "votes")


def test_development_users_are_the_crowd_where_they_alone_train():
    config = parse(
        {
            "privacy.mode": "central",
            "users": 100,
            "development-users": 4,
            "adapt.users": "development",
            "quorum": 0.5,
        }
    )
    assert fewest(config, "update") == 2.0 and fewest(config, "votes") == 52.0


def test_declared_noise_lowers_the_claim_and_never_raises_it():
    strong = with_({"privacy.noise": 10.0})
    events = {
        Event("adapt", 10.0): 4,
        Event("votes", 10.0): 1,
        Event("metrics", 10.0): 7,
    }
    expected = epsilons(events, 1e-6).release
    assert epsilon_of(strong) == pytest.approx(expected, rel=1e-6) and expected < 5
    sampled = with_({"privacy.noise": 10.0, "privacy.sampling": 0.5})
    assert epsilon_of(sampled) == epsilon_of(strong)
    weak = with_({"privacy.noise": 1.0, "privacy.epsilon": 6.0})
    assert epsilon_of(weak) == 6.0 and not protected(weak, "update")
    # Where a full round may turn somebody away, one user changes two rows.
    cut = with_({"privacy.noise": 10.0, "privacy.cohort": 20})
    events = {Event("adapt", 5.0): 4, Event("votes", 5.0): 1, Event("metrics", 10.0): 7}
    assert epsilon_of(cut) == pytest.approx(epsilons(events, 1e-6).release, rel=1e-6)


def test_sampling_may_make_of_strong_noise_what_the_budget_says():
    more = {"privacy.noise": 0.9, "privacy.sampling": 0.01, "privacy.epsilon": 3.0}
    more |= {"users": 5000, "privacy.metrics": "clear", "privacy.votes": 10.0}
    assert protected(with_(more), "update") == ""
    assert "noise of 0.9" in protected(
        with_(more | {"privacy.sampling": 1.0}), "update"
    )
    assert "noise of 0.19" in protected(with_(more | {"privacy.noise": 0.19}), "update")


def test_what_a_run_makes_is_counted_within_its_cap():
    config = with_({"privacy.participations": 3, "methods": "base,shared,sft"})
    assert planned(config) == {"update": 3, "votes": 1, "metrics": 3}
    assert planned(parse(DEVICES)) == {}
    assert planned(with_({"unlabeled.kind": "self", "adapt.rounds": 0})) == {
        "metrics": 7
    }


@given(st.sampled_from(OUTFLOWS), st.sampled_from(["off", "central"]), st.booleans())
def test_nothing_is_protected_that_the_ledger_does_not_charge(outflow, mode, noisy):
    metrics = "noisy" if noisy and mode == "central" else "clear"
    config = parse(DEVICES | {"privacy.mode": mode, "privacy.metrics": metrics})
    assert bool(protected(config, outflow)) != charged(config, outflow)


@pytest.mark.parametrize("mu", [1e-3, 0.01, 0.1, 0.3, 1.0, 2.0, 5.0, 10.0, 30.0, 100.0])
@pytest.mark.parametrize("delta", [1e-15, 1e-9, 1e-6, 1e-3, 1e-2])
def test_the_closed_form_is_the_accountants(mu, delta):
    with np.errstate(divide="ignore"):
        expected = dp_accounting.get_epsilon_gaussian(1 / mu, delta)
    assert gaussian_epsilon(mu * mu, delta) == pytest.approx(
        expected, rel=1e-6, abs=1e-9
    )


def test_the_closed_form_at_its_ends():
    assert gaussian_epsilon(0.0, 1e-6) == 0.0
    assert gaussian_epsilon(math.inf, 1e-6) == math.inf
    assert math.isfinite(gaussian_epsilon(1e300, 1e-6))
