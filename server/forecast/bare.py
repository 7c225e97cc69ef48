"""Counting a job for a GPU that is not here (`gpus`), without the backbone's weights.

Rows are counted as always, with the tokenizer of the backbone and the shapes of its
config.json. Only the speed is not measured.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ...common.config import Config
from ...common.engine.backbone import Backbone
from ...common.engine.memory import RESERVE, attention
from ...common.engine.model_folder import family_of, locate
from ...common.errors import IdiolectError, Impossible, refuse_if
from .gpus import GIB, READ, SHARE, Gpu
from .parts import Speed

MB = 1 << 20


class Bare(Backbone):
    """A backbone without weights, to count with; nothing can be computed by it."""

    @property
    def device(self) -> torch.device:
        """Where rows are laid out to be counted; the model is nowhere."""
        return torch.device("cpu")


def backbone_of(config: Config) -> Bare:
    """Return the backbone of a configuration without its weights.

    Raises
    ------
    IdiolectError
        Its folder lacks a configuration or a tokenizer, or it is of another family.
    """
    folder = locate(config.backbone)
    family = family_of(config.backbone, folder)
    try:
        shape = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(shape)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise IdiolectError(
            f"backbone '{config.backbone}' ({family}) has no usable config.json and "
            "tokenizer: a forecast needs both, and no weights."
        ) from error
    context = min(config.engine.max_length, shape.max_position_embeddings)
    dtype = getattr(torch, config.engine.dtype)
    return Bare(config.backbone, model.eval(), tokenizer, "", context, dtype)


def speed_on(gpu: Gpu, backbone: Backbone) -> Speed:
    """Return seconds per token on a GPU, for `parts.Count`.

    Raises
    ------
    IdiolectError
        The backbone would not compute in bfloat16, whose speed data sheets state.
    """
    refuse_if(
        backbone.dtype != torch.bfloat16,
        "a forecast for a GPU is for bfloat16: set engine.dtype=bfloat16.",
    )
    weights = multiplied(backbone)
    forward = 2 * weights / (SHARE * gpu.flops)
    step = 2 * weights / (READ * gpu.bandwidth)  # two bytes of each weight are read
    return Speed(
        adapted=2 * forward,
        trained=2 * forward,
        scored=forward,
        prompted=forward,
        step=step,
        written=forward,
    )


def multiplied(backbone: Backbone) -> int:
    """Return how many weights a token is multiplied with; an embedding is looked up."""
    linear = (m for m in backbone.model.modules() if isinstance(m, nn.Linear))
    return sum(module.weight.numel() for module in linear)


def weight_bytes(backbone: Backbone) -> int:
    """Return the bytes of all weights; those that are tied count once."""
    return backbone.parameters * backbone.dtype.itemsize


def cache_bytes(backbone: Backbone, tokens: int) -> int:
    """Return the bytes of the keys and values of some tokens in all layers."""
    shape = backbone.model.config
    _, groups, width = attention(shape)
    numbers = 2 * shape.num_hidden_layers * groups * width
    return tokens * numbers * backbone.dtype.itemsize


def within(config: Config, gpu: Gpu, backbone: Backbone) -> Config:
    """Return the configuration with what training may use beside the weights.

    Raises
    ------
    Impossible
        The weights alone do not fit.
    """
    left = (1 - RESERVE) * gpu.memory - weight_bytes(backbone)
    if left < MB:
        raise Impossible(
            f"backbone '{backbone.name}' has {weight_bytes(backbone) / GIB:.1f} GiB of "
            f"weights, and this GPU has {gpu.memory / GIB:.0f} GiB, of which a fifth stays "
            "free: take a GPU with more memory."
        )
    asked = config.engine.memory or math.inf
    return replace(
        config, engine=replace(config.engine, memory=int(min(asked, left / MB)))
    )
