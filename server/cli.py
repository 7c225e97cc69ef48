"""`idiolect-server`: the command of the operator.

Exit codes: 1 where the run failed, an audit, or a check of `doctor`; the others are in
`common/command.py`.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..common.command import (
    FAILED,
    Argument,
    Command,
    add_commands,
    carry_out,
    code_of,
    complain,
    given,
    new_parser,
    on_interrupt,
    summary,
)
from ..common.errors import IdiolectError, Impossible, refuse_if
from ..common.files import home
from ..common.process import age
from ..common.text import lines, printable, shown, tell, tell_json, tell_sentence
from .forecast.gpus import gpu_of

if TYPE_CHECKING:
    from rich.console import Console

    from .forecast.estimate import Forecast
    from .simulate.cluster import Cluster
    from .simulate.plan import Plan
    from .study.declaration import Study

# Modules are imported by the functions that need them: `--help` does not import torch.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `idiolect-server` and return its exit code."""
    return carry_out(
        _parser, arguments, lambda options: getattr(options, "at", None) or home()
    )


# --- what the commands do; those that return nothing end with code 0 --------------------


# Settings of a run that are options of the command, and how version 0.2 gave them.
SETTINGS = {
    "run.name": "name",
    "run.resume": "resume",
    "run.folder": "output_dir",
    "preset": "preset",
}
OLD_WORDS = {"run-name": "--name", "resume": "--resume", "output-dir": "--output-dir"}


def _settings(options: argparse.Namespace) -> list[str]:
    """Return all settings of a run as ``key=value``."""
    for word in options.words:
        name = word.partition("=")[0].strip()
        if name in OLD_WORDS:
            tell(f"-c {name}=… is now {OLD_WORDS[name]} …", sys.stderr)
    given = {key: getattr(options, option) for key, option in SETTINGS.items()}
    named = [f"{key}={value}" for key, value in given.items() if value is not None]
    return [*options.words, *named]


@on_interrupt("stopped: finished cells are kept, and the same command does the rest.")
def _study(options: argparse.Namespace) -> None:
    refuse_if(
        bool(options.gpu) and not options.plan, "--gpu is for a forecast: add --plan."
    )
    refuse_if(options.gpus < 1, f"--gpus {options.gpus} is none: use 1 or more.")
    _trackable(options)
    refuse_if(options.jobs < 1, f"--jobs {options.jobs} is none: use 1 or more.")
    refuse_if(
        bool(options.gpu) and options.jobs > 1,
        "--jobs is for this machine: with --gpu say --gpus N.",
    )
    if options.gpu:
        gpu_of(options.gpu)
    # Before torch is imported, which takes seconds.
    tell_sentence(f"reading {', '.join(map(str, options.files))}")
    from .findings.page import markdown, store, write_pages
    from .run.results import runs_folder, write_json
    from .study.declaration import read_study, with_keys
    from .study.kept import archive, take

    refuse_if(
        options.words and options.findings,
        "--findings holds studies as their files declare them, and -c changes them: leave "
        "out --findings (the page is printed, and in report.html), or write the keys into "
        "a copy of the file.",
    )
    declared = [with_keys(read_study(path), options.words) for path in options.files]
    place = options.output_dir or runs_folder("").parent / "studies"
    kept = {one.name: archive(options.findings, one.name, one.kept) for one in declared}
    for name, stored in kept.items():
        if stored and (count := take(stored, place / name)):
            tell(f"study {name}: {count} finished cells are taken from {stored}")
    if options.plan:
        processes = options.gpus if options.gpu else options.jobs
        return _planned(declared, place, options.gpu, processes)
    since = 0.0
    for study in declared:
        tell(f"study {study.name} in {place / study.name}")
        found = _found(study, place / study.name, kept[study.name], options, since)
        _tell_markdown(markdown(found))
        written = place / study.name / "summary.json"
        write_json(written, found)
        _own_report(str(written.parent), options.tensorboard)
        if options.findings:
            store(written, options.findings, study.name)
        since = age()
    if options.findings:
        tell(f"findings: {write_pages(options.findings)}")


