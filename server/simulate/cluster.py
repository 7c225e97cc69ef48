"""A Ray cluster that is there already: who is in it, and what each machine has.

Results are the same as on one machine only where every machine computes with the same
versions on the same files, and finds what another stored. So a run asks every machine
before it begins. That is done by a process of its own (``ADDRESS``, a job in JSON on its
standard input): Ray starts threads and prints what it likes.
"""

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import secrets
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.command import one_line
from ...common.errors import IdiolectError, refuse_if
from ...common.files import private

# On which the numbers depend. Ray compares its own version and Python's.
PACKAGES = ("idiolect", "flwr", "torch", "transformers", "numpy")
# Seconds that a port, a machine, and all together may take to answer.
CONNECT, ANSWER, JOINED = 5.0, 120.0, 180.0


@dataclass(frozen=True)
class Machine:
    """What one machine of a cluster has.

    Attributes
    ----------
    name
        Host and address, as people know it.
    versions
        Package -> version; empty where it is not installed.
    files
        Key of the configuration -> what its path holds (`contents`).
    shares
        Whether it sees what this machine wrote into the folder of runs, and can write.
    processor
        Its kind.
    cpus, gpus
        That Ray may use.
    """

    name: str
    versions: dict[str, str]
    files: dict[str, str]
    shares: bool
    processor: str
    cpus: int = 0
    gpus: float = 0.0


@dataclass(frozen=True)
class Cluster:
    """A cluster on which a run can be computed as on this machine.

    Attributes
    ----------
    address
        Host and port of its head.
    machines
        Those that compute.
    warnings
        What may be otherwise than on one machine.
    """

    address: str
    machines: tuple[Machine, ...]
    warnings: tuple[str, ...] = ()

    def places(self, gpus: float, option: str) -> int:
        """Return how many processes of one core, and so many GPUs, it can hold.

        Raises
        ------
        IdiolectError
            No machine can hold one. `option` is the one that says the number of GPUs.
        """
        places = sum(
            min(one.cpus, int(one.gpus / gpus)) if gpus else one.cpus
            for one in self.machines
        )
        refuse_if(
            not places,
            f"{option} is {gpus:g}, and no machine of the cluster has so many GPUs and a "
            "core: lower it, or leave it out.",
        )
        return places


def survey(
    address: str,
    paths: Mapping[str, str],
    folder: Path,
    environment: Mapping[str, str],
) -> Cluster:
    """Ask every machine of a cluster whether it can take part in a run.

    Parameters
    ----------
    address
        As `ray.init` takes it: ``host:port`` of the head, or ``auto``.
    paths
        Key of the configuration -> absolute path of what it names.
    folder
        Where runs are written, or the folder above it that is there.
    environment
        Of the process that asks.

    Raises
    ------
    IdiolectError
        There is no such cluster, or a machine of it lacks something.
    """
    check_address(address)
    job = {"paths": dict(paths), "folder": str(folder)}
    command = [sys.executable, "-P", "-m", "idiolect.server.simulate.cluster", address]
    try:
        done = subprocess.run(
            command,
            env=dict(environment),
            input=json.dumps(job),
            capture_output=True,
            text=True,
            timeout=JOINED,
        )
    except subprocess.TimeoutExpired:
        raise IdiolectError(
            f"the cluster at {address} did not answer within {JOINED:.0f} seconds: look at "
            "it with `ray status`, or give HOST:PORT of its head."
        ) from None
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        reason = one_line(done.stderr)[-300:] or "it said nothing"
        raise IdiolectError(
            f"the cluster at {address} could not be asked ({reason}): look at its head "
            "with `ray status`."
        ) from None
    if error := found.get("error"):
        raise IdiolectError(error)
    here, *machines = [Machine(**one) for one in found["machines"]]
    if sentence := problem(here, machines):
        raise IdiolectError(sentence)
    return Cluster(found["address"], tuple(machines), warnings(found, here, machines))


