"""Incoming connections: accept them, read the first request head, refuse them, and log refusals."""

import errno
import logging
import math
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, Self

import trio

from brewos_relay.core.rate_limits import LogLineLimits
from brewos_relay.errors import PeerGone
from brewos_relay.settings.server_limits import ServerLimits
from brewos_relay.wire.handshake import (
    HEAD_END,
    Refusal,
    begins_like_http,
    is_head_only,
    skip_empty_line,
)
from brewos_relay.wire.proxy_protocol import (
    MOST_HEADER_BYTES,
    ProxyHeader,
    ProxyProtocolError,
    parse_proxy_header,
)
from brewos_relay.wire.tls import accept_tls, begins_like_tls
from brewos_relay.wire.transport import Transport, WriteBatch

log = logging.getLogger(__name__)

LINGER_S: Final = 1.0
"""How long the relay waits for a refused device to close its plain connection, before it closes it."""
LINGER_SLOTS: Final = 1000
"""The most refused connections of one port that wait for their devices at a time."""

_NOT_TLS: Final = "this port speaks HTTPS"
_NOT_HTTP: Final = "this port speaks HTTP over TLS"
_NOT_PLAIN: Final = "this port speaks plain HTTP"

_ACCEPTS_PER_PASS: Final = 64
_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC})
"""Errors of a system without free files or memory. ENOSPC: epoll cannot watch more sockets."""
_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 1.0
_LOG_EVERY_S: Final = 10.0

_LINES_PER_S: Final = 5.0
LINES_AT_ONCE: Final = 100.0
LINES_AT_ONCE_OF_EACH: Final = 50.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PortPolicy:
    """How connections of a port begin.

    `tls_context` returns the TLS context for a new connection; without it, connections are plain. If
    `is_proxy` returns True for the address of a peer, its connection must begin with a PROXY header;
    otherwise such a header is not accepted.
    """

    tls_context: Callable[[], ssl.SSLContext] | None = None
    is_proxy: Callable[[str], bool] | None = None


class LingerSlots:
    """Counts the refused connections of a port that wait for their devices to close them."""

    __slots__ = ("_at_most", "_count")

    def __init__(self, at_most: int = LINGER_SLOTS) -> None:
        self._at_most = at_most
        self._count = 0

    @contextmanager
    def slot(self) -> Iterator[bool]:
        """Occupy a slot during the block and yield True, or yield False if all slots are taken."""
        if self._count >= self._at_most:
            yield False
            return
        self._count += 1
        try:
            yield True
        finally:
            self._count -= 1


