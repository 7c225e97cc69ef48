"""How fast this machine computes: measured on rows of the job, on its own backbone.

Each measurement takes rows of one stacking group, as many as take about SECONDS. So speeds
are per token at sizes like those of the job, whatever the backbone and the machine.
"""

import time
from collections.abc import Callable, Sequence

from ...common.config import Config
from ...common.config.methods import BY_NAME
from ...common.data.types import User
from ...common.engine.adapters import new_lora, stack, zero_shared
from ...common.engine.backbone import Backbone, Encoded
from ...common.engine.fitting import encode_all
from ...common.engine.memory import Saving
from ...common.engine.reference import Reference
from ...common.engine.scoring import generate, score_users
from ...common.engine.training import (
    Example,
    TrainingSet,
    TrainingSettings,
    steps_of,
    train,
)
from ...common.methods import sft
from ...common.methods.personalise import training_settings
from ...common.methods.shared import update_settings
from .counts import scored_tokens, step_tokens
from .parts import Speed

SECONDS = 1.0
BACKWARD = 3.0  # forward passes that a training step is taken for before one is timed
NEW = 6  # tokens of a generation that is timed

Rows = list[list[Encoded]]


def measured(config: Config, backbone: Backbone, users: Sequence[User]) -> Speed:
    """Measure on the first stacking group of some users."""
    group = users[: config.engine.stack]
    history = [encode_all(backbone, user.history) for user in group]
    reference = Reference(backbone, zero_shared(backbone, config.shared_shape, 0))
    own = [new_lora(backbone, config.lora, 0, str(k)) for k in range(len(group))]
    unlabeled = any(BY_NAME[method].unlabeled for method in config.method_list)
    others = round(config.unlabeled.ratio) if unlabeled else 0

    def score(rows: Rows) -> int:
        policy = [reference.shared, stack(own[: len(rows)])]
        score_users(backbone, policy, rows)
        return scored_tokens(backbone, rows)

    def adapt(rows: Rows) -> int:
        first, settings = [reference.adapter] * len(rows), update_settings(config)
        sets = _sets(rows)
        train(reference.bare, first, sets, sft.loss, settings)
        return _tokens(backbone, sets, settings)

    def personalise(rows: Rows) -> int:
        settings, sets = training_settings(config, 1e-6), _sets(rows, others)
        settings = TrainingSettings(**{**vars(settings), "epochs": 1})
        train(reference, own[: len(rows)], sets, sft.loss, settings)
        return _tokens(backbone, sets, settings)

    score([history[0][:1]])  # what happens once only
    scored = _timed(score, history, 2 * len(history[0][0].ids))
    scored = _timed(score, history, SECONDS / scored)
    budget = SECONDS / (BACKWARD * scored)
    adapted = _timed(adapt, history, budget)
    trained = _timed(personalise, history, budget / (1 + others))
    held_out = [encode_all(backbone, user.held_out) for user in group]
    few, many = ([[r[0]] for r in held_out[:1]], _some(held_out, SECONDS / scored))
    policy = [reference.shared]
    prompted, one = _generating(backbone, policy, few)
    step, written, rows = one, 0.0, sum(map(len, many))
    if rows > 1:
        policy = [reference.shared, stack(own[: len(many)])]
        prompted, all_of_them = _generating(backbone, policy, many)
        written = max(0.0, (all_of_them - one) / (rows - 1))
        step = max(0.0, one - written)
    return Speed(adapted, trained, scored, prompted, step, written)


def _sets(rows: Rows, others: int = 0) -> list[TrainingSet]:
    """Training sets of some rows, which also stand `others` times for unlabeled items."""
    examples = [[Example(one) for one in items] for items in rows]
    return [
        TrainingSet(str(k), items, items * others) for k, items in enumerate(examples)
    ]


def _tokens(
    backbone: Backbone, sets: Sequence[TrainingSet], settings: TrainingSettings
) -> int:
    steps, _ = steps_of(sets, settings)
    return sum(step_tokens(backbone, step, Saving())[0] for step in steps)


def _timed(work: Callable[[Rows], int], rows: Rows, tokens: float) -> float:
    """Seconds per token of some work on about so many tokens of the rows."""
    some = _some(rows, tokens)
    began = time.perf_counter()
    counted = work(some)
    return (time.perf_counter() - began) / counted


def _some(rows: Rows, tokens: float) -> Rows:
    """The first rows of the first users: as many users as possible, equally many each."""
    length = sum(len(e.ids) for items in rows for e in items)
    length /= sum(map(len, rows))
    count = max(1, int(tokens / length))
    users = min(len(rows), count)
    each = min(min(map(len, rows[:users])), count // users)
    return [items[:each] for items in rows[:users]]


def _generating(backbone: Backbone, policy: list, rows: Rows) -> tuple[float, float]:
    """Seconds per prompt token, and of one token of all rows after the first."""
    prompts = [e.ids[: e.prompt_length] for items in rows for e in items]
    ends: list[float] = []
    hook = backbone.model.register_forward_hook(
        lambda *_: ends.append(time.perf_counter())
    )
    began = time.perf_counter()
    try:
        generate(backbone, policy, prompts, NEW)
    finally:
        hook.remove()
    first = (ends[0] - began) / (len(prompts) * max(map(len, prompts)))
    later = sorted(b - a for a, b in zip(ends, ends[1:], strict=False))
    # A model that ends at once shows no second token.
    return first, later[len(later) // 2] if later else ends[0] - began
