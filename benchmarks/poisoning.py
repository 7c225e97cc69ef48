"""Members who send something else than their update: what it does to the shared adapter.

    python benchmarks/poisoning.py [--seeds N] [--page]

One of ten members trains as everybody does and sends another row instead:

- *reversed*: the own update turned round, as long as a row may be;
- *random*: a direction drawn by chance, each its own, as long as a row may be;
- *together*: they know each other's updates, and all send the sum of these turned round,
  as long as a row may be;
- *5 times*, *50 times*: the same, so many times as long as a row may be.

A server that sees single rows clips them, so to it the last two are the same as *together*.
Nobody can clip a masked row (``secagg.mode=on``): the integers of such a member go into the
sum as they are. The server of a masked sum leaves out a sum that rows and noise cannot make
(`grid.plausible`). Two more bounds on the sum alone are tried: its L2 norm (*norm*) or each
coordinate (*coordinates*) is cut to what honest rows and noise reach in the same round. A
server does not know that number exactly, so it cannot do better than this by such a bound.

Measured is the likelihood of held-out texts of the honest users with the shared adapter.
Users and clip are those of the study `secagg_utility`. Results are kept cell by cell in
benchmarks/results/poisoning.json; the same command goes on with the cells that are missing
there and writes the table of docs/masked-sums.md, and `--page` does only the latter.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from report import RESULTS, ROOT, between, origin

from idiolect.common.config import Config, parse
from idiolect.common.data.load import load_dataset
from idiolect.common.data.types import Dataset
from idiolect.common.engine.backbone import backbone_of
from idiolect.common.engine.reference import Reference
from idiolect.common.methods.evaluation import held_out_nll
from idiolect.common.methods.shared import shared_update
from idiolect.common.protocol.messages import Rows
from idiolect.common.protocol.validation import row_norms
from idiolect.common.secure.grid import words
from idiolect.common.secure.rows import Integers
from idiolect.common.secure.secure import LeftOut
from idiolect.common.seeds import numpy_generator
from idiolect.server.run.adapt import adapt
from idiolect.server.run.local import Local, fitted, local_run
from idiolect.server.run.results import bootstrap
from idiolect.server.run.sums import SEALED, Sum, clipped_sum, sum_rows, unsealed
from idiolect.server.study.declaration import read_study

NAME = "poisoning"
STUDY = ROOT / "simulations" / "lamp" / "experiments" / "secagg_utility.toml"
PAGE = ROOT / "docs" / "masked-sums.md"
BEGIN, END = "<!-- poisoning: written by a command -->\n", "<!-- poisoning: end -->"
ONE_OF = 10  # members is hostile
TIMES = {"5 times": 5.0, "50 times": 50.0}  # the clip
ATTACKS = "none", "reversed", "random", "together", *TIMES
# What the server sees and does: privacy.epsilon, secagg.mode, a bound on the sum.
SERVERS = {
    "single rows, no noise": (math.inf, "off", ""),
    "single rows, epsilon 8": (8.0, "off", ""),
    "sums, epsilon 8": (8.0, "sum", ""),
    "sums, epsilon 8, norm": (8.0, "sum", "norm"),
    "sums, epsilon 8, coordinates": (8.0, "sum", "coordinates"),
}
STRAY = 4.0  # standard deviations of noise that a bound on a coordinate leaves


@dataclass
class Poisoned(Local):
    """The users of a run, one of ten of whom sends another row."""

    attack: str = "none"
    bound: str = ""
    left_out: int = 0

    def update(
        self,
        users: Sequence[str],
        clip: float,
        release: str,
        integers: Integers | None = None,
    ) -> Sum:
        """See `Local.update`."""
        honest = self._rows(users, clip)
        hostile = np.array([user in hostile_of(self.users) for user in users])
        draw = numpy_generator(self.config.seed, "poisoning", self.state.rounds)
        sent = poisoned(honest, hostile, self.attack, clip, draw)
        found = sum_rows(users, sent, clip, integers)
        if integers and (times := TIMES.get(self.attack)):
            # What the code of a device would have cut off.
            grid = integers.terms.grid
            flat = np.concatenate(
                [sent[n].reshape(len(users), -1) for n in sorted(sent)], 1
            )
            more = (times - 1) * flat[hostile].astype(np.float64).sum(0) / grid.unit
            found.total[SEALED][: more.size] += words(np.rint(more), grid.word)
        shapes = {name: array.shape[1:] for name, array in honest.items()}
        try:
            found = unsealed(found, shapes, integers)
        except LeftOut:
            self.left_out += 1
            raise
        if integers and self.bound:
            std = (
                np.sqrt(len(users) * integers.terms.variance) * integers.terms.grid.unit
            )
            usual, _ = clipped_sum(honest, clip)
            found.total = bounded(found.total, usual, std, self.bound)
        return found

    def _rows(self, users: Sequence[str], clip: float) -> Rows:
        """The updates of all, name -> [users, ...]."""
        parts: list[Rows] = []
        for group in self._groups(users):
            update = shared_update(
                self.reference, group, self.config, self.state.rounds, clip
            )
            parts.append({name: tensor.numpy() for name, tensor in update.items()})
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def hostile_of(users: Sequence[str]) -> frozenset[str]:
    """Every tenth user."""
    return frozenset(users[::ONE_OF])


def poisoned(
    rows: Rows,
    hostile: np.ndarray,
    attack: str,
    clip: float,
    draw: np.random.Generator,
) -> Rows:
    """Return what is sent: the rows, with those of hostile members replaced.

    Parameters
    ----------
    rows
        Name -> [users, ...].
    hostile
        Bool [users].
    attack
        One of `ATTACKS`; those of `TIMES` send as *together* does here.
    clip
        L2 norm of a row that is sent instead.
    draw
        For directions.
    """
    if attack == "none" or not hostile.any():
        return rows
    mine = {name: array[hostile] for name, array in rows.items()}
    if attack == "random":
        mine = {name: draw.standard_normal(array.shape) for name, array in mine.items()}
    elif attack == "reversed":
        mine = {name: -array for name, array in mine.items()}
    else:
        count = int(hostile.sum())
        mine = {
            name: -array.sum(0)[None].repeat(count, 0) for name, array in mine.items()
        }
    scale = clip / np.maximum(row_norms(mine), 1e-12)
    sent = {name: array.copy() for name, array in rows.items()}
    for name, array in mine.items():
        sent[name][hostile] = array * scale.reshape(-1, *[1] * (array.ndim - 1))
    return sent


def bounded(total: Rows, usual: Rows, std: float, bound: str) -> Rows:
    """Return a noisy sum no longer than an honest one, as a whole or in each coordinate.

    Parameters
    ----------
    total
        The sum with noise of standard deviation `std`.
    usual
        The sum of the honest updates of all members, without noise.
    bound
        ``norm`` or ``coordinates``.
    """
    if bound == "coordinates":
        return {
            name: np.clip(array, -most, most)
            for name, array in total.items()
            if (most := np.abs(usual[name]).max() + STRAY * std)
        }
    size = sum(array.size for array in total.values())
    squares = (float((array**2).sum()) for array in usual.values())
    most = np.sqrt(sum(squares) + size * std**2)
    length = np.sqrt(sum(float((array**2).sum()) for array in total.values()))
    return {name: array * min(1.0, most / length) for name, array in total.items()}


# --- one cell --------------------------------------------------------------------------


def config_of(server: str, seed: int) -> Config:
    """The study's users, with a server of `SERVERS`."""
    epsilon, mode, _ = SERVERS[server]
    keys = {**read_study(STUDY).config, "methods": "base,shared", "seed": seed}
    return parse(keys | {"privacy.epsilon": epsilon, "secagg.mode": mode})


