"""How long a job takes and what it needs, from what was counted and measured.

Pure functions of numbers. Nodes work side by side and wait for each other after every
round, method and learning rate; so an exchange takes as long as its slowest node.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ...common.config import UNTRAINED, Config
from ...common.text import duration
from ..run import work
from .gpus import READ, SHARE
from .parts import Count, Part, Work

EXCHANGE = 0.3  # seconds in which an exchange waits for messages (`run/exchange.py`)
# A simulation starts its own process, Ray, and the nodes, one after the other; a node takes
# as long as the process that counted. At the end they close, and results are shown: that
# takes about as long as one start, on a busy machine too.
STARTS, ENDS = 2.5, 1.0
LEAST = 0.05  # share of the whole from which on a saving is worth a line
MOST = 4  # lines of savings
MB = 1 << 20


@dataclass(frozen=True)
class Forecast:
    """What a job is expected to take.

    Attributes
    ----------
    seconds
        From the command that asks to its end: this forecast, the start and the end too.
    memory, free
        MB: of all its processes at their peak together, and what is free now.
    shares
        (phase, method, whether a learning rate is tried) -> seconds.
    savings
        What to set, and seconds that it saves; the largest first.
    weights
        For the progress of a run (`weights_of`).
    tokens
        What is processed; of a study only.
    longest
        Seconds of the process that works longest, where several run a study.
    backbone
        MB of the weights, within `memory`; of a GPU that is not here only.
    stand_in
        Whether texts are made up (``benchmarks/stand_in.py``); of such a GPU only.
    """

    seconds: float
    memory: float
    free: float
    shares: Mapping[tuple[str, str, bool], float]
    savings: tuple[tuple[str, float], ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    tokens: Work = Work()
    longest: float = 0.0
    backbone: float = 0.0
    stand_in: bool = False

    @property
    def phases(self) -> float:
        """Seconds of all phases, without what is around them."""
        around = (self.shares.get((name, "", False), 0.0) for name in AROUND)
        return self.seconds - sum(around)


Shares = dict[tuple[str, str, bool], float]
AROUND = ("ahead", "start", "end")  # what a job does before and after its phases


def shares_of(count: Count, parts: Iterable[Part], exchange: float) -> Shares:
    """Seconds of each phase, method and kind of training, along the slowest nodes.

    Parameters
    ----------
    count, parts
        What was counted, and those of its parts that are done.
    exchange
        Seconds that each exchange takes besides.
    """
    nodes: dict[str, dict[int, Shares]] = {}
    for part in parts:
        here = nodes.setdefault(part.label, {}).setdefault(part.node, {})
        name = part.phase, part.method, part.trial
        here[name] = here.get(name, 0.0) + count.seconds(part.work)
    found: Shares = {}
    for each in nodes.values():
        slowest = max(each.values(), key=lambda shares: sum(shares.values()))
        for name, seconds in slowest.items():
            more = exchange * (seconds == max(slowest.values()))
            found[name] = found.get(name, 0.0) + seconds + more
    return found


def total(count: Count, parts: Iterable[Part], exchange: float) -> float:
    """Seconds of some parts of a job."""
    return sum(shares_of(count, parts, exchange).values())


# --- what to lower ---------------------------------------------------------------------

Change = tuple[str, Callable[[Part], float]]
"""What to set, and the factor by which a part of the work is then multiplied."""


EVALUATED = ("training", "samples", "scores", "generation")


def changes(config: Config, shares: Shares) -> Iterator[Change]:
    """What can be lowered: numbers by half, and what can be left out."""
    own, phases = config.personalise, ("training",)
    yield from _halved("personalise.epochs", own.epochs, 1, phases)
    yield from _halved("adapt.rounds", config.adapt.rounds, 0, ("adapt",))
    phases = ("adapt", "training", "samples")
    yield from _halved("history", config.history, 1, phases)
    yield from _halved("users", config.users, 1, EVALUATED, trials=False)
    yield from _halved("held-out", config.held_out, 1, ("scores", "generation"))
    yield from _halved("evaluate.rivals", config.evaluate.rivals, 1, ("scores",))
    rates = config.learning_rate_list
    if len(rates) > 1:
        text = f"personalise.learning-rates={rates[len(rates) // 2]:g}"
        yield f"{text} (one of {len(rates)})", lambda part: float(not part.trial)
    trained = [m for m in config.method_list if m not in UNTRAINED]
    if len(trained) > 1:
        costs = {
            m: sum(s for (_, name, _), s in shares.items() if name == m)
            for m in trained
        }
        dearest = max(costs, key=costs.__getitem__)
        yield f"methods without {dearest}", lambda part: float(part.method != dearest)
    if config.evaluate.generate:
        yield (
            "evaluate.generate=false",
            lambda part: float(part.phase != "generation"),
        )
    if config.unlabeled.kind == "self":
        yield "unlabeled.kind=votes", lambda part: float(part.phase != "samples")


def _halved(
    name: str, value: int, least: int, phases: tuple[str, ...], *, trials: bool = True
) -> Iterator[Change]:
    """Half of a number, to which the work of some phases is proportional."""
    new = max(least, value // 2)

    def factor(part: Part) -> float:
        concerned = part.phase in phases and (trials or not part.trial)
        return new / value if concerned else 1.0

    if new < value:
        yield f"{name}={new}", factor


def savings(
    config: Config, count: Count, parts: Sequence[Part], exchange: float
) -> tuple[tuple[str, float], ...]:
    """What to set and the seconds that each saves alone, the largest first."""
    shares = shares_of(count, parts, exchange)
    whole, found = sum(shares.values()), list[tuple[str, float]]()
    for text, factor in changes(config, shares):
        less = [replace(p, work=p.work.times(factor(p))) for p in parts if factor(p)]
        found.append((text, whole - total(count, less, exchange)))
    return best(dict(found), whole)


def best(saved: Mapping[str, float], whole: float) -> tuple[tuple[str, float], ...]:
    """The largest savings, of those that are worth a line."""
    found = sorted(saved.items(), key=lambda one: -one[1])
    return tuple(one for one in found[:MOST] if one[1] >= LEAST * whole)


def weights_of(config: Config, count: Count) -> dict[str, float]:
    """Seconds per user of each part of a run, as `run/work.py` names them."""
    seconds: dict[str, float] = {}
    users: dict[str, int] = {}
    for part in count.parts:
        for name in _weighed(part):
            seconds[name] = seconds.get(name, 0.0) + count.seconds(part.work)
            # Scores and outputs, for example, are of the same users.
            first = part.phase == "training" if part.trial else part.phase in COUNTED
            users[name] = users.get(name, 0) + part.users * first
    found = dict.fromkeys(work.usual(config), LEAST_SECONDS)
    for name, value in seconds.items():
        found[name] = value / max(1, users[name])
    return found


LEAST_SECONDS = 0.01  # of what a forecast counts as nothing
COUNTED = ("adapt", "pool", "training", "scores")  # phases that every user has once


def _weighed(part: Part) -> list[str]:
    """Names of the weights that a part belongs to."""
    if part.phase in ("adapt", "pool"):
        return [part.phase]
    if part.phase in ("training", "samples") or part.trial:
        return [work.training(part.method, part.trial)]
    both = [work.measuring(part.method, True), work.measuring(part.method, False)]
    return both if part.phase == "scores" else both[:1]


# --- in words --------------------------------------------------------------------------

PHASES = {
    "adapt": "shared adapter",
    "pool": "unlabeled set",
    "samples": "samples of the model",
    "training": "training",
    "scores": "scores",
    "generation": "outputs",
    "ahead": "this forecast",
    "start": "start",
    "end": "end",
}


def named(name: tuple[str, str, bool]) -> str:
    """What a table calls a phase."""
    phase, method, trial = name
    tried = "choosing its rate" if trial and phase == "training" else ""
    tried = "while choosing its rate" if trial and phase != "training" else tried
    return ", ".join(filter(None, (PHASES[phase], method, tried)))


def size(megabytes: float) -> str:
    """Return megabytes as a person says them."""
    return f"{megabytes / 1024:.1f} GB" if megabytes >= 1000 else f"{megabytes:.0f} MB"


def short(forecast: Forecast) -> str:
    """Return time and memory in one line."""
    return f"about {duration(forecast.seconds)} in all, {size(forecast.memory)}"


def warning(forecast: Forecast) -> str:
    """Return a sentence if the memory will not do; else nothing."""
    if forecast.memory <= forecast.free:
        return ""
    return (
        f"this needs about {size(forecast.memory)} and {size(forecast.free)} are free: "
        "use fewer --nodes, a smaller engine.memory, or end other programs."
    )


def elsewhere(forecast: Forecast, gpu: str, number: int) -> str:
    """Return what a study takes on GPUs that are not here, and what that rests on."""
    tokens, hours = forecast.tokens, forecast.seconds / 3600
    made_up = (
        "texts: made up, and so are the tokens and hours; real texts need others\n"
        if forecast.stand_in
        else ""
    )
    written = f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"
    several = each = ""
    if number > 1:
        several = f", {duration(forecast.longest)} on {number} of them"
        each = (
            f"each of the {number} GPUs holds the whole model and computes whole cells; "
            "no model is split between GPUs\n"
        )
    fits = "fits into" if forecast.memory <= forecast.free else "does not fit into"
    trained, read = tokens.adapted + tokens.trained, tokens.scored + tokens.prompted
    return (
        f"on {gpu}, which is not here: about {written} GPU hours{several}\n"
        f"memory of a GPU: {gib(forecast.memory)} ({gib(forecast.backbone)} are the "
        f"weights), which {fits} {gib(forecast.free)}; a fifth stays free\n{each}"
        f"{made_up}tokens: {trained:,} trained, {read:,} read, {tokens.written:,} written\n"
        f"assumed: {SHARE:.0%} of the data sheet's bf16 operations when training and "
        f"reading, {READ:.0%} of its bandwidth when writing; outputs as long as the "
        "user's own texts, those of `base` as long as allowed (docs/studies.md)"
    )


def gib(megabytes: float) -> str:
    """Return megabytes in the unit of data sheets."""
    return f"{megabytes / 1024:.1f} GiB"


def table(forecast: Forecast, first: str = "") -> str:
    """Return where the time goes and what saves most, as lines.

    `first`: what stands before; else time and memory on this machine.
    """
    whole = forecast.seconds
    first = first or f"{short(forecast)}; {size(forecast.free)} are free"
    lines = [first, "", "where it goes"]
    least = 0.01 * whole
    rows = [(named(n), s) for n, s in forecast.shares.items() if s >= least]
    width = max((len(name) for name, _ in rows), default=0)
    lines += [
        f"  {name:{width}}  {duration(s):>10}  {s / whole:4.0%}" for name, s in rows
    ]
    if forecast.savings:
        lines += ["", "what to lower, and what that alone saves"]
        width = max(len(text) for text, _ in forecast.savings)
        lines += [f"  {t:{width}}  {duration(s):>10}" for t, s in forecast.savings]
    return "\n".join(lines)
