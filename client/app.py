"""The ClientApp: one node, which hosts one user (a device) or many (a simulation).

Each handler reads a typed task, calls a pure function of `common.personal` on the users
it names, and answers with a typed reply. Tasks carry all they need and can be repeated:
nothing depends on what this process did before, except that the backbone and the data
stay resident. What goes wrong comes back as a sentence, never as a traceback.

Threads: PyTorch takes them from ``OMP_NUM_THREADS``, which Ray sets to the CPUs of the
actor (two by default), so nothing is set here.
"""

import hashlib
import logging
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import Context
from flwr.app import Message as Envelope
from flwr.clientapp import ClientApp

from ..common import personal
from ..common.adapters import Lora, hash_lora, zero_shared
from ..common.backbone import Backbone, load_backbone
from ..common.config import Config, LoraShape, parse
from ..common.errors import IdiolectError
from ..common.manifest import accept
from ..common.manifest import parse as parse_manifest
from ..common.protocol import (
    AdaptReply,
    AdaptTask,
    EvaluateReply,
    EvaluateTask,
    Failure,
    HelloReply,
    HelloTask,
    OfferReply,
    OfferTask,
    Outcome,
    PersonaliseReply,
    PersonaliseTask,
    Reply,
    Rows,
    Shapes,
    ShareReply,
    ShareTask,
    Task,
    VoteReply,
    VoteTask,
    pack,
    package_version,
    unpack,
)
from ..common.tasks.load import load_dataset, task_of
from ..common.tasks.metrics import bounded_row, released_metrics
from ..common.tasks.types import Dataset, Item, User
from ..common.unlabeled import Unlabeled, fingerprint
from . import state

LOG = logging.getLogger("flwr")
app = ClientApp()
Some = TypeVar("Some")
AnyTask = TypeVar("AnyTask", bound=Task)


@dataclass(frozen=True)
class Node:
    """Where a task is carried out.

    Attributes
    ----------
    config
        The run's configuration, as the task brought it.
    users
        The users of this node that the task is for.
    residents
        All users of this node, evaluated and development.
    partition, nodes
        Which simulated node this is, among how many.
    started
        When the task came in.
    """

    config: Config
    users: tuple[User, ...]
    residents: tuple[User, ...]
    partition: int
    nodes: int
    started: float


# --- handlers ------------------------------------------------------------------------


@app.query("hello")
def hello(message: Envelope, context: Context) -> Envelope:
    """Say who lives here, and what must agree with the server."""
    return answer(message, context, HelloTask, _hello)


def _hello(task: HelloTask, node: Node) -> HelloReply:
    backbone = _backbone(node.config)
    dataset = load_dataset(node.config)
    shared = _zero_shared(backbone, node.config.shared_shape, node.config.seed)
    truncated, errors = each(node.residents, lambda u: _truncated(backbone, u))
    _, unwilling = each(node.residents, lambda u: _pin(task, u))
    errors |= unwilling
    fitting = tuple(user.id for user in node.residents if user.id not in errors)
    trial = {user.id for user in dataset.development}
    return HelloReply(
        **_head(task, node, fitting, errors),
        package=package_version(),
        backbone=backbone.hash,
        shared=hash_lora(shared),
        development=tuple(name for name in fitting if name in trial),
        simulation=True,
        nodes=node.nodes,
        # Every simulated node sees the same data; one of them reports what is left out.
        dropped=dict(dataset.dropped) if node.partition == 0 else {},
        # Where metrics are a release with noise, no count leaves without it.
        truncated=0 if _noisy(node.config) else sum(truncated.values()),
    )


@app.train("adapt")
def adapt(message: Envelope, context: Context) -> Envelope:
    """Train the shared adapter on each user's history; answer one row per user."""
    return answer(message, context, AdaptTask, _adapt)


