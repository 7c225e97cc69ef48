"""Signed manifests of what the server sends to devices: the bank and the unlabeled set.

A manifest has the hash of the items and weights, and is signed with the run's Ed25519 key.
A device pins the key at its first contact and remembers the last manifest that it
accepted. So neither the network nor the operator of the SuperLink, who need not be the
author of the run, can replace the items, send an old set again, or send one device another
set under the same version. The server itself can still sign anything.

Each kind has a chain of its own: versions 1, 2, …, each with the hash of the one before. A
device keeps one `Seen` for each kind of each run.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from ..errors import IdiolectError, refuse_if
from ..files import make_folder, sync_folder, write_new

MAX_TEXT = 8192  # characters of a manifest; a usual one has about 600
MAX_FIELD = 500  # characters of one of its texts
SKEW = 300.0  # seconds by which the clocks of server and device may differ
# A signature of the same key over anything but a manifest does not fit.
_CONTEXT = b"idiolect manifest 1\n"

_HASH = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = re.compile(r"[0-9a-f]{128}")
_KIND = re.compile(r"[a-z][a-z-]{0,39}")


class ManifestError(IdiolectError):
    """A manifest that is not accepted; one sentence says why and what to do."""


@dataclass(frozen=True)
class Manifest:
    """The content of one bank or unlabeled set, and how long it is valid.

    Attributes
    ----------
    run
        Name of the run.
    kind
        ``bank``, or the kind of the unlabeled set.
    version
        Counted from 1 within run and kind.
    previous
        `digest` of the previous version; ``""`` for the first one.
    content
        SHA-256 of the items and weights (`unlabeled.sets.fingerprint`).
    count
        Number of items.
    features
        The features by which votes compare texts.
    vote
        Ledger id of the vote that the weights come from; ``""`` without a vote.
    floor
        Noisy votes below this count as 0.
    epsilon
        Epsilon of the weights against anybody who sees them; None: no guarantee.
    created, expires
        Unix seconds.
    """

    run: str
    kind: str
    version: int
    previous: str
    content: str
    count: int
    features: str
    vote: str
    floor: float
    epsilon: float | None
    created: float
    expires: float


@dataclass(frozen=True)
class Seen:
    """The state of a chain on a device.

    Attributes
    ----------
    key
        The pinned public key, 64 hex digits.
    version, digest
        Of the last accepted manifest; 0 and ``""`` before the first one.
    """

    key: str
    version: int
    digest: str


# --- writing and signing ---------------------------------------------------------------


def canonical(manifest: Manifest) -> bytes:
    """Return the bytes that are hashed and signed: JSON with sorted keys, without spaces.

    Numbers are written as Python writes them, which is exact.

    Raises
    ------
    ManifestError
        A field has a wrong type or size, or is not finite.
    """
    values = asdict(manifest)
    for name in _FLOATS:
        # 30 and 30.0 are the same number, but different texts.
        if type(values[name]) is int and abs(values[name]) < 2**53:
            values[name] = float(values[name])
    _check(values)
    return json.dumps(
        values,
        ensure_ascii=False,
        allow_nan=False,
        sort_keys=True,
        separators=(",", ":"),
    ).encode()


def digest(manifest: Manifest) -> str:
    """SHA-256 of the canonical bytes in hex, which the next version has as `previous`."""
    return hashlib.sha256(canonical(manifest)).hexdigest()


def new_key() -> bytes:
    """Draw the private seed of a signing key, 32 bytes of the system's randomness."""
    return Ed25519PrivateKey.generate().private_bytes_raw()


def public_key(seed: bytes) -> str:
    """Return the public key of a seed, 64 hex digits; devices pin it."""
    return (
        Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw().hex()
    )


def sign(manifest: Manifest, seed: bytes) -> str:
    """Sign the canonical bytes; 128 hex digits."""
    return sign_text(_CONTEXT, canonical(manifest).decode(), seed)


def sign_text(context: bytes, text: str, seed: bytes) -> str:
    """Sign a text by Ed25519; 128 hex digits.

    Parameters
    ----------
    context
        The kind of text: a signature is valid in its own context only.
    text
        Any text.
    seed
        The private key, 32 bytes.
    """
    key = Ed25519PrivateKey.from_private_bytes(seed)
    return key.sign(context + text.encode()).hex()


