"""GGUF files of small random models, written as llama.cpp's converter writes them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from transformers.convert_slow_tokenizer import bytes_to_unicode

gguf = pytest.importorskip("gguf", reason="needs gguf, which the extra `dev` brings")

SIZE = {"vocab_size": 288, "hidden_size": 64, "intermediate_size": 96}
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2, "num_hidden_layers": 2}
USUAL = {**SIZE, **HEADS, "max_position_embeddings": 256, "rms_norm_eps": 3e-6}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}
LONGROPE = {"rope_type": "longrope", "original_max_position_embeddings": 256}
LONGROPE |= {"short_factor": [1.0, 1.25, 1.5], "long_factor": [1.0, 2.0, 4.0]}
LONGROPE |= {"rope_theta": 1e4, "partial_rotary_factor": 0.75, "attention_factor": 1.19}
WINDOW = {"sliding_window": 8, "max_position_embeddings": 256}
GEMMA3 = {"full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}}
GEMMA3 |= {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}
YARN |= {"original_max_position_embeddings": 32}

# Case -> class of the configuration and its settings; more keys than the usual ones.
CASES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    # head_dim * heads is not the hidden size, as in Mistral Nemo
    "llama": (hf.LlamaConfig, {"head_dim": 16, "tie_word_embeddings": False}),
    "llama, tied": (hf.LlamaConfig, {"tie_word_embeddings": True}),
    "llama, biases": (hf.LlamaConfig, {"attention_bias": True}),
    "llama 3": (hf.LlamaConfig, {"rope_parameters": LLAMA3}),
    "llama, linear": (
        hf.LlamaConfig,
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}},
    ),
    "mistral": (hf.MistralConfig, {**WINDOW, "head_dim": 8}),
    "qwen2": (hf.Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2, yarn": (hf.Qwen2Config, {"rope_parameters": YARN}),
    "qwen3": (hf.Qwen3Config, {"head_dim": 32}),
    "gemma": (hf.GemmaConfig, {"head_dim": 16}),
    "gemma2": (
        hf.Gemma2Config,
        {**WINDOW, "head_dim": 16, "query_pre_attn_scalar": 16},
    ),
    "gemma3": (
        hf.Gemma3TextConfig,
        {
            **WINDOW,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "num_hidden_layers": 7,
            "rope_parameters": GEMMA3,
        },
    ),
    "phi3": (hf.Phi3Config, {"pad_token_id": None}),
    "phi3, longrope": (
        hf.Phi3Config,
        {
            "pad_token_id": None,
            "rope_parameters": LONGROPE,
            "original_max_position_embeddings": 256,
            "max_position_embeddings": 1024,
        },
    ),
}
ARCHITECTURE = {"mistral": "llama", "gemma3_text": "gemma3"}
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
GEMMA_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
ENDS = ("<|end|>", "<|stop|>")


def made(case: str, seed: int = 0, **other: Any) -> Any:
    """A random model; its norms and biases are random, too."""
    kind, more = CASES[case]
    torch.manual_seed(seed)
    model: Any = hf.AutoModelForCausalLM.from_config(kind(**{**USUAL, **more, **other}))
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3 if weight.ndim == 1 else 0.15)
    return model.eval()


def tensors(model: Any) -> dict[str, np.ndarray]:
    """The weights of a model by llama.cpp's names, as its converter changes them."""
    config = model.config
    arch = ARCHITECTURE.get(str(config.model_type), str(config.model_type))
    names = NAMES | (GEMMA_NAMES if arch in ("gemma2", "gemma3") else {})
    outside = {"model.embed_tokens.weight": "token_embd.weight"}
    outside |= {"model.norm.weight": "output_norm.weight"}
    outside |= {"lm_head.weight": "output.weight"}
    found = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = weight.detach().numpy()
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            values = values + np.float32(1)
        if name in outside:
            found[outside[name]] = values
            continue
        _, _, layer, part = name.split(".", 3)
        part, _, end = part.rpartition(".")
        if arch == "llama" and part in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = config.num_attention_heads
            heads = config.num_key_value_heads if "k_proj" in part else heads
            shape = heads, 2, len(values) // heads // 2, *values.shape[1:]
            values = values.reshape(shape).swapaxes(1, 2).reshape(values.shape)
        found[f"blk.{layer}.{names[part]}.{end}"] = np.ascontiguousarray(values)
    return found | frequencies(config)


