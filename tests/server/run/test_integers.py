"""Sums of integers with the users' own noise (``secagg.mode=sum``)."""

import dataclasses
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from idiolect.common.config import parse
from idiolect.common.data.types import Item, Prompt
from idiolect.common.errors import IdiolectError
from idiolect.common.privacy.noise import source
from idiolect.common.secure import rows as secure_rows
from idiolect.common.secure.accounting import share_variance
from idiolect.common.secure.expected import Expected, expected
from idiolect.common.secure.rows import Integers, Terms, missing_noise, report, terms
from idiolect.common.secure.secure import LeftOut
from idiolect.server.privacy.accountant import Event, epsilons
from idiolect.server.privacy.card import card, describe
from idiolect.server.privacy.ledger import Ledger, read_ledger
from idiolect.server.run import adapt, budget, pool
from idiolect.server.run.budget import Population, Release
from idiolect.server.run.checkpoint import State
from idiolect.server.run.cohort import Run
from idiolect.server.run.sums import (
    Sum,
    nothing,
    sum_of_unit,
    sum_rows,
    sum_words,
    unit_unsealed,
    unsealed,
)

ANYTHING = st.floats(width=32, allow_nan=True, allow_infinity=True)
SHAPES = {"v": (2, 2), "q": (3, 2)}
USERS = [f"u{i}" for i in range(6)]
SUM = {"secagg.mode": "sum", "quorum": 0.6}
CENTRAL = SUM | {"privacy.mode": "central", "privacy.epsilon": 1e6}
TEN = Population(10, 0, 10)


def many(config: dict, count: int = 10) -> dict:
    """A configuration of so many users of whom each may be evaluated."""
    return config | {"users": count, "development-users": 0, "privacy.noise": 8.0} | ONE


ONE = {"personalise.learning-rates": "1e-3"}

tables = st.fixed_dictionaries(
    {
        name: hnp.arrays(np.float32, (len(USERS), *shape), elements=ANYTHING)
        for name, shape in SHAPES.items()
    }
)
# Which users come, in which order, and how many at once.
arrivals = st.tuples(
    st.permutations(range(len(USERS))),
    st.integers(0, len(USERS)),
    st.integers(1, len(USERS)),
)


def exact(clip: float) -> Integers:
    return Integers(terms(clip, 0.0, None, len(USERS), 0), lambda _user: silent)


def silent(count: int) -> bytes:
    raise AssertionError(f"{count} random bytes were drawn where there is no noise")


def noisy(clip: float, z: float, most: int, bit_z: float | None = None) -> Integers:
    known = terms(clip, z, bit_z, most, 1)
    return Integers(known, lambda user: source(True, 5, "share", user))


def groups(arrival: tuple[Sequence[int], int, int]) -> list[list[int]]:
    order, missing, size = arrival
    here = order[missing:]
    return [list(here[k : k + size]) for k in range(0, len(here), size)]


def added(rows, clip, arrival, integers: Integers | None) -> Sum:
    """The sum as a run makes it: of nodes with several users each, as they come."""
    total = nothing(SHAPES, integers)
    for chosen in groups(arrival):
        part = {name: array[chosen] for name, array in rows.items()}
        total.add(sum_rows([USERS[k] for k in chosen], part, clip, integers))
    return total


# --- without noise -----------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(tables, st.floats(1e-3, 1e3), arrivals, st.permutations(range(6)))
def test_without_noise_the_sum_has_the_bits_of_a_sum_of_floats(
    rows, clip, arrival, order
):
    """Whoever comes, in whatever groups and order, and what is not finite left out."""
    with np.errstate(over="ignore"):
        plain = added(rows, clip, arrival, None)
        kept = [k for k in order if k in {k for part in groups(arrival) for k in part}]
        whole = added(rows, clip, ([*kept], 0, 6), exact(clip))
    found = unsealed(whole, SHAPES, exact(clip))
    assert sorted(found.users) == sorted(plain.users)
    assert list(found.total) == sorted(SHAPES)
    for name in SHAPES:
        assert found.total[name].tobytes() == plain.total[name].tobytes()


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float32, (6, 5), elements=st.floats(0, 1, width=32)))
def test_without_noise_votes_have_the_bits_of_a_sum_of_floats(votes):
    plain, whole = sum_of_unit(votes), exact(1.0)
    total = sum_of_unit(votes, USERS, whole)
    assert unit_unsealed(total, USERS, whole).tobytes() == plain.tobytes()
    nobody = sum_of_unit(votes[:0], (), whole)
    assert not unit_unsealed(nobody, (), whole).any()


