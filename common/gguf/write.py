"""Models and adapters as GGUF files, as llama.cpp reads them.

Names and rules are those of llama.cpp's ``convert_hf_to_gguf.py`` and
``convert_lora_to_gguf.py``. What a file cannot say is refused by name, as in reading: a
model that was written is read again, and has the same settings.
"""

import importlib.util
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import IdiolectError, pip_install, refuse_if
from . import convert, model, tokens
from .header import read_header

Pairs = Mapping[str, tuple[np.ndarray, np.ndarray]]
# Families whose settings are written out here; a file that was converted brings its own.
WRITTEN = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
INSTEAD = (
    "take `--format peft`, or `--format merged` and llama.cpp's convert_hf_to_gguf.py"
)
# What a configuration says beside how the model computes. Its family is the architecture.
BESIDE = {
    *("architectures", "dtype", "transformers_version", "use_cache", "model_type"),
    *(
        "initializer_range",
        "attention_dropout",
        "pretraining_tp",
        "id2label",
        "label2id",
    ),
    *("bos_token_id", "eos_token_id", "pad_token_id", "_name_or_path", "num_labels"),
    *("rope_parameters", "max_window_layers", "tokenizer_class", "problem_type"),
    *("output_attentions", "output_hidden_states", "return_dict", "is_encoder_decoder"),
    "chunk_size_feed_forward",
}
LARGEST = 65504.0  # of float16


# --- names -----------------------------------------------------------------------------


def architecture(family: str) -> str:
    """Return llama.cpp's name of a family.

    Raises
    ------
    IdiolectError
        It has none here.
    """
    names = {name: kind for kind, name in model.FAMILIES.items()} | {"mistral": "llama"}
    refuse_if(
        family not in names,
        f"a model of the family '{family}' has no names in GGUF files here: {INSTEAD}.",
    )
    return names[family]


def tensor_name(kind: str, weight: str) -> str:
    """Return llama.cpp's name of a weight of transformers' model."""
    outside = {name: key for key, name in model.OUTSIDE.items()}
    if weight in outside:
        return outside[weight]
    # Of two names for one part the later one in the table is the family's.
    parts = {name: key for key, name in model.PARTS_OF[kind].items()}
    start, _, rest = weight.partition("model.layers.")
    layer, _, rest = rest.partition(".")
    part, _, end = rest.rpartition(".")
    if start or part not in parts or not layer.isdigit():
        raise IdiolectError(
            f"the weight '{weight}' has no name in GGUF files here: {INSTEAD}."
        )
    return f"blk.{layer}.{parts[part]}.{end}"


def in_order(
    kind: str, name: str, values: np.ndarray, config: Mapping[str, Any]
) -> np.ndarray:
    """Return the rows of a weight, or of its LoRA's B, in the order of the file.

    Llama's rotation takes neighbouring rows of a head together in the file, and those of
    its two halves in transformers: row (head, half, pair) becomes (head, pair, half). Keys
    have their own number of heads.
    """
    part = name.split(".")[-2]
    if kind != "llama" or part not in ("attn_q", "attn_k"):
        return values
    heads = config["num_attention_heads"]
    if part == "attn_k":
        heads = config.get("num_key_value_heads") or heads
    shape = heads, 2, len(values) // heads // 2, *values.shape[1:]
    return values.reshape(shape).swapaxes(1, 2).reshape(values.shape)


# --- adapters --------------------------------------------------------------------------


