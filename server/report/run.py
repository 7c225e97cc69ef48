"""Sections of the page of a run: from ``results.json`` and what lies beside it."""

import shlex
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...common.config import UNTRAINED, defaults, presets
from ...common.text import duration
from ..run.results import FEW_USERS, LOWER_IS_BETTER
from . import pictures
from .parts import (
    ABSENT,
    MOST_ROWS,
    Figure,
    Page,
    Sample,
    Section,
    clear_of_zero,
    ends_of,
    has_mean,
    interval,
    is_number,
    number,
    short,
    table,
)
from .privacy import privacy_section
from .verdict import NOT_RANKED, metrics_of, ranked, winner

PICTURED = 6  # metrics with a picture; tables have all
MOST_BARS = 14  # rows of a picture


@dataclass(frozen=True)
class Material:
    """What a page is made from.

    Attributes
    ----------
    results
        ``results.json``, cleaned.
    config
        Key -> value of the run; empty where the file is not there.
    trials
        Method -> learning rate, as text -> [users that failed, mean NLL].
    logs
        Method -> user -> log of the training.
    phases
        Phase -> (bytes up, bytes down, megabytes at its end), each None if not known.
    curves
        Method -> user -> loss of each step.
    texts
        Method -> user -> list of {prompt, reference, output}; empty unless asked for.
    judges
        What ``judge.json`` says of each judge (`pairwise.judge`).
    """

    results: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    trials: Mapping[str, Any] = field(default_factory=dict)
    logs: Mapping[str, Any] = field(default_factory=dict)
    phases: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    curves: Mapping[str, Any] = field(default_factory=dict)
    texts: Mapping[str, Any] = field(default_factory=dict)
    judges: Sequence[Mapping[str, Any]] = ()


def page(material: Material) -> Page:
    """Return everything that the page of a run says."""
    run = material.results["run"]
    count = len(material.results["users"]) or run.get("users") or 0
    line = (
        f"{run.get('task', '?')} · {run.get('backbone', '?')} · {count} users · "
        f"seed {run.get('seed', '?')}"
    )
    sections = [
        answer(material),
        methods(material),
        people(material),
        judged(material),
        training(material),
        alpha(material),
        samples(material),
        privacy_section(material.results["privacy"]),
        cost(material),
        configuration(material),
        reproduction(material),
    ]
    kept = [one for one in sections if one is not None]
    return Page(f"Run {run.get('name', '?')}", line, kept)


def answer(material: Material) -> Section:
    """Who won, by every metric."""
    found = material.results
    metrics = [m for m in metrics_of(found) if m not in NOT_RANKED]
    rows = [(metric, winner(found, metric)) for metric in metrics]
    sentences = [
        (
            "The best mean is compared with the next best, by the paired difference of the "
            "same users. It won where the 95 % interval does not contain zero; that is not "
            "corrected for the number of comparisons."
        ),
    ]
    if 0 < len(found["users"]) < FEW_USERS:
        sentences.append(
            f"With fewer than {FEW_USERS} users, bootstrap intervals are too narrow."
        )
    tables = []
    if len(rows) > 1:
        heads = ("metric", "who won")
        tables.append(table("By every metric", heads, rows, numbers=False))
    return Section(
        "answer", "Who won", winner(found), sentences=sentences, tables=tables
    )


# --- methods ----------------------------------------------------------------------------


def methods(material: Material) -> Section:
    """Means and paired differences, as points with intervals."""
    found = material.results
    figures: list[Figure] = []
    for k, metric in enumerate(metrics_of(found)):
        figures += _of_metric(found, metric, k)
    split = found["split"]
    tables = [
        table(
            f"{group} users, by nll",
            ("method", "mean", "95 % interval", "users"),
            [_mean_row(name, row["nll"]) for name, row in rows.items() if "nll" in row],
            folded=True,
        )
        for group, rows in split.items()
    ]
    sentences = ["Points are means over users, lines are 95 % intervals over users."]
    if not found["users"] and found["methods"]:
        sentences = [
            (
                "The metrics have noise for privacy, and intervals are those of the noise. "
                "No user's values are known, so there are no paired differences."
            )
        ]
    if split:
        sentences.append(
            "Unique users have an alpha below the median; their tables are below."
        )
    return Section(
        "methods", "Methods", sentences=sentences, figures=figures, tables=tables
    )


def _mean_row(name: str, entry: Any) -> tuple[str, ...]:
    entry = entry if isinstance(entry, Mapping) else {}
    count = str(entry.get("n", "–"))
    return name, number(entry.get("mean")), interval(entry), count


