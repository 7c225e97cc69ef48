"""Where a request is carried out, and what every handler needs for it.

Who lives on a node, and where things are kept, is answered by its `Host`: of a simulated
node (`app`), which stands in for many users, or of a device (`device`), which works for its
owner.

Threads: PyTorch takes them from ``OMP_NUM_THREADS``, which Ray sets to the CPUs of the
actor (two by default), so nothing is set here.
"""

import logging
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import torch
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from ...common.command import out_of_memory
from ...common.config import Config, LoraShape
from ...common.data.types import User, Users, names_of
from ...common.engine.adapters import Lora, zero_shared
from ...common.engine.backbone import Backbone, backbone_of
from ...common.engine.reference import Reference
from ...common.errors import IdiolectError
from ...common.process import peak_mb, process_name
from ...common.protocol.manifest import ManifestError
from ...common.protocol.messages import ProtocolError, Request, Rows
from ...common.protocol.quantization import coded_shapes, decode
from ...common.protocol.signed import Sealed
from ...common.protocol.validation import check_rows
from ...common.secure.directory import Entry
from ..owner.consent import Refusal
from .state import RunStore

LOG = logging.getLogger("flwr")
Some = TypeVar("Some")


def _everything(_outflow: str, _config: Config) -> None:
    """Simulated users consent to everything."""


@dataclass(frozen=True)
class Node:
    """Where a request is carried out.

    Attributes
    ----------
    config
        The run's configuration, as it holds here.
    users
        The users of this node that the request is for.
    residents
        All users of this node, evaluated and development.
    development
        Names of those residents on whom only learning rates are chosen.
    store
        Where what belongs to the run is kept.
    started
        When the request came in.
    agreement
        Hash of the configuration, which does not change within a run.
    nodes
        Among how many simulated nodes this is one; 0: this is a device.
    dropped
        Reason -> users left out of the data, from the one node that reports them.
    permit
        Raises where the owner does not consent to an outflow: ``update``, ``votes``,
        ``items``, ``metrics``, ``text``; or to ``training`` here.
    numbers
        User -> the number by which other members of masked sums know it.
    identity
        The device's own key, which signs its keys of a run; None: a simulated user makes
        one.
    voucher
        A witness's signature of the device's key; empty: there is none.
    pin
        Called with the directory of a run's members; raises where one is known by another
        key, or unknown to the witness.
    trained
        Called with the shared and the own adapter, the method and the `state.identity` of
        what was trained for good, before the server hears of it.
    """

    config: Config
    users: tuple[User, ...]
    residents: Users
    development: frozenset[str]
    store: RunStore
    started: float
    agreement: str = ""
    nodes: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    permit: Callable[[str, Config], None] = _everything
    numbers: Mapping[str, int] = field(default_factory=dict)
    identity: EllipticCurvePrivateKey | None = None
    voucher: str = ""
    pin: Callable[[Sequence[Entry]], None] | None = None
    trained: Callable[[Lora, Lora, str, str], None] | None = None

    @property
    def simulated(self) -> bool:
        """Whether this node stands in for devices."""
        return self.nodes > 0


class Host(Protocol):
    """Who lives on a node.

    Attributes
    ----------
    simulated
        Whether the node stands in for devices.
    """

    simulated: bool

    def admit(self, sealed: Sealed) -> RunStore:
        """Find out whether a request may be done here, before anything of it is used.

        Returns
        -------
        RunStore
            Where what belongs to its run is kept.

        Raises
        ------
        IdiolectError
            It is not signed by whom this node believes, or may not be done now.
        """
        ...

    def node(self, request: Request, started: float) -> Node:
        """Find the users that a request is for.

        Raises
        ------
        IdiolectError
            They do not live here, or the request cannot be done here.
        """
        ...


