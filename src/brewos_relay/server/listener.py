"""Listener: accepts the connections of the main port and passes each to the relay or the HTTP side."""

import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Final, Protocol

import trio

from brewos_relay.api.payloads import Refused
from brewos_relay.api.request_limits import RequestLimits
from brewos_relay.core.attachment import Attachment, ClientAttachment
from brewos_relay.core.relay import Relay
from brewos_relay.errors import CloseCode, PeerGone
from brewos_relay.networks import network_of
from brewos_relay.server.admission import (
    CLIENT_PATHS,
    DEVICE_PATH,
    Admission,
    ClientEntry,
    DeviceEntry,
    TokenRefused,
)
from brewos_relay.server.http import TakeWebSocket
from brewos_relay.server.incoming import (
    Denied,
    IncomingConnection,
    LingerSlots,
    PortPolicy,
    RefusalLog,
    accept_connections,
    answer_connection,
)
from brewos_relay.server.request_gate import WebSocketWanted, reason_of
from brewos_relay.settings.server_limits import ServerLimits
from brewos_relay.wire.connection import client_connection, device_connection
from brewos_relay.wire.handshake import HEAD_END, Refusal, Request, accept_upgrade, parse_head
from brewos_relay.wire.poller import Poller
from brewos_relay.wire.transport import TransportStream

log = logging.getLogger(__name__)

_PLAIN: Final = PortPolicy()


class TakeHttp(Protocol):
    """Takes over an HTTP connection and the data that was read from it."""

    def __call__(
        self,
        stream: trio.abc.Stream,
        initial: bytes,
        *,
        client: tuple[str, int],
        secure: bool,
        take_websocket: TakeWebSocket,
    ) -> None: ...


class PassOn(Protocol):
    """Passes a WebSocket request to the worker that has the device. Returns whether that has taken it."""

    async def __call__(self, incoming: IncomingConnection, head: bytes, rest: bytes) -> bool: ...


