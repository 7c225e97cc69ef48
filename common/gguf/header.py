"""The header of a GGUF file: settings and the place of each tensor, without any weight.

A file is a stranger's input. Every count and length is compared with what is left of the
file before anything is read, so a header never costs more memory than a small multiple of
its own bytes. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from ..errors import IdiolectError, explained
from ..text import printable

# Numbers of the values' types, and how `struct` reads them.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"}
SCALARS |= {10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
# Elements of an array, settings, and tensors: several times those of the largest models.
MOST_ELEMENTS, MOST_SETTINGS, MOST_TENSORS, MOST_DIMENSIONS = 2**21, 2**12, 2**16, 4
LONGEST_NAME = 1024
USUAL_ALIGNMENT, MOST_ALIGNMENT = 32, 2**16

# Number of a tensor's type -> its name, and elements and bytes of a block. Those that are
# missing are refused: the tests compare each of these with a second implementation.
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    30: ("BF16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136),
}
EXACT = ("F32", "F16", "BF16")  # their bits are kept; the others become float32
OTHERS = {16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S"}
OTHERS |= {22: "IQ2_S", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor.

    Attributes
    ----------
    name
        In llama.cpp's words, such as ``blk.0.attn_q.weight``.
    shape
        As torch counts: rows first. The file has it the other way round.
    kind
        Name of its type.
    start, length
        Its place in the file, in bytes.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    start: int
    length: int


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself.

    Attributes
    ----------
    file
        Its path.
    settings
        Key -> number, truth value, text, or list of these.
    tensors
        By name.
    """

    file: Path
    settings: dict[str, Any]
    tensors: dict[str, TensorEntry]


def unusable(file: Path, problem: str, step: str) -> IdiolectError:
    """Return the error of a file that cannot be a backbone."""
    return IdiolectError(
        f"{printable(str(file), 300)} cannot be used as a backbone, "
        f"{printable(problem, 300)}: {step}."
    )


AGAIN = "download the file again"
OTHER = "take the same model in another file, or in Hugging Face format"


def read_header(file: Path) -> Header:
    """Read and check the header of a GGUF file.

    Raises
    ------
    IdiolectError
        It is not a GGUF file of version 2 or 3 in little-endian order; it is cut short or
        damaged; a tensor has a type that is not supported.
    """
    with (
        explained(f"{file} cannot be read", "give the path of a GGUF file"),
        file.open("rb") as stream,
    ):
        if stream.read(4) != b"GGUF":
            raise unusable(file, "it is not a GGUF file", "give the path of one")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(file, data).header()


class _Reader:
    """A place in the bytes of a file, which moves on with what is read."""

    def __init__(self, file: Path, data: mmap.mmap) -> None:
        self.file, self.data, self.place = file, data, 4

    def refuse(self, problem: str, step: str = AGAIN) -> NoReturn:
        raise unusable(self.file, problem, step)

    def take(self, length: int) -> bytes:
        """Return the next bytes; refuse the file if there are fewer."""
        if length > len(self.data) - self.place:
            self.refuse("it is cut short or damaged")
        self.place += length
        return self.data[self.place - length : self.place]

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def count(self, most: int, what: str) -> int:
        """Return a count of what follows."""
        if (found := self.number("Q")) > most:
            self.refuse(f"it claims {found} {what}, and {most} are the most")
        return found

    def text(self, most: int | None = None) -> str:
        length = self.number("Q")
        if most is not None and length > most:
            self.refuse(f"a name in it has {length} bytes")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            self.refuse("a text in it is not UTF-8")

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text()
        if kind == ARRAY:
            kind, length = self.number("I"), self.count(MOST_ELEMENTS, "elements")
            if kind in SCALARS:
                form = f"<{length}{SCALARS[kind]}"
                return list(struct.unpack(form, self.take(struct.calcsize(form))))
            if kind == TEXT:
                return [self.text() for _ in range(length)]
            self.refuse("it has a list of lists")
        if kind not in SCALARS:
            self.refuse(f"it has a value of the unknown type {kind}")
        return self.number(SCALARS[kind])

    def header(self) -> Header:
        version = self.number("I")
        if version & 0xFFFF == 0:
            self.refuse("it is written for big-endian machines", OTHER)
        if version not in (2, 3):
            self.refuse(f"it is of GGUF version {version}, not 2 or 3", OTHER)
        tensors = self.count(MOST_TENSORS, "tensors")
        settings: dict[str, Any] = {}
        for _ in range(self.count(MOST_SETTINGS, "settings")):
            key = self.text(LONGEST_NAME)
            if key in settings:
                self.refuse(f"it has the setting '{key}' twice")
            settings[key] = self.value(self.number("I"))
        self.check_kind(settings)
        entries = [self.entry() for _ in range(tensors)]
        return Header(self.file, settings, self.placed(settings, entries))

    def check_kind(self, settings: dict[str, Any]) -> None:
        """Refuse what is no whole model, before its tensors look wrong."""
        kind = settings.get("general.type", "model")
        if kind != "model":
            self.refuse(
                f"it is no model but of type '{kind}'", "give the model's own file"
            )
        if (parts := settings.get("split.count", 0)) not in (0, 1):
            self.refuse(
                f"it is one of {parts} parts of a model",
                "join them by `llama-gguf-split --merge`",
            )

    def entry(self) -> tuple[str, tuple[int, ...], int, int]:
        """Return name, shape, type and offset of a tensor."""
        name, dimensions = self.text(LONGEST_NAME), self.number("I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            self.refuse(f"tensor '{name}' has {dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
        return name, shape, self.number("I"), self.number("Q")

    def placed(
        self,
        settings: dict[str, Any],
        entries: list[tuple[str, tuple[int, ...], int, int]],
    ) -> dict[str, TensorEntry]:
        """Find each tensor in the file; refuse those that lie outside or on each other."""
        alignment = settings.get("general.alignment", USUAL_ALIGNMENT)
        powers = [1 << n for n in range(3, MOST_ALIGNMENT.bit_length())]
        if type(alignment) is not int or alignment not in powers:
            self.refuse(f"its general.alignment is {alignment}")
        first = -(-self.place // alignment) * alignment
        found: dict[str, TensorEntry] = {}
        for name, shape, number, offset in entries:
            if number not in TYPES:
                kind = OTHERS.get(number, f"number {number}")
                self.refuse(f"tensor '{name}' has the type {kind}", READ)
            kind, elements, size = TYPES[number]
            if name in found:
                self.refuse(f"it has the tensor '{name}' twice")
            if not all(shape) or shape[-1] % elements or offset % alignment:
                self.refuse(f"tensor '{name}' has a shape or place that cannot be")
            length = prod(shape) // elements * size
            found[name] = TensorEntry(name, shape, kind, first + offset, length)
        end = first
        for one in sorted(found.values(), key=lambda entry: entry.start):
            if one.start < end:
                self.refuse(f"tensor '{one.name}' lies on another")
            end = one.start + one.length
            if end > len(self.data):
                self.refuse(f"tensor '{one.name}' lies beyond the end of the file")
        return found


READ = f"take a file of {', '.join(name for name, _, _ in TYPES.values())}"
