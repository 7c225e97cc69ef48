"""The numbers of a running server for Prometheus: counts over all devices, no names.

`METRICS` says what they are. None of their labels takes a value that another could choose.
"""

import contextlib
import json
import math
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...common.errors import IdiolectError
from ..privacy.ledger import read_ledger
from ..run import results
from ..simulate import processes
from . import database, keys
from .counts import REASONS, read_counts
from .places import COUNTS, DATABASE, HANDED

# A device was last seen within so many seconds: exclusive bands, the first that fits.
BANDS = {"minute": 60.0, "hour": 3600.0, "day": 86400.0, "week": 604800.0}
STATES = ("running", "finished", "failed", "stopped", "interrupted")
PROCESSES = ("superlink", "superexec", "proxy")


@dataclass(frozen=True)
class Metric:
    """One metric: what it is, by which label it is split, whether it only grows."""

    text: str
    label: str = ""
    counter: bool = False


METRICS = {
    "idiolect_info": Metric("Version of idiolect that serves.", "version"),
    "idiolect_answers": Metric("1 if a process answers, as in /health.", "process"),
    "idiolect_process_starts": Metric(
        "Starts of a process since `serve` began.", "process", True
    ),
    "idiolect_devices": Metric("Devices that are let in, and revoked ones.", "state"),
    "idiolect_devices_seen": Metric(
        "Devices that are let in, by when they were last seen; connected: now.",
        "within",
    ),
    "idiolect_runs": Metric("Runs that were submitted to this server.", "state"),
    "idiolect_run_epsilon_spent": Metric(
        "Epsilon that the ledger of the newest run has charged."
    ),
    "idiolect_run_epsilon_budget": Metric("Its budget (privacy.epsilon)."),
    "idiolect_run_open_releases": Metric("Releases of it without a guarantee."),
    "idiolect_messages_waiting": Metric("Messages that nobody has fetched yet.", "to"),
    "idiolect_proxy_calls": Metric("Calls of devices passed on.", "", True),
    "idiolect_proxy_bytes": Metric("Bytes of their bodies.", "direction", True),
    "idiolect_proxy_refused": Metric("Calls that were refused.", "reason", True),
    "idiolect_disk_free_bytes": Metric("Free space where the server's folder is."),
    "idiolect_database_bytes": Metric("Size of the SuperLink's database and its log."),
    "idiolect_certificate_end_timestamp_seconds": Metric(
        "When the server's certificate ends."
    ),
}
Numbers = dict[str, dict[str, float]]
"""Metric -> value of its label -> number; without a label the value is empty."""


@dataclass
class Watched:
    """A server that is served.

    Attributes
    ----------
    folder
        Of the server.
    host, port
        Where the proxy listens.
    inner
        The SuperLink's port on this machine.
    mark
        In the environment of its processes.
    starts
        Process -> how often it was started.
    """

    folder: Path
    host: str
    port: int
    inner: int
    mark: str
    starts: Counter[str] = field(default_factory=Counter)


def band_of(seconds: float) -> str:
    """Return in which of `BANDS` a time before now lies; infinite: never."""
    if seconds == math.inf:
        return "never"
    return next((name for name, most in BANDS.items() if seconds <= most), "longer")


def device_numbers(rows: Iterable[tuple[Any, ...]], now: float) -> Numbers:
    """Count devices by registration and by when they were last seen.

    Parameters
    ----------
    rows
        Of the SuperLink's table: status, last activation and deactivation (ISO 8601, may
        be None or empty), and until when it counts as connected (Unix time or None).
    now
        Unix time.
    """
    states: dict[str, float] = {"registered": 0.0, "revoked": 0.0}
    seen: dict[str, float] = dict.fromkeys(
        ("connected", *BANDS, "longer", "never"), 0.0
    )
    for status, came, went, until in rows:
        if status == "unregistered":
            states["revoked"] += 1
            continue
        states["registered"] += 1
        if status == "online" and (until or 0.0) > now:
            seen["connected"] += 1
            continue
        stamps = [datetime.fromisoformat(s).timestamp() for s in (came, went) if s]
        seen[band_of(now - max([*stamps, until or -math.inf]))] += 1
    return {"idiolect_devices": states, "idiolect_devices_seen": seen}


NODES = "SELECT status, last_activated_at, last_deactivated_at, online_until FROM node"
WAITING = {"devices": "message_ins", "run": "message_res"}


def database_numbers(path: Path) -> Numbers:
    """Return what the SuperLink's database says; nothing while it has no tables."""
    try:
        with contextlib.closing(database.opened(path)) as base:
            found = device_numbers(base.execute(NODES), time.time())
            found["idiolect_messages_waiting"] = {
                to: base.execute(
                    f"SELECT count(*) FROM {table} WHERE delivered_at = ''"
                ).fetchone()[0]
                for to, table in WAITING.items()
            }
            return found
    except sqlite3.Error:
        return {}


