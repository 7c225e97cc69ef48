"""`study`: run what is declared, or say what it will take."""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.command import on_interrupt
from ...common.errors import IdiolectError, Impossible, refuse_if
from ...common.process import age
from ...common.text import lines, tell, tell_sentence
from ..forecast.gpus import gpu_of
from .simulate import (
    check_cluster,
    check_tracker,
    console_of,
    tell_ahead,
    tell_cluster,
    write_page,
)

if TYPE_CHECKING:
    from ..study.declaration import Study


@on_interrupt("stopped: finished cells are kept, and the same command does the rest.")
def run_studies(options: argparse.Namespace) -> None:
    """Run studies, or say what they will take."""
    refuse_if(
        bool(options.gpu) and not options.plan, "--gpu is for a forecast: add --plan."
    )
    refuse_if(options.gpus < 1, f"--gpus {options.gpus} is none: use 1 or more.")
    check_tracker(options)
    jobs = 1 if options.jobs is None else options.jobs
    refuse_if(jobs < 1, f"--jobs {jobs} is none: use 1 or more.")
    refuse_if(
        bool(options.gpu) and jobs > 1,
        "--jobs is for this machine: with --gpu say --gpus N.",
    )
    check_cluster(options)
    refuse_if(
        options.gpus_per_job < 0 or bool(options.gpus_per_job) and not options.ray,
        f"--gpus-per-job is {options.gpus_per_job:g}: give a positive number, with --ray.",
    )
    if options.gpu:
        gpu_of(options.gpu)
    # Before torch is imported, which takes seconds.
    tell_sentence(f"reading {', '.join(map(str, options.files))}")
    from ..findings.page import markdown, store, write_pages
    from ..run.results import runs_folder, write_json
    from ..study.declaration import read_study, with_keys
    from ..study.kept import archive, take

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
        processes = options.gpus if options.gpu else jobs
        return tell_plans(declared, place, options.gpu, processes)
    since = 0.0
    for study in declared:
        tell(f"study {study.name} in {place / study.name}")
        found = computed(study, place / study.name, kept[study.name], options, since)
        tell_markdown(markdown(found))
        written = place / study.name / "summary.json"
        write_json(written, found)
        write_page(str(written.parent), options.tensorboard)
        if options.findings:
            store(written, options.findings, study.name)
        since = age()
    if options.findings:
        tell(f"findings: {write_pages(options.findings)}")


def computed(
    study: "Study",
    folder: Path,
    kept: Path | None,
    options: argparse.Namespace,
    since: float,
) -> dict[str, Any]:
    """Run a study, or take what is finished of it; return its summary."""
    if study.audit is not None:
        from ..audit import audit

        refuse_if(
            bool(options.ray),
            f"study {study.name} is an audit, which takes minutes on this machine: leave "
            "out --ray.",
        )
        return audit.run_study(study, folder, tell)
    from ..findings.summary import summary
    from ..study.cells import finished, run_study

    if options.so_far:
        done = finished(study, folder, kept)
        refuse_if(not done, f"study {study.name} has no finished cell: run it first.")
    elif options.ray:
        done = on_cluster(study, folder, kept, options, since)
    elif (jobs := options.jobs or 1) > 1:
        from ..study.jobs import run_side_by_side, share_cores

        share_cores(jobs)  # the forecast measures with as many threads
        ahead = ahead_of_study(study, folder, since, jobs)
        done = run_side_by_side(study, folder, jobs, tell, ahead, kept)
    else:
        ahead = ahead_of_study(study, folder, since)
        done = run_study(study, folder, tell, ahead, kept)
    return summary(study, done)


def on_cluster(
    study: "Study",
    folder: Path,
    kept: Path | None,
    options: argparse.Namespace,
    since: float,
) -> list[dict[str, Any]]:
    """Run the cells of a study on a Ray cluster, as many at a time as it has room for."""
    from ..simulate.plan import surveyed
    from ..study.actors import actors, paths
    from ..study.jobs import run_side_by_side

    # An actor has one core, and the same numbers need as many threads here.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder, gpus = folder.absolute(), options.gpus_per_job
    cluster = surveyed(options.ray, paths(study, folder), folder)
    places = cluster.places(gpus, "--gpus-per-job")
    jobs = min(options.jobs or places, places)
    tell_cluster(cluster, f"{jobs} cells at a time")
    ahead = ahead_of_study(study, folder, since, jobs)
    start = partial(actors, cluster=cluster, gpus=gpus)
    return run_side_by_side(study, folder, jobs, tell, ahead, kept, start)


def tell_plans(
    declared: "Sequence[Study]", place: Path, gpu: str = "", processes: int = 1
) -> None:
    """Print the forecast of studies, for this machine or for GPUs that are not here."""
    from ..forecast.estimate import elsewhere, table
    from ..study.ahead import forecast

    since = 0.0
    for study in declared:
        if study.audit is not None:
            tell(f"study {study.name}: an audit has no forecast; it takes minutes")
            continue
        tell(f"study {study.name}")
        ahead, _ = forecast(study, place / study.name, since, gpu, processes)
        tell(table(ahead, elsewhere(ahead, gpu, processes) if gpu else ""))
        since = age()


def ahead_of_study(
    study: "Study", folder: Path, since: float, processes: int = 1
) -> "list[float]":
    """Say what a study will take; return the seconds of each of its cells.

    `since`: age of this process when it began with the study.
    """
    from ..study.ahead import forecast

    tell_sentence("measuring this machine, which takes some seconds")
    try:
        ahead, cells = forecast(study, folder, since, processes=processes)
    except Impossible:
        raise
    except IdiolectError as error:
        tell_sentence(f"no forecast: {error}", sys.stderr)
        return []
    if any(cells):
        tell_ahead(ahead)
    return cells


def tell_markdown(text: str) -> None:
    """Print Markdown; at a terminal, formatted to its width."""
    if not sys.stdout.isatty():
        return tell(f"\n{text}")
    from rich.markdown import Markdown

    return console_of().print("", Markdown(lines(text), hyperlinks=False), sep="\n")
