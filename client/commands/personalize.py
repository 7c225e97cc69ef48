"""`idiolect personalize`: train an adapter, and say in plain words what has changed.

Torch is loaded in here, after the first line of progress.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ...common.command import on_interrupt
from ...common.text import printable, tell
from ..owner.vault import Vault
from .answer import Answer
from .progress import Follower

if TYPE_CHECKING:
    from ..owner.adapters import Version

GO_ON = (
    "interrupted: nothing was changed. The same command goes on where this one stood, and "
    "`idiolect forget` erases what is kept for that."
)
LONGEST = 200  # characters of a text that is shown


def personalize(vault: Vault, options: argparse.Namespace) -> Answer:
    """Train an adapter; exit code 1 where it is not used."""
    new = trained(vault, options.method, options.learning_rate)
    from . import status

    found = status.shown(new) | {"changes": [asdict(one) for one in new.changes]}
    lines = [verdict(found), *doubts(found), *changes(found["changes"])]
    if options.verbose:
        lines.append(status.judged(found, numbers=True))
    return Answer(found, "\n".join(lines), code=0 if new.accepted else 1)


def trained(
    vault: Vault, method: str, rate: float | None = None, if_interrupted: str = GO_ON
) -> "Version":
    """Train, and say on standard error how far it is."""
    follow = Follower()
    with on_interrupt(if_interrupted), follow.shown():
        from ...common.engine.training import Watch
        from ..owner import training

        watch = Watch(follow.phase, step=lambda at, of: follow.step(at.step, of))
        new = training.train(vault, method, rate, watch)
    tell(follow.end(), sys.stderr)
    return new


def verdict(one: Mapping[str, Any]) -> str:
    """Whether a new adapter is used, and why."""
    if not one["accepted"]:
        from .status import why_not

        return f"Adapter {one['number']} is kept but NOT used: {why_not(one)}."
    held_out, times = one["held_out"], gain(one)
    newest = "text" if held_out == 1 else f"{held_out} texts"
    how = (
        f"it predicts your own texts better (each next piece of your newest {newest}, "
        f"which it has not learnt, is {times:.2g} times as likely as before)"
    )
    if times < 1.005:
        how = "it predicts your own texts about as well as the one before"
        how += " and has learnt what you dislike" if one["allowed"] else ""
    return f"Adapter {one['number']} is in use: {how}."


def doubts(one: Mapping[str, Any]) -> list[str]:
    """What makes the verdict on an adapter unsure."""
    from ..owner.learning import HELPS, TELLING

    found: list[str] = []
    if one["trained"] + one["held_out"] < HELPS:
        found.append(f"Adapters from fewer than {HELPS} texts were not shown to help.")
    if one["held_out"] < TELLING:
        judges = "1 text" if one["held_out"] == 1 else f"{one['held_out']} texts"
        few = f"Only {judges} judged it, too few to tell a gain from luck"
        found.append(f"{few} ({TELLING} can): import more, and train again.")
    return found


def gain(one: Mapping[str, Any]) -> float:
    """How many times as likely as before each next piece of the held-out texts is.

    Before: with the adapter that was in use, or else with the better of the bare model and
    the shared adapter. The geometric mean over tokens.
    """
    if one["nll_in_use"] is not None and one["nll_against"] is not None:
        return math.exp(one["nll_in_use"] - one["nll_against"])
    return math.exp(min(one["nll_before"], one["nll_bare"]) - one["nll"])


def changes(found: Sequence[Mapping[str, str]]) -> list[str]:
    """The texts before and after, and what the owner wrote."""
    if not found:
        return []
    count = "text" if len(found) == 1 else f"{len(found)} texts"
    lines = ["", f"Your last {count}, which it has not learnt:"]
    names = {"asked": "asked", "before": "before", "after": "now", "own": "you wrote"}
    for one in found:
        lines.append("")
        for name, word in names.items():
            text = " ".join(one[name].split())
            cut = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
            lines.append(f"  {word + ':':11}{printable(cut) or '(nothing)'}")
    return lines
