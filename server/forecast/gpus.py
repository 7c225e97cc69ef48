"""GPUs by their data sheets: how fast one that is not here would compute.

- A token costs 2 operations per frozen weight forward, and as many again backward, since
  frozen weights have no gradient. Attention scores are left out: at 1,500 tokens they are
  some 5 % of a 7B model.
- Of the data sheet's dense bf16 operations per second SHARE are done, of its bandwidth
  READ while one token after the other is written. SHARE is what one run has shown.
"""

from dataclasses import dataclass

from ...common.errors import refuse_if

GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet.

    Attributes
    ----------
    flops
        Dense bf16 operations per second with sums in float32.
    memory
        Bytes.
    bandwidth
        Bytes of its memory per second.
    """

    flops: float
    memory: float
    bandwidth: float


GPUS = {
    "a10g-24gb": Gpu(70e12, 24 * GIB, 600e9),
    "a100-40gb": Gpu(312e12, 40 * GIB, 1555e9),
    "a100-80gb": Gpu(312e12, 80 * GIB, 2039e9),
    "h100-80gb": Gpu(989e12, 80 * GIB, 3350e9),
    "h200-141gb": Gpu(989e12, 140 * GIB, 4800e9),
    "l4-24gb": Gpu(121e12, 24 * GIB, 300e9),
    "l40s-48gb": Gpu(362e12, 45 * GIB, 864e9),
    "rtx3090-24gb": Gpu(71e12, 24 * GIB, 936e9),
    "rtx4090-24gb": Gpu(165e12, 24 * GIB, 1008e9),
}

# In benchmarks/results/many_users-0.5B-gpu.json 16 users of a 0.5B model trained side by
# side on an H200; `test_the_share_is_the_measured_one` counts their tokens again. Larger
# models use a GPU better, so times are rather too long for them.
SHARE = 0.07
READ = 0.5  # not measured: what well-known programs reach with one sequence


def gpu_of(name: str) -> Gpu:
    """Return a GPU by its name.

    Raises
    ------
    IdiolectError
        It is not in the table.
    """
    refuse_if(
        name not in GPUS,
        f"there is no data sheet of a GPU '{name}': use one of {', '.join(GPUS)}.",
    )
    return GPUS[name]