def _adapt(task: AdaptTask, node: Node) -> AdaptReply:
    backbone, config = _backbone(node.config), node.config
    shared = _shared(backbone, config, task.shared)
    content = _digest(task.round, task.clip, hash_lora(shared))
    willing, refused = _willing(task, node, "adapt", content)

    def update(users: Sequence[User]) -> list[Rows]:
        rows = personal.shared_update(
            backbone, shared, users, config, task.round, task.clip
        )
        arrays = {name: tensor.numpy() for name, tensor in rows.items()}
        return [{n: a[k] for n, a in arrays.items()} for k in range(len(users))]

    done, errors = each(willing, update)
    errors |= refused
    rows = {
        name: np.stack([row[name] for row in done.values()])
        if done
        else np.zeros((0, *tensor.shape), np.float32)
        for name, tensor in shared.b.items()
    }
    return AdaptReply(**_head(task, node, tuple(done), errors), rows=rows)


@app.query("vote")
def votes(message: Envelope, context: Context) -> Envelope:
    """Let each user vote for the bank's items that resemble the own text."""
    return answer(message, context, VoteTask, _votes)


def _votes(task: VoteTask, node: Node) -> VoteReply:
    config = node.config
    _, strangers = each(node.users, lambda users: _check_bank(task, users))
    content = fingerprint([Unlabeled(item) for item in task.bank])
    willing, refused = _willing(task, node, "votes", content, strangers)

    def choose(users: Sequence[User]) -> list[np.ndarray]:
        if config.unlabeled.kind == "anonymised":
            return [personal.offer_marks(task.bank, user, config) for user in users]
        backbone = _backbone(config)
        return [personal.user_vote(backbone, task.bank, u, config) for u in users]

    done, errors = each(willing, choose)
    shape = (len(done), len(task.bank))
    matrix = np.array(list(done.values()), np.float32).reshape(shape)
    head = _head(task, node, tuple(done), errors | refused)
    return VoteReply(**head, votes={"votes": matrix})


@app.query("offer")
def offer(message: Envelope, context: Context) -> Envelope:
    """Hand over scrubbed items whose like enough users have (kind `anonymised`)."""
    return answer(message, context, OfferTask, _offer)


def _offer(task: OfferTask, node: Node) -> OfferReply:
    config, supported = node.config, frozenset(task.supported)
    if config.unlabeled.kind != "anonymised":
        raise IdiolectError(
            "items are only offered where unlabeled.kind is 'anonymised'."
        )

    def choose(users: Sequence[User]) -> list[tuple[Item, ...]]:
        _check_bank(task, users)
        return [
            tuple(personal.supported_offers(task.bank, supported, user, config))
            for user in users
        ]

    done, errors = each(node.users, choose)
    return OfferReply(**_head(task, node, tuple(done), errors), items=done)


@app.query("share")
def share(message: Envelope, context: Context) -> Envelope:
    """Hand over the raw history: simulation only (unlabeled.kind `others`)."""
    return answer(message, context, ShareTask, _share)


def _share(task: ShareTask, node: Node) -> ShareReply:
    if node.config.unlabeled.kind != "others":
        raise IdiolectError("raw text is only shared where unlabeled.kind is 'others'.")
    items = {
        user.id: tuple(replace(item, rival=None) for item in user.history)
        for user in node.users
    }
    return ShareReply(**_head(task, node, tuple(items), {}), items=items)


@app.train("personalise")
def personalise(message: Envelope, context: Context) -> Envelope:
    """Train each user's own adapter and keep it here."""
    return answer(message, context, PersonaliseTask, _personalise)


