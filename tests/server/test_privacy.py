"""Runs with central differential privacy: what is charged, clipped, noised and refused."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message

from idiolect.client import state as device
from idiolect.common import manifest as manifests
from idiolect.common.config import parse
from idiolect.common.errors import IdiolectError
from idiolect.common.privacy.ledger import BudgetSpent, epsilons, read_ledger
from idiolect.common.protocol import (
    AdaptTask,
    EvaluateReply,
    OfferReply,
    PersonaliseTask,
    VoteTask,
    pack,
    unpack,
)
from idiolect.server import adapt, budget, checkpoint

from .federation import FakeGrid, events, results, run
from .test_run import Killed, alter, new_process, rows_of

CENTRAL = {
    "privacy.mode": "central",
    "privacy.seeded": True,
    "privacy.delta": 1e-3,
    "methods": "shared,c-bpo",
    "personalise.learning-rates": "1e-3",
    "users-per-node": 1,
}


@pytest.fixture
def central(settings) -> dict:
    return settings | CENTRAL


def tasks_of(kind: str, cls, seen: list):
    """A `FakeGrid` change that notes the tasks of one kind."""

    def note(task: Message, reply: Message) -> Message:
        if task.metadata.message_type == kind:
            shapes = {}
            if "arrays" in task.content.array_records:
                arrays = task.content.array_records["arrays"]
                shapes = {
                    key.partition("/")[2]: tuple(a.shape) for key, a in arrays.items()
                }
            seen.append(unpack(cls, task.content, lambda _fields: shapes))
        return reply

    return note


# --- the plan and the ledger ----------------------------------------------------------


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
    path = Path(central["output-dir"]) / "charged" / "ledger.json"

    def look(task: Message, reply: Message) -> Message:
        names = {"train.adapt": AdaptTask, "query.vote": VoteTask}
        if task.metadata.message_type in names:
            body = json.loads(str(task.content.config_records["message"]["body"]))
            on_disk = {charge.id for charge in read_ledger(path).charges}
            if body["release"] not in on_disk:
                uncharged.append(body["release"])
        return reply

    run(central | {"run-name": "charged"}, FakeGrid(5, look))
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
    off = shared_of(
        run(central | plain | {"privacy.mode": "off", "run-name": "off"}, FakeGrid(5))
    )
    np.testing.assert_array_equal(exact, off)


def test_noise_from_the_operating_system_never_repeats(central):
    plain = central | {"adapt.rounds": 1, "methods": "shared", "privacy.seeded": False}
    one, two = (
        shared_of(run(plain | {"run-name": name}, FakeGrid(5))) for name in "ab"
    )
    assert (one != two).all()
    card = json.loads((Path(plain["output-dir"]) / "a/privacy_card.json").read_text())
    assert card["rng"] == "operating system"


def test_a_sampled_round_asks_whom_the_coins_name_and_divides_by_the_expectation(
    central,
):
    seen: list[AdaptTask] = []
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

    note = tasks_of("train.adapt", AdaptTask, seen)
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
    seen: list[AdaptTask] = []
    run(plain, FakeGrid(5, tasks_of("train.adapt", AdaptTask, seen)))
    # All updates are shorter than 10, so the clip comes down: exp(-.2 (1 - .5)).
    first, second = sorted({task.clip for task in seen}, reverse=True)
    assert first == 10.0
    assert second == pytest.approx(10 * math.exp(-0.1), rel=1e-9)


def test_the_clip_bit_is_part_of_its_rounds_event():
    config = parse({"privacy.mode": "central", "adapt.clip-quantile": 0.5})
    event = budget.adapt_event(config, budget.Noise(1.0, 1.0, 1.0), 5)
    assert event.clip_bit_z == config.privacy.clip_bit == 10.0
    fixed = parse({"privacy.mode": "central"})
    assert budget.adapt_event(fixed, budget.Noise(1.0, 1.0, 1.0), 5).clip_bit_z == 0


@pytest.mark.parametrize(("within", "expected"), [(0, 0.1), (10, -0.1), (5, 0.0)])
def test_next_clip_closed_form(within, expected):
    config = parse({"privacy.mode": "central", "adapt.clip-quantile": 0.5})
    event = dataclasses.replace(budget.Event("adapt", 1.0), clip_bit_z=0.0)
    release = budget.Release("adapt/0", event, lambda n: bytes(n))
    got = adapt.next_clip(2.0, within, 10, release, config, 10)
    assert got == pytest.approx(2.0 * math.exp(expected))


# --- participation --------------------------------------------------------------------


def test_a_device_refuses_more_releases_than_it_agreed_to(central):
    capped = central | {"privacy.participations": 1, "methods": "shared", "quorum": 0.5}
    with pytest.raises(IdiolectError, match="only 0 of 5 users") as caught:
        run(capped | {"run-name": "capped"}, FakeGrid(5))
    assert "took part in 1 releases of stage 'adapt'" in str(caught.value)
    folder = Path(capped["output-dir"]) / "capped"
    agreed = device.agreed(device.agreed_path(folder, "persona-000"))
    assert agreed.took == {"adapt": ["adapt/0"]}
    ledger = read_ledger(folder / "ledger.json")
    # Both rounds were paid for: refusing afterwards costs nobody any privacy.
    assert len(ledger.charges) == 2
    assert ledger.observed_participations["adapt"] == 1


def test_with_coins_a_cap_bounds_what_the_server_can_hold_against_a_user(central):
    capped = central | {"privacy.participations": 1, "adapt.rounds": 6, "seed": 1}
    capped |= {"privacy.sampling": 0.2, "methods": "shared", "quorum": 0.0}
    capped |= {"privacy.noise": 2.0, "privacy.epsilon": 100.0}
    try:
        folder = run(capped | {"run-name": "capped"}, FakeGrid(5))
    except IdiolectError:  # a round in which everyone named had had enough
        folder = Path(capped["output-dir"]) / "capped"
    ledger = read_ledger(folder / "ledger.json")
    one = epsilons({budget.Event("adapt", 2.0): 1}, 1e-3).participants
    adapt_only = {e: n for e, n in ledger.events().items() if e.stage == "adapt"}
    assert epsilons(adapt_only, 1e-3, cap=1).participants == pytest.approx(
        one, rel=1e-6
    )
    assert epsilons(adapt_only, 1e-3).participants > one


def test_a_release_that_is_asked_for_again_counts_once(tmp_path):
    path = tmp_path / "user.json"
    for _ in range(3):
        device.take_part(path, "adapt/4", 1)
    with pytest.raises(IdiolectError, match="as many as privacy.participations allows"):
        device.take_part(path, "adapt/5", 1)
    device.take_part(path, "votes/0", 1)
    assert device.agreed(path).took == {"adapt": ["adapt/4"], "votes": ["votes/0"]}


def test_a_damaged_count_is_not_begun_anew(tmp_path):
    path = tmp_path / "user.json"
    path.write_text('{"took": {"adapt": [')
    with pytest.raises(IdiolectError, match="damaged.*backup"):
        device.take_part(path, "adapt/0", 1)


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
    from idiolect.common import personal

    taken: dict[str, bool] = {}
    original = personal.not_own

    def watch(backbone, user, unlabeled, config, floor, voted):
        taken[user.id] = voted
        return original(backbone, user, unlabeled, config, floor, voted)

    monkeypatch.setattr(personal, "not_own", watch)
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
    assert any("no differential privacy" in r["why"] for r in card["open_releases"])
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


def altered_task(kind: str, change):
    """A grid whose tasks are changed between server and node."""

    class Altered(FakeGrid):
        def push_messages(self, messages):
            changed = []
            for message in messages:
                if message.metadata.message_type == kind:
                    head = message.content.config_records["message"]
                    head["body"] = json.dumps(change(json.loads(str(head["body"]))))
                changed.append(message)
            return super().push_messages(changed)

    return Altered(5)


def test_a_changed_item_is_refused_by_every_device(central):
    def forge(body):
        body["unlabeled"][0][0][2] = "something else"  # the target of the first item
        return body

    with pytest.raises(IdiolectError, match="only 0 of 3 users") as caught:
        run(central, altered_task("train.personalise", forge))
    assert "are not the signed ones" in str(caught.value)


def test_a_changed_floor_breaks_the_signature(central):
    def forge(body):
        manifest = json.loads(body["manifest"])
        manifest["floor"] += 1
        body["manifest"] = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
        return body

    with pytest.raises(IdiolectError, match="sign"):
        run(central, altered_task("train.personalise", forge))


def test_another_key_is_refused_after_the_first_contact(central):
    folder = run(central | {"methods": "shared", "run-name": "keyed"}, FakeGrid(5))
    (folder / "checkpoint/signing.key").unlink()
    with pytest.raises(IdiolectError, match="not the one that was pinned"):
        run(central | {"methods": "shared", "resume": "keyed"}, FakeGrid(5))


def test_an_expired_manifest_is_renewed_on_resume(central, monkeypatch):
    seen: list[PersonaliseTask] = []
    original = checkpoint.save

    def die_after_pool(folder, state):
        original(folder, state)
        if state.unlabeled is not None:
            raise Killed

    monkeypatch.setattr("idiolect.server.exchange.save", die_after_pool)
    short = central | {"unlabeled.valid-days": 0.001}
    with pytest.raises(Killed):
        run(short | {"run-name": "late"}, FakeGrid(5))
    monkeypatch.setattr("idiolect.server.exchange.save", original)
    new_process()
    folder = Path(short["output-dir"]) / "late"
    before = manifests.parse(checkpoint.load(folder, {}).manifest)
    late = before.expires + 1
    for module in ("idiolect.server.pool.time", "idiolect.client.app.time"):
        monkeypatch.setattr(f"{module}.time", lambda: late)
    run(
        short | {"resume": "late"},
        FakeGrid(5, tasks_of("train.personalise", PersonaliseTask, seen)),
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
    for name in ("nll", "contrast"):
        assert noisy[name]["mean"] == pytest.approx(exact[name]["mean"], abs=1e-4)


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
        run(generous | {"run-name": "cut"}, FakeGrid(5, die))
    folder = Path(generous["output-dir"]) / "cut"
    assert [c.id for c in read_ledger(folder / "ledger.json").charges] == ["adapt/0"]
    run(generous | {"resume": "cut"}, FakeGrid(5))
    charges = read_ledger(folder / "ledger.json").charges
    # The round that was cut short is paid for twice, and never forgotten.
    assert [c.id for c in charges] == ["adapt/0", "adapt/1", "adapt/2", "votes/0"]
    assert [c.note["round"] for c in charges[:3]] == [0, 0, 1]


def test_a_finished_round_is_not_paid_for_again(central, monkeypatch):
    original = checkpoint.save

    def die_after_adapt(folder, state):
        original(folder, state)
        if state.rounds == 2:
            raise Killed

    monkeypatch.setattr("idiolect.server.exchange.save", die_after_adapt)
    with pytest.raises(Killed):
        run(central | {"run-name": "cut"}, FakeGrid(5))
    monkeypatch.setattr("idiolect.server.exchange.save", original)
    folder = Path(central["output-dir"]) / "cut"
    sent = shared_of(folder)
    run(central | {"resume": "cut"}, FakeGrid(5))
    charges = read_ledger(folder / "ledger.json").charges
    assert [c.id for c in charges] == ["adapt/0", "adapt/1", "votes/0"]
    np.testing.assert_array_equal(shared_of(folder), sent)


def test_a_lost_ledger_is_not_begun_anew(central):
    folder = run(central | {"methods": "shared", "run-name": "lost"}, FakeGrid(5))
    (folder / "ledger.json").write_text("{}")
    with pytest.raises(IdiolectError, match="unknown"):
        run(central | {"methods": "shared", "resume": "lost"}, FakeGrid(5))


def test_nobody_is_asked_twice_in_a_refused_round(central):
    with pytest.raises(BudgetSpent):
        ledger = budget.new_ledger(None, parse({"privacy.mode": "central"}), 5)
        budget.charge(ledger, budget.Event("adapt", 0.01), parse({}))


def test_a_reply_that_comes_twice_counts_once(central):
    """The grid may deliver a reply again; the sum must not change."""

    class Twice(FakeGrid):
        def pull_messages(self, message_ids):
            found = list(super().pull_messages(message_ids))
            return [*found, *found]

    plain = central | {"adapt.rounds": 1, "methods": "shared"}
    one = shared_of(run(plain | {"run-name": "one"}, FakeGrid(5)))
    two = shared_of(run(plain | {"run-name": "two"}, Twice(5)))
    np.testing.assert_array_equal(one, two)


def test_a_row_of_another_step_is_not_added(central):
    def replay(record):
        reply = rows_of(record)
        stale = dataclasses.replace(reply, step="adapt/0/adapt/7/0")
        return pack(stale if reply.users == ("dev-001",) else reply)

    plain = central | {"adapt.rounds": 1, "methods": "shared", "quorum": 0.5}
    folder = run(plain, FakeGrid(5, alter("train.adapt", replay)))
    assert "ignored" in results(folder)["run"]["failed"]["dev-001"]
    assert set(checkpoint.load(folder, {}).took_part["adapt"]) == {
        "persona-000",
        "persona-001",
        "persona-002",
        "dev-000",
    }