def _found(
    study: "Study",
    folder: Path,
    kept: Path | None,
    options: argparse.Namespace,
    since: float,
) -> dict[str, Any]:
    """Run a study, or take what is finished of it; return its summary."""
    if study.audit is not None:
        from .audit import audit

        return audit.run_study(study, folder, tell)
    from .findings.summary import summary
    from .study.cells import finished, run_study

    if options.so_far:
        done = finished(study, folder, kept)
        refuse_if(not done, f"study {study.name} has no finished cell: run it first.")
    elif options.jobs > 1:
        from .study.jobs import run_side_by_side, share_cores

        share_cores(options.jobs)  # the forecast measures with as many threads
        ahead = _ahead(study, folder, since, options.jobs)
        done = run_side_by_side(study, folder, options.jobs, tell, ahead, kept)
    else:
        ahead = _ahead(study, folder, since)
        done = run_study(study, folder, tell, ahead, kept)
    return summary(study, done)


def _planned(
    declared: "Sequence[Study]", place: Path, gpu: str = "", processes: int = 1
) -> None:
    """Print the forecast of studies, for this machine or for GPUs that are not here."""
    from .forecast.estimate import elsewhere, table
    from .study.ahead import forecast

    since = 0.0
    for study in declared:
        if study.audit is not None:
            tell(f"study {study.name}: an audit has no forecast; it takes minutes")
            continue
        tell(f"study {study.name}")
        ahead, _ = forecast(study, place / study.name, since, gpu, processes)
        tell(table(ahead, elsewhere(ahead, gpu, processes) if gpu else ""))
        since = age()


def _ahead(
    study: "Study", folder: Path, since: float, processes: int = 1
) -> "list[float]":
    """Say what a study will take; return the seconds of each of its cells.

    `since`: age of this process when it began with the study.
    """
    from .study.ahead import forecast

    tell_sentence("measuring this machine, which takes some seconds")
    try:
        ahead, cells = forecast(study, folder, since, processes=processes)
    except Impossible:
        raise
    except IdiolectError as error:
        tell_sentence(f"no forecast: {error}", sys.stderr)
        return []
    if any(cells):
        _tell_ahead(ahead)
    return cells


def _tell_markdown(text: str) -> None:
    """Print Markdown; at a terminal, formatted to its width."""
    if not sys.stdout.isatty():
        return tell(f"\n{text}")
    from rich.markdown import Markdown

    return _console().print("", Markdown(lines(text), hyperlinks=False), sep="\n")


@on_interrupt("stopped: the same command begins the audit again.")
def _audit(options: argparse.Namespace) -> int:
    from .run import results

    folder = results.find(options.output_dir, options.name)
    tell_sentence(
        f"auditing the code, then what {folder.name} released; this takes minutes"
    )
    # Only now: torch is imported, which takes seconds.
    from .audit.audit import audit_run, defects

    width = _console().width

    def say(text: str) -> None:
        tell("\n".join(results.wrapped(text, width)))

    found = defects(audit_run(folder, options.seed, say))
    for line in found:
        tell(f"error: {line}", sys.stderr)
    tell(f"card: {folder / 'privacy_card.json'}")
    return FAILED if found else 0


def _simulate(options: argparse.Namespace) -> int | None:
    from .simulate.launch import simulate
    from .simulate.plan import built_in_app, has_finished, prepare

    _trackable(options)
    refuse_if(
        bool(options.ray) and options.plan,
        "--plan measures this machine, and --ray names others: leave out one of them.",
    )
    signal.signal(signal.SIGTERM, _terminated)
    app = options.app or built_in_app()
    # Before torch and Flower are imported, which takes seconds.
    tell_sentence(f"checking {app}, its settings, data and backbone")
    settings, to = _settings(options), options.tensorboard
    plan = prepare(
        app, settings, options.nodes, Path.cwd(), options.gpus_per_node, options.ray
    )
    if has_finished(plan):
        return _shown(lambda console: simulate(plan, console), to)
    if plan.cluster is not None:
        _tell_cluster(plan.cluster, plan.nodes)
        return _shown(lambda console: simulate(plan, console), to)
    ahead = _ahead_of(plan, options.plan)
    if options.plan:
        return None
    return _shown(lambda console: simulate(plan, console, ahead), to)


