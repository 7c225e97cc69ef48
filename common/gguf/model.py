"""A GGUF header as a configuration of transformers, and which tensor is which weight.

Every setting of the model and every tensor is used, or the file is refused by the name of
what is left: a setting that is passed over changes every score. Names and rules are those
of llama.cpp's ``convert_hf_to_gguf.py``, backwards.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from .header import EXACT, OTHER, Header, TensorEntry, unusable

# llama.cpp's name of an architecture -> transformers' family.
FAMILIES = {
    "llama": "llama",  # Mistral's files, too
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
}
GEMMAS = ("gemma", "gemma2", "gemma3")
PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
OUTER_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
PARTS_OF = {
    "llama": PARTS,
    "qwen2": PARTS,
    "qwen3": PARTS | QK_NORMS,
    "gemma": PARTS,
    "gemma2": PARTS | OUTER_NORMS,
    "gemma3": PARTS | OUTER_NORMS | QK_NORMS,
    "phi3": PARTS | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
}
OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
# Tensors that become settings.
FREQUENCIES, LONG, SHORT = (
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
)
MOST_LAYERS, MOST_SIZE = 1024, 2**30


@dataclass(frozen=True, eq=False)
class Weight:
    """One weight of the converted model.

    Attributes
    ----------
    name
        In transformers' words.
    source
        The tensor that it is made of.
    order
        Its rows in the file, in the order of transformers; None: the same.
    less_one
        One is subtracted: llama.cpp adds it to the norms of Gemma.
    """

    name: str
    source: TensorEntry
    order: np.ndarray | None = None
    less_one: bool = False


class Settings:
    """The settings of a header, which remembers those that were asked for."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.kind = str(header.settings.get("general.architecture"))
        self.asked: set[str] = set()

    def refuse(self, problem: str, step: str = OTHER) -> Exception:
        """Return the error of this file."""
        return unusable(self.header.file, problem, step)

    def find(self, key: str, usual: Any = None) -> Any:
        """Return a setting of the architecture, or what it is where it is not set."""
        self.asked.add(name := f"{self.kind}.{key}")
        return self.header.settings.get(name, usual)

    def size(self, key: str, usual: int | None = None) -> int:
        """Return a whole number from 1; a list of equal numbers counts as that number."""
        found = self.find(key, usual)
        if isinstance(found, list) and found and len(set(found)) == 1:
            found = found[0]
        if type(found) is not int or not 1 <= found <= MOST_SIZE:
            said = f"{found!r:.60}" if found is not None else "missing"
            raise self.refuse(f"its setting {self.kind}.{key} is {said}")
        return found

    def number(self, key: str, usual: float | None = None) -> float:
        """Return a positive number: of float32, the shortest one that is stored so."""
        found = self.find(key, usual)
        number = type(found) in (int, float)
        if not number or not (isfinite(found) and found > 0):
            said = f"{found!r:.60}" if found is not None else "missing"
            raise self.refuse(f"its setting {self.kind}.{key} is {said}")
        with np.errstate(over="ignore"):
            stored = np.float32(found)
        return float(str(stored)) if stored == found else float(found)

    def only(self, key: str, *values: Any) -> None:
        """Refuse a setting that is there and has another value than these."""
        if (found := self.find(key, values[0])) not in values:
            raise self.refuse(f"its setting {self.kind}.{key} is {found!r:.60}")

    def check_all(self) -> None:
        """Refuse a setting of the architecture that nothing has asked for."""
        own = (k for k in self.header.settings if k.startswith(f"{self.kind}."))
        if left := sorted(set(own) - self.asked):
            raise self.refuse(f"its setting {left[0]} is not supported")


