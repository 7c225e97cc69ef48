"""Talk to a SuperLink that serves devices: Flower's own commands, and their answers."""

import contextlib
import json
import re
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...common.errors import IdiolectError, pip_install, refuse_if
from ..simulate.environment import BIN

COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # which Flower's commands write into pipes, too
CONNECTION = "private"  # what Flower's own configuration calls the SuperLink


def connection(port: int | str, trust: str) -> str:
    """Flower's own configuration: where the SuperLink is, and one line of whom to trust."""
    return (
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
        f'address = "127.0.0.1:{port}"\n{trust}\n'
    )


def free_port() -> int:
    """Return a port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def flwr(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> tuple[dict[str, Any], str]:
    """Run a `flwr` command that answers in JSON; return the answer, or why it failed.

    Raises
    ------
    IdiolectError
        There is no such command.
    """
    refuse_if(
        not (BIN / "flwr").is_file(),
        f"Flower's command is not installed ({BIN / 'flwr'}): "
        f"`{pip_install('idiolect[server]')}`.",
    )
    done = subprocess.run(
        [str(BIN / "flwr"), *arguments, "--format", "json"],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        umask=0o077,
        start_new_session=True,  # Ctrl-C is ours: a run is handed over whole or not
    )
    answer: Any = {}
    with contextlib.suppress(ValueError):
        answer = json.loads(done.stdout)
    answer = answer if isinstance(answer, dict) else {}
    said = answer.get("error-message") or done.stdout + done.stderr
    return answer, " ".join(COLOUR.sub("", str(said)).split())


def submit(app: Path, settings: Path, environment: Mapping[str, str]) -> str:
    """Hand an app to the SuperLink; return Flower's id of the run."""
    answer, reason = flwr(
        ["run", str(app), CONNECTION, "--run-config", str(settings)], environment
    )
    refuse_if(not answer.get("run-id"), f"Flower refused the app {app}: {reason}")
    return str(answer["run-id"])


def check_status(log: Path, identity: str, environment: Mapping[str, str]) -> None:
    """Ask the SuperLink about a run that has not written anything yet.

    Raises
    ------
    IdiolectError
        It has ended.
    """
    answer, _ = flwr(["list", CONNECTION, "--run-id", identity], environment)
    for run in answer.get("runs", []):
        if str(run.get("status", "")).startswith("finished"):
            details = run.get("status-details") or run["status"]
            raise IdiolectError(
                f"the run ended before it began ({details}): see the end of {log}."
            )
