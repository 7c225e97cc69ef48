"""Signed tasks, and the large parts of them, which are sent once.

A task is one JSON text, signed with the key that the server's invitation names. What is
large in it (the configuration, the shared adapter, the unlabeled set, the bank) stands
there as a SHA-256 and travels beside it, and only where the node does not have it yet. So
one signature covers everything: run, step, users, release, method, rate, and the contents
of all parts. Beside the task's own fields it covers the `Seal`:

    node       whom the task is for: a task for one device is none for another
    counter    grows with every task of a run: a replayed or late one is refused
    parts      name -> SHA-256 of each part

A part travels behind a salt of its run's life, so that nobody can guess the ids under which
Flower stores it. A node keeps one content of each part, the last that it was sent. A task
whose parts it lacks is answered by `protocol.Missing`, and sent again with them.
"""

import hashlib
import json
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from safetensors import SafetensorError
from safetensors.numpy import load as load_rows
from safetensors.numpy import save as save_rows

from ..errors import IdiolectError
from ..text import read_json
from .manifest import sign_text, verify_text
from .messages import (
    MAX_BODY,
    SCHEMA,
    ProtocolError,
    Rows,
    Task,
    plain,
    read_array,
    read_head,
    typed,
)

PARTS = ("config", "shared", "unlabeled", "bank")
MAX_TASK = (
    1 << 20
)  # bytes of a task's text: it names users and items, and holds no text
SALT = 16  # bytes before each part as it travels
# Bytes of each part: of a configuration, of a shared adapter in float32, of many items.
LARGEST = {
    "config": 1 << 18,
    "shared": 1 << 29,
    "unlabeled": MAX_BODY,
    "bank": MAX_BODY,
}
# Signatures of the same key over anything else than a task do not fit.
CONTEXT = b"idiolect task 1\n"

_HASH = re.compile(r"[0-9a-f]{64}")


class MissingParts(IdiolectError):
    """A task names parts that this node does not have; `names` are theirs."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(f"these parts of the task are not here: {', '.join(names)}.")
        self.names = names


@dataclass(frozen=True)
class Seal:
    """What is signed beside the fields of a task.

    Attributes
    ----------
    node
        Flower's number of the node that the task is for, in decimal digits: it has more
        bits than a number of JSON.
    counter
        Larger than that of every earlier task of the run.
    parts
        Name -> SHA-256 of its bytes, in hex.
    """

    node: str
    counter: int
    parts: dict[str, str]


@dataclass(frozen=True)
class Part:
    """A large field of a task, and the SHA-256 of its bytes."""

    data: bytes
    hash: str


@dataclass(frozen=True)
class Sealed:
    """A task as it came. Its form was checked; who wrote it was not (`verify`).

    Attributes
    ----------
    cls
        Which task it is.
    text, signature
        What was signed, and by which signature.
    fields
        The task's own fields but its parts, checked by type.
    seal
        See `Seal`.
    """

    cls: type[Task]
    text: str
    signature: str
    fields: dict[str, Any]
    seal: Seal

    @property
    def run(self) -> str:
        """The run's id."""
        return self.fields["run"]

    @property
    def users(self) -> tuple[str, ...]:
        """Whom the task is for."""
        return self.fields["users"]


def digest(data: bytes) -> str:
    """SHA-256 of a part, in hex."""
    return hashlib.sha256(data).hexdigest()


# --- writing -----------------------------------------------------------------------------


def make_part(name: str, value: Any) -> Part:
    """Encode a field of a task as a part, and hash it."""
    data = encode_part(name, value)
    return Part(data, digest(data))


def encode_part(name: str, value: Any) -> bytes:
    """Bytes of a part: safetensors for the shared adapter, else JSON; always the same."""
    if name == "shared":
        return save_rows(
            {key: np.ascontiguousarray(array) for key, array in value.items()}
        )
    text = json.dumps(
        plain(value), ensure_ascii=False, sort_keys=True, separators=(",", ":")
    )
    return text.encode()


def part_names(cls: type[Task]) -> tuple[str, ...]:
    """Names of the parts of a kind of task."""
    names = {entry.name for entry in fields(cls)}
    return tuple(name for name in PARTS if name in names)


def seal_task(
    task: Task,
    node: int,
    counter: int,
    parts: Mapping[str, Part],
    seed: bytes,
    known: Mapping[str, str],
    salt: bytes,
) -> RecordDict:
    """Sign a task and turn it into Flower's records.

    Parameters
    ----------
    task
        What is to be done.
    node, counter
        See `Seal`.
    parts
        All its parts, by name (`make_part`).
    seed
        The private key, 32 bytes.
    known
        Name -> SHA-256 of what the node holds already: such a part stays here.
    salt
        16 random bytes, the same for all nodes, so that Flower stores a part once.
    """
    hashes = {name: part.hash for name, part in parts.items()}
    body = {
        entry.name: plain(getattr(task, entry.name))
        for entry in fields(task)
        if entry.name not in parts
    }
    body["seal"] = plain(Seal(str(node), counter, hashes))
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    head = {"schema": SCHEMA, "kind": type(task).__name__, "body": text}
    head["signature"] = sign_text(CONTEXT, text, seed)
    records: dict[str, Any] = {"message": ConfigRecord(head)}
    arrays = {
        name: Array(np.frombuffer(salt + part.data, np.uint8))
        for name, part in parts.items()
        if known.get(name) != hashes[name]
    }
    if arrays:
        records["parts"] = ArrayRecord(arrays)
    return RecordDict(records)


