"""A history that grows: what is learnt in each step, the page, and what devices say."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from idiolect.client.commands import personalize
from idiolect.client.owner import learning
from idiolect.common.data.types import Item, Prompt, User

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

continual: Any = importlib.import_module("continual")
continual_page: Any = importlib.import_module("continual_page")

RESULTS = ROOT / "benchmarks" / "results" / "continual.json"
METHODS = tuple(continual_page.NAMES)


def user(count: int) -> User:
    items = (Item(f"i{k}", Prompt("", f"{k}?"), f"text {k}") for k in range(count))
    return User("u", tuple(items), ())


# --- what is learnt --------------------------------------------------------------------


def test_each_way_learns_what_it_says() -> None:
    one = user(12)
    for step in (1, 2, 3):
        whole = list(one.history[: 4 * step])
        assert continual.learnt_in(one, "anew", step) == whole
        assert continual.learnt_in(one, "go on", step) == whole[-4:]
        replayed = continual.learnt_in(one, "replay", step)
        assert replayed[-4:] == whole[-4:]
        assert len(replayed) == (4 if step == 1 else 8) == len({i.id for i in replayed})
        assert set(replayed) <= set(whole)


def test_a_forgotten_text_is_learnt_by_no_way() -> None:
    one = user(12)
    # The same text twice: both are forgotten.
    again = one.history[5].target
    history = (
        *one.history[:8],
        Item("again", Prompt("", "?"), again),
        *one.history[8:],
    )
    twice = User("u", history, ())
    for way in continual.WAYS:
        for step in (2, 3):
            learnt = continual.learnt_in(twice, way, step, without=again)
            assert learnt and again not in {item.target for item in learnt}


def test_the_forgotten_text_was_learnt_before() -> None:
    one = user(40)
    known = continual.EACH * continual.FORGOTTEN
    assert continual.forgotten_of(one) in one.history[:known]


# --- the page --------------------------------------------------------------------------


def results(users: int = 6, **given: Any) -> dict[str, Any]:
    """Results of one backbone: of ten steps, of users who differ a little."""
    want = SimpleNamespace(
        **{
            "anew": 0.5,
            "go on": 0.4,
            "forgotten": 0.0,
            "device": (0.5, 0.5),
            "judged": (0.1, 0.1),
            **given,
        }
    )

    def of(k: int) -> dict[str, Any]:
        near = 0.01 * (k - (users - 1) / 2)
        ways = {
            way: [
                [2.0 - gain - near, 0.5 + gain / 5 + near, 1.0, 100 * (s + 1)]
                for s in range(10)
            ]
            for way, gain in (
                ("anew", want.anew),
                ("go on", getattr(want, "go on")),
                ("replay", want.anew),
            )
        }
        left = {way: [0.3 + near, 0.6 + near] for way in continual_page.WAYS}
        left["never"] = [near, near]
        left["forgotten"] = [want.forgotten + 2 * near, want.forgotten + 2 * near]
        return {
            "ways": ways,
            "device": {
                "4": [0.1, 2.0 - want.device[0] - near, 0.6],
                "8": [want.judged[k % 2], 2.0 - want.device[1] - near, 0.6],
            },
            "forgotten": {"then": left, "end": left},
        }

    setting = {"steps": 10, "each": 4, "rate": 3e-3}
    people = {
        f"u{k}": {"shared": [2.0, 0.5], **{m: of(k) for m in METHODS}}
        for k in range(users)
    }
    return {"setting": setting, "users": people, "commits": ["abc"]}


def test_the_page_says_which_way_is_better() -> None:
    text = continual_page.page({"tiny": results()})
    assert "Trained anew, it helps likelihood from 4 on." in text
    assert "by likelihood, *go on* against *anew*: worse, -0.100" in text
    assert "by likelihood, *replay* against *anew*: not told apart, +0.000" in text
    assert "Not measured yet: SmolLM2 (135M)." in text
    helpless = continual_page.page({"tiny": results(anew=0.0)})
    assert "Trained anew, it helps likelihood at none up to 40." in helpless


def test_the_page_says_what_is_left_of_a_forgotten_text() -> None:
    kept, erased = (
        continual_page.page({"tiny": results(forgotten=left)}) for left in (0.2, 0.0)
    )
    assert (
        kept.count("the forgotten text is likelier than by an adapter that never") == 4
    )
    assert erased.count("the forgotten text is not shown to be likelier than by") == 4
    assert "go on | +0.300 " in erased  # what saw it and was not erased


def test_what_a_device_refuses_gains_nothing() -> None:
    found = results(device=(-0.5, 0.5), judged=(0.1, -0.1))
    values = continual_page.device_gains(found["users"], "sft", "8")
    assert sorted(v > 0 for v in values) == [False] * 3 + [True] * 3
    assert min(values) == 0.0
    assert continual_page.smallest(found, "sft") is None  # half of six do not show it
    assert continual_page.smallest(results(), "sft") == 4
    assert continual_page.smallest(results(device=(-0.5, 0.5)), "sft") == 8
    assert continual_page.smallest(results(device=(0.0, 0.0)), "sft") is None


# --- what was measured, and what devices say -------------------------------------------


@pytest.mark.skipif(not RESULTS.exists(), reason="nothing is measured")
def test_devices_agree_with_what_was_measured() -> None:
    """Change `learning.HELPS` where this fails, and say so in CHANGELOG.md."""
    done = json.loads(RESULTS.read_text())["backbones"]
    starts = [
        continual_page.smallest(found, "c-bpo")
        for found in done.values()
        if len(found["users"]) > 1
    ]
    assert starts and None not in starts
    assert max(starts) == learning.HELPS >= learning.FEWEST


@pytest.mark.skipif(not RESULTS.exists(), reason="nothing is measured")
def test_the_page_is_the_one_of_the_results() -> None:
    done = json.loads(RESULTS.read_text())["backbones"]
    assert continual.PAGE.read_text() == continual_page.page(done)


def test_five_texts_are_the_fewest_that_can_tell_from_luck() -> None:
    assert 2.0**-learning.TELLING < 0.05 < 2.0 ** (1 - learning.TELLING)
    assert learning.judges(25) == learning.TELLING > learning.judges(24)


def test_a_verdict_says_when_it_may_be_luck(monkeypatch) -> None:
    monkeypatch.setattr(learning, "HELPS", 8)
    (few,) = personalize.doubts({"held_out": 1, "trained": 7})
    assert few.startswith("Only 1 text judged it, too few to tell a gain from luck")
    assert personalize.doubts({"held_out": 5, "trained": 20}) == []
    monkeypatch.setattr(learning, "HELPS", 12)
    unshown, _ = personalize.doubts({"held_out": 1, "trained": 7})
    assert "from fewer than 12 texts" in unshown