# --- with noise --------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(tables, st.floats(1e-3, 1e3), arrivals, st.permutations(range(6)))
def test_the_noise_of_a_user_is_the_same_on_every_node_and_in_every_order(
    rows, clip, arrival, order
):
    integers = noisy(clip, 2.0, len(USERS), 10.0)
    kept = [k for k in order if k in {k for part in groups(arrival) for k in part}]
    with np.errstate(over="ignore"):
        one = added(rows, clip, arrival, integers).total["words"]
        other = added(rows, clip, ([*kept], 0, 1), integers).total["words"]
    assert one.tobytes() == other.tobytes() and one.dtype == "<u4"


def test_users_draw_noise_of_their_own_and_anew_in_each_release():
    config = parse(many(CENTRAL) | {"privacy.seeded": True})
    event = budget.events(config, 8.0, TEN)["adapt"]
    drawn = []
    for name in ("adapt/0", "adapt/1"):
        release = Release(name, event, lambda n: bytes(n))
        whole = budget.integers(config, TEN, "adapt", 1.0, release)
        assert whole is not None
        drawn += [whole.share(user)(16) for user in USERS]
        assert whole.share("u0")(16) == drawn[-6]
    assert len(set(drawn)) == 2 * len(USERS)
    plain = parse(many(CENTRAL))
    whole = budget.integers(plain, TEN, "adapt", 1.0, Release("adapt/0", event, silent))
    assert whole is not None
    assert whole.share("u0")(16) != whole.share("u0")(16)  # from the operating system


def test_the_parts_of_a_sum_lie_where_they_belong():
    """Names in their order, and the clip bit behind them, up to the noise."""
    rows = {
        "v": np.full((3, 2, 2), 0.25, np.float32),
        "q": np.zeros((3, 3, 2), np.float32),
    }
    rows["q"][2] = 9.0  # longer than the clip
    integers = noisy(1.0, 1e-4, 3, 1e-4)
    found = unsealed(sum_rows(USERS[:3], rows, 1.0, integers), SHAPES, integers)
    plain = sum_rows(USERS[:3], rows, 1.0)
    for name in SHAPES:
        np.testing.assert_allclose(found.total[name], plain.total[name], atol=1e-3)
    assert found.bit == pytest.approx(plain.within - 3 / 2, abs=1e-3)
    assert plain.within == 2


def test_too_few_rows_and_a_sum_that_cannot_be_are_left_out():
    known = terms(1.0, 1.0, None, 6, 4)
    integers = Integers(known, lambda user: source(True, 5, user))
    votes = np.full((6, 5), 0.3, np.float32)
    few = sum_of_unit(votes[:3], USERS[:3], integers)
    with pytest.raises(LeftOut, match="3 rows came, and a sum needs 4"):
        unit_unsealed(few, USERS[:3], integers)
    good = sum_of_unit(votes, USERS, integers)
    unit_unsealed(good, USERS, integers)
    wrong = good + np.array([0, 0, 1 << 31, 0, 0], "<u4")
    with pytest.raises(LeftOut, match="longer than rows and noise can make it"):
        unit_unsealed(wrong, USERS, integers)


# --- a whole round -----------------------------------------------------------------------

WIDE = {"a": (100, 100), "b": (100, 100)}
WIDTH = 20_000


class Zeros:
    """A cohort whose users send rows of zeros; of some, nothing comes."""

    def __init__(self, missing: int) -> None:
        self.missing, self.sums = missing, list[Sum]()

    def update(self, users, clip, release, integers=None) -> Sum:
        here = users[self.missing :]
        rows = {n: np.zeros((len(here), *s), np.float32) for n, s in WIDE.items()}
        total = sum_rows(here, rows, clip, integers)
        found = unsealed(total, WIDE, integers)
        self.sums.append(found)
        return found

    def vote(self, users, bank, release, integers=None):
        here = users[self.missing :]
        zeros = np.zeros((len(here), len(bank)), np.float32)
        total = sum_of_unit(zeros, here, integers)
        return unit_unsealed(total, here, integers), list(here)

    users = tuple(f"u{k}" for k in range(10))
    development = ()


def run_of(config: dict, missing: int) -> Run:
    parsed = parse(config)
    people = range(parsed.users)
    dataset = cast(Any, SimpleNamespace(users=people, development=()))
    shared = {name: np.zeros(shape, np.float32) for name, shape in WIDE.items()}
    run = Run(
        parsed,
        State(shared),
        budget.new_ledger(None, parsed, budget.population_of(parsed, dataset)),
        dataset,
    )
    run.cohort = cast(Any, Zeros(missing))
    return run


