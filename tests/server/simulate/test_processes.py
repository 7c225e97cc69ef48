"""The processes of one run are found by its mark, and all of them end."""

import os
import select
import subprocess
import sys

import pytest

from idiolect.server.simulate import processes
from tests.waiting import until


def test_only_marked_processes_are_ended() -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True)"
    mark = f"m{os.getpid()}"  # two runs of the tests must not end each other's
    marked = {**os.environ, processes.VARIABLE: mark}
    other = subprocess.Popen(sleep, env={**marked, processes.VARIABLE: mark + "2"})
    polite = subprocess.Popen(sleep, env=marked, start_new_session=True)
    stubborn = subprocess.Popen(
        [sys.executable, "-c", f"{deaf}; time.sleep(60)"],
        env=marked,
        stdout=subprocess.PIPE,
    )
    assert stubborn.stdout is not None
    stubborn.stdout.readline()
    try:
        until(lambda: len(processes.marked(mark)) == 2)
        assert sorted(processes.marked(mark)) == sorted([polite.pid, stubborn.pid])
        processes.end(mark, patience=0.5)
        assert processes.marked(mark) == []
        assert (polite.wait(5), stubborn.wait(5)) == (-15, -9)
        assert other.poll() is None
    finally:
        for process in (other, polite, stubborn):
            process.kill()
            process.wait()
        stubborn.stdout.close()


def test_what_a_marked_process_started_is_ended_without_a_mark() -> None:
    """Ray's agents write their title over their environment."""
    mark = f"m{os.getpid()}"
    parent = subprocess.Popen(
        ["sh", "-c", "env -i sleep 60 & echo $!; wait"],
        env={**os.environ, processes.VARIABLE: mark},
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    until(lambda: not processes.is_marked(child, mark))
    handle = os.pidfd_open(child)
    try:
        assert processes.family(mark).keys() == {parent.pid, child}
        processes.end(mark)
        assert parent.wait(5) in (-15, 0)  # 0 where its child was first
        assert select.select([handle], [], [], 0)[0]  # readable: it has ended
    finally:
        parent.stdout.close()
        os.close(handle)


def test_one_look_that_finds_nothing_proves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process between its start and its environment escapes a look, not `end`."""
    mark = f"m{os.getpid()}"
    environment = {**os.environ, processes.VARIABLE: mark}
    hidden = subprocess.Popen(["sleep", "60"], env=environment)
    until(lambda: processes.marked(mark))
    looks, really = iter(((), ())), processes.marked
    monkeypatch.setattr(processes, "marked", lambda mark: next(looks, really(mark)))
    try:
        processes.end(mark)
        assert hidden.poll() == -15
    finally:
        hidden.kill()
        hidden.wait()


def test_what_was_known_is_ended_when_nothing_leads_to_it() -> None:
    """Ray's agents outlive a raylet that was killed, without mark and without parent."""
    mark = f"m{os.getpid()}"
    parent = subprocess.Popen(
        ["sh", "-c", "env -i sleep 60 & echo $!; wait"],
        env={**os.environ, processes.VARIABLE: mark},
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    until(lambda: not processes.is_marked(child, mark))
    known = processes.family(mark)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert processes.family(mark) == {}
    processes.end(mark, known=known)
    assert not processes._is(child, known[child])
