"""What a hostile or broken sender can put on the wire, and what is refused."""

import dataclasses
import json
import math
import tracemalloc
from io import BytesIO

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from idiolect.common.data.types import Item, Prompt
from idiolect.common.errors import IdiolectError
from idiolect.common.protocol.messages import (
    AdaptReply,
    AdaptRequest,
    EvaluateReply,
    Failure,
    HelloReply,
    HelloRequest,
    OfferRequest,
    Outcome,
    PersonaliseReply,
    PersonaliseRequest,
    ProtocolError,
    Request,
    ShareReply,
    VoteReply,
)
from idiolect.common.protocol.packing import SCHEMA, pack, read_array, size, unpack
from idiolect.common.protocol.signed import brought, complete, read_sealed, verify
from idiolect.common.protocol.validation import (
    check_step,
)
from idiolect.common.unlabeled.sets import Unlabeled
from tests.sealing import KEY, sealed

SHAPES = {"layer.q": (3, 2), "layer.v": (4, 2)}
REPLY = {"run": "r", "step": "adapt/0/0", "errors": {}, "seconds": 0.5}
REPLY |= {"process": "host/1", "peak_rss_mb": 10.0}


def rows(users: int = 2) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        name: generator.normal(size=(users, *shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def adapt_reply(users: int = 2) -> AdaptReply:
    names = tuple(f"u{k}" for k in range(users))
    return AdaptReply(**REPLY, users=names, rows=rows(users))


def row_shapes(fields: dict) -> dict[str, tuple[int, ...]]:
    return {name: (len(fields["users"]), *shape) for name, shape in SHAPES.items()}


def read(record: RecordDict) -> AdaptReply:
    return unpack(AdaptReply, record, row_shapes)


def with_array(name: str, array: Array) -> RecordDict:
    """A valid adapt reply in which one array is replaced or added."""
    record = pack(adapt_reply())
    arrays = dict(record.array_records["arrays"])
    arrays[name] = array
    return RecordDict(
        {"message": record.config_records["message"], "arrays": ArrayRecord(arrays)}
    )


def with_body(**changes: object) -> RecordDict:
    """A valid adapt reply in which fields of the body are replaced."""
    record = pack(adapt_reply())
    head = dict(record.config_records["message"])
    body = json.loads(str(head["body"])) | changes
    head["body"] = json.dumps(body)
    return RecordDict(
        {"message": ConfigRecord(head), "arrays": record.array_records["arrays"]}
    )


def npy(header_shape: tuple[int, ...], dtype: str, payload: bytes) -> bytes:
    """Bytes of an npy file whose header says what we like."""
    stream = BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": dtype, "fortran_order": False, "shape": header_shape}
    )
    return stream.getvalue() + payload


def test_a_message_survives_the_wire():
    item = Item("i1", Prompt("a ", "b", " c"), 'quoted "text" – ü')
    task = PersonaliseRequest(
        run="r",
        step="s",
        config={"seed": 1, "quorum": 0.5, "skip-bad-users": True, "task": "headline"},
        folder="/f",
        users=("u1", "u2"),
        method="c-bpo",
        learning_rate=1e-3,
        trial=True,
        manifest="{}",
        signature="00",
        voted=("u2",),
        unlabeled=(Unlabeled(item, 0.25, "u9"),),
        shared={name: np.ones(shape, np.float32) for name, shape in SHAPES.items()},
    )
    verify(read_sealed(PersonaliseRequest, sealed(task)), KEY)
    read_back = opened(task)
    assert isinstance(read_back, PersonaliseRequest)
    assert read_back.unlabeled == task.unlabeled
    assert read_back.config == task.config
    assert type(read_back.config["skip-bad-users"]) is bool
    for name in SHAPES:
        np.testing.assert_array_equal(read_back.shared[name], task.shared[name])
    ours, theirs = dataclasses.asdict(task), dataclasses.asdict(read_back)
    assert {k: v for k, v in ours.items() if k != "shared"} == {
        k: v for k, v in theirs.items() if k != "shared"
    }


def test_nested_values_keep_their_types():
    reply = PersonaliseReply(
        **REPLY,
        users=("u",),
        outcomes={"u": Outcome(None, False, {"steps": 3.0})},
    )
    assert unpack(PersonaliseReply, pack(reply)) == reply


def test_size_counts_text_and_tensors():
    empty, full = size(pack(adapt_reply(0))), size(pack(adapt_reply(3)))
    tensors = 3 * sum(4 * a * b for a, b in SHAPES.values())
    assert tensors < full - empty < tensors + 200


def test_a_lying_npy_header_is_refused_before_anything_is_allocated():
    # The real attack: shape and dtype are declared as expected, and only numpy's header
    # inside the 192 bytes asks for 10^11 numbers. np.load would try 745 GiB.
    data = npy((10**11,), "<f8", b"\0" * 48)
    array = Array("float32", (2, 3, 2), "numpy.ndarray", data)
    with pytest.raises(ProtocolError, match="contradicts its shape"):
        read(with_array("rows/layer.q", array))


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (Array(np.zeros((2, 3, 2))), "float32 as numpy.ndarray is expected"),
        (Array(np.zeros((1, 3, 2), np.float32)), "shape"),
        (Array(np.zeros((2, 3), np.float32)), "shape"),
        (Array("float32", (2, 3, 2), "pickle", b"x"), "numpy.ndarray is expected"),
        (Array("float32", (2, 3, 2), "numpy.ndarray", b"x"), "no readable header"),
        (Array("float32", (2, 3, 2), "numpy.ndarray", b""), "no readable header"),
        (
            Array(
                "float32", (2, 3, 2), "numpy.ndarray", npy((2, 3, 2), "<f8", b"\0" * 96)
            ),
            "contradicts",
        ),
        (
            Array(
                "float32", (2, 3, 2), "numpy.ndarray", npy((2, 3, 2), "|O", b"\0" * 48)
            ),
            "contradicts",
        ),
        (
            Array(
                "float32", (2, 3, 2), "numpy.ndarray", npy((2, 3, 2), "<f4", b"\0" * 47)
            ),
            "not as many bytes",
        ),
        (
            Array("float32", (2, 3, 2), "numpy.ndarray", b"\0" * 1000),
            "more bytes",
        ),
    ],
)
def test_an_array_that_is_not_as_expected_is_refused(array, sentence):
    with pytest.raises(ProtocolError, match=sentence):
        read(with_array("rows/layer.q", array))


