"""Complete runs on a federation in one process: results, hostility, crashes, resumes."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from flwr.app import Message

from idiolect.client.node import handlers, host
from idiolect.common.errors import IdiolectError
from idiolect.common.protocol.messages import (
    AdaptReply,
    EvaluateReply,
    HelloReply,
    Missing,
    PersonaliseReply,
    VoteReply,
)
from idiolect.common.protocol.packing import pack, unpack
from idiolect.common.protocol.quantization import decode
from idiolect.common.unlabeled import draws
from idiolect.server.run import checkpoint
from idiolect.server.run.live import Journal
from tests.server.federation import FakeGrid, events, node_error, results, run

pytestmark = pytest.mark.slow  # `make quick` leaves these files out


def alter(kind: str, change):
    """A `FakeGrid` change that passes the replies of one kind through `change`."""

    def altered(task: Message, reply: Message) -> Message | None:
        if task.metadata.message_type != kind:
            return reply
        content = change(reply.content)
        return None if content is None else Message(content, reply_to=task)

    return altered


def rows_of(record) -> AdaptReply:
    arrays = record.array_records["arrays"]
    shapes = {key.removeprefix("rows/"): tuple(a.shape) for key, a in arrays.items()}
    return unpack(AdaptReply, record, lambda _fields: shapes)


def scores(folder) -> dict:
    """What a run found out: all in results.json but its cost, name and configuration."""
    found = results(folder)
    told = {k: v for k, v in found["run"].items() if k not in ("name", "path")}
    card = {**found["privacy"], "run": ""}
    made = {**found["identity"], "config": None}
    return {**found, "run": told, "cost": None, "privacy": card, "identity": made}


# --- a run that goes well ------------------------------------------------------------


def test_a_run_measures_every_method_on_every_user(settings):
    folder = run(settings)
    found = results(folder)
    assert list(found["methods"]) == ["base", "shared", "sft", "c-bpo"]
    assert set(found["users"]) == {"persona-000", "persona-001", "persona-002"}
    for methods in found["users"].values():
        assert all(metrics["nll"] > 0 for metrics in methods.values())
    about = found["run"]
    assert about["alpha_estimated"] is True
    assert set(about["alpha"]) == set(about["overlap"]) == set(found["users"])
    assert set(about["learning_rates"]) == {"sft", "c-bpo"}
    assert set(about["learning_rates"].values()) <= {1e-3, 3e-3}
    assert (about["simulation"], about["failed"]) == (True, {})
    assert 0 <= about["clamp_rate"]["c-bpo"] <= 1
    cost = found["cost"]
    assert set(cost["seconds"]) == {"hello", "adapt", "pool", "personalise", "evaluate"}
    assert cost["bytes_up"] > 1000
    assert cost["bytes_down"] > cost["bytes_up"]
    assert cost["peak_rss_mb"] > 50
    entry = json.loads((folder / "leaderboard.json").read_text())
    assert entry["methods"] == found["methods"] and "persona-000" not in str(entry)
    assert entry["identity"] == found["identity"]
    assert len(entry["identity"]["measured"]) == len(entry["identity"]["data"]) == 64
    assert entry["identity"]["model"].startswith("weights:")
    assert entry["identity"]["config"]["seed"] == entry["seed"] == 0


def test_a_run_leaves_the_files_it_promises(settings):
    folder = run(settings)
    for user in ("persona-000", "persona-001", "persona-002"):
        for method in ("sft", "c-bpo"):
            assert (folder / f"adapters/{method}/{user}.safetensors").exists()
            curve = json.loads((folder / f"curves/{method}/{user}.json").read_text())
            assert len(curve["loss"]) >= 1 and curve["user"] == user
    assert not (folder / "adapters/base").exists()
    assert "seed = 0" in (folder / "config.toml").read_text()
    kinds = [entry["event"] for entry in events(folder)]
    assert kinds[0] == "start"
    assert kinds[-1] == "finished"
    phases = [entry["phase"] for entry in events(folder, "phase")]
    assert phases == ["hello", "adapt", "pool", "personalise", "evaluate"]
    fractions = [entry["fraction"] for entry in events(folder, "progress")]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1.0, abs=1e-3)
    assert [p.name for p in (folder / "checkpoint").glob("shared-*")] == [
        "shared-2.safetensors"
    ]


@pytest.mark.parametrize("wire", ["float32", "int8"])
def test_the_shared_adapter_is_the_mean_of_the_users_updates(settings, wire):
    seen: list[AdaptReply] = []

    def watch(record):
        seen.append(rows_of(record))
        return record

    settings |= {"adapt.rounds": 1, "methods": "shared", "adapt.wire": wire}
    folder = run(settings, FakeGrid(2, alter("train.adapt", watch)))
    state = checkpoint.load(folder, {})
    if wire == "int8":
        shapes = {name: array.shape for name, array in state.shared.items()}
        seen = [dataclasses.replace(r, rows=decode(r.rows, shapes)) for r in seen]
    users = [user for reply in seen for user in reply.users]
    assert sorted(users) == sorted({*users}) and len(users) == 5
    for name, array in state.shared.items():
        mean = np.concatenate([reply.rows[name] for reply in seen]).mean(axis=0)
        np.testing.assert_allclose(array, mean, atol=1e-7)
        assert array.any()


def test_only_development_users_adapt_where_asked(settings):
    asked: list[str] = []

    def watch(record):
        asked.extend(rows_of(record).users)
        return record

    settings |= {"adapt.users": "development", "methods": "shared"}
    run(settings, FakeGrid(2, alter("train.adapt", watch)))
    assert set(asked) == {"dev-000", "dev-001"}


@pytest.mark.parametrize("kind", ["self", "public", "others"])
def test_every_kind_of_unlabeled_set_runs(settings, kind):
    settings |= {"unlabeled.kind": kind, "methods": "c-bpo"}
    settings |= {"personalise.learning-rates": "1e-3", "adapt.rounds": 0}
    grid = FakeGrid(2)
    found = results(run(settings, grid))
    assert found["run"]["alpha_estimated"] is (kind == "others")
    assert ("query.share" in grid.kinds) is (kind == "others")
    assert "query.vote" not in grid.kinds
    assert len(found["users"]) == 3


def test_nobody_trains_against_own_text(settings, monkeypatch):
    drawn: dict[str, set[str]] = {}
    original = draws.draw

    def watch(pool, count, generator, *owner):
        result = original(pool, count, generator, *owner)
        drawn.setdefault(str(len(drawn)), set()).update(e.owner for e in result)
        return result

    monkeypatch.setattr(draws, "draw", watch)
    settings |= {"unlabeled.kind": "others", "methods": "c-bpo", "adapt.rounds": 0}
    settings |= {"personalise.learning-rates": "1e-3", "users-per-node": 1}
    run(settings, FakeGrid(5))
    names = [f"persona-00{k}" for k in range(3)]
    for owner, owners in zip(names, drawn.values(), strict=True):
        assert owner not in owners and owners


@pytest.mark.slow
def test_a_node_with_many_users_equals_many_nodes_with_one(settings):
    one = results(run({**settings, "run.name": "one"}, FakeGrid(1)))
    many = results(
        run({**settings, "run.name": "many", "users-per-node": 1}, FakeGrid(5))
    )
    assert one["run"]["learning_rates"] == many["run"]["learning_rates"]
    for user, methods in one["users"].items():
        for method, metrics in methods.items():
            other = many["users"][user][method]
            assert metrics["nll"] == pytest.approx(other["nll"], abs=2e-4), method
    for user, alpha in one["run"]["alpha"].items():
        assert alpha == pytest.approx(many["run"]["alpha"][user], abs=1e-3)


def test_texts_are_generated_for_the_first_users_only(settings):
    settings |= {"evaluate.generate": True, "evaluate.users": 1, "methods": "shared"}
    users = results(run(settings | {"adapt.rounds": 0}))["users"]
    assert "rouge-1" in users["persona-000"]["shared"]
    assert "rouge-1" not in users["persona-001"]["shared"]
    assert "nll" in users["persona-001"]["shared"]


def test_the_learning_rate_with_the_lowest_development_nll_is_taken(settings):
    settings |= {"personalise.learning-rates": "1e-5,1e-2", "methods": "sft"}
    folder = run(settings | {"personalise.epochs": 3})
    state = checkpoint.load(folder, {})
    trials = state.trials["sft"]
    best = min(trials, key=lambda rate: trials[rate][1])
    assert state.learning_rates["sft"] == float(best) == 1e-2
    assert trials["1e-05"][1] != trials["0.01"][1]


# --- nodes that fail, lie, or say nothing -------------------------------------------------


@pytest.mark.parametrize("wire", ["float32", "int8"])
def test_a_row_of_nan_costs_one_user_one_round(settings, wire):
    def poison(record):
        reply = rows_of(record)
        if "persona-001" not in reply.users:
            return record
        rows = {name: array.copy() for name, array in reply.rows.items()}
        for array in rows.values():
            if array.dtype == np.float32:  # of int8 the scales
                array[reply.users.index("persona-001")] = np.nan
        return pack(dataclasses.replace(reply, rows=rows))

    settings |= {"adapt.rounds": 1, "methods": "shared", "adapt.wire": wire}
    folder = run(settings, FakeGrid(2, alter("train.adapt", poison)))
    state = checkpoint.load(folder, {})
    assert all(np.isfinite(array).all() for array in state.shared.values())
    assert "not finite" in state.failed["persona-001"]
    assert list(state.failed) == ["persona-001"]
    clean = checkpoint.load(run({**settings, "run.name": "clean"}), {})
    name = next(iter(clean.shared))
    assert not np.allclose(clean.shared[name], state.shared[name])


@pytest.mark.parametrize("wire", ["float32", "int8"])
def test_a_huge_row_is_clipped_by_the_server(settings, wire):
    def inflate(record):
        reply = rows_of(record)
        rows = {
            name: array * np.float32(1e12) if array.dtype == np.float32 else array
            for name, array in reply.rows.items()
        }
        return pack(dataclasses.replace(reply, rows=rows))

    settings |= {"adapt.rounds": 1, "adapt.clip": 0.5, "methods": "shared"}
    settings |= {"adapt.wire": wire}
    folder = run(settings, FakeGrid(2, alter("train.adapt", inflate)))
    shared = checkpoint.load(folder, {}).shared
    norm = np.sqrt(sum(np.square(array).sum() for array in shared.values()))
    assert 0 < norm <= 0.5 * (1 + 1e-5)


def test_a_malformed_reply_costs_its_node_and_the_quorum_decides(settings):
    def garble(record):
        reply = rows_of(record)
        if "dev-000" not in reply.users:
            return record
        rows = {name: array[:, :1] for name, array in reply.rows.items()}
        return pack(dataclasses.replace(reply, rows=rows))

    settings |= {"adapt.rounds": 1, "methods": "shared", "users-per-node": 1}
    settings |= {"quorum": 0.8}
    folder = run(settings, FakeGrid(5, alter("train.adapt", garble)))
    assert "shape" in results(folder)["run"]["failed"]["dev-000"]
    with pytest.raises(IdiolectError, match=r"only 4 of 5 users succeeded.*quorum"):
        run(
            {**settings, "quorum": 0.9, "run.name": "strict"},
            FakeGrid(5, alter("train.adapt", garble)),
        )


def test_the_denominator_is_who_was_asked_not_who_answered(settings):
    settings |= {"adapt.rounds": 1, "methods": "shared", "users-per-node": 1}
    settings |= {"quorum": 0.5, "adapt.wire": "float32"}
    updates: dict[str, AdaptReply] = {}

    def drop(record):
        reply = rows_of(record)
        if reply.users == ("dev-001",):
            return pack(dataclasses.replace(reply, step="adapt/7/4"))  # stale
        updates[reply.users[0]] = reply
        return record

    folder = run(settings, FakeGrid(5, alter("train.adapt", drop)))
    shared = checkpoint.load(folder, {}).shared
    assert len(updates) == 4
    for name, array in shared.items():
        total = sum(reply.rows[name][0] for reply in updates.values())
        np.testing.assert_allclose(array, total / 5, atol=1e-7)
    assert "ignored" in results(folder)["run"]["failed"]["dev-001"]


def test_a_node_that_dies_loses_its_users_and_the_run_goes_on(settings):
    def die(task: Message, reply: Message) -> Message | None:
        if (
            task.metadata.message_type == "evaluate"
            and task.metadata.dst_node_id == 100
        ):
            return node_error(task, "Node Unavailable\nlong text")
        return reply

    settings |= {"users-per-node": 1, "quorum": 0.6, "methods": "shared"}
    folder = run(settings, FakeGrid(5, die))
    found = results(folder)
    assert set(found["users"]) == {"persona-001", "persona-002"}
    assert "Node Unavailable" in found["run"]["failed"]["persona-000"]
    assert "long text" not in found["run"]["failed"]["persona-000"]


def test_a_silent_node_is_given_up_at_the_deadline(settings):
    def silent(task: Message, reply: Message) -> Message | None:
        quiet = task.metadata.message_type == "train.adapt"
        return None if quiet and task.metadata.dst_node_id == 104 else reply

    settings |= {"users-per-node": 1, "deadline": 1.5, "quorum": 0.6}
    settings |= {"adapt.rounds": 1, "methods": "shared"}
    found = results(run(settings, FakeGrid(5, silent)))
    assert "no answer within 1.5 s" in found["run"]["failed"]["dev-001"]


@pytest.mark.parametrize("value", [-0.5, float("nan"), 3.0])
def test_a_bad_vote_does_not_count(settings, value):
    def stuff(record):
        arrays = record.array_records["arrays"]
        shape = tuple(arrays["votes/votes"].shape)
        reply = unpack(VoteReply, record, lambda _fields: {"votes": shape})
        if "persona-002" not in reply.users:
            return record
        votes = reply.votes["votes"].copy()
        votes[reply.users.index("persona-002")] = value
        return pack(dataclasses.replace(reply, votes={"votes": votes}))

    settings |= {"adapt.rounds": 0, "methods": "shared"}
    folder = run(settings, FakeGrid(2, alter("query.vote", stuff)))
    clean = run({**settings, "run.name": "clean"})
    bad, good = (checkpoint.load(f, {}).unlabeled for f in (folder, clean))
    assert bad is not None and good is not None
    differences = np.array(
        [g.weight - b.weight for g, b in zip(good, bad, strict=True)]
    )
    # Exactly one user's vote is missing: not negative, and of norm one at most.
    assert differences.min() >= -1e-9
    assert 0 < np.linalg.norm(differences) <= 1 + 1e-6
    assert "vote" in results(folder)["run"]["failed"]["persona-002"]


def test_a_vote_that_is_a_little_too_long_is_clipped_in_the_sum(settings):
    """A vote of norm 1 + 9e-6 is valid for rounding's sake; it counts as one of norm 1."""

    def weights(length: float) -> np.ndarray:
        def stuff(record):
            shape = tuple(record.array_records["arrays"]["votes/votes"].shape)
            reply = unpack(VoteReply, record, lambda _fields: {"votes": shape})
            if reply.users == ("persona-002",):
                vote = np.zeros(shape, np.float32)
                vote[0, :] = length / shape[1] ** 0.5
                return pack(dataclasses.replace(reply, votes={"votes": vote}))
            return record

        name = {"run.name": f"length-{length > 0}"}
        folder = run(settings | name, FakeGrid(5, alter("query.vote", stuff)))
        assert not results(folder)["run"]["failed"]
        handed = checkpoint.load(folder, {}).unlabeled or ()
        return np.array([entry.weight for entry in handed])

    settings |= {"adapt.rounds": 0, "methods": "shared", "users-per-node": 1}
    moved = weights(1 + 9e-6) - weights(0.0)
    assert 1 - 1e-6 < np.linalg.norm(moved) <= 1