class IncomingConnection:
    """An accepted connection and its first request: transport, address of the peer, and whether it uses TLS.

    **Owns:** the transport, until `release` is called.
    """

    __slots__ = (
        "_received",
        "address",
        "network",
        "passed",
        "path",
        "port",
        "released",
        "secure",
        "transport",
    )

    def __init__(
        self,
        transport: Transport,
        address: str,
        port: int,
        *,
        secure: bool = False,
        received: bytes = b"",
        passed: bool = False,
    ) -> None:
        self.transport = transport
        self.address = address
        self.network = ""
        """The network of the client, set once the request is read. A proxy may have forwarded for it."""
        self.path = ""
        """The path of the request, set once its head is read."""
        self.port = port
        self.secure = secure
        self._received = received
        self.passed = passed
        """Whether another worker of this machine has accepted the connection and passed it on."""
        self.released = False
        """Whether the transport has another owner now."""

    @classmethod
    def accept(
        cls,
        accepted: socket.socket,
        address: str,
        port: int,
        *,
        limits: ServerLimits,
        write_batch: WriteBatch | None = None,
        secure: bool = False,
        received: bytes = b"",
        passed: bool = False,
    ) -> Self:
        """Make an incoming connection of an accepted socket."""
        try:
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            pass  # the peer has gone already; the first read will report it
        transport = Transport(
            accepted,
            outbox_limit_bytes=limits.outbox_bytes,
            lag_bytes=limits.lag_bytes,
            write_batch=write_batch,
        )
        return cls(transport, address, port, secure=secure, received=received, passed=passed)

    @property
    def head_only(self) -> bool:
        """Whether the response must have no body, judging by the part of the request that has arrived."""
        return is_head_only(skip_empty_line(self._received))

    def release(self) -> None:
        """Give up the ownership of the transport."""
        self.released = True

    def give_away(self) -> None:
        """Close this process' copy of the socket: another process has the connection now."""
        self.released = True
        self.transport.close()

    def close(self) -> None:
        """Close the connection, unless it was released."""
        if not self.released:
            self.transport.close()

    async def receive_head(self, *, port_policy: PortPolicy, limits: ServerLimits) -> tuple[bytes, bytes]:
        """Read the PROXY header, the TLS handshake and the request head, as `port_policy` requires.

        Returns the head without the empty line at its end, and the data after it. Raises Refusal, or PeerGone
        if the peer has gone.
        """
        behind_proxy = port_policy.is_proxy is not None and port_policy.is_proxy(self.address)
        if not behind_proxy and port_policy.tls_context is None:
            found = self._look_for_head(limits.request_head_bytes)
            if found is not None:  # already complete: no timer is needed
                return found
        with trio.move_on_after(limits.request_head_s):
            if behind_proxy:
                self._apply(await self._read_proxy_header())
            if port_policy.tls_context is not None:
                received = await self._wait_for(self.transport.read)
                if not begins_like_tls(received):
                    self._received = received
                    raise Refusal(400, _NOT_TLS)
                self.transport = await accept_tls(self.transport, port_policy.tls_context(), received)
                self.secure = True
            return await self._read_head(limits.request_head_bytes)
        if not self._received:
            raise PeerGone("the peer sent no request")
        raise Refusal(408, "the request head was not complete in time")

    async def refuse(
        self, refusal: Refusal, *, within_s: float, lingering: LingerSlots | None = None
    ) -> None:
        """Send a refusal, and wait until the peer closes: closing at once could discard the response.

        `lingering` is for the request of a device. A machine repeats its request at once if a plain
        connection ends right after the refusal. So the relay waits 1 s for the device to close first, unless
        all slots are taken.
        """
        self.transport.write(refusal.encode(head_only=self.head_only))
        if lingering is not None and not self.secure:
            with lingering.slot() as has_slot:
                if has_slot:
                    await self._read_to_end(within_s=LINGER_S)
                    return
        self.transport.finish_writing()
        await self._read_to_end(within_s=within_s)

    async def _read_to_end(self, *, within_s: float) -> None:
        """Discard what the peer sends until it closes, for at most `within_s`."""
        with trio.move_on_after(within_s):
            while self.transport.read() != b"":
                await self.transport.wait_readable()

    async def _read_head(self, limit_bytes: int) -> tuple[bytes, bytes]:
        while (found := self._look_for_head(limit_bytes)) is None:
            await self.transport.wait_readable()
        return found

    def _look_for_head(self, limit_bytes: int) -> tuple[bytes, bytes] | None:
        """Read available data. Return the head and the data after it, or None if the head is incomplete."""
        data = self.transport.read()
        if data is None:
            return None
        self._received += data
        received = skip_empty_line(self._received)
        if received and not begins_like_http(received):
            raise Refusal(400, _NOT_HTTP if self.secure else _NOT_PLAIN)
        end = received.find(HEAD_END)
        if end > limit_bytes or (end < 0 and len(received) > limit_bytes):
            raise Refusal(431, f"the request head is larger than {limit_bytes} bytes")
        if end >= 0:
            return received[:end], received[end + len(HEAD_END) :]
        if not data:
            raise PeerGone("the peer closed in the middle of its request")
        return None

    async def _wait_for(self, read: Callable[[], bytes | None]) -> bytes:
        """Wait until a function that reads from the transport returns data. Raises PeerGone."""
        while (data := read()) is None:
            await self.transport.wait_readable()
        if not data:
            raise PeerGone("the peer closed before it sent anything")
        return data

    async def _read_proxy_header(self) -> ProxyHeader:
        """Read a PROXY header and not one byte more, since a TLS handshake may follow. Raises Refusal."""
        received = b""
        while True:
            seen = await self._wait_for(partial(self.transport.peek, MOST_HEADER_BYTES))
            try:
                found = parse_proxy_header(received + seen)
            except ProxyProtocolError as problem:
                raise Refusal(400, str(problem)) from None
            if found is not None:
                self.transport.skip(found[1] - len(received))
                return found[0]
            self.transport.skip(len(seen))
            received += seen

    def _apply(self, header: ProxyHeader) -> None:
        if header.address is not None:
            self.address, self.port, self.secure = header.address, header.port, header.secure


Answer = Callable[[IncomingConnection], Awaitable[None]]


async def accept_connections(
    sockets: Iterable[socket.socket],
    answer: Answer,
    *,
    limits: ServerLimits,
    failure: str,
    write_batch: WriteBatch | None = None,
    accepting: trio.CancelScope | None = None,
    gather_s: float = 0.0,
) -> None:
    """Accept connections until cancelled. Call `answer` for each, then close it unless it was released.

    A failure ends only its connection, and is logged with the text `failure`. `write_batch` is the
    poller's, for connections that become WebSockets. Cancelling the scope `accepting` ends the accepting:
    another process that shares the sockets accepts instead. While connections come closely, they gather for
    `gather_s` before they are accepted together.

    **Owns:** a task for each listening socket, and one for each connection until it is answered.
    **Ends when:** cancelled, or accepting has ended and all connections are answered.
    """
    async with trio.open_nursery() as nursery:
        handle = partial(answer_connection, answer, failure=failure, limits=limits, write_batch=write_batch)
        backoff = _AcceptBackoff()
        with accepting or trio.CancelScope():
            async with trio.open_nursery() as acceptors:
                for listening in sockets:
                    acceptors.start_soon(_accept, listening, nursery, handle, backoff, gather_s)


