"""The adapter in use for other programs, and somebody else's adapter as one's own."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ...common.engine import exports
from ...common.engine.adapters import Lora, attached, base_of, hash_lora, import_peft
from ...common.engine.fitting import fits
from ...common.engine.model_folder import unlike
from ...common.engine.reference import Reference, load_reference
from ...common.errors import IdiolectError, refuse_if, words_of
from ...common.files import make_private, private_folder
from ...common.methods import strength
from . import adapters, history, judging, learning, limits, loading, writing
from .adapters import IMPORTED, Version
from .consent import settings
from .records import DEVICE
from .vault import Vault

FORMATS = ("peft", "gguf", "merged")


def export(vault: Vault, folder: Path, kind: str = "peft") -> dict[str, Any]:
    """Write the adapter in use for other programs, in clear, for its owner alone.

    Parameters
    ----------
    vault, folder
        Where the adapter is kept, and a new or empty folder.
    kind
        ``peft``: an adapter for PEFT; ``gguf``: one for llama.cpp, with base model and
        Modelfile; ``merged``: a whole model, also as a GGUF file.

    Returns
    -------
    dict
        ``without``: why there is no Modelfile (``gguf`` and ``merged``; empty: it is
        there); ``difference``: the largest one of a logit (``merged``).

    Raises
    ------
    IdiolectError
        No adapter is in use, the model or the adapter cannot be written so, or the folder
        cannot be written; nothing is left of it.
    """
    refuse_if(
        folder.exists() and any(folder.iterdir()),
        f"{folder} is not empty: name a new folder.",
    )
    one, version = writing.writer(vault), adapters.in_use(vault)
    made = f"Trained by {version.method} on {version.trained} pairs"
    made = "Made by somebody else, and imported" if version.imported else made
    summary = f"{made}; strength {version.strength:g}."
    policy = folder, one.backbone, one.shared, one.own, summary
    try:
        private_folder(folder)
        with limits.held(one.chosen):
            if kind == "gguf":
                return {"without": exports.export_gguf(*policy)}
            if kind == "merged":
                off, without = exports.export_merged(*policy)
                return {"without": without, "difference": off}
            exports.export_peft(*policy)
        make_private(folder)
        return {}
    except (OSError, SafetensorError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise IdiolectError(
            f"{folder} cannot be written ({words_of(error)}): name another one, or free "
            "space."
        ) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def bring(vault: Vault, folder: Path) -> tuple[Version, str]:
    """Take a PEFT adapter as one of the owner's: kept, judged, and used if accepted.

    It lies on the bare model. It is judged by the newest liked pairs as a trained one is,
    none of which it was trained on here. With fewer pairs than a training needs nothing
    judges, and it is used. One that is kept already is used again. What it learnt, and
    from whom, is not known, so `forget` does not erase it.

    Returns
    -------
    Version, str
        The adapter, and the name of the model that it says it was made for.

    Raises
    ------
    IdiolectError
        It is no plain LoRA, or not of this backbone.
    """
    lora, base = import_peft(folder), base_of(folder)
    origin = IMPORTED + hash_lora(lora)
    chosen = settings(vault)
    with limits.held(chosen):
        reference = load_reference(loading.config_of(chosen))
        place = reference.backbone.device
        a, b = ({n: t.to(place) for n, t in part.items()} for part in (lora.a, lora.b))
        lora = Lora(a, b, lora.scaling)
        with attached(reference.backbone, lora):  # refuses one of another model
            pass
        backbone = reference.backbone
        for known in adapters.versions(vault):
            if known.origin == origin and not unlike(known.backbone, backbone.hash):
                adapters.use(vault, known.number)
                return known, base
        entries = [e for e in history.entries(vault) if fits(backbone, e.item())]
        if sum(entry.liked for entry in entries) < learning.FEWEST:
            return _unjudged(vault, reference, lora, origin), base
        user, _ = learning.split(entries)
        judge = replace(user, history=(), disliked=())
        fitted = strength.halves(user.held_out)[0]
        ids = {item.id for item in fitted if chosen["fit-strength"] == "yes"}
        made_of = {
            one.source: one.generation for one in entries if one.item().id in ids
        }
        learnt = judge, made_of
        return judging.adopt(vault, reference, lora, "sft", learnt, origin), base


def _unjudged(vault: Vault, reference: Reference, lora: Lora, origin: str) -> Version:
    """Keep and use an adapter that nothing can judge."""
    with vault.transaction():
        version = Version(
            number=vault.count_up("adapters", DEVICE),
            method="sft",
            backbone=reference.backbone.hash,
            sources=(),
            trained=0,
            disliked=0,
            held_out=0,
            nll=0.0,
            nll_before=0.0,
            nll_bare=0.0,
            origin=origin,
        )
        adapters.keep(vault, version, lora)
    return version
