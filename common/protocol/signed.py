"""Signed requests, and their large parts, which are sent only once.

A request is one JSON text, signed with the key in the server's invitation. Its large fields
(`LARGEST`) stand in the text as a SHA-256 and travel beside it, and only if the node does
not have them yet. So one signature covers the run, the step, the users, the release, the
method, the rate and the content of all parts. It also covers the `Seal`:

    node       the node that the request is for: another node refuses it
    counter    grows with every request of a run: a replayed or late request is refused
    parts      name -> SHA-256 of each part

Each part travels behind a random salt of the run, so nobody can guess the ids under which
Flower stores it. A node keeps the last content of each part. It answers a request whose
parts it does not have by `messages.Missing`; the server then sends the request again with
them.
"""

import hashlib
import json
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
from flwr.app import Array, RecordDict
from safetensors import SafetensorError
from safetensors.numpy import load as load_rows
from safetensors.numpy import save as save_rows

from ..errors import IdiolectError
from ..text import read_json
from .manifest import sign_text, verify_text
from .messages import ProtocolError, Request, Rows, refuse_if
from .packing import MAX_BODY, as_records, plain, read_array, read_head, typed

MAX_REQUEST = 1 << 20  # bytes of its text, which has names and numbers only
SALT = 16  # bytes before each part as it travels
# The parts, and the most bytes of each: a configuration, an adapter in float32, items, the
# members of a run, their signatures, and sealed shares.
LARGEST = {
    "config": 1 << 18,
    "shared": 1 << 29,
    "unlabeled": MAX_BODY,
    "bank": MAX_BODY,
    "directory": MAX_BODY,
    "signatures": MAX_BODY,
    "bundles": MAX_BODY,
}
# A signature of the same key over anything but a request does not fit.
CONTEXT = b"idiolect task 1\n"

_HASH = re.compile(r"[0-9a-f]{64}")


