"""Numbers that others published, beside which a study's own are printed.

``[published]`` of a study has the ``source``, the ``setting`` in which they were measured,
and the ``numbers``. What a source does not state is never taken to be equal: a key of the
setting may be ``"not stated"``, and one that is left out counts as that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from ...common.config import METHODS, Config, Scalar, flatten
from ...common.config.checks import check
from ...common.config.keys import keys_of
from ...common.config.methods import BY_NAME
from ...common.data.types import STAND_IN
from ...common.errors import IdiolectError, refuse_if

NOT_STATED = "not stated"
# What a setting may state beside config keys, as it is measured in a cell: the number of
# the backbone's parameters, and the SHA-256 of all texts (`run.entry.identity_of`).
# A path says neither.
MEASURED = ("parameters", "texts")
# Keys that change no number of a table: a path, and the width of intervals.
SILENT = ("data", "users-per-node", "evaluate.bootstrap")


@dataclass(frozen=True)
class Numbers:
    """What was published for some cells, by one metric.

    Attributes
    ----------
    cell
        The keys of the grid that select the cells.
    metric
        Of `results`.
    values
        Method -> the published mean.
    """

    cell: dict[str, Scalar]
    metric: str
    values: dict[str, float]


@dataclass(frozen=True)
class Published:
    """Published numbers, and what their source states about how they were measured.

    Attributes
    ----------
    source
        Who measured them, and where they were read.
    numbers
        The table.
    setting
        Config keys, ``parameters`` and ``texts``, for all methods.
    own
        Method -> further keys, for that method alone.
    """

    source: str
    numbers: tuple[Numbers, ...]
    setting: dict[str, Scalar] = field(default_factory=dict)
    own: dict[str, dict[str, Scalar]] = field(default_factory=dict)

    def stated(self, method: str) -> dict[str, Scalar]:
        """What the source says about a method, with what it is known not to say."""
        return {**self.setting, **self.own.get(method, {})}


def read_published(raw: Any) -> Published:
    """Read and check ``[published]``.

    Raises
    ------
    IdiolectError
        A part is missing or unknown, a key or method does not exist, or a value is none.
    """
    needed = {"source", "numbers"}
    refuse_if(
        not isinstance(raw, dict)
        or not needed <= raw.keys() <= needed | {"setting"}
        or not isinstance(raw["numbers"], list)
        or not isinstance(raw.get("setting", {}), dict),
        (
            "[published] needs source and [[published.numbers]], and may have "
            "[published.setting]."
        ),
    )
    try:
        numbers = tuple(Numbers(**entry) for entry in raw["numbers"])
    except TypeError as error:
        raise IdiolectError(
            f"a [[published.numbers]] table is malformed: {error}."
        ) from None
    for entry in numbers:
        for method, value in entry.values.items():
            _check_method(method)
            refuse_if(
                isinstance(value, bool) or not isinstance(value, int | float),
                f"[[published.numbers]] has {method} = {value!r}: write a number.",
            )
    given = raw.get("setting", {})
    own = {name: keys for name, keys in given.items() if isinstance(keys, dict)}
    for method in own:
        _check_method(method)
    return Published(
        str(raw["source"]),
        numbers,
        _checked({name: value for name, value in given.items() if name not in own}),
        {method: _checked(keys) for method, keys in own.items()},
    )


def _check_method(name: str) -> None:
    refuse_if(
        name not in METHODS,
        (
            f"[published] names the method {name!r}: use any of {', '.join(METHODS)}, "
            "and quotes around a key that has a dot."
        ),
    )


def _checked(keys: Mapping[str, Any]) -> dict[str, Scalar]:
    """Return stated keys in their declared types."""
    refuse_if(
        "data" in keys,
        (
            "[published.setting] has data, but a path does not say which texts it holds: "
            "state their SHA-256 as texts."
        ),
    )
    return {
        name: cast(Scalar, value)
        if name in MEASURED or value == NOT_STATED
        else check(name, value)
        for name, value in keys.items()
    }


def check_published(published: Published, grid: Mapping[str, Sequence[Scalar]]) -> None:
    """Refuse numbers for cells that a study does not have.

    Raises
    ------
    IdiolectError
        A key is not in the grid, or a value is none of its values.
    """
    for entry in published.numbers:
        for name, value in entry.cell.items():
            refuse_if(
                value not in grid.get(name, ()),
                (
                    f"[[published.numbers]] has {name} = {value!r}: name a key of the grid "
                    "and one of its values."
                ),
            )


@dataclass(frozen=True)
class Agreement:
    """How the setting of one number of a study agrees with the published one.

    Attributes
    ----------
    invented
        Whether the texts were made up to try the study.
    differ
        Keys with another value.
    open
        Keys of which the source, or the cell, is known to say nothing.
    silent
        Keys that the number depends on and nobody mentions.
    """

    invented: bool
    differ: tuple[str, ...]
    open: tuple[str, ...]
    silent: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether everything is stated, and equal."""
        return not (self.invented or self.differ or self.open or self.silent)


def agreement(
    published: Published, method: str, config: Config, measured: Mapping[str, Any]
) -> Agreement:
    """Compare the setting of a method in a cell with the published one.

    Parameters
    ----------
    published
        What the source states.
    method
        Of the number.
    config
        Of the cell.
    measured
        Names of `MEASURED` -> value, and ``users``: names of the measured users.
    """
    stated = published.stated(method)
    ours = {**flatten(config), **{name: measured.get(name) for name in MEASURED}}
    needed = depends_on(method, config)
    known = [
        name
        for name in needed
        if stated.get(name, NOT_STATED) != NOT_STATED and ours[name] is not None
    ]
    return Agreement(
        any(str(user).startswith(STAND_IN) for user in measured.get("users", ())),
        tuple(n for n in known if not alike(n, ours[n], stated[n])),
        tuple(n for n in needed if n in stated and n not in known),
        tuple(n for n in needed if n not in stated),
    )


def depends_on(method: str, config: Config) -> tuple[str, ...]:
    """What a method's numbers depend on: config keys, and what is measured of a cell.

    Keys that do nothing in this configuration are left out: those of personas where users
    are real, of privacy where there is none, and of adapters for ``base``.
    """
    idle = ["persona."] * bool(config.data)
    idle += ["privacy."] * (config.privacy.mode == "off")
    idle += ["lora.", "adapt."] * (method == "base")
    names = [
        name
        for name in keys_of(method)
        if name not in SILENT and not name.startswith(tuple(idle))
    ]
    if not BY_NAME[method].unlabeled:
        names = [name for name in names if not name.startswith("unlabeled.")]
    return (*MEASURED, *names)


def alike(name: str, ours: Any, stated: Any) -> bool:
    """Whether two values of a key mean the same.

    Of a backbone's path only the last part has to agree, as its weights are counted
    (``parameters``); learning rates are compared as numbers.
    """
    if name == "backbone":
        return _last(ours) == _last(stated)
    if name == "personalise.learning-rates":
        return _rates(ours) == _rates(stated)
    return ours == stated


def _last(path: object) -> str:
    return str(path).rstrip("/").rpartition("/")[2]


def _rates(text: object) -> Sequence[object]:
    words = [word.strip() for word in str(text).split(",")]
    try:
        return sorted(map(float, words))
    except ValueError:  # `auto`
        return words
