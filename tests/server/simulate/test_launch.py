"""`simulate`: what is checked before the start, and real runs of a tiny Flower app."""

import fcntl
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from idiolect.common.config import Config, flatten, parse, to_toml
from idiolect.common.errors import IdiolectError
from idiolect.server.deploy import flower
from idiolect.server.run import results
from idiolect.server.simulate import follow as following
from idiolect.server.simulate import launch, processes, progress
from idiolect.server.simulate import plan as planning
from tests.server.run.test_results import make
from tests.waiting import until

LAMP = Path(__file__).resolve().parents[3] / "simulations" / "lamp"
SMALL = ("users=2", "development-users=1", "history=2", "held-out=1")

# A ServerApp that writes a run's files and waits for nobody; the seed says how it ends.
FAKE = """
import fcntl, json, os, shutil, time
from pathlib import Path
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

app = ServerApp()
client = ClientApp()

@app.main()
def main(grid, context):
    config = context.run_config
    folder = Path(config["run.folder"], config["run.name"])
    folder.mkdir(exist_ok=True)
    lock = (folder / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    Path(config["data"], "config.toml").replace(folder / "config.toml")

    def write(**event):
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(event) + chr(10))

    write(event="start", time=time.time(), pid=os.getpid())
    print("a line of the app's own")
    progress = {"label": "round 1/2", "done": 1, "total": 3, "fraction": 0.25}
    write(event="progress", phase="adapt", **progress)
    if config["seed"] == 1:
        write(event="failed", message="the sky fell: hold it up.")
        raise RuntimeError
    if config["seed"] == 2:
        os._exit(1)
    if config["seed"] == 3:
        time.sleep(600)
    shutil.copy(Path(config["data"], "results.json"), folder)
    write(event="finished", time=time.time())
"""


def console() -> Console:
    return Console(file=io.StringIO(), width=120)


