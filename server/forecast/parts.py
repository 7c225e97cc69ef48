"""The work of a job, part by part: plain numbers, without torch."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Work:
    """What is processed; tokens are those of layouts, fillers included.

    Attributes
    ----------
    adapted, trained
        Tokens forward and backward: for the shared adapter, for own ones.
    scored
        Tokens forward alone.
    prompted
        Prompt tokens before something is generated.
    steps, written
        Tokens that are generated one after the other; the same times the rows that go on
        side by side.
    prepared
        Trainings of one user: the draw and alpha of each, without the model.
    """

    adapted: int = 0
    trained: int = 0
    scored: int = 0
    prompted: int = 0
    steps: int = 0
    written: int = 0
    prepared: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            *(getattr(self, f.name) + getattr(other, f.name) for f in fields(self))
        )

    def times(self, count: float) -> "Work":
        """So many times this work."""
        return Work(*(round(getattr(self, f.name) * count) for f in fields(self)))


@dataclass(frozen=True)
class Part:
    """Work of one stacking group in one exchange of a run.

    Attributes
    ----------
    phase
        ``adapt``, ``pool``, ``samples``, ``training``, ``scores`` or ``generation``.
    label
        Which exchange: rounds and methods wait for each other.
    node
        The process that does it.
    users
        How many they are.
    work
        What is processed.
    method, trial
        Whose work it is, and whether it only tries a learning rate.
    """

    phase: str
    label: str
    node: int
    users: int
    work: Work
    method: str = ""
    trial: bool = False


@dataclass(frozen=True)
class Speed:
    """Seconds of one process.

    Attributes
    ----------
    adapted, trained, scored, prompted
        Per token of `Work`.
    step, written
        Of generation: per token of one row after the other, and more per row beside it.
    """

    adapted: float
    trained: float
    scored: float
    prompted: float
    step: float
    written: float


@dataclass(frozen=True)
class Count:
    """What was counted of one configuration, and how fast its backbone is here.

    Attributes
    ----------
    parts, speed
        All of its work; seconds of one process.
    memory
        MB that the largest training step takes above the backbone.
    prepared
        Seconds of one user's draw and alpha.
    again
        Share of the layers that training computes a second time to save memory.
    """

    parts: tuple[Part, ...]
    speed: Speed
    memory: float = 0.0
    prepared: float = 0.0
    again: float = 0.0

    def seconds(self, work: Work) -> float:
        """How long one process takes."""
        speed, both = self.speed, work.adapted + work.trained
        return (
            work.adapted * speed.adapted
            + work.trained * speed.trained
            + (work.scored + self.again * both) * speed.scored
            + work.prompted * speed.prompted
            + work.steps * speed.step
            + work.written * speed.written
            + work.prepared * self.prepared
        )