def run_numbers(folder: Path, mark: str) -> Numbers:
    """Return how many submitted runs are in which state, and the newest one's privacy."""
    notes = [*(folder / HANDED).glob("*.json")]
    notes.sort(key=lambda note: note.stat().st_mtime)
    places = [Path(json.loads(note.read_text())["folder"]) for note in notes]
    states: dict[str, float] = dict.fromkeys(STATES, 0.0)
    for place in places:
        if place.is_dir():  # it may have been deleted
            states[_state_of(place, mark)] += 1
    found: Numbers = {"idiolect_runs": states}
    ledger = places[-1] / "ledger.json" if places else None
    if ledger is not None and ledger.is_file():
        spent, budget, unprotected = _spent(ledger, ledger.stat().st_mtime_ns)
        found["idiolect_run_epsilon_spent"] = {"": spent}
        found["idiolect_run_epsilon_budget"] = {"": budget}
        found["idiolect_run_open_releases"] = {"": unprotected}
    return found


def _state_of(place: Path, mark: str) -> str:
    """`results.state_of`, without its lock, which a starting ServerApp may be asking for.

    That is found by the mark of this server, as `follow` does.
    """
    with contextlib.suppress(FileNotFoundError):
        file = place / "metrics.jsonl"
        state, pid = _last_said(file, file.stat().st_mtime_ns)
        return "running" if pid and processes.is_marked(pid, mark) else state
    return "interrupted"


@lru_cache(maxsize=1024)  # an ended run's file is read once
def _last_said(path: Path, _changed: int) -> tuple[str, int]:
    """State of a run by its last event, and the process that began it, if none ended it."""
    ends = ("start", "failed", "finished")
    last = [event for event in results.read_events(path)[0] if event["event"] in ends]
    if not last or last[-1]["event"] == "start":
        return "interrupted", int(last[-1]["pid"]) if last else 0
    return "stopped" if last[-1].get("stopped") else str(last[-1]["event"]), 0


@lru_cache(maxsize=1)
def _spent(path: Path, _changed: int) -> tuple[float, float, float]:
    """Epsilon that was charged, budget, open releases; computed once for each change."""
    ledger = read_ledger(path)
    return ledger.spent().release, ledger.epsilon, float(len(ledger.open_releases))


def proxy_numbers(path: Path) -> Numbers:
    """Return what the proxy has counted."""
    counts = read_counts(path)
    return {
        "idiolect_proxy_calls": {"": counts["calls"]},
        "idiolect_proxy_bytes": {
            "in": counts["bytes in"],
            "out": counts["bytes out"],
        },
        "idiolect_proxy_refused": {reason: counts[reason] for reason in REASONS},
    }


def numbers(server: Watched, answers: dict[str, str]) -> Numbers:
    """Return all of `METRICS` that are known now.

    Parameters
    ----------
    server
        Which one.
    answers
        As `problems` found them.
    """
    folder = server.folder
    files = (folder / DATABASE).parent.glob(f"{DATABASE.name}*")
    found: Numbers = {
        "idiolect_info": {version("idiolect"): 1.0},
        "idiolect_answers": {name: float(not said) for name, said in answers.items()},
        "idiolect_process_starts": {name: server.starts[name] for name in PROCESSES},
        "idiolect_disk_free_bytes": {"": shutil.disk_usage(folder).free},
        "idiolect_database_bytes": {"": sum(file.stat().st_size for file in files)},
        **database_numbers(folder / DATABASE),
        **proxy_numbers(folder / COUNTS),
    }
    # What another command is writing at this moment is there the next time.
    with contextlib.suppress(IdiolectError, OSError, ValueError, KeyError):
        found |= run_numbers(folder, server.mark)
    with contextlib.suppress(IdiolectError):
        end = keys.certificate_end(folder).timestamp()
        found["idiolect_certificate_end_timestamp_seconds"] = {"": end}
    return found


def exposition(found: Numbers) -> bytes:
    """Return numbers in Prometheus' text format, by its own library."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    class Found:
        def collect(self) -> Iterator[Any]:
            for name, one in METRICS.items():
                if name not in found:
                    continue
                kind = CounterMetricFamily if one.counter else GaugeMetricFamily
                family = kind(name, one.text, labels=[one.label] if one.label else [])
                for label, number in found[name].items():
                    family.add_metric([label] if one.label else [], number)
                yield family

    registry = CollectorRegistry()
    registry.register(Found())
    return generate_latest(registry)
