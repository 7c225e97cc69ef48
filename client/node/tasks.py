"""What a node does when a task comes: one handler for each message of the protocol.

Each handler reads a typed task, calls a pure function of `common.personal` on the users
it names, and answers with a typed reply. Tasks carry all they need and can be repeated:
nothing depends on what this process did before, except that the backbone and the data
stay resident. What goes wrong comes back as a sentence, never as a traceback.

Who lives on the node, and where things are kept, is the business of its `Home`: of a
simulated node (`app`), which hosts many users, or of a device (`device`), which hosts its
owner.

Threads: PyTorch takes them from ``OMP_NUM_THREADS``, which Ray sets to the CPUs of the
actor (two by default), so nothing is set here.
"""

import hashlib
import logging
import math
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from flwr.app import Message as Envelope
from flwr.app import RecordDict

from ...common.command import out_of_memory
from ...common.config import SETLESS, UNTRAINED, Config, LoraShape
from ...common.data.load import task_of
from ...common.data.metrics import bounded_row, released_metrics
from ...common.data.types import TOO_LONG, Item, User
from ...common.engine.adapters import Lora, hash_lora, zero_shared
from ...common.engine.backbone import Backbone, backbone_of
from ...common.engine.fitting import encode_all, fitting, too_long
from ...common.engine.reference import Reference
from ...common.errors import IdiolectError
from ...common.methods import evaluation
from ...common.methods.personalise import Personal, personalise
from ...common.methods.shared import shared_update
from ...common.privacy.protected import charged, planned
from ...common.process import peak_mb, process_name
from ...common.protocol.manifest import ManifestError, accept
from ...common.protocol.manifest import parse as parse_manifest
from ...common.protocol.messages import (
    AdaptReply,
    AdaptRequest,
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
    ProtocolError,
    Reply,
    Request,
    Rows,
    ShareReply,
    ShareRequest,
    VoteReply,
    VoteRequest,
    package_version,
)
from ...common.protocol.packing import pack
from ...common.protocol.quantization import coded_shapes, decode, update_codes
from ...common.protocol.signed import (
    MissingParts,
    Sealed,
    brought,
    complete,
    read_sealed,
)
from ...common.protocol.validation import check_rows
from ...common.unlabeled.offers import offer_marks, supported_offers
from ...common.unlabeled.sets import Unlabeled, UnlabeledSet, fingerprint
from ...common.unlabeled.votes import user_vote
from ..owner.consent import Refusal
from . import state
from .state import Shelf

LOG = logging.getLogger("flwr")
Some = TypeVar("Some")


def _everything(_outflow: str, _config: Config) -> None:
    """Simulated users consent to everything."""


@dataclass(frozen=True)
class Node:
    """Where a task is carried out.

    Attributes
    ----------
    config
        The run's configuration, as it holds here.
    users
        The users of this node that the task is for.
    residents
        All users of this node, evaluated and development.
    development
        Names of those residents on whom only learning rates are chosen.
    shelf
        Where what belongs to the run is kept.
    started
        When the task came in.
    agreement
        Hash of the configuration, which does not change within a run.
    nodes
        Among how many simulated nodes this is one; 0: this is a device.
    dropped
        Reason -> users left out of the data, from the one node that reports them.
    permit
        Raises where the owner does not consent to an outflow: ``update``, ``votes``,
        ``items``, ``metrics``, ``text``; or to ``training`` here.
    trained
        Called with the shared and the own adapter, the method and the `state.identity` of
        what was trained for good, before the server hears of it.
    """

    config: Config
    users: tuple[User, ...]
    residents: tuple[User, ...]
    development: frozenset[str]
    shelf: Shelf
    started: float
    agreement: str = ""
    nodes: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    permit: Callable[[str, Config], None] = _everything
    trained: Callable[[Lora, Lora, str, str], None] | None = None

    @property
    def simulated(self) -> bool:
        """Whether this node stands in for devices."""
        return self.nodes > 0


