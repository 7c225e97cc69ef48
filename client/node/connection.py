"""A device's connection to its server: Flower's fleet calls, with retries.

It uses Flower's client and signatures, but not its loop, which ends the process on a
refusal and prints every try. Here a temporary failure is one line in the log and a new
try; any other failure is an error for the owner.
"""

import logging
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import (
    HEARTBEAT_DEFAULT_INTERVAL,
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_TOLERANCE,
)
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    pull_and_inflate_object_from_tree,
    push_objects,
)
from flwr.supercore.interceptors.http.utils import add_headers
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from ...common.errors import IdiolectError
from ...common.protocol.turned_away import CLOCK, REVOKED, UNREGISTERED
from ...common.text import printable

LOG = logging.getLogger("flwr")
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 20.0  # seconds between two tries of a call
# Seconds that a connection is kept without a call: longer than a device waits between two,
# since a handshake costs more than a call, and less than the server keeps it.
KEPT = 25.0
AGAIN = "start `idiolect node run` again"


class _Versions:
    """Says which Flower this is; Flower's own interceptor may end the process."""

    def intercept(
        self, context: ProtobufRequestContext, call_next: ProtobufCall
    ) -> httpx.Response:
        own = RuntimeVersionMetadata.from_local_component("SuperNode")
        add_headers(context.request, dict(own.as_metadata()))
        return call_next(context)


class _Client(FleetHttpClient):
    """Flower's client, which would close its connections after five seconds."""

    def __init__(self, base_url: str, **kept: Any) -> None:
        super().__init__(base_url, **kept)
        self._client.close()
        limits = httpx.Limits(keepalive_expiry=KEPT)
        verify, timeout = kept.get("verify", True), self._client.timeout
        self._client = httpx.Client(verify=verify, timeout=timeout, limits=limits)


class TurnedAway(IdiolectError):
    """The server refuses this device: trying again changes nothing."""


class Connection:
    """Calls of one device, which the server knows by its key.

    Attributes
    ----------
    node
        Flower's number of the device; 0 before it is registered (`connected`).
    away
        Why the server has turned the device away since, if it has.
    """

    def __init__(self, client: FleetHttpClient, address: str) -> None:
        self._client, self._address = client, address
        self.node = 0
        self.away: TurnedAway | None = None

    def call(self, ask: Callable[[Any], Any], request: Any) -> Any:
        """Make a call, again and again while what fails may pass.

        Raises
        ------
        TurnedAway
            The server refuses this device, or is not the one that was joined.
        RunNotRunningException
            The run that the call is about has ended.
        IdiolectError
            The server refuses this call.
        """
        pause, said, began = FIRST_PAUSE, "", time.monotonic()
        while True:
            if self.away is not None:
                raise self.away
            try:
                answer = ask(request)
            except httpx.HTTPError as error:
                reason = passing(error, self._address)
                if reason != said:
                    LOG.warning("%s: trying again until it works", reason)
                    said = reason
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                if said:
                    seconds = time.monotonic() - began
                    LOG.info("the server answers again, after %.0f s", seconds)
                return answer

    def beat(self) -> bool:
        """Send a heartbeat; return whether it was received."""
        request = SendNodeHeartbeatRequest(
            node=Node(node_id=self.node), heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL
        )
        if self.away is not None:
            return True  # the next call says it
        try:
            return self._client.SendNodeHeartbeat(request).success
        except httpx.HTTPError as error:
            with suppress(IdiolectError, RunNotRunningException):
                try:
                    passing(error, self._address)
                except TurnedAway as away:
                    self.away = away
            return self.away is not None

    def receive(self) -> Message | None:
        """Return the next request with its content, if there is one.

        Raises
        ------
        ObjectPullError
            The server has deleted it meanwhile. So may every exception of `call`.
        """
        who = Node(node_id=self.node)
        found = self.call(self._client.PullMessages, PullMessagesRequest(node=who))
        if not found.messages_list:
            return None
        run = message_from_proto(found.messages_list[0]).metadata.run_id
        tree = found.message_object_trees[0]
        pull = partial(self.call, self._client.PullObject)
        confirm = partial(self.call, self._client.ConfirmMessageReceived)
        request = pull_and_inflate_object_from_tree(
            tree,
            make_pull_object_fn_protobuf(pull, who, run),
            make_confirm_message_received_fn_protobuf(confirm, who, run),
            return_type=Message,
        )
        request.metadata.__dict__["_message_id"] = tree.object_id
        return request

    def send(self, reply: Message) -> None:
        """Send a reply; only the objects that the server lacks.

        Raises
        ------
        ObjectPushError
            The server no longer waits for it. So may every exception of `call`.
        """
        reply.metadata.__dict__["_message_id"] = reply.object_id
        who = Node(node_id=self.node)
        announced = PushMessagesRequest(
            node=who,
            messages_list=[message_to_proto(remove_content_from_message(reply))],
            message_object_trees=[get_object_tree(reply)],
            # How long it took would tell how much text there is.
            clientapp_runtime_list=[0.0],
        )
        answer = self.call(self._client.PushMessages, announced)
        run, session = reply.metadata.run_id, answer.session_id
        push = partial(self.call, self._client.PushObject)
        push_objects(
            get_all_nested_objects(reply),
            make_push_object_fn_protobuf(push, who, run, session),
            object_ids_to_push=set(answer.objects_to_push),
        )


