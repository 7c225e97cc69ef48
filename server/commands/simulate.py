"""`simulate`, and what runs and studies have in common: settings, progress, their page."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ...common.command import FAILED, code_of, complain, on_interrupt, summary
from ...common.errors import IdiolectError, Impossible, pip_install, refuse_if
from ...common.text import tell, tell_sentence

if TYPE_CHECKING:
    from rich.console import Console

    from ..forecast.estimate import Forecast
    from ..simulate.cluster import Cluster
    from ..simulate.plan import Plan

# Modules are imported by the functions that need them: something is said before torch is.

# Settings of a run that are options of the command, and how version 0.2 gave them.
SETTINGS = {
    "run.name": "name",
    "run.resume": "resume",
    "run.folder": "output_dir",
    "preset": "preset",
}


OLD_WORDS = {"run-name": "--name", "resume": "--resume", "output-dir": "--output-dir"}


def settings_of(options: argparse.Namespace) -> list[str]:
    """Return all settings of a run as ``key=value``."""
    for word in options.words:
        name = word.partition("=")[0].strip()
        if name in OLD_WORDS:
            tell(f"-c {name}=… is now {OLD_WORDS[name]} …", sys.stderr)
    given = {key: getattr(options, option) for key, option in SETTINGS.items()}
    named = [f"{key}={value}" for key, value in given.items() if value is not None]
    return [*options.words, *named]


def start(options: argparse.Namespace) -> int | None:
    """Check and simulate a run, or say what it will take."""
    from ..simulate.launch import simulate
    from ..simulate.plan import built_in_app, has_finished, prepare

    check_tracker(options)
    check_cluster(options)
    signal.signal(signal.SIGTERM, terminated)
    app = options.app or built_in_app()
    # Before torch and Flower are imported, which takes seconds.
    tell_sentence(f"checking {app}, its settings, data and backbone")
    settings, to = settings_of(options), options.tensorboard
    plan = prepare(
        app, settings, options.nodes, Path.cwd(), options.gpus_per_node, options.ray
    )
    if has_finished(plan):
        return show_to_end(lambda console: simulate(plan, console), to)
    if plan.cluster is not None:
        tell_cluster(plan.cluster, f"{plan.nodes} nodes")
        return show_to_end(lambda console: simulate(plan, console), to)
    ahead = ahead_of(plan, options.plan)
    if options.plan:
        return None
    return show_to_end(lambda console: simulate(plan, console, ahead), to)


def check_cluster(options: argparse.Namespace) -> None:
    """Refuse a forecast, which measures this machine, for a run on others."""
    refuse_if(
        bool(options.ray) and options.plan,
        "--plan measures this machine, and --ray names others: leave out one of them.",
    )


def tell_cluster(cluster: "Cluster", what: str) -> None:
    """Say which machines compute what, and what is otherwise with them."""
    names = [f"{one.name} ({one.cpus} cores)" for one in cluster.machines]
    tell(f"{what} on the Ray cluster at {cluster.address}: {', '.join(names)}")
    for sentence in cluster.warnings:
        tell_sentence(f"warning: {sentence}", sys.stderr)


@on_interrupt("stopped: nothing has begun yet, so give the same command again.")
def ahead_of(plan: "Plan", whole: bool) -> "Forecast | None":
    """Say what a run will take, all of it or in one line; None where it is not known."""
    from ..forecast.estimate import table
    from ..simulate.ahead import forecast

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
        tell_ahead(ahead, "the whole run: " * plan.resumed)
    return ahead


def tell_ahead(ahead: "Forecast", what: str = "") -> None:
    """Say time and memory in one line, and warn if there is too little memory."""
    from ..forecast.estimate import short, warning

    tell(f"{what}{short(ahead)}")
    if problem := warning(ahead):
        tell_sentence(f"warning: {problem}", sys.stderr)


def show_to_end(
    show: "Callable[[Console], dict[str, Any]]", tracked: Path | None = None
) -> int | None:
    """Show a run to its end, and print its results; return the code of a failure.

    `tracked`: TensorBoard's folder, if it is written for it too.
    """
    from ..run import results

    console = console_of()
    try:
        found = show(console)
    except IdiolectError as error:
        return complain(str(error), code_of(error, FAILED))
    console.print()
    results.render(found, console)
    write_page(found["run"].get("path"), tracked)


def check_tracker(options: argparse.Namespace) -> None:
    """Refuse `--tensorboard` before anything begins, where it would fail at the end."""
    if options.tensorboard is not None:
        from importlib.util import find_spec

        refuse_if(
            find_spec("tensorboard") is None,
            f"this needs tensorboard: `{pip_install('idiolect[tensorboard]')}`.",
        )


def write_page(path: str | None, tracked: Path | None = None) -> None:
    """Write the page of what has just ended; a failure of that is no failure of the run."""
    folder = Path(path or "")
    if not path or not folder.is_dir():
        return
    try:
        from ..report.pictures import NO_PICTURES, able
        from ..report.read import write_own

        tell(f"report: {write_own(folder)}")
        if not able():
            tell_sentence(NO_PICTURES)
    except Exception as error:
        tell_sentence(f"no report: {summary(error)}", sys.stderr)
    if tracked is None:
        return
    try:
        from ..report.tracker import track_own

        tell(f"tensorboard: {track_own(folder, tracked)}")
    except Exception as error:
        tell_sentence(f"nothing for TensorBoard: {summary(error)}", sys.stderr)


def terminated(*_: object) -> NoReturn:
    """Raise on SIGTERM, so that all that was started is ended too."""
    raise SystemExit(143)


def console_of() -> "Console":
    """Return a console; 120 columns if neither a terminal nor COLUMNS sets the width."""
    from ..run.results import console

    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return console(None if known else 120)