def cell_of(
    config: Config, dataset: Dataset, reference: Reference, attack: str, bound: str
) -> dict[str, Any]:
    """Train the shared adapter under attack, and measure it.

    Returns
    -------
    dict
        ``nll``: user -> of the held-out texts, honest users only; how many ``rounds`` there
        were, and how many of them were ``left_out``.
    """
    run = local_run(config, reference, dataset)
    cohort = Poisoned(config, run.state, dataset, reference, attack=attack, bound=bound)
    run.cohort = cohort
    adapt(run)
    honest = [u for u in dataset.users if u.id not in hostile_of(cohort.users)]
    nlls = held_out_nll(cohort.reference, [None] * len(honest), honest, "shared")
    return {
        "nll": {user.id: round(nll, 5) for user, nll in zip(honest, nlls, strict=True)},
        "rounds": config.adapt.rounds,
        "left_out": cohort.left_out,
    }


def cells(seeds: int) -> list[tuple[int, str, str]]:
    """Seed, server and attack of each cell.

    Where rows are seen and clipped, longer ones change nothing; a bound on the sum is
    tried where rows are not clipped.
    """
    found = [
        (server, attack)
        for server, attack in product(SERVERS, ATTACKS)
        if SERVERS[server][1] == "sum" or attack not in TIMES
    ]
    return [(seed, *one) for seed in range(seeds) for one in found]


