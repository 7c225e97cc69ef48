"""What crosses the wire: typed messages, and every check that a receiver makes.

A message is a frozen dataclass. Its text and numbers travel as one JSON body in a
``ConfigRecord``, its tensors in an ``ArrayRecord``; nothing is pickled. The receiver of a
message trusts nothing in it:

* the body's size is capped before it is parsed, and every field is checked against the
  dataclass's own type hints;
* of each array the declared type and shape, the number of bytes *and* numpy's own header
  inside the bytes must be the expected ones before an array is made of them: a header
  that promises a terabyte is refused, not allocated;
* every number in a body is finite and of a size that sums and means survive; only
  ``privacy.epsilon`` of a configuration may be infinite;
* a row that is not finite, a vote that is negative or too large: that one user's row is
  dropped (`finite_rows`, `valid_votes`), the other users of the reply count.

Every message carries the schema number, the run's id and the step it belongs to, so
that an answer from before a crash, or from another run, is refused (`check_step`). Tasks
are signed besides, and their large fields travel once: see `signed`.
"""

import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from typing import Any, TypeVar, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from ..config import MOST_INT
from ..data.types import Item
from ..errors import IdiolectError
from ..text import printable, read_json
from ..unlabeled.sets import Unlabeled
from .bounds import beyond

SCHEMA = 5
MAX_BODY = 64 << 20  # bytes of JSON in one message
MAX_ITEMS = 50_000  # items in one message
MAX_TEXT = 200_000  # characters in one string
MAX_ID = 200  # characters in a user's or an item's id
MAX_INT = 2**53  # of what is counted; float64 holds no larger ones exactly
MAX_FLOAT = 1e100  # of what is measured; 50,000 of them, squared, have a finite sum

Rows = dict[str, np.ndarray]
# The array of this name holds signed bytes (see `wire`); all others float32.
CODES = "codes"
Shapes = Mapping[str, tuple[int, ...]]
Message = TypeVar("Message", bound="Step")


class ProtocolError(IdiolectError):
    """A message that is not what it should be. One sentence says what is wrong."""

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence))  # it may quote the sender


@dataclass(frozen=True)
class Step:
    """What every message begins with.

    Attributes
    ----------
    run
        The run's id, random and our own: names can repeat, and Flower's run id changes
        when a run is resumed.
    step
        Which exchange this is, for example ``adapt/2/0``. A reply repeats it.
    """

    run: str
    step: str


@dataclass(frozen=True)
class Task(Step):
    """What every task carries besides.

    Its fields `config`, `shared`, `unlabeled` and `bank` are sent once (`signed.PARTS`).

    Attributes
    ----------
    config
        The resolved configuration (`config.flatten`); a simulated node has no other.
    folder
        The run folder, in a simulation; a device keeps its state in its own vault.
    users
        Whom the task is for: at most one stacking group of the node that receives it.
    """

    config: dict[str, str | int | float | bool]
    folder: str
    users: tuple[str, ...]


@dataclass(frozen=True)
class Reply(Step):
    """What every reply carries besides.

    Attributes
    ----------
    users
        Whom the reply is about, in the order of its rows.
    errors
        User -> one sentence, for those whom the task failed.
    seconds
        How long the task took.
    process, peak_rss_mb
        Which process answered, and its largest memory use so far.
    """

    users: tuple[str, ...]
    errors: dict[str, str]
    seconds: float
    process: str
    peak_rss_mb: float


@dataclass(frozen=True)
class HelloTask(Task):
    """Server -> node: say who you are.

    Attributes
    ----------
    key
        The public key of the run's manifests, which the device pins.
    """

    key: str


