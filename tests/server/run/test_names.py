"""Where privacy is on, no log, journal or result says who took part."""

import json
import logging
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import Message

from idiolect.common.errors import IdiolectError
from idiolect.server.run import app, results
from idiolect.server.run.live import without
from tests.server.federation import FakeGrid, events, node_error, run
from tests.server.federation import results as results_of

CENTRAL = {
    "privacy.mode": "central",
    "privacy.noise": 1.0,
    "privacy.sampling": 1.0,
    "users-per-node": 1,
    "adapt.rounds": 1,
    "methods": "shared,c-bpo",
    "personalise.learning-rates": "1e-3",
    "quorum": 0.3,
}
NAME = re.compile(r"(persona|dev|device|node)[- ]\d+")


@pytest.fixture
def log() -> Iterator[list[str]]:
    """Every line that this process's log would show."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler = Keep()
    logging.getLogger("flwr").addHandler(handler)
    yield lines
    logging.getLogger("flwr").removeHandler(handler)


def dying(task: Message, reply: Message) -> Message | None:
    """Two nodes fail in every phase, and their errors say whose they are."""
    kind, node = task.metadata.message_type, task.metadata.dst_node_id
    if kind != "query.hello" and node in (100, 103):
        name = {100: "persona-000", 103: "dev-000"}[node]
        return node_error(task, f"node {node} of user '{name}' exploded")
    return reply


def named(folder: Path) -> list[str]:
    """Files of the server that name somebody; `checkpoint` it needs to go on.

    `adapters` and `devices` are the simulated devices' own.
    """
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file()
        and not {"checkpoint", "adapters", "devices"} & set(path.parts)
        and NAME.search(path.read_bytes().decode("latin-1"))
    ]


@pytest.mark.process
def test_failures_name_nobody(settings: dict, log: list[str]) -> None:
    noisy = {"privacy.metrics": "noisy"}
    folder = run(settings | CENTRAL | noisy, FakeGrid(5, dying))
    assert named(folder) == []
    assert not [line for line in log if NAME.search(line)]
    state = json.loads((folder / "checkpoint" / "state.json").read_text())
    assert {"persona-000", "dev-000"} <= state["failed"].keys()


def test_one_sentence_for_all_that_failed_alike(settings: dict) -> None:
    """Two users whose errors differ by their names alone: one warning, a number."""
    plain = settings | CENTRAL | {"methods": "shared"}
    folder = run(plain, FakeGrid(5, dying))
    warnings = [event["message"] for event in events(folder, "warning")]
    assert [text for text in warnings if text.startswith("adapt")] == [
        "adapt, round 1/1: 2 users: its node failed: a node of a user exploded"
    ]


def test_without_privacy_they_are_named(settings: dict, log: list[str]) -> None:
    off = settings | CENTRAL | {"privacy.mode": "off"}
    folder = run(off, FakeGrid(5, dying))
    found = named(folder)
    assert {"metrics.jsonl", "results.json"} <= {*found}
    others = {name.split("/")[0] for name in found} - {"metrics.jsonl", "results.json"}
    assert others == {"curves"}  # of the simulated devices
    assert any("persona-000" in line for line in log)
    assert set(results_of(folder)["run"]["failed"]) == {"persona-000", "dev-000"}


def test_a_run_that_fails_names_nobody(settings: dict, log: list[str]) -> None:
    with pytest.raises(IdiolectError) as raised:
        run(settings | CENTRAL | {"quorum": 1.0, "run.name": "one"}, FakeGrid(5, dying))
    assert not NAME.search(str(raised.value))
    folder = Path(settings["run.folder"]) / "one"
    assert named(folder) == []
    assert not [line for line in log if NAME.search(line)]


def test_a_sentence_of_ours_that_names_somebody(
    settings: dict, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_run: object) -> None:
        raise IdiolectError("user 'persona-001' has no text: import some.")

    monkeypatch.setattr(app, "adapt", refuse)
    with pytest.raises(IdiolectError, match=r"^a user has no text: import some\.$"):
        run(settings | CENTRAL | {"run.name": "one"}, FakeGrid(5))
    assert named(Path(settings["run.folder"]) / "one") == []
    assert not [line for line in log if NAME.search(line)]


def test_a_defect_of_ours_names_nobody(
    settings: dict, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_run: object) -> None:
        raise KeyError("persona-001")

    monkeypatch.setattr(app, "adapt", broken)
    with pytest.raises(RuntimeError, match="KeyError") as raised:
        run(settings | CENTRAL | {"run.name": "one"}, FakeGrid(5))
    assert not NAME.search(str(raised.value))
    assert raised.value.__cause__ is None and raised.value.__suppress_context__
    assert named(Path(settings["run.folder"]) / "one") == []
    (text,) = [line for line in log if "Traceback" in line]
    assert "broken" in text and not NAME.search(text)


def test_withheld_is_null_and_no_number(settings: dict) -> None:
    noisy = {"privacy.metrics": "noisy"}
    found = results_of(run(settings | CENTRAL | noisy, FakeGrid(5, dying)))
    assert (found["cost"]["bytes_up"], found["cost"]["bytes_down"]) == (None, None)
    withheld = [found["run"][key] for key in ("failed", "dropped", "truncated")]
    assert withheld == [None, None, None]
    folder = Path(found["run"]["path"])
    sent = {(e["bytes_up"], e["bytes_down"]) for e in events(folder, "progress")}
    assert sent == {(None, None)}
    lines = list(results._notes(found, whole=True))
    assert not [line for line in lines if "sent" in line or "None" in line]


def test_names_in_a_sentence() -> None:
    names = ("7", "ann", "ann-b", "x.y")
    clean = (
        ("user 'ann-b': too long", "a user: too long"),
        ("user ann failed, not annex", "a user failed, not annex"),
        ("only 7 of 12 answered", "only 7 of 12 answered"),
        ("user 7 and '7'", "a user and a user"),
        ("x.y, xzy", "a user, xzy"),
        ("device-88 and node 9", "a device and a node"),
    )
    for text, said in clean:
        assert without(names, text) == said
    assert without((), "user 7") == "user 7"


# --- files -----------------------------------------------------------------------------


def test_a_run_is_private_whatever_the_umask(settings: dict) -> None:
    before = os.umask(0)
    try:
        folder = run(settings | {"methods": "shared", "adapt.rounds": 1})
    finally:
        os.umask(before)
    open_to_others = [
        path
        for path in (folder, folder.parent, *folder.rglob("*"))
        if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) & 0o077
    ]
    assert open_to_others == []


def test_a_run_of_an_older_version_becomes_private(settings: dict) -> None:
    plain = settings | {"methods": "shared", "adapt.rounds": 1}
    folder = run(plain)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    run(plain | {"run.resume": "latest"})
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
