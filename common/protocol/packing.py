"""A message as Flower's records, and the checks when it is read again.

The text and numbers of a message are one JSON body in a ``ConfigRecord``; its tensors an
``ArrayRecord``. Nothing is pickled. A receiver checks everything:

* the size of the body before it is parsed, and every field against the dataclass's type
  hints;
* of each array the declared type and shape, the number of bytes, and numpy's own header
  inside the bytes, before an array is made of them: a header that announces a terabyte is
  refused, and nothing is allocated;
* every number in a body: it is finite, and small enough for sums and means. Only
  ``privacy.epsilon`` of a configuration may be infinite.
"""

import json
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from io import BytesIO
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from ..config import MOST_INT
from ..errors import IdiolectError
from ..text import printable, read_json
from .bounds import beyond
from .messages import (
    MAX_ITEMS,
    AnyMessage,
    Failure,
    LacksParts,
    Message,
    Missing,
    ProtocolError,
    Request,
    Rows,
    Shapes,
    array_type,
    refuse_if,
    wire_name,
)

SCHEMA = 6
MAX_BODY = 64 << 20  # bytes of JSON in one message
MAX_TEXT = 200_000  # characters in one string
MAX_ID = 200  # characters in the id of a user or an item
MAX_INT = 2**53  # of counts; float64 holds no larger ones exactly
MAX_FLOAT = 1e100  # of measurements; 50,000 of them, squared, have a finite sum


def pack(message: Message) -> RecordDict:
    """Turn a message into Flower's records."""
    arrays = {
        f"{entry.name}/{name}": Array(np.ascontiguousarray(array, array_type(name)))
        for entry in fields(message)
        if entry.type == Rows
        for name, array in getattr(message, entry.name).items()
    }
    names = (entry.name for entry in fields(message) if entry.type != Rows)
    body = {name: plain(getattr(message, name)) for name in names}
    return as_records(type(message), body, {"arrays": arrays})


def as_records(
    cls: type[Message],
    body: Mapping[str, Any],
    arrays: Mapping[str, dict[str, Array]],
    sign: Callable[[str], str] | None = None,
) -> RecordDict:
    """Return the records of a message.

    Parameters
    ----------
    cls, body
        Class of the message, and its fields for JSON.
    arrays
        Name of a record -> the arrays in it; a record without arrays is left out.
    sign
        What signs the text of the body; None: a message without a signature.
    """
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    head: dict[str, Any] = {"schema": SCHEMA, "kind": wire_name(cls), "body": text}
    if sign:
        head["signature"] = sign(text)
    groups = {name: ArrayRecord(group) for name, group in arrays.items() if group}
    return RecordDict({"message": ConfigRecord(head), **groups})


def plain(value: Any) -> Any:
    """Return dataclasses and tuples as lists, for JSON."""
    if is_dataclass(value):
        return [plain(getattr(value, entry.name)) for entry in fields(value)]
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [plain(entry) for entry in value]
    return value


def size(record: RecordDict) -> int:
    """Bytes of text and tensors in a message, without Flower's own framing."""
    total = 0
    for arrays in record.array_records.values():
        total += sum(len(name) + len(array.data) for name, array in arrays.items())
    for texts in record.config_records.values():
        values = (str(value).encode(errors="replace") for value in texts.values())
        total += sum(map(len, [*texts, *values]))
    return total


# --- reading -------------------------------------------------------------------------


def unpack(
    cls: type[AnyMessage],
    record: RecordDict,
    shapes: Callable[[dict[str, Any]], Shapes] | None = None,
) -> AnyMessage:
    """Check a record, and return the message in it.

    Parameters
    ----------
    cls
        Class of the message that is expected.
    record
        As it was received.
    shapes
        Function of the message's other fields, which are checked by then. It returns
        name -> shape of exactly the arrays that must be there.

    Raises
    ------
    ProtocolError
        Something is not as declared; the sentence names the field.
    IdiolectError
        The record is a `Failure`; the sentence is the sender's.
    """
    body, _ = read_head(record, cls, MAX_BODY)
    hints = typing.get_type_hints(cls)
    group = "".join(name for name, hint in hints.items() if hint == Rows)
    hints.pop(group, None)
    values = typed(body, hints, cls.__name__)
    arrays = _arrays(record, group, shapes(values) if shapes else {})
    if group:
        values[group] = arrays
    if "errors" in values:
        values["errors"] = {u: printable(text) for u, text in values["errors"].items()}
    return cls(**values)


