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
    from rich.console import Console

# Imported by the functions that need them: `--help` must not wait for torch or flwr.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `idiolect-server` and return its exit code."""
    return carry_out(_parser, arguments, lambda options: _folder(options) or home())


def _folder(options: argparse.Namespace) -> Path | None:
    """Return the server's folder where the command names one."""
    return getattr(options, "at", None)


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("idiolect-server", "Run personalisation, and look at results.")
    parser.add_argument(
        "--version", action="version", version=f"idiolect {version('idiolect')}"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_simulate(commands)
    _add_study(commands)
    _add_devices(commands)
    text = "list runs, oldest first"
    runs = commands.add_parser("runs", help=text, description=text.capitalize() + ".")
    runs.set_defaults(run=_runs)
    text = "print the results of a run"
    show = commands.add_parser("show", help=text, description=text.capitalize() + ".")
    show.add_argument("name", metavar="RUN", help="name of a run, or `latest`")
    show.set_defaults(run=_show)
    text = "attack what a run released, and the code that released it"
    audit = commands.add_parser(
        "audit",
        help=text,
        description=text.capitalize()
        + ". Adds what it finds to the privacy card. Exits "
        "with 1 where the honest mechanism leaks more than it claims, or a broken one is "
        "not caught.",
    )
    audit.add_argument("name", metavar="RUN", help="name of a run, or `latest`")
    audit.add_argument(
        "--seed", type=int, default=0, help="of the canaries (default: 0)"
    )
    audit.set_defaults(run=_audit)
    for command in (runs, show):
        command.add_argument("--json", action="store_true", help="print JSON")
    for command in (runs, show, audit):
        command.add_argument(
            "--output-dir",
            default="",
            metavar="DIR",
            help="where runs are (default: $IDIOLECT_HOME/runs, ~/.idiolect/runs)",
        )
    return parser


def _add_simulate(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    simulate = commands.add_parser(
        "simulate",
        help="run a Flower app in simulation",
        description="Run a Flower app on simulated devices, closed to others, with "
        "live progress and a true exit code.",
        epilog="Keys: docs/configuration.md. A run that was stopped goes on with "
        "-c resume=latest, or -c resume=NAME.",
    )
    simulate.add_argument(
        "app", type=Path, metavar="APP", help="its folder, e.g. simulations/lamp"
    )
    simulate.add_argument(
        "-c",
        dest="words",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set a config key; plain values, no quotes; relative paths are relative "
        "to where you are",
    )
    simulate.add_argument(
        "--nodes",
        type=int,
        metavar="N",
        help="simulated SuperNodes, one process each; does not change the result "
        "(default: one per core, at most 8)",
    )
    simulate.set_defaults(run=_simulate)


def _add_devices(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    """Commands of a server of real devices (docs/deploy.md)."""

    def add(
        parts: "argparse._SubParsersAction[argparse.ArgumentParser]",
        name: str,
        run: Callable[[argparse.Namespace], int],
        text: str,
    ) -> argparse.ArgumentParser:
        one = parts.add_parser(name, help=text, description=text.capitalize() + ".")
        one.add_argument(
            "--at",
            type=Path,
            metavar="DIR",
            help="the server's folder (default: $IDIOLECT_HOME/server)",
        )
        one.set_defaults(run=run)
        return one

    keys = commands.add_parser("keys", help="make the keys of a server of devices")
    parts = keys.add_subparsers(required=True, metavar="COMMAND")
    init = add(parts, "init", _keys, "make authority, certificate and signing key")
    init.add_argument(
        "names", nargs="+", metavar="NAME", help="by which devices reach the server"
    )
    init.add_argument("--port", type=int, default=9443, help="(default: 9443)")
    renew = add(parts, "renew", _renew, "make a new certificate that devices trust too")
    renew.add_argument(
        "names", nargs="*", metavar="NAME", help="(default: those of the old one)"
    )
    serve = add(commands, "serve", _serve, "serve devices, until ended")
    serve.add_argument("--host", default="0.0.0.0", help="(default: all addresses)")
    serve.add_argument("--port", type=int, help="(default: as the invitation says)")
    run = add(commands, "run", _run, "run a Flower app on the devices of a server")
    run.add_argument("app", type=Path, metavar="APP", help="its folder")
    run.add_argument(
        "-c", dest="words", action="append", default=[], metavar="KEY=VALUE"
    )
    for name, act, text in (
        ("attach", _attach, "show a run on devices that goes on"),
        ("stop", _stop, "end a run on devices that goes on"),
    ):
        one = add(commands, name, act, text)
        one.add_argument("name", metavar="RUN", help="its name, or `latest`")
    nodes = commands.add_parser("nodes", help="enrol devices, list and revoke them")
    parts = nodes.add_subparsers(required=True, metavar="COMMAND")
    one = add(parts, "add", _nodes_add, "let a device in")
    one.add_argument("key", help="the line that `idiolect node join` prints")
    one.add_argument("--label", default="", help="what you call it in `nodes list`")
    one = add(parts, "list", _nodes_list, "list the devices that are let in")
    one.add_argument("--json", action="store_true", help="print JSON")
    one = add(parts, "revoke", _nodes_revoke, "let a device in no more")
    one.add_argument("node", metavar="NODE", help="number or label of `nodes list`")


def _add_study(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    study = commands.add_parser(
        "study",
        help="run declared experiments",
        description="Run declared experiments in this process, without Flower. A cell "
        "that is done is a file; running the same command again does what is missing.",
        epilog="Threads: OMP_NUM_THREADS. The built-in backbone is so small that two "
        "studies at once with one thread each are faster than one with two.",
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
        help="also write summaries and plots there, and the page DIR.md",
    )
    study.set_defaults(run=_study)


def _study(options: argparse.Namespace) -> int:
    with on_interrupt(
        "stopped: cells that are done are kept, and the same command does the rest."
    ):
        return _run_studies(options)


def _run_studies(options: argparse.Namespace) -> int:
    # Before torch is imported, which takes seconds.
    tell_sentence(f"reading {', '.join(map(str, options.files))}")
    from .findings import markdown, summary, write_page
    from .run.results import runs_folder, write_json
    from .study.study import read_study, run_study

    declared = [read_study(path) for path in options.files]
    place = options.output_dir or runs_folder("").parent / "studies"
    for study in declared:
        tell(f"study {study.name} in {place / study.name}")
        if study.audit is not None:
            from .audit import audit

            found = audit.run_study(study, place / study.name, tell)
            _tell_markdown(audit.markdown(found))
        else:
            found = summary(study, run_study(study, place / study.name, tell))
            _tell_markdown(markdown(found))
        write_json(place / study.name / "summary.json", found)
        if options.findings:
            options.findings.mkdir(parents=True, exist_ok=True)
            write_json(options.findings / f"{study.name}.json", found)
    if options.findings:
        tell(f"findings: {write_page(options.findings)}")
    return 0


def _tell_markdown(text: str) -> None:
    """Print it as it is; at a terminal, laid out within its width."""
    if not sys.stdout.isatty():
        return tell(f"\n{text}")
    from rich.markdown import Markdown

    return _console().print("", Markdown(lines(text), hyperlinks=False), sep="\n")


def _audit(options: argparse.Namespace) -> int:
    with on_interrupt("stopped: the same command begins the audit again."):
        return _run_audit(options)


def _run_audit(options: argparse.Namespace) -> int:
    from .run import results

    folder = results.find(options.output_dir, options.name)
    tell_sentence(
        f"auditing the code, then what {folder.name} released; this takes minutes"
    )
    from .audit.audit import (  # after that line, since torch takes seconds
        audit_run,
        defects,
    )

    width = _console().width

    def say(text: str) -> None:
        tell("\n".join(results.wrapped(text, width)))

    done = audit_run(folder, options.seed, say)
    for line in defects(done):
        tell(f"error: {line}", sys.stderr)
    tell(f"card: {folder / 'privacy_card.json'}")
    return 1 if defects(done) else 0


def _simulate(options: argparse.Namespace) -> int:
    from .run import results
    from .simulate.launch import prepare, simulate

    signal.signal(signal.SIGTERM, _terminated)
    # Before torch and Flower are imported, which takes seconds.
    tell_sentence(f"checking {options.app}, its settings, data and backbone")
    plan = prepare(options.app, options.words, options.nodes, Path.cwd())
    console = _console()
    try:
        found = simulate(plan, console)
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
    tell("a server that is up uses it from its next start; invitations stay valid")
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

    folder = _at(options)
    plan = prepare(folder, options.app, options.words, Path.cwd())
    return _shown_to_its_end(
        options, plan.folder.name, lambda console: run(folder, plan, console)
    )


def _attach(options: argparse.Namespace) -> int:
    from .deploy.runs import attach, submitted

    folder = _at(options)
    name = submitted(folder, options.name).folder.name
    return _shown_to_its_end(
        options, name, lambda console: attach(folder, name, console)
    )


def _shown_to_its_end(
    options: argparse.Namespace,
    name: str,
    show: "Callable[[Console], dict[str, Any]]",
) -> int:
    """Show a run on devices; where this command ends before it, say that it goes on."""
    from .deploy.runs import in_progress
    from .run import results

    signal.signal(signal.SIGTERM, _terminated)
    console = _console()
    try:
        found = show(console)
    except IdiolectError as error:
        return complain(str(error), code_of(error, FAILED))
    except (KeyboardInterrupt, SystemExit) as ended:
        if in_progress(_at(options), name):
            at = f" --at {options.at}" if options.at else ""
            tell(f"run {name} goes on without this command")
            tell(f"to look at it:  idiolect-server attach {name}{at}")
            tell(f"to end it:      idiolect-server stop {name}{at}")
        return 130 if isinstance(ended, KeyboardInterrupt) else 143
    console.print()
    results.render(found, console)
    return 0


def _stop(options: argparse.Namespace) -> int:
    from .deploy.runs import stop

    name = stop(_at(options), options.name)
    tell(
        f"run {name} has ended; the same command with -c resume={name} goes on with it"
    )
    return 0


def _nodes_add(options: argparse.Namespace) -> int:
    from .deploy.nodes import add_node

    number = add_node(_at(options), options.key, options.label)
    tell(f"let in as node {number}; now `idiolect node run` on the device")
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
    for node in map(shown, found):
        state = STATES.get(node["status"]) or str(node["status"])
        seen = _local(node["last-seen"])
        lines.append((node["node-id"], node["label"] or "-", state, seen))
    for number, label, state, seen in lines:
        tell(f"{number:>20}  {label:20}  {state:12}  {seen}")
    return 0


def _local(stamp: str | None) -> str:
    """A time of Flower's as this machine's clock has it."""
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
    """On SIGTERM unwind, so that all that was started is ended too."""
    raise SystemExit(143)


def _runs(options: argparse.Namespace) -> int:
    import dataclasses

    from .run import results

    lines = list(results.runs(options.output_dir))
    if options.json:
        tell_json([dataclasses.asdict(line) for line in lines], 2)
        return 0
    if not lines:
        tell(f"no runs in {results.runs_folder(options.output_dir)}")
        return 0
    rows: list[tuple[str, ...]] = [
        ("run", "state", "task", "backbone", "users", "started")
    ]
    for line in lines:
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(line.started))
        cells = (line.name, line.state, line.task, line.backbone, str(line.users))
        rows.append((*map(printable, cells), started if line.started else "–"))
    # Nobody's terminal sets the width of a pipe, so there every run has one line.
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
    """Return a console; wide where neither a terminal nor COLUMNS sets the width."""
    from .run.results import console

    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return console(None if known else 120)


if __name__ == "__main__":
    sys.exit(main())
