"""Cells of a study in several processes: real ones."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from unittest.mock import patch

import pytest

from idiolect.common.errors import IdiolectError
from idiolect.server.cli import main
from idiolect.server.study import jobs
from idiolect.server.study.cache import next_cell
from idiolect.server.study.cells import placed, run_study
from idiolect.server.study.declaration import read_study


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """The same numbers need as many threads."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "cells").iterdir()}


def in_step(one, name, measured):
    """Compute a cell once two processes have as many; note the shared adapters made."""
    place, me = one.path.parents[1], os.getpid()
    begun = len([*place.glob(f"{me} *")]) + 1
    (place / f"{me} {begun}").touch()
    for _ in range(1200):
        if len([*place.glob(f"* {begun}")]) == 2:
            break
        time.sleep(0.1)
    took = jobs._cell(one, name, measured)  # in its own process nothing is patched
    made = [key for part, key in jobs._CACHE if part == "shared"]
    (place / f"{me}.made").write_text(" ".join(made))
    return took


def test_two_processes_write_the_files_of_one(declared, tmp_path, monkeypatch):
    """Bit for bit, each shared adapter made once, and nothing by the parent."""
    alone = run_study(declared, tmp_path / "one", lambda _: None)
    monkeypatch.setattr(jobs, "_cell", in_step)
    said: list[str] = []
    found = jobs.run_side_by_side(
        declared, tmp_path / "two", 2, said.append, [1.0, 1.0, 1.0, 1.0]
    )
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert found == alone and len(found) == 4
    assert sum(" s; about " in line for line in said) == 3  # the last leaves nothing
    assert not jobs._CACHE and not left()
    made = [path.read_text().split() for path in (tmp_path / "two").glob("*.made")]
    assert [len(keys) for keys in made] == [1, 1] and made[0] != made[1]
    said.clear()
    assert jobs.run_side_by_side(declared, tmp_path / "two", 2, said.append) == alone
    assert said == []  # nothing is left to do


def test_a_cell_that_fails_ends_the_study_and_keeps_the_rest(declared, tmp_path):
    """The sentence is that of the cell; a process does not wait for the others."""
    lines = (tmp_path / "small.toml").read_text().split("[[claims]]")[0]
    lines = lines.replace(
        '"unlabeled.ratio" = [1.0, 2.0]', '"engine.max-length" = [512, 16]'
    )
    (tmp_path / "bad.toml").write_text(lines.replace("[0, 1]", "[0]"))
    bad = read_study(tmp_path / "bad.toml")
    with pytest.raises(IdiolectError, match="max-length"):
        jobs.run_side_by_side(bad, tmp_path / "out", 1, lambda _: None)
    assert len(files_of(tmp_path / "out")) == 1
    assert not left()


