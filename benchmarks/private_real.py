"""How many users a private shared adapter takes on a real model: simulated cohorts.

    IDIOLECT_DATA=FOLDER python benchmarks/private_real.py [--page]

FOLDER has `news_headlines` and `gov_headlines` (docs/data.md). The updates of K = 24
real users are computed once, on SmolLM2-135M-Instruct. A cohort of N users is
simulated: its sum is N / K times the sum of the K clipped updates, and the noise is
what the server would add for N users. So the signal is that of K users, and the noise
that of N. The noisy shared adapter is measured on held-out texts of other authors.
Votes are treated alike.

One plain step over the whole history is taken (``adapt.optimizer=sgd``, ``adapt.batch``
= history), at B = 0. There the gradient of B is the same whatever else is adapted, and
the frozen A of rank 1 is the first row of that of rank 8. So one gradient of rank 8 has
the update of every shape, learning rate and clip in it (`tests/test_private_real.py`).

Writes benchmarks/results/private_real.json and docs/private_real.md; some 30 minutes of
one core. What is computed is kept in $IDIOLECT_HOME/private_real, so an interrupted
command goes on where it stood. With `--page` only the page, from the file that is
there.
"""

import argparse
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import RESULTS, ROOT, save

from idiolect.common.config import Config, Scalar, parse
from idiolect.common.data.load import load_dataset
from idiolect.common.data.types import Dataset, Item, User
from idiolect.common.engine.adapters import Lora, zero_shared
from idiolect.common.engine.reference import Reference, content_hash, load_reference
from idiolect.common.engine.training import TrainingSettings, train
from idiolect.common.errors import refuse_if
from idiolect.common.files import file_name, home, make_folder
from idiolect.common.methods import sft
from idiolect.common.methods.evaluation import held_out_nll
from idiolect.common.methods.shared import training_set, update_settings
from idiolect.common.privacy.noise import gaussian, source
from idiolect.common.protocol.messages import Rows
from idiolect.common.unlabeled.draws import tempered
from idiolect.common.unlabeled.sets import VOTE_FLOOR, Unlabeled
from idiolect.common.unlabeled.votes import user_vote
from idiolect.server.privacy.accountant import Event
from idiolect.server.run.adapt import released
from idiolect.server.run.budget import Population, Release, noise_of
from idiolect.server.run.local import fitted
from idiolect.server.run.pool import public_text
from idiolect.server.run.results import bootstrap
from idiolect.server.run.sums import sum_rows

PAGE, NAME = ROOT / "docs" / "private_real.md", "private_real"
KEYS: dict[str, Scalar] = {
    "task": "LaMP-4",
    "backbone": "smollm2",
    "users": 10,
    "development-users": 24,
    "history": 16,
    "held-out": 6,
    "skip-bad-users": True,
    "engine.max-length": 192,
    "engine.memory": 2000,
    "adapt.users": "development",
    "adapt.rounds": 1,
    "adapt.batch": 16,
    "adapt.optimizer": "sgd",
    "adapt.learning-rate": 1.0,
    "privacy.mode": "central",
}
EPSILONS = 8.0, 3.0, 1.0
COHORTS = 24, 100, 1_000, 10_000, 100_000
DRAWS, VOTE_DRAWS = 3, 20
ITEMS = 2  # held-out texts of each author that are measured
LENGTHS = [0.8 * 2**k for k in range(8)]  # of a clipped update, to choose from
# Of the signal's length: less noise than this is drawn once.
FAINT = 0.1
# Nats per token above the model without adapter: more noise is not measured then.
HOPELESS = 1.0


@dataclass(frozen=True)
class Setting:
    """A shape of the shared adapter, a clip, and a step.

    Attributes
    ----------
    targets, rank
        ``lora.targets`` and ``adapt.rank``.
    quantile
        Of the users' norms at which they are clipped.
    step
        What the length of a clipped update is, in units of the best one without noise.
    """

    targets: str
    rank: int
    quantile: float
    step: float = 1.0

    @property
    def name(self) -> str:
        """What tables call it."""
        name = f"{self.targets}, rank {self.rank}, clip at {self.quantile:g}"
        return name if self.step == 1 else f"{name}, step {self.step:g}"


