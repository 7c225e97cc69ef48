"""The configuration: frozen, typed, and parsed in this one place.

Flower hands an app flat ``key = value`` pairs (``run_config``). `parse` turns them into a
`Config`; an unknown key, a wrong type or a value out of range is an `IdiolectError` that
names the key, the value and what is allowed. Sections are written with a dot
(``adapt.rounds``), underscores with a dash (``skip-bad-users``).
"""

import dataclasses
import difflib
import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from .errors import IdiolectError
from .text import printable, read_toml

Scalar = str | int | float | bool

PERSONAS = ("headline", "tagging", "rating")
TASKS = (*PERSONAS, *(f"LaMP-{n}" for n in range(1, 8)), "text")
METHODS = (
    "base",
    "shared",
    "rag",
    "pag",
    "oppu",
    "cope",
    "kto",
    "bco",
    "c-bpo",
    "positives",
)
# Methods without an own adapter, and trained ones that need no unlabeled set.
UNTRAINED = ("base", "shared", "rag", "pag")
SETLESS = ("oppu", "cope")
KINDS = ("votes", "self", "public", "anonymised", "others")


# A configuration comes from somebody else: every number has a largest value, which no
# sensible run reaches and with which nothing overflows, and every text and list has a
# longest length. What work they add up to is bounded in `_check_work`.
LONGEST = 4096  # characters of a text; so long a path may be
LONGEST_NAME = 100  # characters of a run's name
MOST_RATES = 20  # learning rates to choose from
MOST_RATE = 1e4  # plain steps (`sgd`) take rates in the hundreds
MOST_USERS = 10_000_000
MOST_ITEMS = 1_000_000  # of one user
MOST_MADE = 1_000_000  # items of all personas together: more take minutes to make
MOST_EPOCHS = 1000
MOST_BATCH = 10_000
MOST_BANK = 50_000  # as many items as one message may hold
MOST_WEIGHT = 1e4  # of a term of an objective
MOST_NOISE = 1e6  # more is counted as this much (`privacy.ledger`)
# Of anything that is counted in JSON and TOML.
MOST_INT = 2**63 - 1
# Passes over one item in one task. The default is some hundred; a LaMP user with ten
# thousand items has some ten thousand.
MOST_PASSES = 10_000_000


def key(
    default: Scalar,
    help: str,
    low: float = -math.inf,
    high: float = math.inf,
    choices: tuple[str, ...] = (),
    infinite: bool = False,
) -> Any:
    """Declare one configuration key: default, meaning, and what is allowed.

    Every number has a finite range; one that may be infinite as well says so.
    """
    allowed = {"help": help, "low": low, "high": high, "choices": choices}
    allowed["infinite"] = infinite
    return field(default=default, metadata=allowed)


@dataclass(frozen=True)
class Persona:
    """The synthetic users (used when ``data`` is empty)."""

    overlap: float = key(
        0.5, "mean share of style attributes a user shares with everybody", 0, 1
    )
    strength: float = key(
        0.8, "how often a user follows an own preference (mean)", 0.05, 1
    )


@dataclass(frozen=True)
class LoraShape:
    """The adapters, shared and personal alike."""

    rank: int = key(8, "rank of the adapters", 1, 256)
    alpha: float = key(16.0, "LoRA alpha: the adapter's scale is alpha / rank", 0, 1e4)
    targets: str = key("all", "which projections are adapted", choices=("all", "q,v"))


@dataclass(frozen=True)
class Adapt:
    """Federated training of the shared adapter."""

    rounds: int = key(
        4, "federated rounds; 0 leaves the shared adapter at zero", 0, 10_000
    )
    users: str = key(
        "all",
        "who trains the shared adapter: all users, or only the development users "
        "(the paper's setting: nobody who is evaluated)",
        choices=("all", "development"),
    )
    rank: int = key(
        0,
        "rank of the shared adapter, at the scale of the others; 0: lora.rank. Noise "
        "grows with the number of coordinates, so a small one suits privacy",
        0,
        256,
    )
    epochs: int = key(1, "passes over the own history per round", 1, MOST_EPOCHS)
    batch: int = key(8, "items per optimiser step", 1, MOST_BATCH)
    # B alone is trained, and its average moves less than any one user: a larger rate than
    # for an own adapter. Chosen on personas of seed 5, which no table reports.
    learning_rate: float = key(1e-2, "local learning rate", 0, MOST_RATE)
    optimizer: str = key(
        "adam",
        "`adam`, or `sgd`: Adam's first steps have one size in every coordinate, so the "
        "users' updates differ more than their gradients; under noise plain steps keep "
        "more of what they share",
        choices=("adam", "sgd"),
    )
    wire: str = key(
        "auto",
        "numbers of the shared adapter in messages: `int8` (a signed byte each), "
        "`float32`, or `auto`: float32 where privacy.mode is `central`, else int8",
        choices=("auto", "int8", "float32"),
    )
    # The most leaves a grid for exact sums that is finer than any update (`server/adapt`).
    clip: float = key(10.0, "largest L2 norm of one user's update", 0, 1000)
    clip_quantile: float = key(
        0.0,
        "let the clip follow this quantile of the updates' norms (Andrew et al. 2021), "
        "beginning at adapt.clip; 0: the clip stays",
        0,
        1,
    )