class Home(Protocol):
    """Who lives on a node.

    Attributes
    ----------
    simulated
        Whether the node stands in for devices.
    """

    simulated: bool

    def admit(self, sealed: Sealed) -> Shelf:
        """Find out whether a task may be done here, before anything of it is used.

        Returns
        -------
        Shelf
            Where what belongs to its run is kept.

        Raises
        ------
        IdiolectError
            It is not signed by whom this node believes, or may not be done now.
        """
        ...

    def node(self, task: Request, started: float) -> Node:
        """Find the users that a task is for.

        Raises
        ------
        IdiolectError
            They do not live here, or the task cannot be done here.
        """
        ...


# --- handlers ------------------------------------------------------------------------


def _hello(task: HelloRequest, node: Node) -> HelloReply:
    """Say who lives here, and what must agree with the server."""
    backbone = backbone_of(node.config)
    shared = _zero_shared(backbone, node.config.shared_shape, node.config.seed)
    truncated, errors = each(node, node.residents, lambda u: _truncated(backbone, u))
    _, unwilling = each(node, node.residents, lambda u: _pin(task, node, u))
    errors |= unwilling
    fitting = tuple(user.id for user in node.residents if user.id not in errors)
    return HelloReply(
        **_head(task, node, fitting, errors),
        package=package_version(),
        backbone=backbone.hash,
        shared=hash_lora(shared),
        development=tuple(name for name in fitting if name in node.development),
        simulation=node.simulated,
        nodes=node.nodes,
        dropped=dict(node.dropped),
        # Where metrics are a release with noise, no count leaves without it.
        truncated=sum(truncated.values()) if _open(node) else 0,
    )


def _adapt(task: AdaptRequest, node: Node) -> AdaptReply:
    """Train the shared adapter on each user's history; answer one row per user."""
    node.permit("training", node.config)
    config, reference = node.config, _reference(node.config, task.shared)
    content = _digest(task.round, task.clip, reference.hash)
    willing, refused = _willing(task, node, "adapt", "update", content)

    def update(users: Sequence[User]) -> list[Rows]:
        rows = shared_update(reference, users, config, task.round, task.clip)
        arrays = {name: tensor.numpy() for name, tensor in rows.items()}
        return [{n: a[k] for n, a in arrays.items()} for k in range(len(users))]

    done, errors = each(node, willing, update)
    errors |= refused
    rows = {
        name: np.stack([row[name] for row in done.values()])
        if done
        else np.zeros((0, *tensor.shape), np.float32)
        for name, tensor in reference.adapter.b.items()
    }
    if config.signed_bytes:
        rows = update_codes(rows, config.seed, tuple(done), task.round)
    return AdaptReply(**_head(task, node, tuple(done), errors), rows=rows)


def _votes(task: VoteRequest, node: Node) -> VoteReply:
    """Let each user vote for the bank's items that resemble the own text."""
    config = node.config
    _, strangers = each(node, node.users, lambda users: _check_bank(task, node, users))
    content = fingerprint([Unlabeled(item) for item in task.bank])
    outflow = "items" if config.unlabeled.kind == "anonymised" else "votes"
    willing, refused = _willing(task, node, "votes", outflow, content, strangers)

    def choose(users: Sequence[User]) -> list[np.ndarray]:
        if config.unlabeled.kind == "anonymised":
            return [offer_marks(task.bank, user, config) for user in users]
        reference = resident(config)
        return [user_vote(reference, task.bank, u, config) for u in users]

    done, errors = each(node, willing, choose)
    shape = (len(done), len(task.bank))
    matrix = np.array(list(done.values()), np.float32).reshape(shape)
    head = _head(task, node, tuple(done), errors | refused)
    return VoteReply(**head, votes={"votes": matrix})


def _offer(task: OfferRequest, node: Node) -> OfferReply:
    """Hand over scrubbed items whose like enough users have (kind `anonymised`)."""
    config, supported = node.config, frozenset(task.supported)
    if config.unlabeled.kind != "anonymised":
        raise IdiolectError(
            "items are only offered where unlabeled.kind is 'anonymised'."
        )
    node.permit("items", config)

    def choose(users: Sequence[User]) -> list[tuple[Item, ...]]:
        _check_bank(task, node, users)
        return [
            tuple(supported_offers(task.bank, supported, user, config))
            for user in users
        ]

    done, errors = each(node, node.users, choose)
    return OfferReply(**_head(task, node, tuple(done), errors), items=done)


