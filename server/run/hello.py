"""Phase hello: find out who is there, and that both sides agree on what must be equal."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from flwr.app import RecordDict

from ...common.config import Config
from ...common.data.types import User
from ...common.engine.adapters import hash_lora, zero_shared
from ...common.engine.backbone import Backbone
from ...common.engine.model_folder import check_folder, differing, locate
from ...common.engine.model_folder import identity as backbone_identity
from ...common.errors import IdiolectError
from ...common.protocol.manifest import public_key
from ...common.protocol.messages import (
    HelloReply,
    HelloRequest,
    Request,
    Shapes,
    device_user,
    package_version,
)
from ...common.protocol.packing import unpack
from ...common.text import printable
from .exchange import Exchange, ask, meet, online, report, require
from .live import LiveRun

EXCHANGE = Exchange("hello", "", "query.hello", 0.0)
# What `model_folder.identity` is made of, as an operator knows it.
PARTS = {
    "weights": "weights",
    "config": "config.json",
    "tokenizer": "tokenizer",
    "template": "chat template",
    "generation": "generation_config.json",
}


@dataclass(frozen=True)
class Identity:
    """What a node must have in common with the server.

    Attributes
    ----------
    package
        Version of idiolect.
    backbone, shared
        What decides the backbone's scores, part by part, and the hash of the shared
        adapter before round 1.
    shapes
        Of the shared adapter's B.
    """

    package: str
    backbone: str
    shared: str
    shapes: Shapes


class _Weightless(Backbone):
    """A backbone whose modules have shapes but no weights."""

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")  # of what is computed beside it


def identity(config: Config) -> Identity:
    """Compute the server's side of the comparison, without loading the backbone.

    The server never runs the model, so it should not need the model's memory.

    Raises
    ------
    IdiolectError
        There is no such backbone, or it cannot be used (`model_folder.check_folder`).
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = locate(config.backbone)
    check_folder(config.backbone, folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    digest = backbone_identity(folder)
    backbone = _Weightless(
        config.backbone, model, None, digest, config.engine.max_length
    )
    zero = zero_shared(backbone, config.shared_shape, config.seed)
    shapes = {name: tuple(tensor.shape) for name, tensor in zero.b.items()}
    return Identity(package_version(), digest, hash_lora(zero), shapes)


@dataclass
class HelloSummary:
    """What the nodes said of their data.

    Attributes
    ----------
    dropped
        Reason -> users left out of the data.
    truncated
        Items whose prompt was shortened.
    """

    dropped: dict[str, int]
    truncated: int = 0


def hello(run: LiveRun, ours: Identity) -> HelloSummary:
    """Greet every node, refuse those that do not match, and find out who lives where.

    Raises
    ------
    IdiolectError
        Too few users can be reached, or a user's text does not fit the backbone; the
        sentence names the first reason.
    """
    if run.config.on_devices:
        _meet_devices(run, ours)
        return HelloSummary({})
    found = HelloSummary({})
    _check_everybody(run, found, _greet_simulated(run, ours, found))
    return found


def _greetings(run: LiveRun, nodes: Sequence[int]) -> list[tuple[int, Request]]:
    key = public_key(run.signing_key)
    return [(n, HelloRequest(**run.head(f"hello/{n}", ()), key=key)) for n in nodes]


def _read(record: RecordDict) -> HelloReply:
    return unpack(HelloReply, record)


def _greet_simulated(
    run: LiveRun, ours: Identity, found: HelloSummary
) -> dict[str, str]:
    """Greet every simulated node; return what is wrong, by user."""
    errors: dict[str, str] = {}
    greeted: set[int] = set()
    # They come into being while the server already runs: the first that answers says how
    # many there will be.
    expected = 1
    ends = time.monotonic() + run.config.deadline
    while len(greeted) < expected and time.monotonic() < ends:
        fresh = sorted(online(run) - greeted)
        greeted |= set(fresh)
        answers = ask(run, EXCHANGE, _greetings(run, fresh), _read)
        errors |= answers.errors
        for reply in answers.replies:
            expected = max(expected, reply.nodes)
            errors |= _welcome(run, _node_of(reply), reply, ours, found)
        if not fresh:
            time.sleep(0.1)
    return errors


@dataclass
class Waiting:
    """Tells those who watch the run whom it waits for: once for each change.

    Attributes
    ----------
    run
        Its `nodes` are those that joined.
    until
        Unix time at which it stops waiting.
    said
        What was told last.
    """

    run: LiveRun
    until: float
    said: tuple[int, int, int] = (-1, 0, 0)

    def look(self, asked: int, refused: Mapping[str, str]) -> None:
        """Write an event if there is news.

        Parameters
        ----------
        asked
            Devices that were greeted.
        refused
            Device -> why it does not take part, in the order they said so.
        """
        joined = len(self.run.nodes)
        if self.said == (now := (joined, asked, len(refused))):
            return
        self.said = now
        last = [*refused.values()][-1] if refused else ""
        why = self.run.nameless(printable(last, 200))
        self.run.journal.write(
            {
                "event": "waiting",
                "phase": "hello",
                "joined": joined,
                "of": self.run.config.users,
                "asked": asked,
                "refused": len(refused),
                "why": why,
                "until": self.until,
            }
        )


def _meet_devices(run: LiveRun, ours: Identity) -> None:
    """Greet devices as they come, until the run has its users or the deadline has passed.

    Each is greeted once, whatever it answers; one that is silent is asked again (`ask`).
    """
    greeted: set[int] = set()
    errors: dict[str, str] = {}
    resumed = bool(run.state.devices)

    def newcomers() -> list[tuple[int, Request]]:
        fresh = sorted(online(run) - greeted)
        greeted.update(fresh)
        return _greetings(run, fresh)

    def welcome(reply: HelloReply) -> HelloReply:
        errors.update(_welcome(run, _node_of(reply), reply, ours, HelloSummary({})))
        return reply

    def enough() -> bool:
        return len(run.nodes) >= run.config.users

    waiting = Waiting(run, time.time() + run.config.deadline)

    def heard(failed: Mapping[str, str]) -> None:
        waiting.look(len(greeted), errors | dict(failed))

    waiting.look(0, {})
    failed = meet(run, EXCHANGE, newcomers, _read, welcome, enough, heard)
    errors |= {device_user(_asked(step)): why for step, why in failed.items()}
    if not resumed:  # in the order of their numbers, however they came
        run.state.devices.sort(key=lambda name: (len(name), name))
    stubs = tuple(User(name, (), ()) for name in run.state.devices)
    run.dataset = replace(run.dataset, users=stubs)
    run.save()
    require(run, EXCHANGE, len(run.nodes), run.config.users, errors or _silence(run))
    report(run, EXCHANGE, {u: e for u, e in errors.items() if u not in run.nodes})


def _node_of(reply: HelloReply) -> int:
    """Which node a reply came from: it repeats the step that it was asked in."""
    return _asked(reply.step)


def _asked(step: str) -> int:
    """Which node is greeted in this step (`_greetings`)."""
    return int(step.rpartition("/")[2])


def _silence(run: LiveRun) -> dict[str, str]:
    return {"": f"no node answered within {run.config.deadline:g} s."}


def _welcome(
    run: LiveRun, node: int, reply: HelloReply, ours: Identity, found: HelloSummary
) -> dict[str, str]:
    """Take a node's users in, or return why not."""
    problem = mismatch(reply, ours, run.config)
    if problem:
        run.warn(f"hello: node {node} is refused: {problem}")
        if run.config.on_devices:  # what a stranger calls itself is not a name of ours
            return {device_user(node): problem}
        return dict.fromkeys([*reply.users, *reply.errors] or [f"node {node}"], problem)
    if run.config.on_devices:
        return _enlist(run, node, reply)
    known = {u.id for u in (*run.dataset.users, *run.dataset.development)}
    for user in reply.users:
        if user in known and user not in run.nodes:
            run.nodes[user] = node
    found.truncated += reply.truncated
    for reason, count in reply.dropped.items():
        found.dropped[reason] = found.dropped.get(reason, 0) + count
    return dict(reply.errors)


def _enlist(run: LiveRun, node: int, reply: HelloReply) -> dict[str, str]:
    """Take a device into the run, or return why not.

    The first that come, as many as ``users``, are the users of the run: it was calibrated
    for that many, and a device that joins later would be one more.
    """
    name, devices = device_user(node), run.state.devices
    if reply.users != (name,):
        return {name: reply.errors.get(name, "it answered for somebody else.")}
    if name not in devices and len(devices) >= run.config.users:
        return {name: f"the run has its {run.config.users} devices already."}
    if name not in devices:
        devices.append(name)
    run.nodes[name] = node
    return {}


def mismatch(reply: HelloReply, ours: Identity, config: Config) -> str:
    """Return why a node cannot take part, in one sentence, or nothing."""
    if reply.package != ours.package:
        return (
            f"it runs idiolect {printable(reply.package, 40)}, the server {ours.package}: "
            "install the same version on both."
        )
    if odd := differing(reply.backbone, ours.backbone):
        parts = " and ".join(PARTS[name] for name in odd if name in PARTS) or "files"
        return (
            f"its {parts} of backbone '{config.backbone}' differ from the server's: fetch "
            "the same revision on both."
        )
    if reply.shared != ours.shared:
        return (
            "its shared adapter does not begin with the server's numbers, though package "
            "and backbone are the same: report this as a bug."
        )
    if reply.simulation == config.on_devices:
        kind = "simulated" if reply.simulation else "a device"
        return (
            f"it is {kind}, and the run's task is '{config.task}': task=text is for "
            "devices, every other task for a simulation."
        )
    return ""


def _check_everybody(run: LiveRun, found: HelloSummary, errors: dict[str, str]) -> None:
    """Account for everyone the data hold: reached, left out, or a reason to stop."""
    if errors and not run.nodes:
        raise IdiolectError(run.nameless(next(iter(errors.values()))))
    everybody = [u.id for u in (*run.dataset.users, *run.dataset.development)]
    unfit = [user for user in everybody if user not in run.nodes and user in errors]
    if unfit and len(unfit) + len(run.nodes) == len(everybody):
        if not run.config.skip_bad_users:
            raise IdiolectError(run.nameless(errors[unfit[0]]))
        reason = "does not fit the context"
        found.dropped[reason] = found.dropped.get(reason, 0) + len(unfit)
    first = errors or _silence(run)
    for asked, got in (
        (run.dataset.users, run.cohort.users),
        (run.dataset.development, run.cohort.development),
    ):
        if asked:
            require(run, EXCHANGE, len(got), len(asked), first)
    unreachable = next(iter(errors.values()), "its node did not answer.")
    gone = {user: unreachable for user in everybody if user not in run.nodes}
    report(run, EXCHANGE, gone | {user: errors[user] for user in unfit})
