"""Phases personalise and evaluate: each method, for each user, on the same budget.

Each method trains with the learning rate that suits it: the one with the lowest held-out
NLL on the development users, who are never reported. Then the evaluated users train at
that rate, and every method is measured on their held-out items. A checkpoint after each
method, so that a resumed run repeats at most one; what its users already trained is on
their disks.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...common.config import SETLESS, UNTRAINED, Config
from ...common.data.load import task_of
from ...common.data.metrics import means_of_sum, measured_metrics, released_metrics
from ...common.privacy.noise import gaussian
from ...common.protocol.messages import (
    EvaluateReply,
    EvaluateRequest,
    Outcome,
    PersonaliseReply,
    PersonaliseRequest,
    Request,
)
from ...common.protocol.packing import unpack
from ...common.protocol.validation import valid_votes
from ...common.unlabeled.sets import fingerprint
from ..privacy.ledger import BudgetSpent
from .adapt import clipped_sum, crowd_of_run
from .budget import charge, metrics_event, noise_of
from .exchange import Run, Step, ask, groups, report, require

# Work per user beside one epoch on the own history: the unlabeled items and two more
# passes for scores; scoring the held-out items; generating for them.
TRAINING, SCORING, GENERATING = 2.0, 0.5, 3.0
NAMES = 64  # numbers in a user's training log, and characters of the name of each


def trained_methods(config: Config) -> tuple[str, ...]:
    """Return the methods that have an adapter per user."""
    return tuple(m for m in config.method_list if m not in UNTRAINED)


def possible_methods(run: Run) -> tuple[str, ...]:
    """Return the methods that can be trained: all, or those that need no unlabeled set."""
    trained = trained_methods(run.config)
    without = run.state.without_pool
    return tuple(m for m in trained if m in SETLESS or not without)


def training_weight(config: Config) -> float:
    """Work of training one user with one method."""
    return TRAINING * config.personalise.epochs


def workload(config: Config, users: int, development: int) -> float:
    """Work of both phases, in the unit of `Run.total`."""
    methods, rates = len(trained_methods(config)), len(config.learning_rate_list)
    trial = (training_weight(config) + SCORING) * development * rates
    measure = SCORING + (GENERATING if config.evaluate.generate else 0.0)
    return (
        methods * (training_weight(config) * users + trial * (rates > 1))
        + measure * len(config.method_list) * users
    )


def personalise(run: Run) -> None:
    """Choose the rates, then train every method; what is done already is skipped."""
    for method in possible_methods(run):
        if method not in run.state.learning_rates:
            run.state.learning_rates[method] = choose_rate(run, method)
            run.save()
        elif len(run.config.learning_rate_list) > 1:
            run.done += _trial_weight(run) * len(run.config.learning_rate_list)
    for method in possible_methods(run):
        if method in run.state.outcomes:
            run.done += training_weight(run.config) * len(run.users)
            continue
        rate = run.state.learning_rates[method]
        label = f"{method} lr {rate:g}"
        run.state.outcomes[method] = train(run, method, rate, run.users, label, False)
        run.save()


def evaluate(run: Run) -> None:
    """Measure every method on the evaluated users; a checkpoint after each.

    Where metrics are a release with noise and the budget does not allow another, the
    phase ends with what it has.
    """
    possible = (*UNTRAINED, *possible_methods(run))
    for method in run.config.method_list:
        if method not in possible:
            continue
        if method in run.state.metrics or method in run.state.noisy_metrics:
            weight = SCORING + GENERATING * run.config.evaluate.generate
            run.done += weight * len(run.users)
            continue
        rate = run.state.learning_rates.get(method, 0.0)
        trained = run.state.outcomes.get(method)
        users = tuple(u for u in run.users if trained is None or u in trained)
        if run.config.privacy.metrics == "noisy":
            try:
                run.state.noisy_metrics[method] = measure_noisily(
                    run, method, rate, users
                )
            except BudgetSpent as error:
                run.warn(f"evaluate ends before method '{method}': {error}")
                return
        else:
            run.state.metrics[method] = measure(run, method, rate, users)
        run.save()


# --- the learning rate -----------------------------------------------------------------


def choose_rate(run: Run, method: str) -> float:
    """Return the rate with the lowest mean NLL on the development users.

    A rate at which fewer users fail always wins, whatever the NLL of the others.
    """
    rates = run.config.learning_rate_list
    if len(rates) == 1:
        return rates[0]
    results = run.state.trials.setdefault(method, {})
    for rate in rates:
        if repr(rate) in results:
            run.done += _trial_weight(run)
            continue
        results[repr(rate)] = list(try_rate(run, method, rate))
        run.save()
    return min(rates, key=lambda rate: tuple(results[repr(rate)]))


def _trial_weight(run: Run) -> float:
    return (training_weight(run.config) + SCORING) * len(run.development)


def try_rate(run: Run, method: str, rate: float) -> tuple[float, float]:
    """Return how many development users failed at a rate, and the mean NLL of the others.

    NLL alone, without generating: it is what the methods have in common.
    """
    label = f"{method} lr {rate:g}, development"
    tried = train(run, method, rate, run.development, label, True)
    values = [outcome.log.get("nll", math.nan) for outcome in tried.values()]
    return rate_order(values, len(run.development))


def rate_order(values: Sequence[float], users: int) -> tuple[float, float]:
    """What rates are compared by, less is better: failures, then the others' mean NLL."""
    finite = [value for value in values if math.isfinite(value)]
    mean = sum(finite) / len(finite) if finite else math.inf
    return float(users - len(finite)), mean


