"""A Ray cluster that is there already: what is refused before a run begins."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from idiolect.common.config import parse
from idiolect.common.errors import IdiolectError
from idiolect.server.simulate import cluster, environment, launch
from idiolect.server.simulate import plan as planning

SAME = {"idiolect": "1", "flwr": "2", "torch": "3"}
HERE = cluster.Machine("here", SAME, {"data": "/d sha256:a"}, True, "Epyc", 2, 0.0)
OTHER = replace(HERE, name="other (10.0.0.2)")
LAMP = Path(__file__).resolve().parents[3] / "simulations" / "lamp"


def test_equal_machines_have_no_problem() -> None:
    assert cluster.problem(HERE, [HERE, OTHER]) == ""


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (
            {"versions": {**SAME, "torch": "2"}},
            r"^machine other \(10\.0\.0\.2\) has torch 2 and this one 3: install",
        ),
        ({"versions": {}}, r"has idiolect not at all and this one 1: install"),
        ({"files": {"data": "/d"}}, r"other \(10\.0\.0\.2\) has no /d, which 'data' n"),
        ({"files": {"data": ""}}, r"has no /d, which 'data' names: put it under a"),
        ({"files": {"data": "/d sha256:b"}}, r"on machine other .* other files than"),
        ({"shares": False}, r"does not share the folder of runs.*--output-dir"),
    ],
)
def test_the_machine_that_lacks_something_is_named(
    found: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(IdiolectError, match=sentence):
        raise IdiolectError(cluster.problem(HERE, [HERE, replace(OTHER, **found)]))


def test_a_cluster_without_cores_is_refused() -> None:
    assert "no machine of the cluster has a core" in cluster.problem(HERE, [])


def test_places_are_counted_per_machine() -> None:
    one, two = replace(HERE, cpus=4, gpus=2.0), replace(HERE, cpus=1, gpus=8.0)
    both = cluster.Cluster("a:1", (one, two, HERE))
    assert both.places(0, "--gpus") == 4 + 1 + 2
    assert both.places(1, "--gpus") == 2 + 1 + 0
    assert both.places(0.5, "--gpus") == 4 + 1 + 0
    assert both.places(2, "--gpus") == 1 + 1 + 0


def test_what_may_differ_is_said_and_refuses_nothing() -> None:
    odd = replace(OTHER, processor="Xeon")
    said = cluster.warnings({"token": False}, HERE, [odd])
    assert "Epyc, Xeon" in said[0] and "last digits" in said[0]
    assert "asks for no token" in said[1]
    assert cluster.warnings({"token": True}, HERE, [OTHER]) == ()


def test_contents_change_with_names_and_sizes(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    assert cluster.contents(str(folder)) == str(folder)
    folder.mkdir()
    assert cluster.contents(str(folder)) == str(folder)  # nothing is in it
    (folder / "a").write_text("one")
    first = cluster.contents(str(folder))
    (folder / "a").write_text("two")
    assert cluster.contents(str(folder)) == first
    (folder / "a").write_text("three")
    assert cluster.contents(str(folder)) != first
    (folder / "a").write_text("one")
    (folder / "a").rename(folder / "b")
    assert cluster.contents(str(folder)) != first
    assert "sha256" in cluster.contents(str(folder / "b"))


def test_a_machine_that_sees_another_folder_does_not_share_it(tmp_path: Path) -> None:
    probe = tmp_path / "probe"
    mine = str(tmp_path / "mine")
    assert not cluster.observe({}, str(probe), "word", mine)["shares"]
    probe.write_text("another")
    assert not cluster.observe({}, str(probe), "word", mine)["shares"]
    probe.write_text("word")
    seen = cluster.observe({}, str(probe), "word", mine)
    assert seen["shares"] and not Path(mine).exists()
    assert not cluster.observe({}, str(probe), "word", f"{mine}/no/such")["shares"]
    assert set(seen["versions"]) == set(cluster.PACKAGES)
    json.dumps(seen)


def test_observing_needs_the_standard_library_alone() -> None:
    """A machine that lacks the package must say so, not fail."""
    code = (
        "import sys, cloudpickle\n"
        "from idiolect.server.simulate import cluster\n"
        "cloudpickle.register_pickle_by_value(cluster)\n"
        "sys.stdout.buffer.write(cloudpickle.dumps(cluster.observe))\n"
    )
    ours = pytest.importorskip("ray").cloudpickle.__name__
    code = code.replace("import sys, cloudpickle", f"import sys, {ours} as cloudpickle")
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    bare = (
        "import sys\n"
        f"import {ours} as cloudpickle\n"
        "sys.modules['idiolect'] = None\n"
        "observe = cloudpickle.loads(sys.stdin.buffer.read())\n"
        "print(observe({'data': '/none'}, '/none', '', '/none')['files'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", bare], input=made.stdout, capture_output=True
    )
    assert done.stdout == b"{'data': '/none'}\n", done.stderr


@pytest.mark.parametrize(
    "address", ["", "localhost", "ray://host:10001", "host:port", ":6379", "host:"]
)
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(IdiolectError, match="give HOST:PORT of the head"):
        cluster.check_address(address)


def test_a_port_where_nobody_listens_is_refused_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(IdiolectError, match=f"no Ray cluster .* 127.0.0.1:{port} "):
            cluster.check_address(f"127.0.0.1:{port}")
    cluster.check_address("auto")


@pytest.mark.parametrize(
    ("kind", "reason", "part"),
    [
        ("AuthenticationError", "no", "asks for a token: set RAY_AUTH_MODE"),
        ("RuntimeError", "Version mismatch: Ray 1", "another Python or Ray (Version"),
        ("ConnectionError", "what\nnow.", "could not be joined (ConnectionError: what"),
    ],
)
def test_what_ray_raises_becomes_a_sentence(kind: str, reason: str, part: str) -> None:
    assert part in cluster.refusal("a:1", kind, reason)


# --- what a run on a cluster is told ----------------------------------------------------


def made(tmp_path: Path, **more: Any) -> planning.Plan:
    found = cluster.Cluster("10.0.0.1:6379", (HERE, OTHER))
    config = parse({"users": 2})
    return planning.Plan(
        LAMP, config, tmp_path / "runs" / "one", 2, cluster=found, **more
    )


def test_the_token_of_a_cluster_is_passed_on_and_sent_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the cluster")
    monkeypatch.setenv("HF_TOKEN", "of the hub")
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    plan = made(tmp_path)
    ours = launch.private_environment(plan, tmp_path, "mark")
    assert ours["RAY_AUTH_TOKEN"] == "of the cluster" and "RAY_ADDRESS" not in ours
    sent = environment.worker_environment(ours)
    assert not {"RAY_AUTH_TOKEN", "HF_TOKEN", "IDIOLECT_SIMULATION"} & sent.keys()
    assert sent["OMP_NUM_THREADS"] == os.environ.get("OMP_NUM_THREADS", "1")
    own = launch.private_environment(replace(plan, cluster=None), tmp_path, "mark")
    assert own["RAY_AUTH_TOKEN"] != "of the cluster"


def test_threads_of_an_actor_are_one_unless_the_caller_says_so() -> None:
    assert environment.worker_environment({})["OMP_NUM_THREADS"] == "1"
    told = environment.worker_environment({"OMP_NUM_THREADS": "3"})
    assert told["OMP_NUM_THREADS"] == "3"


def test_the_command_that_resumes_names_the_cluster(tmp_path: Path) -> None:
    said = launch.resuming(made(tmp_path, gpus=0.5))
    assert said.endswith("--gpus-per-node 0.5 --ray 10.0.0.1:6379")


def test_the_process_of_a_run_gets_address_and_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(
        launch.subprocess, "Popen", lambda words, **_: seen.append(words)
    )
    plan = made(tmp_path, gpus=0.5)
    plan.scratch.mkdir(parents=True)
    launch.start(plan, tmp_path, {})
    assert seen[0][-3:] == ["shared", "0.5", "10.0.0.1:6379"]
    launch.start(replace(plan, cluster=None, gpus=0.0), tmp_path, {})
    assert seen[1][-2:] == [launch.NETWORK, "0.0"]


# --- GPUs -------------------------------------------------------------------------------


@pytest.mark.parametrize("gpus", [-1.0, 0.001, 1.5])
def test_gpus_that_ray_cannot_hand_out_are_refused(gpus: float) -> None:
    with pytest.raises(IdiolectError, match="--gpus-per-node is .*from 0.01 to 1"):
        planning.check_gpus(parse({}), gpus)


def test_a_device_that_a_node_would_not_see_is_refused() -> None:
    planning.check_gpus(parse({"engine.device": "cuda:1"}), 0)
    planning.check_gpus(parse({"engine.device": "cuda:0"}), 1)
    for device in ("cpu", "cuda:1"):
        with pytest.raises(IdiolectError, match="sees its own GPUs alone"):
            planning.check_gpus(parse({"engine.device": device}), 1)


def test_nodes_are_as_many_as_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    with pytest.raises(IdiolectError, match="torch sees no GPU here"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        planning.default_nodes(1, None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert planning.default_nodes(1, None) == 4
    assert planning.default_nodes(0.5, None) == 8
    assert planning.default_nodes(2, None) == 2
    many = cluster.Cluster("a:1", (replace(HERE, cpus=40, gpus=8.0),))
    assert planning.default_nodes(0, many) == 40  # on a cluster more than eight
    assert planning.default_nodes(1, many) == 8
    with pytest.raises(IdiolectError, match="no machine of the cluster has so many"):
        planning.default_nodes(16, many)
