"""Hostile messages, drawn at random: a device answers each, a server reads or refuses each.

Messages are valid ones in which one to three things were exchanged: fields of the body, of
tasks also the seal's, the head, declared types and shapes, the bytes of arrays; of tasks
half are then signed with the right key. Nothing but `IdiolectError` may come out of the
reader of a reply; of a device nothing at all may come out but an answer, and no answer may
quote its owner.

What is drawn here are Flower's records, already made. What a device can do below them
(objects that are no protobuf, are missing, too large or too slow), and what a whole run
makes of it, are in `server/test_inbox.py` and `test_malicious.py`.
"""

import json
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from idiolect.client.node import state
from idiolect.client.node.device import Device, VaultStore
from idiolect.client.node.handlers import HANDLERS
from idiolect.client.node.membership import Server, join
from idiolect.client.owner import consent, history
from idiolect.client.owner.history import Entry
from idiolect.client.owner.keys import RandomKey
from idiolect.client.owner.vault import Vault
from idiolect.common.config import flatten, parse
from idiolect.common.data.types import Item, Prompt
from idiolect.common.engine.reference import load_reference
from idiolect.common.errors import IdiolectError
from idiolect.common.protocol.manifest import sign_text
from idiolect.common.protocol.messages import (
    AdaptReply,
    AdaptRequest,
    ConfirmReply,
    ConfirmRequest,
    EvaluateReply,
    EvaluateRequest,
    HelloReply,
    HelloRequest,
    OfferReply,
    OfferRequest,
    OpenReply,
    OpenRequest,
    PersonaliseReply,
    PersonaliseRequest,
    ShareReply,
    ShareRequest,
    Summing,
    VoteReply,
    VoteRequest,
    device_user,
)
from idiolect.common.protocol.packing import pack, unpack
from idiolect.common.protocol.quantization import encode
from idiolect.common.protocol.signed import CONTEXT, make_part
from idiolect.common.secure.directory import Entry as Member

from .common.conftest import write_model
from .sealing import KEY, SEED, sealed

SECRET = "zebra-quartz-7f3a91c4e2b85d60-marmalade"
REPLIES = (HelloReply, AdaptReply, VoteReply, OfferReply, ShareReply)
REPLIES += (PersonaliseReply, EvaluateReply, ConfirmReply, OpenReply)
# Values that have broken parsers before, and a few plain ones.
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=True),
    st.text(max_size=30),
    st.sampled_from(
        ["", "\ud800", "../../etc/passwd", "\x1b[2J", "9" * 5000, "text", "central"]
    ),
    st.sampled_from([10**400, -(10**400), 2**63, 10**9, 1e308, -1e308, 1e-308]),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)


def tasks(config: dict, rows: dict[str, np.ndarray]) -> dict[str, Any]:
    """One valid task of every kind."""
    user = device_user(100)
    head: dict[str, Any] = {"run": "r", "step": "s", "config": config, "folder": ""}
    head["users"] = (user,)
    bank = tuple(Item(f"b{i}", Prompt("", "ask"), f"word {i}") for i in range(3))
    keys = Member("100", "aa", "bb", "cc", "dd")
    summing = Summing(
        "adapt", "adapt/0", "80", "00" * 32, 1.0, 8.0, None, 10, 6, 4, "00" * 32
    )
    masked: dict[str, Any] = {"summing": summing, "directory": (keys,), "counted": "80"}
    signed: dict[str, Any] = {"manifest": "{}", "signature": "00" * 64}
    method: dict[str, Any] = {"method": "c-bpo", "learning_rate": 1e-3}
    return {
        "query.hello": HelloRequest(**{**head, "users": ()}, key=KEY),
        "train.adapt": AdaptRequest(**head, round=0, release="", clip=1.0, shared=rows),
        "query.vote": VoteRequest(**head, release="", bank=bank, **signed),
        "query.offer": OfferRequest(**head, bank=bank, supported=(0,), **signed),
        "query.share": ShareRequest(**head),
        "train.personalise": PersonaliseRequest(
            **head,
            **method,
            **signed,
            trial=False,
            voted=(),
            unlabeled=(),
            shared=rows,
        ),
        "evaluate": EvaluateRequest(
            **head, **method, unlabeled_hash="", generate=False, release="", shared=rows
        ),
        "query.confirm": ConfirmRequest(**head, **masked),
        "query.open": OpenRequest(
            **head, **masked, signed="00", signatures=bytes(64), bundles=b"1234"
        ),
    }


