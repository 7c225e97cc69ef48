"""What a training step keeps in memory, and how it stays within a budget.

Activations are most of it. What does not fit is computed again in the backward pass, one
layer at a time from the layer's input (activation checkpointing, Chen et al. 2016; with
frozen weights on a phone: MeBP). That takes up to one more forward pass and changes no bit
of the gradient. Only when that is not enough are a step's rows split into passes.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from math import ceil, inf
from pathlib import Path
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from .backbone import Backbone
from .layout import FILLER, Layout
from .scoring import LOGITS_PER_CHUNK

MARGIN = 1.1  # test_memory compares with what is kept
RESERVE = 0.2  # of what is free: for other programs, and for what no shape tells
OPTIMISER = 6  # numbers per trained number: gradient, two moments, intermediate results
COPIES = 3  # of logits: they, their log-softmax, and its gradient
M_MMAP_THRESHOLD, LARGE = -3, 1 << 20  # of mallopt: name of the threshold, and 1 MB
LEAST_LOGITS = 1 << 20  # 4 MB; fewer at once cost time and save nothing
WORKING = 2  # layers' worth: one that is computed again, and the gradients on their way


def layer_bytes(backbone: Backbone, keys: int) -> float:
    """Bytes that one layer keeps per token for its gradient, from shapes alone.

    Four tensors of the feed-forward block's width (gate, its activation, up, product), two
    for each norm and two for the blocks' inputs, queries twice, keys and values; those of
    their norms where a model has them. `keys`: tokens of the longest row, for models whose
    attention keeps its scores.
    """
    config, layer = backbone.model.config, backbone.model.model.layers[0]
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    norms = [n for n, _ in layer.named_modules() if n.endswith(("layernorm", "_norm"))]
    queries, keys_values = width * heads, 2 * width * groups
    numbers = 4 * config.intermediate_size + 2 * (queries + keys_values // 2)
    if "self_attn.q_norm" in norms:
        norms = [name for name in norms if not name.startswith("self_attn.")]
        numbers += 2 * queries + keys_values
    numbers += max(6, 2 * len(norms) + 2) * config.hidden_size
    if config._attn_implementation.endswith("eager"):
        numbers += 2 * heads * keys
    return MARGIN * numbers * backbone.dtype.itemsize


def step_bytes(backbone: Backbone, tokens: int, keys: int, recompute: int) -> float:
    """Bytes of activations of a pass over `tokens` with `recompute` layers recomputed."""
    config = backbone.model.config
    layer, layers = layer_bytes(backbone, keys), config.num_hidden_layers
    kept = (layers - recompute) * layer + (WORKING * layer if recompute else 0)
    return tokens * (kept + recompute * config.hidden_size * backbone.dtype.itemsize)


@dataclass(frozen=True)
class Saving:
    """How a step is computed to stay within a budget.

    Attributes
    ----------
    recompute
        Lowest layers that are computed again in the backward pass.
    passes
        In how many passes a step's rows are taken.
    logits
        Logits in memory at once; 0: as many as computes fastest.
    """

    recompute: int = 0
    passes: int = 1
    logits: int = 0


def within(backbone: Backbone, layout: Layout, adapters: int, budget: float) -> Saving:
    """The least saving with which a step stays within a budget.

    Parameters
    ----------
    layout
        The largest step.
    adapters
        Numbers in the trained adapters of all users; gradient, moments and the optimiser's
        intermediate results are OPTIMISER as much.
    budget
        Bytes above the resident backbone.

    Returns
    -------
    Saving
        The fewest layers that suffice, and the fewest passes; with a budget too small for
        anything all layers in as many passes as the forecast says.
    """
    predicted = int((layout.labels != FILLER).sum())
    logits = min(LOGITS_PER_CHUNK, predicted * backbone.model.config.vocab_size)
    rest = 4 * OPTIMISER * adapters
    tight = COPIES * 4 * logits > (budget - rest) / 4
    if tight:
        logits = max(LEAST_LOGITS, min(logits, int((budget - rest) / 16 / COPIES)))
    left = budget - rest - COPIES * 4 * logits
    layers = backbone.model.config.num_hidden_layers
    tokens, keys = layout.ids.numel(), layout.key.shape[1]
    for recompute in range(layers):
        if step_bytes(backbone, tokens, keys, recompute) <= left:
            return Saving(recompute, 1, logits if tight else 0)
    least = step_bytes(backbone, tokens, keys, layers - 1)
    return Saving(layers - 1, ceil(least / max(left, least / layout.rows)), logits)


def needed_bytes(
    backbone: Backbone, layout: Layout, adapters: int, saving: Saving
) -> float:
    """Forecast of what a step takes above the resident backbone, the largest in a layout.

    The parameters are those of `within`, and what that returned.
    """
    vocabulary = backbone.model.config.vocab_size
    predicted = int((layout.labels != FILLER).sum())
    logits = min(saving.logits or LOGITS_PER_CHUNK, predicted * vocabulary)
    keys, tokens = layout.key.shape[1], layout.ids.numel() / saving.passes
    step = step_bytes(backbone, ceil(tokens), keys, saving.recompute)
    return step + 4 * OPTIMISER * adapters + COPIES * 4 * logits


def free_bytes(device: torch.device) -> float:
    """Memory that this process may use beyond what it has.

    On a CPU what Linux calls available, less a reserve, divided by the processes that its
    threads leave cores for: so many work side by side in a simulation.
    """
    if device.type == "cuda":
        return (1 - RESERVE) * torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux: no limit of ours
        return inf
    free = next(int(s.split()[1]) for s in lines if s.startswith("MemAvailable")) * 1024
    share = min(1.0, torch.get_num_threads() / (os.cpu_count() or 1))
    return (1 - RESERVE) * free * share


@contextmanager
def recomputed(backbone: Backbone, layers: int) -> Iterator[None]:
    """Keep only the inputs of the lowest layers; the rest is computed again when needed.

    Not the last one, which computes only some of its tokens. The backward pass must run
    inside the ``with`` block.
    """
    if layers:
        _return_what_is_freed()
    chosen = backbone.model.model.layers[:layers]
    for layer in chosen:
        plain: Any = layer.forward
        layer.forward = partial(
            checkpoint, plain, use_reentrant=False, preserve_rng_state=False
        )
    try:
        yield
    finally:
        for layer in chosen:
            del layer.forward


def _return_what_is_freed() -> None:
    """Let glibc give the memory of every large tensor back when it is freed.

    Otherwise it raises its threshold to 32 MB by itself, keeps tensors on the heap, and
    what lives long between them holds three times the memory in use.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, LARGE)
