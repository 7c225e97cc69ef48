"""`idiolect models`: which models are here, and what personalising one costs here."""

import argparse
import sys
from dataclasses import asdict
from typing import Any

from ...common.config import absolute_backbone
from ...common.text import printable, tell_sentence
from ..owner.models import PAIRS, Model, models, try_out
from .answer import Answer


def list_models(options: argparse.Namespace) -> Answer:
    """List the models; with ``--try`` measure one first."""
    if options.trying:
        return _tried(absolute_backbone(options.trying))
    found = models()
    lines = [line for one in found for line in _lines(one)]
    lines.append(
        "`idiolect vault init --backbone NAME` uses one, `--try NAME` measures it."
    )
    return Answer([asdict(one) for one in found], "\n".join(lines))


def _tried(name: str) -> Answer:
    shown = printable(name, 200)
    tell_sentence(
        f"trying {shown}: it learns {PAIRS} made-up pairs; Ctrl-C ends it", sys.stderr
    )
    found = try_out(name)
    before, after = found["nll"]
    lines = (
        f"{shown}: {_measured(found)}",
        f"  loaded in {found['load']:.1f} s, answered in {found['write']:.1f} s",
        f"  NLL of two other texts of the same person: {before:.3f} -> {after:.3f}",
    )
    return Answer({"name": name, **found}, "\n".join(lines))


def _lines(one: Model) -> list[str]:
    """Three lines or so of about 80 characters."""
    head = printable(one.name, 300)
    if one.missing:
        return [f"{head}: not here", f"  {one.where}", f"  to have it: {one.missing}"]
    size = f", {_count(one.parameters)} parameters" if one.parameters else ""
    weights = [f"  {printable(one.weights, 200)}"] if one.weights else []
    licence = printable(one.licence, 60)
    return [
        f"{head}: {one.family}{size}, {one.megabytes} MB, licence {licence}",
        f"  {one.where}",
        *weights,
        f"  {one.tested}; "
        + (_measured(one.tried) if one.tried else "not measured here"),
    ]


def _count(number: int) -> str:
    """A number of parameters as people say it: 135M."""
    return f"{number / 1e9:.1f}B" if number >= 1e9 else f"{number / 1e6:.0f}M"


def _measured(found: dict[str, Any]) -> str:
    """What a trial took."""
    seconds = found["train"]
    time = f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
    return (
        f"{time} for {found['pairs']} pairs ({found['tokens']} "
        f"tokens), {found['peak_mb']} MB in all, {found['threads']} threads of "
        f"{found['device']}, {found['when']}"
    )