def _share(task: ShareRequest, node: Node) -> ShareReply:
    """Hand over the raw history: simulation only (unlabeled.kind `others`)."""
    if node.config.unlabeled.kind != "others":
        raise IdiolectError("raw text is only shared where unlabeled.kind is 'others'.")
    node.permit("text", node.config)
    items = {
        user.id: tuple(replace(item, rivals=()) for item in user.history)
        for user in node.users
    }
    return ShareReply(**_head(task, node, tuple(items), {}), items=items)


def _personalise(task: PersonaliseRequest, node: Node) -> PersonaliseReply:
    """Train each user's own adapter and keep it here."""
    node.permit("training", node.config)
    reference = _reference(node.config, task.shared)
    content = fingerprint(task.unlabeled)
    willing, refused = each(
        node, node.users, lambda users: _check_set(task, node, users, content)
    )
    users = tuple(user for user in node.users if user.id in willing)
    if task.trial:
        return _tried(task, node, reference, users, refused)
    origin = _origin(task, node, reference, content)
    names = {user.id: state.adapter_name(task.method, user.id) for user in users}
    known = state.recall_group(node.shelf, list(names.values()), list(names), origin)
    if known is not None:
        return _trained(task, node, reference, origin, known, refused)
    trained, errors = _train(task, node, reference, users)
    for user, one in trained.items():
        state.store(node.shelf, names[user], one, origin)
    outcomes = {user: _outcome(one) for user, one in trained.items()}
    return _trained(task, node, reference, origin, outcomes, errors | refused)


def _train(
    task: PersonaliseRequest, node: Node, reference: Reference, users: Sequence[User]
) -> tuple[dict[str, Personal], dict[str, str]]:
    """Train; return user -> what came of it, and user -> why nothing did."""
    unlabeled = _handed_out(task, node, users)

    def train(users: Sequence[User]) -> list[Personal]:
        return personalise(
            reference, users, unlabeled, task.method, task.learning_rate, node.config
        )

    trained, errors = each(node, users, train)
    errors |= {user: one.error for user, one in trained.items() if one.lora is None}
    return {user: trained[user] for user in trained if user not in errors}, errors


def _outcome(one: Personal) -> Outcome:
    return Outcome(one.alpha, one.estimated, _finite(one.log))


def _finite(numbers: Mapping[str, float]) -> dict[str, float]:
    """Leave out what is not finite: a server refuses a reply with such a number in it."""
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _tried(
    task: PersonaliseRequest,
    node: Node,
    reference: Reference,
    users: Sequence[User],
    refused: dict[str, str],
) -> PersonaliseReply:
    """Train, measure, and keep nothing: what a learning rate is worth."""
    if not _open(node):
        raise Refusal(
            "a learning rate is only tried in a simulation with clear metrics."
        )
    trained, errors = _train(task, node, reference, users)

    def measure(users: Sequence[User]) -> list[float]:
        adapters = [trained[user.id].lora for user in users]
        return evaluation.held_out_nll(reference, adapters, users, task.method)

    able = [user for user in users if user.id in trained]
    measured, unmeasured = each(node, able, measure)
    outcomes = {user: _outcome(trained[user]) for user in measured}
    for user, nll in measured.items():
        outcomes[user].log.update(_finite({"nll": nll}))
    head = _head(task, node, tuple(outcomes), errors | unmeasured | refused)
    return PersonaliseReply(**head, outcomes=outcomes)


def _trained(
    task: PersonaliseRequest,
    node: Node,
    reference: Reference,
    origin: str,
    outcomes: dict[str, Outcome],
    errors: dict[str, str],
) -> PersonaliseReply:
    """Say who was trained, and how it went unless that is nobody's business."""
    if node.trained:
        for user in node.users:
            if user.id in outcomes:
                own = _stored(task, node, user, origin)
                node.trained(reference.adapter, own, task.method, origin)
    if not _open(node):
        outcomes = dict.fromkeys(outcomes, Outcome(None, False, {}))
    outcomes = {u: replace(one, log=_finite(one.log)) for u, one in outcomes.items()}
    head = _head(task, node, tuple(outcomes), errors)
    return PersonaliseReply(**head, outcomes=outcomes)


