"""How texts are written, as numbers: features that need no model and no training.

Each family gives one row per text. What a text is about is masked: of the character
n-grams (`distorted`) only function words, punctuation and the shapes of other words stay
(Stamatatos 2017, "Authorship attribution using text distortion").
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from .ngrams import hashed

# English words that say how something is said and little of what. Texts in other languages
# have no such feature and are told apart by the other families.
_LIST = """
    a about after again against all also always am an and any are as at away back be
    because been before being but by can cannot could did do does doing don't down during
    each else ever every few first for from further get got had has have having he her here
    hers him his how however i if in into is isn't it it's its just last least less let
    like made make many may me might more most much must my near need never new next no nor
    not now of off often on once one only or other our out over own per perhaps quite rather
    really same says she should since so some still such than that that's the their them
    then there these they this those though through thus to too toward towards two under
    until up upon us use using very via was way we well were what when where whether which
    while who whom whose why will with within without won't would yet you your
    you're
"""
FUNCTION_WORDS = tuple(_LIST.split())
MARKS = ".,;:!?-–—'’‘\"“”()[]/&%$#@*|…"
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_KNOWN = frozenset(FUNCTION_WORDS)


def words(text: str) -> list[str]:
    """Words of a text in small letters; what is between letters parts them."""
    return [found.replace("’", "'") for found in _WORD.findall(text.lower())]


def content_words(text: str) -> list[str]:
    """Words of a text that are no function words."""
    return [word for word in words(text) if word not in _KNOWN]


def distorted(text: str) -> str:
    """The text without what it is about: letters of content words become a or A, digits 0.

    Function words, blanks and marks stay as they are.
    """

    def masked(found: re.Match[str]) -> str:
        word = found[0]
        if word.lower().replace("’", "'") in _KNOWN:
            return word
        return "".join("A" if c.isupper() else "a" if c.isalpha() else c for c in word)

    return _WORD.sub(masked, re.sub(r"\d", "0", text))


def content_similarity(output: str, target: str) -> float:
    """Cosine of the counts of content words, in [0, 1]; 0 where a text has none."""
    one, other = Counter(content_words(output)), Counter(content_words(target))
    product = sum(count * other[word] for word, count in one.items())
    lengths = [sum(n * n for n in counts.values()) ** 0.5 for counts in (one, other)]
    return product / (lengths[0] * lengths[1]) if product else 0.0


# --- the families -----------------------------------------------------------------------


def _shapes(texts: Sequence[str]) -> np.ndarray:
    """Hashed character 3-, 4- and 5-grams of the distorted texts."""
    return hashed([distorted(text) for text in texts])


def _function_words(texts: Sequence[str]) -> np.ndarray:
    """Share of each function word among the words of a text."""
    rows = np.zeros((len(texts), len(FUNCTION_WORDS)))
    place = {word: i for i, word in enumerate(FUNCTION_WORDS)}
    for row, text in zip(rows, texts, strict=True):
        found = words(text)
        for word in found:
            if word in place:
                row[place[word]] += 1 / len(found)
    return rows


def _marks(texts: Sequence[str]) -> np.ndarray:
    """Per character: each mark, digits, capitals; how a text begins and ends."""
    rows = [
        [
            *(text.count(mark) / max(len(text), 1) for mark in MARKS),
            sum(map(str.isdigit, text)) / max(len(text), 1),
            sum(map(str.isupper, text)) / max(len(text), 1),
            float(text[:1].isupper()),
            *(float(text[-1:] == mark) for mark in ".!?"),
        ]
        for text in texts
    ]
    return np.array(rows, np.float64).reshape(len(texts), -1)


def _lengths(texts: Sequence[str]) -> np.ndarray:
    """Words (as a logarithm), letters per word, share of capitalised and of short words."""
    rows: list[list[float]] = []
    for text in texts:
        found = _WORD.findall(text)
        count = max(len(found), 1)
        rows.append(
            [
                float(np.log1p(len(found))),
                sum(map(len, found)) / count,
                sum(word[0].isupper() for word in found) / count,
                sum(word.isupper() for word in found) / count,
                sum(len(word) <= 3 for word in found) / count,
            ]
        )
    return np.array(rows, np.float64).reshape(len(texts), -1)


FAMILIES: tuple[Callable[[Sequence[str]], np.ndarray], ...] = (
    _shapes,
    _function_words,
    _marks,
    _lengths,
)


def features(texts: Sequence[str]) -> list[np.ndarray]:
    """One array [n, d] per family, float64."""
    clean = [text.strip() for text in texts]
    return [family(clean) for family in FAMILIES]