def read_head(
    record: RecordDict, cls: type[Message], longest: int
) -> tuple[dict[str, Any], str]:
    """Check schema, kind and size; return the JSON body and the signature.

    A request must have a signature, which is not verified here; a reply has none.

    Raises
    ------
    ProtocolError
        One of them is not as expected.
    IdiolectError
        The record is a `Failure` or a `Missing`.
    """
    head = cast(Mapping[str, Any], record.config_records.get("message") or {})
    schema = head.get("schema", SCHEMA)
    refuse_if(
        schema != SCHEMA,
        f"the other side speaks message schema {schema!r:.20}, this one {SCHEMA}: install "
        "the same version of idiolect on both.",
    )
    names = {"schema", "kind", "body"}
    if issubclass(cls, Request):
        names.add("signature")
    refuse_if(set(head) != names, f"{cls.__name__}: this is not a message of idiolect.")
    text, signature = head["body"], head.get("signature", "")
    refuse_if(
        not isinstance(text, str) or len(text) > longest,
        f"{cls.__name__}: the body is not a text of allowed size.",
    )
    refuse_if(
        not isinstance(signature, str),
        f"{cls.__name__}: the signature is not a text.",
    )
    try:
        body = read_json(text)
    except ValueError as error:
        raise ProtocolError(
            f"{cls.__name__}: the body is not JSON ({error})."
        ) from error
    refuse_if(
        not isinstance(body, dict), f"{cls.__name__}: the body is not a JSON object."
    )
    if head["kind"] == Failure.__name__ and cls is not Failure:
        sentence = _typed(body.get("sentence"), str, "Failure.sentence")
        raise IdiolectError(printable(sentence))
    if head["kind"] == Missing.__name__ and cls is not Missing:
        raise LacksParts("the node does not have all parts of the request.")
    refuse_if(
        head["kind"] != wire_name(cls),
        f"expected a {cls.__name__}, got a {head['kind']!r:.80}.",
    )
    return body, signature


