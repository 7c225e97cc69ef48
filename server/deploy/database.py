"""What a SuperLink's database keeps of runs that have ended: nothing that they sent.

Flower leaves a run's messages in its tables until somebody asks for the run again; what
it deletes stays in free pages of the file; and what was ever written stays in the
write-ahead log beside it. Each is a reply of a device in clear.
"""

import contextlib
import sqlite3
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

from flwr.supercore.constant import NodeStatus

from ..simulate.processes import wait_until

LAPSE = timedelta(seconds=60)  # after which a ServerApp without a heartbeat is dead
ALL_ENDED = timedelta(days=-1)  # as if it were tomorrow
BUSY_SECONDS = 10.0
LOOK_SECONDS = 20.0

# The newest Flower has its messages in `message`; the other two are older.
TABLES = (
    "message_res",
    "message_ins",
    "message",
    "object_push_sessions",
    "run_objects",
)
# A task that nobody has taken yet has no `active_until`.
GOING_ON = """SELECT run_id FROM task WHERE finished_at IS NULL
    AND coalesce(active_until, pending_at) >= ?"""


def forget_ended(path: Path, lapse: timedelta = LAPSE) -> bool:
    """Delete what ended runs sent from a database that may be in use, and its traces.

    Parameters
    ----------
    path
        Of the SQLite file; its write-ahead log lies beside it.
    lapse
        A run whose ServerApp has not been heard of for so long has ended. Negative where
        it is known that none is alive.

    Returns
    -------
    bool
        Whether nothing is left: False while another process reads or writes, or while a
        run goes on.
    """
    if not path.exists():
        return True
    try:
        with contextlib.closing(
            sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        ) as base:
            base.execute("PRAGMA foreign_keys = ON")
            base.execute("PRAGMA secure_delete = ON")
            if not _delete(base, lapse):
                return False
            base.execute("VACUUM")  # the file shrinks, and has no free pages
            (busy, *_) = base.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return not busy
    except sqlite3.OperationalError:  # locked, or its tables are not made yet
        return False


def _delete(base: sqlite3.Connection, lapse: timedelta) -> bool:
    """Delete the rows of ended runs; return whether no run goes on."""
    limit = (datetime.now(UTC) - lapse).isoformat(sep=" ")
    base.execute("BEGIN IMMEDIATE")
    try:
        going_on = {run for (run,) in base.execute(GOING_ON, (limit,))}
        marks = ", ".join("?" * len(going_on))
        names = {name for (name,) in base.execute("SELECT name FROM sqlite_master")}
        for table in TABLES:
            if table in names:
                base.execute(
                    f"DELETE FROM {table} WHERE run_id NOT IN ({marks})", [*going_on]
                )
        kept = "SELECT object_id FROM run_objects"
        base.execute(f"DELETE FROM object_children WHERE parent_id NOT IN ({kept})")
        base.execute(f"DELETE FROM objects WHERE object_id NOT IN ({kept})")
    except BaseException:
        base.execute("ROLLBACK")
        raise
    base.execute("COMMIT")
    return not going_on


def opened(path: Path) -> sqlite3.Connection:
    """Open the SuperLink's database read-only, which never blocks its writers.

    Raises
    ------
    sqlite3.Error
        The database is not there yet.
    """
    name = f"{path.absolute().as_uri()}?mode=ro"
    base = sqlite3.connect(name, uri=True, timeout=1, isolation_level=None)
    base.execute("PRAGMA query_only = ON")
    return base


def find_node(base: sqlite3.Connection, key: bytes) -> tuple[int, bool] | None:
    """Return number of the device with a public key in PEM, and whether it is revoked."""
    query = "SELECT node_id, status FROM node WHERE public_key = ?"
    row = base.execute(query, (key,)).fetchone()
    # Numbers are signed in the database.
    return row and (row[0] % 2**64, row[1] == NodeStatus.UNREGISTERED)


def waits(base: sqlite3.Connection, node: int) -> bool:
    """Whether something waits for a device that was not delivered yet."""
    query = (
        "SELECT 1 FROM message_ins WHERE dst_node_id = ? AND delivered_at = '' LIMIT 1"
    )
    signed = node - 2**64 if node >= 2**63 else node
    return base.execute(query, (signed,)).fetchone() is not None


def forget_soon(path: Path, patience: float) -> bool:
    """Try until nothing is left of ended runs; say whether that came in time."""
    return wait_until(lambda: forget_ended(path), patience, 0.5)


def keep_forgetting(path: Path, stopping: threading.Event) -> None:
    """Look now and then, until told to stop: runs also end by being killed.

    What a run leaves is taken away once after its end, not again while nothing has come.
    """
    dirty = True
    while True:
        dirty = not forget_ended(path) if dirty else _has_messages(path)
        if stopping.wait(LOOK_SECONDS):
            return


def _has_messages(path: Path) -> bool:
    try:
        with contextlib.closing(opened(path)) as base:
            return bool(base.execute("SELECT 1 FROM objects LIMIT 1").fetchone())
    except sqlite3.OperationalError:
        return True
