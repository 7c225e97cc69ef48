"""The plan of one release: all that its members must agree on, and its hash.

The hash is in every key of the release. Members with different plans have different masks,
which do not cancel: a server that tells members different things gets no sum.
"""

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property

from ..errors import refuse_if
from .grid import WORDS
from .masks import KEY
from .neighbours import FEWEST, Graph, graph, signers

CONTEXT = b"idiolect secagg 1"


@dataclass(frozen=True)
class Segment:
    """A part of the row with a grid and noise of its own.

    Attributes
    ----------
    length
        Coordinates.
    exponent
        The unit is 2^exponent.
    variance
        v, of each member's share of the noise, in units squared; 0: no noise.
    """

    length: int
    exponent: int
    variance: int


@dataclass(frozen=True)
class Plan:
    """What the members of one release agree on.

    Attributes
    ----------
    run, release, stage
        Names of the run, the release, and the stage it belongs to.
    directory
        SHA-256 of the directory of members' keys.
    cohort
        Numbers of the nodes that are asked, ascending; a member's place is its index.
    content
        SHA-256 of all that a row depends on: configuration, model, clip, round.
    segments
        Of the row, in order.
    word
        w: words of 32 or 64 bits.
    required
        Fewest rows in the sum.
    corrupt
        How many members may work with the server.
    """

    run: str
    release: str
    stage: str
    directory: bytes
    cohort: tuple[int, ...]
    content: bytes
    segments: tuple[Segment, ...]
    word: int
    required: int
    corrupt: int

    def __post_init__(self) -> None:
        """Refuse a plan that no release can have."""
        n = self.members
        ordered = self.cohort == tuple(sorted(set(self.cohort)))
        in_range = all(0 <= number < 2**64 for number in self.cohort)
        reasons = (
            (not ordered or not in_range, "its members are not in ascending order"),
            (n < FEWEST, f"it has {n} members, and a sum hides one among {FEWEST}"),
            (len(self.directory) != KEY or len(self.content) != KEY, "a hash is none"),
            (self.word not in WORDS, f"words of {self.word} bits are not known"),
            (
                not self.segments or any(s.length < 1 for s in self.segments),
                "a part of the row has no coordinate",
            ),
            (any(s.variance < 0 for s in self.segments), "a variance is negative"),
            (not FEWEST <= self.required <= n, f"{self.required} of {n} are required"),
            (not 0 <= self.corrupt < n, f"{self.corrupt} of {n} are corrupt"),
        )
        for wrong, why in reasons:
            refuse_if(
                wrong, f"the plan of a release cannot be ({why}): ask its operator."
            )

    @property
    def members(self) -> int:
        """How many are asked: n."""
        return len(self.cohort)

    @property
    def length(self) -> int:
        """Coordinates of a row."""
        return sum(segment.length for segment in self.segments)

    @property
    def signers(self) -> int:
        """How many members must sign who is counted."""
        return signers(self.members, self.corrupt)

    @cached_property
    def hash(self) -> bytes:
        """P: SHA-256 over all fields, each behind its length."""
        parts = [CONTEXT]
        for field in fields(self):
            parts += _parts(getattr(self, field.name))
        text = b"".join(len(part).to_bytes(8, "big") + part for part in parts[1:])
        return hashlib.sha256(parts[0] + text).digest()

    @cached_property
    def graph(self) -> Graph:
        """Who masks with whom, and who holds whose shares."""
        return graph(self.hash, self.members)


def _parts(value: object) -> list[bytes]:
    """A field as byte strings; a sequence begins with its length."""
    if isinstance(value, tuple):
        found = [part for one in value for part in _parts(one)]
        return [str(len(value)).encode(), *found]
    if isinstance(value, Segment):
        return _parts((value.length, value.exponent, value.variance))
    return [value if isinstance(value, bytes) else str(value).encode()]


def refuse_other(plan: Plan, own: Plan) -> None:
    """Refuse a server's plan where the device computes another one.

    Parameters
    ----------
    plan
        From the server.
    own
        From the configuration that was pinned at the run's hello, for the same cohort.

    Raises
    ------
    IdiolectError
        With the first field that differs.
    """
    for field in fields(plan):
        theirs, mine = getattr(plan, field.name), getattr(own, field.name)
        refuse_if(
            theirs != mine,
            f"the server's plan differs from this device's in {field.name!r}: "
            "sit this release out and ask the operator.",
        )