def measure(seeds: int) -> dict[str, Any]:
    """Run the cells that are missing, and keep each."""
    path = RESULTS / f"{NAME}.json"
    found = json.loads(path.read_text())["cells"] if path.exists() else {}
    known: dict[int, tuple[Dataset, Reference]] = {}
    for seed, server, attack in cells(seeds):
        key = f"{seed} | {server} | {attack}"
        if key in found:
            continue
        config = config_of(server, seed)
        if seed not in known:
            backbone = backbone_of(config)
            known[seed] = fitted(backbone, load_dataset(config)), Reference(backbone)
        found[key] = cell_of(config, *known[seed], attack, SERVERS[server][2])
        base = known[seed][1]
        honest = [u for u in known[seed][0].users if u.id in found[key]["nll"]]
        if f"{seed} | base" not in found:
            nlls = held_out_nll(base, [None] * len(honest), honest, "base")
            found[f"{seed} | base"] = {
                "nll": {
                    u.id: round(nll, 5) for u, nll in zip(honest, nlls, strict=True)
                }
            }
        keep(found)
        print(
            key, round(float(np.mean(list(found[key]["nll"].values()))), 4), flush=True
        )
    return found


def keep(found: dict[str, Any]) -> None:
    """Write the cells, each on a line."""
    lines = (f" {json.dumps(name)}: {json.dumps(cell)}" for name, cell in found.items())
    text = ",\n".join(lines)
    head = f'"origin": {json.dumps(origin())}'
    (RESULTS / f"{NAME}.json").write_text(f'{{{head}, "cells": {{\n{text}\n}}}}\n')


# --- the page --------------------------------------------------------------------------


def table(found: dict[str, Any]) -> str:
    """What the shared adapter gains over the bare model, by server and attack."""
    seeds = sorted({int(key.split(" | ")[0]) for key in found})
    lines = [
        "| the server sees | " + " | ".join(ATTACKS) + " |",
        "| --- |" + " --- |" * len(ATTACKS),
    ]
    for server in SERVERS:
        row = [_entry(found, seeds, server, attack) for attack in ATTACKS]
        lines.append(f"| {server} | {' | '.join(row)} |")
    people = len(found[f"{seeds[0]} | base"]["nll"])
    about = (
        "Fall of the NLL of held-out texts by the shared adapter: mean and 95 % interval "
        f"over {people * len(seeds)} honest users (seeds: {len(seeds)}). In brackets: "
        "rounds that were left out."
    )
    return "\n".join([about, "", *lines, ""])


def _entry(
    found: dict[str, Any], seeds: Sequence[int], server: str, attack: str
) -> str:
    """One cell of the table: all seeds together."""
    bare: list[float] = []
    rounds = out = 0
    for seed in seeds:
        cell = found.get(f"{seed} | {server} | {attack}")
        if cell is None:
            return (
                "as together"
                if attack in TIMES and "rows" in server
                else "not measured"
            )
        base = found[f"{seed} | base"]["nll"]
        bare += [base[user] - nll for user, nll in cell["nll"].items()]
        rounds, out = rounds + cell["rounds"], out + cell["left_out"]
    mean = bootstrap(np.array(bare), seed=0)
    low, high = mean["ci95"]
    said = f"{mean['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"{said} ({out} of {rounds})" if out else said


def main() -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(
        description="Poisoned updates of the shared adapter."
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--page", action="store_true", help="only write the page again")
    options = parser.parse_args()
    if options.page:
        found = json.loads((RESULTS / f"{NAME}.json").read_text())["cells"]
    else:
        found = measure(options.seeds)
    PAGE.write_text(between(PAGE.read_text(), BEGIN, END, table(found)))


if __name__ == "__main__":
    main()