class Listener:
    """Accepts connections and answers their first requests.

    **Owns:** a task for each listening socket, and one for each connection until its first request is
    answered. From then on, the relay or the HTTP side owns the connection.
    **Ends when:** cancelled; unanswered requests are then refused or dropped.
    """

    def __init__(
        self,
        sockets: Iterable[socket.socket],
        *,
        relay: Relay,
        poller: Poller,
        admission: Admission,
        limits: ServerLimits,
        take_http: TakeHttp,
        port_policy: PortPolicy = _PLAIN,
        handshakes: Counter[tuple[str, str]] | None = None,
        refused: Counter[str] | None = None,
        refusals: RefusalLog | None = None,
        request_limits: RequestLimits | None = None,
        pass_on: PassOn | None = None,
        on_attached: Callable[[str, str], None] | None = None,
        gather_s: float = 0.0,
    ) -> None:
        """Serve these listening sockets.

        `handshakes` counts WebSocket requests by (`device`, `client` or `other`; status); the status is 4002
        for a client that was upgraded to be closed with 4002. `refused` counts refusals by
        reason, and `refusals` logs them. `request_limits` are those of the HTTP side. `pass_on` may pass a
        WebSocket request to another worker of this machine. `on_attached` is called with the login session
        and the device of each client that has one. Connections that come closely gather for `gather_s` before
        they are accepted.
        """
        self._sockets = list(sockets)
        self._relay = relay
        self._poller = poller
        self._admission = admission
        self._limits = limits
        self._take_http = take_http
        self._port_policy = port_policy
        self._lingering = LingerSlots()
        self._refusals = refusals or RefusalLog()
        self._request_limits = request_limits or RequestLimits()
        relay.line_limits.append(self._refusals.lines)
        self._handshakes = handshakes if handshakes is not None else Counter()
        self._refused = refused if refused is not None else Counter()
        self._pass_on = pass_on
        self._on_attached = on_attached
        self._gather_s = gather_s
        self._accepting = trio.CancelScope()

    def stop_accepting(self) -> None:
        """Accept no more connections: another process that shares the sockets does."""
        self._accepting.cancel()

    async def run(self) -> None:
        """Accept connections until cancelled."""
        await accept_connections(
            self._sockets,
            self._handle,
            limits=self._limits,
            write_batch=self._poller.write_batch,
            failure="a connection failed during its first request",
            accepting=self._accepting,
            gather_s=self._gather_s,
        )

    async def take_passed(
        self, accepted: socket.socket, address: str, port: int, *, secure: bool, head: bytes, rest: bytes
    ) -> None:
        """Answer a WebSocket request that another worker of this machine has read."""
        await answer_connection(
            partial(self._handle, received=(head, rest)),
            accepted,
            address,
            port,
            failure="a connection from another worker failed during its first request",
            limits=self._limits,
            write_batch=self._poller.write_batch,
            secure=secure,
            received=head,
            passed=True,
        )

    async def take_websocket(
        self, stream: trio.abc.Stream, wanted: WebSocketWanted, *, client: tuple[str, int], secure: bool
    ) -> bool:
        """Answer a WebSocket request on a connection of the HTTP side. Return whether it was admitted."""
        assert isinstance(stream, TransportStream)
        transport, left = stream.detach()
        incoming = IncomingConnection(transport, *client, secure=secure, received=wanted.head)
        with suppress(PeerGone):
            await self._handle(incoming, (wanted.head, wanted.rest + left))
        return incoming.released

    async def _handle(
        self, incoming: IncomingConnection, received: tuple[bytes, bytes] | None = None
    ) -> None:
        """Answer the first request of a connection, or one that was already `received`."""
        try:
            if received is None:
                received = await incoming.receive_head(port_policy=self._port_policy, limits=self._limits)
            await self._answer(incoming, *received)
        except Refusal as refusal:
            reason = refusal.reason if isinstance(refusal, Denied) else reason_of(refusal.status)
            self._refused[reason] += 1
            fields = {"address": incoming.address, "status": refusal.status, "reason": reason}
            self._refusals.log(
                "refused %s: %s",
                incoming.address,
                refusal,
                cause=reason,
                network=incoming.network or network_of(incoming.address),
                extra=fields,
            )
            lingering = self._lingering if incoming.path == DEVICE_PATH else None
            await incoming.refuse(refusal, within_s=self._limits.close_s, lingering=lingering)

    async def _answer(self, incoming: IncomingConnection, head: bytes, rest: bytes) -> None:
        """Answer a request. If the connection stays open, the relay or the HTTP side owns it afterwards."""
        if self._pass_on is not None and await self._pass_on(incoming, head, rest):
            return
        request = parse_head(head)
        incoming.path = request.path
        request.peer_address, request.secure = incoming.address, incoming.secure
        incoming.network = self._admission.network(request)
        if request.path == DEVICE_PATH or request.path in CLIENT_PATHS:
            peer = "device" if request.path == DEVICE_PATH else "client"
            try:
                answer = accept_upgrade(request)
                entry = await self._admission.check(request, incoming.network)
                status = await self._admit(incoming, answer, entry, rest)
            except Refusal as refusal:
                self._handshakes[peer, str(refusal.status)] += 1
                raise
            self._handshakes[peer, str(status)] += 1
            return
        if request.wants_websocket:  # other protocols are ignored, as RFC 9110 §7.8 allows
            self._handshakes["other", "400"] += 1
            raise Denied(
                "no_websocket_here",
                400,
                "no WebSocket at this path; use /ws/device or /ws/client",
            )
        self._refuse_throttled(request, incoming.network)
        self._take_http(
            TransportStream(incoming.transport),
            head + HEAD_END + rest,
            client=(incoming.address, incoming.port),
            secure=incoming.secure,
            take_websocket=self.take_websocket,
        )
        incoming.release()

    def _refuse_throttled(self, request: Request, network: str) -> None:
        """Refuse an HTTP request that the API would refuse, at a tenth of the cost."""
        try:
            self._request_limits.check_request(request.path, network)
        except Refused as refusal:
            headers = {**refusal.headers, "Vary": "Authorization"}
            reason = refusal.reason or "too_many_requests"
            raise Denied(reason, refusal.status, refusal.problem, headers=headers) from None

    async def _admit(
        self,
        incoming: IncomingConnection,
        answer: bytes,
        entry: DeviceEntry | ClientEntry | TokenRefused,
        rest: bytes,
    ) -> int:
        """Attach an admitted peer and return 101. Otherwise, close the client and return the close code."""
        if self._relay.closing:
            raise Denied("leaving", 503, "the relay is restarting", headers={"Retry-After": "5"})
        if not isinstance(entry, TokenRefused):
            with self._poller.write_batch:  # the 101 and the first messages share a write
                try:
                    self._attach(incoming, answer, entry, rest)
                except BaseException:
                    incoming.close()  # usually before the 101 was sent: no peer is admitted and dropped
                    raise
            return 101
        incoming.transport.write(answer)
        client = client_connection(incoming.transport, poller=self._poller, limits=self._limits, initial=rest)
        self._refused[entry.cause] += 1
        fields = {"address": incoming.address, "reason": entry.cause}
        self._refusals.log(
            "client closed: %s", entry.reason, cause=entry.cause, network=incoming.network, extra=fields
        )
        client.close(CloseCode.TOKEN_REJECTED, entry.reason)
        await client.aclose()
        return CloseCode.TOKEN_REJECTED

    def _attach(
        self, incoming: IncomingConnection, answer: bytes, entry: DeviceEntry | ClientEntry, rest: bytes
    ) -> None:
        """Send 101 to an admitted peer and attach it to the relay."""
        transport, poller, limits = incoming.transport, self._poller, self._limits
        attached: Attachment
        if isinstance(entry, DeviceEntry):
            device = device_connection(
                transport,
                poller=poller,
                limits=limits,
                counters=self._relay.counters,
                initial=rest,
                anonymous=entry.anonymous,
            )
            transport.write(answer)
            attached = self._relay.attach_device(
                entry.device_id,
                device,
                credential=entry.key_hash,
                network=entry.network,
                anonymous=entry.anonymous,
                known_state=entry.known_state,
            )
        else:
            client = client_connection(transport, poller=poller, limits=limits, initial=rest)
            transport.write(answer)
            attached = self._relay.attach_client(
                entry.device_id,
                client,
                last_seen_ms=entry.last_seen_ms,
                expires_at_s=entry.expires_at_s,
                renew=entry.renew,
                grant=entry.grant,
                network=entry.network,
            )
            if self._on_attached is not None and entry.grant.session_id is not None:
                self._on_attached(entry.grant.session_id, entry.device_id)
        incoming.release()
        if log.isEnabledFor(logging.DEBUG) and self._relay.lines.admit("admitted", entry.network):
            _log_admitted(incoming, attached)


def _log_admitted(incoming: IncomingConnection, attached: Attachment) -> None:
    """Log the address of an admitted connection, which the relay does not know."""
    what = "client" if isinstance(attached, ClientAttachment) else "device"
    fields = {
        "device": attached.session.device_id,
        "connection": attached.number,
        "address": incoming.address,
    }
    log.debug("admitted a %s from %s", what, incoming.address, extra=fields)
