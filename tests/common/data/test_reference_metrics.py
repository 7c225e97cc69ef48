"""Metrics against the reference implementations: 1,000 random pairs and 50 odd ones.

`rouge_score` and scikit-learn are what LaMP's script calls, by way of `evaluate`; METEOR
of nltk stands beside the definition written out here.
"""

import math
import random
from importlib.util import find_spec

import numpy as np
import pytest

from idiolect.common.data import metrics
from idiolect.common.data.lamp.forms import FORMS

pytestmark = pytest.mark.slow

LONG = FORMS["LongLaMP-review"].task
WORDS = [
    *("the", "cat", "cats", "sat", "sitting", "on", "a", "mat,", "mats.", "Running"),
    *("run", "runs!", "it's", "don't", "U.S.", "3.50", "well-known", "(see)", "e.g."),
    *(
        "\u201cquoted\u201d",
        "caf\u00e9",
        "\u4eca\u65e5",
        "50%",
        "a/b",
        "...",
        ";",
        "end?",
    ),
]
ODD = [
    "",
    " ",
    "\n\t ",
    "a",
    "A",
    "a.",
    ". . .",
    "!!!",
    "the",
    "the the the the",
    "The THE the",
    "12345",
    "3.14 3,14",
    "caf\u00e9",
    "cafe\u0301",
    "\u4eca\u65e5\u306f\u5929\u6c17",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440",
    "\U0001f600 \U0001f600",
    "\u200b",
    "a\u00a0b",
    "line one\nline two",
    "line one\r\n\r\nline two",
    "U.S. is big. U.S.",
    "end.\u201d Next",
    "it's isn't cannot gonna",
    "x" * 5000,
    "word " * 80,
    "running runs ran run runner",
    "a-b-c a_b_c a/b/c",
    "<b>bold</b> &amp; more",
    "http://a.b/c?d=e#f",
    "``quoted'' 'single' \"double\"",
    "$5.00 50% #1 @me",
    "tab\tseparated\tvalues",
    "ALL CAPS TEXT",
    "trailing space ",
    " leading space",
    "multiple   spaces   here",
    "...",
    "-",
    "\u2014 dash \u2013 dash",
    "one, two; three: four",
    "(parens) [brackets] {braces}",
    "e.g. i.e. etc.",
    "Mr. Smith went. Dr. Who stayed?",
    "What?! No!!",
    "\u0130stanbul \u00df \u1e9e",
    "\ufb01ne \u2168",
    "0",
    "nan",
]
assert len(ODD) == 50


def pairs() -> list[tuple[str, str]]:
    """(output, target): random ones of a few words to some hundred, then the odd ones."""
    draw = random.Random(0)

    def text() -> str:
        count = draw.choice((0, 1, 2, 5, 12, 30)) if draw.random() < 0.99 else 200
        return " ".join(draw.choice(WORDS) for _ in range(count))

    found = []
    for _ in range(1000):
        target = text()
        kept = [w for w in target.split() if draw.random() < 0.7]
        draw.shuffle(kept)
        found.append((draw.choice((text(), " ".join(kept))), target))
    return found + [(one, ODD[(n * 7 + 3) % 50]) for n, one in enumerate(ODD)]


PAIRS = pairs()


@pytest.mark.parametrize(("tokens", "stemmer"), [("english", True), ("plain", False)])
def test_rouge(tokens, stemmer):
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=stemmer)
    outputs, targets = zip(*PAIRS, strict=True)
    found = metrics.per_item(LONG, outputs, targets, tokens)
    for (output, target), values in zip(PAIRS, found, strict=True):
        wanted = scorer.score(target, output)
        assert values["rouge-1"] == wanted["rouge1"].fmeasure
        assert values["rouge-l"] == wanted["rougeL"].fmeasure
    some = metrics.pooled(LONG, outputs[:50], targets[:50], tokens)
    mean = np.mean([values["rouge-1"] for values in found[:50]])
    assert some["rouge-1"] == pytest.approx(mean)


def defined(words: list[str], wanted: list[str]) -> float:
    """METEOR of two lists of words, by its definition: equal words, then equal stems."""
    from nltk.stem.porter import PorterStemmer

    stem = PorterStemmer().stem
    left, right = [w.lower() for w in words], [w.lower() for w in wanted]
    matched: dict[int, int] = {}
    for same in (str, stem):
        keys = {j: same(right[j]) for j in range(len(right))}
        for i in reversed(range(len(left))):  # nltk matches from the end
            if i not in matched:
                free = [
                    j
                    for j, key in keys.items()
                    if j not in matched.values() and key == same(left[i])
                ]
                if free:
                    matched[i] = max(free)
    m = len(matched)
    if not m:
        return 0.0
    precision, recall = m / len(left), m / len(right)
    mean = 10 * precision * recall / (recall + 9 * precision)
    places = sorted(matched.items())
    breaks = sum(
        (b[0] - a[0], b[1] - a[1]) != (1, 1)
        for a, b in zip(places, places[1:], strict=False)
    )
    return mean * (1 - 0.5 * ((breaks + 1) / m) ** 3)