def write_adapter(file: Path, config: Mapping[str, Any], pairs: Pairs) -> None:
    """Write a LoRA adapter that adds B A to each projection.

    llama.cpp multiplies by alpha / rank, and by 1 where alpha is 0. alpha is the rank here.

    Parameters
    ----------
    file
        It is made for this account alone.
    config
        Of the model, as in its ``config.json``.
    pairs
        Projection, as in ``model.layers.0.self_attn.q_proj`` -> A [r, in] and B [out, r],
        all of one rank, with any scaling in B.

    Raises
    ------
    IdiolectError
        The family or a projection has no name here, or the package ``gguf`` is missing.
    """
    kind = architecture(config["model_type"])
    writer = _writer(kind)
    ranks = {a.shape[0] for a, _ in pairs.values()} | {
        b.shape[1] for _, b in pairs.values()
    }
    (rank,) = ranks
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    for projection, (a, b) in pairs.items():
        name = tensor_name(kind, f"{projection}.weight")
        b = in_order(kind, name, b, config)
        for end, values in (("lora_a", a), ("lora_b", b)):
            plain = np.ascontiguousarray(values, np.float32)
            writer.add_tensor(f"{name}.{end}", plain)
    file.touch(0o600)
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _writer(kind: str) -> Any:
    refuse_if(
        importlib.util.find_spec("gguf") is None,
        f"writing a GGUF file needs the package gguf: `{pip_install('gguf')}`.",
    )
    from gguf import GGUFWriter

    return GGUFWriter(None, kind)


# --- models ----------------------------------------------------------------------------


def write_model(
    file: Path,
    folder: Path,
    tokenizer: Any,
    changed: Callable[[str, Any], Any] = lambda name, weight: weight,
) -> None:
    """Write the model of a folder as a GGUF file: matrices F16, the others F32.

    One weight is in memory at a time.

    Parameters
    ----------
    file
        It is made for this account alone, and is gone if this fails.
    folder
        In Hugging Face format. If it was converted from a GGUF file that is still there,
        settings and vocabulary are that file's.
    tokenizer
        The folder's, as transformers loads it.
    changed
        A weight's name and float32 values -> the values to write.

    Raises
    ------
    IdiolectError
        The family, a setting, a weight or the tokenizer cannot be written, or a number is
        too large for float16.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = architecture(config["model_type"])
    said, more = _said(folder, kind, tokenizer)
    writer = _writer(kind)
    writer.add_type("model")
    writer.add_file_type(1)  # most of it F16
    for key, value in said.items():
        _put(writer, key, value)
    places = _weights(folder, kind, config)
    for name, values in more.items():
        writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
    for name, _, shape, _ in places:
        stored = np.dtype(np.float16 if len(shape) > 1 else np.float32)
        size = math.prod(shape) * stored.itemsize
        writer.add_tensor_info(name, shape, stored, size)
    try:
        file.touch(0o600)
        writer.write_header_to_file(file)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for values in more.values():
            writer.write_tensor_data(values)
        for name, weight, _, shard in places:
            writer.write_tensor_data(
                _values(kind, name, weight, shard, config, changed)
            )
        writer.close()
        _check_same(file, folder)
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def _said(
    folder: Path, kind: str, tokenizer: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Settings of a model and its tokenizer, and tensors that are settings of positions."""
    source = source_of(folder)
    if source is None:
        return _settings(folder) | _vocabulary(folder, tokenizer), _frequencies(folder)
    header, ours = read_header(source), (f"{kind}.", "tokenizer.")
    said = {k: v for k, v in header.settings.items() if k.startswith(ours)}
    factors = convert.factors(header).items()
    return said, {name: np.asarray(values, np.float32) for name, values in factors}


def source_of(folder: Path) -> Path | None:
    """Return the GGUF file that a folder was converted from, if it is still there."""
    record = convert.record_of(folder)
    if not record:
        return None
    file = Path(record["path"])
    there = file.is_file() and convert.file_hash([file]) == record["sha256"]
    return file if there else None


def _weights(
    folder: Path, kind: str, config: Mapping[str, Any]
) -> list[tuple[str, str, tuple[int, ...], Path]]:
    """Name in the file, name of the weight, shape, and the shard, of each weight."""
    from safetensors import safe_open

    found = []
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, "pt") as stream:
            for weight in stream.keys():  # noqa: SIM118
                tied = weight == "lm_head.weight" and config.get("tie_word_embeddings")
                # Old checkpoints have what follows from the configuration, too.
                if tied or weight.endswith((".inv_freq", ".masked_bias")):
                    continue
                shape = tuple(stream.get_slice(weight).get_shape())
                found.append((tensor_name(kind, weight), weight, shape, shard))
    return found


