"""Text metrics of the tasks, by their published definitions.

One user's outputs give one value of each metric (`score`); a table averages those over
users. The numbers printed in papers pool all questions of all users: `pooled`.
"""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from .types import Kind, Task

ENGLISH, PLAIN, UNICODE = "english", "plain", "unicode"
STEMS, WORDNET = "stems", "wordnet"

# What a metric is clipped to, [0, bound], before it leaves a device (``privacy.metrics``
# `noisy`). 8 nats per token is worse than guessing among 2,981 words; ratings are 1 to 5.
BOUNDS = {
    "nll": 8.0,
    "rouge-1": 1.0,
    "rouge-l": 1.0,
    "meteor": 1.0,
    "accuracy": 1.0,
    "f1": 1.0,
    "mae": 4.0,
    "rmse": 4.0,
}
# Not `contrast`: it compares with another user's text, so one user would move the rows
# of others too, and the noise is made for one row.
SCORED = ("nll",)
GENERATED: dict[Kind, tuple[str, ...]] = {
    "generation": ("rouge-1", "rouge-l"),
    "long": ("rouge-1", "rouge-l", "meteor"),
    "classification": ("accuracy", "f1"),
    "rating": ("mae", "rmse"),
}

MOST = 1000.0  # of a value that has no bound
# What `evaluation.evaluate` says besides, where it applies.
RANKED, STYLES, SHIFT = ("contrast", "mrr"), ("own-style", "shared-style"), "shift"
STRENGTH = ("strength", "nll_raw")


def measured_metrics(kind: Kind, generated: bool) -> frozenset[str]:
    """Names of all metrics that a node may say of a user (`evaluation.evaluate`)."""
    names = {*SCORED, *RANKED, SHIFT, *STRENGTH}
    return frozenset(names.union(GENERATED[kind], STYLES) if generated else names)


def possible(metrics: Mapping[str, float]) -> bool:
    """Whether these are values that the metrics can have; not whether they are true.

    Without this one user's value could make a table's mean anything. A likelihood has no
    bound: `MOST` nats a token are more than any model gives.
    """
    at_most = {**BOUNDS, **dict.fromkeys((*RANKED, *STYLES), 1.0), "nll": MOST}
    return all(
        0 <= value <= at_most[name] if name in at_most else abs(value) <= MOST
        for name, value in metrics.items()
    )


def score(
    task: Task,
    outputs: Sequence[str],
    targets: Sequence[str],
    tokens: str = ENGLISH,
    same: str = STEMS,
) -> dict[str, float]:
    """Metrics of one user's outputs.

    Parameters
    ----------
    outputs
        What the model wrote, as decoded; what counts of it: `answer_of`.
    targets
        What the user wrote, in the same order.
    tokens
        What rouge compares: `ENGLISH`, as papers do, or `UNICODE` (see `_UnicodeTokens`).
    same
        What meteor takes for the same word: `STEMS` or `WORDNET` (see `meteor`).

    Returns
    -------
    dict
        generation: ``rouge-1``, ``rouge-l``, the mean of the per-item F-measures
        (rouge-score with stemmer; an empty output scores 0; its tokens are a-z and 0-9,
        so text in other scripts scores 0, see `unread`). long: also ``meteor``.
        classification: ``accuracy`` and ``f1``. rating: ``mae`` and ``rmse``.

    Raises
    ------
    ValueError
        No outputs, or not as many outputs as targets.

    Notes
    -----
    ``f1`` is macro-F1 over the labels that occur in this user's targets or outputs.
    LaMP takes it over the whole label list, which suits one pool of thousands of
    questions; for a user whose eight questions have three of fifteen labels it would
    stop at 3/15 however good the outputs are: it would measure the user, not the model.
    """
    items = per_item(task, outputs, targets, tokens, same)
    if not items:
        raise ValueError("no outputs to score")
    values = {name: _mean([item[name] for item in items]) for name in items[0]}
    if task.kind == "classification":
        seen = {*map(first_line, outputs), *map(str.strip, targets)}
        present = [label for label in task.labels if label in seen]
        values["f1"] = macro_f1(outputs, targets, present)
    if task.kind == "rating":
        values["rmse"] = math.sqrt(_mean([item["mae"] ** 2 for item in items]))
    return values