def text_of(one: Console) -> str:
    return one.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files of this test alone, whose path is short enough."""
    made = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    monkeypatch.setenv("TMPDIR", str(made))
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def plan(tmp_path: Path, temporary: Path) -> planning.Plan:
    """A run of the fake app; its data folder holds the files it is to write."""
    app, output = tmp_path / "app", tmp_path / "runs"
    app.mkdir()
    settings = (LAMP / "pyproject.toml").read_text()
    settings = settings.replace("idiolect.server.run.app:app", "fake:app")
    settings = settings.replace("idiolect.client.node.app:app", "fake:client")
    (app / "pyproject.toml").write_text(settings)
    (app / "LICENSE").write_text((LAMP / "LICENSE").read_text())
    (app / "fake.py").write_text(FAKE)
    config = parse({"users": 2, "data": str(tmp_path)})
    (tmp_path / "config.toml").write_text(to_toml(config))
    results.write_json(tmp_path / "results.json", make())
    output.mkdir()
    return planning.Plan(app, config, output / "one", 1)


def seeded(plan: planning.Plan, seed: int) -> planning.Plan:
    config = parse(flatten(plan.config) | {"seed": seed})
    return planning.Plan(plan.app, config, plan.folder, plan.nodes)


def left_of(plan: planning.Plan) -> list[str]:
    """What is left of a run: live processes and files."""
    place = str(plan.scratch).encode()
    left = [str(entry) for entry in plan.scratch.rglob("*")]
    left += [str(entry) for entry in Path(tempfile.gettempdir()).glob("idiolect-*")]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if place in (entry / "environ").read_bytes():
                    left.append((entry / "cmdline").read_bytes().decode())
            except OSError:
                continue
    return left + [str(plan.scratch)] * plan.scratch.exists()


# --- real runs -------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_succeeds(plan: planning.Plan) -> None:
    screen = console()
    found = launch.simulate(plan, screen)
    assert found == json.loads(json.dumps(make()))
    assert "adapt · round 1/2 · 1/3 users" in text_of(screen)
    assert "a line of the app's own" in (plan.folder / "run.log").read_text()
    assert left_of(plan) == []


@pytest.mark.slow
def test_a_run_that_fails(plan: planning.Plan) -> None:
    with pytest.raises(IdiolectError, match=r"^the sky fell: hold it up\.$"):
        launch.simulate(seeded(plan, 1), console())
    assert results.state_of(plan.folder) == "failed"
    assert left_of(plan) == []


@pytest.mark.slow
def test_kill_9_and_resume(plan: planning.Plan) -> None:
    """`simulate` dies; what it started lives on, is ended, and the run goes on."""
    code = (
        "import sys; from pathlib import Path; from rich.console import Console\n"
        "from idiolect.common.config import from_toml\n"
        "from idiolect.server.simulate.launch import simulate\n"
        "from idiolect.server.simulate.plan import Plan\n"
        "app, config, folder = map(Path, sys.argv[1:])\n"
        "simulate(Plan(app, from_toml(config.read_text()), folder, 1), Console())\n"
    )
    hanging = plan.folder.parent.parent / "hanging.toml"
    hanging.write_text(to_toml(seeded(plan, 3).config))
    arguments = [str(plan.app), str(hanging), str(plan.folder)]
    first = subprocess.Popen([sys.executable, "-c", code, *arguments])
    until(lambda: results.read_events(plan.metrics)[0])
    first.kill()
    first.wait()
    mark = launch.read_record(plan)["mark"]
    assert processes.marked(mark)
    assert results.state_of(plan.folder) == "running"

    (plan.folder / "config.toml").replace(plan.folder.parent.parent / "config.toml")
    screen = console()
    launch.simulate(plan, screen)
    assert "ending what is left of the last start of one" in text_of(screen)
    assert processes.marked(mark) == []
    assert left_of(plan) == []


@pytest.mark.slow
def test_an_app_that_flower_refuses(plan: planning.Plan) -> None:
    (plan.app / "fake.py").write_text("")
    with pytest.raises(IdiolectError, match=r"Flower refused the app .*fake"):
        planning.prepare(
            plan.app, [f"run.folder={plan.folder.parent}"], None, Path.cwd()
        )
    assert list(plan.folder.parent.iterdir()) == []


# --- following a run, without Flower ---------------------------------------------------


class Link:
    """A SuperLink that is up, or has ended."""

    def __init__(self, code: int | None = None) -> None:
        self.code = code

    def poll(self) -> int | None:
        return self.code


def follow(plan: planning.Plan, events: list[dict[str, Any]], link: Any) -> list[Any]:
    plan.folder.mkdir(exist_ok=True)
    (plan.folder / "config.toml").touch()
    lines = "".join(json.dumps(event) + "\n" for event in events)
    plan.metrics.write_text(lines)
    ask = partial(flower.check_status, plan.log, "1", {})
    return list(following.follow(plan, 0, lambda: link.poll() is None, "mark", ask))


def test_following_ends_with_the_run(plan: planning.Plan) -> None:
    events = [{"event": "phase", "phase": "adapt"}, {"event": "finished"}]
    assert follow(plan, [*events, {"event": "later"}], Link()) == events


def test_the_last_words_of_a_dead_run_are_heard(plan: planning.Plan) -> None:
    assert follow(plan, [{"event": "finished"}], Link(1)) == [{"event": "finished"}]
    with pytest.raises(IdiolectError, match="out of memory"):
        follow(plan, [{"event": "failed", "message": "out of memory"}], Link(1))


def test_a_dead_superlink_ends_the_wait(plan: planning.Plan) -> None:
    with pytest.raises(IdiolectError, match=r"without a message.*--resume one"):
        follow(plan, [], Link(1))


def test_what_ended_before_it_began_is_started_again(plan: planning.Plan) -> None:
    with pytest.raises(IdiolectError, match="give the same command again"):
        list(following.follow(plan, 0, lambda: False, "mark"))


def test_a_dead_server_app_ends_the_wait(plan: planning.Plan) -> None:
    # This very process is alive, but not one of the run: its id was given anew.
    with pytest.raises(IdiolectError, match=r"without a message.*--resume one"):
        follow(plan, [{"event": "start", "pid": os.getpid()}], Link())


def test_a_run_that_ended_before_it_began(
    plan: planning.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {"runs": [{"status": "finished:failed", "status-details": "no uv"}]}
    monkeypatch.setattr(flower, "flwr", lambda *_: (answer, ""))
    monkeypatch.setattr(following, "SILENT_SECONDS", 0.0)
    with pytest.raises(IdiolectError, match=r"ended before it began \(no uv\)"):
        follow(plan, [], Link())


# --- Ctrl-C ----------------------------------------------------------------------------


@pytest.fixture
def stand_in(plan: planning.Plan, monkeypatch: pytest.MonkeyPatch) -> planning.Plan:
    """A run whose process sleeps, and that is interrupted as soon as it has begun."""

    def start(_plan: Any, place: Path, environment: Any) -> "subprocess.Popen[bytes]":
        code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        code += "print('up', flush=True); time.sleep(600)"
        command = [sys.executable, "-c", code]
        process = subprocess.Popen(
            command, env=dict(environment), stdout=subprocess.PIPE, cwd=place
        )
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        return process

    def follow(plan: planning.Plan, *_: Any) -> Any:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(launch, "start", start)
    monkeypatch.setattr(launch, "follow", follow)
    return plan


@pytest.mark.process
def test_ctrl_c_says_at_once_how_to_go_on(
    stand_in: planning.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, screen, said = stand_in, console(), []
    plan.folder.mkdir()
    (plan.folder / "config.toml").write_text("")
    real = processes.end

    def end(mark: str, *more: Any, **named: Any) -> None:
        said.append(text_of(screen))  # what stood there before anything was ended
        real(mark, *more, **named)

    monkeypatch.setattr(processes, "end", end)
    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt, match="^stopped: every process"):
        launch.simulate(plan, screen)
    assert time.monotonic() - before < 60
    assert "stopping; go on with\n    idiolect-server simulate " in said[0]
    assert f"--resume one --output-dir {plan.folder.parent}\n" in said[0]
    assert left_of(plan) == []


@pytest.mark.process
def test_ctrl_c_before_anything_began_promises_no_resume(
    stand_in: planning.Plan,
) -> None:
    screen = console()
    with pytest.raises(KeyboardInterrupt):
        launch.simulate(stand_in, screen)
    assert "nothing has begun yet, so give the same command again" in text_of(screen)
    assert "resume" not in text_of(screen)


@pytest.mark.process
def test_a_second_ctrl_c_ends_at_once(
    stand_in: planning.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first waits until what is ended has tidied up; the second kills it."""
    stand_in.folder.mkdir()
    patiences: list[float] = []
    real = processes.end

    def end(mark: str, patience: float, known: Any) -> None:
        patiences.append(patience)
        if len(patiences) == 1:
            raise KeyboardInterrupt
        real(mark, patience, known)

    monkeypatch.setattr(processes, "end", end)
    with pytest.raises(KeyboardInterrupt):
        launch.simulate(stand_in, console())
    assert patiences == [launch.IMPATIENCE, 0.0]
    assert left_of(stand_in) == []


