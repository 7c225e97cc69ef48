"""Show a run's events as they are written: a progress bar, or plain lines."""

import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from ...common.text import duration, lines, shown

NARROW = 115  # columns: with fewer the words alone fit, and a bar would cut them
ENOUGH = 0.25  # share of a run after which its own speed counts, and no forecast
PLAIN_SECONDS = 10.0  # between two lines of the same phase where there is no terminal


def say(console: Console, text: str) -> None:
    """Print lines that may quote anybody, as they are: they can be copied."""
    console.print(lines(text), markup=False, highlight=False, soft_wrap=True)


class Display:
    """Progress of one run on a console; use as a context manager."""

    def __init__(self, console: Console, expected: float = 0.0) -> None:
        self.console = console
        self.expected = expected  # seconds of all phases, by the forecast; 0: none
        self.first: tuple[float, float] | None = None  # (time, fraction)
        self.printed = ("", 0.0)
        said = TextColumn("{task.description}", markup=False)
        done = TextColumn("{task.percentage:3.0f}%")
        left = TextColumn("{task.fields[left]}", markup=False)
        self.narrow = console.width < NARROW
        columns: tuple[ProgressColumn, ...] = (
            (SpinnerColumn("line"), said, done, left)
            if self.narrow
            else (said, BarColumn(20), done, TimeElapsedColumn(), left)
        )
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("starting", total=1.0, left="")

    def __enter__(self) -> "Display":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show(self, event: dict[str, Any]) -> None:
        """Show one event of ``metrics.jsonl``, which quotes devices."""
        event = shown(event)
        match event["event"]:
            case "phase":
                self._say(event["phase"], float(self.bar.tasks[0].completed), "")
            case "progress":
                done = f"{event['done']}/{event['total']} users"
                text = _joined(event["phase"], event["label"], done)
                self._say(text, event["fraction"], self._left(event["fraction"]))
            case "waiting":
                self.console.print(
                    f"       {waiting(event)}", markup=False, highlight=False
                )
            case "warning":
                self._warn(event["message"])
            case "user" if event.get("error"):
                self._warn(f"user {event['user']}: {event['error']}")

    def _warn(self, text: str) -> None:
        self.console.print(f"warning: {text}", style="yellow", markup=False)

    def _left(self, fraction: float) -> str:
        """Time left by the forecast, and more and more by the speed seen so far.

        A resumed run starts above zero.
        """
        now = time.monotonic()
        if self.first is None:
            self.first = (now, fraction)
        since, start = self.first
        seen = min(1.0, (fraction - start) / ENOUGH) if self.expected else 1.0
        if fraction <= start and not self.expected:
            return ""
        whole = (now - since) / (fraction - start) if fraction > start else 0.0
        whole = seen * whole + (1 - seen) * self.expected
        return f"about {duration(whole * (1 - fraction))} left"

    def _say(self, text: str, fraction: float, left: str) -> None:
        short = text.removesuffix(" users") if self.narrow else text
        self.bar.update(self.task, description=short, completed=fraction, left=left)
        if self.console.is_terminal:
            return
        heading, last = self.printed
        step = text.rpartition(" · ")[0] or text
        now = time.monotonic()
        if step != heading or now - last > PLAIN_SECONDS:
            self.printed = (step, now)
            say(self.console, _joined(f"{fraction:4.0%}", text, left))


def _joined(*parts: str) -> str:
    return " · ".join(filter(None, parts))


def waiting(event: dict[str, Any]) -> str:
    """Say for whom a run waits that is still meeting its devices (`hello.tell_waiting`)."""
    parts = [f"{event['joined']} of {event['of']} devices have joined"]
    if silent := event["asked"] - event["joined"] - event["refused"]:
        parts.append(f"{silent} asked")
    if event["refused"]:
        parts.append(
            f"{event['refused']} refused, the last: {event['why'].rstrip('.')}"
        )
    if event["joined"] < event["of"]:
        until = time.strftime("%H:%M:%S", time.localtime(event["until"]))
        parts.append(f"waiting for others until {until}")
    return "; ".join(parts)
