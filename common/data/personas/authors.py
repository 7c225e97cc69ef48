"""Authors: who follows which style how often, and how much two of them have in common.

The population prefers one value per attribute. An author shares some of these
preferences and has own ones for the rest; nobody follows a preference always:

    p_population(v) = FOLLOWED [v is the population's value] + (1 - FOLLOWED) uniform(rest)
    p_author(v)     = strength [v is the own value] + (1 - strength) p_population(v)

and p_author = p_population for a shared attribute. Attributes are independent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

from ...config import Persona
from ...seeds import numpy_generator
from ..functionals import Functionals, functionals
from .world import Style, World, pick

# How often the population's value of an attribute is followed. Below 1 so that even the
# shared style must be learned from noise.
FOLLOWED = 0.9
# Strengths of the authors spread this far around the mean, less where [0, 1] ends.
STRENGTH_SPREAD = 0.15


@dataclass(frozen=True, eq=False)
class Author:
    """Somebody who writes.

    Attributes
    ----------
    own, shared
        Attribute -> preferred value; every attribute is in exactly one of the two.
    strength
        How often an own preference is followed, in (0, 1].
    chances
        Probability of every value of every attribute: float64 [attributes, largest number
        of values], in the world's order, zero where an attribute has fewer values.
    """

    name: str
    own: Style
    shared: Style
    strength: float
    chances: np.ndarray


def population(world: World, seed: int) -> Style:
    """Return the value of every attribute that the population prefers."""
    rng = numpy_generator(seed, "population", world.task.name)
    return {name: pick(rng, values) for name, values in world.attributes.items()}


def draw_author(world: World, seed: int, name: str, persona: Persona) -> Author:
    """Draw the author of a name; the same name is the same author in every run.

    The share of shared attributes follows the arcsine law on the widest interval around
    ``persona.overlap`` within [0, 1]. It favours both ends, so that a run has authors who
    write like everybody as well as authors who write like nobody.
    """
    rng = numpy_generator(seed, "author", world.task.name, name)
    usual = population(world, seed)
    reach = min(persona.overlap, 1 - persona.overlap)
    share = persona.overlap + reach * np.cos(np.pi * rng.uniform())
    # Stochastic rounding keeps the mean of the share exact.
    count = int((1 - share) * len(usual) + rng.uniform())
    chosen = set(rng.permutation(len(usual))[:count].tolist())
    own = {
        attribute: pick(rng, tuple(v for v in values if v != usual[attribute]))
        for i, (attribute, values) in enumerate(world.attributes.items())
        if i in chosen
    }
    spread = min(STRENGTH_SPREAD, 1 - persona.strength, persona.strength)
    strength = persona.strength + spread * rng.uniform(-1, 1)
    shared = {key: value for key, value in usual.items() if key not in own}
    return Author(name, own, shared, strength, _chances(world, usual, own, strength))


def _chances(world: World, usual: Style, own: Style, strength: float) -> np.ndarray:
    """Tabulate the formulas at the head of this file."""
    width = max(len(values) for values in world.attributes.values())
    table = np.zeros((len(world.attributes), width))
    for row, (name, values) in zip(table, world.attributes.items(), strict=True):
        row[: len(values)] = (1 - FOLLOWED) / (len(values) - 1)
        row[values.index(usual[name])] = FOLLOWED
        if name in own:
            row *= 1 - strength
            row[values.index(own[name])] += strength
    return table


def draw_style(world: World, chances: np.ndarray, rng: np.random.Generator) -> Style:
    """Draw a value for every attribute, independently."""
    uniform = rng.uniform(size=(len(chances), 1))
    drawn = (chances.cumsum(axis=1) < uniform).sum(axis=1)
    return {
        # min: a row may sum to a hair less than one.
        name: values[min(int(i), len(values) - 1)]
        for i, (name, values) in zip(drawn, world.attributes.items(), strict=True)
    }


def everyman(world: World, seed: int) -> Author:
    """The population as one author: nobody in particular."""
    usual = population(world, seed)
    return Author("everyman", {}, usual, 1.0, _chances(world, usual, {}, 1.0))


def combinations(world: World) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Enumerate all texts of all situations.

    Returns
    -------
    rows, columns
        Integers [situations, combinations, relevant attributes]: which of an author's
        chances are multiplied for one combination of values.
    text
        Integers [situations, combinations]: number of the text that it gives, different
        between situations.
    """
    names = list(world.attributes)
    rows, columns, text, seen = [], [], [], {}
    for number, event in enumerate(world.situations):
        relevant = world.relevant(event)
        values = [world.attributes[name] for name in relevant]
        choices = list(product(*(range(len(v)) for v in values)))
        styles = [dict(zip(relevant, style, strict=True)) for style in product(*values)]
        keys = [(number, world.write(event, style)) for style in styles]
        rows.append([[names.index(name) for name in relevant]] * len(choices))
        columns.append(choices)
        text.append([seen.setdefault(key, len(seen)) for key in keys])
    return np.array(rows), np.array(columns), np.array(text)


def exact(world: World, authors: Sequence[Author]) -> Callable[[int], Functionals]:
    """Return a function: which author -> the functionals with the mean of the others.

    They are exact. See `distributions`: `overlap` is mean over situations of
    sum_y min(p(y), u(y)), `classifier_mean` is a mean over situations too, and
    `share_bound` the least of them.
    """
    of = distributions(world, authors)
    return lambda number: functionals(*of(number))


def distributions(
    world: World, authors: Sequence[Author]
) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """Return a function: which author -> p and u over pairs of a situation and a text.

    p is the author's and u the mean of the other authors': the kind `others` draws its
    unlabeled items from this u, since it holds everybody's histories, of one length, and
    no user trains against the own one. Both are float64 [pairs] and sum to 1.

    Parameters
    ----------
    authors
        At least two.
    """
    rows, columns, text = combinations(world)
    size = int(text.max()) + 1

    def texts(author: Author) -> np.ndarray:
        chances = author.chances[rows, columns].prod(axis=-1) / len(world.situations)
        return np.bincount(text.ravel(), chances.ravel(), size)

    @cache
    def total() -> np.ndarray:
        return sum(map(texts, authors), np.zeros(size))

    def of(number: int) -> tuple[np.ndarray, np.ndarray]:
        mine = texts(authors[number])
        # max: a text that nobody else writes can have -1e-19 left.
        return mine, np.maximum(total() - mine, 0.0) / (len(authors) - 1)

    return of
