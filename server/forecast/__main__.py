"""The process that counts and measures: a job as JSON in, what was found as JSON out.

It is a process of its own, so that the one that asks holds no backbone afterwards and can
be interrupted at once. As many run side by side as nodes will: they share the machine as
the nodes will.
"""

import json
import resource
import sys
from dataclasses import asdict
from typing import Any

from ...common.config import parse
from ...common.errors import IdiolectError, Impossible
from ...common.process import age, free_mb, peak_mb


def look(job: dict[str, Any]) -> dict[str, Any]:
    """Count all configurations of a job, and measure on the first of each backbone.

    With ``gpu``, the name of one that is not here, nothing is measured and no weights are
    read (`bare`).

    Returns
    -------
    dict
        ``counts``: for each configuration its parts, bytes of its largest step, and
        seconds of a draw; ``speeds``: which speed each has, and these; ``start``: seconds
        until backbone and data are there; ``bare`` and ``loaded``: memory without and
        with the backbone.
    """
    from ...common.data.load import load_dataset
    from ...common.data.types import STAND_IN
    from ...common.engine.backbone import backbone_of
    from ...common.engine.rates import with_rates
    from ..run.local import fitted
    from . import bare
    from .counts import Counting, all_parts, sample
    from .gpus import gpu_of
    from .speed import measured

    found: dict[str, Any] = {"bare": peak_mb(), "counts": [], "start": 0.0}
    found["stand-in"] = 0
    speeds: dict[str, Any] = {}
    gpu = gpu_of(job["gpu"]) if job["gpu"] else None
    for number, flat in enumerate(job["configs"]):
        config = with_rates(parse(flat))
        backbone = bare.backbone_of(config) if gpu else backbone_of(config)
        config = bare.within(config, gpu, backbone) if gpu else config
        dataset, scale = sample(load_dataset(config))
        dataset = fitted(backbone, dataset)
        found["stand-in"] += dataset.users[0].id.startswith(STAND_IN)
        if not number:
            weights = bare.weight_bytes(backbone) / 2**20
            found |= {"start": age(), "loaded": peak_mb(), "weights": weights}
        counting = Counting(config, backbone, dataset, job["nodes"], job["development"])
        counting.scale = scale
        parts = [[*vars(p).values()] for p in all_parts(counting)]
        name = f"{config.backbone} {config.task} {config.data}"
        if name not in speeds:
            speed = bare.speed_on(gpu, backbone) if gpu else None
            speed = speed or measured(config, backbone, dataset.users)
            speeds[name] = asdict(speed)
        # A GPU that is not here holds nothing else: then keys and values may be the most.
        cached = bare.cache_bytes(backbone, counting.cached) if gpu else 0
        found["counts"].append(
            {
                "parts": [[*p[:4], [*vars(p[4]).values()], *p[5:]] for p in parts],
                "memory": max(counting.memory, cached),
                "prepared": counting.seconds,
                "again": counting.again,
                "speed": speeds[name],
            }
        )
    if gpu:
        # Its memory holds weights and steps; this process is nothing to it.
        here = {"start": 0.0, "loaded": found["weights"], "peak": found["weights"]}
        return found | here | {"free": gpu.memory / 2**20}
    return found | {"peak": peak_mb(), "free": free_mb()}


def main() -> None:
    """Answer the job on standard input; an error is a sentence in the answer."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        found = look(json.load(sys.stdin))
    except IdiolectError as error:
        found = {"error": str(error), "impossible": isinstance(error, Impossible)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
