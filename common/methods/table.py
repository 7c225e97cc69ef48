"""From a method's name to its module.

A method that trains has `training_set` (what one user learns from) and `loss`, and may
have a `second_stage`. One that makes adapters without training has `made`, one that asks
other prompts has `prompted`.
"""

from importlib import import_module
from types import ModuleType


def module_of(method: str) -> ModuleType:
    """Return the module of a method, loaded when it is first used."""
    return import_module("." + method.replace("-", "_"), __package__)