# --- reading ---------------------------------------------------------------------------

_FLOATS = ("floor", "epsilon", "created", "expires")
_NAMES = {entry.name for entry in fields(Manifest)}


def parse(text: str) -> Manifest:
    """Read a manifest, which must be in canonical form.

    Raises
    ------
    ManifestError
        The text is too long (checked before it is parsed) or not canonical JSON, or a field
        is missing, unknown, of a wrong type or size, or not finite.
    """
    _refuse_if(len(text) > MAX_TEXT, f"is longer than {MAX_TEXT} characters")
    try:
        values = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _broken("is not JSON") from error
    _refuse_if(
        not isinstance(values, dict) or set(values) != _NAMES,
        "has not the fields that this version of idiolect knows",
    )
    _check(values)
    manifest = Manifest(**values)
    # One manifest has one text and one hash: no spaces, repeated keys or escapes.
    _refuse_if(canonical(manifest).decode() != text, "is not in canonical form")
    return manifest


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _broken(what: str) -> ManifestError:
    return ManifestError(
        f"the manifest {what}: install the same version of idiolect on server and "
        "device; if they are the same, it was damaged on the way, so try again."
    )


def _refuse_if(wrong: object, what: str) -> None:
    if wrong:
        raise _broken(what)


def _check(values: dict[str, Any]) -> None:
    """Refuse values that have a wrong type or size, or do not fit together."""
    for name in ("run", "kind", "previous", "content", "features", "vote"):
        value = values[name]
        _refuse_if(
            not isinstance(value, str) or len(value) > MAX_FIELD,
            f"has a '{name}' that is not a text, or is too long",
        )
        try:
            value.encode()
        except UnicodeEncodeError as error:  # a lone surrogate
            raise _broken(f"has a '{name}' that is not valid Unicode") from error
    for name in ("version", "count"):
        _refuse_if(
            type(values[name]) is not int or not 0 <= values[name] < 2**53,
            f"has a '{name}' that is not a count",
        )
    for name in _FLOATS:
        value = values[name]
        absent = name == "epsilon" and value is None
        _refuse_if(
            not absent and (type(value) is not float or not 0 <= value < math.inf),
            f"has a '{name}' that is not a finite number of at least 0",
        )
    version, previous = values["version"], values["previous"]
    follows = previous == "" if version == 1 else _HASH.fullmatch(previous)
    named = values["run"] and _KIND.fullmatch(values["kind"])
    hashed = _HASH.fullmatch(values["content"])
    _refuse_if(not named, "has no run or no kind")
    _refuse_if(not hashed, "has a 'content' that is not a SHA-256")
    _refuse_if(
        not (version and follows),
        "has a 'version' and a 'previous' that do not fit together",
    )
    _refuse_if(values["expires"] <= values["created"], "expires before it was made")


def accept(
    text: str,
    signature: str,
    run: str,
    content: str,
    seen: Seen | None,
    now: float,
    kind: str = "",
) -> Seen:
    """Verify a manifest against the device's state and items; return the new state.

    The signature is verified before anything is parsed. A version that is more than one
    ahead is accepted without those between: the device was away and missed them. The same
    manifest again is accepted again.

    Parameters
    ----------
    text, signature
        As received: canonical JSON, and 128 hex digits.
    run, kind
        The run that the device takes part in, and the expected kind (``""``: any).
    content
        Hash of the received items, computed on the device.
    seen
        The last result for this run and kind; at first contact ``Seen(key, 0, "")`` with
        the key that the device was given. Without a key nothing is accepted.
    now
        The device's clock in unix seconds.

    Raises
    ------
    ManifestError
        Each reason has a sentence of its own.
    """
    if seen is None or not seen.key:
        raise ManifestError(
            "no signing key is pinned for this run, so its items cannot be verified: "
            "get the run's public key from its operator and pin it first."
        )
    _refuse_if(len(text) > MAX_TEXT, f"is longer than {MAX_TEXT} characters")
    refuse_if(
        not verify_text(_CONTEXT, text, signature, seen.key),
        "the manifest's signature does not fit the pinned key "
        f"{seen.key[:16]!r}…: try again, and if it stays so, ask the operator whether "
        "the run has a new key; pin another only if they confirm it.",
        error=ManifestError,
    )
    manifest = parse(text)
    _check_fit(manifest, run, kind, content, seen, now)
    return Seen(seen.key, manifest.version, digest(manifest))


