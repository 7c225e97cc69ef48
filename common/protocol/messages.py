"""The messages between server and nodes: one frozen dataclass each.

A request goes from the server to a node, a reply comes back. `packing` turns a message into
Flower's records and reads it again, `validation` checks its values, and `signed` signs the
requests.

Every message carries the run's id and the step that it belongs to, so an answer from before
a crash, or from another run, is refused (`validation.check_step`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

import numpy as np

from .. import errors
from ..data.types import Item
from ..errors import IdiolectError
from ..secure.directory import Entry
from ..text import printable
from ..unlabeled.sets import Unlabeled

MAX_ITEMS = 50_000  # items in one message

Rows = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]
CODES = "codes"
# Arrays of these names do not hold float32: signed bytes (`quantization`), and what
# members of a masked sum send (`summing`).
TYPES = {
    CODES: "<i1",
    "masked32": "<u4",
    "masked64": "<u8",
    "bundles": "|u1",
    "checks": "|u1",
    "shares": "|u1",
}
AnyMessage = TypeVar("AnyMessage", bound="Message")


class ProtocolError(IdiolectError):
    """A message that is not as it should be; one sentence says what is wrong."""

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence))  # it may quote the sender


# `errors.refuse_if` for what is wrong with a message.
refuse_if = partial(errors.refuse_if, error=ProtocolError)


class LacksParts(IdiolectError):
    """The reply is a `Missing`."""


def array_type(name: str) -> np.dtype:
    """Return the type of the numbers in the array of this name."""
    return np.dtype(TYPES.get(name, "<f4"))


def wire_name(cls: type["Message"]) -> str:
    """Return what a message is called on the wire.

    A request is called a task there: a device and a server need not be updated together.
    """
    return cls.__name__.replace("Request", "Task")


@dataclass(frozen=True)
class Message:
    """The first fields of every message.

    Attributes
    ----------
    run
        The run's id. It is random and our own: names can repeat, and Flower's run id
        changes when a run is resumed.
    step
        Which exchange this is, for example ``adapt/2/0``. A reply repeats it.
    """

    run: str
    step: str


@dataclass(frozen=True)
class Summing:
    """A masked sum, as a request speaks of it (``secagg.mode=on``).

    Attributes
    ----------
    stage
        ``adapt``, ``votes`` or ``metrics``.
    release
        The ledger's id of the release; without privacy a name of the sum within its run.
    cohort
        Who is asked: a bitmap over the directory, in hex digits.
    content
        SHA-256 of all that a row depends on (`summing.content_of`).
    clip
        C.
    z, bit_z
        Noise multipliers of what is published, of the row and of its clip bit; None: a row
        has no such bit.
    most, required
        n, by which the noise is shared out, and r, the fewest rows of the sum.
    length
        Coordinates of a row, without the clip bit.
    plan
        SHA-256 of the plan (`secure.plan.Plan`) that the server makes of this.
    """

    stage: str
    release: str
    cohort: str
    content: str
    clip: float
    z: float
    bit_z: float | None
    most: int
    required: int
    length: int
    plan: str


@dataclass(frozen=True)
class Request(Message):
    """The further fields of every request.

    Its large fields are sent only once (`signed.LARGEST`).

    Attributes
    ----------
    config
        The resolved configuration (`config.flatten`); a simulated node has no other.
    folder
        The run folder in a simulation; a device keeps its state in its own vault.
    users
        The users that the request is about: at most one stacking group of the node.
    """

    config: dict[str, str | int | float | bool]
    folder: str
    users: tuple[str, ...]


@dataclass(frozen=True)
class Reply(Message):
    """The further fields of every reply.

    Attributes
    ----------
    users
        The users that the reply is about, in the order of its rows.
    errors
        User -> one sentence, for those for whom the request failed.
    seconds
        How long the request took.
    process, peak_rss_mb
        The process that answered, and its largest memory use so far.
    """

    users: tuple[str, ...]
    errors: dict[str, str]
    seconds: float
    process: str
    peak_rss_mb: float


@dataclass(frozen=True)
class HelloRequest(Request):
    """Server -> node: describe yourself.

    Attributes
    ----------
    key
        The public key of the run's manifests, which the device pins.
    """

    key: str


@dataclass(frozen=True)
class HelloReply(Reply):
    """Node -> server: what must agree with the server, and the users on this node.

    Attributes
    ----------
    package
        Version of idiolect.
    backbone, shared
        What determines the backbone's scores, part by part (`model_folder.identity`), and
        the hash of the shared adapter before its first round.
    development
        Those of `users` that only serve to choose learning rates.
    simulation, nodes
        Whether this node is simulated, and among how many nodes (0 if it is not).
    dropped
        Reason -> number of users left out of the data (``skip-bad-users``).
    truncated
        Number of items whose prompt was shortened to fit the context.
    keys
        User -> its keys for masked sums; empty without them.
    """

    package: str
    backbone: str
    shared: str
    development: tuple[str, ...]
    simulation: bool
    nodes: int
    dropped: dict[str, int]
    truncated: int
    keys: dict[str, Entry] = field(default_factory=dict)


@dataclass(frozen=True)
class AdaptRequest(Request):
    """Server -> node: train the shared adapter on the history of these users.

    Attributes
    ----------
    round
        Counted from 0.
    release
        The ledger's id of the release that includes the rows; empty without privacy. The
        device counts these (``privacy.participations``).
    clip
        Largest L2 norm of one user's row in this round.
    shared
        The shared adapter's B, projection -> [out, r].
    summing, directory
        How the rows are masked, and the members of the run; None and empty: not at all.
    """

    round: int
    release: str
    clip: float
    shared: Rows
    summing: Summing | None = None
    directory: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class AdaptReply(Reply):
    """Node -> server: `rows`, projection -> [users, out, r], one update per user.

    Of a masked sum: the arrays of `summing.report_shapes`, here and in other replies.
    """

    rows: Rows


@dataclass(frozen=True)
class VoteRequest(Request):
    """Server -> node: say which items of the bank resemble the text of these users.

    Attributes
    ----------
    release
        As in `AdaptRequest`.
    manifest, signature
        Of the bank (`manifest`).
    bank
        The candidates.
    summing, directory
        As in `AdaptRequest`.
    """

    release: str
    manifest: str
    signature: str
    bank: tuple[Item, ...]
    summing: Summing | None = None
    directory: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class VoteReply(Reply):
    """Node -> server: `votes`, one array [users, bank].

    Each row has an L2 norm of at most 1. For the kind `anonymised` a row is 1 for each
    candidate that resembles an offered item, and 0 for the others.
    """

    votes: Rows


@dataclass(frozen=True)
class ShareRequest(Request):
    """Server -> simulated node: send the raw history of these users."""


@dataclass(frozen=True)
class ShareReply(Reply):
    """Simulated node -> server: user -> history. Never sent outside a simulation."""

    items: dict[str, tuple[Item, ...]]


@dataclass(frozen=True)
class OfferRequest(Request):
    """Server -> node: send scrubbed items (unlabeled.kind `anonymised`).

    Attributes
    ----------
    manifest, signature
        Of the bank (`manifest`).
    bank
        The candidates.
    supported
        Positions in the bank of the candidates that enough users resemble. An item whose
        nearest candidate is not among them stays on the device.
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
class PersonaliseRequest(Request):
    """Server -> node: train these users' own adapters.

    Attributes
    ----------
    method, learning_rate
        The method, and its learning rate.
    trial
        Whether the learning rate is only tried, on development users (simulation only). The
        adapter is measured at once and not kept; the log has ``nll``.
    manifest, signature
        Of the unlabeled set (`manifest`); empty for the kind `self`.
    voted
        Those of `users` whose vote is part of the weights (privacy only).
    unlabeled
        The unlabeled set; empty for the kind `self`, where the device makes its own.
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
    """The result of one user's training (`methods.personalise.Personal`).

    Where ``privacy.metrics`` is `noisy` it is empty: alpha None, no log. Where a rate was
    only tried, the log also has ``nll`` of the held-out items.
    """

    alpha: float | None
    estimated: bool
    log: dict[str, float]


@dataclass(frozen=True)
class PersonaliseReply(Reply):
    """Node -> server: user -> outcome; the adapters themselves stay where they are."""

    outcomes: dict[str, Outcome]


@dataclass(frozen=True)
class EvaluateRequest(Request):
    """Server -> node: measure these users' held-out items.

    Attributes
    ----------
    method, learning_rate
        The stored adapters to measure.
    unlabeled_hash
        Of the unlabeled set that they were trained with (`unlabeled.sets.fingerprint`).
    generate
        Whether outputs are generated for the text metrics; otherwise texts are only scored.
    release, summing, directory
        As in `AdaptRequest`.
    shared
        The shared adapter's B, projection -> [out, r].
    """

    method: str
    learning_rate: float
    unlabeled_hash: str
    generate: bool
    release: str
    shared: Rows
    summing: Summing | None = None
    directory: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class EvaluateReply(Reply):
    """Node -> server: user -> metric -> value (``privacy.metrics`` `clear`).

    Where it is `noisy`, `metrics` is empty, and `sums` is an array
    [users, metrics + 1] whose rows have an L2 norm of at most 1 (`metrics.bounded_row`).
    """

    metrics: dict[str, dict[str, float]]
    sums: Rows


@dataclass(frozen=True)
class ConfirmRequest(Request):
    """Server -> node: sign whose reports are in a masked sum.

    Attributes
    ----------
    summing, directory
        As in the request that the reports answered.
    counted
        U: a bitmap over the members asked, in hex digits.
    """

    summing: Summing
    directory: tuple[Entry, ...]
    counted: str


@dataclass(frozen=True)
class ConfirmReply(Reply):
    """Node -> server: user -> signature of `secure.view`, in hex digits."""

    signatures: dict[str, str]


@dataclass(frozen=True)
class OpenRequest(Request):
    """Server -> node: open the seeds that the masked sum over U needs.

    Attributes
    ----------
    summing, directory, counted
        As in `ConfirmRequest`.
    signed
        Who has signed U: a bitmap over the members asked, in hex digits.
    signatures
        Theirs, 64 bytes each, in the order of their places. A part of its own: it is the
        same for all nodes, and as text it would be too long from some 13,000 members on.
    bundles
        For each user in turn the sealed shares of the rows of U that it holds shares of,
        in the order of their places.
    """

    summing: Summing
    directory: tuple[Entry, ...]
    counted: str
    signed: str
    signatures: bytes
    bundles: bytes


@dataclass(frozen=True)
class OpenReply(Reply):
    """Node -> server: the opened shares.

    Attributes
    ----------
    opened
        User -> the rows, as places in the cohort, of which it opened shares.
    shares
        One array: of each user in turn and each of its rows the opened shares
        (`secure.opened_of`).
    """

    opened: dict[str, tuple[int, ...]]
    shares: Rows


@dataclass(frozen=True)
class Failure(Message):
    """Node -> server: the request failed as a whole; one sentence says why."""

    sentence: str


@dataclass(frozen=True)
class Missing(Message):
    """Node -> server: send the request again with these parts (`signed`)."""

    parts: tuple[str, ...]


def package_version() -> str:
    """Version of the installed idiolect."""
    try:
        return version("idiolect")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0+checkout"


def device_user(node: int) -> str:
    """Return the user's name on a device, which is bound to the node's key by its number.

    The server compares it with the node that a reply came from, so no device can answer
    for another.
    """
    return f"device-{node}"
