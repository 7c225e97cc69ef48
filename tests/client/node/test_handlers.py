"""The ClientApp's handlers, without a server."""

import dataclasses
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from idiolect.client.node import app, handlers, host, state
from idiolect.common.config import Config, flatten, parse
from idiolect.common.data.types import Dataset, Item, MadeUsers, Prompt, Task, User
from idiolect.common.engine.adapters import Lora
from idiolect.common.errors import IdiolectError
from idiolect.common.methods import evaluation
from idiolect.common.methods.personalise import Personal
from idiolect.common.protocol.manifest import Manifest, Seen, canonical, sign
from idiolect.common.protocol.messages import (
    EvaluateReply,
    EvaluateRequest,
    Failure,
    HelloReply,
    HelloRequest,
    Missing,
    OfferReply,
    OfferRequest,
    Outcome,
    PersonaliseReply,
    PersonaliseRequest,
    Request,
    ShareReply,
    ShareRequest,
    VoteReply,
    VoteRequest,
)
from idiolect.common.protocol.packing import pack, unpack
from idiolect.common.protocol.signed import make_part
from idiolect.common.unlabeled.sets import Unlabeled, fingerprint
from tests.sealing import KEY, SEED, sealed

NOW = time.time()

SHARED = {"layer.q": np.zeros((3, 2), np.float32)}
RIVAL = Item("r", Prompt("", "p"), "x")
HISTORY = (Item("i", Prompt("", "p"), "plum cake", (RIVAL,)),)
PEOPLE = tuple(User(f"u{k}", HISTORY, HISTORY) for k in range(4))
TRIAL = tuple(User(f"d{k}", HISTORY, HISTORY) for k in range(2))
DATA = Dataset(Task("headline", "generation"), PEOPLE, TRIAL, dropped={"odd": 2})


def lora(value: float) -> Lora:
    return Lora(
        {"layer.q": torch.ones(2, 5)}, {"layer.q": torch.full((3, 2), value)}, 2.0
    )


@pytest.fixture
def node(monkeypatch, tmp_path):
    """A node whose engine is replaced by functions that can be told to fail."""
    calls: list[list[str]] = []
    broken: set[str] = set()

    def train(_reference, users, _unlabeled, method, rate, _config, watch):
        calls.append([user.id for user in users])
        for t in range(2):
            losses = torch.tensor([k + t / 8 for k in range(len(users))])
            watch.step(SimpleNamespace(losses=losses), 2)
        if broken & set(calls[-1]):
            raise RuntimeError("out of memory")
        return [
            Personal(u.id, lora(rate), 0.25, True, log={"steps": 3.0}) for u in users
        ]

    def nll(_reference, adapters, users, *_rest):
        assert len(adapters) == len(users)
        return [9.0 if a is None else float(a.b["layer.q"][0, 0]) for a in adapters]

    def measure(reference, adapters, users, *rest):
        if rest[-1] is not None:
            rest[-1].update({u.id: [f"by {u.id}"] for u in users})
        return [{"nll": value} for value in nll(reference, adapters, users)]

    zero = Lora({"layer.q": torch.ones(2, 5)}, {"layer.q": torch.zeros(3, 2)}, 2.0)
    parts = {"hash": "b0", "device": torch.device("cpu"), "context": 1024, "dtype": "f"}
    backbone = type("Fake", (), parts)()
    monkeypatch.setattr(app, "load_dataset", lambda _config: DATA)
    monkeypatch.setattr(host, "backbone_of", lambda *_: backbone)
    monkeypatch.setattr(host, "_zero_shared", lambda *_: zero)
    monkeypatch.setattr(handlers, "personalise", train)
    monkeypatch.setattr(evaluation, "evaluate", measure)
    monkeypatch.setattr(evaluation, "held_out_nll", nll)
    return type("Node", (), {"calls": calls, "broken": broken, "folder": tmp_path})


def agree(task) -> None:
    """As a hello with the task's configuration would leave its users."""
    store = state.FolderStore(Path(task.folder))
    config = make_part("config", task.config).hash
    for user in task.users:
        before = state.agreed(store, user)
        seen = before.seen or Seen(KEY, 0, "")
        state.keep(store, user, dataclasses.replace(before, seen=seen, config=config))


