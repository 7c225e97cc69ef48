"""Presets: files that set keys of a configuration openly."""

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from ...errors import refuse_if

FOLDER = Path(__file__).parent
PRESETS = tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


@cache
def read(name: str) -> dict[str, Any]:
    """Return the keys that a preset sets; none where no preset is named.

    Its own name, ``preset``, is not among them.

    Raises
    ------
    IdiolectError
        There is no such preset.
    """
    if not name:
        return {}
    refuse_if(
        name not in PRESETS,
        f"there is no preset {name[:100]!a}: use {', '.join(PRESETS)}.",
    )
    values = tomllib.loads((FOLDER / f"{name}.toml").read_text())
    return {key: value for key, value in values.items() if key != "preset"}
