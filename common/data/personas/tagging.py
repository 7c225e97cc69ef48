"""Tagging: the description of a film in, one of 16 tags out.

A description gives cues of three genres. An author tags the first one that counts for
them; some genres they pass over, and some they call by another name.
"""

from itertools import permutations

import numpy as np

from ..types import Prompt, Task
from .world import Event, Style, World, pick, words

# Genre -> its usual tag, the other name some people have for it, and its cues.
GENRES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "sci-fi": (
        "sci-fi",
        "dystopia",
        ("a robot", "a space ship", "a time machine", "a clone"),
    ),
    "comedy": (
        "comedy",
        "satire",
        ("a clumsy waiter", "a silly bet", "a bad joke", "a talking dog"),
    ),
    "action": (
        "action",
        "violence",
        ("a car chase", "a gun fight", "a bank robbery", "a bomb"),
    ),
    "romance": (
        "romance",
        "drama",
        ("a wedding", "a first kiss", "a love letter", "an old flame"),
    ),
    "fantasy": (
        "fantasy",
        "magic",
        ("a dragon", "a wizard", "an enchanted sword", "a fairy"),
    ),
    "horror": (
        "horror",
        "dark",
        ("a ghost", "a haunted house", "a vampire", "a curse"),
    ),
    "history": (
        "history",
        "classic",
        ("a roman emperor", "a world war", "a royal court", "a pirate fleet"),
    ),
    "mystery": (
        "mystery",
        "twist",
        ("a missing girl", "a detective", "a secret code", "a hidden room"),
    ),
}
HEROES = words("teacher nurse painter farmer sailor student doctor singer lawyer baker")
SCENES = (
    "big city",
    "small town",
    "mountain village",
    "desert",
    "lonely island",
    "suburb",
)
FILMS = (
    "A {hero} in a {scene} meets {0}, then {1} and in the end {2}.",
    "This film has {0}, {1} and {2}, and a {hero} from a {scene}.",
    "It begins with {0} in a {scene}. A {hero} is drawn into {1} and {2}.",
)
VALUES = ("passes over", "tags", "renames")


def draw(rng: np.random.Generator) -> Event:
    """Draw a film: cues of three different genres, in the order of the description."""
    genres = tuple(tuple(GENRES)[i] for i in rng.permutation(len(GENRES))[:3])
    return {
        "genres": genres,
        "cues": tuple(pick(rng, GENRES[genre][2]) for genre in genres),
        "hero": pick(rng, HEROES),
        "scene": pick(rng, SCENES),
        "film": int(rng.integers(len(FILMS))),
    }


def prompt(event: Event) -> Prompt:
    """Describe the film and ask for its tag."""
    film = FILMS[event["film"]].format(*event["cues"], **event)
    return Prompt("Tag this film: ", film, "\nTag:")


def write(event: Event, style: Style) -> str:
    """Name the first genre that counts; if none does, the first one."""
    for genre in event["genres"]:
        usual, other, _ = GENRES[genre]
        if style[genre] == "tags":
            return usual
        if style[genre] == "renames":
            return other
    return GENRES[event["genres"][0]][0]


TAGGING = World(
    task=Task(
        "tagging",
        "classification",
        labels=tuple(
            tag for usual, other, _ in GENRES.values() for tag in (usual, other)
        ),
        max_new_tokens=6,
    ),
    attributes=dict.fromkeys(GENRES, VALUES),
    draw=draw,
    prompt=prompt,
    write=write,
    situations=tuple(
        {"genres": genres, "cues": genres, "hero": "", "scene": "", "film": 0}
        for genres in permutations(GENRES, 3)
    ),
    relevant=lambda event: event["genres"],
)