def test_metrics_that_are_not_finite_do_not_reach_the_table(settings):
    def spoil(record):
        reply = unpack(EvaluateReply, record)
        metrics = {user: dict(values) for user, values in reply.metrics.items()}
        if "persona-000" in metrics:
            metrics["persona-000"]["nll"] = float("nan")
        return pack(dataclasses.replace(reply, metrics=metrics))

    settings |= {"adapt.rounds": 0, "methods": "shared", "quorum": 0.5}
    settings |= {"users-per-node": 1}  # a node that sends such a number is not believed
    found = results(run(settings, FakeGrid(5, alter("evaluate", spoil))))
    assert set(found["users"]) == {"persona-001", "persona-002"}
    assert "NaN is no number" in found["run"]["failed"]["persona-000"]
    assert found["methods"]["shared"]["nll"]["n"] == 2


@pytest.mark.parametrize("name", ["m1", "rouge-1", "own-style"])
def test_metrics_that_nobody_asked_for_do_not_reach_the_table(settings, name):
    """Each name would be a row of the table with an interval of its own."""

    def stuff(record):
        reply = unpack(EvaluateReply, record)
        metrics = {user: dict(values) for user, values in reply.metrics.items()}
        if "persona-000" in metrics:
            metrics["persona-000"][name] = 0.5
        return pack(dataclasses.replace(reply, metrics=metrics))

    settings |= {"adapt.rounds": 0, "methods": "shared", "quorum": 0.5}
    settings |= {"users-per-node": 1, "evaluate.generate": False}
    found = results(run(settings, FakeGrid(5, alter("evaluate", stuff))))
    assert set(found["users"]) == {"persona-001", "persona-002"}
    assert "nobody asked for" in found["run"]["failed"]["persona-000"]
    assert name not in found["methods"]["shared"]


