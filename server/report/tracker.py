"""The numbers of a run or a study for TensorBoard, written by its own library.

They are read from the files that the page is made from, when these are whole. So a run that
was interrupted and resumed, or one of last year, gives the same as any other, and no
process of a run and no device knows of a tracker. One folder per method, or line of a
study, lets TensorBoard draw them in one chart::

    DIR/RUN/            settings that differ from the defaults, who won, cost
    DIR/RUN/METHOD/     metrics with their intervals, loss by step, learning rates tried
    DIR/RUN/A-minus-B/  paired differences
    DIR/STUDY/LINE/     metrics over the study's grid

There are means over users alone, and nothing of one user. Of a run whose users are on
devices there is what its results hold, and nothing that its server kept besides.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from ...common.config import defaults
from ...common.errors import explained
from ...common.files import file_name
from ..run import results
from . import read
from .parts import ends_of, has_mean, is_number
from .run import Material, is_anonymous, preset_values
from .verdict import winner

SUFFIX = ".idiolect"  # of our files: what was written before is replaced
ROOM = "."  # the folder of the run or study itself


@dataclass(frozen=True)
class Curve:
    """One curve: its folder, its name, and values by step."""

    line: str
    tag: str
    points: list[tuple[int, float]]


@dataclass(frozen=True)
class Tracked:
    """What is written of a run or a study.

    Attributes
    ----------
    curves
        A single number is a curve of one point.
    texts
        Name -> sentence.
    settings, metrics
        The row of TensorBoard's table of hyperparameters.
    """

    curves: list[Curve]
    texts: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


def track(name: str, output_dir: str, to: Path) -> Path:
    """Write the numbers of a run or a study, in the place of those written before.

    Parameters
    ----------
    name, output_dir
        As `read.write_report` takes them.
    to
        TensorBoard's folder.

    Returns
    -------
    Path
        The folder of this run or study, in `to`.

    Raises
    ------
    IdiolectError
        There is no such run or study, it has no results yet, or the folder cannot be
        written.
    """
    summary = read.study_file(name, output_dir)
    if summary is not None:
        found = read.clean(read.read_study(summary))
        what, tracked = str(found.get("name", "study")), of_study(found)
        made = summary.stat().st_mtime
    else:
        place = results.find(output_dir, name)
        material = read.material(results.load(output_dir, name), place, False)
        what, tracked = place.name, of_run(material)
        made = (place / "results.json").stat().st_mtime
    folder = to / file_name(what)
    with explained(f"{folder} cannot be written", "name another folder"):
        write(tracked, folder, made)
    return folder


def track_own(folder: Path, to: Path) -> Path:
    """`track` a run or study by its folder."""
    if (folder / "summary.json").is_file():
        return track(str(folder), "", to)
    return track(folder.name, str(folder.parent), to)


# --- runs ------------------------------------------------------------------------------


def of_run(material: Material) -> Tracked:
    """What is written of a run."""
    found = material.results
    pairs = {
        name.replace(" - ", "-minus-"): row for name, row in found["pairs"].items()
    }
    curves = [*_metrics(found["methods"], ""), *_metrics(pairs, " difference")]
    curves += _costs(found["cost"])
    for method, rate in (found["run"].get("clamp_rate") or {}).items():
        if is_number(rate):
            curves.append(Curve(method, "training/clamp rate", [(0, rate)]))
    if not is_anonymous(found):
        curves += [*_losses(material), *_tried(material)]
    metrics = {
        f"{metric}/{method}": entry["mean"]
        for method, row in found["methods"].items()
        for metric, entry in row.items()
        if has_mean(entry)
    }
    return Tracked(curves, {"who won": winner(found)}, _settings(material), metrics)


def _metrics(rows: Mapping[str, Any], more: str) -> Iterator[Curve]:
    """Mean and interval of each metric, of each method or pair."""
    for line, row in rows.items():
        for metric, entry in row.items():
            if not has_mean(entry):
                continue
            yield Curve(line, f"{metric}{more}/mean", [(0, entry["mean"])])
            for end, value in zip(("low", "high"), ends_of(entry) or (), strict=False):
                yield Curve(line, f"{metric}{more}/{end}", [(0, value)])


def _costs(cost: Mapping[str, Any]) -> Iterator[Curve]:
    seconds = {f"seconds/{k}": v for k, v in (cost.get("seconds") or {}).items()}
    once = ("bytes_up", "bytes_down", "peak_rss_mb")
    for name, value in (seconds | {f"cost/{k}": cost.get(k) for k in once}).items():
        if is_number(value):
            yield Curve(ROOM, name, [(0, value)])


def _losses(material: Material) -> Iterator[Curve]:
    """Mean loss over users by step; where none was kept, that of the last step."""
    for method, users in material.curves.items():
        every = [own for own in users.values() if own]
        length = max(map(len, every), default=0)
        points = [
            (step + 1, fmean(own[step] for own in every if len(own) > step))
            for step in range(length)
        ]
        if points:
            yield Curve(method, "training/loss", points)
    for method, users in material.logs.items():
        known = [log for log in users.values() if isinstance(log, Mapping)]
        last = [log["loss"] for log in known if is_number(log.get("loss"))]
        if last:
            yield Curve(method, "training/last loss", [(0, fmean(last))])


def _tried(material: Material) -> Iterator[Curve]:
    """Mean NLL of the development users, by the number of the rate that was tried."""
    for method, tried in material.trials.items():
        rates = sorted(map(float, tried))
        by_rate = {float(rate): nll for rate, (_, nll) in tried.items()}
        known = [(k, r) for k, r in enumerate(rates, 1) if is_number(by_rate[r])]
        if known:
            nlls = [(k, by_rate[rate]) for k, rate in known]
            yield Curve(method, "learning rates tried/nll", nlls)
            yield Curve(method, "learning rates tried/rate", known)


def _settings(material: Material) -> dict[str, Any]:
    """The keys that differ from their defaults, and the seed."""
    usual, named = defaults(), preset_values(material.config)
    changed = {
        key: value
        for key, value in material.config.items()
        if value != usual.get(key) or key in named
    }
    seed = material.results["run"].get("seed")
    return {**({"seed": seed} if is_number(seed) else {}), **changed}


# --- studies ---------------------------------------------------------------------------


def of_study(found: Mapping[str, Any]) -> Tracked:
    """What is written of a study: its curves, by the number of the value on their axis."""
    plot = found.get("plot") or {}
    every = {plot.get("metric", ""): found["curve"], **(found.get("also") or {})}
    axis = str(plot.get("x", "cell"))
    ticks = list(
        dict.fromkeys(str(p["x"]) for points in every.values() for p in points)
    )
    curves: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for metric, points in every.items():
        for point in filter(has_mean, points):
            ends = zip(("low", "high"), ends_of(point) or (), strict=False)
            for part, value in (("mean", point["mean"]), *ends):
                tag = str(point["line"]), f"{metric}/{part}"
                step = ticks.index(str(point["x"])), value
                curves.setdefault(tag, []).append(step)
    texts = {"answer": str(found.get("answer") or "No answer was written down.")}
    if ticks:
        texts["steps"] = f"{axis}: " + ", ".join(
            f"{k} is {t}" for k, t in enumerate(ticks)
        )
    return Tracked([Curve(*tag, sorted(p)) for tag, p in curves.items()], texts)


# --- files -----------------------------------------------------------------------------


def write(tracked: Tracked, folder: Path, made: float) -> None:
    """Write event files; `made`: seconds since 1970 that all events bear."""
    from torch.utils.tensorboard.summary import hparams
    from torch.utils.tensorboard.writer import SummaryWriter

    for old in folder.rglob(f"events.out.tfevents.*{SUFFIX}"):
        old.unlink()
    lines: dict[str, list[Curve]] = {ROOM: []}
    for curve in tracked.curves:
        lines.setdefault(curve.line, []).append(curve)
    for line, curves in lines.items():
        place = folder if line == ROOM else folder / file_name(line)
        with SummaryWriter(str(place), filename_suffix=SUFFIX) as writer:
            for curve in curves:
                for step, value in curve.points:
                    writer.add_scalar(curve.tag, value, step, made)
            if line != ROOM:
                continue
            for name, text in tracked.texts.items():
                writer.add_text(name, text, 0, made)
            if tracked.settings:
                for part in hparams(tracked.settings, tracked.metrics):
                    writer._get_file_writer().add_summary(part, 0, made)
            for name, value in tracked.metrics.items():
                writer.add_scalar(name, value, 0, made)