SETTINGS = (
    Setting("q,v", 1, 0.5),
    Setting("all", 1, 0.5),
    Setting("all", 8, 0.5),
    Setting("all", 1, 0.5, step=0.25),
    Setting("all", 1, 0.1),
)


# --- updates ---------------------------------------------------------------------------


def gradient(reference: Reference, user: User, config: Config) -> Rows:
    """Minus the gradient of B at B = 0 over a user's history: what a rate of 1 moves.

    As `shared_update` with ``adapt.optimizer=sgd`` and one batch, without any clip.

    Returns
    -------
    dict
        Projection -> float32 [out, r].
    """
    settings = replace(update_settings(config), clip=math.inf)
    data = [training_set(reference.backbone, user, 0)]
    start = reference.adapter
    (lora,) = train(reference.bare, [start], data, sft.loss, settings).loras
    return {name: (lora.b[name] - b).numpy() for name, b in start.b.items()}


def gradients(
    reference: Reference, users: Sequence[User], config: Config, kept: Path
) -> Rows:
    """Gradients of all users, projection -> [users, out, r]; each is kept in a file."""
    found = []
    for user in users:
        path = kept / f"gradient-{file_name(user.id)}.npz"
        if not path.exists():
            part = path.with_suffix(".part.npz")
            np.savez(part, allow_pickle=False, **gradient(reference, user, config))
            part.rename(path)
            print(f"update of {user.id}", flush=True)
        with np.load(path) as one:
            found.append({name: one[name] for name in one.files})
    return {name: np.stack([one[name] for one in found]) for name in found[0]}


def shaped(reference: Reference, config: Config, setting: Setting) -> Lora:
    """The untrained shared adapter of a setting."""
    lora = replace(config.lora, targets=setting.targets)
    one = replace(config, lora=lora, adapt=replace(config.adapt, rank=setting.rank))
    return zero_shared(reference.backbone, one.shared_shape, one.seed)


def parts(whole: Rows, zero: Lora) -> Rows:
    """What of the gradients belongs to a smaller adapter."""
    return {name: whole[name][..., : b.shape[1]] for name, b in zero.b.items()}


def norms(rows: Rows) -> np.ndarray:
    """L2 norm of each user's row over all projections, [users]."""
    return np.sqrt(sum((a.astype(float) ** 2).sum(axis=(1, 2)) for a in rows.values()))


@dataclass(frozen=True, eq=False)
class Signal:
    """The clipped updates of K users.

    Attributes
    ----------
    zero
        The adapter before the round.
    total
        Their sum, projection -> float64 [out, r].
    clip
        C, the length of a clipped update.
    """

    zero: Lora
    total: Rows
    clip: float
    users: int


def rate_of(rows: Rows, quantile: float, clip: float) -> float:
    """Learning rate with which a gradient at a quantile of the norms moves B by `clip`.

    A training clips gradients itself, at 1 by default: a larger norm counts as that.
    """
    return clip / min(TrainingSettings.clip, float(np.quantile(norms(rows), quantile)))


def signal(zero: Lora, rows: Rows, quantile: float, clip: float) -> Signal:
    """Clip gradients at a quantile of their norms; `clip` is what that length becomes."""
    rate = rate_of(rows, quantile, clip)
    names = [str(k) for k in range(len(next(iter(rows.values()))))]
    scaled = {name: (rate * array).astype(np.float32) for name, array in rows.items()}
    return Signal(zero, sum_rows(names, scaled, clip).total, clip, len(names))


def cohort(
    one: Signal, size: int, z: float, config: Config, *names: object
) -> dict[str, torch.Tensor]:
    """B after one round of a simulated cohort of N users, with its noise."""
    total = {name: size / one.users * array for name, array in one.total.items()}
    zeros = {name: b.numpy() for name, b in one.zero.b.items()}
    event = Event("adapt", z)
    release = Release("", event, source(True, config.seed, *names))
    found = released(zeros, total, release, one.clip, config, size)
    return {name: torch.from_numpy(array) for name, array in found.items()}


