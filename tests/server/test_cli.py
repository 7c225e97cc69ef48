"""`idiolect-server` and `idiolect`, without starting a run."""

import io
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.text import Text

from idiolect.client import cli as device
from idiolect.common.errors import IdiolectError
from idiolect.server import cli
from idiolect.server.commands import studies
from idiolect.server.forecast.estimate import Forecast
from idiolect.server.run import results
from idiolect.server.simulate import ahead as run_ahead
from idiolect.server.simulate import launch
from idiolect.server.simulate import plan as planning
from idiolect.server.study import ahead

from .run.test_results import make

LAMP = str(Path(__file__).resolve().parents[2] / "simulations" / "lamp")
UNIQUENESS = f"{LAMP}/experiments/uniqueness.toml"
LEAKS = f"{LAMP}/experiments/audit.toml"
AHEAD = Forecast(
    3900.0,
    3175.0,
    2048.0,
    {("adapt", "", False): 3900.0},
    (("adapt.rounds=2", 1800.0),),
)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    (tmp_path / "one").mkdir()
    (tmp_path / "latest").symlink_to("one")
    results.write_json(tmp_path / "one" / "results.json", make())
    return tmp_path


def test_help_is_there_at_once() -> None:
    """A fraction of a second of CPU, because it loads neither torch nor flwr."""
    code = (
        "import sys; from idiolect.server.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'flwr', 'transformers', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert b"simulate" in done.stdout
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 1.5  # .1 s where a core is fast and free


@pytest.mark.parametrize("main", [cli.main, device.main])
def test_version(
    main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.startswith("idiolect 0.")


def test_show(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "latest", "--output-dir", str(runs)]) == 0
    assert "c-bpo - sft" in capsys.readouterr().out


def test_show_json_is_the_file(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "one", "--json", "--output-dir", str(runs)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads((runs / "one" / "results.json").read_text())


def test_show_what_is_not_there(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "two", "--output-dir", str(runs)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: there is no run 'two'")
    assert said.out == ""


def test_list(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["runs", "--output-dir", str(runs)]) == 0
    assert "interrupted" in capsys.readouterr().out
    assert cli.main(["runs", "--json", "--output-dir", str(runs)]) == 0
    assert [line["name"] for line in json.loads(capsys.readouterr().out)] == ["one"]
    assert cli.main(["runs", "--output-dir", str(runs / "none")]) == 0
    assert "no runs in" in capsys.readouterr().out


@pytest.mark.parametrize("columns", ["80", "40", None])
def test_a_narrow_terminal_cuts_no_name(
    columns: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    names = ["headline-20261128-231616-seed0", "x" * 100]
    for name in names:
        (tmp_path / name).mkdir()
    assert cli.main(["runs", "--output-dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert set(names) <= set(said.split())
    assert columns or len(said.splitlines()) == 3  # headings, and a line each
    if columns:
        lines = [line for line in said.splitlines() if "x" * 100 not in line]
        assert max(map(len, lines)) <= int(columns)


@pytest.mark.parametrize("arguments", [[], ["fly"], ["show"]])
def test_usage_errors_exit_2(arguments: list[str]) -> None:
    assert cli.main(arguments) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere/pyproject.toml does not exist"),
        ([LAMP, "-c", "usres=3"], "did you mean 'users'?"),
        ([LAMP, "-c", "users=many"], "'users' takes a whole number"),
        ([LAMP, "-c", "users"], "-c takes key=value, not 'users'"),
        ([LAMP, "-c", "data=no/such"], "no/such"),
        (
            [LAMP, "-c", "backbone=./none"],
            "backbone './none' is neither a folder nor a GGUF file",
        ),
        ([LAMP, "-c", "backbone=nobody/none"], "HF_HUB_OFFLINE"),
        ([LAMP, "-c", "run.resume=old"], "there is no run 'old'"),
        ([LAMP, "-c", "run.name=a/b"], "the name of a run is 'a/b'"),
        ([LAMP, "--nodes", "99"], "--nodes is 99"),
        ([LAMP, "--nodes", "0"], "--nodes is 0"),
    ],
)
def test_errors_exit_2_and_write_nothing(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("IDIOLECT_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["simulate", *arguments]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_study_fits_the_terminal_and_is_markdown_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = (
        f"## Title\n\n{'several words ' * 12}\n\n| claim | verdict |\n| --- | --- |\n"
    )
    text += f"| {'one is better than the other ' * 4}| **not confirmed** |\n"
    for terminal in (False, True):
        screen = io.StringIO()
        monkeypatch.setattr(screen, "isatty", lambda there=terminal: there)
        monkeypatch.setattr(sys, "stdout", screen)
        monkeypatch.setenv("COLUMNS", "60")
        studies.tell_markdown(text)
        said = Text.from_ansi(screen.getvalue()).plain
        assert ("| --- |" in said, "## " in said) == (not terminal, not terminal)
        assert (max(map(len, said.splitlines())) <= 60) == terminal
        assert "confirmed" in said and "Title" in said


@pytest.mark.parametrize(
    ("words", "stopped", "kept"),
    [
        (
            ["audit", "one"],
            "idiolect.server.audit.audit.audit_run",
            "begins the audit again",
        ),
        (
            ["study", UNIQUENESS],
            "idiolect.server.study.cells.run_study",
            "finished cells",
        ),
        (
            ["study", UNIQUENESS],
            "idiolect.server.study.ahead.forecast",
            "finished cells",
        ),
        (["study", LEAKS], "idiolect.server.audit.audit.run_study", "finished cells"),
    ],
)
def test_ctrl_c_says_in_one_line_how_to_go_on(
    words: list[str],
    stopped: str,
    kept: str,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object, **_named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ahead, "forecast", lambda *_, **_named: (AHEAD, [1.0]))
    monkeypatch.setattr(stopped, interrupted)
    assert cli.main([*words, "--output-dir", str(runs)]) == 130
    (*_, said) = capsys.readouterr().err.splitlines()
    assert said.startswith("stopped: ") and kept in said
    assert "same command" in said


@pytest.mark.parametrize(
    "words", [["simulate", LAMP], ["study", UNIQUENESS], ["audit", "one"]]
)
def test_something_is_said_before_torch_is_imported(
    words: list[str], runs: Path
) -> None:
    code = (
        "import sys; from idiolect.common import text\n"
        "from idiolect.server import cli\n"
        "heavy = {'torch', 'flwr', 'transformers'}\n"
        "loaded = lambda: str(heavy & set(sys.modules))\n"
        "text.tell_sentence = lambda text, *_: sys.exit(text + loaded())\n"
        "cli.main(sys.argv[1:])"
    )
    place = [] if words[0] == "simulate" else ["--output-dir", str(runs)]
    command = [sys.executable, "-c", code, *words, *place]
    said = subprocess.run(command, capture_output=True, text=True).stderr
    assert words[1] in said and said.endswith("set()\n")


@pytest.mark.parametrize(
    ("error", "code"),
    [(None, 0), (IdiolectError("the sky fell"), 1), (KeyboardInterrupt(), 130)],
)
def test_the_exit_code_is_that_of_the_run(
    error: BaseException | None,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stand_in(
        plan: planning.Plan, console: object, forecast: object
    ) -> dict[str, object]:
        assert forecast is AHEAD
        if error:
            raise error
        return make()

    monkeypatch.setattr(launch, "simulate", stand_in)
    monkeypatch.setattr(run_ahead, "forecast", lambda plan: AHEAD)
    arguments = ["simulate", LAMP, "-c", f"run.folder={tmp_path}", "-c", "users=3"]
    assert cli.main(arguments) == code
    said = capsys.readouterr()
    assert "about 65 min in all, 3.1 GB\n" in said.out
    assert "warning: this needs about 3.1 GB and 2.0 GB are free" in said.err
    assert ("c-bpo - sft" in said.out) == (code == 0)
    assert ("error: the sky fell" in said.err) == (code == 1)


def test_a_plan_says_where_time_goes_and_begins_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "simulate", None)
    monkeypatch.setattr(run_ahead, "forecast", lambda plan: AHEAD)
    place = tmp_path / "runs"
    words = ["simulate", LAMP, "--plan", "--output-dir", str(place), "-c", "users=3"]
    assert cli.main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "about 65 min in all, 3.1 GB; 2.0 GB are free" in said
    assert "shared adapter 65 min 100%" in said
    assert "adapt.rounds=2 30 min" in said
    assert not place.exists()


def test_a_run_begins_where_it_cannot_be_foreseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[object] = []

    def unknown(plan: object) -> None:
        raise IdiolectError("nobody knows.")

    def stand_in(plan: object, console: object, forecast: object) -> dict[str, object]:
        seen.append(forecast)
        return make()

    monkeypatch.setattr(run_ahead, "forecast", unknown)
    monkeypatch.setattr(launch, "simulate", stand_in)
    words = ["simulate", LAMP, "--output-dir", str(tmp_path), "-c", "users=3"]
    assert cli.main(words) == 0 and seen == [None]
    assert "no forecast: nobody knows." in capsys.readouterr().err
    assert cli.main([*words, "--plan"]) == 2


@pytest.mark.slow
def test_a_run_that_would_fail_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The process that counts its work finds out, and names the memory that works."""
    monkeypatch.setattr(launch, "simulate", lambda *_: pytest.fail("it began"))
    words = ["simulate", LAMP, "--output-dir", str(tmp_path), "-c", "users=3"]
    words += ["-c", "development-users=0", "-c", "personalise.learning-rates=1e-3"]
    assert cli.main([*words, "-c", "engine.memory=1"]) == 2
    assert "set engine.memory=" in capsys.readouterr().err
