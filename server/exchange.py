"""Asking the nodes: send tasks, collect replies until the deadline, count the cost.

Flower's own ``send_and_receive`` waits three seconds between looks and says nothing
until it ends. Here each reply is checked as it comes in; one that is an error, is
malformed, stale, or does not come, costs the users it was about and nobody else. Whether
enough users are left to go on is the phase's decision (`require`).
"""

import json
import logging
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from ..common.config import Config, flatten
from ..common.errors import IdiolectError
from ..common.manifest import read_or_make_key
from ..common.privacy.ledger import Ledger
from ..common.protocol import (
    Reply,
    Rows,
    Shapes,
    Task,
    check_step,
    check_users,
    pack,
    printable,
    size,
)
from ..common.tasks.types import Dataset
from ..common.wire import encode
from .checkpoint import State, save
from .inbox import Inbox, error_of, limits

LOG = logging.getLogger("flwr")
SHORTEST_WAIT, LONGEST_WAIT = 0.05, 0.5  # seconds between two looks for replies
SIGNING_KEY = "IDIOLECT_SIGNING_KEY"  # path of the one key of a server of devices
# How often a device is asked: again at once (or nearly) where it is known to have died,
# else after an equal share of the deadline, since a task or its answer may have got lost
# with a process between. What it did already it does not do twice.
TRIES, RETRY_SECONDS = 4, 15.0
# How long a step goes on for devices alone that let the deadline of an earlier step pass:
# as a share of the time that the others took, and at least. So one device costs a run a
# deadline once, and not in every step; it still counts where it is as quick as the others.
SLOW_SHARE, SLOW_SECONDS = 0.1, 0.5
AnyReply = TypeVar("AnyReply", bound=Reply)


class Journal:
    """``metrics.jsonl``: what happened, one JSON object per line, only ever appended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            self._append("\n")  # the last life was killed in the middle of a line

    def write(self, event: Mapping[str, Any]) -> None:
        """Append one event."""
        self._append(json.dumps(event) + "\n")

    def _append(self, text: str) -> None:
        with self.path.open("a") as stream:
            stream.write(text)


@dataclass
class Run:
    """What every phase needs.

    Attributes
    ----------
    config, folder, grid, journal, state
        The run's configuration, folder, Flower's grid, event log, and checkpoint.
    dataset
        Only its public text and the users' names are used here.
    ledger
        Of everything that is released; charged before the tasks of a release are sent.
    nodes
        User -> node, for everyone who can be reached.
    total, done
        Work of the whole run, and what is done of it, in user-epochs, roughly.
    processes
        Process -> its peak memory, of all that answered.
    slow
        Devices that let a deadline pass in this life of the run.
    began
        When this life of the run began, less the seconds of its earlier lives.
    """

    config: Config
    folder: Path
    grid: Grid
    journal: Journal
    state: State
    dataset: Dataset
    ledger: Ledger
    nodes: dict[str, int] = field(default_factory=dict)
    total: float = 1.0
    done: float = 0.0
    processes: dict[str, float] = field(default_factory=dict)
    slow: set[int] = field(default_factory=set)
    began: float = field(default_factory=time.monotonic)

    @property
    def population(self) -> tuple[int, int]:
        """Evaluated and development users of the run, reached or not."""
        return population(self.config, self.dataset)

    @property
    def users(self) -> tuple[str, ...]:
        """The evaluated users that can be reached, in the order of the data."""
        return tuple(u.id for u in self.dataset.users if u.id in self.nodes)

    @property
    def development(self) -> tuple[str, ...]:
        """The development users that can be reached."""
        return tuple(u.id for u in self.dataset.development if u.id in self.nodes)

    @property
    def shapes(self) -> Shapes:
        """Shapes of the shared adapter's B."""
        return {name: array.shape for name, array in self.state.shared.items()}

    @property
    def shared_to_send(self) -> Rows:
        """The shared adapter's B as tasks carry it."""
        shared = self.state.shared
        return encode(shared) if self.config.signed_bytes else shared

    @property
    def signing_key(self) -> bytes:
        """Key of the run's manifests, made at its first use; it never leaves here.

        A server of devices has one for all its runs, which their owners pinned.
        """
        own = self.folder / "checkpoint" / "signing.key"
        return read_or_make_key(Path(os.environ.get(SIGNING_KEY) or own))

    @cached_property
    def inbox(self) -> Inbox:
        """Where the replies come in."""
        return Inbox(self.grid)

    def head(self, step: str, users: Sequence[str]) -> dict[str, Any]:
        """Return the fields that every task begins with."""
        settings, folder = flatten(self.config), str(self.folder)
        if self.config.on_devices:  # paths of this machine are nobody else's business
            settings |= {"output-dir": "", "unlabeled.file": "", "backbone": "tiny"}
            folder = ""
        return {
            "run": self.folder.name,
            "step": step,
            "config": settings,
            "folder": folder,
            "users": tuple(users),
        }

    def save(self) -> None:
        """Write the checkpoint."""
        save(self.folder, self.state)

    def took_part(self, stage: str, users: Sequence[str]) -> None:
        """Count, for the privacy card, who took part in a release of a stage."""
        counts = self.state.took_part.setdefault(stage, {})
        for user in users:
            counts[user] = counts.get(user, 0) + 1
        most = max(counts.values(), default=0)
        self.ledger.observed_participations[stage] = most
        self.ledger.save()

    def warn(self, message: str) -> None:
        """Tell the reader of the log and of the journal."""
        LOG.warning(message)
        self.journal.write({"event": "warning", "message": message})


