"""Asking the nodes: send requests, collect replies until the deadline, count the cost.

Flower's own ``send_and_receive`` waits three seconds between looks and says nothing
until it ends. Here each reply is pulled by itself (`inbox`) and checked as it comes in; one
that is an error, is malformed, stale, or does not come, costs the users it was about and
nobody else. `require` ends the phase where too few users are left; in a private round
`adapt.one_round` decides.
"""

import logging
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import httpx
from flwr.app import Message, RecordDict
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from ...common.errors import IdiolectError
from ...common.protocol.messages import LacksParts, Reply, Request, Shapes
from ...common.protocol.packing import size
from ...common.protocol.signed import Part, make_part, part_names, seal_request
from ...common.protocol.validation import check_step, check_users
from ...common.text import printable
from .inbox import Limits, error_of, is_passing, limits
from .live import LiveRun

LOG = logging.getLogger("flwr")
SHORTEST_WAIT, LONGEST_WAIT = 0.05, 0.5  # seconds between two looks for replies
# How often a device is asked: again at once (or nearly) where it is known to have died,
# else after an equal share of the deadline, since a request or its answer may have got lost
# with a process between. What it did already it does not do twice.
TRIES, RETRY_SECONDS = 4, 15.0
# How long a step goes on for devices alone that let the deadline of an earlier step pass:
# as a share of the time that the others took, and at least. So one device costs a run a
# deadline once, and not in every step; it still counts where it is as quick as the others.
SLOW_SHARE, SLOW_SECONDS = 0.1, 0.5
# Where as many devices have answered as a run needs, but not all of them have joined: how
# long it waits for one that takes the place.
SETTLE_SECONDS = 10.0
# Requests that a node has at a time: Flower's simulation looks at each of them ten times a
# second for every node, and memory holds them.
AHEAD = 8
# Seconds until a request is sent again where the SuperLink failed, which may be busy.
PAUSES = (0.5, 2.0)
AnyReply = TypeVar("AnyReply", bound=Reply)


@dataclass(frozen=True)
class Exchange:
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


def ask(
    run: LiveRun,
    exchange: Exchange,
    requests: Sequence[tuple[int, Request]],
    read: Callable[[RecordDict], AnyReply],
    keep: Callable[[AnyReply], AnyReply] = lambda reply: reply,
    row: Shapes = MappingProxyType({}),
    texts: int = 0,
    enough: Callable[[], bool] = lambda: False,
) -> tuple[list[AnyReply], dict[str, str]]:
    """Send requests, and collect the replies until all are in or the deadline has passed.

    Parameters
    ----------
    run, exchange
        The run, and which exchange of it this is.
    requests
        (node, request) each.
    read, keep
        See `Asking`.
    row
        Shapes of the arrays that a reply brings for each of its users.
    texts
        Texts that it brings for each of them. Both say how large a reply may be.
    enough
        Whether no further reply is needed: then nobody is waited for.

    Returns
    -------
    tuple
        The replies, in the order of the requests (not of arrival, so that sums are
        reproducible), and user -> sentence, for everyone who was asked and is in no reply.
        In hello, where nobody is asked by name, it is step -> sentence.
    """
    users = max((len(request.users) for _, request in requests), default=0)
    asking = Asking(run, exchange, read, keep, limits(row, users, texts))
    asking.add(requests)
    while asking.left and not enough() and time.monotonic() < asking.patience():
        asking.look()
    needless = asking.left if enough() else set()  # they did nothing wrong
    if not enough():
        asking.give_up()
    asking.count_seconds()
    replies = [asking.replies[index] for index in sorted(asking.replies)]
    answered = {user for reply in replies for user in reply.users}
    asked = [u for node, r in requests for u in r.users if node not in needless]
    # Users whom nobody mentions come last; an error that names them counts instead.
    missing = dict.fromkeys(asked, "its node left this user out of the reply.")
    errors = {
        user: text
        for user, text in (asking.errors | missing | asking.errors).items()
        if user not in answered
    }
    if asked:  # hello reports what it makes of its errors
        report(run, exchange, errors)
    return replies, errors


