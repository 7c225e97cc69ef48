"""A user's policy for other programs: a PEFT folder, a GGUF adapter, or a merged model.

All of them say the same: backbone, shared adapter and own adapter, each at its scaling. An
adapter in files is as private as the texts that it learnt, so all of them say that, too.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import IdiolectError, refuse_if
from ..files import make_folder, make_private, private
from ..gguf.write import source_of, write_adapter, write_model
from .adapters import Lora, attached, concatenate
from .backbone import Backbone, load_backbone
from .model_folder import locate, read_head
from .modelfile import modelfile
from .reveals import REVEALS as REVEALS

CARD = """---
library_name: {library}
base_model: {base}
tags:
- lora
---

# {title}

Made by idiolect from one user's texts, on top of `{base}`.{summary}

**{reveals}**

The licence of `{base}` holds for what is made from it: read it before you pass this on.
{usage}"""
OLLAMA = """
## Ollama

`ollama create NAME -f Modelfile`, in this folder. {versions}
"""
# https://github.com/ollama/ollama/pull/14969
ADAPTERS = (
    "Ollama reads `ADAPTER` up to version 0.34.0. From 0.34.1 on `ollama create` refuses "
    "it: export with `--format merged` instead, which has a model without an adapter."
)
LLAMA_CPP = """
## llama.cpp

