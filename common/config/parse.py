"""Flat ``key = value`` pairs, as TOML and Flower have them, into a `Config` and back.

Sections are written with a dot (``adapt.rounds``), underscores with a dash
(``skip-bad-users``). Whatever is wrong is an `IdiolectError` that names the key, the value
and what is allowed.
"""

import contextlib
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import refuse_if
from ..text import printable, read_toml
from . import checks, old, presets
from .keys import FIELDS, Config, Scalar, defaults, flatten


def parse(values: Mapping[str, object]) -> Config:
    """Parse flat key-value pairs, typed as TOML gives them.

    Values of a preset that is named stand below those that are given. A preset of which
    nothing is left is not named any more.

    Raises
    ------
    IdiolectError
        Unknown key, wrong type, value out of range, or keys that contradict each other.
    """
    given = {
        name: checks.check(name, value) for name, value in old.current(values).items()
    }
    preset = presets.read(str(given.get("preset", "")))
    together = {**preset, **given}
    if not any(together[name] == value for name, value in preset.items()):
        together.pop("preset", None)
    usual, sections = Config(), defaultdict[str, dict[str, Any]](dict)
    for name, value in together.items():
        section, _, key = name.replace("-", "_").rpartition(".")
        sections[section][key] = value
    top = sections.pop("", {})
    made = {name: replace(getattr(usual, name), **sections[name]) for name in sections}
    config = replace(usual, **top, **made)
    checks.check_together(config)
    return config


def parse_word(name: str, text: str) -> Scalar:
    """Type one ``key=value`` from a command line by the key's declared type.

    Text needs no quotes: ``backbone=Qwen/Qwen2.5-0.5B-Instruct``.
    """
    wanted = type({**old.FIXED, **defaults()}.get(old.RENAMED.get(name, name), ""))
    value: Scalar = text
    if wanted is bool and text.lower() in ("true", "false"):
        value = text.lower() == "true"
    elif wanted in (int, float):
        with contextlib.suppress(ValueError):  # also of a number of thousands of digits
            value = wanted(text)
    for known, meant in old.current({name: value}).items():
        value = checks.check(known, meant)
    return value


def absolute_backbone(name: str, folder: Path | None = None) -> str:
    """Make a backbone's path absolute, once, where it is given: later it is read elsewhere.

    Parameters
    ----------
    name
        ``tiny``, a folder, or the id of a model.
    folder
        What a relative path is relative to; None: the current one.

    Returns
    -------
    str
        The folder's absolute path if there is one; otherwise the name as it is.

    Raises
    ------
    IdiolectError
        It is written as a path and no folder is there. The hub is never asked for one.
    """
    if name == "tiny":
        return name
    try:
        place = ((folder or Path.cwd()) / Path(name).expanduser()).resolve()
        if place.is_dir():
            return str(place)
    except (OSError, RuntimeError, ValueError):  # too long, nobody's home, a NUL
        place = Path(name)
    written_as_path = name.startswith((".", "~", "/")) or name.endswith("/")
    refuse_if(
        written_as_path or name.count("/") > 1 or "\\" in name or place.exists(),
        f"backbone '{printable(name, 300)}' is not a folder ({place}): give `tiny`, an "
        "existing folder, or the id of a model as ORGANISATION/NAME.",
    )
    return name


def to_toml(config: Config) -> str:
    """Write a config as flat TOML that `from_toml` reads back."""
    return flat_toml(flatten(config))


def flat_toml(values: Mapping[str, Scalar]) -> str:
    """Write flat keys as TOML, a key with a dot in quotes."""
    return "".join(
        f"{json.dumps(name) if '.' in name else name} = {toml_value(value)}\n"
        for name, value in values.items()
    )


def toml_value(value: Scalar) -> str:
    """Write one value as TOML does."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def from_toml(text: str) -> Config:
    """Read what `to_toml` wrote, also in version 0.2, which wrote the run's place too."""
    values = read_toml(text)
    return parse({key: values[key] for key in values if key not in old.PLACE})


def differences(one: Config, two: Config) -> list[str]:
    """Keys that two configs have at different values."""
    first, second = flatten(one), flatten(two)
    return [name for name in FIELDS if first[name] != second[name]]