@dataclass(frozen=True)
class HelloReply(Reply):
    """Node -> server: what must agree, and who lives here.

    Attributes
    ----------
    package
        Version of idiolect.
    backbone, shared
        What decides the backbone's scores, part by part (`model_folder.identity`), and the
        hash of the shared adapter before its first round.
    development
        Those of `users` on whom only learning rates are chosen.
    simulation, nodes
        Whether this node is simulated, and then among how many (otherwise 0).
    dropped
        Reason -> users left out of the data (``skip-bad-users``).
    truncated
        Items whose prompt was shortened to fit the context.
    """

    package: str
    backbone: str
    shared: str
    development: tuple[str, ...]
    simulation: bool
    nodes: int
    dropped: dict[str, int]
    truncated: int


@dataclass(frozen=True)
class AdaptTask(Task):
    """Server -> node: train the shared adapter on your users' history.

    Attributes
    ----------
    round
        Counted from 0.
    release
        What the ledger calls the release that the rows go into; empty without privacy.
        The device counts these (``privacy.participations``).
    clip
        Largest L2 norm of one user's row in this round.
    shared
        The shared adapter's B, projection -> [out, r].
    """

    round: int
    release: str
    clip: float
    shared: Rows


@dataclass(frozen=True)
class AdaptReply(Reply):
    """Node -> server: `rows`, projection -> [users, out, r], one update per user."""

    rows: Rows


@dataclass(frozen=True)
class VoteTask(Task):
    """Server -> node: say which of the bank's items resemble your users' text.

    Attributes
    ----------
    release
        As in `AdaptTask`.
    manifest, signature
        Of the bank (see `manifest`).
    bank
        The candidates.
    """

    release: str
    manifest: str
    signature: str
    bank: tuple[Item, ...]


@dataclass(frozen=True)
class VoteReply(Reply):
    """Node -> server: `votes`, one array [users, bank].

    Each row has L2 norm at most 1; for the kind `anonymised` it is instead 1 for each
    candidate that resembles an offered item, and 0 for the others.
    """

    votes: Rows


@dataclass(frozen=True)
class ShareTask(Task):
    """Server -> simulated node: hand over your users' raw history."""


@dataclass(frozen=True)
class ShareReply(Reply):
    """Simulated node -> server: user -> history. Never outside a simulation."""

    items: dict[str, tuple[Item, ...]]


@dataclass(frozen=True)
class OfferTask(Task):
    """Server -> node: hand over scrubbed items (unlabeled.kind `anonymised`).

    Attributes
    ----------
    manifest, signature
        Of the bank (see `manifest`).
    bank
        The candidates.
    supported
        Places in the bank of those that enough users resemble; an item whose nearest
        candidate is not among them stays on the device.
    """

    manifest: str
    signature: str
    bank: tuple[Item, ...]
    supported: tuple[int, ...]


@dataclass(frozen=True)
class OfferReply(Reply):
    """Node -> server: user -> scrubbed items. Not differentially private."""

    items: dict[str, tuple[Item, ...]]


@dataclass(frozen=True)
class PersonaliseTask(Task):
    """Server -> node: train these users' own adapters.

    Attributes
    ----------
    method, learning_rate
        What to train, and how fast.
    trial
        Whether the learning rate is only being tried, on development users: simulation
        only. The adapter is measured at once and not kept; the log says ``nll``.
    manifest, signature
        Of the unlabeled set (see `manifest`); empty for the kind `self`.
    voted
        Those of `users` whose vote is part of its weights (privacy only).
    unlabeled
        The unlabeled set; empty for the kind `self`, which the device makes itself.
    shared
        The shared adapter's B, projection -> [out, r].
    """

    method: str
    learning_rate: float
    trial: bool
    manifest: str
    signature: str
    voted: tuple[str, ...]
    unlabeled: tuple[Unlabeled, ...]
    shared: Rows


@dataclass(frozen=True)
class Outcome:
    """How one user's training went (see `personal.Personal`).

    Where ``privacy.metrics`` is `noisy` it says nothing: alpha None, no log. Where a rate
    was only tried the log also has ``nll``, of the held-out items.
    """

    alpha: float | None
    estimated: bool
    log: dict[str, float]