def _values(
    kind: str,
    name: str,
    weight: str,
    shard: Path,
    config: Mapping[str, Any],
    changed: Callable[[str, Any], Any],
) -> np.ndarray:
    """Return the values of a weight as they lie in the file."""
    from safetensors import safe_open

    with safe_open(shard, "pt") as stream:
        values = changed(weight, stream.get_tensor(weight).float()).numpy()
    if kind in model.GEMMAS and name.endswith("_norm.weight"):
        values = values + np.float32(1)
    values = np.ascontiguousarray(in_order(kind, name, values, config))
    if values.ndim == 1:
        return values
    large = float(np.abs(values).max(initial=0.0))
    refuse_if(
        not large <= LARGEST,
        f"the weight '{weight}' has a number of size {large:.3g}, which float16 cannot "
        f"hold: {INSTEAD}.",
    )
    return values.astype(np.float16)


def _put(writer: Any, key: str, value: Any) -> None:
    """Add a setting; numbers are of 32 bits, as llama.cpp wants them."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        (writer.add_uint32 if value >= 0 else writer.add_int32)(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


# --- what a folder says, as a GGUF file says it ----------------------------------------


def _config(folder: Path) -> dict[str, Any]:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder).to_dict()


def _settings(folder: Path) -> dict[str, Any]:
    """Settings of the architecture."""
    config = _config(folder)
    family = config["model_type"]
    refuse_if(
        family not in WRITTEN,
        f"a whole model of the family '{family}' is not written as a GGUF file here: "
        f"{INSTEAD}.",
    )
    size = (
        config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    )
    rope = config["rope_parameters"]
    found = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "attention.key_length": size,
        "attention.value_length": size,
        "rope.dimension_count": size,
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if family in ("llama", "mistral"):
        found["vocab_size"] = config["vocab_size"]
    if family == "mistral" and config.get("sliding_window"):
        found["attention.sliding_window"] = config["sliding_window"]
    how = rope["rope_type"]
    if how in ("linear", "yarn"):
        found |= {
            "rope.scaling.type": how,
            "rope.scaling.factor": float(rope["factor"]),
        }
    if how == "yarn":
        old = rope["original_max_position_embeddings"]
        found["rope.scaling.original_context_length"] = old
    return {f"{WRITTEN[family]}.{key}": value for key, value in found.items()}


def _frequencies(folder: Path) -> dict[str, np.ndarray]:
    """Llama 3's scaling of positions: one factor per frequency.

    Long waves are divided by the factor, short ones stay, and those between are mixed
    (Llama 3.1's ``apply_scaling``).
    """
    config = _config(folder)
    rope = config["rope_parameters"]
    if rope.get("rope_type") != "llama3":
        return {}
    size = (
        config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    )
    powers = np.arange(0, size, 2) / size
    waves = 2 * np.pi * float(rope["rope_theta"]) ** powers
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    share = (rope["original_max_position_embeddings"] / waves - low) / (high - low)
    share = share.clip(0, 1)
    factors = 1 / ((1 - share) / rope["factor"] + share)
    return {model.FREQUENCIES: factors.astype(np.float32)}


def _vocabulary(folder: Path, tokenizer: Any) -> dict[str, Any]:
    """The tokenizer, if it is one of byte pairs whose rule llama.cpp has a name for."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    rule = _rule(spec)
    size = _config(folder)["vocab_size"]
    kinds, words = [tokens.UNUSED] * size, [f"[PAD{number}]" for number in range(size)]
    # A token without an embedding is one that no text has.
    for word, number in spec["model"]["vocab"].items():
        if number < size:
            words[number], kinds[number] = word, 1
    for token in spec["added_tokens"]:
        if token["id"] < size:
            kind = tokens.CONTROL if token["special"] else tokens.USER_DEFINED
            words[token["id"]], kinds[token["id"]] = token["content"], kind
    pairs = (
        pair.split(" ") if isinstance(pair, str) else pair
        for pair in spec["model"]["merges"]
    )
    found: dict[str, Any] = {
        "model": "gpt2",
        "pre": rule,
        "tokens": words,
        "token_type": kinds,
        "merges": [" ".join(pair) for pair in pairs],
        "add_bos_token": _starts_with_bos(tokenizer),
    }
    ends = json.loads((folder / "config.json").read_text()).get("eos_token_id")
    if (file := folder / "generation_config.json").exists():
        ends = json.loads(file.read_text()).get("eos_token_id", ends)
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    named = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "padding_token_id": tokenizer.pad_token_id,
    }
    # Others that end a turn; llama.cpp knows more of them by their names.
    others = (end for end in ends if end != tokenizer.eos_token_id)
    named |= dict(zip(("eot_token_id", "eom_token_id"), others, strict=False))
    found |= {name: number for name, number in named.items() if number is not None}
    said = {f"tokenizer.ggml.{name}": value for name, value in found.items()}
    if tokenizer.chat_template:
        said[tokens.TEMPLATE] = tokenizer.get_chat_template()
    return said


