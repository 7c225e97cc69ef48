"""The process of a simulation: ``APP SETTINGS NODES FOLDER NETWORK GPUS [ADDRESS]``.

`flwr run` submits an app to a SuperLink, whose port lets every local account submit code. A
simulation needs no SuperLink: this process calls what Flower's own `flwr-simulation` calls,
with the app's folder in place of an unpacked bundle. It opens no port. Ray's ports are on a
loopback that only the run can see, if the machine allows that (`alone`), and they always
ask for a token (`launch.private_environment`). With an address it joins the Ray cluster
there, on the cluster's own terms.
"""

import os
import secrets
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.text import read_toml
from .alone import leave_the_network
from .environment import RAY, worker_environment

if TYPE_CHECKING:
    from flwr.supercore.run import Run

ALONE, SHARED = "alone", "shared"
SUPERLINK = 1  # Flower's node id of the ServerApp


def simulate(
    app: Path,
    settings: Path,
    nodes: int,
    folder: Path,
    gpus: float = 0.0,
    address: str = "",
) -> None:
    """Run an app to its end, in this process and Ray's.

    Parameters
    ----------
    app
        Folder of the Flower app.
    settings
        TOML of the run's configuration, with flat keys.
    nodes
        Simulated SuperNodes: one process with one core each, as far as there are cores.
    folder
        For Ray's sessions and sockets; it is private, and its path is short.
    gpus
        That Ray hands to each process; 0: every process sees all that are there.
    address
        Of a Ray cluster that computes; nothing: a cluster of this run's own.
    """
    # Not at the top: these imports start threads, and `leave_the_network` must come first.
    from flwr.app import Context, RecordDict
    from flwr.common.config import get_fused_config_from_dir, get_project_config
    from flwr.simulation.run_simulation import _run_simulation
    from flwr.supercore.telemetry import EventType

    from . import pool

    overrides = read_toml(settings.read_text())
    run = _new_run(overrides)
    context = Context(
        run_id=run.run_id,
        node_id=SUPERLINK,
        node_config={},
        state=RecordDict(),
        run_config=get_fused_config_from_dir(app, overrides),
    )
    parts = get_project_config(app)["tool"]["flwr"]["app"]["components"]
    # With privacy it is secret who takes part: then the nodes' output is not kept.
    secret = context.run_config.get("privacy.mode", "off") != "off"
    if address:
        _join(address, app, secret)
    with pool.used(nodes, silent=secret):
        _run_simulation(
            num_supernodes=nodes,
            exit_event=EventType.FLWR_SIMULATION_RUN_LEAVE,
            backend_config=_backend(nodes, folder, secret, gpus),
            client_app_attr=parts["clientapp"],
            server_app_attr=parts["serverapp"],
            server_app_context=context,
            app_dir=str(app),
            run=run,
            is_app=True,
        )


def _new_run(overrides: dict[str, Any]) -> "Run":
    """Make a run that consists of this process's ServerApp."""
    from flwr.supercore.constant import NOOP_FEDERATION_ID
    from flwr.supercore.run import Run
    from flwr.supercore.task_identity import TaskIdentity

    run = Run.create_empty(secrets.randbits(62))
    run.primary_task_id = secrets.randbits(62)
    run.federation_id = NOOP_FEDERATION_ID
    run.override_config = overrides
    TaskIdentity.task_id = run.primary_task_id
    TaskIdentity.run_id = run.run_id
    TaskIdentity.node_id = SUPERLINK
    return run


def _backend(nodes: int, folder: Path, secret: bool, gpus: float) -> dict[str, Any]:
    """Return how Flower starts Ray, unless this process is in a cluster already."""
    ray = {
        "num_cpus": nodes,
        "include_dashboard": False,
        "_temp_dir": str(folder / RAY),  # Ray opens it to everybody, but not its parent
        "log_to_driver": not secret,
        "address": "local",  # always start a cluster, never join one
    }
    return {"client_resources": {"num_cpus": 1, "num_gpus": gpus}, "init_args": ray}


def _join(address: str, app: Path, secret: bool) -> None:
    """Join a cluster before Flower starts one: it takes what is there."""
    import ray

    ray.init(
        address=address,
        log_to_driver=not secret,
        runtime_env={
            "env_vars": {**worker_environment(os.environ), "PYTHONPATH": str(app)}
        },
    )


def main() -> None:
    """Run what the command line names."""
    os.umask(0o077)
    app, settings, nodes, folder, network, gpus, *address = sys.argv[1:]
    if address:
        print("this run computes on a Ray cluster, which decides who reaches its ports")
    elif network == ALONE and leave_the_network():
        print(
            "this run has a network of its own: other accounts cannot reach its ports"
        )
    else:
        print("the ports of this run are on 127.0.0.1, and ask for a token")
    place = (Path(app), Path(settings), int(nodes), Path(folder))
    try:
        simulate(*place, float(gpus), *address)
    except Exception:
        if not _is_waited_for():
            raise
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _is_waited_for() -> bool:
    """Whether a ServerApp is left, which would wait for nodes until its deadline.

    So it is where Ray did not start: on a busy machine it gives up after 30 seconds.
    """
    main, living = threading.main_thread(), threading.enumerate()
    return any(one is not main and not one.daemon for one in living)


if __name__ == "__main__":
    main()