@dataclass(frozen=True)
class PersonaliseReply(Reply):
    """Node -> server: user -> outcome; the adapters themselves stay where they are."""

    outcomes: dict[str, Outcome]


@dataclass(frozen=True)
class EvaluateTask(Task):
    """Server -> node: measure these users' held-out items.

    Attributes
    ----------
    method, learning_rate
        Which of the stored adapters to measure.
    unlabeled_hash
        Of the unlabeled set they were trained with (`unlabeled.fingerprint`).
    generate
        Whether outputs are generated for the text metrics, or only scored.
    release
        As in `AdaptTask`.
    shared
        The shared adapter's B, projection -> [out, r].
    """

    method: str
    learning_rate: float
    unlabeled_hash: str
    generate: bool
    release: str
    shared: Rows


@dataclass(frozen=True)
class EvaluateReply(Reply):
    """Node -> server: user -> metric -> value (``privacy.metrics`` `clear`).

    Where it is `noisy`, `metrics` is empty, and `sums` has one row per user: an array
    [users, metrics + 1] of L2 norm at most 1 (`metrics.bounded_row`).
    """

    metrics: dict[str, dict[str, float]]
    sums: Rows


@dataclass(frozen=True)
class Failure(Step):
    """Node -> server: the task could not be done at all; one sentence says why."""

    sentence: str


@dataclass(frozen=True)
class Missing(Step):
    """Node -> server: send the task again with these of its parts (see `signed`)."""

    parts: tuple[str, ...]


class LacksParts(IdiolectError):
    """The reply is a `Missing`."""


def package_version() -> str:
    """Version of the installed idiolect."""
    try:
        return version("idiolect")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0+checkout"


def device_user(node: int) -> str:
    """Return the user's name on a device: bound, by its number, to the node's key.

    A server compares it with the node that a reply came from, so that no device can
    answer for another.
    """
    return f"device-{node}"


# --- writing -------------------------------------------------------------------------


def pack(message: Step) -> RecordDict:
    """Turn a message into Flower's records."""
    body: dict[str, Any] = {}
    arrays: dict[str, Array] = {}
    for entry in fields(message):
        value = getattr(message, entry.name)
        if entry.type == Rows:
            arrays = {
                f"{entry.name}/{name}": Array(np.ascontiguousarray(array, _type(name)))
                for name, array in value.items()
            }
        else:
            body[entry.name] = plain(value)
    kind = type(message).__name__
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    head = ConfigRecord({"schema": SCHEMA, "kind": kind, "body": text})
    records: dict[str, Any] = {"message": head}
    if arrays:
        records["arrays"] = ArrayRecord(arrays)
    return RecordDict(records)


def _type(name: str) -> np.dtype:
    return np.dtype("<i1" if name == CODES else "<f4")


def plain(value: Any) -> Any:
    """Dataclasses and tuples as JSON knows them."""
    if is_dataclass(value):
        return [plain(getattr(value, entry.name)) for entry in fields(value)]
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [plain(entry) for entry in value]
    return value


def size(record: RecordDict) -> int:
    """Bytes of text and tensors in a message, without Flower's own framing."""
    total = 0
    for array_record in record.array_records.values():
        total += sum(len(name) + len(a.data) for name, a in array_record.items())
    for config_record in record.config_records.values():
        for name, value in config_record.items():
            total += len(name) + len(str(value).encode(errors="replace"))
    return total


# --- reading -------------------------------------------------------------------------