def call(kind: str, task, place: dict | None = None) -> RecordDict:
    """Send a task to the real ClientApp, whose users agreed to its configuration."""
    if isinstance(task, Request) and kind != "query.hello":
        agree(task)
    return send(kind, task, place)


def send(kind: str, task, place: dict | None = None) -> RecordDict:
    """Send a task to the real ClientApp; by default to the only node there is."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    record = sealed(task, 7) if isinstance(task, Request) else pack(task)
    return app.app(Message(record, 7, kind), context(place)).content


def context(place: dict | None = None) -> Context:
    """Of the only node there is, or of another."""
    place = {"partition-id": 0, "num-partitions": 1} if place is None else place
    return Context(1, 7, place, RecordDict(), {})


def head(folder, *users: str, **config: object) -> dict:
    settings = flatten(parse({"adapt.wire": "float32", **config}))
    return {
        "run": "r",
        "step": "s",
        "config": settings,
        "folder": str(folder),
        "users": users,
    }


def personalise(
    folder,
    *users: str,
    rate: float = 0.5,
    trial: bool = False,
    method: str = "sft",
    **config,
) -> PersonaliseReply:
    task = PersonaliseRequest(
        **head(folder, *users, **config),
        method=method,
        learning_rate=rate,
        trial=trial,
        manifest="",
        signature="",
        voted=(),
        unlabeled=(),
        shared=SHARED,
    )
    return unpack(PersonaliseReply, call("train.personalise", task))


def evaluate(folder, *users: str, rate: float = 0.5, method: str = "sft", **changes):
    task = EvaluateRequest(
        **head(folder, *users),
        method=method,
        learning_rate=rate,
        unlabeled_hash=fingerprint(()),
        generate=False,
        release="",
        shared=SHARED,
    )
    reply = call("evaluate", dataclasses.replace(task, **changes))
    return unpack(EvaluateReply, reply)


@pytest.mark.parametrize("method", ["kto", "..client.cli", "../../x", "table", ""])
def test_a_method_that_is_not_of_the_run_is_refused(greeted, method):
    """Its name would become a module to load and a path to write."""
    settings = head("", methods="shared,sft")["config"]
    with pytest.raises(IdiolectError, match="no method of this run's configuration"):
        evaluate(greeted.folder, "u0", method=method, config=settings)
    with pytest.raises(IdiolectError, match="no method of this run's configuration"):
        personalise(greeted.folder, "u0", method=method, methods="shared,sft")


def test_users_are_dealt_out_to_the_nodes():
    homes = [[u.id for u in app.residents_of(DATA, 0, p, 4)] for p in range(4)]
    assert homes == [["u0", "u3"], ["u1", "d0"], ["u2", "d1"], []]
    assert [u.id for u in app.residents_of(DATA, 5, 1, 2)] == ["u1", "u3", "d1"]


def test_too_small_a_federation_says_what_to_do():
    with pytest.raises(IdiolectError, match=r"2 nodes with 2 users.*num-supernodes=3"):
        app.residents_of(DATA, 2, 0, 2)


def test_the_app_of_a_simulation_does_not_run_on_a_device(node):
    reply = call("query.hello", HelloRequest(**head(node.folder), key=KEY), place={})
    with pytest.raises(IdiolectError, match="idiolect node run"):
        unpack(HelloReply, reply)


def test_hello_names_residents_and_hashes(node, monkeypatch):
    monkeypatch.setattr(handlers, "_truncated", lambda *_: 1)
    place = {"partition-id": 1, "num-partitions": 2}
    reply = unpack(
        HelloReply,
        call("query.hello", HelloRequest(**head(node.folder), key=KEY), place),
    )
    assert reply.users == ("u1", "u3", "d1")
    assert reply.development == ("d1",)
    assert (reply.backbone, reply.nodes, reply.simulation) == ("b0", 2, True)
    assert (reply.truncated, reply.dropped) == (3, {})  # node 0 reports what is dropped


BANK = tuple(
    Item(f"b{k}", Prompt("", ""), text) for k, text in enumerate(["plum jam", "fog"])
)


def signed(kind: str, unlabeled: tuple[Unlabeled, ...], **changes) -> dict[str, Any]:
    """A manifest as the server of run "r" would sign it."""
    fields = {
        "run": "r",
        "kind": kind,
        "version": 1,
        "previous": "",
        "content": fingerprint(unlabeled),
        "count": len(unlabeled),
        "features": "ngrams",
        "vote": "",
        "floor": 0.0,
        "epsilon": None,
        "created": NOW,
        "expires": NOW + 86_400,
    }
    manifest = Manifest(**{**fields, **changes})
    return {
        "manifest": canonical(manifest).decode(),
        "signature": sign(manifest, SEED),
    }


def greet(folder, **config) -> None:
    """First contact, at which the devices pin the server's key."""
    record = call("query.hello", HelloRequest(**head(folder, **config), key=KEY))
    assert unpack(HelloReply, record).errors == {}


