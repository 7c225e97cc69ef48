"""What a configuration may not say: wrong values, and values that contradict each other."""

import difflib
import math
import re
from typing import cast

from ..errors import IdiolectError, refuse_if
from ..text import printable
from .keys import (
    ALPHA_ESTIMATES,
    ALPHA_EXACT,
    AUTO,
    FIELDS,
    LONGEST,
    LONGEST_NAME,
    MOST_ALPHA,
    MOST_INT,
    MOST_PASSES,
    MOST_RATE,
    MOST_RATES,
    MOST_STRENGTH,
    NEAR,
    PERSONAS,
    Config,
    Scalar,
    defaults,
    flatten,
)
from .methods import METHODS, UNTRAINED

Contradiction = tuple[bool, tuple[str, ...], str]  # whether, between which keys, why
_TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def check(name: str, value: object) -> Scalar:
    """Return the value in its declared type, or say what is wrong with it."""
    entry = FIELDS.get(name)
    if entry is None:
        near = difflib.get_close_matches(name[:LONGEST_NAME], FIELDS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "see docs/configuration.md."
        raise IdiolectError(f"unknown config key '{printable(name, 80)}': {hint}")
    wanted = type(entry.default)
    # Within these bounds only: what no float holds is out of range as it is.
    if wanted is float and type(value) is int and abs(value) <= MOST_INT:
        value = float(value)
    number = type(value) in (int, float) and wanted in (int, float)
    low, high = entry.metadata["low"], entry.metadata["high"]
    endless = type(value) is float and value == math.inf and entry.metadata["infinite"]
    if number and not (low <= cast(float, value) <= high or endless):
        raise refused(name, value, f"it must lie in [{low:g}, {high:g}]")
    if type(value) is not wanted:
        raise IdiolectError(
            f"config key '{name}' takes {_TYPES[wanted]}, not {quoted(value)}: "
            f"{entry.metadata['help']}."
        )
    if isinstance(value, str):
        return check_text(name, value, choices=entry.metadata["choices"])
    return cast(Scalar, value)


def check_text(
    name: str, value: str, *, choices: tuple[str, ...] = (), longest: int = LONGEST
) -> str:
    """Return a text, if it is valid Unicode, not too long, and one of the choices."""
    refuse_if(
        len(value) > longest,
        f"config key '{name}' has {len(value)} characters: at most {longest} are "
        "allowed.",
    )
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates
        raise refused(name, value, "it is not valid Unicode text") from None
    if choices and not one_of(value, choices):
        listed = ", ".join(filter(None, choices))
        raise refused(name, value, f"use one of {listed}")
    return value


def one_of(value: str, choices: tuple[str, ...]) -> bool:
    """Whether a text is one of the choices, where `:N` stands for a number."""
    if value.endswith(":N"):
        return False
    return re.sub(r":[0-9]{1,2}\Z", ":N", value) in choices


def refused(name: str, value: object, why: str) -> IdiolectError:
    """Say why one key cannot have its value."""
    return IdiolectError(f"config key '{name}' is {quoted(value)}: {why}.")


def quoted(value: object) -> str:
    """Return a value as a sentence quotes it, whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python writes
        return "something that cannot be written down"
    return printable(text if len(text) <= 80 else text[:79] + "…", 80)


def largest_delta(config: Config) -> float:
    """1 / (10 users): a larger delta could mean that one of them is exposed."""
    return 1 / (10 * config.crowd)


def _together(config: Config, names: tuple[str, ...], why: str) -> IdiolectError:
    """Say that keys do not go together: what was set first, then what is a default.

    The user may never have heard of a key that stands at its default, so each is named
    with its value and where that comes from.
    """
    values, usual = flatten(config), defaults()
    untouched = {name: values[name] == usual[name] for name in names}
    words = [
        f"'{name}' is {quoted(values[name])}{' by default' if untouched[name] else ''}"
        for name in sorted(names, key=untouched.__getitem__)
    ]
    return IdiolectError(f"config key {' and '.join(words)}: {why}.")


def check_together(config: Config) -> None:
    """Refuse a configuration whose lists are malformed or whose keys contradict.

    Raises
    ------
    IdiolectError
        It names the keys, with "by default" behind those that nobody set.
    """
    _check_methods(config)
    _check_numbers(config)
    for wrong, names, why in (
        *_contradictions(config),
        *_contradictions_of_privacy(config),
        *_contradictions_of_sums(config),
    ):
        if wrong:
            raise _together(config, names, why)
    if config.on_devices:
        _check_devices(config)


def _check_methods(config: Config) -> None:
    able = tuple(method for method in METHODS if method not in UNTRAINED)
    which = ", which have an adapter to contrast with the shared one"
    for name, words, known, more in (
        ("methods", config.method_list, METHODS, ""),
        ("evaluate.contrasted", config.contrasted_list, able, which),
    ):
        refuse_if(
            len(set(words)) < len(words),
            f"config key '{name}' names a method twice: once is enough.",
        )
        for method in words:
            if method not in known:
                raise IdiolectError(
                    f"config key '{name}' names {quoted(method)}: use any of "
                    f"{', '.join(known)}{more}."
                )
    refuse_if(
        not config.method_list,
        "config key 'methods' is empty: name at least one method.",
    )


def _check_numbers(config: Config) -> None:
    """Refuse numbers that are written as text and are none, or out of range."""
    try:
        rates = config.learning_rate_list
    except ValueError:
        rates = ()
    able = 0 < len(rates) <= MOST_RATES and all(0 < r <= MOST_RATE for r in rates)
    if not able and config.personalise.learning_rates != AUTO:
        raise refused(
            "personalise.learning-rates",
            config.personalise.learning_rates,
            f"write `auto`, or at most {MOST_RATES} positive numbers up to "
            f"{MOST_RATE:g} with commas, for example 1e-3,3e-3",
        )
    try:
        strength = config.unlabeled.nearness_strength
    except ValueError:
        strength = math.nan
    if not abs(strength) <= NEAR:
        raise refused(
            "unlabeled.nearness",
            config.unlabeled.nearness,
            f"write `none`, `near`, `far` or a number in [-{NEAR:g}, {NEAR:g}]",
        )
    try:
        alpha = config.fixed_alpha
    except ValueError:
        alpha = -1.0
    if alpha is not None and not 0 <= alpha <= MOST_ALPHA:
        words = ", ".join(f"`{rule}`" for rule in (*ALPHA_ESTIMATES, *ALPHA_EXACT))
        raise refused(
            "unlabeled.alpha",
            config.unlabeled.alpha,
            f"write one of {words}, or a number in [0, {MOST_ALPHA}]",
        )
    try:
        strength = config.fixed_strength
    except ValueError:
        strength = -1.0
    if strength is not None and not 0 <= strength <= MOST_STRENGTH:
        raise refused(
            "personalise.strength",
            config.personalise.strength,
            f"write `fitted`, `crossed` or a number in [0, {MOST_STRENGTH:g}]",
        )


def _contradictions(config: Config) -> tuple[Contradiction, ...]:
    """Rows of whether keys contradict, their names, and why."""
    rates, tried_on = config.learning_rate_list, config.development_users
    first = next(iter(rates), 0.0)
    # How long a pass takes is a matter of the machine, so this bounds only what no machine
    # should be asked for; on a device the owner's `max-seconds` ends what takes too long.
    rows = config.history * (2 + config.unlabeled.ratio) + config.disliked
    passes = config.personalise.epochs * rows
    return (
        (
            config.unlabeled.alpha in ALPHA_EXACT and config.task not in PERSONAS,
            ("unlabeled.alpha", "task"),
            (
                "the overlap of real users is not known; set unlabeled.alpha=estimate, "
                f"or one of the tasks {', '.join(PERSONAS)}"
            ),
        ),
        (
            config.least_history > config.history,
            ("least-history", "history"),
            "no user keeps more than history allows; lower least-history",
        ),
        (
            config.unlabeled.kind == "self" and config.unlabeled.nearness_strength != 0,
            ("unlabeled.nearness", "unlabeled.kind"),
            (
                "the model's own texts are written at the own prompts, so there is nothing "
                "to choose from; set unlabeled.nearness=none, or another unlabeled.kind"
            ),
        ),
        (
            config.on_devices and config.disliked > 0,
            ("disliked", "task"),
            (
                "owners say themselves what they dislike (`idiolect feedback down`); set "
                "disliked=0, or the task of personas or of files"
            ),
        ),
        (
            not tried_on and len(rates) > 1,
            ("development-users", "personalise.learning-rates"),
            (
                "of several rates one is chosen on development users; set one rate, such "
                f"as personalise.learning-rates={first:g}, or development users"
            ),
        ),
        (
            not tried_on and config.adapt.users == "development",
            ("adapt.users", "development-users"),
            (
                "nobody would train the shared adapter; set development-users, or "
                "adapt.users=all"
            ),
        ),
        (
            passes > MOST_PASSES,
            ("personalise.epochs", "history", "unlabeled.ratio", "disliked"),
            (
                f"together they make {passes:.0f} passes over an item of one user, and at "
                f"most {MOST_PASSES} are allowed; lower one of them"
            ),
        ),
    )


def _contradictions_of_privacy(config: Config) -> tuple[Contradiction, ...]:
    """Rows of settings that need the ledger, or with which a guarantee could not hold."""
    private, noisy = config.privacy.mode != "off", config.privacy.metrics == "noisy"
    most, releases = largest_delta(config), len(config.method_list)
    counted = ("users", "development-users")[: 1 if config.on_devices else 2]
    rates = config.learning_rate_list
    first = next(iter(rates), 0.0)
    return (
        (
            not private and (noisy or config.adapt.clip_quantile > 0),
            ("privacy.metrics" if noisy else "adapt.clip-quantile", "privacy.mode"),
            "that needs the ledger; set privacy.mode=central",
        ),
        (
            private and config.privacy.delta > most,
            ("privacy.delta", *counted),
            (
                f"with {config.crowd} users delta may be at most 1 / (10 users), or the "
                "guarantee would allow that some user is exposed altogether; set "
                f"privacy.delta={10.0 ** math.floor(math.log10(most)):g}"
            ),
        ),
        (
            private and config.adapt.clip <= 0,
            ("adapt.clip", "privacy.mode"),
            "the noise is proportional to the clip; set a positive one",
        ),
        (
            noisy and config.evaluate.users > 0,
            ("evaluate.users", "privacy.metrics"),
            "noisy metrics are sums over all users; set evaluate.users=0",
        ),
        (
            noisy and 0 < config.privacy.participations < releases,
            ("privacy.participations", "privacy.metrics", "methods"),
            (
                f"the metrics of {releases} methods are {releases} releases; raise "
                "privacy.participations, or name fewer methods"
            ),
        ),
        (
            noisy and len(rates) > 1,
            ("privacy.metrics", "personalise.learning-rates"),
            (
                "choosing one of several rates by private users' metrics is a release that "
                "no noise covers; set one rate, such as "
                f"personalise.learning-rates={first:g}"
            ),
        ),
    )


def _contradictions_of_sums(config: Config) -> tuple[Contradiction, ...]:
    """Rows of settings with which users cannot add shares of the noise."""
    mode, privacy = config.secagg.mode, config.privacy
    summed, devices = mode != "off", config.on_devices
    private = summed and privacy.mode != "off"
    sampled = "sampling" if privacy.sampling < 1 else "vote-sampling"
    return (
        (
            mode == "sum" and devices,
            ("secagg.mode", "task"),
            (
                "a server that adds up the rows of real devices without masks sees each "
                "of them; set secagg.mode=on"
            ),
        ),
        (
            mode == "on" and config.signed_bytes,
            ("secagg.mode", "adapt.wire"),
            "masked rows are words, and no signed bytes; set adapt.wire=float32",
        ),
        (
            mode == "on" and devices and config.unlabeled.kind == "anonymised",
            ("secagg.mode", "unlabeled.kind"),
            "the server would see whose scrubbed items it gets; use unlabeled.kind=votes",
        ),
        (
            mode == "on" and devices and privacy.metrics == "clear",
            ("secagg.mode", "privacy.metrics"),
            "the server would see every device's metrics; set privacy.metrics=noisy",
        ),
        (
            summed and config.adapt.clip <= 0,
            ("adapt.clip", "secagg.mode"),
            "the integers of a row are made for its clip; set a positive one",
        ),
        (
            private
            and min(privacy.sampling, privacy.vote_sampling) < 1
            and not privacy.cohort,
            ("secagg.mode", f"privacy.{sampled}", "privacy.cohort"),
            (
                "each user adds a share of the noise, which is shared out by the most rows "
                "that a sum may have; set privacy.cohort somewhat above the users drawn on "
                "average"
            ),
        ),
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