def typed(
    body: Mapping[str, Any], hints: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Check the fields of a body against type hints, and give them these types.

    Raises
    ------
    ProtocolError
        A field is missing or unknown, has another type, is too large or is nested too
        deeply.
    """
    odd = ", ".join(repr(name) for name in sorted(set(body) ^ set(hints)))
    refuse_if(odd, f"{where}: the fields differ from ours in {odd:.200}.")
    try:
        values = {
            name: _typed(body[name], hint, f"{where}.{name}")
            for name, hint in hints.items()
        }
    except RecursionError as error:
        raise ProtocolError(f"{where}: the body is nested too deeply.") from error
    said = beyond(values)
    refuse_if(said, f"{where}.{said}.")
    return values


def _typed(value: Any, hint: Any, where: str) -> Any:
    """Check a JSON value against a type hint and give it that type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _typed_union(value, arguments, where)
    if origin is tuple:
        refuse_if(
            not isinstance(value, list) or len(value) > MAX_ITEMS,
            f"{where} must be a list of at most {MAX_ITEMS}.",
        )
        return tuple(
            _typed(v, arguments[0], f"{where}[{i}]") for i, v in enumerate(value)
        )
    if origin is dict:
        refuse_if(
            not isinstance(value, dict) or len(value) > MAX_ITEMS,
            f"{where} must be an object of at most {MAX_ITEMS}.",
        )
        return {
            _text(k, where, MAX_ID): _typed(v, arguments[1], f"{where}.{k:.40}")
            for k, v in value.items()
        }
    if is_dataclass(hint):
        return _typed_dataclass(value, cast(type, hint), where)
    if hint is str:
        return _text(value, where, MAX_TEXT)
    if hint is float and type(value) is int and abs(value) < MAX_INT:
        return float(value)
    if type(value) is not hint or (hint is int and abs(value) > MOST_INT):
        raise ProtocolError(f"{where} must be of type {hint.__name__}.")
    if hint is float and not abs(value) <= MAX_FLOAT:  # 1e999 is read as infinity
        raise ProtocolError(f"{where} is not finite, or too large.")
    if hint is int and not abs(value) < MAX_INT:
        raise ProtocolError(f"{where} is too large.")
    return value


def _typed_union(value: Any, arguments: tuple[Any, ...], where: str) -> Any:
    """Return a value whose type is one of the alternatives."""
    if type(None) in arguments:
        rest = [hint for hint in arguments if hint is not type(None)]
        return None if value is None else _typed(value, rest[0], where)
    refuse_if(
        type(value) not in arguments or (type(value) is int and abs(value) > MOST_INT),
        f"{where} has a type that is not allowed.",
    )
    return _text(value, where, MAX_TEXT) if isinstance(value, str) else value


def _typed_dataclass(value: Any, cls: type, where: str) -> Any:
    hints = typing.get_type_hints(cls)
    entries = fields(cls)
    refuse_if(
        not isinstance(value, list) or len(value) != len(entries),
        f"{where} must have the {len(entries)} fields of a {cls.__name__}.",
    )
    return cls(
        *(
            _typed(v, hints[entry.name], f"{where}.{entry.name}")
            for v, entry in zip(value, entries, strict=True)
        )
    )


def _text(value: Any, where: str, longest: int) -> str:
    if not isinstance(value, str) or len(value) > longest:
        raise ProtocolError(f"{where} must be text of at most {longest} characters.")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # a lone surrogate, which tokenizers refuse
        raise ProtocolError(f"{where} is not valid Unicode text.") from error
    return value


def _arrays(record: RecordDict, group: str, shapes: Shapes) -> Rows:
    """Return the named arrays; each is checked before anything is allocated."""
    sent = record.array_records.get("arrays") or {}
    wanted = {f"{group}/{name}": name for name in shapes}
    check_names(sent, wanted)
    return {
        name: read_array(sent[key], tuple(shapes[name]), key, array_type(name))
        for key, name in wanted.items()
    }


def check_names(sent: Iterable[str], wanted: Iterable[str]) -> None:
    """Refuse arrays of which one is missing or was not asked for."""
    if odd := sorted(set(sent) ^ set(wanted)):
        state = "is missing" if odd[0] in wanted else "was not asked for"
        raise ProtocolError(f"the array {odd[0]!r:.120} {state}.")


def read_array(
    array: Array, shape: tuple[int, ...], name: str, dtype: np.dtype
) -> np.ndarray:
    """Return an array of the expected shape and type, or refuse it.

    The array is a view of the bytes that already arrived; nothing is allocated.

    Parameters
    ----------
    array
        As it was received.
    shape, dtype
        What it must have.
    name
        Its name in an error.

    Raises
    ------
    ProtocolError
        Declared type or shape, byte length or numpy header is not as expected.
    """
    refuse_if(
        array.stype != "numpy.ndarray" or array.dtype != dtype.name,
        f"array '{name}' is {array.dtype!r:.40} as {array.stype!r:.40}: "
        f"{dtype.name} as numpy.ndarray is expected.",
    )
    refuse_if(
        tuple(array.shape) != shape,
        f"array '{name}' has the shape {tuple(array.shape)!s:.80}: {shape} is expected.",
    )
    bytes_of = dtype.itemsize * math.prod(shape)
    refuse_if(
        len(array.data) > bytes_of + 256,  # 256: more than numpy's header
        f"array '{name}' has more bytes than its shape takes.",
    )
    stream = BytesIO(array.data)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("unusual version")
        inner = np.lib.format.read_array_header_1_0(stream, max_header_size=256)
    except Exception as error:  # numpy raises many kinds on garbage
        raise ProtocolError(f"array '{name}' has no readable header.") from error
    refuse_if(
        inner != (shape, False, dtype),
        f"array '{name}' has a header that contradicts its shape.",
    )
    start = stream.tell()
    refuse_if(
        len(array.data) != start + bytes_of,
        f"array '{name}' has not as many bytes as its shape takes.",
    )
    return np.frombuffer(array.data, dtype, offset=start).reshape(shape)