def _of_metric(found: Mapping[str, Any], metric: str, k: int) -> list[Figure]:
    """The means of a metric, and its paired differences."""
    lower = metric in LOWER_IS_BETTER
    side = "lower is better" if lower else "higher is better"
    side = "" if metric in NOT_RANKED else f" ({side})"
    means = {name: row.get(metric) for name, row in found["methods"].items()}
    pairs = {name: row.get(metric) for name, row in found["pairs"].items()}
    figures = [
        _points(f"m{k}", f"{metric}{side}", "method", means, k < PICTURED),
    ]
    if any(map(has_mean, pairs.values())):
        title = f"Differences in {metric}, paired by user"
        figures.append(_points(f"d{k}", title, "pair", pairs, k < PICTURED, lower))
    return figures


def _points(
    name: str,
    title: str,
    head: str,
    entries: Mapping[str, Any],
    pictured: bool,
    lower: bool | None = None,
) -> Figure:
    """Make a picture with its table; `lower`: a difference, and whether less is better."""
    known = [(one, e) for one, e in entries.items() if has_mean(e)][:MOST_BARS]
    rows = [(short(one, 20), e["mean"], ends_of(e)) for one, e in known]
    colours: list[str] = []
    heads = [head, "mean", "95 % interval", "users"]
    lines = [_mean_row(*row) for row in entries.items()]
    if lower is not None:
        for _, entry in known:
            good = (entry["mean"] < 0) == lower
            colour = pictures.GOOD if good else pictures.BAD
            colours.append(colour if clear_of_zero(entry) else pictures.FAINT)
        heads.append("shown")
        lines = [(*row, _shown(entries[row[0]], lower)) for row in lines]
    svg = ""
    if pictured and rows:
        says = f"{title}: {len(rows)} points with intervals; the table has the numbers."
        draw = pictures.intervals(rows, lower is not None, colours)
        svg = pictures.drawn(name, title, says, pictures.height_of(len(rows)), draw)
    return Figure(title, svg, table(title, heads, lines, folded=bool(svg)))


def _shown(entry: Any, lower: bool) -> str:
    if not has_mean(entry):
        return ABSENT
    if not clear_of_zero(entry):
        return "no difference"
    return "better" if (entry["mean"] < 0) == lower else "worse"


# --- people -----------------------------------------------------------------------------


def people(material: Material) -> Section | None:
    """Who gained, who lost: every user's difference to the shared policy."""
    found = material.results
    every = found["users"]
    if not every:
        return None
    base = next((m for m in ("shared", "base") if m in found["methods"]), None)
    trained = [m for m in found["methods"] if m not in UNTRAINED and m != base]
    others = trained or [m for m in found["methods"] if m != base]
    if base is None or not others:
        return None
    gains = {one: _gains(every, one, base) for one in others}
    gains = {one: values for one, values in gains.items() if values}
    if not gains:
        return None
    sentences = [
        (
            f"A user gains by a method where nll is lower than with {base}. Values are "
            f"nll of the method less that of {base}."
        ),
    ]
    rows = [
        (
            method,
            sum(v < 0 for v in values.values()),
            sum(v > 0 for v in values.values()),
            number(statistics.median(values.values()), "+.3f"),
            f"{min(values.values()):+.3f} to {max(values.values()):+.3f}",
        )
        for method, values in gains.items()
    ]
    heads = ("method", "gained", "lost", "median", "range")
    figure = _sorted_gains(gains, base, table("Who gained", heads, rows))
    best = next(m for m in (*ranked(found, "nll"), *gains) if m in gains)
    return Section(
        "users",
        "Users: who gained, who lost",
        _tally(best, base, gains[best]),
        sentences=[*sentences, *_naming(found)],
        figures=[figure],
        tables=[_by_user(found, gains, base, best)],
    )


def _gains(users: Mapping[str, Any], method: str, base: str) -> dict[str, float]:
    """User -> nll of a method less that of another, where both are known."""
    both = {
        user: (row.get(method, {}).get("nll"), row.get(base, {}).get("nll"))
        for user, row in users.items()
    }
    return {u: a - b for u, (a, b) in both.items() if is_number(a) and is_number(b)}


def _tally(method: str, base: str, values: Mapping[str, float]) -> str:
    gained, lost = (sum(s * v > 0 for v in values.values()) for s in (-1, 1))
    return (
        f"By {method}, {gained} of {len(values)} users gained over {base}, {lost} lost."
    )