def online(run: LiveRun) -> set[int]:
    """Nodes that are connected now; none where the SuperLink cannot say it at the moment.

    Raises
    ------
    httpx.HTTPStatusError
        The SuperLink does not let this run ask.
    """
    try:
        return set(run.grid.get_node_ids())
    except httpx.HTTPError as error:
        if not is_passing(error):
            raise
        LOG.warning("the nodes are not known: %s", printable(str(error), 200))
        return set()


class Asking(Generic[AnyReply]):
    """One exchange while it goes on: who was asked, who answered, who is asked next.

    A request that brings its node a part goes first, and its other requests wait for
    the answer, so that the part travels once. Of the others a node has `AHEAD` at a time.

    Attributes
    ----------
    run, exchange
        The run, and which exchange of it this is.
    read
        Checks one reply's content and returns it typed.
    keep
        Called once with each reply that counts, in the order they come; returns what is
        to be kept of it.
    most
        How large a reply may be.
    starts, ends, last
        When it began, its deadline, and when somebody last answered.
    wait
        Seconds until the next look for replies, if there is none.
    requests
        (node, request) each.
    parts
        Of each request.
    tries
        How often each request was sent.
    waiting
        Flower's id of a message -> the request in it.
    again
        Requests to be sent once more, and when.
    held
        Node -> requests that wait for an answer to one before them.
    under_way
        Node -> requests that were sent, and neither answered nor given up.
    replies, errors
        What came: request -> reply; user -> sentence.
    counted
        Users that are accounted for, for the progress.
    """

    def __init__(
        self,
        run: LiveRun,
        exchange: Exchange,
        read: Callable[[RecordDict], AnyReply],
        keep: Callable[[AnyReply], AnyReply],
        most: Limits,
    ) -> None:
        self.run, self.exchange = run, exchange
        self.read, self.keep, self.most = read, keep, most
        self.starts = self.last = time.monotonic()
        self.ends, self.wait = self.starts + run.config.deadline, SHORTEST_WAIT
        self.requests: list[tuple[int, Request]] = []
        self.parts: list[dict[str, Part]] = []
        self.tries: Counter[int] = Counter()
        self.waiting: dict[str, int] = {}
        self.again: dict[int, float] = {}
        self.held: dict[int, list[int]] = {}
        self.under_way: Counter[int] = Counter()
        self.replies: dict[int, AnyReply] = {}
        self.errors: dict[str, str] = {}
        self.counted = 0

    @property
    def left(self) -> set[int]:
        """Nodes that may still answer."""
        return {
            self.requests[index][0] for index in {*self.waiting.values(), *self.again}
        }

    def patience(self) -> float:
        """When to stop waiting (see `patience`)."""
        prompt = {node for node, _ in self.requests} - self.run.slow
        return patience(self.starts, self.last, self.ends, prompt, self.left)

    def settled(self, needed: int) -> bool:
        """Whether so many were asked, all have answered, and nobody came after them."""
        late = time.monotonic() > self.last + SETTLE_SECONDS
        return len(self.requests) >= needed and not self.left and late

    def add(self, requests: Sequence[tuple[int, Request]]) -> None:
        """Take requests in, and send each that need not wait for another."""
        first = len(self.requests)
        self.requests += requests
        self.parts += encoded([request for _, request in requests])
        for index, (node, _) in enumerate(requests, first):
            known = self.run.holds.get(node, {})
            if node in self.held:
                self.held[node].append(index)
                continue
            if self.under_way[node] == AHEAD:
                self.held[node] = [index]
                continue
            if any(known.get(n) != part.hash for n, part in self.parts[index].items()):
                self.held[node] = []
            self.send(index)

    def send(self, index: int) -> None:
        """Send one request, for the first time or again; then with all its parts."""
        run, (node, request) = self.run, self.requests[index]
        known = {} if self.tries[index] else run.holds.get(node, {})
        if name := _send(run, node, request, self.parts[index], known, self.exchange):
            self.waiting[name] = index
        self.under_way[node] += not self.tries[index]
        self.tries[index] += 1
        self.again.pop(index, None)
        if run.config.on_devices and self.tries[index] < TRIES:
            self.again[index] = time.monotonic() + run.config.deadline / TRIES
        elif index not in self.waiting.values():
            self.fail(index, f"node {node} cannot be reached.")

    def look(self) -> None:
        """Send what is due once more, and count what has come.

        Where nothing has, the next look is a little later than this one was.
        """
        now = time.monotonic()
        for index in [i for i, due in self.again.items() if due <= now]:
            self.send(index)
        idle = True
        for name, answer in self.run.inbox.arrived(list(self.waiting), self.most):
            idle = False
            self.take(name, answer)
        self.wait = min(1.5 * self.wait, LONGEST_WAIT) if idle else SHORTEST_WAIT
        if idle:
            time.sleep(self.wait)

    def take(self, name: str, answer: Message | IdiolectError) -> None:
        """Count an answer to the message of this id, whatever it is."""
        index = self.waiting.pop(name, None)
        if index is None:
            return
        # Flower says that the node, or its upload, ended before it had answered.
        died = isinstance(answer, Message) and answer.has_error()
        if died and index in self.again:  # the device starts again
            self.again[index] = min(self.again[index], time.monotonic() + RETRY_SECONDS)
            return
        # The first answer counts, however often was asked.
        self.again.pop(index, None)
        self.waiting = {n: other for n, other in self.waiting.items() if other != index}
        node, request = self.requests[index]
        try:
            self.replies[index] = self.keep(
                _receive(self.run, self.exchange, answer, request, self.read)
            )
        except LacksParts as error:
            self.run.holds.pop(node, None)
            if self.tries[index] < TRIES:
                self.send(index)
            else:
                self.fail(index, str(error))
        # Whatever reading, checking or keeping one reply raises is its sender's failure,
        # and the run goes on; what goes wrong before there is a message, see `inbox`.
        except Exception as error:
            if self.run.config.on_devices and died:  # after every try
                self.run.slow.add(node)
            self.fail(index, _sentence(error))
        else:
            hashes = {name: part.hash for name, part in self.parts[index].items()}
            self.run.holds[node] = self.run.holds.get(node, {}) | hashes
            if request.users:  # otherwise the names were not checked; see `hello`
                self.errors |= self.replies[index].errors
            self.done(index)

    def fail(self, index: int, sentence: str) -> None:
        """Give a request up: its users fail, or in hello, which names none, its step."""
        request = self.requests[index][1]
        self.errors |= dict.fromkeys(request.users or (request.step,), sentence)
        self.done(index)

    def done(self, index: int) -> None:
        """Go on behind a request that was answered or given up."""
        self.last = time.monotonic()
        node, request = self.requests[index]
        self.counted += len(request.users)
        if of := sum(len(request.users) for _, request in self.requests):
            _progress(self.run, self.exchange, self.counted, of, len(request.users))
        self.under_way[node] -= 1
        behind = self.held.pop(node, [])
        room = max(AHEAD - self.under_way[node], 0)
        if behind[room:]:
            self.held[node] = behind[room:]
        for other in behind[:room]:
            self.send(other)

    def give_up(self) -> None:
        """Note whose answer did not come in time."""
        run = self.run
        late = f"no answer within {run.config.deadline:g} s (config key 'deadline')."
        alone = "no answer while others were waited for; it let a deadline pass before."
        behind = [index for indices in self.held.values() for index in indices]
        for index in {*self.waiting.values(), *self.again, *behind}:
            node, request = self.requests[index]
            why = alone if node in run.slow else late
            self.errors |= dict.fromkeys(request.users or (request.step,), why)
        if run.config.on_devices:
            run.slow |= self.left

    def count_seconds(self) -> None:
        """Add the time that it took to the cost of its phase."""
        seconds, phase = self.run.state.cost.seconds, self.exchange.phase
        seconds[phase] = seconds.get(phase, 0.0) + time.monotonic() - self.starts