def pooled(
    task: Task,
    outputs: Sequence[str],
    targets: Sequence[str],
    tokens: str = ENGLISH,
    same: str = STEMS,
) -> dict[str, float]:
    """Return the metrics as LaMP publishes them, over all users' questions in one list.

    They differ from the mean of `score` over users: every question weighs the same,
    macro-F1 is over the fixed label list, and the root of ``rmse`` is taken once. LaMP's
    own script reports rouge without stemmer (`PLAIN` tokens) and meteor with synonyms.
    """
    values = score(task, outputs, targets, tokens, same)
    if "f1" in values:
        values["f1"] = macro_f1(outputs, targets, task.labels)
    return values


def per_item(
    task: Task,
    outputs: Sequence[str],
    targets: Sequence[str],
    tokens: str = ENGLISH,
    same: str = STEMS,
) -> list[dict[str, float]]:
    """Those metrics that a single item has: rouge and meteor, accuracy, or mae."""
    values: list[dict[str, float]] = []
    for output, target in zip(outputs, targets, strict=True):
        text, wanted = answer_of(task, output), target.strip()
        if task.kind in ("generation", "long"):
            found = _scorer(tokens).score(wanted, text)
            names = {"rouge-1": "rouge1", "rouge-l": "rougeL"}
            values.append({k: float(found[v].fmeasure) for k, v in names.items()})
            if task.kind == "long":
                values[-1]["meteor"] = meteor(text, wanted, same)
        elif task.kind == "classification":
            values.append({"accuracy": float(text == wanted)})
        else:
            values.append({"mae": abs(_rating(text, wanted, task) - float(wanted))})
    return values


def macro_f1(
    outputs: Sequence[str], targets: Sequence[str], labels: Sequence[str]
) -> float:
    """Unweighted mean over `labels` of F1 = 2 TP / (2 TP + FP + FN).

    A label with an empty denominator counts as 0, as in scikit-learn; an output that is
    no label is a miss for its target and a false alarm for nobody.
    """
    written, wanted = list(map(first_line, outputs)), list(map(str.strip, targets))
    scores: list[float] = []
    for label in labels:
        true = list(zip(written, wanted, strict=True)).count((label, label))
        either = written.count(label) + wanted.count(label)
        scores.append(2 * true / either if either else 0.0)
    return _mean(scores) if scores else 0.0


def meteor(text: str, wanted: str, same: str = STEMS) -> float:
    """METEOR of one text, by nltk (Banerjee and Lavie 2005; Lavie and Agarwal 2007).

        F (1 - 0.5 (chunks / m)^3),  F = 10 P R / (R + 9 P)

    m words of the text are matched with words of the target: equal ones first, then those
    with equal stems (Porter), then synonyms. P and R are m over the words of the text and
    of the target; 0 without a match.

    Parameters
    ----------
    text, wanted
        What was written, and the target.
    same
        `WORDNET` is what papers report, as the library `evaluate` computes it; nltk's data
        must be installed (`wordnet_missing`). `STEMS` has no synonyms and needs no data;
        it is lower, and no published number. Its sentences end where . ! or ? are followed
        by a blank, instead of by nltk's model.
    """
    from nltk.tokenize import NLTKWordTokenizer, word_tokenize
    from nltk.translate.meteor_score import single_meteor_score

    if same == WORDNET:
        return float(single_meteor_score(word_tokenize(wanted), word_tokenize(text)))
    tokenizer = NLTKWordTokenizer()
    reference, hypothesis = (
        [word for part in _SENTENCE.split(one) for word in tokenizer.tokenize(part)]
        for one in (wanted, text)
    )
    none: Any = _NoSynonyms()
    return float(single_meteor_score(reference, hypothesis, wordnet=none))


_SENTENCE = re.compile(r"(?<=[.!?])\s+")


class _NoSynonyms:
    """A WordNet, in the shape that nltk's meteor asks for, that knows no word."""

    def synsets(self, _word: str) -> tuple[()]:
        """No meanings."""
        return ()


def wordnet_missing() -> list[str]:
    """Names of nltk's data that `WORDNET` needs and that are not installed."""
    import nltk

    found: list[str] = []
    for name, kind in (("wordnet", "corpora"), ("punkt_tab", "tokenizers")):
        try:
            nltk.data.find(f"{kind}/{name}")
        except LookupError:
            try:  # as a download leaves it
                nltk.data.find(f"{kind}/{name}.zip")
            except LookupError:
                found.append(name)
    return found


def answer_of(task: Task, output: str) -> str:
    """Return what counts of a generated text: its first line, or of a long text all."""
    return output.strip() if task.kind == "long" else first_line(output)


def first_line(output: str) -> str:
    """Return the answer inside a generated text: its first line that is not blank."""
    lines = output.strip().splitlines()
    return lines[0].strip() if lines else ""