# --- reading -----------------------------------------------------------------------------


def read_sealed(cls: type[Task], record: RecordDict) -> Sealed:
    """Check the form of a task that came in.

    Raises
    ------
    ProtocolError
        Anything is not as it should be; one sentence that names it.
    """
    body, signature = read_head(record, cls, MAX_TASK)
    hints = typing.get_type_hints(cls)
    parts = part_names(cls)
    own = [entry.name for entry in fields(cls) if entry.name not in parts]
    if odd := set(body) ^ {*own, "seal"}:
        named = ", ".join(repr(name) for name in sorted(odd))
        raise ProtocolError(
            f"{cls.__name__}: the fields differ from ours in {named:.200}."
        )
    found = typed(
        {"seal": body["seal"], **{name: body[name] for name in own}},
        {"seal": Seal, **{name: hints[name] for name in own}},
        cls.__name__,
    )
    seal: Seal = found.pop("seal")
    if set(seal.parts) != set(parts) or not all(
        _HASH.fullmatch(value) for value in seal.parts.values()
    ):
        raise ProtocolError(f"{cls.__name__}: its parts are not those of such a task.")
    text = str(record.config_records["message"]["body"])
    return Sealed(cls, text, signature, found, seal)


def brought(record: RecordDict, seal: Seal) -> dict[str, bytes]:
    """The parts that came along with a task, each held against its hash.

    Raises
    ------
    ProtocolError
        A part is not as it was announced, or too large.
    """
    found: dict[str, bytes] = {}
    for name, array in (record.array_records.get("parts") or {}).items():
        if name not in seal.parts:
            raise ProtocolError(f"the part {name!r:.80} was not announced.")
        shape = tuple(array.shape)
        most = LARGEST[name]
        if len(shape) != 1 or not SALT <= shape[0] <= SALT + most:
            raise ProtocolError(f"the part '{name}' is no row of at most {most} bytes.")
        data = read_array(array, shape, name, np.dtype("u1"))[SALT:].tobytes()
        if digest(data) != seal.parts[name]:
            raise ProtocolError(f"the part '{name}' is not the one that was signed.")
        found[name] = data
    return found


def verify(sealed: Sealed, key: str) -> None:
    """Refuse a task that the holder of a public key did not sign.

    Raises
    ------
    ProtocolError
        The signature does not fit.
    """
    if not verify_text(CONTEXT, sealed.text, sealed.signature, key):
        raise ProtocolError(
            "the task is not signed with the key of this device's invitation: start the "
            "run where the server's keys are (idiolect-server run)."
        )


def complete(sealed: Sealed, parts: Mapping[str, bytes]) -> Task:
    """Put a task together from its fields and its parts.

    Raises
    ------
    MissingParts
        Some are not among `parts`, or not with the content that was signed.
    ProtocolError
        A part cannot be read.
    """
    wanted = sealed.seal.parts
    lacking = [n for n in wanted if n not in parts or digest(parts[n]) != wanted[n]]
    if lacking:
        raise MissingParts(tuple(lacking))
    hints = typing.get_type_hints(sealed.cls)
    values = {
        name: decode_part(name, parts[name], hints[name], sealed.cls.__name__)
        for name in wanted
    }
    return sealed.cls(**sealed.fields, **values)


def decode_part(name: str, data: bytes, hint: Any, where: str) -> Any:
    """Read what `encode_part` wrote.

    Raises
    ------
    ProtocolError
        It is nothing of the kind.
    """
    if name == "shared":
        return _rows(data)
    if len(data) > MAX_BODY:
        raise ProtocolError(f"{where}.{name} has more than {MAX_BODY} bytes.")
    try:
        # Of all numbers the budget of a run alone may be endless.
        value = read_json(data, endless=name == "config")
    except ValueError as error:
        raise ProtocolError(f"{where}.{name} is no JSON ({error}).") from error
    return typed({name: value}, {name: hint}, where)[name]


def _rows(data: bytes) -> Rows:
    try:
        rows = load_rows(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ProtocolError("the shared adapter is no safetensors file.") from error
    if any(array.dtype not in (np.float32, np.int8) for array in rows.values()):
        raise ProtocolError("the shared adapter is neither float32 nor signed bytes.")
    return rows
