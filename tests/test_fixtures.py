"""What earlier versions left on disk (`fixtures/README.md`): it opens, or says so.

For every later version: each of these opens, or one `IdiolectError` sentence says what to
do, and nothing is lost. A test that no longer fits a new schema gets a sibling for a new
fixture; the fixtures of earlier versions stay.
"""

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from cryptography import x509
from rich.console import Console
from safetensors.numpy import load_file

from idiolect.client.node import state as devices
from idiolect.client.node.membership import read_invitation
from idiolect.common.config import old, parse_run
from idiolect.common.engine.adapters import parse_lora
from idiolect.common.errors import IdiolectError
from idiolect.common.protocol.manifest import public_key, read_or_make_key
from idiolect.server.audit import audit
from idiolect.server.deploy import keys, nodes, serve
from idiolect.server.findings import page as pages
from idiolect.server.findings.summary import summary
from idiolect.server.privacy.ledger import read_ledger
from idiolect.server.run import checkpoint, results
from idiolect.server.simulate import plan as planning
from idiolect.server.study.cells import run_study
from idiolect.server.study.declaration import read_study

from .server.federation import FakeGrid, run
from .waiting import until

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
APP = ROOT / "simulations" / "lamp"
RUNS = ("finished", "interrupted", "private")
STUDIES = ("worlds", "development", "audit")
USERS = ("persona-000", "persona-001")
EVERYBODY = (*USERS, "dev-000")

T = TypeVar("T")
Files = dict[str, bytes]


# --- what must hold --------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """The sentence of a version that does not open a fixture."""

    text: str


def opens_or_says(act: Callable[[], T], *names: str) -> T | Said:
    """Return what `act` returns, or the sentence in which it said what to do.

    Parameters
    ----------
    act
        Reads a fixture; it may raise nothing but `IdiolectError`.
    names
        The sentence contains one of them: the file, or the run.
    """
    try:
        return act()
    except IdiolectError as error:
        check_sentence(str(error), *names)
        return Said(str(error))


def check_sentence(text: str, *names: str) -> None:
    """One sentence that names the file and, behind a colon, the next step."""
    assert text.endswith("."), text
    assert "\n" not in text, text
    assert not re.search(r"[.!?] [A-Z]", text), f"more than one sentence: {text}"
    assert re.search(r"[:;] \S+", text), f"no next step: {text}"
    assert any(name in text for name in names), f"none of {names} is named: {text}"


