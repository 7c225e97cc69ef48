"""Frozen products of weights that stay as their file has them.

Most models are published in 16 bits. On a CPU, which computes in float32, their matrices
are kept in 16 bits and widened a block at a time, for each product anew. Widening is exact:
the numbers are those of a float32 copy, in half of its memory, or in none where the file is
mapped (`mapped`). A wide vocabulary is read in blocks for the same reason.
"""

import threading
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .mapped import Region, give_back

BLOCK = 1 << 22  # numbers of a matrix that are widened at once: 16 MB
NARROW = {"BF16": torch.bfloat16, "F16": torch.float16}  # by safetensors' names


class Frozen(nn.Linear):
    """A projection x W' + b whose W [out, in] may be narrower than x.

    Attributes
    ----------
    regions
        Where to give back what was read of W after each block; empty: nowhere.
    """

    regions: list[Region] = []  # noqa: RUF012 - replaced, never changed

    def forward(self, input: Tensor) -> Tensor:
        """The product of x [..., in], [..., out]; W gets no gradient."""
        return _Product.apply(input, self)


class Widened(nn.Embedding):
    """An embedding whose rows are widened to float32 after they were looked up."""

    def forward(self, input: Tensor) -> Tensor:
        """Rows [..., d] of token ids [...]."""
        rows = super().forward(input).float()
        scale = getattr(self, "scalar_embed_scale", None)  # Gemma 3's
        return rows if scale is None else rows * torch.tensor(scale)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: nn.Linear) -> Tensor:
        ctx.linear = linear
        return product(linear, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        needed = ctx.needs_input_grad[0]
        return product_back(ctx.linear, grads[0]) if needed else None, None


def product(linear: nn.Linear, x: Tensor) -> Tensor:
    """The product x W' + b of x [..., in], without a gradient."""
    if not isinstance(linear, Frozen):
        return F.linear(x, linear.weight, linear.bias)
    # Not a view of another tensor: adapters are added to it in place.
    output = x.new_empty(*x.shape[:-1], linear.out_features)
    flat, rows = output.view(-1, linear.out_features), x.reshape(-1, x.shape[-1])
    for part, block in _blocks(linear, x.dtype):
        torch.mm(rows, block.T, out=flat[:, part])
    return output if linear.bias is None else output.add_(linear.bias)


def product_back(linear: nn.Linear, slopes: Tensor) -> Tensor:
    """The gradient g W [..., in] of x, where that of the product is g [..., out]."""
    if not isinstance(linear, Frozen):
        return slopes.to(linear.weight.dtype) @ linear.weight
    total = slopes.new_zeros(*slopes.shape[:-1], linear.in_features)
    flat = total.view(-1, linear.in_features)
    rows = slopes.reshape(-1, slopes.shape[-1])
    for part, block in _blocks(linear, slopes.dtype):
        flat.addmm_(rows[:, part], block)
    return total


def _blocks(linear: Frozen, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Rows of W, and these in another dtype."""
    size = max(1, BLOCK // linear.in_features)
    for start in range(0, linear.out_features, size):
        part = slice(start, start + size)
        rows = linear.weight[part]
        yield part, rows if rows.dtype == dtype else _widened(rows, dtype)
        if linear.regions:
            give_back(iter([rows]), linear.regions)


class _Place(threading.local):
    """Where a thread widens a block, and the next block after it.

    New memory for each would leave holes of 16 MB in the heap, which grows by them when
    something small comes to lie in one.
    """

    numbers = torch.empty(0)


_place = _Place()


def _widened(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy of rows in another dtype, until the next one."""
    numbers = _place.numbers
    if numbers.dtype != dtype or numbers.numel() < rows.numel():
        size = max(BLOCK, rows.numel())
        numbers = _place.numbers = torch.empty(size, dtype=dtype)
    return numbers[: rows.numel()].view(rows.shape).copy_(rows)


def freeze(model: nn.Module, dtype: torch.dtype) -> None:
    """Let a model compute in `dtype`, whatever its weights were loaded in.

    Only matrices stay as they are. Norms and biases are small, and are converted.
    """
    for module in model.modules():
        matrix = isinstance(module, nn.Linear | nn.Embedding)
        for name, weight in module.named_parameters(recurse=False):
            if weight.dtype == dtype:
                continue
            if matrix and name == "weight":
                kind = Frozen if isinstance(module, nn.Linear) else Widened
                object.__setattr__(module, "__class__", kind)
            else:
                weight.data = weight.data.to(dtype)
    head: Any = model.get_submodule("lm_head")
    if head.weight.numel() > BLOCK and not head.weight.is_cuda:
        head.__class__ = Frozen