def _handed_out(
    task: PersonaliseRequest, node: Node, users: Sequence[User]
) -> UnlabeledSet:
    """Return the unlabeled set with its floor, and who of the users voted for it."""
    if not task.unlabeled:
        return UnlabeledSet()
    manifest = parse_manifest(task.manifest)
    if not manifest.vote:
        return UnlabeledSet(task.unlabeled, manifest.floor)

    def voted(user: User) -> bool:
        """Both sides say so: a vote that came too late is not in the sum."""
        took = state.agreed(node.shelf, user.id).took.get("votes", {})
        return manifest.vote in took and user.id in task.voted

    voters = frozenset(user.id for user in users if voted(user))
    return UnlabeledSet(task.unlabeled, manifest.floor, voters)


def _evaluate(task: EvaluateRequest, node: Node) -> EvaluateReply:
    """Measure each user's held-out items; only numbers leave."""
    config, reference = node.config, _reference(node.config, task.shared)
    origin = _origin(task, node, reference, task.unlabeled_hash)
    content = _digest(origin, task.generate)
    willing, refused = _willing(task, node, "metrics", "metrics", content)

    def measure(users: Sequence[User]) -> list[dict[str, float]]:
        trained = task.method not in UNTRAINED
        adapters = [
            _stored(task, node, user, origin) if trained else None for user in users
        ]
        return evaluation.evaluate(
            reference, adapters, users, task.method, config, task.generate
        )

    done, errors = each(node, willing, measure)
    head = _head(task, node, tuple(done), errors | refused)
    if not _noisy(config):
        whole = {
            u: values if values == _finite(values) else {} for u, values in done.items()
        }
        return EvaluateReply(**head, metrics=whole, sums={})
    names = released_metrics(task_of(config.task).kind, task.generate)
    rows = [bounded_row(values, names) for values in done.values()]
    matrix = np.array(rows, np.float32).reshape(len(done), len(names) + 1)
    return EvaluateReply(**head, metrics={}, sums={"sums": matrix})


# Type of Flower's message -> the task in it, and who answers it.
HANDLERS: dict[str, tuple[type[Request], Callable[[Any, Node], Reply]]] = {
    "query.hello": (HelloRequest, _hello),
    "train.adapt": (AdaptRequest, _adapt),
    "query.vote": (VoteRequest, _votes),
    "query.offer": (OfferRequest, _offer),
    "query.share": (ShareRequest, _share),
    "train.personalise": (PersonaliseRequest, _personalise),
    "evaluate": (EvaluateRequest, _evaluate),
}


# --- what the handlers share ---------------------------------------------------------


def answer(message: Envelope, home: Home) -> RecordDict:
    """Read a task, do it, and answer; a task that cannot be done is a `Failure`."""
    started = time.monotonic()
    run, step = "", ""
    try:
        kind = message.metadata.message_type
        if kind not in HANDLERS:
            raise Refusal(f"'{kind:.80}' is no task of idiolect.")
        cls, work = HANDLERS[kind]
        sealed = read_sealed(cls, message.content)
        run, step = sealed.run, sealed.fields["step"]
        if cls is not HelloRequest and not sealed.users:
            raise Refusal("the task names nobody whom it is for.")
        shelf = home.admit(sealed)
        _check_agreed(sealed, shelf)
        came = brought(message.content, sealed.seal)
        task = complete(sealed, came | _kept(sealed, shelf, came))
        node = home.node(task, started)
        for name, data in came.items():  # in the place of what came before under it
            shelf.write(f"parts/{name}", data)
        node = _fitting(node)
        return pack(work(task, replace(node, agreement=sealed.seal.parts["config"])))
    except MissingParts as error:
        return pack(Missing(run, step, error.names))
    except Exception as error:
        return pack(Failure(run, step, sentence(error, home.simulated)))


def _fitting(node: Node) -> Node:
    """Leave out the items that do not fit into the context, and count them."""
    backbone = backbone_of(node.config)
    pairs = [fitting(backbone, user) for user in node.residents]
    residents = {user.id: user for user, _ in pairs}
    dropped, count = dict(node.dropped), sum(number for _, number in pairs)
    if count and _open(node):  # where metrics have noise, no count leaves without it
        dropped[TOO_LONG] = dropped.get(TOO_LONG, 0) + count
    users = tuple(residents.get(user.id, user) for user in node.users)
    found = tuple(residents.values())
    return replace(node, users=users, residents=found, dropped=dropped)