def _sorted_gains(gains: Mapping[str, Any], base: str, below: Any) -> Figure:
    title = f"Every user's nll less that of {base}, sorted"
    curves = {m: pictures.quantiles(list(v.values())) for m, v in gains.items()}
    labels = ("users, % (each method sorted by itself)", "difference in nll")
    says = f"{title}. Below zero a user gained. The table has counts, medians, ranges."
    draw = pictures.lines(curves, labels, zero=True, marked=False)
    return Figure(title, pictures.drawn("gains", title, says, 290, draw), below)


def is_anonymous(results: Mapping[str, Any]) -> bool:
    """Whether users go by numbers: all but those of a simulation do."""
    return results["privacy"].get("mode") != "simulation"


def _naming(results: Mapping[str, Any]) -> list[str]:
    anonymous = is_anonymous(results)
    return (
        ["Users are numbered here, since this is no simulation."] if anonymous else []
    )


def _by_user(
    found: Mapping[str, Any], gains: Mapping[str, Any], base: str, best: str
) -> Any:
    """One row per user, those who gain most first; of many users, both ends."""
    order = sorted(gains[best], key=lambda user: (gains[best][user], user))
    more: dict[str, Any] = {}
    if len(order) > MOST_ROWS:
        half = MOST_ROWS // 2
        more["note"] = (
            f"The {half} users who gain most by {best} and the {half} who gain least, of "
            f"{len(order)}; the picture and the table of counts have all."
        )
        order = order[:half] + order[-half:]
    numbers = {user: f"user {k}" for k, user in enumerate(found["users"], 1)}
    anonymous = is_anonymous(found)
    heads = ["user", *(f"{method} - {base}" for method in gains), "alpha"]
    alphas = found["run"].get("alpha") or {}
    rows = [
        (
            numbers[user] if anonymous else user,
            *(number(values.get(user), "+.3f") for values in gains.values()),
            number(alphas.get(user)),
        )
        for user in order
    ]
    return table(f"By user, in the order of {best}", heads, rows, folded=True, **more)


# --- judges -----------------------------------------------------------------------------


def judged(material: Material) -> Section | None:
    """Win rates by language models, their bias, and how they agree with the metrics."""
    rows: list[tuple[str, ...]] = []
    agrees: list[tuple[str, ...]] = []
    for judge in material.judges:
        model = str(judge.get("model", ABSENT))
        model += " (own text shown)" if judge.get("reference") else ""
        pairs = judge.get("pairs")
        for pair, row in pairs.items() if isinstance(pairs, Mapping) else ():
            if isinstance(row, Mapping):
                rows.append(_judge_row(model, pair, row))
                found = row.get("agrees") or {}
                agrees += [
                    (
                        f"{pair}, {model}",
                        metric,
                        number(one.get("rho"), "+.2f"),
                        one["n"],
                    )
                    for metric, one in found.items()
                ]
    if not rows:
        return None
    heads = ("pair, judge", "win rate", "95 % interval", "users", "won", "lost", "ties")
    tables = [table("Win rates", (*heads, "followed the order", "no verdict"), rows)]
    if agrees:
        heads = ("pair, judge", "metric", "rank correlation", "users")
        tables.append(table("Agreement with other metrics, over users", heads, agrees))
    said = (
        "A language model saw texts of the user and both outputs, in both orders. A "
        "verdict counts where both orders agree, and is a tie otherwise. The win rate is "
        "that of the first method, its interval is over users; .5 is no difference."
    )
    more = (
        "Where the verdict followed the order, the same place was chosen both times. A "
        "judge can be wrong, and texts can sway it: it is one metric among others."
    )
    return Section(
        "judge", "Win rates by a language model", sentences=[said, more], tables=tables
    )


