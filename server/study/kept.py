"""Finished cells in one file, which travels with the findings to other machines."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...common.errors import IdiolectError
from ...common.files import private_folder
from ..run.results import write_json, write_packed


def archive(findings: Path | None, study: str, kept: bool) -> Path | None:
    """Where a study's finished cells are stored; None where it does not keep them."""
    return findings / "cells" / f"{study}.json.gz" if findings and kept else None


def take(path: Path, folder: Path) -> int:
    """Write the stored cells that a study's folder does not have; return their number.

    Raises
    ------
    IdiolectError
        The file is not what `store` writes.
    """
    if not path.exists():
        return 0
    try:
        stored = json.loads(gzip.decompress(path.read_bytes()))
        cells = {str(name): dict[str, Any](cell) for name, cell in stored.items()}
        if any(Path(name).name != name or not name.endswith(".json") for name in cells):
            raise ValueError("a name in it is a path")
    except (OSError, EOFError, ValueError, TypeError, AttributeError) as error:
        raise IdiolectError(
            f"{path} does not hold the cells of a study ({error}): restore it, or delete "
            "it to measure them again."
        ) from error
    place = folder / "cells"
    missing = [name for name in cells if not (place / name).exists()]
    for name in missing:
        write_json(private_folder(place) / name, cells[name])
    return len(missing)


def store(path: Path, files: Iterable[Path]) -> None:
    """Put those cells that are finished into one file; the same give the same bytes."""
    cells = {file.name: json.loads(file.read_text()) for file in files if file.exists()}
    write_packed(path, cells)
