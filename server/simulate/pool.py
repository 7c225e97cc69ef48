"""Flower's simulation backend, with actors that may die and machines that may go.

Flower's own pool puts an actor that has died back among the idle ones, so each later
message that meets it fails too. And it runs at most ``min(32, cores + 4)`` messages at
once, by the cores of the machine where the run was started. Here a message whose actor
died goes to another actor, and a new actor waits in Ray for a place: on another machine,
or on the same one when it is back. Nothing that a user's numbers depend on lives in an
actor (requests carry all they need, and stored adapters lie in the run's folder), so it
does not matter who answers.
"""

import contextlib
import os
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from logging import INFO, WARNING, getLogger
from typing import Any

import ray
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.server.superlink.fleet.vce import vce_api
from flwr.server.superlink.fleet.vce.backend import raybackend
from flwr.simulation.ray_transport.ray_actor import (
    ClientAppActor,
    pool_size_from_resources,
)
from ray.exceptions import RayError, RayTaskError

from .cluster import versions

LOG = getLogger("flwr")
# A message that ends its process (no memory, a defect) is not tried for ever. The loss of
# a machine is not the message's fault and does not count.
TRIES = 3
NEVER = ""  # the machine of an actor that could not be started
# In the log: a machine's id, and how many; each of the first FEW, then at powers of two.
ANSWERED, FEW = "messages answered on Ray's machine ", 64
POLL = 1.0  # seconds between two looks whether an actor is up, or the run has ended


class Pool(raybackend.RayBackend):
    """Flower's Ray backend, which outlives its actors.

    Parameters
    ----------
    backend_config
        Flower's: ``client_resources`` of one actor, ``init_args`` of Ray.
    most
        Actors at most: more than simulated nodes would never be used.
    silent
        Whether actors write no log, and this says nothing of them either.
    """

    def __init__(
        self, backend_config: dict[str, Any], most: int, silent: bool = False
    ) -> None:
        super().__init__(backend_config)
        self._most, self._silent = most, silent
        self._count = 0
        self._idle: queue.Queue[tuple[Any, str]] = queue.Queue()
        self._ended = threading.Event()
        self._starting: list[threading.Thread] = []
        self._answered: Counter[str] = Counter()
        self._counting = threading.Lock()

    @property
    def num_workers(self) -> int:
        """Messages that are answered at the same time."""
        return self._count

    def is_worker_idle(self) -> bool:
        """Whether an actor has nothing to do."""
        return not self._idle.empty()

    def build(self, app_fn: Callable[[], ClientApp]) -> None:
        """Start as many actors as the cluster has places for."""
        self.app_fn = app_fn
        self._count = min(self._most, pool_size_from_resources(self.client_resources))
        for _ in range(self._count):
            self._start()

    def process_message(
        self, message: Message, context: Context
    ) -> tuple[Message, Context]:
        """Let an actor answer; another one, where that dies before it has."""
        partition = str(context.node_config["partition-id"])
        died = 0
        while True:
            actor, machine = self._idle.get()
            try:
                answer = actor.run.remote(self.app_fn, message, partition, context)
                _, reply, state = ray.get(answer)
            except RayTaskError:  # the app's own error
                self._idle.put((actor, machine))
                raise
            except RayError as error:
                LOG.log(WARNING, "an actor has died: %s", type(error).__name__)
                with contextlib.suppress(RayError):
                    ray.kill(actor)
                self._start()
                died += machine == NEVER or machine in machines()
                if died == TRIES:
                    raise
            except BaseException:
                self._idle.put((actor, machine))
                raise
            else:
                self._idle.put((actor, machine))
                self._count_answer(machine)
                return reply, state

    def terminate(self) -> None:
        """Leave Ray, which ends the actors."""
        self._ended.set()
        for thread in self._starting:
            thread.join()
        ray.shutdown()

    def _count_answer(self, machine: str) -> None:
        """Say in the log how many messages a machine has answered, ever more rarely."""
        if self._silent:
            return
        with self._counting:
            self._answered[machine] += 1
            count = self._answered[machine]
        if count < FEW or not count & (count - 1):
            LOG.log(INFO, "%s%s: %d", ANSWERED, machine, count)

    def _start(self) -> None:
        """Ask Ray for an actor; it is used as soon as there is a place for it."""
        thread = threading.Thread(target=self._hire, daemon=True)
        self._starting = [one for one in self._starting if one.is_alive()] + [thread]
        thread.start()

    def _hire(self) -> None:
        # Spread: no machine's memory is filled before the others are used.
        asked = ClientAppActor.options(  # pyright: ignore[reportAttributeAccessIssue]
            **self.client_resources, scheduling_strategy="SPREAD"
        )
        actor: Any = asked.remote(on_actor_init_fn=be_silent if self._silent else None)
        where = actor.__ray_call__.remote(_here)
        try:
            while not ray.wait([where], timeout=POLL)[0]:
                if self._ended.is_set():
                    return
            machine, found = ray.get(where)
            # A machine that came after the run began was not asked by `survey`.
            if found == versions():
                return self._idle.put((actor, machine))
            ray.kill(actor)
            reason = f"{machine} has other versions: {found}"
        except RayError as error:
            reason = type(error).__name__
        LOG.log(WARNING, "an actor could not be started: %s", reason)
        time.sleep(POLL)  # if none ever can, messages still fail one by one
        self._idle.put((actor, NEVER))


def _here(_actor: Any) -> tuple[str, dict[str, str]]:
    """Return Ray's id of the machine that this runs on, and what is installed there."""
    return ray.get_runtime_context().get_node_id(), versions()


def machines() -> set[str]:
    """Ray's ids of the machines that are there."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def be_silent() -> None:
    """Let this process write nothing more.

    On a cluster Ray keeps what actors write in files of its own, which no run removes.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextlib.contextmanager
def used(nodes: int, silent: bool) -> Iterator[None]:
    """Let Flower's simulation use `Pool`, with a thread for each of its actors.

    Flower has no setting for either.
    """
    before = raybackend.RayBackend, vce_api.ThreadPoolExecutor  # pyright: ignore
    backend = partial(Pool, most=nodes, silent=silent)
    raybackend.RayBackend = backend  # pyright: ignore
    vce_api.ThreadPoolExecutor = partial(  # pyright: ignore
        ThreadPoolExecutor, max_workers=nodes
    )
    try:
        yield
    finally:
        raybackend.RayBackend, vce_api.ThreadPoolExecutor = before  # pyright: ignore
