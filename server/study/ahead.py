"""What a study will take, before it begins."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...common.config import Config, flatten
from ...common.process import age, free_mb
from ..forecast import estimate
from ..forecast.ask import look
from ..forecast.estimate import Forecast, Shares
from ..forecast.parts import Count, Part, Work
from .cache import Key, next_cell, shared_keys
from .cells import located, placed
from .declaration import Study

# What changes no number of tokens: cells that differ in nothing else are counted once.
SAME = (
    *("seed", "persona.overlap", "persona.strength", "preset"),
    *("adapt.learning-rate", "adapt.optimizer", "adapt.wire", "adapt.clip"),
    *(
        "adapt.clip-quantile",
        "lora.alpha",
        "evaluate.rouge-tokens",
        "evaluate.meteor",
        "evaluate.bootstrap",
    ),
    *("unlabeled.alpha", "evaluate.contrast", "quorum", "deadline"),
    *("personalise.beta", "personalise.ema", "personalise.boundary"),
    *("personalise.reward", "personalise.unlabeled-weight", "personalise.anchor"),
    *("personalise.unlabeled-tokens", "personalise.disliked-weight"),
)


def forecast(
    study: Study, folder: Path, since: float = 0.0, gpu: str = "", processes: int = 1
) -> tuple[Forecast, list[float]]:
    """Count the cells that are left, each with what the cells before it do not share.

    Parameters
    ----------
    study, folder
        What to run, and where its finished cells are.
    since
        Age of this process when it began with the study, in seconds.
    gpu
        Name of a GPU that is not here (`forecast.gpus`); nothing: this machine.
    processes
        How many run the study side by side. Each makes for itself what cells share. On
        this machine one that is free takes a cell as `jobs` deals them; GPUs have commands
        of their own, which take the next cell.

    Returns
    -------
    tuple
        The forecast, and the seconds of every cell, 0 for those that are done.

    Raises
    ------
    IdiolectError
        A cell would fail.
    """
    todo = _todo(study, folder)
    left = {number: one for number, one in enumerate(todo) if one}
    if not left:
        return Forecast(0.0, 0.0, free_mb(), {}), [0.0] * len(todo)
    distinct = {_same(config): config for config, _ in left.values()}
    only = study.measured == "development"
    together = 1 if gpu else min(processes, len(left))  # whose seconds are the study's
    counts, found = look([*distinct.values()], 1, together, os.environ, only, gpu)
    counted = dict(zip(distinct, counts, strict=True))
    around = {("ahead", "", False): age() - since, ("start", "", False): found["start"]}
    shares: Shares = {} if gpu else around
    made: list[set[Key]] = [set() for _ in range(processes)]
    busy = [0.0] * processes
    saved: dict[str, float] = {}
    seconds = [0.0] * len(todo)
    tokens = Work()
    keys = {k: [*shared_keys(*one).values()] for k, one in left.items()}
    for free, cell in _dealt(keys, busy, together == 1):
        config, control = left[cell]
        count = counted[_same(config)]
        parts = list(_fresh(config, control, count, made[free]))
        here = estimate.shares_of(count, parts, 0.0)
        seconds[cell] = sum(here.values())
        busy[free] += seconds[cell]
        tokens = sum((part.work for part in parts), tokens)
        for text, saving in estimate.savings(config, count, parts, 0.0):
            saved[text] = saved.get(text, 0.0) + saving / together
        for name, value in here.items():
            shares[name] = shares.get(name, 0.0) + value / together
    whole = sum(shares.values())
    if (seeds := len(study.grid.get("seed", []))) > 1:
        saved[f"seed: one of {seeds} less"] = sum(seconds) / seeds / together
    memory = together * max(
        found["peak"], found["loaded"] + max(c.memory for c in counts)
    )
    ahead = Forecast(
        whole,
        memory,
        found["free"] if gpu else free_mb(),
        shares,
        estimate.best(saved, whole),
        tokens=tokens,
        longest=max(busy),
        backbone=found["loaded"] if gpu else 0.0,
        stand_in=bool(gpu and found["stand-in"]),
    )
    return ahead, seconds


def _todo(study: Study, folder: Path) -> list[tuple[Config, str] | None]:
    """Configuration and control of each cell; None for those that are done."""
    return [
        None if one.path.exists() else (located(one.config), one.control)
        for one in placed(study, folder)
    ]


def _dealt(
    keys: Mapping[int, Sequence[Key]], busy: Sequence[float], in_order: bool
) -> Iterator[tuple[int, int]]:
    """Give the process that is free first, and the cell that it takes, until none is left.

    `busy`: seconds that each process has worked; who is given a cell adds to them.
    """
    waiting = list(keys)
    taken: list[list[int]] = [[] for _ in busy]
    while waiting:
        free = busy.index(min(busy))
        cell = waiting[0] if in_order else next_cell(waiting, keys, taken, free)
        waiting.remove(cell)
        taken[free].append(cell)
        yield free, cell


def _same(config: Config) -> str:
    flat: dict[str, Any] = flatten(config)
    rates = len(config.learning_rate_list)
    flat = {n: v for n, v in flat.items() if n not in SAME}
    return repr(flat | {"personalise.learning-rates": rates})


def _fresh(
    config: Config, control: str, count: Count, made: set[Key]
) -> Iterator[Part]:
    """Parts of a cell that no cell before has made; notes them (see `cells.run_cell`)."""
    keys = shared_keys(config, control)
    for part in count.parts:
        if keys[part.method or part.phase] not in made:
            yield part
    made.update(keys.values())
