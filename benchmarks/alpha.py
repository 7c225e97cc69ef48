"""What alpha is, exactly and estimated: writes docs/alpha.md.

    python benchmarks/alpha.py [--page]

Measures the four functionals of personas (`common/data/functionals.py`), the estimates of
them from n-grams of texts, and how the length of the history moves an estimate on Gaussian
classes. Writes benchmarks/results/alpha.json and the page; some three minutes of one core.
With `--page` only the page, from that file. Where the package pu-toolbox is installed (it
is no dependency), its KM2 is a row of the table of estimates.
"""

import argparse
import importlib
import json
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from report import RESULTS, ROOT, save
from scipy.stats import norm, rankdata

from idiolect.common.config import Config, parse
from idiolect.common.data import personas
from idiolect.common.data.functionals import classifier_mean, functionals
from idiolect.common.data.ngrams import hashed
from idiolect.common.data.personas.authors import distributions, draw_author
from idiolect.common.data.types import User
from idiolect.common.seeds import numpy_generator
from idiolect.common.unlabeled import heldout, overlap, shares
from idiolect.server.findings.page import load

PAGE = ROOT / "docs" / "alpha.md"
EXAMPLE = (0.9, 0.1), (0.5, 0.5)
PEOPLE = {"seed": 1, "users": 24, "development-users": 16}
WORLDS = {
    "soft-16": {"history": 16, "persona.strength": 0.35},
    "headline, default": {},
}
UNLABELED = 128  # items, as `unlabeled.alpha-items`
SIZES = (8, 128), (16, 128), (32, 128), (32, 32)
SHARES = (0.0, 0.5, 1.0)
DIMENSIONS, GAP, DRAWS = 64, 4.0, 40
NAMES = "share_bound", "classifier_mean", "classifier_odds", "overlap"
LEVELS = 0.5, 0.9, 1.0  # quantiles that are tried

Array = np.ndarray
Estimates = dict[str, float]


def main() -> None:
    """Measure, unless only the page is wanted, and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--page", action="store_true", help="from the file that is there"
    )
    if not parser.parse_args().page:
        save("alpha", measured())
    PAGE.write_text(page(json.loads((RESULTS / "alpha.json").read_text())))


def measured() -> dict[str, Any]:
    """Everything that the page says in numbers."""
    return {
        "example": asdict(functionals(*EXAMPLE)),
        "worlds": {name: world(keys) for name, keys in WORLDS.items()},
        "lengths": [lengths(own, other) for own, other in SIZES],
        "limit": {str(share): gaussian_mean(share) for share in SHARES},
    }


# --- personas ------------------------------------------------------------------------


def world(keys: dict[str, Any]) -> dict[str, Any]:
    """Functionals and estimates of all users of one world."""
    config = parse({**PEOPLE, **keys, "unlabeled.kind": "others"})
    data = personas.make(config)
    people = data.everybody
    known = [u.truth.functionals for u in people if u.truth]
    exact = [asdict(each) for each in known if each]
    estimates = list(estimated(config, people))
    users = exact[: config.users]
    medians = {name: float(np.median([row[name] for row in users])) for name in NAMES}
    return {
        "history": config.history,
        "users": len(users),
        "people": len(people),
        "exact": medians,
        "estimates": {key: judged(estimates, exact, key) for key in estimates[0]},
    }


def estimated(config: Config, people: Sequence[User]) -> Iterator[Estimates]:
    """Every user's estimates, from texts and from exact probabilities."""
    features = {u.id: hashed([item.target for item in u.history]) for u in people}
    kind = personas.WORLDS[config.task]
    authors = [draw_author(kind, config.seed, u.id, config.persona) for u in people]
    exact = distributions(kind, authors)
    for number, user in enumerate(people):
        p, u = exact(number)
        rng = numpy_generator(config.seed, "benchmarks/alpha", user.id)
        others = np.concatenate([features[v.id] for v in people if v.id != user.id])
        chosen = others[rng.choice(len(others), UNLABELED, replace=False)]
        yield {
            **from_texts(features[user.id], chosen, rng),
            **from_exact(p, u, len(user.history), rng),
        }