def snapshot(folder: Path) -> Files:
    """Every file below a folder, with its bytes; not the locks, which name a process."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.name != "lock"
    }


def copied(name: str, to: Path) -> Path:
    """Copy a fixture, with the paths it has there, and its keys for this account alone."""
    shutil.copytree(FIXTURES / name, to, symlinks=True)
    for path in to.rglob("*"):
        if path.suffix == ".key":
            path.chmod(0o600)
        if path.suffix in (".toml", ".json", ".jsonl"):
            text = path.read_text()
            path.write_text(text.replace(f"/srv/idiolect/{to.name}", str(to)))
    return to


@pytest.fixture
def runs(tmp_path) -> Path:
    return copied("run-1", tmp_path / "runs")


@pytest.fixture
def studies(tmp_path) -> Path:
    return copied("study-1", tmp_path / "studies")


@pytest.fixture
def server(tmp_path) -> Path:
    return copied("server-1", tmp_path / "server")


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("run-1 is of another version: start a new one.", False),
        ("run-1 is of another version: start a new one", True),
        ("run-1 is of another version.", True),
        ("It is of another version: start a new one.", True),
        ("run-1 is old: say so. Start a new one.", True),
        ("run-1 is old:\nstart a new one.", True),
    ],
)
def test_a_sentence_without_name_step_or_end_is_seen(text, wrong):
    def say() -> None:
        raise IdiolectError(text)

    if wrong:
        with pytest.raises(AssertionError):
            opens_or_says(say, "run-1")
    else:
        assert opens_or_says(say, "run-1") == Said(text)


def test_any_other_exception_is_no_answer():
    with pytest.raises(KeyError):
        opens_or_says(lambda: {}["schema"], "run-1")


def test_the_fixtures_are_small_and_name_no_machine():
    found = snapshot(FIXTURES)
    assert sum(map(len, found.values())) < 600_000
    for name, body in found.items():
        if name.endswith((".json", ".jsonl", ".toml")):
            paths = re.findall(r'"(/[^"]*)"', body.decode())
            assert all(path.startswith("/srv/idiolect/") for path in paths), name


# --- runs ------------------------------------------------------------------------------


def test_the_runs_are_listed(runs):
    # Later: every run is listed with its state; none is taken for gone.
    before = snapshot(runs)
    lines = results.runs(str(runs))
    assert [(line["name"], line["state"]) for line in lines] == [
        ("finished", "finished"),
        ("interrupted", "interrupted"),
        ("private", "interrupted"),
    ]
    known = [(line["task"], line["backbone"], line["users"]) for line in lines]
    assert set(known) == {("headline", "tiny", 2)}
    assert lines[0]["started"] == pytest.approx(1795893000, abs=3600)
    assert snapshot(runs) == before


def test_the_results_of_a_finished_run_are_shown(runs, capsys):
    # Later: opens, or one IdiolectError sentence that says what to do; nothing is lost.
    before = snapshot(runs)
    found = opens_or_says(lambda: results.load(str(runs), "finished"), "finished")
    assert snapshot(runs) == before
    if isinstance(found, Said):
        pytest.skip(found.text)  # so that a report shows who does not open
    results.render(found, Console(width=120))
    said = capsys.readouterr().out
    raw = old.renamed(json.loads(before["finished/results.json"]))
    for method in ("base", "shared", "sft", "c-bpo"):
        assert f"{raw['methods'][method]['nll']['mean']:.3f}" in said
    assert f"results: {runs / 'finished'}" in said
    assert "a simulation, not fit for real users" in said


def test_a_run_without_results_says_how_to_go_on(runs):
    # Later: the same sentence; a run that can go on is never called lost.
    with pytest.raises(IdiolectError, match="--resume interrupted") as caught:
        results.load(str(runs), "interrupted")
    check_sentence(str(caught.value), "interrupted")


@pytest.mark.parametrize("name", RUNS)
def test_the_configuration_of_a_run_is_read(runs, name):
    # Later: every key has the value that the run was started with, or one sentence.
    before = snapshot(runs)
    words = [f"run.folder={runs}", f"run.resume={name}"]
    plan = opens_or_says(lambda: planning.prepare(APP, words, 1, runs), name)
    assert snapshot(runs) == before
    if isinstance(plan, Said):
        pytest.skip(plan.text)
    written = tomllib.loads(before[f"{name}/config.toml"].decode())
    now = old.as_0_2(plan.config)
    kept = written.keys() - set(old.PLACE)
    assert {key: now[key] for key in kept} == {key: written[key] for key in kept}
    assert (plan.settings["run.resume"], plan.settings["run.folder"]) == (
        name,
        str(runs),
    )
    assert (written["lora.rank"], written["personalise.epochs"]) == (1, 1)
    assert plan.folder == runs / name


@pytest.mark.parametrize("name", RUNS)
def test_the_checkpoint_of_a_run_is_read(runs, name):
    # Later: opens, or one IdiolectError sentence that says what to do; nothing is lost.
    before = snapshot(runs)
    found = opens_or_says(lambda: checkpoint.load(runs / name, {}), name)
    assert snapshot(runs) == before
    if isinstance(found, Said):
        pytest.skip(found.text)  # so that a report shows who does not open
    assert found.rounds == 1
    written = load_file(runs / name / "checkpoint" / "shared-1.safetensors")
    assert found.shared.keys() == written.keys()
    for key, array in written.items():
        np.testing.assert_array_equal(found.shared[key], array)
        assert array.any()
    raw = old.renamed(json.loads(before[f"{name}/checkpoint/state.json"]))
    assert found.learning_rates == raw["learning_rates"]
    assert found.trials == raw["trials"]
    assert found.metrics == raw["metrics"]
    assert found.took_part == raw["took_part"]
    assert found.cost.seconds["adapt"] == raw["cost"]["seconds"]["adapt"]
    assert len(found.unlabeled or ()) == (0 if name == "interrupted" else 12)


@pytest.mark.parametrize("name", RUNS)
def test_what_a_run_has_spent_is_read(runs, name):
    # Later: no charge is forgotten; a ledger that is not read is said, not begun again.
    before = snapshot(runs)
    found = opens_or_says(lambda: read_ledger(runs / name / "ledger.json"), "ledger")
    assert snapshot(runs) == before
    if isinstance(found, Said):
        pytest.skip(found.text)  # so that a report shows who does not open
    charged = [charge.id for charge in found.charges]
    assert charged == (["adapt/0", "votes/0"] if name == "private" else [])
    if name == "private":
        assert found.spent().release == pytest.approx(7.9977, abs=0.01)
        assert found.observed_participations == {"adapt": 1, "votes": 1}
    else:
        stages = [entry["stage"] for entry in found.open_releases]
        assert "adapt" in stages


@pytest.mark.parametrize("user", EVERYBODY)
def test_what_a_device_agreed_to_is_read(runs, user):
    # Later: a participation that was counted stays counted, or one sentence.
    before = snapshot(runs)
    store = devices.FolderStore(runs / "private")
    found = opens_or_says(lambda: devices.agreed(store, user), user)
    assert snapshot(runs) == before
    if isinstance(found, Said):
        pytest.skip(found.text)  # so that a report shows who does not open
    assert {stage: list(ids) for stage, ids in found.took.items()} == {
        "adapt": ["adapt/0"],
        "votes": ["votes/0"],
    }
    key = read_or_make_key(runs / "private" / "checkpoint" / "signing.key")
    assert found.seen is not None
    assert (found.seen.key, found.seen.version) == (public_key(key), 2)


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("method", ["sft", "c-bpo"])
def test_a_personal_adapter_is_read(runs, method, user):
    # Later: opens; `parse_lora` says ValueError where it does not, and the device
    # trains again, which is no loss.
    name = old.former(devices.adapter_name(method, user))
    body = (runs / "finished" / name).read_bytes()
    lora, metadata = parse_lora(body)
    assert metadata["user"] == user
    assert {tensor.shape[1] for tensor in lora.b.values()} == {1}
    assert all(tensor.any() for tensor in lora.b.values())


def test_a_run_is_opened_to_go_on(runs):
    # Later: opens, or one IdiolectError sentence that says what to do; nothing is lost.
    before = snapshot(runs)
    words = [f"run.folder={runs}", "run.resume=latest"]
    plan = planning.prepare(APP, words, 1, runs)
    found = opens_or_says(
        lambda: checkpoint.open_run(*parse_run(plan.settings)), "private"
    )
    assert snapshot(runs) == before
    if isinstance(found, Said):
        pytest.skip(found.text)  # so that a report shows who does not open
    assert found.resumed
    assert found.path == runs / "private"
    assert results.state_of(found.path) == "running"
    found.lock.close()


# Days after the run was killed; its manifest was valid for 30.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "days"), [("interrupted", 1), ("private", 1), ("private", 40)]
)
def test_an_interrupted_run_goes_on(runs, name, days, monkeypatch):
    # Later: it ends with results from the stored shared adapter and charges nothing
    # twice, or one IdiolectError sentence that says what to do; nothing is lost.
    before, folder = snapshot(runs), runs / name
    began = json.loads(before[f"{name}/metrics.jsonl"].splitlines()[0])["time"]
    monkeypatch.setattr(time, "time", lambda: began + 86_400 * days)
    words = [f"run.folder={runs}", f"run.resume={name}"]

    def go_on() -> Path:
        plan = planning.prepare(APP, words, 1, runs)
        return run(dict(plan.settings), FakeGrid(1))

    ended = opens_or_says(go_on, name, *EVERYBODY)
    after = snapshot(runs)
    kept = f"{name}/checkpoint/shared-1.safetensors"
    assert after[kept] == before[kept]
    journal = f"{name}/metrics.jsonl"
    assert after[journal].startswith(before[journal])
    assert after[f"{name}/config.toml"] == before[f"{name}/config.toml"]
    keys = f"{name}/checkpoint/signing.key"
    assert after[keys] == before[keys]
    assert before.keys() <= after.keys()
    charges = json.loads(after[f"{name}/ledger.json"])["charges"]
    assert charges == json.loads(before[f"{name}/ledger.json"])["charges"]
    for other in {*RUNS} - {name}:
        assert all(after[k] == b for k, b in before.items() if k.startswith(other))
    if isinstance(ended, Said):
        pytest.skip(ended.text)  # so that a report shows who does not open
    assert ended == folder
    assert results.state_of(folder) == "finished"
    found = results.load(str(runs), name)
    assert list(found["methods"]) == ["base", "shared", "sft", "c-bpo"]
    assert not found["run"]["failed"]
    # The same settings and seed: without noise it ends as the run that nothing stopped.
    if name == "interrupted":
        unbroken = old.renamed(json.loads(before["finished/results.json"]))
        for user in USERS:
            for method, metrics in unbroken["users"][user].items():
                now = found["users"][user][method]["nll"]
                assert now == pytest.approx(metrics["nll"], abs=5e-4)


# --- studies ---------------------------------------------------------------------------


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("a cell that is there was computed again")


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_goes_on_from_its_cells(studies, name, monkeypatch):
    # Later: every cell is found and read, not computed again, or one IdiolectError
    # sentence says what to do; nothing is lost.
    monkeypatch.setattr("idiolect.server.study.cells.run_cell", never)
    monkeypatch.setattr(audit, "audit_mechanism", never)
    before = snapshot(studies)
    folder = studies / "studies" / name

    def go_on() -> dict[str, Any]:
        declared = read_study(studies / f"{name}.toml")
        if declared.audit is not None:
            return audit.run_study(declared, folder, lambda _: None)
        done = run_study(declared, folder, lambda _: None)
        return summary(declared, done)

    found = opens_or_says(go_on, name)
    after = snapshot(studies)
    if (
        name == "audit"
    ):  # version 0.1.0 named its cells otherwise: the same under new names
        assert sorted(after.values()) == sorted(before.values())
    else:
        assert after == before
    if isinstance(found, Said):
        pytest.skip(found.text)  # so that a report shows who does not open
    written = old.renamed(json.loads((folder / "summary.json").read_text()))
    shown = json.loads(json.dumps(found))
    # A later version may say more, and say the same of what was measured.
    assert as_far_as(shown, written) == written


def as_far_as(shown: Any, written: Any) -> Any:
    """What is shown under the keys that were written."""
    if isinstance(written, dict):
        return {k: as_far_as(shown[k], value) for k, value in written.items()}
    if isinstance(written, list):
        assert len(shown) == len(written)
        return [as_far_as(*both) for both in zip(shown, written, strict=True)]
    return shown


def test_the_page_of_findings_is_written_from_stored_summaries(studies):
    # Later: opens, or one IdiolectError sentence that says what to do; nothing is lost.
    place = studies / "findings"
    before = snapshot(place)
    page = opens_or_says(lambda: pages.write_pages(place), "findings", *STUDIES)
    after = snapshot(place)
    assert {name: after[name] for name in before} == before
    if isinstance(page, Said):
        pytest.skip(page.text)  # so that a report shows who does not open
    answers = page.read_text()
    text = ""
    for name in STUDIES:
        assert f"(findings/{name}.md)" in answers
        text += (place / f"{name}.md").read_text()
        assert f"# {json.loads(before[f'{name}.json'])['title']}\n" in text
    assert "| own adapters are better than a neighbour's | all | nll " in text
    assert "| swapped (2 users) |" in text
    assert "| honest | 1 | 0 |" in text
    assert "Measured on development users" in text
    assert (place / "worlds.svg").exists()


# --- a server of devices ---------------------------------------------------------------


def test_an_invitation_is_read(server):
    # Later: opens, or one IdiolectError sentence that says what to do; nothing is lost.
    file = server / "invitation.json"
    before = snapshot(server)
    found = opens_or_says(lambda: read_invitation(file), str(file))
    assert snapshot(server) == before
    if isinstance(found, Said):
        pytest.skip(found.text)  # so that a report shows who does not open
    assert found.address == "lab.example.org:9443"
    assert found.certificate == (server / "ca.crt").read_text()
    assert found.signing_key == (server / "signing.key").read_text().split()[1]


def test_the_keys_of_a_server_are_read_and_kept(server):
    # Later: devices that trust these keys are not shut out: the keys are used as they
    # are, or one sentence; they are never made over.
    before = snapshot(server)
    seed = opens_or_says(
        lambda: read_or_make_key(server / "signing.key"), "signing.key"
    )
    if not isinstance(seed, Said):
        assert f"{seed.hex()}\n".encode() in before["signing.key"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server / "server.crt", server / "server.key")
    with pytest.raises(IdiolectError, match="keys in .* already") as caught:
        keys.keys_init(server, ["lab.example.org"], 9443)
    check_sentence(str(caught.value), str(server))
    assert snapshot(server) == before


def test_a_server_that_was_killed_is_not_taken_for_running(server):
    # Later: the note is read, because it names the processes that `serve` has to end,
    # and nobody talks to what is gone.
    noted = serve.serving(server)
    assert noted is not None
    assert (len(noted.mark), noted.port) == (32, 34391)
    for act in (nodes.nodes, lambda place: nodes.revoke_node(place, "1")):
        with pytest.raises(IdiolectError, match="no server is up") as caught:
            act(server)
        check_sentence(str(caught.value), str(server))


@pytest.mark.slow
def test_a_device_that_was_let_in_is_still_let_in(server):
    # Later: opens, or one IdiolectError sentence that says what to do; no device is lost.
    own = x509.load_pem_x509_certificate((server / "server.crt").read_bytes())
    now = datetime.now(UTC)
    if not own.not_valid_before_utc < now < own.not_valid_after_utc:
        pytest.skip("by this machine's clock the fixture's certificate is not valid")
    before = snapshot(server)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "idiolect-server"), "serve"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--at", str(server)]
    log = server.parent / "said.txt"
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
    try:
        up = "the SuperLink is up"
        until(lambda: up in log.read_text() or process.poll() is not None)
        if up not in (said := log.read_text()):
            check_sentence(said.splitlines()[-1], str(server), "lab.example.org")
            pytest.skip(said)
        listed: list[dict[str, Any]] = []

        def asked() -> bool:
            try:
                listed[:] = nodes.nodes(server)
            except IdiolectError:  # the SuperLink is up a moment before it answers
                return False
            return True

        until(asked)
        assert [node["node-id"] for node in listed] == ["13883510679749196184"]
    finally:
        os.kill(process.pid, signal.SIGTERM)
        process.wait(60)
    after = snapshot(server)
    for name in ("ca.key", "server.key", "signing.key", "invitation.json"):
        assert after[name] == before[name]
