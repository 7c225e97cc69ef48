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
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, prod
from mmap import mmap
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import Impossible
from ..process import free_mb
from .adapters import Lora, Stack
from .backbone import PLAIN_LAYER, Backbone, standing_in
from .frozen import product, product_back
from .layout import FILLER, Layout
from .mapped import Region, a_layer_at_a_time, give_back
from .scoring import LOGITS_PER_CHUNK, WIDE

MARGIN = 1.1  # test_memory compares with what is kept
RESERVE = 0.2  # of what is free: for other programs, and for what no shape tells
OPTIMISER = 6  # numbers per trained number: gradient, two moments, intermediate results
COPIES = 3  # of logits: they, their log-softmax, and its gradient; see scoring.WIDE
GAPS = 1.2  # memory taken per byte in use where layers are computed again: measured
# Layers after which freed memory is returned where rows are split. Else there is room for
# what two layers leave: once in a pass will do, and the kernel clears less.
TRIMMED = 4
# Names of malloc's parameters; the most for the first that glibc takes, and two values of
# the second.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
MOST, SPARE, ALL = 32 << 20, 1 << 20, (1 << 31) - 1
LEAST_LOGITS = 1 << 20  # 4 MB; fewer at once cost time and save nothing
WORKING = 2  # layers' worth: one that is computed again, and the gradients on their way


def attention(config: Any) -> tuple[int, int, int]:
    """Heads of queries, heads of keys and values, and the width of a head."""
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    return (
        heads,
        groups,
        getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


def layer_bytes(backbone: Backbone, keys: int) -> float:
    """Bytes that one layer keeps per token for its gradient, from shapes alone.

    Four tensors of the feed-forward block's width (gate, its activation, up, product), two
    for each norm and two for the blocks' inputs, queries twice, keys and values; those of
    their norms where a model has them. `keys`: tokens of the longest row, for models whose
    attention keeps its scores.
    """
    config, layer = backbone.model.config, backbone.model.model.layers[0]
    heads, groups, width = attention(config)
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


def products(backbone: Backbone, chosen: range) -> list[tuple[int, str, int]]:
    """Frozen products of some layers that are worth keeping, the dearest first.

    Each as (layer, name in it, numbers per token). A number costs as many multiplications
    as the product's input is wide. What nobody reads is left out (`_unread`).
    """
    found = [
        (module.in_features, number, name, module.out_features)
        for number in chosen
        for layer in (backbone.model.model.layers[number],)
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear) and module is not _unread(layer)
    ]
    found.sort(key=lambda product: -product[0])
    return [(number, name, numbers) for _, number, name, numbers in found]


class TooLittleMemory(Impossible):
    """A budget that was asked for and cannot be kept; `least` megabytes can."""

    def __init__(self, asked: float, least: float) -> None:
        self.least = ceil(least / 2**20)
        super().__init__(
            f"config key 'engine.memory' allows {asked / 2**20:.0f} MB above the backbone, "
            f"and this training needs {self.least}: set engine.memory={self.least} or "
            "more, or 0 for what is free."
        )


@dataclass(frozen=True)
class Saving:
    """How a step is computed to stay within a budget.

    Attributes
    ----------
    depth
        Number of the lowest layer that is trained: nothing is kept of those below.
    recompute
        So many layers, from that one up, are computed again in the backward pass.
    products
        How many of their frozen products are kept all the same (see `products`).
    passes
        In how many passes a step's rows are taken.
    logits
        Logits in memory at once; 0: as many as computes fastest.
    """

    depth: int = 0
    recompute: int = 0
    products: int = 0
    passes: int = 1
    logits: int = 0

    @property
    def layers(self) -> range:
        """The layers that are computed again."""
        return range(self.depth, self.depth + self.recompute)