@pytest.mark.parametrize(
    "log", [{f"m{i}": 0.5 for i in range(65)}, {"m" * 65: 0.5}], ids=["many", "long"]
)
def test_a_training_log_has_a_bounded_number_of_names(settings, log):
    def stuff(record):
        reply = unpack(PersonaliseReply, record)
        outcomes = dict(reply.outcomes)
        if "persona-000" in outcomes:
            one = outcomes["persona-000"]
            outcomes["persona-000"] = dataclasses.replace(one, log=log)
        return pack(dataclasses.replace(reply, outcomes=outcomes))

    settings |= {"adapt.rounds": 0, "methods": "sft", "quorum": 0.5}
    settings |= {"users-per-node": 1, "evaluate.generate": False}
    folder = run(settings, FakeGrid(5, alter("train.personalise", stuff)))
    assert set(results(folder)["users"]) == {"persona-001", "persona-002"}
    assert "has no meaning" in results(folder)["run"]["failed"]["persona-000"]
    kept = checkpoint.load(folder, {}).outcomes["sft"]
    assert set(kept) == {"persona-001", "persona-002"}


def test_another_version_is_refused_with_the_next_step(settings):
    def older(record):
        return pack(dataclasses.replace(unpack(HelloReply, record), package="0.0.1"))

    with pytest.raises(IdiolectError, match=r"0\.0\.1.*install the same version"):
        run(settings, FakeGrid(2, alter("query.hello", older)))