# --- what it is worth ------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Judge:
    """Measures shared adapters, and keeps what was measured."""

    reference: Reference
    kept: Path

    def nll(
        self, users: Sequence[User], lora: Lora | None, *names: object
    ) -> list[float]:
        """NLL per token of each user's held-out texts; computed once for the names."""
        known: dict[str, list[float]] = {}
        if self.kept.exists():
            known = json.loads(self.kept.read_text())
        name = "/".join(map(str, names))
        if name not in known:
            reference = self.reference.with_shared(lora)
            method = "base" if lora is None else "shared"
            known[name] = held_out_nll(reference, [None] * len(users), users, method)
            self.kept.write_text(json.dumps(known))
            print(f"{name}: {np.mean(known[name]):.4f}", flush=True)
        return known[name]


def best_length(
    judge: Judge, zero: Lora, rows: Rows, setting: Setting, users: Sequence[User]
) -> float:
    """Length of a clipped update with the lowest NLL without noise.

    Lengths grow until one is worse than the one before.
    """
    config, found = parse(KEYS), dict[float, float]()
    for length in LENGTHS:
        one = signal(zero, rows, setting.quantile, length)
        lora = replace(zero, b=cohort(one, one.users, 0.0, config))
        name = replace(setting, step=1.0).name
        found[length] = float(np.mean(judge.nll(users, lora, "length", name, length)))
        if found[length] > min(found.values()):
            break
    return min(found, key=lambda length: found[length])


def measured_cells(
    judge: Judge, one: Signal, setting: Setting, users: Sequence[User]
) -> Iterator[dict[str, Any]]:
    """Cells from the least noise on, until one is hopeless."""
    base = float(np.mean(judge.nll(users, None, "base")))
    grid = [(noise(e) / size, e, size) for e in EPSILONS for size in COHORTS]
    config, hopeless = parse(KEYS), False
    for spread, epsilon, size in sorted(grid):
        draws: list[list[float]] = []
        for draw in range(draws_for(one, spread)):
            if hopeless:
                break
            names = (setting.name, epsilon, size, draw)
            b = cohort(one, size, noise(epsilon), config, *names)
            draws.append(judge.nll(users, replace(one.zero, b=b), "cell", *names))
            hopeless = float(np.mean(draws[-1])) > base + HOPELESS
        yield {"epsilon": epsilon, "users": size, "nll": draws}


def draws_for(one: Signal, spread: float) -> int:
    """How often noise of z / N is drawn: once where it is faint beside the signal."""
    count = sum(array.size for array in one.total.values())
    return 1 if spread * math.sqrt(count) < FAINT * agreement(one) else DRAWS


def noise(epsilon: float) -> float:
    """Noise multiplier with which one round and one vote stay within epsilon."""
    config = parse({**KEYS, "privacy.epsilon": epsilon})
    return noise_of(config, Population(max(COHORTS), 0, max(COHORTS)))


def few(users: Sequence[User], items: int) -> list[User]:
    """The users with their first held-out items."""
    return [replace(user, held_out=user.held_out[:items]) for user in users]


def adapter_results(
    kept: Path, dataset: Dataset, config: Config
) -> Iterator[dict[str, Any]]:
    """Everything that the page says of the shared adapter, after each setting."""
    reference = load_reference(config)
    dataset = fitted(reference.backbone, dataset)
    whole = gradients(reference, dataset.development, config, kept)
    judge = Judge(reference, kept / "nll.json")
    judges, own = few(dataset.users, ITEMS), few(dataset.development, 1)
    base = judge.nll(judges, None, "base")
    settings: list[dict[str, Any]] = []
    yield {"base": base, "settings": settings}
    for setting in SETTINGS:
        zero = shaped(reference, config, setting)
        rows = parts(whole, zero)
        length = setting.step * best_length(judge, zero, rows, setting, own)
        one = signal(zero, rows, setting.quantile, length)
        clear = replace(zero, b=cohort(one, one.users, 0.0, config))
        settings.append(
            {
                **asdict(setting),
                "coordinates": sum(b.numel() for b in zero.b.values()),
                "norms": np.quantile(norms(rows), (0, 0.5, 1)).tolist(),
                "agreement": agreement(one),
                "length": length,
                "exact": judge.nll(judges, clear, "exact", setting.name),
                "cells": list(measured_cells(judge, one, setting, judges)),
            }
        )
        yield {"base": base, "settings": settings}


