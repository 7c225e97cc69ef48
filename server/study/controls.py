"""Controls: a cell with one thing broken, to see what a gain comes from.

`swapped`
    Each user is measured with a neighbour's adapter: is it the own text?
`shuffled`
    All histories are dealt out again before training: is it whose text it is? The unlabeled
    set stays as it was made: what a user is spared of it are the texts and the vote of the
    first history. So methods that use the set may lose more than they should.
`random`
    The unlabeled set has words drawn from all of its texts: does it matter what it says?
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import cast

from ...common.config import Config
from ...common.data.types import Dataset, Item, User
from ...common.engine.adapters import Lora
from ...common.errors import refuse_if
from ...common.seeds import numpy_generator
from ...common.unlabeled.sets import Unlabeled
from ..run.cohort import Run
from ..run.local import Local


def check(control: str, users: Sequence[User], config: Config) -> None:
    """Refuse a cell that cannot have its control.

    Raises
    ------
    IdiolectError
        Own votes and offers are taken out of the unlabeled set by their text, which
        `random` would change; or a user has no neighbour to swap adapters with.
    """
    refuse_if(
        control == "random" and config.unlabeled.kind not in ("others", "public"),
        (
            "control 'random' replaces texts that the server hands out as they are: set "
            f"unlabeled.kind to others or public, not {config.unlabeled.kind}."
        ),
    )
    # As `personalise.measure` divides them: texts are written for the first ones only.
    first = (config.evaluate.users or len(users)) * config.evaluate.generate
    sizes, stack = (len(users[:first]), len(users[first:])), config.engine.stack
    alone = any(n % stack == 1 or (n and stack == 1) for n in sizes)
    refuse_if(
        control == "swapped" and alone,
        (
            "control 'swapped' leaves one user of a stacking group alone, who has no "
            "neighbour: choose users and engine.stack so that none is left over."
        ),
    )


def apply(control: str, run: Run) -> None:
    """Break a run of `local_run`, between its phases pool and personalise."""
    cohort, state, seed = cast(Local, run.cohort), run.state, run.config.seed
    if control == "swapped":
        run.cohort = Swapped(run.config, state, cohort.dataset, cohort.bare)
    elif control == "shuffled":
        cohort.dataset = shuffled(cohort.dataset, seed)
    elif control == "random":
        state.unlabeled = of_random_words(state.unlabeled or (), seed)


class Swapped(Local):
    """A cohort in which everybody is measured with the next one's adapter."""

    def own(self, method: str, group: Sequence[User]) -> list[Lora | None]:
        """Those of the group, one place on."""
        first, *others = super().own(method, group)
        return [*others, first]


def shuffled(dataset: Dataset, seed: int) -> Dataset:
    """Deal the evaluated users' histories out again: as long as before, anybody's items."""
    items = [item for user in dataset.users for item in user.history]
    order = numpy_generator(seed, "shuffled").permutation(len(items))
    dealt = iter([items[i] for i in order])
    users = [
        replace(user, history=tuple(islice(dealt, len(user.history))))
        for user in dataset.users
    ]
    return replace(dataset, users=tuple(users))


def of_random_words(unlabeled: Sequence[Unlabeled], seed: int) -> tuple[Unlabeled, ...]:
    """The same prompts and lengths, with words drawn from the whole set's vocabulary."""
    words = sorted({word for e in unlabeled for word in e.item.target.split()})
    generator = numpy_generator(seed, "random words")

    def filled(item: Item) -> Item:
        picks = generator.integers(len(words), size=len(item.target.split()))
        return replace(item, target=" ".join(words[pick] for pick in picks))

    return tuple(replace(entry, item=filled(entry.item)) for entry in unlabeled)
