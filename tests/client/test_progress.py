"""What is said of a training while it runs."""

import sys
import threading

import pytest

from idiolect.client.commands import progress
from idiolect.client.commands.progress import FIRST, Follower, memory
from tests.waiting import until


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is moved; nothing is known of memory."""
    now = [100.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "memory", lambda *_: "")
    return now


def test_the_time_left_follows_the_steps_and_goes_down_between_them(clock):
    follow = Follower()
    follow.step(4, 10)  # goes on where another one stood: says nothing of the speed
    assert follow.text() == "training, step 4 of 10"
    clock[0] += 30
    follow.step(6, 10)
    assert follow.text() == "training, step 6 of 10, about 60 s left"
    clock[0] += 20
    assert follow.text() == "training, step 6 of 10, about 40 s left"
    clock[0] += 500
    assert follow.text() == "training, step 6 of 10, about 1 s left"
    follow.phase("judging")
    assert follow.text() == "judging"
    assert follow.end() == "it took 9 min"


def test_without_a_terminal_there_is_a_line_for_each_phase_and_every_ten_seconds(
    clock, capsys
):
    follow = Follower()
    with follow.shown():
        follow.phase("reading\x1b[2J")
        for step in (1, 2, 3):
            clock[0] += 2
            follow.step(step, 9)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [f"  0:00  {FIRST}", "  0:00  reading\ufffd[2J"]


def test_a_long_phase_is_said_again(clock, capsys):
    follow = Follower()
    with follow.shown():
        follow.phase("reading")
        capsys.readouterr()
        clock[0] += 11
        said = until(lambda: capsys.readouterr().err)
        assert said == "  0:11  reading\n"
        assert threading.active_count() > 1
    clock[0] += 100
    assert capsys.readouterr() == ("", "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_what_the_system_says(tmp_path):
    status = tmp_path / "status"
    status.write_text("VmHWM:\t 2000000 kB\nVmRSS:\t  500000 kB\n")
    assert memory("VmHWM", status) == "2.0 GB" and memory("VmRSS", status) == "512 MB"
    assert memory("VmRSS", tmp_path / "none") == ""
    assert memory("VmHWM").endswith(("MB", "GB"))