def population(config: Config, dataset: Dataset) -> tuple[int, int]:
    """Evaluated and development users, by what is known before anybody is reached."""
    if config.on_devices:
        return config.users, 0
    return len(dataset.users), len(dataset.development)


@dataclass(frozen=True)
class Step:
    """One exchange of a phase, as progress is reported.

    Attributes
    ----------
    phase, label
        For example ``personalise``, ``c-bpo lr 0.003``.
    kind
        Flower's message type, for example ``train.personalise``.
    weight
        Work per user, in the unit of `Run.total`.
    """

    phase: str
    label: str
    kind: str
    weight: float

    @property
    def name(self) -> str:
        """What a sentence calls it."""
        return f"{self.phase}, {self.label}" if self.label else self.phase


@dataclass(frozen=True)
class Answers(Generic[AnyReply]):
    """What came of an exchange.

    Attributes
    ----------
    replies
        In the order of the tasks (not of arrival, so that sums are reproducible).
    errors
        User -> sentence, for everyone who was asked and is in no reply; in hello, where
        nobody is asked by name, step -> sentence.
    """

    replies: list[AnyReply]
    errors: dict[str, str]


def groups(run: Run, users: Sequence[str]) -> list[tuple[int, tuple[str, ...]]]:
    """Split users into stacking groups: (node, up to ``personalise.stack`` users)."""
    at: dict[int, list[str]] = {}
    for user in users:
        at.setdefault(run.nodes[user], []).append(user)
    stack = run.config.personalise.stack
    return [
        (node, tuple(names[start : start + stack]))
        for node, names in at.items()
        for start in range(0, len(names), stack)
    ]