def _tell_cluster(cluster: "Cluster", nodes: int) -> None:
    """Say which machines compute, and what is otherwise with them."""
    names = [f"{one.name} ({one.cpus} cores)" for one in cluster.machines]
    tell(f"{nodes} nodes on the Ray cluster at {cluster.address}: {', '.join(names)}")
    for sentence in cluster.warnings:
        tell_sentence(f"warning: {sentence}", sys.stderr)


@on_interrupt("stopped: nothing has begun yet, so give the same command again.")
def _ahead_of(plan: "Plan", whole: bool) -> "Forecast | None":
    """Say what a run will take, all of it or in one line; None where it is not known."""
    from .forecast.estimate import table
    from .simulate.ahead import forecast

    tell_sentence("measuring this machine, which takes some seconds")
    try:
        ahead = forecast(plan)
    except IdiolectError as error:
        if whole or isinstance(error, Impossible):
            raise
        return tell_sentence(f"no forecast: {error}", sys.stderr)
    if whole:
        tell(table(ahead))
    else:
        _tell_ahead(ahead, "the whole run: " * plan.resumed)
    return ahead


def _tell_ahead(ahead: "Forecast", what: str = "") -> None:
    """Say time and memory in one line, and warn if there is too little memory."""
    from .forecast.estimate import short, warning

    tell(f"{what}{short(ahead)}")
    if problem := warning(ahead):
        tell_sentence(f"warning: {problem}", sys.stderr)


def _shown(
    show: "Callable[[Console], dict[str, Any]]", tracked: Path | None = None
) -> int | None:
    """Show a run to its end, and print its results; return the code of a failure.

    `tracked`: TensorBoard's folder, if it is written for it too.
    """
    from .run import results

    console = _console()
    try:
        found = show(console)
    except IdiolectError as error:
        return complain(str(error), code_of(error, FAILED))
    console.print()
    results.render(found, console)
    _own_report(found["run"].get("path"), tracked)


def _trackable(options: argparse.Namespace) -> None:
    """Refuse `--tensorboard` before anything begins, where it would fail at the end."""
    if options.tensorboard is not None:
        from importlib.util import find_spec

        refuse_if(
            find_spec("tensorboard") is None,
            "this needs tensorboard: install it by `pip install "
            "'idiolect[tensorboard]'`.",
        )


def _own_report(path: str | None, tracked: Path | None = None) -> None:
    """Write the page of what has just ended; a failure of that is no failure of the run."""
    folder = Path(path or "")
    if not path or not folder.is_dir():
        return
    try:
        from .report.pictures import NO_PICTURES, able
        from .report.read import write_own

        tell(f"report: {write_own(folder)}")
        if not able():
            tell_sentence(NO_PICTURES)
    except Exception as error:
        tell_sentence(f"no report: {summary(error)}", sys.stderr)
    if tracked is None:
        return
    try:
        from .report.tracker import track_own

        tell(f"tensorboard: {track_own(folder, tracked)}")
    except Exception as error:
        tell_sentence(f"nothing for TensorBoard: {summary(error)}", sys.stderr)


def _at(options: argparse.Namespace) -> Path:
    return options.at or home() / "server"


def _renew(options: argparse.Namespace) -> None:
    from .deploy.keys import keys_renew

    folder = _at(options)
    end = keys_renew(folder, options.names)
    tell(f"the server's certificate in {folder} ends on {end:%Y-%m-%d}")
    tell("a running server uses it from its next start; invitations stay valid")


def _keys(options: argparse.Namespace) -> None:
    from .deploy.keys import invited_to, keys_init

    invitation = keys_init(_at(options), options.names, options.port)
    tell(f"keys are in {invitation.parent}")
    tell(f"give every device {invitation}")
    where = ":".join(map(str, invited_to(invitation.parent)))
    tell(f"which says that the server is at {where}")
    tell("next: `idiolect-server serve`, with the same --at if you gave one")


def _name_witness(options: argparse.Namespace) -> None:
    from .deploy.keys import name_witness

    invitation = name_witness(_at(options), options.key)
    tell(f"{invitation} names {'the witness' if options.key else 'no witness'} now")
    tell(
        "give it to every device, also to those that have joined, and start `serve` again"
    )


