"""The HTTP side: connections that ask for no WebSocket, served by Hypercorn's HTTP/1.1 and an ASGI app.

Only Hypercorn's protocol is used. Reading, writing, waiting and giving up are done here, since a connection
must never be able to outlive its deadlines, to become anything but HTTP/1.1 here, or to end anything but
itself.
"""

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final, NoReturn, Protocol, cast

import h11
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import (
    AppWrapper,
    ASGIFramework,
    ASGIReceiveEvent,
    ASGISendEvent,
    ConnectionState,
    Scope,
    TaskGroup,
)

from brewos_relay.core.limits import Limits
from brewos_relay.server.failures import contained
from brewos_relay.server.lifespan import open_lifespan
from brewos_relay.server.request_gate import RequestGate, WebSocketWanted
from brewos_relay.telemetry.measurements import RequestCounters

log = logging.getLogger(__name__)

_READ_BYTES: Final = 64 * 1024
_WRITE_BYTES: Final = 16 * 1024
"""What a peer has to take within `stall_s`; an answer that is smaller leaves in one piece."""
_HOLD_S: Final = 0.25
"""How long the beginning of an answer may wait for the rest of it."""
_FAREWELL_S: Final = 0.5
"""What requests that are being answered are given when the HTTP side closes."""


class TakeWebSocket(Protocol):
    """Answers a request for a WebSocket on a connection of the HTTP side; True if the connection goes on.

    The stream belongs to the callee then, and is not closed.
    """

    async def __call__(
        self, stream: trio.abc.Stream, wanted: WebSocketWanted, *, client: tuple[str, int], secure: bool
    ) -> bool: ...


class HttpSide:
    """Serves connections whose first request head has been read already.

    Clients keep connections in a pool, and ask for a WebSocket on one that they have fetched through: such a
    connection goes to `take_websocket`. Without that, the request is refused.

    **Owns:** (through `open_http_side`) the nursery of every connection that it was given with `take`.
    **Ends when:** the block of `open_http_side` is left.
    """

    def __init__(
        self,
        app: AppWrapper,
        *,
        nursery: trio.Nursery,
        config: Config,
        limits: Limits,
        counters: RequestCounters,
    ) -> None:
        self.app = app
        self.config = config
        self.limits = limits
        self.counters = counters
        self.context = WorkerContext(None)
        self.take_websocket: TakeWebSocket | None = None
        self._nursery = nursery
        self._connections: set[_Connection] = set()

    @property
    def connection_count(self) -> int:
        """How many connections are being served."""
        return len(self._connections)

    def take(
        self,
        stream: trio.abc.Stream,
        initial: bytes,
        *,
        client: tuple[str, int] | None = None,
        secure: bool = False,
    ) -> None:
        """Serve a connection in a task of the HTTP side; the stream belongs to it from here on.

        `client` is the peer's address and port; `secure` says whether TLS protects the connection.
        """

        async def serve() -> None:
            await self.serve(stream, initial=initial, client=client, secure=secure)

        self._nursery.start_soon(serve, name="http connection")

    async def serve(
        self,
        stream: trio.abc.Stream,
        *,
        initial: bytes,
        client: tuple[str, int] | None = None,
        secure: bool = False,
    ) -> None:
        """Serve a connection until it ends, and close its stream.

        `initial` is what was read from the stream so far. Raises nothing but trio.Cancelled: whatever goes
        wrong ends this connection only.
        """
        connection = _Connection(self, stream, client=client, secure=secure)
        self._connections.add(connection)
        goes_on = False
        try:
            with contained("an HTTP connection"):
                wanted = await connection.run(initial)
                if wanted is not None and self.take_websocket is not None and client is not None:
                    goes_on = await self.take_websocket(stream, wanted, client=client, secure=secure)
        finally:
            self._connections.discard(connection)
            if not goes_on:
                await self._close(stream)

    async def _close(self, stream: trio.abc.Stream) -> None:
        # Shielded, so that an exception on its way out is not replaced by a cancellation.
        with contained("closing"), trio.move_on_after(self.limits.close_s, shield=True):
            await trio.aclose_forcefully(stream)

    async def close_idle(self) -> None:
        """Close every connection that waits for its next request; the others close after their answer."""
        await self.context.terminated.set()
        for connection in self._connections:
            connection.close_if_idle()


