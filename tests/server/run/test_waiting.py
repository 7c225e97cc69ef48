"""Hello on devices: when a run stops waiting, and what whoever watches it is told."""

import io
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from idiolect.common.data.load import TEXT
from idiolect.common.data.types import Dataset
from idiolect.common.errors import IdiolectError
from idiolect.common.protocol.messages import HelloRequest, Request
from idiolect.server.run import exchange, hello
from idiolect.server.run.exchange import Asking, Exchange
from idiolect.server.run.inbox import limits
from idiolect.server.run.live import LiveRun
from idiolect.server.simulate.progress import Display

EXCHANGE = Exchange("hello", "", "query.hello", 0.0)


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    fake = SimpleNamespace(monotonic=lambda: made.now, sleep=made.sleep, time=time.time)
    monkeypatch.setattr(exchange, "time", fake)
    monkeypatch.setattr(hello, "time", fake)
    return made


class Inbox:
    """Answers each node's task, at its time, with its reply or its error."""

    def __init__(self, clock: Clock, answers: dict[int, tuple[float, Any]]) -> None:
        self.clock, self.answers, self.nodes = clock, answers, {}

    def arrived(self, names: list[str], _most: Any):
        for name in names:
            at, what = self.answers.get(self.nodes[name], (1e9, None))
            if self.clock.now >= at:
                yield name, what


def running(
    clock: Clock, answers: dict[int, tuple[float, Any]], users: int, monkeypatch
):
    """A run of which nothing is real but what `meet` looks at."""
    inbox = Inbox(clock, answers)
    config = SimpleNamespace(deadline=600.0, users=users, on_devices=True)
    cost = SimpleNamespace(seconds={})
    told: list[dict] = []
    run = SimpleNamespace(
        config=config,
        state=SimpleNamespace(cost=cost, devices=[]),
        inbox=inbox,
        journal=SimpleNamespace(write=told.append),
        told=told,
        nodes={},
        nameless=str,
        head=lambda step, users: vars(Request("r", step, {}, "", users)),
        dataset=Dataset(TEXT, ()),
        save=lambda: None,
        slow=set(),
        holds={},
        signing_key=bytes(32),
        salt=b"",
    )

    def send(_run: Any, node: int, *_: Any) -> str:
        inbox.nodes[f"m{node}"] = node
        return f"m{node}"

    monkeypatch.setattr(exchange, "_send", send)
    monkeypatch.setattr(exchange, "encoded", lambda requests: [{} for _ in requests])
    monkeypatch.setattr(
        exchange,
        "_receive",
        lambda _run, _what, answer, request, _read: _taken(answer, request),
    )
    return cast(LiveRun, run)


def _taken(answer: Any, request: HelloRequest) -> Any:
    if isinstance(answer, IdiolectError):
        raise answer
    return SimpleNamespace(errors={}, users=(), step=request.step)


def task(node: int) -> tuple[int, HelloRequest]:
    return node, HelloRequest("r", f"hello/{node}", {}, "", (), key="k")


def met(run: LiveRun, waves: list[list[int]], monkeypatch) -> tuple[dict, list[dict]]:
    """What came of meeting devices that come in waves, and what was told meanwhile."""
    here: set[int] = set()

    def online(_run: Any) -> set[int]:
        here.update(waves.pop(0) if waves else [])
        return here

    monkeypatch.setattr(hello, "online", online)
    monkeypatch.setattr(hello, "mismatch", lambda *_: "")
    monkeypatch.setattr(
        hello, "_enlist", lambda run, node, _: run.nodes.update({node: node}) or ""
    )
    return hello.meet(run, cast(Any, None)), cast(Any, run).told


REFUSED = IdiolectError("the owner has paused this device.")


def test_where_all_have_answered_and_one_refused_nobody_is_waited_for_long(
    clock, monkeypatch
):
    """Ten seconds for another to take the place, and not the deadline of ten minutes."""
    answers = {1: (1001.0, "yes"), 2: (1003.0, REFUSED)}
    run = running(clock, answers, 2, monkeypatch)
    errors, told = met(run, [[1, 2]], monkeypatch)
    assert errors == {"device-2": str(REFUSED)}
    assert told[-1]["why"] == str(REFUSED) and told[0]["refused"] == 0
    assert 1013.0 < clock.now < 1015.0


def test_one_that_comes_in_that_time_takes_the_place(clock, monkeypatch):
    answers = {1: (1001.0, "yes"), 2: (1002.0, REFUSED), 3: (1009.0, "yes")}
    # It is online at the tenth look; the first nine take less than ten seconds.
    waves = [[1, 2], *[[] for _ in range(8)], [3]]
    errors, _ = met(running(clock, answers, 2, monkeypatch), waves, monkeypatch)
    assert errors == {"device-2": str(REFUSED)}
    assert 1009.0 <= clock.now < 1011.0


def test_fewer_than_needed_are_waited_for_until_the_deadline(clock, monkeypatch):
    """Only one of two is there, and it refuses: the second may still be started."""
    run = running(clock, {1: (1001.0, REFUSED)}, 2, monkeypatch)
    errors, _ = met(run, [[1]], monkeypatch)
    assert errors == {"device-1": str(REFUSED)}
    assert clock.now >= 1600.0