def _rating(text: str, wanted: str, task: Task) -> float:
    """Return the rating an output means; what is no number counts as the worst answer.

    LaMP's rule: the end of the scale that is farther from the target, the upper end at
    equal distance. Numbers off the scale stay as they are.
    """
    low, high = float(task.labels[0]), float(task.labels[-1])
    worst = low if abs(low - float(wanted)) > abs(high - float(wanted)) else high
    try:
        value = float(text)
    except ValueError:
        return worst
    # "nan", "inf" and endless digits parse too, and would spoil every mean they enter.
    return value if abs(value) < 1e6 else worst


def unread(targets: Sequence[str]) -> int:
    """How many texts have no token for rouge by `ENGLISH`: whatever is written scores 0."""
    return sum(not re.search("[a-z0-9]", target.lower()) for target in targets)


@lru_cache(maxsize=3)
def _scorer(tokens: str) -> Any:
    # Here, because it brings nltk and scipy: a second of every process that never asks.
    from rouge_score.rouge_scorer import RougeScorer

    if tokens == UNICODE:
        return RougeScorer(["rouge1", "rougeL"], tokenizer=_UnicodeTokens())
    if tokens == PLAIN:
        return RougeScorer(["rouge1", "rougeL"])
    return RougeScorer(["rouge1", "rougeL"], use_stemmer=True)


class _UnicodeTokens:
    """Tokens of every script, in the shape that rouge-score asks for."""

    def tokenize(self, text: str) -> list[str]:
        """Return words; of scripts that part none, single characters; no stemmer."""
        plain = unicodedata.normalize("NFKC", text).casefold()
        return re.findall(
            rf"[{_UNPARTED}]|(?:(?![{_UNPARTED}])[\w\u0300-\u036f])+", plain
        )


# Thai, Lao, Burmese, Khmer, kana, and Chinese characters: words are not set apart.
_UNPARTED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


# --- metrics as a release with noise ---------------------------------------------------


def released_metrics(kind: Kind, generated: bool) -> tuple[str, ...]:
    """Names of the metrics in a row, in order; a run fixes them before it begins."""
    return SCORED + (GENERATED[kind] if generated else ())


def bounded_row(metrics: Mapping[str, float], names: Sequence[str]) -> np.ndarray:
    """One user's metrics as a row of bounded length.

        row = (1, m_1 / bound_1, ..., m_n / bound_n) / sqrt(n + 1),

    each m clipped to [0, bound] (`BOUNDS`). Its L2 norm is at most 1 whatever the user
    wrote, so a sum of rows can be released with Gaussian noise. A metric that is missing
    or no number counts as its bound.

    Returns
    -------
    numpy.ndarray
        float32 [len(names) + 1].
    """
    parts = [1.0]
    for name in names:
        value, bound = metrics.get(name, math.inf), BOUNDS[name]
        parts.append(1.0 if math.isnan(value) else min(max(value / bound, 0.0), 1.0))
    # Rounded to float32, the norm must not exceed 1.
    return (np.array(parts) / math.sqrt(len(parts)) * (1 - 1e-6)).astype(np.float32)


def means_of_sum(
    total: np.ndarray, names: Sequence[str], std: float
) -> dict[str, dict[str, Any]]:
    """Means over users, from the noisy sum of their rows.

    mean = bound * sum_m / sum_1. The interval is that of the noise alone, by the delta
    method: it does not say how users differ, which no release with noise here tells.

    Parameters
    ----------
    total
        Noisy sum of `bounded_row` over users, [len(names) + 1].
    names
        As they were given to `bounded_row`.
    std
        Standard deviation of the noise on each coordinate.

    Returns
    -------
    dict
        METRIC -> ``{"mean", "ci95", "n", "noise", "bound"}``, mean and interval clipped
        to [0, bound]; `n` is the noisy number of users, `noise` the standard deviation of
        the mean's noise. Empty where the noise leaves fewer than one user.
    """
    size = math.sqrt(len(total))
    users = float(total[0]) * size
    if users < 1:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for name, part in zip(names, total[1:], strict=True):
        share, bound = float(part) * size / users, BOUNDS[name]
        noise = std * size / users * math.sqrt(1 + share**2)
        low, mean, high = (
            bound * min(max(share + k * noise, 0.0), 1.0) for k in (-1.96, 0.0, 1.96)
        )
        found[name] = {"mean": mean, "ci95": [low, high], "n": round(users)} | {
            "noise": bound * noise,
            "bound": bound,
        }
    return found