def test_another_backbone_is_refused(settings):
    def other(record):
        return pack(dataclasses.replace(unpack(HelloReply, record), backbone="f00"))

    with pytest.raises(IdiolectError, match="weights of backbone"):
        run(settings, FakeGrid(2, alter("query.hello", other)))


def test_a_backbone_with_another_template_is_refused_by_that_name(settings):
    def other(record):
        reply = unpack(HelloReply, record)
        assert " template:" in reply.backbone
        backbone = reply.backbone.replace(" template:", " template:0")
        return pack(dataclasses.replace(reply, backbone=backbone))

    with pytest.raises(IdiolectError, match="its chat template of backbone .* differ"):
        run(settings, FakeGrid(2, alter("query.hello", other)))


def test_raw_text_is_refused_outside_a_simulation(settings):
    def device(record):
        return pack(dataclasses.replace(unpack(HelloReply, record), simulation=False))

    grid = FakeGrid(2, alter("query.hello", device))
    with pytest.raises(IdiolectError, match="it is a device, and the run's task"):
        run({**settings, "unlabeled.kind": "others"}, grid)
    assert "query.share" not in grid.kinds


def test_too_few_nodes_for_the_users_says_how_many_are_needed(settings):
    with pytest.raises(IdiolectError, match=r"^2 nodes.*host 5 users.*supernodes=5"):
        run({**settings, "users-per-node": 1}, FakeGrid(2))


