"""The cells of a study, several at the same time in processes of their own.

Each process takes the next cell when it is free, and makes for itself what cells share. The
files are those of one process, bit for bit if that has as many threads (OMP_NUM_THREADS).
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from ...common.errors import IdiolectError
from ...common.files import make_private, private_folder
from ...common.text import tell
from .cache import Cache
from .cells import Placed, compute, finished, placed, run_study, title, until_end
from .declaration import Study
from .kept import store

# Of a process that computes cells; the parent's is empty.
_CACHE = Cache()


def run_side_by_side(
    study: Study,
    folder: Path,
    jobs: int,
    say: Callable[[str], None] = tell,
    ahead: Sequence[float] = (),
    kept: Path | None = None,
) -> list[dict[str, Any]]:
    """Run the cells that have no file yet in so many processes; return all.

    Where OMP_NUM_THREADS is not set, the processes share the cores evenly.

    Parameters
    ----------
    study, folder, say, ahead, kept
        As in `cells.run_study`.
    jobs
        How many cells are computed at the same time.

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
    context = multiprocessing.get_context("spawn")
    spent = expected = 0.0
    with ProcessPoolExecutor(max(1, min(jobs, len(left))), context, _begin) as pool:
        names = {k: title(todo, k) for k in left}
        futures = {
            pool.submit(_cell, todo[k], names[k], study.measured): k for k in left
        }
        try:
            for future in as_completed(futures):
                number = futures[future]
                took = _result(future)
                if took is None:  # another command computes it
                    continue
                spent += took
                expected += sum(ahead[number : number + 1])
                pace = spent / expected / jobs if expected else 0.0
                left_over = until_end(ahead, files, pace)
                say(f"{names[number]}: {took:.0f} s{left_over}")
                if kept:
                    store(kept, files)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            _end()
            raise
    if all(file.exists() for file in files):
        return finished(study, folder, kept)
    return run_study(study, folder, say, ahead, kept)


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