`llama-cli -m base.gguf --lora adapter.gguf`; the scale is 1. base.gguf can be any GGUF file
of the same base model.
"""
BASE, ADAPTER, MODEL = "base.gguf", "adapter.gguf", "model.gguf"
STORED = {"F16": torch.float16, "BF16": torch.bfloat16}
STORED |= {"F32": torch.float32, "F64": torch.float64}
# What a merged folder takes over beside the weights.
BESIDE = ("*.json", "*.model", "*.jinja", "additional_chat_templates/*")
TRIED = "Could you write back to me before the weekend? I am not sure about the place."


def joined(shared: Lora, personal: Lora) -> Lora:
    """One LoRA of scaling 1 that does what both do.

    Raises
    ------
    IdiolectError
        The adapter is a steering vector, which no LoRA can hold.
    """
    refuse_if(
        personal.bias,
        "a steering vector is no LoRA and cannot be exported as one: export an adapter of "
        "another method, such as sft.",
    )
    return concatenate(shared, personal)


def export_peft(
    folder: Path, backbone: Backbone, shared: Lora, personal: Lora, summary: str = ""
) -> None:
    """Write a PEFT adapter that turns the bare backbone into the user's policy.

    ``peft.PeftModel.from_pretrained(backbone, folder)`` then has the same logits as
    ``attached(backbone, shared, personal)``. The folder's README.md, which model hubs show
    first, says what an adapter can reveal.

    Parameters
    ----------
    folder
        Where to; made if it is missing.
    backbone, shared, personal
        The policy.
    summary
        How the own adapter was made, in a sentence without any of the user's text.

    Raises
    ------
    IdiolectError
        The adapter is a steering vector, which no LoRA can hold.
    """
    both = joined(shared, personal)
    from peft import LoraConfig, TaskType

    rank = next(iter(both.a.values())).shape[0]
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,  # a scale of one: both scalings are already in B
        target_modules=sorted(both.a),
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=backbone.name,
        inference_mode=True,
    )
    make_folder(folder)
    config.save_pretrained(str(folder))
    tensors: dict[str, Tensor] = {}
    for name in both.a:
        tensors[f"base_model.model.{name}.lora_A.weight"] = both.a[name].contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = both.b[name].contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    _write_card(folder, backbone, "A personal adapter", summary)
    # It is as private as the text that it learnt.
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).chmod(0o600)


def export_gguf(
    folder: Path, backbone: Backbone, shared: Lora, personal: Lora, summary: str = ""
) -> str:
    """Write adapter.gguf for llama.cpp, and if possible base.gguf and a Modelfile.

    base.gguf is the file that the backbone was converted from, else the backbone in F16.
    Parameters and errors are those of `export_peft`; moreover a family that has no names
    in GGUF files is refused.

    Returns
    -------
    str
        Why there is no base.gguf and no Modelfile; empty: they are there.
    """
    both = joined(shared, personal)
    make_folder(folder)
    pairs = {
        name: (a.cpu().numpy(), both.b[name].cpu().numpy())
        for name, a in both.a.items()
    }
    write_adapter(folder / ADAPTER, backbone.model.config.to_dict(), pairs)
    without = ""
    try:
        text = modelfile(backbone, BASE, ADAPTER)
        _put_base(folder / BASE, backbone)
        _write_modelfile(folder, text)
    except IdiolectError as error:
        without = str(error)
    usage = LLAMA_CPP + ("" if without else OLLAMA.format(versions=ADAPTERS))
    _write_card(folder, backbone, "A personal adapter", summary, usage, "gguf")
    return without


def _put_base(file: Path, backbone: Backbone) -> None:
    """The backbone as a GGUF file: its own, without a second copy if possible."""
    place = locate(backbone.name)
    if (source := source_of(place)) is None:
        write_model(file, place, backbone.tokenizer)
        return
    try:
        os.link(source.resolve(), file)
    except OSError:  # on another disk, or another account's
        shutil.copyfile(source, file)
        file.chmod(0o600)


def _write_modelfile(folder: Path, text: str) -> None:
    """Write it if what it names is there: Ollama tries to download what is not."""
    for line in text.splitlines():
        word, _, name = line.partition(" ./")
        if word in ("FROM", "ADAPTER") and not (folder / name).is_file():
            raise IdiolectError(f"{folder / name} is missing: export once more.")
    _write(folder / "Modelfile", text)


def export_merged(
    folder: Path, backbone: Backbone, shared: Lora, personal: Lora, summary: str = ""
) -> tuple[float, str]:
    """Write a whole model with the adapters in its weights, and if possible model.gguf.

    W + B A is added up in float32 and rounded once, to the type of the weight's file. One
    weight is in memory at a time. The folder is loaded again and compared. Parameters and
    errors are those of `export_peft`; moreover a sum that the type cannot hold is refused.

    Returns
    -------
    float, str
        The largest difference of a logit, over the tokens of one prompt; and why there is
        no model.gguf and no Modelfile (empty: they are there).
    """
    both = joined(shared, personal)
    changed = _adding(both)
    source = locate(backbone.name)
    make_folder(folder)
    for pattern in BESIDE:
        for file in sorted(source.glob(pattern)):
            if file.name != "gguf.json":  # says that the weights are those of a file
                (target := folder / file.relative_to(source)).parent.mkdir(
                    exist_ok=True
                )
                shutil.copyfile(file, target)
    left = {f"{name}.weight" for name in both.b}
    for shard in sorted(source.glob("*.safetensors")):
        left -= _merge(shard, folder / shard.name, left, changed)
    refuse_if(
        left,
        f"the backbone's files have no weight '{min(left, default='')}': take `--format "
        "peft`.",
    )
    make_private(folder)
    off = _difference(folder, backbone, shared, personal)
    without = ""
    try:
        text = modelfile(backbone, MODEL)
        write_model(folder / MODEL, source, backbone.tokenizer, changed)
        _write_modelfile(folder, text)
    except IdiolectError as error:
        without = str(error)
    usage = "" if without else OLLAMA.format(versions="No adapter is needed.")
    _write_card(folder, backbone, "A personal model", summary, usage, "transformers")
    return off, without


def _adding(both: Lora) -> Callable[[str, Tensor], Tensor]:
    """What is done to a weight of the backbone: B A is added to its float32 values."""

    def add(name: str, weight: Tensor) -> Tensor:
        projection = name.removesuffix(".weight")
        if projection not in both.b:
            return weight
        return weight + (both.b[projection].float() @ both.a[projection].float()).cpu()

    return add


def _merge(
    shard: Path, target: Path, names: set[str], add: Callable[[str, Tensor], Tensor]
) -> set[str]:
    """Copy a safetensors file and change some weights in place; returns which."""
    from safetensors import safe_open

    shutil.copyfile(shard, target)
    start, head = read_head(shard)
    found = names & head.keys()
    with target.open("r+b") as stream, safe_open(shard, "pt") as weights:
        for name in sorted(found):
            entry = head[name]
            whole = add(name, weights.get_tensor(name).float())
            whole = whole.to(STORED[entry["dtype"]]).contiguous()
            refuse_if(
                not whole.isfinite().all(),
                f"with the adapter, the weight '{name}' has numbers that its type "
                f"{entry['dtype']} cannot hold: take `--format peft`.",
            )
            stream.seek(start + entry["data_offsets"][0])
            stream.write(whole.view(torch.uint8).numpy().tobytes())
    return found


def _difference(
    folder: Path, backbone: Backbone, shared: Lora, personal: Lora
) -> float:
    """The largest difference of a logit between a merged folder and the policy."""
    ids = backbone.wording.prompt(TRIED)[: backbone.context]
    rows = torch.tensor([ids], device=backbone.device)
    dtype = str(backbone.dtype).removeprefix("torch.")
    fresh: Any = load_backbone.__wrapped__
    again = fresh(str(folder), dtype, str(backbone.device), backbone.context)
    with torch.no_grad():
        found = again.model(input_ids=rows).logits.float()
        with attached(backbone, shared, personal):
            wanted = backbone.model(input_ids=rows).logits.float()
    return float((found - wanted).abs().max())


def _write_card(
    folder: Path,
    backbone: Backbone,
    title: str,
    summary: str,
    usage: str = "",
    library: str = "peft",
) -> None:
    """Write README.md: what this is, what it can reveal, and how it is used."""
    # A path says who its owner is; a model's own name is enough.
    base = Path(backbone.name).name if Path(backbone.name).exists() else backbone.name
    card = CARD.format(
        library=library,
        base=base,
        title=title,
        summary=f" {summary}" if summary else "",
        reveals=REVEALS,
        usage=usage,
    )
    _write(folder / "README.md", card)


def _write(file: Path, text: str) -> None:
    """Write a text for this account alone."""
    with open(file, "w", encoding="utf-8", opener=private) as stream:
        stream.write(text)
