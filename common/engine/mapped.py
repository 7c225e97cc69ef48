"""Weights that lie in their file: memory for those that are needed now.

transformers maps a safetensors file whose dtype is the one asked for. What was read of it
stays in the process until the kernel needs the memory. Giving a layer's pages back after
the layer keeps the process as small as a device needs it (as MeBP does on phones); the
next read finds them in the kernel's cache, if the machine has the memory, and otherwise
on the disk.
"""

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

Region = tuple[int, int]


def clean_regions() -> list[Region]:
    """Addresses, from and to, of mapped safetensors files that nobody has written to.

    Only there giving pages back loses nothing. Empty where Linux's smaps are not.
    """
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return []
    found: list[Region] = []
    region, mapped = (0, 0), False
    for line in lines:
        first, *rest = line.split()
        if not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            region, mapped = (start, end), line.endswith(".safetensors")
        elif first == "Anonymous:" and mapped and rest[0] == "0":
            found.append(region)
    return found


def give_back(tensors: Iterator[Tensor], regions: list[Region]) -> None:
    """Give back the whole pages of tensors that lie in the regions."""
    size = mmap.PAGESIZE
    for tensor in tensors:
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        if any(low <= start and end <= high for low, high in regions):
            start, end = -(-start // size) * size, end // size * size
            if end > start:
                library = ctypes.CDLL("libc.so.6", use_errno=True)
                address, length = ctypes.c_void_p(start), ctypes.c_size_t(end - start)
                library.madvise(address, length, mmap.MADV_DONTNEED)


@contextmanager
def a_layer_at_a_time(model: Any, regions: list[Region]) -> Iterator[None]:
    """Give a decoder layer's weights back after its forward pass, inside the block.

    Those of a head that is read in blocks (`frozen`) are given back block by block.
    """

    def after(layer: nn.Module, *_: object) -> None:
        give_back(layer.parameters(), regions)

    layers = model.model.layers if regions else ()
    handles = [layer.register_forward_hook(after) for layer in layers]
    before = getattr(model.lm_head, "regions", [])
    model.lm_head.regions = regions
    try:
        yield
    finally:
        model.lm_head.regions = before
        for handle in handles:
            handle.remove()