def _witness_key(options: argparse.Namespace) -> None:
    from .deploy.witness import key_file, witness_key

    file = key_file(options.key_file)
    tell(witness_key(file))
    tell(f"the private key is in {file}: keep it where the operator cannot read it")
    tell("next: the operator gives the digits to `idiolect-server keys witness`")


def _vouch(options: argparse.Namespace) -> None:
    from .deploy.witness import key_file, vouch_for

    file = key_file(options.key_file)
    said = vouch_for(file, options.invitation, options.key)
    tell(f"the device's owner runs: idiolect node vouched {said}")


def _serve(options: argparse.Namespace) -> None:
    from .deploy.serve import serve

    serve(_at(options), options.host, options.port, tell, options.metrics, options.log)


def _doctor(options: argparse.Namespace) -> int:
    from ..common.doctor import report
    from .deploy.doctor import examine

    os.environ["HF_HUB_OFFLINE"] = "1"  # it fetches nothing
    found, text, well = report(examine(_at(options), options.backbone))
    if options.json:
        tell_json(found, 2)
    else:
        tell_sentence("\n".join(text))
    return 0 if well else FAILED


def _run(options: argparse.Namespace) -> int | None:
    from .deploy.runs import prepare, run
    from .simulate.plan import built_in_app

    folder = _at(options)
    app = options.app or built_in_app()
    plan = prepare(folder, app, _settings(options), Path.cwd())
    return _on_devices(options, plan.folder.name, lambda to: run(folder, plan, to))


def _attach(options: argparse.Namespace) -> int | None:
    from .deploy.runs import attach, submitted

    folder = _at(options)
    name = submitted(folder, options.name)[1].name
    return _on_devices(options, name, lambda to: attach(folder, name, to))


def _on_devices(
    options: argparse.Namespace, name: str, show: "Callable[[Console], dict[str, Any]]"
) -> int | None:
    """Show a run on devices; if this command ends before the run, say what to do then."""
    from .deploy.runs import in_progress

    signal.signal(signal.SIGTERM, _terminated)
    try:
        return _shown(show)
    except (KeyboardInterrupt, SystemExit) as ended:
        if in_progress(_at(options), name):
            at = f" --at {options.at}" if options.at else ""
            tell(f"run {name} goes on without this command")
            tell(f"to look at it:  idiolect-server attach {name}{at}")
            tell(f"to end it:      idiolect-server stop {name}{at}")
        return 130 if isinstance(ended, KeyboardInterrupt) else 143


def _stop(options: argparse.Namespace) -> None:
    from .deploy.runs import stop

    name = stop(_at(options), options.name)
    tell(f"run {name} has ended")
    tell(f"to continue it: the command that began it, with --resume {name}")


def _nodes_add(options: argparse.Namespace) -> None:
    from .deploy.nodes import add_node

    number = add_node(_at(options), options.key, options.label)
    tell(f"registered as node {number}; now `idiolect node run` on the device")


STATES = {"registered": "not seen yet", "unregistered": "revoked"}


def _nodes_list(options: argparse.Namespace) -> None:
    from .deploy.nodes import nodes

    found = nodes(_at(options))
    if options.json:
        return tell_json(found, 2)
    if not found:
        return tell(
            "no devices yet: `nodes add` takes the line that `idiolect node join` prints"
        )
    rows = [("node", "label", "state", "last seen")]
    revoked = [node for node in found if node["status"] == "unregistered"]
    listed = found if options.all else [node for node in found if node not in revoked]
    for node in map(shown, listed):
        state = STATES.get(node["status"]) or str(node["status"])
        seen = _local(node["last-seen"])
        rows.append((node["node-id"], node["label"] or "-", state, seen))
    for number, label, state, seen in rows:
        tell(f"{number:>20}  {label:20}  {state:12}  {seen}")
    if revoked and not options.all:
        tell(f"and {len(revoked)} revoked, which `nodes list --all` shows")


def _local(stamp: str | None) -> str:
    """Return a time of Flower in this machine's time zone."""
    try:
        when = datetime.fromisoformat(stamp or "").astimezone()
        return when.strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return stamp or "never"


def _nodes_revoke(options: argparse.Namespace) -> None:
    from .deploy.nodes import revoke_node

    number = revoke_node(_at(options), options.node)
    tell(f"node {number} is revoked; its key cannot return, a new one can")


