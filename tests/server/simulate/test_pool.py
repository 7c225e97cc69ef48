"""Actors of a simulation: each with GPUs of its own, and none that is missed."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

from flwr.server.superlink.fleet.vce import vce_api as _vce_api
from flwr.server.superlink.fleet.vce.backend import raybackend

from idiolect.server.simulate import pool

vce_api: Any = _vce_api  # its executor is no interface of Flower's

# Two cores, and two GPUs that are in the environment only. A message says how often its
# process dies before it answers, and a file counts.
JOB = """
import json, os, signal, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from idiolect.server.simulate import pool, simulator

folder = Path(sys.argv[1])
app = ClientApp()

@app.query("look")
def look(message, context):
    asked = message.content["asked"]
    with Path(asked["file"]).open("a") as file:
        file.write("tried ")
    if len(Path(asked["file"]).read_text().split()) <= asked["deaths"]:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1)
    seen = {"devices": os.environ.get("CUDA_VISIBLE_DEVICES", ""), "pid": os.getpid()}
    return Message(RecordDict({"seen": ConfigRecord(seen)}), reply_to=message)

def ask(name, deaths=0):
    asked = ConfigRecord({"file": str(folder / name), "deaths": deaths})
    message = Message(RecordDict({"asked": asked}), 1, "query.look")
    place = {"partition-id": 0, "num-partitions": 1}
    reply, _ = one.process_message(message, Context(1, 1, place, RecordDict(), {}))
    return dict(reply.content["seen"])

def settled():
    while any(thread.is_alive() for thread in one._starting):
        time.sleep(0.1)

def tried(name):
    return len((folder / name).read_text().split())

if __name__ == "__main__":
    backend = simulator._backend(2, folder, False, 1.0)
    backend["init_args"] |= {"num_gpus": 2, "object_store_memory": 100_000_000}
    simulator._new_run({})  # a message is sent in a task's name
    one = pool.Pool(backend, most=9)
    one.build(lambda: app)
    found = {"actors": one.num_workers}
    with ThreadPoolExecutor(4) as threads:
        found["seen"] = list(threads.map(ask, ["a", "b", "c", "d"]))
    found["after"] = ask("once", 1)
    try:
        ask("always", 99)
    except Exception as error:
        found["error"] = type(error).__name__
    found["always"] = tried("always")
    pool.machines = set  # as if each machine were gone when its actor is
    ask("machines", pool.TRIES + 1)
    found["machines"] = tried("machines")
    settled()  # those that replaced the dead ones are up
    pool.versions = lambda: {"idiolect": "another"}  # than every machine has
    pool.ray.kill(one._idle.get()[0])
    one._start()
    settled()
    found["others"] = [machine for _, machine in one._idle.queue].count(pool.NEVER)
    one.terminate()
    print(json.dumps(found))
"""


@pytest.fixture
def place() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))  # Ray's sockets: short
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.mark.slow
def test_actors_have_gpus_of_their_own_and_are_replaced(place: Path) -> None:
    hidden = ("CUDA_VISIBLE_DEVICES", "RAY_ADDRESS")
    clean = {name: word for name, word in os.environ.items() if name not in hidden}
    (place / "job.py").write_text(JOB)
    done = subprocess.run(
        [sys.executable, str(place / "job.py"), str(place)],
        env=clean | {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "TMPDIR": str(place)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not done.returncode, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["actors"] == 2
    by_process = {one["pid"]: one["devices"] for one in found["seen"]}
    assert sorted(by_process.values()) == ["0", "1"]
    # The actor that replaces a dead one has the dead one's GPU.
    assert found["after"]["devices"] in ("0", "1")
    assert found["error"] == "ActorDiedError" and found["always"] == pool.TRIES
    assert found["machines"] == pool.TRIES + 2
    assert found["others"] == 1  # an actor of other versions answers nothing


def test_flowers_backend_and_threads_are_replaced_for_a_run_only() -> None:
    before = raybackend.RayBackend, vce_api.ThreadPoolExecutor
    with pool.used(40, silent=False):
        from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend

        assert RayBackend.func is pool.Pool  # pyright: ignore
        with vce_api.ThreadPoolExecutor() as threads:
            # Flower's own: min(32, cores + 4), whatever the cluster has.
            assert threads._max_workers == 40
    assert (raybackend.RayBackend, vce_api.ThreadPoolExecutor) == before
    assert before[1] is ThreadPoolExecutor


@pytest.mark.parametrize(("waits", "patience"), [(0, 30), (600, 30)])
def test_a_run_whose_ray_did_not_start_ends(waits: int, patience: int) -> None:
    code = (
        "import sys, threading, time\n"
        "from idiolect.server.simulate import simulator\n"
        "def fail(*_):\n"
        f"    threading.Thread(target=time.sleep, args=({waits},)).start()\n"
        "    raise RuntimeError('Ray timed out')\n"
        "simulator.simulate = fail\n"
        "sys.argv[1:] = ['app', 'settings', '1', 'folder', 'shared', '0.0']\n"
        "simulator.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=patience
    )
    assert done.returncode == 1 and "Ray timed out" in done.stderr


def test_a_silent_process_writes_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from idiolect.server.simulate.pool import be_silent\n"
        "print('before', flush=True); be_silent(); print('name'); "
        "print('name', file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("before\n", "", 0)