def _check_agreed(sealed: Sealed, shelf: Shelf) -> None:
    """Refuse work for a run that the users did not agree to, in a hello, as it is now."""
    if sealed.cls is not HelloRequest:
        for user in sealed.users:
            state.check_agreed(shelf, user, sealed.seal.parts["config"])


def _kept(sealed: Sealed, shelf: Shelf, came: Collection[str]) -> dict[str, bytes]:
    """The parts of a task that came before."""
    names = set(sealed.seal.parts) - set(came)
    kept = {name: shelf.read(f"parts/{name}") for name in names}
    return {name: data for name, data in kept.items() if data is not None}


def each(
    node: Node, users: Sequence[User], work: Callable[[Sequence[User]], list[Some]]
) -> tuple[dict[str, Some], dict[str, str]]:
    """Do the work for all users at once; if that fails, for one after the other.

    So one user whose data breaks the training costs only that user.

    Returns
    -------
    tuple
        User -> result, and user -> sentence for those that fail even alone.
    """
    try:
        return dict(zip([u.id for u in users], work(users), strict=True)), {}
    except Exception as error:
        if len(users) == 1:
            return {}, {users[0].id: sentence(error, node.simulated)}
    results: dict[str, Some] = {}
    errors: dict[str, str] = {}
    for user in users:
        done, failed = each(node, [user], work)
        results |= done
        errors |= failed
    return results, errors


def _willing(
    task: AdaptRequest | VoteRequest | EvaluateRequest,
    node: Node,
    stage: str,
    outflow: str,
    content: str,
    refused: dict[str, str] | None = None,
) -> tuple[tuple[User, ...], dict[str, str]]:
    """Count a release as taken part in; return who takes part, and why others do not.

    `content` is a hash of what the rows depend on, beside the agreed configuration.
    """
    node.permit(outflow, node.config)
    if charged(node.config, outflow) and not task.release:
        raise IdiolectError(
            "the task names no release of the ledger, though privacy.mode is 'central': "
            "it is not answered."
        )

    def count(users: Sequence[User]) -> list[None]:
        return [
            state.take_part(
                *(node.shelf, user.id, stage, task.release, content),
                planned(node.config).get(outflow, 0),
            )
            for user in users
        ]

    asked = [user for user in node.users if user.id not in (refused or {})]
    taking, errors = each(node, asked, count)
    willing = tuple(user for user in asked if user.id in taking)
    return willing, errors | (refused or {})


def _pin(task: HelloRequest, node: Node, users: Sequence[User]) -> list[None]:
    most = node.config.privacy.participations
    return [
        state.pin(node.shelf, user.id, task.key, most, node.agreement) for user in users
    ]


def _check_bank(
    task: VoteRequest | OfferRequest, node: Node, users: Sequence[User]
) -> list[None]:
    content = fingerprint([Unlabeled(item) for item in task.bank])
    return _check_manifest(task, node, users, content, "bank")


def _check_set(
    task: PersonaliseRequest, node: Node, users: Sequence[User], content: str
) -> list[None]:
    kind = node.config.unlabeled.kind
    if not task.unlabeled and (kind == "self" or task.method in SETLESS):
        return [None] * len(users)  # nothing was handed out, and nothing is needed
    return _check_manifest(task, node, users, content, kind)


def _check_manifest(
    task: VoteRequest | OfferRequest | PersonaliseRequest,
    node: Node,
    users: Sequence[User],
    content: str,
    kind: str,
) -> list[None]:
    """Refuse what the run's key did not sign, or what is older than what was seen."""
    for user in users:
        before = state.agreed(node.shelf, user.id)
        seen = accept(
            task.manifest,
            task.signature,
            task.run,
            content,
            before.seen,
            time.time(),
            kind,
        )
        if seen != before.seen:
            state.keep(node.shelf, user.id, replace(before, seen=seen))
    return [None] * len(users)


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _noisy(config: Config) -> bool:
    return config.privacy.metrics == "noisy"