def _personalise(task: PersonaliseTask, node: Node) -> PersonaliseReply:
    backbone, config = _backbone(node.config), node.config
    shared = _shared(backbone, config, task.shared)
    content = fingerprint(task.unlabeled)
    willing, refused = each(node.users, lambda users: _check_set(task, users, content))
    users = tuple(user for user in node.users if user.id in willing)
    origin = _origin(task, node, shared, content)
    paths = {user.id: _path(task, user) for user in users}
    known = state.recall_group(list(paths.values()), list(paths), origin)
    if known is not None:
        return _trained(task, node, known, refused)
    floor, voters = _handed_out(task, users)

    def train(users: Sequence[User]) -> list[personal.Personal]:
        return personal.personalise(
            backbone,
            shared,
            users,
            task.unlabeled,
            task.method,
            task.learning_rate,
            config,
            floor,
            voters,
        )

    trained, errors = each(users, train)
    errors |= {user: one.error for user, one in trained.items() if one.lora is None}
    outcomes = {
        user: Outcome(one.alpha, one.estimated, one.log)
        for user, one in trained.items()
        if one.lora is not None
    }
    for user in outcomes:
        state.store(paths[user], trained[user], origin)
    return _trained(task, node, outcomes, errors | refused)


def _trained(
    task: PersonaliseTask,
    node: Node,
    outcomes: dict[str, Outcome],
    errors: dict[str, str],
) -> PersonaliseReply:
    """Say who was trained, and how it went unless that is nobody's business."""
    if _noisy(node.config):
        outcomes = dict.fromkeys(outcomes, Outcome(None, False, {}))
    head = _head(task, node, tuple(outcomes), errors)
    return PersonaliseReply(**head, outcomes=outcomes)


def _handed_out(
    task: PersonaliseTask, users: Sequence[User]
) -> tuple[float, set[str] | None]:
    """Return the manifest's floor, and who of the users took part in its vote."""
    if not task.unlabeled:
        return 0.0, None
    manifest = parse_manifest(task.manifest)
    if not manifest.vote:
        return manifest.floor, None

    def voted(user: User) -> bool:
        """Both sides say so: a vote that came too late is not in the sum."""
        took = state.agreed(_agreed(task, user)).took.get("votes", {})
        return manifest.vote in took and user.id in task.voted

    return manifest.floor, {user.id for user in users if voted(user)}


@app.evaluate()
def evaluate(message: Envelope, context: Context) -> Envelope:
    """Measure each user's held-out items; only numbers leave."""
    return answer(message, context, EvaluateTask, _evaluate)


def _evaluate(task: EvaluateTask, node: Node) -> EvaluateReply:
    backbone, config = _backbone(node.config), node.config
    shared = _shared(backbone, config, task.shared)
    origin = _origin(task, node, shared, task.unlabeled_hash)
    content = _digest(origin, task.generate)
    willing, refused = _willing(task, node, "metrics", content)

    def measure(users: Sequence[User]) -> list[dict[str, float]]:
        adapters = [_stored(task, user, origin) for user in users]
        return personal.evaluate(
            backbone, shared, adapters, users, task.method, config, task.generate
        )

    done, errors = each(willing, measure)
    head = _head(task, node, tuple(done), errors | refused)
    if not _noisy(config):
        return EvaluateReply(**head, metrics=done, sums={})
    names = released_metrics(task_of(config.task).kind, task.generate)
    rows = [bounded_row(values, names) for values in done.values()]
    matrix = np.array(rows, np.float32).reshape(len(done), len(names) + 1)
    return EvaluateReply(**head, metrics={}, sums={"sums": matrix})


# --- what the handlers share ---------------------------------------------------------


def answer(
    message: Envelope,
    context: Context,
    cls: type[AnyTask],
    work: Callable[[AnyTask, Node], Reply],
) -> Envelope:
    """Read a task, do it, and answer; a task that cannot be done is a `Failure`."""
    started = time.monotonic()
    task: Task | None = None
    try:
        task = unpack(cls, message.content, _shapes)
        content = pack(work(task, _node(task, context, started)))
    except Exception as error:
        run, step = (task.run, task.step) if task else ("", "")
        content = pack(Failure(run, step, sentence(error)))
    return Envelope(content, reply_to=message)