def from_texts(own: Array, other: Array, rng: np.random.Generator) -> Estimates:
    """The estimates that a device can make."""
    weights = np.ones(len(other))
    found = heldout.probabilities(own, other, weights, rng)
    assert found is not None
    return {
        "`estimate`": overlap.estimate(own, other, weights, rng).alpha,
        "`calibrated`": float(found.unlabeled.mean()),
        **from_probabilities(found.own, found.unlabeled, ""),
    }


def from_exact(p: Array, u: Array, own: int, rng: np.random.Generator) -> Estimates:
    """The same from p / (p + u) itself: what is left if the classifier were perfect."""
    mine, theirs = rng.choice(len(p), own, p=p), rng.choice(len(u), UNLABELED, p=u)
    probability = p / np.maximum(p + u, 1e-300)
    known = ", perfect classifier"
    return {
        f"`calibrated`{known}": float(probability[theirs].mean()),
        **from_probabilities(probability[mine], probability[theirs], known),
    }


def from_probabilities(own: Array, other: Array, note: str) -> Estimates:
    """Mixture shares from probabilities "the user's"."""
    found = {
        f"`quantile`, q at {level:g}{note}": shares.from_quantile(own, level)
        for level in LEVELS
    }
    found[f"`best-bin`{note}"] = shares.best_bin(own, other, np.ones(len(other)))
    if oracle := kernel_mean():
        found[f"KM2 of pu-toolbox{note}"] = oracle(own, other)
    return found


def kernel_mean() -> Callable[[Array, Array], float] | None:
    """KM2 (Ramaswamy, Scott and Tewari 2016) on logits; None where it is not there."""
    try:
        prior = importlib.import_module("pu_toolbox.prior")
    except ImportError:
        return None

    def estimate(own: Array, other: Array) -> float:
        scores = np.r_[own, other].clip(1e-9, 1 - 1e-9)
        if np.ptp(scores) == 0:
            return 1.0  # nothing tells the sides apart, and KM2 has no kernel
        logits = np.log(scores / (1 - scores))[:, None]
        labels = np.r_[np.ones(len(own), int), np.zeros(len(other), int)]
        kernel = prior.KernelMeanPriorEstimator(variant="km2").fit(logits, labels)
        return float(kernel.estimate())

    return estimate


def judged(estimates: list[Estimates], exact: list[Estimates], key: str) -> Estimates:
    """Median of an estimate, and how it compares with two functionals."""
    found = np.array([row[key] for row in estimates])
    row = {"median": float(np.median(found))}
    for name in ("share_bound", "classifier_mean"):
        truth = np.array([e[name] for e in exact])
        alike = np.ptp(found) == 0  # then there is no order to compare
        row[f"{name} rank"] = 0.0 if alike else correlation(found, truth)
        row[f"{name} error"] = float(np.abs(found - truth).mean())
        row[f"{name} above"] = float((found > truth).mean())
    return row


def correlation(one: Array, other: Array) -> float:
    """Spearman's rank correlation."""
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])


# --- Gaussian classes -----------------------------------------------------------------


def lengths(own: int, other: int) -> dict[str, Any]:
    """Means over draws of both estimates of `classifier_mean`, for each true share."""
    rows: dict[str, Any] = {"own": own, "unlabeled": other}
    for name in ("estimate", "calibrated"):
        rows[name] = {}
        for share in SHARES:
            found = [gaussian(name, own, other, share, seed) for seed in range(DRAWS)]
            rows[name][str(share)] = [float(np.mean(found)), float(np.max(found))]
    return rows


def gaussian(name: str, own: int, other: int, share: float, seed: int) -> float:
    """One estimate: p is N(GAP e_1, I), and u has that share of it, the rest N(0, I)."""
    rng = np.random.default_rng(seed)
    target, unlabeled = (rng.normal(size=(n, DIMENSIONS)) for n in (own, other))
    target[:, 0] += GAP
    unlabeled[:, 0] += GAP * (rng.random(other) < share)
    weights = np.ones(other)
    if name == "estimate":
        return overlap.estimate(target, unlabeled, weights, rng).alpha
    found = heldout.probabilities(target, unlabeled, weights, rng)
    assert found is not None
    return float(found.unlabeled.mean())


def gaussian_mean(share: float) -> float:
    """`classifier_mean` of these classes, on a fine grid of their one direction."""
    grid = np.linspace(-8, 8 + GAP, 4001)
    p, n = norm.pdf(grid, GAP), norm.pdf(grid)
    p, n = p / p.sum(), n / n.sum()
    return classifier_mean(p, share * p + (1 - share) * n)


