"""The cells of a study, several at the same time in processes of their own.

A process that is free takes a cell that shares parts with those it has computed
(`cache.next_cell`); each process makes such parts for itself. The files are those of one
process, bit for bit if that has as many threads (OMP_NUM_THREADS). The processes are on
this machine, or on a Ray cluster (`actors`).
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from ...common.errors import IdiolectError
from ...common.files import make_private, private_folder
from ...common.text import tell
from .cache import Cache, next_cell, shared_keys
from .cells import (
    Placed,
    compute,
    finished,
    located,
    placed,
    run_study,
    title,
    until_end,
)
from .declaration import Study
from .kept import store

# Of a process that computes cells; the parent's is empty.
_CACHE = Cache()


class Worker(Protocol):
    """A process that computes one cell after the other."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """Call a function there."""
        ...

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the process."""
        ...


@contextmanager
def processes(count: int) -> Iterator[list[ProcessPoolExecutor]]:
    """So many processes of this machine, which end with this one."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        # One pool for each process: who computes a cell is chosen here.
        pools = [
            stack.enter_context(ProcessPoolExecutor(1, context, _begin))
            for _ in range(count)
        ]
        try:
            yield pools
        except BaseException:
            for pool in pools:
                pool.shutdown(wait=False, cancel_futures=True)
            _end()
            raise


def run_side_by_side(
    study: Study,
    folder: Path,
    jobs: int,
    say: Callable[[str], None] = tell,
    ahead: Sequence[float] = (),
    kept: Path | None = None,
    start: Callable[[int], AbstractContextManager[Sequence[Worker]]] = processes,
) -> list[dict[str, Any]]:
    """Run the cells that have no file yet in so many processes; return all.

    Where OMP_NUM_THREADS is not set, they share the cores of this machine evenly.

    Parameters
    ----------
    study, folder, say, ahead, kept
        As in `cells.run_study`.
    jobs
        How many cells are computed at the same time.
    start
        Starts so many processes, and ends them.

    Raises
    ------
    IdiolectError
        A cell cannot be computed, or a process has ended before its cell.
    """
    make_private(private_folder(folder))
    private_folder(folder / "cells")
    todo = placed(study, folder)
    files = [one.path for one in todo]
    left = [k for k, file in enumerate(files) if not file.exists()]
    share_cores(jobs)
    spent = expected = 0.0
    if not left:
        return finished(study, folder, kept)
    with (
        start(min(jobs, len(left))) as workers,
        closing(_computed(todo, left, study.measured, workers)) as cells,
    ):
        for number, took in cells:
            spent += took
            expected += sum(ahead[number : number + 1])
            pace = spent / expected / jobs if expected else 0.0
            say(f"{title(todo, number)}: {took:.0f} s{until_end(ahead, files, pace)}")
            if kept:
                store(kept, files)
    if all(file.exists() for file in files):
        return finished(study, folder, kept)
    return run_study(study, folder, say, ahead, kept)


def _computed(
    todo: Sequence[Placed],
    left: Sequence[int],
    measured: str,
    workers: Sequence[Worker],
) -> Generator[tuple[int, float], None, None]:
    """Compute cells in processes; give the number and seconds of each that is done."""
    waiting = list(left)
    asked = {k: shared_keys(todo[k].config, todo[k].control) for k in left}
    keys = {k: [*parts.values()] for k, parts in asked.items()}
    # The last are cells that another command computes.
    taken: list[list[int]] = [[] for _ in range(len(workers) + 1)]
    running: dict[Future[float | None], tuple[int, int]] = {}

    def begin(process: int) -> None:
        if not waiting:  # on a cluster one may wait for this place
            return workers[process].shutdown(wait=False)
        cell = next_cell(waiting, keys, taken, process)
        waiting.remove(cell)
        taken[process].append(cell)
        # Paths as they are here: variables in them may be set on no other machine.
        one = todo[cell]._replace(config=located(todo[cell].config))
        words = one, title(todo, cell), measured
        running[workers[process].submit(_cell, *words)] = process, cell

    for process in range(len(workers)):
        begin(process)
    while running:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            process, cell = running.pop(future)
            took = _result(future)
            if took is None:
                taken[process].remove(cell)
                taken[-1].append(cell)
            begin(process)
            if took is not None:
                yield cell, took


def _result(future: Future[float | None]) -> float | None:
    try:
        return future.result()
    except BrokenProcessPool:
        raise IdiolectError(
            "a process that computed cells has ended; where memory ran out, use fewer "
            "--jobs. Finished cells are kept, and the same command does the rest."
        ) from None


def share_cores(jobs: int) -> None:
    """Give each of so many processes an even share of the cores, where nobody says."""
    each = max(1, len(os.sched_getaffinity(0)) // jobs)
    os.environ.setdefault("OMP_NUM_THREADS", str(each))


def _cell(one: Placed, name: str, measured: str) -> float | None:
    """Compute one cell in a process of its own, or leave it to another command."""
    return compute(one, name, measured, _CACHE, False, tell)


def _begin() -> None:
    """Let a process end with the one that started it, however that ends."""
    parent = multiprocessing.parent_process()
    # Ctrl-C at a terminal reaches all; the parent ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        if parent:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _end() -> None:
    """End the processes at once; what they compute is lost, and no file is half written."""
    children = multiprocessing.active_children()
    for child in children:
        child.kill()
    for child in children:
        child.join()
