"""What the three persona tasks have in common: a world that people write about.

An *event* is what a text is about; a *style* gives every attribute of the world a value;
`World.write` is a plain function of the two. Nothing here is random: authors, who choose
styles, are in `authors`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..types import Prompt, Task

Style = dict[str, str]
# Each world has events of its own and is the only one to look inside.
Event = dict[str, Any]


@dataclass(frozen=True)
class World:
    """One persona task.

    Attributes
    ----------
    task
        Its description for the engine.
    attributes
        Attribute -> the values it can take.
    draw
        Random generator -> event.
    prompt
        Event -> prompt. It carries the whole content and nothing of anybody's style.
    write
        Event, style -> the text that this style makes of this event.
    situations
        Events that represent all others: whether two styles give the same text depends on
        an event only through the situation that it is an instance of. Equally likely.
    relevant
        Event -> the attributes on which its text depends.
    """

    task: Task
    attributes: dict[str, tuple[str, ...]]
    draw: Callable[[np.random.Generator], Event]
    prompt: Callable[[Event], Prompt]
    write: Callable[[Event, Style], str]
    situations: tuple[Event, ...]
    relevant: Callable[[Event], tuple[str, ...]]


def pick(rng: np.random.Generator, options: tuple[Any, ...]) -> Any:
    """One of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def picks(
    rng: np.random.Generator, choices: Mapping[str, tuple[Any, ...]]
) -> dict[str, Any]:
    """One of the options of each name, as `pick` would one after the other; sooner."""
    drawn = rng.integers([len(options) for options in choices.values()]).tolist()
    both = zip(choices.items(), drawn, strict=True)
    return {name: options[place] for (name, options), place in both}


def words(text: str) -> tuple[str, ...]:
    """Split the words of a list that is easier to read as a sentence."""
    return tuple(text.split())
