"""Runs with central differential privacy: what is charged, clipped, noised and refused."""

import dataclasses
import json
import math
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import Message

from idiolect.client.node import state as device
from idiolect.client.node.handlers import HANDLERS
from idiolect.common.config import parse, parse_word
from idiolect.common.errors import IdiolectError
from idiolect.common.protocol import manifest as manifests
from idiolect.common.protocol.messages import (
    AdaptRequest,
    EvaluateReply,
    OfferReply,
    PersonaliseRequest,
    VoteRequest,
)
from idiolect.common.protocol.packing import pack, unpack
from idiolect.common.protocol.signed import (
    brought,
    complete,
    make_part,
    read_sealed,
    seal_request,
)
from idiolect.server.privacy.accountant import epsilons
from idiolect.server.privacy.ledger import BudgetSpent, read_ledger
from idiolect.server.run import adapt, budget, checkpoint
from idiolect.server.run import personalise as phases
from idiolect.server.run.sums import Sum
from tests.server.federation import FakeGrid, events, node_error, results, run
from tests.server.run.test_run import Killed, alter, new_process, rows_of

pytestmark = pytest.mark.slow

CENTRAL = {
    "privacy.mode": "central",
    "privacy.seeded": True,
    "privacy.delta": 1e-3,
    "methods": "shared,c-bpo",
    "personalise.learning-rates": "1e-3",
    "users-per-node": 1,
}


PEOPLE = budget.Population(3, 2, 5)


@pytest.fixture
def central(settings) -> dict:
    return settings | CENTRAL


def tasks_of(kind: str, cls, seen: list):
    """A `FakeGrid` change that notes the tasks of one kind."""
    parts: dict[str, bytes] = {}  # by hash: each came once

    def note(task: Message, reply: Message) -> Message:
        found = read_sealed(HANDLERS[task.metadata.message_type][0], task.content)
        came = brought(task.content, found.seal)
        parts.update({found.seal.parts[name]: data for name, data in came.items()})
        if task.metadata.message_type == kind:
            assert found.cls is cls
            own = {n: parts[digest] for n, digest in found.seal.parts.items()}
            seen.append(complete(found, own))
        return reply

    return note


# --- the plan and the ledger ----------------------------------------------------------


def test_the_vote_is_planned_for_everybody_who_may_vote():
    config = parse(
        {
            "privacy.mode": "central",
            "adapt.users": "development",
            "privacy.cohort": 30,
            "privacy.vote-sampling": 0.5,
            "privacy.delta": 1e-3,
        }
    )
    dataset = cast(Any, SimpleNamespace(users=range(40), development=range(30)))
    people = budget.population_of(config, dataset)
    assert (people.adapting, people.everybody) == (30, 70)
    ledger = budget.new_ledger(None, config, people)
    assert ledger.population == 70
    for number in range(config.adapt.rounds):
        budget.charge(ledger, config, people, "adapt", number)
    budget.charge(ledger, config, people, "votes", 0)
    assert ledger.spent().release <= config.privacy.epsilon


def test_a_bank_made_of_the_data_set_is_no_public_bank():
    real = {"privacy.mode": "central", "data": "x", "task": "LaMP-4"}
    (entry, *_) = budget.unprotected(parse(real))
    assert "bank of histories of the same data set" in entry[1]
    filed = budget.unprotected(parse(real | {"unlabeled.file": "bank.jsonl"}))
    assert [stage for stage, *_ in filed] == ["metrics"]


def test_the_planned_releases_spend_the_budget_and_no_more(central):
    folder = run(central, FakeGrid(5))
    ledger = read_ledger(folder / "ledger.json")
    assert [charge.id for charge in ledger.charges] == ["adapt/0", "adapt/1", "votes/0"]
    spent = ledger.spent()
    assert 0.97 * 8 < spent.release <= 8
    assert spent.participants == pytest.approx(spent.release, rel=0.02)  # q is 1
    card = json.loads((folder / "privacy_card.json").read_text())
    assert card == results(folder)["privacy"]
    noisy = card["epsilon"]["dp_events_only"]
    assert noisy["release_observer"] == pytest.approx(spent.release)
    # Metrics per user are in the clear: nothing of this run holds a guarantee.
    assert card["epsilon"]["release_observer"] is None
    assert card["mode"] == "simulation"
    assert results(folder)["run"]["simulation"] is True
    assert {event["stage"]: event["rounds"] for event in card["events"]} == {
        "adapt": 2,
        "votes": 1,
    }


