"""What a node answers: from Flower's message to a request, and from that to the answer.

One handler for each message of the protocol calls pure functions of `common.methods` and
`common.unlabeled` on the users that a request names, and answers with a typed reply.
Requests carry all they need and can be repeated: nothing depends on what this process did
before, except that the backbone and the data stay resident. What goes wrong comes back as
a sentence, never as a traceback.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import Message as Envelope
from flwr.app import RecordDict

from ...common.config import UNTRAINED
from ...common.data.load import task_of
from ...common.data.metrics import bounded_row, released_metrics
from ...common.data.types import TOO_LONG, Item, User, names_of
from ...common.engine.adapters import Lora, hash_lora
from ...common.engine.backbone import Backbone
from ...common.engine.fitting import encode_all, fitting, too_long
from ...common.engine.reference import Reference
from ...common.engine.training import UNWATCHED, Watch
from ...common.errors import refuse_if, required
from ...common.methods import evaluation
from ...common.methods.personalise import Personal, personalise
from ...common.methods.shared import shared_update
from ...common.protocol.messages import (
    AdaptReply,
    AdaptRequest,
    ConfirmRequest,
    EvaluateReply,
    EvaluateRequest,
    Failure,
    HelloReply,
    HelloRequest,
    Missing,
    OfferReply,
    OfferRequest,
    OpenRequest,
    Outcome,
    PersonaliseReply,
    PersonaliseRequest,
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
from ...common.protocol.quantization import update_codes
from ...common.protocol.signed import MissingParts, brought, complete, read_sealed
from ...common.secure.directory import Entry
from ...common.text import printable
from ...common.unlabeled.sets import Unlabeled, fingerprint
from ...common.unlabeled.votes import marks, offers, supported_offers, user_vote
from ..owner.consent import Refusal
from . import secure, state
from .agreement import check_manifest, check_set, handed_out, taking_part
from .host import (
    Host,
    Node,
    each,
    each_alone,
    is_noisy,
    is_open,
    reference_of,
    reply_head,
    resident,
    sentence,
    untrained,
)


def _hello(request: HelloRequest, node: Node) -> HelloReply:
    """Say who lives here, and what must agree with the server."""
    backbone, shared = resident(node.config).backbone, untrained(node.config)
    most, masked = node.config.privacy.participations, node.config.secagg.mode == "on"
    left_out: dict[str, int] = {}

    def meet(user: User) -> tuple[int, Entry | None]:
        """Agree to the run: its key, its configuration and the cap; look at the texts.

        Each user once: of many residents memory does not hold all (`MadeUsers`).
        """
        state.pin(node.store, user.id, request.key, most, node.agreement)
        user, left_out[user.id] = fitting(backbone, user)
        truncated = _truncated(backbone, user)
        if not masked:
            return truncated, None
        return truncated, secure.offer(node, user.id, request.run, request.key)

    met, errors = each_alone(node, node.residents, meet)
    dropped = dict(node.dropped)
    # Where metrics are a release with noise, no count leaves without it.
    if is_open(node) and (count := sum(left_out.values())):
        dropped[TOO_LONG] = dropped.get(TOO_LONG, 0) + count
    everybody = names_of(node.residents)
    able = tuple(name for name in everybody if name not in errors)
    return HelloReply(
        **reply_head(request, node, able, errors),
        package=package_version(),
        backbone=backbone.hash,
        shared=hash_lora(shared),
        development=tuple(name for name in able if name in node.development),
        simulation=node.simulated,
        nodes=node.nodes,
        dropped=dropped,
        truncated=sum(count for count, _ in met.values()) if is_open(node) else 0,
        keys={name: key for name, (_, key) in met.items() if key is not None},
    )


def _truncated(backbone: Backbone, user: User) -> int:
    """Count the items whose prompt does not fit into the context."""
    refuse_if(problem := too_long(backbone, user), problem)
    items = encode_all(backbone, user.history + user.held_out)
    return sum(item.truncated for item in items)


def _adapt(request: AdaptRequest, node: Node) -> AdaptReply:
    """Train the shared adapter on each user's history; answer one row per user."""
    node.permit("training", node.config)
    config, reference = node.config, reference_of(node.config, request.shared)
    content = _digest(request.round, request.clip, reference.hash)
    willing, refused = taking_part(request, node, "adapt", "update", content)

    def update(users: Sequence[User]) -> list[Rows]:
        rows = shared_update(reference, users, config, request.round, request.clip)
        arrays = {name: tensor.numpy() for name, tensor in rows.items()}
        return [{n: a[k] for n, a in arrays.items()} for k in range(len(users))]

    if request.summing:
        names, rows, errors = secure.masked(
            request, node, willing, request.clip, update
        )
        return AdaptReply(
            **reply_head(request, node, names, errors | refused), rows=rows
        )
    done, errors = each(node, willing, update)
    errors |= refused
    rows = {
        name: np.stack([row[name] for row in done.values()])
        if done
        else np.zeros((0, *tensor.shape), np.float32)
        for name, tensor in reference.adapter.b.items()
    }
    if config.signed_bytes:
        rows = update_codes(rows, config.seed, tuple(done), request.round)
    return AdaptReply(**reply_head(request, node, tuple(done), errors), rows=rows)