@dataclass(frozen=True)
class Unlabeled:
    """The unlabeled set: what stands for "everyone else"."""

    kind: str = key("votes", "where the unlabeled items come from", choices=KINDS)
    file: str = key("", "JSON lines of {prompt, target}: for `public`, or as bank")
    bank: int = key(400, "candidates in the bank of `votes`", 1, MOST_BANK)
    buckets: int = key(
        32, "public texts that sort the items of `anonymised`", 1, MOST_BANK
    )
    bank_from: str = key(
        "public",
        "who wrote the bank: `public` text, or the `shared` adapter at public prompts",
        choices=("public", "shared"),
    )
    features: str = key(
        "ngrams",
        "what makes a candidate near: hashed character n-grams, or hidden states of the "
        "`backbone`, whitened on the bank",
        choices=("ngrams", "backbone"),
    )
    nearest: int = key(3, "candidates that one history item votes for", 1, 1000)
    threshold: float = key(
        0.5, "noisy votes below this many standard deviations count as none", 0, 10
    )
    offered: int = key(8, "items that one user offers at most (`anonymised`)", 1, 1000)
    support: int = key(
        20,
        "users who must have a bucket's like before it is taken (`anonymised`)",
        1,
        MOST_USERS,
    )
    ratio: float = key(
        1.0, "unlabeled items per history item (|H_aux| / |H_tar|)", 0, 100
    )
    alpha: str = key(
        "estimate",
        "preference overlap: `estimate`, or a number in [0, 0.9]; kinds whose alpha is "
        "no population share (self, public) use 0.5 where this says `estimate`. `true` is "
        "a control that only personas can have: the overlap they were made with",
    )
    alpha_features: str = key(
        "ngrams",
        "what the classifier behind alpha tells texts apart by: mean hidden states of the "
        "`backbone` with the shared adapter (the paper), or hashed character n-grams",
        choices=("backbone", "ngrams"),
    )
    alpha_items: int = key(
        128,
        "unlabeled items that classifier looks at; 0: those drawn for training",
        0,
        MOST_BANK,
    )
    second_opinion: bool = key(
        False,
        "also estimate alpha from the rewards of held-out items, and log it: costs one "
        "more pass over them; never used for training",
    )
    valid_days: float = key(
        30.0,
        "days for which a signed unlabeled set is valid; renewed on resume",
        0.001,
        3650,
    )


@dataclass(frozen=True)
class Privacy:
    """User-level differential privacy of what is released (docs/privacy.md)."""

    mode: str = key(
        "off",
        "`central`: the server clips, adds noise and keeps a ledger of everything "
        "released; `off`: exact sums, no guarantee",
        choices=("off", "central"),
    )
    epsilon: float = key(
        8.0,
        "budget against whoever sees what is released; a release beyond it is refused; "
        "`inf`: clipping and coins without noise, no guarantee",
        1e-3,
        1e6,
        infinite=True,
    )
    delta: float = key(1e-6, "of (epsilon, delta); at most 1 / (10 users)", 1e-15, 1e-2)
    noise: float = key(
        0.0,
        "noise multiplier of the shared adapter (standard deviation / clip); 0: the "
        "smallest with which the planned releases stay within privacy.epsilon",
        0,
        MOST_NOISE,
    )
    votes: float = key(
        1.0, "noise multiplier of votes, in units of the adapter's", 0.01, 1e4
    )
    clip_bit: float = key(
        10.0,
        "noise multiplier of the clip bit (adapt.clip-quantile), absolute",
        0.1,
        MOST_NOISE,
    )
    sampling: float = key(
        1.0, "chance that a user takes part in a round of the shared adapter", 1e-6, 1
    )
    vote_sampling: float = key(1.0, "chance that a user takes part in a vote", 1e-6, 1)
    cohort: int = key(
        0,
        "most users in one round or vote (truncated Poisson); 0: no limit",
        0,
        MOST_USERS,
    )
    participations: int = key(
        0,
        "exchanges of one stage (adapt, votes, metrics) that a device takes part in at "
        "most, counted by the device; 0: no limit",
        0,
        100_000,
    )
    metrics: str = key(
        "clear",
        "`noisy`: one clipped row per user, summed with noise; `clear`: values per user, "
        "which marks the run as a simulation",
        choices=("clear", "noisy"),
    )
    metrics_noise: float = key(
        1.0, "noise multiplier of noisy metrics, in units of the adapter's", 0.01, 1e4
    )
    seeded: bool = key(
        False,
        "draw noise and coins from the seed, not from the operating system: repeatable, "
        "and marked as a simulation",
    )