def test_a_round_beyond_the_budget_is_refused_and_the_run_ends_with_what_it_has(
    central,
):
    few = central | {"privacy.noise": 1.0, "adapt.rounds": 5, "privacy.epsilon": 6.0}
    one = epsilons({budget.Event("adapt", 1.0): 1}, 1e-3).release
    three = epsilons({budget.Event("adapt", 1.0): 3}, 1e-3).release
    assert one < 6.0
    folder = run(few, FakeGrid(5))
    ledger = read_ledger(folder / "ledger.json")
    assert ledger.spent().release <= 6.0
    rounds = sum(charge.event.stage == "adapt" for charge in ledger.charges)
    assert 1 <= rounds < 5 and (rounds < 3 or three <= 6.0)
    found = results(folder)
    # The vote was refused too: no unlabeled set, so no C-BPO, but the run ends well.
    assert list(found["methods"]) == ["shared"]
    warnings = " ".join(entry["message"] for entry in events(folder, "warning"))
    assert "adapt ends after" in warnings and "no unlabeled set" in warnings
    assert events(folder)[-1]["event"] == "finished"


def test_no_task_of_a_release_is_sent_before_it_is_charged(central):
    uncharged: list[str] = []
    path = Path(central["run.folder"]) / "charged" / "ledger.json"

    def look(task: Message, reply: Message) -> Message:
        names = {"train.adapt": AdaptRequest, "query.vote": VoteRequest}
        if task.metadata.message_type in names:
            body = json.loads(str(task.content.config_records["message"]["body"]))
            on_disk = {charge.id for charge in read_ledger(path).charges}
            if body["release"] not in on_disk:
                uncharged.append(body["release"])
        return reply

    run(central | {"run.name": "charged"}, FakeGrid(5, look))
    assert uncharged == []


# --- what the noise and the clip do ---------------------------------------------------


def shared_of(folder: Path) -> np.ndarray:
    arrays = checkpoint.load(folder, {}).shared
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)]).astype(
        float
    )


def test_the_noise_has_the_charged_size(central):
    """192 coordinates: their standard deviation is off by 25 % in 1e-6 of the seeds."""
    plain = central | {"adapt.rounds": 1, "methods": "shared", "adapt.clip": 0.5}
    exact = shared_of(run(plain | {"privacy.epsilon": math.inf}, FakeGrid(5)))
    noisy = shared_of(run(plain | {"privacy.noise": 3.0}, FakeGrid(5)))
    difference = noisy - exact
    assert len(difference) == 192
    assert difference.std() == pytest.approx(3.0 * 0.5 / 5, rel=0.25)
    assert abs(difference.mean()) < 5 * 0.3 / math.sqrt(len(difference))


def test_without_noise_the_central_round_is_the_exact_average(central):
    plain = {"adapt.rounds": 1, "methods": "shared"}
    exact = shared_of(run(central | plain | {"privacy.epsilon": math.inf}, FakeGrid(5)))
    plain |= {"privacy.mode": "off", "adapt.wire": "float32", "run.name": "off"}
    off = shared_of(run(central | plain, FakeGrid(5)))
    np.testing.assert_array_equal(exact, off)


def test_noise_from_the_operating_system_never_repeats(central):
    plain = central | {"adapt.rounds": 1, "methods": "shared", "privacy.seeded": False}
    one, two = (
        shared_of(run(plain | {"run.name": name}, FakeGrid(5))) for name in "ab"
    )
    assert (one != two).mean() > 0.9  # two numbers of 192 may round to the same
    card = json.loads((Path(plain["run.folder"]) / "a/privacy_card.json").read_text())
    assert card["rng"] == "operating system"