def verify_text(context: bytes, text: str, signature: str, key: str) -> bool:
    """Whether a public key, 64 hex digits, fits a signature by `sign_text`."""
    # fromhex also accepts spaces and capitals: one signature would have several texts.
    if not (_HASH.fullmatch(key) and _SIGNATURE.fullmatch(signature)):
        return False
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
        public.verify(bytes.fromhex(signature), context + text.encode())
    except (InvalidSignature, ValueError):  # ValueError: not a key, or a lone surrogate
        return False
    return True


def _check_fit(
    manifest: Manifest, run: str, kind: str, content: str, seen: Seen, now: float
) -> None:
    """Refuse a signed manifest that does not fit the device's state and items."""
    refuse = partial(refuse_if, error=ManifestError)
    version, last = manifest.version, seen.version
    what = f"version {version} of the {manifest.kind}"
    refuse(
        manifest.run != run,
        f"the manifest is of the run {manifest.run!r:.80}, but this device takes "
        f"part in '{run}': connect to the server of that run.",
    )
    refuse(
        kind not in ("", manifest.kind),
        f"the manifest is of the kind '{manifest.kind}' where '{kind}' was asked "
        "for: ask the operator to start the server again.",
    )
    refuse(
        now >= manifest.expires,
        f"{what} has expired: check this device's clock, or ask the operator to "
        "resume the run, which renews it.",
    )
    refuse(
        manifest.created > now + SKEW,
        f"{what} is dated {manifest.created - now:.0f} seconds ahead of this device's "
        "clock: set the clock, then try again.",
    )
    refuse(
        version < last,
        f"{what} is older than version {last}, which this device has: wait for the "
        "server's current one; if it stays so, the run was set back, so ask the "
        "operator.",
    )
    refuse(
        version == last and digest(manifest) != seen.digest,
        f"{what} differs from the one that this device has under the same number: "
        "the server sends different sets, so ask the operator before taking part.",
    )
    refuse(
        version == last + 1 and manifest.previous != seen.digest,
        f"{what} does not continue the version {last} that this device has: the "
        "server's history was changed, so ask the operator before taking part.",
    )
    refuse(
        manifest.content != content,
        f"the items that came with {what} are not the signed ones: they are not "
        "used; fetch them again.",
    )


# --- the signing key on disk -----------------------------------------------------------


def read_or_make_key(path: Path) -> bytes:
    """Read the signing key of a run, or make it where there is none.

    The file holds the seed and the public key in hex, one line each, so that damage
    shows. It is readable by its owner only from the moment it exists and is never seen
    half written; of two processes that make it at once, both get the key of the first.

    Returns
    -------
    bytes
        The private seed, 32 bytes.

    Raises
    ------
    IdiolectError
        The file is damaged, or cannot be read or written.
    """
    try:
        if not path.exists():
            _make_key(path)
        return _read_key(path)
    except OSError as error:
        raise IdiolectError(
            f"the signing key {path} cannot be read or written ({error.strerror}): give "
            "this account access to its folder."
        ) from error


def _make_key(path: Path) -> None:
    make_folder(path.parent)
    seed = new_key()
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    write_new(partial, f"{seed.hex()}\n{public_key(seed)}\n".encode())
    try:
        # A link, unlike a rename, never replaces the file of a faster process.
        with contextlib.suppress(FileExistsError):
            os.link(partial, path)
    finally:
        partial.unlink()
    sync_folder(path.parent)


def _read_key(path: Path) -> bytes:
    data = path.read_bytes()
    found = re.fullmatch(rb"([0-9a-f]{64})\n([0-9a-f]{64})\n", data)
    seed = bytes.fromhex(found[1].decode()) if found else b""
    if not found or public_key(seed).encode() != found[2]:
        raise IdiolectError(
            f"the signing key {path} is damaged: restore it from a backup; without one, "
            "remove it, and give every device the new public key."
        )
    return seed