def _votes(request: VoteRequest, node: Node) -> VoteReply:
    """Let each user vote for the bank's items that resemble the own text."""
    config = node.config
    content = _fingerprint(request.bank)
    _, strangers = each_alone(
        node,
        node.users,
        lambda user: check_manifest(request, node, user, content, "bank"),
    )
    outflow = "items" if config.unlabeled.kind == "anonymised" else "votes"
    willing, refused = taking_part(request, node, "votes", outflow, content, strangers)

    def choose(user: User) -> np.ndarray:
        if config.unlabeled.kind == "anonymised":
            return marks(request.bank, offers(user))
        return user_vote(resident(config), request.bank, user, config)

    if request.summing:

        def vote(users: Sequence[User]) -> list[Rows]:
            return [{"votes": choose(user)} for user in users]

        names, rows, errors = secure.masked(request, node, willing, 1.0, vote)
        head = reply_head(request, node, names, errors | refused)
        return VoteReply(**head, votes=rows)
    done, errors = each_alone(node, willing, choose)
    shape = (len(done), len(request.bank))
    matrix = np.array(list(done.values()), np.float32).reshape(shape)
    head = reply_head(request, node, tuple(done), errors | refused)
    return VoteReply(**head, votes={"votes": matrix})


def _fingerprint(bank: Sequence[Item]) -> str:
    return fingerprint([Unlabeled(item) for item in bank])


def _offer(request: OfferRequest, node: Node) -> OfferReply:
    """Hand over scrubbed items whose like enough users have (kind `anonymised`)."""
    config, supported = node.config, frozenset(request.supported)
    refuse_if(
        config.unlabeled.kind != "anonymised",
        "items are only offered where unlabeled.kind is 'anonymised'.",
    )
    node.permit("items", config)

    content = _fingerprint(request.bank)

    def choose(user: User) -> tuple[Item, ...]:
        check_manifest(request, node, user, content, "bank")
        return tuple(supported_offers(request.bank, supported, user))

    done, errors = each_alone(node, node.users, choose)
    return OfferReply(**reply_head(request, node, tuple(done), errors), items=done)


def _share(request: ShareRequest, node: Node) -> ShareReply:
    """Hand over the raw history: simulation only (unlabeled.kind `others`)."""
    refuse_if(
        node.config.unlabeled.kind != "others",
        "raw text is only shared where unlabeled.kind is 'others'.",
    )
    node.permit("text", node.config)
    items = {
        user.id: tuple(replace(item, rivals=()) for item in user.history)
        for user in node.users
    }
    return ShareReply(**reply_head(request, node, tuple(items), {}), items=items)


def _personalise(request: PersonaliseRequest, node: Node) -> PersonaliseReply:
    """Train each user's own adapter and keep it here."""
    _check_method(request, node)
    node.permit("training", node.config)
    reference = reference_of(node.config, request.shared)
    content = fingerprint(request.unlabeled)
    willing, refused = each_alone(
        node, node.users, lambda user: check_set(request, node, user, content)
    )
    users = tuple(user for user in node.users if user.id in willing)
    if request.trial:
        return _tried(request, node, reference, users, refused)
    origin = _origin(request, node, reference, content)
    names = {user.id: state.adapter_name(request.method, user.id) for user in users}
    found = {
        user: state.load_adapter(node.store, name, user, origin)
        for user, name in names.items()
    }
    outcomes, errors = {user: one[1] for user, one in found.items() if one}, refused
    # A group that a crash cut in two is trained again as a whole: a smaller stack rounds
    # differently, and a resumed run must equal an unbroken one bit for bit.
    if len(outcomes) < len(names):
        trained, failed = _train(request, node, reference, users)
        outcomes = {
            user: state.save_adapter(node.store, names[user], one, origin)
            for user, one in trained.items()
        }
        errors = failed | refused
    if node.trained:
        for user in node.users:
            if user.id in outcomes:
                own = _stored(request, node, user, origin)
                node.trained(reference.adapter, own, request.method, origin)
    return _trained(request, node, outcomes, errors)


