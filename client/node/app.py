"""The ClientApp of a simulation: one node, which stands in for many users' devices.

On a device no app is run: `idiolect node` (`worker`) answers the same requests itself,
with the code that its owner installed.
"""

import logging
import math
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from ...common.config import parse_run
from ...common.data.load import load_dataset
from ...common.data.types import Dataset, Users, names_of
from ...common.errors import refuse_if
from ...common.protocol.messages import HelloRequest, Request
from ...common.protocol.signed import Sealed, verify
from ...common.text import guard
from .handlers import answer
from .host import Node
from .state import FolderStore, pinned_key

guard(logging.getLogger("flwr"))
app = ClientApp()


@app.query("hello")
@app.train("adapt")
@app.query("vote")
@app.query("offer")
@app.query("share")
@app.query("confirm")
@app.query("open")
@app.train("personalise")
@app.evaluate()
def respond(message: Message, context: Context) -> Message:
    """Answer any request of the protocol (see `handlers.HANDLERS`)."""
    return Message(answer(message, Simulated(context)), reply_to=message)


class Simulated:
    """The host of a simulated node's users."""

    simulated = True

    def __init__(self, context: Context) -> None:
        self._place = context.node_config

    def admit(self, sealed: Sealed) -> FolderStore:
        """Believe the key of the first hello, which each user pins, and no other.

        Counters are for devices, which others can reach: here requests of one exchange
        overtake each other.
        """
        folder = Path(sealed.fields["folder"])
        refuse_if(
            not folder.is_absolute(),
            "the request names no run folder: its run is on devices.",
        )
        store = FolderStore(folder)
        if sealed.cls is HelloRequest:
            key = sealed.fields["key"]
        else:
            key = pinned_key(store, sealed.users[0])
        verify(sealed, key)
        return store

    def node(self, request: Request, started: float) -> Node:
        """Find out who lives on this node, and whom of them the request is for."""
        refuse_if(
            "partition-id" not in self._place,
            "this node is not simulated, and a device runs no app that a server sent: "
            "end the SuperNode, and start `idiolect node run` instead.",
        )
        config, _ = parse_run(request.config)
        partition = int(self._place["partition-id"])
        nodes = int(self._place["num-partitions"])
        dataset = load_dataset(config)
        residents = residents_of(dataset, config.users_per_node, partition, nodes)
        at_home = {name: place for place, name in enumerate(names_of(residents))}
        for name in request.users:
            refuse_if(
                name not in at_home, f"user '{name}' does not live on node {partition}."
            )
        return Node(
            config,
            users=tuple(residents[at_home[name]] for name in request.users),
            residents=residents,
            development=frozenset(names_of(dataset.development)),
            store=FolderStore(Path(request.folder)),
            started=started,
            nodes=nodes,
            numbers=dataset.numbers,
            # Every simulated node sees the same data; one of them reports what is left out.
            dropped=dataset.dropped if partition == 0 else {},
        )


def residents_of(
    dataset: Dataset, users_per_node: int, partition: int, nodes: int
) -> Users:
    """Return the users of one simulated node.

    Dealt out like cards, so that the development users, who come last, do not all end up
    on one node while the others wait.

    Parameters
    ----------
    dataset
        Everybody: the evaluated users, then the development users.
    users_per_node
        How many a node hosts; 0 spreads them evenly.
    partition, nodes
        Which node, of how many.

    Raises
    ------
    IdiolectError
        The nodes together cannot host everybody.
    """
    everybody = dataset.everybody
    each_hosts = users_per_node or math.ceil(len(everybody) / nodes)
    needed = math.ceil(len(everybody) / each_hosts)
    refuse_if(
        needed > nodes,
        f"{nodes} nodes with {each_hosts} users each cannot host {len(everybody)} users: "
        f"set users-per-node=0, or start {needed} simulated nodes "
        f'(--federation-config "num-supernodes={needed}").',
    )
    return everybody[partition::needed] if partition < needed else ()