def test_meteor_is_its_definition():
    from nltk.tokenize import NLTKWordTokenizer

    def words(text: str) -> list[str]:
        found: list[str] = []
        start = 0
        for place in range(1, len(text)):  # a sentence ends before blanks after . ! ?
            if text[place].isspace() and text[place - 1] in ".!?":
                found += NLTKWordTokenizer().tokenize(text[start:place])
                start = place
        return found + NLTKWordTokenizer().tokenize(text[start:])

    short = [pair for pair in PAIRS if len(pair[0]) + len(pair[1]) < 2000]
    for output, target in short[::3] + short[-48:]:
        found = metrics.meteor(output, target)
        assert found == pytest.approx(defined(words(output), words(target))), (
            output,
            target,
        )
        assert 0 <= found <= 1


@pytest.mark.skipif(bool(metrics.wordnet_missing()), reason="needs nltk's data")
def test_meteor_with_synonyms_is_that_of_evaluate():
    from nltk.tokenize import word_tokenize
    from nltk.translate.meteor_score import meteor_score

    one = "It is a guide to action which ensures that the military always obeys the "
    other = "It is a guide to action that ensures that the military will forever heed "
    both = one + "commands of the party", other + "Party commands"
    assert metrics.meteor(*both, "wordnet") == pytest.approx(0.6944, abs=1e-4)
    for output, target in PAIRS:
        wanted = meteor_score([word_tokenize(target)], word_tokenize(output))
        assert metrics.meteor(output, target, "wordnet") == wanted


def test_meteor_matches_stems_and_no_synonyms():
    assert metrics.meteor("dogs run", "dog runs") > 0.9
    assert metrics.meteor("automobile", "car") == 0
    same = metrics.score(LONG, ["One.\nTwo lines."], ["One. Two lines."])
    assert same["meteor"] == pytest.approx(1 - 0.5 / 5**3)
    assert same["rouge-l"] == 1


# --- labels and ratings -------------------------------------------------------------------


def of_labels(task: str) -> tuple[list[str], list[str]]:
    """Outputs and targets: labels, labels with blanks, and what is none."""
    draw, labels = random.Random(1), FORMS[task].task.labels
    targets = [draw.choice(labels) for _ in range(1050)]
    outputs = [
        draw.choice((target, target, draw.choice(labels), f" {target} "))
        for target in targets[:1000]
    ]
    return outputs + ["", "?", "COMEDY", "comedy.", *ODD[:46]], targets


@pytest.mark.parametrize("task", ["LaMP-1", "LaMP-2", "LaMP-2N"])
@pytest.mark.skipif(not find_spec("sklearn"), reason="needs scikit-learn")
def test_accuracy_and_f1(task):
    from sklearn.metrics import accuracy_score, f1_score  # pyright: ignore

    labels = FORMS[task].task.labels
    outputs, targets = of_labels(task)
    # As LaMP's script: numbers of labels, and -1 for what is none.
    number = {label: n for n, label in enumerate(labels)}
    said = [number.get(output.strip(), -1) for output in outputs]
    wanted = [number[target] for target in targets]
    found = metrics.pooled(FORMS[task].task, outputs, targets)
    assert found["accuracy"] == pytest.approx(accuracy_score(wanted, said))
    every = list(range(len(labels)))
    f1 = f1_score(wanted, said, labels=every, average="macro", zero_division=0)
    assert found["f1"] == pytest.approx(f1)


def test_mae_and_rmse():
    draw, task = random.Random(2), FORMS["LaMP-3"].task
    targets = [draw.choice(task.labels) for _ in range(1050)]
    outputs = [draw.choice(("1", "2", "3.5", " 4 ", "5", "6", "")) for _ in range(1000)]
    outputs += [text.replace("nan", "none") for text in ODD]

    def number(output: str, target: str) -> float:  # as LaMP's script
        try:
            return float(output.strip())
        except ValueError:
            return 1.0 if abs(1 - float(target)) > abs(5 - float(target)) else 5.0

    said = np.array([number(*pair) for pair in zip(outputs, targets, strict=True)])
    # One odd text, 12345, is a number: an error of thousands, as by the script.
    wanted = np.array(targets, float)
    found = metrics.pooled(task, outputs, targets)
    assert found["mae"] == pytest.approx(np.abs(said - wanted).mean())
    assert found["rmse"] == pytest.approx(math.sqrt(((said - wanted) ** 2).mean()))
    if find_spec("sklearn"):
        from sklearn.metrics import (  # pyright: ignore
            mean_absolute_error,
            root_mean_squared_error,
        )

        assert found["mae"] == pytest.approx(mean_absolute_error(wanted, said))
        assert found["rmse"] == pytest.approx(root_mean_squared_error(wanted, said))
