"""`idiolect-server`: the command of the operator.

Exit codes: 1 where the run failed, or an audit; the others are in `common/command.py`.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..common.command import (
    FAILED,
    carry_out,
    code_of,
    complain,
    new_parser,
    on_interrupt,
)
from ..common.errors import IdiolectError
from ..common.files import home
from ..common.text import lines, printable, shown, tell, tell_json, tell_sentence

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
    from rich.console import Console

# Modules are imported by the functions that need them: `--help` does not import torch.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `idiolect-server` and return its exit code."""
    return carry_out(
        _parser, arguments, lambda options: getattr(options, "at", None) or home()
    )


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("idiolect-server", "Run personalisation, and look at results.")
    parser.add_argument(
        "--version", action="version", version=f"idiolect {version('idiolect')}"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_simulate(commands)
    _add_study(commands)
    _add_devices(commands)
    _add_results(commands)
    return parser


def _add(
    commands: "Commands",
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    more: str = "",
) -> argparse.ArgumentParser:
    """Add a command: its name, what it calls, and its help, with more in its own help."""
    sentence = f"{text[0].upper()}{text[1:]}.{more}"
    command = commands.add_parser(name, help=text, description=sentence)
    command.set_defaults(run=run)
    return command


def _add_results(commands: "Commands") -> None:
    runs = _add(commands, "runs", _runs, "list runs, oldest first")
    show = _add(commands, "show", _show, "print the results of a run")
    audit = _add(
        commands,
        "audit",
        _audit,
        "attack what a run released, and the code that released it",
        " Adds the findings to the privacy card. Exits with 1 if the honest mechanism "
        "leaks more than it claims, or if a broken one is not caught.",
    )
    audit.add_argument(
        "--seed", type=int, default=0, help="of the canaries (default: 0)"
    )
    for command in (runs, show):
        command.add_argument("--json", action="store_true", help="print JSON")
    for command in (show, audit):
        command.add_argument("name", metavar="RUN", help="name of a run, or `latest`")
    for command in (runs, show, audit):
        _add_output(command, "", "where runs are")


def _add_output(
    command: argparse.ArgumentParser, default: str | None, text: str
) -> None:
    command.add_argument(
        "--output-dir",
        default=default,
        metavar="DIR",
        help=f"{text} (default: $IDIOLECT_HOME/runs, ~/.idiolect/runs)",
    )


def _add_app(command: argparse.ArgumentParser) -> None:
    """Add the app, its configuration keys, and the options of a run."""
    command.add_argument(
        "app",
        type=Path,
        nargs="?",
        metavar="APP",
        help="folder of the Flower app (default: the built-in one, simulations/lamp)",
    )
    command.add_argument(
        "-c",
        dest="words",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set a configuration key; plain values without quotes; relative paths start "
        "at the current folder",
    )
    command.epilog = (
        "Keys: docs/configuration.md. A stopped run continues with --resume latest, or "
        "with --resume NAME."
    )
    command.add_argument(
        "--preset", metavar="NAME", help="values of keys that are not given (`paper`)"
    )
    command.add_argument(
        "--name", help="of the run (default: made from task, time and seed)"
    )
    command.add_argument(
        "--resume", metavar="NAME", help="continue a run; `latest` is the last one"
    )
    _add_output(command, None, "where runs are written")


# Options of a run as settings, and how version 0.2 gave them.
RUN_OPTIONS = {"run.name": "name", "run.resume": "resume", "run.folder": "output_dir"}
OLD_WORDS = {"run-name": "--name", "resume": "--resume", "output-dir": "--output-dir"}


def _settings(options: argparse.Namespace) -> list[str]:
    """Return all settings of a run as ``key=value``."""
    for word in options.words:
        name = word.partition("=")[0].strip()
        if name in OLD_WORDS:
            tell(f"-c {name}=… is now {OLD_WORDS[name]} …", sys.stderr)
    given = {
        **{key: getattr(options, option) for key, option in RUN_OPTIONS.items()},
        "preset": options.preset,
    }
    named = [f"{key}={value}" for key, value in given.items() if value is not None]
    return [*options.words, *named]


def _add_simulate(commands: "Commands") -> None:
    simulate = _add(
        commands,
        "simulate",
        _simulate,
        "run a Flower app in simulation",
        " The simulated devices are on this machine, and other accounts cannot reach them. "
        "Shows the progress; the exit code says whether the run succeeded.",
    )
    _add_app(simulate)
    simulate.add_argument(
        "--nodes",
        type=int,
        metavar="N",
        help="simulated SuperNodes, one process each; does not change the result "
        "(default: one per core, at most 8)",
    )


def _add_devices(commands: "Commands") -> None:
    """Add the commands of a server of real devices (docs/deploy.md)."""
    keys = commands.add_parser("keys", help="make the keys of a server of devices")
    key = keys.add_subparsers(required=True, metavar="COMMAND")
    init = _add(key, "init", _keys, "make authority, certificate and signing key")
    init.add_argument("names", nargs="+", metavar="NAME", help="of the server")
    init.add_argument(
        "--port", type=int, default=9443, help="where devices connect (default: 9443)"
    )
    renew = _add(key, "renew", _renew, "make a new certificate that devices also trust")
    renew.add_argument(
        "names", nargs="*", metavar="NAME", help="(default: those of the old one)"
    )
    serve = _add(commands, "serve", _serve, "serve devices until ended")
    serve.add_argument(
        "--host", default="0.0.0.0", help="where to listen (default: all addresses)"
    )
    serve.add_argument(
        "--port", type=int, help="where to listen (default: that of the invitation)"
    )
    run = _add(commands, "run", _run, "run a Flower app on the devices of a server")
    _add_app(run)
    attach = _add(commands, "attach", _attach, "show a run on devices to its end")
    stop = _add(commands, "stop", _stop, "end a run on devices")
    for command in (attach, stop):
        command.add_argument("name", metavar="RUN", help="its name, or `latest`")
    nodes = commands.add_parser("nodes", help="enrol devices, list and revoke them")
    node = nodes.add_subparsers(required=True, metavar="COMMAND")
    add = _add(node, "add", _nodes_add, "register a device")
    add.add_argument("key", help="the line that `idiolect node join` prints")
    add.add_argument("--label", default="", help="your name for it in `nodes list`")
    listed = _add(node, "list", _nodes_list, "list the registered devices")
    listed.add_argument("--json", action="store_true", help="print JSON, of all")
    listed.add_argument("--all", action="store_true", help="also revoked ones")
    revoke = _add(node, "revoke", _nodes_revoke, "revoke a device")
    revoke.add_argument("node", metavar="NODE", help="number or label in `nodes list`")
    for command in (init, renew, serve, run, attach, stop, add, listed, revoke):
        command.add_argument(
            "--at",
            type=Path,
            metavar="DIR",
            help="the server's folder (default: $IDIOLECT_HOME/server)",
        )


def _add_study(commands: "Commands") -> None:
    study = _add(
        commands,
        "study",
        _study,
        "run declared experiments",
        " They run in this process, without Flower. Each finished cell is a file; the same "
        "command again runs the missing cells.",
    )
    study.epilog = (
        "Threads: OMP_NUM_THREADS. The built-in backbone is so small that two studies with "
        "one thread each are faster than one with two."
    )
    study.add_argument(
        "files", type=Path, nargs="+", metavar="FILE.toml", help="what to run"
    )
    study.add_argument(
        "--output-dir",
        type=Path,
        metavar="DIR",
        help="where cells are written (default: studies, beside the runs)",
    )
    study.add_argument(
        "--findings",
        type=Path,
        metavar="DIR",
        help="also write summaries, pages and plots there, and DIR.md with all answers",
    )


@on_interrupt("stopped: finished cells are kept, and the same command does the rest.")
def _study(options: argparse.Namespace) -> int:
    # Before torch is imported, which takes seconds.
    tell_sentence(f"reading {', '.join(map(str, options.files))}")
    from .findings.page import markdown, store, write_pages
    from .findings.summary import summary
    from .run.results import runs_folder, write_json
    from .study.cells import run_study
    from .study.declaration import read_study

    declared = [read_study(path) for path in options.files]
    place = options.output_dir or runs_folder("").parent / "studies"
    for study in declared:
        tell(f"study {study.name} in {place / study.name}")
        if study.audit is not None:
            from .audit import audit

            found = audit.run_study(study, place / study.name, tell)
        else:
            found = summary(study, run_study(study, place / study.name, tell))
        _tell_markdown(markdown(found))
        written = place / study.name / "summary.json"
        write_json(written, found)
        if options.findings:
            store(written, options.findings, study.name)
    if options.findings:
        tell(f"findings: {write_pages(options.findings)}")
    return 0


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

    done = audit_run(folder, options.seed, say)
    for line in defects(done):
        tell(f"error: {line}", sys.stderr)
    tell(f"card: {folder / 'privacy_card.json'}")
    return 1 if defects(done) else 0


def _simulate(options: argparse.Namespace) -> int:
    from .simulate.launch import simulate
    from .simulate.plan import built_in_app, prepare

    signal.signal(signal.SIGTERM, _terminated)
    app = options.app or built_in_app()
    # Before torch and Flower are imported, which takes seconds.
    tell_sentence(f"checking {app}, its settings, data and backbone")
    plan = prepare(app, _settings(options), options.nodes, Path.cwd())
    return _shown(lambda console: simulate(plan, console))


def _shown(show: "Callable[[Console], dict[str, Any]]") -> int:
    """Show a run to its end, and print its results; return the exit code."""
    from .run import results

    console = _console()
    try:
        found = show(console)
    except IdiolectError as error:
        return complain(str(error), code_of(error, FAILED))
    console.print()
    results.render(found, console)
    return 0


def _at(options: argparse.Namespace) -> Path:
    from .deploy.keys import default_folder

    return options.at or default_folder()


def _renew(options: argparse.Namespace) -> int:
    from .deploy.keys import keys_renew

    folder = _at(options)
    end = keys_renew(folder, options.names)
    tell(f"the server's certificate in {folder} ends on {end:%Y-%m-%d}")
    tell("a running server uses it from its next start; invitations stay valid")
    return 0


def _keys(options: argparse.Namespace) -> int:
    from .deploy.keys import invited_to, keys_init

    invitation = keys_init(_at(options), options.names, options.port)
    where = invited_to(invitation.parent)
    tell(f"keys are in {invitation.parent}")
    tell(f"give every device {invitation}")
    tell(f"which says that the server is at {':'.join(map(str, where))}")
    tell("next: `idiolect-server serve`, with the same --at if you gave one")
    return 0


def _serve(options: argparse.Namespace) -> int:
    from .deploy.serve import serve

    serve(_at(options), options.host, options.port, tell)
    return 0


def _run(options: argparse.Namespace) -> int:
    from .deploy.runs import prepare, run
    from .simulate.plan import built_in_app

    folder = _at(options)
    app = options.app or built_in_app()
    plan = prepare(folder, app, _settings(options), Path.cwd())
    return _on_devices(options, plan.folder.name, lambda to: run(folder, plan, to))


def _attach(options: argparse.Namespace) -> int:
    from .deploy.runs import attach, submitted

    folder = _at(options)
    name = submitted(folder, options.name).folder.name
    return _on_devices(options, name, lambda to: attach(folder, name, to))


def _on_devices(
    options: argparse.Namespace, name: str, show: "Callable[[Console], dict[str, Any]]"
) -> int:
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


def _stop(options: argparse.Namespace) -> int:
    from .deploy.runs import stop

    name = stop(_at(options), options.name)
    tell(f"run {name} has ended")
    tell(f"to continue it: the command that began it, with --resume {name}")
    return 0


def _nodes_add(options: argparse.Namespace) -> int:
    from .deploy.nodes import add_node

    number = add_node(_at(options), options.key, options.label)
    tell(f"registered as node {number}; now `idiolect node run` on the device")
    return 0


STATES = {"registered": "not seen yet", "unregistered": "revoked"}


def _nodes_list(options: argparse.Namespace) -> int:
    from .deploy.nodes import nodes

    found = nodes(_at(options))
    if options.json:
        tell_json(found, 2)
        return 0
    if not found:
        tell(
            "no devices yet: `nodes add` takes the line that `idiolect node join` prints"
        )
        return 0
    lines = [("node", "label", "state", "last seen")]
    revoked = [node for node in found if node["status"] == "unregistered"]
    listed = found if options.all else [node for node in found if node not in revoked]
    for node in map(shown, listed):
        state = STATES.get(node["status"]) or str(node["status"])
        seen = _local(node["last-seen"])
        lines.append((node["node-id"], node["label"] or "-", state, seen))
    for number, label, state, seen in lines:
        tell(f"{number:>20}  {label:20}  {state:12}  {seen}")
    if revoked and not options.all:
        tell(f"and {len(revoked)} revoked, which `nodes list --all` shows")
    return 0


def _local(stamp: str | None) -> str:
    """Return a time of Flower in this machine's time zone."""
    try:
        when = datetime.fromisoformat(stamp or "").astimezone()
        return when.strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return stamp or "never"


def _nodes_revoke(options: argparse.Namespace) -> int:
    from .deploy.nodes import revoke_node

    number = revoke_node(_at(options), options.node)
    tell(f"node {number} is revoked; its key cannot return, a new one can")
    return 0


def _terminated(*_: object) -> NoReturn:
    """Raise on SIGTERM, so that all that was started is ended too."""
    raise SystemExit(143)


def _runs(options: argparse.Namespace) -> int:
    from .run import results

    lines = results.runs(options.output_dir)
    if options.json:
        tell_json(lines, 2)
        return 0
    if not lines:
        tell(f"no runs in {results.runs_folder(options.output_dir)}")
        return 0
    rows: list[tuple[str, ...]] = [
        ("run", "state", "task", "backbone", "users", "started")
    ]
    for line in lines:
        *cells, first = line.values()
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(first))
        rows.append((*map(printable, map(str, cells)), started if first else "–"))
    # A pipe has no width: there every run has one line.
    wide = _console().width if sys.stdout.isatty() or "COLUMNS" in os.environ else 10**6
    tell("\n".join(results.listed(rows, wide)))
    return 0


def _show(options: argparse.Namespace) -> int:
    from .run import results

    found = results.load(options.output_dir, options.name)
    if options.json:
        tell_json(found, 2)
    else:
        results.render(found, _console(), whole=True)
    return 0


def _console() -> "Console":
    """Return a console; 120 columns if neither a terminal nor COLUMNS sets the width."""
    from .run.results import console

    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return console(None if known else 120)


if __name__ == "__main__":
    sys.exit(main())
