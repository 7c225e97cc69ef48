"""The run folder, its lock, and the checkpoint."""

import os
from dataclasses import replace

import numpy as np
import pytest

from idiolect.common.config import Config, Personalise, RunOptions
from idiolect.common.data.types import Item, Prompt
from idiolect.common.errors import IdiolectError
from idiolect.common.files import write_atomically
from idiolect.common.protocol.messages import Outcome
from idiolect.common.unlabeled.sets import Unlabeled
from idiolect.server.run.checkpoint import (
    Cost,
    State,
    load,
    open_run,
    point_latest,
    save,
)
from idiolect.server.run.live import Journal

SHAPES = {"layer.q": (3, 2)}


@pytest.fixture
def options(tmp_path) -> RunOptions:
    return RunOptions("first", "", str(tmp_path / "runs"))


def opened(options, config=None, **changes):
    return open_run(config or Config(), replace(options, **changes))


def state() -> State:
    return State(
        shared={"layer.q": np.arange(6, dtype=np.float32).reshape(3, 2)},
        rounds=3,
        unlabeled=(Unlabeled(Item("i", Prompt("a", "b", "c"), "ü"), 0.1, "u"),),
        trials={"sft": {"0.001": [0.0, 1.25]}},
        learning_rates={"sft": 1e-3},
        outcomes={"sft": {"u": Outcome(None, False, {"steps": 3.0})}},
        metrics={"base": {"u": {"nll": 0.1 + 0.2}}},
        failed={"v": "sad."},
        cost=Cost(1, 2, {"hello": 0.5}, 3.0),
    )


def test_a_checkpoint_gives_back_what_was_saved(tmp_path):
    saved = state()
    save(tmp_path, saved)
    found = load(tmp_path, SHAPES)
    np.testing.assert_array_equal(found.shared["layer.q"], saved.shared["layer.q"])
    assert replace(found, shared={}) == replace(saved, shared={})


def test_before_the_first_checkpoint_the_shared_adapter_is_zero(tmp_path):
    found = load(tmp_path, SHAPES)
    assert found.shared["layer.q"].shape == (3, 2)
    assert not found.shared["layer.q"].any()
    assert (found.rounds, found.unlabeled) == (0, None)


def test_an_empty_unlabeled_set_is_not_a_missing_one(tmp_path):
    save(tmp_path, replace(state(), unlabeled=()))
    assert load(tmp_path, SHAPES).unlabeled == ()


@pytest.mark.parametrize("step", range(3))
def test_a_crash_inside_saving_leaves_the_old_checkpoint(tmp_path, monkeypatch, step):
    save(tmp_path, state())
    newer = replace(state(), rounds=4, shared={"layer.q": np.ones((3, 2), np.float32)})
    count = {"left": step}

    def crash(path, data):
        if count["left"] == 0:
            raise KeyboardInterrupt
        count["left"] -= 1
        write_atomically(path, data)

    monkeypatch.setattr("idiolect.server.run.checkpoint.write_atomically", crash)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, newer)
    found = load(tmp_path, SHAPES)
    assert found.rounds == 3
    np.testing.assert_array_equal(found.shared["layer.q"], state().shared["layer.q"])


def test_an_unreadable_checkpoint_says_what_to_do(tmp_path):
    save(tmp_path, state())
    (tmp_path / "checkpoint/state.json").write_text('{"schema": 1')
    with pytest.raises(IdiolectError, match="start a new run"):
        load(tmp_path, SHAPES)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "file"
    write_atomically(file, b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_atomically(file, b"new and longer")
    assert file.read_bytes() == b"old"


def test_a_run_gets_a_folder_a_lock_and_its_configuration(options, tmp_path):
    run = opened(options)
    assert run.path == tmp_path / "runs/first"
    assert (run.path / "lock").read_text() == f"{os.getpid()}\n"
    assert "seed = 0" in (run.path / "config.toml").read_text()
    assert not (tmp_path / "runs/latest").exists()  # before it has begun
    assert point_latest(run.path) == ""
    assert (tmp_path / "runs/latest").resolve() == run.path
    assert not run.resumed
    run.lock.close()


def test_a_run_without_a_name_gets_one_of_its_own(options):
    one, two = (opened(options, name="") for _ in range(2))
    assert one.path != two.path
    assert one.path.name.startswith("headline-")


@pytest.mark.parametrize("name", ["latest", "../up", ".hidden", ".."])
def test_a_name_that_is_no_folder_name_is_refused(options, name):
    with pytest.raises(IdiolectError, match="names a folder"):
        opened(options, name=name)


def test_a_name_that_is_taken_is_refused(options):
    opened(options).lock.close()
    with pytest.raises(IdiolectError, match="--resume first"):
        opened(options)


def test_a_locked_run_is_refused_and_names_its_holder(options):
    run = opened(options)
    with pytest.raises(IdiolectError, match=f"process {os.getpid()}"):
        opened(options, resume="first")
    run.lock.close()
    point_latest(run.path)
    again = opened(options, resume="latest")
    assert again.resumed
    assert again.path == run.path


def test_changed_keys_are_refused_by_name(options):
    run = opened(options)
    run.lock.close()
    point_latest(run.path)
    changed = Config(seed=3, personalise=Personalise(epochs=7))
    with pytest.raises(IdiolectError) as error:
        opened(options, changed, resume="latest")
    assert "seed (was 0, now 3)" in str(error.value)
    assert "personalise.epochs (was 3, now 7)" in str(error.value)
    # The refusal has let go of the lock.
    opened(options, resume="latest").lock.close()


def test_a_run_that_is_not_there_cannot_be_resumed(options):
    with pytest.raises(IdiolectError, match="there is no run 'other'"):
        opened(options, resume="other")


def test_a_folder_that_cannot_be_written_is_named(options, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(IdiolectError, match="set --output-dir"):
        opened(options, folder=str(tmp_path / "file" / "runs"))


def test_the_journal_repairs_a_line_that_a_kill_cut(tmp_path):
    file = tmp_path / "metrics.jsonl"
    Journal(file).write({"event": "start"})
    with file.open("a") as stream:
        stream.write('{"event": "pro')
    Journal(file).write({"event": "start", "resumed": True})
    lines = file.read_text().splitlines()
    assert lines[0] == '{"event": "start"}'
    assert lines[2] == '{"event": "start", "resumed": true}'
