"""The keys of a configuration: frozen dataclasses that say what each key means and allows.

Beside each key stands what it affects (`key`). Studies share what they computed between
cells by that (`keys_of`), and a device knows by it which adapters it may use again.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

from .methods import BY_NAME, METHODS
from .presets import PRESETS

Scalar = str | int | float | bool

PERSONAS = ("headline", "tagging", "rating")
LONG = ("LongLaMP-abstract", "LongLaMP-review", "LongLaMP-topic")
LAMP = ("LaMP-1", "LaMP-2", "LaMP-2N", *(f"LaMP-{n}" for n in range(3, 8)), *LONG)
TASKS = (*PERSONAS, *LAMP, "text")
# Values of unlabeled.alpha: estimated from texts, and exact (see `unlabeled.alpha`).
ALPHA_ESTIMATES = ("estimate", "calibrated", "quantile", "best-bin")
ALPHA_EXACT = ("true", "true-bound", "true-mean")
KINDS = ("votes", "self", "public", "anonymised", "others")

# A configuration comes from somebody else: every number has a largest value, which no
# sensible run reaches and with which nothing overflows, and every text and list has a
# longest length. What work they add up to is bounded in `checks`.
LONGEST = 4096  # characters of a text; so long a path may be
LONGEST_NAME = 100  # characters of a run's name
MOST_RATES = 20  # learning rates to choose from
MOST_RATE = 1e4  # plain steps (`sgd`) take rates in the hundreds
AUTO = "auto"  # learning rates by the backbone's size: `common/engine/rates.py`
MOST_USERS = 10_000_000
MOST_ITEMS = 1_000_000  # of one user
MOST_MADE = 1_000_000  # items of all personas together: more take minutes to make
MOST_BATCH = 10_000
MOST_BANK = 50_000  # as many items as one message may hold
MOST_WEIGHT = 1e4  # of a term of an objective
MOST_STRENGTH = 4.0  # of an own adapter
MOST_ALPHA = 0.99  # that is fixed: the loss divides by 1 - alpha
MOST_NOISE = 1e6  # more is counted as this much (`server/privacy/accountant.py`)
# How `personalise.strength` is fitted (`methods.strength`).
FITTED, CROSSED = "fitted", "crossed"
# Of nearness: an item that is nearer by half a standard deviation comes 150 times as often.
NEAR = 10.0
MOST_INT = 2**63 - 1  # of anything that is counted in JSON and TOML
# Passes over one item in one task. The default is some hundred; a LaMP user with ten
# thousand items has some ten thousand.
MOST_PASSES = 10_000_000

# What a key may affect.
SHARED = "the shared adapter"
POOL = "the unlabeled set"
RESULTS = "the results of every method"
SOME = "the results of those methods whose row reads it"
CHOICE = "which results there are"
EVERYTHING = (SHARED, POOL, RESULTS)
WAITING = ()  # how long is waited, and for whom; no result


def key(
    default: Scalar,
    help: str,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    choices: tuple[str, ...] = (),
    infinite: bool = False,
    affects: tuple[str, ...] | None = None,
) -> Any:
    """Declare one configuration key: default, meaning, what is allowed, what it affects.

    Every number has a finite range; one that may be infinite as well says so. Without
    `affects`, what is said of the section holds (`section`).
    """
    allowed = {"help": help, "low": low, "high": high, "choices": choices}
    return field(
        default=default, metadata={**allowed, "infinite": infinite, "affects": affects}
    )


def section(keys: type, affects: tuple[str, ...]) -> Any:
    """Declare a section, and what those of its keys affect that say nothing else."""
    return field(default_factory=keys, metadata={"affects": affects})


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
class Engine:
    """How the model computes: precision, device, and how much at once."""

    dtype: str = key(
        "float32", "of the frozen backbone", choices=("float32", "bfloat16", "float16")
    )
    device: str = key(
        "auto",
        "where to compute; `auto`: on a GPU where there is one; `cuda:N`: on one of "
        "several, from cuda:0",
        choices=("auto", "cpu", "cuda", "cuda:N"),
    )
    max_length: int = key(
        512, "longest sequence in tokens, prompt and output", 16, 2**20
    )
    stack: int = key(
        4,
        "users trained or measured together in one forward pass: 4 suits a CPU, a GPU "
        "takes more",
        1,
        1024,
        affects=(SHARED, RESULTS),
    )
    memory: int = key(
        0,
        "megabytes that training may use above the backbone: activations that do not fit "
        "are computed again, rows that still do not fit are taken in parts; 0: what is "
        "free, less a reserve",
        0,
        2**24,
    )
    microbatch: int = key(
        0,
        "rows per forward pass and user in training; 0: what the memory allows",
        0,
        MOST_BATCH,
        affects=(SHARED, RESULTS),
    )


@dataclass(frozen=True)
class LoraShape:
    """The adapters, shared and personal alike."""

    rank: int = key(8, "rank of the adapters", 1, 256)
    alpha: float = key(16.0, "LoRA alpha: the adapter's scale is alpha / rank", 0, 1e4)
    targets: str = key("all", "which projections are adapted", choices=("all", "q,v"))
    layers: int = key(
        0,
        "adapters on so many of the upper layers, 0: on all. What the layers below "
        "compute does not change while one trains, so it is computed once",
        0,
        1000,
    )

    @property
    def scaling(self) -> float:
        """What an adapter as it was trained is multiplied by."""
        return self.alpha / self.rank


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
    batch: int = key(8, "items per optimiser step", 1, MOST_BATCH)
    learning_rate: float = key(
        0.0,
        "local learning rate; 0: by the backbone's size (docs/simulations.md)",
        0,
        MOST_RATE,
    )
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
    # The most leaves a grid for exact sums that is finer than any update (`run/sums.py`).
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
    support: int = key(
        20,
        "users who must have a bucket's like before it is taken (`anonymised`)",
        1,
        MOST_USERS,
    )
    ratio: float = key(
        1.0,
        "unlabeled items per history item (|H_aux| / |H_tar|)",
        0,
        100,
        affects=(SOME,),
    )
    nearness: str = key(
        "none",
        "which unlabeled items a device draws: by weight alone (`none`), `near` the own "
        "inputs, so that content cancels and style remains, `far` from them, or a number "
        "between: k draws by weight times exp(k standard deviations of nearness); `near` "
        f"is {NEAR:g}. Items without an input are neither near nor far",
        affects=(SOME,),
    )
    nearness_features: str = key(
        "ngrams",
        "what makes an input near: TF-IDF of hashed character n-grams, or hidden states "
        "of the `backbone`",
        choices=("ngrams", "backbone"),
        affects=(SOME,),
    )
    alpha: str = key(
        "estimate",
        "how much of the unlabeled set counts as the user's: `estimate` (the paper), "
        "`calibrated` (that without its bias by length), `quantile` or `best-bin` (mixture "
        "shares), or a number in [0, 0.99]; kinds whose alpha is no population share "
        "(self, public) use 0.5 for every estimate. `true`, `true-bound` and `true-mean` "
        "are controls that only personas can have (docs/alpha.md)",
        affects=(SOME,),
    )
    alpha_features: str = key(
        "ngrams",
        "what the classifier behind alpha tells texts apart by: mean hidden states of the "
        "`backbone` with the shared adapter (the paper), or hashed character n-grams",
        choices=("backbone", "ngrams"),
        affects=(SOME,),
    )
    alpha_items: int = key(
        128,
        "unlabeled items that classifier looks at; 0: those drawn for training",
        0,
        MOST_BANK,
        affects=(SOME,),
    )

    @property
    def nearness_strength(self) -> float:
        """K of `nearness.near_draw`: 0 draws by weight alone, below 0 far items."""
        named = {"none": 0.0, "near": NEAR, "far": -NEAR}
        return named[self.nearness] if self.nearness in named else float(self.nearness)


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
    sampling: float = key(
        1.0, "chance that a user takes part in a round of the shared adapter", 1e-6, 1
    )
    # It changes the other stages only through the noise that is calibrated for all.
    vote_sampling: float = key(
        1.0,
        "chance that a user takes part in a vote",
        1e-6,
        1,
        affects=(POOL, RESULTS),
    )
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
class Secagg:
    """Secure aggregation: what the server sees of single users (docs/privacy.md)."""

    # `off`, since `sum` draws other noise from the same seed, and a round with few rows is
    # left out by another rule: results of runs with privacy would change unnoticed.
    mode: str = key(
        "off",
        "how users' rows are added up: `off`, as numbers in floating point, to which the "
        "server adds all noise; `sum`, in simulations only, as integers to which each user "
        "has added a share of the noise, as secure aggregation would, but without masks: "
        "the simulation still holds every row; `on`, the same with masks, so that the "
        "server learns the sum and no row. Without noise all give the same bits",
        choices=("off", "sum", "on"),
    )
    colluding: float = key(
        0.1,
        "unless secagg.mode=off: share of the users expected in a sum whose noise the "
        "server may know, in what the card says of a server that sees only sums",
        0,
        0.9,
    )


@dataclass(frozen=True)
class Personalise:
    """Training of one user's own adapter; the same budget for every method."""

    items: int = key(
        0,
        "newest items of the history that an own adapter learns from, and that `rag` and "
        "`pag` search; 0: all. The shared adapter and the unlabeled set take the whole "
        "history all the same",
        0,
        MOST_ITEMS,
    )
    epochs: int = key(3, "passes over the own history", 1, 1000)
    batch: int = key(8, "history items per optimiser step", 1, MOST_BATCH)
    learning_rates: str = key(
        AUTO,
        "comma-separated; of several, each method uses the one with the lowest NLL on "
        "the development users. `auto`: by the backbone's size (docs/simulations.md)",
    )
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
    unlabeled_tokens: str = key(
        "equal",
        "tokens of unlabeled texts in C-BPO's reward: all count alike (`equal`, the "
        "paper), or `differing`: each by how much rarer it is in the own history than in "
        "the unlabeled set, with a mean weight of 1",
        choices=("equal", "differing"),
    )
    disliked_weight: float = key(
        1.0,
        "weight of the mean over known negatives in C-BPO, BCO and KTO, beside 1 for the "
        "own items; 0 is to have none",
        0,
        MOST_WEIGHT,
    )
    anchor: float = key(
        1.0,
        "weight of a likelihood term beside C-BPO's: NLL per token of the own items",
        0,
        MOST_WEIGHT,
    )
    strength: str = key(
        "1",
        "scale of the own adapter: a number in [0, 4], or the one with the lowest NLL on "
        "own items that were not trained on: `fitted` keeps the newest fifth of the "
        "history back for it (two at least), `crossed` trains four more adapters, on three "
        "quarters each, and takes the other quarters",
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
        affects=(SOME,),
    )
    contrast: float = key(
        1.0,
        "lambda of decoding by contrast: log pi_theta + lambda (log pi_theta - log pi_ref);"
        " 0 is greedy decoding. Published code of CoPe has 0.11 and 2.3 (there as the "
        "weight lambda / (1 + lambda), .1 and .7)",
        0,
        100,
        affects=(SOME,),
    )
    contrasted: str = key(
        "cope",
        "comma-separated: methods whose outputs are decoded by contrast",
        affects=(SOME,),
    )
    rouge_tokens: str = key(
        "english",
        "what rouge compares: `english` (the letters a-z and digits, with stemmer), "
        "`plain` (the same without, as LaMP's script does), or `unicode` (words of every "
        "script, without)",
        choices=("english", "plain", "unicode"),
    )
    meteor: str = key(
        "stems",
        "which words METEOR takes for the same: equal ones and equal `stems`, or synonyms "
        "too, as papers do (`wordnet`: needs nltk's data wordnet and punkt_tab)",
        choices=("stems", "wordnet"),
    )
    shift: bool = key(
        False, "also measure how far tokens that everyone writes are suppressed"
    )
    bootstrap: int = key(2000, "resamples of a confidence interval", 100, 100_000)