def test_a_sampled_round_asks_whom_the_coins_name_and_divides_by_the_expectation(
    central,
):
    seen: list[AdaptRequest] = []
    rows: dict[str, dict] = {}

    def watch(record):
        reply = rows_of(record)
        rows.update(
            {
                u: {n: a[i] for n, a in reply.rows.items()}
                for i, u in enumerate(reply.users)
            }
        )
        return record

    note = tasks_of("train.adapt", AdaptRequest, seen)
    keep = alter("train.adapt", watch)
    plain = central | {"adapt.rounds": 1, "methods": "shared", "seed": 3}
    plain |= {"privacy.sampling": 0.5, "privacy.epsilon": math.inf}
    folder = run(plain, FakeGrid(5, lambda task, reply: keep(task, note(task, reply))))
    asked = {user for task in seen for user in task.users}
    assert 0 < len(asked) < 5
    shared = checkpoint.load(folder, {}).shared
    for name, array in shared.items():
        total = sum(row[name].astype(float) for row in rows.values())
        np.testing.assert_allclose(array, total / (0.5 * 5), atol=1e-7)
    state = checkpoint.load(folder, {})
    assert set(state.took_part["adapt"]) == asked


def test_the_clip_follows_the_quantile(central):
    plain = central | {"adapt.rounds": 2, "methods": "shared"}
    plain |= {"adapt.clip-quantile": 0.5, "privacy.epsilon": math.inf}
    seen: list[AdaptRequest] = []
    run(plain, FakeGrid(5, tasks_of("train.adapt", AdaptRequest, seen)))
    # All updates are shorter than 10, so the clip comes down: exp(-.2 (1 - .5)).
    first, second = sorted({task.clip for task in seen}, reverse=True)
    assert first == 10.0
    assert second == pytest.approx(10 * math.exp(-0.1), rel=1e-9)


def test_the_clip_bit_is_part_of_its_rounds_event():
    config = parse({"privacy.mode": "central", "adapt.clip-quantile": 0.5})
    event = budget.events(config, 1.0, PEOPLE)["adapt"]
    assert event.clip_bit_z == 10.0
    fixed = parse({"privacy.mode": "central"})
    assert budget.events(fixed, 1.0, PEOPLE)["adapt"].clip_bit_z == 0


@pytest.mark.parametrize(("within", "expected"), [(0, 0.1), (10, -0.1), (5, 0.0)])
def test_next_clip_closed_form(within, expected):
    config = parse({"privacy.mode": "central", "adapt.clip-quantile": 0.5})
    event = dataclasses.replace(budget.Event("adapt", 1.0), clip_bit_z=0.0)
    release = budget.Release("adapt/0", event, lambda n: bytes(n))
    found = Sum({}, ["u"] * 10, within)
    got = adapt.next_clip(2.0, found, release, config, 10)
    assert got == pytest.approx(2.0 * math.exp(expected))


def test_a_cohort_counts_as_itself_where_it_is_what_takes_part():
    """Over q N = 200 the mean of 20 updates would be a tenth of it, and b below .55."""
    config = parse(
        {
            **{"privacy.mode": "central", "privacy.cohort": 20},
            **{"adapt.clip-quantile": 0.8, "privacy.sampling": 1.0},
        }
    )
    wide = dataclasses.replace(config.privacy, cohort=500)
    assert adapt.expected(config, 200) == 20
    assert adapt.expected(dataclasses.replace(config, privacy=wide), 200) == 200
    event = dataclasses.replace(budget.Event("adapt", 1.0), clip_bit_z=0.0, z=0.0)
    release = budget.Release("adapt/0", event, lambda n: bytes(n))
    rows = {"b": np.zeros((2, 1), np.float32)}
    total = {"b": np.full((2, 1), 20.0)}
    moved = adapt.released(rows, total, release, 1.0, config, 200)
    assert moved["b"].tolist() == [[1.0], [1.0]]
    # All are within the clip, so it comes down: exp(-.2 (1 - .8)).
    got = adapt.next_clip(2.0, Sum({}, ["u"] * 20, 20), release, config, 200)
    assert got == pytest.approx(2.0 * math.exp(-0.04))


# --- participation --------------------------------------------------------------------


def test_a_device_refuses_more_releases_than_it_agreed_to(central):
    capped = central | {"privacy.participations": 1, "methods": "shared"}
    folder = run(capped, FakeGrid(5))
    agreed = device.agreed(device.FolderStore(folder), "persona-000")
    assert list(agreed.took["adapt"]) == ["adapt/0"]
    # The second round had nobody left: it was paid for and left out, and the run went on.
    warnings = " ".join(entry["message"] for entry in events(folder, "warning"))
    assert "took part in 1 releases of stage 'adapt'" in warnings
    assert "round 2/2: 0 of 5: left out" in warnings
    ledger = read_ledger(folder / "ledger.json")
    assert sum(charge.event.stage == "adapt" for charge in ledger.charges) == 2
    assert ledger.observed_participations["adapt"] == 1
    # Who knows who took part holds one release of each stage against a user, not two.
    twice = epsilons(ledger.events(), 1e-3)
    assert ledger.spent().participants < twice.participants


