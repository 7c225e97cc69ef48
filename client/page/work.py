"""The page's side of the processes that load the model (`worker`): start, ask, end."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...common.errors import refuse_if, required
from ..owner.keys import Key, to_line
from .worker import END, STOP

PROCESS = f"{__package__}.worker"
LONGEST = 1 << 22  # bytes of a line that a process says
PATIENCE = 15.0  # seconds until a process that should end is killed
GONE = (
    "the process that trained has ended: perhaps there was not enough memory; end other "
    "programs, and train again: it goes on where it stood."
)
CUT = (
    "the text was cut off: the adapter or a setting was changed meanwhile, or there was "
    "not enough memory; try again."
)


class Process:
    """One process of `worker`.

    Attributes
    ----------
    what
        Its task: ``train`` or ``write``.
    """

    def __init__(self, what: str, process: asyncio.subprocess.Process) -> None:
        self.what = what
        self._process = process

    @classmethod
    async def start(cls, what: str, vault: Path, key: Key) -> "Process":
        """Start one; it has the vault's key, and no terminal."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", PROCESS, what, str(vault.absolute())),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # Ctrl-C at the terminal is not meant for it
            limit=LONGEST,
        )
        one = cls(what, process)
        await one._send(to_line(key))
        return one

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.returncode is None

    async def ask(self, **request: Any) -> None:
        """Send a request; one that has ended does not get it."""
        await self._send(json.dumps(request).encode() + b"\n")

    async def _send(self, data: bytes) -> None:
        into = required(self._process.stdin, "")
        with contextlib.suppress(ConnectionError):
            into.write(data)
            await into.drain()

    async def said(self) -> dict[str, Any] | None:
        """The next thing that it says; None: it has ended."""
        text = await required(self._process.stdout, "").readline()
        return json.loads(text) if text.endswith(b"\n") else None

    async def end(self) -> None:
        """End it: what a training has kept so far stays in the vault."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), PATIENCE)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


# --- training --------------------------------------------------------------------------


@dataclass
class Training:
    """The training that runs, or the last one.

    Attributes
    ----------
    running, words, done, of
        Whether it does; what it does; steps, where they are known.
    outcome
        `views.trained`; None: there is none yet.
    error
        Why there is none; empty: it was stopped, or is running.
    stopped
        The owner stopped it.
    """

    running: bool = False
    words: str = ""
    done: int = 0
    of: int = 0
    outcome: dict[str, Any] | None = None
    error: str = ""
    stopped: bool = False


@dataclass
class Trainer:
    """Trains one adapter at a time, in a process of its own."""

    vault: Path
    key: Key
    at: Training = field(default_factory=Training)
    _process: Process | None = None
    _follower: asyncio.Task[None] | None = None
    _starting: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def start(self, method: str) -> None:
        """Start a training.

        Raises
        ------
        IdiolectError
            One is running.
        """
        refuse_if(self.at.running, "a training is running: wait until it has ended.")
        self.at = Training(running=True, words="loading the libraries")
        async with self._starting:
            try:
                self._process = await Process.start("train", self.vault, self.key)
                await self._process.ask(method=method)
            except BaseException:
                self.at.running = False
                raise
            self._follower = asyncio.create_task(self._follow(self._process, self.at))

    async def _follow(self, process: Process, at: Training) -> None:
        """Take what it says, until it has ended."""
        while event := await process.said():
            if "progress" in event:
                at.words = event["progress"]
                at.done, at.of = event.get("done", 0), event.get("of", 0)
            at.outcome = event.get("trained", at.outcome)
            at.error = event.get("error", at.error)
        await process.end()
        at.running = False
        if not (at.outcome or at.error or at.stopped):
            at.error = GONE

    async def stop(self) -> None:
        """Stop it, also if it is just starting; what it has kept stays in the vault."""
        async with self._starting:
            if self._process and self._follower and self.at.running:
                self.at.stopped = True
                await self._process.end()
                await self._follower


# --- writing ---------------------------------------------------------------------------


@dataclass
class Scribe:
    """Writes one text at a time, in a process that keeps the model loaded."""

    vault: Path
    key: Key
    _process: Process | None = None
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _last: asyncio.Task[None] | None = None

    async def write(self, **request: Any) -> AsyncIterator[dict[str, Any]]:
        """Yield what the process says of a request (`worker.pieces`), but its end.

        Who stops reading ends the text.

        Raises
        ------
        IdiolectError
            The process has ended.
        """
        await self._turn.acquire()
        whole = False
        try:
            async for event in self._events(request):
                yield event
            whole = True
        finally:
            # In a task of its own: who stops reading may be cancelled, again and again.
            self._last = asyncio.create_task(self._finish(whole))

    async def warm(self) -> None:
        """Start the process, unless it is there."""
        if not self._turn.locked():
            async with self._turn:
                await self._loaded()

    async def _events(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        process, said, failed = await self._asked(request), False, False
        while (event := await process.said()) != END:
            if event is not None:
                said, failed = said or "phase" not in event, failed or "error" in event
                yield event
                continue
            await self.end()
            if failed:
                return
            refuse_if(said, CUT)
            # It was just ending, since something has changed.
            process, said = await self._asked(request), True

    async def _asked(self, request: dict[str, Any]) -> Process:
        """The process with a request."""
        process = await self._loaded()
        await process.ask(**request)
        return process

    async def _loaded(self) -> Process:
        if self._process is None or not self._process.running:
            self._process = await Process.start("write", self.vault, self.key)
        return self._process

    async def _finish(self, whole: bool) -> None:
        """End a text that is still being written, and let the next one begin."""
        try:
            process = self._process
            if process is not None and not whole:
                await process.ask(**STOP)
                while (await process.said()) not in (None, END):
                    pass
        finally:
            self._turn.release()

    async def end(self) -> None:
        """End the process: what it has in its memory may have been forgotten."""
        process, self._process = self._process, None
        if process:
            await process.end()
