"""The devices of a server: register, list and revoke them."""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)

from ...common.errors import IdiolectError, refuse_if
from ...common.files import write_atomically
from ...common.text import printable
from ..run import results
from . import database
from .flower import CONNECTION, flwr
from .places import DATABASE
from .serve import running

LABELS = "labels.json"  # node -> what the operator calls it
LONGEST_LABEL = 20  # so that a line of `nodes list` has at most 80 characters


def device_key(line: str) -> bytes:
    """Return a device's public key, DER, from the line that `idiolect node join` prints.

    Raises
    ------
    IdiolectError
        It is not such a line.
    """
    try:
        key = load_ssh_public_key(line.encode())
        if not line.startswith("ecdsa-sha2-nistp384 "):
            raise ValueError
    except (ValueError, UnsupportedAlgorithm):
        raise IdiolectError(
            "that is not the key of a device: give the whole line that `idiolect node "
            "join` prints, ecdsa-sha2-nistp384 AAAA…"
        ) from None
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def add_node(folder: Path, key: str, label: str = "") -> str:
    """Register a device by its public key; return its number.

    Parameters
    ----------
    folder
        Of the running server.
    key
        The line that `idiolect node join` prints.
    label
        The operator's name for the device, which is stored in `LABELS` only; may be empty.

    Raises
    ------
    IdiolectError
        The line is not such a key, it is registered already and no label is given, it was
        revoked, or another device has the label.
    """
    environment = running(folder)
    refuse_if(
        label != printable(label, LONGEST_LABEL),
        f"a label has at most {LONGEST_LABEL} printable characters: give a shorter one.",
    )
    refuse_if(
        label and _numbers(folder, label),
        f"another device is called '{label}': give another name.",
    )
    device_key(key)
    file = folder / f"node.{os.getpid()}.pub"
    write_atomically(file, key.encode() + b"\n")
    try:
        answer, reason = flwr(
            ["supernode", "register", str(file), CONNECTION], environment
        )
    finally:
        file.unlink()
    if not answer.get("success"):
        refuse_if(
            "already in use" not in reason,
            f"Flower could not register the device: {reason}",
        )
        answer = {"node-id": _known(folder, key, label)}
    number = str(answer["node-id"])
    if label:
        results.write_json(folder / LABELS, labels(folder) | {number: label})
    return number


def _known(folder: Path, key: str, label: str) -> int:
    """Return the number of a registered key, if it can be given a label."""
    public = load_ssh_public_key(key.encode())
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with contextlib.closing(database.opened(folder / DATABASE)) as base:
        found = database.find_node(base, pem)
    if found is None:
        raise LookupError("Flower knows a key that is not in its database")
    number, revoked = found
    refuse_if(
        revoked,
        f"that key was node {number} and was revoked, and a revoked key cannot return: "
        "on the device `idiolect leave`, then `idiolect node join INVITATION` makes a "
        "new one; add that.",
    )
    refuse_if(
        not label,
        f"that key is let in already, as node {number}: there is nothing to do, but "
        "--label gives it another label.",
    )
    return number


def labels(folder: Path) -> dict[str, str]:
    """Return number -> label of all devices that have one."""
    try:
        return dict(json.loads((folder / LABELS).read_text()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise IdiolectError(
            f"{folder / LABELS} can't be read ({error}): move it away; devices stay "
            "registered and have no names then."
        ) from None


def nodes(folder: Path) -> list[dict[str, Any]]:
    """List the devices that are let in, and those that were revoked, oldest first.

    Returns
    -------
    list of dict
        As Flower lists them, with ``label`` (may be empty) and ``last-seen``: ``now``, a
        time in ISO 8601, or None if it was never seen.
    """
    answer = _answer(["supernode", "list", CONNECTION], running(folder), "list devices")
    known = labels(folder)
    return [
        {
            **node,
            "label": known.get(node["node-id"], ""),
            "last-seen": _last_seen(node),
        }
        for node in answer["nodes"]
    ]


def _numbers(folder: Path, label: str) -> list[str]:
    """Return the number of the registered device with this label, if there is one."""
    return [
        node["node-id"]
        for node in nodes(folder)
        if node["label"] == label and node["status"] != "unregistered"
    ]


def _last_seen(node: Mapping[str, Any]) -> str | None:
    if node["status"] == "online":
        return "now"
    known = {name: time for name, time in node.items() if time != "N/A"}
    came, went = known.get("online-at", ""), known.get("offline-at", "")
    if came > went and node["status"] == "unregistered":  # it was online until then
        return known.get("deleted-at", came)
    return max(came, went) or None


def revoke_node(folder: Path, word: str) -> str:
    """Revoke a device by its number or label; return its number.

    Raises
    ------
    IdiolectError
        There is no such device, or it was revoked before.
    """
    number = next(iter(_numbers(folder, word)), word)
    found = {node["node-id"]: node["status"] for node in nodes(folder)}
    why = "was revoked before" if number in found else "is not let in"
    refuse_if(
        found.get(number) in (None, "unregistered"),
        f"node {printable(word, 40)} {why}: `idiolect-server nodes list` lists them.",
    )
    _answer(
        ["supernode", "unregister", number, CONNECTION],
        running(folder),
        f"revoke device {number}",
    )
    return number


def _answer(
    command: Sequence[str], environment: Mapping[str, str], what: str
) -> dict[str, Any]:
    answer, reason = flwr(command, environment)
    refuse_if(not answer.get("success"), f"Flower could not {what}: {reason}")
    return answer