def test_latest_is_never_a_run_that_did_not_begin(settings):
    output = Path(settings["run.folder"])
    first = run(settings, FakeGrid(2))
    assert (output / "latest").resolve() == first.resolve()
    with pytest.raises(IdiolectError):  # hello fails
        run(settings | {"run.name": "deaf", "users-per-node": 1}, FakeGrid(2))
    with pytest.raises(IdiolectError):  # the data are bad
        run(settings | {"run.name": "bad", "data": "/nope"}, FakeGrid(2))
    assert (output / "bad").is_dir() and (output / "deaf").is_dir()
    assert (output / "latest").resolve() == first.resolve()


def test_a_failed_run_says_so_in_its_journal(settings):
    with pytest.raises(IdiolectError):
        run({**settings, "run.name": "bad", "users-per-node": 1}, FakeGrid(2))
    folder = Path(settings["run.folder"]) / "bad"
    last = events(folder)[-1]
    assert last["event"] == "failed"
    assert "cannot host 5 users" in last["message"]
    assert not (folder / "results.json").exists()


def test_a_user_whose_training_fails_is_reported_and_the_others_are_not_touched(
    settings, monkeypatch
):
    original = handlers.personalise

    def fragile(reference, users, *rest):
        if any(user.id == "persona-001" for user in users):
            raise RuntimeError("out of luck")
        return original(reference, users, *rest)

    monkeypatch.setattr(handlers, "personalise", fragile)
    settings |= {"quorum": 0.6, "methods": "shared,sft"}
    found = results(run(settings))
    assert "out of luck" in found["run"]["failed"]["persona-001"]
    assert set(found["users"]["persona-001"]) == {"shared"}
    assert set(found["users"]["persona-000"]) == {"shared", "sft"}