def grace(starts: float, last: float) -> float:
    """When to stop waiting for those that nobody needs (see `patience`)."""
    return last + max(SLOW_SECONDS, SLOW_SHARE * (last - starts))


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
    return min(ends, grace(starts, last))


def encoded(requests: Sequence[Request]) -> list[dict[str, Part]]:
    """The parts of each request, by name; what requests share is encoded once."""
    done: dict[tuple[str, int], Part] = {}

    def one(name: str, value: Any) -> Part:
        place = name, id(value)
        if place not in done:
            done[place] = make_part(name, value)
        return done[place]

    return [
        {name: one(name, getattr(request, name)) for name in part_names(type(request))}
        for request in requests
    ]


def _send(
    run: LiveRun,
    node: int,
    request: Request,
    parts: Mapping[str, Part],
    known: Mapping[str, str],
    exchange: Exchange,
) -> str:
    """Send a message; return the id that its reply will name, or nothing.

    Each try has a counter of its own, since the SuperLink may have taken the message that
    it failed at, and a device does no counter twice.
    """
    for pause in (*PAUSES, 0.0):
        counter, key = run.count_up(), run.signing_key
        content = seal_request(request, node, counter, parts, key, known, run.salt)
        run.state.cost.bytes_down += size(content)
        # After the deadline nobody waits for it; Flower need not deliver it either.
        message = Message(content, node, exchange.kind, ttl=run.config.deadline + 60)
        try:
            # One by one: the grid's list of ids leaves out what it could not send.
            return next(iter(run.grid.push_messages([message])), "") or ""
        except (httpx.HTTPError, ObjectPushError) as error:
            LOG.warning("a request was not sent: %s", printable(str(error), 200))
            if isinstance(error, httpx.HTTPError) and not is_passing(error):
                return ""
            time.sleep(pause)
    return ""