def test_a_round_that_is_left_out_moves_nothing(central):
    def die(task: Message, reply: Message) -> Message:
        second = "adapt/1" in str(task.content.config_records["message"]["body"])
        if second and task.metadata.message_type == "train.adapt":
            return node_error(task, "gone")
        return reply

    plain = central | {"methods": "shared"}
    one = shared_of(run(plain | {"run.name": "one"}, FakeGrid(5, die)))
    whole = plain | {"adapt.rounds": 1, "privacy.noise": 1.0, "privacy.epsilon": 50.0}
    part = plain | {"adapt.rounds": 2, "privacy.noise": 1.0, "privacy.epsilon": 50.0}
    first = shared_of(run(whole | {"run.name": "whole"}, FakeGrid(5)))
    left = shared_of(run(part | {"run.name": "part"}, FakeGrid(5, die)))
    np.testing.assert_array_equal(first, left)
    assert one.any()


def test_a_release_that_is_asked_for_again_counts_once(tmp_path):
    store = device.FolderStore(tmp_path)
    device.pin(store, "u", "key", 1, "c")
    for _ in range(3):
        device.take_part(store, "u", "adapt", "adapt/4", "hash")
    with pytest.raises(
        IdiolectError, match="as many as privacy.participations allowed"
    ):
        device.take_part(store, "u", "adapt", "adapt/5", "hash")
    with pytest.raises(IdiolectError, match="something else is asked for as 'adapt/4'"):
        device.take_part(store, "u", "adapt", "adapt/4", "another")
    device.take_part(store, "u", "votes", "votes/0", "bank")
    assert device.agreed(store, "u").took == {
        "adapt": {"adapt/4": "hash"},
        "votes": {"votes/0": "bank"},
    }


def test_the_cap_is_that_of_the_first_contact(tmp_path):
    store = device.FolderStore(tmp_path)
    device.pin(store, "u", "key", 1, "c")
    device.pin(store, "u", "key", 99, "c")
    device.take_part(store, "u", "adapt", "adapt/0", "")
    with pytest.raises(IdiolectError, match="allowed at first contact"):
        device.take_part(store, "u", "adapt", "adapt/1", "")


def test_a_damaged_count_is_not_begun_anew(tmp_path):
    store = device.FolderStore(tmp_path)
    store.write("devices/u.json", b'{"took": {"adapt": [')
    with pytest.raises(IdiolectError, match="damaged.*backup"):
        device.take_part(store, "u", "adapt", "adapt/0", "")


# --- votes ----------------------------------------------------------------------------


def test_votes_are_released_with_noise_and_a_floor(central):
    plain = central | {"adapt.rounds": 0, "methods": "shared"}
    exact = run(plain | {"privacy.epsilon": math.inf}, FakeGrid(5))
    noisy = run(plain | {"privacy.noise": 2.0, "privacy.votes": 0.5}, FakeGrid(5))
    weights = [
        np.array([entry.weight for entry in checkpoint.load(f, {}).unlabeled or ()])
        for f in (exact, noisy)
    ]
    difference = weights[1] - weights[0]
    assert 0.5 < difference.std() < 1.6  # z = 1, 24 draws
    state = checkpoint.load(noisy, {})
    assert state.floor == pytest.approx(0.5 * 1.0)
    manifest = manifests.parse(state.manifest)
    assert (manifest.vote, manifest.floor) == ("votes/0", state.floor)


def test_only_those_who_voted_take_their_vote_out(central, monkeypatch):
    from idiolect.common.unlabeled import draws

    taken: dict[str, bool] = {}
    original = draws.not_own

    def watch(reference, user, unlabeled, config):
        assert unlabeled.voters is not None
        taken[user.id] = user.id in unlabeled.voters
        return original(reference, user, unlabeled, config)

    monkeypatch.setattr(draws, "not_own", watch)
    half = central | {"privacy.vote-sampling": 0.5, "seed": 2}
    folder = run(half, FakeGrid(5))
    voted = set(checkpoint.load(folder, {}).took_part["votes"])
    assert 0 < len(voted) < 5
    evaluated = {user for user in taken if user.startswith("persona")}
    assert {user for user in evaluated if taken[user]} == voted & evaluated