# --- exchanges ---------------------------------------------------------------------------


def train(
    run: Run, method: str, rate: float, users: tuple[str, ...], label: str, trial: bool
) -> dict[str, Outcome]:
    """Let the users' nodes train; return user -> outcome in the order of `users`."""
    weight = training_weight(run.config) + SCORING * trial
    step = Step("personalise", label, "train.personalise", weight)
    voters, shared = run.state.took_part.get("votes", {}), run.shared_to_send
    tasks = [
        (
            node,
            PersonaliseRequest(
                **run.head(f"personalise/{label}/{i}", names),
                method=method,
                learning_rate=rate,
                trial=trial,
                manifest=run.state.manifest if run.state.unlabeled else "",
                signature=run.state.signature if run.state.unlabeled else "",
                voted=tuple(name for name in names if name in voters),
                unlabeled=run.state.unlabeled or (),
                shared=shared,
            ),
        )
        for i, (node, names) in enumerate(groups(run, users))
    ]
    answers = ask(run, step, tasks, lambda record: unpack(PersonaliseReply, record))
    found, bad = {}, {}
    for reply in answers.replies:
        for user, outcome in reply.outcomes.items():
            if user in reply.users and _sane(outcome):
                found[user] = outcome
            elif user in reply.users:
                bad[user] = "what it says of its training has no meaning."
    report(run, step, bad)
    if not trial:
        require(run, step, len(found), len(users), answers.errors | bad)
    return {user: found[user] for user in users if user in found}


def _sane(outcome: Outcome) -> bool:
    """Whether it is what a node of ours may say; ours log about fifteen numbers."""
    named = len(outcome.log) <= NAMES and all(len(n) <= NAMES for n in outcome.log)
    return named and (outcome.alpha is None or 0 <= outcome.alpha < 1)


def measure(
    run: Run, method: str, rate: float, users: tuple[str, ...]
) -> dict[str, dict[str, float]]:
    """Let the users' nodes measure; return user -> metric -> value."""
    first = run.config.evaluate.users or len(users)
    generating = users[:first] if run.config.evaluate.generate else ()
    scored = users[len(generating) :]
    results: dict[str, dict[str, float]] = {}
    for names, generate in ((generating, True), (scored, False)):
        if names:
            results |= _measure(run, method, rate, names, generate)
    return {user: results[user] for user in users if user in results}