def step_bytes(backbone: Backbone, layout: Layout, saving: Saving) -> float:
    """Bytes of activations of a pass over a layout, at most at any time.

    That is at the end of the forward pass, with the logits, or when a layer is computed
    again: the upper layers are gone by then.
    """
    config, size = backbone.model.config, backbone.dtype.itemsize
    tokens = layout.ids.numel()
    layer = tokens * layer_bytes(backbone, layout.key.shape[1])
    kept = config.num_hidden_layers - saving.depth - saving.recompute
    logits = saving.logits or LOGITS_PER_CHUNK
    logits = min(logits, int((layout.labels != FILLER).sum()) * config.vocab_size)
    numbers = saving.recompute * config.hidden_size
    for _, _, width in products(backbone, saving.layers)[: saving.products]:
        numbers += width
    copies = 1 if config.vocab_size >= WIDE else COPIES
    upper = kept * layer + copies * 4 * logits
    again = WORKING * layer if saving.recompute else 0
    return (GAPS if again else 1) * (tokens * numbers * size + max(upper, again))


def within(
    backbone: Backbone, layout: Layout, adapters: int, budget: float, depth: int = 0
) -> Saving:
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
    depth
        Number of the lowest layer that is trained.

    Returns
    -------
    Saving
        What computes least again: a kept product costs a third of the memory of all that a
        kept layer has for the same time. With a budget too small for anything all is
        computed again, in as many passes as the forecast says.
    """
    left = budget - 4 * OPTIMISER * adapters
    forecast = partial(step_bytes, backbone, layout)
    layers, saving = backbone.model.config.num_hidden_layers, Saving(depth)
    if forecast(saving) <= left:
        return saving
    logits = max(LEAST_LOGITS, min(LOGITS_PER_CHUNK, int(left / 32 / COPIES)))
    for recompute in range(layers - depth):
        saving = Saving(depth, recompute, logits=logits)
        every = len(products(backbone, saving.layers))
        saving = replace(saving, products=every)
        if forecast(saving) <= left:
            return saving
    ranks = range(saving.products)
    fits = [n for n in ranks if forecast(replace(saving, products=n)) <= left]
    if fits:
        return replace(saving, products=fits[-1])
    least = forecast(replace(saving, products=0))
    passes = ceil(least / max(left, least / layout.rows))
    return replace(saving, products=0, passes=passes)


def needed_bytes(
    backbone: Backbone, layout: Layout, adapters: int, saving: Saving
) -> float:
    """Forecast of what a step takes above the resident backbone, the largest in a layout.

    The parameters are those of `within`, and what that returned.
    """
    step = step_bytes(backbone, layout, saving)
    return step / saving.passes + 4 * OPTIMISER * adapters


def free_bytes(device: torch.device) -> float:
    """Memory that this process may use beyond what it has.

    On a CPU what Linux calls available, less a reserve, divided by the processes that its
    threads leave cores for: so many work side by side in a simulation.
    """
    if device.type == "cuda":
        return (1 - RESERVE) * torch.cuda.mem_get_info(device)[0]
    share = min(1.0, torch.get_num_threads() / (os.cpu_count() or 1))
    return (1 - RESERVE) * free_mb() * 2**20 * share


@dataclass(frozen=True, eq=False)
class _Plan:
    """What of a layer is computed again: all but the modules whose product is `kept`.

    `unread`: the module whose product no gradient needs; `leaves`: what is trained in the
    layer; `trims`: whether freed memory is returned before it; `regions`: where the
    weights of `layer` may lie in their file.
    """

    unread: Any
    kept: list[Any]
    leaves: list[Tensor]
    trims: bool
    layer: Any
    regions: list[Region]


@contextmanager
def recomputed(
    backbone: Backbone, trained: Lora | Stack, saving: Saving
) -> Iterator[None]:
    """Keep only the inputs of some layers; the rest is computed again when needed.

    Not the last one, which computes only some of its tokens. The backward pass must run
    inside the ``with`` block, in which `trained` is attached.
    """
    if not saving.recompute:
        yield
        return
    chosen = [backbone.model.model.layers[number] for number in saving.layers]
    stays = products(backbone, saving.layers)[: saving.products]
    spacing = TRIMMED if saving.passes > 1 else len(chosen)
    for number, layer in zip(saving.layers, chosen, strict=True):
        place = f"model.layers.{number}."
        leaves = [
            tensor
            for part in (trained.a, trained.b)
            for name, tensor in part.items()
            if name.startswith(place) and tensor.requires_grad
        ]
        modules = [layer.get_submodule(name) for at, name, _ in stays if at == number]
        trims = (saving.layers[-1] - number) % spacing == 0
        plan = _Plan(_unread(layer), modules, leaves, trims, layer, backbone.regions)
        layer.forward = partial(_again, layer.forward, plan)
    _malloc(mmap_from=MOST, trim_from=ALL)
    try:
        with a_layer_at_a_time(backbone.model, backbone.regions):
            yield
    finally:
        for layer in chosen:
            del layer.forward
        _malloc(mmap_from=MOST, trim_from=SPARE)


def _unread(layer: Any) -> Any:
    """The layer's last frozen product where only a sum follows: no gradient needs it."""
    parts = {name for name, _ in layer.named_children()}
    return getattr(layer.mlp, "down_proj", None) if parts == PLAIN_LAYER else None


