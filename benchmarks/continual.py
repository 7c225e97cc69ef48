"""A history that grows: train anew, go on, or replay; and a text that is forgotten.

    python benchmarks/continual.py [--backbone tiny|smollm2] [--users N] [--steps N]
                                   [--page]

Each user's history grows by `EACH` items in each step, oldest first. In each step there
are three ways to an own adapter:

- *anew*: a new adapter is trained on the whole history so far;
- *go on*: the last adapter is trained on the new items alone;
- *replay*: the last adapter is trained on the new items and as many old ones, drawn by
  chance.

Every adapter is scored on the same held-out items of its user, which are in no history. A
fourth adapter is trained and judged as a device does it with a history of that length: the
newest items judge it, and it is used if they are no less likely than before. Only their
likelihood judges here, not what the adapter writes. Every step has random numbers of its
own, which all ways share.

After step `FORGOTTEN` one text that was learnt is forgotten: an adapter is trained anew
without it, as `idiolect forget` does it. It is compared with one that never saw the text
and has other random numbers, there and after the last step, where both have gone on. Beside
them stand the adapters that saw the text.

With `tiny` the users are personas; with `smollm2` they are authors of news headlines in
$IDIOLECT_DATA/news_headlines who wrote enough. Results are kept user by user in
benchmarks/results/continual.json. The same command goes on with the users who are missing
there, and `--page` only writes docs/continual.md again.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from continual_page import WAYS, page
from report import RESULTS, ROOT, git_commit, save

from idiolect.client.owner.learning import judges
from idiolect.common.config import Config, Scalar, parse
from idiolect.common.config.methods import BY_NAME
from idiolect.common.data.load import load_dataset
from idiolect.common.data.types import Item, User
from idiolect.common.engine.adapters import Lora, attached
from idiolect.common.engine.backbone import backbone_of
from idiolect.common.engine.rates import with_rates
from idiolect.common.engine.reference import Reference
from idiolect.common.engine.scoring import collate, token_logp
from idiolect.common.errors import required
from idiolect.common.methods.evaluation import evaluate, held_out_nll
from idiolect.common.methods.personalise import Learner, learn
from idiolect.common.seeds import numpy_generator
from idiolect.common.unlabeled.draws import draw_for
from idiolect.common.unlabeled.sets import UnlabeledSet
from idiolect.server.run.local import Local, fitted
from idiolect.server.study.cache import Cache
from idiolect.server.study.cells import with_pool

PAGE, NAME = ROOT / "docs" / "continual.md", "continual"
METHODS = "sft", "c-bpo"
EACH = 4  # items that a history grows by
STEPS = 10
REPLAYED = EACH  # old items beside the new ones
FORGOTTEN = 5  # the step after which a text is forgotten
# Other random numbers: start of the adapter, order of the batches, unlabeled items.
OTHERWISE = 1000
# Steps at which an adapter is also trained and judged as on a device: it costs as much as
# to train anew.
JUDGED = 1, 2, 4, 8
OTHERS = 256  # texts of others that stand for the unlabeled set, to save time
PIECE = 5  # tokens of a piece of the forgotten text
DIGITS = 5  # of what is kept

# What both have in common with the studies `short` and `short_personas`.
COMMON: dict[str, Scalar] = {
    "methods": "base,shared,sft,c-bpo",
    "adapt.users": "development",
    "unlabeled.kind": "others",
    "evaluate.generate": False,
}
WORLDS: dict[str, dict[str, Scalar]] = {
    "tiny": {
        "users": 24,
        "development-users": 24,
        "held-out": 8,
        "evaluate.rivals": 3,
        "personalise.learning-rates": "3e-3",
    },
    "smollm2": {
        "task": "LaMP-4",
        "data": "$IDIOLECT_DATA/news_headlines",
        "backbone": "smollm2",
        "users": 18,  # as many have 40 items and those that are held out
        "development-users": 24,
        "held-out": 6,
        "skip-bad-users": True,
        "engine.max-length": 192,
        "evaluate.rivals": 3,
        "personalise.learning-rates": "1e-3",
    },
}


@dataclass(frozen=True, eq=False)
class World:
    """What all users have in common."""

    config: Config
    reference: Reference
    unlabeled: UnlabeledSet
    users: tuple[User, ...]


def config_of(backbone: str, steps: int) -> Config:
    """The configuration of a backbone's users."""
    keys = COMMON | WORLDS[backbone] | {"history": EACH * steps}
    if keys.get("data"):
        keys |= {
            "data": os.path.expandvars(str(keys["data"])),
            "least-history": EACH * steps,
        }
    return with_rates(parse(keys))