def check_address(address: str) -> None:
    """Refuse an address where no cluster can be, before Ray waits a minute for it.

    Raises
    ------
    IdiolectError
        It is not of the form, or nothing listens there.
    """
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    refuse_if(
        not colon
        or not host
        or not port.isascii()
        or not port.isdigit()
        or "/" in host,
        f"--ray is '{address}': give HOST:PORT of the head of a Ray cluster, as `ray "
        "start --head` says it, or `auto` on one of its machines.",
    )
    try:
        socket.create_connection((host, int(port)), CONNECT).close()
    except (OSError, OverflowError) as error:
        raise IdiolectError(
            f"no Ray cluster answers at {address} ({error}): start one with `ray start "
            "--head`, or give the address that it said."
        ) from None


def problem(here: Machine, machines: Sequence[Machine]) -> str:
    """Say what the first machine lacks on which a run would not compute the same.

    Parameters
    ----------
    here
        This machine, from which the run is started.
    machines
        Those of the cluster that compute.
    """
    if not machines:
        return (
            "no machine of the cluster has a core to compute on: start one with `ray "
            "start --address=HOST:PORT --num-cpus N`."
        )
    for one in machines:
        for package, version in here.versions.items():
            if (other := one.versions.get(package, "")) != version:
                return (
                    f"machine {one.name} has {package} {other or 'not at all'} and this "
                    f"one {version}: install the same versions on all machines of the "
                    "cluster."
                )
        for key, held in here.files.items():
            path, _, digest = held.partition(" sha256:")
            found = one.files.get(key, "").partition(" sha256:")[2]
            if not found:
                return (
                    f"machine {one.name} has no {path}, which '{key}' names: put it "
                    "under a path that all machines of the cluster share."
                )
            if found != digest:
                return (
                    f"on machine {one.name} {path}, which '{key}' names, holds other "
                    "files than here: put it under a path that all machines share."
                )
        if not one.shares:
            return (
                f"machine {one.name} does not share the folder of runs, or may not write "
                "there: set --output-dir to a folder that all machines of the cluster "
                "share, for the account that runs Ray."
            )
    return ""


def warnings(
    found: Mapping[str, Any], here: Machine, machines: Sequence[Machine]
) -> tuple[str, ...]:
    """Say what may be otherwise than on one machine, or open to others."""
    said = []
    kinds = sorted({one.processor for one in (here, *machines)})
    if len(kinds) > 1:
        said.append(
            f"the machines have different processors ({', '.join(kinds)}): results may "
            "differ in their last digits from those of one machine"
        )
    if not found["token"]:
        said.append(
            "this cluster asks for no token: whoever reaches its ports can run code on "
            "it and read this run; start it with RAY_AUTH_MODE=token"
        )
    return tuple(said)


# --- in the process that asks, and on the machines --------------------------------------


def contents(path: str) -> str:
    """Return a path and the SHA-256 over names and sizes of what is there.

    Names and sizes alone: the model's weights are compared by their hash in the first
    exchange of a run (`server.run.hello`), and data would take as long to read.
    """
    root = Path(path)
    files = [root] if root.is_file() else list(root.rglob("*"))
    rows = sorted(
        (str(one.relative_to(root)), one.stat().st_size)
        for one in files
        if one.is_file()
    )
    if not rows:
        return path
    return f"{path} sha256:{hashlib.sha256(repr(rows).encode()).hexdigest()}"