class _AcceptBackoff:
    """Backoff of a port's listening sockets while the system has no free files or memory.

    Meanwhile, connections wait in the backlogs of the sockets. The pauses grow; one line is logged in 10 s.
    """

    def __init__(self) -> None:
        self._pause_s = _PAUSE_S
        self._log_at = -math.inf
        self._failures = 0

    async def wait(self, error: Exception) -> None:
        """Wait before the next attempt."""
        self._failures += 1
        if trio.current_time() >= self._log_at:
            self._log_at = trio.current_time() + _LOG_EVERY_S
            reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
            times, self._failures = self._failures, 0
            with suppress(Exception):  # there may be no memory for it
                log.warning("cannot accept connections: %s (%d times)", reason, times)
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, _LONGEST_PAUSE_S)
        await trio.sleep(pause_s)

    def end(self) -> None:
        """Reset the pause, after a connection was accepted."""
        self._pause_s = _PAUSE_S


async def _accept(
    listening: socket.socket,
    nursery: trio.Nursery,
    handle: Callable[[socket.socket, str, int], Awaitable[None]],
    backoff: _AcceptBackoff,
    gather_s: float,
) -> None:
    accepted_at = -math.inf
    while True:
        try:
            await trio.lowlevel.wait_readable(listening)
            if trio.current_time() < accepted_at + 2 * gather_s:
                await trio.sleep(gather_s)
            if _accept_some(listening, nursery, handle):
                accepted_at = trio.current_time()
            backoff.end()
        except (MemoryError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _OUT_OF_RESOURCES:
                raise
            await backoff.wait(error)


def _accept_some(
    listening: socket.socket,
    nursery: trio.Nursery,
    handle: Callable[[socket.socket, str, int], Awaitable[None]],
) -> bool:
    """Accept the waiting connections, up to a number. Return whether there was one.

    Raises MemoryError or OSError if the system is out of resources.
    """
    has_accepted = False
    for _ in range(_ACCEPTS_PER_PASS):
        try:
            accepted, peer = listening.accept()
        except BlockingIOError:
            break
        except OSError as error:
            if error.errno in _OUT_OF_RESOURCES:
                raise
            continue  # the peer had gone before it was accepted
        try:
            nursery.start_soon(handle, accepted, peer[0].partition("%")[0], peer[1])
        except MemoryError:
            accepted.close()
            raise
        has_accepted = True
    return has_accepted


async def answer_connection(
    answer: Answer,
    accepted: socket.socket,
    address: str,
    port: int,
    *,
    failure: str,
    limits: ServerLimits,
    write_batch: WriteBatch | None = None,
    secure: bool = False,
    received: bytes = b"",
    passed: bool = False,
) -> None:
    """Call `answer` for an accepted connection, then close it unless it was released.

    Another worker may have accepted it (`passed`), and `received` data from it.
    """
    incoming: IncomingConnection | None = None
    try:
        incoming = IncomingConnection.accept(
            accepted,
            address,
            port,
            limits=limits,
            write_batch=write_batch,
            secure=secure,
            received=received,
            passed=passed,
        )
        await answer(incoming)
    except PeerGone:
        pass  # before its request was complete
    except Exception:
        with suppress(Exception):  # there may be no memory for it
            log.exception(failure)
    finally:
        with suppress(Exception):
            (incoming or accepted).close()


class Denied(Refusal):
    """A refusal with a reason code, for metrics and the log."""

    def __init__(
        self, reason: str, status: int, message: str, *, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(status, message, headers=headers)
        self.reason = reason


def refusal_line_limits(what: str) -> LogLineLimits:
    """Make the rate limits for log lines about refusals: a burst of 100 lines and 5 a second in all.

    One cause and network has a burst of 50 lines and 12 a minute. A log line takes longer than a refusal, and
    an attack would fill the disk. `what` names the lines in the reports of suppressed ones.
    """
    return LogLineLimits(
        what, rate_per_s=_LINES_PER_S, burst=LINES_AT_ONCE, each_at_once=LINES_AT_ONCE_OF_EACH
    )


class RefusalLog:
    """Logs refused connections within `refusal_line_limits`; `lines` reports the suppressed ones.

    The metrics count all refusals.
    """

    def __init__(self) -> None:
        self.lines = refusal_line_limits("refused connections")

    def log(self, text: str, *args: object, cause: str, network: str, extra: Mapping[str, object]) -> None:
        """Log a refusal at level info, unless the rate limits suppress it."""
        if self.lines.admit(cause, network):
            log.info(text, *args, extra=extra)