@pytest.fixture(autouse=True)
def _one_vote_per_item(monkeypatch):
    monkeypatch.setattr("idiolect.common.unlabeled.votes.NEAREST", 1)


def vote_task(folder, *users: str, release: str = "", **changes) -> VoteRequest:
    return VoteRequest(
        **head(folder, *users, **changes),
        release=release,
        **signed("bank", tuple(Unlabeled(item) for item in BANK)),
        bank=BANK,
    )


def vote(task: VoteRequest, known: dict[str, str] | None = None) -> VoteReply:
    agree(task)
    message = Message(sealed(task, 7, known=known), 7, "query.vote")
    record = app.app(message, context()).content
    count = len(task.users)
    arrays = record.array_records.get("arrays")
    if arrays:
        count = next(iter(arrays.values())).shape[0]
    return unpack(VoteReply, record, lambda _f: {"votes": (count, 2)})


@pytest.fixture
def greeted(node, monkeypatch):
    monkeypatch.setattr(handlers, "_truncated", lambda *_: 0)
    greet(node.folder)
    return node


def test_votes_come_one_row_per_user(greeted):
    reply = vote(vote_task(greeted.folder, "u1", "u0"))
    assert reply.users == ("u1", "u0")
    np.testing.assert_allclose(reply.votes["votes"], [[1, 0], [1, 0]])


def test_a_request_makes_and_reads_its_own_users_only(greeted, monkeypatch):
    """Not all who live on the node: a large run would take time with their square."""
    made, read, fitting = [], [], handlers.fitting

    def make(number: int) -> User:
        made.append(number)
        return DATA.everybody[number]

    def look(backbone, user):
        read.append(user.id)
        return fitting(backbone, user)

    people = MadeUsers([user.id for user in DATA.everybody], make)
    count = len(DATA.users)
    data = dataclasses.replace(DATA, users=people[:count], development=people[count:])
    monkeypatch.setattr(app, "load_dataset", lambda _config: data)
    monkeypatch.setattr(handlers, "fitting", look)
    assert vote(vote_task(greeted.folder, "u1", "u0")).users == ("u1", "u0")
    assert made == [1, 0] and read == ["u1", "u0"]


def test_a_bank_that_nobody_signed_gets_no_votes(greeted):
    task = vote_task(greeted.folder, "u0")
    forged = (*BANK[:1], Item("b1", Prompt("", ""), "my secret"))
    reply = vote(dataclasses.replace(task, bank=forged))
    assert reply.users == ()
    assert "not the signed ones" in reply.errors["u0"]
    reply = vote(dataclasses.replace(task, signature="00" * 64))
    assert reply.users == () and "sign" in reply.errors["u0"]


def test_without_a_hello_nothing_is_done(node):
    sentence = unpack(
        Failure, send("query.vote", vote_task(node.folder, "u0"))
    ).sentence
    assert "not signed with the key" in sentence  # no key is pinned yet


