"""Bytes per device and round for the shared adapter, against plain federated averaging.

    python benchmarks/wire.py

Both sides are whole messages as Flower serialises them: the task and the reply of one
user, with everything that is in them. The plain one sends A and B of every adapted
projection as float32 both ways, with a learning rate down and a number of examples up.
What quality the signed bytes cost, the study `wire` says. Writes
benchmarks/results/wire.json.
"""

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from report import save
from shapes import linears, shape
from transformers import AutoConfig

from idiolect.common.config import flatten, parse
from idiolect.common.engine.backbone import TINY
from idiolect.common.protocol.messages import AdaptReply, AdaptRequest
from idiolect.common.protocol.packing import pack
from idiolect.common.protocol.quantization import encode, update_codes
from idiolect.common.protocol.signed import make_part, part_names, seal_request

RANK = 8
# 14 query heads share 2 heads of keys and values.
GROUPED = shape("0.5B")


def sent(record: RecordDict) -> int:
    """Bytes of a message's content on the wire."""
    return len(recorddict_to_proto(record).SerializeToString())


def plain(shapes: dict[str, tuple[int, int]]) -> dict[str, int]:
    """Federated averaging of whole adapters."""
    arrays = ArrayRecord(
        {
            f"{name}.{part}": Array(np.zeros(size, np.float32))
            for name, (out, inner) in shapes.items()
            for part, size in (("A", (RANK, inner)), ("B", (out, RANK)))
        }
    )
    down = RecordDict({"arrays": arrays, "config": ConfigRecord({"lr": 1e-3})})
    up = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 32})})
    return {"down": sent(down), "up": sent(up)}


def ours(shapes: dict[str, tuple[int, int]], targets: str) -> dict[str, int]:
    """A task and a reply of the phase adapt, for one user."""
    config = parse({"lora.targets": targets})
    random = np.random.default_rng(0)
    b = {
        name: random.normal(size=(out, RANK)).astype(np.float32)
        for name, (out, _) in shapes.items()
    }
    step = {"run": "headline-20260101-000000", "step": "adapt/0/0"}
    task = AdaptRequest(
        run=step["run"],
        step=step["step"],
        config=flatten(config),
        folder="",
        users=("user-000",),
        round=0,
        release="",
        clip=config.adapt.clip,
        shared=encode(b),
    )
    rows = update_codes({n: one[None] for n, one in b.items()}, 0, task.users, 0)
    reply = AdaptReply(
        **step,
        users=task.users,
        errors={},
        seconds=1.0,
        process="host/1234",
        peak_rss_mb=1.0,
        rows=rows,
    )
    parts = {n: make_part(n, getattr(task, n)) for n in part_names(AdaptRequest)}
    known = {"config": parts["config"].hash}  # every node has it since the hello
    down = seal_request(task, 1, 2**32, parts, bytes(32), known, bytes(16))
    return {"down": sent(down), "up": sent(pack(reply))}


def main() -> None:
    """Compare both, write the result and print it."""
    rows = []
    for name, config, targets in (
        ("tiny", AutoConfig.from_pretrained(TINY), "all"),
        ("Qwen2-0.5B's shape", GROUPED, "all"),
        ("Qwen2-0.5B's shape", GROUPED, "q,v"),
    ):
        shapes = linears(config, targets)
        row = {"model": name, "targets": targets, "rank": RANK}
        row |= {"plain": plain(shapes), "ours": ours(shapes, targets)}
        row["ratio"] = sum(row["ours"].values()) / sum(row["plain"].values())
        rows.append(row)
        print(f"{name}, {targets}: {row['ours']} of {row['plain']}, {row['ratio']:.3f}")
    save("wire", {"rows": rows})


if __name__ == "__main__":
    main()