@dataclass(frozen=True)
class Steer:
    """The steering vector of method `steer`."""

    layer: int = key(
        0,
        "layer, counted from 1, to whose output the vector is added; 0: the middle one, "
        "above which words are chosen and below which they are read",
        0,
        1000,
    )
    strength: float = key(
        1.0,
        "factor of the vector; 1 moves the mean state of others' texts to that of the own",
        -100,
        100,
    )


@dataclass(frozen=True)
class Config:
    """One run, completely described."""

    seed: int = key(0, "seed of everything but privacy noise", 0, MOST_INT)
    preset: str = key(
        "",
        "file of values that other keys take unless they are given (docs/recipes.md)",
        choices=("", *PRESETS),
        affects=(CHOICE,),
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
    least_history: int = key(
        0,
        "items that the history of an evaluated user of files has at least; users with "
        "fewer can be development users. 0: any number",
        0,
        MOST_ITEMS,
    )
    held_out: int = key(8, "items per user to be measured on, at most", 1, MOST_ITEMS)
    disliked: int = key(
        0,
        "known negatives per user: texts at prompts of the own history that the user would "
        "strike out. For personas the population wrote them, for real users the shared "
        "adapter did; with task=text owners have their own",
        0,
        MOST_ITEMS,
        affects=(SOME,),
    )
    skip_bad_users: bool = key(False, "leave users with malformed data out, count them")
    users_per_node: int = key(
        0, "users hosted by one simulated node; 0: users/nodes", 0, MOST_USERS
    )

    backbone: str = key(
        "tiny", "`tiny` (built in), `smollm2`, a folder, a GGUF file, or a model id"
    )
    methods: str = key(
        "base,shared,sft,kto,bco,positives,c-bpo",
        f"comma-separated, of {', '.join(METHODS)}",
        affects=(CHOICE,),
    )
    quorum: float = key(
        0.75, "share of the users a phase needs to go on", 0, 1, affects=WAITING
    )
    deadline: float = key(
        1800.0,
        "seconds after which a phase stops waiting; a device that is silent is asked "
        "again after each quarter of it",
        1,
        30 * 86_400,
        affects=WAITING,
    )

    persona: Persona = section(Persona, EVERYTHING)
    engine: Engine = section(Engine, EVERYTHING)
    lora: LoraShape = section(LoraShape, (SHARED, RESULTS))
    adapt: Adapt = section(Adapt, (SHARED, RESULTS))
    unlabeled: Unlabeled = section(Unlabeled, (POOL, SOME))
    privacy: Privacy = section(Privacy, EVERYTHING)
    secagg: Secagg = section(Secagg, EVERYTHING)
    personalise: Personalise = section(Personalise, (SOME,))
    evaluate: Evaluate = section(Evaluate, (RESULTS,))
    steer: Steer = section(Steer, (SOME,))

    @property
    def method_list(self) -> tuple[str, ...]:
        """The methods, in the order given."""
        return words(self.methods)

    @property
    def contrasted_list(self) -> tuple[str, ...]:
        """The methods that decode by contrast."""
        return words(self.evaluate.contrasted)

    def contrast_of(self, method: str) -> float:
        """Lambda with which a method decodes by contrast; 0: it decodes greedily."""
        return self.evaluate.contrast if method in self.contrasted_list else 0.0

    @property
    def learning_rate_list(self) -> tuple[float, ...]:
        """The learning rates to choose from; none before `rates.with_rates`, if `auto`."""
        text = self.personalise.learning_rates
        return () if text == AUTO else tuple(map(float, words(text)))

    @property
    def chooses_rates(self) -> bool:
        """Whether there are users to choose a learning rate on, who may show their NLL."""
        seen = self.privacy.metrics == "clear" and not self.on_devices
        return seen and self.development_users > 0

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
        exact = self.privacy.mode != "off" or self.secagg.mode == "on"
        return wire == "int8" or (wire == "auto" and not exact)

    @property
    def fixed_alpha(self) -> float | None:
        """Alpha where it is fixed by config, None where each user has an own one."""
        alpha = self.unlabeled.alpha
        return None if alpha in (*ALPHA_ESTIMATES, *ALPHA_EXACT) else float(alpha)

    @property
    def fixed_strength(self) -> float | None:
        """Strength of every own adapter, None where each user fits an own one."""
        strength = self.personalise.strength
        return None if strength in (FITTED, CROSSED) else float(strength)


def words(text: str) -> tuple[str, ...]:
    """Split a list that is written with commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _fields(
    keys: type, affects: tuple[str, ...] = EVERYTHING, prefix: str = ""
) -> Iterator[tuple[str, dataclasses.Field[Any], tuple[str, ...]]]:
    """Yield every flat key with its field and what it affects."""
    for entry in dataclasses.fields(keys):
        name, own = prefix + entry.name.replace("_", "-"), entry.metadata["affects"]
        if dataclasses.is_dataclass(entry.type):
            yield from _fields(cast(type, entry.type), own, name + ".")
        else:
            yield name, entry, affects if own is None else own


FIELDS = {name: entry for name, entry, _ in _fields(Config)}
AFFECTS = {name: affects for name, _, affects in _fields(Config)}


def defaults() -> dict[str, Scalar]:
    """Every key with its default, in declared order."""
    return {name: cast(Scalar, entry.default) for name, entry in FIELDS.items()}


def keys_of(stage: str) -> tuple[str, ...]:
    """Keys that a stage depends on: `SHARED`, `POOL`, or the results of a method.

    A method is given by its name. Its results depend on the shared adapter, so all keys
    that affect that are among them.
    """
    if stage in (SHARED, POOL):
        return tuple(name for name, affects in AFFECTS.items() if stage in affects)
    return tuple(
        name
        for name, affects in AFFECTS.items()
        if RESULTS in affects or (SOME in affects and name in BY_NAME[stage].reads)
    )


def flatten(config: Config) -> dict[str, Scalar]:
    """Every key with its value, in declared order: the inverse of `parse.parse`."""
    flat: dict[str, Scalar] = {}
    for name in FIELDS:
        node: Any = config
        for part in name.replace("-", "_").split("."):
            node = getattr(node, part)
        flat[name] = node
    return flat
