"""The ClientApp: one node, which hosts one user (a device) or many (a simulation).

Each handler reads a typed task, calls a pure function of `common.personal` on the users
it names, and answers with a typed reply. Tasks carry all they need and can be repeated:
nothing depends on what this process did before, except that the backbone and the data
stay resident. What goes wrong comes back as a sentence, never as a traceback.

Threads: PyTorch takes them from ``OMP_NUM_THREADS``, which Ray sets to the CPUs of the
actor (two by default), so nothing is set here.
"""

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
from ..common.protocol import (
    AdaptReply,
    AdaptTask,
    EvaluateReply,
    EvaluateTask,
    Failure,
    HelloReply,
    HelloTask,
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
from ..common.tasks.load import load_dataset
from ..common.tasks.types import Dataset, User
from ..common.unlabeled import fingerprint, vote
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
    shared = _zero_shared(backbone, node.config.lora, node.config.seed)
    truncated, errors = each(node.residents, lambda u: _truncated(backbone, u))
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
        truncated=sum(truncated.values()),
    )


@app.train("adapt")
def adapt(message: Envelope, context: Context) -> Envelope:
    """Train the shared adapter on each user's history; answer one row per user."""
    return answer(message, context, AdaptTask, _adapt)


def _adapt(task: AdaptTask, node: Node) -> AdaptReply:
    backbone = _backbone(node.config)
    shared = _shared(backbone, node.config, task.shared)

    def update(users: Sequence[User]) -> list[Rows]:
        rows = personal.shared_update(backbone, shared, users, node.config, task.round)
        arrays = {name: tensor.numpy() for name, tensor in rows.items()}
        return [{n: a[k] for n, a in arrays.items()} for k in range(len(users))]

    done, errors = each(node.users, update)
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
    nearest = node.config.unlabeled.nearest
    done, errors = each(
        node.users, lambda users: [vote(task.bank, u.history, nearest) for u in users]
    )
    shape = (len(done), len(task.bank))
    matrix = np.array(list(done.values()), np.float32).reshape(shape)
    head = _head(task, node, tuple(done), errors)
    return VoteReply(**head, votes={"votes": matrix})


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
    origin = _origin(task, node, shared, fingerprint(task.unlabeled))
    paths = {user.id: _path(task, user) for user in node.users}
    known = state.recall_group(list(paths.values()), list(paths), origin)
    if known is not None:
        return PersonaliseReply(**_head(task, node, tuple(known), {}), outcomes=known)

    def train(users: Sequence[User]) -> list[personal.Personal]:
        return personal.personalise(
            backbone,
            shared,
            users,
            task.unlabeled,
            task.method,
            task.learning_rate,
            config,
        )

    trained, errors = each(node.users, train)
    errors |= {user: one.error for user, one in trained.items() if one.lora is None}
    outcomes = {
        user: Outcome(one.alpha, one.estimated, one.log)
        for user, one in trained.items()
        if one.lora is not None
    }
    for user in outcomes:
        state.store(paths[user], trained[user], origin)
    return PersonaliseReply(
        **_head(task, node, tuple(outcomes), errors), outcomes=outcomes
    )


@app.evaluate()
def evaluate(message: Envelope, context: Context) -> Envelope:
    """Measure each user's held-out items; only numbers leave."""
    return answer(message, context, EvaluateTask, _evaluate)


def _evaluate(task: EvaluateTask, node: Node) -> EvaluateReply:
    backbone, config = _backbone(node.config), node.config
    shared = _shared(backbone, config, task.shared)
    origin = _origin(task, node, shared, task.unlabeled_hash)

    def measure(users: Sequence[User]) -> list[dict[str, float]]:
        adapters = [_stored(task, user, origin) for user in users]
        return personal.evaluate(
            backbone, shared, adapters, users, task.method, config, task.generate
        )

    done, errors = each(node.users, measure)
    return EvaluateReply(**_head(task, node, tuple(done), errors), metrics=done)


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
    zero = _zero_shared(_backbone(config), config.lora, config.seed)
    return {name: tuple(tensor.shape) for name, tensor in zero.b.items()}


def _shared(backbone: Backbone, config: Config, rows: Rows) -> Lora:
    """Return the shared adapter: our own fixed A and the B that came with the task."""
    zero = _zero_shared(backbone, config.lora, config.seed)
    b = {name: torch.from_numpy(array.copy()) for name, array in rows.items()}
    return Lora(zero.a, {n: t.to(backbone.device) for n, t in b.items()}, zero.scaling)


@lru_cache(maxsize=1)
def _zero_shared(backbone: Backbone, shape: LoraShape, seed: int) -> Lora:
    return zero_shared(backbone, shape, seed)


def _backbone(config: Config) -> Backbone:
    return load_backbone(
        config.backbone, config.dtype, config.device, config.max_length
    )