def agreement(one: Signal) -> float:
    """Length of the mean of the clipped updates, in clips: 1 where all are equal."""
    squares = sum(float((array**2).sum()) for array in one.total.values())
    return math.sqrt(squares) / one.users / one.clip


# --- votes -----------------------------------------------------------------------------


def vote_results(
    dataset: Dataset, bank: Sequence[Item], config: Config
) -> dict[str, Any]:
    """How far the draw by noisy votes is from that by exact ones, by N and epsilon."""
    reference = load_reference(config)
    votes = [user_vote(reference, bank, user, config) for user in dataset.development]
    share = np.mean(votes, axis=0, dtype=float)
    exact = drawn_by(bank, share)
    even = np.full(len(bank), 1 / len(bank))
    rows = []
    for epsilon in EPSILONS:
        z = noise(epsilon)
        for size in COHORTS:
            random = source(True, config.seed, "votes", epsilon, size)
            distances = [
                distance(drawn_by(bank, noisy(size * share, z, random)), exact)
                for _ in range(VOTE_DRAWS)
            ]
            rows.append(
                {
                    "epsilon": epsilon,
                    "users": size,
                    "distance": float(np.mean(distances)),
                }
            )
    return {
        "bank": len(bank),
        "voted": int((share > 0).sum()),
        "even": distance(even, exact),
        "rows": rows,
    }


def noisy(total: np.ndarray, z: float, random: Any) -> np.ndarray:
    """Votes as a device uses them: with noise, less the floor, none below zero."""
    return np.maximum(total + gaussian(total.shape, z, random) - VOTE_FLOOR * z, 0.0)


def drawn_by(bank: Sequence[Item], weights: np.ndarray) -> np.ndarray:
    """Chance of each candidate to be drawn, after tempering."""
    found = tempered(
        [Unlabeled(i, float(w)) for i, w in zip(bank, weights, strict=True)]
    )
    chances = np.array([max(one.weight, 0.0) for one in found])
    return (
        chances / chances.sum() if chances.any() else np.full(len(bank), 1 / len(bank))
    )


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Total variation: the share of draws that would have to change."""
    return float(np.abs(one - other).sum() / 2)


# --- the page --------------------------------------------------------------------------

WHAT = """# A private shared adapter on a real model: from how many users?

This page is written by `benchmarks/private_real.py`. It is about user-level epsilon
({epsilons}), delta {delta:g}, and the shared adapter of SmolLM2-135M-Instruct.

**Simulated cohorts.** {known} real authors of news headlines ({history} texts each)
give one clipped update each. A cohort of N users has the mean of these {known} updates
as its signal, and the noise that the server adds for N users. The mean of N real users
would have less sampling error than that of {known}, so in this the numbers are slightly
pessimistic. In another they are optimistic: the length of the update was chosen on
other texts of the same {known} authors, without noise and without paying for it. N
distinct users who write as these {known} do are assumed; more varied users agree less.

**Releases.** Each epsilon pays for two: one round of the shared adapter and one vote,
with noise multipliers z = {noises}. One round is one plain step over each user's whole
history (`adapt.optimizer=sgd`, `adapt.batch={history}`), clipped at a quantile of the
users' norms.

