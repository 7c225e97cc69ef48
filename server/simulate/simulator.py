"""The process of a simulation: ``APP SETTINGS NODES FOLDER NETWORK``.

`flwr run` submits an app to a SuperLink, whose port lets every local account submit code. A
simulation needs no SuperLink: this process calls what Flower's own `flwr-simulation` calls,
with the app's folder in place of an unpacked bundle. It opens no port. Ray's ports are on a
loopback that only the run can see, if the machine allows that (`alone`), and they always
ask for a token (`launch.private_environment`).
"""

import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...common.text import read_toml
from .alone import leave_the_network
from .environment import RAY

ALONE, SHARED = "alone", "shared"
SUPERLINK = 1  # Flower's node id of the ServerApp


def simulate(app: Path, settings: Path, nodes: int, folder: Path) -> None:
    """Run an app to its end, in this process and Ray's.

    Parameters
    ----------
    app
        Folder of the Flower app.
    settings
        TOML of the run's configuration, with flat keys.
    nodes
        Simulated SuperNodes: one process with one core each.
    folder
        For Ray's sessions and sockets; it is private, and its path is short.
    """
    # Not at the top: these imports start threads, and `leave_the_network` must come first.
    from flwr.app import Context, RecordDict
    from flwr.common.config import get_fused_config_from_dir, get_project_config
    from flwr.simulation.run_simulation import _run_simulation
    from flwr.supercore.constant import NOOP_FEDERATION_ID
    from flwr.supercore.run import Run
    from flwr.supercore.task_identity import TaskIdentity
    from flwr.supercore.telemetry import EventType

    overrides = read_toml(settings.read_text())
    run = Run.create_empty(secrets.randbits(62))
    run.primary_task_id = secrets.randbits(62)
    run.federation_id = NOOP_FEDERATION_ID
    run.override_config = overrides
    TaskIdentity.task_id = run.primary_task_id
    TaskIdentity.run_id = run.run_id
    TaskIdentity.node_id = SUPERLINK
    context = Context(
        run_id=run.run_id,
        node_id=SUPERLINK,
        node_config={},
        state=RecordDict(),
        run_config=get_fused_config_from_dir(app, overrides),
    )
    parts = get_project_config(app)["tool"]["flwr"]["app"]["components"]
    _run_simulation(
        num_supernodes=nodes,
        exit_event=EventType.FLWR_SIMULATION_RUN_LEAVE,
        backend_config=_backend(nodes, folder, context.run_config),
        client_app_attr=parts["clientapp"],
        server_app_attr=parts["serverapp"],
        server_app_context=context,
        app_dir=str(app),
        run=run,
        is_app=True,
    )


def _backend(nodes: int, folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return how Flower starts Ray."""
    ray = {
        "num_cpus": nodes,
        "include_dashboard": False,
        "_temp_dir": str(folder / RAY),  # Ray opens it to everybody, but not its parent
        # With privacy it is secret who takes part: then the nodes' output is not kept.
        "log_to_driver": config.get("privacy.mode", "off") == "off",
        "address": "local",  # always start a cluster, never join one
    }
    return {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": ray}


def main() -> None:
    """Run what the command line names."""
    os.umask(0o077)
    app, settings, nodes, folder, network = sys.argv[1:]
    if network == ALONE and leave_the_network():
        print(
            "this run has a network of its own: other accounts cannot reach its ports"
        )
    else:
        print("the ports of this run are on 127.0.0.1, and ask for a token")
    simulate(Path(app), Path(settings), int(nodes), Path(folder))


if __name__ == "__main__":
    main()
