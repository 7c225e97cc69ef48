"""Whole runs on devices: real vaults and the real server, without a network between."""

import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from idiolect.client.node import handlers, host, state
from idiolect.client.node.device import Device, VaultStore
from idiolect.client.node.handlers import HANDLERS
from idiolect.client.node.membership import Server, join, leave
from idiolect.client.owner import (
    adapters,
    consent,
    forgetting,
    history,
    judging,
    learning,
    loading,
    training,
)
from idiolect.client.owner.history import Entry
from idiolect.client.owner.keys import RandomKey
from idiolect.client.owner.records import Record, Source
from idiolect.client.owner.vault import Vault
from idiolect.common.config import flatten, parse, parse_run
from idiolect.common.data.load import load_dataset
from idiolect.common.data.types import Prompt, User
from idiolect.common.engine.adapters import zero_shared
from idiolect.common.engine.reference import Reference, load_reference
from idiolect.common.errors import IdiolectError
from idiolect.common.privacy.protected import planned
from idiolect.common.protocol.manifest import sign_text
from idiolect.common.protocol.messages import (
    AdaptReply,
    AdaptRequest,
    Failure,
    HelloRequest,
    ShareRequest,
    device_user,
)
from idiolect.common.protocol.packing import SCHEMA, pack, unpack
from idiolect.common.protocol.signed import (
    CONTEXT,
    Part,
    digest,
    make_part,
    seal_request,
)
from idiolect.server.run.live import SIGNING_KEY

from .common.conftest import write_model
from .sealing import KEY, SEED, sealed
from .server.federation import FakeGrid, events, results, run

pytestmark = pytest.mark.slow

VAULT_KEY = RandomKey(bytes(32))
SERVER = Server("server.example:9443", "", KEY)
CANARY = "zebra-quartz-7f3a91c4e2b85d60-marmalade-{}"  # 41 characters
SECRET = "my e-mail is canary.{}@private-example.org and my card 4111 1111 1111 1111"


class DeviceGrid(FakeGrid):
    """Flower's grid, played by devices with vaults; remembers everything in clear."""

    def __init__(self, vaults: list[Vault], change=None) -> None:
        super().__init__(len(vaults), change)
        self.devices = {100 + k: Device(v, 100 + k) for k, v in enumerate(vaults)}
        self.traffic: list[tuple[str, str]] = []
        self.heads: list[tuple[str, dict]] = []

    def pull_messages(self, message_ids):
        for name in message_ids:
            task = self.waiting.pop(name, None)
            if task is None:
                continue
            device = self.devices[task.metadata.dst_node_id]
            self.kinds.append(task.metadata.message_type)
            self._note(task.content)
            record = device.answer(task)
            self._note(record)
            reply = self.change(task, Message(record, reply_to=task))
            if reply is not None:
                return [reply]
        return []

    def _note(self, record: RecordDict) -> None:
        head = record.config_records["message"]
        # Large parts of tasks are text as well: every byte is a character here.
        arrays = [
            a.data.decode("latin-1")
            for r in record.array_records.values()
            for a in r.values()
        ]
        self.traffic.append((str(head["kind"]), str(head["body"]) + "".join(arrays)))
        self.heads.append((str(head["kind"]), json.loads(str(head["body"]))))

    def bodies(self, kind: str) -> list[dict]:
        """Bodies of all messages of a kind."""
        return [body for name, body in self.heads if name == kind]


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    return str(write_model(tmp_path_factory.mktemp("model"), "llama"))


@pytest.fixture(scope="session")
def people() -> tuple[User, ...]:
    return tuple(load_dataset(parse({"users": 3, "history": 6, "held-out": 2})).users)


@pytest.fixture
def public(tmp_path) -> str:
    items = load_dataset(parse({"users": 3})).public[:24]
    lines = [json.dumps({"prompt": i.prompt.text, "target": i.target}) for i in items]
    (tmp_path / "public.jsonl").write_text("\n".join(lines))
    return str(tmp_path / "public.jsonl")


@pytest.fixture
def vaults(tmp_path, model, people):
    made = []
    for number, user in enumerate(people):
        vault = Vault.create(tmp_path / f"device{number}" / "vault.db", VAULT_KEY)
        consent.choose(vault, backbone=model)
        join(vault, SERVER)
        pairs = [Entry(i.prompt, i.target) for i in (*user.history, *user.held_out)]
        pairs.append(Entry(Prompt("", "What is it?"), CANARY.format(number)))
        pairs += [Entry(Prompt("", "Who?"), SECRET.format(number))]
        history.add(vault, pairs, "persona")
        made.append(vault)
    yield made
    for vault in made:
        vault.close()


def agree(vaults: list[Vault], **answers: str) -> None:
    for vault in vaults:
        for outflow, given in answers.items():
            consent.consent(vault, outflow, given)


@pytest.fixture
def settings(tmp_path, model, public, monkeypatch) -> dict:
    key = tmp_path / "signing.key"
    key.write_text(f"{SEED.hex()}\n{KEY}\n")
    monkeypatch.setenv(SIGNING_KEY, str(key))
    return {
        "run.folder": str(tmp_path / "runs"),
        "task": "text",
        "backbone": model,
        "engine.device": "cpu",
        "users": 3,
        "methods": "base,shared,c-bpo",
        "deadline": 5.0,
        "lora.rank": 2,
        "lora.targets": "q,v",
        "adapt.rounds": 2,
        "adapt.batch": 4,
        "unlabeled.file": public,
        "unlabeled.bank": 24,
        "personalise.epochs": 1,
        "personalise.learning-rates": "3e-3",
        "evaluate.generate": False,
        "evaluate.bootstrap": 100,
    }


