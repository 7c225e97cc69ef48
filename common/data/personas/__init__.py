"""Personas: seeded synthetic users with a known style, for three LaMP-shaped tasks.

Everything about an author comes from (seed, task, name), and everything about an item
from (seed, task, name, number): a user's text depends neither on how many users there are
nor on how long the histories are. Only `Truth.functionals`, `Truth.overlap` among them,
and the rivals of held-out items refer to the other users of the run.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from ...config import MOST_MADE, Config
from ...errors import IdiolectError, refuse_if
from ...seeds import numpy_generator
from ..functionals import Functionals
from ..types import Dataset, Item, MadeUsers, Truth, User, Users
from .authors import Author, draw_author, draw_style, everyman, exact
from .headline import HEADLINE, read
from .rating import RATING
from .tagging import TAGGING
from .world import Event, World

WORLDS = {world.task.name: world for world in (HEADLINE, TAGGING, RATING)}

# What a prompt may be used for is a function of its text, so no held-out prompt is in
# anybody's history, in the public text or in the training text of the tiny backbone.
PURPOSES = ("history",) * 6 + ("held-out", "public")

TRIES = 100  # texts of the population, of which the author may like each
MOST_HELD = 500  # users whom memory holds; more are made when they are asked for
KEPT = 64  # of those, who were asked for last
MISSES = 10_000  # draws in a row without a new prompt, after which there are none


def make(config: Config) -> Dataset:
    """Make the users of a run.

    Parameters
    ----------
    config
        Used are ``seed``, ``task``, ``users``, ``development-users``, ``history``,
        ``held-out``, ``disliked``, ``evaluate.rivals``, ``persona.*`` and
        ``unlabeled.bank``: the number of public items, each by an author of its own who is
        drawn like the users.
    """
    world = WORLDS[config.task]
    people = config.users + config.development_users
    each = config.history + config.held_out + config.disliked
    more = f" and 'disliked' {config.disliked}" if config.disliked else ""
    refuse_if(
        people * each > MOST_MADE,
        f"'history' is {config.history} and 'held-out' {config.held_out}{more}: {people} "
        f"users would have {people * each} items, and at most {MOST_MADE} are made; "
        "lower one of them, users or development-users.",
    )
    users = _authors(world, config, "persona-{:03d}", config.users)
    development = _authors(world, config, "dev-{:03d}", config.development_users)
    public = _authors(world, config, "public-{:05d}", config.unlabeled.bank)
    run = users + development
    # A lone user is compared with the public authors instead.
    everybody = run if len(run) > 1 else run + public
    overlapping = exact(world, everybody)

    @lru_cache(maxsize=KEPT)
    def made(number: int) -> User:
        return _user(world, config, number, overlapping(number), everybody)

    all_of_run: Users = MadeUsers([author.name for author in run], made)
    if people <= MOST_HELD:
        all_of_run = tuple(all_of_run)
    return Dataset(
        task=world.task,
        users=all_of_run[: len(users)],
        development=all_of_run[len(users) :],
        public=tuple(
            _item(world, config, author, event, f"{author.name}/0")
            for author in public
            for event in _events(world, config, author.name, "public", 1)
        ),
    )


def score_style(user: User, outputs: Sequence[str]) -> dict[str, float]:
    """Share of a user's preferences that generated texts follow.

    Returns
    -------
    dict
        ``own-style`` and ``shared-style``: share of the user's own and shared attributes
        that have the user's preferred value, mean over the outputs. A key is missing
        where the user has no such attribute; the dict is empty for tasks whose outputs
        do not show a style (tagging, rating) and for users who are no personas.
    """
    truth, known = user.truth, HEADLINE.attributes.keys()
    if truth is None or truth.own.keys() | truth.shared.keys() != known:
        return {}
    scores: dict[str, float] = {}
    styles = [read(text) for text in outputs]
    for name, wanted in (("own-style", truth.own), ("shared-style", truth.shared)):
        hits = [style.get(key) == wanted[key] for style in styles for key in wanted]
        if hits:
            scores[name] = sum(hits) / len(hits)
    return scores


def purpose(world: World, event: Event) -> str:
    """Return what a prompt is for: ``history``, ``held-out`` or ``public``."""
    number = zlib.crc32(world.prompt(event).text.encode())
    return PURPOSES[number % len(PURPOSES)]


def draw_event(world: World, rng: np.random.Generator, wanted: str) -> Event:
    """Draw an event whose prompt is for the wanted purpose."""
    while True:
        event = world.draw(rng)
        if purpose(world, event) == wanted:
            return event


def _authors(world: World, config: Config, name: str, count: int) -> list[Author]:
    return [
        draw_author(world, config.seed, name.format(i), config.persona)
        for i in range(count)
    ]


def _events(
    world: World, config: Config, name: str, wanted: str, count: int
) -> list[Event]:
    """Events with different prompts; fewer of them are a prefix of more."""
    rng = numpy_generator(config.seed, "events", world.task.name, name, wanted)
    events: dict[str, Event] = {}
    misses = 0
    while len(events) < count:
        event = draw_event(world, rng, wanted)
        text = world.prompt(event).text
        misses = misses + 1 if text in events else 0
        if misses == MISSES:
            raise IdiolectError(
                f"task '{world.task.name}' has not much more than {len(events)} different "
                f"prompts for {wanted}, and {count} are wanted: lower the key that asks "
                "for them, such as history or held-out."
            )
        events.setdefault(text, event)
    return list(events.values())


def _item(
    world: World, config: Config, author: Author, event: Event, name: str
) -> Item:
    """One text; the item's name seeds the style that the author is in that day."""
    rng = numpy_generator(config.seed, "style", world.task.name, author.name, name)
    style = draw_style(world, author.chances, rng)
    return Item(name, world.prompt(event), world.write(event, style))