@dataclass(frozen=True)
class Personalise:
    """Training of one user's own adapter; the same budget for every method."""

    epochs: int = key(3, "passes over the own history", 1, MOST_EPOCHS)
    batch: int = key(8, "history items per optimiser step", 1, MOST_BATCH)
    microbatch: int = key(
        0, "rows per forward pass and user; 0: a whole step", 0, MOST_BATCH
    )
    learning_rates: str = key(
        "1e-3,3e-3,1e-2",
        "comma-separated; of several, each method uses the one with the lowest NLL on "
        "the development users",
    )
    warmup: float = key(0.1, "share of the steps with linear warm-up", 0, 1)
    clip: float = key(1.0, "largest gradient norm of one user's adapter", 0, 1e6)
    beta: float = key(1.0, "scale of the implicit reward", 0, MOST_WEIGHT)
    ema: float = key(0.9, "decay of the running mean rewards in delta", 0, 0.9999)
    boundary: str = key(
        "separate",
        "running means in the delta of C-BPO: one per class, or one pooled (a control)",
        choices=("separate", "pooled"),
    )
    reward: str = key(
        "sequence",
        "implicit reward of C-BPO: the sum over completion tokens (the paper), or the "
        "mean per `token`, which wants a larger beta",
        choices=("sequence", "token"),
    )
    unlabeled_weight: float = key(
        0.1,
        "weight of C-BPO's unlabeled term; 0 is its positive term alone",
        0,
        MOST_WEIGHT,
    )
    anchor: float = key(
        1.0,
        "weight of a likelihood term beside C-BPO's: NLL per token of the own items",
        0,
        MOST_WEIGHT,
    )
    stack: int = key(
        4,
        "users trained together in one forward pass: 4 for a CPU, a GPU bears more",
        1,
        1024,
    )


@dataclass(frozen=True)
class Evaluate:
    """Measuring the held-out items."""

    generate: bool = key(True, "generate outputs for the text metrics, not only NLL")
    users: int = key(0, "generate for the first N users only; 0: all", 0, MOST_USERS)
    rivals: int = key(
        1,
        "texts of other users that each held-out item is compared with; of several, "
        "`contrast` is the mean and `mrr` the reciprocal rank of the own text",
        1,
        63,
    )
    retrieved: int = key(
        4,
        "history items that `rag` and `pag` put into the prompt, as far as they fit: 4 "
        "short ones leave room for the question in the default context",
        1,
        64,
    )
    contrast: float = key(
        1.0,
        "lambda of decoding by contrast: log pi_theta + lambda (log pi_theta - log pi_ref);"
        " 0 is greedy decoding. Published code of CoPe has 0.11 and 2.3 (there as the "
        "weight lambda / (1 + lambda), .1 and .7)",
        0,
        100,
    )
    contrasted: str = key(
        "cope", "comma-separated: methods whose outputs are decoded by contrast"
    )
    rouge_tokens: str = key(
        "english",
        "what rouge compares: `english` as papers do (the letters a-z and digits, with "
        "stemmer), or `unicode` (words of every script, without)",
        choices=("english", "unicode"),
    )
    shift: bool = key(
        False, "also measure how far tokens that everyone writes are suppressed"
    )
    bootstrap: int = key(2000, "resamples of a confidence interval", 100, 100_000)