def test_the_command_that_goes_on_is_one_that_a_shell_takes(
    plan: planning.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IDIOLECT_HOME", str(plan.folder.parent.parent))
    monkeypatch.chdir(plan.app.parent)
    assert launch.resuming(plan) == "idiolect-server simulate app --resume one"
    odd = planning.Plan(plan.app, plan.config, plan.folder.parent / "a b" / "one", 1)
    words = shlex.split(launch.resuming(odd))
    assert words[-2:] == ["--output-dir", str(odd.folder.parent)]
    built_in = planning.Plan(planning.built_in_app(), plan.config, plan.folder, 1)
    assert launch.resuming(built_in) == "idiolect-server simulate --resume one"


# --- before the start ------------------------------------------------------------------


def prepare(*words: str, cwd: Path | None = None) -> planning.Plan:
    return planning.prepare(LAMP, [*SMALL, *words], None, cwd or Path.cwd())


def test_a_plan(tmp_path: Path) -> None:
    plan = prepare("run.folder=out", "adapt.rounds=1", cwd=tmp_path)
    assert plan.config.users == 2
    assert plan.config.adapt.rounds == 1
    assert plan.settings["run.folder"] == str(tmp_path / "out")
    assert plan.folder == tmp_path / "out" / str(plan.settings["run.name"])
    assert plan.folder.name.startswith("headline-2")
    assert 1 <= plan.nodes <= 3
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["unlabeled.file=/nope"], "cannot read /nope"),
        (["unlabeled.file=/nope", "unlabeled.kind=self"], "cannot read /nope"),
        (["unlabeled.file=BAD"], "line 1: field 'prompt' is missing"),
        (["engine.device=cuda"], "'engine.device' is 'cuda', but torch sees no GPU"),
        (["backbone=GPT"], "of the family 'gpt2'"),
        (["unlabeled.kind=anonymised"], "'unlabeled.support' is 20.*3 users in all"),
        (
            ["unlabeled.kind=others", "users=1", "development-users=0"]
            + ["personalise.learning-rates=1e-3"],
            "there is one user in all",
        ),
        (["privacy.mode=central", "privacy.noise=0.01"], "'adapt' alone would cost"),
        (
            ["privacy.mode=central", "privacy.epsilon=0.001"]
            + ["adapt.clip-quantile=0.5"],
            "with any noise .* alone would cost",
        ),
        (["run.folder=FILE/runs"], "runs can't be written to"),
    ],
)
def test_what_is_known_before_the_start_is_refused_there(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "bad.jsonl").write_text('{"prompt": 3}\n')
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt" / "config.json").write_text('{"model_type": "gpt2"}')
    for name, place in (("BAD", "bad.jsonl"), ("GPT", "gpt"), ("FILE", "bad.jsonl")):
        words = [word.replace(name, str(tmp_path / place)) for word in words]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(IdiolectError, match=said):
        prepare(f"run.folder={tmp_path / 'runs'}", *words)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_has_begun_is_not_checked_again(tmp_path: Path) -> None:
    """Its unlabeled set may be there already, and its file gone."""
    file = tmp_path / "u.jsonl"
    file.write_text('{"prompt": "a", "target": "b"}\n')
    words = [f"run.folder={tmp_path}", "run.name=one", f"unlabeled.file={file}"]
    plan = prepare(*words)
    plan.folder.mkdir()
    (plan.folder / "config.toml").write_text(to_toml(plan.config))
    file.unlink()
    assert prepare(f"run.folder={tmp_path}", "run.resume=one").folder == plan.folder


