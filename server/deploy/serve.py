"""Keep a server of devices up: Flower's two processes and the proxy before them.

One folder (``$IDIOLECT_HOME/server``) has everything: the keys, Flower's database, and the
notes of the running server. A server has three processes, and `serve` starts each one again
when it ends:

    superlink   Flower's; reached on this machine only, with TLS, node keys and a database
    superexec   Flower's; starts a ServerApp for each run
    proxy       `proxy`; the only port that devices reach

Flower does not start a killed ServerApp again: `idiolect-server run` says so, and the same
command with ``--resume latest`` continues from its checkpoint.
"""

import contextlib
import datetime
import fcntl
import json
import math
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...common.errors import IdiolectError
from ...common.files import make_private, write_atomically
from ..run import results
from ..run.live import SIGNING_KEY, WITNESS
from ..simulate import processes
from ..simulate.environment import flower_environment
from . import database, keys, logs, monitor, superlink
from .flower import connection, free_port
from .metrics import Watched
from .places import DATABASE, LOG
from .proxy import bound

WARNED_DAYS = 30  # before its end `serve` warns of it
DAY = 86400.0  # seconds between two warnings
START_SECONDS = 60.0
# At level INFO the SuperLink logs which node sent a reply, that is, who took part.
QUIET = {"superlink": {"FLWR_LOG_LEVEL": "WARNING"}}
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds before a process is started again


@dataclass(frozen=True)
class Serving:
    """The notes of a running server.

    Attributes
    ----------
    mark
        In the environment of all that it started (`processes`).
    port
        Of the SuperLink on this machine.
    host, proxy
        Where the proxy listens, and its port; an earlier version did not note them.
    """

    mark: str
    port: int
    host: str = ""
    proxy: int = 0