def test_a_run_has_the_configuration_of_its_hello(greeted):
    task = vote_task(greeted.folder, "u0", seed=5)
    sentence = unpack(Failure, send("query.vote", task)).sentence
    assert "'u0' did not agree to this run in a hello, or not with this" in sentence
    other = HelloRequest(**head(greeted.folder, seed=5), key=KEY)
    reply = unpack(HelloReply, send("query.hello", other))
    assert reply.users == ()
    assert "not the one of the first contact" in reply.errors["u0"]


def test_a_task_for_nobody_is_refused(greeted):
    task = vote_task(greeted.folder)
    assert "names nobody" in unpack(Failure, send("query.vote", task)).sentence


def test_a_task_signed_by_another_key_is_refused(greeted):
    record = sealed(vote_task(greeted.folder, "u0"), 7, seed=bytes(32))
    reply = app.app(Message(record, 7, "query.vote"), context()).content
    assert "not signed with the key" in unpack(Failure, reply).sentence


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda head: {"body": head["body"].replace('"u0"', '"u1"')},
            "not signed with",
        ),
        (lambda head: {"signature": "0" * 128}, "not signed with the key"),
        (lambda head: {"body": "[" * 200_000}, "is not JSON"),
        (lambda head: {"body": " " * (1 << 21)}, "not a text of allowed size"),
        (lambda head: {"body": '{"x":1,' + head["body"][1:]}, "fields differ"),
    ],
)
def test_what_was_changed_on_the_way_is_refused(greeted, change, sentence):
    record = sealed(vote_task(greeted.folder, "u0"), 7)
    head = record.config_records["message"]
    head.update(change(dict(head)))
    reply = app.app(Message(record, 7, "query.vote"), context()).content
    assert sentence in unpack(Failure, reply).sentence


def test_a_part_that_was_exchanged_on_the_way_is_refused(greeted):
    task = vote_task(greeted.folder, "u0")
    agree(task)
    other = sealed(vote_task(greeted.folder, "u0", seed=5), 7)
    record = sealed(task, 7)
    record["parts"] = other["parts"]
    reply = app.app(Message(record, 7, "query.vote"), context()).content
    assert "'config' is not the one that was signed" in unpack(Failure, reply).sentence


def test_parts_are_kept_and_asked_for_where_they_are_not(greeted):
    # Another configuration than that of hello, which the node holds already.
    changed: dict[str, Any] = {"unlabeled.ratio": 2.0}
    task = vote_task(greeted.folder, "u0", **changed)
    agree(task)
    names = {
        n: make_part(n, getattr(task, n)).hash for n in ("config", "bank", "directory")
    }
    slim = sealed(task, 7, known=names)
    assert "parts" not in slim
    reply = app.app(Message(slim, 7, "query.vote"), context()).content
    assert unpack(Missing, reply).parts == ("config", "bank", "directory")
    assert vote(task).users == ("u0",)
    assert vote(task, known=names).users == ("u0",)
    # A part of another content in its place is as good as none.
    (greeted.folder / "parts/bank").write_bytes(b"[]")
    reply = app.app(Message(sealed(task, 7, known=names), 7, "query.vote"), context())
    assert unpack(Missing, reply.content).parts == ("bank",)


def test_a_vote_beyond_what_was_agreed_to_is_not_cast(greeted):
    capped = {"privacy.participations": 1, "privacy.mode": "central"}
    for user in ("u0", "u1"):  # first contact was without a cap; agree to one
        store = state.FolderStore(greeted.folder)
        agreed = dataclasses.replace(state.agreed(store, user), most=1)
        state.keep(store, user, agreed)
    first = vote_task(greeted.folder, "u0", "u1", release="votes/0", **capped)
    assert vote(first).users == ("u0", "u1")
    again = vote_task(greeted.folder, "u0", release="votes/1", **capped)
    reply = vote(again)
    assert reply.users == ()
    assert "took part in 1 releases of stage 'votes' already" in reply.errors["u0"]
    assert vote(first).users == ("u0", "u1")  # the same release counts once