def allow(vaults: list[Vault]) -> None:
    """Raise the owners' ceilings to what a run of three users takes."""
    for vault in vaults:
        consent.choose(vault, fewest_users="2", most_delta="0.01")


CLEAR = {"update": "clear", "votes": "clear", "metrics": "clear"}
PRIVATE = {
    "privacy.mode": "central",
    "privacy.metrics": "noisy",
    "privacy.delta": 1e-3,
    "privacy.epsilon": 8.0,
}


def test_a_run_on_devices_leaves_each_an_adapter_of_its_own(vaults, settings):
    agree(vaults, **CLEAR)
    grid = DeviceGrid(vaults)
    found = results(run(settings, grid))
    names = [device_user(node) for node in grid.devices]
    assert list(found["users"]) == names
    assert set(found["methods"]) == {"base", "shared", "c-bpo"}
    numbers = []
    for vault, name in zip(vaults, names, strict=True):
        (version,) = adapters.versions(vault)
        assert (version.method, version.trained, version.held_out) == ("c-bpo", 8, 2)
        assert version.shared and version.origin
        # What the device measured for itself is what it told, and nothing else moved it.
        assert version.nll == pytest.approx(found["users"][name]["c-bpo"]["nll"])
        assert version.nll_before == pytest.approx(
            found["users"][name]["shared"]["nll"]
        )
        assert adapters.active(vault) == (1 if version.accepted else 0)
        numbers.append(version.nll)
    assert len(set(numbers)) == 3
    # How training went stays on the device, whatever its owner consents to.
    for reply in grid.bodies("PersonaliseReply"):
        assert list(reply["outcomes"].values()) == [[None, False, {}]]
        assert (reply["seconds"], reply["process"], reply["peak_rss_mb"]) == (0, "", 0)


def test_an_adapter_on_a_shared_one_that_noise_has_ruined_is_not_used(vaults):
    vault = vaults[0]
    config = loading.config_of(consent.settings(vault))
    found = load_reference(config)
    backbone, zero = found.backbone, found.adapter
    noise = {n: torch.full_like(b, 5.0) for n, b in zero.b.items()}
    ruined = replace(zero, b=noise)
    user, sources = learning.split(history.entries(vault))
    reference, learnt = Reference(backbone, ruined), (user, sources)
    version = judging.adopt(vault, reference, zero, "sft", learnt, "a run")
    assert version.nll == pytest.approx(version.nll_before)
    assert version.nll > version.nll_bare
    assert not version.accepted and adapters.active(vault) == 0


def test_what_a_run_trained_is_used_afterwards(vaults, settings):
    agree(vaults, **CLEAR)
    run(settings, DeviceGrid(vaults))
    vault = vaults[0]
    adapters.activate(vault, 1)
    config = loading.config_of(consent.settings(vault))
    found = load_reference(config)
    backbone, zero = found.backbone, found.adapter
    shared, _ = adapters.adapter(vault, backbone, zero)
    assert any(tensor.any() for tensor in shared.b.values())
    # Training without a server goes on from the shared adapter that the run brought.
    version = training.train(vault)
    assert version.shared == adapters.versions(vault)[0].shared != ""


def test_without_the_owners_consent_nothing_of_the_kind_leaves(vaults, settings):
    grid = DeviceGrid(vaults)
    with pytest.raises(IdiolectError, match="does not consent to updates.*only with"):
        run(settings, grid)
    kinds = {kind for kind, _ in grid.traffic if kind.endswith("Reply")}
    assert kinds == {"HelloReply"}
    assert {one.kind for one in consent.sent(vaults[0])} == {"HelloReply", "Failure"}


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        ({"update": "clear"}, "votes on candidates, only with noise"),
        ({"update": "clear", "votes": "clear"}, "metrics, only with noise"),
        ({**CLEAR, "metrics": "no"}, "consent to metrics:"),
        ({**CLEAR, "update": "no"}, "updates of the shared adapter:"),
    ],
)
def test_each_outflow_has_its_own_consent(vaults, settings, answers, sentence):
    agree(vaults, **answers)
    with pytest.raises(IdiolectError, match=sentence):
        run(settings, DeviceGrid(vaults))


def test_metrics_are_noisy_only_where_they_are_said_to_be(vaults, settings):
    allow(vaults)
    with pytest.raises(IdiolectError, match="consent to metrics, only with noise"):
        run(settings | PRIVATE | {"privacy.metrics": "clear"}, DeviceGrid(vaults))


def test_a_private_run_needs_no_more_than_the_usual_consent(vaults, settings):
    allow(vaults)
    grid = DeviceGrid(vaults)
    folder = run(settings | PRIVATE, grid)
    found = results(folder)
    assert not found["users"] and not found["pairs"]
    assert set(found["methods"]) == {"base", "shared", "c-bpo"}
    assert found["privacy"]["mode"] == "central"
    # Two rounds, a vote and three methods; what holds no text of the owner has no epsilon.
    said = [(one.kind, one.epsilon) for one in consent.sent(vaults[0])]
    released = (
        [("AdaptReply", 8.0)] * 2 + [("VoteReply", 8.0)] + [("EvaluateReply", 8.0)] * 3
    )
    assert [one for one in said if one[1]] == released
    assert {kind for kind, epsilon in said if epsilon is None} == {
        "HelloReply",
        "PersonaliseReply",
    }
    assert all(adapters.versions(vault) for vault in vaults)
    (charged,) = consent.spent(vaults[0]).values()
    assert (charged.epsilon, charged.delta, charged.releases) == (8.0, 1e-3, 6)


