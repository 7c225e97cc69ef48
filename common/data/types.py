"""What a task is made of: items, users, and the description of the task itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, overload

if TYPE_CHECKING:  # numpy is not for commands that only read texts
    from .functionals import Functionals

# Reasons of `Dataset.dropped` that begin so count items, not users.
OF_ITEMS = ("history", "histories", "questions", "items")
TOO_LONG = "items longer than the context"
# Users of data that were made up to try a study have names that begin so.
STAND_IN = "stand-in-"

Kind = Literal["generation", "long", "classification", "rating"]


@dataclass(frozen=True)
class Prompt:
    """x, in three parts, so that only the input is ever shortened.

    A prompt longer than the context loses tokens from the left of `input`; the
    instruction around it (`before`, `after`) is never cut.
    """

    before: str
    input: str
    after: str = ""

    @property
    def text(self) -> str:
        """The whole prompt."""
        return self.before + self.input + self.after


@dataclass(frozen=True)
class Item:
    """One pair (x, y): what was asked and what this user wrote.

    `rivals` is what a held-out item is compared with (contrast, MRR): other users' texts
    for the same prompt where they exist, otherwise other users' held-out items.
    """

    id: str
    prompt: Prompt
    target: str
    rivals: "tuple[Item, ...]" = ()


@dataclass(frozen=True)
class Truth:
    """What is known about a synthetic user (personas only); see `personas`.

    Attributes
    ----------
    overlap
        Share of the other users' text that this user would also have written: the
        overlap sum_y min(p_user(y), p_others(y)) of the style distributions, in [0, 1].
        It is `functionals.overlap`, and no share of a mixture.
    own
        Attribute -> value that this user prefers and the population does not.
    shared
        Attribute -> value that this user shares with the population.
    strength
        How often the user follows an own preference, in (0, 1].
    functionals
        All four functionals of the user's texts and the other users', exactly; None for a
        truth that was written by hand.
    """

    overlap: float
    own: dict[str, str]
    shared: dict[str, str]
    strength: float
    functionals: "Functionals | None" = None


@dataclass(frozen=True)
class User:
    """One user's text. It never leaves the device; `held_out` is never trained on.

    `disliked` holds pairs that the user turned down: known negatives, which C-BPO,
    BCO and KTO use.
    """

    id: str
    history: tuple[Item, ...]
    held_out: tuple[Item, ...]
    truth: Truth | None = None
    disliked: tuple[Item, ...] = ()


class MadeUsers(Sequence[User]):
    """Users who are made when they are asked for, so that memory does not hold them all.

    Equal to nothing but itself.

    Parameters
    ----------
    names
        Of all users.
    make
        Place among them -> user. It may keep some.
    places
        Which of them these are; None: all.
    """

    def __init__(
        self,
        names: Sequence[str],
        make: Callable[[int], User],
        places: Sequence[int] | None = None,
    ) -> None:
        self._names, self._make = names, make
        self._places = range(len(names)) if places is None else places

    @property
    def names(self) -> tuple[str, ...]:
        """Of these users; none is made."""
        return tuple(self._names[place] for place in self._places)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> User: ...
    @overload
    def __getitem__(self, index: slice) -> "MadeUsers": ...
    def __getitem__(self, index: int | slice) -> "User | MadeUsers":
        if isinstance(index, slice):
            return MadeUsers(self._names, self._make, self._places[index])
        return self._make(self._places[index])

    def __add__(self, other: "MadeUsers") -> "MadeUsers":
        """These, then others of the same."""
        places = (*self._places, *other._places)
        return MadeUsers(self._names, self._make, places)


Users = tuple[User, ...] | MadeUsers


def names_of(users: Sequence[User]) -> tuple[str, ...]:
    """Return the names of users, of whom none is made for that."""
    if isinstance(users, MadeUsers):
        return users.names
    return tuple(user.id for user in users)


@dataclass(frozen=True)
class Task:
    """How outputs of a task are produced and scored.

    Attributes
    ----------
    name
        ``headline``, ``tagging``, ``rating`` (personas), a task of LaMP or LongLaMP, or
        ``text``: whatever an owner keeps on a device.
    kind
        Decides the metrics: generation -> rouge-1, rouge-l; long -> the same and meteor,
        of the whole output instead of its first line; classification -> accuracy, f1;
        rating -> mae, rmse.
    labels
        The fixed label list of a classification or rating task, else empty.
    max_new_tokens
        Budget of one generated output; `fitting.output_budget` fits it into a context.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...] = ()
    max_new_tokens: int = 32


@dataclass(frozen=True)
class Dataset:
    """Everyone who takes part in a run, and the public text beside them.

    Attributes
    ----------
    users
        The evaluated users.
    development
        Users on whom learning rates are chosen; never reported.
    public
        Public items: candidates for the bank of `votes`. Nobody's history.
    dropped
        Reason -> number of users left out (``skip-bad-users``); reasons that begin with a
        word of `OF_ITEMS` count what was left out, or not done, of users who stay.
    source
        The file that was read, or ``personas``.
    """

    task: Task
    users: Users
    development: Users = ()
    public: tuple[Item, ...] = ()
    dropped: dict[str, int] = field(default_factory=dict)
    source: str = "personas"

    @cached_property
    def everybody(self) -> Users:
        """The evaluated users, then the development users."""
        users, others = self.users, self.development
        if isinstance(users, MadeUsers) and isinstance(others, MadeUsers):
            return users + others
        return (*users, *others)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """User -> place among everybody."""
        return {name: number for number, name in enumerate(names_of(self.everybody))}
