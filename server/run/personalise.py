"""Phases personalise and evaluate: each method, for each user, on the same budget.

Each method trains with the learning rate that suits it: the one with the lowest held-out
NLL on the development users, who are never reported. Then the evaluated users train at
that rate, and every method is measured on their held-out items. There is a
checkpoint after each method, so a resumed run repeats at most one; what its users already
trained is on their disks.
"""

import math
from collections.abc import Iterable, Mapping

from ...common.config import SETLESS, UNTRAINED
from ...common.config.methods import BY_NAME
from ...common.data.load import task_of
from ...common.data.metrics import means_of_sum, released_metrics
from ...common.protocol.messages import Outcome
from ...common.secure.secure import LeftOut
from ..privacy.ledger import BudgetSpent
from . import work
from .budget import charge, integers
from .cohort import Run


def possible(run: Run, method: str) -> bool:
    """Whether a method can be measured: it needs no unlabeled set, or there may be one."""
    return method in (*UNTRAINED, *SETLESS) or not run.state.without_pool


def personalise(run: Run) -> None:
    """Choose the rates, then train every method; what is done already is skipped."""
    asked = [method for method in run.config.method_list if method not in UNTRAINED]
    for step in (choose_rate, train):
        for method in asked:
            if possible(run, method):
                step(run, method)


def train(run: Run, method: str) -> None:
    """Train the evaluated users with one method, at its rate."""
    users, state = run.cohort.users, run.state
    if method in state.outcomes:
        run.done += run.weights[work.training(method, False)] * len(users)
        return
    state.outcomes[method] = run.cohort.train(
        users, method, state.learning_rates[method], False
    )
    run.save()


# --- the learning rate -----------------------------------------------------------------


def choose_rate(run: Run, method: str) -> None:
    """Choose the rate with the lowest mean NLL on the development users.

    A rate at which fewer users fail always wins, whatever the NLL of the others.
    """
    state, rates = run.state, run.config.learning_rate_list
    weight = run.weights[work.training(method, True)] * len(run.cohort.development)
    tried = rates if len(rates) > 1 and BY_NAME[method].rated else ()
    if method in state.learning_rates:
        run.done += weight * len(tried)
        return
    results = state.trials.setdefault(method, {}) if tried else {}
    for rate in tried:
        if repr(rate) in results:
            run.done += weight
        else:
            results[repr(rate)] = try_rate(run, method, rate)
            run.save()
    state.learning_rates[method] = min(
        rates, key=lambda rate: tuple(results.get(repr(rate), ()))
    )
    run.save()


def try_rate(run: Run, method: str, rate: float) -> list[float]:
    """Return how many development users failed at a rate, and the mean NLL of the others.

    NLL alone, without generating: it is what the methods have in common.
    """
    users = run.cohort.development
    tried = run.cohort.train(users, method, rate, True).values()
    values = [outcome.log.get("nll", math.nan) for outcome in tried]
    finite = [value for value in values if math.isfinite(value)]
    mean = sum(finite) / len(finite) if finite else math.inf
    return [float(len(users) - len(finite)), mean]


# --- measuring ---------------------------------------------------------------------------


def evaluate(run: Run) -> None:
    """Measure every method on the evaluated users; a checkpoint after each.

    Where metrics are a release with noise and the budget does not allow another, or one is
    left out, the phase ends with what it has.
    """
    state, generate = run.state, run.config.evaluate.generate
    step = measure_noisily if run.config.privacy.metrics == "noisy" else measure
    for method in run.config.method_list:
        if method in state.metrics or method in state.noisy_metrics:
            weight = run.weights[work.measuring(method, generate)]
            run.done += weight * len(run.cohort.users)
        elif possible(run, method):
            try:
                step(run, method)
            except (BudgetSpent, LeftOut) as error:
                run.warn(f"evaluate ends before method '{method}': {error}")
                return


def measured_users(run: Run, method: str) -> tuple[str, ...]:
    """Evaluated users who have an adapter of the method, or whom it needs none of."""
    trained = run.state.outcomes.get(method)
    return tuple(u for u in run.cohort.users if trained is None or u in trained)


def measure(run: Run, method: str) -> None:
    """Measure one method; texts are written for the first ``evaluate.users`` users."""
    settings, users = run.config.evaluate, measured_users(run, method)
    rate = run.state.learning_rates.get(method, 0.0)
    # The same ones for every method, also where one of them has no adapter.
    asked = run.cohort.users[: settings.users or None] if settings.generate else ()
    writing = tuple(user for user in users if user in asked)
    rest = tuple(user for user in users if user not in asked)
    results: dict[str, dict[str, float]] = {}
    for names, generate in ((writing, True), (rest, False)):
        if names:
            results |= run.cohort.measure(names, method, rate, generate)
    run.state.metrics[method] = {u: results[u] for u in users if u in results}
    run.save()


def measure_noisily(run: Run, method: str) -> None:
    """Release the sum of the users' bounded metrics with noise (`metrics.bounded_row`).

    The state then has METRIC -> mean, interval of the noise, and noisy number of users.

    Raises
    ------
    BudgetSpent
        The release would exceed the budget; nobody was asked.
    LeftOut
        With ``secagg.mode=sum``: too few answered, and the release is paid for.
    """
    config, state = run.config, run.state
    people, done = run.population, len(state.noisy_metrics)
    release = charge(
        run.ledger, config, people, "metrics", done, run.begun, method=method
    )
    users, rate = measured_users(run, method), state.learning_rates.get(method, 0.0)
    whole = integers(config, people, "metrics", 1.0, release)
    total, counted = run.cohort.sum_metrics(users, method, rate, release.id, whole)
    run.took_part("metrics", counted)
    total = total + release.unit_noise(total.shape, len(counted), whole)
    names = released_metrics(task_of(config.task).kind, config.evaluate.generate)
    state.noisy_metrics[method] = means_of_sum(total, names, release.event.z)
    run.save()


# --- what the table says about training -----------------------------------------------


def mean_log(outcomes: Mapping[str, Outcome], key: str) -> float | None:
    """Mean over users of one number in the training log, None where nobody logs it."""
    values = [one.log[key] for one in outcomes.values() if key in one.log]
    return sum(values) / len(values) if values else None


def alphas(
    outcomes: Iterable[Mapping[str, Outcome]],
) -> tuple[dict[str, float], bool]:
    """User -> alpha that the last of the methods used, and whether any was estimated."""
    known = [(user, one) for users in outcomes for user, one in users.items()]
    alpha = {user: one.alpha for user, one in known if one.alpha is not None}
    return alpha, any(one.estimated for _, one in known if one.alpha is not None)