**Measured** is the NLL per token of {items} held-out texts of each of {authors} other
authors, against the model without adapter ({base:.3f}); below zero is better. 95 %
intervals over the authors of the means over {draws} draws of the noise (one draw where
its length is less than {faint:g} of the signal's). **Bold**: usable, that is, the
interval is below zero and so is each draw. "-": not measured, because less noise was
already worse by more than {hopeless:g} nat, for which one draw is enough. A *step*
below 1 takes a clipped update of that part of the length that is best without noise.
"""
USABLE = """
## From how many users

The smallest N of {sizes} from which on the adapter is usable:

"""
LIMITS = """
## What this does not say

- One model, one kind of text, one round. More rounds divide the budget; Adam, more
  local steps and other lengths were not tried.
- Cohorts beyond {known} users were not there: they were simulated as said above.
- {count} held-out texts are few; differences of less than the intervals are not known.
"""
VOTES = """
## Votes

{known} authors vote for {bank} public texts (headlines of another source); {voted}
candidates have a vote. Noise is added for N users as above, and weights are made of it
as on a device: less half a standard deviation, none below zero, tempered. The table has
the total variation distance between drawing by these weights and by the exact ones: the
share of draws that would have to change. Drawing evenly from the bank, which costs no
privacy, has {even:.2f}. Means over {draws} draws of the noise.

"""


def page(report: Mapping[str, Any]) -> str:
    """docs/private_real.md."""
    adapter, origin = report["adapter"], report["origin"]
    base = float(np.mean(adapter["base"]))
    known = report["known"]
    z = report["noise"]
    blocks = [
        WHAT.format(
            epsilons=", ".join(f"{e:g}" for e in EPSILONS),
            delta=report["delta"],
            known=known,
            history=KEYS["history"],
            noises=", ".join(f"{z[f'{e:g}']:.2f} (epsilon {e:g})" for e in EPSILONS),
            items=ITEMS,
            authors=len(adapter["base"]),
            base=base,
            draws=DRAWS,
            hopeless=HOPELESS,
            faint=FAINT,
        )
    ]
    done = [name_of(one) for one in adapter["settings"]]
    if missing := [one.name for one in SETTINGS if one.name not in done]:
        blocks.append(f"\n**Not finished.** Not measured yet: {'; '.join(missing)}.\n")
    sizes = ", ".join(f"{size:,}" for size in COHORTS)
    blocks.append(USABLE.format(sizes=sizes) + usable_table(adapter))
    for epsilon in EPSILONS:
        blocks += [f"\n## Epsilon {epsilon:g}\n\n", cell_table(adapter, epsilon)]
    blocks += ["\n## The updates\n\n", shape_table(adapter)]
    votes = report["votes"]
    blocks.append(
        VOTES.format(
            known=known,
            bank=votes["bank"],
            voted=votes["voted"],
            even=votes["even"],
            draws=VOTE_DRAWS,
        )
    )
    blocks.append(vote_table(votes))
    blocks.append(LIMITS.format(known=known, count=ITEMS * len(adapter["base"])))
    blocks.append(f"\nMeasured at {origin['commit']}, {origin['day']}.\n")
    return "".join(blocks)


def difference(cell: Mapping[str, Any], base: Sequence[float]) -> dict[str, Any] | None:
    """Mean NLL less the base's over authors, its interval, and whether it is usable."""
    if not cell["nll"]:
        return None
    values = np.array(cell["nll"]) - np.array(base)
    found = bootstrap(values.mean(0), 0)
    return {
        **found,
        "usable": found["ci95"][1] < 0 and bool((values.mean(1) < 0).all()),
    }


def shown(one: dict[str, Any] | None) -> str:
    """A difference with its interval."""
    if one is None:
        return "-"
    low, high = one["ci95"]
    text = f"{one['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"**{text}**" if one["usable"] else text


def grid_of(setting: Mapping[str, Any]) -> dict[tuple[float, int], Any]:
    """Cells of a setting by epsilon and N."""
    return {(cell["epsilon"], cell["users"]): cell for cell in setting["cells"]}


def name_of(setting: Mapping[str, Any]) -> str:
    """What a table calls a setting."""
    names = ("targets", "rank", "quantile", "step")
    return Setting(*(setting[name] for name in names)).name


def cell_table(adapter: Mapping[str, Any], epsilon: float) -> str:
    """Differences to the base, settings by N."""
    heads = ["adapter", *(f"N = {size:,}" for size in COHORTS), "no noise"]
    lines = []
    for setting in adapter["settings"]:
        grid, clear = grid_of(setting), {"nll": [setting["exact"]]}
        cells = [*(grid[epsilon, size] for size in COHORTS), clear]
        values = [difference(cell, adapter["base"]) for cell in cells]
        lines.append([name_of(setting), *map(shown, values)])
    return table(heads, lines)


def first_usable(
    setting: Mapping[str, Any], epsilon: float, base: Sequence[float]
) -> int | None:
    """The smallest N from which on all are usable; None: there is none."""
    grid, first = grid_of(setting), None
    for size in sorted(COHORTS, reverse=True):
        one = difference(grid[epsilon, size], base)
        if one is None or not one["usable"]:
            break
        first = size
    return first


def usable_table(adapter: Mapping[str, Any]) -> str:
    """The smallest usable N, by setting and epsilon."""
    heads = ["adapter", *(f"epsilon {e:g}" for e in EPSILONS)]
    lines = []
    for setting in adapter["settings"]:
        firsts = [first_usable(setting, e, adapter["base"]) for e in EPSILONS]
        shown = [f"{first:,}" if first else "none of these" for first in firsts]
        lines.append([name_of(setting), *shown])
    return table(heads, lines)


def shape_table(adapter: Mapping[str, Any]) -> str:
    """What each setting sends."""
    heads = [
        *("adapter", "coordinates", "gradient norms: least, median, most"),
        *("clipped length C", "length of the mean / C"),
    ]
    lines = [
        [
            name_of(one),
            f"{one['coordinates']:,}",
            ", ".join(f"{value:.3g}" for value in one["norms"]),
            f"{one['length']:g}",
            f"{one['agreement']:.2f}",
        ]
        for one in adapter["settings"]
    ]
    return table(heads, lines)


def vote_table(votes: Mapping[str, Any]) -> str:
    """Distances by epsilon and N."""
    heads = ["epsilon", *(f"N = {size:,}" for size in COHORTS)]
    known = {(row["epsilon"], row["users"]): row["distance"] for row in votes["rows"]}
    lines = [
        [f"{epsilon:g}", *(f"{known[epsilon, size]:.2f}" for size in COHORTS)]
        for epsilon in EPSILONS
    ]
    return table(heads, lines)


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    whole = [heads, ["---"] * len(heads), *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in whole)


# --- the command -----------------------------------------------------------------------


def measured(data: Path) -> Iterator[dict[str, Any]]:
    """Everything that the page says in numbers, after each setting."""
    # What was computed with other keys is not taken for this.
    kept = home() / NAME / content_hash(KEYS, ITEMS, LENGTHS)[:12]
    make_folder(kept)
    config = parse({**KEYS, "data": str(data / "news_headlines")})
    dataset = load_dataset(config)
    public: dict[str, Scalar] = {
        **KEYS,
        "data": str(data / "gov_headlines"),
        "users": 1,
        "development-users": 0,
        "adapt.users": "all",
        "held-out": 1,
    }
    other = parse(public)
    bank = public_text(other, load_dataset(other), config.unlabeled.bank)
    first = {
        "known": len(dataset.development),
        "delta": config.privacy.delta,
        "noise": {f"{epsilon:g}": noise(epsilon) for epsilon in EPSILONS},
        "votes": vote_results(dataset, bank, config),
    }
    for adapter in adapter_results(kept, dataset, config):
        yield {**first, "adapter": adapter}


def main() -> None:
    """Measure, unless only the page is wanted, and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--page", action="store_true", help="only the page")
    if not parser.parse_args().page:
        data = os.environ.get("IDIOLECT_DATA", "")
        refuse_if(not data, "set IDIOLECT_DATA to the folder of the real texts.")
        for report in measured(Path(data)):
            save(NAME, report)
            PAGE.write_text(page(json.loads((RESULTS / f"{NAME}.json").read_text())))
    PAGE.write_text(page(json.loads((RESULTS / f"{NAME}.json").read_text())))


if __name__ == "__main__":
    main()
