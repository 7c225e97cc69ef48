"""Simulated cohorts: one gradient has the update of each shape."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from idiolect.common.config import parse
from idiolect.common.data.load import load_dataset
from idiolect.common.data.types import Item, Prompt
from idiolect.common.engine.reference import load_reference
from idiolect.common.methods.shared import shared_update
from idiolect.common.privacy.noise import source
from idiolect.server.privacy.accountant import Event, amplified

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
COMMAND = SimpleNamespace(
    **runpy.run_path(str(ROOT / "benchmarks" / "private_real.py"))
)
KEYS = {
    "users": 1,
    "development-users": 3,
    "history": 6,
    "adapt.batch": 6,
    "adapt.optimizer": "sgd",
    "adapt.learning-rate": 1.0,
    "engine.device": "cpu",
    "privacy.mode": "central",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    """Config, reference, users and their gradients."""
    config = parse(KEYS)
    reference, users = load_reference(config), load_dataset(config).development
    kept = tmp_path_factory.mktemp("kept")
    found = COMMAND.gradients(reference, users, config, kept)
    again = COMMAND.gradients(reference, users, config, kept)  # from the files
    assert all(np.array_equal(found[name], again[name]) for name in found)
    return config, reference, users, found


@pytest.mark.parametrize(("targets", "rank"), [("q,v", 1), ("all", 1), ("all", 8)])
def test_one_gradient_has_the_update_of_each_shape(whole, targets, rank) -> None:
    config, reference, users, gradients = whole
    setting = COMMAND.Setting(targets, rank, 0.5)
    zero = COMMAND.shaped(reference, config, setting)
    rows = COMMAND.parts(gradients, zero)
    assert set(rows) == set(zero.b)
    length = 0.3
    rate = COMMAND.rate_of(rows, 0.5, length)
    keys = {"lora.targets": targets, "adapt.rank": rank, "adapt.learning-rate": rate}
    mine = parse({**KEYS, **keys, "adapt.clip": length})
    wanted = shared_update(reference.with_shared(zero), users, mine, 0)
    one = COMMAND.signal(zero, rows, 0.5, length)
    for name, array in one.total.items():
        total = wanted[name].double().sum(0).numpy()
        np.testing.assert_allclose(array, total, atol=1e-6)
    assert any(array.any() for array in one.total.values())


def test_a_cohort_has_the_mean_of_the_known_users_and_the_noise_of_its_size(
    whole,
) -> None:
    config, reference, _, gradients = whole
    zero = COMMAND.shaped(reference, config, COMMAND.Setting("all", 8, 0.5))
    one = COMMAND.signal(zero, gradients, 0.5, 0.2)

    def mean_of(size: int, z: float) -> torch.Tensor:
        b = COMMAND.cohort(one, size, z, config, "test", size, z)
        return torch.cat([b[name].flatten() for name in sorted(b)]).double()

    clear = torch.cat(
        [torch.from_numpy(one.total[name]).flatten() / 3 for name in sorted(one.total)]
    )
    for size in (3, 1000):
        torch.testing.assert_close(mean_of(size, 0.0), clear, atol=1e-7, rtol=1e-5)
        noise = mean_of(size, 2.0) - clear
        assert float(noise.std()) == pytest.approx(2.0 * 0.2 / size, rel=0.02)
        assert abs(float(noise.mean())) < 5 * 0.4 / size / len(noise) ** 0.5
    assert COMMAND.agreement(one) <= 1


def test_the_noise_keeps_a_round_and_a_vote_within_epsilon() -> None:
    for epsilon in COMMAND.EPSILONS:
        z = COMMAND.noise(epsilon)
        events = {Event("adapt", z): 1, Event("votes", z): 1}
        spent = amplified(events, parse(COMMAND.KEYS).privacy.delta, 1e-3)
        assert 0.99 * epsilon < spent <= epsilon


def test_what_was_measured_is_not_measured_again(whole, tmp_path, monkeypatch) -> None:
    config, reference, _, _ = whole
    users = COMMAND.few(load_dataset(config).users, 2)
    judge = COMMAND.Judge(reference, tmp_path / "nll.json")
    first = judge.nll(users, None, "base")
    monkeypatch.setitem(judge.nll.__func__.__globals__, "held_out_nll", None)
    assert COMMAND.Judge(reference, judge.kept).nll(users, None, "base") == first


def test_cells_beyond_a_hopeless_one_are_not_measured(whole, monkeypatch) -> None:
    _, reference, users, gradients = whole
    setting = COMMAND.Setting("all", 8, 0.5)
    zero = COMMAND.shaped(reference, parse(KEYS), setting)
    one = COMMAND.signal(zero, gradients, 0.5, 0.2)
    sizes: list[tuple[float, int]] = []

    class Judge:
        def nll(self, users, lora, *names):
            if names == ("base",):
                return [3.0, 3.0]
            sizes.append(names[2:4])
            return [9.0, 9.0] if names[3] == 100 else [2.0, 2.5]

    cells = list(COMMAND.measured_cells(Judge(), one, setting, users))
    noises = [COMMAND.noise(c["epsilon"]) / c["users"] for c in cells]
    assert noises == sorted(noises) and len(cells) == 15
    first = next(k for k, c in enumerate(cells) if c["users"] == 100)
    drawn = [len(cell["nll"]) for cell in cells[: first + 1]]
    assert drawn[0] == 1 and drawn[first - 1 :] == [3, 1]  # the least noise is faint
    assert all(c["nll"] == [] for c in cells[first + 1 :])
    assert COMMAND.difference(cells[0], [3.0, 3.0])["usable"]
    assert not COMMAND.difference(cells[first], [3.0, 3.0])["usable"]
    assert COMMAND.difference(cells[-1], [3.0, 3.0]) is None


@pytest.mark.parametrize(
    ("draws", "usable"),
    [
        ([[2.9, 2.8]] * 3, True),
        ([[2.9, 2.8]], True),
        ([[2.9, 2.8], [2.9, 2.8], [3.1, 3.0]], False),  # a draw that is worse
        ([[2.5, 3.1]] * 3, False),  # the interval has zero in it
    ],
)
def test_usable_is_better_for_the_authors_and_in_each_draw(draws, usable) -> None:
    found = COMMAND.difference({"nll": draws}, [3.0, 3.0])
    assert found["usable"] is usable
    assert COMMAND.shown(found).startswith("**") is usable


def test_votes_of_many_are_drawn_from_like_exact_ones() -> None:
    bank = [Item(str(k), Prompt("", ""), f"text {k}") for k in range(60)]
    share = np.where(np.arange(60) < 30, 0.05, 0.0)
    exact = COMMAND.drawn_by(bank, share)
    assert COMMAND.distance(exact, exact) == 0
    assert COMMAND.distance(np.eye(2)[0], np.eye(2)[1]) == 1
    random = source(True, 0, "votes")
    far, near = (
        COMMAND.distance(
            COMMAND.drawn_by(bank, COMMAND.noisy(n * share, 2.0, random)), exact
        )
        for n in (10, 10_000)
    )
    assert near < 0.01 < 0.2 < far


def test_the_page_is_what_the_results_say() -> None:
    path = COMMAND.RESULTS / f"{COMMAND.NAME}.json"
    if not path.exists():
        pytest.skip("not measured yet")
    assert COMMAND.PAGE.read_text() == COMMAND.page(json.loads(path.read_text()))