def _user(
    world: World,
    config: Config,
    number: int,
    known: Functionals,
    everybody: list[Author],
) -> User:
    author = everybody[number]

    def items(wanted: str, count: int) -> Iterator[tuple[Event, Item]]:
        for i, event in enumerate(_events(world, config, author.name, wanted, count)):
            name = f"{author.name}/{wanted}-{i}"
            yield event, _item(world, config, author, event, name)

    history = tuple(item for _, item in items("history", config.history))
    held_out = tuple(
        replace(item, rivals=_rivals(world, config, item, event, number, everybody))
        for event, item in items("held-out", config.held_out)
    )
    truth = Truth(known.overlap, author.own, author.shared, author.strength, known)
    disliked = tuple(_disliked(world, config, author))
    return User(author.name, history, held_out, truth, disliked)


def _disliked(world: World, config: Config, author: Author) -> Iterator[Item]:
    """What the author would strike out: the population's texts at the author's prompts.

    At each prompt of the history in turn the first that is neither what the author wrote
    there nor what the author's preferences make of it. Where the population writes nothing
    else, the prompt is passed over.
    """
    if not config.disliked:
        return
    wanted, crowd = {**author.shared, **author.own}, everyman(world, config.seed)
    asked = _events(world, config, author.name, "history", config.disliked)
    for i, event in enumerate(asked):
        rng = numpy_generator(config.seed, "disliked", world.task.name, author.name, i)
        own = _item(world, config, author, event, f"{author.name}/history-{i}").target
        for _ in range(TRIES):
            text = world.write(event, draw_style(world, crowd.chances, rng))
            if text not in (own, world.write(event, wanted)):
                name = f"{author.name}/disliked-{i}"
                yield Item(name, world.prompt(event), text)
                break


def _rivals(
    world: World,
    config: Config,
    item: Item,
    event: Event,
    number: int,
    everybody: list[Author],
) -> tuple[Item, ...]:
    """Texts of other authors for the same prompt, ``evaluate.rivals`` of them at most.

    The first, in a seeded order, whose text differs. Where everybody would write the same
    (five stars for nothing but praise), it is another author's first held-out item.
    """
    found: list[Item] = []
    rng = numpy_generator(config.seed, "rival", world.task.name, item.id)
    order = rng.permutation(len(everybody) - 1)
    order += order >= number  # of all but author `number`
    for other in (everybody[i] for i in order):
        rival = _item(world, config, other, event, f"{item.id}/by-{other.name}")
        if rival.target != item.target:
            found.append(rival)
        if len(found) == config.evaluate.rivals:
            return tuple(found)
    if len(order) and not found:
        other = everybody[order[0]]
        (elsewhere,) = _events(world, config, other.name, "held-out", 1)
        name = f"{other.name}/held-out-0"
        found.append(_item(world, config, other, elsewhere, name))
    return tuple(found)