def _measure(
    run: Run, method: str, rate: float, users: tuple[str, ...], generate: bool
) -> dict[str, dict[str, float]]:
    step = Step("evaluate", method, "evaluate", SCORING + GENERATING * generate)
    place = f"evaluate/{method}/{generate}"
    tasks = _tasks(run, method, rate, users, place, generate)
    answers = ask(run, step, tasks, lambda record: unpack(EvaluateReply, record))
    names = measured_metrics(task_of(run.config.task).kind, generate)
    found, bad = {}, {}
    for reply in answers.replies:
        for user in reply.users:
            metrics = reply.metrics.get(user, {})
            if not metrics.keys() <= names:  # each name would be a row of the table
                bad[user] = "it has metrics that nobody asked for."
            elif "nll" in metrics and all(map(math.isfinite, metrics.values())):
                found[user] = metrics
            else:
                bad[user] = "its metrics are missing or not finite."
    report(run, step, bad)
    require(run, step, len(found), len(users), answers.errors | bad)
    return found


def _tasks(
    run: Run,
    method: str,
    rate: float,
    users: Sequence[str],
    place: str,
    generate: bool,
    release: str = "",
) -> list[tuple[int, Request]]:
    unlabeled_hash = fingerprint(run.state.unlabeled or ())
    shared = run.shared_to_send
    return [
        (
            node,
            EvaluateRequest(
                **run.head(f"{place}/{i}", names),
                method=method,
                learning_rate=rate,
                unlabeled_hash=unlabeled_hash,
                generate=generate,
                release=release,
                shared=shared,
            ),
        )
        for i, (node, names) in enumerate(groups(run, users))
    ]


def measure_noisily(
    run: Run, method: str, rate: float, users: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    """Release the sum of the users' bounded metrics with noise (`metrics.bounded_row`).

    Returns
    -------
    dict
        METRIC -> mean, interval of the noise, and noisy number of users.

    Raises
    ------
    BudgetSpent
        The release would exceed the budget; nobody was asked.
    """
    config = run.config
    generate = config.evaluate.generate
    event = metrics_event(noise_of(config, crowd_of_run(run)))
    done = len(run.state.noisy_metrics)
    release = charge(run.ledger, event, config, done, method=method)
    names = released_metrics(task_of(config.task).kind, generate)
    step = Step("evaluate", method, "evaluate", SCORING + GENERATING * generate)
    place = f"evaluate/{release.id}"
    tasks = _tasks(run, method, rate, users, place, generate, release.id)

    def shapes(fields: dict) -> dict[str, tuple[int, ...]]:
        return {"sums": (len(fields["users"]), len(names) + 1)}

    answers = ask(
        run,
        step,
        tasks,
        lambda record: unpack(EvaluateReply, record, shapes),
        row={"sums": (len(names) + 1,)},
    )
    total = np.zeros(len(names) + 1)
    counted, bad = [], {}
    for reply in answers.replies:
        rows = reply.sums["sums"]
        good = valid_votes(rows)
        total += clipped_sum({"sums": rows[good]}, 1.0)[0]["sums"]
        counted += [u for u, fine in zip(reply.users, good, strict=True) if fine]
        bad |= {
            user: "its row of metrics is not finite, negative, or longer than 1."
            for user, fine in zip(reply.users, good, strict=True)
            if not fine
        }
    report(run, step, bad)
    require(run, step, len(counted), len(users), answers.errors | bad)
    run.took_part("metrics", counted)
    total = total + gaussian(total.shape, event.z, release.random)
    return means_of_sum(total, names, event.z)


# --- what the table says about training -----------------------------------------------


def mean_log(outcomes: Mapping[str, Outcome], key: str) -> float | None:
    """Mean over users of one number in the training log, None where nobody logs it."""
    values = [one.log[key] for one in outcomes.values() if key in one.log]
    return sum(values) / len(values) if values else None
