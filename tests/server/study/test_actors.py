"""Cells of a study on a Ray cluster: a real one, on 127.0.0.1."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray")

from ray.exceptions import ActorDiedError

from idiolect.common.errors import IdiolectError
from idiolect.server.cli import main
from idiolect.server.study import actors
from idiolect.server.study.cells import run_study
from idiolect.server.study.declaration import read_study

from .test_jobs import files_of

# A cluster of one machine with two cores and a GPU that is in the environment only.
HEAD = """
import sys
import ray
ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False,
         object_store_memory=100_000_000, _temp_dir=sys.argv[1])
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""

# What actors do that have a core each, and half a GPU.
JOB = """
import json, operator, os, sys
from idiolect.common.errors import refuse_if
from idiolect.server.simulate.cluster import Cluster
from idiolect.server.study import actors

actors.PAUSE = 1.0

def found(actor, function, *words):
    try:
        return actor.submit(function, *words).result(60)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

with actors.actors(3, Cluster(sys.argv[1], ()), 0.5) as (one, two, three):
    environment = [found(one, os.getenv, name) for name in sys.argv[2:]]
    failed = [found(one, refuse_if, True, "no."), found(one, operator.truediv, 1, 0)]
    first = found(one, os.getpid)
    ended = found(one, os.abort)
    again = found(one, os.getpid)
    second = found(two, os.getpid)
    waiting = three.submit(os.getpid)
    waited = not waiting.done()
    two.shutdown(wait=False)
    third = waiting.result(60)
    there = found(three, os.getcwd)
    actors.versions = dict
    other = found(three, os.getpid)
import ray
print(json.dumps([environment, failed, ended, waited, there, other, ray.is_initialized(),
                  len({first, again, second, third})]))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[tuple[str, dict[str, str]]]:
    """Address of a cluster that asks for a token, and the environment to join it."""
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # 127.0.0.1 alone
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    place = tmp_path_factory.mktemp("r")
    with subprocess.Popen(
        [sys.executable, "-c", HEAD, str(place)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as head:
        assert head.stdout
        yield head.stdout.readline().strip(), environment
        head.communicate()


@pytest.mark.slow
def test_an_actor_does_what_a_process_here_would(cluster, tmp_path) -> None:
    """It says what went wrong as if it were here, and leaves its place when told so."""
    address, environment = cluster
    names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "RAY_AUTH_TOKEN_PATH")
    done = subprocess.run(
        [sys.executable, "-c", JOB, address, *names],
        env={**environment, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr[-3000:]
    *_, last = done.stdout.splitlines()  # Ray says when a process ends
    seen, failed, ended, waited, there, other, joined, processes = json.loads(last)
    assert seen == ["1", "0", None]
    assert failed == ["IdiolectError: no.", "ZeroDivisionError: division by zero"]
    assert ended.startswith(
        "IdiolectError: a cell could not be computed on the cluster"
    )
    assert "ended 3 times" in ended and "fewer --jobs" in ended
    assert waited and processes == 4  # one, one again, two, three
    assert there == str(tmp_path)
    assert "has other versions" in other and not joined


@pytest.mark.slow
def test_a_cluster_writes_the_files_of_one_process(
    cluster, declared, tmp_path, monkeypatch
) -> None:
    """Bit for bit; a relative path and a variable mean there what they mean here."""
    address, environment = cluster
    text = (tmp_path / "small.toml").read_text()
    model = next(one for one in text.split('"') if Path(one).is_dir())
    os.symlink(model, tmp_path / "model")
    text = text.replace(model, "$WHERE/model")
    (tmp_path / "small.toml").write_text(text)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("WHERE", str(tmp_path))
    study = read_study(tmp_path / "small.toml")
    run_study(study, tmp_path / "one", lambda _: None)
    words = ["study", "small.toml", "--ray", address, "--output-dir", "two"]
    done = subprocess.run(
        [sys.executable, "-m", "idiolect.server.cli", *words],
        env={**environment, "OMP_NUM_THREADS": "1", "WHERE": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr[-3000:]
    assert f"2 cells at a time on the Ray cluster at {address}" in done.stdout
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two" / "small")


def test_cells_are_computed_by_the_same_versions_only(monkeypatch) -> None:
    monkeypatch.setattr("idiolect.server.simulate.pool.be_silent", lambda: None)
    here = actors.Cells("/nowhere")
    assert here.run(int, actors.versions(), "7") == 7
    with pytest.raises(IdiolectError, match="has other versions.*Finished cells"):
        here.run(int, {"torch": "1"}, "7")


def test_each_path_is_asked_for_once(tmp_path, monkeypatch) -> None:
    """Of the cells that are left, absolute, and none that comes with a package."""
    text = """
    title = "Data of two kinds"
    [config]
    methods = "shared"
    [named.text.a]
    data = "$WHERE/a"
    [named.text.b]
    data = "b"
    [named.text.c]
    data = ""
    [grid]
    seed = [0, 1]
    text = ["a", "b", "c"]
    """
    (tmp_path / "two.toml").write_text(text)
    monkeypatch.setenv("WHERE", "/there")
    monkeypatch.chdir(tmp_path)
    study = read_study(tmp_path / "two.toml")
    expected = {"data": "/there/a", "data of cell 2": str(tmp_path / "b")}
    assert actors.paths(study, tmp_path / "out") == expected


def test_a_lost_process_is_one_sentence() -> None:
    sentence = actors.reason(ActorDiedError())
    assert isinstance(sentence, IdiolectError) and "Finished cells" in str(sentence)
    assert str(actors.reason(ValueError("x"))) == "x"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--ray", "10.0.0.1:1", "--plan"], "--plan measures this machine"),
        (["--gpus-per-job", "1"], "--gpus-per-job is 1: give a positive number, with"),
        (["--gpus-per-job", "-1", "--ray", "auto"], "--gpus-per-job is -1: give a"),
        (["--ray", "nowhere"], "--ray is 'nowhere': give HOST:PORT"),
    ],
)
def test_words_that_do_not_fit_are_refused(
    declared, tmp_path, capsys, words, sentence
) -> None:
    file = str(tmp_path / "small.toml")
    assert main(["study", file, "--output-dir", str(tmp_path / "out"), *words]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
