"""The owner's limits of work on this machine: a federated run's, and the owner's own.

Every limit except that of time is off until it is set (`idiolect settings NAME VALUE`).
Work beyond a limit is refused or stopped with an error, which the server records if the
work was for a server. Limits are checked before the backbone is loaded. Two trainings at
once are refused (`alone`).
"""

import contextlib
import fcntl
import importlib
import os
import resource
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import localtime, strftime

import torch

from ...common.command import out_of_memory
from ...common.errors import IdiolectError, refuse_if
from ...common.files import private
from .consent import Refusal
from .database import note_of

POWER = Path("/sys/class/power_supply")
OWN = Path("/proc/self/status")
ROOM = 64  # megabytes that any work needs beyond what the process has at its start
AGAIN = 30.0  # seconds until work that went on after the limit is stopped again


def check_now(settings: Mapping[str, str], power: Path = POWER) -> None:
    """Refuse work while the machine is on battery or busy, if the owner said so.

    Raises
    ------
    Refusal
        Not now.
    """
    refuse_if(
        settings["on-battery"] == "no" and on_battery(power),
        "the device is on battery: plug it in (or `idiolect settings on-battery yes`).",
        Refusal,
    )
    most = float(settings["max-load"])
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    refuse_if(
        most and load > most,
        f"the device is busy: load {load:.1f} per core, {most:g} allowed: try again "
        "later (or `idiolect settings max-load NUMBER`).",
        Refusal,
    )


def memory(status: Path = OWN) -> int | None:
    """Megabytes of data that this process has, as ``memory-mb`` counts them (Linux)."""
    with contextlib.suppress(OSError, ValueError):
        for line in status.read_text().splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) >> 10
    return None


def on_battery(power: Path = POWER) -> bool:
    """Whether a battery of this machine is being drained (Linux)."""
    for status in power.glob("*/status"):
        with contextlib.suppress(OSError):
            if status.read_text().strip() == "Discharging":
                return True
    return False


def hold_process(settings: Mapping[str, str]) -> None:
    """Limit the threads and the memory of this process to what the owner allows.

    The system refuses memory beyond ``memory-mb``, so the work that asks for it fails and
    the process goes on.
    """
    if threads := int(settings["threads"]):
        torch.set_num_threads(threads)
    if most := int(settings["memory-mb"]):
        _load_libraries()
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        endless = hard == resource.RLIM_INFINITY
        soft = most << 20 if endless else min(most << 20, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _load_libraries() -> None:
    """Load what a backbone needs before memory is short.

    OpenBLAS, which comes with scipy, asks for its buffers again and again where the system
    refuses them, and other libraries end the process.
    """
    for name in (
        "scipy.linalg",
        "transformers.modeling_utils",
        "transformers.generation",
    ):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with contextlib.suppress(ImportError):  # found by name, and loaded at its first use
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationMixin

        del AutoModelForCausalLM, AutoTokenizer, GenerationMixin


@contextlib.contextmanager
def held(settings: Mapping[str, str], training: bool = False) -> Iterator[None]:
    """Apply the limits of a run's work to the owner's own; main thread only.

    Parameters
    ----------
    settings
        As the owner chose.
    training
        It may wait: whether the machine is busy or on battery counts as well.

    Raises
    ------
    IdiolectError
        Not now; or it took too long, or more memory than is allowed, and was stopped.
    """
    if training:
        check_now(settings)
    if allowed := int(settings["memory-mb"]):
        _load_libraries()
        own = memory()
        if own is not None and allowed < own + ROOM:
            raise IdiolectError(
                f"memory-mb is {allowed}, and idiolect has {own} MB before any work: "
                f"allow {own + ROOM} or more (`idiolect settings memory-mb NUMBER`; 0: no "
                "limit)."
            )
    before = resource.getrlimit(resource.RLIMIT_DATA), torch.get_num_threads()
    try:
        hold_process(settings)
        with time_limit(settings):
            yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise Refusal(
            f"the work does not fit into memory-mb={settings['memory-mb']}: allow more "
            "(`idiolect settings memory-mb NUMBER`; 0: no limit), or close other programs."
        ) from error
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before[0])
        torch.set_num_threads(before[1])


@contextlib.contextmanager
def time_limit(settings: Mapping[str, str]) -> Iterator[None]:
    """Stop work that takes longer than ``max-seconds``; main thread only.

    Raises
    ------
    Refusal
        It did.
    """
    seconds = float(settings["max-seconds"])

    def late(*_: object) -> None:
        raise Refusal(
            f"the work took longer than the {seconds:g} s that are allowed, and was "
            "stopped (`idiolect settings max-seconds NUMBER`)."
        )

    before = signal.signal(signal.SIGALRM, late)
    try:
        # Within: it may be over before the next line is reached.
        signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN if seconds else 0.0)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def alone(vault: Path) -> Iterator[None]:
    """Train alone on a vault until the end of the block.

    The lock is the system's: it ends with the process, however that ends.

    Raises
    ------
    IdiolectError
        Another process trains on this vault; says which, and since when.
    """
    file = note_of(vault)
    with contextlib.ExitStack() as held:
        try:
            note = held.enter_context(open(file, "a+", opener=private))
            fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            process, _, since = file.read_text()[:100].partition(" ")
            when, end = "already", ""  # it has only just begun
            if since:
                when = f"since {since} (process {process})"
                end = f", or end it by `kill {process}`"
            raise IdiolectError(
                f"a training is running on this vault {when}: wait until it has ended{end}."
            ) from None
        except OSError as error:
            raise IdiolectError(
                f"{file} cannot be locked ({error.strerror}): make its folder writable."
            ) from error
        note.truncate(0)
        note.write(f"{os.getpid()} {strftime('%Y-%m-%d %H:%M:%S', localtime())}")
        note.flush()
        yield
        note.truncate(0)