def _open(node: Node) -> bool:
    """Whether counts and logs may be told: in a simulation that hides no metrics."""
    return node.simulated and not _noisy(node.config)


def sentence(error: Exception, simulated: bool) -> str:
    """One sentence for an error; what is a defect of ours is also logged in full.

    A device tells a server only what cannot quote the owner's text, and does not write to
    its log what an unforeseen error quotes.
    """
    if isinstance(error, Refusal | ProtocolError | ManifestError):
        return str(error)
    if out_of_memory(error) and not simulated:
        return "the work does not fit into the memory of this device."
    if not simulated:
        where = traceback.extract_tb(error.__traceback__)[-1]
        mine = str(error) if isinstance(error, IdiolectError) else ""
        LOG.warning(
            "a task failed: %s at %s:%s %s",
            *(type(error).__name__, where.filename, where.lineno, mine),
        )
        return f"{type(error).__name__}: the device's own log says more."
    if isinstance(error, IdiolectError):
        return str(error)
    LOG.warning("a task failed", exc_info=error)
    return f"{type(error).__name__}: {error}"[:500]


def _head(
    task: Request, node: Node, users: tuple[str, ...], errors: dict[str, str]
) -> dict[str, Any]:
    """Return the fields that every reply begins with."""
    head = {"run": task.run, "step": task.step, "users": users, "errors": errors}
    if not node.simulated:  # how long a device takes would tell how much it holds
        return head | {"seconds": 0.0, "process": "", "peak_rss_mb": 0.0}
    return head | {
        "seconds": time.monotonic() - node.started,
        "process": process_name(),
        "peak_rss_mb": peak_mb(),
    }


def _origin(
    task: PersonaliseRequest | EvaluateRequest,
    node: Node,
    reference: Reference,
    unlabeled_hash: str,
) -> str:
    return state.identity(
        task.run,
        task.method,
        task.learning_rate,
        reference.hash,
        unlabeled_hash,
        node.config,
    )


def _stored(
    task: PersonaliseRequest | EvaluateRequest, node: Node, user: User, origin: str
) -> Lora:
    """Return the adapter that the task is about."""
    name = state.adapter_name(task.method, user.id)
    found = state.recall(node.shelf, name, user.id, origin)
    if found is None:
        raise IdiolectError(
            f"user '{user.id}' has no adapter of method '{task.method}' from this run: "
            "start a new run, what it left on the node was changed."
        )
    return found[0]


def _truncated(backbone: Backbone, users: Sequence[User]) -> list[int]:
    """Count, per user, the items whose prompt does not fit into the context."""
    for user in users:
        if problem := too_long(backbone, user):
            raise IdiolectError(problem)
    return [
        sum(item.truncated for item in encode_all(backbone, items))
        for items in (user.history + user.held_out for user in users)
    ]


def _reference(config: Config, rows: Rows) -> Reference:
    """Return the reference: our own fixed A and the B that came with the task.

    Raises
    ------
    ProtocolError
        B has other projections, shapes or numbers than the configuration says.
    """
    backbone = backbone_of(config)
    zero = _zero_shared(backbone, config.shared_shape, config.seed)
    shapes = {name: tuple(tensor.shape) for name, tensor in zero.b.items()}
    check_rows(rows, coded_shapes(shapes) if config.signed_bytes else shapes)
    if config.signed_bytes:
        rows = decode(rows, shapes)
    b = {name: torch.from_numpy(array.copy()) for name, array in rows.items()}
    b = {name: tensor.to(backbone.device) for name, tensor in b.items()}
    return resident(config).with_shared(Lora(zero.a, b, zero.scaling))


@lru_cache(maxsize=1)
def _zero_shared(backbone: Backbone, shape: LoraShape, seed: int) -> Lora:
    return zero_shared(backbone, shape, seed)


@lru_cache(maxsize=1)
def _resident(backbone: Backbone) -> Reference:
    return Reference(backbone)


def resident(config: Config) -> Reference:
    """Return the bare reference of this process, which keeps what was computed."""
    return _resident(backbone_of(config))


def forget() -> None:
    """Drop what was computed from users' texts in this process."""
    _resident.cache_clear()
