"""The configuration and the model that an owner's settings name."""

from collections.abc import Mapping

from ...common.config import SETLESS, Config, parse
from ...common.engine.backbone import Backbone
from ...common.engine.reference import load_reference
from . import limits


def config_of(
    chosen: Mapping[str, str], method: str = "c-bpo", rate: float = 3e-3
) -> Config:
    """The configuration of a training with these settings."""
    return parse(
        {
            "task": "text",
            "methods": f"base,shared,{method}",
            "backbone": chosen["backbone"],
            "engine.max-length": int(chosen["max-length"]),
            "engine.dtype": chosen["dtype"],
            "engine.device": chosen["device"],
            "unlabeled.kind": "self",
            # Samples take as long as a part of the training: none where none are used.
            "unlabeled.ratio": 0.0 if method in SETLESS else 1.0,
            "personalise.learning-rates": repr(rate),
        }
    )


def check_loads(chosen: Mapping[str, str]) -> Backbone:
    """Load the backbone that settings name, as every later use does; return it.

    Raises
    ------
    IdiolectError
        It cannot be loaded, or not within the owner's limits.
    """
    with limits.held(chosen):
        return load_reference(config_of(chosen)).backbone
