"""Where a run is written and how it is called: options of the command, no experiment.

`idiolect-server simulate` and `run` take them as ``--name``, ``--resume`` and
``--output-dir``. Flower passes on ``key = value`` pairs only, so an app's table lists
them beside the keys of the configuration, as ``run.name``, ``run.resume`` and
``run.folder``. A message carries the name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from .checks import check_text, refused
from .keys import LONGEST, LONGEST_NAME, Config, Scalar
from .parse import parse

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
