"""A GGUF file is a stranger's input: what cannot be is refused in a sentence, cheaply."""

import re
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idiolect.common.errors import IdiolectError
from idiolect.common.gguf.header import Header, read_header


def text(words: str | bytes) -> bytes:
    data = words.encode() if isinstance(words, str) else words
    return struct.pack("<Q", len(data)) + data


def setting(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def entry(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<{len(shape)}Q", *shape)
    return (
        text(name)
        + struct.pack("<I", len(shape))
        + sizes
        + struct.pack("<IQ", kind, offset)
    )


ARCHITECTURE = setting("general.architecture", 8, text("llama"))
ADAPTER = setting("general.type", 8, text("adapter"))
SPLIT = setting("split.count", 2, struct.pack("<H", 3))
ONE = entry("token_embd.weight", (32, 2))


def file_of(
    settings: tuple[bytes, ...] = (ARCHITECTURE,),
    tensors: tuple[bytes, ...] = (ONE,),
    version: int = 3,
    counts: tuple[int, int] | None = None,
    data: int = 4096,
    order: str = "<",
) -> bytes:
    tensors_count, settings_count = counts or (len(tensors), len(settings))
    head = b"GGUF" + struct.pack(f"{order}IQQ", version, tensors_count, settings_count)
    body = head + b"".join(settings) + b"".join(tensors)
    return body + bytes(-len(body) % 32 + data)


def read(folder: Path, data: bytes) -> Header:
    (folder / "model.gguf").write_bytes(data)
    return read_header(folder / "model.gguf")


def test_a_header_is_read(tmp_path):
    numbers = setting("llama.list", 9, struct.pack("<IQ3i", 5, 3, -1, 0, 7))
    words = setting("llama.words", 9, struct.pack("<IQ", 8, 2) + text("a") + text("é"))
    truth, real = setting("yes", 7, b"\1"), setting("real", 12, struct.pack("<d", 0.5))
    tensors = (ONE, entry("b", (64, 3), kind=8, offset=256))
    data = file_of((ARCHITECTURE, numbers, words, truth, real), tensors)
    found = read(tmp_path, data)
    assert found.settings == {
        "general.architecture": "llama",
        "llama.list": [-1, 0, 7],
        "llama.words": ["a", "é"],
        "yes": True,
        "real": 0.5,
    }
    one, two = found.tensors.values()
    assert (one.name, one.shape, one.kind, one.length) == (
        "token_embd.weight",
        (2, 32),
        "F32",
        256,
    )
    assert (two.shape, two.kind, two.length) == ((3, 64), "Q8_0", 3 * 2 * 34)
    assert two.start - one.start == 256
    assert one.start % 32 == 0
    assert one.start + 4096 == len(data)


HUGE = 2**62
WRONG = {
    "no GGUF": (b"GGML" + bytes(100), "not a GGUF file"),
    "empty": (b"", "not a GGUF file"),
    "only magic": (b"GGUF", "cut short"),
    "version 1": (file_of(version=1), "version 1"),
    "version 4": (file_of(version=4), "version 4"),
    "big-endian": (file_of(order=">"), "big-endian"),
    "adapter": (file_of((ARCHITECTURE, ADAPTER)), "'adapter'"),
    "part": (file_of((ARCHITECTURE, SPLIT)), "one of 3 parts"),
    "tensors": (file_of(counts=(HUGE, 1)), f"{HUGE} tensors"),
    "settings": (file_of(counts=(1, HUGE)), f"{HUGE} settings"),
    "settings that end": (
        file_of(counts=(1, 200)),
        "cut short|name in it|unknown type",
    ),
    "key": (file_of((struct.pack("<Q", HUGE),)), "name in it"),
    "text": (file_of((setting("a", 8, struct.pack("<Q", HUGE)),)), "cut short"),
    "not UTF-8": (file_of((setting("a", 8, text(b"\xff")),)), "UTF-8"),
    "list": (file_of((setting("a", 9, struct.pack("<IQ", 4, HUGE)),)), "elements"),
    "long list": (
        file_of((setting("a", 9, struct.pack("<IQ", 12, 2**20)),)),
        "cut short",
    ),
    "texts": (file_of((setting("a", 9, struct.pack("<IQ", 8, 2**20)),)), "cut short"),
    "lists": (file_of((setting("a", 9, struct.pack("<IQ", 9, 1)),)), "list of lists"),
    "type": (file_of((setting("a", 13, b""),)), "unknown type 13"),
    "key twice": (file_of((ARCHITECTURE, ARCHITECTURE)), "twice"),
    "alignment": (
        file_of((setting("general.alignment", 4, struct.pack("<I", 3)),)),
        "alignment is 3",
    ),
    "dimensions": (file_of(tensors=(entry("a", (1,) * 5),)), "5 dimensions"),
    "no rows": (file_of(tensors=(entry("a", (32, 0)),)), "cannot be"),
    "part of a block": (file_of(tensors=(entry("a", (33,), kind=8),)), "cannot be"),
    "unaligned": (file_of(tensors=(entry("a", (4,), offset=4),)), "cannot be"),
    "large": (file_of(tensors=(entry("a", (HUGE, HUGE)),)), "beyond the end"),
    "far": (file_of(tensors=(entry("a", (32,), offset=2**62),)), "beyond the end"),
    "cut": (file_of()[:-4000], "beyond the end"),
    "tensor twice": (file_of(tensors=(ONE, ONE)), "twice"),
    "on another": (file_of(tensors=(ONE, entry("b", (32,), offset=32))), "lies on"),
    "type of tensor": (file_of(tensors=(entry("a", (256,), kind=16),)), "IQ2_XXS"),
    "unknown tensor": (file_of(tensors=(entry("a", (256,), kind=99),)), "number 99"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_without_much_memory(case, tmp_path):
    data, words = WRONG[case]
    tracemalloc.start()
    try:
        with pytest.raises(IdiolectError, match=words) as error:
            read(tmp_path, data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000
    assert len(str(error.value)) < 800
    assert re.search(r": [^:]+\.$", str(error.value))  # a problem, and a next step


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(IdiolectError, match=r"none\.gguf cannot be read"):
        read_header(tmp_path / "none.gguf")


@given(st.integers(0, 10**6), st.integers(0, 255), st.integers(0, 10**6))
def test_a_changed_or_cut_header_is_read_or_refused(tmp_path_factory, place, byte, cut):
    """No other exception, whatever one byte says and wherever the file ends."""
    words = setting("w", 9, struct.pack("<IQ", 8, 2) + text("a") + text("b"))
    data = bytearray(file_of((ARCHITECTURE, words), data=512))
    head = len(data) - 512
    data[place % head] = byte
    folder = tmp_path_factory.mktemp("file")
    for one in (data, data[: cut % len(data)]):
        try:
            read(folder, bytes(one))
        except IdiolectError as error:
            assert "\n" not in str(error)