@dataclass(frozen=True)
class Config:
    """One run, completely described."""

    run_name: str = key("", "name of the run; empty: made from task, time and seed")
    resume: str = key("", "name of a run to continue, or `latest`")
    output_dir: str = key("", "where runs are written; empty: $IDIOLECT_HOME/runs")
    seed: int = key(0, "seed of everything but privacy noise", 0, MOST_INT)
    recipe: str = key(
        "default",
        "`default`: the keys as they stand in this table. `paper`: those of C-BPO that "
        "stand at their defaults get the paper's values instead (docs/recipes.md)",
        choices=("default", "paper"),
    )

    task: str = key("headline", "what is written", choices=TASKS)
    data: str = key("", "folder or file with real users; empty: personas")
    users: int = key(
        40, "evaluated users; with task=text: devices that take part", 1, MOST_USERS
    )
    development_users: int = key(
        8, "users on whom learning rates are chosen", 0, MOST_USERS
    )
    history: int = key(
        32,
        "items per user to learn from, at most; all personas together have at most "
        f"{MOST_MADE:,} items, those to be measured on included",
        1,
        MOST_ITEMS,
    )
    held_out: int = key(8, "items per user to be measured on, at most", 1, MOST_ITEMS)
    skip_bad_users: bool = key(False, "leave users with malformed data out, count them")
    users_per_node: int = key(
        0, "users hosted by one simulated node; 0: users/nodes", 0, MOST_USERS
    )

    backbone: str = key("tiny", "`tiny` (built in), a model id, or a folder")
    dtype: str = key(
        "float32", "of the frozen backbone", choices=("float32", "bfloat16", "float16")
    )
    device: str = key("auto", "where to compute", choices=("auto", "cpu", "cuda"))
    max_length: int = key(
        512, "longest sequence in tokens, prompt and output", 16, 2**20
    )
    methods: str = key(
        "base,shared,oppu,kto,bco,positives,c-bpo",
        f"comma-separated, of {', '.join(METHODS)}",
    )
    quorum: float = key(0.75, "share of the users a phase needs to go on", 0, 1)
    deadline: float = key(
        1800.0,
        "seconds after which a phase stops waiting; a device that is silent is asked "
        "again after each quarter of it",
        1,
        30 * 86_400,
    )

    persona: Persona = field(default_factory=Persona)
    lora: LoraShape = field(default_factory=LoraShape)
    adapt: Adapt = field(default_factory=Adapt)
    unlabeled: Unlabeled = field(default_factory=Unlabeled)
    privacy: Privacy = field(default_factory=Privacy)
    personalise: Personalise = field(default_factory=Personalise)
    evaluate: Evaluate = field(default_factory=Evaluate)

    @property
    def method_list(self) -> tuple[str, ...]:
        """The methods, in the order given."""
        return tuple(_words(self.methods))

    @property
    def contrasted_list(self) -> tuple[str, ...]:
        """The methods that decode by contrast."""
        return tuple(_words(self.evaluate.contrasted))

    def contrast_of(self, method: str) -> float:
        """Lambda with which a method decodes by contrast; 0: it decodes greedily."""
        return self.evaluate.contrast if method in self.contrasted_list else 0.0

    @property
    def learning_rate_list(self) -> tuple[float, ...]:
        """The learning rates to choose from."""
        return tuple(float(word) for word in _words(self.personalise.learning_rates))

    @property
    def shared_shape(self) -> LoraShape:
        """Shape of the shared adapter: alpha / rank is that of the personal ones."""
        rank = self.adapt.rank or self.lora.rank
        alpha = self.lora.alpha / self.lora.rank * rank
        return (
            replace(self.lora, rank=rank, alpha=alpha) if self.adapt.rank else self.lora
        )

    @property
    def on_devices(self) -> bool:
        """Whether the nodes are devices with what their owners keep, not simulated ones."""
        return self.task == "text"

    @property
    def crowd(self) -> int:
        """How many users the run is for, as configured; devices are all evaluated."""
        return self.users + (0 if self.on_devices else self.development_users)

    @property
    def signed_bytes(self) -> bool:
        """Whether the shared adapter travels as signed bytes (see `quantization`)."""
        wire = self.adapt.wire
        return wire == "int8" or (wire == "auto" and self.privacy.mode == "off")

    @property
    def fixed_alpha(self) -> float | None:
        """Alpha where it is fixed by config, None where each user has an own one."""
        alpha = self.unlabeled.alpha
        return None if alpha in ("estimate", "true") else float(alpha)