def test_a_process_that_is_killed_is_named(declared, tmp_path, monkeypatch):
    real = jobs.wait

    def killed(futures, **words):
        for child in multiprocessing.active_children():
            child.kill()
        return real(futures, **words)

    monkeypatch.setattr(jobs, "wait", killed)
    with pytest.raises(IdiolectError, match="fewer --jobs. Finished cells are kept"):
        jobs.run_side_by_side(declared, tmp_path / "out", 2, lambda _: None)
    monkeypatch.undo()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert len(jobs.run_side_by_side(declared, tmp_path / "out", 2)) == 4


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_processes_end_with_the_command(declared, tmp_path, how):
    """Killed or interrupted, nothing goes on without it, and no claim stays."""
    out = tmp_path / "out"
    words = ["study", str(tmp_path / "small.toml"), "--jobs", "2"]
    command = [
        sys.executable,
        "-m",
        "idiolect.server.cli",
        *words,
        "--output-dir",
        str(out),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        # Both have begun a cell.
        begun = 0
        while begun < 2:
            line = process.stdout.readline()
            assert line, "ended too early"
            begun += line.startswith("cell ")
        children = children_of(process.pid)
        assert len(children) >= 2
        process.send_signal(how)
        rest = process.stdout.read()  # until the last of them has closed it
    assert not [pid for pid in children if alive(pid)]
    if how == signal.SIGINT:
        assert "finished cells are kept" in " ".join(rest.split())
        assert "Traceback" not in rest
    cells = placed(declared, out / "small")
    assert len([one for one in cells if one.path.exists()]) < 4
    assert len(run_study(declared, out / "small", lambda _: None)) == 4


def test_a_process_leaves_its_place_when_no_cell_is_left(declared, tmp_path):
    """On a cluster another one may wait for it, to compute what was lost."""
    ended = []

    class Here:
        """A process that is this one."""

        def submit(self, function, *words):
            done = Future()
            done.set_result(function(*words))
            return done

        def shutdown(self, wait=True, *, cancel_futures=False):
            ended.append(self)

    workers = [Here(), Here()]

    with patch.object(
        jobs, "_cell", lambda one, name, measured: one.path.touch() or 1.0
    ):
        place = tmp_path / "out"
        (place / "cells").mkdir(parents=True)
        todo = placed(declared, place)
        found = [*jobs._computed(todo, [0, 1, 3], declared.measured, workers)]
    assert sorted(found) == [(0, 1.0), (1, 1.0), (3, 1.0)]
    assert {*ended} == {*workers}


def left() -> list[int]:
    """Processes of this one that still run; the pool's thread may have waited for some."""
    found = [child.pid for child in multiprocessing.active_children()]
    return [pid for pid in found if pid and alive(pid)]


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def alive(pid: int) -> bool:
    for _ in range(50):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.1)
    return True


def test_words_that_do_not_fit_are_refused(declared, tmp_path, capsys):
    words = ["study", str(tmp_path / "small.toml"), "--output-dir", str(tmp_path)]
    assert main([*words, "--jobs", "0"]) == 2
    assert "--jobs 0 is none: use 1 or more" in capsys.readouterr().err
    assert main([*words, "--jobs", "2", "--plan", "--gpu", "A100-80GB"]) == 2
    assert "with --gpu say --gpus N" in capsys.readouterr().err


# Of each cell the shared adapter, the unlabeled set, and a method's results.
DEALT = {
    number: [("shared", words[0]), ("pool", words[:2]), ("c-bpo none", words)]
    for number, words in enumerate(("ax1", "ax2", "ay3", "by1", "by2", "cz1"))
}


@pytest.mark.parametrize(
    ("cells", "taken", "found"),
    [
        ([0, 1, 2, 3, 4, 5], [[], [], []], 0),  # most cells need a, and of it x
        ([2, 3, 4, 5], [[], []], 3),  # most of those that are left
        ([1, 2, 3, 4, 5], [[], [0], []], 3),  # a is another's; more need b than c
        ([1, 3, 4, 5], [[2], [0], []], 1),  # its own, though another made that too
        ([2, 3, 4, 5], [[1], [0], []], 2),  # the last of its own
        ([1, 2], [[0], [], []], 1),  # of its own, the same unlabeled set
        ([4, 5], [[0, 1, 2], [3], []], 5),  # done with its own: what nobody makes
        ([1, 2, 4], [[5], [0], [3]], 2),  # all are made: most need a, nobody makes ay
        ([1, 4], [[5], [0], [3]], 1),  # equals: the first
        ([1, 2, 3, 4, 5], [[], [], [0]], 3),  # another command computes a
    ],
)
def test_a_free_process_takes_what_it_shares_most_with(cells, taken, found):
    assert next_cell(cells, DEALT, taken, 0) == found


def test_groups_stay_with_one_process_each():
    """Three processes, four groups of three: only the fourth is divided."""
    keys = {number: [("shared", str(number % 4))] for number in range(12)}
    waiting, taken = list(keys), [[], [], []]
    for turn in range(12):
        cell = next_cell(waiting, keys, taken, turn % 3)
        waiting.remove(cell)
        taken[turn % 3].append(cell)
    assert taken == [[0, 4, 8, 3], [1, 5, 9, 7], [2, 6, 10, 11]]