def signed_task(kind: str, rows: dict[str, np.ndarray]) -> RecordDict:
    """A valid task, signed, after a hello with its configuration."""
    return sealed(tasks(CONFIG, rows)[kind])


def printable_body(text: Any) -> str:
    """A text that can be signed."""
    return str(text).encode(errors="replace").decode()


def broken(record: RecordDict, data: st.DataObject) -> RecordDict:
    """Exchange one to three things in a message."""
    head = dict(record.config_records["message"])
    body = json.loads(str(head["body"]))
    group = "arrays" if "arrays" in record.array_records else "parts"
    arrays = dict(record.array_records.get(group) or {})
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.sampled_from(["field", "deep", "head", "array", "more"]))
        if where == "field":
            body[data.draw(st.sampled_from(sorted(body)))] = data.draw(ODD)
        elif where == "deep" and isinstance(body.get("seal"), list) and body["seal"]:
            body["seal"][data.draw(st.integers(0, len(body["seal"]) - 1))] = data.draw(
                ODD
            )
        elif where == "head":
            key = data.draw(st.sampled_from(sorted(head)))
            head[key] = data.draw(st.sampled_from(["", 0, -1, 2**40, "Failure", "[]"]))
        elif where == "array" and arrays:
            name = data.draw(st.sampled_from(sorted(arrays)))
            arrays[name] = _bad_array(data)
        else:
            body[data.draw(st.text(max_size=5))] = data.draw(ODD)
    if head["body"] == record.config_records["message"]["body"]:
        head["body"] = json.dumps(body)
    records: dict[str, Any] = {"message": ConfigRecord(head)}
    if arrays:
        records[group] = ArrayRecord(arrays)
    return RecordDict(records)


def _bad_array(data: st.DataObject) -> Array:
    good = Array(np.zeros((2, 3), np.float32))
    shape = data.draw(st.lists(st.integers(-1, 10**12), max_size=4))
    return Array(
        dtype=data.draw(st.sampled_from(["float32", "float64", "object", "\x00"])),
        shape=tuple(shape),
        stype=data.draw(st.sampled_from(["numpy.ndarray", "pickle", ""])),
        data=data.draw(st.one_of(st.just(good.data), st.binary(max_size=300))),
    )


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    model = str(write_model(folder / "model", "llama"))
    with Vault.create(folder / "vault.db", RandomKey(bytes(32))) as vault:
        consent.choose(vault, backbone=model)
        pairs = [Entry(Prompt("", f"ask {i}"), f"{SECRET} {i}") for i in range(6)]
        history.add(vault, pairs, "all")
        for outflow in ("update", "votes", "metrics"):
            consent.consent(vault, outflow, "clear")
        made = Device(vault, 100)
        join(vault, Server("server.example:9443", "", KEY))
        config = parse({**CONFIG, "backbone": model})
        found = load_reference(config)
        zero = found.adapter
        hashed = make_part("config", CONFIG).hash
        state.pin(VaultStore(vault, "r"), device_user(100), KEY, 0, hashed)
        yield made, encode({name: b.numpy() for name, b in zero.b.items()})


CONFIG = flatten(
    parse(
        {
            "task": "text",
            "adapt.learning-rate": 1e-3,
            "personalise.learning-rates": "1e-3",
            "lora.rank": 2,
            "lora.targets": "q,v",
            "personalise.epochs": 1,
            "unlabeled.kind": "self",
            "methods": "shared,c-bpo",
        }
    )
)
PATIENT: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}