def excess(noise: np.ndarray, variance: float) -> float:
    """Standard deviations by which noise has more energy than its variance."""
    mean = float(np.mean(np.square(noise, dtype=np.float64))) / variance
    return (mean - 1) / math.sqrt(2 / noise.size)


def published(run: Run) -> np.ndarray:
    """Noise of the sum of a round in which everybody sent zeros."""
    adapt.one_round(run, Zeros.users)
    counted = run.config.users
    return np.concatenate([a.ravel() for a in run.state.shared.values()]) * counted


def bank_of(size: int) -> tuple[Item, ...]:
    return tuple(Item(f"b/{k}", Prompt("", "p"), "t") for k in range(size))


ROUND = many(CENTRAL) | {"adapt.clip": 3.0}
CHARGED = (8.0 * 3.0) ** 2


@pytest.mark.parametrize("missing", [0, 1, 4])
def test_what_is_published_has_the_noise_that_is_charged_whoever_came(missing):
    """And as much as a run has whose server adds all of it."""
    run = run_of(ROUND, missing)
    assert abs(excess(published(run), CHARGED)) < 5
    # Before it is completed it has the shares of who came alone.
    (seen,) = cast(Any, run.cohort).sums
    noise = np.concatenate([a.ravel() for a in seen.total.values()])
    assert abs(excess(noise, CHARGED * (10 - missing) / 10)) < 5
    assert run.state.took_part["adapt"].keys() == set(Zeros.users[missing:])
    plain = run_of(ROUND | {"secagg.mode": "off"}, missing)
    assert abs(excess(published(plain), CHARGED)) < 5


def test_noise_of_the_missing_that_is_forgotten_is_noticed(monkeypatch):
    monkeypatch.setattr(adapt, "missing_noise", lambda shape, *_: np.zeros(shape))
    assert excess(published(run_of(ROUND, 4)), CHARGED) < -20


def test_a_share_that_is_all_of_the_noise_is_noticed(monkeypatch):
    def whole(z: float, sensitivity: float, _most: int) -> int:
        return share_variance(z, sensitivity, 1)

    monkeypatch.setattr(secure_rows, "share_variance", whole)
    monkeypatch.setattr(secure_rows, "fraction_bits", lambda *_: 20)
    assert excess(published(run_of(ROUND, 4)), CHARGED) > 20


def test_one_stream_for_all_users_is_noticed(monkeypatch):
    """Ten times one draw is longer than ten draws: no sum of rows and noise."""
    monkeypatch.setattr(budget, "share_of", lambda *_: source(True, 0, "one"))
    run = run_of(ROUND, 0)
    assert not published(run).any() and "adapt" not in run.state.took_part


@pytest.mark.parametrize("missing", [0, 4])
def test_votes_have_the_noise_that_is_charged(missing, monkeypatch):
    monkeypatch.setattr(pool, "candidates", lambda _run: bank_of(WIDTH))
    run = run_of(ROUND | {"privacy.votes": 0.5}, missing)
    made, name = pool.voted(run)
    noise = np.array([entry.weight for entry in made])
    assert name == "votes/0" and abs(excess(noise, 4.0**2)) < 5
    assert run.state.floor == pytest.approx(pool.VOTE_FLOOR * 4.0)


def test_a_sum_with_too_few_rows_is_paid_for_and_left_out(monkeypatch):
    run = run_of(ROUND, 5)
    adapt.one_round(run, Zeros.users)
    assert not any(array.any() for array in run.state.shared.values())
    assert len(run.ledger.charges) == 1 and "adapt" not in run.state.took_part
    monkeypatch.setattr(pool, "candidates", lambda _run: bank_of(9))
    voting = run_of(ROUND, 5)
    pool.pool(voting)
    assert voting.state.without_pool and len(voting.ledger.charges) == 1