def test_one_that_is_silent_is_waited_for_until_the_deadline(clock, monkeypatch):
    run = running(clock, {1: (1001.0, "yes")}, 2, monkeypatch)
    errors, _ = met(run, [[1, 2]], monkeypatch)
    assert "no answer within 600 s" in errors["device-2"]
    assert clock.now >= 1600.0 and run.slow == {2}


@pytest.mark.parametrize(
    ("asked", "answered", "later", "expected"),
    [
        (2, 2, 10.1, True),
        (2, 2, 9.9, False),
        (1, 1, 60.0, False),  # fewer than needed
        (3, 2, 60.0, False),  # one is silent
        (3, 3, 10.1, True),
    ],
)
def test_what_is_settled(clock, monkeypatch, asked, answered, later, expected):
    run = running(clock, {}, 2, monkeypatch)
    same = cast(Any, lambda reply: reply)
    asking: Asking[Any] = Asking(run, EXCHANGE, same, same, limits({}, 0))
    asking.add([task(node) for node in range(asked)])
    for node in range(answered):
        asking.take(f"m{node}", cast(Any, REFUSED))
    clock.now += later
    assert asking.settled(2) is expected


def test_a_node_has_few_requests_at_a_time(clock, monkeypatch):
    """Flower looks at all that are under way, again and again; the others wait here."""
    run = running(clock, {}, 2, monkeypatch)
    cast(Any, run.config).on_devices = False
    told: list[Any] = []
    monkeypatch.setattr(exchange, "_progress", lambda *words: told.append(words))
    sent: list[int] = []

    def send(_run: Any, node: int, request: Request, *_: Any) -> str:
        sent.append(int(request.step))
        return "" if request.step == "9" else f"m{request.step}"

    monkeypatch.setattr(exchange, "_send", send)
    monkeypatch.setattr(exchange, "AHEAD", 3)
    same = cast(Any, lambda reply: reply)
    asking: Asking[Any] = Asking(run, EXCHANGE, same, same, limits({}, 0))
    requests = [
        (number % 2, Request("r", str(number), {}, "", ("u",))) for number in range(20)
    ]
    asking.add(requests)
    assert sent == [0, 1, 2, 3, 4, 5]
    while asking.left:
        assert len(asking.waiting) <= 6
        asking.take(next(iter(asking.waiting)), cast(Any, "yes"))
    assert sorted(sent) == [*range(20)] and len(asking.replies) == 19
    assert not asking.held and not +asking.under_way and len(told) == 20


# --- what is told ----------------------------------------------------------------------


def events_of(looks: list[tuple[int, int, dict[str, str]]]) -> list[dict]:
    written: list[dict] = []
    run = SimpleNamespace(
        nodes={},
        config=SimpleNamespace(users=3),
        journal=SimpleNamespace(write=written.append),
        nameless=lambda text: text.replace("anna", "a user"),
    )
    told: tuple[int, ...] = ()
    for joined, asked, refused in looks:
        run.nodes = dict.fromkeys(range(joined))
        told = hello.tell_waiting(cast(LiveRun, run), told, asked, refused, 1000.0)
    return written


def test_whoever_watches_is_told_once_for_each_change():
    paused = {"d1": "anna has paused this device."}
    looks = [(0, 0, {}), (0, 3, {}), (0, 3, {}), (1, 3, {}), (1, 3, paused)] * 1
    looks += [(1, 3, paused), (2, 3, paused)]
    found = events_of(looks)
    assert [(e["joined"], e["asked"], e["refused"]) for e in found] == [
        *((0, 0, 0), (0, 3, 0), (1, 3, 0), (1, 3, 1), (2, 3, 1))
    ]
    assert found[-1]["why"] == "a user has paused this device."
    assert all(e["event"] == "waiting" and e["until"] == 1000.0 for e in found)


def shown(event: dict) -> str:
    console = Console(file=io.StringIO(), width=80)
    Display(console).show(event)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_who_was_refused_is_named_as_everywhere(clock, monkeypatch):
    """By its name of a device, and not by the step in which it was asked."""
    reported: dict[str, str] = {}
    run = running(clock, {7: (1001.0, REFUSED)}, 1, monkeypatch)
    monkeypatch.setattr(hello, "online", lambda _: {7})
    monkeypatch.setattr(hello, "require", lambda *_: None)
    monkeypatch.setattr(
        hello, "report", lambda _run, _step, said: reported.update(said)
    )
    hello._meet_devices(run, cast(Any, None))
    assert reported == {"device-7": str(REFUSED)}


def test_the_line_says_how_many_who_refused_why_and_until_when():
    event = {
        "event": "waiting",
        "phase": "hello",
        **{"joined": 1, "of": 3, "asked": 3, "refused": 1},
        "why": "the owner has paused it\x1b[2J.",
        "until": time.mktime((2026, 11, 28, 14, 5, 7, 0, 0, -1)),
    }
    said = " ".join(shown(event).split())
    assert said == (
        "1 of 3 devices have joined; 1 asked; 1 refused, the last: the owner has paused "
        "it\ufffd[2J; waiting for others until 14:05:07"
    )
    assert "waiting" not in shown(event | {"joined": 3, "asked": 4})