def _again(plain: Any, plan: _Plan, hidden: Tensor, **arguments: Any) -> Tensor:
    """The layer's output, of which the input and what is kept stays in memory."""
    run = partial(plain, **arguments)
    if not torch.is_grad_enabled():
        return run(hidden)
    return _Again.apply(run, plan, hidden, *plan.leaves)


class _Again(torch.autograd.Function):
    """A layer that is computed again for its gradient."""

    @staticmethod
    def forward(
        ctx: Any, run: Any, plan: _Plan, hidden: Tensor, *leaves: Tensor
    ) -> Tensor:
        """Output of the layer for its input [K, L, d]; `leaves` are trained in it."""
        if plan.trims:
            _malloc()
        # First of all, so that nothing that stays lies between what will be freed.
        before = hidden.shape[:-1]
        values = {m: _apart(hidden, (*before, m.out_features)) for m in plan.kept}

        def keep(module: Any, x: Tensor) -> Tensor:
            output = product(module, x)
            values[module].copy_(output)  # adapters are added to the other
            return output

        ctx.run, ctx.plan, ctx.values = run, plan, values
        ctx.save_for_backward(_apart(hidden, hidden.shape).copy_(hidden), *leaves)
        with standing_in({module: partial(keep, module) for module in plan.kept}):
            return run(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the input, where it needs one, and of the leaves."""
        if ctx.plan.trims:
            _malloc()
        hidden, *leaves = ctx.saved_tensors
        hidden = hidden.detach().requires_grad_(ctx.needs_input_grad[2])
        known = {
            module: partial(_Known.apply, partial(ctx.values.pop, module), module)
            for module in ctx.plan.kept
        }
        if (unread := ctx.plan.unread) is not None:
            shape = (*hidden.shape[:-1], unread.out_features)
            anything = partial(hidden.new_empty, shape)
            known[unread] = partial(_Known.apply, anything, unread)
        with torch.enable_grad(), standing_in(known):
            output = ctx.run(hidden)
        wanted = [tensor for tensor in (hidden, *leaves) if tensor.requires_grad]
        found = torch.autograd.grad(output, wanted, grads)
        give_back(ctx.plan.layer.parameters(), ctx.plan.regions)
        of_hidden = () if hidden.requires_grad else (None,)
        return None, None, *of_hidden, *found


class _Known(torch.autograd.Function):
    """x W^T whose value is known, or is not needed, for the sake of its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Any, linear: nn.Linear, x: Tensor) -> Tensor:
        """What `value` returns; nobody else may hold it."""
        ctx.linear = linear
        return value()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor]:
        """The gradient of x."""
        return None, None, product_back(ctx.linear, grads[0])


def _apart(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An empty tensor on pages of its own: it leaves no gap in the heap."""
    if like.is_cuda:
        return like.new_empty(shape)
    pages = mmap(-1, prod(shape) * like.itemsize)
    # Not a view: autograd would not let an adapter be added to one in place.
    return torch.frombuffer(pages, dtype=like.dtype).resize_(shape)


def _malloc(mmap_from: int = 0, trim_from: int = 0) -> None:
    """Set from which size on glibc's malloc takes pages and returns them; return all free.

    Layers ask for the same one after the other. If each tensor had pages of its own, the
    kernel would clear them every time, which takes a third of a layer's time. On the heap
    they are used again, but what small objects pin between them stays: it is returned
    from time to time.
    """
    with suppress(OSError, AttributeError):  # another C library
        library = ctypes.CDLL("libc.so.6")
        if mmap_from:
            library.mallopt(M_MMAP_THRESHOLD, mmap_from)
            library.mallopt(M_TRIM_THRESHOLD, trim_from)
        library.malloc_trim(0)