def _terminated(*_: object) -> NoReturn:
    """Raise on SIGTERM, so that all that was started is ended too."""
    raise SystemExit(143)


def _runs(options: argparse.Namespace) -> None:
    from .run import results

    found = results.runs(options.output_dir)
    if options.json:
        return tell_json(found, 2)
    if not found:
        return tell(f"no runs in {results.runs_folder(options.output_dir)}")
    rows: list[tuple[str, ...]] = [
        ("run", "state", "task", "backbone", "users", "started")
    ]
    for line in found:
        *cells, first = line.values()
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(first))
        rows.append((*map(printable, map(str, cells)), started if first else "–"))
    # A pipe has no width: there every run has one line.
    wide = _console().width if sys.stdout.isatty() or "COLUMNS" in os.environ else 10**6
    tell("\n".join(results.listed(rows, wide)))


def _show(options: argparse.Namespace) -> None:
    from .run import results

    found = results.load(options.output_dir, options.name)
    if options.json:
        tell_json(found, 2)
    else:
        results.render(found, _console(), whole=True)


def _compare(options: argparse.Namespace) -> None:
    from .run import compare, results

    folder = options.output_dir
    names = [
        results.find(folder, name).name for name in options.names
    ]  # of `latest`, too
    runs = {name: results.load(folder, name) for name in names}
    refuse_if(
        len(runs) < len(options.names) or len(runs) < 2,
        "compare takes two runs or more, each once: `idiolect-server runs` lists them.",
    )
    found = compare.compare(runs)
    if options.json:
        tell_json(found, 2)
    else:
        compare.render(found, _console())


@on_interrupt("stopped: answers are kept, and the same command asks the rest.")
def _judge(options: argparse.Namespace) -> None:
    from .pairwise.endpoint import endpoint_of
    from .pairwise.judge import Asked, judge, lines
    from .pairwise.material import material

    endpoint = endpoint_of(
        options.endpoint, options.model, options.timeout, options.allow_host
    )
    asked = Asked(
        tuple(options.pairs), options.items, options.own, options.with_reference
    )
    run = material(options.output_dir, options.name)
    to = sys.stderr if options.json else sys.stdout
    found = judge(run, endpoint, asked, lambda text: tell_sentence(text, to))
    if options.json:
        return tell_json(found, 2)
    tell("\n".join(lines(found)))
    tell(f"judge: {run.folder / 'judge.json'}")
    _own_report(str(run.folder))


def _report(options: argparse.Namespace) -> None:
    from .report.pictures import NO_PICTURES, able
    from .report.read import write_report

    _trackable(options)
    path = write_report(options.name, options.output_dir, options.to, options.texts)
    tell(f"report: {path}")
    if options.tensorboard is not None:
        from .report.tracker import track

        made = track(options.name, options.output_dir, options.tensorboard)
        tell(f"tensorboard: {made}")
    if not able():
        tell_sentence(NO_PICTURES)
    if options.open:
        import webbrowser

        if not webbrowser.open(path.absolute().as_uri()):
            tell("no browser could be opened: open the file yourself")


def _delete(options: argparse.Namespace) -> None:
    from .run.removal import delete, described

    folder, text = described(options.output_dir, options.name)
    tell(text)
    what = f"run {printable(folder.name)} is deleted for good"
    if not options.yes:
        refuse_if(not sys.stdin.isatty(), f"{what}: confirm with --yes.")
        said = input(f"{what}. Go on (yes/no)? ")
        refuse_if(
            said.strip() != "yes",
            "nothing was deleted, since the answer was not 'yes'.",
        )
    delete(folder)
    tell(f"deleted: {folder}")


def _console() -> "Console":
    """Return a console; 120 columns if neither a terminal nor COLUMNS sets the width."""
    from .run.results import console

    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return console(None if known else 120)


# --- the command line ------------------------------------------------------------------


def _output(default: str | None, text: str) -> Argument:
    return given(
        "--output-dir",
        default=default,
        metavar="DIR",
        help=f"{text} (default: $IDIOLECT_HOME/runs, ~/.idiolect/runs)",
    )