def test_the_bank_can_be_written_by_the_shared_adapter(central):
    written = central | {"unlabeled.bank-from": "shared", "methods": "c-bpo"}
    folder = run(written, FakeGrid(5))
    state = checkpoint.load(folder, {})
    assert state.unlabeled
    assert all(entry.item.id.startswith("shared/") for entry in state.unlabeled)
    # What the model wrote is told from people's text by anybody: alpha is no estimate.
    assert results(folder)["run"]["alpha_estimated"] is False


def test_votes_by_hidden_states(central):
    folder = run(central | {"unlabeled.features": "backbone"}, FakeGrid(5))
    manifest = manifests.parse(checkpoint.load(folder, {}).manifest)
    assert manifest.features == "backbone"
    assert set(results(folder)["methods"]) == {"shared", "c-bpo"}


# --- anonymised -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["off", "central"])
def test_anonymised_items_are_scrubbed_supported_and_said_to_be_no_dp(central, mode):
    plain = central | {"unlabeled.kind": "anonymised", "privacy.mode": mode}
    plain |= {"unlabeled.buckets": 3, "unlabeled.support": 4}
    folder = run(plain, FakeGrid(5))
    entries = checkpoint.load(folder, {}).unlabeled
    assert entries
    assert all(
        entry.owner == "" and "persona" not in entry.item.id for entry in entries
    )
    card = results(folder)["privacy"]
    assert any("not differential privacy" in r["why"] for r in card["open_releases"])
    assert card["epsilon"]["release_observer"] is None


def test_text_that_was_not_scrubbed_is_not_handed_out(central):
    """A device that does not scrub must not get its secret to everybody."""

    def careless(record):
        reply = unpack(OfferReply, record)
        items = {
            user: tuple(
                dataclasses.replace(item, target=f"{item.target}, jane@example.org")
                for item in offered
            )
            if user == "persona-000"
            else offered
            for user, offered in reply.items.items()
        }
        return pack(dataclasses.replace(reply, items=items))

    plain = central | {"unlabeled.kind": "anonymised", "methods": "shared"}
    plain |= {"unlabeled.buckets": 2, "unlabeled.support": 3}
    careful = checkpoint.load(run(plain, FakeGrid(5)), {}).unlabeled
    folder = run(plain, FakeGrid(5, alter("query.offer", careless)))
    entries = checkpoint.load(folder, {}).unlabeled
    assert careful and entries and len(entries) < len(careful)
    assert not any("jane" in entry.item.target for entry in entries)


def test_too_little_support_hands_out_nothing(central):
    plain = central | {"unlabeled.kind": "anonymised", "unlabeled.support": 6}
    grid = FakeGrid(5)
    with pytest.raises(
        IdiolectError, match="none of the 24 buckets has items of 6 users"
    ):
        run(plain | {"unlabeled.buckets": 24}, grid)
    assert "query.offer" not in grid.kinds


# --- signatures -----------------------------------------------------------------------


@pytest.fixture
def altered(monkeypatch):
    """Lets a test change each personalise task before it is sealed, by the right key."""

    def to(change) -> None:
        def seal(task, node, counter, parts, *rest):
            if isinstance(task, PersonaliseRequest):
                task = change(task)
                parts = {n: make_part(n, getattr(task, n)) for n in parts}
            return seal_request(task, node, counter, parts, *rest)

        monkeypatch.setattr("idiolect.server.run.exchange.seal_request", seal)

    return to


def test_a_changed_item_is_refused_by_every_device(central, altered):
    """Whoever seals the tasks of a server cannot change what its manifest names."""

    def forge(task):
        first, *rest = task.unlabeled
        item = dataclasses.replace(first.item, target="something else")
        changed = dataclasses.replace(first, item=item)
        return dataclasses.replace(task, unlabeled=(changed, *rest))

    altered(forge)
    with pytest.raises(IdiolectError, match="only 0 of 3 users") as caught:
        run(central, FakeGrid(5))
    assert "are not the signed ones" in str(caught.value)


def test_a_changed_floor_breaks_the_signature(central, altered):
    def forge(task):
        manifest = json.loads(task.manifest)
        manifest["floor"] += 1
        text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
        return dataclasses.replace(task, manifest=text)

    altered(forge)
    with pytest.raises(IdiolectError, match="manifest's signature does not fit"):
        run(central, FakeGrid(5))