def versions() -> dict[str, str]:
    """Return what is installed here; empty where it is not."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


def observe(paths: Mapping[str, str], probe: str, word: str, mine: str) -> dict:
    """Look at the machine where this runs, which may lack everything but Ray.

    Parameters
    ----------
    paths
        See `survey`.
    probe, word
        A file in the folder of runs, and what it must hold.
    mine
        A file beside it that this machine alone writes, and removes.
    """
    try:
        shares = Path(probe).read_text() == word
        Path(mine).touch()
        Path(mine).unlink()
    except OSError:
        shares = False
    files = {}
    for key, path in paths.items():
        try:
            files[key] = contents(path)
        except OSError:
            files[key] = ""
    kinds = [platform.machine()]
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kinds += [one.partition(":")[2].strip() for one in lines if "model name" in one]
    except OSError:
        pass
    return {
        "name": platform.node(),
        "versions": versions(),
        "files": files,
        "shares": shares,
        "processor": kinds[-1],
    }


def ask(address: str, paths: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """Join a cluster, and let every machine of it that computes look at itself.

    Returns
    -------
    dict
        ``address``, ``token`` (whether the cluster asks for one), and ``machines``: this
        one first, then the others.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    word = secrets.token_hex(16)
    probe = folder / f".idiolect-{word[:12]}"
    look = ray.remote(num_cpus=0, max_retries=0)(observe)
    nodes = [one for one in ray.nodes() if one["Resources"].get("CPU", 0) >= 1]
    nodes.sort(key=lambda one: one["NodeManagerAddress"])
    with open(probe, "w", opener=private) as stream:
        stream.write(word)
    try:
        here = observe(paths, str(probe), word, f"{probe}.here")
        answers = {
            node["NodeID"]: look.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(
                    node["NodeID"], soft=False
                )
            ).remote(paths, str(probe), word, f"{probe}.{node['NodeID'][:12]}")
            for node in nodes
        }
        ray.wait(list(answers.values()), num_returns=len(answers), timeout=ANSWER)
        machines = [here]
        for node in nodes:
            name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            try:
                one = ray.get(answers[node["NodeID"]], timeout=0.1)
            except RayError as error:
                raise IdiolectError(
                    f"machine {name} of the cluster does not answer "
                    f"({type(error).__name__}): end its Ray with `ray stop`, or start it "
                    "again."
                ) from None
            cores, gpus = node["Resources"]["CPU"], node["Resources"].get("GPU", 0.0)
            machines.append({**one, "name": name, "cpus": int(cores), "gpus": gpus})
    finally:
        probe.unlink()
    head = ray.get_runtime_context().gcs_address
    return {"address": head, "token": asks_for_token(head), "machines": machines}


def asks_for_token(address: str) -> bool:
    """Whether the head of a cluster refuses who has no token, as a stranger would find."""
    import grpc
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    with grpc.insecure_channel(address) as line:
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(line)
        asked = gcs_service_pb2.GetAllNodeInfoRequest()  # pyright: ignore
        try:
            stub.GetAllNodeInfo(asked, timeout=CONNECT)
        except grpc.RpcError:
            return True
    return False


def joined(address: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """`ask`, or ``error``: a sentence about why there is no answer."""
    try:
        return ask(address, job["paths"], Path(job["folder"]))
    except IdiolectError as error:
        return {"error": str(error)}
    except Exception as error:
        cause = f"{error} {error.__cause__ or ''}"  # Ray's own words are there
        return {"error": refusal(address, type(error).__name__, cause)}


def refusal(address: str, kind: str, reason: str) -> str:
    """One sentence for what Ray raised when it was to join a cluster."""
    short = one_line(reason)[:300].rstrip(". ")
    if "uthenticat" in kind + reason:
        return (
            f"the cluster at {address} asks for a token: set RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN_PATH to the file that its machines have."
        )
    if "ersion mismatch" in reason:
        return (
            f"the cluster at {address} runs another Python or Ray ({short}): start it "
            "from an environment like this one."
        )
    return (
        f"the cluster at {address} could not be joined ({kind}: {short}): run the command "
        "on one of its machines, after `ray start --address=HOST:PORT` there."
    )


def main() -> None:
    """Answer the job on standard input by one line of JSON."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Ray prints is no answer
    found = joined(sys.argv[1], json.load(sys.stdin))
    print(json.dumps(found), file=answer, flush=True)


if __name__ == "__main__":
    main()
