"""What the processes of a run are told, and where they may write.

The environment of the account that starts a run has settings of others. ``RAY_ADDRESS``
makes a simulation join a cluster, ``http_proxy`` sends calls to this very machine to a
proxy, ``FLWR_…`` and ``GRPC_…`` move ports and trust, ``LD_PRELOAD`` and ``PYTHONPATH``
bring other code. So a run inherits the names of a list, not what is left after removing
some.
"""

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ...common.errors import IdiolectError
from . import processes

BIN = Path(sys.executable).parent

# What a run may inherit, and why. Proxies are not here: all that the processes of a run
# talk to is on this machine, and what must come from elsewhere is fetched before they
# start.
INHERITED = frozenset(
    (
        # Whose files these are, how text is written, what time it is.
        *("HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TZDIR"),
        # Where idiolect's own files are.
        "IDIOLECT_HOME",
        # Which weights are on this machine, and whether the hub may be asked for others.
        *("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN"),
        *("HF_TOKEN_PATH", "TRANSFORMERS_OFFLINE", "XDG_CACHE_HOME"),
        # Whom a connection to the hub trusts.
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
        # Which GPUs, and where their driver is: some set-ups have no other way to say so.
        *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_HOME", "CUDA_PATH"),
        *("CUDA_MODULE_LOADING", "CUBLAS_WORKSPACE_CONFIG", "LD_LIBRARY_PATH"),
        *("NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"),
        *("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
        *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
        # How many threads: on a shared machine that is not ours to change.
        *("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MKL_NUM_THREADS"),
        *("OPENBLAS_NUM_THREADS",),
        # Not less isolated than the process that starts the run.
        "PYTHONNOUSERSITE",
    )
)

CHOSEN = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    # Else Flower builds a second environment that shadows the installed one.
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Else Ray hides the GPU from actors that reserve none.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # No port: else Ray's monitor listens where `prometheus_client` is installed.
    "AUTOSCALER_METRIC_PORT": "-1",
    "PYTHONUNBUFFERED": "1",
    # glibc then keeps what a training step frees for the next one, instead of asking the
    # kernel for zeroed pages again.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(1 << 27),
}

# How Ray is let into a cluster that asks for a token, and where it notes which cluster is
# on this machine.
JOINING = (
    *("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"),
    *("RAY_TMPDIR", "TMPDIR"),
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",  # 0: 127.0.0.1 is not taken for another address
)

# What actors on other machines are told of the caller's environment. It goes through the
# cluster's store, so no secret is here, and nothing that names a device or a library of
# this machine.
SENT = (
    *("IDIOLECT_HOME", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"),
    *("CUBLAS_WORKSPACE_CONFIG", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
    *("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"),
)

# Ray's sockets lie in a folder of a session; the kernel takes 107 bytes of a socket's path.
SOCKET_PATH = 107
RAY = "r"
BELOW = len(f"/{RAY}/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the part of an environment that a run may know."""
    found = {
        name: value
        for name, value in environment.items()
        if name in INHERITED or name.startswith("LC_")
    }
    if libraries := trusted_folders(found.pop("LD_LIBRARY_PATH", "")):
        found["LD_LIBRARY_PATH"] = libraries
    return found


def trusted_folders(paths: str) -> str:
    """Return the folders of a ``LD_LIBRARY_PATH`` that no other account can fill.

    On some machines the driver of the GPU is only there, so the variable cannot be left
    out. But an account that can write to one of its folders can bring code. An empty or
    relative entry means the current folder of a process, and is left out too.
    """
    return os.pathsep.join(
        path for path in paths.split(os.pathsep) if path.startswith("/") and _safe(path)
    )


def _safe(path: str) -> bool:
    """Whether not everybody can write to a folder that is there."""
    try:
        return not os.stat(path).st_mode & stat.S_IWOTH
    except OSError:
        return False


def flower_environment(home: Path, mark: str) -> dict[str, str]:
    """Environment of everything of Flower's that is started here, marked to be found.

    Parameters
    ----------
    home
        Flower's own folder (``FLWR_HOME``).
    mark
        By which `processes` finds all that is started.
    """
    return {
        **inherited(os.environ),
        **CHOSEN,
        processes.VARIABLE: mark,
        "FLWR_HOME": str(home),
        # Flower and Ray start programs by their names.
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }


def joining() -> dict[str, str]:
    """Return the variables by which a process of this account joins a Ray cluster."""
    return {name: os.environ[name] for name in JOINING if name in os.environ}


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of actors on the machines of a cluster.

    The number of threads decides the last digits of a result, so it does not depend on
    how a machine started its Ray: one, as an actor of one core has on this machine.
    """
    sent = {name: environment[name] for name in SENT if name in environment}
    return {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **sent, **CHOSEN}


def short_folder() -> Path:
    """Make a private folder for sockets: short enough, whatever ``TMPDIR`` is.

    Raises
    ------
    IdiolectError
        There is no place to write that is short enough.
    """
    for place in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp")):
        length = len(os.fsencode(place)) + len("/idiolect-12345678") + BELOW
        if length <= SOCKET_PATH and os.access(place, os.W_OK | os.X_OK):
            return Path(tempfile.mkdtemp(prefix="idiolect-", dir=place))  # mode 0700
    raise IdiolectError(
        "a simulation needs a folder for sockets whose path is short, and neither TMPDIR "
        f"({tempfile.gettempdir()}) nor /tmp is one that can be written: set TMPDIR to a "
        f"folder of at most {SOCKET_PATH - BELOW - 18} letters."
    )


def remove_folder(folder: Path) -> None:
    """Remove what `short_folder` made, and nothing else."""
    if folder.name.startswith("idiolect-") and not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)