def _trained(
    request: PersonaliseRequest,
    node: Node,
    outcomes: Mapping[str, Outcome],
    errors: dict[str, str],
) -> PersonaliseReply:
    """Say who was trained, and how it went where that may be told."""
    hidden = Outcome(None, False, {})
    told = {
        user: replace(one, log=_finite(one.log)) if is_open(node) else hidden
        for user, one in outcomes.items()
    }
    return PersonaliseReply(
        **reply_head(request, node, tuple(told), errors), outcomes=told
    )


def _train(
    request: PersonaliseRequest, node: Node, reference: Reference, users: Sequence[User]
) -> tuple[dict[str, Personal], dict[str, str]]:
    """Train; return user -> what came of it, and user -> why nothing did."""
    unlabeled = handed_out(request, node, users)
    curves: dict[str, list[float]] = {}
    watched = _kept(node) and not request.trial

    def train(users: Sequence[User]) -> list[Personal]:
        rate, seen = request.learning_rate, list[list[float]]()
        # Reading losses waits for the device at every step: not where nobody keeps them.
        watch = UNWATCHED
        if watched:
            watch = Watch(step=lambda at, _of: seen.append(at.losses.tolist()))
        found = personalise(
            reference, users, unlabeled, request.method, rate, node.config, watch
        )
        if all(len(row) == len(users) for row in seen):
            curves.update(
                {user.id: [r[k] for r in seen] for k, user in enumerate(users)}
            )
        return found

    trained, errors = each(node, users, train)
    if watched:
        state.save_curves(node.store, request.method, curves)
    errors |= {user: one.error for user, one in trained.items() if one.lora is None}
    return {user: one for user, one in trained.items() if one.lora}, errors


def _finite(numbers: Mapping[str, float]) -> dict[str, float]:
    """Leave out what is not finite: a server refuses a reply with such a number in it."""
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _tried(
    request: PersonaliseRequest,
    node: Node,
    reference: Reference,
    users: Sequence[User],
    refused: dict[str, str],
) -> PersonaliseReply:
    """Train, measure, and keep nothing: what a learning rate is worth."""
    refuse_if(
        not is_open(node),
        "a learning rate is only tried in a simulation with clear metrics.",
        Refusal,
    )
    trained, errors = _train(request, node, reference, users)

    def measure(users: Sequence[User]) -> list[float]:
        adapters = [trained[user.id].lora for user in users]
        return evaluation.held_out_nll(reference, adapters, users, request.method)

    able = [user for user in users if user.id in trained]
    measured, unmeasured = each(node, able, measure)
    outcomes = {
        user: Outcome(one.alpha, one.estimated, {**one.log, "nll": measured[user]})
        for user, one in trained.items()
        if user in measured
    }
    return _trained(request, node, outcomes, errors | unmeasured | refused)


def _kept(node: Node) -> bool:
    """Whether losses and texts stay in the run's folder, by user, for its report.

    Not where privacy is on: there no file of a run says who took part.
    """
    return node.simulated and node.config.privacy.mode == "off"