def ask(
    run: Run,
    step: Step,
    tasks: Sequence[tuple[int, Task]],
    read: Callable[[RecordDict], AnyReply],
    keep: Callable[[AnyReply], AnyReply] = lambda reply: reply,
    row: Shapes = MappingProxyType({}),
    texts: int = 0,
) -> Answers[AnyReply]:
    """Send tasks, and collect the replies until all are in or the deadline has passed.

    Parameters
    ----------
    run, step
        The run, and which exchange of it this is.
    tasks
        (node, task) each.
    read
        Checks one reply's content and returns it typed.
    keep
        Called once with each reply that counts, in the order they come; returns what is
        to be kept of it.
    row
        Shapes of the arrays that a reply brings for each of its users.
    texts
        Texts that it brings for each of them. Both say how large a reply may be.
    """
    starts = time.monotonic()
    ends = starts + run.config.deadline
    tries = dict.fromkeys(range(len(tasks)), 0)
    waiting: dict[str, int] = {}
    again: dict[int, float] = {}  # tasks to be sent once more, and when
    replies: dict[int, AnyReply] = {}
    errors: dict[str, str] = {}

    def send(index: int) -> bool:
        node, task = tasks[index]
        name = _send(run, node, task, step.kind)
        if name:
            waiting[name] = index
        tries[index] += 1
        again.pop(index, None)
        if run.config.on_devices and tries[index] < TRIES:
            again[index] = time.monotonic() + run.config.deadline / TRIES
        return bool(name)

    for index, (node, task) in enumerate(tasks):
        if not send(index) and index not in again:
            errors |= dict.fromkeys(_about(task), f"node {node} cannot be reached.")
    counted, of = len(errors), sum(len(task.users) for _, task in tasks)
    last, nodes = starts, {node for node, _ in tasks}  # when somebody answered
    wait = SHORTEST_WAIT
    most = limits(row, max((len(task.users) for _, task in tasks), default=0), texts)
    while waiting or again:
        left = {tasks[index][0] for index in {*waiting.values(), *again}}
        if time.monotonic() >= patience(starts, last, ends, nodes - run.slow, left):
            break
        for index in [i for i, due in again.items() if due <= time.monotonic()]:
            send(index)
        idle = True
        for name, answer in run.inbox.arrived(list(waiting), most):
            idle = False
            index = waiting.pop(name, None)
            if index is None:
                continue
            if _died(answer) and index in again:  # the device starts again
                soon = time.monotonic() + RETRY_SECONDS
                again[index] = min(again[index], soon)
                continue
            # The first answer counts, however often was asked.
            again.pop(index, None)
            waiting = {name: other for name, other in waiting.items() if other != index}
            task = tasks[index][1]
            try:
                replies[index] = keep(_receive(run, step, answer, task, read))
                if task.users:  # else they are no names that were checked; see `hello`
                    errors |= replies[index].errors
            except Exception as error:  # one reply, however odd, must not end the run
                errors |= dict.fromkeys(_about(task), _sentence(error))
                if run.config.on_devices and _died(answer):  # after every try
                    run.slow.add(tasks[index][0])
            last = time.monotonic()
            counted += len(task.users)
            if of:  # hello asks nobody by name
                _progress(run, step, counted, of, len(task.users))
        wait = min(1.5 * wait, LONGEST_WAIT) if idle else SHORTEST_WAIT
        if idle:
            time.sleep(wait)
    for index in {*waiting.values(), *again}:
        node, task = tasks[index]
        late = f"no answer within {run.config.deadline:g} s (config key 'deadline')."
        if node in run.slow:
            late = (
                "no answer while others were waited for; it let a deadline pass before."
            )
        if run.config.on_devices:
            run.slow.add(node)
        errors |= dict.fromkeys(_about(task), late)
    seconds = run.state.cost.seconds
    seconds[step.phase] = seconds.get(step.phase, 0.0) + time.monotonic() - starts
    ordered = [replies[index] for index in sorted(replies)]
    return Answers(ordered, _all_errors(run, step, tasks, ordered, errors))


def patience(
    starts: float, last: float, ends: float, prompt: set[int], left: set[int]
) -> float:
    """When a step stops waiting.

    Parameters
    ----------
    starts, last, ends
        When it began, when somebody last answered, and its deadline.
    prompt
        Nodes it asked that have let no deadline pass in this run.
    left
        Nodes that have not answered.
    """
    if prompt & left or not prompt:
        return ends
    return min(ends, last + max(SLOW_SECONDS, SLOW_SHARE * (last - starts)))


def _died(answer: Message | IdiolectError) -> bool:
    """Whether Flower says that a node, or its upload, ended before it had answered."""
    return isinstance(answer, Message) and answer.has_error()


def _about(task: Task) -> tuple[str, ...]:
    """Whose failure it is when a task fails: its users', or, in hello, its own."""
    return task.users or (task.step,)


def _send(run: Run, node: int, task: Task, kind: str) -> str:
    """Send one task; return the id that its reply will name, or nothing."""
    content = pack(task)
    run.state.cost.bytes_down += size(content)
    # After the deadline nobody waits for it; Flower need not deliver it either.
    message = Message(content, node, kind, ttl=run.config.deadline + 60)
    # One by one: the grid's list of ids leaves out what it could not send.
    names = list(run.grid.push_messages([message]))
    return names[0] if names and names[0] else ""