def test_reading_an_array_does_not_copy_it():
    shape = (1000, 1000)
    array = Array(np.ones(shape, np.float32))
    tracemalloc.start()
    result = read_array(array, shape, "big", np.dtype("<f4"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.sum() == 1e6
    # BytesIO shares the bytes until it is written to; a copy would be 4 MB.
    assert peak < 1e6


def test_missing_and_extra_arrays_are_refused():
    extra = with_array("rows/layer.k", Array(np.zeros((2, 3, 2), np.float32)))
    with pytest.raises(ProtocolError, match=r"layer\.k.*not asked for"):
        read(extra)
    record = pack(adapt_reply())
    arrays = dict(record.array_records["arrays"])
    del arrays["rows/layer.q"]
    missing = RecordDict(
        {"message": record.config_records["message"], "arrays": ArrayRecord(arrays)}
    )
    with pytest.raises(ProtocolError, match=r"layer\.q.*missing"):
        read(missing)


def test_arrays_where_none_belong_are_refused():
    metrics = {"u": {"nll": 1.0}}
    record = pack(EvaluateReply(**REPLY, users=("u",), metrics=metrics, sums={}))
    record["arrays"] = ArrayRecord({"x": Array(np.zeros(3))})
    with pytest.raises(ProtocolError, match="not asked for"):
        unpack(EvaluateReply, record)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("users", "u0", "users must be a list"),
        ("users", ["u0", 3], r"users\[1\] must be text"),
        ("users", ["u" * 300_000, "v"], "at most"),
        ("users", ["\ud800", "v"], "not valid Unicode"),
        ("errors", {"u" * 300: "x"}, "at most 200"),
        ("errors", ["x"], "must be an object"),
        ("seconds", "1", "seconds must be of type float"),
        ("seconds", True, "seconds must be of type float"),
        ("run", None, "run must be text"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(field, value, sentence):
    with pytest.raises(ProtocolError, match=sentence):
        read(with_body(**{field: value}))


def numbers(word: str) -> list[RecordDict]:
    """Replies with a word of JSON in the place of each float of each kind of message."""
    log = PersonaliseReply(**REPLY, users=("u",), outcomes={"u": LOGGED})
    table = EvaluateReply(**REPLY, users=("u",), metrics={"u": {"nll": 0.25}}, sums={})
    changed = []
    for reply, at in (
        (log, '"seconds":0.5'),
        (log, '"peak_rss_mb":10.0'),
        (log, "[0.75,true"),  # alpha
        (log, '"loss":0.125'),
        (table, '"nll":0.25'),
    ):
        head = dict(pack(reply).config_records["message"])
        body, old = str(head["body"]), at.strip("[").split(":")[-1].split(",")[0]
        assert body.count(at) == 1
        head["body"] = body.replace(at, at.replace(old, word))
        changed.append(RecordDict({"message": ConfigRecord(head)}))
    return changed


LOGGED = Outcome(0.75, True, {"loss": 0.125})
KINDS = (PersonaliseReply,) * 4 + (EvaluateReply,)


@pytest.mark.parametrize(
    "word",
    ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1.7e308", "1e101"]
    + ["9" * 17, "9" * 400, "-" + "9" * 4000, "9" * 5000],
)
def test_a_number_that_is_not_finite_or_too_large_is_refused_everywhere(word):
    for kind, record in zip(KINDS, numbers(word), strict=True):
        with pytest.raises(
            ProtocolError, match=r"finite|type float|not JSON|must lie in"
        ):
            unpack(kind, record)


@pytest.mark.parametrize("word", ["-0.0", "0", "-0", "5e-324", "1e-310", "1e6"])
def test_zeros_and_subnormals_are_numbers(word):
    *logs, table = numbers(word)
    seconds, memory, alpha, loss = (unpack(PersonaliseReply, one) for one in logs)
    nll = unpack(EvaluateReply, table)
    wanted = float(word)
    assert seconds.seconds == wanted and memory.peak_rss_mb == wanted
    assert alpha.outcomes["u"].alpha == wanted
    assert loss.outcomes["u"].log == {"loss": wanted}
    assert nll.metrics == {"u": {"nll": wanted}}
    assert isinstance(seconds.seconds, float)


@pytest.mark.parametrize("number", [2**53, -(2**53), 10**400])
def test_a_count_is_no_larger_than_a_float_holds(number):
    hello = HelloReply(
        **REPLY,
        **dict.fromkeys(("package", "backbone", "shared"), ""),
        **dict.fromkeys(("users", "development"), ()),
        simulation=False,
        nodes=number,
        dropped={},
        truncated=0,
    )
    with pytest.raises(ProtocolError, match="nodes (is too large|must be of type int)"):
        unpack(HelloReply, pack(hello))


def test_an_endless_epsilon_of_a_configuration_arrives():
    task = HelloRequest("r", "s", {"privacy.epsilon": math.inf}, "", (), "00")
    assert opened(task).config == {"privacy.epsilon": math.inf}
    for odd in (math.nan, -math.inf):
        changed = dataclasses.replace(task, config={"privacy.epsilon": odd})
        with pytest.raises(ProtocolError, match="config is not JSON"):
            opened(changed)


def opened(task: Request) -> Request:
    """What a node makes of a task."""
    record = sealed(task)
    found = read_sealed(type(task), record)
    return complete(found, brought(record, found.seal))


def test_a_senders_words_reach_no_terminals_controls():
    hostile = "\x1b]0;owned\x07" + "x" * 1000
    reply = dataclasses.replace(adapt_reply(), errors={"u0": hostile})
    told = read(pack(reply)).errors["u0"]
    assert told.isprintable() and len(told) == 500
    with pytest.raises(IdiolectError) as caught:
        unpack(AdaptReply, pack(Failure("r", "s", hostile)))
    assert str(caught.value).isprintable()
    with pytest.raises(ProtocolError) as refused:
        check_step(dataclasses.replace(adapt_reply(), step=hostile), "r", "s")
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("round", -1),
        ("round", 10_001),
        ("round", 10**400),
        ("clip", math.nan),
        ("clip", math.inf),
        ("clip", -1.0),
        ("clip", 1e300),
    ],
)
def test_a_number_out_of_its_range_is_refused(name, value):
    task = AdaptRequest("r", "s", {}, "", ("u",), 0, "", 1.0, {})
    fields = {
        entry.name: getattr(task, entry.name) for entry in dataclasses.fields(task)
    }
    with pytest.raises(ProtocolError, match=f"{name}|is not JSON"):
        opened(AdaptRequest(**fields | {name: value}))
    assert opened(task) == task


@pytest.mark.parametrize("weight", [math.nan, math.inf, 1e300])
def test_a_weight_of_the_unlabeled_set_is_a_number(weight):
    item = Item("i", Prompt("", "p"), "t")
    head = ("r", "s", {}, "", ("u",), "c-bpo", 1e-3, False, "", "", ())
    task = PersonaliseRequest(*head, (Unlabeled(item, weight),), {})
    with pytest.raises(ProtocolError, match=r"unlabeled( is not JSON|.*is not finite)"):
        opened(task)
    for rate in (math.nan, -1.0, 1e300):
        slow = dataclasses.replace(task, unlabeled=(), learning_rate=rate)
        with pytest.raises(
            ProtocolError, match="learning_rate.*(lie in|not finite)|is not JSON"
        ):
            opened(slow)


@pytest.mark.parametrize("places", [(-1,), (50_000,), (10**400,)])
def test_places_in_the_bank_are_places(places):
    task = OfferRequest("r", "s", {}, "", ("u",), "", "", (), places)
    with pytest.raises(ProtocolError, match="supported"):
        opened(task)


def test_counts_of_a_reply_are_counts():
    head = ("r", "s", ("u",), {}, 0.0, "", 0.0, "1", "b", "s", ())
    for more in ((False, -1, {}, 0), (False, 0, {"x": 10**400}, 0), (False, 0, {}, -1)):
        with pytest.raises(ProtocolError):
            unpack(HelloReply, pack(HelloReply(*head, *more)))
    for name in ("seconds", "peak_rss_mb"):
        for value in (math.nan, math.inf, -1.0, 1e300):
            reply = dataclasses.replace(
                HelloReply(*head, False, 0, {}, 0), **{name: value}
            )
            with pytest.raises(ProtocolError, match=f"{name}|is not JSON"):
                unpack(HelloReply, pack(reply))


def test_unknown_and_missing_fields_are_named():
    with pytest.raises(ProtocolError, match="differ from ours in 'surplus'"):
        read(with_body(surplus=1))
    record = pack(adapt_reply())
    head = dict(record.config_records["message"])
    body = json.loads(str(head["body"]))
    del body["seconds"]
    head["body"] = json.dumps(body)
    with pytest.raises(ProtocolError, match="seconds"):
        read(RecordDict({"message": ConfigRecord(head)}))


@pytest.mark.parametrize("body", ["{", "[]", "3", "[" * 100_000, '{"a":' * 100_000])
def test_a_body_that_is_no_object_is_refused(body):
    head = ConfigRecord({"schema": SCHEMA, "kind": "AdaptReply", "body": body})
    with pytest.raises(ProtocolError, match="not (a )?JSON"):
        read(RecordDict({"message": head}))


def test_items_nested_in_items_without_end_are_refused():
    item: list = ["i", ["a", "b", "c"], "t", []]
    for _ in range(400):
        item = ["i", ["a", "b", "c"], "t", [item]]
    reply = pack(ShareReply(**REPLY, users=("u",), items={}))
    head = dict(reply.config_records["message"])
    body = json.loads(str(head["body"])) | {"items": {"u": [item]}}
    head["body"] = json.dumps(body)
    with pytest.raises(ProtocolError, match="nested too deeply"):
        unpack(ShareReply, RecordDict({"message": ConfigRecord(head)}))


def test_another_schema_says_what_to_do():
    head = ConfigRecord({"schema": SCHEMA + 1, "kind": "HelloReply", "body": "{}"})
    with pytest.raises(ProtocolError, match="same version of idiolect"):
        unpack(HelloReply, RecordDict({"message": head}))


def test_another_kind_and_no_message_at_all_are_refused():
    with pytest.raises(ProtocolError, match="expected a HelloReply"):
        unpack(HelloReply, pack(adapt_reply()))
    with pytest.raises(ProtocolError, match="not a message of idiolect"):
        unpack(HelloReply, RecordDict({"other": ConfigRecord({"a": 1})}))


def test_a_failure_is_raised_as_the_sender_worded_it():
    with pytest.raises(IdiolectError, match="the vault is locked"):
        unpack(VoteReply, pack(Failure("r", "s", "the vault is locked.")))