def test_a_second_run_is_refused_where_both_exceed_the_owners_ceiling(vaults, settings):
    allow(vaults)
    run(settings | PRIVATE | {"run.name": "one"}, DeviceGrid(vaults))
    before = [consent.spent(vault) for vault in vaults]
    with pytest.raises(
        IdiolectError, match="ceiling for privacy does not allow"
    ) as said:
        run(settings | PRIVATE | {"run.name": "two"}, DeviceGrid(vaults))
    assert not any(
        digit in str(said.value).partition("failure:")[2] for digit in "0123456789"
    )
    assert [consent.spent(vault) for vault in vaults] == before
    for vault in vaults:
        consent.choose(vault, most_epsilon="16")
    folder = run(settings | PRIVATE | {"run.name": "three"}, DeviceGrid(vaults))
    assert results(folder)["methods"]
    assert [consent.total(consent.spent(v).values())[0] for v in vaults] == [16.0] * 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"privacy.seeded": True}, "only with noise \\(privacy.seeded is true"),
        (
            {"quorum": 0.1},
            "only with noise \\(a sum of it may be of no more than 0.3 users",
        ),
        (
            {"privacy.cohort": 1},
            "only with noise \\(a sum of it may be of no more than 1 users",
        ),
        ({"privacy.epsilon": 1e5}, "only with noise \\(epsilon 1e\\+05 excludes"),
        ({"privacy.epsilon": math.inf}, "only with noise \\(privacy.epsilon is inf"),
    ],
)
def test_noise_that_is_none_gets_nothing(vaults, settings, change, said):
    for vault in vaults:
        consent.choose(vault, fewest_users="1", most_delta="inf", most_epsilon="inf")
    grid = DeviceGrid(vaults)
    with pytest.raises(IdiolectError) as raised:
        run(settings | PRIVATE | {"quorum": 1.0} | change, grid)
    failures = [body["sentence"] for body in grid.bodies("Failure")]
    assert failures and all(re.search(said, one) for one in failures), raised.value
    kinds = {kind for kind, _ in grid.traffic if kind.endswith("Reply")}
    assert kinds == {"HelloReply"}


def test_a_server_that_asks_for_more_releases_than_declared_gets_none(vaults, settings):
    """Without a cap as well: the run's own number of rounds is one."""
    allow(vaults)
    store = VaultStore(vaults[0], "r")
    config = parse_run(settings | PRIVATE | {"adapt.rounds": 2})[0]
    for number in range(2):
        state.take_part(
            store, "u", "adapt", f"adapt/{number}", "x", planned(config)["update"]
        )
    state.take_part(store, "u", "adapt", "adapt/1", "x", planned(config)["update"])
    with pytest.raises(consent.Refusal, match="took part in 2 releases"):
        state.take_part(store, "u", "adapt", "adapt/2", "x", planned(config)["update"])


def test_a_paused_device_loads_no_backbone(vaults, settings, monkeypatch):
    def load(*_args):
        raise AssertionError("the backbone was loaded")

    config = flatten(parse_run(settings | {"backbone": "tiny"})[0])
    task = adapt_task(config, "", {"x": np.zeros((2, 2), np.float32)})
    device = Device(vaults[0], 100)
    monkeypatch.setattr("idiolect.client.node.host.backbone_of", load)
    greet(vaults[0], config)
    said = ask(device, "train.adapt", task)
    assert "AssertionError" in said  # else it would prove nothing
    consent.pause(vaults[0], True)
    assert "paused" in ask(device, "train.adapt", task)
    consent.pause(vaults[0], False)
    consent.choose(vaults[0], max_load="1e-9")
    assert "busy" in ask(device, "train.adapt", task)


HUGE = "1" + "0" * 400
BODIES = [
    "[" * 200_000,
    '{"a":' * 200_000,
    '{"privacy.mode": "central", "privacy.epsilon": ' + HUGE + "}",
    '{"privacy.mode": "central", "privacy.epsilon": 1e400}',
    '{"seed": 1, "seed": 2}',
    '{"max-length": ' + HUGE + "}",
    '{"max-length": "12"}',
    '{"max-length": NaN}',
    "9" * 5000,
    "[]",
    "\x00",
]