def each(
    node: Node, users: Sequence[User], work: Callable[[Sequence[User]], list[Some]]
) -> tuple[dict[str, Some], dict[str, str]]:
    """Do the work for all users at once; if that fails, for one after the other.

    So one user whose data breaks the training costs only that user.

    Returns
    -------
    tuple
        User -> result, and user -> sentence for those that fail even alone.
    """
    try:
        return dict(zip(names_of(users), work(users), strict=True)), {}
    except Exception as error:
        if len(users) == 1:
            return {}, {users[0].id: sentence(error, node.simulated)}
    results, errors = dict[str, Some](), dict[str, str]()
    for user in users:
        done, failed = each(node, [user], work)
        results |= done
        errors |= failed
    return results, errors


def each_alone(
    node: Node, users: Sequence[User], work: Callable[[User], Some]
) -> tuple[dict[str, Some], dict[str, str]]:
    """`each`, for work that is done for one user at a time anyway."""
    return each(node, users, lambda some: [work(user) for user in some])


def sentence(error: Exception, simulated: bool) -> str:
    """One sentence for an error; what is a defect of ours is also logged in full.

    A device tells a server only what cannot quote the owner's text, and does not write to
    its log what an unforeseen error quotes.
    """
    if isinstance(error, Refusal | ProtocolError | ManifestError):
        return str(error)
    if out_of_memory(error) and not simulated:
        return "the work does not fit into the memory of this device."
    if not simulated:
        where = traceback.extract_tb(error.__traceback__)[-1]
        mine = str(error) if isinstance(error, IdiolectError) else ""
        LOG.warning(
            "a request failed: %s at %s:%s %s",
            *(type(error).__name__, where.filename, where.lineno, mine),
        )
        return f"{type(error).__name__}: the device's own log says more."
    if isinstance(error, IdiolectError):
        return str(error)
    LOG.warning("a request failed", exc_info=error)
    return f"{type(error).__name__}: {error}"[:500]


def reply_head(
    request: Request, node: Node, users: tuple[str, ...], errors: dict[str, str]
) -> dict[str, Any]:
    """Return the fields that every reply begins with."""
    head = {"run": request.run, "step": request.step, "users": users, "errors": errors}
    if not node.simulated:  # how long a device takes would tell how much it holds
        return head | {"seconds": 0.0, "process": "", "peak_rss_mb": 0.0}
    return head | {
        "seconds": time.monotonic() - node.started,
        "process": process_name(),
        "peak_rss_mb": peak_mb(),
    }


def is_noisy(config: Config) -> bool:
    """Whether metrics leave in sums with noise only."""
    return config.privacy.metrics == "noisy"


def is_open(node: Node) -> bool:
    """Whether counts and logs may be told: in a simulation that hides no metrics."""
    return node.simulated and not is_noisy(node.config)


def reference_of(config: Config, rows: Rows) -> Reference:
    """Return the reference: our own fixed A and the B that came with the request.

    Raises
    ------
    ProtocolError
        B has other projections, shapes or numbers than the configuration says.
    """
    zero = untrained(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in zero.b.items()}
    check_rows(rows, coded_shapes(shapes) if config.signed_bytes else shapes)
    if config.signed_bytes:
        rows = decode(rows, shapes)
    reference = resident(config)
    device = reference.backbone.device
    b = {name: torch.tensor(array).to(device) for name, array in rows.items()}
    return reference.with_shared(Lora(zero.a, b, zero.scaling))


@lru_cache(maxsize=1)
def _zero_shared(backbone: Backbone, shape: LoraShape, seed: int) -> Lora:
    return zero_shared(backbone, shape, seed)


def untrained(config: Config) -> Lora:
    """Return the shared adapter before its first round."""
    return _zero_shared(backbone_of(config), config.shared_shape, config.seed)


@lru_cache(maxsize=1)
def _resident(backbone: Backbone) -> Reference:
    return Reference(backbone)


def resident(config: Config) -> Reference:
    """Return the bare reference of this process, which keeps what was computed."""
    return _resident(backbone_of(config))


def forget() -> None:
    """Drop what was computed from users' texts in this process."""
    _resident.cache_clear()