def serving(folder: Path) -> Serving | None:
    """Return the notes of the last server; None if it ended normally or never ran."""
    try:
        return Serving(**json.loads((folder / "serving.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def running(folder: Path) -> dict[str, str]:
    """Return the environment of commands that talk to the running server.

    Raises
    ------
    IdiolectError
        No server is running.
    """
    now = serving(folder)
    if now is None or not results.is_locked(folder):
        raise IdiolectError(
            f"no server is up for {folder}: start one by `idiolect-server serve`."
        )
    return environment_of(folder, now)


def serve(
    folder: Path,
    host: str,
    port: int | None,
    say: Callable[[str], None],
    metrics: int | None = None,
    log: Path | None = None,
) -> None:
    """Keep a server up until SIGTERM or Ctrl-C; end all that was started.

    Parameters
    ----------
    folder
        Where `keys.keys_init` wrote.
    host, port
        Where to listen; a port of None is that of the invitation.
    say
        Called with each line for the operator.
    metrics
        Port of 127.0.0.1 for `monitor`; None: none.
    log
        File for structured lines (`logs`); None: none.

    Raises
    ------
    IdiolectError
        There are no keys, another `serve` uses the folder, a port is taken, or the log
        cannot be written.
    """
    keys.check_keys(folder)
    keys.certificate_end(folder)
    name, invited = keys.invited_to(folder)
    port = invited if port is None else port
    if metrics is not None:
        keys.check_port(metrics)
    os.umask(0o077)  # log, database and token are for this account alone
    folder.chmod(0o700)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    make_private(folder)
    with _alone(folder):
        if (before := serving(folder)) is not None:  # it was killed
            processes.end(before.mark)
        _check_listening(host, port)
        now = Serving(secrets.token_hex(16), free_port(), host, port)
        watched = Watched(folder, host, port, now.port, now.mark)
        record = logs.recorder(log)

        def told(text: str) -> None:
            say(text)
            record(text, "serve")

        with monitor.monitored(metrics, watched):
            for line in _introduction(folder, f"{name}:{invited}", watched, metrics):
                told(line)
            results.write_json(folder / "serving.json", vars(now))
            _configure_flower(folder, now)
            output = logs.Output(folder / LOG, record)
            _serve_until(stopping, now, watched, output, told)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; refuse a folder that another process serves."""
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise IdiolectError(
                f"{folder} is being served already: end that process first "
                "(Ctrl-C where it runs, or `systemctl stop`)."
            ) from None
        yield


def _serve_until(
    stopping: threading.Event,
    now: Serving,
    watched: Watched,
    output: logs.Output,
    say: Callable[[str], None],
) -> None:
    """Keep the processes up and the database clean until told to stop."""
    folder = watched.folder
    base = folder / DATABASE
    database.forget_ended(base, database.ALL_ENDED)  # the last server was killed
    threading.Thread(
        target=database.keep_forgetting, args=(base, stopping), daemon=True
    ).start()
    commands = _commands(folder, watched.host, watched.port, now)
    try:
        _keep_up(commands, environment_of(folder, now), watched, stopping, output, say)
    finally:
        processes.end(now.mark)
        database.forget_ended(base, database.ALL_ENDED)
        (folder / "serving.json").unlink(missing_ok=True)
        say("the server has ended")


def _check_listening(host: str, port: int) -> None:
    """Refuse an address where the proxy could not listen."""
    keys.check_port(port)
    try:
        bound(host, port).close()
    except (OSError, UnicodeError) as error:
        raise IdiolectError(
            f"cannot listen at {host} port {port} "
            f"({getattr(error, 'strerror', None) or error}): end what listens there, or "
            "give another --host or --port."
        ) from None


def _introduction(
    folder: Path, address: str, watched: Watched, metrics: int | None
) -> list[str]:
    """What the operator needs to know: address, fingerprint, log, how to end it."""
    place, host, port = folder.absolute(), watched.host, watched.port
    asked = f"monitoring          http://127.0.0.1:{metrics}/health and /metrics"
    warning = (
        f"warning: the invitation says {address}, so something must pass its port on "
        f"to {port}; else start `serve` without --port"
    )
    return [
        f"devices connect to  {address}",
        f"listening at        {host} port {port}",
        *([] if address.endswith(f":{port}") else [warning]),
        f"invitation          {place / 'invitation.json'}",
        "authority, SHA-256 (`idiolect node join` shows the same):",
        f"  {keys.fingerprint(folder)}",
        f"log                 {place / LOG}",
        *([] if metrics is None else [asked]),
        f"to end it           Ctrl-C, or kill {os.getpid()}; runs end with it",
    ]


def _configure_flower(folder: Path, now: Serving) -> None:
    """Write what Flower's commands read: where the SuperLink is, and its token."""
    trust = f'root-certificates = "{folder.absolute() / "ca.crt"}"'
    token = secrets.token_urlsafe(32)
    login = superlink.credentials(f"127.0.0.1:{now.port}", token)
    for name, text in (
        ("config.toml", connection(now.port, trust)),
        ("credentials.yaml", login),
        ("token", token),
    ):
        write_atomically(folder / "flower" / name, text.encode())


def _warn_of_end(folder: Path, say: Callable[[str], None]) -> None:
    """Warn if the server's certificate has ended or will end soon."""
    try:
        end = keys.certificate_end(folder)
    except IdiolectError as error:  # damaged since the start; the old one is in use
        return say(f"warning: {error}")
    left = end - keys.now()
    if left < datetime.timedelta(days=WARNED_DAYS):
        verb = "ends" if left > datetime.timedelta(0) else "ended"
        say(
            f"warning: the server's certificate {verb} on {end:%Y-%m-%d}, and devices "
            "refuse it then: `idiolect-server keys renew`, and start `serve` again"
        )


def environment_of(folder: Path, now: Serving) -> dict[str, str]:
    """Return the environment of all processes of a server."""
    place = folder.absolute()
    return {
        **flower_environment(place / "flower", now.mark),
        SIGNING_KEY: str(place / "signing.key"),
        WITNESS: keys.invitation_of(place / keys.INVITATION).get("witness", ""),
    }


def _commands(folder: Path, host: str, port: int, now: Serving) -> dict[str, list[str]]:
    """Return the command line of each process."""
    place = folder.absolute()
    token, pair = str(place / "flower" / "token"), str(place / keys.PAIR)
    authority = str(place / "ca.crt")
    flower = [sys.executable, "-P", "-m", "idiolect.server.deploy.superlink"]
    return {
        "superlink": [
            *(*flower, "superlink", token),
            *("--host", "127.0.0.1", "--port", str(now.port)),
            *("--ssl-ca-certfile", authority),
            *("--ssl-certfile", pair, "--ssl-keyfile", pair),
            "--enable-supernode-auth",
            *("--database", str(place / DATABASE)),
            *("--isolation", "process"),
            *("--superexec-auth-secret-file", token),
            "--disable-runtime-dependency-installation",
        ],
        "superexec": [
            *(*flower, "superexec"),
            *("--superexec-auth-secret-file", token),
            *("--root-certificates", authority),
            *("--runtime-api-address", f"127.0.0.1:{now.port}"),
        ],
        "proxy": [
            *(sys.executable, "-P", "-m", "idiolect.server.deploy.proxy"),
            *(host, str(port), str(now.port), str(place), pair),
        ],
    }


def _keep_up(
    commands: Mapping[str, Sequence[str]],
    environment: Mapping[str, str],
    watched: Watched,
    stopping: threading.Event,
    output: logs.Output,
    say: Callable[[str], None],
) -> None:
    """Start every process, and start it again when it ends, after growing pauses."""
    folder = watched.folder
    running: dict[str, subprocess.Popen[bytes]] = {}
    wait = dict.fromkeys(commands, FIRST_WAIT)
    due = dict.fromkeys(commands, 0.0)
    warned = -math.inf
    with output.path.open("ab") as log:
        while not stopping.is_set():
            if time.monotonic() - warned > DAY:
                _warn_of_end(folder, say)
                warned = time.monotonic()
            for name, command in commands.items():
                process = running.get(name)
                if process is not None and process.poll() is not None:
                    say(
                        f"warning: {name} ended with {process.returncode}; it starts again "
                        "(see the end of server.log)"
                    )
                    del running[name]
                    due[name] = time.monotonic() + wait[name]
                    wait[name] = min(2 * wait[name], LONGEST_WAIT)
                elif process is None and time.monotonic() >= due[name]:
                    running[name] = subprocess.Popen(
                        command,
                        env={**environment, **QUIET.get(name, {})},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,  # `serve` gets Ctrl-C and ends the rest
                    )
                    watched.starts[name] += 1
                    if name == "superlink" and _answers(watched, running[name]):
                        say("the SuperLink is up")
                    if name == "proxy":
                        say("the proxy is up: devices and runs can connect")
            output.look()
            stopping.wait(0.5)
    output.look()


def _answers(watched: Watched, process: "subprocess.Popen[bytes]") -> bool:
    """Wait until the SuperLink answers: the other processes end if they find none."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if monitor.superlink_answers(watched.folder, watched.inner):
            return True
        time.sleep(0.2)
    return False