def _receive(
    run: Run,
    step: Step,
    message: Message | IdiolectError,
    task: Task,
    read: Callable[[RecordDict], AnyReply],
) -> AnyReply:
    if isinstance(message, IdiolectError):
        raise message
    if message.has_error():
        raise IdiolectError(f"its node failed: {error_of(message)}")
    run.state.cost.bytes_up += size(message.content)
    reply = read(message.content)
    check_step(reply, task.run, task.step)
    if task.users:
        check_users(reply, task.users)
    run.processes[reply.process] = max(
        reply.peak_rss_mb, run.processes.get(reply.process, 0.0)
    )
    # With privacy who took part is a secret; in hello a device may call itself anything.
    checked = task.users or not run.config.on_devices
    named = run.config.privacy.mode == "off" and checked
    for user in reply.users if named else ():
        run.journal.write(
            {
                "event": "user",
                "phase": step.phase,
                "label": step.label,
                "user": user,
                "seconds": round(reply.seconds / len(reply.users), 4),
            }
        )
    return reply


def _sentence(error: Exception) -> str:
    if isinstance(error, IdiolectError):
        return str(error)
    lines = "".join(traceback.format_exception(error)).splitlines()
    LOG.warning("a reply could not be read:\n%s", "\n".join(map(printable, lines)))
    return printable(f"{type(error).__name__}: {error}")[:300]


def _progress(run: Run, step: Step, counted: int, of: int, users: int) -> None:
    run.done += step.weight * users
    cost = run.state.cost
    run.journal.write(
        {
            "event": "progress",
            "phase": step.phase,
            "label": step.label,
            "done": counted,
            "total": of,
            "fraction": round(min(run.done / run.total, 1.0), 4),
            "seconds": round(time.monotonic() - run.began, 3),
            "bytes_up": cost.bytes_up,
            "bytes_down": cost.bytes_down,
        }
    )


def _all_errors(
    run: Run,
    step: Step,
    tasks: Sequence[tuple[int, Task]],
    replies: Sequence[Reply],
    errors: dict[str, str],
) -> dict[str, str]:
    """Complete the errors by users whom nobody mentions, and report them."""
    answered = {user for reply in replies for user in reply.users}
    for _, task in tasks:
        for user in task.users:
            if user not in answered:
                errors.setdefault(user, "its node left this user out of the reply.")
    errors = {user: text for user, text in errors.items() if user not in answered}
    if any(
        task.users for _, task in tasks
    ):  # hello reports what it makes of its errors
        report(run, step, errors)
    return errors


def report(run: Run, step: Step, errors: Mapping[str, str]) -> None:
    """Note failures: one warning per sentence, and the sentence beside each user."""
    by_sentence: dict[str, list[str]] = {}
    for user, text in errors.items():
        by_sentence.setdefault(text, []).append(user)
        run.state.failed[user] = f"{step.name}: {text}"
    for text, users in by_sentence.items():
        more = f" and {len(users) - 5} more" if len(users) > 5 else ""
        named = ", ".join(users[:5]) + more
        run.warn(f"{step.name}: {named}: {text}")


def require(
    run: Run, step: Step, got: int, asked: int, errors: Mapping[str, str]
) -> None:
    """Go on only if the quorum holds.

    Raises
    ------
    IdiolectError
        Fewer than ``quorum`` of the users are left; says why the first one failed.
    """
    if got and got >= run.config.quorum * asked:
        return
    why = next(iter(errors.values()), "nobody answered.")
    raise IdiolectError(
        f"{step.name}: only {got} of {asked} users succeeded, and the "
        f"quorum is {run.config.quorum:.0%} (config key 'quorum'). The first failure: {why}"
    )


def rows_shapes(shapes: Shapes) -> Callable[[dict[str, Any]], Shapes]:
    """Shapes of a reply with one row per user it names."""

    def of(fields: dict[str, Any]) -> Shapes:
        return {name: (len(fields["users"]), *shape) for name, shape in shapes.items()}

    return of
