"""Ask the joined server what a device must know before it takes part; nothing is sent.

Two calls that the server's proxy refuses by itself, and so nothing of them reaches the
SuperLink. One is signed with a time long ago: the refusal tells the server's time. The
other is signed with the time of this clock, and names no device: the refusal tells whether
this device's key is let in, and which idiolect the server runs. No time that the server
told is ever signed: a signature of a time to come could be used then.
"""

import ssl
from base64 import b64encode
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from ...common.errors import IdiolectError, refuse_if
from ...common.protocol.turned_away import CLOCK, OTHER_DEVICE, VERSION
from ...common.text import printable
from .connection import passing, turned_away
from .membership import Server

PATH = "/v1/fleet/pull-messages"
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
PATIENCE = 10.0  # seconds


@dataclass(frozen=True)
class Seen:
    """What the server told.

    Attributes
    ----------
    ahead
        By how many seconds this clock is ahead of the server's.
    version
        Of the idiolect that it runs; empty: it did not say whether this device is let in,
        since this clock is off.
    begin, end
        Of its certificate.
    """

    ahead: float
    version: str
    begin: datetime
    end: datetime


def probe(server: Server, key: ec.EllipticCurvePrivateKey) -> Seen:
    """Ask a server.

    Parameters
    ----------
    server
        That was joined.
    key
        By which it knows this device.

    Raises
    ------
    IdiolectError
        It cannot be reached, is another server, or does not let this device in.
    """
    trust = ssl.create_default_context(cadata=server.certificate)
    with httpx.Client(verify=trust, trust_env=False, timeout=PATIENCE) as client:
        first, times = _ask(client, server.address, key, LONG_AGO)
        refuse_if(first.text != CLOCK, _odd(server.address, first))
        theirs = parsedate_to_datetime(first.headers["date"])
        ahead = (datetime.now(UTC) - theirs).total_seconds()
        second, _ = _ask(client, server.address, key, datetime.now(UTC))
    if second.text == CLOCK:
        return Seen(ahead, "", *times)
    if second.status_code == httpx.codes.UNAUTHORIZED and second.text != OTHER_DEVICE:
        raise turned_away(second, server.address)
    refuse_if(second.text != OTHER_DEVICE, _odd(server.address, second))
    return Seen(ahead, printable(second.headers.get(VERSION, ""), 40), *times)


def _odd(address: str, answer: httpx.Response) -> str:
    said = printable(answer.text, 200)
    return (
        f"{address} answers {answer.status_code} ({said}): ask its operator to run "
        "`idiolect-server doctor`."
    )


def _ask(
    client: httpx.Client, address: str, key: ec.EllipticCurvePrivateKey, when: datetime
) -> tuple[httpx.Response, tuple[datetime, datetime]]:
    """Make one call; return its answer, and begin and end of the server's certificate."""
    stamp = when.isoformat()
    signature = sign_message(key, stamp.encode())
    headers = {
        "content-type": PROTOBUF_MEDIA_TYPE,
        TIMESTAMP_HEADER: stamp,
        FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(
            public_key_to_bytes(key.public_key())
        ).decode(),
        FLEET_HTTP_SIGNATURE_HEADER: b64encode(signature).decode(),
    }
    try:
        with client.stream(
            "POST", f"https://{address}{PATH}", headers=headers
        ) as answer:
            tls = answer.extensions["network_stream"].get_extra_info("ssl_object")
            own = tls.getpeercert()
            answer.read()
    except httpx.HTTPError as error:
        raise IdiolectError(
            f"{passing(error, address)}: look whether it is up, and whether a firewall "
            "stands between."
        ) from None
    begin, end = (
        datetime.fromtimestamp(ssl.cert_time_to_seconds(own[name]), UTC)
        for name in ("notBefore", "notAfter")
    )
    return answer, (begin, end)