class MissingParts(IdiolectError):
    """A request names parts that this node does not have (`names`)."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(
            f"this node does not have these parts of the request: {', '.join(names)}."
        )
        self.names = names


@dataclass(frozen=True)
class Seal:
    """What is signed besides the fields of a request.

    Attributes
    ----------
    node
        Flower's number of the node that the request is for, in decimal digits: it has
        more bits than a number in JSON.
    counter
        Larger than that of every earlier request of the run.
    parts
        Name -> SHA-256 of its bytes, in hex.
    """

    node: str
    counter: int
    parts: dict[str, str]


@dataclass(frozen=True)
class Part:
    """A large field of a request, and the SHA-256 of its bytes."""

    data: bytes
    hash: str


@dataclass(frozen=True)
class Sealed:
    """A request as it was received: its form is checked, its signature is not (`verify`).

    Attributes
    ----------
    cls
        Class of the request.
    text, signature
        What was signed, and its signature.
    fields
        The request's fields without its parts, checked by type.
    seal
        `Seal`.
    """

    cls: type[Request]
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
        """The users that the request is about."""
        return self.fields["users"]


def digest(data: bytes) -> str:
    """SHA-256 of a part, in hex."""
    return hashlib.sha256(data).hexdigest()


# --- writing -----------------------------------------------------------------------------


def make_part(name: str, value: Any) -> Part:
    """Encode a field of a request as a part, and hash it.

    The shared adapter is encoded as safetensors, bytes stay what they are, and everything
    else is JSON.
    """
    if name == "shared":
        rows = {key: np.ascontiguousarray(array) for key, array in value.items()}
        data = save_rows(rows)
    elif isinstance(value, bytes):
        data = value
    else:
        data = json.dumps(
            plain(value), ensure_ascii=False, sort_keys=True, separators=(",", ":")
        ).encode()
    return Part(data, digest(data))


def part_names(cls: type[Request]) -> tuple[str, ...]:
    """Return the names of the parts of a kind of request."""
    names = {entry.name for entry in fields(cls)}
    return tuple(name for name in LARGEST if name in names)


def seal_request(
    request: Request,
    node: int,
    counter: int,
    parts: Mapping[str, Part],
    seed: bytes,
    known: Mapping[str, str],
    salt: bytes,
) -> RecordDict:
    """Sign a request, and return it as Flower's records.

    Parameters
    ----------
    request
        What is asked.
    node, counter
        `Seal`.
    parts
        All its parts, by name (`make_part`).
    seed
        The private key, 32 bytes.
    known
        Name -> SHA-256 of the parts that the node has already, which are not sent.
    salt
        16 random bytes, the same for all nodes, so that Flower stores a part once.
    """
    hashes = {name: part.hash for name, part in parts.items()}
    body = {
        entry.name: plain(getattr(request, entry.name))
        for entry in fields(request)
        if entry.name not in parts
    }
    body["seal"] = plain(Seal(str(node), counter, hashes))
    arrays = {
        name: Array(np.frombuffer(salt + part.data, np.uint8))
        for name, part in parts.items()
        if known.get(name) != hashes[name]
    }
    sign = partial(sign_text, CONTEXT, seed=seed)
    return as_records(type(request), body, {"parts": arrays}, sign)


# --- reading -----------------------------------------------------------------------------


def read_sealed(cls: type[Request], record: RecordDict) -> Sealed:
    """Check the form of a request that was received.

    Raises
    ------
    ProtocolError
        Something is not as it should be; the sentence names it.
    """
    body, signature = read_head(record, cls, MAX_REQUEST)
    parts = part_names(cls)
    hints = {"seal": Seal, **typing.get_type_hints(cls)}
    own = {name: hint for name, hint in hints.items() if name not in parts}
    found = typed(body, own, cls.__name__)
    seal: Seal = found.pop("seal")
    hashed = all(_HASH.fullmatch(value) for value in seal.parts.values())
    refuse_if(
        set(seal.parts) != set(parts) or not hashed,
        f"{cls.__name__}: its parts are not those of such a request.",
    )
    return Sealed(
        cls, str(record.config_records["message"]["body"]), signature, found, seal
    )


def brought(record: RecordDict, seal: Seal) -> dict[str, bytes]:
    """Return the parts that were sent with a request, each checked against its hash.

    Raises
    ------
    ProtocolError
        A part is not the announced one, or is too large.
    """
    found: dict[str, bytes] = {}
    for name, array in (record.array_records.get("parts") or {}).items():
        announced = seal.parts.get(name)
        refuse_if(announced is None, f"the part {name!r:.80} was not announced.")
        shape, most = tuple(array.shape), LARGEST[name]
        refuse_if(
            len(shape) != 1 or not SALT <= shape[0] <= SALT + most,
            f"the part '{name}' is not an array of at most {most} bytes.",
        )
        data = read_array(array, shape, name, np.dtype("u1"))[SALT:].tobytes()
        refuse_if(
            digest(data) != announced,
            f"the part '{name}' is not the one that was signed.",
        )
        found[name] = data
    return found


def verify(sealed: Sealed, key: str) -> None:
    """Refuse a request that was not signed with the private half of this public key.

    Raises
    ------
    ProtocolError
        The signature does not fit.
    """
    refuse_if(
        not verify_text(CONTEXT, sealed.text, sealed.signature, key),
        "the request is not signed with the key of this device's invitation: start the run "
        "where the server's keys are (idiolect-server run).",
    )


def complete(sealed: Sealed, parts: Mapping[str, bytes]) -> Request:
    """Return the request that consists of these fields and parts.

    Raises
    ------
    MissingParts
        Some are not among `parts`, or have not the content that was signed.
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
    """Read what `make_part` wrote.

    Raises
    ------
    ProtocolError
        The bytes are not such a part.
    """
    if name == "shared":
        return _rows(data)
    if hint is bytes:
        return data
    refuse_if(len(data) > MAX_BODY, f"{where}.{name} has more than {MAX_BODY} bytes.")
    try:
        # The budget of a run is the only number that may be infinite.
        value = read_json(data, endless=name == "config")
    except ValueError as error:
        raise ProtocolError(f"{where}.{name} is not JSON ({error}).") from error
    return typed({name: value}, {name: hint}, where)[name]


def _rows(data: bytes) -> Rows:
    try:
        rows = load_rows(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ProtocolError("the shared adapter is not a safetensors file.") from error
    odd = any(array.dtype not in (np.float32, np.int8) for array in rows.values())
    refuse_if(odd, "the shared adapter is neither float32 nor signed bytes.")
    return rows