def _receive(
    run: LiveRun,
    exchange: Exchange,
    message: Message | IdiolectError,
    request: Request,
    read: Callable[[RecordDict], AnyReply],
) -> AnyReply:
    if isinstance(message, IdiolectError):
        raise message
    if message.has_error():
        raise IdiolectError(f"its node failed: {error_of(message)}")
    run.state.cost.bytes_up += size(message.content)
    reply = read(message.content)
    check_step(reply, request.run, request.step)
    if request.users:
        check_users(reply, request.users)
    if not run.config.on_devices:  # a device may call its process anything, each time
        process = reply.process[:200]  # the node chose this name
        run.processes[process] = max(reply.peak_rss_mb, run.processes.get(process, 0.0))
    # With privacy who took part is a secret; in hello a device may call itself anything.
    checked = request.users or not run.config.on_devices
    for user in reply.users if checked and not run.secret else ():
        run.journal.write(
            {
                "event": "user",
                "phase": exchange.phase,
                "label": exchange.label,
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


def _progress(
    run: LiveRun, exchange: Exchange, counted: int, of: int, users: int
) -> None:
    run.done += exchange.weight * users
    cost, told = run.state.cost, run.config.privacy.metrics != "noisy"
    run.journal.write(
        {
            "event": "progress",
            "phase": exchange.phase,
            "label": exchange.label,
            "done": counted,
            "total": of,
            "fraction": round(min(run.done / run.total, 1.0), 4),
            "seconds": round(time.monotonic() - run.began, 3),
            # Withheld as in results.json.
            "bytes_up": cost.bytes_up if told else None,
            "bytes_down": cost.bytes_down if told else None,
        }
    )


def report(run: LiveRun, exchange: Exchange, errors: Mapping[str, str]) -> None:
    """Note failures: one warning per sentence, and the sentence beside each user.

    Where who takes part is a secret the warning says how many, and the names are in the
    checkpoint alone.
    """
    by_sentence: dict[str, list[str]] = {}
    for user, text in errors.items():
        by_sentence.setdefault(run.nameless(text), []).append(user)
        run.state.failed[user] = f"{exchange.name}: {text}"
    for text, users in by_sentence.items():
        named = ", ".join(users[:5]) + f" and {len(users) - 5} more" * (len(users) > 5)
        if run.secret:
            named = f"{len(users)} users" if len(users) > 1 else "1 user"
        run.warn(f"{exchange.name}: {named}: {text}")


def require(
    run: LiveRun, exchange: Exchange, got: int, asked: int, errors: Mapping[str, str]
) -> None:
    """Go on only if the quorum holds.

    Raises
    ------
    IdiolectError
        Fewer than ``quorum`` of the users are left; says why the first one failed.
    """
    if got and got >= run.config.quorum * asked:
        return
    why = run.nameless(next(iter(errors.values()), "nobody answered."))
    raise IdiolectError(
        f"{exchange.name}: only {got} of {asked} users succeeded, and the "
        f"quorum is {run.config.quorum:.0%} (config key 'quorum'). The first failure: {why}"
    )