def test_only_a_floor_that_was_signed_is_used(greeted, monkeypatch):
    handed: list[tuple] = []

    def train(_reference, users, unlabeled, _method, rate, _config, *_rest):
        handed.append((unlabeled.floor, unlabeled.voters))
        return [Personal(u.id, lora(rate), 0.25, True) for u in users]

    monkeypatch.setattr(handlers, "personalise", train)
    vote(vote_task(greeted.folder, "u0", release="votes/0"))
    unlabeled = tuple(Unlabeled(item, 2.0) for item in BANK)
    task = PersonaliseRequest(
        **head(greeted.folder, "u0", "u1"),
        method="c-bpo",
        learning_rate=0.5,
        trial=False,
        voted=("u0", "u1"),
        **signed(
            "votes", unlabeled, version=2, vote="votes/0", floor=0.75, previous="0" * 64
        ),
        unlabeled=unlabeled,
        shared=SHARED,
    )
    # The device of u0 saw version 1, and version 2 does not follow from it.
    reply = unpack(PersonaliseReply, call("train.personalise", task))
    assert reply.users == ("u1",) and "u0" in reply.errors
    assert handed == [(0.75, set())]  # u1 did not vote
    seen = state.agreed(state.FolderStore(greeted.folder), "u0").seen
    assert seen is not None
    follows = signed(
        "votes", unlabeled, version=2, vote="votes/0", floor=0.5, previous=seen.digest
    )
    reply = unpack(
        PersonaliseReply,
        call("train.personalise", dataclasses.replace(task, users=("u0",), **follows)),
    )
    assert reply.users == ("u0",)
    assert handed[1] == (0.5, {"u0"})


def test_offers_leave_only_for_the_kind_anonymised_and_are_scrubbed(greeted):
    bank = signed("bank", tuple(Unlabeled(item) for item in BANK))
    task = OfferRequest(**head(greeted.folder, "u0"), **bank, bank=BANK, supported=(0,))
    with pytest.raises(IdiolectError, match="only offered where"):
        unpack(OfferReply, call("query.offer", task))
    settings = head(greeted.folder, "u0", **{"unlabeled.kind": "anonymised"})
    task = dataclasses.replace(task, config=settings["config"])
    reply = unpack(OfferReply, call("query.offer", task))
    (item,) = reply.items["u0"]
    assert item.target == "plum cake" and item.rivals == () and "u0" not in item.id
    nothing = dataclasses.replace(task, supported=(1,))
    assert unpack(OfferReply, call("query.offer", nothing)).items["u0"] == ()


def test_noisy_metrics_leave_as_one_bounded_row(greeted, monkeypatch):
    noisy = {"privacy.mode": "central", "privacy.metrics": "noisy"}
    settings: dict[str, Any] = {**noisy, "personalise.learning-rates": "0.5"}
    assert personalise(greeted.folder, "u0", **settings).outcomes == {
        "u0": Outcome(None, False, {})
    }
    task = EvaluateRequest(
        **head(greeted.folder, "u0", **settings),
        method="sft",
        learning_rate=0.5,
        unlabeled_hash=fingerprint(()),
        generate=False,
        release="metrics/0",
        shared=SHARED,
    )
    record = call("evaluate", task)
    reply = unpack(EvaluateReply, record, lambda _f: {"sums": (1, 2)})
    assert reply.metrics == {}
    assert np.linalg.norm(reply.sums["sums"]) <= 1
    assert reply.sums["sums"][0, 1] * 2**0.5 * 8 == pytest.approx(0.5, rel=1e-4)


def test_an_emptied_set_is_not_taken_for_the_kind_self(greeted):
    task = PersonaliseRequest(
        **head(greeted.folder, "u0"),
        method="c-bpo",
        learning_rate=0.5,
        trial=False,
        manifest="",
        signature="",
        voted=(),
        unlabeled=(),
        shared=SHARED,
    )
    reply = unpack(PersonaliseReply, call("train.personalise", task))
    assert reply.users == () and reply.errors["u0"]
    own = head(greeted.folder, "u0", **{"unlabeled.kind": "self"})
    task = dataclasses.replace(task, config=own["config"])
    assert unpack(PersonaliseReply, call("train.personalise", task)).users == ("u0",)