def test_a_task_that_was_changed_on_the_way_is_refused(central):
    class Altered(FakeGrid):
        def push_messages(self, messages):
            messages = list(messages)
            for message in messages:
                if message.metadata.message_type == "train.personalise":
                    head = message.content.config_records["message"]
                    head["body"] = str(head["body"]).replace("c-bpo", "sft  ")
            return super().push_messages(messages)

    with pytest.raises(IdiolectError, match="not signed with the key"):
        run(central, Altered(5))


def test_another_key_is_refused_after_the_first_contact(central):
    folder = run(central | {"methods": "shared", "run.name": "keyed"}, FakeGrid(5))
    (folder / "checkpoint/signing.key").unlink()
    with pytest.raises(IdiolectError, match="not the one that was pinned"):
        run(central | {"methods": "shared", "run.resume": "keyed"}, FakeGrid(5))


def test_an_expired_manifest_is_renewed_on_resume(central, monkeypatch):
    seen: list[PersonaliseRequest] = []
    original = checkpoint.save

    def die_after_pool(folder, state):
        original(folder, state)
        if state.unlabeled is not None:
            raise Killed

    monkeypatch.setattr("idiolect.server.run.live.save", die_after_pool)
    monkeypatch.setattr("idiolect.server.run.signing.VALID_DAYS", 0.001)
    short = central
    with pytest.raises(Killed):
        run(short | {"run.name": "late"}, FakeGrid(5))
    monkeypatch.setattr("idiolect.server.run.live.save", original)
    new_process()
    folder = Path(short["run.folder"]) / "late"
    before = manifests.parse(checkpoint.load(folder, {}).manifest)
    late = before.expires + 1
    for module in (
        "idiolect.server.run.signing.time",
        "idiolect.client.node.agreement.time",
    ):
        monkeypatch.setattr(f"{module}.time", lambda: late)
    run(
        short | {"run.resume": "late"},
        FakeGrid(5, tasks_of("train.personalise", PersonaliseRequest, seen)),
    )
    after = manifests.parse(seen[0].manifest)
    assert after.version == before.version + 1
    assert after.previous == manifests.digest(before)
    assert (after.content, after.vote) == (before.content, before.vote)


# --- metrics as a release -------------------------------------------------------------

NOISY = {"privacy.metrics": "noisy", "privacy.metrics-noise": 0.02}


def test_noisy_metrics_leave_no_value_of_any_user(central):
    replies: list[EvaluateReply] = []

    def watch(record):
        arrays = record.array_records["arrays"]
        shape = tuple(arrays["sums/sums"].shape)
        replies.append(unpack(EvaluateReply, record, lambda _f: {"sums": shape}))
        return record

    noisy = central | NOISY | {"privacy.seeded": False, "privacy.epsilon": 50.0}
    noisy |= {"privacy.metrics-noise": 1.0}
    folder = run(noisy, FakeGrid(5, alter("evaluate", watch)))
    found = results(folder)
    assert found["users"] == {} and found["pairs"] == {} and found["split"] == {}
    assert found["run"]["alpha"] == {}
    assert all(reply.metrics == {} for reply in replies)
    assert {len(reply.users) for reply in replies} == {1}
    card = found["privacy"]
    assert card["mode"] == "central" and card["simulation_because"] == []
    assert card["epsilon"]["release_observer"] <= 50
    assert found["run"]["simulation"] is False
    stages = {event["stage"]: event["rounds"] for event in card["events"]}
    assert stages == {"adapt": 2, "votes": 1, "metrics": 2}
    state = checkpoint.load(folder, {})
    assert all(
        o.log == {} and o.alpha is None for o in state.outcomes["c-bpo"].values()
    )


def test_noisy_metrics_are_near_the_exact_ones_where_the_noise_is_small(central):
    plain = central | {"methods": "shared", "adapt.rounds": 0, "privacy.noise": 1.0}
    plain |= {"privacy.epsilon": math.inf}
    exact = results(run(plain, FakeGrid(5)))["methods"]["shared"]
    noisy = results(run(plain | NOISY, FakeGrid(5)))["methods"]["shared"]
    assert noisy["nll"]["n"] == 3
    assert noisy["nll"]["mean"] == pytest.approx(exact["nll"]["mean"], abs=1e-4)
    # It compares with another user's text, so one user would move the rows of others.
    assert "contrast" not in noisy


