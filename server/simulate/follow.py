"""Follow a run by the events that it writes."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ...common.command import one_line
from ...common.errors import DefectError, IdiolectError
from ..run import results
from . import processes
from .plan import Plan

SILENT_SECONDS = 10.0  # between two calls of `ask`


def follow(
    plan: Plan,
    offset: int,
    up: Callable[[], bool],
    mark: str,
    ask: Callable[[], None] = lambda: None,
) -> Iterator[dict[str, Any]]:
    """Yield the run's events as they are written, until it has finished.

    Parameters
    ----------
    plan, offset
        The run, and the position in its events to begin at.
    up
        Whether the process that runs it, or the one that restarts it, is alive.
    mark
        In the environment of the run's processes.
    ask
        Called now and then until the run has written its first event; raises if none
        will come.

    Raises
    ------
    IdiolectError
        The run failed, or its process ended without saying so.
    """
    pid, asked = 0, time.monotonic()

    def gone() -> bool:
        return not processes.is_marked(pid, mark)

    while True:
        # Checked before the events are read, so that the last ones are not missed.
        alive = up() and not (pid and gone())
        events, offset = results.read_events(plan.metrics, offset)
        for event in events:
            yield event
            if event["event"] == "start":
                pid = int(event["pid"])
            elif event["event"] == "finished":
                return
            elif event["event"] == "failed":
                # It may still write its traceback to the log.
                processes.wait_until(gone, 5.0)
                raise _failure(event, plan)
        if not alive:
            begun = (plan.folder / "config.toml").is_file()
            again = f"continue it with --resume {plan.folder.name}"
            raise IdiolectError(
                f"the run ended without a message: see the end of {plan.log}, and "
                f"{again if begun else 'give the same command again'}."
            )
        if not pid and time.monotonic() - asked > SILENT_SECONDS:
            ask()
            asked = time.monotonic()
        time.sleep(0.3)


def _failure(event: Mapping[str, Any], plan: Plan) -> IdiolectError:
    """Return the error of a failed run: its own sentence, or where the traceback is."""
    if not event.get("defect"):
        return IdiolectError(event["message"])
    return DefectError(
        f"the run met a defect of idiolect ({one_line(event['message'])[:300]}): its "
        f"traceback is at the end of {plan.log}; report it, and continue with "
        f"--resume {plan.folder.name}."
    )