def test_with_privacy_a_task_without_a_release_is_not_answered(greeted):
    task = vote_task(greeted.folder, "u0", **{"privacy.mode": "central"})
    with pytest.raises(IdiolectError, match="names no release of the ledger"):
        vote(task)


def test_raw_text_leaves_only_for_the_kind_others(node):
    with pytest.raises(IdiolectError, match="only shared where"):
        unpack(ShareReply, call("query.share", ShareRequest(**head(node.folder, "u0"))))
    task = ShareRequest(**head(node.folder, "u0", **{"unlabeled.kind": "others"}))
    reply = unpack(ShareReply, call("query.share", task))
    assert reply.items["u0"][0].target == "plum cake"
    assert reply.items["u0"][0].rivals == ()


def test_a_repeated_task_does_not_train_again(node):
    first = personalise(node.folder, "u0", "u1")
    again = personalise(node.folder, "u0", "u1")
    assert node.calls == [["u0", "u1"]]
    assert first.outcomes == again.outcomes
    assert first.outcomes["u0"] == Outcome(0.25, True, {"steps": 3.0})


@pytest.mark.parametrize(
    "change", [{"rate": 0.25}, {"personalise.beta": 2.0}, {"seed": 1}]
)
def test_an_adapter_of_another_origin_is_trained_again(node, change):
    personalise(node.folder, "u0")
    personalise(node.folder, "u0", **change)
    assert len(node.calls) == 2
    other = personalise(node.folder, "u0", deadline=99.0)  # that changes no training
    assert other.users == ("u0",)
    assert len(node.calls) == 3  # the file is of the changed run by now


def test_a_group_that_a_crash_cut_in_two_is_trained_whole(node):
    personalise(node.folder, "u0", "u1")
    (node.folder / "adapters/sft/u1.safetensors").unlink()
    personalise(node.folder, "u0", "u1")
    assert node.calls == [["u0", "u1"], ["u0", "u1"]]


def test_a_damaged_file_is_trained_again(node):
    personalise(node.folder, "u0")
    file = node.folder / "adapters/sft/u0.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    assert personalise(node.folder, "u0").users == ("u0",)
    assert len(node.calls) == 2


def test_one_user_that_breaks_does_not_cost_the_group(node):
    node.broken.add("u1")
    reply = personalise(node.folder, "u0", "u1", "u2")
    assert node.calls == [["u0", "u1", "u2"], ["u0"], ["u1"], ["u2"]]
    assert reply.users == ("u0", "u2")
    assert reply.errors == {"u1": "RuntimeError: out of memory"}


def test_a_user_without_an_adapter_is_reported_and_stored_nowhere(node, monkeypatch):
    def overflow(_reference, users, *_rest):
        return [Personal(u.id, None, error="it overflowed.") for u in users]

    monkeypatch.setattr(handlers, "personalise", overflow)
    reply = personalise(node.folder, "u0")
    assert reply.users == ()
    assert reply.errors == {"u0": "it overflowed."}
    assert not (node.folder / "adapters/sft/u0.safetensors").exists()


@pytest.mark.parametrize("simulated", [True, False])
def test_a_simulation_keeps_losses_and_texts_and_a_device_none(
    node, monkeypatch, simulated
):
    personalise(node.folder, "u0")
    personalise(node.folder, "u0", "u1", rate=0.25, trial=True)
    file = node.folder / "curves/sft/u0.json"
    assert json.loads(file.read_text()) == {"user": "u0", "loss": [0.0, 0.125]}
    assert not (node.folder / "curves/sft/u1.json").exists()  # a trial
    file.unlink()
    monkeypatch.setattr(host.Node, "simulated", simulated)
    task: Any = SimpleNamespace(method="sft", trial=False, learning_rate=0.5)
    one = host.Node(
        parse({}), PEOPLE[:1], PEOPLE, frozenset(), state.FolderStore(node.folder), 0.0
    )
    monkeypatch.setattr(handlers, "handed_out", lambda *_: ())
    nothing: Any = None
    handlers._train(task, one, nothing, PEOPLE[:1])
    assert file.exists() == simulated
    for name, value in {
        "reference_of": None,
        "_origin": "",
        "taking_part": (PEOPLE[:1], {}),
        "reply_head": {},
    }.items():
        monkeypatch.setattr(handlers, name, lambda *_, value=value: value)
    monkeypatch.setattr(handlers, "EvaluateReply", SimpleNamespace)
    task = SimpleNamespace(
        method="base",
        shared={},
        generate=True,
        unlabeled_hash="",
        run="r",
        summing=None,
    )
    assert handlers._evaluate(task, one).metrics == {"u0": {"nll": 9.0}}
    file = node.folder / "texts/base/u0.json"
    assert file.exists() == simulated
    if simulated:
        item = {"prompt": "p", "reference": "plum cake", "output": "by u0"}
        kept = json.loads(file.read_text())
        assert kept == {"user": "u0", "items": [item]}