def test_a_row_of_metrics_that_is_a_little_too_long_is_clipped(central, monkeypatch):
    totals: list[np.ndarray] = []
    monkeypatch.setattr(
        budget, "gaussian", lambda shape, _std, _random: np.zeros(shape)
    )
    monkeypatch.setattr(
        phases, "means_of_sum", lambda total, _names, _std: totals.append(total) or {}
    )
    plain = central | NOISY | {"methods": "shared", "adapt.rounds": 0}
    plain |= {"privacy.noise": 1.0, "privacy.epsilon": math.inf}
    for length in (1 + 9e-6, 0.0):

        def stretch(record, length=length):
            shape = tuple(record.array_records["arrays"]["sums/sums"].shape)
            reply = unpack(EvaluateReply, record, lambda _f: {"sums": shape})
            if reply.users != ("persona-001",):
                return record
            row = np.full(shape, length / shape[1] ** 0.5, np.float32)
            return pack(dataclasses.replace(reply, sums={"sums": row}))

        run(
            plain | {"run.name": f"l{length:g}"},
            FakeGrid(5, alter("evaluate", stretch)),
        )
    assert 1 - 1e-6 < np.linalg.norm(totals[0] - totals[1]) <= 1


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"evaluate.users": 2}, "evaluate.users"),
        ({"privacy.participations": 1}, "2 methods are 2 releases"),
    ],
)
def test_settings_that_noisy_metrics_cannot_keep_are_refused(central, change, match):
    with pytest.raises(IdiolectError, match=match):
        run(central | NOISY | change)


def test_several_learning_rates_cannot_be_chosen_from_without_a_release(central):
    rates = {"personalise.learning-rates": "1e-3,3e-3"}
    with pytest.raises(IdiolectError, match="release that no noise covers"):
        run(central | NOISY | rates)


# --- killed and resumed ---------------------------------------------------------------


def test_killed_between_charge_and_release_the_ledger_is_on_the_safe_side(central):
    def die(task: Message, reply: Message) -> Message:
        if task.metadata.message_type == "train.adapt":
            raise Killed
        return reply

    generous = central | {"privacy.noise": 2.0, "privacy.epsilon": 100.0}
    with pytest.raises(Killed):
        run(generous | {"run.name": "cut"}, FakeGrid(5, die))
    folder = Path(generous["run.folder"]) / "cut"
    assert [c.id for c in read_ledger(folder / "ledger.json").charges] == ["adapt/0"]
    run(generous | {"run.resume": "cut"}, FakeGrid(5))
    charges = read_ledger(folder / "ledger.json").charges
    # Nothing of the round that was cut short had been released: what was paid for it is
    # used, once, and never forgotten.
    assert [c.id for c in charges] == ["adapt/0", "adapt/1", "votes/0"]
    assert [c.note["round"] for c in charges[:2]] == [0, 1]


@pytest.mark.parametrize("cut", ["train.adapt", "query.vote", "train.personalise"])
def test_a_crash_anywhere_costs_a_calibrated_run_nothing(central, cut):
    """The budget is planned to the last release: a second charge would forfeit the vote."""
    done = {"first": True}

    def die(task: Message, reply: Message) -> Message:
        if task.metadata.message_type == cut and done.pop("first", False):
            raise Killed
        return reply

    whole = run(central | {"run.name": "whole"}, FakeGrid(5))
    new_process()
    with pytest.raises(Killed):
        run(central | {"run.name": "cut"}, FakeGrid(5, die))
    new_process()
    folder = run(central | {"run.resume": "cut"}, FakeGrid(5))
    assert [c.id for c in read_ledger(folder / "ledger.json").charges] == [
        "adapt/0",
        "adapt/1",
        "votes/0",
    ]
    # Seeded, the coins and the noise of a release are those of its id.
    np.testing.assert_array_equal(shared_of(folder), shared_of(whole))
    assert results(folder)["users"] == results(whole)["users"]


def test_with_privacy_the_journal_names_nobody_who_took_part(central):
    folder = run(central, FakeGrid(5))
    assert events(folder, "user") == []