def world_of(config: Config) -> World:
    """Train the shared adapter by the development users, and gather the unlabeled set."""
    backbone = backbone_of(config)
    dataset = fitted(backbone, load_dataset(config))
    run = with_pool(config, Reference(backbone), dataset, Cache())
    local = Local(config, run.state, dataset, Reference(backbone))
    return World(config, local.reference, _fewer(local.unlabeled), tuple(dataset.users))


def _fewer(whole: UnlabeledSet) -> UnlabeledSet:
    """Some texts of others, drawn by chance."""
    count = min(OTHERS, len(whole.items))
    draw = numpy_generator(0, "others").choice(len(whole.items), count, replace=False)
    return replace(whole, items=tuple(whole.items[int(i)] for i in sorted(draw)))


# --- one adapter -----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Made:
    """An adapter, and what it cost: CPU seconds, tokens that passed through training."""

    lora: Lora
    cpu: float
    tokens: int


def made(world: World, learner: Learner, method: str, seed: int) -> Made:
    """Train one adapter."""
    config = replace(world.config, seed=seed)
    rate = config.learning_rate_list[0]
    began = time.process_time()
    (found,) = learn(world.reference, world.unlabeled, method, rate, config, [learner])
    cpu = time.process_time() - began
    return Made(
        required(found.lora, found.error), cpu, tokens(world, learner, method, seed)
    )


def tokens(world: World, learner: Learner, method: str, seed: int) -> int:
    """Tokens of all rows, prompts included, times the passes over them."""
    config = replace(world.config, seed=seed)
    drawn = draw_for(
        world.reference, learner.user, world.unlabeled, config, learner.own
    )
    rows = [*drawn.own, *(drawn.aux if BY_NAME[method].unlabeled else ())]
    return config.personalise.epochs * sum(len(row.ids) for row in rows)


def measured(world: World, lora: Lora | None, user: User, method: str) -> list[float]:
    """NLL per token and MRR on the held-out items."""
    (found,) = evaluate(world.reference, [lora], [user], method, world.config, False)
    return [round(found[name], DIGITS) for name in ("nll", "mrr")]


# --- a history that grows --------------------------------------------------------------


def learnt_in(
    user: User, way: str, step: int, without: str | None = None
) -> list[Item]:
    """Items that a way learns from in a step, counted from 1; `without`: a text."""
    known = [one for one in user.history[: EACH * step] if one.target != without]
    new = [
        item for item in user.history[EACH * (step - 1) : EACH * step] if item in known
    ]
    if way == "anew":
        return known
    old = known[: len(known) - len(new)]
    if way == "go on" or not old:
        return new
    draw = numpy_generator(0, "replay", user.id, step)
    places = draw.choice(len(old), min(REPLAYED, len(old)), replace=False)
    return [*(old[i] for i in sorted(places)), *new]


def grown(world: World, user: User, method: str, steps: int) -> dict[str, Any]:
    """All ways through all steps, a device's verdicts, and what is left of a text.

    Returns
    -------
    dict
        ``ways``: way -> for each step NLL, MRR, CPU seconds, tokens. ``device``: liked
        pairs -> `on_device`. ``forgotten``: see `forgetting`; absent where there are fewer
        steps.
    """
    rows: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    device: dict[str, list[float]] = {}
    last: dict[str, Lora] = {}
    kept: dict[int, dict[str, Lora]] = {}
    for step in range(1, steps + 1):
        seed, first = world.config.seed + step, None
        for way in WAYS:
            if step == 1 and first:  # all ways begin alike
                one = first
            else:
                start = None if way == "anew" else last.get(way)
                own = tuple(learnt_in(user, way, step))
                one = made(world, Learner(user, own, start), method, seed)
            first = first or one
            last[way] = one.lora
            scores = measured(world, one.lora, user, method)
            rows[way].append([*scores, round(one.cpu, 3), one.tokens])
        if step in (FORGOTTEN, steps):
            kept[step] = dict(last)
        if step in JUDGED:
            device[str(EACH * step)] = on_device(world, user, method, step)
    found: dict[str, Any] = {"ways": rows, "device": device}
    if steps > FORGOTTEN:
        found["forgotten"] = forgetting(world, user, method, kept, steps)
    return found


def on_device(world: World, user: User, method: str, step: int) -> list[float]:
    """An adapter that is trained and judged as the first one of a device would be.

    Returns
    -------
    list
        By how much the NLL of the texts that judge falls, against the better of the shared
        model and the backbone; NLL and MRR of the held-out items.
    """
    own = user.history[: EACH * step]
    count = judges(len(own))
    learner = Learner(user, own[:-count])
    one = made(world, learner, method, world.config.seed + step)
    judging = replace(user, held_out=own[-count:])
    after, shared, bare = (
        held_out_nll(world.reference, [lora], [judging], name)[0]
        for lora, name in ((one.lora, method), (None, "shared"), (None, "base"))
    )
    gain = round(min(shared, bare) - after, DIGITS)
    return [gain, *measured(world, one.lora, user, method)]


