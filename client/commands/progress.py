"""Follow a training: one line that is rewritten at a terminal, plain lines elsewhere.

On standard error, so that standard output has the result alone. Loads no torch: the first
line is there while that is loaded.
"""

import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ...common.text import duration, lines, tell

PLAIN_SECONDS = 10.0  # between two lines of the same phase where there is no terminal
FIRST = "loading the libraries; Ctrl-C ends the training, which can go on later"
OWN = Path("/proc/self/status")


class Follower:
    """Says what a training does, how long it still takes, and which memory it has."""

    def __init__(self, words: str = FIRST) -> None:
        self._began = monotonic()
        self._words, self._loaded = words, False
        self._first: tuple[float, int] | None = None  # time and steps done
        self._left: float | None = None  # seconds from `_at` on
        self._at = self._printed = self._began
        self._bar: Progress | None = None
        self._over = threading.Event()

    def phase(self, words: str) -> None:
        """Say what begins."""
        self._words, self._left, self._first = words, None, None
        self._loaded = True
        self._print()

    def step(self, done: int, of: int) -> None:
        """Say how many steps of the training are done."""
        now = monotonic()
        self._words = f"training, step {done} of {of}"
        if self._first is None:
            self._first = now, done
            return
        began, before = self._first
        self._left = (now - began) / (done - before) * (of - done)
        self._at = now

    def text(self) -> str:
        """The line of now, without the time since the start."""
        parts = [self._words]
        if self._left is not None:
            left = max(1.0, self._left - (monotonic() - self._at))
            parts.append(f"about {duration(left)} left")
        if self._loaded and (size := memory("VmRSS")):
            parts.append(f"{size} of memory")
        return ", ".join(parts)

    def end(self) -> str:
        """How long it took, and the most memory that it had."""
        most = memory("VmHWM")
        took = f"it took {duration(monotonic() - self._began)}"
        return took + (f" and at most {most} of memory" if most else "")

    # --- showing -----------------------------------------------------------------------

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show it within the block."""
        console = Console(stderr=True)
        if console.is_terminal:
            said = TextColumn("{task.description}", markup=False)
            columns = (SpinnerColumn("line"), TimeElapsedColumn(), said)
            self._bar = Progress(
                *columns, console=console, transient=True, refresh_per_second=4
            )
            self._bar.add_task(FIRST)
            self._bar.start()
        self._print()
        thread = threading.Thread(target=self._tick, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()
            if self._bar is not None:
                self._bar.stop()

    def _tick(self) -> None:
        while not self._over.wait(0.5):
            if self._bar is not None or monotonic() - self._printed > PLAIN_SECONDS:
                self._print()

    def _print(self) -> None:
        text = self.text()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=lines(text))
            return
        self._printed = monotonic()
        minutes, seconds = divmod(int(self._printed - self._began), 60)
        tell(f"{minutes:3}:{seconds:02}  {text}", sys.stderr)


def memory(what: str, status: Path = OWN) -> str:
    """Memory of this process in words: ``VmRSS``, or the most: ``VmHWM``.

    Empty where the system does not say it.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in status.read_text().splitlines():
            if line.startswith(f"{what}:"):
                size = int(line.split()[1]) / 1e6 * 1.024
                return f"{size:.1f} GB" if size >= 1 else f"{1000 * size:.0f} MB"
    return ""