# --- killed and resumed ------------------------------------------------------------------


class Killed(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


def new_process() -> None:
    """Forget what only lives in memory."""
    host.forget()


@pytest.mark.slow
def test_a_run_killed_at_every_checkpoint_ends_as_if_never_killed(
    settings, monkeypatch
):
    new_process()
    unbroken = run({**settings, "run.name": "unbroken"})
    new_process()
    original = checkpoint.save

    started: set[int] = set()

    def save_and_die(folder, state):
        original(folder, state)
        if state.life in started:  # else it is a life's own number, which it sends by
            raise Killed
        started.add(state.life)

    monkeypatch.setattr("idiolect.server.run.live.save", save_and_die)
    lives, broken = 0, Path()
    while lives < 40:
        try:
            resume = {"run.resume": "latest"} if lives else {"run.name": "broken"}
            lives += 1
            broken = run(settings | resume)
            break
        except Killed:
            new_process()
            finished = (Path(settings["run.folder"]) / "latest").resolve()
            state = checkpoint.load(finished, {})
            if len(state.metrics) == 4:  # the last save, after which it only reports
                monkeypatch.setattr("idiolect.server.run.live.save", original)
    # 2 rounds, bank, pool, 2 methods x (2 rates + choice + training), 4 measured
    assert lives == 2 + 2 + 2 * 4 + 4 + 1
    assert scores(broken) == scores(unbroken)
    for file in sorted(unbroken.rglob("*.safetensors")):
        twin = broken / file.relative_to(unbroken)
        ours, theirs = (safetensors.numpy.load_file(f) for f in (twin, file))
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("after", [1, 3, 5, 6, 9, 12, 15])
def test_a_run_killed_between_checkpoints_ends_as_if_it_never_was(
    settings, unbroken, after
):
    new_process()
    answered = {"count": 0}

    def die(task: Message, reply: Message) -> Message:
        answered["count"] += 1
        if answered["count"] > after:
            raise Killed
        return reply

    with pytest.raises(Killed):
        run({**settings, "run.name": "broken"}, FakeGrid(2, die))
    new_process()
    broken = run({**settings, "run.resume": "broken"})
    assert scores(broken) == scores(unbroken)
    starts = events(broken, "start")
    assert [entry["resumed"] for entry in starts] == [False, True]


def test_what_users_already_trained_is_not_trained_again(settings, monkeypatch):
    settings |= {"personalise.learning-rates": "1e-3", "methods": "sft"}

    def die(task: Message, reply: Message) -> Message:
        if task.metadata.message_type == "train.personalise":
            raise Killed  # the adapters are on disk, the reply is lost
        return reply

    with pytest.raises(Killed):
        run({**settings, "run.name": "broken"}, FakeGrid(1, die))
    trained: list[int] = []
    original = handlers.personalise
    monkeypatch.setattr(
        handlers, "personalise", lambda *a: trained.append(1) or original(*a)
    )
    found = results(run({**settings, "run.resume": "broken"}, FakeGrid(1)))
    assert trained == []
    assert len(found["users"]) == 3


def test_a_finished_run_can_be_resumed_and_stays_as_it_was(settings):
    folder = run(settings)
    before = scores(folder)
    grid = FakeGrid(2)
    assert scores(run({**settings, "run.resume": "latest"}, grid)) == before
    assert set(grid.kinds) == {"query.hello"}


def test_a_run_starts_where_there_is_nothing_to_resume_yet(settings):
    folder = run({**settings, "run.resume": "latest", "methods": "shared"})
    assert events(folder, "start")[0]["resumed"] is False


def test_a_defect_of_ours_is_named_in_the_journal_and_raised(settings, monkeypatch):
    def broken(_run):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("idiolect.server.run.app.adapt", broken)
    with pytest.raises(ZeroDivisionError):
        run({**settings, "run.name": "bug"})
    journal = json.loads(
        (Path(settings["run.folder"]) / "bug/metrics.jsonl")
        .read_text()
        .splitlines()[-1]
    )
    said = {"event": "failed", "message": "ZeroDivisionError: oops", "defect": True}
    assert journal == said


@pytest.mark.parametrize("room", [True, False])
def test_a_full_disk_is_no_defect_and_the_run_can_go_on(settings, monkeypatch, room):
    settings |= {"methods": "shared"}
    full = OSError(28, "No space left on device", "/data/run/state.json")
    write = Journal.write

    def lost(journal, event):
        if event["event"] == "failed" and not room:
            raise full
        write(journal, event)

    def stopped(_run):
        raise full

    monkeypatch.setattr(Journal, "write", lost)
    with monkeypatch.context() as disk:
        disk.setattr("idiolect.server.run.app.adapt", stopped)
        with pytest.raises(IdiolectError) as caught:
            run({**settings, "run.name": "full"})
    assert str(caught.value) == (
        "No space left on device (/data/run/state.json): make room there, and go on with "
        "--resume full."
    )
    folder = Path(settings["run.folder"]) / "full"
    said = {"event": "failed", "message": str(caught.value)}
    assert (events(folder, "failed") == [said]) is room
    assert results(run({**settings, "run.resume": "full"}))


def test_a_typo_in_the_configuration_writes_nothing(settings, tmp_path):
    with pytest.raises(IdiolectError, match="did you mean 'adapt.rounds'"):
        run({**settings, "adapt.round": 3})
    assert not (tmp_path / "runs").exists()


def test_a_living_run_is_not_joined(settings, tmp_path):
    folder = run({**settings, "methods": "shared"})
    holder = (
        "import fcntl, sys, time\n"
        f"stream = open({str(folder / 'lock')!r}, 'a+')\n"
        "fcntl.flock(stream, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        before = (folder / "metrics.jsonl").read_bytes()
        with pytest.raises(IdiolectError, match="is being written by process"):
            run({**settings, "methods": "shared", "run.resume": "latest"})
        assert (folder / "metrics.jsonl").read_bytes() == before
    finally:
        process.kill()
        process.wait()
    run({**settings, "methods": "shared", "run.resume": "latest"})


def test_parts_travel_once(settings):
    """The configuration, the set and the shared adapter, to each node once as they are."""
    brought: list[tuple[int, str, str]] = []
    tasks = 0

    class Counting(FakeGrid):
        def push_messages(self, messages):
            nonlocal tasks
            messages = list(messages)
            for message in messages:
                tasks += 1
                seal = json.loads(str(message.content["message"]["body"]))["seal"]
                for name in message.content.array_records.get("parts") or {}:
                    brought.append((message.metadata.dst_node_id, name, seal[2][name]))
            return super().push_messages(messages)

    folder = run(settings | {"engine.stack": 1}, Counting())
    assert len(brought) == len(set(brought))
    # Per node: the configuration, B of two rounds and the last, the bank and the set, and
    # a directory without members.
    assert len(brought) == 2 * (1 + 3 + 2 + 1) < tasks
    assert results(folder)["cost"]["bytes_down"] < 2 * 60_000


def test_a_node_that_lost_its_parts_is_sent_them_again(settings, unbroken):
    folders: list[Path] = []

    def lose(task, reply):
        if task.metadata.message_type == "train.personalise":
            for file in (Path(settings["run.folder"]) / "lossy/parts").glob("*"):
                file.unlink()
                folders.append(file)
        return reply

    folder = run(settings | {"run.name": "lossy"}, FakeGrid(2, lose))
    assert folders
    assert scores(folder) == scores(unbroken)


def test_a_node_that_never_finds_the_parts_fails_alone(settings):
    def lacks(task, reply):
        if task.metadata.dst_node_id == 101 and "adapt" in task.metadata.message_type:
            body = json.loads(str(task.content["message"]["body"]))
            return Message(
                pack(Missing(body["run"], body["step"], ("shared",))), reply_to=task
            )
        return reply

    grid = FakeGrid(2, lacks)
    folder = run(settings | {"quorum": 0.5}, grid)
    said = [e["message"] for e in events(folder, "warning")]
    assert any("does not have all parts of the request" in text for text in said)
    assert results(folder)["users"]