def raw(kind: str, body: str, signature: str) -> RecordDict:
    """A message that says that it is a task."""
    head = {"schema": SCHEMA, "kind": kind, "body": body, "signature": signature}
    return RecordDict({"message": ConfigRecord(head)})


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body[:20])
@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("kind", ["query.hello", "evaluate"])
def test_no_text_of_a_task_ends_the_worker(vaults, body, kind, part):
    """Neither a stranger's, nor one that the server has signed."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    name = HANDLERS[kind][0].__name__
    if part:
        task = HelloRequest("r", "s", {}, "", (), KEY)
        parts = {"config": Part(body.encode(), digest(body.encode()))}
        kind, record = (
            "query.hello",
            seal_request(task, 100, 1, parts, SEED, {}, bytes(16)),
        )
    else:
        record = raw(name, body, sign_text(CONTEXT, body, SEED))
    answer = Device(vaults[0], 100).answer(Message(record, 100, kind))
    assert answer.config_records["message"]["kind"] == "Failure"
    (noted,) = consent.sent(vaults[0])
    assert (noted.kind, noted.epsilon) == ("Failure", None)


@pytest.mark.parametrize("kind", ["votes", "public", "self", "anonymised"])
def test_no_canary_is_in_the_traffic_or_in_a_file_of_the_server(
    kind, vaults, settings, capfd, monkeypatch
):
    """What is in clear at the server's handlers, and all it writes and prints."""
    agree(vaults, **CLEAR, items="clear")
    more = {"unlabeled.support": 1, "unlabeled.buckets": 2}
    for module in ("common.unlabeled.votes", "server.run.remote"):
        monkeypatch.setattr(f"idiolect.{module}.OFFERED", 20)
    grid = DeviceGrid(vaults)
    folder = run(settings | more | {"unlabeled.kind": kind}, grid)
    said = "\n".join(body for _, body in grid.traffic)
    written = b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())
    written += "".join(capfd.readouterr()).encode()  # the log of both sides
    for number, vault in enumerate(vaults):
        texts = [CANARY.format(number), f"canary.{number}@private-example", "4111 1111"]
        if kind != "anonymised":  # whose very point is to hand over scrubbed text
            texts += [entry.target for entry in history.entries(vault)]
        ids = _tokens(vault, CANARY.format(number))
        for text in (*texts, ids):
            assert text not in said
            assert text.encode() not in written
    sent = {name for name, _ in grid.traffic}
    assert sent <= {
        *("HelloTask", "HelloReply", "AdaptTask", "AdaptReply", "VoteTask"),
        *("VoteReply", "OfferTask", "OfferReply", "PersonaliseTask"),
        *("PersonaliseReply", "EvaluateTask", "EvaluateReply"),
    }
    if kind == "anonymised":  # the test would also pass if nothing were handed over
        assert any(reply["items"] for reply in grid.bodies("OfferReply"))


def _tokens(vault: Vault, text: str) -> str:
    found = load_reference(loading.config_of(consent.settings(vault)))
    backbone = found.backbone
    return json.dumps(backbone.tokenizer(text)["input_ids"], separators=(",", ":"))[
        1:-1
    ]


def test_the_capture_would_see_a_canary(vaults, settings, monkeypatch):
    """A device that leaks is noticed: the check above is no empty one."""
    agree(vaults, **CLEAR)
    original = Device.answer

    def leaky(self: Device, message: Message) -> RecordDict:
        record = original(self, message)
        head = record.config_records["message"]
        head["body"] = str(head["body"]).replace('"errors":{}', '"errors":{"x":"%s"}')
        head["body"] = str(head["body"]) % CANARY.format(0)
        return record

    monkeypatch.setattr(Device, "answer", leaky)
    grid = DeviceGrid(vaults)
    with pytest.raises(IdiolectError):
        run(settings, grid)
    assert CANARY.format(0) in "".join(body for _, body in grid.traffic)


def test_paths_of_the_server_stay_there(vaults, settings, tmp_path):
    agree(vaults, **CLEAR)
    grid = DeviceGrid(vaults)
    run(settings, grid)
    tasks = "".join(body for kind, body in grid.traffic if kind.endswith("Task"))
    assert '"personalise.epochs"' in tasks  # the settings, among which paths would be
    for place in (str(tmp_path), settings["backbone"], settings["unlabeled.file"]):
        assert str(place) not in tasks


def test_a_killed_run_goes_on_with_the_devices_it_had(vaults, settings, monkeypatch):
    agree(vaults, **CLEAR)
    unbroken = results(run(settings | {"run.name": "one"}, DeviceGrid(vaults)))

    def die(task: Message, reply: Message) -> Message:
        if task.metadata.message_type == "train.personalise":
            raise KeyboardInterrupt
        return reply

    fresh = settings | {"run.name": "two"}
    with pytest.raises(KeyboardInterrupt):
        run(fresh, DeviceGrid(vaults, die))
    resumed = results(run(settings | {"run.resume": "two"}, DeviceGrid(vaults)))
    for name, methods in unbroken["users"].items():
        assert resumed["users"][name] == methods
    # The device that had trained before the crash did not train, nor adopt, again.
    assert [len(adapters.versions(vault)) for vault in vaults] == [2, 2, 2]


