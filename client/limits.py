"""What the owner lets a federated run take from this machine.

Every limit but that of time is off until it is set (`idiolect settings NAME VALUE`). Work
beyond one is refused or given up, with a sentence that the server records. They are looked
at before the backbone is loaded.
"""

import contextlib
import os
import resource
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from .consent import Refusal

POWER = Path("/sys/class/power_supply")
AGAIN = 30.0  # seconds after which work that outlived the limit is given up once more


def check_now(settings: Mapping[str, str], power: Path = POWER) -> None:
    """Refuse work while the machine is on battery or busy, if the owner said so.

    Raises
    ------
    Refusal
        Not now.
    """
    if settings["on-battery"] == "no" and on_battery(power):
        raise Refusal("the device is on battery.")
    most = float(settings["max-load"])
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    if most and load > most:
        raise Refusal(
            f"the device is busy: load {load:.1f} per core, {most:g} allowed."
        )


def on_battery(power: Path = POWER) -> bool:
    """Whether a battery of this machine is being drained (Linux)."""
    for status in power.glob("*/status"):
        with contextlib.suppress(OSError):
            if status.read_text().strip() == "Discharging":
                return True
    return False


def hold_process(settings: Mapping[str, str]) -> None:
    """Bind this process to the owner's number of threads and of megabytes.

    Memory beyond ``memory-mb`` is not given by the system, so the task that asks for it
    fails and the process goes on.
    """
    if threads := int(settings["threads"]):
        torch.set_num_threads(threads)
    if most := int(settings["memory-mb"]):
        resource.setrlimit(resource.RLIMIT_DATA, (most << 20, most << 20))


@contextlib.contextmanager
def time_limit(settings: Mapping[str, str]) -> Iterator[None]:
    """Give work up that takes longer than ``max-seconds``; main thread only.

    Raises
    ------
    Refusal
        It did.
    """
    seconds = float(settings["max-seconds"])

    def late(*_: object) -> None:
        raise Refusal(f"the work took longer than the {seconds:g} s that are allowed.")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN if seconds else 0.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was refused."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )
