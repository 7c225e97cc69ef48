"""Replies are gone from the SuperLink's files when their run has ended."""

import sqlite3
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
)
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from sqlalchemy import event

from idiolect.server.deploy import database
from tests.waiting import until

CANARY = b"canary of a reply: 7f3a91"
RUN, OTHER = 11, 12


def put(store: SqlObjectStore, run: int, canary: bytes) -> list[str]:
    """Store a message as the SuperLink does; return the ids of its objects."""
    array = Array(np.frombuffer(canary * 200, np.uint8))
    record = RecordDict({"rows": ArrayRecord({"row": array})})
    objects = get_all_nested_objects(record)
    store.preregister(run, get_object_tree(record))
    for name, one in objects.items():
        store.put(name, one.deflate())
    return list(objects)


@pytest.fixture
def store(tmp_path: Path) -> SqlObjectStore:
    """A database as an open SuperLink has it."""
    made = ObjectStoreFactory(str(tmp_path / "state.db")).store()
    assert isinstance(made, SqlObjectStore) and made._engine is not None
    # Some builds of SQLite overwrite what is deleted; the SuperLink's need not be one.
    event.listen(
        *(made._engine, "connect"),
        lambda one, _: one.execute("PRAGMA secure_delete = 0"),
    )
    made._engine.dispose()
    return made


def task(path: Path, run: int, finished: bool, until_: datetime | None = None) -> None:
    now = datetime.now(UTC)
    with sqlite3.connect(path) as base:
        base.execute(
            "INSERT INTO task (task_id, type, run_id, pending_at, active_until, "
            "finished_at) VALUES (?, 'serverapp', ?, ?, ?, ?)",
            (
                run * 10,
                run,
                now.isoformat(sep=" "),
                until_ and until_.isoformat(sep=" "),
                now.isoformat(sep=" ") if finished else None,
            ),
        )
    base.close()


def found(folder: Path, canary: bytes = CANARY) -> list[str]:
    return [p.name for p in folder.glob("state.db*") if canary in p.read_bytes()]


def test_a_reply_is_in_no_file_after_its_run(
    store: SqlObjectStore, tmp_path: Path
) -> None:
    path = tmp_path / "state.db"
    names = put(store, RUN, CANARY)
    task(path, RUN, finished=True)
    assert found(tmp_path)
    assert database.forget_ended(path)
    assert found(tmp_path) == []
    assert (tmp_path / "state.db-wal").stat().st_size == 0
    assert store.get(names[0]) is None
    # The SuperLink, whose connection is still open, goes on.
    again = put(store, OTHER, b"the next one")
    assert store.get(again[0])


def test_what_flower_deleted_is_gone_too(store: SqlObjectStore, tmp_path: Path) -> None:
    """Deleted rows stay in free pages and in the log: that is what was found."""
    put(store, RUN, CANARY)
    store.delete_objects_in_run(RUN)
    assert found(tmp_path)
    assert database.forget_ended(tmp_path / "state.db")
    assert found(tmp_path) == []


def test_a_run_that_goes_on_keeps_its_messages(
    store: SqlObjectStore, tmp_path: Path
) -> None:
    path, soon = tmp_path / "state.db", datetime.now(UTC) + timedelta(seconds=30)
    mine, theirs = put(store, RUN, CANARY), put(store, OTHER, b"somebody else's" * 3)
    task(path, RUN, finished=True)
    task(path, OTHER, finished=False, until_=soon)
    assert not database.forget_ended(path)
    assert store.get(mine[0]) is None
    assert all(store.get(name) for name in theirs)


def test_a_run_whose_process_was_killed_has_ended(
    store: SqlObjectStore, tmp_path: Path
) -> None:
    path, past = tmp_path / "state.db", datetime.now(UTC) - timedelta(minutes=5)
    put(store, RUN, CANARY)
    task(path, RUN, finished=False, until_=past)
    assert database.forget_ended(path)
    assert found(tmp_path) == []


def test_a_server_that_stops_has_no_run(store: SqlObjectStore, tmp_path: Path) -> None:
    path, soon = tmp_path / "state.db", datetime.now(UTC) + timedelta(seconds=30)
    put(store, RUN, CANARY)
    task(path, RUN, finished=False, until_=soon)
    assert database.forget_ended(path, database.ALL_ENDED)
    assert found(tmp_path) == []


def test_a_reader_delays_it_and_does_not_stop_it(
    store: SqlObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.2)
    path = tmp_path / "state.db"
    put(store, RUN, CANARY)
    task(path, RUN, finished=True)
    reader = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM objects").fetchone()
    assert not database.forget_soon(path, 0.0)
    threading.Timer(0.5, lambda: reader.execute("COMMIT")).start()
    assert database.forget_soon(path, 20.0)
    assert found(tmp_path) == []
    reader.close()


def test_the_server_forgets_by_itself(
    store: SqlObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the second run's replies, and without anybody asking."""
    monkeypatch.setattr(database, "LOOK_SECONDS", 0.05)
    path, stopping = tmp_path / "state.db", threading.Event()
    put(store, RUN, CANARY)
    task(path, RUN, finished=True)
    keeper = threading.Thread(target=database.keep_forgetting, args=(path, stopping))
    keeper.start()
    try:
        until(lambda: not found(tmp_path), 20)
        task(path, OTHER, finished=False)
        put(store, OTHER, b"and a second" + CANARY)
        time.sleep(0.3)
        assert found(tmp_path)
        with sqlite3.connect(path) as base:
            base.execute("UPDATE task SET finished_at = pending_at")
        base.close()
        until(lambda: not found(tmp_path), 20)
    finally:
        stopping.set()
        keeper.join()


def test_no_database_is_nothing_to_forget(tmp_path: Path) -> None:
    assert database.forget_ended(tmp_path / "state.db")