AT = given(
    "--at",
    type=Path,
    metavar="DIR",
    help="the server's folder (default: $IDIOLECT_HOME/server)",
)
JSON = given("--json", action="store_true", help="print JSON")
PLAN = given(
    "--plan",
    action="store_true",
    help="say how long it will take, how much memory it needs, where the time goes and "
    "what to lower, and do nothing",
)
KEYS = given(
    "-c",
    dest="words",
    action="append",
    default=[],
    metavar="KEY=VALUE",
    help="set a configuration key in all cells; the study's results are then written "
    "under NAME-changed",
)
TENSORBOARD = given(
    "--tensorboard",
    type=Path,
    metavar="DIR",
    help="also write means, intervals and curves into DIR, for TensorBoard",
)
RUN = given("name", metavar="RUN", help="name of a run, or `latest`")
RUN_OF_SERVER = given("name", metavar="RUN", help="its name, or `latest`")
RUNS = _output("", "where runs are")
APP = (
    given(
        "app",
        type=Path,
        nargs="?",
        metavar="APP",
        help="folder of the Flower app (default: the built-in one, simulations/lamp)",
    ),
    given(
        "-c",
        dest="words",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set a configuration key; plain values without quotes; relative paths start "
        "at the current folder",
    ),
    given(
        "--preset", metavar="NAME", help="values of keys that are not given (`paper`)"
    ),
    given("--name", help="of the run (default: made from task, time and seed)"),
    given("--resume", metavar="NAME", help="continue a run; `latest` is the last one"),
    _output(None, "where runs are written"),
)
ABOUT_APP = (
    "Keys: docs/configuration.md. A stopped run continues with --resume latest, or with "
    "--resume NAME."
)


KEY_FILE = given(
    "--key-file",
    type=Path,
    metavar="FILE",
    help="the witness's private key (default: witness.key in $IDIOLECT_HOME)",
)
GROUPS = {
    "keys": "make the keys of a server of devices",
    "nodes": "enrol devices, list and revoke them",
    "witness": "vouch for devices, as somebody who is not the operator",
}

