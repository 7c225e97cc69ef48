"""Federated on-device personalisation of language models.

The names below are the library (docs/library.md). They are imported when they are first
used: `import idiolect` itself loads neither torch nor Flower.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import IdiolectError, Model, PersonalModel, load

__all__ = ["IdiolectError", "Model", "PersonalModel", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'idiolect' has no attribute {name!r}")
    from . import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return [*__all__]