def configuration(header: Header, factors: Mapping[str, list[float]]) -> dict[str, Any]:
    """Return what ``config.json`` says of the model.

    Parameters
    ----------
    header
        Of the file.
    factors
        Values of `FREQUENCIES`, `LONG` and `SHORT`, where they are there.

    Raises
    ------
    IdiolectError
        Another architecture, or a setting that is missing, wrong or not supported.
    """
    found = Settings(header)
    if (kind := found.kind) not in FAMILIES:
        raise found.refuse(
            f"its architecture '{kind}' is not one of {', '.join(FAMILIES)}"
        )
    heads, hidden = found.size("attention.head_count"), found.size("embedding_length")
    config = {
        "model_type": FAMILIES[kind],
        "hidden_size": hidden,
        "num_hidden_layers": found.size("block_count"),
        "intermediate_size": found.size("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": found.size("attention.head_count_kv", heads),
        "head_dim": found.size("attention.key_length", max(1, hidden // heads)),
        "max_position_embeddings": found.size("context_length"),
        "rms_norm_eps": found.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "vocab_size": _rows(found, "token_embd.weight"),
        "dtype": "float32",
    }
    if config["num_hidden_layers"] > MOST_LAYERS:
        raise found.refuse(f"it claims {config['num_hidden_layers']} layers")
    if kind == "llama" and "blk.0.attn_q.bias" in header.tensors:
        config["attention_bias"] = True
    found.only("attention.value_length", config["head_dim"])
    found.only("vocab_size", config["vocab_size"])
    found.only("attention.causal", True)
    for key in ("expert_count", "expert_used_count", "attention.max_alibi_bias"):
        found.only(key, 0)
    if kind in GEMMAS[1:]:
        _add_gemma(found, config)
    elif window := found.find("attention.sliding_window"):
        config["sliding_window"] = found.size("attention.sliding_window")
        if kind == "llama":
            config["model_type"] = "mistral"
        elif kind != "phi3":
            raise found.refuse(
                f"its setting {kind}.attention.sliding_window is {window}"
            )
    config["rope_parameters"] = _positions(found, config, factors)
    found.check_all()
    return config


def _rows(found: Settings, name: str) -> int:
    if name not in found.header.tensors:
        raise found.refuse(f"it has no tensor '{name}'")
    return found.header.tensors[name].shape[0]


def _add_gemma(found: Settings, config: dict[str, Any]) -> None:
    """Add what only Gemma 2 and 3 have.

    The scale of attention is not in the files. llama.cpp knows the largest model of each by
    its number of layers; in that one the scale is not that of the head's size.
    """
    layers = config["num_hidden_layers"]
    plain = config["hidden_size"] // config["num_attention_heads"]
    largest, period = (46, 2) if found.kind == "gemma2" else (62, 6)
    scale = plain if layers == largest else config["head_dim"]
    config["query_pre_attn_scalar"] = scale
    config["sliding_window"] = found.size("attention.sliding_window")
    pattern = found.find("attention.sliding_window_pattern", period)
    if type(pattern) is int and pattern > 0:
        pattern = [bool((layer + 1) % pattern) for layer in range(layers)]
    if not isinstance(pattern, list) or len(pattern) != layers:
        raise found.refuse("its sliding_window_pattern does not fit its layers")
    kinds = {True: "sliding_attention", False: "full_attention"}
    config["layer_types"] = [kinds[bool(local)] for local in pattern]
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        there = f"{found.kind}.{key}" in found.header.settings
        config[key] = found.number(key) if there or found.kind == "gemma2" else None


def _positions(
    found: Settings, config: dict[str, Any], factors: Mapping[str, list[float]]
) -> dict[str, Any]:
    """Return how positions are turned: base, share of the head, and scaling."""
    size, context = config["head_dim"], config["max_position_embeddings"]
    turned = found.size("rope.dimension_count", size)
    if turned != size and (found.kind != "phi3" or turned > size):
        raise found.refuse(
            f"its rope.dimension_count is {turned}, its heads have {size}"
        )
    rope: dict[str, Any] = {"rope_theta": found.number("rope.freq_base", 10000.0)}
    if turned != size:
        rope["partial_rotary_factor"] = turned / size
    kind = found.find("rope.scaling.type", "none")
    original = found.find("rope.scaling.original_context_length")
    found.find("rope.scaling.finetuned")  # says how it was trained, and changes nothing
    found.only("rope.scale_linear", 1.0)
    for name, values in factors.items():
        if len(values) != turned // 2 or not all(isfinite(v) and v > 0 for v in values):
            raise found.refuse(f"its tensor '{name}' does not fit its heads")
    if found.kind == "phi3" and factors:
        if set(factors) != {LONG, SHORT}:
            raise found.refuse(f"it has only one of '{LONG}' and '{SHORT}'")
        # Another key of llama.cpp's for the same kind of scaling.
        found.only("rope.scaling.type", "none", "longrope", "yarn")
        original = found.size("rope.scaling.original_context_length")
        config["original_max_position_embeddings"] = original
        rope |= {"rope_type": "longrope", "original_max_position_embeddings": original}
        rope |= {"long_factor": factors[LONG], "short_factor": factors[SHORT]}
        return rope | {"attention_factor": found.number("rope.scaling.attn_factor")}
    if factors:
        # Llama 3's scaling is a factor per frequency, the same at every length.
        if set(factors) != {FREQUENCIES} or kind != "none":
            raise found.refuse(f"its tensor '{min(factors)}' is not supported")
        values = factors[FREQUENCIES]
        rope |= {"rope_type": "longrope", "attention_factor": 1.0}
        rope |= {"long_factor": values, "short_factor": values}
        return rope | {"original_max_position_embeddings": context}
    if kind == "none":
        found.find("rope.scaling.factor")
        rope["rope_type"] = "default"
    elif kind == "linear":
        rope |= {"rope_type": "linear", "factor": found.number("rope.scaling.factor")}
    elif kind == "yarn":
        rope |= {"rope_type": "yarn", "factor": found.number("rope.scaling.factor")}
        original = found.size("rope.scaling.original_context_length")
        rope["original_max_position_embeddings"] = original
    else:
        raise found.refuse(f"its rope.scaling.type is '{kind}'")
    if found.kind != "gemma3":
        return rope
    local = {
        "rope_type": "default",
        "rope_theta": found.number("rope.freq_base_swa", 1e4),
    }
    return {"full_attention": rope, "sliding_attention": local}


def weights(header: Header, config: Mapping[str, Any]) -> list[Weight]:
    """Return which tensor becomes which weight, in the order of the file.

    Raises
    ------
    IdiolectError
        A tensor that is not known, or layers that are missing.
    """
    kind = header.settings["general.architecture"]
    found, layers = [], set[int]()
    for name, entry in header.tensors.items():
        if name in (FREQUENCIES, LONG, SHORT):
            continue
        layer, part, end = _split(name)
        target = OUTSIDE.get(name)
        if layer is not None and part in PARTS_OF[kind]:
            target = f"model.layers.{layer}.{PARTS_OF[kind][part]}.{end}"
            layers.add(layer)
        if target is None:
            raise unusable(header.file, f"its tensor '{name}' is not supported", OTHER)
        order = None
        if kind == "llama" and part in ("attn_q", "attn_k"):
            heads = "num_attention_heads" if part == "attn_q" else "num_key_value_heads"
            order = _original_rows(header, entry, config[heads])
        less_one = kind in GEMMAS and name.endswith("_norm.weight")
        found.append(Weight(target, entry, order, less_one))
    if layers != set(range(config["num_hidden_layers"])):
        raise unusable(
            header.file,
            f"it has tensors of {len(layers)} layers and claims "
            f"{config['num_hidden_layers']}",
            OTHER,
        )
    return found


def _split(name: str) -> tuple[int | None, str, str]:
    """Return layer, part and end of a tensor's name; no layer: None."""
    match = re.fullmatch(r"blk\.(\d{1,4})\.(\w+)\.(weight|bias)", name)
    return (int(match[1]), match[2], match[3]) if match else (None, "", "")


def _original_rows(header: Header, entry: TensorEntry, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of a projection's rows: pairs that turn together lie together.

    Row ``(head, half, pair)`` of the original is row ``(head, pair, half)`` of the file.
    """
    rows = entry.shape[0]
    if rows % (2 * heads) or (len(entry.shape) == 1 and entry.kind not in EXACT):
        problem = (
            f"tensor '{entry.name}' ({entry.kind}) has {rows} rows for {heads} heads"
        )
        raise unusable(header.file, problem, OTHER)
    numbers = np.arange(rows).reshape(heads, rows // heads // 2, 2)
    return numbers.swapaxes(1, 2).reshape(-1)