def unpack(
    cls: type[Message],
    record: RecordDict,
    shapes: Callable[[dict[str, Any]], Shapes] | None = None,
) -> Message:
    """Check a record and return the message in it.

    Parameters
    ----------
    cls
        The message that is expected.
    record
        What came in.
    shapes
        Given the message's other fields, already checked: name -> shape of the arrays
        that must be there, no more and no fewer.

    Raises
    ------
    ProtocolError
        Anything is not as declared; one sentence that names the field.
    IdiolectError
        The record is a `Failure`: the sender's own sentence.
    """
    body, _ = read_head(record, cls, MAX_BODY)
    names = [entry.name for entry in fields(cls) if entry.type != Rows]
    if set(body) != set(names):
        odd = ", ".join(repr(name) for name in sorted(set(body) ^ set(names)))
        raise ProtocolError(
            f"{cls.__name__}: the fields differ from ours in {odd:.200}."
        )
    values = typed(body, typing.get_type_hints(cls), cls.__name__)
    wanted = shapes(values) if shapes else {}
    group = "".join(entry.name for entry in fields(cls) if entry.type == Rows)
    arrays = _arrays(record, group, wanted)
    if group:
        values[group] = arrays
    if "errors" in values:
        values["errors"] = {u: printable(text) for u, text in values["errors"].items()}
    return cls(**values)


def read_head(
    record: RecordDict, cls: type[Step], longest: int
) -> tuple[dict[str, Any], str]:
    """Return the JSON body and the signature, after checking schema, kind and size.

    A task must have a signature, which is only returned here; everything else has none.

    Raises
    ------
    ProtocolError
        One of them is not as expected.
    IdiolectError
        The record is a `Failure` or a `Missing`.
    """
    head = record.config_records.get("message") or {}
    names = {"schema", "kind", "body"} | (
        {"signature"} if issubclass(cls, Task) else set()
    )
    if head.get("schema", SCHEMA) != SCHEMA:
        raise ProtocolError(
            f"the other side speaks message schema {head['schema']!r:.20}, this one "
            f"{SCHEMA}: install the same version of idiolect on both."
        )
    if set(head) != names:
        raise ProtocolError(f"{cls.__name__}: this is no message of idiolect.")
    text, signature = head["body"], head.get("signature", "")
    if not isinstance(text, str) or len(text) > longest:
        raise ProtocolError(f"{cls.__name__}: the body is no text of allowed size.")
    if not isinstance(signature, str):
        raise ProtocolError(f"{cls.__name__}: the signature is no text.")
    try:
        body = read_json(text)
    except ValueError as error:
        raise ProtocolError(
            f"{cls.__name__}: the body is no JSON ({error})."
        ) from error
    if not isinstance(body, dict):
        raise ProtocolError(f"{cls.__name__}: the body is no JSON object.")
    if head["kind"] == Failure.__name__ and cls is not Failure:
        sentence = _typed(body.get("sentence"), str, "Failure.sentence")
        raise IdiolectError(printable(sentence))
    if head["kind"] == Missing.__name__ and cls is not Missing:
        raise LacksParts("the node lacks parts of the task.")
    if head["kind"] != cls.__name__:
        raise ProtocolError(f"expected a {cls.__name__}, got a {head['kind']!r:.80}.")
    return body, signature