@pytest.mark.parametrize("kind", sorted(HANDLERS))
@settings(max_examples=40, **PATIENT)
@given(data=st.data())
def test_a_device_answers_whatever_comes(device, kind, data):
    home, rows = device
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    record = broken(signed_task(kind, rows), data)
    if data.draw(st.booleans()):  # by the server itself, which signs what it likes
        head = record.config_records["message"]
        head["signature"] = sign_text(CONTEXT, printable_body(head["body"]), SEED)
    sent_as = data.draw(st.sampled_from([kind, *sorted(HANDLERS), "train"]))
    answer = home.answer(Message(record, 100, sent_as))
    head = answer.config_records["message"]
    assert head["kind"] in ("Failure", "Missing") or str(head["kind"]).endswith("Reply")
    assert SECRET not in str(head["body"])
    json.loads(str(head["body"]))


@pytest.mark.parametrize("kind", sorted(HANDLERS))
def test_the_unbroken_tasks_are_understood(device, kind):
    """Else the test above would only see messages that are refused at the door."""
    home, rows = device
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    task = signed_task(kind, rows)
    answer = home.answer(Message(task, 100, kind)).config_records["message"]
    body = json.loads(str(answer["body"]))
    assert (body["run"], body["step"]) == ("r", "s")
    if kind == "train.adapt":
        assert body["users"] == [device_user(100)], body


def replies() -> dict[str, Any]:
    """One valid reply of every kind."""
    head: dict[str, Any] = {"run": "r", "step": "s", "users": ("u",), "errors": {}}
    head["seconds"] = 0.0
    head |= {"process": "", "peak_rss_mb": 0.0}
    row = {"layer": np.zeros((1, 2, 3), "f4"), "codes": np.zeros((1, 6), "i1")}
    item = Item("i", Prompt("", "p"), "t")
    return {
        "HelloReply": HelloReply(
            **head,
            package="1",
            backbone="b",
            shared="s",
            development=(),
            simulation=False,
            nodes=0,
            dropped={},
            truncated=0,
        ),
        "AdaptReply": AdaptReply(**head, rows=row),
        "VoteReply": VoteReply(**head, votes={"votes": np.zeros((1, 4), np.float32)}),
        "OfferReply": OfferReply(**head, items={"u": (item,)}),
        "ShareReply": ShareReply(**head, items={"u": (item,)}),
        "PersonaliseReply": PersonaliseReply(**head, outcomes={}),
        "EvaluateReply": EvaluateReply(**head, metrics={"u": {"nll": 1.0}}, sums={}),
        "ConfirmReply": ConfirmReply(**head, signatures={"u": "00" * 64}),
        "OpenReply": OpenReply(
            **head, opened={"u": (1, 2)}, shares={"shares": np.zeros(32, np.uint8)}
        ),
    }


@pytest.mark.parametrize("cls", REPLIES, ids=lambda cls: cls.__name__)
@settings(max_examples=150, **PATIENT)
@given(data=st.data())
def test_a_server_refuses_or_reads_whatever_comes(cls, data):
    reply = replies()[cls.__name__]
    rows = {"layer": (1, 2, 3), "codes": (1, 6)}
    shapes = {"AdaptReply": rows, "VoteReply": {"votes": (1, 4)}}
    shapes["OpenReply"] = {"shares": (32,)}
    wanted = shapes.get(cls.__name__, {})
    try:
        got = unpack(cls, broken(pack(reply), data), lambda fields: wanted)
    except IdiolectError as error:
        assert str(error).isprintable()  # it goes to the operator's terminal
        return
    for text in (getattr(got, "errors", {}) or {}).values():
        assert text.isprintable()
    for field in ("rows", "votes"):  # what was read is what was promised
        for name, array in getattr(got, field, {}).items():
            assert array.dtype == (np.int8 if name == "codes" else np.float32)
            assert array.size <= 6