# --- the page -------------------------------------------------------------------------

WHAT = """# What alpha is

This page is written by `benchmarks/alpha.py`. It is for readers of the method.

C-BPO takes the user's items from the unlabeled ones: what is left should stand for what
other people write. With p for how the user writes and u for the population that the
unlabeled set is drawn from, the unlabeled term of the loss is an expectation over

    n = (u - alpha p) / (1 - alpha).

Four numbers have been called alpha. They are different functionals of p and u, and the code
(`common/data/functionals.py`) and this page give each a name of its own.
"""
VALID = {
    "share_bound": ("inf u/p", "always: it is the largest"),
    "classifier_mean": (
        "E_u[p / (p + u)]",
        "where it is at most `share_bound`; for disjoint p and n it is pi / (1 + pi)",
    ),
    "classifier_odds": (
        "m / (1 - m), m = `classifier_mean`",
        "where p and n are disjoint; else it is above `share_bound`",
    ),
    "overlap": (
        "sum min(p, u)",
        "where it equals `share_bound`, as for p = u; it is never below",
    ),
}
MEANING = """
**Which one the paper's estimate aims at.** The mean probability "the user's" of a balanced
classifier over the unlabeled items is an estimate of `classifier_mean`. It is at most 1/2,
also for a user who writes like everybody. It is no share of a mixture. What a persona was
made with, `Truth.overlap`, is `overlap`, no share either.

**What may be subtracted.** n is a distribution if and only if alpha is at most
`share_bound`. One text that the user writes and the others hardly ever write makes that
bound nearly 0, whatever else they have in common. Beyond the bound n is negative where
alpha p is larger than u. There the unlabeled term no longer makes text less likely: it
pulls the user's text up, like a second positive term, and the clamp of the loss ends
that. So an alpha above the bound is no prior. It works as a regulariser: it decides how
much of the pressure on the user's own text is taken back. A large one can be the better
choice, as in study [best_alpha](findings/best_alpha.md), and theory of mixtures does not
say which.
"""
CHOICE = """
## What alpha should be chosen by

Study [alpha_choice](findings/alpha_choice.md) compares the adapters that values of
`unlabeled.alpha` make, for C-BPO by the paper. It says:
"""
BIAS = """
## The length of the history

The paper's estimate, `unlabeled.alpha=estimate` here, weighs both classes alike and fits
the classifier on all items. Then it depends on how many items there are. The mean of a few
items is noisier than the mean of many, so it lies farther from all held-out items. All of
these seem to belong to the larger class, also the user's. The unlabeled class is the larger
one, and alpha is too low. Weights do not help, since they leave the noise as it is. A
second, smaller cause is that features are scaled by the unlabeled items alone.

For s = p / (p + u) the means over p and over u always add up to 1.
`unlabeled.alpha=calibrated` restores this. Held-out logits are turned into probabilities by
a fit of their own, a slope that is not negative and a shift, in which both classes weigh
half (`common/unlabeled/heldout.py`). If both classes are one distribution, the mean is 1/2
for any sizes, or a hundredth or two less, from fitting the slope. Something else remains:
a classifier of few items tells little, and then the estimate lies nearer to 1/2 than the
exact value.

"""
ESTIMATES = """
## Estimates from texts

Character n-grams of the history and of {items} of the other users' items. `estimate` and
`calibrated` aim at `classifier_mean`, the others at `share_bound`: `quantile` is
(1 - q) / q with q a high quantile of the held-out probability "the user's" over own items,
and `best-bin` is BBE (Garg et al. 2021, arXiv 2111.00980), both in
`common/unlabeled/shares.py`. `unlabeled.alpha=quantile` takes the {level:g} quantile. A
perfect classifier knows p / (p + u) itself, for fresh draws of the same numbers of texts;
its rows show what an estimator does with few items. KM2 (Ramaswamy, Scott and Tewari 2016)
is another package's estimator of the same share, for comparison. Rank is Spearman's
correlation over all personas of the run; error is the mean absolute one; above is the share
of them whose estimate is larger than `share_bound`.
"""
VALUES = """
## Values of `unlabeled.alpha`

| value | aims at |
| --- | --- |
| `estimate` (default), `calibrated` | `classifier_mean` |
| `quantile`, `best-bin` | `share_bound` |
| `true` | `overlap` of a persona, exactly |
| `true-bound` | `share_bound` of a persona, exactly |
| `true-mean` | `classifier_mean` of a persona, exactly |
| a number | nothing: a regulariser of that strength |

The loss divides by 1 - alpha, so estimates end at 0.9 and a number at 0.99.
"""


