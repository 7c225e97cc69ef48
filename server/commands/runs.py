"""The commands about runs that are there: look, compare, judge, audit, delete."""

import argparse
import os
import sys
import time

from ...common.command import FAILED, on_interrupt
from ...common.errors import refuse_if
from ...common.text import printable, tell, tell_json, tell_sentence
from .simulate import check_tracker, console_of, write_page


def list_runs(options: argparse.Namespace) -> None:
    """List the runs, oldest first."""
    from ..run import results

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
    wide = (
        console_of().width if sys.stdout.isatty() or "COLUMNS" in os.environ else 10**6
    )
    tell("\n".join(results.listed(rows, wide)))


def show_run(options: argparse.Namespace) -> None:
    """Print a run's results."""
    from ..run import results

    found = results.load(options.output_dir, options.name)
    if options.json:
        tell_json(found, 2)
    else:
        results.render(found, console_of(), whole=True)


def compare_runs(options: argparse.Namespace) -> None:
    """Compare runs with the first, user by user."""
    from ..run import compare, results

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
        compare.render(found, console_of())


@on_interrupt("stopped: the same command begins the audit again.")
def audit(options: argparse.Namespace) -> int:
    """Attack what a run released; 1: an attack found more than the run claims."""
    from ..run import results

    folder = results.find(options.output_dir, options.name)
    tell_sentence(
        f"auditing the code, then what {folder.name} released; this takes minutes"
    )
    # Only now: torch is imported, which takes seconds.
    from ..audit.audit import audit_run, defects

    width = console_of().width

    def say(text: str) -> None:
        tell("\n".join(results.wrapped(text, width)))

    found = defects(audit_run(folder, options.seed, say))
    for line in found:
        tell(f"error: {line}", sys.stderr)
    tell(f"card: {folder / 'privacy_card.json'}")
    return FAILED if found else 0


@on_interrupt("stopped: answers are kept, and the same command asks the rest.")
def judge(options: argparse.Namespace) -> None:
    """Let a language model compare outputs in pairs."""
    from ..pairwise.endpoint import endpoint_of
    from ..pairwise.judge import Asked, judge, lines
    from ..pairwise.material import material

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
    write_page(str(run.folder))


def write_report(options: argparse.Namespace) -> None:
    """Write the page of a run or a study."""
    from ..report.pictures import NO_PICTURES, able
    from ..report.read import write_report

    check_tracker(options)
    path = write_report(options.name, options.output_dir, options.to, options.texts)
    tell(f"report: {path}")
    if options.tensorboard is not None:
        from ..report.tracker import track

        made = track(options.name, options.output_dir, options.tensorboard)
        tell(f"tensorboard: {made}")
    if not able():
        tell_sentence(NO_PICTURES)
    if options.open:
        import webbrowser

        if not webbrowser.open(path.absolute().as_uri()):
            tell("no browser could be opened: open the file yourself")


def delete_run(options: argparse.Namespace) -> None:
    """Delete a run."""
    from ..run.removal import delete, described

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