def test_the_clip_follows_the_noisy_bits_of_the_users():
    run = run_of(ROUND | {"adapt.clip-quantile": 0.5}, 2)
    adapt.one_round(run, Zeros.users)
    (event,) = run.ledger.events()
    assert (event.clip_bit_z, event.server_clip_bit_z) == (10.0, 10 * math.sqrt(0.5))
    # Eight zeros, all shorter than the clip: b = 1/2 + (8/2 + noise of sd 5) / 10.
    moved = -math.log((run.state.clip or 0) / 3.0) / adapt.CLIP_RATE
    assert abs(moved - 0.4) < 5 * 0.5
    (seen,) = cast(Any, run.cohort).sums
    assert seen.bit is not None and seen.bit != 4.0
    # The standard deviation over many rounds.
    config, known = run.config, terms(3.0, 8.0, 10.0, 10, 6)
    share = Integers(known, lambda user: source(True, 1, user))
    release = Release("adapt/0", event, source(True, 2))
    drawn = []
    for k in range(200):
        total = sum(
            (report(np.zeros(1), 0.0, known, source(True, k, u)) for u in USERS),
            np.zeros(2, "<u4"),
        )
        bit = secure_rows.opened(total, 6, known).bit
        clip = adapt.next_clip(1.0, Sum({}, USERS, bit=bit), release, config, 10, share)
        drawn.append(-math.log(clip) / adapt.CLIP_RATE * 10 - 6 / 2)
    assert abs(excess(np.array(drawn), 5.0**2)) < 5


# --- what it costs -----------------------------------------------------------------------


def charged(count: int, rounds: int, colluding: float) -> Ledger:
    config = parse(
        many(CENTRAL, count)
        | {"secagg.colluding": colluding, "adapt.rounds": rounds}
        | {"privacy.delta": 1e-6}
    )
    people = Population(count, 0, count)
    ledger = budget.new_ledger(None, config, people)
    for number in range(rounds):
        budget.charge(ledger, config, people, "adapt", number)
    return ledger


@pytest.mark.parametrize(
    ("count", "rounds", "release", "server"),
    [
        (10, 3, 0.9084, {0.0: 1.1965, 0.1: 1.3206}),
        (1000, 10, 1.7430, {0.0: 2.3052, 0.1: 2.5487, 0.3: 3.3838}),
    ],
)
def test_the_epsilons_of_the_design_on_a_whole_ledger(count, rounds, release, server):
    for share, seen in server.items():
        ledger = charged(count, rounds, share)
        spent = ledger.spent()
        assert spent.release == pytest.approx(release, abs=6e-4)
        assert spent.participants == pytest.approx(seen, abs=1e-3)
        found = card(ledger, "r", "0", "0")["epsilon"]["dp_events_only"]
        assert found["server_knows_participants"] == spent.participants


def test_a_sampled_sum_counts_the_quorum_of_those_drawn_on_average():
    config = parse(
        {"users": 10_000, "development-users": 0, "adapt.rounds": 50}
        | CENTRAL
        | {"privacy.noise": 1.0, "privacy.sampling": 0.01, "privacy.cohort": 150}
        | ONE
    )
    people = Population(10_000, 0, 10_000)
    assert expected(config, 10_000, "adapt") == Expected(150, 60)
    event = budget.events(config, 1.0, people)["adapt"]
    assert event.server_z == math.sqrt((60 - 15) / 150)
    known = budget.terms_of(config, people, event, 1.0)
    assert (known.most, known.required) == (150, 60)
    # Metrics are of everybody, and no coins are tossed.
    assert expected(config, 10_000, "metrics") == Expected(10_000, 6000)
    assert expected(config, 10_000, "votes") == Expected(150, 90)


def test_where_all_honest_noise_is_gone_nothing_holds_against_the_server():
    config = parse(many(CENTRAL) | {"secagg.colluding": 0.6})
    event = budget.events(config, 8.0, TEN)["adapt"]
    assert event.server_z == 0
    both = epsilons({event: 1}, 1e-6)
    assert both.release < 1 and both.participants == math.inf
    ledger = budget.new_ledger(None, config, TEN)
    budget.charge(ledger, config, TEN, "adapt", 0)
    found = card(ledger, "r", "0", "0")
    assert found["epsilon"]["dp_events_only"]["server_knows_participants"] is None
    assert "infinite, no privacy guarantee" in "\n".join(describe(found))


def test_no_event_claims_that_a_server_sees_more_noise_than_there_is():
    with pytest.raises(ValueError, match="more noise than there is"):
        Event("adapt", 1.0, server_z=1.5)


