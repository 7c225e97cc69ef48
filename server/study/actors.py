"""Cells of a study on a Ray cluster: an actor for each that is computed at a time."""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ...common.errors import IdiolectError, refuse_if
from ..simulate.cluster import Cluster, versions
from ..simulate.environment import CHOSEN, worker_environment
from ..simulate.plan import resolve_paths, shared_paths
from .cells import located, placed
from .declaration import Study

# After the first. A cell that ends its process (no memory) is not tried for ever.
RETRIES = 2
PAUSE = 20.0  # seconds before; Ray takes half of that to know that a machine is gone


def paths(study: Study, folder: Path) -> dict[str, str]:
    """Return what all machines of a cluster must have for the cells that are left.

    The key of the configuration -> an absolute path. Where cells have several, the key
    of each further one is followed by the number of its first cell.
    """
    found: dict[str, str] = {}
    for number, one in enumerate(placed(study, folder), 1):
        if one.path.exists():
            continue
        config = resolve_paths(located(one.config), Path.cwd())
        for key, path in shared_paths(config).items():
            if path not in found.values():
                found[f"{key} of cell {number}" if key in found else key] = path
    return found


class Actor:
    """Stands for a process somewhere in a cluster, as an executor of one process does."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def submit(self, function: Callable[..., Any], *words: Any) -> Future[Any]:
        """Call a function there; again, where its process has ended before it answered."""
        answer: Future[Any] = Future()
        left = RETRIES

        def begin() -> None:
            try:
                found = self._actor.run.remote(function, versions(), *words).future()
                found.add_done_callback(done)
            except Exception as error:  # Ray has ended
                answer.set_exception(reason(error))

        def done(found: Future[Any]) -> None:
            nonlocal left
            error = found.exception()
            if error and is_lost(error) and left:
                left -= 1
                again = threading.Timer(PAUSE, begin)
                again.daemon = True
                again.start()
            elif error:
                answer.set_exception(reason(error))
            else:
                answer.set_result(found.result())

        begin()
        return answer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Give the place free for one that waits; what is computed there is lost."""
        import ray
        from ray.exceptions import RayError

        with suppress(RayError):
            ray.kill(self._actor)


class Cells:
    """What runs there.

    Parameters
    ----------
    here
        Folder from which the study was started: relative paths mean what they mean there.
    """

    def __init__(self, here: str) -> None:
        from ..simulate.pool import be_silent

        be_silent()  # Ray would keep what is printed
        with suppress(OSError):
            os.chdir(here)

    def run(
        self, function: Callable[..., Any], expected: dict[str, str], *words: Any
    ) -> Any:
        """Call a function, unless this machine has other versions.

        A machine that came after the study began was not asked by `survey`.
        """
        refuse_if(
            (found := versions()) != expected,
            f"machine {os.uname().nodename} of the cluster has other versions ({found}): "
            "install the same on all. Finished cells are kept.",
        )
        return function(*words)


@contextmanager
def actors(count: int, cluster: Cluster, gpus: float = 0.0) -> Iterator[list[Actor]]:
    """So many actors of one core each, which end with this process.

    One whose machine is lost computes its cell again, from its beginning, where there is
    a place.

    Parameters
    ----------
    count
        How many; more than there are places for wait until one is free.
    cluster
        Its machines have what the study needs (`survey`).
    gpus
        That each has to itself.
    """
    os.environ.update(CHOSEN)
    import ray

    ray.init(
        address=cluster.address,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": worker_environment(os.environ)},
    )
    try:
        kind = ray.remote(
            num_cpus=1,
            num_gpus=gpus,
            max_restarts=-1,
            scheduling_strategy="SPREAD",
        )(Cells)
        yield [Actor(kind.remote(os.getcwd())) for _ in range(count)]
    finally:
        ray.shutdown()


def is_lost(error: BaseException) -> bool:
    """Whether no answer came because the process or its machine has ended."""
    from ray.exceptions import RayError, RayTaskError

    return isinstance(error, RayError) and not isinstance(error, RayTaskError)


def reason(error: BaseException) -> BaseException:
    """Return what went wrong there, as if it had been here."""
    from ray.exceptions import RayTaskError

    if isinstance(error, RayTaskError):
        return error.cause
    if is_lost(error):
        return IdiolectError(
            f"a cell could not be computed on the cluster: its process ended "
            f"{1 + RETRIES} times ({type(error).__name__}); where memory ran out, use "
            "fewer --jobs. Finished cells are kept, and the same command does the rest."
        )
    return error
