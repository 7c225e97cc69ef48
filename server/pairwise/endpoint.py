"""A chat model behind an OpenAI-compatible address: one question, one answer.

Texts go nowhere else: an address that is not of this machine has to be named a second time,
redirects are not followed, and proxies of the environment are not used.
"""

import ipaddress
import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from ...common.errors import IdiolectError, refuse_if
from ...common.text import printable

KEY = "IDIOLECT_JUDGE_KEY"
PAUSES = (1.0, 2.0, 4.0)  # seconds before another try
MOST = 1 << 20  # bytes of an answer
NEW = 2048  # tokens of an answer: models that think write before they say
QUOTED = 200  # characters of what a server says
PASSING = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Endpoint:
    """Where a judge is.

    Attributes
    ----------
    address
        Without a slash at its end, as ``http://127.0.0.1:8080/v1``.
    model
        Its name there.
    timeout
        Seconds in which an answer has to be complete.
    key
        Sent as a bearer token; empty: none. It is written nowhere.
    sleep
        Waits before another try.
    """

    address: str
    model: str
    timeout: float = 120.0
    key: str = field(default="", repr=False)
    sleep: Callable[[float], None] = time.sleep


def endpoint_of(
    address: str,
    model: str,
    timeout: float,
    allowed: str = "",
    environment: Mapping[str, str] = os.environ,
) -> Endpoint:
    """Check an address, and take the key from the environment.

    Parameters
    ----------
    address, model, timeout
        As given.
    allowed
        A host that is not this machine, and may have the texts.
    environment
        Where the key is.

    Raises
    ------
    IdiolectError
        It is no address, or one of another machine that was not named.
    """
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port, parts = "", None, urlsplit("")
    refuse_if(
        parts.scheme not in ("http", "https")
        or not host
        or port == 0
        or "@" in parts.netloc
        or bool(parts.query or parts.fragment),
        f"--endpoint {printable(address, QUOTED)} is no address of a model: give one such "
        "as http://127.0.0.1:8080/v1.",
    )
    here = _is_here(host)
    refuse_if(
        not here and host != allowed.lower(),
        f"--endpoint is on {printable(host, QUOTED)}, which is not this machine, and texts "
        f"of users would go there: use a model on this machine, or allow it by "
        f"--allow-host {printable(host, QUOTED)}.",
    )
    refuse_if(timeout <= 0, f"--timeout {timeout:g} is no time: give seconds above 0.")
    key = environment.get(KEY, "")
    refuse_if(
        key and not here and parts.scheme == "http",
        f"the key in {KEY} would travel unencrypted to {printable(host, QUOTED)}: use an "
        "https address, or unset the variable.",
    )
    refuse_if(
        not key.isascii() or not key.isprintable(),
        f"the key in {KEY} has characters that no key has: set it again.",
    )
    return Endpoint(address.rstrip("/"), model, timeout, key)


def _is_here(host: str) -> bool:
    """Whether a host is this machine; a name only if all of its addresses are."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    if host != "localhost":
        return False
    try:
        found = {one[4][0] for one in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(str(one)).is_loopback for one in found)


def client_of(endpoint: Endpoint) -> httpx.Client:
    """Return a client that goes to the address itself and nowhere else."""
    headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
    limits = httpx.Timeout(endpoint.timeout, connect=min(10.0, endpoint.timeout))
    return httpx.Client(
        headers=headers, timeout=limits, trust_env=False, follow_redirects=False
    )


def body_of(endpoint: Endpoint, messages: list[dict[str, str]]) -> dict[str, Any]:
    """Return the request: greedy, and as one piece."""
    given = {"model": endpoint.model, "messages": messages}
    return given | {"temperature": 0, "max_tokens": NEW, "stream": False}


def ask(
    client: httpx.Client, endpoint: Endpoint, body: Mapping[str, Any]
) -> tuple[str, str]:
    """Ask once, and again where the failure may pass.

    Returns
    -------
    tuple
        The answer's text, and the name of the model that the server says it has.

    Raises
    ------
    IdiolectError
        Nothing listens there, the key or the model is refused, no answer comes in time,
        or what comes is no answer of a chat model.
    """
    failed = ""
    for pause in (0.0, *PAUSES):
        if pause:
            endpoint.sleep(pause)
        try:
            status, found = _post(client, endpoint, body)
        except httpx.ConnectError as error:
            raise IdiolectError(
                f"no model answers at {endpoint.address} ({_said(error)}): start it, or "
                "give its --endpoint."
            ) from None
        except (httpx.TimeoutException, TimeoutError):
            failed = f"no answer came within {endpoint.timeout:g} s"
        except httpx.HTTPError as error:
            failed = f"the connection failed ({_said(error)})"
        else:
            if status == 200:
                return _text(endpoint, found)
            if status not in PASSING:
                raise _refused(endpoint, status, found)
            failed = f"it answers with status {status}{_quoted(found)}"
    raise IdiolectError(
        f"{endpoint.address} was asked {1 + len(PAUSES)} times and {failed}: look at the "
        "model's own log, or give more time by --timeout."
    )


def _post(
    client: httpx.Client, endpoint: Endpoint, body: Mapping[str, Any]
) -> tuple[int, bytes]:
    """Return status and body; the whole answer has `timeout` seconds and MOST bytes."""
    end = time.monotonic() + endpoint.timeout
    found = b""
    address = f"{endpoint.address}/chat/completions"
    with client.stream("POST", address, json=dict(body)) as answer:
        for part in answer.iter_bytes():
            found += part
            if time.monotonic() > end:
                raise TimeoutError
            refuse_if(
                len(found) > MOST,
                f"{endpoint.address} sends more than {MOST} bytes as one answer: it is no "
                "chat model, so give another --endpoint.",
            )
    return answer.status_code, found


def _text(endpoint: Endpoint, found: bytes) -> tuple[str, str]:
    try:
        said = json.loads(found)
        text, model = said["choices"][0]["message"]["content"], said.get("model")
    except (
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        RecursionError,
        AttributeError,
    ):
        raise IdiolectError(
            f"{endpoint.address} answers, but not as a chat model does: give the address "
            "that ends before /chat/completions, often with /v1."
        ) from None
    return text if isinstance(text, str) else "", str(model or endpoint.model)


def _refused(endpoint: Endpoint, status: int, found: bytes) -> IdiolectError:
    if status in (401, 403):
        return IdiolectError(
            f"{endpoint.address} refuses the key (status {status}): set {KEY} to a key "
            "that it takes."
        )
    model = printable(endpoint.model, QUOTED)
    if status == 404:
        return IdiolectError(
            f"{endpoint.address} has no model '{model}', or no /chat/completions"
            f"{_quoted(found)}: give a --model that its /models lists, or "
            "another --endpoint."
        )
    if 300 <= status < 400:
        return IdiolectError(
            f"{endpoint.address} sends to another address, which is not followed: give the "
            "address of the model itself."
        )
    return IdiolectError(
        f"{endpoint.address} does not take the question (status {status})"
        f"{_quoted(found)}: if it is too long for the model, give fewer texts by --own."
    )


def _quoted(found: bytes) -> str:
    """What a server says of an error, if it says it as such servers do."""
    try:
        said = json.loads(found)["error"]
        text = said["message"] if isinstance(said, dict) else said
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return f" (“{printable(str(text), QUOTED)}”)"


def _said(error: Exception) -> str:
    return printable(str(error), 120) or type(error).__name__