def test_a_resumed_run_names_the_key_that_was_given(tmp_path: Path) -> None:
    plan = prepare(f"run.folder={tmp_path}", "run.name=one")
    plan.folder.mkdir()
    (plan.folder / "config.toml").write_text(to_toml(plan.config))
    with pytest.raises(IdiolectError, match="with another preset: "):
        prepare(f"run.folder={tmp_path}", "run.resume=one", "preset=paper")


def test_the_name_of_a_new_run_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "strftime", lambda _: "now")
    names: list[str] = []
    for _ in range(3):
        plan = prepare(f"run.folder={tmp_path}")
        plan.folder.mkdir()
        names.append(plan.folder.name)
    assert names == ["headline-now", "headline-now-2", "headline-now-3"]
    with pytest.raises(IdiolectError, match=r"run 'headline-now' exists.*--resume "):
        prepare(f"run.folder={tmp_path}", "run.name=headline-now")


def test_paths_are_relative_to_the_caller(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    given = {"data": "d", "unlabeled.file": "u.jsonl", "backbone": "model"}
    config = planning.resolve_paths(parse(given), tmp_path)
    assert config.data == str(tmp_path / "d")
    assert config.unlabeled.file == str(tmp_path / "u.jsonl")
    assert config.backbone == str(tmp_path / "model")
    (tmp_path / "tiny").mkdir()
    assert planning.resolve_paths(Config(), tmp_path).backbone == "tiny"
    hub = planning.resolve_paths(parse({"backbone": "Qwen/Qwen3"}), tmp_path)
    assert hub.backbone == "Qwen/Qwen3"


def start_of(tmp_path: Path, *events: str) -> None:
    """Write a run `one` as far as it came."""
    plan = prepare(f"run.folder={tmp_path}", "run.name=one")
    plan.folder.mkdir()
    (plan.folder / "config.toml").write_text(to_toml(plan.config))
    lines = "".join(json.dumps({"event": event}) + "\n" for event in events)
    plan.metrics.write_text(lines)
    (tmp_path / "latest").symlink_to("one")


def test_resume_takes_the_saved_config(tmp_path: Path) -> None:
    start_of(tmp_path, "start")
    # `users` is not given again: the saved 2, not the default 40.
    words = [f"run.folder={tmp_path}", "run.resume=latest"]
    plan = planning.prepare(LAMP, words, None, Path.cwd())
    assert plan.config.users == 2
    assert plan.settings["run.resume"] == plan.settings["run.name"] == "one"
    assert plan.folder == tmp_path / "one"


def test_resume_refuses_a_changed_key_by_name(tmp_path: Path) -> None:
    start_of(tmp_path, "start")
    with pytest.raises(IdiolectError, match=r"another lora\.rank, adapt\.rounds:"):
        prepare(
            f"run.folder={tmp_path}", "run.resume=one", "lora.rank=4", "adapt.rounds=9"
        )


def test_resume_latest_starts_where_there_is_nothing(tmp_path: Path) -> None:
    plan = prepare(f"run.folder={tmp_path}", "run.resume=latest")
    assert not plan.resumed and plan.settings["run.resume"] == ""


def test_resume_of_a_damaged_run(tmp_path: Path) -> None:
    start_of(tmp_path, "start")
    (tmp_path / "one" / "config.toml").write_text("color = 3\n")
    with pytest.raises(IdiolectError, match="another version of idiolect"):
        prepare(f"run.folder={tmp_path}", "run.resume=one")
    (tmp_path / "one" / "config.toml").unlink()
    with pytest.raises(IdiolectError, match="before it had saved its config"):
        prepare(f"run.folder={tmp_path}", "run.resume=one")


def test_a_finished_run_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_of(tmp_path, "start", "finished")
    results.write_json(tmp_path / "one" / "results.json", make())
    monkeypatch.setattr(launch, "start", None)  # would raise
    plan = prepare(f"run.folder={tmp_path}", "run.resume=one")
    assert launch.simulate(plan, console())["run"]["task"] == "headline"


def test_a_run_held_by_another_is_refused(plan: planning.Plan) -> None:
    plan.folder.mkdir()
    with (plan.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(IdiolectError, match="'one' is being written"):
            launch.claim(plan, console())
    launch.claim(plan, console())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[project]\n", "no table"),
        ("[tool\n", "not valid TOML"),
        ("[tool.flwr.app.config]\nseed = 1\n", "lists no 'preset'"),
    ],
)
def test_an_app_without_settings(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(IdiolectError, match=said):
        planning.read_app(tmp_path)


def test_dotted_tables_are_flat(tmp_path: Path) -> None:
    text = (LAMP / "pyproject.toml").read_text()
    text = text.replace('"adapt.rounds" = 4', "adapt.rounds = 7")
    (tmp_path / "pyproject.toml").write_text(text)
    assert planning.read_app(tmp_path)["adapt.rounds"] == 7


def test_a_backbone_folder_needs_a_config(tmp_path: Path) -> None:
    with pytest.raises(IdiolectError, match=r"neither a config\.json"):
        planning.check_backbone(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    planning.check_backbone(str(tmp_path))


def test_a_backbone_id_is_looked_up_only_offline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    planning.check_backbone("nobody/none")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(IdiolectError, match="HF_HUB_OFFLINE is set"):
        planning.check_backbone("nobody/none")


# --- progress --------------------------------------------------------------------------


def test_progress_in_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    screen = console()

    def event(done: int, fraction: float, seconds: float) -> dict[str, Any]:
        now[0] += seconds
        place = {"phase": "adapt", "label": "round 1/2", "done": done, "total": 8}
        return {"event": "progress", "fraction": fraction, **place}

    with progress.Display(screen) as display:
        display.show({"event": "phase", "phase": "adapt"})
        display.show(event(1, 0.5, 1))
        display.show(event(2, 0.55, 1))  # the same step, a moment later: not shown
        display.show(event(3, 0.6, 19))  # a resumed run: 10 % took 20 s, 40 % are left
        display.show({"event": "warning", "message": "one [odd] thing"})
        display.show({"event": "user", "user": "u1", "error": "not finite"})
        display.show({"event": "user", "user": "u2", "seconds": 1.0})
    assert text_of(screen).splitlines() == [
        "  0% · adapt",
        " 50% · adapt · round 1/2 · 1/8 users",
        " 60% · adapt · round 1/2 · 3/8 users · about 80 s left",
        "warning: one [odd] thing",
        "warning: user u1: not finite",
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_no_word_of_the_progress_is_cut(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    screen = Console(file=io.StringIO(), force_terminal=True, width=width)
    display = progress.Display(screen)
    label = "positives lr 0.003, development"
    event = {"event": "progress", "phase": "personalise", "label": label, "total": 48}
    display.show(event | {"done": 1, "fraction": 0.0})
    now[0] = 540.0
    display.show(event | {"done": 48, "fraction": 0.1})
    with screen.capture() as shown:
        screen.print(display.bar.make_tasks_table(display.bar.tasks))
    (line,) = Text.from_ansi(shown.get()).plain.splitlines()
    assert f"personalise · {label} · 48/48" in line
    assert " 10% " in line and "about 81 min left" in line and "…" not in line
    assert ("━" in line, "0:0" in line) == (width == 120, width == 120)
