"""The ledger: what is charged, refused, written and read, also after a kill."""

import json
import math
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idiolect.common.errors import IdiolectError
from idiolect.server.privacy import ledger as module
from idiolect.server.privacy.accountant import (
    Event,
    epsilons,
)
from idiolect.server.privacy.card import card, describe
from idiolect.server.privacy.ledger import BudgetSpent, Ledger, read_ledger
from tests.server.privacy.test_accountant import (
    DELTA,
    PLAIN,
    A,
    budgeted,
    few,
)


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


@pytest.mark.process
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
    assert "above the cap" in "\n".join(describe(card(ledger, "r", "0", "0")))
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


def test_events_are_counted_not_ordered():
    ledger = full()
    assert ledger.events() == Counter(c.event for c in reversed(ledger.charges))