def test_a_device_that_was_killed_before_adopting_adopts_when_asked_again(
    vaults, settings, monkeypatch
):
    agree(vaults, **CLEAR)

    def dies(*_args, **_more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(judging, "adopt", dies)
        with pytest.raises(KeyboardInterrupt):
            run(settings | {"run.name": "a"}, DeviceGrid(vaults))
    assert adapters.versions(vaults[0]) == []
    run(settings | {"run.resume": "a"}, DeviceGrid(vaults))
    assert [len(adapters.versions(vault)) for vault in vaults] == [1, 1, 1]


def test_no_text_stays_in_a_worker_between_tasks(vaults, settings, monkeypatch):
    """Its owner may erase it next, from another process. (The tokenizer keeps words.)"""
    kept, original = [], host.forget

    given = flatten(parse_run(settings)[0])
    config, _ = Device(vaults[0], 100)._config(given)  # with what the device decides

    def counted() -> list[int]:
        store = host.resident(config)._store
        return [len(store.results), store.ngrams.cache_info().currsize]

    def forget() -> None:
        kept.append(counted())
        original()
        assert counted() == [0, 0]

    monkeypatch.setattr("idiolect.client.node.device.forget", forget)
    agree(vaults, **CLEAR)
    run(settings, DeviceGrid(vaults))
    assert all(max(column) > 0 for column in zip(*kept, strict=True))
    assert counted() == [0, 0]


def test_forgetting_reaches_what_a_run_trained(vaults, settings):
    agree(vaults, **CLEAR)
    run(settings, DeviceGrid(vaults))
    vault = vaults[0]
    assert len(list(vault.records("run"))) > 1
    forgetting.forget(vault, ["persona"])
    assert adapters.versions(vault) == [] and adapters.active(vault) == 0
    assert [r.name for r in vault.records("run") if "adapters/" in r.name] == []
    # What it took part in is still counted.
    assert any("devices/" in record.name for record in vault.records("run"))


def test_a_history_that_is_named_like_a_run_outlives_every_hello(vaults, settings):
    agree(vaults, **CLEAR)
    for vault, name in zip(vaults, ("run notes.jsonl", "device", "run "), strict=True):
        vault.put("run", [Record("gone/adapters/x", b"")], Source("run", "gone"))
        (owned,) = {entry.source for entry in history.entries(vault)}
        pairs = history.entries(vault)
        forgetting.forget(vault, [owned])
        history.add(vault, pairs, name)
        vault.put("run", [Record("gone/adapters/x", b"")], Source("run", "gone"))
    run(settings | {"methods": "base", "adapt.rounds": 1}, DeviceGrid(vaults))
    for vault in vaults:
        assert len(history.entries(vault)) == 10
        assert Source("run", "gone") not in vault.sources()
    forgetting.forget(vaults[1], ["device"])
    assert consent.consents(vaults[1])["update"] == "clear"


@pytest.mark.parametrize(
    ("step", "reply"),
    [("shared_update", "AdaptReply"), ("personalise", "PersonaliseReply")],
)
def test_text_that_is_forgotten_during_a_task_is_in_no_answer_and_no_adapter(
    vaults, settings, monkeypatch, step, reply
):
    """The owner's command runs in another process, while the device trains."""
    agree(vaults, **CLEAR)
    original = getattr(handlers, step)
    forgotten = []

    def meanwhile(*arguments):
        found = original(*arguments)
        if not forgotten:
            with Vault.open(vaults[0].path, VAULT_KEY) as other:
                forgotten.append(forgetting.forget(other, ["persona"])[0])
        return found

    monkeypatch.setattr(handlers, step, meanwhile)
    grid = DeviceGrid(vaults)
    run(settings | {"quorum": 0.5}, grid)
    assert forgotten == [10]
    assert adapters.versions(vaults[0]) == [] and adapters.active(vaults[0]) == 0
    kinds = {source.kind for source in vaults[0].sources()}
    assert kinds <= {"device", "run"}  # of the run there is what its server sent
    names = [record.name for record in vaults[0].records("run")]
    assert not [name for name in names if "adapters/" in name]
    (first, *_) = grid.devices
    said = [body for body in grid.bodies(reply) if device_user(first) in body["users"]]
    assert said == []
    failed = [body["sentence"] for body in grid.bodies("Failure")]
    assert "forgotten text that this was made of" in failed[0]
    kinds = [one.kind for one in consent.sent(vaults[0])]
    assert "Failure" in kinds and reply not in kinds


def test_a_forgotten_text_is_not_measured_either(vaults, settings, monkeypatch):
    from idiolect.common.methods import evaluation

    agree(vaults, **CLEAR)
    original = evaluation.evaluate

    def meanwhile(*arguments):
        found = original(*arguments)
        if "persona" in {entry.source for entry in history.entries(vaults[0])}:
            with Vault.open(vaults[0].path, VAULT_KEY) as other:
                forgetting.forget(other, ["persona"])
        return found

    monkeypatch.setattr(evaluation, "evaluate", meanwhile)
    grid = DeviceGrid(vaults)
    run(settings | {"quorum": 0.5, "methods": "base,shared"}, grid)
    (first, *_) = grid.devices
    told = [body for body in grid.bodies("EvaluateReply") if body["users"]]
    assert told and not [b for b in told if device_user(first) in b["users"]]


@pytest.mark.parametrize("task", ["train.adapt", "train.personalise"])
def test_without_consent_for_training_nothing_is_trained(
    vaults, settings, monkeypatch, task
):
    agree(vaults, **CLEAR)

    def refuse(message: Message, reply: Message) -> Message:
        if (
            task == "train.personalise"
            and message.metadata.message_type == "query.vote"
        ):
            agree(vaults, training="no")
        return reply

    if task == "train.adapt":
        agree(vaults, training="no")
    trained = []
    for name in ("personalise", "shared_update"):
        original = getattr(handlers, name)
        monkeypatch.setattr(
            handlers, name, lambda *a, o=original, n=name: trained.append(n) or o(*a)
        )
    with pytest.raises(IdiolectError, match="consent to a run's training"):
        run(settings, DeviceGrid(vaults, refuse))
    assert set(trained) == (set() if task == "train.adapt" else {"shared_update"})
    assert all(adapters.versions(vault) == [] for vault in vaults)


def ask(device: Device, kind: str, task) -> str:
    """The sentence with which a device refuses a task."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    message = Message(sealed(task), 100, kind)
    return unpack(Failure, device.answer(message)).sentence


def greet(vault: Vault, config: dict, run: str = "r") -> None:
    """As a hello of a run with this configuration would leave the device."""
    hashed = make_part("config", config).hash
    state.pin(VaultStore(vault, run), device_user(100), KEY, 0, hashed)


def share_task(settings: dict, *users: str, **more) -> ShareRequest:
    config = flatten(parse_run({**settings, "unlabeled.kind": "self", **more})[0])
    return ShareRequest("r", "s", config, "", users)


def test_raw_text_never_leaves_a_device(vaults, settings):
    agree(vaults, **CLEAR, items="clear")
    for kind in ("others", "self"):
        task = share_task(settings, device_user(100))
        task.config["unlabeled.kind"] = kind
        task = replace(task, run=kind)
        greet(vaults[0], task.config, kind)
        said = ask(Device(vaults[0], 100), "query.share", task)
        assert CANARY.format(0) not in said and "ShareReply" not in said
    # Even past the check of the configuration, the owner's answers stand before it.
    with pytest.raises(consent.Refusal, match="no device hands over raw text"):
        consent.permit({"update": "clear"}, "text", parse({}))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda vault, task: consent.pause(vault, True), "paused"),
        (lambda vault, task: task.config.update({"task": "headline"}), "simulations"),
        (
            lambda vault, task: forgetting.forget(vault, ["persona"]),
            "too little history",
        ),
    ],
)
def test_a_device_says_why_it_does_not_take_part(
    vaults, settings, change: Callable, sentence
):
    task = share_task(settings, device_user(100))
    change(vaults[0], task)
    greet(vaults[0], task.config)
    assert sentence in ask(Device(vaults[0], 100), "query.share", task)


def test_who_cannot_sign_does_not_learn_whether_a_device_is_paused(vaults, settings):
    task = share_task(settings, device_user(100))
    greet(vaults[0], task.config)
    consent.pause(vaults[0], True)
    assert "paused" in ask(Device(vaults[0], 100), "query.share", task)
    forged = Message(sealed(task, seed=bytes(32)), 100, "query.share")
    said = unpack(Failure, Device(vaults[0], 100).answer(forged)).sentence
    assert "not signed with the key" in said and "paused" not in said


def test_a_task_for_somebody_else_is_refused(vaults, settings):
    task = share_task(settings, device_user(101))
    said = ask(Device(vaults[0], 100), "query.share", task)
    assert "the request is for device-101, this is device-100" in said


def test_what_is_no_task_is_refused(vaults, settings):
    said = ask(Device(vaults[0], 100), "train.everything", share_task(settings))
    assert "not a request of idiolect" in said


def test_refusals_of_tasks_that_were_not_taken_are_one_entry(vaults, settings):
    """Anybody who reaches the device can send such tasks without end."""
    device, task = Device(vaults[0], 100), share_task(settings, device_user(100))
    for _ in range(3):
        ask(device, "train.everything", task)
    (noted,) = consent.sent(vaults[0])
    assert (noted.count, noted.run, noted.epsilon) == (3, "", None)
    assert noted.why.startswith(
        "3 refusals of requests that were not admitted, since 20"
    )
    first = noted.bytes / 3
    greet(vaults[0], task.config)
    assert "too little" not in ask(
        device, "query.share", task
    )  # taken: a hello was said
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    again = Message(sealed(task), 100, "query.share")
    device.answer(again)
    for _ in range(2):  # played back
        assert "answered before" in unpack(Failure, device.answer(again)).sentence
    *own, noted = consent.sent(vaults[0])
    assert [one.count for one in own] == [1, 1] and noted.count == 5
    assert noted.bytes > 4 * first and (noted.since or 0) < noted.time


def test_a_run_signed_by_another_than_the_joined_server_is_refused(vaults, settings):
    agree(vaults, **CLEAR)
    for vault in vaults:
        leave(vault)
        join(vault, Server("server.example:9443", "", "00" * 32))
    with pytest.raises(IdiolectError, match="not signed with the key of this device"):
        run(settings, DeviceGrid(vaults))


def test_a_device_cannot_answer_for_another(vaults, settings):
    agree(vaults, **CLEAR)
    grid = DeviceGrid(vaults)
    grid.devices[101].user = device_user(100)
    with pytest.raises(IdiolectError, match="it answered for somebody else"):
        run(settings | {"quorum": 1.0}, grid)


def test_a_run_has_as_many_devices_as_it_was_calibrated_for(vaults, settings):
    agree(vaults, **CLEAR)
    folder = run(settings | {"users": 2}, DeviceGrid(vaults))
    assert len(results(folder)["users"]) == 2
    assert any(
        "has its 2 devices already" in e["message"] for e in events(folder, "warning")
    )


@pytest.mark.parametrize("first", ["silent", "refuses"])
def test_a_device_that_comes_later_is_greeted_whatever_the_first_does(
    vaults, settings, first
):
    """Nobody who is silent, or answers at once that it cannot, ends the hello."""
    agree(vaults, **CLEAR)

    def spoil(task: Message, reply: Message) -> Message | None:
        if task.metadata.dst_node_id != 100:
            return reply
        if first == "silent":
            return None
        head = json.loads(str(task.content.config_records["message"]["body"]))
        body = Failure(head["run"], head["step"], "no.")
        return Message(pack(body), reply_to=task)

    class Late(DeviceGrid):
        opens = math.inf

        def get_node_ids(self):
            self.opens = min(self.opens, time.monotonic() + 1.0)
            return [100, 101] if time.monotonic() < self.opens else [100, 101, 102]

    grid = Late(vaults, spoil)
    changed = {"users": 2, "quorum": 1.0, "deadline": 12.0, "methods": "shared"}
    found = results(run(settings | changed, grid))
    assert set(found["users"]) == {"device-101", "device-102"}
    assert 1.0 < found["cost"]["seconds"]["hello"] < 6
    steps = [body["step"] for body in grid.bodies("HelloTask")]
    assert steps.count("hello/101") == steps.count("hello/102") == 1


def test_what_a_device_calls_its_process_is_not_counted(vaults, settings):
    """It may have another name in every reply, and any size."""
    agree(vaults, **CLEAR)

    def rename(task: Message, reply: Message) -> Message:
        head = reply.content.config_records["message"]
        body = json.loads(str(head["body"]))
        if "process" in body:
            name = task.metadata.message_id * 100
            head["body"] = json.dumps(body | {"process": name, "peak_rss_mb": 1e9})
        return reply

    folder = run(settings | {"methods": "shared"}, DeviceGrid(vaults, rename))
    (memory,) = events(folder, "memory")
    assert memory["all_mb"] == memory["server_mb"] < 1e6


def test_an_error_that_could_quote_the_text_is_not_told(vaults, settings, monkeypatch):
    agree(vaults, **CLEAR)

    def quoting(*_):
        raise RuntimeError(f"odd text: {CANARY.format(0)}")

    monkeypatch.setattr("idiolect.client.node.handlers.shared_update", quoting)
    grid = DeviceGrid(vaults)
    with pytest.raises(IdiolectError, match="RuntimeError: the device's own log"):
        run(settings, grid)
    assert "zebra" not in "".join(body for _, body in grid.traffic)


def test_a_simulated_node_has_no_part_in_a_run_on_devices(settings):
    with pytest.raises(IdiolectError, match="names no run folder: its run is on dev"):
        run(settings, FakeGrid())


def test_the_server_of_a_simulation_refuses_devices(vaults, settings):
    with pytest.raises(IdiolectError, match="which is for simulations"):
        run({**settings, "task": "headline"}, DeviceGrid(vaults))


@pytest.mark.parametrize("lost", ["TaskLost", "AnswerLost"])
def test_a_message_that_gets_lost_costs_a_share_of_the_deadline(vaults, settings, lost):
    """A process between server and device may die with a task or an answer in it."""
    agree(vaults, **CLEAR)

    class Lossy(DeviceGrid):
        dropped = 0

        def pull_messages(self, message_ids):
            for name in message_ids:
                task = self.waiting.get(name)
                if task is None or self.dropped:
                    continue
                if task.metadata.message_type == "train.adapt":
                    self.dropped += 1
                    del self.waiting[name]
                    if lost == "AnswerLost":
                        self.devices[task.metadata.dst_node_id].answer(task)
                    return []
            return super().pull_messages(message_ids)

    grid = Lossy(vaults)
    settings |= {"deadline": 16.0, "quorum": 1.0, "adapt.rounds": 1}
    folder = run(settings, grid)
    assert grid.dropped == 1
    assert len(results(folder)["users"]) == 3
    assert results(folder)["cost"]["seconds"]["adapt"] < 12
    answers = [
        [entry.kind for entry in consent.sent(vault)].count("AdaptReply")
        for vault in vaults
    ]
    assert sorted(answers) == ([1, 1, 2] if lost == "AnswerLost" else [1, 1, 1])


# --- whose tasks a device does -----------------------------------------------------------


class Tape(DeviceGrid):
    """Keeps every task that a device was sent."""

    def __init__(self, vaults) -> None:
        super().__init__(vaults)
        self.tape: list[Message] = []

    def push_messages(self, messages):
        messages = list(messages)
        self.tape += messages
        return super().push_messages(messages)


def refused(device: Device, message: Message) -> str:
    """The sentence of a device that does nothing for a task."""
    return unpack(Failure, device.answer(message)).sentence


def test_what_was_recorded_of_a_run_is_never_done_again(vaults, settings):
    """The operator of a SuperLink plays everything back, in any order."""
    agree(vaults, **CLEAR)
    grid = Tape(vaults)
    run(settings, grid)
    device, before = grid.devices[100], adapters.versions(vaults[0])
    tape = [m for m in grid.tape if m.metadata.dst_node_id == 100]
    assert len({m.metadata.message_type for m in tape}) == 5
    for message in (*tape, *reversed(tape)):
        assert "was answered before, or a later one" in refused(device, message)
    assert adapters.versions(vaults[0]) == before
    # Nor is a task for one device done by another, whatever it is.
    for message in tape:
        assert "another device" in refused(grid.devices[101], message)


def test_a_task_that_was_overtaken_is_refused_and_later_ones_are_done(vaults, settings):
    agree(vaults, **CLEAR)
    task = share_task(settings, device_user(100))
    greet(vaults[0], task.config)
    device = Device(vaults[0], 100)
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    for counter, sentence in (
        (7, "raw text is only shared"),
        (7, "answered before"),
        (6, "answered before"),
        (8, "raw text is only shared"),
    ):
        message = Message(sealed(task, counter=counter), 100, "query.share")
        said = unpack(Failure, device.answer(message)).sentence
        # A device tells a server no error of its own but that there was one.
        assert sentence in said or said.startswith("IdiolectError"), said
        assert ("answered before" in said) == ("answered" in sentence)


def adapt_task(
    config: dict, release: str, rows: dict, clip: float = 1.0
) -> AdaptRequest:
    return AdaptRequest(
        "r", "s", config, "", (device_user(100),), 0, release, clip, shared=rows
    )


def test_no_valid_hello_no_work_and_the_cap_holds(vaults, settings):
    """What an attack did: adapt without hello, 11 releases where one was agreed to."""
    agree(vaults, **CLEAR)
    one = {"privacy.participations": 1, "methods": "c-bpo", "adapt.rounds": 1}
    one["adapt.learning-rate"] = 1e-3
    config = flatten(parse_run({**settings, **PRIVATE, **one})[0])
    backbone = load_reference(loading.config_of(consent.settings(vaults[0]))).backbone
    shape = parse(config).shared_shape
    rows = {n: b.numpy() for n, b in zero_shared(backbone, shape, 0).b.items()}
    device = Device(vaults[0], 100)

    def answer(task) -> RecordDict:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
        return device.answer(Message(sealed(task), 100, "train.adapt"))

    for number in range(11):
        said = unpack(Failure, answer(adapt_task(config, f"adapt/{number}", rows)))
        assert "did not agree to this run in a hello" in said.sentence
    hello = HelloRequest("r", "s", config, "", (), KEY)
    device.answer(Message(sealed(hello), 100, "query.hello"))
    shapes = {name: (1, *b.shape) for name, b in rows.items()}
    reply = answer(adapt_task(config, "adapt/0", rows))
    assert unpack(AdaptReply, reply, lambda _f: shapes).users == (device_user(100),)
    nobody = {name: (0, *b.shape) for name, b in rows.items()}
    for number in range(1, 11):
        reply = answer(adapt_task(config, f"adapt/{number}", rows))
        assert unpack(AdaptReply, reply, lambda _f: nobody).users == ()
    # The same release is answered again, but only with the same rows.
    moved = {name: b + 1 for name, b in rows.items()}
    for task in (
        adapt_task(config, "adapt/0", moved),
        adapt_task(config, "adapt/0", rows, clip=2.0),
    ):
        assert unpack(AdaptReply, answer(task), lambda _f: nobody).users == ()
    for change in ({"seed": 1}, {"adapt.learning-rate": 0.5}, {"adapt.batch": 3}):
        other = adapt_task({**config, **change}, "adapt/0", rows)
        said = unpack(Failure, answer(other)).sentence
        assert "not with this configuration" in said


def test_two_runs_at_once_leave_each_other_alone(vaults, settings):
    """Each phase of one run after the same phase of the other."""
    agree(vaults, **CLEAR)
    # The answers of one run wait while the whole other one is computed.
    settings = {**settings, "deadline": 120.0}
    alone = results(run({**settings, "run.name": "alone"}, DeviceGrid(vaults)))
    first: list[Path] = []

    class Between(DeviceGrid):
        """Runs a whole other run before the first evaluation."""

        def push_messages(self, messages):
            messages = list(messages)
            kinds = {m.metadata.message_type for m in messages}
            if "evaluate" in kinds and not first:
                first.append(Path())
                first[0] = run({**settings, "run.name": "other"}, DeviceGrid(vaults))
            return super().push_messages(messages)

    folder = run({**settings, "run.name": "one"}, Between(vaults))
    found = json.loads((folder.parent / "one/results.json").read_text())
    assert found["users"] == alone["users"]
    assert results(first[0])["users"] == alone["users"]


def test_a_run_of_the_same_name_is_another_run(vaults, settings, tmp_path):
    agree(vaults, **CLEAR)
    rogue = {**settings, "run.name": "monday", "run.folder": str(tmp_path / "rogue")}
    run({**rogue, "seed": 1}, DeviceGrid(vaults))
    assert results(run({**settings, "run.name": "monday"}, DeviceGrid(vaults)))["users"]


def test_a_device_has_one_number_in_a_run(vaults, settings):
    """Else whoever numbers devices resets the count of what they took part in."""
    allow(vaults)
    one = {"privacy.participations": 1, "methods": "base", "adapt.rounds": 1}
    config = flatten(parse_run({**settings, **PRIVATE, **one})[0])
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    hello = HelloRequest("r", "s", config, "", (), KEY)
    first = Device(vaults[0], 100).answer(Message(sealed(hello), 100, "query.hello"))
    assert first["message"]["kind"] == "HelloReply"
    again = Message(sealed(hello, 101), 101, "query.hello")
    assert "by another number" in refused(Device(vaults[0], 101), again)
    other = replace(hello, run="q")
    reply = Device(vaults[0], 101).answer(
        Message(sealed(other, 101), 101, "query.hello")
    )
    assert reply["message"]["kind"] == "HelloReply"


def test_a_part_of_a_task_that_is_refused_is_not_kept(vaults, settings):
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    junk = b"[" + b" " * (1 << 17) + b"]"
    for number in range(3):
        task = HelloRequest(f"r{number}", "s", {}, "", (), KEY)
        record = seal_request(
            task, 100, 1, {"config": Part(junk, digest(junk))}, SEED, {}, bytes(16)
        )
        message = Message(record, 100, "query.hello")
        assert "config" in refused(Device(vaults[0], 100), message)
    assert not [source for source in vaults[0].sources() if source.kind == "run"]
    large = b" " * ((1 << 18) + 1)
    parts = {"config": Part(large, digest(large))}
    record = seal_request(
        HelloRequest("r", "s", {}, "", (), KEY), 100, 9, parts, SEED, {}, bytes(16)
    )
    message = Message(record, 100, "query.hello")
    assert "at most 262144 bytes" in refused(Device(vaults[0], 100), message)


def test_what_flower_stores_of_a_part_cannot_be_guessed(vaults, settings):
    """Two runs of one configuration: no object of a part has the same bytes."""
    agree(vaults, **CLEAR)

    def stored(name: str) -> set[bytes]:
        grid = Tape(vaults)
        run(settings | {"run.name": name}, grid)
        return {
            array.data
            for message in grid.tape
            for array in (message.content.array_records.get("parts") or {}).values()
        }

    assert stored("one") and not stored("one more") & stored("another")