def _starts_with_bos(tokenizer: Any) -> bool:
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id


def _rule(spec: Mapping[str, Any]) -> str:
    """llama.cpp's name of the rule by which a tokenizer splits text.

    Raises
    ------
    IdiolectError
        There is none: another rule, or another kind of tokenizer.
    """
    normal = (spec["normalizer"] or {}).get("type")
    whole = bool(spec["model"].get("ignore_merges"))
    made = spec["model"]
    bytes_pairs = made["type"] == "BPE" and not made.get("byte_fallback")
    for name, rule in tokens.RULES.items():
        usual = None if name != "qwen2" else "NFC"
        same = _parts(spec["pre_tokenizer"]) == [_part(_state(one)) for one in rule]
        fits = whole == (name in tokens.WHOLE) and normal == usual
        if bytes_pairs and same and fits:
            return name
    raise IdiolectError(
        f"the tokenizer of this model splits text by a rule that is not written into GGUF "
        f"files here: {INSTEAD}."
    )


def _state(one: Any) -> dict[str, Any]:
    """What a pre-tokenizer's file says of it."""
    return json.loads(one.__getstate__())


def _parts(found: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer."""
    if found is None:
        return []
    if found["type"] == "Sequence":
        return [step for one in found["pretokenizers"] for step in _parts(one)]
    return [_part(found)]


def _part(one: Mapping[str, Any]) -> dict[str, Any]:
    """A step without what changes no token."""
    return {key: value for key, value in one.items() if key != "trim_offsets"}


# --- the check -------------------------------------------------------------------------


def _check_same(file: Path, folder: Path) -> None:
    """Read a file that was written, and compare its settings with the folder's.

    Raises
    ------
    IdiolectError
        A setting of the model cannot be said in the file.
    """
    from transformers import AutoConfig

    header = read_header(file)
    read = model.configuration(header, convert.factors(header))
    rope = read["rope_parameters"]
    again = AutoConfig.for_model(read.pop("model_type"), **read).to_dict()
    wanted = _config(folder)
    odd = [
        key
        for key in wanted.keys() - BESIDE
        if (again.get(key) or None) != (wanted[key] or None)
    ]
    said = wanted["rope_parameters"]
    if said.get("rope_type") != "llama3":  # written as factors, which say the same
        odd += [f"rope_parameters.{key}" for key in said if rope.get(key) != said[key]]
    refuse_if(
        odd,
        f"the setting '{min(odd, default='')}' of this model cannot be said in a GGUF "
        f"file: {INSTEAD}.",
    )