def largest_delta(config: Config) -> float:
    """1 / (10 users): a larger delta could mean that one of them is exposed."""
    return 1 / (10 * config.crowd)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _fields(
    cls: type, prefix: str = ""
) -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Yield every leaf field with its flat key."""
    for entry in dataclasses.fields(cls):
        name = prefix + entry.name.replace("_", "-")
        if dataclasses.is_dataclass(entry.type):
            yield from _fields(cast(type, entry.type), name + ".")
        else:
            yield name, entry


FIELDS: dict[str, dataclasses.Field[Any]] = dict(_fields(Config))


def defaults() -> dict[str, Scalar]:
    """Every key with its default, in declared order."""
    return {name: cast(Scalar, entry.default) for name, entry in FIELDS.items()}


_TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _check(name: str, value: object) -> Scalar:
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
        raise IdiolectError(
            f"config key '{name}' is {quoted(value)}: it must lie in [{low:g}, {high:g}]."
        )
    if type(value) is not wanted:
        raise IdiolectError(
            f"config key '{name}' takes {_TYPES[wanted]}, not {quoted(value)}: "
            f"{entry.metadata['help']}."
        )
    if isinstance(value, str):
        return _check_text(name, value, entry.metadata["choices"])
    return cast(Scalar, value)


def _check_text(name: str, value: str, choices: tuple[str, ...]) -> str:
    longest = LONGEST_NAME if name in ("run-name", "resume") else LONGEST
    if len(value) > longest:
        raise IdiolectError(
            f"config key '{name}' has {len(value)} characters: at most {longest} are "
            "allowed."
        )
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates
        raise IdiolectError(
            f"config key '{name}' is {quoted(value)}: it is no valid Unicode text."
        ) from None
    if choices and value not in choices:
        raise IdiolectError(
            f"config key '{name}' is {quoted(value)}: use one of {', '.join(choices)}."
        )
    if name in ("run-name", "resume") and not value.isprintable():
        raise IdiolectError(
            f"config key '{name}' is {quoted(value)}: it names a folder; use letters, "
            "digits and dashes."
        )
    return value


def quoted(value: object) -> str:
    """Return a value as a sentence quotes it, whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python writes
        return "something that cannot be written down"
    return printable(text if len(text) <= 80 else text[:79] + "…", 80)


def _build(cls: type, values: Mapping[str, Scalar], prefix: str = "") -> Any:
    arguments: dict[str, Any] = {}
    for entry in dataclasses.fields(cls):
        name = prefix + entry.name.replace("_", "-")
        if dataclasses.is_dataclass(entry.type):
            arguments[entry.name] = _build(cast(type, entry.type), values, name + ".")
        elif name in values:
            arguments[entry.name] = values[name]
    return cls(**arguments)


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


def _check_lists(config: Config) -> None:
    """Check the keys that hold a list or a number inside a string."""
    for name, words in (
        ("methods", config.method_list),
        ("evaluate.contrasted", config.contrasted_list),
    ):
        if len(set(words)) < len(words):
            raise IdiolectError(
                f"config key '{name}' names a method twice: once is enough."
            )
    for method in config.method_list:
        if method not in METHODS:
            raise IdiolectError(
                f"config key 'methods' names {quoted(method)}: use any of "
                f"{', '.join(METHODS)}."
            )
    able = [method for method in METHODS if method not in UNTRAINED]
    for method in config.contrasted_list:
        if method not in able:
            raise IdiolectError(
                f"config key 'evaluate.contrasted' names {quoted(method)}: use any of "
                f"{', '.join(able)}, which have an adapter to contrast with the shared one."
            )
    if not config.method_list:
        raise IdiolectError("config key 'methods' is empty: name at least one method.")
    try:
        rates = config.learning_rate_list
    except ValueError:
        rates = ()
    if not 0 < len(rates) <= MOST_RATES or not all(0 < r <= MOST_RATE for r in rates):
        raise IdiolectError(
            "config key 'personalise.learning-rates' is "
            f"{quoted(config.personalise.learning_rates)}: write at most {MOST_RATES} "
            f"positive numbers up to {MOST_RATE:g} with commas, for example 1e-3,3e-3."
        )
    try:
        alpha = config.fixed_alpha
    except ValueError:
        alpha = -1.0
    if alpha is not None and not 0 <= alpha <= 0.9:
        raise IdiolectError(
            f"config key 'unlabeled.alpha' is {quoted(config.unlabeled.alpha)}: write "
            "`estimate`, `true` or a number in [0, 0.9]."
        )
    if config.unlabeled.alpha == "true" and config.task not in PERSONAS:
        raise _together(
            config,
            ("unlabeled.alpha", "task"),
            "the overlap of real users is not known; set unlabeled.alpha=estimate, or one "
            f"of the tasks {', '.join(PERSONAS)}",
        )
    if len(rates) > 1 and config.development_users == 0:
        raise _together(
            config,
            ("development-users", "personalise.learning-rates"),
            "of several rates one is chosen on development users; set one rate, such as "
            f"personalise.learning-rates={rates[0]:g}, or development users",
        )
    if config.adapt.users == "development" and config.development_users == 0:
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
    own, unlabeled = config.personalise, config.unlabeled
    passes = {
        ("adapt.epochs", "history"): config.adapt.epochs * config.history,
        ("personalise.epochs", "history", "unlabeled.ratio"): own.epochs
        * config.history
        * (2 + unlabeled.ratio),
    }
    for names, count in passes.items():
        if count > MOST_PASSES:
            raise _together(
                config,
                names,
                f"together they make {count:.0f} passes over an item of one user, and at "
                f"most {MOST_PASSES} are allowed; lower one of them",
            )