def typed(
    body: Mapping[str, Any], hints: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Check the fields of a body against type hints; returns those that it has.

    Raises
    ------
    ProtocolError
        One has another type, or is too large or nested too deep.
    """
    try:
        values = {
            name: _typed(value, hints[name], f"{where}.{name}")
            for name, value in body.items()
        }
    except RecursionError as error:
        raise ProtocolError(f"{where}: the body is nested too deep.") from error
    if said := beyond(values):
        raise ProtocolError(f"{where}.{said}.")
    return values


def _typed(value: Any, hint: Any, where: str) -> Any:
    """Check a JSON value against a type hint and give it that type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _typed_union(value, arguments, where)
    if origin is tuple:
        if not isinstance(value, list) or len(value) > MAX_ITEMS:
            raise ProtocolError(f"{where} must be a list of at most {MAX_ITEMS}.")
        return tuple(
            _typed(v, arguments[0], f"{where}[{i}]") for i, v in enumerate(value)
        )
    if origin is dict:
        if not isinstance(value, dict) or len(value) > MAX_ITEMS:
            raise ProtocolError(f"{where} must be an object of at most {MAX_ITEMS}.")
        return {
            _text(k, where, MAX_ID): _typed(v, arguments[1], f"{where}.{k:.40}")
            for k, v in value.items()
        }
    if is_dataclass(hint):
        return _typed_dataclass(value, cast(type, hint), where)
    if hint is str:
        return _text(value, where, MAX_TEXT)
    if hint is float and type(value) is int and abs(value) < MAX_INT:
        return float(value)
    if type(value) is not hint or (hint is int and abs(value) > MOST_INT):
        raise ProtocolError(f"{where} must be of type {hint.__name__}.")
    if hint is float and not abs(value) <= MAX_FLOAT:  # 1e999 is read as infinity
        raise ProtocolError(f"{where} is not finite, or too large.")
    if hint is int and not abs(value) < MAX_INT:
        raise ProtocolError(f"{where} is too large.")
    return value


def _typed_union(value: Any, arguments: tuple[Any, ...], where: str) -> Any:
    """Return a value of the first alternative that takes it as it is."""
    if type(None) in arguments:
        rest = [hint for hint in arguments if hint is not type(None)]
        return None if value is None else _typed(value, rest[0], where)
    if type(value) not in arguments or (type(value) is int and abs(value) > MOST_INT):
        raise ProtocolError(f"{where} has a type that is not allowed.")
    return _text(value, where, MAX_TEXT) if isinstance(value, str) else value


def _typed_dataclass(value: Any, cls: type, where: str) -> Any:
    hints = typing.get_type_hints(cls)
    entries = fields(cls)
    if not isinstance(value, list) or len(value) != len(entries):
        raise ProtocolError(
            f"{where} must have the {len(entries)} fields of a {cls.__name__}."
        )
    return cls(
        *(
            _typed(v, hints[entry.name], f"{where}.{entry.name}")
            for v, entry in zip(value, entries, strict=True)
        )
    )


def _text(value: Any, where: str, longest: int) -> str:
    if not isinstance(value, str) or len(value) > longest:
        raise ProtocolError(f"{where} must be text of at most {longest} characters.")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # a lone surrogate, which tokenizers choke on
        raise ProtocolError(f"{where} is no valid Unicode text.") from error
    return value


def _arrays(record: RecordDict, group: str, shapes: Shapes) -> Rows:
    """Take the named arrays, each checked before anything is allocated."""
    sent = record.array_records.get("arrays") or {}
    wanted = {f"{group}/{name}": name for name in shapes}
    if set(sent) != set(wanted):
        odd = sorted(set(sent) ^ set(wanted))[0]
        state = "is missing" if odd in wanted else "was not asked for"
        raise ProtocolError(f"the array {odd!r:.120} {state}.")
    return {
        name: read_array(sent[key], tuple(shapes[name]), key, _type(name))
        for key, name in wanted.items()
    }


def read_array(
    array: Array, shape: tuple[int, ...], name: str, dtype: np.dtype
) -> np.ndarray:
    """Return an array of the expected shape and type, or refuse it.

    The array is a view of the bytes that already arrived; nothing is allocated.

    Parameters
    ----------
    array
        As it came over the wire.
    shape
        The shape it must have.
    name
        What to call it in an error.
    dtype
        The type it must have.

    Raises
    ------
    ProtocolError
        Declared type or shape, byte length or numpy header is not as expected.
    """
    if array.stype != "numpy.ndarray" or array.dtype != dtype.name:
        raise ProtocolError(
            f"array '{name}' is {array.dtype!r:.40} as {array.stype!r:.40}: "
            f"{dtype.name} as numpy.ndarray is expected."
        )
    bytes_of = dtype.itemsize * math.prod(shape)
    if tuple(array.shape) != shape:
        raise ProtocolError(
            f"array '{name}' has the shape {tuple(array.shape)!s:.80}: {shape} is expected."
        )
    if len(array.data) > bytes_of + 256:  # 256: more than numpy's header
        raise ProtocolError(f"array '{name}' has more bytes than its shape takes.")
    stream = BytesIO(array.data)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("unusual version")
        inner = np.lib.format.read_array_header_1_0(stream, max_header_size=256)
    except Exception as error:  # numpy raises what it likes on garbage
        raise ProtocolError(f"array '{name}' has no readable header.") from error
    if inner != (shape, False, dtype):
        raise ProtocolError(f"array '{name}' has a header that contradicts its shape.")
    start = stream.tell()
    if len(array.data) != start + bytes_of:
        raise ProtocolError(f"array '{name}' has not as many bytes as its shape takes.")
    return np.frombuffer(array.data, dtype, offset=start).reshape(shape)


# --- what only the values can tell -----------------------------------------------------


def check_step(message: Step, run: str, step: str) -> None:
    """Refuse a message that belongs to another run or another step.

    Raises
    ------
    ProtocolError
        The message is stale or misdirected.
    """
    if (message.run, message.step) != (run, step):
        raise ProtocolError(
            f"a message for step {message.step!r:.80} of run {message.run!r:.80} came "
            f"where step '{step}' of run '{run}' was expected; it is ignored."
        )


def check_users(reply: Reply, asked: tuple[str, ...]) -> None:
    """Refuse a reply about anybody who was not asked, or about somebody twice.

    Raises
    ------
    ProtocolError
        The users of the reply are not among those asked, or are repeated.
    """
    if len(set(reply.users)) != len(reply.users):
        raise ProtocolError("a reply names the same user twice.")
    strangers = (set(reply.users) | set(reply.errors)) - set(asked)
    if strangers:
        raise ProtocolError(
            f"a reply is about the user {sorted(strangers)[0]!r:.80}, who was not asked."
        )


def check_rows(rows: Rows, shapes: Shapes) -> None:
    """Refuse arrays of other names, shapes or types than expected, or not finite.

    Raises
    ------
    ProtocolError
        Names the first that is not as it should be.
    """
    if odd := sorted(set(rows) ^ set(shapes)):
        state = "is missing" if odd[0] in shapes else "was not asked for"
        raise ProtocolError(f"the array {odd[0]!r:.120} {state}.")
    for name, array in rows.items():
        if array.shape != tuple(shapes[name]) or array.dtype != _type(name):
            raise ProtocolError(
                f"array '{name}' is {array.dtype} of the shape {array.shape!s:.80}: "
                f"{_type(name)} of {tuple(shapes[name])} is expected."
            )
        if not np.isfinite(array).all():
            raise ProtocolError(f"array '{name}' is not finite.")


def finite_rows(rows: Rows) -> np.ndarray:
    """Which users' rows are finite in every array.

    Parameters
    ----------
    rows
        Name -> [users, ...].

    Returns
    -------
    numpy.ndarray
        bool [users].
    """
    flags = [np.isfinite(a).all(axis=tuple(range(1, a.ndim))) for a in rows.values()]
    return np.logical_and.reduce(flags)


def row_norms(rows: Rows) -> np.ndarray:
    """L2 norm of each user's row over all arrays together, float64 [users]."""
    squares = [
        np.square(a, dtype=np.float64).sum(axis=tuple(range(1, a.ndim)))
        for a in rows.values()
    ]
    return np.sqrt(np.sum(squares, axis=0))


def valid_votes(votes: np.ndarray) -> np.ndarray:
    """Which rows [users, length] are finite, not negative, and of L2 norm about 1 at most.

    So are votes, and rows of bounded metrics. They were rounded to float32, so a norm that
    is a little above 1 is still honest; whoever adds them up clips each to 1 exactly
    (`adapt.clipped_sum`).

    Returns
    -------
    numpy.ndarray
        bool [users].
    """
    good = np.asarray(np.isfinite(votes).all(axis=1))
    safe = np.where(good[:, None], votes, 0.0)
    return good & (safe >= 0).all(axis=1) & (row_norms({"votes": safe}) <= 1 + 1e-5)
