"""Phase hello: find out who is there, and that both sides agree on what must be equal."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from flwr.app import RecordDict

from ...common.config import Config
from ...common.data.types import User, names_of
from ...common.engine import model_folder
from ...common.engine.adapters import hash_lora, zero_shared
from ...common.engine.backbone import Backbone
from ...common.errors import IdiolectError, refuse_if
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
from .exchange import Asking, Exchange, ask, grace, online, report, require
from .inbox import limits
from .live import LiveRun
from .masked import register

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
    """What a node must have in common with the server, beside the version of idiolect.

    Attributes
    ----------
    backbone, shared
        What decides the backbone's scores, part by part, and the hash of the shared
        adapter before round 1.
    shapes
        Of the shared adapter's B.
    """

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

    folder = model_folder.locate(config.backbone)
    model_folder.check_folder(config.backbone, folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    digest = model_folder.identity(folder)
    backbone = _Weightless(
        config.backbone, model, None, digest, config.engine.max_length, torch.float32
    )
    zero = zero_shared(backbone, config.shared_shape, config.seed)
    shapes = {name: tuple(tensor.shape) for name, tensor in zero.b.items()}
    return Identity(digest, hash_lora(zero), shapes)


def hello(run: LiveRun, ours: Identity) -> tuple[dict[str, int], int]:
    """Greet every node, refuse those that do not match, and find out who lives where.

    Returns
    -------
    tuple
        Reason -> users left out of the data, and the number of items whose prompt was
        shortened; of devices neither is known.

    Raises
    ------
    IdiolectError
        Too few users can be reached, or a user's text does not fit the backbone; the
        sentence names the first reason.
    """
    if run.config.on_devices:
        _meet_devices(run, ours)
        return {}, 0
    errors, dropped, truncated = _greet_simulated(run, ours)
    _check_everybody(run, dropped, errors)
    if run.state.members:  # their signatures are not made again
        run.save()
    return dropped, truncated


def _newcomers(run: LiveRun, greeted: set[int]) -> list[tuple[int, Request]]:
    """Greetings for the nodes that have come since, which are then among the greeted."""
    fresh = sorted(online(run) - greeted)
    greeted.update(fresh)
    key = public_key(run.signing_key)
    return [(n, HelloRequest(**run.head(f"hello/{n}", ()), key=key)) for n in fresh]


def _greeted(step: str) -> int:
    """Which node is greeted in this step (`_newcomers`); its reply repeats the step."""
    return int(step.rpartition("/")[2])


def _read(record: RecordDict) -> HelloReply:
    return unpack(HelloReply, record)


def _greet_simulated(
    run: LiveRun, ours: Identity
) -> tuple[dict[str, str], Counter[str], int]:
    """Greet every simulated node; return what is wrong, by user, and as `hello` does."""
    errors: dict[str, str] = {}
    dropped, truncated = Counter[str](), 0
    known = {*names_of(run.dataset.everybody)}
    greeted: set[int] = set()
    # They come into being while the server already runs: the first that answers says how
    # many there will be.
    expected = 1
    ends = time.monotonic() + run.config.deadline
    while len(greeted) < expected and time.monotonic() < ends:
        greetings = _newcomers(run, greeted)
        replies, failed = ask(run, EXCHANGE, greetings, _read)
        errors |= failed
        for reply in replies:
            expected = max(expected, reply.nodes)
            node = _greeted(reply.step)
            if problem := _refused(run, node, reply, ours):
                named = [*reply.users, *reply.errors] or [f"node {node}"]
                errors |= dict.fromkeys(named, problem)
                continue
            unkeyed = register(run, reply)
            errors |= unkeyed
            for user in reply.users:
                if user in known and user not in unkeyed:
                    run.nodes.setdefault(user, node)
            truncated += reply.truncated
            dropped.update(reply.dropped)
            errors |= reply.errors
        if not greetings:
            time.sleep(0.1)
    return errors, dropped, truncated


def _meet_devices(run: LiveRun, ours: Identity) -> None:
    """Let devices join the run, which goes on if they are enough."""
    resumed = bool(run.state.devices)
    errors = meet(run, ours)
    if not resumed:  # in the order of their numbers, however they came
        run.state.devices.sort(key=lambda name: (len(name), name))
    users = tuple(User(name, (), ()) for name in run.state.devices)
    run.dataset = replace(run.dataset, users=users)
    run.save()
    require(run, EXCHANGE, len(run.nodes), run.config.users, errors or _silence(run))
    report(run, EXCHANGE, {u: e for u, e in errors.items() if u not in run.nodes})


def meet(run: LiveRun, ours: Identity) -> dict[str, str]:
    """Greet devices as they come, until the run has its users or the deadline has passed.

    Each is greeted once, whatever it answers. One that is silent is asked again, and holds
    up nobody who comes after it. Once enough have joined, the others are waited for as a
    slow device is (`grace`). Where devices refuse, others have `SETTLE_SECONDS` to take
    their place.

    Returns
    -------
    dict
        Device -> sentence, of those that do not take part.
    """
    refused: dict[str, str] = {}

    def welcome(reply: HelloReply) -> HelloReply:
        node = _greeted(reply.step)
        if problem := _refused(run, node, reply, ours) or _enlist(run, node, reply):
            refused[device_user(node)] = problem
        return reply

    def errors() -> dict[str, str]:
        failed = asking.errors.items()
        return refused | {device_user(_greeted(step)): why for step, why in failed}

    asking = Asking(run, EXCHANGE, _read, welcome, limits({}, 0))
    until, needed = time.time() + run.config.deadline, run.config.users
    greeted: set[int] = set()
    told = tell_waiting(run, (), 0, {}, until)
    while time.monotonic() < asking.ends:
        patient = asking.left and time.monotonic() <= grace(asking.starts, asking.last)
        if (len(run.nodes) >= needed and not patient) or asking.settled(needed):
            break
        asking.add(_newcomers(run, greeted))
        asking.look()
        told = tell_waiting(run, told, len(greeted), errors(), until)
    if len(run.nodes) < needed:
        asking.give_up()
    asking.count_seconds()
    return errors()


def tell_waiting(
    run: LiveRun,
    told: tuple[int, ...],
    asked: int,
    refused: Mapping[str, str],
    until: float,
) -> tuple[int, ...]:
    """Write an event if there is news of whom the run waits for.

    Parameters
    ----------
    run
        Its `nodes` are those that joined.
    told
        What was returned last.
    asked
        Devices that were greeted.
    refused
        Device -> why it does not take part, in the order they said so.
    until
        Unix time at which the run stops waiting.
    """
    news = (len(run.nodes), asked, len(refused))
    if news != told:
        last = printable([*refused.values()][-1], 200) if refused else ""
        run.journal.write(
            {
                "event": "waiting",
                "phase": "hello",
                "joined": news[0],
                "of": run.config.users,
                "asked": asked,
                "refused": len(refused),
                "why": run.nameless(last),
                "until": until,
            }
        )
    return news


def _silence(run: LiveRun) -> dict[str, str]:
    return {"": f"no node answered within {run.config.deadline:g} s."}


def _refused(run: LiveRun, node: int, reply: HelloReply, ours: Identity) -> str:
    """Warn of a node that cannot take part; return why, or nothing."""
    problem = mismatch(reply, ours, run.config)
    if problem:
        run.warn(f"hello: node {node} is refused: {problem}")
    return problem


def _enlist(run: LiveRun, node: int, reply: HelloReply) -> str:
    """Take a device into the run, or return why not.

    The first that come, as many as ``users``, are the users of the run: it was calibrated
    for that many, and a device that joins later would be one more.
    """
    name, devices = device_user(node), run.state.devices
    if reply.users != (name,):
        return reply.errors.get(name, "it answered for somebody else.")
    if name not in devices and len(devices) >= run.config.users:
        return f"the run has its {run.config.users} devices already."
    run.nodes[name] = node
    if problem := register(run, reply).get(name):
        del run.nodes[name]
        return problem
    if name not in devices:
        devices.append(name)
    return ""


def mismatch(reply: HelloReply, ours: Identity, config: Config) -> str:
    """Return why a node cannot take part, in one sentence, or nothing."""
    odd = model_folder.differing(reply.backbone, ours.backbone)
    parts = " and ".join(PARTS[name] for name in odd if name in PARTS) or "files"
    kind = "simulated" if reply.simulation else "a device"
    reasons = (
        (
            reply.package != package_version(),
            (
                f"it runs idiolect {printable(reply.package, 40)}, the server "
                f"{package_version()}: install the same version on both."
            ),
        ),
        (
            odd,
            (
                f"its {parts} of backbone '{config.backbone}' differ from the server's: "
                "fetch the same revision on both."
            ),
        ),
        (
            reply.shared != ours.shared,
            (
                "its shared adapter does not begin with the server's numbers, though "
                "package and backbone are the same: report this as a bug."
            ),
        ),
        (
            reply.simulation == config.on_devices,
            (
                f"it is {kind}, and the run's task is '{config.task}': task=text is for "
                "devices, every other task for a simulation."
            ),
        ),
    )
    return next((reason for differs, reason in reasons if differs), "")


def _check_everybody(
    run: LiveRun, dropped: Counter[str], errors: Mapping[str, str]
) -> None:
    """Account for everyone the data hold: reached, left out, or a reason to stop."""
    if errors and not run.nodes:
        raise IdiolectError(run.nameless(next(iter(errors.values()))))
    everybody = names_of(run.dataset.everybody)
    unfit = [user for user in everybody if user not in run.nodes and user in errors]
    if unfit and len(unfit) + len(run.nodes) == len(everybody):
        refuse_if(not run.config.skip_bad_users, run.nameless(errors[unfit[0]]))
        dropped["does not fit the context"] += len(unfit)
    for asked, got in (
        (run.dataset.users, run.cohort.users),
        (run.dataset.development, run.cohort.development),
    ):
        if asked:
            require(run, EXCHANGE, len(got), len(asked), errors or _silence(run))
    unreachable = next(iter(errors.values()), "its node did not answer.")
    gone = {user: unreachable for user in everybody if user not in run.nodes}
    report(run, EXCHANGE, gone | {user: errors[user] for user in unfit})