def each(
    users: Sequence[User], work: Callable[[Sequence[User]], list[Some]]
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
            return {}, {users[0].id: sentence(error)}
    results: dict[str, Some] = {}
    errors: dict[str, str] = {}
    for user in users:
        done, failed = each([user], work)
        results |= done
        errors |= failed
    return results, errors


def _willing(
    task: AdaptTask | VoteTask | EvaluateTask,
    node: Node,
    stage: str,
    content: str,
    refused: dict[str, str] | None = None,
) -> tuple[tuple[User, ...], dict[str, str]]:
    """Count a release as taken part in; return who takes part, and why others do not."""
    unprotected = (stage == "metrics" and not _noisy(node.config)) or (
        stage == "votes" and node.config.unlabeled.kind == "anonymised"
    )
    private = node.config.privacy.mode == "central" and not unprotected
    if private and not task.release:
        raise IdiolectError(
            "the task names no release of the ledger, though privacy.mode is 'central': "
            "it is not answered."
        )

    def count(users: Sequence[User]) -> list[None]:
        return [
            state.take_part(_agreed(task, user), stage, task.release, content)
            for user in users
        ]

    asked = [user for user in node.users if user.id not in (refused or {})]
    taking, errors = each(asked, count)
    willing = tuple(user for user in asked if user.id in taking)
    return willing, errors | (refused or {})


def _pin(task: HelloTask, users: Sequence[User]) -> list[None]:
    most = int(task.config["privacy.participations"])
    return [state.pin(_agreed(task, user), task.key, most) for user in users]


def _check_bank(task: VoteTask | OfferTask, users: Sequence[User]) -> list[None]:
    content = fingerprint([Unlabeled(item) for item in task.bank])
    return _check_manifest(task, users, content, "bank")


def _check_set(
    task: PersonaliseTask, users: Sequence[User], content: str
) -> list[None]:
    kind = str(task.config["unlabeled.kind"])
    if not task.unlabeled and (kind == "self" or task.method == "oppu"):
        return [None] * len(users)  # nothing was handed out, and nothing is needed
    return _check_manifest(task, users, content, kind)


def _check_manifest(
    task: VoteTask | OfferTask | PersonaliseTask,
    users: Sequence[User],
    content: str,
    kind: str,
) -> list[None]:
    """Refuse what the run's key did not sign, or what is older than what was seen."""
    for user in users:
        path = _agreed(task, user)
        before = state.agreed(path)
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
            state.keep(path, replace(before, seen=seen))
    return [None] * len(users)


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _agreed(task: Task, user: User) -> Path:
    return state.agreed_path(Path(task.folder), user.id)


def _noisy(config: Config) -> bool:
    return config.privacy.metrics == "noisy"


def sentence(error: Exception) -> str:
    """One sentence for an error; what is a defect of ours is also logged in full."""
    if isinstance(error, IdiolectError):
        return str(error)
    LOG.warning("a task failed", exc_info=error)
    return f"{type(error).__name__}: {error}"[:500]


def _node(task: Task, context: Context, started: float) -> Node:
    """Find out who lives on this node, and whom of them the task is for."""
    config = parse(task.config)
    if "partition-id" not in context.node_config:
        raise IdiolectError(
            "this node is not simulated: on a device idiolect keeps the user's text in "
            "a vault, which this version does not have yet; use flwr run simulations/lamp."
        )
    partition = int(context.node_config["partition-id"])
    nodes = int(context.node_config["num-partitions"])
    residents = residents_of(
        load_dataset(config), config.users_per_node, partition, nodes
    )
    at_home = {user.id: user for user in residents}
    for name in task.users:
        if name not in at_home:
            raise IdiolectError(f"user '{name}' does not live on node {partition}.")
    users = tuple(at_home[name] for name in task.users)
    return Node(config, users, residents, partition, nodes, started)


def residents_of(
    dataset: Dataset, users_per_node: int, partition: int, nodes: int
) -> tuple[User, ...]:
    """Return the users of one simulated node.

    Dealt out like cards, so that the development users, who come last, do not all end up
    on one node while the others wait.

    Parameters
    ----------
    dataset
        Everybody: the evaluated users, then the development users.
    users_per_node
        How many a node hosts; 0 spreads them evenly.
    partition, nodes
        Which node, of how many.

    Raises
    ------
    IdiolectError
        The nodes together cannot host everybody.
    """
    everybody = dataset.users + dataset.development
    each_hosts = users_per_node or math.ceil(len(everybody) / nodes)
    if each_hosts * nodes < len(everybody):
        needed = math.ceil(len(everybody) / each_hosts)
        raise IdiolectError(
            f"{nodes} nodes with {each_hosts} users each cannot host {len(everybody)} "
            f"users: set users-per-node=0, or start {needed} simulated nodes "
            f'(--federation-config "num-supernodes={needed}").'
        )
    used = math.ceil(len(everybody) / each_hosts)
    return everybody[partition::used] if partition < used else ()


def _head(
    task: Task, node: Node, users: tuple[str, ...], errors: dict[str, str]
) -> dict[str, Any]:
    """Return the fields that every reply begins with."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "run": task.run,
        "step": task.step,
        "users": users,
        "errors": errors,
        "seconds": time.monotonic() - node.started,
        "process": f"{platform.node()}/{os.getpid()}",
        # Kilobytes on Linux, bytes on macOS.
        "peak_rss_mb": peak / (1 << 20 if sys.platform == "darwin" else 1 << 10),
    }


def _origin(
    task: PersonaliseTask | EvaluateTask, node: Node, shared: Lora, unlabeled_hash: str
) -> str:
    return state.identity(
        task.run,
        task.method,
        task.learning_rate,
        hash_lora(shared),
        unlabeled_hash,
        node.config,
    )


def _path(task: PersonaliseTask | EvaluateTask, user: User) -> Path:
    return state.adapter_path(
        Path(task.folder), task.method, task.learning_rate, task.trial, user.id
    )


def _stored(task: EvaluateTask, user: User, origin: str) -> Lora | None:
    """Return the adapter to measure; the methods that train nothing have none."""
    if task.method in ("base", "shared"):
        return None
    found = state.recall(_path(task, user), user.id, origin)
    if found is None:
        raise IdiolectError(
            f"user '{user.id}' has no adapter of method '{task.method}' from this run: "
            f"start the run anew, its folder {task.folder} was changed."
        )
    return found[0]


def _truncated(backbone: Backbone, users: Sequence[User]) -> list[int]:
    """Count, per user, the items whose prompt does not fit into the context."""
    return [
        sum(item.truncated for item in personal.encode_all(backbone, items))
        for items in (user.history + user.held_out for user in users)
    ]


def _shapes(fields: dict[str, Any]) -> Shapes:
    """Shapes of the shared adapter's B that a task with these fields must bring."""
    if "round" not in fields and "method" not in fields:
        return {}
    config = parse(fields["config"])
    zero = _zero_shared(_backbone(config), config.shared_shape, config.seed)
    return {name: tuple(tensor.shape) for name, tensor in zero.b.items()}


def _shared(backbone: Backbone, config: Config, rows: Rows) -> Lora:
    """Return the shared adapter: our own fixed A and the B that came with the task."""
    zero = _zero_shared(backbone, config.shared_shape, config.seed)
    b = {name: torch.from_numpy(array.copy()) for name, array in rows.items()}
    return Lora(zero.a, {n: t.to(backbone.device) for n, t in b.items()}, zero.scaling)


@lru_cache(maxsize=1)
def _zero_shared(backbone: Backbone, shape: LoraShape, seed: int) -> Lora:
    return zero_shared(backbone, shape, seed)


def _backbone(config: Config) -> Backbone:
    return load_backbone(
        config.backbone, config.dtype, config.device, config.max_length
    )
