"""What a simulation will take, before it begins."""

import os

from ...common.engine.rates import with_rates
from ...common.process import age, free_mb
from ..forecast import estimate
from ..forecast.ask import look
from ..forecast.estimate import ENDS, EXCHANGE, STARTS, Forecast
from .environment import CHOSEN, inherited
from .plan import Plan

# What a process of a run has beside that of a forecast: Flower and Ray. And how much the
# heap holds more than a step's tensors, since it keeps what is freed (`CHOSEN`). Both as
# seen in runs of the built-in model and of SmolLM2.
LIBRARIES_MB = 200.0
HEAP = 1.5


def forecast(plan: Plan) -> Forecast:
    """Count the work of a run, and measure this machine in as many processes as nodes.

    Where each node has GPUs to itself, in as many as share one.

    Of a resumed run this is the whole, with what is done already.

    Raises
    ------
    IdiolectError
        The run would fail.
    """
    config = with_rates(plan.config)
    # As the nodes will have it: Ray gives an actor of one core one thread.
    threads = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment = {**threads, **inherited(os.environ), **CHOSEN}
    # Only nodes that share a GPU slow each other down.
    beside = max(1, int(1 / plan.gpus)) if plan.gpus else plan.nodes
    (count,), found = look([config], plan.nodes, beside, environment)
    phases = estimate.shares_of(count, count.parts, EXCHANGE)
    shares = {
        ("ahead", "", False): age(),
        ("start", "", False): STARTS * found["start"],
        **phases,
        ("end", "", False): ENDS * found["start"],
    }
    node = max(found["peak"], found["loaded"] + HEAP * count.memory)
    return Forecast(
        seconds=sum(shares.values()),
        memory=plan.nodes * (node + LIBRARIES_MB) + found["bare"] + LIBRARIES_MB,
        free=free_mb(),
        shares=shares,
        savings=estimate.savings(config, count, count.parts, EXCHANGE),
        weights=estimate.weights_of(config, count),
    )