def frequencies(config: Any) -> dict[str, np.ndarray]:
    """Tensors of scaled positions."""
    rope = config.rope_parameters
    if rope.get("rope_type") == "longrope":
        return {
            f"rope_factors_{kind}.weight": np.array(rope[f"{kind}_factor"], np.float32)
            for kind in ("short", "long")
        }
    if rope.get("rope_type") != "llama3":
        return {}
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    old, factors = rope["original_max_position_embeddings"], []
    for i in range(0, config.head_dim, 2):
        wave = 2 * np.pi * rope["rope_theta"] ** (i / config.head_dim)
        smooth = (old / wave - low) / (high - low)
        factor = 1 / ((1 - smooth) / rope["factor"] + smooth)
        factors.append(np.clip(factor, 1, rope["factor"]))
        if wave > old / low:
            factors[-1] = rope["factor"]
    return {"rope_freqs.weight": np.array(factors, np.float32)}


def settings(config: Any) -> dict[str, Any]:
    """What the file says of the model, without the architecture in front of each key."""
    rope = config.rope_parameters
    found: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
    }
    size = getattr(config, "head_dim", None)
    if size:
        found |= {"attention.key_length": size, "attention.value_length": size}
    if config.model_type in ("mistral", "gemma2", "gemma3_text"):
        found["attention.sliding_window"] = config.sliding_window
    if config.model_type == "gemma2":
        for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
            found[cap] = float(getattr(config, cap))
    rope = rope.get("full_attention", rope)
    found["rope.freq_base"] = float(rope["rope_theta"])
    if share := rope.get("partial_rotary_factor"):
        heads = config.hidden_size // config.num_attention_heads
        found["rope.dimension_count"] = int(share * heads)
    kind = rope["rope_type"]
    if kind in ("linear", "yarn"):
        found |= {"rope.scaling.type": kind, "rope.scaling.factor": rope["factor"]}
    if kind in ("yarn", "longrope"):
        old = rope["original_max_position_embeddings"]
        found["rope.scaling.original_context_length"] = old
    if kind == "longrope":
        found["rope.scaling.attn_factor"] = rope["attention_factor"]
    return found


def vocabulary() -> dict[str, Any]:
    """A byte-level tokenizer of 288 tokens, with room for others."""
    alphabet = sorted(bytes_to_unicode().values())
    pairs = [("t", "e"), ("te", "a"), ("Ġ", "t"), ("Ġ", "tea"), ("1", "2"), ("Ċ", "Ċ")]
    tokens = [*ENDS, "<|begin|>", *alphabet, *map("".join, pairs), "<think>"]
    kinds = [3] * 3 + [1] * (len(tokens) - 4) + [4]
    while len(tokens) < SIZE["vocab_size"]:
        tokens.append(f"[PAD{len(tokens)}]")
        kinds.append(5)
    return {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "token_type": kinds,
        "merges": [" ".join(pair) for pair in pairs],
        "eos_token_id": 0,
        "eot_token_id": 1,
        "bos_token_id": 2,
    }


def write(
    file: Path,
    model: Any,
    kind: str = "F32",
    change: dict[str, Any] | None = None,
    words: dict[str, Any] | None = None,
    weights: dict[str, np.ndarray] | None = None,
    template: str = "",
) -> Path:
    """Write a model into a GGUF file.

    Parameters
    ----------
    kind
        Type of the weights with two dimensions; the others are F32, as llama.cpp has it.
    change
        Settings in the place of others; None as a value leaves one out. A key with a
        leading dot stands as it is, without the dot.
    words, weights
        The tokenizer and the tensors, in the place of the usual ones.
    """
    arch = ARCHITECTURE.get(model.config.model_type, model.config.model_type)
    writer = gguf.GGUFWriter(None, arch)
    said = settings(model.config) | (change or {})
    for key, value in said.items():
        name = key[1:] if key.startswith(".") else f"{arch}.{key}"
        put(writer, name, value)
    for key, value in (words or vocabulary()).items():
        put(writer, f"tokenizer.ggml.{key}", value)
    if template:
        writer.add_chat_template(template)
    number = gguf.GGMLQuantizationType[kind]
    for name, values in (tensors(model) if weights is None else weights).items():
        values = np.ascontiguousarray(values)
        if values.ndim == 2 and kind != "F32":
            raw = gguf.quantize(values, number)
            writer.add_tensor(name, raw, raw_dtype=number)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def put(writer: Any, name: str, value: Any) -> None:
    """Add a setting of the type that its value has in Python."""
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    elif value is not None:
        writer.add_array(name, value)
