"""The process behind the page that loads the model: it trains, or it writes.

The limits of work hold for a whole process and need its main thread (`owner.limits`), a
training must end at once, and what forgetting erases must be in no memory. So none of this
is done in the process that serves the page.

It is given on standard input, in lines of JSON: the vault's key, then requests. It says on
standard output, in lines of JSON, what comes of them. It ends when its input ends.
"""

import contextlib
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from ...common.command import sentence_of
from ...common.errors import required
from ..owner.keys import from_line
from ..owner.resident import PERSONAL, SHARED
from ..owner.vault import Vault

if TYPE_CHECKING:
    from ..owner.writing import Writer

LOOK = 1.0  # seconds between two looks at the vault, and at the progress of a training
IDLE = 600.0  # seconds without a request after which the model is dropped
Request = dict[str, Any]
END: Request = {"end": True}  # also what is said when a request is carried out
STOP: Request = {"stop": True}  # a request: end the text that is being written


class Line:
    """The line to the process that serves the page; tracebacks are kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        # Where a library prints, nobody takes it for an answer.
        self._out = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)

    def say(self, **event: Any) -> None:
        """Say one thing."""
        with self._lock:
            self._out.write(json.dumps(event).encode() + b"\n")
            self._out.flush()

    def fail(self, error: Exception) -> None:
        """Say what went wrong."""
        self.say(error=sentence_of(error, self._folder))

    def listen(self) -> None:
        """Take requests until the input ends; then the whole process ends."""
        for text in sys.stdin.buffer:
            request = json.loads(text)
            if request == STOP:
                self.stopped.set()
            else:
                self.requests.put(request)
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Train, or write: a word and the vault's path as arguments."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the page's process
    what, path = sys.argv[1], Path(sys.argv[2])
    line = Line(path.parent)
    try:
        key = from_line(sys.stdin.buffer.readline())
        threading.Thread(target=line.listen, daemon=True).start()
        with Vault.open(path, key) as vault:
            {"train": train, "write": write}[what](vault, line)
    except KeyboardInterrupt:
        pass
    except Exception as error:
        line.fail(error)
    os._exit(0)  # unloading torch takes seconds


# --- training --------------------------------------------------------------------------


def train(vault: Vault, line: Line) -> None:
    """Train as the one request says, and say how far it is."""
    from ..commands.progress import Follower

    asked, follow = line.requests.get(), Follower("loading the libraries")
    at: dict[str, int] = {}
    threading.Thread(target=_follow, args=(follow, at, line), daemon=True).start()
    from ...common.engine.training import Watch
    from ..owner import training
    from . import views

    def step(done: int, of: int) -> None:
        at.update(done=done, of=of)
        follow.step(done, of)

    def phase(words: str) -> None:
        at.clear()
        follow.phase(words)

    watch = Watch(phase, step=lambda now, of: step(now.step, of))
    new = training.train(vault, asked["method"], watch=watch)
    line.say(trained=views.trained(new))


def _follow(follow: Any, at: dict[str, int], line: Line) -> None:
    """Say how far a training is, for as long as the process is there."""
    tick = threading.Event()
    while not tick.wait(LOOK / 2):
        line.say(progress=follow.text(), **dict(at))


# --- writing ---------------------------------------------------------------------------


def write(vault: Vault, line: Line) -> None:
    """Write what is asked for, until nothing was for a while.

    Also until another adapter is in use or a setting has changed: what was forgotten is in
    the memory of no process.
    """
    from ..owner import writing

    known, waited = writing.standing(vault), 0.0
    line.say(phase="loading the model")
    writer = writing.writer(vault)
    line.say(phase="")

    def same() -> bool:
        return writing.standing(vault) == known

    while waited < IDLE:
        request = None
        with contextlib.suppress(queue.Empty):
            request = line.requests.get(timeout=LOOK)
        waited = 0.0 if request else waited + LOOK
        if not same():
            return
        if request:
            line.stopped.clear()
            with contextlib.closing(pieces(vault, writer, request)) as written:
                if not answered(line, written, same):
                    return


def answered(
    line: Line, written: Iterator[tuple[str, str]], same: Callable[[], bool]
) -> bool:
    """Say pieces of texts as they come, and the end.

    Returns whether what they are written with is still the same (`same`), at which it looks
    from time to time.
    """
    due = monotonic() + LOOK
    try:
        for name, piece in written:
            if monotonic() > due:
                if not same():
                    return False
                due = monotonic() + LOOK
            if line.stopped.is_set():
                break
            if piece:
                line.say(name=name, piece=piece)
    except Exception as error:
        line.fail(error)
    line.say(**END)
    return True


def pieces(
    vault: Vault, writer: "Writer", request: Request
) -> Generator[tuple[str, str], None, None]:
    """Yield whose text it is (`Writer.stream`), and a piece of it, or nothing."""
    from ..owner import adapters

    if request["strength"] is not None:
        found = adapters.read(vault, adapters.active(vault), request["strength"])
        own, _ = required(found, "no adapter is in use: train one first.")
        writer = replace(writer, own=own)
    asked = request["prompt"], request["budget"]
    for name in (PERSONAL, SHARED) if request["compare"] else (PERSONAL,):
        with contextlib.closing(writer.stream(*asked, name)) as found:
            for piece in found:
                yield name, piece.text


if __name__ == "__main__":
    sys.exit(main())
