"""Rating: the review of a product in, the stars that its author gave out.

A review praises or blames three aspects. How much each aspect weighs, and how generous
the author is in general, is personal.
"""

from itertools import combinations, product

import numpy as np

from ..types import Prompt, Task
from .world import Event, Style, World, pick, words

# Aspect -> what is said when it is good, and when it is bad.
ASPECTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "price": (
        ("it is cheap", "it is worth the money", "the price is fair"),
        ("it is too dear", "it is a waste of money", "the price is a joke"),
    ),
    "quality": (
        ("it is well made", "it feels solid", "it still works"),
        ("it is badly made", "it feels flimsy", "it broke at once"),
    ),
    "delivery": (
        ("it came early", "it was well packed", "shipping was quick"),
        ("it came late", "the box was torn", "shipping was slow"),
    ),
    "design": (
        ("it looks great", "the colour is lovely", "it fits well"),
        ("it looks ugly", "the colour is wrong", "it does not fit"),
    ),
    "service": (
        ("the staff was kind", "they answered quickly", "returns are easy"),
        ("the staff was rude", "they never answered", "returns are hard"),
    ),
    "manual": (
        ("the manual is clear", "setup was easy", "it is simple to use"),
        ("the manual is useless", "setup was painful", "it is hard to use"),
    ),
}
PRODUCTS = words(
    "kettle lamp chair clock radio phone jacket backpack bicycle blender heater tent"
)
REVIEWS = (
    "I bought this {thing}: {0}, {1} and {2}.",
    "About the {thing}, {0}, {1}, and {2}.",
    "My new {thing}? Well, {0}, {1} and {2}.",
)
WEIGHTS = {"ignores": 0, "minds": 1, "insists": 2}
BIAS = {"harsh": -1, "fair": 0, "generous": 1}
MIDDLE, SCALE = 3, (1, 2, 3, 4, 5)


def draw(rng: np.random.Generator) -> Event:
    """Draw a review: three different aspects, whether each is good, and words for it."""
    aspects = tuple(tuple(ASPECTS)[i] for i in rng.permutation(len(ASPECTS))[:3])
    good = tuple(bool(rng.integers(2)) for _ in aspects)
    return {
        "aspects": aspects,
        "good": good,
        "remarks": tuple(
            pick(rng, ASPECTS[aspect][0 if fine else 1])
            for aspect, fine in zip(aspects, good, strict=True)
        ),
        "thing": pick(rng, PRODUCTS),
        "review": int(rng.integers(len(REVIEWS))),
    }


def prompt(event: Event) -> Prompt:
    """Show the review and ask for its stars."""
    review = REVIEWS[event["review"]].format(*event["remarks"], **event)
    return Prompt("Rate this review: ", review, "\nStars:")


def write(event: Event, style: Style) -> str:
    """Write the stars: 3 + bias + the weighted remarks, kept within 1 to 5."""
    stars = MIDDLE + BIAS[style["bias"]]
    for aspect, good in zip(event["aspects"], event["good"], strict=True):
        stars += WEIGHTS[style[aspect]] * (1 if good else -1)
    return str(min(SCALE[-1], max(SCALE[0], stars)))


RATING = World(
    task=Task("rating", "rating", tuple(map(str, SCALE)), max_new_tokens=4),
    attributes={aspect: tuple(WEIGHTS) for aspect in ASPECTS} | {"bias": tuple(BIAS)},
    draw=draw,
    prompt=prompt,
    write=write,
    situations=tuple(
        {"aspects": aspects, "good": good, "remarks": (), "thing": "", "review": 0}
        for aspects in combinations(ASPECTS, 3)
        for good in product((True, False), repeat=3)
    ),
    relevant=lambda event: (*event["aspects"], "bias"),
)
