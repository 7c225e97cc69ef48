"""Flat ``key = value`` pairs, as TOML and Flower have them, into a `Config` and back.

Sections are written with a dot (``adapt.rounds``), underscores with a dash
(``skip-bad-users``). Whatever is wrong is an `IdiolectError` that names the key, the value
and what is allowed.
"""

import contextlib
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..errors import refuse_if
from ..text import printable, read_toml
from . import old, presets
from .checks import check, check_text, check_together, refused
from .keys import FIELDS, LONGEST, LONGEST_NAME, Config, Scalar, defaults, flatten

# Backbones that are not looked for among files. `tiny` comes with idiolect, `smollm2` with
# a package of its own.
BUILT_IN = ("tiny", "smollm2")


def parse(values: Mapping[str, object]) -> Config:
    """Parse flat key-value pairs, typed as TOML gives them.

    Values of a preset that is named stand below those that are given. A preset of which
    nothing is left is not named any more.

    Raises
    ------
    IdiolectError
        Unknown key, wrong type, value out of range, or keys that contradict each other.
    """
    given = {name: check(name, value) for name, value in old.current(values).items()}
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
    check_together(config)
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
        value = check(known, meant)
    return value


def absolute_backbone(name: str, folder: Path | None = None) -> str:
    """Make a backbone's path absolute, once, where it is given: later it is read elsewhere.

    Parameters
    ----------
    name
        One of `BUILT_IN`, a folder, a GGUF file, or the id of a model.
    folder
        What a relative path is relative to; None: the current one.

    Returns
    -------
    str
        The absolute path of the folder or file if there is one; otherwise the name as it
        is.

    Raises
    ------
    IdiolectError
        It is written as a path, and neither a folder nor a GGUF file is there. The hub is
        never asked for one.
    """
    if name in BUILT_IN:
        return name
    try:
        place = ((folder or Path.cwd()) / Path(name).expanduser()).resolve()
        if place.is_dir() or is_gguf(place):
            return str(place)
    except (OSError, RuntimeError, ValueError):  # too long, nobody's home, a NUL
        place = Path(name)
    written_as_path = name.startswith((".", "~", "/")) or name.lower().endswith(
        ("/", ".gguf")
    )
    refuse_if(
        written_as_path or name.count("/") > 1 or "\\" in name or place.exists(),
        f"backbone '{printable(name, 300)}' is neither a folder nor a GGUF file ({place}): "
        "give `tiny`, `smollm2`, an existing folder or file, or ORGANISATION/NAME.",
    )
    return name


def is_gguf(place: Path) -> bool:
    """Whether a path is that of a GGUF file, by its name or, as Ollama's, its beginning."""
    if not place.is_file():
        return False
    if place.suffix.lower() == ".gguf":
        return True
    with place.open("rb") as stream:
        return stream.read(4) == b"GGUF"


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


# --- options ----------------------------------------------------------------------------
# Where a run is written and how it is called: options of the command, no experiment.
# `idiolect-server simulate` and `run` take them as `--name`, `--resume` and `--output-dir`.
# Flower passes on `key = value` pairs only, so an app's table lists them beside the keys of
# the configuration, as `run.name`, `run.resume` and `run.folder`. A message has the name.

# Names of the same in version 0.2.
OLD = {"run-name": "run.name", "resume": "run.resume", "output-dir": "run.folder"}


@dataclass(frozen=True)
class RunOptions:
    """Options of one start of a run.

    Attributes
    ----------
    name
        Name of a new run; empty: made from task, time and seed.
    resume
        Name of a run to continue, or ``latest``.
    folder
        Where runs are written; empty: ``$IDIOLECT_HOME/runs``.
    """

    name: str = ""
    resume: str = ""
    folder: str = ""

    def flat(self) -> dict[str, Scalar]:
        """Return the options as Flower passes them on."""
        return {f"run.{name}": value for name, value in vars(self).items()}


OPTIONS = tuple(f"run.{entry.name}" for entry in fields(RunOptions))


def split(values: Mapping[str, object]) -> tuple[RunOptions, dict[str, object]]:
    """Separate the options from the keys of a configuration, which stay unchecked.

    Raises
    ------
    IdiolectError
        An option is not text, too long, or a name that cannot be printed.
    """
    keys: dict[str, object] = {}
    options: dict[str, str] = {}
    for given, value in values.items():
        name = OLD.get(given, given)
        if name not in OPTIONS:
            keys[given] = value
            continue
        if not isinstance(value, str):
            raise refused(name, value, "it is text")
        path = name == "run.folder"
        check_text(name, value, longest=LONGEST if path else LONGEST_NAME)
        if not path and not value.isprintable():
            why = "it names a folder; use letters, digits and dashes"
            raise refused(name, value, why)
        options[name.removeprefix("run.")] = value
    return RunOptions(**options), keys


def parse_run(values: Mapping[str, object]) -> tuple[Config, RunOptions]:
    """Parse what Flower or a message hands over: a configuration and the options.

    Raises
    ------
    IdiolectError
        As `parse`; or a preset is named, and all that it sets stands at other values:
        Flower passes on every key of the app's table, so the name alone sets nothing.
    """
    options, keys = split(values)
    config = parse(keys)
    named = keys.get("preset", "")
    if named and not config.preset:
        raise refused(
            "preset",
            named,
            "Flower passes on every other key too, and those win; give the file itself "
            f"with `flwr run --run-config {named}.toml`",
        )
    return config, options