@asynccontextmanager
async def open_http_side(
    app: ASGIFramework,
    *,
    limits: Limits | None = None,
    counters: RequestCounters | None = None,
) -> AsyncIterator[HttpSide]:
    """Start an ASGI app and serve connections with it; leaving the block closes them and stops the app.

    Every bound is one of `limits`: heads, bodies, how long an answer may take or an idle connection may stay.
    `counters` count what is refused before the app sees it.

    **Owns:** (within that of `open_lifespan`) a nursery with a task for each connection.
    """
    limits, counters = limits or Limits(), counters or RequestCounters()
    config = Config()
    config.accesslog = None  # a request line has a query string, and that may have a token
    config.errorlog = log
    config.include_server_header = False
    async with open_lifespan(app), trio.open_nursery() as nursery:
        side = HttpSide(ASGIWrapper(app), nursery=nursery, config=config, limits=limits, counters=counters)
        yield side
        await side.close_idle()
        nursery.cancel_scope.deadline = trio.current_time() + _FAREWELL_S


class _Connection:
    """One connection: a reader, a task for the request that is being answered, and one deadline for both.

    What an answer begins with is held until it is complete, or fills a piece, or has waited for a moment: a
    machine takes what the first piece holds for the whole answer.

    **Owns:** a nursery with those two, and a task while something is held.
    **Ends when:** either end closes, a deadline passes, or what was asked for is refused.
    """

    def __init__(
        self, side: HttpSide, stream: trio.abc.Stream, *, client: tuple[str, int] | None, secure: bool
    ) -> None:
        self._side = side
        self._client = client
        self._secure = secure
        self._limits = side.limits
        self._stream = stream
        self._writing = trio.Lock()
        self._held = bytearray()
        self._held_until = -math.inf
        self._holding = False
        self._scope = trio.CancelScope(deadline=trio.current_time() + side.limits.request_head_s)
        self._idle = trio.CancelScope()
        self._h11 = RequestGate(
            head_bytes=side.limits.request_head_bytes,
            body_bytes=side.limits.http_body_bytes,
            refused=side.counters.refused,
            gives_back=side.take_websocket is not None,
        )
        self._reading_head = True
        self._answering = False
        self._broken = False
        self._wanted: WebSocketWanted | None = None

    def close_if_idle(self) -> None:
        """End the connection unless a request is arriving or being answered."""
        if not self._answering and not self._reading_head:
            self._scope.cancel()

    async def run(self, initial: bytes) -> WebSocketWanted | None:
        """Serve requests until the connection ends, or a WebSocket is wanted. The stream is left open."""
        with self._scope:
            async with trio.open_nursery() as self._nursery:
                await self._read(self._nursery, initial)
                self._nursery.cancel_scope.cancel()
        if self._wanted is not None:
            return self._wanted
        if not self._broken and (self._reading_head or self._answering):
            with trio.move_on_after(self._limits.close_s), suppress(trio.BrokenResourceError):
                await self._say_goodbye()
        return None

    async def _read(self, nursery: trio.Nursery, initial: bytes) -> None:
        protocol = H11Protocol(
            self._side.app,
            self._side.config,
            self._side.context,
            cast("TaskGroup", _Requests(nursery)),
            ConnectionState({}),
            self._secure,
            self._client,
            None,
            self._on_event,
        )
        protocol.connection = self._h11
        data = initial or await self._receive()
        while data:
            if not self._answering and not self._reading_head and data.strip(b"\r\n"):
                self._reading_head = True
                self._idle.deadline = math.inf
                self._scope.deadline = trio.current_time() + self._limits.request_head_s
            try:
                await protocol.handle(RawData(data))
            except WebSocketWanted as wanted:
                self._wanted = wanted
                return
            data = await self._receive()
        await protocol.handle(RawData(b""))
        if self._answering:
            # The peer has finished speaking but may well be listening.
            await trio.sleep_forever()

    async def _receive(self) -> bytes:
        """Wait for what the peer sends, or for its end; at the idle limit, end the connection.

        A request that came in time is served, even if the server was busy past the limit: Trio reads before
        it looks at deadlines, and only the wait is cancelled, not what was read.
        """
        data = b""
        with trio.CancelScope(deadline=self._idle.deadline) as self._idle:
            try:
                data = bytes(await self._stream.receive_some(_READ_BYTES))
            except trio.BrokenResourceError:
                await self._give_up()
        if self._idle.cancelled_caught:
            self._scope.cancel()
        return data

    async def _on_event(self, event: Event) -> None:
        """Do what Hypercorn's protocol wants done."""
        if isinstance(event, RawData):
            if not self._held:
                self._held_until = trio.current_time() + _HOLD_S
            self._held += event.data
            if self._h11.our_state is not h11.SEND_BODY or len(self._held) >= _WRITE_BYTES:
                await self._write_held()
            elif not self._holding:
                self._holding = True
                self._nursery.start_soon(self._write_later)
        elif isinstance(event, Updated):
            self._reading_head = False
            self._answering = not event.idle
            now_s = trio.current_time()
            self._idle.deadline = now_s + self._limits.http_idle_s if event.idle else math.inf
            self._scope.deadline = math.inf if event.idle else now_s + self._limits.http_request_s
        else:
            assert isinstance(event, Closed)
            try:
                await self._write_held()
            finally:
                # Even if the task that answers is cancelled here, as the app was told that this is the end.
                self._scope.cancel()

    async def _write_later(self) -> None:
        """Write what is held once it has waited long enough."""
        while self._held:
            await trio.sleep_until(self._held_until)
            if trio.current_time() >= self._held_until:
                await self._write_held()
        self._holding = False

    async def _write_held(self) -> None:
        async with self._writing:
            data = bytes(self._held)
            self._held.clear()
            for start in range(0, len(data), _WRITE_BYTES):
                try:
                    with trio.fail_after(self._limits.stall_s):
                        await self._stream.send_all(memoryview(data)[start : start + _WRITE_BYTES])
                except (trio.BrokenResourceError, trio.TooSlowError):
                    await self._give_up()
                if self._answering:
                    self._scope.deadline = trio.current_time() + self._limits.http_request_s

    async def _give_up(self) -> NoReturn:
        self._broken = True
        self._scope.cancel()
        await trio.sleep_forever()

    async def _say_goodbye(self) -> None:
        """Say what is left to say and wait for the peer's end: closing at once could take the answer back."""
        timed_out = trio.current_time() >= self._scope.deadline
        if timed_out and self._h11.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            late = self._h11.their_state in {h11.IDLE, h11.SEND_BODY}
            self._side.counters.refused["too_slow" if late else "no_answer_in_time"] += 1
            await self._stream.send_all(_TOO_LATE if late else _TOO_SLOW)
        if isinstance(self._stream, trio.abc.HalfCloseableStream):
            await self._stream.send_eof()
        while await self._stream.receive_some(_READ_BYTES):
            pass


_TOO_LATE: Final = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_TOO_SLOW: Final = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class _Requests:
    """Runs the app for each request, in the connection's nursery, in place of Hypercorn's TaskGroup."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    async def spawn_app(
        self,
        app: AppWrapper,
        config: Config,
        scope: Scope,
        send: Callable[[ASGISendEvent | None], Awaitable[None]],
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        """Start answering a request; returns where to put what the peer sends."""
        put, take = trio.open_memory_channel[ASGIReceiveEvent](config.max_app_queue_size)

        async def answer() -> None:
            with contained("answering an HTTP request"):
                await app(scope, take.receive, send, trio.to_thread.run_sync, trio.from_thread.run)
            with contained("ending an HTTP request"):
                await send(None)

        self._nursery.start_soon(answer, name="http request")
        return put.send