def test_a_finished_round_is_not_paid_for_again(central, monkeypatch):
    original = checkpoint.save

    def die_after_adapt(folder, state):
        original(folder, state)
        if state.rounds == 2:
            raise Killed

    monkeypatch.setattr("idiolect.server.run.live.save", die_after_adapt)
    with pytest.raises(Killed):
        run(central | {"run.name": "cut"}, FakeGrid(5))
    monkeypatch.setattr("idiolect.server.run.live.save", original)
    folder = Path(central["run.folder"]) / "cut"
    sent = shared_of(folder)
    run(central | {"run.resume": "cut"}, FakeGrid(5))
    charges = read_ledger(folder / "ledger.json").charges
    assert [c.id for c in charges] == ["adapt/0", "adapt/1", "votes/0"]
    np.testing.assert_array_equal(shared_of(folder), sent)


def test_a_lost_ledger_is_not_begun_anew(central):
    folder = run(central | {"methods": "shared", "run.name": "lost"}, FakeGrid(5))
    (folder / "ledger.json").write_text("{}")
    with pytest.raises(IdiolectError, match="unknown"):
        run(central | {"methods": "shared", "run.resume": "lost"}, FakeGrid(5))
    (folder / "ledger.json").unlink()
    with pytest.raises(IdiolectError, match="is gone.*restore"):
        run(central | {"methods": "shared", "run.resume": "lost"}, FakeGrid(5))


def test_nobody_is_asked_twice_in_a_refused_round(central):
    with pytest.raises(BudgetSpent):
        config = parse({"privacy.mode": "central", "privacy.noise": 0.01})
        ledger = budget.new_ledger(None, config, PEOPLE)
        budget.charge(ledger, config, PEOPLE, "adapt", 0)


def test_a_reply_that_comes_twice_counts_once(central):
    """The grid may deliver a reply again; the sum must not change."""

    class Twice(FakeGrid):
        def pull_messages(self, message_ids):
            found = list(super().pull_messages(message_ids))
            return [*found, *found]

    plain = central | {"adapt.rounds": 1, "methods": "shared"}
    one = shared_of(run(plain | {"run.name": "one"}, FakeGrid(5)))
    two = shared_of(run(plain | {"run.name": "two"}, Twice(5)))
    np.testing.assert_array_equal(one, two)


def test_a_row_of_another_step_is_not_added(central):
    def replay(record):
        reply = rows_of(record)
        stale = dataclasses.replace(reply, step="adapt/0/adapt/7/0")
        return pack(stale if reply.users == ("dev-001",) else reply)

    plain = central | {"adapt.rounds": 1, "methods": "shared", "quorum": 0.5}
    folder = run(plain, FakeGrid(5, alter("train.adapt", replay)))
    assert "ignored" in checkpoint.load(folder, {}).failed["dev-001"]
    assert set(checkpoint.load(folder, {}).took_part["adapt"]) == {
        "persona-000",
        "persona-001",
        "persona-002",
        "dev-000",
    }


def test_the_private_command_of_the_readme_has_a_finite_epsilon():
    """Nothing of it leaves without noise, and what it plans stays within its budget."""
    text = (Path(__file__).parents[3] / "README.md").read_text().replace("\\\n", "")
    (line,) = [one for one in text.splitlines() if "privacy.mode=central -c" in one]
    words = shlex.split(line, comments=True)[3:]
    given = dict(word.split("=", 1) for word in words if word != "-c")
    config = parse({name: parse_word(name, value) for name, value in given.items()})
    assert budget.unprotected(config) == []
    counts = {"users": config.users, "development": config.development_users}
    dataset = SimpleNamespace(**{key: range(count) for key, count in counts.items()})
    people = budget.population_of(config, cast(Any, dataset))
    planned = budget.programme(config, budget.noise_of(config, people), people)
    assert {event.stage for event in planned} == {"adapt", "votes", "metrics"}
    assert 7.9 < epsilons(planned, config.privacy.delta).release <= 8


def test_what_leaves_without_noise_names_its_setting():
    def named(**more: object) -> set[str]:
        values = {name.replace("_", "."): value for name, value in more.items()}
        return {entry[3] for entry in budget.unprotected(parse(values))}

    assert named() == {"privacy.mode=off"}
    assert named(privacy_mode="central") == {"privacy.metrics=clear"}
    others = named(privacy_mode="central", unlabeled_kind="others")
    assert others == {"privacy.metrics=clear", "unlabeled.kind=others"}
