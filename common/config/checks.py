"""Values that are fine by themselves and contradict each other."""

import math

from ..errors import IdiolectError
from .keys import (
    MOST_PASSES,
    MOST_RATE,
    MOST_RATES,
    PERSONAS,
    Config,
    defaults,
    flatten,
)
from .methods import METHODS, UNTRAINED
from .values import quoted, refused


def largest_delta(config: Config) -> float:
    """1 / (10 users): a larger delta could mean that one of them is exposed."""
    return 1 / (10 * config.crowd)


def _together(config: Config, names: tuple[str, ...], why: str) -> IdiolectError:
    """Say that keys do not go together: what was set first, then what is a default.

    The user may never have heard of a key that stands at its default, so each is named
    with its value and where that comes from.
    """
    values, usual = flatten(config), defaults()
    words = {name: f"'{name}' is {quoted(values[name])}" for name in names}
    given = [words[name] for name in names if values[name] != usual[name]]
    standing = [
        f"{words[name]} by default" for name in names if values[name] == usual[name]
    ]
    return IdiolectError(f"config key {' and '.join(given + standing)}: {why}.")


def check_together(config: Config) -> None:
    """Refuse a configuration whose lists are malformed or whose keys contradict.

    Raises
    ------
    IdiolectError
        It names the keys, with "by default" behind those that nobody set.
    """
    _check_methods(config)
    _check_rates(config)
    _check_alpha(config)
    _check_development(config)
    _check_work(config)
    if config.privacy.mode == "off":
        _check_without_ledger(config)
    else:
        _check_privacy(config)
        if config.privacy.metrics == "noisy":
            _check_noisy_metrics(config)
    if config.on_devices:
        _check_devices(config)


def _check_methods(config: Config) -> None:
    able = tuple(method for method in METHODS if method not in UNTRAINED)
    which = ", which have an adapter to contrast with the shared one"
    for name, words, known, more in (
        ("methods", config.method_list, METHODS, ""),
        ("evaluate.contrasted", config.contrasted_list, able, which),
    ):
        if len(set(words)) < len(words):
            raise IdiolectError(
                f"config key '{name}' names a method twice: once is enough."
            )
        for method in words:
            if method not in known:
                raise IdiolectError(
                    f"config key '{name}' names {quoted(method)}: use any of "
                    f"{', '.join(known)}{more}."
                )
    if not config.method_list:
        raise IdiolectError("config key 'methods' is empty: name at least one method.")


def _check_rates(config: Config) -> None:
    try:
        rates = config.learning_rate_list
    except ValueError:
        rates = ()
    if not 0 < len(rates) <= MOST_RATES or not all(0 < r <= MOST_RATE for r in rates):
        raise refused(
            "personalise.learning-rates",
            config.personalise.learning_rates,
            f"write at most {MOST_RATES} positive numbers up to {MOST_RATE:g} with "
            "commas, for example 1e-3,3e-3",
        )


def _check_alpha(config: Config) -> None:
    try:
        alpha = config.fixed_alpha
    except ValueError:
        alpha = -1.0
    if alpha is not None and not 0 <= alpha <= 0.9:
        raise refused(
            "unlabeled.alpha",
            config.unlabeled.alpha,
            "write `estimate`, `true` or a number in [0, 0.9]",
        )
    if config.unlabeled.alpha == "true" and config.task not in PERSONAS:
        raise _together(
            config,
            ("unlabeled.alpha", "task"),
            "the overlap of real users is not known; set unlabeled.alpha=estimate, or one "
            f"of the tasks {', '.join(PERSONAS)}",
        )


def _check_development(config: Config) -> None:
    if config.development_users:
        return
    rates = config.learning_rate_list
    if len(rates) > 1:
        raise _together(
            config,
            ("development-users", "personalise.learning-rates"),
            "of several rates one is chosen on development users; set one rate, such as "
            f"personalise.learning-rates={rates[0]:g}, or development users",
        )
    if config.adapt.users == "development":
        raise _together(
            config,
            ("adapt.users", "development-users"),
            "nobody would train the shared adapter; set development-users, or "
            "adapt.users=all",
        )


def _check_work(config: Config) -> None:
    """Refuse numbers that are fine by themselves and endless work together.

    How long a pass takes is a matter of the machine, so this bounds only what no machine
    should be asked for; on a device the owner's `max-seconds` ends what takes too long.
    """
    passes = config.personalise.epochs * config.history * (2 + config.unlabeled.ratio)
    if passes > MOST_PASSES:
        raise _together(
            config,
            ("personalise.epochs", "history", "unlabeled.ratio"),
            f"together they make {passes:.0f} passes over an item of one user, and at "
            f"most {MOST_PASSES} are allowed; lower one of them",
        )


def _check_without_ledger(config: Config) -> None:
    noisy = config.privacy.metrics == "noisy"
    if noisy or config.adapt.clip_quantile:
        raise _together(
            config,
            ("privacy.metrics" if noisy else "adapt.clip-quantile", "privacy.mode"),
            "that needs the ledger; set privacy.mode=central",
        )


def _check_privacy(config: Config) -> None:
    """Refuse settings with which a guarantee could not hold."""
    most = largest_delta(config)
    if config.privacy.delta > most:
        counted = ("users", "development-users")[: 1 if config.on_devices else 2]
        raise _together(
            config,
            ("privacy.delta", *counted),
            f"with {config.crowd} users delta may be at most 1 / (10 users), or the "
            "guarantee would allow that some user is exposed altogether; set "
            f"privacy.delta={10.0 ** math.floor(math.log10(most)):g}",
        )
    if config.adapt.clip <= 0:
        raise _together(
            config,
            ("adapt.clip", "privacy.mode"),
            "the noise is proportional to the clip; set a positive one",
        )


def _check_noisy_metrics(config: Config) -> None:
    if config.evaluate.users:
        raise _together(
            config,
            ("evaluate.users", "privacy.metrics"),
            "noisy metrics are sums over all users; set evaluate.users=0",
        )
    releases = len(config.method_list)
    if 0 < config.privacy.participations < releases:
        raise _together(
            config,
            ("privacy.participations", "privacy.metrics", "methods"),
            f"the metrics of {releases} methods are {releases} releases; raise "
            "privacy.participations, or name fewer methods",
        )
    if len(config.learning_rate_list) > 1:
        raise _together(
            config,
            ("privacy.metrics", "personalise.learning-rates"),
            "choosing one of several rates by private users' metrics is a release that no "
            "noise covers; set one rate, such as "
            f"personalise.learning-rates={config.learning_rate_list[0]:g}",
        )


def _check_devices(config: Config) -> None:
    """Refuse what has no meaning where every node is a real device."""
    wrong = {
        "data": bool(config.data),
        "unlabeled.kind": config.unlabeled.kind == "others",
        "adapt.users": config.adapt.users == "development",
        "personalise.learning-rates": len(config.learning_rate_list) > 1,
    }
    if names := [name for name, bad in wrong.items() if bad]:
        raise _together(
            config,
            ("task", names[0]),
            "such a run goes to devices, which have no development users and show nobody "
            "their text; leave data empty, give one learning rate, adapt.users=all, and no "
            "unlabeled.kind 'others'",
        )