def _judge_row(model: str, pair: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    rate = row.get("win-rate") or {}
    asked, followed = row.get("asked"), row.get("followed")
    share = followed / asked if is_number(followed) and asked else None
    counts = (row.get(name, ABSENT) for name in ("wins", "losses", "ties"))
    return (
        f"{pair}, {model}",
        number(rate.get("mean"), ".2f"),
        interval(rate),
        str(rate.get("n", ABSENT)),
        *map(str, counts),
        number(share, ".0%"),
        str(row.get("unjudged", ABSENT)),
    )


# --- training ---------------------------------------------------------------------------


def training(material: Material) -> Section | None:
    """Rates tried, final losses, clamp rates; curves where a run has them."""
    run = material.results["run"]
    rates, clamps = run.get("learning_rates") or {}, run.get("clamp_rate") or {}
    names = list(dict.fromkeys([*rates, *clamps, *material.logs, *material.curves]))
    if not names and not material.trials:
        return None
    rows = [
        (
            name,
            number(rates.get(name), "g"),
            *(
                number(_mean_log(material.logs.get(name), key), form)
                for key, form in LOGS
            ),
            number(clamps.get(name), ".1%"),
        )
        for name in names
    ]
    heads = ("method", "learning rate", "steps", "last loss", "clamp rate")
    sentences = [
        (
            "Steps and the loss of the last step are means over users. The clamp rate is "
            "the share of steps in which C-BPO's unlabeled term was held at its bound."
        ),
    ]
    both = _learning(material.curves), _tried(material.trials, rates)
    figures = [figure for figure in both if figure is not None]
    if not material.curves:
        sentences.append("The run kept no loss of single steps: there is no curve.")
    if any(clamps.values()):
        figures.append(_clamped(clamps))
    return Section(
        "training",
        "Training",
        sentences=sentences,
        figures=figures,
        tables=[table("How training went", heads, rows)],
    )


LOGS = (("steps", ".0f"), ("loss", ".3f"))


def _mean_log(logs: Any, key: str) -> float | None:
    values = [log.get(key) for log in (logs or {}).values() if isinstance(log, Mapping)]
    known = [value for value in values if is_number(value)]
    return statistics.fmean(known) if known else None


MOST_STEPS = 60  # points of a learning curve


def _learning(curves: Mapping[str, Any]) -> Figure | None:
    """Mean loss over users by step, of each method."""
    means: dict[str, list[tuple[float, float]]] = {}
    rows = []
    for method, users in curves.items():
        losses = [own for own in users.values() if own]
        length = max(map(len, losses), default=0)
        every = [
            (t + 1.0, statistics.fmean(own[t] for own in losses if len(own) > t))
            for t in range(0, length, -(-length // MOST_STEPS) or 1)
        ]
        if every:
            means[method] = every
            ends = (every[0][1], every[len(every) // 2][1], every[-1][1])
            rows.append((method, len(losses), length, *map(number, ends)))
    if not means:
        return None
    title = "Learning curves: loss by step, mean over users"
    draw = pictures.lines(means, ("step", "loss"), marked=False)
    says = f"{title}, one line per method. Losses of two methods cannot be compared."
    svg = pictures.drawn("learning", title, says, 290, draw)
    heads = ("method", "users", "steps", "first", "middle", "last")
    note = "Each method has a loss of its own: compare a curve with its own start."
    return Figure(title, svg, table(title, heads, rows, folded=bool(svg), note=note))


def _tried(trials: Mapping[str, Any], chosen: Mapping[str, Any]) -> Figure | None:
    """Mean NLL of the development users over the learning rates that were tried."""
    curves: dict[str, list[tuple[float, float]]] = {}
    rows = []
    for method, tried in trials.items():
        for rate, (failed, nll) in sorted(tried.items(), key=lambda one: float(one[0])):
            mark = "chosen" if chosen.get(method) == float(rate) else ""
            rows.append((method, f"{float(rate):g}", number(nll), f"{failed:g}", mark))
            if is_number(nll):
                curves.setdefault(method, []).append((float(rate), nll))
    if not rows:
        return None
    title = "Learning rates tried: nll of the development users"
    draw = pictures.lines(curves, ("learning rate", "nll"), rates=True)
    says = f"{title}, one line per method; the table has the numbers."
    svg = pictures.drawn("rates", title, says, 290, draw) if curves else ""
    heads = ("method", "rate", "nll", "users failed", "")
    return Figure(title, svg, table(title, heads, rows, folded=bool(svg)))


def _clamped(clamps: Mapping[str, Any]) -> Figure:
    title = "Clamp rate: share of steps, %"
    known = [(short(m, 20), 100 * v) for m, v in clamps.items() if is_number(v)]
    height = pictures.height_of(len(known)) - 16
    says = f"{title}, one bar per method."
    svg = pictures.drawn(
        "clamp", title, says, height, pictures.bars(known, "{:.1f}".format)
    )
    rows = [(m, number(v, ".1%")) for m, v in clamps.items()]
    return Figure(
        title, svg, table(title, ("method", "clamp rate"), rows, folded=bool(svg))
    )


def alpha(material: Material) -> Section | None:
    """Alpha against the true overlap, or by itself where the truth is not known."""
    run = material.results["run"]
    found = {u: v for u, v in (run.get("alpha") or {}).items() if is_number(v)}
    if not found:
        return None
    truth = {u: v for u, v in (run.get("overlap") or {}).items() if is_number(v)}
    both = [(truth[user], found[user]) for user in found if user in truth]
    values = sorted(found.values())
    said = (
        f"Alpha is how much of the unlabeled set C-BPO counts as the user's: from "
        f"{values[0]:.3f} to {values[-1]:.3f}, median {_cut(values, 0.5):.3f}"
        f"{', estimated' if run.get('alpha_estimated') else ', not estimated'}."
    )
    if not both:
        title = "Alpha, users sorted by it"
        curve = {"alpha": pictures.quantiles(values)}
        draw = pictures.lines(curve, ("users, %", "alpha"), marked=len(values) < 30)
        truths = "The true overlap is not known here."
    else:
        title = "Alpha against the true overlap"
        step = -(-len(both) // MOST_ROWS)
        draw = pictures.scatter(sorted(both)[::step], ("true overlap", "alpha"))
        off = statistics.fmean(abs(one - other) for one, other in both)
        truths = f"It is off by {off:.3f} on average{_correlation(both)}."
    svg = pictures.drawn("alpha", title, f"{title}. {said}", 290, draw)
    known = sorted(one for one, _ in both)
    heads = ("", "alpha", *(["true overlap"] if both else []))
    rows = [
        (
            name,
            number(_cut(values, share)),
            *([number(_cut(known, share))] if both else []),
        )
        for name, share in CUTS.items()
    ]
    figure = Figure(title, svg, table("Alpha over users", heads, rows))
    return Section("alpha", "Alpha", said, sentences=[truths], figures=[figure])


CUTS = {"least": 0.0, "lower quarter": 0.25, "median": 0.5}
CUTS |= {"upper quarter": 0.75, "most": 1.0}


def _cut(ordered: Sequence[float], share: float) -> float | None:
    return ordered[round(share * (len(ordered) - 1))] if ordered else None


def _correlation(both: Sequence[tuple[float, float]]) -> str:
    one, other = zip(*both, strict=True)
    if len(both) < 3 or len(set(one)) == 1 or len(set(other)) == 1:
        return ""
    rho = statistics.correlation(_ranks(one), _ranks(other))
    return f", and ranks the users with a correlation of {rho:.2f} (Spearman)"


def _ranks(values: Sequence[float]) -> list[int]:
    """Twice each value's mean rank, from 0 on; scipy, which has it, takes a second."""
    ordered = sorted(values)
    return [bisect_left(ordered, one) + bisect_right(ordered, one) for one in values]


# --- texts ------------------------------------------------------------------------------


SHOWN = 3  # users whose texts are shown: the best, the median, the worst


def samples(material: Material) -> Section | None:
    """Texts beside the user's own, of users chosen by a rule."""
    found = material.results
    held = {m: material.texts[m] for m in found["methods"] if material.texts.get(m)}
    best = next(
        (m for m in ranked(found, "nll") if m in held and m not in UNTRAINED), ""
    )
    base = "shared" if "shared" in found["methods"] else "base"
    gains = _gains(found["users"], best, base) if best else {}
    order = sorted((u for u in gains if u in held[best]), key=lambda u: (gains[u], u))
    if not order:
        return None
    places = dict.fromkeys((0, (len(order) - 1) // 2, len(order) - 1))
    titles = ("gains most", "is in the middle", "gains least")
    shown = [
        _sample(held, order[place], f"{order[place]}, who {title} by {best}")
        for place, title in zip(places, titles, strict=False)
    ]
    rule = (
        f"Chosen by rule: of the users sorted by what they gain in nll by {best} over "
        f"{base}, the first, the middle and the last; of each the first held-out item."
    )
    return Section(
        "texts", "Texts", sentences=[rule], samples=[s for s in shown if s is not None]
    )


def _sample(held: Mapping[str, Any], user: str, title: str) -> Sample | None:
    firsts = {m: users[user][0] for m, users in held.items() if users.get(user)}
    if not firsts:
        return None
    one = next(iter(firsts.values()))
    outputs = [(method, str(item.get("output", ""))) for method, item in firsts.items()]
    return Sample(
        title, str(one.get("prompt", "")), str(one.get("reference", "")), outputs
    )


# --- cost, configuration, reproduction --------------------------------------------------


def cost(material: Material) -> Section:
    """Time, bytes and memory by phase."""
    found = material.results["cost"]
    seconds = {p: s for p, s in (found.get("seconds") or {}).items() if is_number(s)}
    withheld = "bytes_up" in found and found["bytes_up"] is None
    rows = []
    for phase in dict.fromkeys([*seconds, *material.phases]):
        up, down, memory = (*material.phases.get(phase, ()), None, None, None)[:3]
        sent = [ABSENT if withheld else megabytes(one) for one in (up, down)]
        took = duration(seconds[phase]) if phase in seconds else ABSENT
        rows.append((phase, took, *sent, number(memory, ",.0f")))
    totals = [megabytes(found.get(key)) for key in ("bytes_up", "bytes_down")]
    whole = duration(sum(seconds.values()))
    peak = number(found.get("peak_rss_mb"), ",.0f")
    memory = f"{peak} MB" if peak != ABSENT else ABSENT
    rows.append(("whole run", whole, *totals, peak))
    heads = ("phase", "time", "MB up", "MB down", "peak memory so far, MB")
    sentences = ["Memory is the sum over the processes of the run of each one's peak."]
    if withheld:
        sentences.append("Bytes are withheld: they would tell who took part.")
    title = "Seconds by phase"
    known = [(short(p, 20), s) for p, s in seconds.items()]
    figures = []
    if known:
        height = pictures.height_of(len(known)) - 16
        says = f"{title}, one bar per phase."
        svg = pictures.drawn("seconds", title, says, height, pictures.bars(known))
        figures.append(Figure(title, svg, table("Cost by phase", heads, rows)))
    tables = [] if figures else [table("Cost", heads, rows)]
    lead = f"Time {whole}, peak memory {memory}."
    return Section(
        "cost", "Cost", lead, sentences=sentences, figures=figures, tables=tables
    )


def megabytes(count: Any) -> str:
    """Write bytes as megabytes."""
    return f"{count / 1e6:.1f}" if is_number(count) else ABSENT


def configuration(material: Material) -> Section | None:
    """What differs from the defaults, and all keys."""
    if not (config := material.config):
        return None
    usual, named = defaults(), preset_values(config)
    changed = [
        (
            key,
            written(value),
            written(usual.get(key)),
            "preset" if named.get(key) == value else "given",
        )
        for key, value in config.items()
        if value != usual.get(key)
    ]
    heads = ("key", "value", "default", "by")
    every = [(key, written(value)) for key, value in config.items()]
    lead = f"{len(changed)} of {len(config)} keys differ from their defaults."
    differing = table("Differs from the default", heads, changed, numbers=False)
    whole = table("All keys", ("key", "value"), every, folded=True, numbers=False)
    return Section("configuration", "Configuration", lead, tables=[differing, whole])


def written(value: Any) -> str:
    """Write the value of a key as ``-c`` takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def preset_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the run's preset sets; nothing where this version does not have it."""
    name = str(config.get("preset") or "")
    return dict(presets.read(name)) if name in presets.PRESETS else {}


def command(config: Mapping[str, Any]) -> str:
    """Return the command that gives the same run."""
    usual = defaults() | preset_values(config)
    words = ["idiolect-server", "run" if config.get("task") == "text" else "simulate"]
    if preset := config.get("preset"):
        words += ["--preset", str(preset)]
    for key, value in config.items():
        if key != "preset" and value != usual.get(key):
            words += ["-c", f"{key}={written(value)}"]
    return shlex.join(words)


def reproduction(material: Material) -> Section:
    """The command, versions, seed and commit."""
    run = material.results["run"]
    rows = [
        ("seed", run.get("seed", ABSENT)),
        ("commit of idiolect", run.get("commit") or ABSENT),
        *((f"version of {name}", v) for name, v in (run.get("versions") or {}).items()),
        ("backbone", run.get("backbone", ABSENT)),
        *([("weights", run["weights"])] if run.get("weights") else []),
        *([("recipe of c-bpo", run["recipe"])] if run.get("recipe") else []),
    ]
    said = (
        "The same command with the same versions gives the same results, except for "
        "privacy noise and, on another processor, the last bits."
    )
    if str(run.get("commit", "")).endswith("+"):
        said += " A + behind the commit: files were changed since that commit."
    sentences = [said] if material.config else ["The run's configuration is not there."]
    return Section(
        "reproduce",
        "How to reproduce",
        sentences=sentences,
        command=command(material.config) if material.config else "",
        tables=[table("Versions", ("what", "value"), rows, numbers=False)],
    )