def test_a_sum_that_was_cut_short_is_paid_for_again(tmp_path):
    """With new coins it is a second sum, and a server may have seen the first."""
    for mode, ids in (("off", ["adapt/0"]), ("sum", ["adapt/0", "adapt/1"])):
        config = parse(many(CENTRAL) | {"secagg.mode": mode})
        path = tmp_path / f"{mode}.json"
        ledger = budget.new_ledger(path, config, TEN)
        budget.charge(ledger, config, TEN, "adapt", 0)
        again = read_ledger(path)
        assert again.events() == ledger.events() and again.secagg == ledger.secagg
        release = budget.charge(again, config, TEN, "adapt", 0)
        assert [charge.id for charge in again.charges] == ids
        assert release.id == ids[-1]


def test_the_card_says_what_it_is_and_claims_nothing_of_rows():
    found = card(charged(10, 3, 0.1), "r", "0", "0")
    assert found["mode"] == "simulation"
    assert any("secagg.mode=sum" in why for why in found["simulation_because"])
    assert found["secagg"] == {
        "protocol": "none: integers and noise of users, without masks",
        "colluding": 0.1,
        "quorum": 0.6,
    }
    epsilon = found["epsilon"]
    assert epsilon["individual_updates_visible_to_server"]
    (event,) = found["events"]
    assert event["server_z"] == pytest.approx(8 * math.sqrt(0.5))
    assert event["notes"] == {"expected": 10, "required": 6}
    proven = found["claims"]["proven"]
    assert "(1.33, 1e-06)" in proven[1] and "nothing else" in proven[1]
    assert "the noise of 10 % of those expected" in proven[1]
    assumed = " ".join(found["claims"]["assumed"])
    assert "against it nothing is claimed" in assumed
    assert "floating point" not in assumed and "share of the noise" in assumed
    assert "single updates and votes, which the server sees" in str(
        found["not_covered"]
    )
    text = "\n".join(describe(found))
    assert "noise multiplier 8, before the server's noise 5.657" in text
    assert "sees these sums before it adds noise, and nothing else: epsilon" in text
    assert "sees no single update" not in text


def test_a_run_without_integers_has_the_card_that_it_had():
    config = parse(many(CENTRAL) | {"secagg.mode": "off"})
    ledger = budget.new_ledger(None, config, TEN)
    budget.charge(ledger, config, TEN, "adapt", 0)
    found = card(ledger, "r", "0", "0")
    assert found["secagg"] == {"protocol": "none"}
    assert not any("server_z" in event for event in found["events"])
    assert "expected" not in found["events"][0]["notes"]
    assert "sees no single update" in found["claims"]["proven"][1]


# --- what is refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"secagg.mode": "masked"}, "use one of off, sum, on"),
        ({"secagg.mode": "on", "adapt.wire": "int8"}, "set adapt.wire=float32"),
        (SUM | {"task": "text"} | ONE, "sees each of them"),
        (SUM | {"adapt.clip": 0.0}, "set a positive one"),
        (CENTRAL | {"privacy.sampling": 0.5}, "'privacy.cohort' is 0 by default"),
        (CENTRAL | {"privacy.vote-sampling": 0.5}, "'privacy.vote-sampling' is 0.5"),
    ],
)
def test_a_configuration_that_cannot_be_summed_is_refused(config, sentence):
    with pytest.raises(IdiolectError, match=sentence):
        parse({"privacy.delta": 1e-3} | config)


def test_sums_that_hide_nobody_or_do_not_fit_are_refused_unpaid():
    for people, noise, sentence in (
        (Population(2, 0, 2), 8.0, "a sum of 2 users of stage 'adapt' hides nobody"),
        (TEN, 1e9, "do not fit into 32 bits"),
    ):
        config = dataclasses.replace(parse(many(CENTRAL)))
        private = dataclasses.replace(config.privacy, noise=noise)
        config = dataclasses.replace(config, privacy=private)
        ledger = budget.new_ledger(None, config, people)
        with pytest.raises(IdiolectError, match=sentence):
            budget.charge(ledger, config, people, "adapt", 0)
        assert not ledger.charges


def test_terms_have_the_grids_of_the_design():
    assert terms(3.0, 0.0, None, 10, 0).grid == secure_rows.Grid(3.0, 32, 64)
    known = terms(3.0, 8.0, 10.0, 1000, 600)
    assert (known.grid.bits, known.grid.word, known.bits) == (20, 32, 1)
    assert known.bit_grid.unit * 2**19 == 0.5
    assert isinstance(known, Terms)
    drawn = missing_noise((2, 3), 1000, known, silent)
    assert drawn.shape == (2, 3) and not drawn.any()  # nobody is missing
    words = sum_words((), {"a": np.zeros((0, 7))}, Integers(known, lambda _: silent))
    assert words.shape == (8,)