# --- a text that is forgotten ----------------------------------------------------------


def forgotten_of(user: User) -> Item:
    """The text that a user forgets: one of those learnt until then, drawn by chance."""
    draw = numpy_generator(0, "forgotten", user.id)
    return user.history[int(draw.integers(EACH * FORGOTTEN))]


def forgetting(
    world: World,
    user: User,
    method: str,
    saw: dict[int, dict[str, Lora]],
    steps: int,
) -> dict[str, dict[str, list[float]]]:
    """How likely the forgotten text is, by adapters that saw it and by others.

    Returns
    -------
    dict
        ``then`` (after step `FORGOTTEN`) and ``end`` (after the last step) -> adapter ->
        `likelihood`. Adapters are the ways, which saw the text; ``forgotten``, trained anew
        without it; ``never``, the same with other random numbers; both go on to the end.
    """
    text, then, end = forgotten_of(user), dict(saw[FORGOTTEN]), dict(saw[steps])
    for name, seed in (("forgotten", 0), ("never", OTHERWISE)):
        lora: Lora | None = None
        for step in range(FORGOTTEN, steps + 1):
            way = "anew" if step == FORGOTTEN else "go on"
            own = tuple(learnt_in(user, way, step, without=text.target))
            learner = Learner(user, own, lora)
            lora = made(world, learner, method, world.config.seed + step + seed).lora
            if step == FORGOTTEN:
                then[name] = lora
        end[name] = required(lora, "")
    return {
        when: {name: likelihood(world, lora, text) for name, lora in adapters.items()}
        for when, adapters in (("then", then), ("end", end))
    }


def likelihood(world: World, lora: Lora, text: Item) -> list[float]:
    """By how much an adapter makes a text likelier than the shared model does.

    Returns
    -------
    list
        Nats per token: the mean over the text, and over the piece of `PIECE` tokens that
        gains most. A text that is partly known shows in the second.
    """
    backbone, shared = world.reference.backbone, world.reference.shared
    layout = collate(backbone, [backbone.encode(text)])
    with torch.no_grad(), attached(backbone, shared):
        before = token_logp(backbone, layout)
    with torch.no_grad(), attached(backbone, shared, lora):
        gain = token_logp(backbone, layout) - before
    pieces = gain.unfold(0, min(PIECE, len(gain)), 1).mean(1)
    return [round(float(gain.mean()), DIGITS), round(float(pieces.max()), DIGITS)]


# --- the command -----------------------------------------------------------------------


def user_of(world: World, user: User, steps: int) -> dict[str, Any]:
    """Everything about one user: the shared model, and each method."""
    found: dict[str, Any] = {"shared": measured(world, None, user, "shared")}
    return found | {m: grown(world, user, m, steps) for m in METHODS}


def load(path: Path) -> dict[str, Any]:
    """What is measured so far: backbone -> setting and users."""
    return json.loads(path.read_text())["backbones"] if path.exists() else {}


def measure(backbone: str, users: int | None, steps: int, folder: Path) -> None:
    """Measure the users who are missing; what is there is kept after each."""
    config = config_of(backbone, steps)
    world = world_of(config)
    done = load(folder / f"{NAME}.json")
    setting = {"steps": steps, "each": EACH, "rate": config.learning_rate_list[0]}
    if done.get(backbone, {}).get("setting") != setting:
        done[backbone] = {"setting": setting, "users": {}, "commits": []}
    here = done[backbone]
    for user in world.users[:users]:
        if user.id in here["users"]:
            continue
        began = time.monotonic()
        here["users"][user.id] = user_of(world, user, steps)
        here["commits"] = sorted({*here["commits"], git_commit()})
        save(NAME, {"backbones": done}, folder)
        print(f"{user.id}: {time.monotonic() - began:.0f} s", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description="A history that grows.")
    parser.add_argument("--backbone", choices=tuple(WORLDS), default="tiny")
    parser.add_argument("--users", type=int, metavar="N", help="only the first N")
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N")
    parser.add_argument("--page", action="store_true", help="measure nothing")
    parser.add_argument("--into", type=Path, default=RESULTS, help="folder of results")
    given = parser.parse_args(arguments)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if not given.page:
        measure(given.backbone, given.users, given.steps, given.into)
    done = load(given.into / f"{NAME}.json")
    if given.into == RESULTS:
        PAGE.write_text(page(done))


if __name__ == "__main__":
    main()