COMMANDS = (
    Command(
        "simulate",
        _simulate,
        "run a Flower app in simulation",
        (
            *APP,
            PLAN,
            TENSORBOARD,
            given(
                "--nodes",
                type=int,
                metavar="N",
                help="simulated SuperNodes, one process each; does not change the result "
                "(default: one per core, at most 8; with --ray one per core of the "
                "cluster, with --gpus-per-node as many as the GPUs suffice for)",
            ),
            given(
                "--gpus-per-node",
                type=float,
                default=0.0,
                metavar="G",
                help="GPUs that each node has to itself, or a share of one such as 0.5 "
                "(default: 0, all nodes see the same GPUs and use the first)",
            ),
            given(
                "--ray",
                default="",
                metavar="ADDRESS",
                help="compute on the Ray cluster there, HOST:PORT of its head or `auto`; "
                "data, backbone and --output-dir must be on paths that all its machines "
                "share (default: on this machine, in a cluster of the run's own)",
            ),
        ),
        " The simulated devices are on this machine, and other accounts cannot reach them. "
        "Shows the progress; the exit code says whether the run succeeded.",
        ABOUT_APP,
        examples=(
            "-c users=12 -c methods=shared,sft,c-bpo --name first",
            "--resume latest",
        ),
    ),
    Command(
        "study",
        _study,
        "run declared experiments",
        (
            given(
                "files", type=Path, nargs="+", metavar="FILE.toml", help="what to run"
            ),
            KEYS,
            PLAN,
            given(
                "--so-far",
                action="store_true",
                help="compute nothing: tables and page of the cells that are finished",
            ),
            given(
                "--gpu",
                default="",
                metavar="NAME",
                help="with --plan: for a GPU that is not here, by its data sheet",
            ),
            given(
                "--gpus",
                type=int,
                default=1,
                metavar="N",
                help="how many of them, with one process each",
            ),
            given(
                "--jobs",
                type=int,
                default=1,
                metavar="N",
                help="compute so many cells at the same time, each in a process of its own",
            ),
            given(
                "--output-dir",
                type=Path,
                metavar="DIR",
                help="where cells are written (default: studies, beside the runs)",
            ),
            given(
                "--findings",
                type=Path,
                metavar="DIR",
                help="also write summaries, pages and plots there, and DIR.md with all "
                "answers",
            ),
            TENSORBOARD,
        ),
        " They run without Flower. Each finished cell is a file; the same command again "
        "runs the missing cells.",
        "Threads of a process: OMP_NUM_THREADS; otherwise --jobs share the cores evenly. "
        "The built-in backbone is so small that --jobs 2 is faster than two threads.",
        examples=(
            "simulations/lamp/experiments/uniqueness.toml --jobs 2",
            "paper.toml --plan --gpu a100-80gb --gpus 4",
        ),
    ),
    Command(
        "keys init",
        _keys,
        "make authority, certificate and signing key",
        (
            given("names", nargs="+", metavar="NAME", help="of the server"),
            given(
                "--port",
                type=int,
                default=9443,
                help="where devices connect (default: 9443)",
            ),
            AT,
        ),
        examples=("server.example.org 203.0.113.7 --port 9443",),
    ),
    Command(
        "keys renew",
        _renew,
        "make a new certificate that devices also trust",
        (
            given(
                "names",
                nargs="*",
                metavar="NAME",
                help="(default: those of the old one)",
            ),
            AT,
        ),
        examples=(
            "",
            "server.example.org",
        ),
    ),
    Command(
        "keys witness",
        _name_witness,
        "name in the invitation who vouches for devices",
        (
            given(
                "key",
                metavar="KEY",
                help="that `witness key` shows; empty: nobody from now on",
            ),
            AT,
        ),
        examples=("DIGITS",),
    ),
    Command(
        "witness key",
        _witness_key,
        "show the key of a witness, and make it first",
        (KEY_FILE,),
    ),
    Command(
        "witness vouch",
        _vouch,
        "sign the key of a device whose owner the witness knows",
        (
            given("invitation", type=Path, help="that the device's owner was given"),
            given("key", help="the line that `idiolect node join` prints"),
            KEY_FILE,
        ),
        examples=("invitation.json 'THE LINE'",),
    ),
    Command(
        "serve",
        _serve,
        "serve devices until ended",
        (
            given(
                "--host",
                default="0.0.0.0",
                help="where to listen (default: all addresses)",
            ),
            given(
                "--port",
                type=int,
                help="where to listen (default: that of the invitation)",
            ),
            given(
                "--metrics",
                type=int,
                metavar="PORT",
                help="of 127.0.0.1, where /health and Prometheus' /metrics are answered "
                "(default: nowhere)",
            ),
            given(
                "--log",
                type=Path,
                metavar="FILE",
                help="also write what is said there, one JSON object a line; rotated by "
                "size (default: none)",
            ),
            AT,
        ),
        examples=(
            "",
            "--host 203.0.113.7 --port 9443",
        ),
    ),
    Command(
        "doctor",
        _doctor,
        "look whether this machine can serve devices, and what to do if not",
        (
            given(
                "--backbone",
                default="",
                metavar="NAME",
                help="also look at the model of your runs",
            ),
            JSON,
            AT,
        ),
        " Changes nothing. Exits with 1 if something is wrong.",
    ),
    Command(
        "run",
        _run,
        "run a Flower app on the devices of a server",
        (*APP, AT),
        epilog=ABOUT_APP,
        examples=(
            "my-app --name autumn",
            "--resume latest",
        ),
    ),
    Command(
        "attach",
        _attach,
        "show a run on devices to its end",
        (RUN_OF_SERVER, AT),
        examples=("latest",),
    ),
    Command(
        "stop",
        _stop,
        "end a run on devices",
        (RUN_OF_SERVER, AT),
        examples=("autumn",),
    ),
    Command(
        "nodes add",
        _nodes_add,
        "register a device",
        (
            given("key", help="the line that `idiolect node join` prints"),
            given("--label", default="", help="your name for it in `nodes list`"),
            AT,
        ),
        examples=("'THE LINE' --label ann",),
    ),
    Command(
        "nodes list",
        _nodes_list,
        "list the registered devices",
        (
            given("--json", action="store_true", help="print JSON, of all"),
            given("--all", action="store_true", help="also revoked ones"),
            AT,
        ),
        examples=("--all",),
    ),
    Command(
        "nodes revoke",
        _nodes_revoke,
        "revoke a device",
        (
            given("node", metavar="NODE", help="number or label in `nodes list`"),
            AT,
        ),
        examples=("ann",),
    ),
    Command(
        "runs",
        _runs,
        "list runs, oldest first",
        (JSON, RUNS),
        examples=("--json",),
    ),
    Command(
        "show",
        _show,
        "print the results of a run",
        (JSON, RUN, RUNS),
        examples=("latest",),
    ),
    Command(
        "compare",
        _compare,
        "compare runs user by user, the others with the first",
        (
            JSON,
            given(
                "names",
                nargs="+",
                metavar="RUN",
                help="names of runs, the first before",
            ),
            RUNS,
        ),
        " They must have measured the same users on the same texts.",
        examples=("first second",),
    ),
    Command(
        "judge",
        _judge,
        "let a language model compare outputs of a simulation in pairs",
        (
            given(
                "--endpoint",
                required=True,
                metavar="URL",
                help="OpenAI-compatible address on this machine, such as "
                "http://127.0.0.1:8080/v1",
            ),
            given("--model", required=True, metavar="NAME", help="its name there"),
            given(
                "--pairs",
                action="append",
                default=[],
                metavar="ONE,OTHER",
                help="two methods; can be repeated (default: the pairs that the run "
                "compares)",
            ),
            given(
                "--items",
                type=int,
                default=4,
                metavar="N",
                help="prompts of each user, at most (default: 4)",
            ),
            given(
                "--own",
                type=int,
                default=5,
                metavar="N",
                help="how many of the user's newest texts the judge sees (default: 5)",
            ),
            given(
                "--with-reference",
                action="store_true",
                help="also show it what the user wrote at the prompt",
            ),
            given(
                "--timeout",
                type=float,
                default=120.0,
                metavar="SECONDS",
                help="of one answer (default: 120)",
            ),
            given(
                "--allow-host",
                default="",
                metavar="HOST",
                help="a host that is not this machine, to which the texts may go",
            ),
            JSON,
            RUN,
            RUNS,
        ),
        " The texts of the simulation go to that model, and nowhere else. Each pair is "
        "asked in both orders; a verdict counts where both agree.",
        "The key, if one is needed: IDIOLECT_JUDGE_KEY. What numbers mean: docs/data.md.",
        examples=("latest --endpoint http://127.0.0.1:8080/v1 --model judge",),
    ),
    Command(
        "report",
        _report,
        "write a page about a run or a study",
        (
            given(
                "name",
                metavar="RUN|STUDY",
                help="name of a run, or `latest`, or of a study, or a study's .json.gz",
            ),
            given("--open", action="store_true", help="also open it in the browser"),
            given(
                "--texts",
                action="store_true",
                help="also show texts of users, where a simulation kept them",
            ),
            given(
                "--to",
                type=Path,
                metavar="FILE",
                help="(default: report.html in the folder of the run or study)",
            ),
            TENSORBOARD,
            RUNS,
        ),
        " It is one HTML file that loads nothing from anywhere.",
        examples=(
            "latest --open",
            "uniqueness --tensorboard curves",
        ),
    ),
    Command(
        "delete",
        _delete,
        "delete a run",
        (
            given("--yes", action="store_true", help="do not ask"),
            RUN,
            RUNS,
        ),
        " Its folder goes, with results, adapters, checkpoint and privacy ledger; a run "
        "that is in progress is refused.",
        examples=("first",),
    ),
    Command(
        "audit",
        _audit,
        "attack what a run released, and the code that released it",
        (
            given("--seed", type=int, default=0, help="of the canaries (default: 0)"),
            RUN,
            RUNS,
        ),
        " Adds the findings to the privacy card. Exits with 1 if the honest mechanism "
        "leaks more than it claims, or if a broken one is not caught.",
        examples=("latest --seed 1",),
    ),
)


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("idiolect-server", "Run personalisation, and look at results.")
    return add_commands(parser, COMMANDS, GROUPS, _carry_out, describe=False)


def _carry_out(command: Command, options: argparse.Namespace) -> int:
    return command.run(options) or 0


if __name__ == "__main__":
    sys.exit(main())