def _evaluate(request: EvaluateRequest, node: Node) -> EvaluateReply:
    """Measure each user's held-out items; only numbers leave."""
    _check_method(request, node)
    config, reference = node.config, reference_of(node.config, request.shared)
    origin = _origin(request, node, reference, request.unlabeled_hash)
    content = _digest(origin, request.generate)
    willing, refused = taking_part(request, node, "metrics", "metrics", content)
    written: dict[str, list[str]] | None = {} if _kept(node) else None

    def measure(users: Sequence[User]) -> list[dict[str, float]]:
        trained = request.method not in UNTRAINED
        adapters = [
            _stored(request, node, user, origin) if trained else None for user in users
        ]
        return evaluation.evaluate(
            reference,
            adapters,
            users,
            request.method,
            config,
            request.generate,
            written,
        )

    names = released_metrics(task_of(config.task).kind, request.generate)
    if request.summing:

        def bounded(users: Sequence[User]) -> list[Rows]:
            return [{"sums": bounded_row(one, names)} for one in measure(users)]

        able, sums, errors = secure.masked(request, node, willing, 1.0, bounded)
        head = reply_head(request, node, able, errors | refused)
        return EvaluateReply(**head, metrics={}, sums=sums)
    done, errors = each(node, willing, measure)
    state.save_texts(node.store, request.method, willing, written or {})
    head = reply_head(request, node, tuple(done), errors | refused)
    if not is_noisy(config):
        whole = {
            u: values if values == _finite(values) else {} for u, values in done.items()
        }
        return EvaluateReply(**head, metrics=whole, sums={})
    rows = [bounded_row(values, names) for values in done.values()]
    matrix = np.array(rows, np.float32).reshape(len(done), len(names) + 1)
    return EvaluateReply(**head, metrics={}, sums={"sums": matrix})


def _check_method(request: PersonaliseRequest | EvaluateRequest, node: Node) -> None:
    """A method's name becomes a module and a path: only one of the run's is taken."""
    refuse_if(
        request.method not in node.config.method_list,
        f"the request names '{printable(request.method, 40)}', which is no method of this "
        "run's configuration.",
    )


def _origin(
    request: PersonaliseRequest | EvaluateRequest,
    node: Node,
    reference: Reference,
    unlabeled_hash: str,
) -> str:
    return state.identity(
        request.run,
        request.method,
        request.learning_rate,
        reference.hash,
        unlabeled_hash,
        node.config,
    )


def _stored(
    request: PersonaliseRequest | EvaluateRequest, node: Node, user: User, origin: str
) -> Lora:
    """Return the adapter that the request is about."""
    name = state.adapter_name(request.method, user.id)
    return required(
        state.load_adapter(node.store, name, user.id, origin),
        f"user '{user.id}' has no adapter of method '{request.method}' from this run: "
        "start a new run, what it left on the node was changed.",
    )[0]


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


# Type of Flower's message -> the request in it, and who answers it.
HANDLERS: dict[str, tuple[type[Request], Callable[[Any, Node], Reply]]] = {
    "query.hello": (HelloRequest, _hello),
    "train.adapt": (AdaptRequest, _adapt),
    "query.vote": (VoteRequest, _votes),
    "query.offer": (OfferRequest, _offer),
    "query.share": (ShareRequest, _share),
    "train.personalise": (PersonaliseRequest, _personalise),
    "evaluate": (EvaluateRequest, _evaluate),
    "query.confirm": (ConfirmRequest, secure.confirm),
    "query.open": (OpenRequest, secure.opened),
}


# --- from message to message -------------------------------------------------------------


def answer(message: Envelope, host: Host) -> RecordDict:
    """Read a request, do it, and answer; a request that cannot be done is a `Failure`."""
    started = time.monotonic()
    run, step = "", ""
    try:
        kind = message.metadata.message_type
        refuse_if(
            kind not in HANDLERS, f"'{kind:.80}' is not a request of idiolect.", Refusal
        )
        cls, work = HANDLERS[kind]
        sealed = read_sealed(cls, message.content)
        run, step = sealed.run, sealed.fields["step"]
        refuse_if(
            cls is not HelloRequest and not sealed.users,
            "the request names nobody whom it is for.",
            Refusal,
        )
        store = host.admit(sealed)
        agreement = sealed.seal.parts["config"]
        for user in () if cls is HelloRequest else sealed.users:
            state.check_agreed(store, user, agreement)
        came = brought(message.content, sealed.seal)
        kept = {
            name: data
            for name in set(sealed.seal.parts) - set(came)
            if (data := store.read(f"parts/{name}")) is not None
        }
        request = complete(sealed, came | kept)
        node = host.node(request, started)
        for name, data in came.items():  # in the place of what came before under it
            store.write(f"parts/{name}", data)
        node = replace(node, users=_fitting(node), agreement=agreement)
        return pack(work(request, node))
    except MissingParts as error:
        return pack(Missing(run, step, error.names))
    except Exception as error:
        return pack(Failure(run, step, sentence(error, host.simulated)))


def _fitting(node: Node) -> tuple[User, ...]:
    """The users of a request, without the items that do not fit into the context."""
    backbone = resident(node.config).backbone
    return tuple(fitting(backbone, user)[0] for user in node.users)