def _check_privacy(config: Config) -> None:
    """Refuse settings with which a guarantee could not hold."""
    privacy = config.privacy
    if privacy.mode == "off":
        if privacy.metrics == "noisy" or config.adapt.clip_quantile:
            noisy = privacy.metrics == "noisy"
            what = "privacy.metrics" if noisy else "adapt.clip-quantile"
            why = "that needs the ledger; set privacy.mode=central"
            raise _together(config, (what, "privacy.mode"), why)
        return
    most = largest_delta(config)
    if privacy.delta > most:
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
    if privacy.metrics == "noisy" and config.evaluate.users:
        raise _together(
            config,
            ("evaluate.users", "privacy.metrics"),
            "noisy metrics are sums over all users; set evaluate.users=0",
        )
    releases = len(config.method_list)
    if privacy.metrics == "noisy" and 0 < privacy.participations < releases:
        raise _together(
            config,
            ("privacy.participations", "privacy.metrics", "methods"),
            f"the metrics of {releases} methods are {releases} releases; raise "
            "privacy.participations, or name fewer methods",
        )
    if privacy.metrics == "noisy" and len(config.learning_rate_list) > 1:
        raise _together(
            config,
            ("privacy.metrics", "personalise.learning-rates"),
            "choosing one of several rates by private users' metrics is a release that no "
            "noise covers; set one rate, such as "
            f"personalise.learning-rates={config.learning_rate_list[0]:g}",
        )


def _check_devices(config: Config) -> None:
    """Refuse what has no meaning where every node is a real device."""
    if not config.on_devices:
        return
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


# The recipe of the paper (Ma et al., ACL 2026), where it differs from the defaults.
PAPER: dict[str, Scalar] = {
    "personalise.unlabeled-weight": 1.0,
    "personalise.anchor": 0.0,
    "unlabeled.alpha-features": "backbone",
    "unlabeled.alpha-items": 0,
}


def parse(values: Mapping[str, object]) -> Config:
    """Parse flat key-value pairs, typed as TOML gives them.

    Raises
    ------
    IdiolectError
        Unknown key, wrong type, value out of range, or keys that contradict each other.
    """
    known = {str(k): _check(str(k), v) for k, v in values.items()}
    if known.get("recipe") == "paper":
        standing = defaults() | known
        known |= {k: v for k, v in PAPER.items() if standing[k] == defaults()[k]}
    config: Config = _build(Config, known)
    _check_lists(config)
    _check_work(config)
    _check_privacy(config)
    _check_devices(config)
    return config


def parse_word(name: str, text: str) -> Scalar:
    """Type one ``key=value`` from a command line by the key's declared type.

    Text needs no quotes: ``backbone=Qwen/Qwen2.5-0.5B-Instruct``.
    """
    wanted = type(FIELDS[name].default) if name in FIELDS else str
    value: object = text
    if wanted is bool and text.lower() in ("true", "false"):
        value = text.lower() == "true"
    elif wanted in (int, float):
        try:
            value = wanted(text)
        except ValueError:  # no number, or one of thousands of digits
            value = text
    return _check(name, value)