@contextmanager
def connected(
    address: str, certificate: str, key: ec.EllipticCurvePrivateKey
) -> Iterator[Connection]:
    """Stay connected to a server until the end of the block.

    Parameters
    ----------
    address, certificate
        ``host:port``, and PEM of the authority that its certificate must come from.
    key
        By which the server knows the device.

    Raises
    ------
    TurnedAway
        The server refuses this device, or is not the one that was joined.
    """
    signed = NodeAuthHttpInterceptor(key, key.public_key())
    with _Client.from_server_address(
        address, False, certificate.encode(), [_Versions(), signed]
    ) as client:
        line = Connection(client, address)
        request = ActivateNodeRequest(
            public_key=public_key_to_bytes(key.public_key()),
            heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL,
        )
        # Waits while another start of the device counts.
        line.node = line.call(client.ActivateNode, request).node_id
        beats = HeartbeatSender(line.beat)
        beats.start()
        try:
            yield line
        finally:
            if beats.is_running:
                beats.stop()
            with suppress(httpx.HTTPError, ValueError):
                client.DeactivateNode(DeactivateNodeRequest(node_id=line.node))


# --- what a failure means --------------------------------------------------------------


def passing(error: httpx.HTTPError, address: str) -> str:
    """Say in a few words what failed and may pass; raise what does not.

    Raises
    ------
    TurnedAway, RunNotRunningException, IdiolectError
        As `Connection.call`.
    """
    if not isinstance(error, httpx.HTTPStatusError):
        if (refused := _certificate_error(error)) is not None:
            raise _distrusted(refused, address) from None
        what = printable(str(error), 120) or type(error).__name__
        return f"{address} cannot be reached ({what})"
    status = error.response.status_code
    if status == httpx.codes.UNAUTHORIZED:
        raise turned_away(error.response, address) from None
    if status == httpx.codes.FORBIDDEN:
        raise RunNotRunningException from None
    said = FlowerError.from_json(error.response.text)
    if said is not None and said.code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
        return (
            "the server counts another start of this device (one that has ended, for a "
            "minute more, or an `idiolect node run` that is still on)"
        )
    if status in (502, 503, 504):
        return f"{address} is busy or is starting"
    text = printable(error.response.text, 200)
    raise IdiolectError(
        f"{address} answered {status} ({text}): ask its operator to look at server.log."
    ) from None


def turned_away(answer: httpx.Response, address: str) -> TurnedAway:
    """Say why a server answered 401, and what to do."""
    said = printable(answer.text, 200)
    known = {
        UNREGISTERED: f"not registered: {address} does not know this device's key: its "
        "operator adds it (`idiolect-server nodes add`, and the line that `idiolect node "
        f"join INVITATION` prints), then {AGAIN}.",
        REVOKED: f"revoked: {address} no longer accepts this device's key: to return with "
        "a new one, `idiolect leave`, `idiolect node join INVITATION`, and send its "
        "operator the new line.",
        CLOCK: f"{_clock(answer)}: set it (allowed are {SYSTEM_TIME_TOLERANCE} s ahead and "
        f"{TIMESTAMP_TOLERANCE} s behind), then {AGAIN}.",
    }
    otherwise = (
        f"{address} refuses this device ({said}): ask its operator for the present "
        "invitation, then `idiolect node join INVITATION`."
    )
    return TurnedAway(known.get(said, otherwise))


def _clock(answer: httpx.Response) -> str:
    try:
        theirs = parsedate_to_datetime(answer.headers.get("date", ""))
        ahead = round((datetime.now(UTC) - theirs).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return "this clock is not the server's"
    way = "ahead of" if ahead > 0 else "behind"
    return f"this clock is {abs(ahead)} s {way} the server's"


def _certificate_error(error: BaseException) -> ssl.SSLCertVerificationError | None:
    """Return what was wrong with the server's certificate, if that is why a call failed."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


NOT_YET_VALID, EXPIRED = 9, 10  # OpenSSL's X509_V_ERR_CERT_…


def _distrusted(error: ssl.SSLCertVerificationError, address: str) -> TurnedAway:
    said = printable(error.verify_message, 200)
    if error.verify_code in (NOT_YET_VALID, EXPIRED):
        now = datetime.now(UTC)
        return TurnedAway(
            f"the certificate of {address} is not valid at this clock's time, "
            f"{now:%Y-%m-%d %H:%M} UTC ({said}): set the clock if that is wrong, else ask "
            f"its operator to renew the certificate; then {AGAIN}."
        )
    return TurnedAway(
        f"{address} is not the server that this device joined ({said}): ask its operator "
        "for the present invitation, or to name this address in `idiolect-server keys "
        f"renew`; then {AGAIN}."
    )