def page(found: dict[str, Any]) -> str:
    """docs/alpha.md."""
    example = found["example"]
    rows = [
        [f"`{name}`", formula, valid, f"{example[name]:.3f}"]
        for name, (formula, valid) in VALID.items()
    ]
    heads = "name", "formula", "is a valid share", "p = (.9, .1), u = (.5, .5)"
    lines = [WHAT, *table(heads, rows), MEANING, *exact_section(found["worlds"])]
    lines += [
        BIAS + "\n".join(length_section(found)),
        estimate_section(found["worlds"]),
    ]
    return "\n".join(lines) + choice() + VALUES


def choice() -> str:
    """What a study of the adapters says, in the words of its file; nothing without one."""
    study = load(ROOT / "docs" / "findings").get("alpha_choice")
    if study is None:
        return ""
    words = textwrap.wrap(f"{study['answer']} {study['reading']}", 92)
    return CHOICE + "\n" + "\n".join(words) + "\n"


def exact_section(worlds: dict[str, Any]) -> list[str]:
    """Medians over the users of each world."""
    first = next(iter(worlds.values()))
    rows = [
        [name, *(small(each["exact"][key]) for key in NAMES)]
        for name, each in worlds.items()
    ]
    return [
        "## Of personas, exactly",
        "",
        (
            "Everything a persona can write can be enumerated. p is the persona's and u "
            "the mean of the other personas' of a run, which the kind `others` draws from. "
            f"Medians over {first['users']} users of a run of {first['people']} personas, "
            f"seed {PEOPLE['seed']}; `soft-16` is the "
            "world of weak preferences of study [worlds](findings/worlds.md)."
        ),
        "",
        *table(("world", *(f"`{name}`" for name in NAMES)), rows),
    ]


def length_section(found: dict[str, Any]) -> list[str]:
    """Both estimates by the numbers of items, beside the exact value."""
    heads = ["own, unlabeled items", "`unlabeled.alpha`"]
    heads += [f"share {share:g}" for share in SHARES] + ["share 1, largest of all"]
    rows = [
        [
            f"{each['own']}, {each['unlabeled']}",
            f"`{name}`",
            *(f"{each[name][str(share)][0]:.2f}" for share in SHARES),
            f"{each[name]['1.0'][1]:.2f}",
        ]
        for each in found["lengths"]
        for name in ("estimate", "calibrated")
    ]
    limit = [f"{found['limit'][str(share)]:.2f}" for share in SHARES]
    rows.append(["any", "`classifier_mean`, exact", *limit, ""])
    return [
        (
            f"Means over {DRAWS} draws of Gaussian classes in {DIMENSIONS} dimensions, "
            f"{GAP:g} standard deviations apart; the share is that of the user's class "
            "among the unlabeled items. With share 1 both classes are one distribution."
        ),
        "",
        *table(heads, rows),
    ]


def estimate_section(worlds: dict[str, Any]) -> str:
    """Tables of all estimates, one for each world."""
    lines = [ESTIMATES.format(items=UNLABELED, level=shares.QUANTILE)]
    heads = ["estimate", "median"]
    heads += [f"`share_bound`: {what}" for what in ("rank", "error", "above")]
    heads += [f"`classifier_mean`: {what}" for what in ("rank", "error")]
    columns = [f"share_bound {what}" for what in ("rank", "error", "above")]
    columns += [f"classifier_mean {what}" for what in ("rank", "error")]
    for name, each in worlds.items():
        rows = [
            [key, small(row["median"]), *(f"{row[column]:.2f}" for column in columns)]
            for key, row in each["estimates"].items()
        ]
        lines.append(f"{name}, {each['history']} items of history:\n")
        lines += [*table(heads, rows), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def small(value: float) -> str:
    """Three decimals, or one digit that is not 0."""
    return f"{value:.3f}" if value >= 0.001 or not value else f"{value:.1g}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


if __name__ == "__main__":
    main()