def absolute_backbone(name: str, folder: Path | None = None) -> str:
    """Make a backbone's path absolute, once, where it is given: later it is read elsewhere.

    Parameters
    ----------
    name
        ``tiny``, a folder, or the id of a model.
    folder
        What a relative path is relative to; None: the current one.

    Returns
    -------
    str
        The folder's absolute path if there is one; otherwise the name as it is.

    Raises
    ------
    IdiolectError
        It is written as a path and no folder is there. The hub is never asked for one.
    """
    if name == "tiny":
        return name
    try:
        place = ((folder or Path.cwd()) / Path(name).expanduser()).resolve()
        if place.is_dir():
            return str(place)
    except (OSError, RuntimeError, ValueError):  # too long, nobody's home, a NUL
        place = Path(name)
    written_as_path = name.startswith((".", "~", "/")) or name.endswith("/")
    if written_as_path or name.count("/") > 1 or "\\" in name or place.exists():
        raise IdiolectError(
            f"backbone '{printable(name, 300)}' is no folder ({place}): give `tiny`, an "
            "existing folder, or the id of a model as ORGANISATION/NAME."
        )
    return name


def flatten(config: Config) -> dict[str, Scalar]:
    """Return the inverse of `parse`: every key with its value."""
    flat: dict[str, Scalar] = {}
    for name in FIELDS:
        node: Any = config
        for part in name.replace("-", "_").split("."):
            node = getattr(node, part)
        flat[name] = node
    return flat


def to_toml(config: Config) -> str:
    """Write a config as flat TOML that `from_toml` reads back."""
    lines: list[str] = []
    for name, value in flatten(config).items():
        quoted = f'"{name}"' if "." in name else name
        lines.append(f"{quoted} = {_toml_value(value)}")
    return "\n".join(lines) + "\n"


def _toml_value(value: Scalar) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def from_toml(text: str) -> Config:
    """Read what `to_toml` wrote."""
    return parse(read_toml(text))


def differences(one: Config, two: Config) -> list[str]:
    """Keys in which two configs describe different runs.

    Where a run is written and whether it is resumed does not change what it computes.
    """
    ignored = ("run-name", "resume", "output-dir")
    first, second = flatten(one), flatten(two)
    return [k for k in FIELDS if k not in ignored and first[k] != second[k]]


TABLE_START = "[tool.flwr.app.config]"


def app_table() -> str:
    """Every key with its default: the last table of an app's ``pyproject.toml``.

    Flower accepts ``-c key=value`` only for keys that are listed there.
    """
    head = "# Written by `make generated`; meanings: docs/configuration.md."
    return f"{TABLE_START}\n{head}\n{to_toml(Config())}"


def markdown() -> str:
    """``docs/configuration.md``: every key, its default, what is allowed, its meaning."""
    lines = [
        "# Configuration",
        "",
        "Written by `make generated` from `common/config.py`. Give a key with",
        "`-c key=value` to `idiolect-server simulate APP` or `idiolect-server run APP`, in",
        "the `[config]` of a study ([studies.md](studies.md)), or with `flwr run APP -c",
        "key=value` (there, strings need quotes of their own).",
        "",
        "| key | default | allowed | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for name, entry in FIELDS.items():
        default = _toml_value(cast(Scalar, entry.default))
        meaning = entry.metadata["help"].replace("|", "\\|")
        lines.append(f"| `{name}` | `{default}` | {_allowed(entry)} | {meaning} |")
    return "\n".join(lines) + "\n"


def _allowed(entry: dataclasses.Field[Any]) -> str:
    low, high = entry.metadata["low"], entry.metadata["high"]
    if entry.metadata["choices"]:
        return ", ".join(f"`{choice}`" for choice in entry.metadata["choices"])
    if math.isfinite(low) and math.isfinite(high):
        return f"{low:g} to {high:g}"
    if math.isfinite(low):
        return f"at least {low:g}"
    return "true or false" if isinstance(entry.default, bool) else "text"


def generate(root: Path) -> None:
    """Rewrite what is generated from this file, in a checkout of the repository."""
    (root / "docs" / "configuration.md").write_text(markdown())
    project = root / "simulations" / "lamp" / "pyproject.toml"
    kept, _, _ = project.read_text().partition(TABLE_START)
    project.write_text(kept + app_table())


if __name__ == "__main__":
    generate(Path(sys.argv[1]))
