"""What a vault keeps: records, each of a source."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Source:
    """Where records come from. A source is forgotten as a whole.

    Attributes
    ----------
    kind
        ``import`` (the owner chose its name), ``device`` (settings, consents, counts: not
        made of the owner's text), ``run`` (what a federated run trained here) or
        ``adapter`` (one of the owner's own).
    name
        Unique among its kind; empty for the device.
    """

    kind: Literal["import", "device", "run", "adapter"]
    name: str = ""


DEVICE = Source("device")


@dataclass(frozen=True)
class Record:
    """One thing that is kept: a name, unique among its kind, and a body."""

    name: str
    body: bytes
