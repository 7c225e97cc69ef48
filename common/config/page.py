"""What is generated from the keys: ``docs/configuration.md`` and an app's table."""

import dataclasses
import math
from pathlib import Path
from typing import Any, cast

from .keys import FIELDS, Scalar, defaults
from .parse import RunOptions, flat_toml, toml_value

TABLE_START = "[tool.flwr.app.config]"


def app_table() -> str:
    """Every key with its default: the last table of an app's ``pyproject.toml``.

    Flower accepts ``-c key=value`` only for keys that are listed there.
    """
    head = "# Written by `make generated`; meanings: docs/configuration.md."
    table = flat_toml(RunOptions().flat() | defaults())
    return f"{TABLE_START}\n{head}\n{table}"


def markdown() -> str:
    """``docs/configuration.md``: every key, its default, what is allowed, its meaning."""
    lines = [
        "# Configuration",
        "",
        "Written by `make generated` from `common/config/keys.py`. Give a key with",
        "`-c key=value` to `idiolect-server simulate APP` or `idiolect-server run APP`, in",
        "the `[config]` of a study ([studies.md](studies.md)), or with `flwr run APP -c",
        "key=value` (there, strings need quotes of their own). How a run is called and",
        "where it is written are options of the command: `--name`, `--resume` and",
        "`--output-dir`; with `flwr run` the keys `run.name`, `run.resume` and",
        "`run.folder`.",
        "",
        "| key | default | allowed | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for name, entry in FIELDS.items():
        default = toml_value(cast(Scalar, entry.default))
        meaning = entry.metadata["help"].replace("|", "\\|")
        lines.append(f"| `{name}` | `{default}` | {_allowed(entry)} | {meaning} |")
    return "\n".join(lines) + "\n"


def _allowed(entry: dataclasses.Field[Any]) -> str:
    low, high = entry.metadata["low"], entry.metadata["high"]
    if entry.metadata["choices"]:
        return ", ".join(
            f"`{c}`" if c else "nothing" for c in entry.metadata["choices"]
        )
    if math.isfinite(low):  # every number has both ends
        return f"{low:g} to {high:g}"
    return "true or false" if isinstance(entry.default, bool) else "text"


def generate(root: Path) -> None:
    """Rewrite what is generated from this file, in a checkout of the repository."""
    (root / "docs" / "configuration.md").write_text(markdown())
    project = root / "simulations" / "lamp" / "pyproject.toml"
    kept, _, _ = project.read_text().partition(TABLE_START)
    project.write_text(kept + app_table())