def test_each_rate_is_measured_with_its_own_adapter(node):
    personalise(node.folder, "u0", rate=0.5)
    assert evaluate(node.folder, "u0").metrics == {"u0": {"nll": 0.5}}
    wrong = evaluate(node.folder, "u0", rate=0.25)
    assert wrong.users == ()
    assert "no adapter" in wrong.errors["u0"]
    other = evaluate(node.folder, "u0", unlabeled_hash="f00")
    assert "no adapter" in other.errors["u0"]
    shared = {"layer.q": np.ones((3, 2), np.float32)}
    assert "no adapter" in evaluate(node.folder, "u0", shared=shared).errors["u0"]


def test_methods_without_training_have_no_adapter(node):
    assert evaluate(node.folder, "u0", method="base").metrics == {"u0": {"nll": 9.0}}


def test_a_trial_is_measured_and_not_kept(node):
    personalise(node.folder, "u0", rate=0.5)
    tried = personalise(node.folder, "u0", rate=0.25, trial=True)
    assert tried.outcomes["u0"].log == {"steps": 3.0, "nll": 0.25}
    assert personalise(node.folder, "u0", trial=True).outcomes["u0"].log["nll"] == 0.5
    assert evaluate(node.folder, "u0", rate=0.5).metrics == {"u0": {"nll": 0.5}}
    names = [p.name for p in node.folder.rglob("*.safetensors")]
    assert names == ["u0.safetensors"]


def test_a_user_whose_trial_fails_costs_the_others_nothing(node):
    node.broken.add("u1")
    reply = personalise(node.folder, "u0", "u1", trial=True)
    assert reply.users == ("u0",)
    assert "out of memory" in reply.errors["u1"]


def test_where_metrics_are_noise_no_rate_is_tried(node):
    noisy = {"privacy.mode": "central", "privacy.metrics": "noisy"}
    settings: dict[str, Any] = {**noisy, "personalise.learning-rates": "0.5"}
    with pytest.raises(IdiolectError, match="only tried in a simulation"):
        personalise(node.folder, "u0", trial=True, **settings)


def test_a_stranger_is_refused(node):
    with pytest.raises(IdiolectError, match="'nobody' does not live on node 0"):
        personalise(node.folder, "nobody")


def test_a_shared_adapter_of_the_wrong_shape_is_refused(node):
    with pytest.raises(IdiolectError, match="shape"):
        evaluate(node.folder, "u0", shared={"layer.q": np.zeros((4, 2), np.float32)})


def test_a_task_that_is_no_task_gets_a_sentence_back(node):
    reply = call("query.hello", Failure("r", "s", "nonsense"))
    failure = unpack(Failure, reply)
    assert failure.sentence == "HelloRequest: this is not a message of idiolect."
    body = json.loads(str(reply.config_records["message"]["body"]))
    assert body["run"] == ""


def test_a_configuration_of_the_server_is_checked_here_too(node):
    task = dataclasses.replace(
        HelloRequest(**head(node.folder), key=KEY), config={"seeed": 1}
    )
    with pytest.raises(IdiolectError, match="did you mean 'seed'"):
        unpack(HelloReply, call("query.hello", task))


def test_the_default_configuration_crosses_the_wire():
    assert parse(flatten(Config())) == Config()
