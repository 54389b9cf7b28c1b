"""The one port: accepts connections, reads the first request, and hands each to whoever it is for."""

import errno
import logging
import socket
from collections.abc import Callable, Iterable
from typing import Final

import trio

from brewos_relay.core.limits import Limits
from brewos_relay.core.relay import Relay
from brewos_relay.errors import CloseCode, PeerGone
from brewos_relay.server.admission import (
    CLIENT_PATHS,
    DEVICE_PATH,
    Admission,
    ClientEntry,
    DeviceEntry,
    TokenRefused,
)
from brewos_relay.wire.connection import client_connection, device_connection
from brewos_relay.wire.handshake import (
    HEAD_END,
    Refusal,
    accept_upgrade,
    begins_like_http,
    parse_head,
)
from brewos_relay.wire.poller import Poller
from brewos_relay.wire.transport import Transport

log = logging.getLogger(__name__)

_ACCEPTS_PER_PASS: Final = 64
_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PAUSE_S: Final = 0.1

TakeHttp = Callable[[trio.SocketStream, bytes], None]


class Listener:
    """Serves the listening sockets.

    **Owns:** an accepting task for each listening socket, and one task for each connection, which lives only
    until its request is answered: from there on the connection belongs to the relay or to the HTTP side.
    **Ends when:** cancelled; requests that are not answered yet are then refused or dropped.
    """

    def __init__(
        self,
        sockets: Iterable[socket.socket],
        *,
        relay: Relay,
        poller: Poller,
        admission: Admission,
        take_http: TakeHttp,
    ) -> None:
        self._sockets = list(sockets)
        self._relay = relay
        self._poller = poller
        self._admission = admission
        self._take_http = take_http

    @property
    def _limits(self) -> Limits:
        return self._relay.limits

    async def run(self) -> None:
        """Accept connections until cancelled."""
        async with trio.open_nursery() as nursery:
            for listening in self._sockets:
                nursery.start_soon(self._accept, listening, nursery)

    async def _accept(self, listening: socket.socket, nursery: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(listening)
            for _ in range(_ACCEPTS_PER_PASS):
                try:
                    accepted, _address = listening.accept()
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno in _OUT_OF_RESOURCES:
                        log.warning("cannot accept connections: %s", error.strerror)
                        await trio.sleep(_PAUSE_S)
                        break
                    continue  # that peer had gone before it was accepted
                nursery.start_soon(self._welcome, accepted)

    async def _welcome(self, accepted: socket.socket) -> None:
        """Answer the first request of a connection. Whatever goes wrong ends that connection only."""
        transport: Transport | None = None
        handed_on = False
        try:
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            transport = Transport(
                accepted, outbox_limit_bytes=self._limits.outbox_bytes, lag_bytes=self._limits.lag_bytes
            )
            try:
                handed_on = await self._answer(transport)
            except Refusal as refusal:
                log.info("refused %s: %s", _peer_name(accepted), refusal)
                await self._refuse(transport, refusal)
        except PeerGone:
            pass  # before it had asked for anything
        except Exception:
            log.exception("a connection failed during its first request")
        finally:
            if transport is None:
                accepted.close()
            elif not handed_on:
                transport.close()

    async def _answer(self, transport: Transport) -> bool:
        """Answer a request; True if the connection belongs to somebody else now."""
        head, rest = await self._read_head(transport)
        request = parse_head(head)
        if request.path == DEVICE_PATH or request.path in CLIENT_PATHS:
            answer = accept_upgrade(request)
            return await self._let_in(transport, answer, await self._admission.check(request), rest)
        if request.wants_upgrade:
            raise Refusal(400, "nothing to upgrade to here; WebSockets are at /ws/device and /ws/client")
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(transport.detach()))
        self._take_http(stream, head + HEAD_END + rest)
        return True

    async def _read_head(self, transport: Transport) -> tuple[bytes, bytes]:
        """Read a request head; return it without its empty line, and what came behind it."""
        limit_bytes = self._limits.request_head_bytes
        received = b""
        with trio.move_on_after(self._limits.request_head_s):
            while True:
                await transport.wait_readable()
                data = transport.read()
                if data is None:
                    continue
                received += data
                if received and not begins_like_http(received):
                    raise Refusal(400, "this port speaks plain HTTP")
                end = received.find(HEAD_END)
                if end > limit_bytes or (end < 0 and len(received) > limit_bytes):
                    raise Refusal(431, f"the request head is larger than {limit_bytes} bytes")
                if end >= 0:
                    return received[:end], received[end + len(HEAD_END) :]
                if not data:
                    raise PeerGone("the peer left in the middle of its request")
        if not received:
            raise PeerGone("the peer asked for nothing")
        raise Refusal(408, "the request head was not complete in time")

    async def _let_in(
        self,
        transport: Transport,
        answer: bytes,
        entry: DeviceEntry | ClientEntry | TokenRefused,
        rest: bytes,
    ) -> bool:
        if self._relay.closing:
            raise Refusal(503, "the relay is restarting", headers={"Retry-After": "5"})
        transport.write(answer)
        if isinstance(entry, DeviceEntry):
            device = device_connection(
                transport,
                poller=self._poller,
                limits=self._limits,
                counters=self._relay.counters,
                initial=rest,
            )
            self._relay.attach_device(entry.device_id, device)
            return True
        client = client_connection(transport, poller=self._poller, limits=self._limits, initial=rest)
        if isinstance(entry, ClientEntry):
            self._relay.attach_client(
                entry.device_id,
                client,
                last_seen_ms=entry.last_seen_ms,
                expires_at_s=entry.expires_at_s,
                renew=entry.renew,
            )
            return True
        log.info("client closed: %s", entry.reason)
        client.close(CloseCode.TOKEN_REJECTED, entry.reason)
        await client.aclose()
        return False

    async def _refuse(self, transport: Transport, refusal: Refusal) -> None:
        """Send a refusal and give the peer a moment to read it: closing at once could take it back."""
        transport.write(refusal.encode())
        transport.finish_writing()
        with trio.move_on_after(self._limits.close_s):
            while transport.read() != b"":
                await transport.wait_readable()


def _peer_name(accepted: socket.socket) -> str:
    try:
        return str(accepted.getpeername()[0])
    except OSError:
        return "a peer that has gone"
